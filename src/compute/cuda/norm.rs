//! The launch of the RMS norm.

use super::kernels::NORM;
use super::launch::{empty, Call, Grid, Place};
use super::{padded_bytes, THREADS};
use crate::compute::norm::RmsNorm;
use crate::compute::op::{Kernel, Op};
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Shape};

impl Kernel<1> for RmsNorm {
    fn launch(
        &self,
        _: &'static str,
        [x]: [(&CudaStorage, &Layout); 1],
    ) -> Result<(CudaStorage, Shape)> {
        let shape = Op::<1>::shape(self, [x.1.shape()])?;
        let width = self.weight.dim(0)?;
        let device = x.0.device();
        let out = empty(device, &shape, DType::F32)?;
        Call::new(device, &NORM, "rms_norm")?
            .at(Place::<f32>::of_input(x)?)
            .at(Place::<f32>::of(&self.weight)?)
            .at(Place::<f32>::of_storage(&out)?)
            .size(width)?
            .real(self.eps)
            .launch(Grid {
                shared: padded_bytes(width),
                ..Grid::row(shape.elem_count() / width, THREADS)
            })?;
        Ok((out, shape))
    }
}
