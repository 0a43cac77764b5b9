//! Reads `thresholds.toml` into a [`Policy`], which says what must hold for each scheme of each model.

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
use crate::results::retrieval::{Measure, Plan};
use crate::results::statistics::{Direction, Quantity};
use crate::source::Source;
use diagnostic::{Findings, Text};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where commands and the test target look for the policy unless they are told otherwise.
pub const DEFAULT_PATH: &str = "thresholds.toml";

/// A policy that has been read and checked.
#[derive(Debug, Clone)]
pub struct Policy {
    pub path: PathBuf,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
    /// An entry for each model and each of its `at` sections, in the order of the file.
    pub models: Vec<ModelPolicy>,
    /// The limits of a scheme of a model that says none of its own.
    pub limits: Vec<Limit>,
}

/// A model measured in one way: the unit of measuring.
#[derive(Debug, Clone)]
pub struct ModelPolicy {
    /// The name in cases: `gemma-3-270m`, or `gemma-3-270m@long` for its section `at.long`.
    pub name: String,
    /// The place of its weights, and how they are read.
    pub source: Source,
    /// The file that `kvgate calibrate` wrote for it, resolved against the policy's folder.
    pub calibration: Option<PathBuf>,
    /// Corpus files, resolved against the policy's folder.
    pub corpus: Vec<PathBuf>,
    /// Tokens in a chunk.
    pub context: usize,
    /// Chunks to measure.
    pub chunks: usize,
    /// The confidence with which limits must be kept. None if the values decide as they are.
    pub confidence: Option<f64>,
    /// How many chunks may be measured if the first ones leave a verdict open. It is more than `chunks`, and there is a
    /// confidence.
    pub max_chunks: Option<usize>,
    /// The scheme that all others are compared with.
    pub baseline: Scheme,
    /// The prompts that the baseline continues. Every scheme is then fed the baseline's text.
    pub generate: Option<Prompts>,
    /// What every scheme must retrieve from long contexts.
    pub retrieval: Option<Retrieval>,
    /// Its schemes in the order of the file, those of the defaults first.
    pub cells: Vec<Cell>,
    /// The limits of a scheme that says none of its own.
    pub limits: Vec<Limit>,
    /// Where the policy names its files, for messages.
    pub places: Places,
}

/// Places in the policy's text. It is empty for a model that comes from no policy.
#[derive(Debug, Clone, Default)]
pub struct Places {
    text: Arc<Text>,
    spans: BTreeMap<PathBuf, Range<usize>>,
    /// By scheme and key. The scheme is empty for keys of the model itself, the key is empty for the name of the
    /// scheme or model.
    #[cfg_attr(not(feature = "git"), allow(dead_code))]
    keys: BTreeMap<(String, String), Range<usize>>,
}

/// The key in [`Places`] under which the definition of a name in `[schemes]` stands.
pub(crate) const MEANING: &str = "[schemes]";
/// The key that keeps a cell from being run.
pub(crate) const IGNORED: &str = "ignored";

impl Places {
    /// The line of a key, counted from 1. An empty `scheme` means the model itself.
    #[cfg_attr(not(feature = "git"), allow(dead_code))]
    pub(crate) fn line(&self, scheme: &str, key: &str) -> Option<usize> {
        let span = self.keys.get(&(scheme.to_owned(), key.to_owned()))?;
        Some(self.text.line(span))
    }
}

/// Prompts, and the length of their continuations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    /// A file of prompts, resolved against the policy's folder.
    pub file: PathBuf,
    /// The largest number of tokens of each continuation.
    pub tokens: usize,
}

/// Long contexts, and what a scheme must retrieve from them.
#[derive(Debug, Clone, PartialEq)]
pub struct Retrieval {
    pub plan: Plan,
    /// The bounds that apply to every scheme at every length, at most one for each measure. Without any, what is retrieved
    /// is only reported.
    pub limits: Vec<RetrievalLimit>,
}

/// A bound on what is retrieved, and where it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct RetrievalLimit {
    /// What is bounded.
    pub measure: Measure,
    /// The last value that still holds.
    pub bound: f64,
    /// The place where it was written, such as `thresholds.toml:12`.
    pub origin: String,
}

/// One scheme of one model: the unit of judging.
#[derive(Debug, Clone)]
pub struct Cell {
    /// The scheme's name in cases and reports: as written, or the name given in `[schemes]`.
    pub label: String,
    /// The scheme itself.
    pub scheme: Scheme,
    /// What must happen.
    pub expect: Expectation,
    /// The author's reason for that expectation.
    pub reason: Option<String>,
    /// The bounds that apply, at most one for each quantity.
    pub limits: Vec<Limit>,
    /// Whether the case is only listed. It is run only on request, and never counts as passed.
    pub ignored: bool,
}

/// What the policy says must happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expectation {
    /// All limits must hold.
    Pass,
    /// At least one limit must be broken.
    Fail,
    /// The case is measured and shown, but not judged.
    Report,
}

impl Expectation {
    /// The word for it in the policy.
    pub fn name(self) -> &'static str {
        match self {
            Expectation::Pass => "pass",
            Expectation::Fail => "fail",
            Expectation::Report => "report",
        }
    }
}

/// A bound on one statistic, of all chunks or of those of a category, and where it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// What is bounded.
    pub quantity: Quantity,
    /// The last value that still holds.
    pub bound: f64,
    /// The place where it was written, such as `thresholds.toml:12`.
    pub origin: String,
}

impl Limit {
    /// In what way other limits let more through than this one, in a word, and their bound on the same quantity. None if they
    /// do not.
    pub fn loosened_by(&self, others: &[Limit]) -> Option<(&'static str, Option<f64>)> {
        let bound = others.iter().find(|own| own.quantity == self.quantity).map(|own| own.bound);
        let word = match (bound, self.quantity.statistic.direction()) {
            (None, _) => "removed",
            (Some(bound), Direction::AtMost) if bound > self.bound => "raised",
            (Some(bound), Direction::AtLeast) if bound < self.bound => "lowered",
            _ => return None,
        };
        Some((word, bound))
    }
}

/// Why there is no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("cannot read the policy `{}`: {source}\n  = help: `--config FILE` names another", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// The file has errors. These are all of them, in the order of the file.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n"))]
    Invalid(Vec<Diagnostic>),
}

impl Policy {
    /// Reads a policy and returns it with warnings. The files that it names are not looked at.
    ///
    /// # Errors
    /// If the file cannot be read, or has errors. All of them are returned.
    pub fn load(path: &Path) -> Result<(Policy, Vec<Diagnostic>), PolicyError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| PolicyError::Unreadable { path: path.to_owned(), source })?;
        Policy::parse(&text, path)
    }

    /// Reads a policy from a text, as if it were in the file at `path`.
    ///
    /// # Errors
    /// If the text has errors. All of them are returned.
    pub fn parse(text: &str, path: &Path) -> Result<(Policy, Vec<Diagnostic>), PolicyError> {
        let text = Arc::new(Text { path: path.to_owned(), text: text.to_owned() });
        let mut findings = Findings::new(text.clone());
        let document = document::Reader::new(&mut findings).document();
        let (models, limits) = resolve::resolve(&document, &mut findings);
        let warnings = findings.into_warnings().map_err(PolicyError::Invalid)?;
        let sha256 = hash::of_bytes(text.text.as_bytes());
        Ok((Policy { path: path.to_owned(), sha256, models, limits }, warnings))
    }
}

impl ModelPolicy {
    /// How many chunks there are in all at each look at a scheme: `chunks`, and then, while its verdict is open, twice as
    /// many each time, up to `max_chunks`.
    pub fn looks(&self) -> Vec<usize> {
        let most = self.max_chunks.unwrap_or(self.chunks);
        let doubled = std::iter::successors(Some(self.chunks), |&n| {
            (n < most).then(|| n.saturating_mul(2).min(most))
        });
        doubled.collect()
    }

    /// The name of one of its cells.
    pub fn cell_name(&self, cell: &Cell) -> CellName {
        CellName::new(&self.name, &cell.label)
    }

    /// The name of one of the two cases of a cell.
    pub fn case(&self, cell: &Cell, kind: CaseKind) -> CaseName {
        self.cell_name(cell).case(kind)
    }

    /// A finding for each of its files that is missing, with the command that gets it.
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

    /// A finding if files of a checkpoint of the hub are missing from the cache.
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
