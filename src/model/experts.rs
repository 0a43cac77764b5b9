//! Mixtures of experts: a router chooses some gated MLPs for each token and weighs what they give.

use super::spec::{Activation, Experts};
use crate::compute::elements::read;
use crate::compute::experts::{ExpertChoice, WeightedScatter};
use crate::compute::finite::FiniteFlag;
use crate::compute::gate::{GatedActivation, Sigmoid};
use crate::compute::norm::RmsNorm;
use crate::compute::product::{Matrix, MatrixStack};
use crate::compute::{change, run};
use candle_core::{Result, Tensor};

/// Weights of a mixture.
pub(crate) struct Mixture {
    /// (E, H)
    pub router: Matrix,
    /// The norm of the router's input (Gemma 4).
    pub router_norm: Option<RmsNorm>,
    /// (E, 2I, H): gate and up rows, one after the other.
    pub gate_up: MatrixStack,
    /// (E, H, I)
    pub down: MatrixStack,
    /// A factor for each expert's weight (Gemma 4).
    pub scales: Option<Tensor>,
    pub shared: Option<SharedExpert>,
}

/// The expert that every token passes.
pub(crate) struct SharedExpert {
    /// (2I, H)
    pub gate_up: Matrix,
    /// (H, I)
    pub down: Matrix,
    /// (1, H). The expert's output is multiplied by σ of the product with it.
    pub weight: Matrix,
}

/// The rows that an expert computes, and their weights.
#[derive(Clone, Default)]
struct Share {
    rows: Vec<u32>,
    weights: Vec<f32>,
}

impl Mixture {
    /// (rows, H) → (rows, H). `routed` is what the router reads, `x` what the experts read.
    pub fn run(
        &self,
        spec: &Experts,
        activation: Activation,
        routed: &Tensor,
        x: &Tensor,
        lanes: usize,
    ) -> Result<Tensor> {
        let out = x.zeros_like()?;
        for (expert, share) in self.shares(spec, routed, lanes)?.iter().enumerate() {
            if share.rows.is_empty() {
                continue;
            }
            let rows = Tensor::new(share.rows.as_slice(), x.device())?;
            let weights = Tensor::new(share.weights.as_slice(), x.device())?;
            let (gate_up, down) = (self.gate_up.get(expert)?, self.down.get(expert)?);
            let y = gated_mlp(&x.index_select(&rows, 0)?, &gate_up, &down, activation, None)?;
            change(&WeightedScatter { rows: Some(&rows), weights: &weights, y: &y }, &out)?;
        }
        if let Some(shared) = &self.shared {
            let weights = run(&Sigmoid, [&shared.weight.product(x, lanes)?])?;
            let y = gated_mlp(x, &shared.gate_up, &shared.down, activation, Some(lanes))?;
            change(&WeightedScatter { rows: None, weights: &weights, y: &y }, &out)?;
        }
        Ok(out)
    }

    /// The rows of each expert. The router's choice is read on the host, because it decides which products are
    /// computed.
    fn shares(&self, spec: &Experts, x: &Tensor, lanes: usize) -> Result<Vec<Share>> {
        let logits = match &self.router_norm {
            Some(norm) => self.router.product(&run(norm, [x])?, lanes)?,
            None => self.router.product(x, lanes)?,
        };
        let finite = FiniteFlag::default();
        let choice = ExpertChoice {
            used: spec.used,
            normalised: spec.normalised,
            scales: self.scales.as_ref(),
            finite: &finite,
        };
        let choice = run(&choice, [&logits])?;
        // among several lanes, the broken one shows in its residual stream
        if lanes == 1 && !finite.is_finite()? {
            candle_core::bail!("the router's logits are not finite");
        }
        let mut shares = vec![Share::default(); spec.count];
        read(&choice, |choice: &[f32]| {
            for (row, choice) in choice.chunks_exact(2 * spec.used).enumerate() {
                let (experts, weights) = choice.split_at(spec.used);
                for (expert, weight) in experts.iter().zip(weights) {
                    let share = &mut shares[*expert as usize];
                    share.rows.push(row as u32);
                    share.weights.push(*weight);
                }
            }
        })?;
        Ok(shares)
    }
}

/// down(act(gate(x)) ⊙ up(x)) for gate and up rows in one matrix. Without `lanes`, x are rows that were gathered from
/// any lanes.
fn gated_mlp(
    x: &Tensor,
    gate_up: &Matrix,
    down: &Matrix,
    activation: Activation,
    lanes: Option<usize>,
) -> Result<Tensor> {
    let product = |matrix: &Matrix, x: &Tensor| match lanes {
        Some(lanes) => matrix.product(x, lanes),
        None => matrix.product_of_gathered(x),
    };
    let both = product(gate_up, x)?;
    product(down, &run(&GatedActivation(activation), [&both])?)
}
