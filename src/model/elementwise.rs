//! The decoder's kernels between the matrix products: norms, heads with RoPE, gates, residuals.
//!
//! Each is a candle custom op over contiguous f32 rows, parallel by blocks of rows.

use super::ops::elements;
use super::spec::{Activation, Pairs, Rope};
use crate::simd::{exp, vectorized};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape};
use rayon::prelude::*;
use std::sync::Arc;

/// Rows that one task works on.
const ROWS: usize = 64;

/// RMS norm over the last axis: x / √(mean x² + ε) ⊙ w.
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    pub weight: Arc<Vec<f32>>,
    pub eps: f32,
}

impl RmsNorm {
    #[inline(always)]
    fn scale(&self, x: &[f32]) -> f32 {
        1.0 / (sum_of_squares(x) / x.len() as f32 + self.eps).sqrt()
    }

    #[inline(always)]
    fn row(&self, x: &[f32], out: &mut [f32]) {
        let scale = self.scale(x);
        for ((out, x), w) in out.iter_mut().zip(x).zip(self.weight.iter()) {
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

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = elements(storage, layout)?;
        let width = self.weight.len();
        let mut out = vec![0.0f32; x.len()];
        out.par_chunks_mut(ROWS * width)
            .zip(x.par_chunks(ROWS * width))
            .for_each(|(out, x)| norm_rows(self, out, x));
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// x + y, or x + norm(y) where the family normalises what a half-layer adds.
#[derive(Debug, Clone)]
pub(crate) struct Residual {
    pub norm: Option<RmsNorm>,
}

impl CustomOp2 for Residual {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, y) = (elements(x, x_layout)?, elements(y, y_layout)?);
        let width = x_layout.dims()[1];
        let mut out = vec![0.0f32; x.len()];
        out.par_chunks_mut(ROWS * width)
            .zip(x.par_chunks(ROWS * width).zip(y.par_chunks(ROWS * width)))
            .for_each(|(out, (x, y))| residual_rows(self, out, x, y));
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

/// act(gate) ⊙ up of rows that hold gate and up side by side: (rows, 2F) → (rows, F).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gate(pub Activation);

impl CustomOp1 for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = elements(storage, layout)?;
        let (rows, both) = layout.shape().dims2()?;
        let width = both / 2;
        let mut out = vec![0.0f32; rows * width];
        out.par_chunks_mut(ROWS * width)
            .zip(x.par_chunks(ROWS * both))
            .for_each(|(out, x)| gate_rows(&self.0, width, out, x));
        Ok((CpuStorage::F32(out), Shape::from((rows, width))))
    }
}

/// g·σ(z(g))·u, which is SiLU for z = g and GELU's tanh form for [`gelu_argument`].
#[inline(always)]
fn gated(out: &mut [f32], gate: &[f32], up: &[f32], z: impl Fn(f32) -> f32) {
    for ((out, &g), &u) in out.iter_mut().zip(gate).zip(up) {
        *out = g / (1.0 + exp(-z(g))) * u;
    }
}

/// (1 + tanh t)/2 = σ(2t) with t = √(2/π)(g + 0.044715 g³).
#[inline(always)]
fn gelu_argument(g: f32) -> f32 {
    const TWICE_ROOT_2_OVER_PI: f32 = 1.595_769;
    TWICE_ROOT_2_OVER_PI * (g + 0.044_715 * g * g * g)
}

/// cos and sin of a RoPE for positions 0..n, a column for each pair.
#[derive(Debug)]
pub(crate) struct RopeTable {
    pairs: Pairs,
    width: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Angles in f32, as HF transformers and llama.cpp compute them.
    pub fn new(rope: &Rope, positions: usize) -> Self {
        let angles: Vec<f64> = (0..positions)
            .flat_map(|p| rope.frequencies.iter().map(move |f| f64::from(p as f32 * f)))
            .collect();
        let scaled = |f: fn(f64) -> f64| -> Vec<f32> {
            angles.iter().map(|&a| f(a) as f32 * rope.magnitude).collect()
        };
        RopeTable {
            pairs: rope.pairs,
            width: rope.frequencies.len(),
            cos: scaled(f64::cos),
            sin: scaled(f64::sin),
        }
    }

    /// Turns the first elements of a head; those behind the last pair stay.
    #[inline(always)]
    fn turn(&self, x: &mut [f32], position: usize) {
        let x = &mut x[..2 * self.width];
        let cos = &self.cos[position * self.width..][..self.width];
        let sin = &self.sin[position * self.width..][..self.width];
        match self.pairs {
            Pairs::Halves => {
                let (a, b) = x.split_at_mut(self.width);
                for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
            Pairs::Adjacent => {
                for ((pair, cos), sin) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                    *pair = [pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos];
                }
            }
        }
    }
}

/// x + b for rows.
#[derive(Debug, Clone)]
pub(crate) struct Bias(pub Arc<Vec<f32>>);

impl CustomOp1 for Bias {
    fn name(&self) -> &'static str {
        "bias"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut out = elements(storage, layout)?.to_vec();
        for row in out.chunks_exact_mut(self.0.len()) {
            row.iter_mut().zip(self.0.iter()).for_each(|(x, b)| *x += b);
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// x ⊙ σ(g), where the rows of the second tensor hold g from column `start` on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SigmoidGate {
    pub start: usize,
}

impl CustomOp2 for SigmoidGate {
    fn name(&self) -> &'static str {
        "sigmoid-gate"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gate: &CpuStorage,
        gate_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut out = elements(x, x_layout)?.to_vec();
        let gate = elements(gate, gate_layout)?;
        let (width, columns) = (x_layout.dims()[1], gate_layout.dims()[1]);
        out.par_chunks_mut(ROWS * width)
            .zip(gate.par_chunks(ROWS * columns))
            .for_each(|(out, gate)| sigmoid_gate_rows(width, columns, self.start, out, gate));
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

/// Takes some heads out of the rows of a fused QKV product and finishes them: bias, norm, RoPE.
/// (B·T, q + 2kv) → (B·T, heads·D).
#[derive(Debug, Clone)]
pub(crate) struct Heads {
    /// First column.
    pub start: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub bias: Option<Arc<Vec<f32>>>,
    pub norm: Option<RmsNorm>,
    pub rope: Option<Arc<RopeTable>>,
    /// Position of each sequence's first row.
    pub first: usize,
    /// T: row r is at position `first` + r mod T.
    pub tokens: usize,
}

impl Heads {
    #[inline(always)]
    fn row(&self, x: &[f32], out: &mut [f32], position: usize) {
        match &self.bias {
            None => out.copy_from_slice(x),
            Some(bias) => {
                for ((out, x), b) in out.iter_mut().zip(x).zip(bias.iter()) {
                    *out = x + b;
                }
            }
        }
        for head in out.chunks_exact_mut(self.head_dim) {
            if let Some(norm) = &self.norm {
                let scale = norm.scale(head);
                for (x, w) in head.iter_mut().zip(norm.weight.iter()) {
                    *x *= scale * w;
                }
            }
            if let Some(rope) = &self.rope {
                rope.turn(head, position);
            }
        }
    }
}

impl CustomOp1 for Heads {
    fn name(&self) -> &'static str {
        "heads"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = elements(storage, layout)?;
        let (rows, columns) = layout.shape().dims2()?;
        let width = self.heads * self.head_dim;
        let mut out = vec![0.0f32; rows * width];
        out.par_chunks_mut(ROWS * width)
            .zip(x.par_chunks(ROWS * columns))
            .enumerate()
            .for_each(|(i, (out, x))| head_rows(self, i * ROWS, columns, out, x));
        Ok((CpuStorage::F32(out), Shape::from((rows, width))))
    }
}

vectorized!(fn norm_rows['a](norm: &'a RmsNorm, out: &'a mut [f32], x: &'a [f32]) {
    let width = norm.weight.len();
    for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        norm.row(x, out);
    }
});

vectorized!(fn residual_rows['a](
    residual: &'a Residual,
    out: &'a mut [f32],
    x: &'a [f32],
    y: &'a [f32]
) {
    match &residual.norm {
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
});

vectorized!(fn gate_rows['a](
    activation: &'a Activation,
    width: usize,
    out: &'a mut [f32],
    x: &'a [f32]
) {
    for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(2 * width)) {
        let (gate, up) = x.split_at(width);
        match activation {
            Activation::Silu => gated(out, gate, up, |g| g),
            Activation::GeluTanh => gated(out, gate, up, gelu_argument),
        }
    }
});

vectorized!(fn sigmoid_gate_rows['a](
    width: usize,
    columns: usize,
    start: usize,
    out: &'a mut [f32],
    gate: &'a [f32]
) {
    for (out, gate) in out.chunks_exact_mut(width).zip(gate.chunks_exact(columns)) {
        for (out, g) in out.iter_mut().zip(&gate[start..][..width]) {
            *out /= 1.0 + exp(-g);
        }
    }
});

vectorized!(fn head_rows['a](
    heads: &'a Heads,
    first: usize,
    columns: usize,
    out: &'a mut [f32],
    x: &'a [f32]
) {
    let width = heads.heads * heads.head_dim;
    let rows = out.chunks_exact_mut(width).zip(x.chunks_exact(columns));
    for (row, (out, x)) in (first..).zip(rows) {
        heads.row(&x[heads.start..][..width], out, heads.first + row % heads.tokens);
    }
});

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    /// More rows than one task takes, and not a whole number of tasks.
    const MANY: usize = ROWS + 3;

    fn random(count: usize) -> Vec<f32> {
        (0..count as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 * 6.0 - 3.0)
            .collect()
    }

    fn tensor(x: &[f32], width: usize) -> Tensor {
        Tensor::from_slice(x, (x.len() / width, width), &Device::Cpu).unwrap()
    }

    fn assert_near(got: &Tensor, want: &[f64]) {
        let got: Vec<f32> = got.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(got.len(), want.len());
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let error = (f64::from(*got) - want).abs();
            assert!(error <= 2e-6 * want.abs().max(1.0), "element {i}: {got}, not {want}");
        }
    }

    fn norm(width: usize) -> RmsNorm {
        RmsNorm { weight: Arc::new(random(width + 5)[5..].to_vec()), eps: 1e-2 }
    }

    fn naive_norm(norm: &RmsNorm, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(norm.eps)).sqrt();
        x.iter().zip(norm.weight.iter()).map(|(v, w)| v * scale * f64::from(*w)).collect()
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|v| f64::from(*v)).collect()
    }

    #[test]
    fn rms_norm_is_the_textbooks() {
        for width in [1, 31, 32, 64, 100] {
            let (norm, x) = (norm(width), random(MANY * width));
            let want: Vec<f64> =
                wide(&x).chunks(width).flat_map(|row| naive_norm(&norm, row)).collect();
            assert_near(&tensor(&x, width).apply_op1_no_bwd(&norm).unwrap(), &want);
        }
    }

    #[test]
    fn a_residual_adds_what_it_was_given_or_its_norm() {
        let width = 40;
        let both = random(2 * MANY * width);
        let (x, y) = both.split_at(MANY * width);
        for norm in [None, Some(norm(width))] {
            let added = wide(y);
            let added = added.chunks(width).flat_map(|row| match &norm {
                None => row.to_vec(),
                Some(norm) => naive_norm(norm, row),
            });
            let want: Vec<f64> = wide(x).iter().zip(added).map(|(x, y)| x + y).collect();
            let residual = Residual { norm: norm.clone() };
            let got = tensor(x, width).apply_op2_no_bwd(&tensor(y, width), &residual).unwrap();
            assert_near(&got, &want);
        }
    }

    #[test]
    fn gates_are_silu_and_the_tanh_form_of_gelu() {
        let width = 40;
        let mut x = random(2 * MANY * width);
        // where exponentials run out of range
        x[..4].copy_from_slice(&[-200.0, 200.0, -20.0, 20.0]);
        let silu = |g: f64| g / (1.0 + (-g).exp());
        let gelu = |g: f64| {
            let t = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
            g / 2.0 * (1.0 + t.tanh())
        };
        let activations: [(Activation, &dyn Fn(f64) -> f64); 2] =
            [(Activation::Silu, &silu), (Activation::GeluTanh, &gelu)];
        for (activation, naive) in activations {
            let gated = |row: &[f64]| -> Vec<f64> {
                (0..width).map(|i| naive(row[i]) * row[width + i]).collect()
            };
            let want: Vec<f64> = wide(&x).chunks(2 * width).flat_map(gated).collect();
            assert_near(&tensor(&x, 2 * width).apply_op1_no_bwd(&Gate(activation)).unwrap(), &want);
        }
    }

    /// Turns a head as the definition says: pair i by the angle position·frequency.
    fn naive_rope(rope: &Rope, x: &mut [f64], position: usize) {
        let pairs = rope.frequencies.len();
        for (i, frequency) in rope.frequencies.iter().enumerate() {
            let (a, b) = match rope.pairs {
                Pairs::Adjacent => (2 * i, 2 * i + 1),
                Pairs::Halves => (i, i + pairs),
            };
            let (sin, cos) = (position as f64 * f64::from(*frequency)).sin_cos();
            let (sin, cos) = (sin * f64::from(rope.magnitude), cos * f64::from(rope.magnitude));
            (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
        }
    }

    #[test]
    fn heads_get_bias_then_norm_then_rope() {
        let (heads, head_dim, start, tokens) = (3, 16, 8, 20);
        let (columns, width) = (start + heads * head_dim + 4, heads * head_dim);
        let x = random(MANY * columns);
        let bias = Arc::new(random(width));
        for pairs in [Pairs::Adjacent, Pairs::Halves] {
            // over the whole head, and over a part of it with a pair that stands still
            let whole = (0..head_dim / 2).map(|i| 0.1f32.powi(i as i32)).collect();
            for (with_bias, with_norm, frequencies, magnitude) in
                [(false, false, whole, 1.0), (true, true, vec![1.0, 0.3, 0.0], 1.25)]
            {
                let rope = Rope { base: 10.0, frequencies: frequencies.into(), magnitude, pairs };
                let op = Heads {
                    start,
                    heads,
                    head_dim,
                    bias: with_bias.then(|| bias.clone()),
                    norm: with_norm.then(|| norm(head_dim)),
                    rope: Some(Arc::new(RopeTable::new(&rope, 5 + tokens))),
                    first: 5,
                    tokens,
                };
                let finished = |(r, row): (usize, &[f64])| -> Vec<f64> {
                    let mut row = row[start..][..width].to_vec();
                    for (v, b) in row.iter_mut().zip(bias.iter()).filter(|_| with_bias) {
                        *v += f64::from(*b);
                    }
                    let mut heads: Vec<Vec<f64>> = row.chunks(head_dim).map(Into::into).collect();
                    for head in &mut heads {
                        if let Some(norm) = &op.norm {
                            *head = naive_norm(norm, head);
                        }
                        naive_rope(&rope, head, 5 + r % tokens);
                    }
                    heads.concat()
                };
                let want: Vec<f64> =
                    wide(&x).chunks(columns).enumerate().flat_map(finished).collect();
                assert_near(&tensor(&x, columns).apply_op1_no_bwd(&op).unwrap(), &want);
            }
        }
    }
}
