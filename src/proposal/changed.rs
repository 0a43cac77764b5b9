//! Which models a change touches: what `kvgate run --changed` runs.

use crate::files::folder_of;
use crate::gate::{Case, RESULTS};
use crate::golden;
use crate::measure::prompts::documents;
use crate::policy::{ModelPolicy, Policy};
use crate::proposal::weakened::case_of_golden;
use crate::repo::{FileChange, RepoError, Repository};
use crate::results::case;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// Folders of what measures and judges, of the repository or of a package in it: a change there may
/// change any verdict.
const MACHINERY: &[&str] = &[".github", ".config", ".cargo", "src", "tests"];
/// Files of the same kind, by their whole name.
const MACHINERY_FILES: &[&str] =
    &["Cargo.toml", "Cargo.lock", "build.rs", "rust-toolchain", "rust-toolchain.toml"];
/// Extensions of what only people read.
const PROSE: &[&str] = &[
    "md", "markdown", "rst", "adoc", "png", "jpg", "jpeg", "gif", "svg", "webp", "pdf", "html",
    "css",
];
/// Names of what only people and hosts read, up to an extension.
const PROSE_FILES: &[&str] = &[
    "README",
    "LICENSE",
    "LICENCE",
    "COPYING",
    "NOTICE",
    "CHANGELOG",
    "AUTHORS",
    "CONTRIBUTING",
    "SECURITY",
    "CODEOWNERS",
    "CITATION",
    ".gitignore",
    ".editorconfig",
];
/// Extensions of what checkpoints are made of, whatever the name before them is: an index may name a shard
/// `README.safetensors`.
const READ: &[&str] = &["safetensors", "gguf", "json", "bin", "jinja", "model"];
/// Ends of the names of goldens that wait to be accepted.
const PENDING: &[&str] = &[".snap.new", ".pending-snap"];

/// What a change has to do with a policy's models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// All of them, and why: which file did it.
    All(String),
    /// Some, by [`ModelPolicy::name`], in the policy's order.
    Models(Vec<String>),
    /// None: no verdict depends on what changed.
    None,
}

impl Touched {
    /// Whether a model is among them.
    pub fn contains(&self, model: &str) -> bool {
        match self {
            Touched::All(_) => true,
            Touched::Models(names) => names.iter().any(|name| name == model),
            Touched::None => false,
        }
    }
}

/// Of each model the first file that no commit holds, so that a change of it is none that can be seen.
pub type Untracked = Vec<(String, PathBuf)>;

impl Touched {
    /// The same with models of which nobody knows whether they changed.
    #[must_use]
    pub fn with(self, policy: &Policy, untracked: &Untracked) -> Touched {
        if matches!(self, Touched::All(_)) || untracked.is_empty() {
            return self;
        }
        let is_untracked = |name: &str| untracked.iter().any(|(model, _)| model == name);
        let names = policy.models.iter().map(|model| &model.name);
        Touched::Models(
            names.filter(|name| self.contains(name) || is_untracked(name)).cloned().collect(),
        )
    }
}

/// A change, what it is a change of, and whom it concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Which models it touches.
    pub touched: Touched,
    /// What was compared with: `origin/main (1a2b3c4)`; empty where nothing was.
    pub since: String,
    /// How many files differ.
    pub files: usize,
    /// Models that are touched because nobody knows whether they changed.
    pub untracked: Untracked,
}

impl Changed {
    /// Why a run of what is touched has nothing to do: `nothing changed since origin/main (1a2b3c4)`.
    pub fn not_needed(&self) -> String {
        let since = &self.since;
        match (&self.touched, self.files) {
            (Touched::None, 0) => format!("nothing changed since {since}"),
            (Touched::None, 1) => {
                format!(
                    "the one file that changed since {since} is nothing that a verdict depends on"
                )
            }
            (Touched::None, n) => {
                format!("none of the {n} files that changed since {since} is one that a verdict depends on")
            }
            _ => format!("what changed since {since} touches no model that was asked for"),
        }
    }
}

/// What is run, and why: `touched since origin/main (1a2b3c4): gemma-3-270m`
impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.touched {
            Touched::All(reason) => write!(f, "every model is touched: {reason}"),
            Touched::Models(names) => {
                write!(f, "touched since {}: {}", self.since, names.join(", "))?;
                let files: BTreeSet<_> = self.untracked.iter().map(|(_, file)| file).collect();
                files.into_iter().try_for_each(|file| {
                    let file = file.display();
                    write!(f, "; {file} is not tracked, so that nobody knows whether it changed")
                })
            }
            Touched::None => f.write_str(&self.not_needed()),
        }
    }
}

/// What the working tree changes since it parted from `against`, or from the default target.
///
/// A run on GitHub that is of no pull request has nothing to be compared with: a push *is* its target. It
/// touches everything unless `against` says otherwise.
///
/// # Errors
/// No repository, no revision to compare with, or no common history.
pub fn since(
    policy: &Policy,
    against: Option<&str>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Changed, RepoError> {
    let folder = folder_of(&policy.path);
    let repository = Repository::discover(folder)?;
    let target = match (against, no_pull_request(environment)) {
        (Some(revision), _) => revision.to_owned(),
        (None, Some(event)) => {
            let touched = Touched::All(format!("a run of `{event}` is of no pull request"));
            let (since, untracked) = (String::new(), Vec::new());
            return Ok(Changed { touched, since, files: 0, untracked });
        }
        (None, None) => repository.default_target(environment)?,
    };
    let base = repository.merge_base("HEAD", &target)?;
    let changes = repository.changed_in_workdir(&base)?;
    let root = repository.relative(folder);
    let touched = match root {
        Some(root) => match touched(policy, &root, &changes) {
            Touched::All(reason) => Touched::All(reason),
            _ if let_through(policy, &repository, &changes) => {
                Touched::All("what a text of the policy leads to changed".into())
            }
            touched => touched,
        },
        None => Touched::All(format!("{} is outside of the repository", policy.path.display())),
    };
    let untracked = untracked(policy, &repository)?;
    let touched = touched.with(policy, &untracked);
    let since = format!("{target} ({})", &base[..7]);
    Ok(Changed { touched, since, files: changes.len(), untracked })
}

/// What git does not track of the models as they are on disk: files that it ignores, or that lie outside of the
/// repository. Weights that the policy pins are known all the same.
///
/// # Errors
/// A repository without a commit.
pub fn untracked(policy: &Policy, repository: &Repository) -> Result<Untracked, RepoError> {
    first_untracked(policy, &|file| on_disk(repository, file, MOST_DEPTH))
}

/// The same of a commit, whose working tree is not there. What a link of it leads to, and a folder of weights that
/// it holds in part, are not looked at. `folder` is the policy's, from the repository's root.
///
/// # Errors
/// A revision that is not in this clone.
pub fn untracked_at(
    policy: &Policy,
    repository: &Repository,
    revision: &str,
    folder: &Path,
) -> Result<Untracked, RepoError> {
    let watch = Watch { policy, folder };
    first_untracked(policy, &|file| {
        let is_tracked = repository.tracks(revision, &watch.own(file))?;
        Ok((!is_tracked).then(|| file.to_owned()))
    })
}

/// Folders that are gone down beneath a checkpoint's.
const MOST_DEPTH: usize = 8;

fn first_untracked(
    policy: &Policy,
    look: &dyn Fn(&Path) -> Result<Option<PathBuf>, RepoError>,
) -> Result<Untracked, RepoError> {
    let mut found = Vec::new();
    for model in &policy.models {
        let source = &model.source;
        let is_pinned = source.sha256.is_some() || source.hub.is_some();
        let weights = (!is_pinned).then_some(&source.path);
        let prompts = model.generate.as_ref().map(|prompts| &prompts.file);
        let single = [weights, source.tokenizer.as_ref(), model.calibration.as_ref(), prompts];
        for file in single.into_iter().flatten().chain(&model.corpus) {
            if let Some(file) = look(file)? {
                found.push((model.name.clone(), file));
                break;
            }
        }
    }
    Ok(found)
}

/// The file, or the first one of a folder, that is not tracked where it really lies.
fn on_disk(
    repository: &Repository,
    file: &Path,
    depth: usize,
) -> Result<Option<PathBuf>, RepoError> {
    let Some(place) = repository.relative(file) else { return Ok(Some(file.to_owned())) };
    if !repository.tracks("HEAD", &place)? {
        return Ok(Some(place));
    }
    if depth == 0 || !file.is_dir() || repository.is_submodule("HEAD", &place)? {
        return Ok(None);
    }
    let entries = std::fs::read_dir(file).into_iter().flatten().flatten();
    let mut entries: Vec<_> = entries.map(|entry| entry.path()).collect();
    entries.sort();
    for entry in entries {
        // what people read, and what tools keep beside a download
        let is_hidden = entry.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if is_hidden || is_words(&entry) {
            continue;
        }
        if let Some(found) = on_disk(repository, &entry, depth - 1)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Whether a change is of what a text of the policy leads to: what it is a link to, or a document of its
/// prompts.
fn let_through(policy: &Policy, repository: &Repository, changes: &[FileChange]) -> bool {
    let prompts = policy.models.iter().filter_map(|model| Some(&model.generate.as_ref()?.file));
    let documents = prompts.clone().flat_map(|file| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        documents(&text).into_iter().map(|document| folder_of(file).join(document))
    });
    let texts = policy.models.iter().flat_map(|model| &model.corpus).chain(prompts).cloned();
    let real = |text: PathBuf| repository.relative(&text.canonicalize().ok()?);
    let mut real = texts.chain(documents).filter_map(real);
    real.any(|text| changes.iter().any(|change| change.path == text))
}

/// The cases of the models that a change touches.
pub fn select(policy: &Policy, changed: &Changed, mut cases: Vec<Case>) -> Vec<Case> {
    cases.retain(|case| changed.touched.contains(&policy.models[case.model].name));
    cases
}

/// The event of a run on GitHub that is of no pull request.
fn no_pull_request(environment: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let is_pull_request = environment("GITHUB_BASE_REF").is_some_and(|base| !base.is_empty());
    environment("GITHUB_EVENT_NAME").filter(|event| !event.is_empty() && !is_pull_request)
}

/// Which models of a policy some changes touch; `folder` is the policy's, from the repository's root.
///
/// The policy itself, texts, Rust sources and workflows touch all, and so does any file that is not known
/// to be harmless. As an edited policy touches all, only one policy is asked: the one that is run.
pub fn touched(policy: &Policy, folder: &Path, changes: &[FileChange]) -> Touched {
    let watch = Watch { policy, folder };
    let mut names: Vec<&str> = Vec::new();
    let paths = changes.iter().flat_map(|change| [Some(&change.path), change.old_path.as_ref()]);
    for path in paths.flatten() {
        match watch.touches(path) {
            Effect::All => return Touched::All(format!("{} changed", path.display())),
            Effect::Models(touched) => names.extend(touched),
            Effect::None => {}
        }
    }
    let own = policy.models.iter().map(|model| model.name.as_str());
    let names: Vec<_> = own.filter(|name| names.contains(name)).map(Into::into).collect();
    if names.is_empty() {
        Touched::None
    } else {
        Touched::Models(names)
    }
}

/// What one path does.
enum Effect<'p> {
    All,
    Models(Vec<&'p str>),
    None,
}

/// A policy's files, as git names them.
struct Watch<'p> {
    policy: &'p Policy,
    folder: &'p Path,
}

impl<'p> Watch<'p> {
    fn touches(&self, path: &Path) -> Effect<'p> {
        if self.judges(path) {
            return Effect::All;
        }
        let named = self.models(|model| self.files(model).any(|file| meets(&file, path)));
        if !named.is_empty() {
            return Effect::Models(named);
        }
        if let Some(of_golden) = self.golden(path) {
            return of_golden;
        }
        if is_machinery(path) {
            return Effect::All;
        }
        let beneath = self.models(|model| path.starts_with(self.own(&model.source.path)));
        if !beneath.is_empty() && !is_words(path) {
            return Effect::Models(beneath);
        }
        match is_words(path) || self.is_left_by_run(path) {
            true => Effect::None,
            // what is not known may be anything
            false => Effect::All,
        }
    }

    /// The policy, and what every model may be measured on.
    fn judges(&self, path: &Path) -> bool {
        let texts = self.policy.models.iter().flat_map(|model| {
            model.corpus.iter().chain(model.generate.as_ref().map(|prompts| &prompts.file))
        });
        texts.chain([&self.policy.path]).any(|file| meets(&self.own(file), path))
    }

    /// What a model is, file by file; a folder of weights is looked at by [`Watch::touches`].
    fn files<'m>(&'m self, model: &'m ModelPolicy) -> impl Iterator<Item = PathBuf> + 'm {
        let source = &model.source;
        let files = [Some(&source.path), source.tokenizer.as_ref(), model.calibration.as_ref()];
        files.into_iter().flatten().map(|file| self.own(file))
    }

    fn models(&self, is_touched: impl Fn(&ModelPolicy) -> bool) -> Vec<&'p str> {
        let models = self.policy.models.iter();
        models.filter(|model| is_touched(model)).map(|model| model.name.as_str()).collect()
    }

    /// The model whose golden a path is; a golden of no case is nobody's.
    fn golden(&self, path: &Path) -> Option<Effect<'p>> {
        let beneath = path.strip_prefix(self.folder.join(golden::FOLDER)).ok()?;
        beneath.extension().filter(|extension| *extension == "snap")?;
        let Some(case) = case_of_golden(self.policy, beneath) else { return Some(Effect::None) };
        let name = case::model_and_scheme(&case).0;
        Some(Effect::Models(self.models(|model| model.name == name)))
    }

    fn is_left_by_run(&self, path: &Path) -> bool {
        let name = path.to_string_lossy();
        path.starts_with(self.folder.join(RESULTS)) || PENDING.iter().any(|end| name.ends_with(end))
    }

    /// A file that the policy names, from the repository's root.
    fn own(&self, file: &Path) -> PathBuf {
        let policy_folder = self.policy.path.parent().unwrap_or(Path::new(""));
        let file = file.strip_prefix(policy_folder).unwrap_or(file);
        plain(&self.folder.join(file))
    }
}

/// Whether a change of `path` may be one of `file`: it is the file, or a submodule or link above it.
fn meets(file: &Path, path: &Path) -> bool {
    file.starts_with(path)
}

fn is_machinery(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    let folders = path.parent().into_iter().flat_map(Path::components);
    MACHINERY_FILES.iter().any(|file| name == *file)
        || path.extension().is_some_and(|extension| extension == "rs")
        || folders.into_iter().any(|folder| MACHINERY.iter().any(|m| folder.as_os_str() == *m))
}

/// What only people and hosts read, wherever it lies. A folder of documents is none: a model or a tokenizer may lie
/// there, or a link may lead there.
fn is_words(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    let named = |known: &str| {
        name.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-']))
    };
    let is_read = READ.iter().any(|read| extension == *read);
    let is_prose = PROSE.iter().any(|prose| extension == *prose);
    !is_read && (is_prose || PROSE_FILES.iter().any(|known| named(known)))
}

/// A path without `.` and `..`, as far as they can be taken out.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir if plain.file_name().is_some() => drop(plain.pop()),
            other => plain.push(other),
        }
    }
    plain
}
