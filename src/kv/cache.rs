//! The seam between the decoder and whatever stores K and V.
//!
//! A layer hands its new K and V to [`KvCache::append`] and attends to the [`View`] that it gets
//! back; it never knows which scheme runs. The [`LaneCache`] here serves measuring.

use super::codec::{self, Codec};
use super::rotate;
use super::scheme::{Scheme, Side};
use crate::model::ops::{all_finite, elements_mut, read};
use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use rayon::prelude::*;
use std::fmt;

/// What attention reads: K and V of all positions so far, (B, S, H_kv, D) f32 in the basis in which
/// the decoder handed them in. A view with keys in two versions (exact tails) would grow a second
/// pair here and the rule that chooses; attention makes one softmax over the choice.
pub struct View {
    /// Keys as the cache gives them back.
    pub k: Tensor,
    /// Values as the cache gives them back.
    pub v: Tensor,
    /// How queries are rounded before they meet the keys; only engines that are mimicked do that.
    pub queries: Option<Stored>,
}

/// A store of K and V for a batch of sequences.
pub trait KvCache {
    /// Appends the K and V of new tokens, (B, T, H_kv, D) f32 contiguous, to a layer and gives what
    /// its queries attend to, the new tokens included.
    ///
    /// # Errors
    /// Values that the scheme cannot store: not finite, or not finite once decoded.
    fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<View, CacheError>;
}

/// Why a cache could not store a layer's K and V.
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
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// How one side of a scheme is stored for heads of a given size: the codec, and the rotation that
/// really happens.
#[derive(Clone, Copy)]
pub struct Stored {
    codec: &'static dyn Codec,
    rotation: Option<usize>,
}

/// A scheme as a cache carries it out for a model: what *effective scheme* means in reports.
#[derive(Clone, Copy)]
pub struct Effective {
    /// How K is stored.
    pub k: Stored,
    /// How V is stored.
    pub v: Stored,
    queries: Option<Stored>,
}

/// A scheme that cannot store heads of this size.
#[derive(Debug, thiserror::Error)]
#[error("{codec} stores blocks of {block} elements, which do not divide the model's head size {head_dim}; use f16 or bf16 for this side")]
pub struct BlockSizeError {
    codec: &'static str,
    block: usize,
    head_dim: usize,
}

impl Effective {
    /// What `scheme` is for heads of `head_dim` elements.
    ///
    /// # Errors
    /// A codec whose blocks do not divide the head.
    pub fn new(scheme: &Scheme, head_dim: usize) -> Result<Self, BlockSizeError> {
        let stored = |side: Side, size: fn(&dyn Codec, usize) -> Option<usize>| {
            let block = side.codec.block();
            if !head_dim.is_multiple_of(block) {
                return Err(BlockSizeError { codec: side.codec.name(), block, head_dim });
            }
            let rotation = if side.may_rotate { size(side.codec, head_dim) } else { None };
            Ok(Stored { codec: side.codec, rotation })
        };
        let (k, v) = (stored(scheme.k, rotate::k_size)?, stored(scheme.v, rotate::v_size)?);
        Ok(Effective { k, v, queries: None })
    }

    /// The deliberately bad scheme of the control lane.
    pub(crate) fn bad() -> Self {
        let bad = Stored { codec: codec::BAD, rotation: None };
        Effective { k: bad, v: bad, queries: None }
    }

    /// The same with queries rounded to what llama.cpp's CPU attention multiplies K with: 8 bits in
    /// the basis of a quantized K, K's own format where K and V are not both f16 or both f32.
    pub(crate) fn with_rounded_queries(self) -> Self {
        let format = match self.k.codec.name() {
            _ if self.k.codec.is_quantized() => codec::find("q8_0"),
            "f16" | "f32" if self.k.codec.name() == self.v.codec.name() => None,
            _ => Some(self.k.codec),
        };
        let queries = format.map(|codec| Stored { codec, rotation: self.k.rotation });
        Effective { queries, ..self }
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rotation {
            Some(size) => write!(f, "{}·H{size}", self.codec.name()),
            None => f.write_str(self.codec.name()),
        }
    }
}

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.k, self.v)
    }
}

impl Stored {
    /// Rounds (B, T, H, D) in place to what a cache would give back.
    pub(crate) fn round(&self, x: &Tensor) -> candle_core::Result<()> {
        x.inplace_op1(&RoundTrip(*self))
    }

    /// Replaces whole heads by what the cache would give back.
    fn round_trip(&self, x: &mut [f32]) {
        if let Some(size) = self.rotation {
            rotate::hadamard(x, size);
        }
        self.codec.round_trip(x);
        if let Some(size) = self.rotation {
            rotate::hadamard(x, size);
        }
    }
}

/// The cache for measuring: a batch of sequences of one lane. A layer reads decode(encode(x)) of the
/// chunk that it just appended; nothing is kept, so a chunk is appended whole.
pub struct LaneCache {
    scheme: Effective,
}

impl LaneCache {
    /// A cache that stores under `scheme`.
    pub fn new(scheme: Effective) -> Self {
        LaneCache { scheme }
    }
}

impl KvCache for LaneCache {
    fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<View, CacheError> {
        for (side, x, stored) in [("K", &k, self.scheme.k), ("V", &v, self.scheme.v)] {
            let not_finite = |when| CacheError::NotFinite { layer, side, when };
            if !read(x, all_finite)? {
                return Err(not_finite("before it is stored"));
            }
            stored.round(x)?;
            if !read(x, all_finite)? {
                return Err(not_finite("once it is stored: the codec's range is exceeded"));
            }
        }
        Ok(View { k, v, queries: self.scheme.queries })
    }
}

/// Rounds (B, T, H_kv, D) in place to what a cache would give back.
struct RoundTrip(Stored);

impl InplaceOp1 for RoundTrip {
    fn name(&self) -> &'static str {
        "kv-round-trip"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        /// Tokens that one task works on.
        const TOKENS: usize = 128;
        let (_, _, heads, head_dim) = layout.shape().dims4()?;
        elements_mut(storage, layout)?
            .par_chunks_mut(TOKENS * heads * head_dim)
            .for_each(|x| self.0.round_trip(x));
        Ok(())
    }
}
