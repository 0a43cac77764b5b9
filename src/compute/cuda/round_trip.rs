//! The launch of the round trip of K and V. Each codec has a kernel of its own, which is made of the codec's text and a
//! template. A codec without a text, and one whose text does not take heads of a size, is carried out on the host.

use super::by_value::{by_value, size};
use super::constants::prelude::{OWN, WARPS};
use super::constants::round_trip::ARGUMENT_BYTES;
use super::constants::warp::WARP;
use super::kernels::CODECS;
use super::launch::{compiled_at_run_time, Call, Grid, Place};
use super::{has_codec, BROKEN};
use crate::compute::op::{InPlaceKernel, InPlaceOp};
use crate::compute::round_trip::{Counters, OnCard, RoundTrip};
use candle_core::backend::BackendStorage;
use candle_core::{CudaDevice, CudaStorage, Layout, Result};
use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// The threads of a block.
const THREADS: usize = WARP * WARPS;
/// How many numbers a block of the kernels for single tokens takes.
const NUMBERS: usize = OWN * THREADS;

by_value! {
    /// `RoundTrip` in `round_trip.cuh`.
    struct Arguments<'a>: ARGUMENT_BYTES bytes {
        x: Place<'a, f32>,
        mean: Place<'a, f32>,
        scales: Place<'a, f32>,
        before: Place<'a, u32>,
        after: Place<'a, u32>,
        clamped: Place<'a, i64>,
        sequences: i64,
        tokens: i64,
        heads: i32,
        head_dim: i32,
        rotation: i32,
        code: u32,
        variant: u32,
    }
}

impl InPlaceKernel for RoundTrip<'_> {
    fn launch(&self, _: &'static str, x: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let device = x.device().clone();
        let (.., head_dim) = layout.shape().dims4()?;
        let card = self.storing.on_card(head_dim);
        let Some(call) = kernel(&device, &card)? else {
            return self.on_host(&device, x, layout);
        };
        match unproven(&card, head_dim) {
            None => self.queue(&device, call, &card, x, layout),
            Some(kind) => {
                self.compared(&device, call, &card, x, layout)?;
                proven().insert(kind);
                Ok(())
            }
        }
    }
}

/// What a text from outside was compared for: text, variant, heads and rotation.
type Kind = (&'static str, u32, usize, Option<usize>);

/// The texts from outside that have given what their codecs give. Each is compared once for each size of heads and of
/// rotation.
static PROVEN: LazyLock<Mutex<HashSet<Kind>>> = LazyLock::new(Mutex::default);

fn proven() -> MutexGuard<'static, HashSet<Kind>> {
    PROVEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What must be compared before the kernel of a codec is used, if that has a text from outside.
fn unproven(card: &OnCard, head_dim: usize) -> Option<Kind> {
    let kind = (card.text?, card.variant, head_dim, card.rotation);
    (!proven().contains(&kind)).then_some(kind)
}

/// The kernel of a codec, if it has one that takes these heads.
fn kernel(device: &CudaDevice, card: &OnCard) -> Result<Option<Call<'static>>> {
    match card.text {
        _ if !card.is_taken => Ok(None),
        Some(text) => compiled_at_run_time(device, &source(text), "kv_round_trip").map(Some),
        None if has_codec(card.codec) => {
            let name = format!("kv_round_trip_{}", symbol(card.codec));
            Call::named(device, &CODECS, &name).map(Some)
        }
        None => Ok(None),
    }
}

/// The name of a codec as far as the name of a kernel can hold it.
fn symbol(codec: &str) -> String {
    codec.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect()
}

/// The source of the kernel of a codec from outside.
fn source(text: &str) -> String {
    let (prelude, template) = (include_str!("prelude.cuh"), include_str!("round_trip.cuh"));
    format!(
        "{prelude}\n{template}\nnamespace own {{\n{text}\n}}\n\
         extern \"C\" __global__ void __launch_bounds__(THREADS, 4) kv_round_trip(const RoundTrip task) {{\n\
         round_trip<own::Codec>(task);\n}}\n"
    )
}

impl RoundTrip<'_> {
    fn queue<'a>(
        &'a self,
        device: &CudaDevice,
        call: Call<'a>,
        card: &'a OnCard,
        x: &'a mut CudaStorage,
        layout: &'a Layout,
    ) -> Result<()> {
        let (sequences, tokens, heads, head_dim) = layout.shape().dims4()?;
        let at = candle_core::Device::Cuda(device.clone());
        let (before, after) = (self.before.words(1, &at)?, self.after.words(1, &at)?);
        let mean = card.mean.map(|mean| mean.on(&at)).transpose()?;
        let scales = card.scales.map(|scales| scales.on(&at)).transpose()?;
        let clamped = card.clamped.map(|clamped| clamped.on(&at)).transpose()?;
        let arguments = Arguments {
            x: Place::of_input((x, layout))?,
            mean: Place::of_optional(mean.as_ref())?,
            scales: Place::of_optional(scales.as_ref())?,
            before: Place::of(&before)?,
            after: Place::of(&after)?,
            clamped: Place::of_optional(clamped.as_ref())?,
            sequences: size(sequences)?,
            tokens: size(tokens)?,
            heads: size(heads)?,
            head_dim: size(head_dim)?,
            rotation: size(card.rotation.unwrap_or(0))?,
            code: size(BROKEN)?,
            variant: card.variant,
        };
        let group = card.group;
        let grid = if group == 1 {
            Grid::over(sequences * tokens * heads * head_dim, NUMBERS)
        } else {
            let blocks = sequences * tokens.div_ceil(group) * heads;
            let shared = group * (head_dim.next_multiple_of(4) + 4) * size_of::<f32>();
            Grid { shared, ..Grid::row(blocks, THREADS) }
        };
        call.value(&arguments).launch(Grid { threads: THREADS, ..grid })
    }

    /// Copies the numbers to the host, has the loop for the CPU change them, and copies them back.
    fn on_host(&self, device: &CudaDevice, x: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let mut numbers = numbers(device, x, layout)?;
        InPlaceOp::cpu(self, &mut numbers, layout.shape())?;
        let (start, end) = range(layout)?;
        let mut view = x.as_cuda_slice_mut::<f32>()?.slice_mut(start..end);
        device.memcpy_htod(&numbers, &mut view)
    }

    /// Runs a kernel, and fails if it gives other bits than the codec itself, or counts other scales at their limit.
    fn compared<'a>(
        &'a self,
        device: &CudaDevice,
        call: Call<'a>,
        card: &'a OnCard,
        x: &'a mut CudaStorage,
        layout: &'a Layout,
    ) -> Result<()> {
        let counts = || card.clamped.map(Counters::counts);
        let mut own = numbers(device, x, layout)?;
        let before = counts();
        InPlaceOp::cpu(self, &mut own, layout.shape())?;
        let counted = counts();
        if let (Some(clamped), Some(before)) = (card.clamped, before) {
            clamped.set_back(before);
        }
        self.queue(device, call, card, &mut *x, layout)?;
        let there = numbers(device, x, layout)?;
        let differ =
            |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
        let fault = match own.iter().zip(&there).position(differ) {
            Some(i) => format!("gives {:e} where the codec gives {:e}", there[i], own[i]),
            None if counts() != counted => {
                "counts other scales at their limit than the codec".into()
            }
            None => return Ok(()),
        };
        candle_core::bail!(
            "the kernel of the codec `{}` {fault}; mend its text, or leave it out so that the codec runs on the host",
            card.codec
        )
    }
}

/// Where the elements of a layout begin and end.
fn range(layout: &Layout) -> Result<(usize, usize)> {
    match layout.contiguous_offsets() {
        Some(range) => Ok(range),
        None => candle_core::bail!("a round trip needs contiguous elements, not {layout:?}"),
    }
}

/// A copy of numbers on the host.
fn numbers(device: &CudaDevice, x: &CudaStorage, layout: &Layout) -> Result<Vec<f32>> {
    let (start, end) = range(layout)?;
    let mut numbers = vec![0f32; end - start];
    device.memcpy_dtoh(&x.as_cuda_slice::<f32>()?.slice(start..end), &mut numbers)?;
    Ok(numbers)
}
