//! Access to the elements of tensors, for ops on the CPU and for code that reads results.

use super::place::HOST;
use candle_core::{CpuStorage, Layout, Result, Storage, StorageRef, Tensor, WithDType};
use std::marker::PhantomData;
use std::ops::{Deref, Range};

/// The elements of a contiguous tensor of `T`.
pub(super) fn contiguous<'a, T: WithDType>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [T]> {
    Ok(&storage.as_slice::<T>()?[range(layout)?])
}

/// The elements of a contiguous tensor of f32, which may be changed through this.
pub(super) fn contiguous_mut<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> Result<&'a mut [f32]> {
    match storage {
        CpuStorage::F32(data) => Ok(&mut data[range(layout)?]),
        _ => candle_core::bail!("an op in place needs f32"),
    }
}

fn range(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => candle_core::bail!("an op needs contiguous elements, not {layout:?}"),
    }
}

/// The elements of a contiguous tensor on the CPU. Nothing changes them while this value lives.
pub(crate) struct Elements<'a, T = f32> {
    storage: StorageRef<'a>,
    range: Range<usize>,
    element: PhantomData<T>,
}

/// Gives access to the elements of a contiguous tensor on the CPU.
pub(crate) fn elements<T: WithDType>(tensor: &Tensor) -> Result<Elements<'_, T>> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(data) => data.as_slice::<T>()?,
        _ => candle_core::bail!("the loop of an op on the CPU cannot read {:?}", tensor.device()),
    };
    Ok(Elements { range: range(layout)?, storage, element: PhantomData })
}

impl<T: WithDType> Deref for Elements<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &*self.storage {
            Storage::Cpu(data) => &data.as_slice::<T>().expect("was looked at")[self.range.clone()],
            _ => unreachable!("was looked at"),
        }
    }
}

/// Reads the elements of a contiguous tensor. If they are on a device, they are copied from it first.
pub(crate) fn read<T: WithDType, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> R) -> Result<R> {
    let tensor = tensor.to_device(&HOST)?;
    let elements = elements(&tensor)?;
    Ok(f(&elements))
}
