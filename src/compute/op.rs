//! What an op is: one step of a model, with a name, the shape of its result and a loop for the CPU.
//!
//! An op runs as one of candle's custom ops, which find the device that the tensors are on. Its kernel for CUDA cards
//! is its implementation of [`Kernel`] or [`InPlaceKernel`] in `cuda/`.

use super::elements::{contiguous, contiguous_mut};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, InplaceOp1, Layout};
use candle_core::{Result, Shape, Tensor, WithDType};
use std::marker::PhantomData;

/// How many rows one task of a loop over rows works on.
pub(super) const ROWS: usize = 64;

/// A step that makes a new tensor of `T` from `N` contiguous tensors of f32.
///
/// Whatever else it reads, such as weights, is a tensor or a number in the op itself.
pub(crate) trait Op<const N: usize, T = f32> {
    /// The op's name in errors.
    const NAME: &'static str;

    /// The shape of the result.
    ///
    /// # Errors
    /// If the shapes of the inputs do not fit the op or each other.
    fn shape(&self, inputs: [&Shape; N]) -> Result<Shape>;

    /// Computes the result on the CPU. `out` has as many elements as the shape says, all of them 0.
    ///
    /// # Errors
    /// If tensors of the op itself are not on the CPU, or are not contiguous.
    fn cpu(&self, inputs: [Input; N], out: &mut [T]) -> Result<()>;
}

/// A step that changes a contiguous tensor of f32 where it is.
pub(crate) trait InPlaceOp {
    /// The op's name in errors.
    const NAME: &'static str;

    /// Changes the tensor's elements on the CPU.
    ///
    /// # Errors
    /// If the shape does not fit the op, or if tensors of the op itself are not on the CPU.
    fn cpu(&self, x: &mut [f32], shape: &Shape) -> Result<()>;
}

/// The twin of an [`Op`] on CUDA cards.
pub(super) trait Kernel<const N: usize> {
    /// Computes the op's result from its inputs.
    fn launch(
        &self,
        name: &'static str,
        inputs: [(&CudaStorage, &Layout); N],
    ) -> Result<(CudaStorage, Shape)>;
}

/// The twin of an [`InPlaceOp`] on CUDA cards.
pub(super) trait InPlaceKernel {
    /// Changes the op's tensor.
    fn launch(&self, name: &'static str, x: &mut CudaStorage, layout: &Layout) -> Result<()>;
}

/// The elements of an input on the CPU.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub x: &'a [f32],
    pub shape: &'a Shape,
}

/// Runs an op on tensors of one device.
///
/// # Errors
/// What the op refuses, and a device that it has no kernel for.
#[allow(private_bounds)] // kernels are this folder's own business
pub(crate) fn run<O, T, const N: usize>(op: &O, inputs: [&Tensor; N]) -> Result<Tensor>
where
    O: Op<N, T> + Kernel<N>,
    T: WithDType,
{
    const { assert!(N == 1 || N == 2, "candle's ops take up to three tensors; add the third here") };
    let launch = Launch { op, element: PhantomData };
    match inputs[..] {
        [x, y] => x.apply_op2_no_bwd(y, &launch),
        _ => inputs[0].apply_op1_no_bwd(&launch),
    }
}

/// Changes a tensor by an op.
///
/// # Errors
/// As of [`run`].
#[allow(private_bounds)]
pub(crate) fn change<O: InPlaceOp + InPlaceKernel>(op: &O, x: &Tensor) -> Result<()> {
    x.inplace_op1(&LaunchInPlace(op))
}

/// An op in the form that candle takes.
struct Launch<'a, O, T, const N: usize> {
    op: &'a O,
    element: PhantomData<T>,
}

impl<O: Op<N, T> + Kernel<N>, T: WithDType, const N: usize> Launch<'_, O, T, N> {
    fn cpu(&self, inputs: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        let shape = self.op.shape(std::array::from_fn(|i| inputs[i].1.shape()))?;
        let mut out = vec![T::zero(); shape.elem_count()];
        let mut elements = [Input { x: &[], shape: &shape }; N];
        for (input, (storage, layout)) in elements.iter_mut().zip(inputs) {
            *input = Input { x: contiguous(storage, layout)?, shape: layout.shape() };
        }
        self.op.cpu(elements, &mut out)?;
        Ok((T::to_cpu_storage_owned(out), shape))
    }

    fn cuda(&self, inputs: &[(&CudaStorage, &Layout)]) -> Result<(CudaStorage, Shape)> {
        self.op.launch(O::NAME, std::array::from_fn(|i| inputs[i]))
    }
}

impl<O: Op<N, T> + Kernel<N>, T: WithDType, const N: usize> CustomOp1 for Launch<'_, O, T, N> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu(&[(x, layout)])
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda(&[(x, layout)])
    }
}

impl<O: Op<N, T> + Kernel<N>, T: WithDType, const N: usize> CustomOp2 for Launch<'_, O, T, N> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu(&[(x, x_layout), (y, y_layout)])
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        y: &CudaStorage,
        y_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda(&[(x, x_layout), (y, y_layout)])
    }
}

/// An op in place in the form that candle takes.
struct LaunchInPlace<'a, O>(&'a O);

impl<O: InPlaceOp + InPlaceKernel> InplaceOp1 for LaunchInPlace<'_, O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.0.cpu(contiguous_mut(x, layout)?, layout.shape())
    }

    fn cuda_fwd(&self, x: &mut CudaStorage, layout: &Layout) -> Result<()> {
        self.0.launch(O::NAME, x, layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::gate::SigmoidGate;
    use crate::compute::textbook::place;

    #[test]
    fn an_op_refuses_what_is_not_contiguous() {
        let x = Tensor::new(&[[1.0f32, 2.0], [3.0, 4.0]], &place()).unwrap();
        let gate = SigmoidGate { start: 0 };
        assert!(run(&gate, [&x, &x]).is_ok());
        let error = run(&gate, [&x, &x.t().unwrap()]).unwrap_err().to_string();
        assert!(error.contains("needs contiguous"), "{error}");
    }
}
