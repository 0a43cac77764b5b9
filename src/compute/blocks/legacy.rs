//! ggml's first types: blocks of 32 numbers with a scale d, and with a least number m in the types that end with 1.

use super::{half_at, nibbles, taken};

#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    nibbles(taken(block, 2), out, |q, _| d * (f32::from(q) - 8.0));
}

#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    nibbles(taken(block, 4), out, |q, _| d * f32::from(q) + m);
}

#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let fifth = u32::from_le_bytes(*taken(block, 2));
    nibbles(taken(block, 6), out, |q, i| d * (f32::from(with_fifth(q, fifth, i)) - 16.0));
}

#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let fifth = u32::from_le_bytes(*taken(block, 4));
    nibbles(taken(block, 8), out, |q, i| d * f32::from(with_fifth(q, fifth, i)) + m);
}

#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let codes: &[u8; 32] = taken(block, 2);
    for (out, q) in out.iter_mut().zip(codes) {
        *out = f32::from(*q as i8) * d;
    }
}

/// A code of five bits, the highest of which stands apart.
#[inline(always)]
fn with_fifth(low: u8, fifth: u32, index: usize) -> u8 {
    low | ((fifth >> index & 1) as u8) << 4
}
