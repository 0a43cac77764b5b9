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
fn sum_of_squares(x: &[f32]) -> f32 {
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

/// cos and sin of a RoPE for positions 0..n, (n, d/2) each.
#[derive(Debug)]
pub(crate) struct RopeTable {
    pairs: Pairs,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Frequencies and angles in f32, as HF transformers and llama.cpp compute them.
    pub fn new(rope: &Rope, head_dim: usize, positions: usize) -> Self {
        let half = head_dim / 2;
        let frequency = |i: usize| {
            let exponent = -2.0 * i as f64 / head_dim as f64;
            (rope.base.powf(exponent) / rope.factor) as f32
        };
        let angles = (0..positions)
            .flat_map(|p| (0..half).map(move |i| f64::from(p as f32 * frequency(i))))
            .collect::<Vec<_>>();
        RopeTable {
            pairs: rope.pairs,
            cos: angles.iter().map(|a| a.cos() as f32).collect(),
            sin: angles.iter().map(|a| a.sin() as f32).collect(),
        }
    }

    #[inline(always)]
    fn turn(&self, x: &mut [f32], position: usize) {
        let half = x.len() / 2;
        let cos = &self.cos[position * half..][..half];
        let sin = &self.sin[position * half..][..half];
        match self.pairs {
            Pairs::Halves => {
                let (a, b) = x.split_at_mut(half);
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
    /// T: row r is at position r mod T.
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
        heads.row(&x[heads.start..][..width], out, row % heads.tokens);
    }
});
