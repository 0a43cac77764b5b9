//! `kvgate run`: the gate.

#[cfg(feature = "git")]
use super::USAGE;
use super::{say, Config, Stop, NOTHING_SELECTED, NOT_MEASURED};
#[cfg(feature = "git")]
use crate::changed::{self, Changed};
use crate::gate::{self, Case, Gate};
use crate::golden;
use crate::harness::nothing_selected;
use crate::progress::Bar;
use crate::report::{self, sidecar, Outputs};
use crate::results::{CaseResult, Measurement};
use crate::verdict::{self, Verdict};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Run only cases whose name contains one of these
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    #[command(flatten)]
    config: Config,
    /// Filters are whole names
    #[arg(long)]
    exact: bool,
    /// Run ignored cases, too
    #[arg(long)]
    include_ignored: bool,
    /// List the selected cases and stop
    #[arg(long)]
    list: bool,
    /// Run only models that are touched by what changed since it parted from the target branch
    #[cfg(feature = "git")]
    #[arg(long)]
    changed: bool,
    /// What --changed compares with [default: the pull request's target, or the remote's HEAD]
    #[cfg(feature = "git")]
    #[arg(long, value_name = "REVISION", requires = "changed")]
    against: Option<String>,
    /// Folder for results.json and the positions [default: kvgate-results beside the policy]
    #[arg(long, value_name = "FOLDER")]
    results: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    let mut gate = arguments.config.gate()?;
    if let Some(folder) = &arguments.results {
        gate.results = folder.clone();
    }
    let cases = select(&gate, arguments);
    let idle =
        arguments.filters.iter().find(|f| !gate.cases().iter().any(|c| matches(arguments, c, f)));
    if let Some(filter) = idle {
        let message = nothing_selected(&gate, std::slice::from_ref(filter));
        return Err(Stop::new(NOTHING_SELECTED, message));
    }
    let runs = |case: &&Case| arguments.include_ignored || !case.ignored;
    let chosen: Vec<Case> = cases.iter().filter(runs).cloned().collect();
    if chosen.is_empty() {
        let message = nothing_selected(&gate, &arguments.filters);
        return Err(Stop::new(NOTHING_SELECTED, message));
    }
    #[cfg(feature = "git")]
    let (cases, chosen) = match changed(&gate, arguments)? {
        None => (cases, chosen),
        Some(changed) => {
            let touched = |cases: Vec<Case>| changed::select(&gate.policy, &changed, cases);
            let (cases, chosen) = (touched(cases), touched(chosen));
            if chosen.is_empty() {
                return not_needed(&gate, &changed, arguments.list);
            }
            eprintln!("{changed}");
            (cases, chosen)
        }
    };
    if arguments.list {
        for case in &cases {
            say(format!("{}{}", case.name, if case.ignored { " (ignored)" } else { "" }))?;
        }
        return Ok(0);
    }
    golden::prepare_insta(&gate.root);
    let folder = gate.results.clone();
    gate::prepare_results(&folder).map_err(|message| Stop::new(NOT_MEASURED, message))?;
    let mut measurements = Vec::new();
    let mut judged = Vec::new();
    let mut written = true;
    for model in 0..gate.policy.models.len() {
        let own: Vec<&Case> = cases.iter().filter(|case| case.model == model).collect();
        if !own.iter().any(|case| chosen.iter().any(|c| c.name == case.name)) {
            judged.extend(own.iter().map(|case| ignored(case)));
            continue;
        }
        let (measured, kept) = measure(&gate, model, &chosen, &folder);
        written &= kept;
        judged.extend(own.iter().map(|case| match runs(case) {
            true => gate.judge(case, &measured),
            false => ignored(case),
        }));
        measurements.extend(measured);
    }
    let verdicts: Vec<Verdict> = judged.iter().map(|result| result.verdict).collect();
    let results = gate.results(measurements, judged);
    let outputs = Outputs {
        terminal: true,
        folder: Some(folder),
        step_summary: std::env::var_os("GITHUB_STEP_SUMMARY").map(PathBuf::from),
    };
    for error in report::emit(&results, &outputs) {
        written &= error.is_warning();
        eprintln!("{}: {error}", if error.is_warning() { "warning" } else { "error" });
    }
    Ok(match verdict::exit_code(verdicts) {
        0 if !written => NOT_MEASURED,
        code => code,
    })
}

/// What a run with `--changed` is about.
#[cfg(feature = "git")]
fn changed(gate: &Gate, arguments: &Arguments) -> Result<Option<Changed>, Stop> {
    let environment = |name: &str| std::env::var(name).ok();
    let since = || changed::since(&gate.policy, arguments.against.as_deref(), &environment);
    let changed = arguments.changed.then(since).transpose();
    changed.map_err(|error| Stop::new(USAGE, format!("--changed: {error}")))
}

/// Says that there is nothing to run, in words and in results without a measurement.
#[cfg(feature = "git")]
fn not_needed(gate: &Gate, changed: &Changed, list: bool) -> Result<u8, Stop> {
    say(format!("not needed: {}", changed.not_needed()))?;
    if !list {
        let folder = &gate.results;
        let written = gate::prepare_results(folder).and_then(|()| {
            let results = gate.results(Vec::new(), Vec::new());
            report::json::write(folder, &results).map_err(|error| error.to_string())
        });
        written.map_err(|message| Stop::new(NOT_MEASURED, message))?;
    }
    Ok(0)
}

fn select(gate: &Gate, arguments: &Arguments) -> Vec<Case> {
    let filters = &arguments.filters;
    let mut cases = gate.cases();
    cases.retain(|c| filters.is_empty() || filters.iter().any(|f| matches(arguments, c, f)));
    cases
}

fn matches(arguments: &Arguments, case: &Case, filter: &str) -> bool {
    match arguments.exact {
        true => case.name == filter,
        false => case.name.contains(filter),
    }
}

fn ignored(case: &Case) -> CaseResult {
    CaseResult { case: case.name.clone(), verdict: Verdict::Ignored, message: String::new() }
}

/// Measures a model and keeps its positions; whether they could be kept.
fn measure(
    gate: &Gate,
    model: usize,
    chosen: &[Case],
    folder: &std::path::Path,
) -> (Result<Measurement, String>, bool) {
    let name = &gate.policy.models[model].name;
    let bar = Bar::new(name);
    let cells = gate.cells(model, chosen);
    let measured = match gate.measure(model, &cells, &|s, done, all| bar.tell(s, done, all)) {
        Ok(measured) => measured,
        Err(error) => return (Err(error), true),
    };
    let lanes: Vec<_> =
        measured.positions.iter().map(|(l, p)| (l.as_str(), p.as_slice())).collect();
    let kept = sidecar::write(folder, name, &lanes);
    if let Err(error) = &kept {
        eprintln!("error: {error}");
    }
    (Ok(measured.measurement), kept.is_ok())
}
