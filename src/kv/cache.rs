//! The seam between the decoder and whatever stores K and V.
//!
//! A layer hands its new K and V to [`KvCache::append`] and attends to the [`View`] that it gets
//! back; it never knows which scheme runs. The [`LaneCache`] here serves measuring.

use super::codec::{self, Codec};
use super::recurrent::Recurrent;
use super::rotate;
use super::scheme::{Scheme, Side};
use crate::model::ops::{all_finite, elements_mut, read};
use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// What attention reads: K and V of all positions so far, (B, S, H_kv, D) f32 in the basis in which
/// the decoder handed them in. A view with keys in two versions (exact tails) would grow a second
/// pair here and the rule that chooses; attention makes one softmax over the choice.
#[derive(Clone)]
pub struct View {
    /// Keys as the cache gives them back.
    pub k: Tensor,
    /// Values as the cache gives them back.
    pub v: Tensor,
    /// How queries are rounded before they meet the keys; only engines that are mimicked do that.
    pub queries: Option<Stored>,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerKv {
    /// Heads of K and of V.
    pub heads: usize,
    /// Elements in a head of K and of V.
    pub head_dim: usize,
    /// Queries see so many keys.
    pub window: Option<usize>,
    /// Whether layers above read it.
    pub shared: bool,
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
    /// A layer shares a cache that is empty.
    #[error("layer {owner}, whose K and V another layer reads, has appended none")]
    NoOwner {
        /// Index of the layer that should have.
        owner: usize,
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
#[derive(Clone)]
pub struct Effective {
    /// One entry a layer; none where it owns no cache.
    layers: Arc<[Option<StoredLayer>]>,
}

/// A layer of the cache as a scheme stores it.
#[derive(Clone, Copy)]
struct StoredLayer {
    kv: LayerKv,
    k: Stored,
    v: Stored,
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

/// Bits per element of a codec over all layers of a model.
pub fn bits_per_element(codec: &dyn Codec, layout: &[Option<LayerKv>]) -> f64 {
    let (mut bits, mut elements) = (0.0, 0.0);
    for kv in layout.iter().flatten() {
        let width = (kv.heads * kv.head_dim) as f64;
        bits += width * codec.bits_per_element(kv.head_dim);
        elements += width;
    }
    bits / elements
}

impl Effective {
    /// What `scheme` is for a model whose layers keep what `layout` says.
    ///
    /// # Errors
    /// A codec whose blocks do not divide a head.
    pub fn new(scheme: &Scheme, layout: &[Option<LayerKv>]) -> Result<Self, BlockSizeError> {
        Self::of(layout, |kv| {
            let k = Stored::new(scheme.k, kv.head_dim, rotate::k_size)?;
            let v = Stored::new(scheme.v, kv.head_dim, rotate::v_size)?;
            Ok(StoredLayer { kv, k, v, queries: None })
        })
    }

    fn of<E>(
        layout: &[Option<LayerKv>],
        store: impl Fn(LayerKv) -> Result<StoredLayer, E>,
    ) -> Result<Self, E> {
        let layers = layout.iter().map(|kv| kv.map(&store).transpose());
        Ok(Effective { layers: layers.collect::<Result<_, _>>()? })
    }

    /// The deliberately bad scheme of the control lane.
    pub(crate) fn bad(layout: &[Option<LayerKv>]) -> Self {
        let bad = Stored { codec: codec::BAD, rotation: None };
        let store = |kv| Ok(StoredLayer { kv, k: bad, v: bad, queries: None });
        match Self::of::<std::convert::Infallible>(layout, store) {
            Ok(effective) => effective,
            Err(never) => match never {},
        }
    }

    /// The same with queries rounded to what llama.cpp's CPU attention multiplies K with.
    pub(crate) fn with_rounded_queries(self) -> Self {
        let layer = |layer: &Option<StoredLayer>| layer.map(StoredLayer::with_rounded_queries);
        Effective { layers: self.layers.iter().map(layer).collect() }
    }

    /// How a layer is stored.
    fn layer(&self, index: usize) -> StoredLayer {
        self.layers[index].expect("the specification says which layers own a cache")
    }
}

impl StoredLayer {
    /// 8 bits in the basis of a K in ggml's blocks, K's own format where K and V are not both f16 or both
    /// f32; untouched beside formats that llama.cpp has not.
    fn with_rounded_queries(self) -> Self {
        let format = match self.k.codec.name() {
            _ if self.k.codec.is_rotated() => codec::find("q8_0"),
            "f16" | "f32" if self.k.codec.name() == self.v.codec.name() => None,
            "f16" | "f32" | "bf16" => Some(self.k.codec),
            _ => None,
        };
        let queries = format.map(|codec| Stored { codec, rotation: self.k.rotation });
        StoredLayer { queries, ..self }
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

/// `q4_0·H256/q4_0·H64`; where layers differ, each way once, joined by ` + `.
impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ways: Vec<String> = Vec::new();
        for layer in self.layers.iter().flatten() {
            let way = format!("{}/{}", layer.k, layer.v);
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
        f.write_str(&ways.join(" + "))
    }
}

impl Stored {
    fn new(
        side: Side,
        head_dim: usize,
        size: fn(&dyn Codec, usize) -> Option<usize>,
    ) -> Result<Self, BlockSizeError> {
        let block = side.codec.block(head_dim);
        if !head_dim.is_multiple_of(block) {
            return Err(BlockSizeError { codec: side.codec.name(), block, head_dim });
        }
        let rotation = if side.may_rotate { size(side.codec, head_dim) } else { None };
        Ok(Stored { codec: side.codec, rotation })
    }

    /// Rounds (B, T, H, D) in place to what a cache would give back.
    pub(crate) fn round(&self, x: &Tensor) -> candle_core::Result<()> {
        x.inplace_op1(&RoundTrip(*self))
    }

    /// Replaces whole heads by what the cache would give back.
    fn round_trip(&self, x: &mut [f32], head_dim: usize) {
        if let Some(size) = self.rotation {
            rotate::hadamard(x, size);
        }
        for head in x.chunks_exact_mut(head_dim) {
            self.codec.round_trip(head);
        }
        if let Some(size) = self.rotation {
            rotate::hadamard(x, size);
        }
    }
}

/// The cache for measuring: a batch of sequences of one lane. What a layer reads is decode(encode(x)).
///
/// Teacher-forced, chunks are appended whole and layers run one after the other, so nothing is kept but
/// what layers above share. A [`growing`](LaneCache::growing) cache keeps everything and takes tokens
/// in any portions; a clone of it is a snapshot to go back to.
#[derive(Clone)]
pub struct LaneCache {
    scheme: Effective,
    grows: bool,
    views: BTreeMap<usize, View>,
    states: BTreeMap<usize, Option<Recurrent>>,
}

impl LaneCache {
    /// A cache for chunks that are appended whole.
    pub fn new(scheme: Effective) -> Self {
        LaneCache { scheme, grows: false, views: BTreeMap::new(), states: BTreeMap::new() }
    }

    /// A cache that sequences grow in, some tokens at a time.
    pub fn growing(scheme: Effective) -> Self {
        LaneCache { grows: true, ..Self::new(scheme) }
    }

    /// Forgets the recurrent states of chunks that were appended whole: the next ones begin anew.
    pub(crate) fn forget_states(&mut self) {
        if !self.grows {
            self.states.clear();
        }
    }

    /// The past of a layer before the new tokens: of a window, only the keys that they still see.
    fn with_past(&self, layer: usize, kv: LayerKv, view: View) -> candle_core::Result<View> {
        let Some(past) = self.views.get(&layer).filter(|_| self.grows) else { return Ok(view) };
        let joined = |past: &Tensor, new: &Tensor| {
            let len = past.dim(1)?;
            let seen = kv.window.map_or(len, |window| len.min(window - 1));
            Tensor::cat(&[&past.narrow(1, len - seen, seen)?.contiguous()?, new], 1)
        };
        Ok(View { k: joined(&past.k, &view.k)?, v: joined(&past.v, &view.v)?, ..view })
    }
}

impl KvCache for LaneCache {
    fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<View, CacheError> {
        let StoredLayer { kv, k: k_stored, v: v_stored, queries } = self.scheme.layer(layer);
        for (side, x, stored) in [("K", &k, k_stored), ("V", &v, v_stored)] {
            let not_finite = |when| CacheError::NotFinite { layer, side, when };
            if !read(x, all_finite)? {
                return Err(not_finite("before it is stored"));
            }
            stored.round(x)?;
            if !read(x, all_finite)? {
                return Err(not_finite("once it is stored: the codec's range is exceeded"));
            }
        }
        let view = self.with_past(layer, kv, View { k, v, queries })?;
        if self.grows || kv.shared {
            self.views.insert(layer, view.clone());
        }
        Ok(view)
    }

    fn shared(&mut self, owner: usize) -> Result<View, CacheError> {
        self.views.get(&owner).cloned().ok_or(CacheError::NoOwner { owner })
    }

    fn recurrent(&mut self, layer: usize) -> &mut Option<Recurrent> {
        self.states.entry(layer).or_default()
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
            .for_each(|x| self.0.round_trip(x, head_dim));
        Ok(())
    }
}
