//! The launch of the kernel that looks for numbers that are not finite.

use super::kernels::FINITE;
use super::launch::{device_of, Call, Grid, Place};
use super::{BROKEN, THREADS};
use crate::compute::finite::FiniteFlag;
use candle_core::{Result, Tensor};

/// Enough blocks for every card.
const MOST_BLOCKS: usize = 4096;

/// Whether all numbers of a contiguous tensor on a card are finite.
pub(in crate::compute) fn all_finite(x: &Tensor) -> Result<bool> {
    let (device, count) = (device_of(x)?, x.elem_count());
    let flag = FiniteFlag::default();
    let words = flag.words(1, x.device())?;
    Call::new(&device, &FINITE, "look_at")?
        .at(Place::<f32>::of(x)?)
        .at(Place::<u32>::of(&words)?)
        .wide(count)
        .size(BROKEN)?
        .launch(Grid::row(count.div_ceil(THREADS).min(MOST_BLOCKS), THREADS))?;
    flag.is_finite()
}
