//! Looks for numbers that are not finite in a whole tensor, on whatever device it is.

use super::cuda;
use super::elements::read;
use super::finite::all_finite;
use candle_core::{Result, Tensor};

/// Index and value of the first element that is NaN or infinite. Elements on a card are copied from it only if there is
/// such a one.
pub(crate) fn first_non_finite(tensor: &Tensor) -> Result<Option<(usize, f32)>> {
    if tensor.device().is_cuda() && cuda::all_finite(tensor)? {
        return Ok(None);
    }
    read(tensor, |x: &[f32]| {
        if all_finite(x) {
            return None;
        }
        x.iter().copied().enumerate().find(|(_, v)| !v.is_finite())
    })
}
