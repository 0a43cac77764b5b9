//! The nine-scheme matrix on real models: wall time, rate, the share of the products, part by part.
//!
//! ```text
//! cargo bench --bench matrix                       # SmolLM2 512 × 8 and Gemma 1024 × 4
//! ```
//!
//! The same products are timed alone in the same run: same shapes, same tiles, random numbers.

use candle_core::{Device, Tensor};
use kvgate::internals::kv::effective::Effective;
use kvgate::internals::kv::Scheme;
use kvgate::internals::measure::corpus::{self, Chunk};
use kvgate::internals::measure::engine::{self, Lane};
use kvgate::internals::model::decoder::{Decoder, Residency};
use kvgate::internals::model::spec::{FeedForward, Spec};
use kvgate::internals::model::Checkpoint;
use kvgate::internals::source::Source;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

const SCHEMES: [&str; 9] =
    ["bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "q8_0/q4_0", "q4_0:norot"];

/// File, context, chunks, and the seconds that llama.cpp needed for an f16 baseline and nine runs.
const RUNS: [(&str, usize, usize, f64); 2] = [
    ("SmolLM2-135M-Instruct.Q4_1.gguf", 512, 8, 168.0),
    ("gemma-3-270m-q4_k_m.gguf", 1024, 4, 190.0),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let times: &'static Times = Box::leak(Box::default());
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(times))?;
    for (file, context, chunks, peer) in RUNS {
        let (decoder, chunks) = prepare(file, context, chunks)?;
        times.0.lock().unwrap().clear();
        let began = Instant::now();
        let lanes = lanes(&decoder.spec, chunks.len())?;
        for lane in
            engine::run(&decoder, &chunks, &scheme(&decoder.spec, "f16")?, &lanes, None, &|_, _| ())
        {
            lane?;
        }
        let matrix = began.elapsed().as_secs_f64();
        let products = products_alone(&decoder, context, chunks.len(), lanes.len() + 1)?;
        report(file, context, chunks.len(), lanes.len() + 1, matrix, products, peer);
        times.print(matrix);
    }
    Ok(())
}

fn prepare(
    file: &str,
    context: usize,
    chunks: usize,
) -> Result<(Decoder, Vec<Chunk>), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("models/real").join(file);
    let fetch = Some("scripts/fetch-models".into());
    let checkpoint = Checkpoint::open(&Source { fetch, ..Source::at(path) })?;
    let text = corpus::read(&root.join("corpora/persuasion.txt"))?;
    let chunks = corpus::chunks(&[text], &checkpoint.tokenizer, context, chunks)?;
    Ok((checkpoint.load(Residency::Resident)?, chunks))
}

fn scheme(spec: &Spec, text: &str) -> Result<Effective, Box<dyn std::error::Error>> {
    Ok(Effective::new(&text.parse::<Scheme>()?, &spec.kv_layout(), None)?)
}

fn lanes(spec: &Spec, chunks: usize) -> Result<Vec<Lane>, Box<dyn std::error::Error>> {
    SCHEMES.iter().map(|text| Ok(Lane { scheme: scheme(spec, text)?, chunks })).collect()
}

struct Products {
    seconds: f64,
    flops: f64,
}

/// All matrix products of the matrix, and nothing else.
fn products_alone(
    decoder: &Decoder,
    context: usize,
    chunks: usize,
    lanes: usize,
) -> candle_core::Result<Products> {
    let spec = &decoder.spec;
    let per_tile = engine::chunks_per_tile(decoder.device(), context);
    let tiles = lanes * chunks.div_ceil(per_tile);
    let rows = per_tile * context;
    let mut shapes = BTreeMap::new();
    for layer in &spec.layers {
        let (Some(a), FeedForward::Dense(mlp)) = (layer.attention(), &layer.feed_forward) else {
            panic!("the benchmark knows dense models");
        };
        for (input, output) in [
            (spec.hidden, a.q_width() + 2 * a.kv_width()),
            (a.q_width(), spec.hidden),
            (spec.hidden, 2 * mlp.width),
            (mlp.width, spec.hidden),
        ] {
            *shapes.entry((rows, input, output)).or_insert(0) += tiles;
        }
    }
    // the head: blocks of positions of all lanes, the vocabulary in tiles, both with a last one
    let scored = context - 1 - context / 2;
    let block = decoder.device().head_positions(lanes);
    for first in (0..scored).step_by(block) {
        let rows = block.min(scored - first) * lanes;
        let width = decoder.device().head_width(rows);
        for start in (0..spec.vocab).step_by(width) {
            let shape = (rows, spec.hidden, width.min(spec.vocab - start));
            *shapes.entry(shape).or_insert(0) += chunks;
        }
    }

    let mut products = Products { seconds: 0.0, flops: 0.0 };
    for ((rows, input, output), count) in shapes {
        let x = Tensor::randn(0f32, 1.0, (rows, input), &Device::Cpu)?;
        let w = Tensor::randn(0f32, 1.0, (output, input), &Device::Cpu)?;
        let began = Instant::now();
        for _ in 0..count {
            std::hint::black_box(x.matmul(&w.t()?)?);
        }
        products.seconds += began.elapsed().as_secs_f64();
        products.flops += 2.0 * (rows * input * output * count) as f64;
    }
    Ok(products)
}

fn report(
    file: &str,
    context: usize,
    chunks: usize,
    lanes: usize,
    matrix: f64,
    products: Products,
    peer: f64,
) {
    let Products { seconds, flops } = products;
    let tokens = (context * chunks * lanes) as f64;
    println!("\n{file}, {context} × {chunks}, {lanes} lanes, {} threads", rayon_threads());
    println!(
        "  matrix            {matrix:7.1} s   {:.0} tokens × lanes per second",
        tokens / matrix
    );
    println!("  products alone    {seconds:7.1} s   {:.0} GFLOP/s", flops / seconds / 1e9);
    println!("  ratio             {:7.2}     (the bar is 1.35)", matrix / seconds);
    println!("  share of the rate {:7.1} %", 100.0 * seconds / matrix);
    println!("  llama.cpp         {peer:7.1} s   {:.1} times as long", peer / matrix);
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        status
            .lines()
            .filter(|line| line.starts_with("VmHWM"))
            .for_each(|line| println!("  {line}"));
    }
}

fn rayon_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Wall time by the name of the engine's spans, which do not nest.
#[derive(Default)]
struct Times(Mutex<BTreeMap<&'static str, Duration>>);

struct Began(Instant);

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S>
    for &'static Times
{
    fn on_enter(&self, id: &tracing::span::Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            span.extensions_mut().replace(Began(Instant::now()));
        }
    }

    fn on_exit(&self, id: &tracing::span::Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let began = span.extensions().get::<Began>().map(|began| began.0);
        if let Some(began) = began {
            *self.0.lock().unwrap().entry(span.name()).or_default() += began.elapsed();
        }
    }
}

impl Times {
    fn print(&self, matrix: f64) {
        let times = self.0.lock().unwrap();
        let mut parts: Vec<_> = times.iter().map(|(name, t)| (*name, t.as_secs_f64())).collect();
        parts.sort_by(|a, b| b.1.total_cmp(&a.1));
        let known: f64 = parts.iter().map(|(_, t)| t).sum();
        parts.push(("rest", matrix - known));
        for (name, seconds) in parts {
            println!("    {name:<12} {seconds:7.2} s {:5.1} %", 100.0 * seconds / matrix);
        }
    }
}
