//! `kvgate suggest`: which scheme to serve.

use super::chosen::{Chosen, Subject};
use super::shared::{file_to_write, measurable, say, say_coloured, On, Stop, NOT_MEASURED, USAGE};
use crate::files::write_atomically;
use crate::judge::interval::LEAST_CHUNKS;
use crate::kv::effective::Effective;
use crate::kv::Scheme;
use crate::measure::corpus::Draw;
use crate::measure::prepare::Prepared;
use crate::measure::Request;
use crate::policy::ModelPolicy;
use crate::progress::Bar;
use crate::suggest::budget::{size, Budget, Served};
use crate::suggest::engines::Engine;
use crate::suggest::write::{edited, entries, Edited};
use crate::suggest::{terminal, Options, Search, SuggestError, Suggestion};
use crate::text::out;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    chosen: Chosen,
    /// The engine that will serve the model
    #[arg(long = "for", value_enum, default_value = "llama.cpp", value_name = "ENGINE")]
    engine: Engine,
    /// The most bits per element of the whole cache at the served context
    #[arg(long, value_name = "B", conflicts_with = "memory")]
    bits: Option<f64>,
    /// The most memory that the caches of all sequences may take, such as 4GiB
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// The context that is served, in tokens, whose cache the bits and the memory are about [default: that of a chunk]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// How many sequences are served at a time
    #[arg(long, default_value_t = 1, value_name = "N", requires = "memory", value_parser = clap::value_parser!(u32).range(1..))]
    sequences: u32,
    /// How many tokens a chunk has; only the second half of each chunk is scored [default: the policy's context, or 512]
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Verify the winners on so many other chunks; 0 verifies nothing [default: as many as choose]
    #[arg(long, value_name = "N")]
    verify: Option<usize>,
    /// Measure single parts on so many of the chunks [default: an eighth]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    scout: Option<u32>,
    /// Mix so many codecs by layer, for K and for V, where the engine can serve it; 0 mixes nothing [default: 3]
    #[arg(long, default_value_t = 3, value_name = "N", hide_default_value = true)]
    mixed: usize,
    /// Try only these codecs [default: all that the engine has]
    #[arg(long, value_delimiter = ',', value_name = "CODEC")]
    codecs: Vec<String>,
    #[command(flatten)]
    on: On,
    /// Also write all numbers into this file
    #[arg(long, value_name = "FILE", value_parser = file_to_write())]
    json: Option<PathBuf>,
    /// Add the scheme to the policy, with limits that leave a margin, and schemes that must break these limits
    #[arg(long, conflicts_with = "tokens")]
    write: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    checked(arguments)?;
    let Subject { name, source, corpus, chunks, model } = arguments.chosen.subject()?;
    let model = model.as_ref();
    if arguments.write && model.is_none() {
        let message = "--write adds to a model of the policy, and MODEL is none of its models: `kvgate init --model MODEL` \
                       writes a policy";
        return Err(Stop::new(USAGE, message));
    }
    let verifying = arguments.verify.unwrap_or(chunks);
    if arguments.write && !arguments.chosen.corpus.is_empty() {
        let message = "--write makes limits for the policy's own texts: leave --corpus out";
        return Err(Stop::new(USAGE, message));
    }
    if arguments.write && verifying < LEAST_CHUNKS {
        let message = format!(
            "--write makes limits of an interval, which needs {LEAST_CHUNKS} chunks that verify, and there are {verifying}: \
             --verify {LEAST_CHUNKS}"
        );
        return Err(Stop::new(USAGE, message));
    }
    let tokens = arguments.tokens.or(model.map(|model| model.context)).unwrap_or(512);
    measurable("--tokens", tokens, chunks)?;
    let request = Request {
        model: &name,
        source: &source,
        corpus: &corpus,
        context: tokens,
        chunks,
        draw: Draw::First,
        baseline: model.map_or_else(Scheme::f16, |model| model.baseline.clone()),
        schemes: Vec::new(),
        calibration: None,
        generate: None,
        retrieval: None,
        device: arguments.on.device()?,
        residency: None,
        mimic: None,
        is_gated: arguments.write,
    };
    let suggestion = suggested(arguments, &request, verifying)?;
    say_coloured(terminal::render(&suggestion).trim_end())?;
    if let Some(path) = &arguments.json {
        let json = serde_json::to_string_pretty(&suggestion);
        let written = json.map_err(std::io::Error::from);
        let written =
            written.and_then(|json| write_atomically(path, |file| writeln!(file, "{json}")));
        written.map_err(|error| unwritten(path, &error))?;
    }
    match model.filter(|_| arguments.write) {
        Some(model) => write(arguments, model, &suggestion),
        None => Ok(0),
    }
}

/// Refuses what cannot be meant.
fn checked(arguments: &Arguments) -> Result<(), Stop> {
    if let Some((name, meant)) = arguments.engine.unknown(&arguments.codecs) {
        let message = format!(
            "--codecs: `{name}` is no codec that {} has as a quantized cache{meant} (`kvgate schemes` lists all)",
            arguments.engine.name()
        );
        return Err(Stop::new(USAGE, message));
    }
    let is_budget = |bits: f64| bits.is_finite() && bits > 0.0;
    match arguments.bits {
        Some(bits) if !is_budget(bits) => {
            Err(Stop::new(USAGE, "--bits must be a number above 0, such as 5"))
        }
        _ => Ok(()),
    }
}

fn suggested(
    arguments: &Arguments,
    request: &Request,
    verifying: usize,
) -> Result<Suggestion, Stop> {
    let stop = |error: SuggestError| {
        use SuggestError::{NoOtherChunks, NothingFits};
        let is_usage = matches!(error, NoOtherChunks { .. } | NothingFits { .. });
        Stop::new(if is_usage { USAGE } else { NOT_MEASURED }, error.to_string())
    };
    let bar = Bar::new(request.model);
    let progress = |what: &str, done, all| bar.update(what, done, all);
    let prepared = Prepared::open(request, &progress).map_err(|error| stop(error.into()))?;
    let served = arguments.context.map_or(request.context, |context| context as usize);
    if let Some(warning) = beyond_trained(served, prepared.checkpoint.spec.trained_context) {
        out::eprint(format!("warning: {}: {warning}", request.model));
    }
    let options = Options {
        engine: arguments.engine,
        codecs: arguments.codecs.clone(),
        mixed: arguments.mixed,
        scouting: arguments.scout.map_or(request.chunks.div_ceil(8), |scout| scout as usize),
        verifying,
        served,
        budget: budget(arguments, &prepared, served)?,
    };
    let search = Search::new(&prepared, options).map_err(stop)?;
    out::eprint(format!("kvgate: {}: {}", request.model, search.cost()));
    search.run(&progress).map_err(stop)
}

/// Harm is measured on chunks, so it says nothing of a context that the model cannot read. 0 tokens are not known.
fn beyond_trained(served: usize, trained: usize) -> Option<String> {
    (trained > 0 && served > trained).then(|| {
        format!("the model was trained for {trained} tokens, and a context of {served} tokens is to be served")
    })
}

fn budget(
    arguments: &Arguments,
    prepared: &Prepared,
    served: usize,
) -> Result<Option<Budget>, Stop> {
    let Some(memory) = &arguments.memory else { return Ok(arguments.bits.map(Budget::of_bits)) };
    let bytes = size(memory).map_err(|error| Stop::new(USAGE, format!("--memory: {error}")))?;
    let f16 = Effective::new(&Scheme::f16(), &prepared.layout, None);
    let f16 = f16.expect("f16 fits any head").bytes_at(served);
    let states = prepared.checkpoint.spec.state_bytes();
    let served = Served { sequences: arguments.sequences, tokens: served, f16, states };
    Ok(Some(Budget::of_memory(bytes, memory, served)))
}

/// Adds what was suggested to the policy.
fn write(arguments: &Arguments, model: &ModelPolicy, found: &Suggestion) -> Result<u8, Stop> {
    let path = &arguments.chosen.config;
    let text = std::fs::read_to_string(path).map_err(|error| unwritten(path, &error))?;
    let edited = entries(found, model.confidence)
        .and_then(|entries| edited(&text, path, &model.name, &entries));
    let Edited { text: new, added, left, looser, warnings } =
        edited.map_err(|error| Stop::new(NOT_MEASURED, error.to_string()))?;
    for warning in &warnings {
        out::eprint_coloured(warning.styled());
    }
    if !looser.is_empty() {
        out::eprint(format!(
            "warning: by its limits, what is added may do more than other schemes of {} may: {}. A pull request with it is \
             red until a reviewer allows it. If you delete its `limits`, those of the model hold for it",
            model.name,
            looser.join(", ")
        ));
    }
    if new != text {
        write_atomically(path, |file| file.write_all(new.as_bytes()))
            .map_err(|error| unwritten(path, &error))?;
    }
    for added in added {
        say(format!("added    {added}"))?;
    }
    left.iter().try_for_each(|left| say(format!("left     {left}")))?;
    Ok(0)
}

fn unwritten(path: &Path, error: &std::io::Error) -> Stop {
    Stop::new(NOT_MEASURED, format!("{} cannot be written: {error}", path.display()))
}
