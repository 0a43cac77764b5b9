//! Small computations that several codecs share.

/// The element with the largest magnitude, with its sign. If several have it, the first one counts, as in
/// ggml.
#[inline(always)]
pub(super) fn extreme(x: &[f32; 32]) -> f32 {
    x.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m })
}

/// The largest magnitude.
#[inline(always)]
pub(super) fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0f32, |m, v| m.max(v.abs()))
}

/// The smallest and the largest element.
#[inline(always)]
pub(super) fn range(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::MAX, f32::MIN), |(lo, hi), &v| {
        (if v < lo { v } else { lo }, if v > hi { v } else { hi })
    })
}

/// The scale d for which `levels`·d is nearest to `x`, with errors weighted by x² as in ggml. `None` if
/// all levels or all elements are zero.
#[inline(always)]
pub(super) fn refitted(x: &[f32; 32], levels: &[f32; 32]) -> Option<f32> {
    let (mut num, mut den) = (0.0f32, 0.0f32);
    for (&v, &l) in x.iter().zip(levels) {
        let w = v * v;
        num += w * l * v;
        den += w * l * l;
    }
    (den > 0.0).then(|| num / den)
}

/// 1/d, or 0 if the scale of a block is 0. As in ggml, `d` is the scale before it is rounded to half.
#[inline(always)]
pub(super) fn inverse(d: f32) -> f32 {
    if d != 0.0 {
        1.0 / d
    } else {
        0.0
    }
}

/// Writes `v`, rounded to half precision, at byte `at`.
#[inline(always)]
pub(super) fn put_half(bytes: &mut [u8], at: usize, v: f32) {
    bytes[at..at + 2].copy_from_slice(&half::f16::from_f32(v).to_le_bytes());
}

/// Reads what [`put_half`] wrote.
#[inline(always)]
pub(super) fn get_half(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}
