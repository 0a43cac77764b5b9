//! Decides which models a change touches, so that `kvgate run --changed` measures no others.

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

/// Folders of code and configuration that measure or judge. A change in one of them, at any depth of the
/// repository, may change any verdict.
const MACHINERY: &[&str] = &[".github", ".config", ".cargo", "src", "tests"];
/// Files of the same kind, by their whole names.
const MACHINERY_FILES: &[&str] =
    &["Cargo.toml", "Cargo.lock", "build.rs", "rust-toolchain", "rust-toolchain.toml"];
/// Extensions of files that only people read.
const PROSE: &[&str] = &[
    "md", "markdown", "rst", "adoc", "png", "jpg", "jpeg", "gif", "svg", "webp", "pdf", "html",
    "css",
];
/// Names of files that only people and hosting services read, without their extensions.
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
/// Extensions of files that a checkpoint may consist of. They count whatever the name before them is: an
/// index may name a shard `README.safetensors`.
const READ: &[&str] = &["safetensors", "gguf", "json", "bin", "jinja", "model"];
/// How the names of goldens end that wait to be accepted.
const PENDING: &[&str] = &[".snap.new", ".pending-snap"];

/// Which of a policy's models a change touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// All of them, and the reason, such as the file that changed.
    All(String),
    /// Some of them, by [`ModelPolicy::name`] in the policy's order.
    Models(Vec<String>),
    /// None of them: no verdict depends on what changed.
    None,
}

impl Touched {
    /// Whether the change touches a model.
    pub fn contains(&self, model: &str) -> bool {
        match self {
            Touched::All(_) => true,
            Touched::Models(names) => names.iter().any(|name| name == model),
            Touched::None => false,
        }
    }
}

/// Models with a file that git does not track, and the first such file of each. Nobody can see whether it changed.
pub type Untracked = Vec<(String, PathBuf)>;

impl Touched {
    /// Adds the models of which nobody knows whether they changed.
    #[must_use]
    pub fn with_untracked(self, policy: &Policy, untracked: &Untracked) -> Touched {
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

/// A change of the working tree, and the models that it touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    pub touched: Touched,
    /// What the working tree was compared with: `origin/main (1a2b3c4)`. Empty if it was not compared.
    pub since: String,
    /// The number of files that differ.
    pub files: usize,
    /// Models that count as touched because nobody knows whether they changed.
    pub untracked: Untracked,
}

impl Changed {
    /// Why nothing has to be run: `nothing changed since origin/main (1a2b3c4)`.
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

/// Writes what is run, and why: `touched since origin/main (1a2b3c4): gemma-3-270m`.
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

/// What the working tree has changed since its history parted from `against`, or from the default target.
///
/// A run on GitHub that belongs to no pull request, such as one of a push, has nothing to be compared with. Without
/// `against`, it counts every model as touched.
///
/// # Errors
/// There is no repository, no revision to compare with, or no common history.
pub fn since(
    policy: &Policy,
    against: Option<&str>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Changed, RepoError> {
    let folder = folder_of(&policy.path);
    let repository = Repository::discover(folder)?;
    let target = match (against, event_without_pull_request(environment)) {
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
            _ if changes_linked_text(policy, &repository, &changes) => {
                Touched::All("what a text of the policy leads to changed".into())
            }
            touched => touched,
        },
        None => Touched::All(format!("{} is outside of the repository", policy.path.display())),
    };
    let untracked = untracked(policy, &repository)?;
    let touched = touched.with_untracked(policy, &untracked);
    let since = format!("{target} ({})", &base[..7]);
    Ok(Changed { touched, since, files: changes.len(), untracked })
}

/// Files of the models, as they are on disk, that git ignores or that lie outside of the repository. Weights that the
/// policy pins by a hash or a commit do not count, because they are known all the same.
///
/// # Errors
/// The repository has no commit.
pub fn untracked(policy: &Policy, repository: &Repository) -> Result<Untracked, RepoError> {
    first_untracked(policy, &|file| first_untracked_on_disk(repository, file, MOST_DEPTH))
}

/// The same for a commit, whose working tree is not there. `folder` is the policy's folder, from the repository's root.
/// Targets of links are not looked at, nor are folders of weights that the commit holds in part.
///
/// # Errors
/// The revision is not in this clone.
pub fn untracked_at(
    policy: &Policy,
    repository: &Repository,
    revision: &str,
    folder: &Path,
) -> Result<Untracked, RepoError> {
    let watch = Watch { policy, folder };
    first_untracked(policy, &|file| {
        let is_tracked = repository.tracks(revision, &watch.in_repository(file))?;
        Ok((!is_tracked).then(|| file.to_owned()))
    })
}

/// How many levels of folders are searched below a checkpoint's folder.
const MOST_DEPTH: usize = 8;

/// The first file of each model for which `untracked_in` finds something.
fn first_untracked(
    policy: &Policy,
    untracked_in: &dyn Fn(&Path) -> Result<Option<PathBuf>, RepoError>,
) -> Result<Untracked, RepoError> {
    let mut found = Vec::new();
    for model in &policy.models {
        let source = &model.source;
        let is_pinned = source.sha256.is_some() || source.hub.is_some();
        let weights = (!is_pinned).then_some(&source.path);
        let prompts = model.generate.as_ref().map(|prompts| &prompts.file);
        let single = [weights, source.tokenizer.as_ref(), model.calibration.as_ref(), prompts];
        for file in single.into_iter().flatten().chain(&model.corpus) {
            if let Some(file) = untracked_in(file)? {
                found.push((model.name.clone(), file));
                break;
            }
        }
    }
    Ok(found)
}

/// The file itself if it is not tracked, or the first such file in it if it is a folder. Links are followed.
fn first_untracked_on_disk(
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
        // files for people, and hidden ones that tools keep beside a download
        let is_hidden = entry.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if is_hidden || is_for_people(&entry) {
            continue;
        }
        if let Some(found) = first_untracked_on_disk(repository, &entry, depth - 1)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Whether a file changed that the policy names only indirectly: the target of a link, or a document that prompts name.
fn changes_linked_text(policy: &Policy, repository: &Repository, changes: &[FileChange]) -> bool {
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

/// The event of a run on GitHub that belongs to no pull request.
fn event_without_pull_request(environment: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let is_pull_request = environment("GITHUB_BASE_REF").is_some_and(|base| !base.is_empty());
    environment("GITHUB_EVENT_NAME").filter(|event| !event.is_empty() && !is_pull_request)
}

/// Which models of a policy some changes touch. `folder` is the policy's folder, from the repository's root.
///
/// The policy itself, its texts, Rust sources and workflows touch all models, and so does any file that is
/// not known to be harmless. As an edited policy touches all, it is enough to ask the one that is run.
pub fn touched(policy: &Policy, folder: &Path, changes: &[FileChange]) -> Touched {
    let watch = Watch { policy, folder };
    let mut names: Vec<&str> = Vec::new();
    let paths = changes.iter().flat_map(|change| [Some(&change.path), change.old_path.as_ref()]);
    for path in paths.flatten() {
        match watch.effect(path) {
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

/// Which models one changed file touches.
enum Effect<'p> {
    All,
    Models(Vec<&'p str>),
    None,
}

/// Knows the files that a policy names.
struct Watch<'p> {
    policy: &'p Policy,
    /// The policy's folder, from the repository's root.
    folder: &'p Path,
}

impl<'p> Watch<'p> {
    fn effect(&self, path: &Path) -> Effect<'p> {
        if self.is_policy_or_text(path) {
            return Effect::All;
        }
        let named = self.models(|model| self.files(model).any(|file| may_change(&file, path)));
        if !named.is_empty() {
            return Effect::Models(named);
        }
        if let Some(effect) = self.golden_effect(path) {
            return effect;
        }
        if is_machinery(path) {
            return Effect::All;
        }
        let beneath = self.models(|model| path.starts_with(self.in_repository(&model.source.path)));
        if !beneath.is_empty() && !is_for_people(path) {
            return Effect::Models(beneath);
        }
        if is_for_people(path) || self.is_left_by_run(path) {
            Effect::None
        } else {
            // a file that is not known may be anything
            Effect::All
        }
    }

    /// Whether a path is the policy, or a text that models are measured on.
    fn is_policy_or_text(&self, path: &Path) -> bool {
        let texts = self.policy.models.iter().flat_map(|model| {
            model.corpus.iter().chain(model.generate.as_ref().map(|prompts| &prompts.file))
        });
        texts.chain([&self.policy.path]).any(|file| may_change(&self.in_repository(file), path))
    }

    /// The files that a model consists of. What lies in a folder of weights is left to [`Watch::effect`].
    fn files<'m>(&'m self, model: &'m ModelPolicy) -> impl Iterator<Item = PathBuf> + 'm {
        let source = &model.source;
        let files = [Some(&source.path), source.tokenizer.as_ref(), model.calibration.as_ref()];
        files.into_iter().flatten().map(|file| self.in_repository(file))
    }

    fn models(&self, is_touched: impl Fn(&ModelPolicy) -> bool) -> Vec<&'p str> {
        let models = self.policy.models.iter();
        models.filter(|model| is_touched(model)).map(|model| model.name.as_str()).collect()
    }

    /// What a golden's change touches: the model that it belongs to. A golden that matches no case of the
    /// policy touches no model. None if the path is no golden.
    fn golden_effect(&self, path: &Path) -> Option<Effect<'p>> {
        let beneath = path.strip_prefix(self.folder.join(golden::FOLDER)).ok()?;
        beneath.extension().filter(|extension| *extension == "snap")?;
        let Some(case) = case_of_golden(self.policy, beneath) else { return Some(Effect::None) };
        let name = case::model_and_scheme(&case).0;
        Some(Effect::Models(self.models(|model| model.name == name)))
    }

    /// Whether a run of the gate leaves this file behind.
    fn is_left_by_run(&self, path: &Path) -> bool {
        let name = path.to_string_lossy();
        path.starts_with(self.folder.join(RESULTS)) || PENDING.iter().any(|end| name.ends_with(end))
    }

    /// A path that the policy names, from the repository's root.
    fn in_repository(&self, file: &Path) -> PathBuf {
        let policy_folder = self.policy.path.parent().unwrap_or(Path::new(""));
        let file = file.strip_prefix(policy_folder).unwrap_or(file);
        without_dots(&self.folder.join(file))
    }
}

/// Whether a change at `path` may change `file`: it is the file itself, or a submodule or link above it.
fn may_change(file: &Path, path: &Path) -> bool {
    file.starts_with(path)
}

fn is_machinery(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    let folders = path.parent().into_iter().flat_map(Path::components);
    MACHINERY_FILES.iter().any(|file| name == *file)
        || path.extension().is_some_and(|extension| extension == "rs")
        || folders.into_iter().any(|folder| MACHINERY.iter().any(|m| folder.as_os_str() == *m))
}

/// Whether only people and hosting services read a file, wherever it lies. The name of a folder says nothing
/// about that: a model or a tokenizer may lie among documents.
fn is_for_people(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    let named = |known: &str| {
        name.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-']))
    };
    let is_read = READ.iter().any(|read| extension == *read);
    let is_prose = PROSE.iter().any(|prose| extension == *prose);
    !is_read && (is_prose || PROSE_FILES.iter().any(|known| named(known)))
}

/// A path without `.` and `..`, as far as they can be removed without looking at the disk.
fn without_dots(path: &Path) -> PathBuf {
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
