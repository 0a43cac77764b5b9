//! The gated delta rule, a linear attention: a causal convolution over q, k and v, and then a recurrent state for each
//! head of v. With every token the state decays by the factor e^g, and β times what it failed to predict is written
//! into it.
//!
//! The formulas are those of Qwen3.5 in transformers (Yang et al., arXiv 2412.06464): with S̃ = e^g·S,
//! δ = β·(v - S̃ᵀk), S' = S̃ + k·δᵀ and o = S'ᵀq. Several tokens are computed in chunks, which turns
//! most of the recurrence into products. A single token is one step of the recurrence. Everything is f32
//! whatever the scheme of the KV cache, because nothing of this is stored there.

use super::elements::elements;
use super::gate::sigmoid;
use super::norm::{sum_of_squares, RmsNorm};
use super::op::{Input, Op};
use super::simd::{exp, vectorized};
use super::state::change_elements;
use candle_core::{DType, Device, Result, Shape, Tensor};
use rayon::prelude::*;

/// The tokens of a chunk of the recurrence.
const CHUNK: usize = 64;

/// The ε in the norm of q and k, which is added below the root.
const L2_EPS: f32 = 1e-6;

/// The sizes of a layer of the gated delta rule. Several heads of v may share a head of q and k.
#[derive(Debug, Clone, PartialEq)]
pub struct DeltaNet {
    /// How many heads q and k have.
    pub key_heads: usize,
    /// How many heads v has. Each has a state of (key_dim, value_dim).
    pub value_heads: usize,
    /// How many elements a head of q or k has.
    pub key_dim: usize,
    /// How many elements a head of v has.
    pub value_dim: usize,
    /// How many tokens the causal convolution before q, k and v spans.
    pub kernel: usize,
    /// Which head of k a head of v belongs to.
    pub order: HeadOrder,
}

/// How the heads of v are ordered beside those of k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadOrder {
    /// Head h of v reads head h / (value_heads / key_heads) of k, as in transformers.
    Grouped,
    /// Head h of v reads head h mod key_heads of k, as in GGUF, whose converter reorders them.
    Tiled,
}

impl DeltaNet {
    /// How many elements q has for one token. k has as many.
    pub fn key_width(&self) -> usize {
        self.key_heads * self.key_dim
    }

    /// How many elements v has for one token.
    pub fn value_width(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// How many channels the convolution has: those of q, k and v.
    pub fn channels(&self) -> usize {
        2 * self.key_width() + self.value_width()
    }

    /// How many bytes the state of a sequence takes. It is f32 whatever the scheme of the KV cache.
    pub fn state_bytes(&self) -> usize {
        size_of::<f32>() * (self.history() + self.states())
    }

    /// How many numbers a sequence keeps as the last inputs of the convolution.
    fn history(&self) -> usize {
        self.channels() * (self.kernel - 1)
    }

    /// How many numbers the recurrent states of a sequence have.
    fn states(&self) -> usize {
        self.key_dim * self.value_width()
    }

    /// The columns where the parts of a projected row begin.
    fn columns(&self) -> Columns {
        let z = self.channels();
        let beta = z + self.value_width();
        let alpha = beta + self.value_heads;
        Columns { z, beta, alpha, width: alpha + self.value_heads }
    }
}

/// The columns where the parts of a projected row begin. The parts are q, k and v, then the output's gate z, and then
/// the inputs of β and of g.
struct Columns {
    z: usize,
    beta: usize,
    alpha: usize,
    width: usize,
}

/// What a layer of the gated delta rule carries from one token to the next, in f32. No scheme touches it. It cannot be
/// truncated to fewer tokens, only kept and restored.
#[derive(Debug)]
pub struct Recurrent {
    /// The last inputs of the convolution, (B, kernel - 1, channels) with one row for each sequence.
    history: Tensor,
    /// The recurrent states, (B, H_v, D_k, D_v) with one row for each sequence.
    states: Tensor,
}

impl Recurrent {
    /// The state before the first token, for sequences that keep `history` and `memory` numbers.
    pub(crate) fn zero(
        sequences: usize,
        history: usize,
        states: usize,
        device: &Device,
    ) -> Result<Self> {
        Ok(Recurrent {
            history: Tensor::zeros((sequences, history), DType::F32, device)?,
            states: Tensor::zeros((sequences, states), DType::F32, device)?,
        })
    }

    /// The last inputs of the convolution and the states, for kernels that advance them.
    pub(super) fn tensors(&self) -> (&Tensor, &Tensor) {
        (&self.history, &self.states)
    }

    /// The state of a layer before its first token.
    pub(crate) fn before(net: &DeltaNet, sequences: usize, device: &Device) -> Result<Self> {
        Self::zero(sequences, net.history(), net.states(), device)
    }
}

/// A clone is a snapshot. Running on with one of the two leaves the other as it is.
impl Clone for Recurrent {
    fn clone(&self) -> Self {
        let copy = |x: &Tensor| x.copy().expect("there is memory for a copy of a state");
        Recurrent { history: copy(&self.history), states: copy(&self.states) }
    }
}

/// The weights of the rule itself. Projections are not among them.
pub(crate) struct RuleWeights {
    /// The convolution, (channels, kernel). The last column belongs to the current token.
    pub convolution: Tensor,
    /// -exp(A_log) for each head of v.
    pub decay: Tensor,
    /// The bias of the decay's time step.
    pub time_bias: Tensor,
    /// The norm of the output of each head.
    pub norm: RmsNorm,
}

/// Continues B sequences by T tokens each: (B·T, projected) → (B·T, value width), ready for the output
/// projection. The states of the sequences advance.
pub(crate) struct DeltaRule<'a> {
    pub net: &'a DeltaNet,
    pub weights: &'a RuleWeights,
    /// How many tokens each sequence has, T.
    pub tokens: usize,
    /// The states of the B sequences.
    pub state: &'a Recurrent,
}

impl Op<1> for DeltaRule<'_> {
    const NAME: &'static str = "delta-rule";

    fn shape(&self, [projected]: [&Shape; 1]) -> Result<Shape> {
        let (rows, width) = projected.dims2()?;
        let sequences = self.state.states.dim(0)?;
        if rows != sequences * self.tokens || width != self.net.columns().width {
            candle_core::bail!("{projected:?} is not of {sequences} × {} tokens", self.tokens);
        }
        Ok(Shape::from((rows, self.net.value_width())))
    }

    fn cpu(&self, [Input { x, .. }]: [Input; 1], out: &mut [f32]) -> Result<()> {
        let RuleWeights { convolution, decay, time_bias, norm } = self.weights;
        let (convolution, decay) = (elements(convolution)?, elements(decay)?);
        let (time_bias, norm_weights) = (elements(time_bias)?, norm.weights()?);
        let rule = RuleLoop {
            net: self.net,
            tokens: self.tokens,
            convolution: &convolution,
            decay: &decay,
            time_bias: &time_bias,
            norm: &norm_weights,
            norm_eps: norm.eps,
        };
        let Recurrent { history, states } = self.state;
        let mut done = Ok(());
        change_elements(history, |history| {
            done = change_elements(states, |states| rule.sequences(x, history, states, out));
        })?;
        done
    }
}

/// The rule with its weights at hand, for the loop on the CPU.
struct RuleLoop<'a> {
    net: &'a DeltaNet,
    tokens: usize,
    convolution: &'a [f32],
    decay: &'a [f32],
    time_bias: &'a [f32],
    norm: &'a [f32],
    norm_eps: f32,
}

impl RuleLoop<'_> {
    fn sequences(&self, x: &[f32], history: &mut [f32], states: &mut [f32], out: &mut [f32]) {
        let net = self.net;
        out.par_chunks_mut(self.tokens * net.value_width())
            .zip(x.par_chunks(self.tokens * net.columns().width))
            .zip(history.par_chunks_mut(net.history()).zip(states.par_chunks_mut(net.states())))
            .for_each(|((out, x), (history, states))| self.sequence(x, history, states, out));
    }

    /// Continues one sequence, and advances its states.
    fn sequence(&self, x: &[f32], history: &mut [f32], states: &mut [f32], out: &mut [f32]) {
        let net = self.net;
        let columns = net.columns();
        let mixed = self.convolve(x, history);
        let size = net.key_dim * net.value_dim;
        let heads: Vec<Vec<f32>> = states
            .par_chunks_mut(size)
            .enumerate()
            .map(|(head, state)| {
                let inputs = self.head(x, &mixed, head);
                let mut o = vec![0.0f32; self.tokens * net.value_dim];
                run_head(&inputs, state, &mut o);
                o
            })
            .collect();
        for t in 0..self.tokens {
            let row = &x[t * columns.width..][..columns.width];
            let out = &mut out[t * net.value_width()..][..net.value_width()];
            for (head, o) in heads.iter().enumerate() {
                let at = head * net.value_dim;
                let o = &o[t * net.value_dim..][..net.value_dim];
                let z = &row[columns.z + at..][..net.value_dim];
                gated_norm(self.norm, self.norm_eps, o, z, &mut out[at..][..net.value_dim]);
            }
        }
    }

    /// The causal convolution of each channel, and SiLU: (T, channels).
    fn convolve(&self, x: &[f32], history: &mut [f32]) -> Vec<f32> {
        let (channels, past) = (self.net.channels(), self.net.kernel - 1);
        let width = self.net.columns().width;
        // the kept inputs and then the new ones: (past + T, channels)
        let mut inputs = history.to_vec();
        for t in 0..self.tokens {
            inputs.extend_from_slice(&x[t * width..][..channels]);
        }
        let mut mixed = vec![0.0f32; self.tokens * channels];
        convolve_rows(self.convolution, self.net.kernel, &inputs, &mut mixed);
        history.copy_from_slice(&inputs[self.tokens * channels..][..past * channels]);
        mixed
    }

    /// What the recurrence of one head of v reads.
    fn head(&self, x: &[f32], mixed: &[f32], head: usize) -> HeadInputs {
        let (net, columns) = (self.net, self.net.columns());
        let key_head = match net.order {
            HeadOrder::Grouped => head / (net.value_heads / net.key_heads),
            HeadOrder::Tiled => head % net.key_heads,
        };
        let (dk, dv) = (net.key_dim, net.value_dim);
        let mut inputs = HeadInputs::new(dk, dv, self.tokens);
        for t in 0..self.tokens {
            let row = &x[t * columns.width..][..columns.width];
            let mixed = &mixed[t * net.channels()..][..net.channels()];
            let q = &mixed[key_head * dk..][..dk];
            let k = &mixed[net.key_width() + key_head * dk..][..dk];
            let v = &mixed[2 * net.key_width() + head * dv..][..dv];
            inputs.q.extend(l2_normed(q, 1.0 / (dk as f32).sqrt()));
            inputs.k.extend(l2_normed(k, 1.0));
            inputs.v.extend_from_slice(v);
            inputs.beta.push(sigmoid(row[columns.beta + head]));
            let step = softplus(row[columns.alpha + head] + self.time_bias[head]);
            inputs.g.push(self.decay[head] * step);
        }
        inputs
    }
}

fn l2_normed(x: &[f32], scale: f32) -> impl Iterator<Item = f32> + '_ {
    let scale = scale / (sum_of_squares(x) + L2_EPS).sqrt();
    x.iter().map(move |x| x * scale)
}

/// ln(1 + e^x). For large x, where e^x would overflow, that is x.
fn softplus(x: f32) -> f32 {
    if x > 20.0 {
        x
    } else {
        x.exp().ln_1p()
    }
}

/// What the recurrence of one head reads of each token.
struct HeadInputs {
    dk: usize,
    dv: usize,
    /// (T, d_k), normed and scaled.
    q: Vec<f32>,
    /// (T, d_k), normed.
    k: Vec<f32>,
    /// (T, d_v).
    v: Vec<f32>,
    beta: Vec<f32>,
    /// The logarithm of the factor by which the state decays with each token. It is never above 0.
    g: Vec<f32>,
}

impl HeadInputs {
    fn new(dk: usize, dv: usize, tokens: usize) -> Self {
        HeadInputs {
            dk,
            dv,
            q: Vec::with_capacity(tokens * dk),
            k: Vec::with_capacity(tokens * dk),
            v: Vec::with_capacity(tokens * dv),
            beta: Vec::with_capacity(tokens),
            g: Vec::with_capacity(tokens),
        }
    }

    fn tokens(&self) -> usize {
        self.g.len()
    }
}

/// Runs one head over all tokens: in chunks, or as a single step if there is only one token.
fn run_head(inputs: &HeadInputs, state: &mut [f32], out: &mut [f32]) {
    match inputs.tokens() {
        1 => step(inputs, 0, state, out),
        tokens => {
            for start in (0..tokens).step_by(CHUNK) {
                let len = CHUNK.min(tokens - start);
                chunk(inputs, start, len, state, &mut out[start * inputs.dv..][..len * inputs.dv]);
            }
        }
    }
}

vectorized!(fn step['a](
    inputs: &'a HeadInputs,
    token: usize,
    state: &'a mut [f32],
    out: &'a mut [f32]
) {
    let (dk, dv) = (inputs.dk, inputs.dv);
    let (q, k) = (&inputs.q[token * dk..][..dk], &inputs.k[token * dk..][..dk]);
    let decay = exp(inputs.g[token]);
    let mut predicted = vec![0.0f32; dv];
    for (row, &k) in state.chunks_exact_mut(dv).zip(k) {
        for (s, p) in row.iter_mut().zip(&mut predicted) {
            *s *= decay;
            *p = s.mul_add(k, *p);
        }
    }
    let v = &inputs.v[token * dv..][..dv];
    let beta = inputs.beta[token];
    let delta: Vec<f32> = v.iter().zip(&predicted).map(|(v, p)| beta * (v - p)).collect();
    out.fill(0.0);
    for ((row, &k), &q) in state.chunks_exact_mut(dv).zip(k).zip(q) {
        for ((s, delta), o) in row.iter_mut().zip(&delta).zip(out.iter_mut()) {
            *s = k.mul_add(*delta, *s);
            *o = s.mul_add(q, *o);
        }
    }
});

/// out += factor · x
#[inline(always)]
fn add_scaled(out: &mut [f32], factor: f32, x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = factor.mul_add(*x, *out);
    }
}

/// out += factor · rowᵀ·M, where the rows of M are as long as `out`.
#[inline(always)]
fn add_product(out: &mut [f32], factor: f32, row: &[f32], matrix: &[f32]) {
    for (x, line) in row.iter().zip(matrix.chunks_exact(out.len())) {
        add_scaled(out, factor * x, line);
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    let mut sums = [0.0f32; 16];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = a.mul_add(*b, *sum);
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

vectorized!(fn chunk['a](
    inputs: &'a HeadInputs,
    start: usize,
    len: usize,
    state: &'a mut [f32],
    out: &'a mut [f32]
) {
    let (dk, dv) = (inputs.dk, inputs.dv);
    let q = |i: usize| &inputs.q[(start + i) * dk..][..dk];
    let k = |i: usize| &inputs.k[(start + i) * dk..][..dk];
    // the decay since the chunk began; e^(γ_i - γ_j) never exceeds 1 for i ≥ j
    let mut sum = 0.0f32;
    let gamma: Vec<f32> = inputs.g[start..][..len].iter().map(|g| { sum += g; sum }).collect();
    // what each token writes, δ, depends on the state before the chunk and on the earlier tokens of the chunk
    let mut delta = vec![0.0f32; len * dv];
    for i in 0..len {
        let (before, current) = delta.split_at_mut(i * dv);
        let current = &mut current[..dv];
        current.copy_from_slice(&inputs.v[(start + i) * dv..][..dv]);
        add_product(current, -exp(gamma[i]), k(i), state);
        for (j, written) in before.chunks_exact(dv).enumerate() {
            add_scaled(current, -dot(k(i), k(j)) * exp(gamma[i] - gamma[j]), written);
        }
        let beta = inputs.beta[start + i];
        for x in current.iter_mut() {
            *x *= beta;
        }
    }
    for (i, out) in out.chunks_exact_mut(dv).enumerate() {
        out.fill(0.0);
        add_product(out, exp(gamma[i]), q(i), state);
        for (j, written) in delta.chunks_exact(dv).enumerate().take(i + 1) {
            add_scaled(out, dot(q(i), k(j)) * exp(gamma[i] - gamma[j]), written);
        }
    }
    let last = gamma[len - 1];
    let decay = exp(last);
    for s in state.iter_mut() {
        *s *= decay;
    }
    for (j, written) in delta.chunks_exact(dv).enumerate() {
        let left = exp(last - gamma[j]);
        for (row, k) in state.chunks_exact_mut(dv).zip(k(j)) {
            add_scaled(row, left * k, written);
        }
    }
});

vectorized!(fn convolve_rows['a](
    weights: &'a [f32],
    kernel: usize,
    inputs: &'a [f32],
    out: &'a mut [f32]
) {
    let channels = weights.len() / kernel;
    for (t, out) in out.chunks_exact_mut(channels).enumerate() {
        for (j, input) in inputs[t * channels..].chunks_exact(channels).take(kernel).enumerate() {
            for (c, (out, x)) in out.iter_mut().zip(input).enumerate() {
                *out = weights[c * kernel + j].mul_add(*x, *out);
            }
        }
        for out in out.iter_mut() {
            *out /= 1.0 + exp(-*out);
        }
    }
});

vectorized!(fn gated_norm['a](
    weights: &'a [f32],
    eps: f32,
    o: &'a [f32],
    z: &'a [f32],
    out: &'a mut [f32]
) {
    let scale = 1.0 / (sum_of_squares(o) / o.len() as f32 + eps).sqrt();
    for (((out, o), z), w) in out.iter_mut().zip(o).zip(z).zip(weights) {
        *out = o * scale * w * z / (1.0 + exp(-z));
    }
});

#[cfg(test)]
mod tests {
    use super::*;

    fn random(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn inputs(dk: usize, dv: usize, tokens: usize) -> HeadInputs {
        let normed = |x: Vec<f32>| -> Vec<f32> {
            x.chunks(dk).flat_map(|x| l2_normed(x, 1.0).collect::<Vec<_>>()).collect()
        };
        HeadInputs {
            dk,
            dv,
            q: normed(random(tokens * dk, 1)),
            k: normed(random(tokens * dk, 2)),
            v: random(tokens * dv, 3),
            beta: random(tokens, 4).iter().map(|x| sigmoid(3.0 * x)).collect(),
            g: random(tokens, 5).iter().map(|x| -softplus(4.0 * x)).collect(),
        }
    }

    /// The rule token by token and in f64, by the formulas of the module's documentation.
    fn naive(inputs: &HeadInputs, state: &mut [f64]) -> Vec<f64> {
        let (dk, dv) = (inputs.dk, inputs.dv);
        let mut out = Vec::new();
        for t in 0..inputs.tokens() {
            let row = |x: &[f32], n: usize| -> Vec<f64> {
                x[t * n..][..n].iter().map(|x| f64::from(*x)).collect()
            };
            let (q, k, v) = (row(&inputs.q, dk), row(&inputs.k, dk), row(&inputs.v, dv));
            state.iter_mut().for_each(|s| *s *= f64::from(inputs.g[t]).exp());
            for j in 0..dv {
                let predicted: f64 = (0..dk).map(|i| state[i * dv + j] * k[i]).sum();
                let delta = f64::from(inputs.beta[t]) * (v[j] - predicted);
                (0..dk).for_each(|i| state[i * dv + j] += k[i] * delta);
            }
            out.extend((0..dv).map(|j| (0..dk).map(|i| state[i * dv + j] * q[i]).sum::<f64>()));
        }
        out
    }

    fn assert_near(got: &[f32], want: &[f64], what: &str) {
        for (got, want) in got.iter().zip(want) {
            assert!((f64::from(*got) - want).abs() < 1e-5, "{what}: {got} is not {want}");
        }
        assert_eq!(got.len(), want.len());
    }

    #[test]
    fn chunks_and_steps_are_the_rule() {
        for (dk, dv) in [(16, 16), (32, 24), (24, 40)] {
            for tokens in [1, 2, 63, 64, 65, 150] {
                let inputs = inputs(dk, dv, tokens);
                let before = random(dk * dv, 9);
                let mut want_state: Vec<f64> = before.iter().map(|x| f64::from(*x)).collect();
                let want = naive(&inputs, &mut want_state);

                let (mut state, mut out) = (before.clone(), vec![f32::NAN; tokens * dv]);
                run_head(&inputs, &mut state, &mut out);
                assert_near(&out, &want, "by chunks");
                assert_near(&state, &want_state, "state by chunks");

                let mut state = before;
                for (t, out) in out.chunks_mut(dv).enumerate() {
                    step(&inputs, t, &mut state, out);
                }
                assert_near(&out, &want, "by steps");
                assert_near(&state, &want_state, "state by steps");
            }
        }
    }
}
