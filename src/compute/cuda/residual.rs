//! The launch of the sum into the residual stream.

use super::kernels::RESIDUAL;
use super::launch::{empty, Call, Grid, Place};
use super::{padded_bytes, BROKEN, THREADS};
use crate::compute::op::{Kernel, Op};
use crate::compute::residual::Residual;
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Device, Layout, Result, Shape};

impl Kernel<2> for Residual<'_> {
    fn launch(
        &self,
        _: &'static str,
        [x, y]: [(&CudaStorage, &Layout); 2],
    ) -> Result<(CudaStorage, Shape)> {
        let shape = Op::<2>::shape(self, [x.1.shape(), y.1.shape()])?;
        let (rows, width) = shape.dims2()?;
        let device = x.0.device();
        let at = Device::Cuda(device.clone());
        let out = empty(device, &shape, DType::F32)?;
        let flags = self.finite.map(|finite| finite.words(self.lanes, &at)).transpose()?;
        let shared = self.norm.map_or(0, |_| padded_bytes(width));
        Call::new(device, &RESIDUAL, "residual")?
            .at(Place::<f32>::of_input(x)?)
            .at(Place::<f32>::of_input(y)?)
            .at(Place::<f32>::of_optional(self.norm.map(|norm| &norm.weight))?)
            .at(Place::<f32>::of_storage(&out)?)
            .at(Place::<u32>::of_optional(flags.as_ref())?)
            .size(BROKEN)?
            .size(rows / self.lanes)?
            .size(width)?
            .real(self.norm.map_or(0.0, |norm| norm.eps))
            .real(self.scale.unwrap_or(1.0))
            .flag(self.scale.is_some())
            .launch(Grid { shared, ..Grid::row(rows, THREADS) })?;
        Ok((out, shape))
    }
}
