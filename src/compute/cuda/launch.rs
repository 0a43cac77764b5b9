//! Launches of kernels and of cuBLAS: the one place of this crate with unsafe code.
//!
//! What makes the calls sound: all work of a device is queued on one stream, in the order of the calls. Memory is freed
//! in the same order. A kernel's arguments are borrowed until the kernel is queued, so everything that it reads or
//! writes outlives it. That a kernel stays within its tensors is the business of each op's file here, which hands it
//! the sizes that the op has checked.
#![allow(unsafe_code)]

use super::by_value::{size, ByValue, Field};
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::cudarc::cublas::{result as blas, sys as blas_sys};
use candle_core::cuda_backend::cudarc::driver::{
    sys, CudaFunction, CudaModule, DevicePtr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::cudarc::nvrtc::{compile_ptx_with_opts, CompileOptions, Ptx};
use candle_core::cuda_backend::{CudaDType, CudaDevice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Storage, Tensor};
use half::f16;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, LazyLock, Mutex};

/// Compiled kernels, as the build made them of one file.
pub(super) struct Module {
    pub name: &'static str,
    /// Machine code for several generations of cards, and PTX for later ones.
    pub image: &'static [u8],
}

/// Modules and functions that have been loaded, by the address of the context and by their names.
type Loaded<K, V> = LazyLock<Mutex<HashMap<K, V>>>;
static MODULES: Loaded<(usize, &'static str), Arc<CudaModule>> = LazyLock::new(Mutex::default);
static FUNCTIONS: Loaded<(usize, &'static str, &'static str), CudaFunction> =
    LazyLock::new(Mutex::default);

impl Module {
    fn function(&self, device: &CudaDevice, name: &'static str) -> Result<CudaFunction> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let place = Arc::as_ptr(context) as usize;
        let mut functions = FUNCTIONS.lock().map_err(|_| lock_poisoned())?;
        if let Some(function) = functions.get(&(place, self.name, name)) {
            return Ok(function.clone());
        }
        let mut modules = MODULES.lock().map_err(|_| lock_poisoned())?;
        let module = match modules.get(&(place, self.name)) {
            Some(module) => module.clone(),
            None => {
                let module = context.load_module(Ptx::from_binary(self.image.to_vec())).w()?;
                modules.insert((place, self.name), module.clone());
                module
            }
        };
        let function = module.load_function(name).w()?;
        functions.insert((place, self.name, name), function.clone());
        Ok(function)
    }
}

fn lock_poisoned() -> candle_core::Error {
    candle_core::Error::Msg("a thread that loaded kernels panicked".into())
}

/// An address of elements in the memory of a device, which is valid while `'a` lasts. A kernel cannot know what it is
/// handed, so whoever makes a place names the element that the kernel's parameter points to, and a tensor of another
/// one is refused.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a, T> {
    address: u64,
    lives: PhantomData<&'a T>,
}

impl<T: CudaDType> Field for Place<'_, T> {
    fn bits(self) -> u64 {
        self.address()
    }
}

impl<'a, T: CudaDType> Place<'a, T> {
    /// Where the elements of a contiguous tensor begin.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            // the storage lives as long as the tensor, which is borrowed
            Storage::Cuda(storage) => Ok(Self::first(start::<T>(storage)?).later(offset(layout)?)),
            _ => {
                candle_core::bail!("a kernel cannot read a tensor that is on {:?}", tensor.device())
            }
        }
    }

    /// Where the elements of a contiguous input begin.
    pub fn of_input((storage, layout): (&'a CudaStorage, &'a Layout)) -> Result<Self> {
        Ok(Self::of_storage(storage)?.later(offset(layout)?))
    }

    /// Where the elements of a whole storage begin.
    pub fn of_storage(storage: &'a CudaStorage) -> Result<Self> {
        start::<T>(storage).map(Self::first)
    }

    fn first(address: u64) -> Self {
        Place { address, lives: PhantomData }
    }

    /// The address of nothing, for arguments that are left out.
    pub fn none() -> Self {
        Self::first(0)
    }

    /// The place of an optional tensor.
    pub fn of_optional(tensor: Option<&'a Tensor>) -> Result<Self> {
        tensor.map_or(Ok(Place::none()), Place::of)
    }

    /// A place so many elements later.
    pub fn later(self, elements: usize) -> Self {
        Place { address: self.address + (elements * size_of::<T>()) as u64, ..self }
    }

    /// The number that stands for it in a kernel's structure.
    pub fn address(self) -> u64 {
        self.address
    }
}

/// Where the elements of a storage begin, which are refused if they are of another type.
fn start<T: CudaDType>(storage: &CudaStorage) -> Result<u64> {
    let stream = storage.device().cuda_stream();
    let (address, _) = storage.as_cuda_slice::<T>()?.device_ptr(&stream);
    Ok(address)
}

/// How many elements lie before those of a contiguous layout.
fn offset(layout: &Layout) -> Result<usize> {
    match layout.contiguous_offsets() {
        Some((first, _)) => Ok(first),
        None => candle_core::bail!("a kernel needs contiguous elements, not {layout:?}"),
    }
}

/// Memory of a device whose elements nobody has written yet.
pub(super) fn empty(device: &CudaDevice, shape: &Shape, dtype: DType) -> Result<CudaStorage> {
    // whoever calls this launches a kernel that writes every element before anything reads it
    unsafe { device.alloc_uninit(shape, dtype) }
}

/// Makes a tensor of a storage.
pub(super) fn tensor(storage: CudaStorage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// A tensor whose elements nobody has written yet.
pub(super) fn unwritten(
    device: &CudaDevice,
    shape: impl Into<Shape>,
    dtype: DType,
) -> Result<Tensor> {
    let shape = shape.into();
    Ok(tensor(empty(device, &shape, dtype)?, shape))
}

/// The device that a tensor is on.
pub(super) fn device_of(tensor: &Tensor) -> Result<CudaDevice> {
    Ok(tensor.device().as_cuda_device()?.clone())
}

/// A kernel and its arguments, in the order of its parameters.
pub(super) struct Call<'a> {
    device: CudaDevice,
    function: CudaFunction,
    arguments: Vec<Argument>,
    lives: PhantomData<&'a ()>,
}

enum Argument {
    Wide(u64),
    Narrow(u32),
    Real(f32),
    /// A structure that is handed over by value.
    Words(Box<[u64]>),
}

/// How many blocks of how many threads run a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub blocks: [usize; 3],
    pub threads: usize,
    /// Bytes of shared memory that each block is given.
    pub shared: usize,
}

impl Grid {
    /// Blocks in one row, without shared memory.
    pub fn row(blocks: usize, threads: usize) -> Self {
        Grid { blocks: [blocks, 1, 1], threads, shared: 0 }
    }

    /// As many blocks as there are of so many elements.
    pub fn over(elements: usize, threads: usize) -> Self {
        Self::row(elements.div_ceil(threads), threads)
    }
}

/// What a block may have without being asked for more is 48 KiB, of which a kernel may declare some itself. Asking for
/// more than is needed does no harm.
const USUAL_SHARED: usize = 16 << 10;

/// More than the kernels declare themselves that are given as much as there is.
const OWN_SHARED: usize = 1 << 10;

impl<'a> Call<'a> {
    pub fn new(device: &CudaDevice, module: &Module, name: &'static str) -> Result<Self> {
        let function = module.function(device, name)?;
        Ok(Call { device: device.clone(), function, arguments: Vec::new(), lives: PhantomData })
    }

    /// A kernel by a name that is put together, if the module has it.
    pub fn named(device: &CudaDevice, module: &Module, name: &str) -> Result<Self> {
        static NAMES: LazyLock<Mutex<HashMap<String, &'static str>>> =
            LazyLock::new(Mutex::default);
        let mut names = NAMES.lock().map_err(|_| lock_poisoned())?;
        let name = *names.entry(name.into()).or_insert_with(|| String::leak(name.into()));
        drop(names);
        Self::new(device, module, name)
    }

    pub fn at<T: CudaDType>(mut self, place: Place<'a, T>) -> Self {
        self.arguments.push(Argument::Wide(place.address()));
        self
    }

    /// A size or an index, which is an `int` or an `unsigned` in a kernel's parameters, and fits both.
    pub fn size(mut self, x: usize) -> Result<Self> {
        self.arguments.push(Argument::Narrow(size::<i32>(x)?.cast_unsigned()));
        Ok(self)
    }

    /// A size that is a `long long` in a kernel's parameters.
    pub fn wide(mut self, size: usize) -> Self {
        self.arguments.push(Argument::Wide(size as u64));
        self
    }

    pub fn flag(mut self, flag: bool) -> Self {
        self.arguments.push(Argument::Narrow(flag.into()));
        self
    }

    pub fn real(mut self, x: f32) -> Self {
        self.arguments.push(Argument::Real(x));
        self
    }

    /// A structure that the kernel takes by value.
    pub fn value(mut self, value: &impl ByValue<'a>) -> Self {
        self.arguments.push(Argument::Words(value.words()));
        self
    }

    /// Queues the kernel. It does nothing if there are no blocks.
    pub fn launch(self, grid: Grid) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let blocks = grid.blocks.map(u32::try_from);
        let ([Ok(x), Ok(y), Ok(z)], Ok(threads)) = (blocks, u32::try_from(grid.threads)) else {
            candle_core::bail!("{grid:?} is too large a grid");
        };
        if grid.shared > USUAL_SHARED {
            let own = self.function.shared_size_bytes().w()?;
            let (most, needed) = (most_shared(&self.device)?, grid.shared + own as usize);
            if needed > most {
                candle_core::bail!(
                    "this card has {most} bytes of shared memory for a block, and a kernel needs {needed}; use --device \
                     cpu"
                );
            }
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            self.function.set_attribute(attribute, grid.shared as i32).w()?;
        }
        let stream = self.device.cuda_stream();
        let mut call = stream.launch_builder(&self.function);
        for argument in &self.arguments {
            match argument {
                Argument::Wide(x) => call.arg(x),
                Argument::Narrow(x) => call.arg(x),
                Argument::Real(x) => call.arg(x),
                // the driver copies as many bytes as the parameter has, from the first word on
                Argument::Words(words) => call.arg(&words[0]),
            };
        }
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (threads, 1, 1),
            shared_mem_bytes: grid.shared as u32,
        };
        unsafe { call.launch(config) }.w()?;
        Ok(())
    }
}

/// Bytes of shared memory that a block may have.
pub(super) fn most_shared(device: &CudaDevice) -> Result<usize> {
    let most = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    Ok(device.cuda_stream().context().attribute(most).w()? as usize)
}

/// Bytes of shared memory that a block may have beside what the kernel itself declares.
pub(super) fn shared_memory(device: &CudaDevice) -> Result<usize> {
    Ok(most_shared(device)?.saturating_sub(OWN_SHARED))
}

/// The kernel of a source that is compiled now, or was compiled before in this process. Its arithmetic has the bits of
/// the CPU's: no fused multiply-adds, subnormal numbers, and exact division and roots.
pub(super) fn compiled_at_run_time<'a>(
    device: &CudaDevice,
    source: &str,
    name: &'static str,
) -> Result<Call<'a>> {
    static COMPILED: LazyLock<Mutex<HashMap<String, CudaFunction>>> = LazyLock::new(Mutex::default);
    let mut compiled = COMPILED.lock().map_err(|_| lock_poisoned())?;
    let stream = device.cuda_stream();
    let key = format!("{:p} {source}", Arc::as_ptr(stream.context()));
    let function = match compiled.get(&key) {
        Some(function) => function.clone(),
        None => {
            let options = CompileOptions {
                fmad: Some(false),
                ftz: Some(false),
                prec_div: Some(true),
                prec_sqrt: Some(true),
                arch: Some("compute_80"),
                options: vec!["-std=c++17".into()],
                ..CompileOptions::default()
            };
            let ptx = compile_ptx_with_opts(source, options).map_err(|error| {
                candle_core::Error::Msg(format!("the kernel of a codec does not compile: {error}"))
            })?;
            let function = stream.context().load_module(ptx).w()?.load_function(name).w()?;
            compiled.insert(key, function.clone());
            function
        }
    };
    Ok(Call { device: device.clone(), function, arguments: Vec::new(), lives: PhantomData })
}

/// A product of f16 matrices with a sum in f32: c (rows, out) = x (rows, in) · wᵀ, where w is (out, in).
pub(super) struct Gemm {
    pub rows: usize,
    pub out: usize,
    pub width: usize,
    /// Whether the product is added to what c holds.
    pub adds: bool,
}

impl Gemm {
    /// Queues the product.
    pub fn launch(
        &self,
        device: &CudaDevice,
        x: Place<f16>,
        w: Place<f16>,
        c: Place<f32>,
    ) -> Result<()> {
        use blas_sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
        use blas_sys::cudaDataType::{CUDA_R_16F, CUDA_R_32F};
        let size = |x: usize| i32::try_from(x).map_err(candle_core::Error::wrap);
        let (rows, out, width) = (size(self.rows)?, size(self.out)?, size(self.width)?);
        let (alpha, beta) = (1f32, if self.adds { 1f32 } else { 0f32 });
        // cuBLAS has columns where this crate has rows, so it computes cᵀ = w·xᵀ
        let done = unsafe {
            blas::gemm_ex(
                *device.cublas_handle().handle(),
                CUBLAS_OP_T,
                CUBLAS_OP_N,
                out,
                rows,
                width,
                (&raw const alpha).cast(),
                w.address as *const _,
                CUDA_R_16F,
                width,
                x.address as *const _,
                CUDA_R_16F,
                width,
                (&raw const beta).cast(),
                c.address as *mut _,
                CUDA_R_32F,
                out,
                blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        done.w()
    }
}

/// Prepares a device that has just been opened.
///
/// Freed memory stays with the program instead of going back to the driver each time the host waits for the device.
/// Events that would order several streams are switched off, because there is one stream.
pub(super) fn prepare(device: &CudaDevice) -> Result<()> {
    if let Some(pool) = pool(device)? {
        let mut all = u64::MAX;
        let threshold = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        unsafe { sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut all).cast()) }
            .result()
            .w()?;
    }
    unsafe { device.disable_event_tracking() };
    Ok(())
}

/// The pool that a device's memory is taken from, if it has one.
fn pool(device: &CudaDevice) -> Result<Option<sys::CUmemoryPool>> {
    let stream = device.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(None);
    }
    let mut pool = std::ptr::null_mut();
    unsafe { sys::cuDeviceGetDefaultMemPool(&mut pool, context.cu_device()) }.result().w()?;
    Ok(Some(pool))
}

/// Gives memory that is free, but that the program has kept, back to the device.
pub(super) fn release_memory(device: &CudaDevice) -> Result<()> {
    // what is queued may free memory
    device.cuda_stream().synchronize().w()?;
    match pool(device)? {
        Some(pool) => unsafe { sys::cuMemPoolTrimTo(pool, 0) }.result().w(),
        None => Ok(()),
    }
}

/// The version of cuBLAS, whose kernels decide the bits of products, as 10,000 · major + 100 · minor + patch.
pub(super) fn blas_version(device: &CudaDevice) -> Result<i32> {
    let mut version = 0;
    let handle = device.cublas_handle();
    unsafe { blas_sys::cublasGetVersion_v2(*handle.handle(), &mut version).result().w()? };
    Ok(version)
}

/// The newest version of CUDA that the driver knows, as 1000 · major + 10 · minor.
pub(super) fn driver_version() -> Result<i32> {
    let mut version = 0;
    unsafe { sys::cuDriverGetVersion(&mut version).result().w()? };
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::textbook::{place, rows};

    #[test]
    #[ignore = "needs a card, which KVGATE_DEVICE names"]
    fn a_kernel_is_not_handed_elements_of_another_type() {
        assert!(!place().is_cpu(), "KVGATE_DEVICE names no card");
        let x = rows(&[1.0, 2.0], 2);
        assert!(Place::<f32>::of(&x).is_ok());
        assert!(Place::<f32>::of(&x.to_dtype(DType::F16).unwrap()).is_err());
        assert!(Place::<u32>::of(&x).is_err());
    }
}
