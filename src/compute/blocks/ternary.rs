//! Types of very few values: -1, 0 and 1 times a scale, and their relatives of one and two bits.

use super::{half_at, taken};

/// A byte stands for five digits to the base of 3: it is ⌈n·256/243⌉ for their number n. The first digit is the first of
/// the three thirds in which the byte lies; the byte times 3, 9, 27 or 81, modulo 256, gives the others in the same way.
#[inline(always)]
pub(super) fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let d = half_at(block, 52);
    let (first, rest) = out.split_at_mut(160);
    let (second, third) = rest.split_at_mut(80);
    digits::<32>(taken(block, 0), first, d);
    digits::<16>(taken(block, 32), second, d);
    digits::<4>(taken(block, 48), third, d);
}

/// The first digits of all bytes, then their second digits, and so on.
#[inline(always)]
fn digits<const N: usize>(bytes: &[u8; N], out: &mut [f32], d: f32) {
    let mut power = 1u8;
    for out in out.as_chunks_mut::<N>().0 {
        for (out, byte) in out.iter_mut().zip(bytes) {
            let digit = (u16::from(byte.wrapping_mul(power)) * 3) >> 8;
            *out = d * (f32::from(digit) - 1.0);
        }
        power = power.wrapping_mul(3);
    }
}

#[inline(always)]
pub(super) fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half_at(block, 64);
    for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let codes: &[u8; 32] = taken(block, 32 * (part / 4));
        for (out, q) in out.iter_mut().zip(codes) {
            *out = d * (f32::from(q >> (2 * (part % 4)) & 3) - 1.0);
        }
    }
}

#[inline(always)]
pub(super) fn q1_0(block: &[u8; 18], out: &mut [f32; 128]) {
    let d = half_at(block, 0);
    for (out, bits) in out.as_chunks_mut::<8>().0.iter_mut().zip(&block[2..]) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = if bits >> i & 1 == 1 { d } else { -d };
        }
    }
}

#[inline(always)]
pub(super) fn q2_0(block: &[u8; 18], out: &mut [f32; 64]) {
    let d = half_at(block, 0);
    for (out, codes) in out.as_chunks_mut::<4>().0.iter_mut().zip(&block[2..]) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = (f32::from(codes >> (2 * i) & 3) - 1.0) * d;
        }
    }
}
