//! The op between the projection of Q, K and V and the attention: bias, norm and RoPE of each head.

use super::elements::elements;
use super::norm::{NormLoop, RmsNorm};
use super::op::{Input, Op, ROWS};
use super::rope::{RopeLoop, RopeTable};
use super::simd::vectorized;
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// Takes some heads out of the rows of a fused QKV product, and applies their bias, norm and RoPE:
/// (B·T, q + 2kv) → (B·T, heads·D).
#[derive(Debug, Clone)]
pub(crate) struct Heads {
    /// The column where the first of the heads begins.
    pub start: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// (heads·D)
    pub bias: Option<Tensor>,
    /// The norm of each head.
    pub norm: Option<RmsNorm>,
    pub rope: Option<Arc<RopeTable>>,
    /// The position of the first row of each sequence.
    pub first: usize,
    /// How many rows each sequence has, T. Row r is at position `first` + r mod T.
    pub tokens: usize,
}

impl Op<1> for Heads {
    const NAME: &'static str = "heads";

    fn shape(&self, [x]: [&Shape; 1]) -> Result<Shape> {
        let (rows, columns) = x.dims2()?;
        let width = self.heads * self.head_dim;
        if self.start + width > columns {
            candle_core::bail!("{x:?} has no {} heads from column {} on", self.heads, self.start);
        }
        let fits = |tensor: Option<&Tensor>, count| tensor.is_none_or(|x| x.elem_count() == count);
        let norm = self.norm.as_ref().map(|norm| &norm.weight);
        if !fits(self.bias.as_ref(), width) || !fits(norm, self.head_dim) {
            candle_core::bail!(
                "a bias or a norm does not fit {} heads of {}",
                self.heads,
                self.head_dim
            );
        }
        if self.rope.as_ref().is_some_and(|rope| rope.positions() < self.first + self.tokens) {
            candle_core::bail!("a table of RoPE ends before position {}", self.first + self.tokens);
        }
        Ok(Shape::from((rows, width)))
    }

    fn cpu(&self, [Input { x, shape }]: [Input; 1], out: &mut [f32]) -> Result<()> {
        let columns = shape.dims2()?.1;
        let width = self.heads * self.head_dim;
        let bias = self.bias.as_ref().map(elements).transpose()?;
        let weights = self.norm.as_ref().map(RmsNorm::weights).transpose()?;
        let norm = self.norm.as_ref().zip(weights.as_deref());
        let rope = self.rope.as_ref().map(|rope| rope.rows()).transpose()?;
        let finish = HeadsLoop {
            op: self,
            bias: bias.as_deref(),
            norm: norm.map(|(norm, weight)| NormLoop { weight, eps: norm.eps }),
            rope: rope.as_ref().map(|rope| rope.turns()),
        };
        out.par_chunks_mut(ROWS * width)
            .zip(x.par_chunks(ROWS * columns))
            .enumerate()
            .for_each(|(i, (out, x))| head_rows(finish, i * ROWS, columns, out, x));
        Ok(())
    }
}

/// The op with its weights at hand, for the loop on the CPU.
#[derive(Clone, Copy)]
struct HeadsLoop<'a> {
    op: &'a Heads,
    bias: Option<&'a [f32]>,
    norm: Option<NormLoop<'a>>,
    rope: Option<RopeLoop<'a>>,
}

impl HeadsLoop<'_> {
    #[inline(always)]
    fn row(&self, x: &[f32], out: &mut [f32], position: usize) {
        match self.bias {
            None => out.copy_from_slice(x),
            Some(bias) => {
                for ((out, x), b) in out.iter_mut().zip(x).zip(bias) {
                    *out = x + b;
                }
            }
        }
        for head in out.chunks_exact_mut(self.op.head_dim) {
            if let Some(norm) = &self.norm {
                let scale = norm.scale(head);
                for (x, w) in head.iter_mut().zip(norm.weight) {
                    *x *= scale * w;
                }
            }
            if let Some(rope) = &self.rope {
                rope.turn(head, position);
            }
        }
    }
}

vectorized!(fn head_rows['a](
    finish: HeadsLoop<'a>,
    first: usize,
    columns: usize,
    out: &'a mut [f32],
    x: &'a [f32]
) {
    let heads = finish.op;
    let width = heads.heads * heads.head_dim;
    let rows = out.chunks_exact_mut(width).zip(x.chunks_exact(columns));
    for (row, (out, x)) in (first..).zip(rows) {
        finish.row(&x[heads.start..][..width], out, heads.first + row % heads.tokens);
    }
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::rope::Pairs;
    use crate::compute::run;
    use crate::compute::textbook::{self, assert_near, place, random, rows, vector, wide, MANY};

    /// Rotates a head by the definition: pair i is rotated by the angle position·frequency.
    fn naive_rope(
        pairs: Pairs,
        frequencies: &[f32],
        magnitude: f32,
        x: &mut [f64],
        position: usize,
    ) {
        for (i, frequency) in frequencies.iter().enumerate() {
            let (a, b) = match pairs {
                Pairs::Adjacent => (2 * i, 2 * i + 1),
                Pairs::Halves => (i, i + frequencies.len()),
            };
            let (sin, cos) = (position as f64 * f64::from(*frequency)).sin_cos();
            let (sin, cos) = (sin * f64::from(magnitude), cos * f64::from(magnitude));
            (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
        }
    }

    #[test]
    fn heads_get_bias_then_norm_then_rope() {
        let (heads, head_dim, start, tokens) = (3, 16, 8, 20);
        let (columns, width) = (start + heads * head_dim + 4, heads * head_dim);
        let x = random(MANY * columns);
        let bias = random(width);
        for pairs in [Pairs::Adjacent, Pairs::Halves] {
            // RoPE over the whole head, and over a part of it with a pair that is not rotated
            let whole: Vec<f32> = (0..head_dim / 2).map(|i| 0.1f32.powi(i as i32)).collect();
            for (with_bias, with_norm, frequencies, magnitude) in
                [(false, false, whole, 1.0), (true, true, vec![1.0, 0.3, 0.0], 1.25)]
            {
                let rope = RopeTable::new(pairs, &frequencies, |_| magnitude, 5 + tokens, &place());
                let op = Heads {
                    start,
                    heads,
                    head_dim,
                    bias: with_bias.then(|| vector(&bias)),
                    norm: with_norm.then(|| textbook::norm(head_dim)),
                    rope: Some(Arc::new(rope.unwrap())),
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
                            *head = textbook::normed(norm, head);
                        }
                        naive_rope(pairs, &frequencies, magnitude, head, 5 + r % tokens);
                    }
                    heads.concat()
                };
                let want: Vec<f64> =
                    wide(&x).chunks(columns).enumerate().flat_map(finished).collect();
                assert_near(&run(&op, [&rows(&x, columns)]).unwrap(), &want);
            }
        }
    }
}
