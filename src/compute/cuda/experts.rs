//! The launches of a mixture's ops.

use super::constants::experts::THREADS;
use super::constants::warp::WARP;
use super::kernels::EXPERTS;
use super::launch::{empty, Call, Grid, Place};
use super::BROKEN;
use crate::compute::experts::{ExpertChoice, Scoring, WeightedScatter};
use crate::compute::op::{InPlaceKernel, Kernel, Op};
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Device, Layout, Result, Shape};

/// The rows of a block, one a warp.
const ROWS: usize = THREADS / WARP;

impl Kernel<1> for ExpertChoice<'_> {
    fn launch(
        &self,
        _: &'static str,
        [logits]: [(&CudaStorage, &Layout); 1],
    ) -> Result<(CudaStorage, Shape)> {
        let shape = Op::<1>::shape(self, [logits.1.shape()])?;
        let (rows, count) = logits.1.shape().dims2()?;
        let device = logits.0.device();
        let flags = self.finite.words(1, &Device::Cuda(device.clone()))?;
        let out = empty(device, &shape, DType::F32)?;
        let correction = match self.scoring {
            Scoring::Softmax => None,
            Scoring::Sigmoid { correction } => Some(correction),
        };
        Call::new(device, &EXPERTS, "expert_choice")?
            .at(Place::<f32>::of_input(logits)?)
            .at(Place::<f32>::of_optional(correction)?)
            .at(Place::<f32>::of_optional(self.scales)?)
            .at(Place::<f32>::of_storage(&out)?)
            .at(Place::<u32>::of(&flags)?)
            .size(rows)?
            .size(count)?
            .size(self.used)?
            .flag(self.normalised)
            .size(BROKEN)?
            .launch(Grid::row(rows.div_ceil(ROWS), THREADS))?;
        Ok((out, shape))
    }
}

impl InPlaceKernel for WeightedScatter<'_> {
    fn launch(&self, _: &'static str, x: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let (count, width) = self.y.dims2()?;
        let device = x.device().clone();
        Call::new(&device, &EXPERTS, "weighted_scatter")?
            .at(Place::<f32>::of_input((x, layout))?)
            .at(Place::<u32>::of_optional(self.rows)?)
            .at(Place::<f32>::of(self.weights)?)
            .at(Place::<f32>::of(self.y)?)
            .size(width)?
            .launch(Grid::row(count, THREADS))
    }
}
