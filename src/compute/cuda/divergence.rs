//! The launch of the sums over a tile of the vocabulary.

use super::by_value::{by_value, size};
use super::constants::divergence::{ARGUMENT_BYTES, KEPT_BYTES, LANE_BYTES, NUMBERS, THREADS};
use super::kernels::DIVERGENCE;
use super::launch::{empty, most_shared, Call, Grid, Place};
use super::BROKEN;
use crate::compute::divergence::{self, TileSums};
use crate::compute::op::{Kernel, Op};
use candle_core::backend::BackendStorage;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Layout, Result, Shape};

const _: () = assert!(NUMBERS == divergence::NUMBERS, "the kernel writes what the host reads");

by_value! {
    /// `TileSums` in `divergence.cu`.
    struct Arguments<'a>: ARGUMENT_BYTES bytes {
        logits: Place<'a, f32>,
        targets: Place<'a, u32>,
        known: Place<'a, f32>,
        out: Place<'a, f64>,
        flags: Place<'a, u32>,
        lanes: i32,
        positions: i32,
        width: i32,
        start: u32,
        code: u32,
    }
}

/// How many lanes fit into a block's shared memory.
pub(super) fn most_lanes(device: &CudaDevice) -> Result<usize> {
    Ok(most_shared(device)?.saturating_sub(KEPT_BYTES) / LANE_BYTES)
}

impl Kernel<2> for TileSums<'_> {
    fn launch(
        &self,
        _: &'static str,
        [logits, known]: [(&CudaStorage, &Layout); 2],
    ) -> Result<(CudaStorage, Shape)> {
        let shape = Op::<2, f64>::shape(self, [logits.1.shape(), known.1.shape()])?;
        let (positions, width) = (self.targets.dim(0)?, logits.1.shape().dims2()?.1);
        let device = logits.0.device();
        let out = empty(device, &shape, DType::F64)?;
        let flags = self.finite.words(self.lanes, &Device::Cuda(device.clone()))?;
        let arguments = Arguments {
            logits: Place::of_input(logits)?,
            targets: Place::of(self.targets)?,
            known: Place::of_input(known)?,
            out: Place::of_storage(&out)?,
            flags: Place::of(&flags)?,
            lanes: size(self.lanes)?,
            positions: size(positions)?,
            width: size(width)?,
            start: self.start,
            code: size(BROKEN)?,
        };
        let shared = KEPT_BYTES + LANE_BYTES * self.lanes;
        Call::new(device, &DIVERGENCE, "tile_sums")?
            .value(&arguments)
            .launch(Grid { shared, ..Grid::row(positions, THREADS) })?;
        Ok((out, shape))
    }
}
