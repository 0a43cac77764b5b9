//! Ops that multiply by a gate, element by element.

use super::op::{Input, Op, ROWS};
use super::simd::{exp, vectorized};
use candle_core::{Result, Shape};
use rayon::prelude::*;

/// The activation of a gated MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// SiLU: x·σ(x).
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// gpt-oss: g·σ(1.702 g), and up is raised by 1. Before that, gate is at most 7, and up lies between -7 and 7.
    Clamped,
}

/// Where [`Activation::Clamped`] cuts gate and up off, and the factor of its sigmoid's argument.
pub const CLAMP_LIMIT: f32 = 7.0;
pub const CLAMP_ALPHA: f32 = 1.702;

/// act(gate) ⊙ up, where each row holds gate and up side by side: (rows, 2F) → (rows, F).
#[derive(Debug, Clone, Copy)]
pub(crate) struct GatedActivation(pub Activation);

impl Op<1> for GatedActivation {
    const NAME: &'static str = "gated-activation";

    fn shape(&self, [x]: [&Shape; 1]) -> Result<Shape> {
        let (rows, both) = x.dims2()?;
        Ok(Shape::from((rows, both / 2)))
    }

    fn cpu(&self, [Input { x, shape }]: [Input; 1], out: &mut [f32]) -> Result<()> {
        let both = shape.dims2()?.1;
        let width = both / 2;
        out.par_chunks_mut(ROWS * width)
            .zip(x.par_chunks(ROWS * both))
            .for_each(|(out, x)| gate_rows(&self.0, width, out, x));
        Ok(())
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

/// NaN stays NaN, unlike in `f32::min`.
#[inline(always)]
fn at_most(x: f32, limit: f32) -> f32 {
    if x > limit {
        limit
    } else {
        x
    }
}

#[inline(always)]
fn clamped(out: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((out, &g), &u) in out.iter_mut().zip(gate).zip(up) {
        let g = at_most(g, CLAMP_LIMIT);
        let u = -at_most(-at_most(u, CLAMP_LIMIT), CLAMP_LIMIT);
        *out = g / (1.0 + exp(-(CLAMP_ALPHA * g))) * (u + 1.0);
    }
}

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
            Activation::Clamped => clamped(out, gate, up),
        }
    }
});

/// x ⊙ σ(g), where g stands in the rows of the second tensor from column `start` on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SigmoidGate {
    pub start: usize,
}

impl Op<2> for SigmoidGate {
    const NAME: &'static str = "sigmoid-gate";

    fn shape(&self, [x, gate]: [&Shape; 2]) -> Result<Shape> {
        if x.dims2()?.0 != gate.dims2()?.0 || x.dims2()?.1 + self.start > gate.dims2()?.1 {
            candle_core::bail!("{gate:?} has no gate for {x:?} from column {} on", self.start);
        }
        Ok(x.clone())
    }

    fn cpu(&self, [x, gate]: [Input; 2], out: &mut [f32]) -> Result<()> {
        let (width, columns) = (x.shape.dims2()?.1, gate.shape.dims2()?.1);
        let tasks = x.x.par_chunks(ROWS * width).zip(gate.x.par_chunks(ROWS * columns));
        out.par_chunks_mut(ROWS * width)
            .zip(tasks)
            .for_each(|(out, (x, gate))| sigmoid_gate_rows(columns, self.start, out, x, gate));
        Ok(())
    }
}

vectorized!(fn sigmoid_gate_rows['a](
    columns: usize,
    start: usize,
    out: &'a mut [f32],
    x: &'a [f32],
    gate: &'a [f32]
) {
    let width = x.len() / (gate.len() / columns);
    let rows = x.chunks_exact(width).zip(gate.chunks_exact(columns));
    for (out, (x, gate)) in out.chunks_exact_mut(width).zip(rows) {
        for ((out, x), g) in out.iter_mut().zip(x).zip(&gate[start..][..width]) {
            *out = x / (1.0 + exp(-g));
        }
    }
});

/// σ of every element. It gives the weights of single rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sigmoid;

impl Op<1> for Sigmoid {
    const NAME: &'static str = "sigmoid";

    fn shape(&self, [x]: [&Shape; 1]) -> Result<Shape> {
        Ok(x.clone())
    }

    fn cpu(&self, [Input { x, .. }]: [Input; 1], out: &mut [f32]) -> Result<()> {
        out.iter_mut().zip(x).for_each(|(out, x)| *out = sigmoid(*x));
        Ok(())
    }
}

/// σ computed with the platform's exponential.
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::run;
    use crate::compute::textbook::{assert_near, random, rows, wide, MANY};

    #[test]
    fn gates_are_silu_and_the_tanh_form_of_gelu_and_that_of_gpt_oss() {
        let width = 40;
        let mut x = random(2 * MANY * width);
        // where exponentials leave the range of f32
        x[..4].copy_from_slice(&[-200.0, 200.0, -20.0, 20.0]);
        // and, of up, where it is cut off
        x[width + 4..width + 8].copy_from_slice(&[-200.0, 200.0, -7.5, 7.5]);
        let silu = |g: f64, u: f64| g / (1.0 + (-g).exp()) * u;
        let gelu = |g: f64, u: f64| {
            let t = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
            g / 2.0 * (1.0 + t.tanh()) * u
        };
        let clamped = |g: f64, u: f64| {
            let g = g.min(7.0);
            g / (1.0 + (-1.702 * g).exp()) * (u.clamp(-7.0, 7.0) + 1.0)
        };
        type Product<'a> = &'a dyn Fn(f64, f64) -> f64;
        let activations: [(Activation, Product); 3] = [
            (Activation::Silu, &silu),
            (Activation::GeluTanh, &gelu),
            (Activation::Clamped, &clamped),
        ];
        for (activation, naive) in activations {
            let gated = |row: &[f64]| -> Vec<f64> {
                (0..width).map(|i| naive(row[i], row[width + i])).collect()
            };
            let want: Vec<f64> = wide(&x).chunks(2 * width).flat_map(gated).collect();
            let got = run(&GatedActivation(activation), [&rows(&x, 2 * width)]).unwrap();
            assert_near(&got, &want);
        }
    }

    #[test]
    fn a_sigmoid_gate_stands_in_columns_of_its_own() {
        let (width, start) = (40, 7);
        let columns = start + width + 3;
        let (x, gate) = (random(MANY * width), random(MANY * columns));
        let sigmoid = |g: f64| 1.0 / (1.0 + (-g).exp());
        let want: Vec<f64> = (0..MANY * width)
            .map(|i| (i / width, i % width))
            .map(|(row, i)| {
                let g = f64::from(gate[row * columns + start + i]);
                f64::from(x[row * width + i]) * sigmoid(g)
            })
            .collect();
        let (x, gate) = (rows(&x, width), rows(&gate, columns));
        assert_near(&run(&SigmoidGate { start }, [&x, &gate]).unwrap(), &want);
        assert!(run(&SigmoidGate { start: 11 }, [&x, &gate]).is_err());
        let want: Vec<f64> =
            x.to_vec2::<f32>().unwrap().concat().iter().map(|x| sigmoid((*x).into())).collect();
        assert_near(&run(&Sigmoid, [&x]).unwrap(), &want);
    }
}
