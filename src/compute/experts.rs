//! The ops of a mixture of experts: which experts work for a row, and the weighted sum of what they give.

use super::elements::elements;
use super::finite::{all_finite, FiniteFlag};
use super::gate::sigmoid;
use super::op::{InPlaceOp, Input, Op, ROWS};
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;

/// Chooses the experts of each row by the router's logits: (rows, E) → (rows, 2·used). A row of the result holds the
/// indices of the experts, the best one first, and then their weights.
///
/// Experts with the largest scores are chosen. Among experts with equal scores the one with the lowest index is chosen.
/// If a logit is not finite, the weights of its row are NaN, so that no result of the row is finite.
pub(crate) struct ExpertChoice<'a> {
    pub used: usize,
    pub scoring: Scoring<'a>,
    /// Whether the weights of the chosen experts are divided by their sum.
    pub normalised: bool,
    /// A factor for each expert's weight.
    pub scales: Option<&'a Tensor>,
    /// Is broken by logits that are not finite.
    pub finite: &'a FiniteFlag,
}

/// How logits become scores and weights.
#[derive(Clone, Copy)]
pub(crate) enum Scoring<'a> {
    /// The scores are the logits, and the weights are their softmax.
    Softmax,
    /// The weights are σ of the logits. The scores are the weights, to which a correction of each expert is added (E).
    Sigmoid { correction: &'a Tensor },
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
        let correction = match self.scoring {
            Scoring::Softmax => None,
            Scoring::Sigmoid { correction } => Some(elements::<f32>(correction)?),
        };
        let correction: Option<&[f32]> = correction.as_deref();
        out.par_chunks_mut(ROWS * 2 * self.used).zip(x.par_chunks(ROWS * count)).for_each(
            |(out, x)| {
                self.finite.look_at(x);
                let rows = out.chunks_exact_mut(2 * self.used).zip(x.chunks_exact(count));
                for (out, logits) in rows {
                    let is_finite = all_finite(logits);
                    let (experts, weights) = out.split_at_mut(self.used);
                    let chosen = match correction {
                        None => by_softmax(self.used, self.normalised, logits),
                        Some(correction) => {
                            by_sigmoid(self.used, self.normalised, logits, correction)
                        }
                    };
                    for ((to, weight), (expert, w)) in experts.iter_mut().zip(weights).zip(chosen) {
                        *to = expert as f32;
                        let scaled = w * scales.map_or(1.0, |scales| scales[expert]);
                        *weight = if is_finite { scaled } else { f32::NAN };
                    }
                }
            },
        );
        Ok(())
    }
}

/// The experts of one row in the order of their scores, the best one first.
fn ordered(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order
}

/// The experts of one row and their weights, which σ gives.
fn by_sigmoid(
    used: usize,
    normalised: bool,
    logits: &[f32],
    correction: &[f32],
) -> Vec<(usize, f32)> {
    let weights: Vec<f32> = logits.iter().map(|&x| sigmoid(x)).collect();
    let scores: Vec<f32> = weights.iter().zip(correction).map(|(w, c)| w + c).collect();
    let order = ordered(&scores);
    let best = &order[..used];
    let sum: f32 = if normalised { best.iter().map(|&expert| weights[expert]).sum() } else { 1.0 };
    best.iter().map(|&expert| (expert, weights[expert] / sum)).collect()
}

/// The experts of one row and their weights, which a softmax gives over all experts or over the chosen ones.
fn by_softmax(used: usize, normalised: bool, logits: &[f32]) -> Vec<(usize, f32)> {
    let order = ordered(logits);
    let max = logits[order[0]];
    let weight = |expert: usize| (logits[expert] - max).exp();
    let best = &order[..used];
    let summed = if normalised { best } else { &order };
    let sum: f32 = summed.iter().map(|&expert| weight(expert)).sum();
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
            let scoring = Scoring::Softmax;
            let op = ExpertChoice { used, scoring, normalised, scales, finite: &finite };
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
        let good = [3.0, 1.0];
        let correction = vector(&[0.0, 0.0]);
        for scoring in [Scoring::Softmax, Scoring::Sigmoid { correction: &correction }] {
            for bad in [[0.0, f32::NAN], [0.0, f32::NEG_INFINITY], [f32::INFINITY, 0.0]] {
                let finite = FiniteFlag::default();
                let op = ExpertChoice {
                    used: 1,
                    scoring,
                    normalised: true,
                    scales: None,
                    finite: &finite,
                };
                let choice = flat(&run(&op, [&rows(&[bad, good].concat(), 2)]).unwrap());
                assert!(!finite.is_finite().unwrap());
                assert!(choice[1].is_nan() && choice[2..] == [0.0, 1.0], "{bad:?}: {choice:?}");
            }
        }
    }

    #[test]
    fn a_correction_moves_the_choice_and_not_the_weights() {
        // σ is 1/2, 2/3, 1/3 and 4/5
        let logits = [1.0f32, 2.0, 0.5, 4.0].map(f32::ln);
        let correction = vector(&[0.0, -0.5, 0.4, 0.1]);
        let finite = FiniteFlag::default();
        let choose = |used, normalised, scales: Option<&Tensor>| {
            let scoring = Scoring::Sigmoid { correction: &correction };
            let op = ExpertChoice { used, scoring, normalised, scales, finite: &finite };
            flat(&run(&op, [&rows(&logits, 4)]).unwrap())
        };
        let near = |got: &[f32], want: &[f32]| {
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?} {want:?}");
        };
        near(&choose(2, false, None), &[3.0, 2.0, 0.8, 1.0 / 3.0]);
        near(&choose(2, true, None), &[3.0, 2.0, 12.0 / 17.0, 5.0 / 17.0]);
        let scales = vector(&[2.5; 4]);
        near(&choose(3, false, Some(&scales)), &[3.0, 2.0, 0.0, 2.0, 2.5 / 3.0, 1.25]);
        assert!(finite.is_finite().unwrap());
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
