//! The look at K and V on their way into the cache.

use super::rope::{pair_of, Turned};
use super::statistics::{HeadStatistics, HeadSums};
use crate::compute::elements::read;
use crate::kv::effective::Effective;
use crate::kv::layout::{KvSide, Slot};
use crate::measure::Observer;
use crate::model::spec::{Rope, Spec};
use candle_core::{Result, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Sums up the K and V of a run, and what a scheme would make of them.
pub struct Tap<'a> {
    spec: &'a Spec,
    scheme: &'a Effective,
    /// The heads of each slot.
    slots: BTreeMap<Slot, Vec<HeadSums>>,
}

impl<'a> Tap<'a> {
    pub fn new(spec: &'a Spec, scheme: &'a Effective) -> Self {
        Tap { spec, scheme, slots: BTreeMap::new() }
    }

    /// The mean of K in a layer, (H_kv, D).
    pub fn mean_of_k(&self, layer: usize) -> Arc<[f32]> {
        let heads = &self.slots[&Slot { layer, side: KvSide::K }];
        heads.iter().flat_map(HeadSums::means).collect()
    }

    /// The statistics of each head, from the bottom up, K before V.
    pub fn statistics(&self) -> Vec<HeadStatistics> {
        let heads = self.slots.iter().flat_map(|(&slot, heads)| {
            let is_rotated = self.scheme.slot(slot).is_rotated();
            let pair = move |channel| pair_of(self.rope(slot)?, channel);
            heads.iter().enumerate().map(move |(head, sums)| {
                sums.statistics((slot.layer, slot.side, head), is_rotated, pair)
            })
        });
        heads.collect()
    }

    /// The RoPE of a slot: that of the layer for K, none for V.
    fn rope(&self, slot: Slot) -> Option<&'a Rope> {
        let attention = self.spec.layers[slot.layer].attention()?;
        (slot.side == KvSide::K).then_some(&attention.rope)
    }

    /// Adds K or V of a chunk, (1, T, H_kv, D).
    fn add(&mut self, slot: Slot, x: &Tensor) -> Result<()> {
        let (_, tokens, heads, head_dim) = x.dims4()?;
        let turned = self.rope(slot).and_then(|rope| Turned::new(rope, tokens));
        let new = || (0..heads).map(|_| HeadSums::new(head_dim)).collect();
        let sums = self.slots.entry(slot).or_insert_with(new);
        read(x, |x: &[f32]| {
            for (i, x) in x.chunks_exact(head_dim).enumerate() {
                sums[i % heads].add(x, turned.as_ref().map(|turned| (turned, i / heads)));
            }
        })?;
        if !self.scheme.slot(slot).is_lossy() {
            return Ok(());
        }
        let ways = [false, true].map(|is_rotated| self.scheme.rotated_slot(slot, is_rotated));
        for way in ways.iter().take(if ways[1].is_rotated() { 2 } else { 1 }) {
            let stored = x.copy()?;
            way.round(&stored)?;
            let encoded = way.encoded_of(tokens) * heads * head_dim;
            let mut compare = |x: &[f32], stored: &[f32]| {
                let stored = stored[..encoded].chunks_exact(head_dim);
                for (i, (x, stored)) in x.chunks_exact(head_dim).zip(stored).enumerate() {
                    sums[i % heads].add_change(x, stored, way.is_rotated());
                }
            };
            read(x, |x: &[f32]| read(&stored, |stored: &[f32]| compare(x, stored)))??;
        }
        Ok(())
    }
}

impl Observer for Tap<'_> {
    fn record(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<()> {
        self.add(Slot { layer, side: KvSide::K }, k)?;
        self.add(Slot { layer, side: KvSide::V }, v)
    }
}
