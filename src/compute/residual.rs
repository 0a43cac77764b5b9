//! The op that adds the output of a half-layer to the residual stream.

use super::finite::FiniteFlag;
use super::norm::{NormLoop, RmsNorm};
use super::op::{Input, Op, ROWS};
use super::simd::vectorized;
use candle_core::{Result, Shape};
use rayon::prelude::*;

/// x + y. If the model's family normalises what is added, it is x + norm(y). If the family scales the residual stream,
/// the sum is multiplied by `scale`.
pub(crate) struct Residual<'a> {
    pub norm: Option<&'a RmsNorm>,
    pub scale: Option<f32>,
    /// Is broken by results that are not finite.
    pub finite: Option<&'a FiniteFlag>,
    /// How many lanes the rows belong to, for the flag.
    pub lanes: usize,
}

impl Op<2> for Residual<'_> {
    const NAME: &'static str = "residual";

    fn shape(&self, [x, y]: [&Shape; 2]) -> Result<Shape> {
        if x.dims2()? != y.dims2()? {
            candle_core::bail!("{y:?} cannot be added to {x:?}");
        }
        Ok(x.clone())
    }

    fn cpu(&self, [x, y]: [Input; 2], out: &mut [f32]) -> Result<()> {
        let task = ROWS * x.shape.dims2()?.1;
        let weights = self.norm.map(RmsNorm::weights).transpose()?;
        let norm = self.norm.zip(weights.as_deref());
        let norm = norm.map(|(norm, weight)| NormLoop { weight, eps: norm.eps });
        out.par_chunks_mut(task).zip(x.x.par_chunks(task).zip(y.x.par_chunks(task))).for_each(
            |(out, (x, y))| {
                residual_rows(norm, self.scale, out, x, y);
                if let Some(finite) = self.finite {
                    finite.look_at(out);
                }
            },
        );
        Ok(())
    }
}

vectorized!(fn residual_rows['a](
    norm: Option<NormLoop<'a>>,
    scale: Option<f32>,
    out: &'a mut [f32],
    x: &'a [f32],
    y: &'a [f32]
) {
    match norm {
        None => out.copy_from_slice(y),
        Some(norm) => {
            let width = norm.weight.len();
            for (out, y) in out.chunks_exact_mut(width).zip(y.chunks_exact(width)) {
                norm.row(y, out);
            }
        }
    }
    for (out, x) in out.iter_mut().zip(x) {
        *out += x;
    }
    if let Some(scale) = scale {
        for out in out.iter_mut() {
            // adding 0.0 turns -0.0 into 0.0, as candle's `affine` does
            *out = *out * scale + 0.0;
        }
    }
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::run;
    use crate::compute::textbook::{self, assert_near, random, rows, wide, MANY};

    #[test]
    fn a_residual_adds_what_it_was_given_or_its_norm_and_scales_the_sum() {
        let width = 40;
        let both = random(2 * MANY * width);
        let (x, y) = both.split_at(MANY * width);
        let norm = textbook::norm(width);
        for (norm, scale) in [(None, None), (Some(&norm), None), (Some(&norm), Some(0.75f32))] {
            let added = wide(y);
            let added = added.chunks(width).flat_map(|row| match norm {
                None => row.to_vec(),
                Some(norm) => textbook::normed(norm, row),
            });
            let factor = f64::from(scale.unwrap_or(1.0));
            let want: Vec<f64> = wide(x).iter().zip(added).map(|(x, y)| (x + y) * factor).collect();
            let residual = Residual { norm, scale, finite: None, lanes: 1 };
            assert_near(&run(&residual, [&rows(x, width), &rows(y, width)]).unwrap(), &want);
        }
    }

    #[test]
    fn a_sum_that_overflows_is_seen() {
        let width = 8;
        let (mut x, y) = (vec![0.0f32; MANY * width], vec![f32::MAX; MANY * width]);
        for last in [0.0, f32::MAX] {
            x[MANY * width - 1] = last;
            let finite = FiniteFlag::default();
            let residual = Residual { norm: None, scale: None, finite: Some(&finite), lanes: 1 };
            run(&residual, [&rows(&x, width), &rows(&y, width)]).unwrap();
            assert_eq!(finite.is_finite().unwrap(), last == 0.0);
        }
    }
}
