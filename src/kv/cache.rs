//! The seam between the decoder and whatever stores K and V.
//!
//! A layer hands its new K and V to [`KvCache::append`] and attends to the [`View`] that it gets
//! back; it never knows which scheme runs. [`LaneCache`](super::lanes::LaneCache) serves measuring,
//! [`PackedCache`](super::packed::PackedCache) generation.

use super::effective::Stored;
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
    /// How queries are rounded before they meet the keys; only engines that are mimicked do that.
    pub queries: Option<Stored>,
    /// What is to be read once the layer has run, the first reason first. It is empty where the cache has looked
    /// for itself.
    pub(crate) checks: Vec<StorageCheck>,
}

/// One look at K or V on its way into the cache, which is read once the layer has run.
#[derive(Debug, Clone)]
pub(crate) struct StorageCheck {
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
    /// Reads the flag, for a layer.
    ///
    /// # Errors
    /// Numbers that were not finite.
    pub fn read(&self, layer: usize) -> Result<(), CacheError> {
        if self.finite.is_finite() {
            return Ok(());
        }
        Err(CacheError::NotFinite { layer, side: self.side, when: self.when })
    }
}

/// A store of K and V for a batch of sequences, and of the states of layers that have none.
pub trait KvCache {
    /// Appends the K and V of new tokens, (B, T, H_kv, D) f32 contiguous, to a layer and gives what
    /// its queries attend to, the new tokens included: for a layer with a window W, at least the
    /// W - 1 keys before the new ones, in order.
    ///
    /// # Errors
    /// Values that the scheme cannot store: not finite, or not finite once decoded.
    fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<View, CacheError>;

    /// What `owner` was given in this pass, for a layer above that reads its cache and appends nothing.
    ///
    /// # Errors
    /// An owner that has not appended.
    fn shared(&mut self, owner: usize) -> Result<View, CacheError>;

    /// The state of a recurrent layer; none before the first token.
    fn recurrent(&mut self, layer: usize) -> &mut Option<Recurrent>;
}

/// What a layer keeps in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerKv {
    /// Heads of K and of V.
    pub heads: usize,
    /// Elements in a head of K and of V.
    pub head_dim: usize,
    /// Queries see so many keys.
    pub window: Option<usize>,
    /// Whether layers above read it.
    pub shared: bool,
    /// Whether scores are capped before the softmax, out of which then no constant falls.
    pub capped: bool,
}

impl LayerKv {
    /// Elements of K (and of V) of one token.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Tokens that are kept of a sequence: of a window W, the W - 1 that the next query will see.
    pub fn kept(&self, tokens: usize) -> usize {
        self.window.map_or(tokens, |window| tokens.min(window - 1))
    }
}

/// Why a cache could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A value is NaN or infinite.
    #[error("layer {layer}: {side} is not finite {when}")]
    NotFinite {
        /// Index of the layer.
        layer: usize,
        /// `K` or `V`.
        side: &'static str,
        /// Before or after the codec.
        when: &'static str,
    },
    /// A layer shares a cache that is empty.
    #[error("layer {owner}, whose K and V another layer reads, has appended none")]
    NoOwner {
        /// Index of the layer that should have.
        owner: usize,
    },
    /// A sequence cannot be cut back so far.
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
