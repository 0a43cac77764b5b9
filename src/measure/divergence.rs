//! The streaming head's arithmetic: KL divergence of lanes from the baseline, the vocabulary in
//! tiles, without cancellation.
//!
//! With D = x_lane - x_base per logit and p the baseline's probabilities,
//! KLD = log Σ p e^D - Σ p D. Let μ = Σ p D; then KLD = log(1 + Σ p (e^(D-μ) - 1 - (D-μ))), a sum of
//! terms that are never negative. Tiles keep (weight, μ, excess) of their own and are merged as
//! Chan's variance is: a shift of μ to the common mean adds only such terms again. The same numbers
//! give the lane's log-probabilities: log Σ e^x_lane = log Σ e^x_base + μ + KLD.

use crate::results::statistics::Position;
use crate::simd::{exp, exp_excess, vectorized};

/// Beyond this exponent a tile is summed in f64, whose exponent does not overflow.
const WIDE: f32 = 60.0;

/// Below this share of the largest weight a tile's f32 weights may be denormal: f64, too.
const FAINT: f64 = 1e-30;

/// The baseline and its lanes at one position.
pub(super) struct Divergence {
    target: u32,
    /// Largest logit of the baseline so far, which weights are relative to.
    max: f32,
    top: u32,
    second: f32,
    /// Σ e^(x_base - max)
    weight: f64,
    target_logit: f32,
    lanes: Vec<Lane>,
}

#[derive(Clone)]
struct Lane {
    /// Weighted mean of D.
    mean: f64,
    /// Σ w (e^(D - mean) - 1 - (D - mean))
    excess: f64,
    max: f32,
    top: u32,
    target_logit: f32,
}

impl Divergence {
    pub fn new(target: u32, lanes: usize) -> Self {
        let lane =
            Lane { mean: 0.0, excess: 0.0, max: f32::NEG_INFINITY, top: 0, target_logit: f32::NAN };
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

    /// Takes the tile's maximum into account; gives what stood before it, on the new scale.
    #[inline(always)]
    fn add_base(&mut self, start: u32, base: &[f32]) -> Before {
        let old = self.max;
        let tile_max = max(base);
        if tile_max > self.second {
            for (x, id) in base.iter().zip(start..) {
                if *x > self.max {
                    (self.second, self.max, self.top) = (self.max, *x, id);
                } else if *x > self.second {
                    self.second = *x;
                }
            }
        }
        if let Some(&x) = base.get(self.target.wrapping_sub(start) as usize) {
            self.target_logit = x;
        }
        let scale = if self.weight > 0.0 { f64::from(old - self.max).exp() } else { 0.0 };
        Before { scale, weight: self.weight * scale }
    }

    /// The position's numbers, one entry a lane. Not finite if any logit was not.
    pub fn finish(&self) -> impl Iterator<Item = Position> + '_ {
        let log_sum = f64::from(self.max) + self.weight.ln();
        let logp_base = f64::from(self.target_logit) - log_sum;
        let probability = |x: f32| (f64::from(x) - log_sum).exp();
        let margin = probability(self.max) - probability(self.second);
        self.lanes.iter().map(move |lane| {
            let kld = (lane.excess / self.weight).ln_1p();
            let change = f64::from(lane.target_logit) - f64::from(self.target_logit);
            Position {
                target: self.target,
                kld: kld as f32,
                logp_base: logp_base as f32,
                logp: (logp_base + (change - lane.mean - kld)) as f32,
                top_base: self.top,
                top: lane.top,
                margin: margin as f32,
            }
        })
    }
}

// Adds the logits of the vocabulary entries `start..`, of the baseline and of each lane. `weights` is
// scratch.
vectorized!(pub(super) fn add['a](
    state: &'a mut Divergence,
    start: u32,
    base: &'a [f32],
    lanes: &'a mut dyn Iterator<Item = &'a [f32]>,
    weights: &'a mut Vec<f32>
) {
    let before = state.add_base(start, base);
    let max = state.max;
    weights.resize(base.len(), 0.0);
    for (w, x) in weights.iter_mut().zip(base) {
        *w = exp(x - max);
    }
    let weight = sum(weights);
    let target = state.target.wrapping_sub(start) as usize;
    for (lane, x) in state.lanes.iter_mut().zip(lanes) {
        let tile = Tile::of(base, x, weights, weight, max);
        lane.excess *= before.scale;
        lane.merge(before.weight, &tile);
        take_max(start, x, &mut lane.max, &mut lane.top);
        if let Some(&x) = x.get(target) {
            lane.target_logit = x;
        }
    }
    state.weight = before.weight + weight;
});

struct Before {
    /// What old sums are to be multiplied by.
    scale: f64,
    /// The old weight, scaled.
    weight: f64,
}

/// A tile's part of a lane.
struct Tile {
    weight: f64,
    mean: f64,
    excess: f64,
}

impl Tile {
    #[inline(always)]
    fn of(base: &[f32], lane: &[f32], weights: &[f32], weight: f64, max: f32) -> Self {
        let (weighted, largest) = weighted_difference(base, lane, weights);
        let mean = weighted / weight;
        // written so that NaN takes the exact path as well, which hands it on
        if !(f64::from(largest) - mean < f64::from(WIDE) && weight > FAINT) {
            return Tile::wide(base, lane, max);
        }
        let shift = mean as f32;
        let mut sums = [0.0f32; 16];
        let term = |b: f32, l: f32, w: f32| w * exp_excess(l - b - shift);
        let (bs, b_rest) = base.as_chunks::<16>();
        let (ls, l_rest) = lane.as_chunks::<16>();
        let (ws, w_rest) = weights.as_chunks::<16>();
        for ((b, l), w) in bs.iter().zip(ls).zip(ws) {
            for i in 0..16 {
                sums[i] += term(b[i], l[i], w[i]);
            }
        }
        for ((b, l), w) in b_rest.iter().zip(l_rest).zip(w_rest) {
            sums[0] += term(*b, *l, *w);
        }
        Tile { weight, mean, excess: sums.iter().map(|&s| f64::from(s)).sum() }
    }

    /// The same in f64 throughout: slow, for lanes that are far off.
    #[cold]
    fn wide(base: &[f32], lane: &[f32], max: f32) -> Self {
        let terms = || {
            base.iter().zip(lane).map(|(&b, &l)| {
                ((f64::from(b) - f64::from(max)).exp(), f64::from(l) - f64::from(b))
            })
        };
        let weight: f64 = terms().map(|(w, _)| w).sum();
        if weight == 0.0 && base.iter().chain(lane).all(|x| x.is_finite()) {
            return Tile { weight, mean: 0.0, excess: 0.0 };
        }
        let mean = terms().map(|(w, d)| w * d).sum::<f64>() / weight;
        let excess = terms().map(|(w, d)| w * excess(d - mean)).sum();
        Tile { weight, mean, excess }
    }
}

impl Lane {
    /// Merges a tile into what `weight` stood for.
    #[inline(always)]
    fn merge(&mut self, weight: f64, tile: &Tile) {
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

/// e^x - 1 - x
fn excess(x: f64) -> f64 {
    x.exp_m1() - x
}

#[inline(always)]
fn sum(x: &[f32]) -> f64 {
    let mut sums = [0.0f32; 16];
    let (blocks, rest) = x.as_chunks::<16>();
    for block in blocks {
        for (sum, v) in sums.iter_mut().zip(block) {
            *sum += v;
        }
    }
    sums.iter().chain(rest).map(|&s| f64::from(s)).sum()
}

/// Σ w (l - b), and the largest l - b.
#[inline(always)]
fn weighted_difference(base: &[f32], lane: &[f32], weights: &[f32]) -> (f64, f32) {
    let mut sums = [0.0f32; 16];
    let mut largest = [f32::NEG_INFINITY; 16];
    let (bs, b_rest) = base.as_chunks::<16>();
    let (ls, l_rest) = lane.as_chunks::<16>();
    let (ws, w_rest) = weights.as_chunks::<16>();
    for ((b, l), w) in bs.iter().zip(ls).zip(ws) {
        for i in 0..16 {
            let d = l[i] - b[i];
            sums[i] = w[i].mul_add(d, sums[i]);
            largest[i] = if d > largest[i] { d } else { largest[i] };
        }
    }
    for ((b, l), w) in b_rest.iter().zip(l_rest).zip(w_rest) {
        let d = l - b;
        sums[0] += w * d;
        largest[0] = largest[0].max(d);
    }
    (sums.iter().map(|&s| f64::from(s)).sum(), max(&largest))
}

#[inline(always)]
fn max(x: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; 16];
    let (blocks, rest) = x.as_chunks::<16>();
    for block in blocks {
        for (m, v) in largest.iter_mut().zip(block) {
            *m = if v > m { *v } else { *m };
        }
    }
    largest.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
}

/// The lowest id of the largest logit.
#[inline(always)]
fn take_max(start: u32, x: &[f32], best: &mut f32, top: &mut u32) {
    let largest = max(x);
    if largest > *best {
        *best = largest;
        *top = start + x.iter().position(|v| *v == largest).unwrap_or(0) as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// KLD and the lane's log-probability of `target`, from the definitions in f64.
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
        let mut scratch = Vec::new();
        for (i, (b, l)) in base.chunks(tile).zip(lane.chunks(tile)).enumerate() {
            let lanes = &mut std::iter::once(l);
            add(&mut divergence, (i * tile) as u32, b, lanes, &mut scratch);
        }
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

    /// Tiles whose probability underflows even in f64 are worth nothing, wherever they stand.
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
