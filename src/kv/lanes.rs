//! The cache for measuring: what a layer reads is decode(encode(x)), and nothing is kept.

use super::cache::{CacheError, KvCache, StorageCheck, Versions, View, BEFORE, HALVED, STORED};
use super::codec;
use super::effective::{Clamped, Effective, Stored, StoredLayer};
use super::recurrent::Recurrent;
use crate::compute::change;
use crate::compute::finite::FiniteFlag;
use crate::compute::round_trip::{RoundTrip, Storing};
use candle_core::Tensor;
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
        let clamped = self.scheme.clamped();
        let (k, of_k) = stored_k.versions("K", k, clamped)?;
        let (v, of_v) = stored_v.versions("V", v, clamped)?;
        let checks = [of_k, of_v].concat();
        let view = View { k, v, start: 0, queries: queries.clone(), checks };
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

impl Stored {
    /// Whole sequences, (B, T, H, D), in the versions that their queries read, and the checks of them. What a codec
    /// encodes when a token leaves the exact tail is what the tail holds: halves.
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
            let storing = &CountedStorage { stored: self, clamped };
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
        let storing = &CountedStorage { stored: self, clamped: &Clamped::default() };
        let (before, after) = (&FiniteFlag::default(), &FiniteFlag::default());
        change(&RoundTrip { storing, before, after }, x)
    }
}

/// Rounds (B, T, H, D) in place to halves: what exact means.
fn halve(x: &Tensor, before: &FiniteFlag, after: &FiniteFlag) -> candle_core::Result<()> {
    let f16 = Stored::plain(codec::find("f16").expect("the catalogue has f16"), None);
    let storing = &CountedStorage { stored: &f16, clamped: &Clamped::default() };
    change(&RoundTrip { storing, before, after }, x)
}

/// How one side of a layer is stored, and where clamped scales are counted.
struct CountedStorage<'a> {
    stored: &'a Stored,
    clamped: &'a Clamped,
}

impl Storing for CountedStorage<'_> {
    fn group(&self) -> usize {
        self.stored.codec.group()
    }

    fn round_trip(&self, head: usize, x: &mut [f32]) {
        self.stored.round_trip(head, x, self.clamped);
    }
}
