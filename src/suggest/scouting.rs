//! What single parts of the cache do, and the schemes that promise most by that.

use super::engines::{mixture_of_slots, Coded, Family, Part, EXACT};
use super::frontier::{best, spread, Point};
use super::knapsack::{self, Pick, Way};
use super::passes::{Passes, Reading};
use super::spelling::spelled;
use super::SuggestError;
use crate::kv::effective::Effective;
use crate::kv::layout::{KvSide, LayerKv};
use crate::kv::Scheme;
use crate::measure::corpus::Chunk;
use std::collections::BTreeMap;

/// A family with fewer schemes than this is tried whole. The knapsack drops what is beaten by a little, although
/// predictions are not that exact.
const ENUMERATED: usize = 1000;

/// A codec that does more than this when all of K, or all of V, is stored with it, in nats per token, is not mixed: it has
/// no layer in which it does little.
const MOST_MIXED_HARM: f64 = 2.0;

/// A scheme that comes into question.
pub(super) struct Candidate {
    pub scheme: Scheme,
    pub effective: Effective,
    /// Its bits, and the harm that its parts add up to.
    pub point: Point,
    /// This harm, if it is a sum that a measurement can contradict.
    pub predicted: Option<f64>,
    pub is_mixed: bool,
}

/// What single parts are measured with.
pub(super) struct Scouts<'s> {
    /// What everything else is stored as.
    pub exact: &'s Effective,
    pub coded: &'s [Coded],
    pub layout: &'s [Option<LayerKv>],
    /// The context that is served, in tokens.
    pub served: usize,
    pub chunks: &'s [Chunk],
}

/// The mean KLD of each part with each of its codecs. None if it has no numbers. [`EXACT`] does no harm.
pub(super) type Harms = Vec<Vec<Option<f64>>>;

/// How many lanes tell the harms of a family.
pub(super) fn lanes(family: &Family) -> usize {
    family.parts.iter().map(|part| part.codecs.len() - 1).sum()
}

impl Scouts<'_> {
    /// Measures each part of these families with each of its codecs.
    pub fn look(
        &self,
        what: &str,
        families: &[Family],
        passes: &mut Passes,
    ) -> Result<Vec<Harms>, SuggestError> {
        let parts = families.iter().flat_map(|family| &family.parts);
        let lanes =
            parts.flat_map(|part| part.codecs[1..].iter().map(move |c| self.lane(part, *c)));
        let mut readings = passes.run(what, self.chunks, lanes.collect())?.into_iter();
        let mut next = || readings.next().flatten().map(|Reading { mean_kld, .. }| mean_kld);
        let mut of_part = |part: &Part| -> Vec<Option<f64>> {
            std::iter::once(Some(0.0)).chain(part.codecs[1..].iter().map(|_| next())).collect()
        };
        let harms = families.iter().map(|f| f.parts.iter().map(&mut of_part).collect());
        Ok(harms.collect())
    }

    /// Mixtures of slots, with so many codecs for each side: those that were worth their bits when all of K, or all of V,
    /// was stored with them.
    pub fn mixtures(&self, sides: &Family, harms: &Harms, most: usize) -> Family {
        let of = |side: KvSide| {
            let is_of_side = |part: &Part| part.slots.iter().all(|slot| slot.side == side);
            let mut parts = sides.parts.iter().zip(harms).filter(|(part, _)| is_of_side(part));
            parts.next().map_or_else(Vec::new, |(part, h)| self.worth_mixing(part, h, most))
        };
        mixture_of_slots(&self.exact.slots(), of)
    }

    /// The codecs that are worth their bits on a side, at most so many, evenly spread.
    fn worth_mixing(&self, part: &Part, harms: &[Option<f64>], most: usize) -> Vec<usize> {
        let known = part.codecs.iter().zip(harms).skip(1).filter_map(|(&codec, harm)| {
            let harm = harm.filter(|harm| *harm <= MOST_MIXED_HARM)?;
            Some((codec, Point { bits: self.bits(&self.coded[codec].whole), harm }))
        });
        let (codecs, points): (Vec<_>, Vec<_>) = known.unzip();
        let worth: Vec<usize> = best(&points).into_iter().map(|i| codecs[i]).collect();
        spread(&worth, most)
    }

    /// One part with a codec, and all else exact.
    fn lane(&self, part: &Part, codec: usize) -> (String, Effective) {
        let coded = &self.coded[codec];
        let scheme =
            self.exact.composed(
                |slot| {
                    if part.slots.contains(&slot) {
                        &coded.whole
                    } else {
                        self.exact
                    }
                },
            );
        (scheme.to_string(), scheme)
    }

    /// The schemes of a family that none of it beats by what is predicted. If it has few schemes, all of them.
    pub fn promising(&self, family: &Family, harms: &Harms) -> Vec<Candidate> {
        let ways: Vec<Vec<(usize, Way)>> =
            family.parts.iter().zip(harms).map(|(part, harms)| self.ways(part, harms)).collect();
        let plain: Vec<Vec<Way>> =
            ways.iter().map(|ways| ways.iter().map(|(_, way)| *way).collect()).collect();
        let all: usize = plain.iter().map(Vec::len).fold(1, usize::saturating_mul);
        let picks = if all <= ENUMERATED { every(&plain) } else { knapsack::frontier(&plain) };
        let candidate = |pick: Pick| {
            let codecs = pick.ways.iter().zip(&ways).map(|(&way, ways)| ways[way].0);
            self.candidate(family, &codecs.collect::<Vec<_>>(), pick.harm)
        };
        picks.into_iter().filter_map(candidate).collect()
    }

    /// The scheme of these families that takes the least memory, whatever harm it does. None if half precision takes no
    /// more, as where heads are so small that a codec fills up most of a block.
    pub fn smallest(&self, families: &[Family]) -> Option<Candidate> {
        let of_family = |family: &Family| {
            let codecs = family.parts.iter().map(|part| {
                let bytes = |codec: &usize| self.part_bytes(part, *codec);
                part.codecs.iter().copied().min_by_key(bytes).unwrap_or(EXACT)
            });
            let candidate = self.candidate(family, &codecs.collect::<Vec<_>>(), f64::NAN)?;
            Some(Candidate { predicted: None, ..candidate })
        };
        let all = families.iter().filter_map(of_family);
        all.min_by(|a, b| a.point.bits.total_cmp(&b.point.bits))
    }

    /// Bytes of a part that is stored with a codec.
    fn part_bytes(&self, part: &Part, codec: usize) -> u64 {
        let whole = &self.coded[codec].whole;
        part.slots.iter().map(|slot| whole.slot_bytes_at(*slot, self.served) as u64).sum()
    }

    /// The ways to store a part whose harm is known, each with its codec.
    fn ways(&self, part: &Part, harms: &[Option<f64>]) -> Vec<(usize, Way)> {
        let way = |(&codec, harm): (&usize, &Option<f64>)| {
            let cost = self.part_bytes(part, codec);
            Some((codec, Way { cost, harm: harm.filter(|harm| harm.is_finite())? }))
        };
        part.codecs.iter().zip(harms).filter_map(way).collect()
    }

    fn candidate(&self, family: &Family, codecs: &[usize], harm: f64) -> Option<Candidate> {
        if codecs.iter().all(|&codec| codec == EXACT) {
            return None;
        }
        let mut sides = BTreeMap::new();
        for (part, &codec) in family.parts.iter().zip(codecs) {
            let side = self.coded[codec].side;
            sides.extend(part.slots.iter().map(|slot| ((slot.layer, slot.side), side)));
        }
        let scheme = spelled(&sides)?;
        // what runs is what the text says
        let effective = Effective::new(&scheme, self.layout, None).ok()?;
        let point = Point { bits: self.bits(&effective), harm };
        let is_mixed = !scheme.layers.is_empty();
        // where one part is the whole, nothing was added up
        let predicted = (family.parts.len() > 1).then_some(harm);
        Some(Candidate { scheme, effective, point, predicted, is_mixed })
    }

    /// Bits per element of the whole cache at the served context.
    pub fn bits(&self, effective: &Effective) -> f64 {
        effective.bits_at(self.served).iter().sum::<f64>() / 2.0
    }
}

/// Every pick.
fn every(parts: &[Vec<Way>]) -> Vec<Pick> {
    let none = Pick { cost: 0, harm: 0.0, ways: Vec::new() };
    parts.iter().fold(vec![none], |picks, ways| {
        let with = |pick: &Pick| {
            let add = |(i, way): (usize, &Way)| {
                let ways = pick.ways.iter().copied().chain([i]).collect();
                Pick { cost: pick.cost + way.cost, harm: pick.harm + way.harm, ways }
            };
            ways.iter().enumerate().map(add).collect::<Vec<_>>()
        };
        picks.iter().flat_map(with).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::super::engines::Engine;
    use super::*;

    /// The smallest scheme of an engine with these codecs, and its bits, for layers with heads of 64 and of 128.
    fn smallest(engine: Engine, codecs: &[&str], mixes_slots: bool) -> Option<(String, f64)> {
        let kv = |head_dim| Some(LayerKv { heads: 2, head_dim, ..LayerKv::default() });
        let layout = [kv(64), kv(128)];
        let codecs: Vec<String> = codecs.iter().map(|codec| codec.to_string()).collect();
        let (coded, _) = engine.codecs(&codecs, &layout);
        let exact = &coded[EXACT].whole;
        let mut families = engine.families(&coded, &exact.slots(), true);
        if mixes_slots {
            families.push(mixture_of_slots(&exact.slots(), |_| (EXACT + 1..coded.len()).collect()));
        }
        let scouts = Scouts { exact, coded: &coded, layout: &layout, served: 512, chunks: &[] };
        let found = scouts.smallest(&families)?;
        Some((found.scheme.to_string(), found.point.bits))
    }

    #[test]
    fn the_smallest_scheme_has_the_codec_with_the_fewest_bytes_in_each_part() {
        let found = |name: &str, bits: f64| Some((name.to_string(), bits));
        assert_eq!(smallest(Engine::LlamaCpp, &[], false), found("q4_0", 4.5));
        assert_eq!(smallest(Engine::LlamaCpp, &["q8_0", "q5_0"], false), found("q5_0", 5.5));
        assert_eq!(smallest(Engine::Vllm, &["fp8_e4m3", "nvfp4"], false), found("nvfp4", 4.5));
        // heads of 64 are filled up to blocks of 128
        let turbo = ["turbo4", "q4_0"];
        assert_eq!(smallest(Engine::Any, &turbo, false), found("q4_0", 4.5));
        assert_eq!(smallest(Engine::Any, &turbo, true), found("q4_0@1=turbo4", 4.25));
        assert_eq!(smallest(Engine::Any, &[], false).unwrap().0, "q2_0");
    }
}
