//! `kvgate inspect` shows a model's architecture, its KV geometry, and the cache's size under each scheme, at one context
//! and at those at which people serve models.

use super::memory;
use super::shared::{name, say, Reading, Stop, NOT_MEASURED, USAGE};
use crate::kv::calibration::Calibration;
use crate::kv::codec;
use crate::kv::effective::Effective;
use crate::kv::Scheme;
use crate::model::spec::{Attention, Kv, Mixer, Spec};
use crate::model::{decoder, Checkpoint, Geometry, ModelError};
use crate::progress::Bar;
use crate::results::shown_bits;
use crate::source::{self, Source};
use crate::text::numbers::bytes;
use indicatif::HumanCount;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The model: a GGUF file, a folder with config.json and safetensors files, or a checkpoint of the Hugging
    /// Face hub: hf:ORG/NAME@COMMIT, or hf:ORG/NAME@COMMIT/FILE.gguf for one of its GGUF files
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// How many tokens the cache holds [default: the context that the model was trained for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Show these schemes [default: every codec for both K and V]
    #[arg(long, value_delimiter = ',', value_name = "SCHEME")]
    schemes: Vec<String>,
    #[command(flatten)]
    reading: Reading,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    let source = arguments.reading.source(&arguments.model)?;
    {
        let bar = Bar::new(&name(&source));
        source::fetch(&source, &|what, done, all| bar.update(what, done, all))
            .map_err(|error| Stop::new(NOT_MEASURED, error.to_string()))?;
    }
    let seen = Seen::of(&source)?;
    let Geometry { spec, bytes: size, dtypes, notes } = &seen.geometry;
    let dtypes: Vec<_> = dtypes.iter().map(|(name, n)| format!("{n} {name}")).collect();
    say(format!(
        "file          {} ({}; {})",
        source.path.display(),
        bytes(*size as f64),
        dtypes.join(", ")
    ))?;
    say(format!(
        "architecture  {}, {} parameters",
        spec.architecture,
        HumanCount(decoder::parameters(spec))
    ))?;
    say(format!("tokenizer     {}", seen.tokenizer))?;
    say(format!("context       {} tokens trained", spec.trained_context))?;
    for note in notes {
        say(format!("note          {note}"))?;
    }
    layers(spec)?;
    costs(spec, arguments)?;
    served(spec, arguments)?;
    Ok(0)
}

/// What there is to show of a checkpoint.
struct Seen {
    geometry: Geometry,
    /// The tokenizer, or why there is none.
    tokenizer: String,
}

impl Seen {
    /// Opens a checkpoint. A tokenizer of its own that cannot be used does not hide the rest.
    fn of(source: &Source) -> Result<Self, Stop> {
        let stop = |error: ModelError| Stop::new(USAGE, error.to_string());
        match Checkpoint::open(source) {
            Ok(checkpoint) => {
                let tokenizer = &checkpoint.tokenizer;
                let bos = tokenizer.bos.map_or("no BOS".into(), |id| format!("BOS {id}"));
                let tokenizer =
                    format!("{}, {} tokens, {bos}", tokenizer.kind, checkpoint.spec.vocab);
                Ok(Seen { geometry: checkpoint.into_geometry(), tokenizer })
            }
            Err(error @ ModelError::Tokenizer { .. }) if source.tokenizer.is_none() => {
                let geometry = Geometry::read(source).map_err(stop)?;
                let tokenizer = format!("none, so that nothing can be measured: {error}");
                Ok(Seen { geometry, tokenizer })
            }
            Err(error) => Err(stop(error)),
        }
    }
}

/// Prints the layers. Those that look alike share a line, in the order of the first layer of each kind.
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
    let rope = match a.rope.frequencies.is_empty() {
        true => "no RoPE".into(),
        false => format!("RoPE θ {}", a.rope.base),
    };
    let own = if a.own_scores { ", scores of their own" } else { "" };
    let (heads, kv_heads, dim) = (a.heads, a.kv_heads, a.head_dim);
    format!("{heads} heads, {kv_heads} KV heads of {dim}, {reach}{kv}{own}, {rope}")
}

/// Prints the size of one sequence's cache under each scheme. Layers with a window keep no more than the window.
fn costs(spec: &Spec, arguments: &Arguments) -> Result<(), Stop> {
    let context = arguments.context.map_or(spec.trained_context, |n| n as usize);
    if context == 0 {
        let message =
            "the file says that the model was trained for 0 tokens: give a number with --context";
        return Err(Stop::new(USAGE, message));
    }
    let layout = spec.kv_layout();
    let calibration = Calibration::placeholder(&layout);
    let effective = |scheme: &Scheme| Effective::new(scheme, &layout, Some(&calibration));
    let f16 = effective(&Scheme::f16());
    let f16 = f16.map_err(|error| Stop::new(USAGE, error.to_string()))?.bytes_at(context) as f64;
    say(format!("\nat a context of {context} tokens, exact tails and sinks included:"))?;
    let header = ["bits K/V", "KV per token", "KV in all", "of f16"];
    let row = |name: &str, [bits, token, all, ratio]: [&str; 4]| {
        format!("{name:<17} {bits:>17} {token:>14} {all:>12} {ratio:>8}")
    };
    say(row("scheme", header))?;
    for (name, scheme) in schemes(&arguments.schemes)? {
        match effective(&scheme) {
            Err(error) => say(format!("{name:<17} – {error}"))?,
            Ok(effective) => {
                let [k, v] = effective.bits_at(context).map(shown_bits);
                let all = effective.bytes_at(context) as f64;
                let cells = [
                    format!("{k} / {v}"),
                    bytes(effective.bytes_per_token()),
                    bytes(all),
                    format!("{:.1} %", 100.0 * all / f16.max(1.0)),
                ];
                say(row(&name, cells.each_ref().map(String::as_str)))?;
            }
        }
    }
    Ok(())
}

/// The schemes whose sizes are shown at several contexts if none was asked for.
const SERVED: [&str; 4] = ["f16", "q8_0", "q8_0/q4_0", "q4_0"];

/// Prints the size of one sequence's cache at the contexts at which people serve models. A scheme that does not fit the
/// model has been reported, and is left out.
fn served(spec: &Spec, arguments: &Arguments) -> Result<(), Stop> {
    let layout = spec.kv_layout();
    let calibration = Calibration::placeholder(&layout);
    let asked = if arguments.schemes.is_empty() {
        SERVED.map(String::from).to_vec()
    } else {
        arguments.schemes.clone()
    };
    let fitting = schemes(&asked)?.into_iter().filter_map(|(name, scheme)| {
        Some((name, Effective::new(&scheme, &layout, Some(&calibration)).ok()?))
    });
    let fitting: Vec<_> = fitting.collect();
    let fitting = fitting.iter().map(|(name, effective)| (name.as_str(), effective));
    let lines = memory::lines(spec.trained_context, spec.state_bytes(), fitting);
    say(format!("\n{}", lines.join("\n")))
}

/// The schemes that were asked for. If none was, each codec of the catalogue for both K and V.
fn schemes(asked: &[String]) -> Result<Vec<(String, Scheme)>, Stop> {
    // variants are left out because they cost about as much as their codec
    let catalogue = codec::all().map(|codec| codec.name().to_string());
    let catalogue = catalogue.filter(|name| !name.contains(':'));
    let names = if asked.is_empty() { catalogue.collect() } else { asked.to_vec() };
    let parsed = names.into_iter().map(|name| {
        let scheme = name.parse::<Scheme>();
        let scheme = scheme.map_err(|error| Stop::new(USAGE, format!("scheme `{name}`: {error}")));
        scheme.map(|scheme| (name, scheme))
    });
    parsed.collect()
}
