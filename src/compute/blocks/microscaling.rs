//! The microscaling types: floats of 4 bits (E2M1) with a scale that is a float of 8 bits.

use super::{nibbles, taken};

/// Twice the numbers of E2M1. Scales are halved in return.
const E2M1: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

#[inline(always)]
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let d = half_of_power(block[0]);
    nibbles(taken(block, 1), out, |q, _| d * E2M1[usize::from(q)]);
}

/// Half of the power of two that an E8M0 is, 2^(e - 128). The two smallest are subnormal numbers. 255, which the format
/// calls NaN, is a power like all others to ggml.
#[inline(always)]
fn half_of_power(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x20_0000 << e } else { (u32::from(e) - 1) << 23 })
}

#[inline(always)]
pub(super) fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let d = half_of_e4m3(block[part]);
        let codes: &[u8; 8] = taken(block, 4 + 8 * part);
        for (i, q) in codes.iter().enumerate() {
            out[i] = d * E2M1[usize::from(q & 15)];
            out[i + 8] = d * E2M1[usize::from(q >> 4)];
        }
    }
}

/// Half of an E4M3, whose sign ggml does not look at. It takes NaN without a sign for 0.
#[inline(always)]
fn half_of_e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (bits >> 3 & 15, bits & 7);
    let power = |exponent: u8| f32::from_bits((u32::from(exponent) + 127 - 11) << 23);
    match (exponent, bits) {
        (_, 0x7f) => 0.0,
        (0, _) => f32::from(mantissa) * power(1),
        _ => f32::from(8 + mantissa) * power(exponent),
    }
}
