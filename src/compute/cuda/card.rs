//! Opening a card, and asking how much of its memory is free.

use super::launch;
use crate::compute::place::{Card, NoDevice};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError};
use candle_core::{CudaDevice, Device};
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

/// The oldest compute capability that the kernels are compiled for.
const OLDEST: (i32, i32) = (8, 0);

type Opened = (Device, Card);

/// Opens the card with an ordinal, or gives it again if it is open.
pub(in crate::compute) fn open(ordinal: usize) -> Result<Opened, NoDevice> {
    static OPEN: LazyLock<Mutex<HashMap<usize, Opened>>> = LazyLock::new(Mutex::default);
    let mut open = OPEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(opened) = open.get(&ordinal) {
        return Ok(opened.clone());
    }
    let opened = open_anew(ordinal)?;
    open.insert(ordinal, opened.clone());
    Ok(opened)
}

fn open_anew(ordinal: usize) -> Result<Opened, NoDevice> {
    let refused = |why: String| NoDevice::NoCard { ordinal, why };
    let said = |error: DriverError| refused(error.to_string());
    let tensor = |error: candle_core::Error| refused(error.to_string());
    let context = CudaContext::new(ordinal).map_err(said)?;
    let name = context.name().map_err(said)?;
    let capability = context.compute_capability().map_err(said)?;
    if capability < OLDEST {
        return Err(NoDevice::TooOld { name, capability });
    }
    let (free, memory) = context.mem_get_info().map_err(said)?;
    // a stream of its own: the default one of candle differs from thread to thread
    let device = CudaDevice::new_with_stream(ordinal).map_err(tensor)?;
    launch::prepare(&device).map_err(tensor)?;
    let driver = versions(&device).map_err(tensor)?;
    let lanes = super::divergence::most_lanes(&device).map_err(tensor)?;
    let card = Card { name, driver, memory: memory as u64, free: free as u64, lanes };
    Ok((Device::Cuda(device), card))
}

/// The versions of what numbers depend on: of CUDA that the driver knows, of the driver where the system tells it, and of
/// cuBLAS.
fn versions(device: &CudaDevice) -> candle_core::Result<String> {
    let (cuda, blas) = (launch::driver_version()?, launch::blas_version(device)?);
    let cuda = format!("{}.{}", cuda / 1000, cuda % 1000 / 10);
    let driver = own_version().map_or(String::new(), |version| format!(" ({version})"));
    Ok(format!("{cuda}{driver}, cuBLAS {}.{}.{}", blas / 10_000, blas % 10_000 / 100, blas % 100))
}

/// The driver's own version, which Linux tells in a file.
fn own_version() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let is_version =
        |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.split_whitespace().find(is_version).map(str::to_owned)
}

/// Gives memory that is free, but that the program has kept, back to the card.
pub(in crate::compute) fn release_memory(at: &Device) -> candle_core::Result<()> {
    launch::release_memory(at.as_cuda_device()?)
}

/// The bytes of a card's memory that are free now.
pub(in crate::compute) fn free_memory(at: &Device) -> candle_core::Result<u64> {
    let stream = at.as_cuda_device()?.cuda_stream();
    let (free, _) = stream.context().mem_get_info().map_err(candle_core::Error::wrap)?;
    Ok(free as u64)
}
