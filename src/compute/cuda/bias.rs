//! The launch of the op that adds a bias.

use super::kernels::BIAS;
use super::launch::{empty, Call, Place};
use super::over_rows;
use crate::compute::bias::Bias;
use crate::compute::op::{Kernel, Op};
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Shape};

impl Kernel<1> for Bias {
    fn launch(
        &self,
        _: &'static str,
        [x]: [(&CudaStorage, &Layout); 1],
    ) -> Result<(CudaStorage, Shape)> {
        let shape = Op::<1>::shape(self, [x.1.shape()])?;
        let width = self.0.dim(0)?;
        let device = x.0.device();
        let out = empty(device, &shape, DType::F32)?;
        Call::new(device, &BIAS, "bias")?
            .at(Place::<f32>::of_input(x)?)
            .at(Place::<f32>::of(&self.0)?)
            .at(Place::<f32>::of_storage(&out)?)
            .size(width)?
            .launch(over_rows(shape.elem_count() / width, width))?;
        Ok((out, shape))
    }
}
