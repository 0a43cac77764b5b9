//! Rotary position embeddings (RoPE): tables of their angles, and the rotation of a head.

use super::elements::{elements, Elements};
use candle_core::{Device, Result, Tensor};

/// Which elements of a head are rotated together. n is twice the number of pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pairs {
    /// Elements 2i and 2i + 1, as in GGUF files of `llama`, whose converter permutes Q and K.
    Adjacent,
    /// Elements i and i + n/2, as in all other models.
    Halves,
}

/// The cos and sin of a RoPE for positions 0..n, with a column for each pair.
#[derive(Debug)]
pub(crate) struct RopeTable {
    pairs: Pairs,
    /// (positions, pairs)
    cos: Tensor,
    /// (positions, pairs)
    sin: Tensor,
}

impl RopeTable {
    /// Computes angles as position · frequency in f32, as HF transformers and llama.cpp do. cos and sin at a position
    /// are multiplied by its `magnitude`.
    pub fn new(
        pairs: Pairs,
        frequencies: &[f32],
        magnitude: impl Fn(usize) -> f32,
        positions: usize,
        device: &Device,
    ) -> Result<Self> {
        let angles: Vec<f64> = (0..positions)
            .flat_map(|p| frequencies.iter().map(move |f| f64::from(p as f32 * f)))
            .collect();
        let scaled = |f: fn(f64) -> f64| {
            let rows = angles.chunks_exact(frequencies.len().max(1)).enumerate();
            let row = |(position, angles): (usize, &[f64])| {
                let magnitude = magnitude(position);
                angles.iter().map(move |&a| f(a) as f32 * magnitude).collect::<Vec<_>>()
            };
            let column: Vec<f32> = rows.flat_map(row).collect();
            Tensor::from_vec(column, (positions, frequencies.len()), device)
        };
        Ok(RopeTable { pairs, cos: scaled(f64::cos)?, sin: scaled(f64::sin)? })
    }

    /// For how many positions the table has angles.
    pub(super) fn positions(&self) -> usize {
        self.cos.dims()[0]
    }

    /// The tables of cos and sin, for the kernel of a card.
    pub(super) fn tables(&self) -> (Pairs, [&Tensor; 2]) {
        (self.pairs, [&self.cos, &self.sin])
    }

    /// Gives loops on the CPU access to the table.
    pub(super) fn rows(&self) -> Result<RopeRows<'_>> {
        let width = self.cos.dim(1)?;
        Ok(RopeRows {
            pairs: self.pairs,
            width,
            cos: elements(&self.cos)?,
            sin: elements(&self.sin)?,
        })
    }
}

/// A table whose numbers are on the host.
pub(super) struct RopeRows<'a> {
    pairs: Pairs,
    width: usize,
    cos: Elements<'a>,
    sin: Elements<'a>,
}

impl RopeRows<'_> {
    pub fn turns(&self) -> RopeLoop<'_> {
        RopeLoop { pairs: self.pairs, width: self.width, cos: &self.cos, sin: &self.sin }
    }
}

/// The rotation of single heads on the CPU.
#[derive(Clone, Copy)]
pub(super) struct RopeLoop<'a> {
    pairs: Pairs,
    width: usize,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl RopeLoop<'_> {
    /// Rotates the pairs of a head. Elements behind the last pair stay as they are.
    #[inline(always)]
    pub fn turn(&self, x: &mut [f32], position: usize) {
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
