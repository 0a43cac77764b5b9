//! A lane of the engine, and what becomes of it.

use crate::compute::is_out_of_memory;
use crate::kv::cache::CacheError;
use crate::kv::effective::Effective;
use crate::model::ModelError;
use crate::results::statistics::Position;

/// A scheme that travels beside the baseline.
#[derive(Clone)]
pub struct Lane {
    /// How K and V are stored.
    pub scheme: Effective,
    /// How many chunks the lane is measured on. These are the first ones.
    pub chunks: usize,
}

/// The positions of a lane: one for each scored position of its chunks, in order.
pub type LaneResult = Result<Vec<Position>, LaneError>;

/// Why a lane has no numbers.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// The cache refused K or V, or a tensor operation failed.
    #[error(transparent)]
    Cache(CacheError),
    /// Weights that are read layer by layer could not be read.
    #[error(transparent)]
    Model(ModelError),
    /// The device has no memory left.
    #[error(
        "the card has no memory left; use fewer tokens (a smaller `context`, or fewer chunks or prompts), another card, \
         or --device cpu"
    )]
    Memory,
    /// A tensor operation failed, or a router's logits are not finite.
    #[error("layer {layer}: {why}")]
    Layer { layer: usize, why: String },
    /// The residual stream became NaN or infinite in this layer.
    #[error("layer {layer}: the hidden state is not finite")]
    Hidden { layer: usize },
    /// Logits of the lane are NaN or infinite.
    #[error("head: the logits at position {position} of chunk {chunk} are not finite")]
    Logits { position: usize, chunk: usize },
    /// The baseline has no numbers, so no lane can have any.
    #[error("the baseline failed: {0}")]
    Baseline(String),
}

impl LaneError {
    /// An error of a layer. Errors of its cache name the layer already.
    pub(in crate::measure) fn at(layer: usize, error: CacheError) -> Self {
        match error {
            CacheError::Tensor(error) if is_out_of_memory(&error) => LaneError::Memory,
            CacheError::Tensor(error) => LaneError::Layer { layer, why: first_line(&error) },
            named => LaneError::Cache(named),
        }
    }

    /// What went wrong, without the backtrace that candle appends to its errors.
    pub(crate) fn brief(&self) -> String {
        first_line(self)
    }
}

fn first_line(error: &impl ToString) -> String {
    error.to_string().lines().next().unwrap_or_default().into()
}

impl From<candle_core::Error> for LaneError {
    fn from(error: candle_core::Error) -> Self {
        if is_out_of_memory(&error) {
            LaneError::Memory
        } else {
            LaneError::Cache(error.into())
        }
    }
}

impl From<ModelError> for LaneError {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Tensor(error) => error.into(),
            other => LaneError::Model(other),
        }
    }
}
