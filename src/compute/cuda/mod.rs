//! Kernels of CUDA devices: the twins of this crate's ops. Each op has a file here that launches its kernel, and the
//! kernel's text beside it.
//!
//! Kernels are compiled when the crate is built. All work of a device runs on one stream, in the order in which it was
//! asked for. A row's result depends on nothing but that row, the baseline's, and in products on how many rows a lane has in
//! the call. Tiles are whole so that this number is fixed, and then neither other lanes nor the number of chunks in memory
//! change a bit of it.
//!
//! Whoever launches a kernel says what its parameters are, because nothing else can compare them: [`launch::Place`] names
//! the element that a pointer is to, [`by_value`] repeats a structure that is handed over by value, and
//! `constants` has the numbers that both sides need, which the kernel's file states in lines marked
//! `// for the launch`.

mod attention;
mod bias;
mod blocks;
mod by_value;
mod card;
mod constants;
mod delta_rule;
mod divergence;
mod experts;
mod finite;
mod gate;
mod heads;
mod kernels;
mod launch;
mod memory;
mod norm;
mod operand;
mod pairs;
mod product;
mod residual;
mod round_trip;

pub(super) use blocks::dequantized;
pub(super) use card::{free_memory, open, release_memory};
pub(super) use finite::all_finite;
pub(crate) use memory::is_out_of_memory;
pub(super) use operand::Gate;
pub(super) use pairs::Pairs;
pub(super) use product::Weights;

use super::op::InPlaceKernel;
use candle_core::{CudaStorage, Layout, Result};
use constants::common::{GROUP, THREADS};

/// Whether this build has kernels.
pub(super) const IS_BUILT: bool = true;

/// Whether a codec has a kernel of this name.
pub(super) fn has_codec(name: &str) -> bool {
    kernels::CODECS_WITH_KERNEL.contains(&name)
}

/// How many columns of a row a block of the kernels over rows takes at once.
const COLUMNS: usize = GROUP * THREADS;

/// What a kernel writes into the word of a lane whose numbers are not finite.
const BROKEN: usize = 0;

/// The blocks of an op over rows. Few and wide rows are spread over several blocks each.
fn over_rows(rows: usize, width: usize) -> launch::Grid {
    const ENOUGH: usize = 1024;
    let blocks = if rows < ENOUGH { width.div_ceil(COLUMNS) } else { 1 };
    launch::Grid { blocks: [rows, blocks, 1], threads: THREADS, shared: 0 }
}

/// The bytes of a row in shared memory, which is padded to whole groups of numbers.
fn padded_bytes(width: usize) -> usize {
    width.next_multiple_of(GROUP) * size_of::<f32>()
}

/// What changes a tensor by a closure belongs to loops on the CPU.
impl<F> InPlaceKernel for super::state::Closure<F> {
    fn launch(&self, name: &'static str, _: &mut CudaStorage, _: &Layout) -> Result<()> {
        candle_core::bail!("`{name}` changes tensors on the CPU only")
    }
}
