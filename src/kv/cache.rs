//! The seam between the decoder and whatever stores K and V.
//!
//! A layer hands its new K and V to [`KvCache::append`] and attends to the [`View`] that it gets back. It
//! never knows which scheme runs. There are two caches: [`MeasuringCache`](super::measuring::MeasuringCache)
//! for measuring, and [`PackedCache`](super::packed::PackedCache) for generating text.

use super::effective::SideScheme;
use super::exact::Exact;
use super::recurrent::Recurrent;
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
    /// How queries are rounded before they are multiplied with the keys. `None` unless another engine that
    /// does so is mimicked.
    pub queries: Option<SideScheme>,
}

/// Keys or values, (B, S, H_kv, D) f32, in one version or in two.
#[derive(Debug, Clone)]
pub struct Versions {
    /// decode(encode(x)). Tokens that have not been encoded yet hold numbers that no query reads.
    pub stored: Tensor,
    /// The same tokens in half precision, and the rule which of the two versions a query reads.
    pub exact: Option<(Tensor, Exact)>,
}

/// Stores K and V of a batch of sequences. For recurrent layers, which have no K and V, it stores their
/// state.
pub trait KvCache {
    /// Appends the K and V of new tokens, (B, T, H_kv, D) f32 contiguous, to a layer. Returns what the
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
