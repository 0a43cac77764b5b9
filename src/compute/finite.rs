//! Whether numbers are finite.

use super::elements::read;
use super::simd::vectorized;
use candle_core::{Result, Tensor};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// Remembers whether all numbers that ops have checked are finite.
///
/// An op checks the numbers while it has them at hand, and goes on whatever it finds. The caller reads the flag once
/// for all ops of a layer, because a device keeps the flag in its own memory and reading it waits for the device.
#[derive(Debug, Clone, Default)]
pub(crate) struct FiniteFlag {
    is_broken: Arc<AtomicBool>,
}

impl FiniteFlag {
    /// Checks numbers, and breaks the flag if one is not finite. Gives whether these are all finite.
    pub fn look_at(&self, x: &[f32]) -> bool {
        let is_finite = all_finite(x);
        if !is_finite {
            self.is_broken.store(true, Ordering::Relaxed);
        }
        is_finite
    }

    /// Whether all numbers so far were finite.
    pub fn is_finite(&self) -> bool {
        !self.is_broken.load(Ordering::Relaxed)
    }
}

/// Whether every element is finite.
pub(crate) fn all_finite(x: &[f32]) -> bool {
    sum_of_zeros(x) == 0.0
}

vectorized!(fn sum_of_zeros['a](x: &'a [f32]) -> f32 {
    // NaN and infinities times 0 are NaN, and finite numbers times 0 are 0
    let mut sums = [0.0f32; 64];
    let (blocks, rest) = x.as_chunks::<64>();
    for block in blocks {
        for (sum, v) in sums.iter_mut().zip(block) {
            *sum += v * 0.0;
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|v| v * 0.0).sum::<f32>()
});

/// Index and value of the first element that is NaN or infinite.
pub(crate) fn first_non_finite(tensor: &Tensor) -> Result<Option<(usize, f32)>> {
    read(tensor, |x: &[f32]| {
        if all_finite(x) {
            return None;
        }
        x.iter().copied().enumerate().find(|(_, v)| !v.is_finite())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_breaks_a_flag_for_good() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 63, 64, 99] {
                let mut x = [f32::MAX; 100];
                let flag = FiniteFlag::default();
                assert!(flag.look_at(&x) && flag.clone().is_finite());
                x[place] = bad;
                assert!(!flag.clone().look_at(&x), "{bad} at {place}");
                assert!(flag.look_at(&[1.0]) && !flag.is_finite());
            }
        }
    }
}
