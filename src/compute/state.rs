//! Access to a state that an op carries from one call to the next, such as that of the delta rule.

use super::op::{change, InPlaceOp};
use candle_core::{Result, Shape, Tensor};
use std::cell::RefCell;

/// Changes the elements of a contiguous tensor of f32 on the CPU. Ops that advance a state do this.
pub(super) fn change_elements(tensor: &Tensor, f: impl FnOnce(&mut [f32])) -> Result<()> {
    change(&Closure(RefCell::new(Some(f))), tensor)
}

/// An op that calls a closure.
pub(super) struct Closure<F>(RefCell<Option<F>>);

impl<F: FnOnce(&mut [f32])> InPlaceOp for Closure<F> {
    const NAME: &'static str = "carry-on";

    fn cpu(&self, x: &mut [f32], _: &Shape) -> Result<()> {
        if let Some(f) = self.0.take() {
            f(x);
        }
        Ok(())
    }
}
