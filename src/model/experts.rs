//! Mixtures of experts: a router chooses some gated MLPs for each token and weighs what they give.

use super::decoder::product;
use super::elementwise::{Gate, RmsNorm};
use super::ops::{all_finite, read};
use super::spec::{Activation, Experts};
use candle_core::{Device, Result, Tensor};

/// Weights of a mixture.
pub(crate) struct Mixture {
    /// (E, H)
    pub router: Tensor,
    /// What the router reads is normalised so first (Gemma 4).
    pub router_norm: Option<RmsNorm>,
    /// (E, 2I, H): gate and up rows, one after the other.
    pub gate_up: Tensor,
    /// (E, H, I)
    pub down: Tensor,
    /// A factor for each expert's weight (Gemma 4).
    pub scales: Option<Vec<f32>>,
    pub shared: Option<SharedExpert>,
}

/// The expert that works for every token.
pub(crate) struct SharedExpert {
    /// (2I, H)
    pub gate_up: Tensor,
    /// (H, I)
    pub down: Tensor,
    /// (1, H): σ of its product weighs the expert.
    pub weight: Tensor,
}

/// Rows that an expert works on, and their weights.
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
    ) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let mut out = vec![0.0f32; rows * width];
        let mut add = |share: &Share, y: &Tensor| {
            read(y, |y| {
                let each = share.rows.iter().zip(&share.weights).zip(y.chunks_exact(width));
                for ((&row, weight), y) in each {
                    for (out, y) in out[row as usize * width..][..width].iter_mut().zip(y) {
                        *out += weight * y;
                    }
                }
            })
        };
        for (expert, share) in self.shares(spec, routed)?.iter().enumerate() {
            if share.rows.is_empty() {
                continue;
            }
            let rows = Tensor::new(share.rows.as_slice(), &Device::Cpu)?;
            let y = gated_mlp(
                &x.index_select(&rows, 0)?,
                &self.gate_up.get(expert)?,
                &self.down.get(expert)?,
                activation,
            )?;
            add(share, &y)?;
        }
        if let Some(shared) = &self.shared {
            let logits: Vec<f32> = product(x, &shared.weight)?.flatten_all()?.to_vec1()?;
            let weights = logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
            let y = gated_mlp(x, &shared.gate_up, &shared.down, activation)?;
            add(&Share { rows: (0..rows as u32).collect(), weights }, &y)?;
        }
        Tensor::from_vec(out, (rows, width), &Device::Cpu)
    }

    /// The rows of each expert: softmax over all experts, the best few, and their weights divided by
    /// their sum where the family says so.
    fn shares(&self, spec: &Experts, x: &Tensor) -> Result<Vec<Share>> {
        let x = match &self.router_norm {
            Some(norm) => x.apply_op1_no_bwd(norm)?,
            None => x.clone(),
        };
        let logits = product(&x, &self.router)?;
        let mut shares = vec![Share::default(); spec.count];
        if !read(&logits, all_finite)? {
            candle_core::bail!("the router's logits are not finite");
        }
        read(&logits, |logits| {
            for (row, logits) in logits.chunks_exact(spec.count).enumerate() {
                for (expert, weight) in chosen(spec, logits) {
                    let scale = self.scales.as_ref().map_or(1.0, |scales| scales[expert]);
                    shares[expert].rows.push(row as u32);
                    shares[expert].weights.push(weight * scale);
                }
            }
        })?;
        Ok(shares)
    }
}

/// The experts of a row and their weights. Of equal ones the first is chosen.
fn chosen(spec: &Experts, logits: &[f32]) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let max = logits[order[0]];
    let weight = |expert: usize| (logits[expert] - max).exp();
    let best = &order[..spec.used];
    let sum: f32 = match spec.normalised {
        true => best.iter().map(|&expert| weight(expert)).sum(),
        false => order.iter().map(|&expert| weight(expert)).sum(),
    };
    best.iter().map(|&expert| (expert, weight(expert) / sum)).collect()
}

/// down(act(gate(x)) ⊙ up(x)) for gate and up rows in one matrix.
fn gated_mlp(
    x: &Tensor,
    gate_up: &Tensor,
    down: &Tensor,
    activation: Activation,
) -> Result<Tensor> {
    let both = product(x, gate_up)?;
    product(&both.apply_op1_no_bwd(&Gate(activation))?, down)
}
