//! `kvgate explain`: where the harm that a scheme does to a model comes from.

use super::shared::{
    measurable, name, say, say_coloured, scheme, On, Reading, Stop, NOT_MEASURED, USAGE,
};
#[cfg(feature = "reports")]
use crate::explain::page;
use crate::explain::{self, terminal, ExplainError, Explanation, Options, CHANNELS};
use crate::files::write_atomically;
use crate::gate::{self, Project};
use crate::kv::Scheme;
use crate::measure::{Draw, Request};
use crate::policy::{Cell, ModelPolicy, Policy, DEFAULT_PATH};
use crate::progress::Bar;
use crate::report::Report;
use crate::results::case::CaseKind;
use crate::results::verdict::Verdict;
use crate::source::Source;
use crate::text::out;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The model: one of the policy by its name, a GGUF file, a folder with config.json and safetensors files, or a
    /// checkpoint of the Hugging Face hub: hf:ORG/NAME@COMMIT, or hf:ORG/NAME@COMMIT/FILE.gguf
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The scheme to explain
    #[arg(long, value_name = "SCHEME")]
    scheme: String,
    /// The policy to look the model up in; without such a file, MODEL is a path
    #[arg(long, default_value = DEFAULT_PATH, value_name = "FILE")]
    config: PathBuf,
    /// Text to measure on; if there are several files, chunks are taken from them in turn [default: the policy's]
    #[arg(long, value_delimiter = ',', value_name = "FILE")]
    corpus: Vec<PathBuf>,
    /// How many tokens a chunk has; only the second half of each chunk is scored [default: the policy's, or 512]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// How many chunks to measure [default: the policy's, or 8]
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,
    /// Give each KV head a lane of its own, instead of K and V of each layer
    #[arg(long)]
    heads: bool,
    /// How many channels of each head one of the experiments keeps exact
    #[arg(long, default_value_t = CHANNELS as u32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    channels: u32,
    #[command(flatten)]
    reading: Reading,
    /// The file that `kvgate calibrate` wrote for this model; calibrated schemes need it
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    #[command(flatten)]
    on: On,
    /// Also write all numbers into this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write a page with the heat map into this file
    #[cfg(feature = "reports")]
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What is explained, after the policy was asked for whatever no option says.
struct Subject {
    name: String,
    source: Source,
    scheme: Scheme,
    corpus: Vec<PathBuf>,
    context: usize,
    chunks: usize,
    baseline: Scheme,
    calibration: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    let subject = subject(arguments)?;
    measurable(subject.context, subject.chunks)?;
    let request = Request {
        model: &subject.name,
        source: &subject.source,
        corpus: &subject.corpus,
        context: subject.context,
        chunks: subject.chunks,
        draw: Draw::First,
        baseline: subject.baseline,
        schemes: vec![(arguments.scheme.trim().into(), subject.scheme)],
        calibration: subject.calibration.as_deref(),
        generate: None,
        retrieval: None,
        device: arguments.on.device()?,
        residency: None,
        mimic: None,
        is_gated: false,
    };
    let options = Options { channels: arguments.channels as usize, by_head: arguments.heads };
    let explanation = explained(&request, options).map_err(|error| {
        let code = if matches!(error, ExplainError::Exact { .. }) { USAGE } else { NOT_MEASURED };
        Stop::new(code, error.to_string())
    })?;
    say_coloured(terminal::render(&explanation).trim_end())?;
    write(arguments, &explanation)?;
    Ok(0)
}

fn explained(request: &Request, options: Options) -> Result<Explanation, ExplainError> {
    let bar = Bar::new(request.model);
    explain::explain(request, options, &|what, done, all| bar.update(what, done, all))
}

/// Explains every scheme of a run that breaks a limit which it must keep: prints what was found, and writes a page with
/// the heat map beside the results. What cannot be explained is said, and is no error, because the verdict is known.
pub(super) fn regressed(project: &Project, report: &Report) -> Result<(), Stop> {
    let is_regressed = |model: &ModelPolicy, cell: &Cell| {
        let case = model.case(cell, CaseKind::Kld).to_string();
        report
            .results
            .cases
            .iter()
            .any(|judged| judged.case == case && judged.verdict == Verdict::Regressed)
    };
    for model in &project.policy.models {
        for cell in model.cells.iter().filter(|cell| is_regressed(model, cell)) {
            let request = Request {
                generate: None,
                is_gated: false,
                ..gate::request(model, &[cell], None, &project.device)
            };
            say(format!("\nwhy {} is red", model.cell_name(cell)))?;
            match explained(&request, Options::default()) {
                Ok(explanation) => {
                    say_coloured(terminal::render(&explanation).trim_end())?;
                    let stem = model.cell_name(cell).file_stem();
                    write_page(
                        &project.results.join(format!("explain-{stem}.html")),
                        &explanation,
                    )?;
                }
                Err(error) => out::eprint(format!("warning: it cannot be explained: {error}")),
            }
        }
    }
    Ok(())
}

fn subject(arguments: &Arguments) -> Result<Subject, Stop> {
    let policy = policy(arguments)?;
    let model = policy.as_ref().and_then(|policy| named(policy, &arguments.model));
    let from_policy = |of: fn(&ModelPolicy) -> usize| model.map(of);
    let corpus = if arguments.corpus.is_empty() {
        model.map(|model| model.corpus.clone()).ok_or_else(|| {
            let message =
                "--corpus is needed: MODEL is none of the policy's models, which have texts";
            Stop::new(USAGE, message)
        })?
    } else {
        arguments.corpus.clone()
    };
    let source = match model {
        Some(_) if arguments.reading.is_given() => {
            let message = "the policy says how its models are read: give the model's path instead of its name, or leave \
                           --tokenizer, --bos, --ignore-key and --untrained out";
            return Err(Stop::new(USAGE, message));
        }
        Some(model) => model.source.clone(),
        None => arguments.reading.source(&arguments.model)?,
    };
    let own = model.and_then(|model| model.calibration.clone());
    // a name that the policy gives to a scheme is one here, too
    let cell = model
        .and_then(|model| model.cells.iter().find(|cell| cell.label == arguments.scheme.trim()));
    Ok(Subject {
        name: model.map_or_else(|| name(&source), |model| model.name.clone()),
        scheme: cell.map_or_else(|| scheme(&arguments.scheme), |cell| Ok(cell.scheme.clone()))?,
        source,
        corpus,
        context: arguments.context.or(from_policy(|model| model.context)).unwrap_or(512),
        chunks: arguments.chunks.or(from_policy(|model| model.chunks)).unwrap_or(8),
        baseline: model.map_or_else(Scheme::f16, |model| model.baseline.clone()),
        calibration: arguments.calibration.clone().or(own),
    })
}

/// The policy, if there is one. One that was named must be there.
fn policy(arguments: &Arguments) -> Result<Option<Policy>, Stop> {
    if !arguments.config.exists() && arguments.config == Path::new(DEFAULT_PATH) {
        return Ok(None);
    }
    let loaded = Policy::load(&arguments.config);
    loaded.map(|(policy, _)| Some(policy)).map_err(|error| Stop::new(USAGE, error.to_string()))
}

fn named<'p>(policy: &'p Policy, model: &Path) -> Option<&'p ModelPolicy> {
    policy.models.iter().find(|own| Some(own.name.as_str()) == model.to_str())
}

fn write(arguments: &Arguments, explanation: &Explanation) -> Result<(), Stop> {
    if let Some(path) = &arguments.json {
        let json = serde_json::to_string_pretty(explanation);
        let json = json.map_err(|error| unwritten(path, &error))?;
        write_atomically(path, |file| writeln!(file, "{json}"))
            .map_err(|error| unwritten(path, &error))?;
    }
    #[cfg(feature = "reports")]
    if let Some(path) = &arguments.html {
        write_page(path, explanation)?;
    }
    Ok(())
}

#[cfg(feature = "reports")]
fn write_page(path: &Path, explanation: &Explanation) -> Result<(), Stop> {
    let page = page::render(explanation).map_err(|error| unwritten(path, &error))?;
    write_atomically(path, |file| file.write_all(page.as_bytes()))
        .map_err(|error| unwritten(path, &error))
}

/// Without reports there are no pages.
#[cfg(not(feature = "reports"))]
fn write_page(_: &Path, _: &Explanation) -> Result<(), Stop> {
    Ok(())
}

fn unwritten(path: &Path, error: &dyn std::error::Error) -> Stop {
    Stop::new(NOT_MEASURED, format!("{} cannot be written: {error}", path.display()))
}
