//! Access to the data of CPU tensors for the decoder's own kernels.

use crate::simd::vectorized;
use candle_core::{CpuStorage, Layout, Result, Storage, Tensor};

/// The elements of a contiguous f32 tensor.
pub(crate) fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&data[start..end]),
        _ => candle_core::bail!("a kernel needs contiguous f32, got {:?}", layout),
    }
}

/// The same, to be changed in place.
pub(crate) fn elements_mut<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&mut data[start..end]),
        _ => candle_core::bail!("a kernel needs contiguous f32, got {:?}", layout),
    }
}

/// Reads the elements of a contiguous f32 tensor on the CPU.
pub(crate) fn read<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(elements(storage, layout)?)),
        _ => candle_core::bail!("this kernel has no version for {:?}", tensor.device()),
    }
}

/// Whether every element is finite.
pub(crate) fn all_finite(x: &[f32]) -> bool {
    sum_of_zeros(x) == 0.0
}

vectorized!(fn sum_of_zeros['a](x: &'a [f32]) -> f32 {
    // NaN and infinities survive a product with 0 as NaN
    let mut sums = [0.0f32; 64];
    let (blocks, rest) = x.as_chunks::<64>();
    for block in blocks {
        for (sum, v) in sums.iter_mut().zip(block) {
            *sum += v * 0.0;
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|v| v * 0.0).sum::<f32>()
});

/// Index and value of the first element that is NaN or infinite.
pub(crate) fn first_non_finite(tensor: &Tensor) -> Result<Option<(usize, f32)>> {
    read(tensor, |x| {
        if all_finite(x) {
            return None;
        }
        x.iter().copied().enumerate().find(|(_, v)| !v.is_finite())
    })
}
