//! The seam between the decoder and whatever stores K and V.
//!
//! A layer hands its new K and V to [`KvCache::append`] and attends to the [`View`] that it gets back. It
//! never knows which scheme runs. There are three caches: [`MeasuringCache`](super::measuring::MeasuringCache)
//! for measuring, and for generating text [`PackedCache`](super::packed::PackedCache) on the host and
//! [`GrowingCache`](super::growing::GrowingCache) on a card.

use super::effective::SideScheme;
use super::recurrent::Recurrent;
pub use crate::compute::attention::Versions;
use crate::compute::finite::FiniteFlag;
use candle_core::Tensor;

/// What attention reads: K and V, in the basis in which the decoder handed them in.
#[derive(Clone)]
pub struct View {
    /// Keys as the cache gives them back.
    pub k: Versions,
    /// Values as the cache gives them back.
    pub v: Versions,
    /// Position of the first key in its sequence.
    pub start: usize,
    /// For each lane, whether values have all bits of f32, so that no device may round them to f16.
    pub wide_values: Vec<bool>,
    /// How queries are rounded before they are multiplied with the keys. `None` unless another engine that
    /// does so is mimicked.
    pub queries: Option<SideScheme>,
    /// What is to be read once the layer has run, the first reason first. It is empty where the cache has looked
    /// for itself.
    pub(crate) checks: Vec<StorageCheck>,
}

/// One look at K or V on its way into the cache, which is read once the layer has run.
#[derive(Debug, Clone)]
pub(crate) struct StorageCheck {
    /// The index of the lane among those that travel together.
    pub lane: usize,
    /// `K` or `V`.
    pub side: &'static str,
    /// One of the constants below.
    pub when: &'static str,
    /// What the op that looked has found.
    pub finite: FiniteFlag,
}

/// As a layer hands it over.
pub(super) const BEFORE: &str = "before it is stored";
/// As the codec gives it back.
pub(super) const STORED: &str = "once it is stored: the codec's range is exceeded";
/// As a tail and sink in halves give it back.
pub(super) const HALVED: &str = "as a half, which is what its exact tail and sink hold";

impl StorageCheck {
    /// The error of numbers that were not finite.
    pub fn error(&self, layer: usize) -> CacheError {
        CacheError::NotFinite { layer, side: self.side, when: self.when }
    }
}

/// Stores K and V of a batch of sequences. For recurrent layers, which have no K and V, it stores their
/// state.
pub trait KvCache {
    /// Appends the K and V of new tokens, (lanes·B, T, H_kv, D) f32 contiguous, to a layer. Returns what the
    /// queries of these tokens attend to, the new tokens included. For a layer with a window W these are at
    /// least the W - 1 keys before the new ones, in order.
    ///
    /// # Errors
    /// If values are not finite, or are not finite once they are decoded.
    fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<View, CacheError>;

    /// What `owner` was given in this pass. Layers above that append nothing of their own read it again.
    ///
    /// # Errors
    /// If the owner has not appended anything.
    fn shared(&mut self, owner: usize) -> Result<View, CacheError>;

    /// The state of a recurrent layer, `None` before the first token.
    fn recurrent(&mut self, layer: usize) -> &mut Option<Recurrent>;
}

/// Why a cache could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A value is NaN or infinite.
    #[error("layer {layer}: {side} is not finite {when}")]
    NotFinite {
        /// Index of the layer.
        layer: usize,
        /// `K` or `V`.
        side: &'static str,
        /// At which point it was looked at.
        when: &'static str,
    },
    /// A layer reads the cache of another one, which is empty.
    #[error("layer {owner}, whose K and V another layer reads, has appended none")]
    NoOwner {
        /// Index of the layer that should have appended.
        owner: usize,
    },
    /// A sequence cannot be cut back that far.
    #[error("layer {layer} cannot be cut back to {tokens} tokens: {why}; keep a clone of the cache to go back to")]
    Truncate {
        /// Index of the layer.
        layer: usize,
        /// Tokens that were to stay.
        tokens: usize,
        /// What is no longer there.
        why: &'static str,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
