//! Stands in for kernels of CUDA devices as long as there are none. An op that meets a tensor on such a device fails
//! and says that it has no kernel.

use candle_core::{CudaStorage, Layout, Result, Shape};

/// The twin of an [`Op`](super::op::Op) on CUDA devices.
pub(super) trait Kernel<const N: usize> {
    /// Computes the op's result from its inputs.
    fn launch(
        &self,
        name: &'static str,
        _inputs: [(&CudaStorage, &Layout); N],
    ) -> Result<(CudaStorage, Shape)> {
        candle_core::bail!("`{name}` has no kernel for CUDA devices")
    }
}

/// The twin of an [`InPlaceOp`](super::op::InPlaceOp) on CUDA devices.
pub(super) trait InPlaceKernel {
    /// Changes the op's tensor.
    fn launch(&self, name: &'static str, _x: &mut CudaStorage, _layout: &Layout) -> Result<()> {
        candle_core::bail!("`{name}` has no kernel for CUDA devices")
    }
}

impl<O, const N: usize> Kernel<N> for O {}
impl<O> InPlaceKernel for O {}
