//! The cache for measuring: a layer reads decode(encode(x)) of its K and V, and nothing is kept.

use super::cache::{CacheError, KvCache, StorageCheck, Versions, View, BEFORE, HALVED, STORED};
use super::effective::{Clamped, Effective, LayerScheme, SideScheme};
use super::recurrent::Recurrent;
use super::shared::Shared;
use crate::compute::change;
use crate::compute::finite::FiniteFlag;
use crate::compute::round_trip::{RoundTrip, Storing};
use candle_core::Tensor;

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
        let clamped = self.scheme.clamped();
        let (k, of_k) = k_scheme.versions("K", k, clamped)?;
        let (v, of_v) = v_scheme.versions("V", v, clamped)?;
        let checks = [of_k, of_v].concat();
        let view = View { k, v, start: 0, queries: queries.clone(), checks };
        Ok(self.shared.share(layer, kv, view))
    }

    fn shared(&mut self, owner: usize) -> Result<View, CacheError> {
        self.shared.view(owner)
    }

    fn recurrent(&mut self, layer: usize) -> &mut Option<Recurrent> {
        self.shared.state(layer)
    }
}

impl SideScheme {
    /// The versions of whole sequences, (B, T, H, D), that their queries read, and the checks of them.
    ///
    /// If there is an exact tail, it holds half precision, so that is also what the codec encodes once a
    /// token leaves the tail.
    fn versions(
        &self,
        side: &'static str,
        x: Tensor,
        clamped: &Clamped,
    ) -> candle_core::Result<(Versions, Vec<StorageCheck>)> {
        let [before, stored, halved] = [BEFORE, STORED, HALVED].map(|when| {
            let finite = FiniteFlag::default();
            StorageCheck { side, when, finite }
        });
        let encode = |before: &StorageCheck| {
            let storing = &CountedStorage { scheme: self, clamped };
            change(&RoundTrip { storing, before: &before.finite, after: &stored.finite }, &x)
        };
        if !self.keeps_exact() {
            encode(&before)?;
            return Ok((Versions { stored: x, exact: None }, vec![before, stored]));
        }
        halve(&x, &before.finite, &halved.finite)?;
        let exact = Some((x.copy()?, self.exact));
        encode(&halved)?;
        Ok((Versions { stored: x, exact }, vec![before, stored, halved]))
    }

    /// Rounds (B, T, H, D) in place to what a cache would give back.
    pub(crate) fn round(&self, x: &Tensor) -> candle_core::Result<()> {
        let storing = &CountedStorage { scheme: self, clamped: &Clamped::default() };
        let (before, after) = (&FiniteFlag::default(), &FiniteFlag::default());
        change(&RoundTrip { storing, before, after }, x)
    }
}

/// Rounds (B, T, H, D) in place to half precision, which is what "exact" means.
fn halve(x: &Tensor, before: &FiniteFlag, after: &FiniteFlag) -> candle_core::Result<()> {
    let half = SideScheme::half();
    let storing = &CountedStorage { scheme: &half, clamped: &Clamped::default() };
    change(&RoundTrip { storing, before, after }, x)
}

/// How one side of a layer is stored, and where clamped scales are counted.
struct CountedStorage<'a> {
    scheme: &'a SideScheme,
    clamped: &'a Clamped,
}

impl Storing for CountedStorage<'_> {
    fn group(&self) -> usize {
        self.scheme.codec.group()
    }

    fn round_trip(&self, head: usize, x: &mut [f32]) {
        self.scheme.round_trip(head, x, self.clamped);
    }
}
