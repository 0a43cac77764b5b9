//! The launch of what lies between the projection of Q, K and V and the attention.

use super::kernels::HEADS;
use super::launch::{empty, Call, Grid, Place};
use super::{pair, THREADS};
use crate::compute::heads::Heads;
use crate::compute::op::{Kernel, Op};
use crate::compute::rope::Pairs;
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Shape};

/// How many warps a block has.
const WARPS: usize = THREADS / 32;
/// How many numbers a warp takes at once.
const NUMBERS: usize = 512;

impl Kernel<1> for Heads {
    fn launch(
        &self,
        _: &'static str,
        [x]: [(&CudaStorage, &Layout); 1],
    ) -> Result<(CudaStorage, Shape)> {
        let shape = Op::<1>::shape(self, [x.1.shape()])?;
        let (rows, columns) = x.1.shape().dims2()?;
        let device = x.0.device();
        let out = empty(device, &shape, DType::F32)?;
        let tables = self.rope.as_ref().map(|rope| rope.tables());
        let [cos, sin] = [0, 1].map(|i| tables.as_ref().map(|(_, tables)| tables[i]));
        let pairs = tables.as_ref().map_or(Ok(0), |(_, [cos, _])| cos.dim(1))?;
        let adjacent = tables.is_some_and(|(kind, _)| kind == Pairs::Adjacent);
        let (norm, eps) = match &self.norm {
            Some(norm) => (Some(&norm.weight), norm.eps),
            None => (None, 0.0),
        };
        let op = [
            Place::<f32>::of_input(x)?.address(),
            Place::<f32>::of_optional(self.bias.as_ref())?.address(),
            Place::<f32>::of_optional(norm)?.address(),
            Place::<f32>::of_optional(cos)?.address(),
            Place::<f32>::of_optional(sin)?.address(),
            Place::<f32>::of_storage(&out)?.address(),
            pair(rows, columns)?,
            pair(self.start, self.heads)?,
            pair(self.head_dim, pairs)?,
            pair(adjacent.into(), self.first)?,
            pair(self.tokens, eps.to_bits() as usize)?,
        ];
        let of_warp = (NUMBERS / self.head_dim).max(1);
        let shared = WARPS * of_warp * self.head_dim.next_multiple_of(4) * size_of::<f32>();
        let blocks = (rows * self.heads).div_ceil(WARPS * of_warp);
        Call::new(device, &HEADS, "heads")?
            .words(&op)
            .launch(Grid { shared, ..Grid::row(blocks, THREADS) })?;
        Ok((out, shape))
    }
}
