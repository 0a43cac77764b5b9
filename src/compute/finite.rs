//! Whether numbers are finite.

use super::elements::read;
use super::simd::vectorized;
use candle_core::{Device, Result, Tensor};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Remembers whether all numbers that ops have checked are finite.
///
/// An op checks the numbers while it has them at hand, and goes on whatever it finds. The caller reads the flag once
/// for all ops of a layer, because a device keeps the flag in its own memory and reading it waits for the device.
#[derive(Debug, Clone, Default)]
pub(crate) struct FiniteFlag {
    is_broken: Arc<AtomicBool>,
    /// What the kernels of a device write: a word for each lane, which is 0 once the lane is broken.
    words: Arc<OnceLock<Tensor>>,
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

    /// The words that a kernel writes, (lanes) as u32. They are made when the first kernel asks for them.
    ///
    /// # Errors
    /// If the device has no memory left, or another kernel had another number of lanes.
    pub fn words(&self, lanes: usize, device: &Device) -> Result<Tensor> {
        if self.words.get().is_none() {
            // another thread may be first, whose words are as good
            let _ = self.words.set(Tensor::full(u32::MAX, lanes, device)?);
        }
        let words = self.words.get().expect("was set");
        if words.elem_count() != lanes {
            candle_core::bail!("a flag of {} lanes is used for {lanes}", words.elem_count());
        }
        Ok(words.clone())
    }

    /// Whether all numbers so far were finite, in all lanes.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn is_finite(&self) -> Result<bool> {
        Ok(self.by_lane(1)?.into_iter().all(|is_finite| is_finite))
    }

    /// The same for each lane. A flag that only loops on the CPU have written does not tell `lanes` apart.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn by_lane(&self, lanes: usize) -> Result<Vec<bool>> {
        Ok(Self::all_by_lane([(self, lanes)].into_iter())?.swap_remove(0))
    }

    /// The same for several flags, each with its number of lanes. All of them are read from the device at once.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn all_by_lane<'a>(
        flags: impl Iterator<Item = (&'a Self, usize)>,
    ) -> Result<Vec<Vec<bool>>> {
        let flags: Vec<_> = flags.collect();
        let words: Vec<_> = flags.iter().filter_map(|(flag, _)| flag.words.get()).collect();
        let words = if words.is_empty() {
            Vec::new()
        } else {
            read(&Tensor::cat(&words, 0)?, |words: &[u32]| words.to_vec())?
        };
        let mut rest = words.iter();
        let by_lane = flags.iter().map(|(flag, lanes)| {
            let is_finite = !flag.is_broken.load(Ordering::Relaxed);
            match flag.words.get() {
                None => vec![is_finite; *lanes],
                Some(words) => {
                    let own = rest.by_ref().take(words.elem_count());
                    own.map(|word| is_finite && *word == u32::MAX).collect()
                }
            }
        });
        Ok(by_lane.collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_breaks_a_flag_for_good() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 63, 64, 99] {
                let mut x = [f32::MAX; 100];
                let flag = FiniteFlag::default();
                assert!(flag.look_at(&x) && flag.clone().is_finite().unwrap());
                x[place] = bad;
                assert!(!flag.clone().look_at(&x), "{bad} at {place}");
                assert!(flag.look_at(&[1.0]) && !flag.is_finite().unwrap());
                assert_eq!(flag.by_lane(2).unwrap(), [false; 2]);
            }
        }
    }
}
