//! The ops of a mixture of experts: which experts work for a row, and the weighted sum of what they give.

use super::elements::elements;
use super::finite::{all_finite, FiniteFlag};
use super::op::{InPlaceOp, Input, Op, ROWS};
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;

/// Chooses the experts of each row by the router's logits: (rows, E) → (rows, 2·used). A row of the result holds the
/// indices of the experts, the best one first, and then their weights.
///
/// The weights are a softmax over all experts, or over the chosen ones. Among experts with equal logits the one with
/// the lowest index is chosen. If a logit is not finite, the weights of its row are NaN, so that no result of the row is
/// finite.
pub(crate) struct ExpertChoice<'a> {
    pub used: usize,
    /// Whether the softmax is over the chosen experts, so that their weights add up to 1.
    pub normalised: bool,
    /// A factor for each expert's weight.
    pub scales: Option<&'a Tensor>,
    /// Is broken by logits that are not finite.
    pub finite: &'a FiniteFlag,
}

impl Op<1> for ExpertChoice<'_> {
    const NAME: &'static str = "expert-choice";

    fn shape(&self, [logits]: [&Shape; 1]) -> Result<Shape> {
        let (rows, count) = logits.dims2()?;
        if self.used > count {
            candle_core::bail!("{} of {count} experts cannot be chosen", self.used);
        }
        Ok(Shape::from((rows, 2 * self.used)))
    }

    fn cpu(&self, [Input { x, shape }]: [Input; 1], out: &mut [f32]) -> Result<()> {
        let count = shape.dims2()?.1;
        let scales = self.scales.map(elements).transpose()?;
        let scales: Option<&[f32]> = scales.as_deref();
        out.par_chunks_mut(ROWS * 2 * self.used).zip(x.par_chunks(ROWS * count)).for_each(
            |(out, x)| {
                self.finite.look_at(x);
                let rows = out.chunks_exact_mut(2 * self.used).zip(x.chunks_exact(count));
                for (out, logits) in rows {
                    let (experts, weights) = out.split_at_mut(self.used);
                    let chosen = chosen(self.used, self.normalised, logits);
                    for ((to, weight), (expert, w)) in experts.iter_mut().zip(weights).zip(chosen) {
                        *to = expert as f32;
                        *weight = w * scales.map_or(1.0, |scales| scales[expert]);
                    }
                }
            },
        );
        Ok(())
    }
}

/// The experts of one row and their weights.
fn chosen(used: usize, normalised: bool, logits: &[f32]) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let max = logits[order[0]];
    let weight = |expert: usize| (logits[expert] - max).exp();
    let best = &order[..used];
    let summed = if normalised { best } else { &order };
    let sum: f32 = summed.iter().map(|&expert| weight(expert)).sum();
    let sum = if all_finite(logits) { sum } else { f32::NAN };
    best.iter().map(|&expert| (expert, weight(expert) / sum)).collect()
}

/// Adds weight · y to some rows of a tensor. y is what an expert gives for the rows that chose it.
pub(crate) struct WeightedScatter<'a> {
    /// The indices of the rows, (n) as u32. If there are none, all rows are meant.
    pub rows: Option<&'a Tensor>,
    /// (n)
    pub weights: &'a Tensor,
    /// (n, H)
    pub y: &'a Tensor,
}

impl InPlaceOp for WeightedScatter<'_> {
    const NAME: &'static str = "weighted-scatter";

    fn cpu(&self, out: &mut [f32], shape: &Shape) -> Result<()> {
        let width = shape.dims2()?.1;
        let (weights, y) = (elements::<f32>(self.weights)?, elements::<f32>(self.y)?);
        let rows = self.rows.map(elements::<u32>).transpose()?;
        for (i, (weight, y)) in weights.iter().zip(y.chunks_exact(width)).enumerate() {
            let row = rows.as_ref().map_or(i, |rows| rows[i] as usize);
            for (out, y) in out[row * width..][..width].iter_mut().zip(y) {
                *out += weight * y;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::textbook::{flat, rows, vector};
    use crate::compute::{change, run};

    #[test]
    fn the_best_experts_are_chosen_and_weighed() {
        let logits = [1.0f32, 3.0, 3.0, -1.0].map(|x| x * std::f32::consts::LN_2);
        let finite = FiniteFlag::default();
        let choose = |used, normalised, scales: Option<&Tensor>| {
            let op = ExpertChoice { used, normalised, scales, finite: &finite };
            flat(&run(&op, [&rows(&logits, 4)]).unwrap())
        };
        let near = |got: &[f32], want: &[f32]| {
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?} {want:?}");
        };
        near(&choose(2, true, None), &[1.0, 2.0, 0.5, 0.5]);
        near(&choose(1, false, None), &[1.0, 8.0 / 18.5]);
        let scales = vector(&[1.0, 1.0, 4.0, 1.0]);
        near(
            &choose(3, true, Some(&scales)),
            &[1.0, 2.0, 0.0, 8.0 / 18.0, 32.0 / 18.0, 2.0 / 18.0],
        );
        assert!(finite.is_finite().unwrap());
        let op = ExpertChoice { used: 1, normalised: true, scales: None, finite: &finite };
        let good = [3.0, 1.0];
        for bad in [[0.0, f32::NAN], [0.0, f32::NEG_INFINITY], [f32::INFINITY, 0.0]] {
            let finite = FiniteFlag::default();
            let op = ExpertChoice { finite: &finite, ..op };
            let choice = flat(&run(&op, [&rows(&[bad, good].concat(), 2)]).unwrap());
            assert!(!finite.is_finite().unwrap());
            assert!(choice[1].is_nan() && choice[2..] == [0.0, 1.0], "{bad:?}: {choice:?}");
        }
    }

    #[test]
    fn rows_get_what_their_experts_give() {
        let out = rows(&[0.0f32; 6], 2);
        let (weights, y) = (vector(&[0.5, 2.0]), rows(&[1.0, 2.0, 3.0, 4.0], 2));
        let chosen = Tensor::new(&[2u32, 0], weights.device()).unwrap();
        change(&WeightedScatter { rows: Some(&chosen), weights: &weights, y: &y }, &out).unwrap();
        assert_eq!(flat(&out), [6.0, 8.0, 0.0, 0.0, 0.5, 1.0]);
        change(&WeightedScatter { rows: None, weights: &weights, y: &y }, &out).unwrap();
        assert_eq!(flat(&out), [6.5, 9.0, 6.0, 8.0, 0.5, 1.0]);
    }
}
