//! A tile of the vocabulary at the head: what the logits of the baseline and of its lanes add up to.
//!
//! With D = x_lane - x_base per logit and p the baseline's probabilities,
//! KLD = log Σ p e^D - Σ p D. Let μ = Σ p D; then KLD = log(1 + Σ p (e^(D-μ) - 1 - (D-μ))), a sum of
//! terms that are never negative, and nothing cancels. A tile gives (weight, μ, excess) of its own logits; tiles
//! are merged on the host, in f64.

use super::elements::elements;
use super::finite::FiniteFlag;
use super::op::{Input, Op};
use super::simd::{exp, exp_excess, vectorized};
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;

/// Beyond this exponent a tile is summed in f64, whose exponent does not overflow.
const WIDE: f32 = 60.0;

/// Below this share of the largest weight a tile's f32 weights may be denormal: f64, too.
const FAINT: f64 = 1e-30;

/// Sums over a tile for some positions. The first input is the tile's logits, (lanes, positions, width) in rows of
/// its width, the baseline's first. The second is what has been found so far, (positions, [`KNOWN`] + lanes - 1):
/// the baseline's largest logit and its second, then each other lane's largest.
///
/// Gives (positions, lanes, [`NUMBERS`]) in f64, as [`BaselineSums`] and [`LaneSums`] read them.
pub(crate) struct TileSums<'a> {
    /// The baseline is one of them.
    pub lanes: usize,
    /// The vocabulary entry that the tile begins with.
    pub start: u32,
    /// (positions): the entries that are to be predicted, as u32.
    pub targets: &'a Tensor,
    /// Looks at the baseline's logits.
    pub finite: &'a FiniteFlag,
}

/// Numbers of a position and lane.
pub(crate) const NUMBERS: usize = 6;

/// Numbers that are known of the baseline.
pub(crate) const KNOWN: usize = 2;

/// The baseline's part of a tile.
pub(crate) struct BaselineSums {
    /// The largest logit, its entry, and the second largest. They are -∞ and 0 where the tile has none above the
    /// second largest that is known.
    pub max: f32,
    pub top: u32,
    pub second: f32,
    /// The target's logit, or NaN where the tile does not hold the target.
    pub target_logit: f32,
    /// Σ e^(x - max), where max is the largest logit up to this tile.
    pub weight: f64,
}

/// Another lane's part of a tile.
pub(crate) struct LaneSums {
    /// Σ e^(x_base - max) as the other sums take it.
    pub weight: f64,
    /// The weighted mean of D.
    pub mean: f64,
    /// Σ w (e^(D - mean) - 1 - (D - mean))
    pub excess: f64,
    /// The largest logit.
    pub max: f32,
    /// Its entry where it is above what is known.
    pub top: u32,
    /// The target's logit, or NaN where the tile does not hold the target.
    pub target_logit: f32,
}

impl BaselineSums {
    fn write(&self, out: &mut [f64]) {
        let Self { max, top, second, target_logit, weight } = *self;
        let logits = [f64::from(max), f64::from(top), f64::from(second), f64::from(target_logit)];
        out[..4].copy_from_slice(&logits);
        out[4] = weight;
    }

    pub fn read(x: &[f64]) -> Self {
        BaselineSums {
            max: x[0] as f32,
            top: x[1] as u32,
            second: x[2] as f32,
            target_logit: x[3] as f32,
            weight: x[4],
        }
    }
}

impl LaneSums {
    fn write(&self, out: &mut [f64]) {
        let Self { weight, mean, excess, max, top, target_logit } = *self;
        out.copy_from_slice(&[weight, mean, excess, max.into(), top.into(), target_logit.into()]);
    }

    pub fn read(x: &[f64]) -> Self {
        LaneSums {
            weight: x[0],
            mean: x[1],
            excess: x[2],
            max: x[3] as f32,
            top: x[4] as u32,
            target_logit: x[5] as f32,
        }
    }
}

impl Op<2, f64> for TileSums<'_> {
    const NAME: &'static str = "tile-sums";

    fn shape(&self, [logits, known]: [&Shape; 2]) -> Result<Shape> {
        let (rows, positions) = (logits.dims2()?.0, self.targets.dim(0)?);
        if rows != self.lanes * positions || known.dims2()? != (positions, KNOWN + self.lanes - 1) {
            candle_core::bail!("{logits:?} are not those of {} lanes at {known:?}", self.lanes);
        }
        Ok(Shape::from((positions, self.lanes, NUMBERS)))
    }

    fn cpu(&self, [logits, known]: [Input; 2], out: &mut [f64]) -> Result<()> {
        let targets = elements::<u32>(self.targets)?;
        let (positions, width) = (targets.len(), logits.shape.dims2()?.1);
        let row = |lane: usize, i: usize| &logits.x[(lane * positions + i) * width..][..width];
        let each = out.par_chunks_mut(self.lanes * NUMBERS).zip(&targets[..]).enumerate();
        each.for_each_init(Vec::new, |weights, (i, (out, target))| {
            let columns = KNOWN + self.lanes - 1;
            let known = &known.x[i * columns..][..columns];
            self.finite.look_at(row(0, i));
            let tile = Place { start: self.start, target: *target, known, base: row(0, i) };
            add_up(tile, &mut (1..self.lanes).map(|lane| row(lane, i)), weights, out);
        });
        Ok(())
    }
}

/// A tile at one position.
#[derive(Clone, Copy)]
struct Place<'a> {
    start: u32,
    target: u32,
    known: &'a [f32],
    base: &'a [f32],
}

impl Place<'_> {
    /// Without the weight.
    #[inline(always)]
    fn baseline(&self) -> BaselineSums {
        let (mut best, mut second, mut top) = (f32::NEG_INFINITY, f32::NEG_INFINITY, 0);
        if max(self.base) > self.known[1] {
            for (x, id) in self.base.iter().zip(self.start..) {
                if *x > best {
                    (second, best, top) = (best, *x, id);
                } else if *x > second {
                    second = *x;
                }
            }
        }
        let target_logit = self.target_logit(self.base);
        BaselineSums { max: best, top, second, target_logit, weight: 0.0 }
    }

    #[inline(always)]
    fn target_logit(&self, x: &[f32]) -> f32 {
        x.get(self.target.wrapping_sub(self.start) as usize).copied().unwrap_or(f32::NAN)
    }

    /// The lowest entry of the largest logit, if that is above what is known.
    #[inline(always)]
    fn top(&self, x: &[f32], largest: f32, known: f32) -> u32 {
        if largest > known {
            self.start + x.iter().position(|v| *v == largest).unwrap_or(0) as u32
        } else {
            0
        }
    }
}

// The numbers of one position. `weights` is scratch.
vectorized!(fn add_up['a](
    tile: Place<'a>,
    lanes: &'a mut dyn Iterator<Item = &'a [f32]>,
    weights: &'a mut Vec<f32>,
    out: &'a mut [f64]
) {
    let mut baseline = tile.baseline();
    let largest = if baseline.max > tile.known[0] { baseline.max } else { tile.known[0] };
    weights.resize(tile.base.len(), 0.0);
    for (w, x) in weights.iter_mut().zip(tile.base) {
        *w = exp(x - largest);
    }
    let weight = sum(weights);
    baseline.weight = weight;
    let (own, out) = out.split_at_mut(NUMBERS);
    baseline.write(own);
    let known = &tile.known[KNOWN..];
    for ((out, known), x) in out.chunks_exact_mut(NUMBERS).zip(known).zip(lanes) {
        let Moments { weight, mean, excess } = Moments::of(tile.base, x, weights, weight, largest);
        let max = max(x);
        let (top, target_logit) = (tile.top(x, max, *known), tile.target_logit(x));
        LaneSums { weight, mean, excess, max, top, target_logit }.write(out);
    }
});

/// Sums over a tile for a lane.
struct Moments {
    weight: f64,
    mean: f64,
    excess: f64,
}

impl Moments {
    #[inline(always)]
    fn of(base: &[f32], lane: &[f32], weights: &[f32], weight: f64, max: f32) -> Self {
        let (weighted, largest) = weighted_difference(base, lane, weights);
        let mean = weighted / weight;
        // written so that NaN takes the exact path as well, which hands it on
        if !(f64::from(largest) - mean < f64::from(WIDE) && weight > FAINT) {
            return Moments::wide(base, lane, max);
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
        Moments { weight, mean, excess: sums.iter().map(|&s| f64::from(s)).sum() }
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
            return Moments { weight, mean: 0.0, excess: 0.0 };
        }
        let mean = terms().map(|(w, d)| w * d).sum::<f64>() / weight;
        let excess = terms().map(|(w, d)| w * excess(d - mean)).sum();
        Moments { weight, mean, excess }
    }
}

/// e^x - 1 - x
pub(crate) fn excess(x: f64) -> f64 {
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
