//! `kvgate inspect`: architecture, KV geometry, bytes per token by scheme.

use super::{bytes, name, say, source, Stop, NOT_MEASURED, USAGE};
use crate::hub;
use crate::kv::codec::CODECS;
use crate::model::spec::Spec;
use crate::model::Checkpoint;
use crate::progress::Bar;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// A GGUF file, or hf:ORG/NAME@COMMIT or hf:ORG/NAME@COMMIT/FILE.gguf
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

/// Runs of layers whose caches look alike.
fn layers(spec: &Spec) -> Result<(), Stop> {
    for run in spec.layers.chunk_by(|a, b| a.attention == b.attention) {
        let a = &run[0].attention;
        let reach = match a.window {
            Some(window) => format!("window {window}"),
            None => "full".into(),
        };
        say(format!(
            "layers        {:>3} × {} heads, {} KV heads of {}, {reach}, RoPE θ {}",
            run.len(),
            a.heads,
            a.kv_heads,
            a.head_dim,
            a.rope.base
        ))?;
    }
    Ok(())
}

/// Bytes that a token adds to the cache; a window caps them at its length.
fn costs(spec: &Spec) -> Result<(), Stop> {
    let elements = |windowed: bool| -> usize {
        let layers = spec.layers.iter().filter(|l| l.attention.window.is_some() == windowed);
        layers.map(|layer| 2 * layer.attention.kv_width()).sum()
    };
    let (full, windowed) = (elements(false), elements(true));
    say(format!(
        "\n{:<8} {:>6} {:>16} {:>22}",
        "codec", "bits", "KV per token", "at trained context"
    ))?;
    for codec in CODECS {
        let bits = codec.bits_per_element();
        let per_token = |n: usize| n as f64 * bits / 8.0;
        let window = spec.layers.iter().find_map(|l| l.attention.window).unwrap_or(0);
        let kept = window.min(spec.trained_context);
        let whole =
            per_token(full) * spec.trained_context as f64 + per_token(windowed) * kept as f64;
        say(format!(
            "{:<8} {bits:>6} {:>16} {:>22}",
            codec.name(),
            bytes(per_token(full + windowed)),
            bytes(whole)
        ))?;
    }
    Ok(())
}

fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}
