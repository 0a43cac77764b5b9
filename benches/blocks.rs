//! Dequantization of each of ggml's types beside candle's, which reads fewer of them.
//!
//! ```text
//! cargo bench --bench blocks                                              # on the CPU
//! KVGATE_DEVICE=cuda:0 cargo bench --features cuda --bench blocks         # on a card, the upload of the blocks included
//! ```
//!
//! The best of several runs counts. Bytes are those of the numbers, f32.

use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::GgmlDType;
use candle_core::{Device as Place, Result, Tensor};
use kvgate::internals::compute::blocks::TYPES;
use kvgate::internals::compute::device::Choice;
use kvgate::internals::compute::Device;
use std::time::Instant;

/// The elements of a tensor of the size of a large MLP's.
const SHAPE: [usize; 2] = [8192, 4096];
const ELEMENTS: usize = SHAPE[0] * SHAPE[1];

const RUNS: usize = 5;

/// The types that candle reads, by their numbers in files.
const CANDLES: &[(u32, GgmlDType)] = &[
    (0, GgmlDType::F32),
    (1, GgmlDType::F16),
    (30, GgmlDType::BF16),
    (2, GgmlDType::Q4_0),
    (3, GgmlDType::Q4_1),
    (6, GgmlDType::Q5_0),
    (7, GgmlDType::Q5_1),
    (8, GgmlDType::Q8_0),
    (10, GgmlDType::Q2K),
    (11, GgmlDType::Q3K),
    (12, GgmlDType::Q4K),
    (13, GgmlDType::Q5K),
    (14, GgmlDType::Q6K),
];

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let choice = std::env::var("KVGATE_DEVICE").map_or(Ok(Choice::Cpu), |name| name.parse())?;
    let device = Device::open(choice)?;
    println!("{} elements, {}", ELEMENTS, device.describe());
    println!("type       G elements/s    GB/s    candle on the CPU, GB/s");
    for of in TYPES.iter().filter(|of| of.is_read()) {
        let blocks = blocks(ELEMENTS / of.elements * of.bytes);
        let seconds = best(|| waited(of.dequantized(&blocks, &SHAPE, device.at())?))?;
        let candle = CANDLES.iter().find(|(code, _)| *code == of.code);
        let candle = candle.map(|(_, dtype)| {
            best(|| {
                let shape = SHAPE.to_vec();
                qtensor_from_ggml(*dtype, &blocks, shape, &Place::Cpu)?.dequantize(&Place::Cpu)
            })
        });
        let candle = candle.transpose()?.map_or_else(String::new, |seconds| rate(4, seconds));
        println!("{:<8} {:>14} {:>7} {candle:>26}", of.name, rate(1, seconds), rate(4, seconds));
    }
    Ok(())
}

/// Bytes that are neither all alike nor all the same number in half precision.
fn blocks(count: usize) -> Vec<u8> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8 & 0x7b).collect()
}

/// The tensor, when the device is done with it.
fn waited(x: Tensor) -> Result<Tensor> {
    x.device().synchronize()?;
    Ok(x)
}

fn best(run: impl Fn() -> Result<Tensor>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        let began = Instant::now();
        std::hint::black_box(run()?);
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Thousands of millions of bytes a second.
fn rate(bytes: usize, seconds: f64) -> String {
    format!("{:.2}", (bytes * ELEMENTS) as f64 / seconds / 1e9)
}
