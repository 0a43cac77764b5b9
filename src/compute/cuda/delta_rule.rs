//! The launch of the gated delta rule.

use super::by_value::{by_value, size};
use super::constants::delta_rule::{
    ARGUMENT_BYTES, MAX_KERNEL, MAX_WARPS, RUN, THREADS, WARP_COLUMNS, WARP_WIDTH,
};
use super::constants::warp::WARP;
use super::kernels::DELTA_RULE;
use super::launch::{empty, tensor, Call, Grid, Place};
use crate::compute::delta_rule::{DeltaRule, HeadOrder};
use crate::compute::op::{Kernel, Op};
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Shape};

/// The widest key that the kernel holds in registers.
const WIDEST_KEY: usize = 128;

by_value! {
    /// `DeltaRule` in `delta_rule.cu`.
    struct Arguments<'a>: ARGUMENT_BYTES bytes {
        projected: Place<'a, f32>,
        convolution: Place<'a, f32>,
        decay: Place<'a, f32>,
        time_bias: Place<'a, f32>,
        norm: Place<'a, f32>,
        history: Place<'a, f32>,
        states: Place<'a, f32>,
        keys: Place<'a, f32>,
        gates: Place<'a, f32>,
        out: Place<'a, f32>,
        sequences: i32,
        tokens: i32,
        key_heads: i32,
        value_heads: i32,
        key_dim: i32,
        value_dim: i32,
        kernel: i32,
        tiled: i32,
        norm_eps: f32,
    }
}

impl Kernel<1> for DeltaRule<'_> {
    fn launch(
        &self,
        name: &'static str,
        [(x, layout)]: [(&CudaStorage, &Layout); 1],
    ) -> Result<(CudaStorage, Shape)> {
        let shape = Op::<1>::shape(self, [layout.shape()])?;
        let (net, tokens) = (self.net, self.tokens);
        if net.key_dim > WIDEST_KEY || !(2..=MAX_KERNEL).contains(&net.kernel) {
            candle_core::bail!(
                "{name}: cards have no kernel for keys of {} and a convolution of {}, only for up to {WIDEST_KEY} and \
                 2 to {MAX_KERNEL}; use --device cpu",
                net.key_dim,
                net.kernel
            );
        }
        let device = x.device();
        let rows = shape.dims2()?.0;
        let sequences = rows / tokens;
        let padded = net.key_dim.next_multiple_of(4);
        let scratch = |width: usize| {
            let shape = Shape::from((rows, width));
            empty(device, &shape, DType::F32).map(|storage| tensor(storage, shape))
        };
        let keys = scratch(net.key_heads * 2 * padded)?;
        let gates = scratch(net.value_heads * 2)?;
        let out = empty(device, &shape, DType::F32)?;
        let weights = self.weights;
        let (history, states) = self.state.tensors();
        let arguments = Arguments {
            projected: Place::of_input((x, layout))?,
            convolution: Place::of(&weights.convolution)?,
            decay: Place::of(&weights.decay)?,
            time_bias: Place::of(&weights.time_bias)?,
            norm: Place::of(&weights.norm.weight)?,
            history: Place::of(history)?,
            states: Place::of(states)?,
            keys: Place::of(&keys)?,
            gates: Place::of(&gates)?,
            out: Place::of_storage(&out)?,
            sequences: size(sequences)?,
            tokens: size(tokens)?,
            key_heads: size(net.key_heads)?,
            value_heads: size(net.value_heads)?,
            key_dim: size(net.key_dim)?,
            value_dim: size(net.value_dim)?,
            kernel: size(net.kernel)?,
            tiled: (net.order == HeadOrder::Tiled).into(),
            norm_eps: weights.norm.eps,
        };
        let call = |kernel, blocks: [usize; 3], threads| {
            let grid = Grid { blocks, threads, shared: 0 };
            Call::new(device, &DELTA_RULE, kernel)?.value(&arguments).launch(grid)
        };
        let units = 2 * net.key_heads + net.value_width().div_ceil(WARP_WIDTH) + 1;
        let blocks = [units.div_ceil(THREADS / WARP), tokens.div_ceil(RUN), sequences];
        call("delta_mix", blocks, THREADS)?;
        call("delta_history", [net.channels().div_ceil(THREADS), sequences, 1], THREADS)?;
        let recur = match net.key_dim {
            0..=32 => "delta_recur_32",
            33..=64 => "delta_recur_64",
            _ => "delta_recur_128",
        };
        let warps = net.value_dim.div_ceil(WARP_COLUMNS).min(MAX_WARPS);
        let columns = net.value_dim.div_ceil(MAX_WARPS * WARP_COLUMNS);
        call(recur, [sequences * net.value_heads, columns, 1], WARP * warps)?;
        call("delta_norm", [rows, 1, 1], THREADS)?;
        Ok((out, shape))
    }
}
