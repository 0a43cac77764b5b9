//! `thresholds.toml` → [`Policy`]: what must hold, model by model and scheme by scheme.

use crate::kv::Scheme;
use crate::measure::stats::Statistic;
use std::path::PathBuf;

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
    /// Corpus files, resolved against the policy's folder.
    pub corpus: Vec<PathBuf>,
    /// Tokens in a chunk.
    pub context: usize,
    /// Chunks to measure.
    pub chunks: usize,
    /// What lanes are compared with.
    pub baseline: Scheme,
    /// Its schemes, in the file's order: those of the defaults first.
    pub cells: Vec<Cell>,
}

/// A checkpoint on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The weights file, resolved against the policy's folder.
    pub path: PathBuf,
    /// SHA-256 that the file must have.
    pub sha256: Option<String>,
    /// A `tokenizer.json`, where the weights file's own tokenizer is not to be used.
    pub tokenizer: Option<PathBuf>,
    /// The command that gets the file, shown when it is missing.
    pub fetch: Option<String>,
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
