//! The op of the RMS norm, which works on the last axis.

use super::elements::{elements, Elements};
use super::op::{Input, Op, ROWS};
use super::simd::vectorized;
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;

/// x / √(mean x² + ε) ⊙ w, where the rows of x are as wide as w.
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    /// w
    pub weight: Tensor,
    pub eps: f32,
}

impl RmsNorm {
    pub(super) fn weights(&self) -> Result<Elements<'_>> {
        elements(&self.weight)
    }
}

/// The norm of single rows on the CPU. The loops of other ops call it, too.
#[derive(Clone, Copy)]
pub(super) struct NormLoop<'a> {
    pub weight: &'a [f32],
    pub eps: f32,
}

impl NormLoop<'_> {
    #[inline(always)]
    pub fn scale(&self, x: &[f32]) -> f32 {
        let mean = sum_of_squares(x) / x.len() as f32;
        // finite numbers whose squares are too large must not become a row of zeros without a word
        if mean < f32::INFINITY {
            1.0 / (mean + self.eps).sqrt()
        } else {
            f32::NAN
        }
    }

    #[inline(always)]
    pub fn row(&self, x: &[f32], out: &mut [f32]) {
        let scale = self.scale(x);
        for ((out, x), w) in out.iter_mut().zip(x).zip(self.weight) {
            *out = x * scale * w;
        }
    }
}

#[inline(always)]
pub(super) fn sum_of_squares(x: &[f32]) -> f32 {
    let (blocks, rest) = x.as_chunks::<32>();
    let mut sums = [0.0f32; 32];
    for block in blocks {
        for (sum, v) in sums.iter_mut().zip(block) {
            *sum = v.mul_add(*v, *sum);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|v| v * v).sum::<f32>()
}

impl Op<1> for RmsNorm {
    const NAME: &'static str = "rms-norm";

    fn shape(&self, [x]: [&Shape; 1]) -> Result<Shape> {
        let (width, weights) = (x.dims().last().copied(), self.weight.elem_count());
        if weights == 0 || width != Some(weights) {
            candle_core::bail!("a norm of {weights} weights does not fit {x:?}");
        }
        Ok(x.clone())
    }

    fn cpu(&self, [Input { x, .. }]: [Input; 1], out: &mut [f32]) -> Result<()> {
        let weights = self.weights()?;
        let norm = NormLoop { weight: &weights, eps: self.eps };
        let task = ROWS * norm.weight.len();
        let tasks = out.par_chunks_mut(task).zip(x.par_chunks(task));
        tasks.for_each(|(out, x)| norm_rows(norm, out, x));
        Ok(())
    }
}

vectorized!(fn norm_rows['a](norm: NormLoop<'a>, out: &'a mut [f32], x: &'a [f32]) {
    let width = norm.weight.len();
    for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        norm.row(x, out);
    }
});

#[cfg(test)]
mod tests {
    use crate::compute::run;
    use crate::compute::textbook::{self, assert_near, flat, random, rows, wide, MANY};

    #[test]
    fn rms_norm_is_the_textbooks() {
        for width in [1, 31, 32, 64, 100] {
            let (norm, x) = (textbook::norm(width), random(MANY * width));
            let want: Vec<f64> =
                wide(&x).chunks(width).flat_map(|row| textbook::normed(&norm, row)).collect();
            assert_near(&run(&norm, [&rows(&x, width)]).unwrap(), &want);
        }
    }

    #[test]
    fn a_row_whose_squares_overflow_is_not_a_row_of_zeros() {
        let x = [[1e30f32; 32], [2.0; 32]].concat();
        let y = flat(&run(&textbook::norm(32), [&rows(&x, 32)]).unwrap());
        assert!(y[..32].iter().all(|y| y.is_nan()) && y[32..].iter().all(|y| y.is_finite()));
    }
}
