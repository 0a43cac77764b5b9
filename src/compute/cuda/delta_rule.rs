//! The launch of the gated delta rule.

use super::kernels::DELTA_RULE;
use super::launch::{empty, tensor, Call, Grid, Place};
use super::pair;
use crate::compute::delta_rule::{DeltaRule, HeadOrder};
use crate::compute::op::{Kernel, Op};
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Shape};

/// The widest key that the kernel holds in registers.
const WIDEST_KEY: usize = 128;
/// The longest convolution.
const LONGEST: usize = 4;

impl Kernel<1> for DeltaRule<'_> {
    fn launch(
        &self,
        name: &'static str,
        [(x, layout)]: [(&CudaStorage, &Layout); 1],
    ) -> Result<(CudaStorage, Shape)> {
        let shape = Op::<1>::shape(self, [layout.shape()])?;
        let (net, tokens) = (self.net, self.tokens);
        if net.key_dim > WIDEST_KEY || !(2..=LONGEST).contains(&net.kernel) {
            candle_core::bail!(
                "{name}: cards have no kernel for keys of {} and a convolution of {}, only for up to {WIDEST_KEY} and \
                 2 to {LONGEST}; use --device cpu",
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
        let places = [
            Place::<f32>::of_input((x, layout))?,
            Place::<f32>::of(&weights.convolution)?,
            Place::<f32>::of(&weights.decay)?,
            Place::<f32>::of(&weights.time_bias)?,
            Place::<f32>::of(&weights.norm.weight)?,
            Place::<f32>::of(history)?,
            Place::<f32>::of(states)?,
            Place::<f32>::of(&keys)?,
            Place::<f32>::of(&gates)?,
            Place::<f32>::of_storage(&out)?,
        ];
        let sizes = [
            sequences,
            tokens,
            net.key_heads,
            net.value_heads,
            net.key_dim,
            net.value_dim,
            net.kernel,
            (net.order == HeadOrder::Tiled).into(),
        ];
        let mut words: Vec<u64> = places.iter().map(|place| place.address()).collect();
        let pairs = sizes.chunks(2).map(|sizes| pair(sizes[0], sizes[1]));
        words.extend(pairs.collect::<Result<Vec<_>>>()?);
        words.push(u64::from(weights.norm.eps.to_bits()));
        let call = |kernel, blocks: [usize; 3], threads| {
            let grid = Grid { blocks, threads, shared: 0 };
            Call::new(device, &DELTA_RULE, kernel)?.words(&words).launch(grid)
        };
        let units = 2 * net.key_heads + net.value_width().div_ceil(128) + 1;
        call("delta_mix", [units.div_ceil(8), tokens.div_ceil(32), sequences], 256)?;
        call("delta_history", [net.channels().div_ceil(256), sequences, 1], 256)?;
        let recur = match net.key_dim {
            0..=32 => "delta_recur_32",
            33..=64 => "delta_recur_64",
            _ => "delta_recur_128",
        };
        let warps = net.value_dim.div_ceil(32).min(4);
        let columns = net.value_dim.div_ceil(128);
        call(recur, [sequences * net.value_heads, columns, 1], 32 * warps)?;
        call("delta_norm", [rows, 1, 1], 256)?;
        Ok((out, shape))
    }
}
