//! The launch of the round trip of K and V. Each codec has a kernel of its own, which is made of the codec's text and a
//! template. A codec without a text, and one whose text does not take heads of a size, is carried out on the host.

use super::kernels::CODECS;
use super::launch::{compiled_at_run_time, Call, Grid, Place};
use super::{has_codec, pair, BROKEN};
use crate::compute::op::{InPlaceKernel, InPlaceOp};
use crate::compute::round_trip::{OnCard, RoundTrip};
use candle_core::backend::BackendStorage;
use candle_core::{CudaDevice, CudaStorage, Layout, Result};

/// The threads of a block.
const THREADS: usize = 128;
/// How many numbers a block of the kernels for single tokens takes.
const NUMBERS: usize = 4096;

impl InPlaceKernel for RoundTrip<'_> {
    fn launch(&self, _: &'static str, x: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let device = x.device().clone();
        let (.., head_dim) = layout.shape().dims4()?;
        let card = self.storing.on_card(head_dim);
        match kernel(&device, &card)? {
            Some(call) => self.queue(&device, call, &card, x, layout),
            None => self.on_host(&device, x, layout),
        }
    }
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
        let task = [
            Place::of_input((x, layout))?.address(),
            Place::of_optional(mean.as_ref())?.address(),
            Place::of_optional(scales.as_ref())?.address(),
            Place::of(&before)?.address(),
            Place::of(&after)?.address(),
            Place::of_optional(clamped.as_ref())?.address(),
            sequences as u64,
            tokens as u64,
            pair(heads, head_dim),
            pair(card.rotation.unwrap_or(0), BROKEN),
            pair(BROKEN, card.variant as usize),
        ];
        let group = card.group;
        let grid = if group == 1 {
            Grid::over(sequences * tokens * heads * head_dim, NUMBERS)
        } else {
            let blocks = sequences * tokens.div_ceil(group) * heads;
            let shared = group * (head_dim.next_multiple_of(4) + 4) * size_of::<f32>();
            Grid { shared, ..Grid::row(blocks, THREADS) }
        };
        call.words(&task).launch(Grid { threads: THREADS, ..grid })
    }

    /// Copies the numbers to the host, has the loop for the CPU change them, and copies them back.
    fn on_host(&self, device: &CudaDevice, x: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("a round trip needs contiguous elements, not {layout:?}");
        };
        let mut view = x.as_cuda_slice_mut::<f32>()?.slice_mut(start..end);
        let mut numbers = vec![0f32; end - start];
        device.memcpy_dtoh(&view, &mut numbers)?;
        InPlaceOp::cpu(self, &mut numbers, layout.shape())?;
        device.memcpy_htod(&numbers, &mut view)
    }
}
