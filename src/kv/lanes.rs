//! The cache for measuring: what a layer reads is decode(encode(x)), and nothing is kept.

use super::cache::{CacheError, KvCache, Versions, View};
use super::codec;
use super::effective::{Clamped, Effective, Stored, StoredLayer};
use super::recurrent::Recurrent;
use crate::model::ops::{all_finite, elements_mut, read};
use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The cache of a batch of sequences of one lane, teacher-forced: chunks are appended whole and layers run
/// one after the other, so nothing is kept but what layers above share.
///
/// Queries of a chunk read what token-by-token decoding would have shown them: groups of tokens are
/// encoded as if they had just been completed, exact tails and sinks are beside them with their rule.
#[derive(Clone)]
pub struct LaneCache {
    scheme: Effective,
    shared: BTreeMap<usize, View>,
    states: BTreeMap<usize, Option<Recurrent>>,
}

impl LaneCache {
    /// A cache without tokens.
    pub fn new(scheme: Effective) -> Self {
        LaneCache { scheme, shared: BTreeMap::new(), states: BTreeMap::new() }
    }

    /// Forgets recurrent states: the next chunks begin anew.
    pub(crate) fn forget_states(&mut self) {
        self.states.clear();
    }
}

impl KvCache for LaneCache {
    fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<View, CacheError> {
        let StoredLayer { kv, k: stored_k, v: stored_v, queries } = self.scheme.layer(layer);
        let versions = |side, x, stored: &Stored| -> Result<Versions, CacheError> {
            finite(layer, side, &x, BEFORE)?;
            kept_finite(layer, side, stored.versions(x, self.scheme.clamped())?)
        };
        let (k, v) = (versions("K", k, stored_k)?, versions("V", v, stored_v)?);
        let view = View { k, v, start: 0, queries: queries.clone() };
        if kv.shared {
            self.shared.insert(layer, view.clone());
        }
        Ok(view)
    }

    fn shared(&mut self, owner: usize) -> Result<View, CacheError> {
        self.shared.get(&owner).cloned().ok_or(CacheError::NoOwner { owner })
    }

    fn recurrent(&mut self, layer: usize) -> &mut Option<Recurrent> {
        self.states.entry(layer).or_default()
    }
}

pub(super) const BEFORE: &str = "before it is stored";
/// Checks K or V of a layer.
pub(super) fn finite(
    layer: usize,
    side: &'static str,
    x: &Tensor,
    when: &'static str,
) -> Result<(), CacheError> {
    match read(x, all_finite)? {
        true => Ok(()),
        false => Err(CacheError::NotFinite { layer, side, when }),
    }
}

/// Checks what a cache gives back.
pub(super) fn kept_finite(
    layer: usize,
    side: &'static str,
    versions: Versions,
) -> Result<Versions, CacheError> {
    const STORED: &str = "once it is stored: the codec's range is exceeded";
    const HALVED: &str = "as a half, which is what its exact tail and sink hold";
    finite(layer, side, &versions.stored, STORED)?;
    if let Some((exact, _)) = &versions.exact {
        finite(layer, side, exact, HALVED)?;
    }
    Ok(versions)
}

impl Stored {
    /// Whole sequences, (B, T, H, D), in the versions that their queries read. What a codec encodes when a
    /// token leaves the exact tail is what the tail holds: halves.
    fn versions(&self, x: Tensor, clamped: &Clamped) -> candle_core::Result<Versions> {
        let exact = match self.keeps_exact() {
            false => None,
            true => {
                halve(&x)?;
                Some((x.copy()?, self.exact))
            }
        };
        x.inplace_op1(&RoundTrip { stored: self, clamped })?;
        Ok(Versions { stored: x, exact })
    }

    /// Rounds (B, T, H, D) in place to what a cache would give back.
    pub(crate) fn round(&self, x: &Tensor) -> candle_core::Result<()> {
        x.inplace_op1(&RoundTrip { stored: self, clamped: &Clamped::default() })
    }
}

/// Rounds (B, T, H, D) in place to halves: what exact means.
pub(super) fn halve(x: &Tensor) -> candle_core::Result<()> {
    x.inplace_op1(&RoundTrip { stored: &Stored::half(), clamped: &Clamped::default() })
}

/// Rounds (B, T, H_kv, D) in place to what a cache would give back; groups of tokens that are not
/// complete are left as they are.
struct RoundTrip<'a> {
    stored: &'a Stored,
    clamped: &'a Clamped,
}

impl InplaceOp1 for RoundTrip<'_> {
    fn name(&self) -> &'static str {
        "kv-round-trip"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        /// Tokens that one task works on.
        const TOKENS: usize = 128;
        let (_, tokens, heads, head_dim) = layout.shape().dims4()?;
        let width = heads * head_dim;
        let group = self.stored.codec.group();
        let elements = elements_mut(storage, layout)?;
        if group == 1 {
            elements.par_chunks_mut(TOKENS * width).for_each(|x| {
                for (i, head) in x.chunks_exact_mut(head_dim).enumerate() {
                    self.stored.round_trip(i % heads, head, self.clamped);
                }
            });
        } else {
            elements
                .par_chunks_mut(tokens * width)
                .flat_map(|sequence| sequence.par_chunks_exact_mut(group * width))
                .for_each(|x| {
                    for head in 0..heads {
                        let mut own = gather(x, head, heads, head_dim);
                        self.stored.round_trip(head, &mut own, self.clamped);
                        scatter(&own, x, head, heads, head_dim);
                    }
                });
        }
        Ok(())
    }
}

/// One head of some tokens, (n, H, D) → (n, D).
pub(super) fn gather(x: &[f32], head: usize, heads: usize, head_dim: usize) -> Vec<f32> {
    let tokens = x.chunks_exact(heads * head_dim);
    tokens.flat_map(|token| &token[head * head_dim..][..head_dim]).copied().collect()
}

/// The way back.
pub(super) fn scatter(own: &[f32], x: &mut [f32], head: usize, heads: usize, head_dim: usize) {
    for (token, own) in x.chunks_exact_mut(heads * head_dim).zip(own.chunks_exact(head_dim)) {
        token[head * head_dim..][..head_dim].copy_from_slice(own);
    }
}

impl Stored {
    fn half() -> Self {
        Stored::plain(codec::find("f16").expect("the catalogue has f16"), None)
    }
}
