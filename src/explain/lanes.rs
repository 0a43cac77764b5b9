//! The lanes of an explanation: the whole scheme, one lane for each site, and one for each suspected cause.

use crate::kv::effective::Effective;
use crate::kv::layout::{KvSide, Slot};
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Where a lane quantizes: K or V of a layer, or of one of its KV heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Site {
    /// Index of the layer in the checkpoint.
    pub layer: usize,
    pub side: KvSide,
    /// None for all heads of the layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<usize>,
}

impl Site {
    pub fn slot(self) -> Slot {
        Slot { layer: self.layer, side: self.side }
    }
}

/// What is changed in the whole scheme to see what it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Experiment {
    /// Only K, or only V, is quantized.
    Only(KvSide),
    /// K's mean is subtracted first, as `:center` does.
    Centred,
    /// So many channels of each head stay exact: those with the largest rms.
    WithoutChannels(usize),
    /// So many of the lowest layers that own a cache stay exact.
    WithoutFirst(usize),
    /// So many of the highest.
    WithoutLast(usize),
    /// llama.cpp's rotation is switched on, or off.
    Rotation(bool),
    /// The sites that hold most of the harm stay exact. They are named in words.
    WithoutCulprits(String),
}

impl Experiment {
    /// The name for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Experiment::Only(KvSide::K) => "only_k",
            Experiment::Only(KvSide::V) => "only_v",
            Experiment::Centred => "k_centred",
            Experiment::WithoutChannels(_) => "worst_channels_exact",
            Experiment::WithoutFirst(_) => "first_layers_exact",
            Experiment::WithoutLast(_) => "last_layers_exact",
            Experiment::Rotation(true) => "rotated",
            Experiment::Rotation(false) => "not_rotated",
            Experiment::WithoutCulprits(_) => "culprits_exact",
        }
    }

    /// What is different from the whole scheme, in words.
    pub fn words(&self) -> String {
        let layers = |which: &str, count: &usize| match count {
            1 => format!("the {which} layer exact"),
            count => format!("the {which} {count} layers exact"),
        };
        match self {
            Experiment::Only(side) => format!("only {side} quantized"),
            Experiment::Centred => "K's mean taken out".into(),
            Experiment::WithoutChannels(1) => "the worst channel of each head exact".into(),
            Experiment::WithoutChannels(n) => format!("the {n} worst channels of each head exact"),
            Experiment::WithoutFirst(count) => layers("first", count),
            Experiment::WithoutLast(count) => layers("last", count),
            Experiment::Rotation(true) => "with rotation".into(),
            Experiment::Rotation(false) => "without rotation".into(),
            Experiment::WithoutCulprits(sites) => format!("{sites} exact"),
        }
    }
}

/// An experiment that says nothing about this scheme and model, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    pub experiment: &'static str,
    pub why: &'static str,
}

/// The lanes of the first pass.
pub struct Lanes {
    /// A scheme for each site that the whole scheme quantizes.
    pub sites: Vec<(Site, Effective)>,
    pub experiments: Vec<(Experiment, Effective)>,
    pub skipped: Vec<Skipped>,
}

/// What the lanes are made from.
pub struct Makings<'a> {
    /// What "exact" means: the baseline.
    pub exact: &'a Effective,
    /// The whole scheme.
    pub whole: &'a Effective,
    /// Whether each KV head has lanes of its own.
    pub by_head: bool,
    /// The channels of each head of a slot that are kept exact in an experiment, and how many these are.
    pub worst: &'a dyn Fn(Slot) -> Arc<[Vec<usize>]>,
    pub channels: usize,
    /// The mean of a layer's K, (H_kv, D).
    pub mean: &'a dyn Fn(usize) -> Arc<[f32]>,
}

impl Makings<'_> {
    pub fn lanes(&self) -> Lanes {
        let (experiments, skipped) = self.experiments();
        let sites = self.sites().into_iter().map(|site| (site, self.only_at(site)));
        Lanes { sites: sites.collect(), experiments, skipped }
    }

    /// The scheme with some sites exact.
    pub fn without(&self, sites: &[Site]) -> Effective {
        let slots: BTreeSet<Slot> = sites.iter().map(|site| site.slot()).collect();
        if !self.by_head {
            return self.whole_where(|slot| !slots.contains(&slot));
        }
        self.whole.sparing(|slot| {
            if !slots.contains(&slot) {
                return Arc::default();
            }
            let is_exact = |head| sites.contains(&Site { head: Some(head), ..site_of(slot) });
            self.channels_of_heads(slot, is_exact)
        })
    }

    /// The slots that the scheme quantizes.
    fn lossy(&self) -> Vec<Slot> {
        self.whole.slots().into_iter().filter(|slot| self.whole.slot(*slot).is_lossy()).collect()
    }

    fn sites(&self) -> Vec<Site> {
        let sites = self.lossy().into_iter().flat_map(|slot| {
            let heads = if self.by_head { self.whole.kept(slot).heads } else { 0 };
            let whole = (!self.by_head).then_some(site_of(slot));
            let by_head = (0..heads).map(move |head| Site { head: Some(head), ..site_of(slot) });
            whole.into_iter().chain(by_head)
        });
        sites.collect()
    }

    /// The whole scheme in the slots that are chosen, and the baseline in all others.
    fn whole_where(&self, is_chosen: impl Fn(Slot) -> bool) -> Effective {
        self.exact.composed(|slot| if is_chosen(slot) { self.whole } else { self.exact })
    }

    fn only_at(&self, site: Site) -> Effective {
        let alone = self.whole_where(|slot| slot == site.slot());
        match site.head {
            Some(own) if self.whole.kept(site.slot()).heads > 1 => alone.sparing(|slot| {
                if slot == site.slot() {
                    self.channels_of_heads(slot, |head| head != own)
                } else {
                    Arc::default()
                }
            }),
            _ => alone,
        }
    }

    /// All channels of some heads of a slot, and none of the others.
    fn channels_of_heads(
        &self,
        slot: Slot,
        is_chosen: impl Fn(usize) -> bool,
    ) -> Arc<[Vec<usize>]> {
        let kv = self.whole.kept(slot);
        let channels = |head| if is_chosen(head) { (0..kv.head_dim).collect() } else { vec![] };
        (0..kv.heads).map(channels).collect()
    }

    fn experiments(&self) -> (Vec<(Experiment, Effective)>, Vec<Skipped>) {
        let (mut done, mut skipped) = (Vec::new(), Vec::new());
        let mut add = |experiment: Experiment, scheme: Result<Effective, &'static str>| match scheme
        {
            Ok(scheme) => done.push((experiment, scheme)),
            Err(why) => skipped.push(Skipped { experiment: experiment.name(), why }),
        };
        let has_both = KvSide::BOTH.iter().all(|s| self.lossy().iter().any(|l| l.side == *s));
        for side in KvSide::BOTH {
            let only = has_both.then(|| self.whole_where(|slot| slot.side == side));
            add(Experiment::Only(side), only.ok_or("the scheme quantizes one side only"));
        }
        let why = "the codec of K is exact or has a mean of its own, or the model's scores do not allow for a constant";
        add(Experiment::Centred, self.whole.centred(self.mean).ok_or(why));
        add(Experiment::WithoutChannels(self.channels), Ok(self.without_channels()));
        let layers: BTreeSet<usize> = self.lossy().iter().map(|slot| slot.layer).collect();
        let layers: Vec<usize> = layers.into_iter().collect();
        // an eighth of the layers
        let count = layers.len().div_ceil(8);
        let ends = [
            (Experiment::WithoutFirst(count), &layers[..count]),
            (Experiment::WithoutLast(count), &layers[layers.len() - count..]),
        ];
        for (experiment, exact) in ends {
            let without = || self.whole_where(|slot| !exact.contains(&slot.layer));
            let without = (layers.len() > 2 * count).then(without);
            add(experiment, without.ok_or("the scheme quantizes too few layers"));
        }
        let (on, off) = (self.whole.with_rotation(true), self.whole.with_rotation(false));
        match (off, on) {
            (Some(off), _) => add(Experiment::Rotation(false), Ok(off)),
            (None, Some(on)) => add(Experiment::Rotation(true), Ok(on)),
            (None, None) => {
                let why = "these codecs, or heads of this size, are never rotated by the engine";
                add(Experiment::Rotation(true), Err(why));
            }
        }
        (done, skipped)
    }

    fn without_channels(&self) -> Effective {
        self.whole.sparing(|slot| {
            if self.whole.slot(slot).is_lossy() {
                (self.worst)(slot)
            } else {
                Arc::default()
            }
        })
    }
}

fn site_of(slot: Slot) -> Site {
    Site { layer: slot.layer, side: slot.side, head: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::layout::LayerKv;

    fn effective(scheme: &str, layers: usize) -> Effective {
        let kv = LayerKv { heads: 2, head_dim: 64, ..LayerKv::default() };
        let mut layout = vec![Some(kv); layers];
        // a layer that reads the cache of another one has no slot
        layout.push(None);
        Effective::new(&scheme.parse().unwrap(), &layout, None).unwrap()
    }

    fn with<R>(scheme: &str, layers: usize, by_head: bool, f: impl FnOnce(&Makings) -> R) -> R {
        let (exact, whole) = (effective("f16", layers), effective(scheme, layers));
        let worst = |_| Arc::from(vec![vec![3], vec![4]]);
        let mean = |_| Arc::from(vec![0.5; 128]);
        f(&Makings {
            exact: &exact,
            whole: &whole,
            by_head,
            worst: &worst,
            channels: 1,
            mean: &mean,
        })
    }

    fn named(lanes: &Lanes, name: &str) -> Option<String> {
        let mut found = lanes.experiments.iter().filter(|(e, _)| e.name() == name);
        found.next().map(|(_, scheme)| scheme.to_string())
    }

    #[test]
    fn a_site_is_quantized_and_all_else_is_exact() {
        with("q4_0", 3, false, |makings| {
            let lanes = makings.lanes();
            let sites: Vec<String> = lanes.sites.iter().map(|(_, s)| s.to_string()).collect();
            assert_eq!(sites.len(), 6);
            assert_eq!(sites[2], "f16/f16 in 0,2 + q4_0·H64/f16 in 1");
            assert_eq!(sites[5], "f16/f16 in 0-1 + f16/q4_0·H64 in 2");
            let culprits = makings.without(&[lanes.sites[2].0]);
            assert_eq!(culprits.to_string(), "q4_0·H64/q4_0·H64 in 0,2 + f16/q4_0·H64 in 1");
        });
    }

    #[test]
    fn a_head_is_quantized_and_the_others_are_spared() {
        with("q4_0/f16", 2, true, |makings| {
            let lanes = makings.lanes();
            let sites: Vec<Site> = lanes.sites.iter().map(|(site, _)| *site).collect();
            assert_eq!(sites.len(), 4);
            let last = Site { layer: 1, side: KvSide::K, head: Some(1) };
            assert_eq!(sites[3], last);
            let scheme = lanes.sites[3].1.to_string();
            assert_eq!(scheme, "f16/f16 in 0 + q4_0·H64:spared=64/f16 in 1");
            let without = makings.without(&[last]).to_string();
            assert_eq!(without, "q4_0·H64/f16 in 0 + q4_0·H64:spared=64/f16 in 1");
        });
    }

    #[test]
    fn every_suspected_cause_has_its_experiment_or_a_reason_why_not() {
        with("q4_0", 9, false, |makings| {
            let lanes = makings.lanes();
            let found = |name| named(&lanes, name);
            assert_eq!(found("only_k").unwrap(), "q4_0·H64/f16");
            assert_eq!(found("only_v").unwrap(), "f16/q4_0·H64");
            assert_eq!(found("k_centred").unwrap(), "q4_0·H64:center/q4_0·H64");
            let spared = found("worst_channels_exact").unwrap();
            assert_eq!(spared, "q4_0·H64:spared=2/q4_0·H64:spared=2");
            let first = found("first_layers_exact").unwrap();
            assert_eq!(first, "f16/f16 in 0-1 + q4_0·H64/q4_0·H64 in 2-8");
            let last = found("last_layers_exact").unwrap();
            assert_eq!(last, "q4_0·H64/q4_0·H64 in 0-6 + f16/f16 in 7-8");
            assert_eq!(found("not_rotated").unwrap(), "q4_0/q4_0");
            assert!(lanes.skipped.is_empty(), "{:?}", lanes.skipped);
        });
        with("q4_0:norot", 9, false, |makings| {
            assert_eq!(named(&makings.lanes(), "rotated").unwrap(), "q4_0·H64/q4_0·H64");
        });
        with("f16/turbo4", 2, false, |makings| {
            let lanes = makings.lanes();
            let why: Vec<_> = lanes.skipped.iter().map(|skipped| skipped.experiment).collect();
            let none = [
                "only_k",
                "only_v",
                "k_centred",
                "first_layers_exact",
                "last_layers_exact",
                "rotated",
            ];
            assert_eq!(why, none);
            let spared = named(&lanes, "worst_channels_exact").unwrap();
            assert_eq!(spared, "f16/turbo4:spared=2");
        });
    }
}
