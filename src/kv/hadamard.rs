//! The Hadamard transform, which spreads an outlier over its whole block.

use crate::compute::simd::vectorized;

/// Multiplies each block of `size` elements by the orthonormal Hadamard matrix in natural order,
/// H\[i\]\[j\] = (-1)^popcount(i & j) / √size, which is its own inverse.
///
/// # Panics
/// If `size` is not a power of two of at least 16.
pub fn hadamard(x: &mut [f32], size: usize) {
    // ggml scales first and adds afterwards
    scaled_hadamard(x, size, 1.0 / (size as f32).sqrt());
}

/// The same with another factor in place of 1/√size. With factor 1, applying it twice multiplies by `size`.
///
/// # Panics
/// If `size` is not a power of two of at least 16.
pub(super) fn scaled_hadamard(x: &mut [f32], size: usize, scale: f32) {
    assert!(size.is_power_of_two() && size >= 16);
    transform_blocks(x, size, scale);
}

/// Changes the sign of element i if bit i%8 of `signs[i/8]` is set.
pub(super) fn change_signs(x: &mut [f32], signs: &[u8]) {
    for (i, v) in x.iter_mut().enumerate() {
        if signs[i / 8] >> (i % 8) & 1 == 1 {
            *v = -*v;
        }
    }
}

vectorized!(fn transform_blocks['a](x: &'a mut [f32], size: usize, scale: f32) {
    for block in x.chunks_exact_mut(size) {
        for v in block.iter_mut() {
            *v *= scale;
        }
        for sixteen in block.as_chunks_mut::<16>().0 {
            butterflies_16(sixteen);
        }
        butterflies(block, 16, size);
    }
});

/// The stages of the fast transform from distance `half` up to `size`/2, in each block of `size` elements:
/// a and b, `half` elements apart, become a + b and a - b.
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

/// The stages of distance 1, 2, 4 and 8. Each element becomes its partner plus or minus itself, which is
/// the same as in [`butterflies`] and fills a vector register.
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
}
