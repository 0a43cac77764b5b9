//! The launches of the kernels that dequantize blocks.

use super::constants::blocks::{GROUP, THREADS};
use super::kernels::BLOCKS;
use super::launch::{unwritten, Call, Grid, Place};
use candle_core::{DType, Device, Result, Tensor};

/// The numbers of a tensor's blocks, which are uploaded as they are. Their size has been checked, and there are some.
/// `name` is that of the type, `elements` says how many a block has, and some types look numbers up in a grid.
pub(in crate::compute) fn dequantized(
    (name, elements): (&str, usize),
    grid: Option<&[u8]>,
    blocks: &[u8],
    shape: &[usize],
    at: &Device,
) -> Result<Tensor> {
    let upload = |bytes: &[u8]| Tensor::from_slice(bytes, bytes.len(), at);
    let (blocks, grid) = (upload(blocks)?, grid.map(upload).transpose()?);
    let out = unwritten(at.as_cuda_device()?, shape, DType::F32)?;
    // a thread computes neighbouring elements of a block, as many as there are up to a group
    let threads = out.elem_count() / elements.min(GROUP);
    // a type's kernel is named by it
    Call::named(at.as_cuda_device()?, &BLOCKS, &name.to_lowercase())?
        .at(Place::<u8>::of(&blocks)?)
        .at(Place::<u8>::of_optional(grid.as_ref())?)
        .at(Place::<f32>::of(&out)?)
        .wide(out.elem_count())
        .launch(Grid::over(threads, THREADS))?;
    Ok(out)
}
