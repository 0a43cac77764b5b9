//! Effective schemes that no text spells: put together from others slot by slot, or changed in one respect.
//!
//! A scheme is resolved into one way of storing for each slot (K or V of a layer that owns a cache), so any mixture of
//! schemes can be measured: [`Effective::composed`] takes each slot from a scheme of its own. The other functions
//! change one thing in every slot, for experiments about what does a scheme's harm. All schemes must be of one model.

use super::{Effective, LayerScheme, SideScheme};
use crate::kv::layout::{KvSide, LayerKv, Slot};
use crate::kv::rotate;
use std::sync::Arc;

impl Effective {
    /// The slots of the model, from the bottom up, K before V.
    pub(crate) fn slots(&self) -> Vec<Slot> {
        let owners = (0..self.layers.len()).filter(|&layer| self.layers[layer].is_some());
        owners.flat_map(|layer| KvSide::BOTH.map(|side| Slot { layer, side })).collect()
    }

    /// How a slot is stored.
    pub(crate) fn slot(&self, slot: Slot) -> &SideScheme {
        self.layer(slot.layer).side(slot.side)
    }

    /// What the layer of a slot keeps.
    pub(crate) fn kept(&self, slot: Slot) -> &LayerKv {
        &self.layer(slot.layer).kv
    }

    /// Bytes that a slot takes in the cache of one sequence of `tokens` tokens.
    pub(crate) fn slot_bytes_at(&self, slot: Slot, tokens: usize) -> usize {
        let (side, kv) = (self.slot(slot), self.kept(slot));
        side.held(kv, tokens).bytes(kv, side)
    }

    /// The scheme that stores each slot as the scheme does that `of` names for it.
    pub(crate) fn composed<'a>(&self, of: impl Fn(Slot) -> &'a Effective) -> Effective {
        self.changed(|slot, _| of(slot).slot(slot).clone())
    }

    /// The same scheme, except that some channels of a slot stay in half precision. `channels` gives them for each head;
    /// an empty list leaves the whole slot as it is.
    pub(crate) fn sparing(&self, channels: impl Fn(Slot) -> Arc<[Vec<usize>]>) -> Effective {
        self.changed(|slot, side| match channels(slot) {
            none if none.is_empty() => side,
            some => side.sparing(some),
        })
    }

    /// The same scheme with K's mean subtracted first, (H_kv, D) for each layer. `None` if that changes nothing, or if
    /// the result would not be exact, because some layer's scores do not allow for a constant.
    pub(crate) fn centred(&self, mean: impl Fn(usize) -> Arc<[f32]>) -> Option<Effective> {
        if self.owners().any(|layer| layer.kv.absolute_scores) {
            return None;
        }
        let is_centred = std::cell::Cell::new(false);
        let centred = self.changed(|slot, side| match slot.side {
            KvSide::V => side,
            KvSide::K => match side.clone().centred(mean(slot.layer)) {
                None => side,
                Some(centred) => {
                    is_centred.set(true);
                    centred
                }
            },
        });
        is_centred.get().then_some(centred)
    }

    /// The same scheme with llama.cpp's rotation wherever it is possible, or without it anywhere. `None` if that changes
    /// nothing.
    pub(crate) fn with_rotation(&self, is_rotated: bool) -> Option<Effective> {
        let sides = || self.slots().into_iter();
        let changes = |slot: Slot| {
            self.rotated_slot(slot, is_rotated).is_rotated() != self.slot(slot).is_rotated()
        };
        let has_effect = sides().any(changes);
        has_effect.then(|| self.changed(|slot, _| self.rotated_slot(slot, is_rotated)))
    }

    /// How a slot would be stored with llama.cpp's rotation, or without it. A codec that is never rotated stays as it is.
    pub(crate) fn rotated_slot(&self, slot: Slot, is_rotated: bool) -> SideScheme {
        let side = self.slot(slot).clone();
        let size = match slot.side {
            KvSide::K => rotate::k_size,
            KvSide::V => rotate::v_size,
        };
        let rotation = size(side.codec, self.kept(slot).head_dim).filter(|_| is_rotated);
        side.rotated_by(rotation)
    }

    /// The same scheme with each slot changed. It counts its clamped scales by itself.
    fn changed(&self, change: impl Fn(Slot, SideScheme) -> SideScheme) -> Effective {
        let layers = self.layers.iter().cloned().enumerate().map(|(index, layer)| {
            let changed = |side, scheme| change(Slot { layer: index, side }, scheme);
            layer.map(|LayerScheme { kv, k, v, queries }| {
                let (k, v) = (changed(KvSide::K, k), changed(KvSide::V, v));
                LayerScheme { kv, k, v, queries }
            })
        });
        Effective { layers: layers.collect(), has_clauses: true, clamped: Arc::default() }
    }
}

impl LayerScheme {
    fn side(&self, side: KvSide) -> &SideScheme {
        match side {
            KvSide::K => &self.k,
            KvSide::V => &self.v,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::round_trip::Counters;
    use crate::kv::Scheme;

    fn layout() -> Vec<Option<LayerKv>> {
        let kv = LayerKv { heads: 2, head_dim: 64, ..LayerKv::default() };
        vec![Some(kv), None, Some(LayerKv { absolute_scores: false, ..kv })]
    }

    fn effective(scheme: &str) -> Effective {
        Effective::new(&scheme.parse::<Scheme>().unwrap(), &layout(), None).unwrap()
    }

    #[test]
    fn each_slot_is_taken_from_the_scheme_that_is_named_for_it() {
        let (f16, q4, q8) = (effective("f16"), effective("q4_0"), effective("q8_0:norot"));
        let mixed = f16.composed(|slot| match (slot.layer, slot.side) {
            (0, KvSide::K) => &q4,
            (2, KvSide::V) => &q8,
            _ => &f16,
        });
        assert_eq!(mixed.to_string(), "q4_0·H64/f16 in 0 + f16/q8_0 in 2");
        let slots = mixed.slots();
        assert_eq!(slots.len(), 4);
        assert_eq!(slots[1], Slot { layer: 0, side: KvSide::V });
        assert_eq!(f16.composed(|_| &q4).to_string(), q4.to_string());
    }

    #[test]
    fn slots_take_all_the_bytes_of_a_cache() {
        for scheme in ["f16", "q8_0/q4_0@0=q4_0", "kivi4"] {
            let whole = effective(scheme);
            let slots = whole.slots().into_iter().map(|slot| whole.slot_bytes_at(slot, 300));
            assert_eq!(slots.sum::<usize>(), whole.bytes_at(300), "{scheme}");
        }
    }

    #[test]
    fn rotation_is_switched_where_it_can_be() {
        let plain = effective("q4_0").with_rotation(false).unwrap();
        assert_eq!(plain.to_string(), "q4_0/q4_0");
        assert_eq!(plain.with_rotation(true).unwrap().to_string(), "q4_0·H64/q4_0·H64");
        assert!(effective("q4_0").with_rotation(true).is_none());
        assert!(effective("turbo4").with_rotation(true).is_none());
    }

    #[test]
    fn a_mean_is_subtracted_where_that_has_an_effect_and_is_exact() {
        let mean: Arc<[f32]> = vec![1.0; 128].into();
        let centred = |scheme: &str| effective(scheme).centred(|_| mean.clone());
        assert_eq!(centred("q4_0/f16").unwrap().to_string(), "q4_0·H64:center/f16");
        assert!(centred("f16/q4_0").is_none());
        assert!(centred("kivi4").is_none());
        let mut capped = layout();
        capped[2].as_mut().unwrap().absolute_scores = true;
        let capped = Effective::new(&"q4_0".parse().unwrap(), &capped, None).unwrap();
        assert!(capped.centred(|_| mean.clone()).is_none());
    }

    /// A spared channel comes back as a half, and its size has no influence on the others.
    #[test]
    fn spared_channels_are_halves_and_do_not_disturb_the_others() {
        let slot = Slot { layer: 0, side: KvSide::K };
        let numbers = |outlier: f32| -> Vec<f32> {
            (0..64).map(|i| if i == 5 { outlier } else { 0.1 * (i % 9) as f32 - 0.3 }).collect()
        };
        let round = |scheme: &Effective, head: usize, outlier: f32| {
            let mut x = numbers(outlier);
            scheme.slot(slot).round_trip(head, &mut x, &Counters::default());
            x
        };
        for scheme in ["q4_0", "q4_0:norot", "turbo4"] {
            let whole = effective(scheme);
            let spared = whole.sparing(|_| vec![vec![5], vec![]].into());
            assert_eq!(spared.to_string().matches(":spared=1").count(), 2, "{spared}");
            let (small, large) = (round(&spared, 0, 0.1), round(&spared, 0, 1000.1));
            assert_eq!(large[5], half::f16::from_f32(1000.1).to_f32());
            let others = |x: &[f32]| [&x[..5], &x[6..]].concat();
            assert_eq!(others(&small), others(&large));
            assert_ne!(others(&round(&whole, 0, 0.1)), others(&round(&whole, 0, 1000.1)));
            assert_eq!(round(&spared, 1, 7.0), round(&whole, 1, 7.0), "a head without any");
        }
    }

    /// With all channels of a head spared, the head is what the baseline stores.
    #[test]
    fn a_spared_head_is_the_baselines() {
        let all: Vec<usize> = (0..64).collect();
        let one = effective("kivi4").sparing(|_| vec![all.clone(), vec![]].into());
        let slot = Slot { layer: 2, side: KvSide::V };
        let group = 32;
        let x: Vec<f32> = (0..64 * group).map(|i| (i % 101) as f32 * 0.013).collect();
        let rounded = |scheme: &Effective, head| {
            let mut x = x.clone();
            let side = scheme.slot(slot);
            x.truncate(64 * side.codec.group());
            side.round_trip(head, &mut x, &Counters::default());
            x
        };
        let half = |x: &f32| half::f16::from_f32(*x).to_f32();
        let first = rounded(&one, 0);
        assert_eq!(first, x[..first.len()].iter().map(half).collect::<Vec<_>>());
        assert_eq!(rounded(&one, 1), rounded(&effective("kivi4"), 1));
    }
}
