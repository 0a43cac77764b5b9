//! `thresholds.toml` → [`Policy`]: what must hold, model by model and scheme by scheme.

mod diagnostic;
mod document;
mod resolve;
#[cfg(test)]
mod tests;
pub(crate) mod weakened;

pub use diagnostic::{Diagnostic, Severity};
pub use weakened::{goldens_removed, text_sizes, weakened, Place, Side, Weakened};

use crate::hash;
use crate::hub::Pinned;
use crate::kv::Scheme;
use crate::measure::stats::Statistic;
use diagnostic::{Findings, Text};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A whole policy, checked.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The file as it was named.
    pub path: PathBuf,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
    /// One entry for each model and each of its `at` sections, in the file's order.
    pub models: Vec<ModelPolicy>,
}

/// A model measured in one way: the unit of measuring.
#[derive(Debug, Clone)]
pub struct ModelPolicy {
    /// The model as cases name it: `gemma-3-270m` or `gemma-3-270m@long`.
    pub name: String,
    /// Where its weights are.
    pub source: Source,
    /// What `kvgate calibrate` wrote for it, resolved against the policy's folder.
    pub calibration: Option<PathBuf>,
    /// Corpus files, resolved against the policy's folder.
    pub corpus: Vec<PathBuf>,
    /// Tokens in a chunk.
    pub context: usize,
    /// Chunks to measure.
    pub chunks: usize,
    /// What lanes are compared with.
    pub baseline: Scheme,
    /// What the baseline continues and every scheme is fed.
    pub generate: Option<Prompts>,
    /// Its schemes, in the file's order: those of the defaults first.
    pub cells: Vec<Cell>,
    /// Where its files were named, for messages.
    pub places: Places,
}

/// Where in the policy files were named. Empty for a model that no policy names.
#[derive(Debug, Clone, Default)]
pub struct Places {
    text: Arc<Text>,
    spans: BTreeMap<PathBuf, Range<usize>>,
    /// By scheme (empty for the model's own) and key (empty for the name of the scheme or model).
    keys: BTreeMap<(String, String), Range<usize>>,
}

/// The key in [`Places`] of what a name of `[schemes]` means.
const MEANING: &str = "[schemes]";
/// The key of what keeps a cell from running.
const IGNORED: &str = "ignored";

impl Places {
    /// The line of a key, from 1: of a scheme, or of the model itself for an empty `scheme`.
    fn line(&self, scheme: &str, key: &str) -> Option<usize> {
        let span = self.keys.get(&(scheme.to_owned(), key.to_owned()))?;
        Some(self.text.line(span))
    }
}

/// Prompts, and how far they are continued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    /// A file of prompts, resolved against the policy's folder.
    pub file: PathBuf,
    /// Tokens of each continuation, at most.
    pub tokens: usize,
}

/// A checkpoint, and its place on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The weights: a file, or the folder of a checkpoint in safetensors. Resolved against the
    /// policy's folder; for one of the hub, the place in its cache where it is or will be.
    pub path: PathBuf,
    /// Where on the hub it comes from, for one of the hub.
    pub hub: Option<Pinned>,
    /// SHA-256 that the file must have.
    pub sha256: Option<String>,
    /// A `tokenizer.json`, where the weights file's own tokenizer is not to be used.
    pub tokenizer: Option<PathBuf>,
    /// The command that gets the file, shown when it is missing.
    pub fetch: Option<String>,
    /// Whether BOS stands before every chunk, where the policy says so; otherwise the checkpoint does.
    pub bos: Option<bool>,
    /// Configuration keys that nothing reads and that are let pass, by their full names.
    pub ignore_keys: Vec<String>,
    /// Whether the weights are known to be untrained, so that no bound on the baseline's perplexity can hold.
    pub untrained: bool,
}

impl Source {
    /// A checkpoint on disk that is used as it is.
    pub fn at(path: PathBuf) -> Self {
        Source {
            path,
            hub: None,
            sha256: None,
            tokenizer: None,
            fetch: None,
            bos: None,
            ignore_keys: Vec::new(),
            untrained: false,
        }
    }

    /// The options of `kvgate measure` that read a checkpoint in the same way, each word by itself.
    pub fn options(&self) -> Vec<String> {
        let option = |name: &str, value: String| vec![name.to_owned(), value];
        let tokenizer = self.tokenizer.iter().map(|file| file.display().to_string());
        let mut words: Vec<String> =
            tokenizer.flat_map(|file| option("--tokenizer", file)).collect();
        words.extend(self.bos.iter().flat_map(|bos| option("--bos", bos.to_string())));
        words.extend(self.ignore_keys.iter().flat_map(|key| option("--ignore-key", key.clone())));
        words.extend(self.untrained.then(|| "--untrained".to_owned()));
        words
    }

    /// What a measurement's [`Conditions::reading`](crate::results::Conditions::reading) says because the
    /// policy asked for it, in the order in which it is written there.
    pub fn reading(&self) -> Vec<String> {
        let untrained = self.untrained.then(|| UNTRAINED.to_owned());
        let ignored = self.ignore_keys.iter().map(|key| format!("{IGNORED_KEY}{key}"));
        untrained.into_iter().chain(ignored).collect()
    }

    /// A checkpoint of the hub, in its place in the cache.
    pub fn of_hub(pinned: Pinned) -> Self {
        Source { hub: Some(pinned.clone()), ..Source::at(pinned.place()) }
    }
}

/// The line of [`Source::reading`] for weights that are known to be untrained.
pub(crate) const UNTRAINED: &str = "untrained";
/// What a line of [`Source::reading`] for a configuration key that is let pass begins with; the key follows.
pub(crate) const IGNORED_KEY: &str = "ignored key ";
/// What a line about BOS begins with in [`Conditions::reading`](crate::results::Conditions::reading):
/// `bos 2` or `bos none`.
pub(crate) const BOS: &str = "bos ";

/// As the program's MODEL argument names it.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hub {
            Some(pinned) => pinned.fmt(f),
            None => self.path.display().fmt(f),
        }
    }
}

/// One scheme of one model: the unit of judging.
#[derive(Debug, Clone)]
pub struct Cell {
    /// The scheme's name in cases and reports: as written, or the name given in `[schemes]`.
    pub label: String,
    /// What to run.
    pub scheme: Scheme,
    /// What must happen.
    pub expect: Expectation,
    /// Why that is expected, in the author's words.
    pub reason: Option<String>,
    /// Bounds that apply, one a statistic at most.
    pub limits: Vec<Limit>,
    /// Listed, not run unless asked for, never passed.
    pub ignored: bool,
}

/// What the policy says must happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expectation {
    /// All limits hold.
    Pass,
    /// At least one limit is broken.
    Fail,
    /// Measured and shown, never judged.
    Report,
}

impl Expectation {
    /// As the policy writes it.
    pub fn name(self) -> &'static str {
        match self {
            Expectation::Pass => "pass",
            Expectation::Fail => "fail",
            Expectation::Report => "report",
        }
    }
}

/// A bound on one statistic, and where it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// What is bounded.
    pub statistic: Statistic,
    /// The last good value.
    pub bound: f64,
    /// `thresholds.toml:12`, for messages.
    pub origin: String,
}

/// The two cases of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CaseKind {
    /// Judges the limits: harm.
    Kld,
    /// Compares with the accepted snapshot: change.
    Golden,
}

impl CaseKind {
    /// Both, in the order of lists and reports.
    pub const ALL: [CaseKind; 2] = [CaseKind::Kld, CaseKind::Golden];

    /// The last word of a case's name.
    pub fn name(self) -> &'static str {
        match self {
            CaseKind::Kld => "kld",
            CaseKind::Golden => "golden",
        }
    }
}

/// Why there is no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("cannot read the policy `{}`: {source}\n  = help: `--config FILE` names another", path.display())]
    Unreadable {
        /// The file as it was named.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file says what no policy can mean: every finding, in the file's order.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n"))]
    Invalid(Vec<Diagnostic>),
}

impl Policy {
    /// Reads a policy; beside it, warnings. Files that it names are not looked at.
    ///
    /// # Errors
    /// If the file cannot be read, or with every finding in it.
    pub fn load(path: &Path) -> Result<(Policy, Vec<Diagnostic>), PolicyError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| PolicyError::Unreadable { path: path.to_owned(), source })?;
        Policy::parse(&text, path)
    }

    /// The policy of a text that is, or could be, the file at `path`.
    ///
    /// # Errors
    /// With every finding in the text.
    pub fn parse(text: &str, path: &Path) -> Result<(Policy, Vec<Diagnostic>), PolicyError> {
        let text = Arc::new(Text { path: path.to_owned(), text: text.to_owned() });
        let mut findings = Findings::new(text.clone());
        let document = document::Reader::new(&mut findings).document();
        let models = resolve::resolve(&document, &mut findings);
        let warnings = findings.into_warnings().map_err(PolicyError::Invalid)?;
        let sha256 = hash::of_bytes(text.text.as_bytes());
        Ok((Policy { path: path.to_owned(), sha256, models }, warnings))
    }
}

impl ModelPolicy {
    /// A case's name: `gemma-3-270m::q4_0::kld`.
    pub fn case(&self, cell: &Cell, kind: CaseKind) -> String {
        format!("{}::{}::{}", self.name, cell.label, kind.name())
    }

    /// One finding for each of its files that is not there, with the command that gets it.
    pub fn missing_files(&self) -> Vec<Diagnostic> {
        let fetch = match &self.source.fetch {
            Some(command) => format!("get it: `{command}`"),
            None => "put it there, or say how to get it: `fetch = \"COMMAND\"`".into(),
        };
        let weights = self.source.hub.is_none().then_some(&self.source.path);
        let of_model = [weights, self.source.tokenizer.as_ref()];
        let of_model = of_model.into_iter().flatten().map(|file| (file, fetch.as_str()));
        let calibration = self.calibration.iter();
        let calibration =
            calibration.map(|file| (file, "make it by `kvgate calibrate`, or correct the path"));
        let prompts = self.generate.iter().map(|prompts| &prompts.file);
        let texts = self.corpus.iter().chain(prompts);
        let texts = texts.map(|file| (file, "correct the path, or put the text there"));
        let missing = of_model.chain(calibration).chain(texts).filter(|(file, _)| !file.exists());
        let missing = missing.map(|(file, help)| self.missing(file, help));
        self.not_fetched().into_iter().chain(missing).collect()
    }

    /// The finding for a checkpoint of the hub that is not wholly in its cache.
    fn not_fetched(&self) -> Option<Diagnostic> {
        let pinned = self.source.hub.as_ref()?;
        let missing = pinned.missing(self.source.tokenizer.is_none());
        if missing.is_empty() {
            return None;
        }
        let message = format!(
            "`{}` needs `{pinned}`, which is not fetched yet: {} not in the cache",
            self.name,
            missing.join(", ")
        );
        let fetch =
            if cfg!(feature = "hub") { "`kvgate run` fetches it, as does" } else { "get it:" };
        let help = format!("{fetch} `{}`", pinned.command());
        Some(self.finding(&self.source.path, message, &help))
    }

    fn missing(&self, file: &Path, help: &str) -> Diagnostic {
        let message = format!("`{}` needs `{}`, which is not there", self.name, file.display());
        self.finding(file, message, help)
    }

    fn finding(&self, file: &Path, message: String, help: &str) -> Diagnostic {
        let span = self.places.spans.get(file).cloned().unwrap_or_default();
        Diagnostic::new(Severity::Error, &self.places.text, span, message, help)
    }
}
