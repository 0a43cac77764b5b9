//! Models of real sizes with random weights on a card: the engine's time, part by part, beside the products alone.
//!
//! ```text
//! cargo bench --features cuda --bench card -- [qwen3-8b] [gemma3-270m]
//! ```

use kvgate::internals::compute::device::Choice;
use kvgate::internals::compute::Device;
use kvgate::internals::kv::effective::Effective;
use kvgate::internals::kv::Scheme;
use kvgate::internals::measure::corpus::{self, Chunk};
use kvgate::internals::measure::engine::{self, Lane};
use kvgate::internals::model::decoder::{parameters, Decoder};
use kvgate::internals::model::spec::{
    Activation, Attention, FeedForward, Kv, Layer, Mixer, Mlp, Pairs, Rope, Spec,
};
use std::time::Instant;

const SCHEMES: [&str; 9] =
    ["bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "q8_0/q4_0", "q4_0:norot"];

/// A dense model, and the run that it is timed in.
struct Run {
    name: &'static str,
    context: usize,
    chunks: usize,
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

const RUNS: [Run; 2] = [
    Run {
        name: "qwen3-8b",
        context: 2048,
        chunks: 32,
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
    },
    Run {
        name: "gemma3-270m",
        context: 4096,
        chunks: 27,
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
    },
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let names: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let device = Device::open(Choice::Auto)?;
    println!("{}", device.describe());
    for run in RUNS.iter().filter(|run| names.is_empty() || names.iter().any(|n| n == run.name)) {
        run.time(&device)?;
    }
    Ok(())
}

impl Run {
    fn time(&self, device: &Device) -> Result<(), Box<dyn std::error::Error>> {
        let spec = self.spec();
        let began = Instant::now();
        let decoder = Decoder::with_random_weights(&spec, device)?;
        let loaded = began.elapsed().as_secs_f64();
        let layout = spec.kv_layout();
        let scheme = |name: &str| -> Result<Effective, Box<dyn std::error::Error>> {
            Ok(Effective::new(&name.parse::<Scheme>()?, &layout, None)?)
        };
        let baseline = scheme("f16")?;
        for count in [0, 1, SCHEMES.len()] {
            let lanes = SCHEMES[..count]
                .iter()
                .map(|name| Ok(Lane { scheme: scheme(name)?, chunks: self.chunks }));
            let lanes = lanes.collect::<Result<Vec<_>, Box<dyn std::error::Error>>>()?;
            let chunks = self.chunks(self.chunks);
            let began = Instant::now();
            for lane in engine::run(&decoder, &chunks, &baseline, &lanes, None, &|_, _| ()) {
                lane?;
            }
            let seconds = began.elapsed().as_secs_f64();
            let tokens = (self.context * self.chunks * (count + 1)) as f64;
            println!(
                "{:<12} {} x {}, {} lanes: {seconds:7.2} s, {:8.0} tokens x lanes per second",
                self.name,
                self.context,
                self.chunks,
                count + 1,
                tokens / seconds
            );
        }
        println!(
            "{:<12} {:.2} G parameters, loaded in {loaded:.1} s",
            self.name,
            parameters(&spec) as f64 / 1e9
        );
        Ok(())
    }

    fn chunks(&self, count: usize) -> Vec<Chunk> {
        let token = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) as u32 % self.vocab as u32;
        let chunk = |index| Chunk {
            category: "random".into(),
            index,
            tokens: (0..self.context).map(|i| token(index * self.context + i)).collect(),
            scored: corpus::scored(self.context),
        };
        (0..count).map(chunk).collect()
    }

    fn spec(&self) -> Spec {
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
                    qk_norm: true,
                    v_norm: false,
                    gated: false,
                    rope: Rope {
                        base: base.into(),
                        pairs: Pairs::Halves,
                        frequencies: (0..self.head_dim / 2).map(frequency).collect(),
                        magnitude: 1.0,
                    },
                }),
                feed_forward: FeedForward::Dense(Mlp { width: self.mlp, bias: false }),
                activation: Activation::Silu,
                post_norms: self.post_norms,
                scaled: false,
            }
        };
        Spec {
            architecture: self.name.into(),
            hidden: self.hidden,
            vocab: self.vocab,
            trained_context: self.context,
            embed_scale: 1.0,
            tied_head: self.tied,
            norm_eps: 1e-6,
            final_softcap: None,
            per_layer_inputs: None,
            layers: (0..self.layers).map(layer).collect(),
            ignored_tensors: Vec::new(),
        }
    }
}
