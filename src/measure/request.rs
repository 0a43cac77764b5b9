//! What is to be measured, what a measurement gives, and why there may be none.

use super::corpus::{CorpusError, Draw};
use super::mimic::Mimic;
use super::prompts::PromptError;
use super::retrieval::RetrievalError;
use super::sanity::{Doubt, SUSPICION};
use crate::compute::Device;
use crate::kv::cache::CacheError;
use crate::kv::calibration::CalibrationError;
use crate::kv::effective::UnfitError;
use crate::kv::Scheme;
use crate::model::decoder::Residency;
use crate::model::ModelError;
use crate::results::replay::Generated;
use crate::results::retrieval::Plan;
use crate::results::statistics::Position;
use crate::results::Measurement;
use crate::source::pinned::HubError;
use crate::source::Source;
use std::path::{Path, PathBuf};

/// A model, a text, and the schemes that are to be measured on them.
pub struct Request<'a> {
    /// The model's name in cases and messages.
    pub model: &'a str,
    /// Where its weights are.
    pub source: &'a Source,
    /// Files of the corpus. Their chunks are measured in turn.
    pub corpus: &'a [PathBuf],
    /// Tokens in a chunk.
    pub context: usize,
    /// How many chunks are measured.
    pub chunks: usize,
    /// Which chunks these are.
    pub draw: Draw,
    /// The scheme that all others are compared with.
    pub baseline: Scheme,
    /// The schemes to measure, each with the label that its result will have.
    pub schemes: Vec<(String, Scheme)>,
    /// The file that `kvgate calibrate` wrote for the model. It is read only if a scheme needs it.
    pub calibration: Option<&'a Path>,
    /// The prompts that the baseline continues. Every scheme is fed the text that it writes.
    pub generate: Option<Generate<'a>>,
    /// The long contexts from which every scheme must retrieve something.
    pub retrieval: Option<&'a Plan>,
    /// Where the model is computed.
    pub device: Device,
    /// Where weights are while the model runs. If it is not given, the device's memory decides.
    pub residency: Option<Residency>,
    /// The engine whose habits are imitated, so that numbers can be compared with its own.
    pub mimic: Option<Mimic>,
    /// Whether verdicts will rest on the measurement. If so, a corpus that mostly repeats itself and a baseline
    /// that is worse than a unigram model are errors. Otherwise they are only remarked on.
    pub is_gated: bool,
}

/// The prompts of a request, and how far they are continued.
pub struct Generate<'a> {
    /// The file of prompts.
    pub prompts: &'a Path,
    /// The most tokens of a continuation.
    pub tokens: usize,
    /// The accepted continuations. They are used if they belong to the same model, prompts and length; otherwise
    /// the baseline writes new ones.
    pub kept: Option<&'a Generated>,
}

/// A measurement, and the positions that its statistics were made from.
pub struct Measured {
    pub measurement: Measurement,
    /// The scored positions of each scheme that has numbers, by its label.
    pub positions: Vec<(String, Vec<Position>)>,
    /// How many further chunks could be drawn from the texts after those that were measured.
    pub chunks_left: usize,
}

/// Why a model could not be measured at all. What concerns one scheme alone stands in the result of that scheme.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The baseline's scheme does not fit the model.
    #[error("baseline: {0}")]
    Baseline(UnfitError),
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    #[error(transparent)]
    Retrieval(#[from] RetrievalError),
    #[error(transparent)]
    Prompts(Box<PromptError>),
    /// The baseline cannot continue a prompt.
    #[error("the baseline cannot continue the prompt `{prompt}`: {why}")]
    Generating { prompt: String, why: String },
    /// The accepted text cannot be what the baseline wrote.
    #[error("the golden {model}.text.snap {why}; take it from version control again, or remove it and accept anew")]
    Text { model: String, why: String },
    /// The cache refused K or V while they were observed, as it does if weights are damaged.
    #[error("cannot observe K and V: {0}")]
    Observing(CacheError),
    /// The baseline has no numbers, so there is nothing to compare schemes with.
    #[error(
        "{model}: the baseline {scheme} cannot be measured: {why}; the weights may be damaged"
    )]
    BaselineFailed {
        model: String,
        /// The baseline's effective scheme.
        scheme: String,
        why: String,
    },
    /// The baseline has a perplexity that no sound model has.
    #[error("{model}: {doubt}: {SUSPICION}; for weights that are known to be untrained say `untrained = true` in the policy, or --untrained")]
    Implausible { model: String, doubt: Doubt },
    /// The weights are not those that the policy names.
    #[error("{what} has SHA-256 {found}, the policy says {expected}; fetch what is right, or accept it as the new subject by editing `sha256`")]
    Hash {
        /// The file, or the list of the files if there are several.
        what: String,
        expected: String,
        found: String,
    },
    /// A file cannot be hashed.
    #[error("cannot read {}: {error}", path.display())]
    Io { path: PathBuf, error: std::io::Error },
}

impl From<PromptError> for MeasureError {
    fn from(error: PromptError) -> Self {
        MeasureError::Prompts(Box::new(error))
    }
}
