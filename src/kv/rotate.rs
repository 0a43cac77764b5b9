//! llama.cpp's automatic Hadamard rotation of quantized caches (PR #21038, rules as of b11434).
//!
//! A rotation spreads an outlier over its whole block before the codec sees it. Q·K and the sum over
//! V are unchanged by an orthogonal transform on both sides; here the cache rotates what it stores
//! and rotates back what it serves, so that nothing outside of it knows.

use super::codec::Codec;
use crate::compute::simd::vectorized;

/// V is always rotated in blocks of this size, K in the largest 2^t multiple of it that divides the
/// head. Heads that it does not divide are not rotated.
const UNIT: usize = 64;

/// Size of the rotation of K for heads of `head_dim` elements under `codec`, if there is one.
pub fn k_size(codec: &dyn Codec, head_dim: usize) -> Option<usize> {
    v_size(codec, head_dim)?;
    let mut size = UNIT;
    while head_dim.is_multiple_of(2 * size) {
        size *= 2;
    }
    Some(size)
}

/// Size of the rotation of V.
pub fn v_size(codec: &dyn Codec, head_dim: usize) -> Option<usize> {
    (codec.is_rotated() && head_dim > 0 && head_dim.is_multiple_of(UNIT)).then_some(UNIT)
}

/// Multiplies each block of `size` elements by the orthonormal Hadamard matrix in natural order,
/// H\[i\]\[j\] = (-1)^popcount(i & j) / √size, which is its own inverse.
///
/// # Panics
/// If `size` is not a power of two of at least 16.
pub fn hadamard(x: &mut [f32], size: usize) {
    // as in ggml the scale comes first, then the butterflies
    scaled_hadamard(x, size, 1.0 / (size as f32).sqrt());
}

/// The same with another factor than 1/√size; of factor 1, it is `size` times its own inverse.
///
/// # Panics
/// As [`hadamard`].
pub(super) fn scaled_hadamard(x: &mut [f32], size: usize, scale: f32) {
    assert!(size.is_power_of_two() && size >= 16);
    blocks(x, size, scale);
}

/// Changes the sign of element i where bit i%8 of `signs[i/8]` is set.
pub(super) fn change_signs(x: &mut [f32], signs: &[u8]) {
    for (i, v) in x.iter_mut().enumerate() {
        if signs[i / 8] >> (i % 8) & 1 == 1 {
            *v = -*v;
        }
    }
}

vectorized!(fn blocks['a](x: &'a mut [f32], size: usize, scale: f32) {
    for block in x.chunks_exact_mut(size) {
        for v in block.iter_mut() {
            *v *= scale;
        }
        for lane in block.as_chunks_mut::<16>().0 {
            butterflies_16(lane);
        }
        butterflies(block, 16, size);
    }
});

/// The stages of distance `half` to `size`/2, in each block of `size` elements.
#[inline(always)]
pub(super) fn butterflies(x: &mut [f32], mut half: usize, size: usize) {
    while half < size {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// The stages of distance 1, 2, 4 and 8: each is a sum of the lane and its partners with a sign.
#[inline(always)]
fn butterflies_16(x: &mut [f32; 16]) {
    for half in [1, 2, 4, 8] {
        let sum: [f32; 16] = std::array::from_fn(|i| {
            let sign = if i & half == 0 { 1.0 } else { -1.0 };
            x[i ^ half] + sign * x[i]
        });
        *x = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::codec;

    #[test]
    fn known_vectors() {
        let mut x = [0.0f32; 64];
        x[1] = 1.0;
        hadamard(&mut x, 64);
        let want: [f32; 64] = std::array::from_fn(|i| if i % 2 == 0 { 0.125 } else { -0.125 });
        assert_eq!(x, want);
    }

    #[test]
    fn equals_the_matrix_and_is_its_own_inverse() {
        for size in [64usize, 128, 256] {
            let x: Vec<f32> = (0..size).map(|i| ((i * 37 + 11) % 101) as f32 - 50.0).collect();
            let mut y = x.clone();
            hadamard(&mut y, size);
            for (i, y) in y.iter().enumerate() {
                let sign =
                    |j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                let want: f64 = x.iter().enumerate().map(|(j, x)| sign(j) * f64::from(*x)).sum();
                let want = want / (size as f64).sqrt();
                assert!((f64::from(*y) - want).abs() < 1e-3, "{size}: {y} != {want}");
            }
            hadamard(&mut y, size);
            assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-3));
        }
    }

    #[test]
    fn sizes_follow_the_rule() {
        let (q4, f16) = (codec::find("q4_0").unwrap(), codec::find("f16").unwrap());
        let sizes = |d| (k_size(q4, d), v_size(q4, d));
        assert_eq!(sizes(64), (Some(64), Some(64)));
        assert_eq!(sizes(128), (Some(128), Some(64)));
        assert_eq!(sizes(192), (Some(64), Some(64)));
        assert_eq!(sizes(256), (Some(256), Some(64)));
        assert_eq!(sizes(320), (Some(64), Some(64)));
        assert_eq!(sizes(96), (None, None));
        assert_eq!((k_size(f16, 64), v_size(f16, 64)), (None, None));
    }
}
