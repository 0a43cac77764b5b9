//! The op at the model's head that sums up a tile of the vocabulary: how far each lane's logits are from the
//! baseline's.
//!
//! Let D = x_lane - x_base for each logit, let p be the baseline's probabilities, and let μ = Σ p D. By
//! definition KLD = log Σ p e^D - μ, a difference of large numbers. The same is
//! KLD = log(1 + Σ p (e^(D-μ) - 1 - (D-μ))), a sum of terms that are never negative, so that nothing cancels.
//! A tile gives its weight, its μ and that sum, which is called the excess. Tiles are merged on the host in
//! f64.

use super::elements::elements;
use super::finite::FiniteFlag;
use super::op::{Input, Op};
use super::simd::{exp, exp_excess, vectorized};
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;

/// The largest D - μ that is summed in f32. Above it e^(D-μ) might overflow, so the tile is summed in f64.
const WIDE: f32 = 60.0;

/// The smallest weight of a tile, relative to the largest logit, that is summed in f32. Below it the f32 weights may
/// be denormal, so the tile is summed in f64.
const FAINT: f64 = 1e-30;

/// Sums over a tile of the vocabulary, for some positions.
///
/// The first input holds the tile's logits, (lanes · positions, width); lane 0 is the baseline. The second
/// holds what earlier tiles have shown, (positions, [`KNOWN`] + lanes - 1): the baseline's largest and second
/// largest logit, and then the largest logit of each other lane. Gives (positions, lanes, [`NUMBERS`]) in
/// f64, as [`BaselineSums`] and [`LaneSums`] read them.
pub(crate) struct TileSums<'a> {
    /// How many lanes there are, including the baseline.
    pub lanes: usize,
    /// The vocabulary entry that the tile begins with.
    pub start: u32,
    /// The tokens that the positions are to predict, (positions) as u32.
    pub targets: &'a Tensor,
    /// Is broken by logits of the baseline that are not finite.
    pub finite: &'a FiniteFlag,
}

/// How many numbers the result has for a position and a lane.
pub(crate) const NUMBERS: usize = 6;

/// How many numbers the second input holds of the baseline.
pub(crate) const KNOWN: usize = 2;

/// What a tile says of the baseline.
pub(crate) struct BaselineSums {
    /// The largest logit of the tile. Beside it stand its entry and the second largest logit. If no logit is above
    /// the second largest that is known, these are -∞ and 0.
    pub max: f32,
    pub top: u32,
    pub second: f32,
    /// The logit of the target. It is NaN if the target is not in the tile.
    pub target_logit: f32,
    /// Σ e^(x - max), where max is the largest logit of this tile and all earlier ones.
    pub weight: f64,
}

/// What a tile says of another lane.
pub(crate) struct LaneSums {
    /// Σ e^(x_base - max), in the precision that the other sums are computed in.
    pub weight: f64,
    /// The weighted mean of D.
    pub mean: f64,
    /// Σ w (e^(D - mean) - 1 - (D - mean))
    pub excess: f64,
    /// The largest logit.
    pub max: f32,
    /// The entry of the largest logit. It means nothing if that logit is not above what is known.
    pub top: u32,
    /// The logit of the target. It is NaN if the target is not in the tile.
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
            let tile = BaselineTile { start: self.start, target: *target, known, base: row(0, i) };
            add_up(tile, &mut (1..self.lanes).map(|lane| row(lane, i)), weights, out);
        });
        Ok(())
    }
}

/// What a tile holds of the baseline at one position.
#[derive(Clone, Copy)]
struct BaselineTile<'a> {
    start: u32,
    target: u32,
    known: &'a [f32],
    base: &'a [f32],
}

impl BaselineTile<'_> {
    /// The sums of the baseline, except for the weight.
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

    /// The lowest entry that has the largest logit. It is 0 if that logit is not above what is known.
    #[inline(always)]
    fn top(&self, x: &[f32], largest: f32, known: f32) -> u32 {
        if largest > known {
            self.start + x.iter().position(|v| *v == largest).unwrap_or(0) as u32
        } else {
            0
        }
    }
}

// Writes the numbers of one position. `weights` is a buffer.
vectorized!(fn add_up['a](
    tile: BaselineTile<'a>,
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
        let Moments { weight, mean, excess } = Moments::new(tile.base, x, weights, weight, largest);
        let max = max(x);
        let (top, target_logit) = (tile.top(x, max, *known), tile.target_logit(x));
        LaneSums { weight, mean, excess, max, top, target_logit }.write(out);
    }
});

/// The sums of a lane over a tile.
struct Moments {
    weight: f64,
    mean: f64,
    excess: f64,
}

impl Moments {
    #[inline(always)]
    fn new(base: &[f32], lane: &[f32], weights: &[f32], weight: f64, max: f32) -> Self {
        let (weighted, largest) = weighted_difference(base, lane, weights);
        let mean = weighted / weight;
        // the negation sends NaN this way, too, where it is handed on
        if !(f64::from(largest) - mean < f64::from(WIDE) && weight > FAINT) {
            return Moments::in_f64(base, lane, max);
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

    /// The same in f64 throughout, which is slow. Only lanes that are far from the baseline need it.
    #[cold]
    fn in_f64(base: &[f32], lane: &[f32], max: f32) -> Self {
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

/// Gives Σ w (l - b) and the largest l - b.
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
