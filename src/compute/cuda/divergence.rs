//! The launch of the sums over a tile of the vocabulary.

use super::kernels::DIVERGENCE;
use super::launch::{empty, Call, Grid, Place};
use super::{pair, BROKEN};
use crate::compute::divergence::TileSums;
use crate::compute::op::{Kernel, Op};
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Device, Layout, Result, Shape};

const THREADS: usize = 384;
/// Bytes of shared memory of a block, without those for each lane.
const SHARED: usize = 98_304;
const SHARED_OF_LANE: usize = 296;

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
        let tile = [
            Place::<f32>::of_input(logits)?.address(),
            Place::<u32>::of(self.targets)?.address(),
            Place::<f32>::of_input(known)?.address(),
            Place::<f64>::of_storage(&out)?.address(),
            Place::<u32>::of(&flags)?.address(),
            pair(self.lanes, positions)?,
            pair(width, self.start as usize)?,
            BROKEN as u64,
        ];
        let shared = SHARED + SHARED_OF_LANE * self.lanes;
        Call::new(device, &DIVERGENCE, "tile_sums")?
            .words(&tile)
            .launch(Grid { shared, ..Grid::row(positions, THREADS) })?;
        Ok((out, shape))
    }
}
