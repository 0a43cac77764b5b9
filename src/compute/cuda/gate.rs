//! The launches of ops that multiply by a gate.

use super::constants::common::{CLAMPED, GELU, SILU};
use super::kernels::GATE;
use super::launch::{empty, Call, Grid, Place};
use super::{over_rows, THREADS};
use crate::compute::gate::{Activation, GatedActivation, Sigmoid, SigmoidGate};
use crate::compute::op::{Kernel, Op};
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Shape};

/// The number by which the kernels know an activation.
pub(super) fn code_of(activation: Activation) -> usize {
    match activation {
        Activation::Silu => SILU,
        Activation::GeluTanh => GELU,
        Activation::Clamped => CLAMPED,
    }
}

impl Kernel<1> for GatedActivation {
    fn launch(
        &self,
        _: &'static str,
        [x]: [(&CudaStorage, &Layout); 1],
    ) -> Result<(CudaStorage, Shape)> {
        let shape = Op::<1>::shape(self, [x.1.shape()])?;
        let (rows, width) = shape.dims2()?;
        let device = x.0.device();
        let out = empty(device, &shape, DType::F32)?;
        Call::new(device, &GATE, "gated_activation")?
            .at(Place::<f32>::of_input(x)?)
            .at(Place::<f32>::of_storage(&out)?)
            .size(width)?
            .size(code_of(self.0))?
            .launch(over_rows(rows, width))?;
        Ok((out, shape))
    }
}

impl Kernel<2> for SigmoidGate {
    fn launch(
        &self,
        _: &'static str,
        [x, gate]: [(&CudaStorage, &Layout); 2],
    ) -> Result<(CudaStorage, Shape)> {
        let shape = Op::<2>::shape(self, [x.1.shape(), gate.1.shape()])?;
        let (rows, width) = shape.dims2()?;
        let device = x.0.device();
        let out = empty(device, &shape, DType::F32)?;
        Call::new(device, &GATE, "sigmoid_gate")?
            .at(Place::<f32>::of_input(x)?)
            .at(Place::<f32>::of_input(gate)?)
            .at(Place::<f32>::of_storage(&out)?)
            .size(width)?
            .size(gate.1.shape().dims2()?.1)?
            .size(self.start)?
            .launch(over_rows(rows, width))?;
        Ok((out, shape))
    }
}

impl Kernel<1> for Sigmoid {
    fn launch(
        &self,
        _: &'static str,
        [x]: [(&CudaStorage, &Layout); 1],
    ) -> Result<(CudaStorage, Shape)> {
        let shape = x.1.shape().clone();
        let device = x.0.device();
        let out = empty(device, &shape, DType::F32)?;
        Call::new(device, &GATE, "sigmoid")?
            .at(Place::<f32>::of_input(x)?)
            .at(Place::<f32>::of_storage(&out)?)
            .wide(shape.elem_count())
            .launch(Grid::over(shape.elem_count(), THREADS))?;
        Ok((out, shape))
    }
}
