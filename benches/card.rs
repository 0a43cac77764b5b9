//! Models of real sizes with random weights on a card: the engine's time, part by part, beside its products alone.
//!
//! ```text
//! cargo bench --features cuda --bench card            # all runs
//! cargo bench --features cuda --bench card -- qwen3-8b gemma3-270m
//! ```
//!
//! Each run is timed after a warm-up. *Products alone* are the calls of cuBLAS of the same run, one after the other, with
//! nothing between them. Parts are timed in a shorter run of their own, which waits for the card behind each part.

#[allow(dead_code)] // the tests use all of it
#[path = "../tests/support/manifest.rs"]
mod manifest;

use candle_core::{DType, Tensor};
use kvgate::internals::compute::device::Choice;
use kvgate::internals::compute::product::Matrix;
use kvgate::internals::compute::Device;
use kvgate::internals::kv::effective::Effective;
use kvgate::internals::kv::Scheme;
use kvgate::internals::measure::corpus::{self, Chunk};
use kvgate::internals::measure::engine::{self, Lane};
use kvgate::internals::model::decoder::{parameters, Decoder};
use kvgate::internals::model::spec::{
    Activation, Attention, FeedForward, Kv, Layer, Mixer, Mlp, Pairs, QkNorm, Rope, Spec,
};
use kvgate::internals::model::Checkpoint;
use kvgate::internals::source::Source;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const NINE: &[&str] =
    &["bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "q8_0/q4_0", "q4_0:norot"];

/// A model, and the run that it is timed in.
struct Run {
    name: &'static str,
    model: Model,
    context: usize,
    chunks: usize,
    schemes: &'static [&'static str],
}

enum Model {
    Dense(Dense),
    /// A released model by the name of its configuration in `tests/fixtures/real`.
    Released(&'static str),
}

/// The sizes of a dense model.
struct Dense {
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    mlp: usize,
    vocab: usize,
    tied: bool,
    /// Every sixth layer sees everything, the others a window (Gemma 3).
    window: Option<usize>,
    post_norms: bool,
}

const QWEN3_8B: Dense = Dense {
    layers: 36,
    hidden: 4096,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    mlp: 12_288,
    vocab: 151_936,
    tied: false,
    window: None,
    post_norms: false,
};

const GEMMA3_270M: Dense = Dense {
    layers: 18,
    hidden: 640,
    heads: 4,
    kv_heads: 1,
    head_dim: 256,
    mlp: 2048,
    vocab: 262_144,
    tied: true,
    window: Some(512),
    post_norms: true,
};

const RUNS: [Run; 5] = [
    Run {
        name: "qwen3-8b",
        model: Model::Dense(QWEN3_8B),
        context: 2048,
        chunks: 32,
        schemes: NINE,
    },
    Run {
        name: "gemma3-270m",
        model: Model::Dense(GEMMA3_270M),
        context: 4096,
        chunks: 27,
        schemes: NINE,
    },
    Run {
        name: "qwen3.6-35b-a3b",
        model: Model::Released("Qwen3.6-35B-A3B"),
        context: 2048,
        chunks: 16,
        schemes: &["q8_0:norot", "q8_0:norot/q4_0:norot", "q4_0:norot/q8_0:norot", "q4_0:norot"],
    },
    Run {
        name: "gemma4-e2b",
        model: Model::Released("Gemma4-E2B"),
        context: 2048,
        chunks: 16,
        schemes: &["q8_0:norot", "f16/q4_0:norot", "q4_0:norot/f16", "q4_0:norot"],
    },
    Run {
        name: "qwen3.6-35b-a3b-long",
        model: Model::Released("Qwen3.6-35B-A3B"),
        context: 32_768,
        chunks: 1,
        schemes: &["q8_0:norot", "q4_0:norot"],
    },
];

fn main() -> Result<()> {
    let names: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let device = match std::env::var("KVGATE_DEVICE") {
        Ok(name) => Device::open(name.parse()?)?,
        Err(_) => Device::open(Choice::Auto)?,
    };
    println!("{}", device.describe());
    if device.at().is_cpu() {
        return Err("this benchmark is of a card, and none was opened".into());
    }
    let parts: &'static Parts = Box::leak(Box::new(Parts::on(&device)));
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(parts))?;
    for run in RUNS.iter().filter(|run| names.is_empty() || names.iter().any(|n| n == run.name)) {
        run.time(&device, parts)?;
    }
    Ok(())
}

impl Run {
    fn time(&self, device: &Device, parts: &Parts) -> Result<()> {
        let spec = match &self.model {
            Model::Dense(dense) => dense.spec(self),
            Model::Released(name) => released(name)?,
        };
        let began = Instant::now();
        let decoder = Decoder::with_random_weights(&spec, device, device)?;
        println!(
            "\n{}: {:.2} G parameters, made in {:.1} s; {} x {}, baseline and {} schemes",
            self.name,
            parameters(&spec) as f64 / 1e9,
            began.elapsed().as_secs_f64(),
            self.context,
            self.chunks,
            self.schemes.len()
        );
        let tile = engine::chunks_per_tile(device, self.context).min(self.chunks);
        self.seconds(&decoder, self.schemes, tile)?;
        let all = self.seconds(&decoder, self.schemes, self.chunks)?;
        let baseline = self.seconds(&decoder, &[], self.chunks)?;
        let lanes = self.schemes.len() + 1;
        let rate = |seconds: f64| (self.context * self.chunks * lanes) as f64 / seconds;
        println!("  all lanes          {all:8.2} s   {:.0} tokens x lanes per second", rate(all));
        println!("  the baseline alone {baseline:8.2} s");
        let more = (all - baseline) / self.schemes.len() as f64;
        println!(
            "  one more scheme    {more:8.2} s   {:.2} of the baseline alone",
            more / baseline
        );
        if let Model::Dense(dense) = &self.model {
            let alone = dense.products_alone(self, device)?;
            println!(
                "  products alone     {:8.2} s   {:.0} TFLOP/s; all lanes take {:.2} times as long",
                alone.seconds,
                alone.flops / alone.seconds / 1e12,
                all / alone.seconds
            );
        }
        parts.begin();
        let whole = self.seconds(&decoder, self.schemes, tile)?;
        parts.print(whole, tile);
        Ok(())
    }

    /// How long the engine takes.
    fn seconds(&self, decoder: &Decoder, schemes: &[&str], chunks: usize) -> Result<f64> {
        let layout = decoder.spec.kv_layout();
        let scheme = |name: &str| -> Result<Effective> {
            Ok(Effective::new(&name.parse::<Scheme>()?, &layout, None)?)
        };
        let lanes = schemes.iter().map(|name| Ok(Lane { scheme: scheme(name)?, chunks }));
        let lanes = lanes.collect::<Result<Vec<_>>>()?;
        let (baseline, chunks) = (scheme("f16")?, self.chunks(decoder.spec.vocab, chunks));
        let began = Instant::now();
        for lane in engine::run(decoder, &chunks, &baseline, &lanes, None, &|_, _| ()) {
            lane?;
        }
        decoder.device().wait()?;
        Ok(began.elapsed().as_secs_f64())
    }

    fn chunks(&self, vocab: usize, count: usize) -> Vec<Chunk> {
        let token = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) as u32 % vocab as u32;
        let chunk = |index| Chunk {
            category: "random".into(),
            index,
            tokens: (0..self.context).map(|i| token(index * self.context + i)).collect(),
            scored: corpus::scored(self.context),
        };
        (0..count).map(chunk).collect()
    }
}

/// The specification of a released model.
fn released(name: &str) -> Result<Spec> {
    let folder = tempfile::tempdir()?;
    manifest::write(folder.path(), name, &manifest::manifest(name));
    Ok(Checkpoint::open(&Source::at(folder.path().into()))?.spec)
}

struct Alone {
    seconds: f64,
    flops: f64,
}

impl Dense {
    /// The calls of cuBLAS of a run, and nothing else.
    fn products_alone(&self, run: &Run, device: &Device) -> Result<Alone> {
        let lanes = run.schemes.len() + 1;
        let queries = self.heads * self.head_dim;
        let layer = [
            (self.hidden, queries + 2 * self.kv_heads * self.head_dim),
            (queries, self.hidden),
            (self.hidden, 2 * self.mlp),
            (self.mlp, self.hidden),
        ];
        let mut sequence = Vec::new();
        let tile = engine::chunks_per_tile(device, run.context).min(run.chunks);
        for first in (0..run.chunks).step_by(tile) {
            let rows = tile.min(run.chunks - first) * run.context;
            for _ in 0..self.layers {
                sequence.extend(layer.map(|(width, out)| (rows, width, out)));
            }
        }
        let scored = corpus::scored(run.context).len();
        let block = device.head_positions(lanes);
        for _ in 0..run.chunks {
            for first in (0..scored).step_by(block) {
                let rows = block.min(scored - first);
                let width = device.head_width(rows * lanes).min(self.vocab);
                let tiles = (0..self.vocab).step_by(width);
                sequence
                    .extend(tiles.map(|start| (rows, self.hidden, width.min(self.vocab - start))));
            }
        }
        let mut calls = BTreeMap::new();
        for &(rows, width, out) in &sequence {
            if let std::collections::btree_map::Entry::Vacant(entry) =
                calls.entry((rows, width, out))
            {
                let random = |rows| Tensor::randn(0f32, 0.02, (rows, width), device.at());
                let weights = random(out)?.to_dtype(DType::BF16)?.to_dtype(DType::F32)?;
                let weights = Matrix::new(weights, device.precision())?;
                entry.insert(weights.calls(&random(lanes * rows)?, lanes)?);
            }
        }
        sequence.iter().take(8).try_for_each(|shape| calls[shape]())?;
        device.wait()?;
        let began = Instant::now();
        sequence.iter().try_for_each(|shape| calls[shape]())?;
        device.wait()?;
        let seconds = began.elapsed().as_secs_f64();
        // the baseline is multiplied twice
        let flops = sequence
            .iter()
            .map(|(rows, width, out)| 2.0 * ((lanes + 1) * rows * width) as f64 * *out as f64);
        Ok(Alone { seconds, flops: flops.sum() })
    }

    fn spec(&self, run: &Run) -> Spec {
        let layer = |index: usize| {
            let window = self.window.filter(|_| !(index + 1).is_multiple_of(6));
            let base: f32 = 1e6;
            let frequency = |i: usize| base.powf(-2.0 * i as f32 / self.head_dim as f32);
            Layer {
                mixer: Mixer::Attention(Attention {
                    heads: self.heads,
                    kv_heads: self.kv_heads,
                    head_dim: self.head_dim,
                    scale: 1.0 / (self.head_dim as f32).sqrt(),
                    softcap: None,
                    window,
                    kv: Kv::Projected,
                    qkv_bias: false,
                    output_bias: false,
                    qk_norm: QkNorm::Heads,
                    fused: false,
                    own_scores: false,
                    v_norm: false,
                    gated: false,
                    rope: Rope {
                        base: base.into(),
                        pairs: Pairs::Halves,
                        frequencies: (0..self.head_dim / 2).map(frequency).collect(),
                        magnitude: 1.0,
                        temperature: None,
                        longest: None,
                    },
                }),
                feed_forward: FeedForward::Dense(Mlp {
                    width: self.mlp,
                    bias: false,
                    fused: false,
                }),
                activation: Activation::Silu,
                pre_norms: true,
                post_norms: self.post_norms,
                added_scale: 1.0,
                scaled: false,
            }
        };
        Spec {
            architecture: run.name.into(),
            hidden: self.hidden,
            vocab: self.vocab,
            trained_context: run.context,
            embed_scale: 1.0,
            tied_head: self.tied,
            norm_eps: 1e-6,
            logit_scale: 1.0,
            final_softcap: None,
            per_layer_inputs: None,
            layers: (0..self.layers).map(layer).collect(),
            ignored_tensors: Vec::new(),
        }
    }
}

/// Time by the name of the engine's spans, which do not nest.
struct Parts {
    device: Device,
    /// `None` while nobody wants to know, because waiting for the card behind each span costs time.
    times: Mutex<Option<BTreeMap<&'static str, f64>>>,
}

struct Began(Instant);

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S>
    for &'static Parts
{
    fn on_enter(&self, id: &tracing::span::Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if self.is_asked() {
            self.device.wait().expect("the card answers");
            span.extensions_mut().replace(Began(Instant::now()));
        }
    }

    fn on_exit(&self, id: &tracing::span::Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let began = span.extensions().get::<Began>().map(|began| began.0);
        let mut times = self.times.lock().unwrap();
        if let (Some(began), Some(times)) = (began, times.as_mut()) {
            self.device.wait().expect("the card answers");
            *times.entry(span.name()).or_default() += began.elapsed().as_secs_f64();
        }
    }
}

impl Parts {
    fn on(device: &Device) -> Self {
        Parts { device: device.clone(), times: Mutex::new(None) }
    }

    fn is_asked(&self) -> bool {
        self.times.lock().unwrap().is_some()
    }

    fn begin(&self) {
        *self.times.lock().unwrap() = Some(BTreeMap::new());
    }

    fn print(&self, whole: f64, chunks: usize) {
        let times = self.times.lock().unwrap().take().unwrap_or_default();
        let mut parts: Vec<_> = times.into_iter().collect();
        parts.sort_by(|a, b| b.1.total_cmp(&a.1));
        let known: f64 = parts.iter().map(|(_, t)| t).sum();
        parts.push(("rest", whole - known));
        println!(
            "  parts of a run of {chunks} chunks, which waits behind each of them: {whole:.2} s"
        );
        for (name, seconds) in parts {
            println!("    {name:<14} {seconds:7.3} s {:5.1} %", 100.0 * seconds / whole);
        }
    }
}
