//! The command line: one file a command.

mod accept;
mod calibrate;
mod check;
mod chosen;
mod explain;
mod handover;
mod init;
mod inspect;
mod judge;
mod measure;
mod memory;
mod plan;
#[cfg(feature = "github")]
mod post;
mod report;
mod run;
mod schemes;
mod shared;
mod suggest;

use crate::text::out;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::process::ExitCode;

/// The regression gate for quantized KV caches: measures how much a KV scheme changes a model's
/// next-token distributions, and judges the change by the limits in thresholds.toml.
///
/// Exit codes: 0 everything is as the policy wants; 1 something is not; 2 the arguments or the policy
/// are wrong; 3 nothing is selected; 4 something could not be measured or written.
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
    /// Splits the gate over CI jobs, and prints the matrix of these jobs
    Plan(plan::Arguments),
    /// Measures schemes of one model without a policy
    Measure(measure::Arguments),
    /// Says where the harm that a scheme does to a model comes from: which layers, K or V, channels, and what helps
    Explain(explain::Arguments),
    /// Says which scheme to serve: the fewest bits for the least divergence that an engine can serve
    Suggest(suggest::Arguments),
    /// Checks the policy, files, hashes, tokenizers, memory and goldens without running a model
    Check(check::Arguments),
    /// Measures a model, and writes what its repository needs: policy, test target and workflows
    Init(init::Arguments),
    /// Shows a model's architecture, and how large its KV cache is under each scheme
    Inspect(inspect::Arguments),
    /// Lists the codecs, and shows how schemes are written
    Schemes,
    /// Writes the file that calibrated schemes need: means and ranges of a model's K and V
    Calibrate(calibrate::Arguments),
    /// Writes goldens from a run's results, without the model
    Accept(accept::Arguments),
    /// Judges results again, or logs of another engine, by the policy, without the model
    Judge(judge::Arguments),
    /// Makes one report from the results of a run or of all its shards; a missing case is an error
    Report(report::Arguments),
    /// Posts the verdict to GitHub, as commit status, comment in the pull request and step summary
    #[cfg(feature = "github")]
    Post(post::Arguments),
}

/// Runs the program.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    if let Some(code) = handover::to_cards_program(&arguments) {
        return code;
    }
    let done = match Arguments::parse_from(arguments).command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Measure(arguments) => measure::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Suggest(arguments) => suggest::run(&arguments),
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
