//! `kvgate measure` measures schemes of one model without a policy.

use super::shared::{
    file_to_write, measurable, name, say_coloured, scheme, schemes, On, Reading, Stop, Wide,
    NOT_MEASURED,
};
use crate::judge::trust;
use crate::measure::mimic::Mimic;
use crate::measure::retrieval::{LEAST_NEEDLES, MOST_NEEDLES};
use crate::measure::{measure, Draw, Generate, Request};
use crate::model::decoder::Residency;
use crate::progress::Bar;
use crate::repo;
use crate::report::{terminal, Columns, Report};
use crate::results::json;
use crate::results::retrieval::Plan;
use crate::results::{Outcome, Results};
use crate::text::out;
use std::path::{Path, PathBuf};

/// How many needles a context can have.
const NEEDLES: std::ops::RangeInclusive<i64> = LEAST_NEEDLES as i64..=MOST_NEEDLES as i64;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The model: a GGUF file, a folder with config.json and safetensors files, or a checkpoint of the Hugging
    /// Face hub: hf:ORG/NAME@COMMIT, or hf:ORG/NAME@COMMIT/FILE.gguf for one of its GGUF files
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Text to measure on; if there are several files, chunks are taken from them in turn
    #[arg(long, required = true, value_delimiter = ',', value_name = "FILE")]
    corpus: Vec<PathBuf>,
    /// The schemes to measure, such as q8_0,q4_0,q8_0/q4_0,q4_0:norot
    #[arg(long, required = true, value_delimiter = ',', value_name = "SCHEME")]
    schemes: Vec<String>,
    /// How many tokens a chunk has; only the second half of each chunk is scored
    #[arg(long, default_value_t = 512, value_name = "N")]
    context: usize,
    /// How many chunks to measure
    #[arg(long, default_value_t = 8, value_name = "N")]
    chunks: usize,
    /// The scheme that all others are compared with
    #[arg(long, default_value = "f16", value_name = "SCHEME")]
    baseline: String,
    #[command(flatten)]
    reading: Reading,
    /// The file that `kvgate calibrate` wrote for this model; calibrated schemes need it
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// A file of prompts, which the baseline continues; every scheme is then fed that text, and the report counts
    /// the tokens that the scheme would have chosen differently
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// How many tokens the baseline writes after each prompt, at most
    #[arg(long, default_value_t = 64, value_name = "N", requires = "prompts", value_parser = clap::value_parser!(u32).range(1..))]
    generate: u32,
    /// Lengths of contexts, in tokens, from which every scheme must retrieve something, such as 1024,4096
    #[arg(long, value_delimiter = ',', value_name = "TOKENS", conflicts_with = "mimic", value_parser = clap::value_parser!(u32).range(128..))]
    retrieval: Vec<u32>,
    /// How many contexts of each length are built
    #[arg(long, default_value_t = 8, value_name = "N", requires = "retrieval", value_parser = clap::value_parser!(u32).range(1..))]
    contexts: u32,
    /// How many needles each context has
    #[arg(long, default_value_t = 8, value_name = "N", requires = "retrieval", value_parser = clap::value_parser!(u32).range(NEEDLES))]
    needles: u32,
    /// What the contexts are drawn from
    #[arg(long, default_value_t = 0, value_name = "N", requires = "retrieval")]
    seed: u64,
    #[command(flatten)]
    on: On,
    /// Where the weights are kept during the measurement [default: in memory if they fit]
    #[arg(long, value_name = "WHERE")]
    residency: Option<Place>,
    /// Imitate how another engine computes and stores numbers, so that results can be compared with its results
    #[arg(long, value_name = "ENGINE", conflicts_with = "prompts")]
    mimic: Option<Mimic>,
    #[command(flatten)]
    wide: Wide,
    /// Also write the results into this file, in the format of results.json
    #[arg(long, value_name = "FILE", value_parser = file_to_write())]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Place {
    /// All weights are in the device's memory
    Resident,
    /// One layer is in memory at a time, and is read from the file when it is needed; the numbers are the same
    Streamed,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    let schemes = schemes(&arguments.schemes)?;
    measurable("--context", arguments.context, arguments.chunks)?;
    let source = arguments.reading.source(&arguments.model)?;
    let name = name(&source);
    let plan = Plan {
        lengths: arguments.retrieval.iter().map(|length| *length as usize).collect(),
        contexts: arguments.contexts as usize,
        needles: arguments.needles as usize,
        seed: arguments.seed,
    };
    let request = Request {
        model: &name,
        source: &source,
        corpus: &arguments.corpus,
        context: arguments.context,
        chunks: arguments.chunks,
        draw: Draw::First,
        baseline: scheme(&arguments.baseline)?,
        schemes,
        calibration: arguments.calibration.as_deref(),
        generate: arguments.prompts.as_deref().map(|prompts| Generate {
            prompts,
            tokens: arguments.generate as usize,
            kept: None,
        }),
        retrieval: (!plan.lengths.is_empty()).then_some(&plan),
        device: arguments.on.device()?,
        residency: arguments.residency.map(|place| match place {
            Place::Resident => Residency::Resident,
            Place::Streamed => Residency::Streamed,
        }),
        mimic: arguments.mimic,
        is_gated: false,
    };
    report(&request, arguments.json.as_deref(), arguments.wide.columns())
}

fn report(request: &Request, json: Option<&Path>, columns: Columns) -> Result<u8, Stop> {
    let measured = {
        let bar = Bar::new(request.model);
        measure(request, &|what, done, all| bar.update(what, done, all))
    };
    let measurement = measured.map_err(|e| Stop::new(NOT_MEASURED, e.to_string()))?.measurement;
    // the imitated engine gives no exact zero for the baseline, and may give less than zero, so the check for
    // soundness would refuse it
    let distrust = match request.mimic {
        None => trust::distrust(&measurement),
        Some(_) => Default::default(),
    };
    let failed: Vec<String> = measurement
        .schemes
        .iter()
        .filter_map(|scheme| match &scheme.outcome {
            Outcome::Failed { error } => Some(error.clone()),
            Outcome::Measured { .. } => None,
        })
        .collect();
    let report = Report::from(Results {
        head: repo::head(Path::new(".")),
        ..Results::new(vec![measurement], Vec::new())
    });
    say_coloured(terminal::render(&report.view(), columns).trim_end())?;
    for error in &failed {
        out::eprint(format!("error: {error}"));
    }
    for (scheme, reason) in &distrust {
        out::eprint(format!("error: {scheme}: {reason}"));
    }
    if let Some(path) = json {
        json::write_to(path, &report.results)
            .map_err(|e| Stop::new(NOT_MEASURED, e.to_string()))?;
    }
    Ok(if !failed.is_empty() || !distrust.is_empty() { NOT_MEASURED } else { 0 })
}
