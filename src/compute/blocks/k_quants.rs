//! The k-quants: blocks of 256 numbers in groups of 16 or 32, whose scales are integers of few bits times a scale of the
//! whole block.

use super::{half_at, taken};

#[inline(always)]
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let scales: &[u8; 16] = taken(block, 0);
    let (d, m) = (half_at(block, 80), half_at(block, 82));
    for (pair, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let codes: &[u8; 32] = taken(block, 16 + 32 * (pair / 4));
        let shift = 2 * (pair % 4);
        for (half, scale) in taken::<_, 2>(scales, 2 * pair).iter().enumerate() {
            let (d, m) = (d * f32::from(scale & 15), m * f32::from(scale >> 4));
            for i in 16 * half..16 * (half + 1) {
                out[i] = d * f32::from(codes[i] >> shift & 3) - m;
            }
        }
    }
}

#[inline(always)]
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let highs: &[u8; 32] = taken(block, 0);
    let scales = q3_k_scales(taken(block, 96));
    let d = half_at(block, 108);
    for (pair, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let codes: &[u8; 32] = taken(block, 32 + 32 * (pair / 4));
        let shift = 2 * (pair % 4);
        for (half, scale) in taken::<_, 2>(&scales, 2 * pair).iter().enumerate() {
            let d = d * f32::from(*scale);
            for i in 16 * half..16 * (half + 1) {
                // 4 is taken off where the third bit is not set
                let q = (codes[i] >> shift & 3) | (highs[i] >> pair & 1) << 2;
                out[i] = d * (f32::from(q) - 4.0);
            }
        }
    }
}

/// Sixteen scales of six bits: the low four in eight bytes, first the low halves and then the high ones, and the high
/// two in four bytes.
#[inline(always)]
fn q3_k_scales(bytes: &[u8; 12]) -> [i8; 16] {
    std::array::from_fn(|i| {
        let low = bytes[i % 8] >> (4 * (i / 8)) & 15;
        let high = bytes[8 + i % 4] >> (2 * (i / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let scales: &[u8; 12] = taken(block, 4);
    for (pair, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let codes: &[u8; 32] = taken(block, 16 + 32 * pair);
        let (low, high) = out.split_at_mut(32);
        let [low_scale, low_least] = scale_and_least(scales, 2 * pair);
        let [high_scale, high_least] = scale_and_least(scales, 2 * pair + 1);
        let (low_d, low_m) = (d * low_scale, m * low_least);
        let (high_d, high_m) = (d * high_scale, m * high_least);
        for ((low, high), q) in low.iter_mut().zip(high).zip(codes) {
            *low = low_d * f32::from(q & 15) - low_m;
            *high = high_d * f32::from(q >> 4) - high_m;
        }
    }
}

#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let scales: &[u8; 12] = taken(block, 4);
    let fifths: &[u8; 32] = taken(block, 16);
    for (pair, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let codes: &[u8; 32] = taken(block, 48 + 32 * pair);
        let (low, high) = out.split_at_mut(32);
        let [low_scale, low_least] = scale_and_least(scales, 2 * pair);
        let [high_scale, high_least] = scale_and_least(scales, 2 * pair + 1);
        let (low_d, low_m) = (d * low_scale, m * low_least);
        let (high_d, high_m) = (d * high_scale, m * high_least);
        for (((low, high), q), fifth) in low.iter_mut().zip(high).zip(codes).zip(fifths) {
            let bits = fifth >> (2 * pair);
            *low = low_d * f32::from(q & 15 | (bits & 1) << 4) - low_m;
            *high = high_d * f32::from(q >> 4 | (bits >> 1 & 1) << 4) - high_m;
        }
    }
}

/// The scale and the least number of a group, of six bits each: those of the first four groups in the low six bits of a
/// byte each; those of the others in the two halves of a byte, with their high bits in what the first four leave over.
#[inline(always)]
fn scale_and_least(bytes: &[u8; 12], group: usize) -> [f32; 2] {
    let both = if group < 4 {
        [bytes[group] & 63, bytes[group + 4] & 63]
    } else {
        let low = bytes[group + 4];
        let high = [bytes[group - 4] >> 6, bytes[group] >> 6];
        [low & 15 | high[0] << 4, low >> 4 | high[1] << 4]
    };
    both.map(f32::from)
}

#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let scales: &[u8; 16] = taken(block, 192);
    let d = half_at(block, 208);
    for (half, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let highs: &[u8; 32] = taken(block, 128 + 32 * half);
        for (quarter, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let codes: &[u8; 32] = taken(block, 64 * half + 32 * (quarter % 2));
            let (low_shift, high_shift) = (4 * (quarter / 2), 2 * quarter);
            let scales: &[u8; 2] = taken(scales, 8 * half + 2 * quarter);
            for (part, scale) in scales.iter().enumerate() {
                let d = d * f32::from(*scale as i8);
                for i in 16 * part..16 * (part + 1) {
                    let q = codes[i] >> low_shift & 15 | (highs[i] >> high_shift & 3) << 4;
                    out[i] = d * (f32::from(q) - 32.0);
                }
            }
        }
    }
}
