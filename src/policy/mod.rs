//! `thresholds.toml` → [`Policy`]: what must hold, model by model and scheme by scheme.

mod diagnostic;
mod document;
mod resolve;
#[cfg(test)]
mod tests;

pub use diagnostic::{Diagnostic, Severity};
pub use document::LEAST_CONTEXT;
pub use resolve::FLIPS_PER_ROOT_KLD;

use crate::hash;
use crate::kv::Scheme;
use crate::results::case::CaseKind;
use crate::results::case::CaseName;
use crate::results::case::CellName;
use crate::results::statistics::Statistic;
use crate::source::Source;
use diagnostic::{Findings, Text};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where commands and the test target look for the policy unless they are told otherwise.
pub const DEFAULT_PATH: &str = "thresholds.toml";

/// A whole policy, checked.
#[derive(Debug, Clone)]
pub struct Policy {
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
pub(crate) const MEANING: &str = "[schemes]";
/// The key of what keeps a cell from running.
pub(crate) const IGNORED: &str = "ignored";

impl Places {
    /// The line of a key, from 1: of a scheme, or of the model itself for an empty `scheme`.
    pub(crate) fn line(&self, scheme: &str, key: &str) -> Option<usize> {
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

/// Why there is no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("cannot read the policy `{}`: {source}\n  = help: `--config FILE` names another", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
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
    /// The name of one of its cells.
    pub fn cell_name(&self, cell: &Cell) -> CellName {
        CellName::new(&self.name, &cell.label)
    }

    /// The name of one of the two cases of a cell.
    pub fn case(&self, cell: &Cell, kind: CaseKind) -> CaseName {
        self.cell_name(cell).case(kind)
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
