//! `kvgate explain`: where the harm that a scheme does to a model comes from.

use super::chosen::{Chosen, Subject};
use super::shared::{
    file_to_write, measurable, say, say_coloured, scheme, On, Stop, NOT_MEASURED, USAGE,
};
#[cfg(feature = "reports")]
use crate::explain::page;
use crate::explain::{self, terminal, ExplainError, Explanation, Options, CHANNELS};
use crate::files::write_atomically;
use crate::gate::{self, Project};
use crate::kv::Scheme;
use crate::measure::{Draw, Request};
use crate::policy::{Cell, ModelPolicy};
use crate::progress::Bar;
use crate::report::Report;
use crate::results::case::CaseKind;
use crate::results::verdict::{breaks_the_baseline, Decision, Verdict};
use crate::results::CaseResult;
use crate::text::out;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    chosen: Chosen,
    /// The scheme to explain
    #[arg(long, value_name = "SCHEME")]
    scheme: String,
    /// How many tokens a chunk has; only the second half of each chunk is scored [default: the policy's, or 512]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Give each KV head a lane of its own, instead of K and V of each layer
    #[arg(long)]
    heads: bool,
    /// How many channels of each head one of the experiments keeps exact
    #[arg(long, default_value_t = CHANNELS as u32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    channels: u32,
    /// The file that `kvgate calibrate` wrote for this model; calibrated schemes need it
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    #[command(flatten)]
    on: On,
    /// Also write all numbers into this file
    #[arg(long, value_name = "FILE", value_parser = file_to_write())]
    json: Option<PathBuf>,
    /// Also write a page with the heat map into this file
    #[cfg(feature = "reports")]
    #[arg(long, value_name = "FILE", value_parser = file_to_write())]
    html: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    let Subject { name, source, corpus, chunks, model } = arguments.chosen.subject()?;
    let model = model.as_ref();
    let context = arguments.context.or(model.map(|model| model.context)).unwrap_or(512);
    measurable("--context", context, chunks)?;
    let own = model.and_then(|model| model.calibration.clone());
    let calibration = arguments.calibration.clone().or(own);
    let request = Request {
        model: &name,
        source: &source,
        corpus: &corpus,
        context,
        chunks,
        draw: Draw::First,
        baseline: model.map_or_else(Scheme::f16, |model| model.baseline.clone()),
        schemes: vec![(arguments.scheme.trim().into(), asked(arguments, model)?)],
        calibration: calibration.as_deref(),
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

/// Explains every scheme of a run that breaks a limit which it must keep, unless the model itself is worse: prints what was
/// found, and writes a page with the heat map beside the results. What cannot be explained is said, and is no error,
/// because the verdict is known.
pub(super) fn regressed(project: &Project, report: &Report) -> Result<(), Stop> {
    let regressed = |model: &ModelPolicy, cell: &Cell| {
        let name = model.case(cell, CaseKind::Kld).to_string();
        let mut cases = report.results.cases.iter();
        cases.find(|case| {
            case.case == name && case.verdict == Verdict::Regressed && !breaks_the_baseline(case)
        })
    };
    for model in &project.policy.models {
        for cell in &model.cells {
            let Some(case) = regressed(model, cell) else { continue };
            let request = Request {
                generate: None,
                retrieval: None,
                is_gated: false,
                ..gate::request(model, &[cell], None, &project.device)
            };
            say(format!("\nwhy {} is red{}", model.cell_name(cell), beside_text(case)))?;
            let explanation = match explained(&request, Options::default()) {
                Ok(explanation) => explanation,
                Err(error) => {
                    out::eprint(format!("warning: it cannot be explained: {error}"));
                    continue;
                }
            };
            say_coloured(terminal::render(&explanation).trim_end())?;
            let stem = model.cell_name(cell).file_stem();
            let page = project.results.join(format!("explain-{stem}.html"));
            if let Err(error) = write_page(&page, &explanation) {
                out::eprint(format!("warning: {}", error.message));
            }
        }
    }
    Ok(())
}

/// What an explanation does not explain: it is about the mean KLD of all text, and a case may be red by something else.
fn beside_text(case: &CaseResult) -> String {
    let broken = case.limits.iter().filter(|limit| limit.decision() == Decision::Broken);
    let names: Vec<String> = broken.map(|limit| limit.quantity().name()).collect();
    match &names[..] {
        [] => ": it is red by what it retrieves, and this is about the KLD of the corpus".into(),
        names => format!(" ({} broken)", names.join(", ")),
    }
}

/// The scheme to explain. A name that the policy gives to a scheme is one here, too.
fn asked(arguments: &Arguments, model: Option<&ModelPolicy>) -> Result<Scheme, Stop> {
    let mut cells = model.into_iter().flat_map(|model| &model.cells);
    let cell = cells.find(|cell| cell.label == arguments.scheme.trim());
    cell.map_or_else(|| scheme(&arguments.scheme), |cell| Ok(cell.scheme.clone()))
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
