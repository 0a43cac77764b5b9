//! The launch of what lies between the projection of Q, K and V and the attention.

use super::by_value::{by_value, size};
use super::constants::heads::{ARGUMENT_BYTES, ELEMENTS};
use super::constants::warp::WARP;
use super::kernels::HEADS;
use super::launch::{empty, Call, Grid, Place};
use super::{padded_bytes, THREADS};
use crate::compute::heads::Heads;
use crate::compute::op::{Kernel, Op};
use crate::compute::rope::Pairs;
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Shape};

/// How many warps a block has.
const WARPS: usize = THREADS / WARP;

by_value! {
    /// `Heads` in `heads.cu`.
    struct Arguments<'a>: ARGUMENT_BYTES bytes {
        x: Place<'a, f32>,
        bias: Place<'a, f32>,
        norm: Place<'a, f32>,
        cos: Place<'a, f32>,
        sin: Place<'a, f32>,
        out: Place<'a, f32>,
        rows: i32,
        columns: i32,
        start: i32,
        heads: i32,
        head_dim: i32,
        pairs: i32,
        adjacent: i32,
        first: i32,
        tokens: i32,
        eps: f32,
    }
}

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
        let arguments = Arguments {
            x: Place::of_input(x)?,
            bias: Place::of_optional(self.bias.as_ref())?,
            norm: Place::of_optional(norm)?,
            cos: Place::of_optional(cos)?,
            sin: Place::of_optional(sin)?,
            out: Place::of_storage(&out)?,
            rows: size(rows)?,
            columns: size(columns)?,
            start: size(self.start)?,
            heads: size(self.heads)?,
            head_dim: size(self.head_dim)?,
            pairs: size(pairs)?,
            adjacent: adjacent.into(),
            first: size(self.first)?,
            tokens: size(self.tokens)?,
            eps,
        };
        let of_warp = (ELEMENTS / self.head_dim).max(1);
        let shared = WARPS * of_warp * padded_bytes(self.head_dim);
        let blocks = (rows * self.heads).div_ceil(WARPS * of_warp);
        Call::new(device, &HEADS, "heads")?
            .value(&arguments)
            .launch(Grid { shared, ..Grid::row(blocks, THREADS) })?;
        Ok((out, shape))
    }
}
