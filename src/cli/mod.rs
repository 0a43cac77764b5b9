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
mod shared;

use crate::text::out;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::process::ExitCode;

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

/// Puts `error:` before a message. Findings of a policy begin with it already.
fn prefixed(message: &str) -> String {
    if message.starts_with("error") {
        message.into()
    } else {
        format!("error: {message}")
    }
}
