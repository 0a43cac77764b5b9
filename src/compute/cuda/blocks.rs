//! The launches of the kernels that dequantize blocks.

use super::kernels::BLOCKS;
use super::launch::{unwritten, Call, Grid, Place};
use super::THREADS;
use crate::compute::blocks::BlockType;
use candle_core::{DType, Device, Result, Tensor};

/// The types that have a kernel, which is named by them in small letters.
const WITH_KERNEL: &[&str] = &[
    "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
];

/// How many neighbouring elements of a block a thread computes.
const GROUP: usize = 4;

/// Whether a type of elements has a kernel that dequantizes it.
pub(in crate::compute) fn has_blocks(name: &str) -> bool {
    WITH_KERNEL.contains(&name)
}

/// The numbers of a tensor's blocks, which are uploaded as they are. Their size has been checked.
pub(in crate::compute) fn dequantized(
    of: &BlockType,
    blocks: &[u8],
    shape: &[usize],
    at: &Device,
) -> Result<Tensor> {
    let device = at.as_cuda_device()?;
    let blocks = Tensor::from_slice(blocks, blocks.len(), at)?;
    let out = unwritten(device, shape, DType::F32)?;
    let of_a_thread = of.elements.min(GROUP);
    Call::named(device, &BLOCKS, &of.name.to_lowercase())?
        .at(Place::of(&blocks)?)
        .at(Place::of(&out)?)
        .wide(out.elem_count())
        .launch(Grid::over(out.elem_count() / of_a_thread, THREADS))?;
    Ok(out)
}
