//! `kvgate inspect`: architecture, KV geometry, bytes per token by scheme.

use super::{bytes, name, say, source, Stop, NOT_MEASURED, USAGE};
use crate::hub;
use crate::kv::cache::bits_per_element;
use crate::kv::codec::CODECS;
use crate::model::spec::{Attention, Kv, Layer, Mixer, Spec};
use crate::model::Checkpoint;
use crate::progress::Bar;
use crate::results::shown_bits;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// A GGUF file, a folder with config.json and safetensors, or hf:ORG/NAME@COMMIT or hf:ORG/NAME@COMMIT/FILE.gguf
    #[arg(value_name = "MODEL")]
    model: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    let source = source(&arguments.model)?;
    {
        let bar = Bar::new(&name(&source));
        hub::fetch(&source, &|what, done, all| bar.tell(what, done, all))
            .map_err(|error| Stop::new(NOT_MEASURED, error.to_string()))?;
    }
    let checkpoint =
        Checkpoint::open(&source).map_err(|error| Stop::new(USAGE, error.to_string()))?;
    let spec = &checkpoint.spec;
    let (size, dtypes) = checkpoint.contents();
    let dtypes: Vec<_> = dtypes.iter().map(|(name, n)| format!("{n} {name}")).collect();
    say(format!(
        "file          {} ({}; {})",
        checkpoint.path().display(),
        bytes(size as f64),
        dtypes.join(", ")
    ))?;
    say(format!(
        "architecture  {}, {} parameters",
        spec.architecture,
        thousands(spec.parameters())
    ))?;
    say(format!(
        "tokenizer     {}, {} tokens, {}",
        checkpoint.tokenizer.kind,
        spec.vocab,
        bos(&checkpoint)
    ))?;
    say(format!("context       {} tokens trained", spec.trained_context))?;
    layers(spec)?;
    costs(spec)?;
    Ok(0)
}

fn bos(checkpoint: &Checkpoint) -> String {
    match checkpoint.tokenizer.bos {
        Some(id) => format!("BOS {id}"),
        None => "no BOS".into(),
    }
}

/// Layers that look alike, in the order in which the first of them stands.
fn layers(spec: &Spec) -> Result<(), Stop> {
    let mut kinds: Vec<(&Mixer, usize)> = Vec::new();
    for layer in &spec.layers {
        match kinds.iter_mut().find(|(mixer, _)| **mixer == layer.mixer) {
            Some((_, count)) => *count += 1,
            None => kinds.push((&layer.mixer, 1)),
        }
    }
    for (mixer, count) in kinds {
        let what = match mixer {
            Mixer::Attention(attention) => attention_words(attention),
            Mixer::DeltaNet(net) => format!(
                "gated delta rule, {} heads of {}, state of {} a sequence",
                net.value_heads,
                net.value_dim,
                bytes(net.state_bytes() as f64)
            ),
        };
        say(format!("layers        {count:>3} × {what}"))?;
    }
    Ok(())
}

fn attention_words(a: &Attention) -> String {
    let reach = match a.window {
        Some(window) => format!("window {window}"),
        None => "full".into(),
    };
    let kv = match a.kv {
        Kv::Projected => String::new(),
        Kv::KeyIsValue => ", V from K".into(),
        Kv::Shared { owner } => format!(", reads the cache of layer {owner}"),
    };
    let (heads, kv_heads, dim, base) = (a.heads, a.kv_heads, a.head_dim, a.rope.base);
    format!("{heads} heads, {kv_heads} KV heads of {dim}, {reach}{kv}, RoPE θ {base}")
}

/// Bytes that a token adds to the cache; a window caps them at its length.
fn costs(spec: &Spec) -> Result<(), Stop> {
    let owners: Vec<_> =
        spec.layers.iter().filter_map(Layer::attention).filter(|a| a.owns_kv()).collect();
    let kept = |a: &Attention| a.window.unwrap_or(usize::MAX).min(spec.trained_context);
    say(format!(
        "\n{:<16} {:>6} {:>16} {:>22}",
        "codec", "bits", "KV per token", "at trained context"
    ))?;
    for codec in CODECS {
        let bits = bits_per_element(*codec, &spec.kv_layout());
        let token = |a: &Attention| (2 * a.kv_width()) as f64 * codec.bits_per_element(a.head_dim);
        let per_token: f64 = owners.iter().map(|a| token(a)).sum();
        let in_context: f64 = owners.iter().map(|a| token(a) * kept(a) as f64).sum();
        say(format!(
            "{:<16} {:>6} {:>16} {:>22}",
            codec.name(),
            shown_bits(bits),
            bytes(per_token / 8.0),
            bytes(in_context / 8.0)
        ))?;
    }
    Ok(())
}

fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}
