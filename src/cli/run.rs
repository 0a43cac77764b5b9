//! `kvgate run` runs the gate: it measures the selected cases and judges them.

use super::explain;
#[cfg(feature = "git")]
use super::shared::USAGE;
use super::shared::{say, Config, On, Stop, Wide, NOTHING_SELECTED, NOT_MEASURED};
use crate::gate::plan;
use crate::gate::select::{nothing_selected, Ignored, Selection};
use crate::gate::{self, Case, Measured, Project};
use crate::golden;
use crate::judge::Evidence;
#[cfg(feature = "git")]
use crate::proposal::changed;
use crate::report::{self, Outputs, Report};
use crate::results::verdict::Verdict;
use crate::results::{CaseResult, Results};
use crate::text::out;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Run only cases whose name contains one of these texts
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    #[command(flatten)]
    config: Config,
    #[command(flatten)]
    on: On,
    /// Run only the models with these exact names, as one job of a matrix does
    #[arg(long = "model", value_name = "NAME", value_delimiter = ',')]
    models: Vec<String>,
    /// Run only cases whose whole name is one of the filters
    #[arg(long)]
    exact: bool,
    /// Also run cases that the policy marks as ignored
    #[arg(long)]
    include_ignored: bool,
    /// List the selected cases, and run none
    #[arg(long)]
    list: bool,
    /// Run only the models that changes on this branch can affect: the changes since it left the target branch
    #[cfg(feature = "git")]
    #[arg(long)]
    changed: bool,
    /// The branch or commit that --changed compares with [default: the pull request's target, or else the default
    /// branch of the remote]
    #[cfg(feature = "git")]
    #[arg(long, value_name = "REVISION", requires = "changed")]
    against: Option<String>,
    /// Say of each scheme that breaks a limit which it must keep where its harm comes from, as `kvgate explain` does
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    wide: Wide,
    /// The folder for results.json and for the files with the numbers of each position [default: kvgate-results
    /// beside the policy]
    #[arg(long, value_name = "FOLDER")]
    results: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    let mut project = arguments.config.project()?;
    if let Some(folder) = &arguments.results {
        project.results = folder.clone();
    }
    let selected = narrow(&project, arguments, select(&project, arguments)?)?;
    if arguments.list {
        for case in &selected.cases {
            say(format!("{}{}", case.name, if case.ignored { " (ignored)" } else { "" }))?;
        }
        return Ok(0);
    }
    project.device = arguments.on.device()?;
    golden::prepare_insta(&project.root);
    gate::prepare_results(&project.results)
        .map_err(|error| Stop::new(NOT_MEASURED, error.to_string()))?;
    let (report, mut written) = judge(&project, selected);
    let outputs = Outputs {
        terminal: Some(arguments.wide.columns()),
        folder: Some(project.results.clone()),
        step_summary: std::env::var_os("GITHUB_STEP_SUMMARY").map(PathBuf::from),
    };
    for error in report::emit(&report, &outputs) {
        written &= error.is_warning();
        out::eprint(format!("{}: {error}", if error.is_warning() { "warning" } else { "error" }));
    }
    if arguments.explain {
        explain::regressed(&project, &report)?;
    }
    Ok(match report.exit_code() {
        0 if !written => NOT_MEASURED,
        code => code,
    })
}

/// What the arguments select.
struct Selected {
    /// The cases that the filters name. `--list` prints them, and reports show those that do not run as ignored.
    cases: Vec<Case>,
    /// Those of the cases that run.
    chosen: Vec<Case>,
    /// Models that are left out because nothing that they depend on has changed.
    not_needed: Vec<String>,
}

/// Selects the cases that the arguments name.
fn select(project: &Project, arguments: &Arguments) -> Result<Selected, Stop> {
    let nothing = |message| Stop::new(NOTHING_SELECTED, message);
    let models = plan::models_named(&project.policy, &arguments.models).map_err(nothing)?;
    let ignored = Ignored::included(arguments.include_ignored);
    let selection =
        Selection { exact: arguments.exact, ..Selection::containing(&arguments.filters, ignored) };
    if let Some(filter) = selection.unmatched_filter(project) {
        return Err(nothing(nothing_selected(project, std::slice::from_ref(filter))));
    }
    let mut cases = project.cases();
    cases.retain(|case| selection.names(case) && models.contains(&case.model));
    let chosen: Vec<Case> = cases.iter().filter(|case| selection.runs(case)).cloned().collect();
    if chosen.is_empty() {
        return Err(nothing(nothing_selected(project, &arguments.filters)));
    }
    Ok(Selected { cases, chosen, not_needed: Vec::new() })
}

/// With `--changed`, keeps only the cases of models that a change can affect.
#[cfg(feature = "git")]
fn narrow(project: &Project, arguments: &Arguments, selected: Selected) -> Result<Selected, Stop> {
    if !arguments.changed {
        return Ok(selected);
    }
    let environment = |name: &str| std::env::var(name).ok();
    let changed = changed::since(&project.policy, arguments.against.as_deref(), &environment)
        .map_err(|error| Stop::new(USAGE, format!("--changed: {error}")))?;
    let touched = |cases: Vec<Case>| changed::select(&project.policy, &changed, cases);
    let is_chosen = |model: usize| selected.chosen.iter().any(|case| case.model == model);
    let models = project.policy.models.iter().enumerate().filter(|(index, _)| is_chosen(*index));
    let names = models.map(|(_, model)| &model.name);
    let not_needed = names.filter(|name| !changed.touched.contains(name)).cloned().collect();
    let (cases, chosen) = (touched(selected.cases), touched(selected.chosen));
    if chosen.is_empty() {
        out::eprint(format!("not needed: {}", changed.not_needed()));
    } else {
        out::eprint(&changed);
    }
    Ok(Selected { cases, chosen, not_needed })
}

#[cfg(not(feature = "git"))]
fn narrow(_: &Project, _: &Arguments, selected: Selected) -> Result<Selected, Stop> {
    Ok(selected)
}

/// Measures and judges the selected cases, model by model. Also returns whether the positions of all models
/// could be written.
fn judge(project: &Project, selected: Selected) -> (Report, bool) {
    let Selected { cases, chosen, not_needed } = selected;
    let runs = |case: &Case| chosen.iter().any(|chosen| chosen.name == case.name);
    let mut measurements = Vec::new();
    let mut judged = Vec::new();
    let mut written = true;
    for model in 0..project.policy.models.len() {
        let own: Vec<&Case> = cases.iter().filter(|case| case.model == model).collect();
        if !own.iter().any(|case| runs(case)) {
            judged.extend(own.iter().map(|case| ignored(case)));
            continue;
        }
        let cells = project.cells(model, &chosen);
        let measured = project.measure(model, &cells).map_err(|error| error.to_string());
        if let Err(error) = measured.as_ref().map_or(&Ok(()), |measured| &measured.positions) {
            written = false;
            out::eprint(format!("error: {error}"));
        }
        let evidence = measured.map(Measured::into_evidence);
        judged.extend(own.iter().map(|case| {
            if runs(case) {
                project.judge(case, &evidence)
            } else {
                ignored(case)
            }
        }));
        measurements.extend(evidence.map(Evidence::into_measurement));
    }
    let results = project.results(measurements, judged);
    (Results { not_needed, ..results }.into(), written)
}

fn ignored(case: &Case) -> CaseResult {
    CaseResult::new(&case.name, Verdict::Ignored, "")
}
