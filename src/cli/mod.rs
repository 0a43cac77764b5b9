//! The command line: one file a command.

mod accept;
mod calibrate;
mod check;
mod init;
mod inspect;
mod judge;
mod measure;
mod plan;
#[cfg(feature = "github")]
mod post;
mod report;
mod run;
mod schemes;

use crate::gate::Gate;
use crate::kv::Scheme;
use crate::policy::Diagnostic;
use crate::source::pinned;
use crate::source::pinned::Pinned;
use crate::source::Source;
use crate::text::out;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Exit code for usage and policy errors.
const USAGE: u8 = 2;
/// Exit code for a selection that selects nothing.
const NOTHING_SELECTED: u8 = 3;
/// Exit code for what could not be measured or written.
const NOT_MEASURED: u8 = 4;

/// The regression gate for quantized KV caches: measures what a KV scheme does to a model's
/// next-token distributions, and judges it by thresholds.toml.
///
/// Exit codes: 0 all as the policy wants; 1 something is not; 2 usage or policy error; 3 nothing
/// selected; 4 could not measure.
#[derive(Parser)]
#[command(name = "kvgate", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the gate: measures the selected cases and judges them
    Run(run::Arguments),
    /// Prints the matrix of CI jobs that the gate is split over
    Plan(plan::Arguments),
    /// Measures schemes of one model without a policy
    Measure(measure::Arguments),
    /// Checks policy, files, hashes, tokenizer, memory and goldens, without inference
    Check(check::Arguments),
    /// Measures a model and writes what its repository needs: policy, test target, workflows
    Init(init::Arguments),
    /// Shows a model's architecture and what its KV cache costs by scheme
    Inspect(inspect::Arguments),
    /// Lists the codecs and the grammar of schemes
    Schemes,
    /// Writes what calibrated schemes need to know of a model: means and ranges of its K and V
    Calibrate(calibrate::Arguments),
    /// Writes goldens from a run's results: needs no model
    Accept(accept::Arguments),
    /// Judges results again, or those of another engine, by the policy: needs no model
    Judge(judge::Arguments),
    /// Makes a report of results, of all shards of a run together; what is missing is an error
    Report(report::Arguments),
    /// Says the verdict at the pull request: commit status, comment, step summary
    #[cfg(feature = "github")]
    Post(post::Arguments),
}

/// Where the policy is.
#[derive(clap::Args)]
struct Config {
    /// The policy
    #[arg(long, default_value = "thresholds.toml", value_name = "FILE")]
    config: PathBuf,
}

impl Config {
    /// The gate of the policy, whose warnings are printed.
    fn gate(&self) -> Result<Gate, Stop> {
        let (gate, warnings) =
            Gate::open(&self.config).map_err(|error| Stop::new(USAGE, error.to_string()))?;
        warn(&warnings);
        Ok(gate)
    }
}

/// A command's end before its time: what to print, and the exit code.
struct Stop {
    code: u8,
    message: String,
}

impl Stop {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Stop { code, message: message.into() }
    }
}

/// Prints lines for people.
fn say(lines: impl fmt::Display) -> Result<(), Stop> {
    out::print(lines).map_err(not_printed)
}

/// Prints a report that has colours.
fn say_coloured(report: impl fmt::Display) -> Result<(), Stop> {
    out::print_coloured(report).map_err(not_printed)
}

/// Prints a document for other programs.
fn say_whole(document: impl fmt::Display) -> Result<(), Stop> {
    out::print_document(document).map_err(not_printed)
}

fn not_printed(error: io::Error) -> Stop {
    Stop::new(NOT_MEASURED, format!("cannot write to standard output: {error}"))
}

/// Runs the program.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let done = match Arguments::parse_from(arguments).command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Measure(arguments) => measure::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Init(arguments) => init::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Schemes => schemes::run(),
        Command::Calibrate(arguments) => calibrate::run(&arguments),
        Command::Accept(arguments) => accept::run(&arguments),
        Command::Judge(arguments) => judge::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        #[cfg(feature = "github")]
        Command::Post(arguments) => post::run(&arguments),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(stop) => {
            out::eprint(prefixed(&stop.message));
            ExitCode::from(stop.code)
        }
    }
}

/// Findings of a policy are rendered with their own `error:`.
fn prefixed(message: &str) -> String {
    match message.starts_with("error") {
        true => message.into(),
        false => format!("error: {message}"),
    }
}

fn warn(warnings: &[Diagnostic]) {
    for warning in warnings {
        out::eprint_coloured(warning.styled());
    }
}

/// How a checkpoint is read, by commands that take a MODEL; a policy says the same by keys of these names.
#[derive(clap::Args)]
struct Reading {
    /// A tokenizer.json instead of the model's own tokenizer
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Whether BOS stands before every chunk [default: as the checkpoint says]
    #[arg(long, value_name = "BOOL")]
    bos: Option<bool>,
    /// A configuration key that kvgate does not read and that it would otherwise refuse; may be repeated
    #[arg(long = "ignore-key", value_name = "KEY")]
    ignore_keys: Vec<String>,
    /// The weights are untrained: the baseline's perplexity is not held against a bound
    #[arg(long)]
    untrained: bool,
}

impl Reading {
    /// The checkpoint that a MODEL argument names, to be read this way.
    fn source(&self, model: &Path) -> Result<Source, Stop> {
        Ok(Source {
            tokenizer: self.tokenizer.clone(),
            bos: self.bos,
            ignore_keys: self.ignore_keys.clone(),
            untrained: self.untrained,
            ..source(model)?
        })
    }
}

/// The checkpoint that a MODEL argument names: one on disk, or one of the hub.
fn source(model: &Path) -> Result<Source, Stop> {
    match model.to_str().filter(|text| text.starts_with(pinned::PREFIX)) {
        Some(text) => {
            text.parse().map(Source::of_hub).map_err(|message: String| Stop::new(USAGE, message))
        }
        None => Ok(Source::at(model.into())),
    }
}

/// Labels and schemes of texts.
fn schemes(texts: &[String]) -> Result<Vec<(String, Scheme)>, Stop> {
    let mut schemes: Vec<(String, Scheme)> = Vec::new();
    for text in texts {
        let parsed = scheme(text)?;
        match schemes.iter().find(|(_, known)| *known == parsed) {
            Some((label, _)) => {
                let message = format!("`{label}` and `{text}` are the same scheme");
                return Err(Stop::new(USAGE, message));
            }
            None => schemes.push((text.trim().to_string(), parsed)),
        }
    }
    Ok(schemes)
}

fn scheme(text: &str) -> Result<Scheme, Stop> {
    text.parse().map_err(|error| Stop::new(USAGE, format!("scheme `{text}`: {error}")))
}

/// Tokens and chunks that can be measured.
fn measurable(context: usize, chunks: usize) -> Result<(), Stop> {
    match context < 16 || chunks == 0 {
        true => Err(Stop::new(USAGE, "--context must be at least 16, --chunks at least 1")),
        false => Ok(()),
    }
}

/// The model's name for people: its file's stem, or the repository's without its owner.
fn name(source: &Source) -> String {
    match &source.hub {
        Some(Pinned { file: None, repository, .. }) => {
            repository.rsplit('/').next().unwrap_or_default().to_owned()
        }
        _ => {
            // a folder's name may hold dots: `qwen3.6-mini`
            let gguf = source.path.extension().is_some_and(|extension| extension == "gguf");
            let name = if gguf { source.path.file_stem() } else { source.path.file_name() };
            name.unwrap_or_default().to_string_lossy().into_owned()
        }
    }
}
