//! Types without blocks: floats of 32 and 16 bits.

use super::half;

#[inline(always)]
pub(super) fn f32(bytes: &[u8; 4], out: &mut [f32; 1]) {
    out[0] = f32::from_le_bytes(*bytes);
}

#[inline(always)]
pub(super) fn f16(bytes: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = half(*bytes);
}

#[inline(always)]
pub(super) fn bf16(bytes: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
}
