//! The KL divergence of lanes from the baseline, computed from one tile of the vocabulary after the other.
//!
//! An op gives the sums over each tile ([`TileSums`](crate::compute::divergence::TileSums), which explains the
//! formula). Here they are merged in the way of Chan's parallel variance: moving a tile's mean μ to the common mean
//! adds only terms that are never negative, so that nothing cancels. The same numbers give the lane's
//! log-probabilities, because log Σ e^x_lane = log Σ e^x_base + μ + KLD.

use crate::compute::divergence::{excess, BaselineSums, LaneSums, NUMBERS};
use crate::results::statistics::Position;

/// The baseline and its lanes at one position.
pub(super) struct Divergence {
    target: u32,
    /// The baseline's largest logit so far. Weights are relative to it.
    max: f32,
    top: u32,
    second: f32,
    /// Σ e^(x_base - max)
    weight: f64,
    target_logit: f32,
    lanes: Vec<RunningLane>,
}

/// The sums of a lane over all tiles so far.
#[derive(Clone)]
struct RunningLane {
    /// The weighted mean of D = x_lane - x_base.
    mean: f64,
    /// Σ w (e^(D - mean) - 1 - (D - mean))
    excess: f64,
    max: f32,
    top: u32,
    target_logit: f32,
}

impl Divergence {
    pub fn new(target: u32, lanes: usize) -> Self {
        let lane = RunningLane {
            mean: 0.0,
            excess: 0.0,
            max: f32::NEG_INFINITY,
            top: 0,
            target_logit: f32::NAN,
        };
        Divergence {
            target,
            max: f32::NEG_INFINITY,
            top: 0,
            second: f32::NEG_INFINITY,
            weight: 0.0,
            target_logit: f32::NAN,
            lanes: vec![lane; lanes],
        }
    }

    /// What the op must know of earlier tiles to sum up the next one.
    pub fn known(&self) -> impl Iterator<Item = f32> + '_ {
        [self.max, self.second].into_iter().chain(self.lanes.iter().map(|lane| lane.max))
    }

    /// Merges the sums over a tile, (lanes, [`NUMBERS`]).
    pub fn add(&mut self, sums: &[f64]) {
        let (base, lanes) = sums.split_at(NUMBERS);
        let base = BaselineSums::read(base);
        let before = self.add_base(&base);
        for (lane, sums) in self.lanes.iter_mut().zip(lanes.chunks_exact(NUMBERS)) {
            let tile = LaneSums::read(sums);
            lane.excess *= before.scale;
            lane.merge(before.weight, &tile);
            if tile.max > lane.max {
                (lane.max, lane.top) = (tile.max, tile.top);
            }
            if !base.target_logit.is_nan() {
                lane.target_logit = tile.target_logit;
            }
        }
        self.weight = before.weight + base.weight;
    }

    /// Takes over what a tile says of the baseline. Gives the weight of all earlier tiles on the new scale.
    fn add_base(&mut self, tile: &BaselineSums) -> Before {
        let old = self.max;
        if tile.max > self.max {
            self.second = if tile.second > old { tile.second } else { old };
            (self.max, self.top) = (tile.max, tile.top);
        } else if tile.max > self.second {
            self.second = tile.max;
        }
        if !tile.target_logit.is_nan() {
            self.target_logit = tile.target_logit;
        }
        let scale = if self.weight > 0.0 { f64::from(old - self.max).exp() } else { 0.0 };
        Before { scale, weight: self.weight * scale }
    }

    /// The position's numbers, one entry for each lane. They are not finite if any logit was not.
    pub fn finish(&self) -> impl Iterator<Item = Position> + '_ {
        let log_sum = f64::from(self.max) + self.weight.ln();
        let logp_base = f64::from(self.target_logit) - log_sum;
        let probability = |x: f32| (f64::from(x) - log_sum).exp();
        let margin = probability(self.max) - probability(self.second);
        self.lanes.iter().map(move |lane| {
            let kld = (lane.excess / self.weight).ln_1p();
            let difference = f64::from(lane.target_logit) - f64::from(self.target_logit);
            Position {
                target: self.target,
                kld: kld as f32,
                logp_base: logp_base as f32,
                logp: (logp_base + (difference - lane.mean - kld)) as f32,
                top_base: self.top,
                top: lane.top,
                margin: margin as f32,
            }
        })
    }
}

/// The tiles before the one that is merged.
struct Before {
    /// The factor that takes their sums to the new scale.
    scale: f64,
    /// Their weight on the new scale.
    weight: f64,
}

impl RunningLane {
    /// Merges a tile into the sums over earlier tiles, which have the weight `weight`.
    fn merge(&mut self, weight: f64, tile: &LaneSums) {
        if tile.weight == 0.0 {
            return;
        }
        let total = weight + tile.weight;
        let mean = self.mean + (tile.mean - self.mean) * (tile.weight / total);
        let (a, b) = (self.mean - mean, tile.mean - mean);
        self.excess = if weight > 0.0 { self.excess * a.exp() + weight * excess(a) } else { 0.0 }
            + tile.excess * b.exp()
            + tile.weight * excess(b);
        self.mean = mean;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::divergence::TileSums;
    use crate::compute::elements::read;
    use crate::compute::finite::FiniteFlag;
    use crate::compute::run;
    use crate::compute::textbook::place;
    use candle_core::Tensor;

    /// A reproducible sequence in [0, 1).
    fn noise(seed: u64) -> impl FnMut() -> f64 {
        let mut state = seed;
        move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / (1u64 << 31) as f64
        }
    }

    /// The KLD and the lane's log-probability of `target`, by the definitions and in f64.
    fn direct(base: &[f32], lane: &[f32], target: usize) -> (f64, f64) {
        let log_sum = |x: &[f32]| {
            let max = x.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(f64::from(v)));
            max + x.iter().map(|&v| (f64::from(v) - max).exp()).sum::<f64>().ln()
        };
        let (lb, ll) = (log_sum(base), log_sum(lane));
        let kld = base
            .iter()
            .zip(lane)
            .map(|(&b, &l)| {
                let (b, l) = (f64::from(b) - lb, f64::from(l) - ll);
                b.exp() * (b - l)
            })
            .sum();
        (kld, f64::from(lane[target]) - ll)
    }

    fn streamed(base: &[f32], lane: &[f32], target: usize, tile: usize) -> Position {
        let mut divergence = Divergence::new(target as u32, 1);
        let finite = FiniteFlag::default();
        let targets = Tensor::new(&[target as u32], &place()).unwrap();
        for (i, (b, l)) in base.chunks(tile).zip(lane.chunks(tile)).enumerate() {
            let start = (i * tile) as u32;
            let op = TileSums { lanes: 2, start, targets: &targets, finite: &finite };
            let logits = Tensor::from_vec([b, l].concat(), (2, b.len()), &place()).unwrap();
            let known = Tensor::from_iter(divergence.known(), &place()).unwrap();
            let sums = run(&op, [&logits, &known.unsqueeze(0).unwrap()]).unwrap();
            read(&sums, |sums: &[f64]| divergence.add(sums)).unwrap();
        }
        assert_eq!(finite.by_lane(2).unwrap()[0], base.iter().all(|x| x.is_finite()));
        let position = divergence.finish().next().unwrap();
        position
    }

    #[test]
    fn agrees_with_the_definition_at_every_size_and_tiling() {
        let mut random = noise(7);
        let base: Vec<f32> = (0..5003).map(|_| (random() * 24.0 - 8.0) as f32).collect();
        for scale in [1e-3, 1e-2, 0.1, 1.0, 10.0, 80.0] {
            let lane: Vec<f32> =
                base.iter().map(|b| b + (3.0 + scale * (random() - 0.5)) as f32).collect();
            let (kld, logp) = direct(&base, &lane, 4711);
            for tile in [5003, 1000, 17] {
                let got = streamed(&base, &lane, 4711, tile);
                let error = (f64::from(got.kld) - kld).abs();
                assert!(error < 2e-5 * kld + 2e-11, "{scale} {tile}: {} != {kld}", got.kld);
                assert!((f64::from(got.logp) - logp).abs() < 1e-4, "{} != {logp}", got.logp);
            }
        }
    }

    #[test]
    fn identity_is_exactly_zero() {
        let mut random = noise(3);
        let base: Vec<f32> = (0..1000).map(|_| (random() * 30.0) as f32).collect();
        let got = streamed(&base, &base, 5, 64);
        assert_eq!((got.kld, got.logp, got.top), (0.0, got.logp_base, got.top_base));
    }

    #[test]
    fn far_off_lanes_stay_finite_and_right() {
        let mut base = vec![0.0f32; 300];
        base[7] = 120.0;
        let mut lane = vec![0.0f32; 300];
        lane[290] = 150.0;
        let got = streamed(&base, &lane, 7, 100);
        assert!((got.kld - 150.0).abs() < 1e-3, "{}", got.kld);
        assert_eq!((got.top_base, got.top), (7, 290));
        assert!((got.margin - 1.0).abs() < 1e-6);
    }

    /// Tiles whose probability underflows even in f64 count for nothing, wherever they stand.
    #[test]
    fn negligible_tiles_change_nothing() {
        let mut base = vec![-2000.0f32; 90];
        let mut lane = base.clone();
        for i in 30..60 {
            (base[i], lane[i]) = (i as f32 * 0.1, i as f32 * 0.1 + (i % 3) as f32 * 0.2);
        }
        let (kld, _) = direct(&base[30..60], &lane[30..60], 3);
        let got = streamed(&base, &lane, 33, 30);
        assert!((f64::from(got.kld) - kld).abs() < 1e-6, "{} != {kld}", got.kld);
    }

    #[test]
    fn ties_go_to_the_lowest_id_and_the_margin_is_zero() {
        let mut base = vec![0.0f32; 100];
        (base[20], base[70]) = (5.0, 5.0);
        let got = streamed(&base, &base, 3, 30);
        assert_eq!((got.top_base, got.top, got.margin), (20, 20, 0.0));
    }

    #[test]
    fn a_logit_that_is_not_finite_shows() {
        for bad in [f32::NAN, f32::INFINITY] {
            for place in [0, 50, 99] {
                let base = vec![0.0f32; 100];
                let mut lane = base.clone();
                lane[place] = bad;
                assert!(!streamed(&base, &lane, 3, 30).kld.is_finite(), "lane {place}");
                assert!(!streamed(&lane, &base, 3, 30).kld.is_finite(), "base {place}");
            }
        }
    }
}
