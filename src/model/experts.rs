//! Mixtures of experts: a router chooses some gated MLPs for each token and weighs what they give.

use super::spec::{self, Activation, Experts};
use crate::compute::bias::Bias;
use crate::compute::experts::{ExpertChoice, Scoring, WeightedScatter};
use crate::compute::finite::FiniteFlag;
use crate::compute::gate::{GatedActivation, Sigmoid};
use crate::compute::norm::RmsNorm;
use crate::compute::pairs::Pairs;
use crate::compute::product::{GatedMlp, Matrix, MatrixStack};
use crate::compute::{change, run};
use candle_core::{Result, Tensor};
use tracing::trace_span;

/// Weights of a mixture.
pub(crate) struct Mixture {
    /// (E, H)
    pub router: Matrix,
    /// (E)
    pub router_bias: Option<Bias>,
    /// What is added to the experts' weights when they are chosen (E).
    pub correction: Option<Tensor>,
    /// The norm of the router's input (Gemma 4).
    pub router_norm: Option<RmsNorm>,
    /// (E, 2I, H): gate and up rows, one after the other.
    pub gate_up: MatrixStack,
    /// (E, H, I)
    pub down: MatrixStack,
    /// The biases of gate and up, (E, 2I), and those of down, (E, H).
    pub biases: Option<[Tensor; 2]>,
    /// A factor for each expert's weight, (E).
    pub scales: Option<Tensor>,
    pub shared: Option<SharedExpert>,
}

/// The expert that every token passes.
pub(crate) struct SharedExpert {
    /// (2I, H)
    pub gate_up: Matrix,
    /// (H, I)
    pub down: Matrix,
    /// (1, H). The expert's output is multiplied by σ of the product with it, if it is there.
    pub weight: Option<Matrix>,
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
        let pairs = self.pairs(spec, routed, lanes)?;
        let biased = |y: Tensor, part: usize| match &self.biases {
            None => Ok(y),
            Some(biases) => pairs.biased(&y, &biases[part]),
        };
        let both = biased(self.gate_up.product_of_rows(x, &pairs)?, 0)?;
        let inner = trace_span!("gates").in_scope(|| run(&GatedActivation(activation), [&both]))?;
        drop(both);
        let out = pairs.weighted_sum(&biased(self.down.product_of_pairs(&inner, &pairs)?, 1)?)?;
        let Some(shared) = &self.shared else { return Ok(out) };
        let y = shared.run(x, activation, lanes)?;
        let Some(weight) = &shared.weight else { return out + y };
        let weights = run(&Sigmoid, [&weight.product(x, lanes)?])?;
        change(&WeightedScatter { rows: None, weights: &weights, y: &y }, &out)?;
        Ok(out)
    }

    /// The experts of each row.
    fn pairs(&self, spec: &Experts, x: &Tensor, lanes: usize) -> Result<Pairs> {
        let logits = match &self.router_norm {
            Some(norm) => self.router.product(&run(norm, [x])?, lanes)?,
            None => self.router.product(x, lanes)?,
        };
        let logits = match &self.router_bias {
            None => logits,
            Some(bias) => run(bias, [&logits])?,
        };
        let scoring = match (spec.scoring, &self.correction) {
            (spec::Scoring::Sigmoid, Some(correction)) => Scoring::Sigmoid { correction },
            _ => Scoring::Softmax,
        };
        let finite = FiniteFlag::default();
        let choice = ExpertChoice {
            used: spec.used,
            scoring,
            normalised: spec.normalised,
            scales: self.scales.as_ref(),
            finite: &finite,
        };
        let choice = run(&choice, [&logits])?;
        // among several lanes, the broken one shows in its residual stream, because its weights are NaN
        if lanes == 1 && !finite.is_finite()? {
            candle_core::bail!("the router's logits are not finite");
        }
        self.gate_up.pairs(choice, spec.count, lanes)
    }
}

impl SharedExpert {
    /// down(act(gate(x)) ⊙ up(x))
    fn run(&self, x: &Tensor, activation: Activation, lanes: usize) -> Result<Tensor> {
        let (gate_up, down) = (&self.gate_up, &self.down);
        GatedMlp { gate_up, bias: None, activation, down }.run(x, None, lanes)
    }
}
