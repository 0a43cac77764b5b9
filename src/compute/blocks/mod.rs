//! The types in which ggml stores the elements of tensors, and the numbers that they stand for.
//!
//! Most types store *blocks*: some elements of a row as codes of a few bits, with scales. To *dequantize* a block is to
//! compute its numbers as ggml's reference does (`dequantize_row_*`), bit for bit: each product and each sum is rounded
//! by itself, in the reference's order, and nothing is fused. The loops for the CPU are here, one file for each family
//! of types. On a card the blocks are uploaded as they are and dequantized there, with the same bits
//! (`cuda/blocks.cu`).

mod floats;
mod i_quants;
mod k_quants;
mod legacy;
mod microscaling;
mod ternary;

use super::cuda;
use super::place::HOST;
use super::simd::vectorized;
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

/// A type of a tensor's elements.
#[derive(Debug)]
pub struct BlockType {
    /// Its number in a file.
    pub code: u32,
    /// Its name as llama.cpp's tools write it.
    pub name: &'static str,
    /// The number of elements in a block, and their size in bytes.
    pub elements: usize,
    pub bytes: usize,
    /// Dequantizes blocks. `None` if nothing reads the type.
    numbers: Option<Loop>,
}

type Loop = for<'a> fn(&'a [u8], &'a mut [f32]);

/// A type whose blocks are dequantized by a function, which says how large they are: `read(8, "Q8_0", legacy::q8_0)`.
macro_rules! read {
    ($code:literal, $name:literal, $elements:literal, $bytes:literal, $block:path) => {{
        vectorized!(fn numbers['a](blocks: &'a [u8], out: &'a mut [f32]) {
            each_block::<$bytes, $elements>(blocks, out, $block);
        });
        BlockType {
            code: $code,
            name: $name,
            elements: $elements,
            bytes: $bytes,
            numbers: Some(numbers),
        }
    }};
}

#[inline(always)]
fn each_block<const BYTES: usize, const ELEMENTS: usize>(
    blocks: &[u8],
    out: &mut [f32],
    numbers: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let (blocks, out) = (blocks.as_chunks().0, out.as_chunks_mut().0);
    for (block, out) in blocks.iter().zip(out) {
        numbers(block, out);
    }
}

const fn other(code: u32, name: &'static str, elements: usize, bytes: usize) -> BlockType {
    BlockType { code, name, elements, bytes, numbers: None }
}

/// All types that llama.cpp reads. Those that are not read here are listed so that a file's layout can be checked.
pub static TYPES: &[BlockType] = &[
    read!(0, "F32", 1, 4, floats::f32),
    read!(1, "F16", 1, 2, floats::f16),
    read!(30, "BF16", 1, 2, floats::bf16),
    read!(2, "Q4_0", 32, 18, legacy::q4_0),
    read!(3, "Q4_1", 32, 20, legacy::q4_1),
    read!(6, "Q5_0", 32, 22, legacy::q5_0),
    read!(7, "Q5_1", 32, 24, legacy::q5_1),
    read!(8, "Q8_0", 32, 34, legacy::q8_0),
    read!(10, "Q2_K", 256, 84, k_quants::q2_k),
    read!(11, "Q3_K", 256, 110, k_quants::q3_k),
    read!(12, "Q4_K", 256, 144, k_quants::q4_k),
    read!(13, "Q5_K", 256, 176, k_quants::q5_k),
    read!(14, "Q6_K", 256, 210, k_quants::q6_k),
    read!(19, "IQ1_S", 256, 50, i_quants::iq1_s),
    read!(29, "IQ1_M", 256, 56, i_quants::iq1_m),
    read!(16, "IQ2_XXS", 256, 66, i_quants::iq2_xxs),
    read!(17, "IQ2_XS", 256, 74, i_quants::iq2_xs),
    read!(22, "IQ2_S", 256, 82, i_quants::iq2_s),
    read!(18, "IQ3_XXS", 256, 98, i_quants::iq3_xxs),
    read!(21, "IQ3_S", 256, 110, i_quants::iq3_s),
    read!(20, "IQ4_NL", 32, 18, i_quants::iq4_nl),
    read!(23, "IQ4_XS", 256, 136, i_quants::iq4_xs),
    read!(34, "TQ1_0", 256, 54, ternary::tq1_0),
    read!(35, "TQ2_0", 256, 66, ternary::tq2_0),
    read!(41, "Q1_0", 128, 18, ternary::q1_0),
    read!(42, "Q2_0", 64, 18, ternary::q2_0),
    read!(39, "MXFP4", 32, 17, microscaling::mxfp4),
    read!(40, "NVFP4", 64, 36, microscaling::nvfp4),
    other(9, "Q8_1", 32, 36),
    other(15, "Q8_K", 256, 292),
    other(24, "I8", 1, 1),
    other(25, "I16", 1, 2),
    other(26, "I32", 1, 4),
    other(27, "I64", 1, 8),
    other(28, "F64", 1, 8),
];

/// About how many elements one task of the loop dequantizes. Its numbers stay in the processor's caches.
const TASK: usize = 1 << 15;

impl BlockType {
    /// Whether blocks of the type are dequantized.
    pub fn is_read(&self) -> bool {
        self.numbers.is_some()
    }

    /// The bytes of a row of elements, which must be whole blocks.
    pub fn row_bytes(&self, row: usize) -> Option<usize> {
        let blocks = row.is_multiple_of(self.elements).then_some(row / self.elements)?;
        blocks.checked_mul(self.bytes)
    }

    /// The numbers of a tensor's blocks, f32 on a device.
    ///
    /// # Errors
    /// If nothing reads the type, if the blocks are not those of a tensor of this shape, and if the device has no memory
    /// left.
    pub fn dequantized(&self, blocks: &[u8], shape: &[usize], at: &Device) -> Result<Tensor> {
        let Some(numbers) = self.numbers else {
            candle_core::bail!("nothing here dequantizes {}", self.name)
        };
        let elements = self.count(blocks, shape)?;
        if at.is_cuda() && elements > 0 {
            let (of, grid) = ((self.name, self.elements), i_quants::grid_of(self.name));
            return cuda::dequantized(of, grid, blocks, shape, at);
        }
        Tensor::from_vec(self.on_host(numbers, blocks, elements), shape, &HOST)?.to_device(at)
    }

    /// How many elements a tensor has, if the blocks are its.
    fn count(&self, blocks: &[u8], shape: &[usize]) -> Result<usize> {
        let row = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().rev().skip(1).try_fold(1usize, |n, dim| n.checked_mul(*dim));
        let bytes = rows.zip(self.row_bytes(row)).and_then(|(n, bytes)| n.checked_mul(bytes));
        match (rows, bytes) {
            // as many elements as the bytes hold are no more than memory can have
            (Some(rows), Some(bytes)) if bytes == blocks.len() => Ok(rows * row),
            _ => candle_core::bail!(
                "{} bytes are not the blocks of {} of a tensor of the shape {shape:?}",
                blocks.len(),
                self.name
            ),
        }
    }

    fn on_host(&self, numbers: Loop, blocks: &[u8], elements: usize) -> Vec<f32> {
        let mut out = vec![0f32; elements];
        let per_task = TASK / self.elements;
        let tasks = out.par_chunks_mut(per_task * self.elements);
        tasks
            .zip(blocks.par_chunks(per_task * self.bytes))
            .for_each(|(out, blocks)| numbers(blocks, out));
        out
    }
}

/// Some bytes of a block, or some numbers of a table.
#[inline(always)]
fn taken<T, const N: usize>(from: &[T], start: usize) -> &[T; N] {
    from[start..].first_chunk().expect("it has as many")
}

/// Makes 32 numbers of codes of four bits and their indices. The low halves of the bytes hold the first 16 codes, and
/// the high halves the others.
#[inline(always)]
fn nibbles(bytes: &[u8; 16], out: &mut [f32; 32], number: impl Fn(u8, usize) -> f32) {
    for (i, q) in bytes.iter().enumerate() {
        out[i] = number(q & 15, i);
        out[i + 16] = number(q >> 4, i + 16);
    }
}

/// The number in half precision whose bytes begin here.
#[inline(always)]
fn half_at(block: &[u8], start: usize) -> f32 {
    half(*taken(block, start))
}

/// A number in half precision. Written out, because what the compiler vectorizes must be inlined.
#[inline(always)]
fn half(bytes: [u8; 2]) -> f32 {
    const SUBNORMAL: f32 = 1.0 / (1 << 24) as f32;
    let bits = u32::from(u16::from_le_bytes(bytes));
    let magnitude = bits & 0x7fff;
    // to the exponent of f32, which has another bias; that of infinities and NaN is the largest of both
    let exponent = if magnitude < 0x7c00 { 112 << 23 } else { 224 << 23 };
    let normal = f32::from_bits((magnitude << 13) + exponent);
    let subnormal = magnitude as f32 * SUBNORMAL;
    let number = if magnitude < 0x400 { subnormal } else { normal };
    f32::from_bits(number.to_bits() | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests;
