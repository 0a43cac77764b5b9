//! FP4 (e2m1) in small blocks: NVFP4 with e4m3 scales of 16 elements and a scale of the whole tensor, and MXFP4 with
//! powers of two for 32 elements. The first of two elements is in a byte's lower half.

use super::numbers::e2m1;
use super::weight::{by_runs, Dequantize, Grid, Part, Rows};

/// What the scales of the blocks are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whole {
    Nothing,
    /// A scale of the whole tensor, as ModelOpt stores it.
    Times,
    /// Its reciprocal, as compressed-tensors stores it.
    Over,
}

/// Codes, scales, and perhaps a scale of the whole tensor.
pub(super) struct Blocks {
    pub grid: Grid,
    pub whole: Whole,
}

impl Dequantize for Blocks {
    fn rows(&self, parts: &[Part], rows: Rows, out: &mut [f32]) {
        by_runs(&self.grid, rows, out, |at, first, numbers| self.run(parts, at, first, numbers));
    }
}

impl Blocks {
    /// One group of a row of a tensor whose rows have `width` elements.
    pub fn group(&self, parts: &[Part], row: usize, width: usize, group: usize, out: &mut [f32]) {
        let first = row * width + group * self.grid.run();
        self.run(parts, self.grid.row(row) + group, first, out);
    }

    /// Elements from `first` on, with the scale at `at`.
    fn run(&self, parts: &[Part], at: usize, first: usize, out: &mut [f32]) {
        let [codes, scales, whole @ ..] = parts else { return };
        let whole = whole.first().map_or(1.0, |whole| whole.float(0));
        let scale = match self.whole {
            Whole::Nothing => scales.float(at),
            Whole::Times => scales.float(at) * whole,
            Whole::Over => scales.float(at) / whole,
        };
        for (i, x) in out.iter_mut().enumerate() {
            let at = first + i;
            *x = e2m1(codes.bytes[at / 2] >> (4 * (at % 2))) * scale;
        }
    }
}
