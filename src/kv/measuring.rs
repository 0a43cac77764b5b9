//! The cache for measuring: a layer reads decode(encode(x)) of its K and V, and nothing is kept.

use super::cache::{CacheError, KvCache, Versions, View};
use super::effective::{Clamped, Effective, LayerScheme, SideScheme};
use super::recurrent::Recurrent;
use super::shared::Shared;
use crate::model::ops::{all_finite, elements_mut, read};
use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use rayon::prelude::*;

/// The cache of a batch of sequences that run under one scheme with teacher forcing.
///
/// Chunks are appended whole and layers run one after the other. Nothing needs to be kept, therefore, except
/// what layers above share and recurrent states.
///
/// Each query of a chunk reads what it would read if the chunk were decoded token by token: groups of tokens
/// are encoded as if they had just been completed, and exact tails and sinks stand beside them, with the rule
/// which queries read them.
#[derive(Clone)]
pub struct MeasuringCache {
    scheme: Effective,
    shared: Shared,
}

impl MeasuringCache {
    /// A cache without tokens.
    pub fn new(scheme: Effective) -> Self {
        MeasuringCache { scheme, shared: Shared::default() }
    }

    /// Forgets recurrent states, so that the next chunks start without a history.
    pub(crate) fn forget_states(&mut self) {
        self.shared.forget_states();
    }
}

impl KvCache for MeasuringCache {
    fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<View, CacheError> {
        let LayerScheme { kv, k: k_scheme, v: v_scheme, queries } = self.scheme.layer(layer);
        let versions = |side, x, scheme: &SideScheme| -> Result<Versions, CacheError> {
            finite(layer, side, &x, BEFORE)?;
            kept_finite(layer, side, scheme.versions(x, self.scheme.clamped())?)
        };
        let (k, v) = (versions("K", k, k_scheme)?, versions("V", v, v_scheme)?);
        let view = View { k, v, start: 0, queries: queries.clone() };
        Ok(self.shared.share(layer, kv, view))
    }

    fn shared(&mut self, owner: usize) -> Result<View, CacheError> {
        self.shared.view(owner)
    }

    fn recurrent(&mut self, layer: usize) -> &mut Option<Recurrent> {
        self.shared.state(layer)
    }
}

pub(super) const BEFORE: &str = "before it is stored";

/// Checks that K or V of a layer is finite. `when` says at which point it is looked at.
pub(super) fn finite(
    layer: usize,
    side: &'static str,
    x: &Tensor,
    when: &'static str,
) -> Result<(), CacheError> {
    if read(x, all_finite)? {
        Ok(())
    } else {
        Err(CacheError::NotFinite { layer, side, when })
    }
}

/// Checks that what a cache gives back is finite.
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

impl SideScheme {
    /// The versions of whole sequences, (B, T, H, D), that their queries read.
    ///
    /// If there is an exact tail, it holds half precision, so that is also what the codec encodes once a
    /// token leaves the tail.
    fn versions(&self, x: Tensor, clamped: &Clamped) -> candle_core::Result<Versions> {
        let exact = if self.keeps_exact() {
            halve(&x)?;
            Some((x.copy()?, self.exact))
        } else {
            None
        };
        x.inplace_op1(&RoundTrip { stored: self, clamped })?;
        Ok(Versions { stored: x, exact })
    }

    /// Rounds (B, T, H, D) in place to what a cache would give back.
    pub(crate) fn round(&self, x: &Tensor) -> candle_core::Result<()> {
        x.inplace_op1(&RoundTrip { stored: self, clamped: &Clamped::default() })
    }
}

/// Rounds (B, T, H, D) in place to half precision, which is what "exact" means.
pub(super) fn halve(x: &Tensor) -> candle_core::Result<()> {
    x.inplace_op1(&RoundTrip { stored: &SideScheme::half(), clamped: &Clamped::default() })
}

/// Rounds (B, T, H_kv, D) in place to what a cache would give back; groups of tokens that are not
/// complete are left as they are.
struct RoundTrip<'a> {
    stored: &'a SideScheme,
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

/// Takes one head out of some tokens: (n, H, D) → (n, D).
pub(super) fn gather(x: &[f32], head: usize, heads: usize, head_dim: usize) -> Vec<f32> {
    let tokens = x.chunks_exact(heads * head_dim);
    tokens.flat_map(|token| &token[head * head_dim..][..head_dim]).copied().collect()
}

/// Puts back what [`gather`] took out.
pub(super) fn scatter(own: &[f32], x: &mut [f32], head: usize, heads: usize, head_dim: usize) {
    for (token, own) in x.chunks_exact_mut(heads * head_dim).zip(own.chunks_exact(head_dim)) {
        token[head * head_dim..][..head_dim].copy_from_slice(own);
    }
}
