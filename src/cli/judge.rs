//! `kvgate judge` judges results again, or the logs of another engine, by the policy and its goldens.

use super::shared::{file_to_write, say_coloured, Config, Stop, Wide, NOT_MEASURED, USAGE};
use crate::gate::Project;
use crate::judge::merge::merge;
use crate::judge::{self, Demands, Judge};
use crate::logs::llama_perplexity::{self, Log};
use crate::policy::{ModelPolicy, Policy};
use crate::report::{terminal, Report};
use crate::results::json;
use crate::results::measured_by::MeasuredBy;
use crate::results::Results;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The results of a run or of all its shards, or logs of `llama-perplexity --kl-divergence`, one log for each
    /// scheme
    #[arg(required = true, value_name = "RESULTS.json|LOG")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    config: Config,
    /// The model of the policy that the logs belong to [default: the model whose file a log names]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Judge as for a pull request to REVISION: by the policy at the merge base and by the proposed one
    #[cfg(feature = "git")]
    #[arg(long, value_name = "REVISION")]
    against: Option<String>,
    /// The engine that measured the results; it has no effect on logs, which are always llama.cpp's
    #[arg(long, default_value = "kvgate", value_name = "ENGINE")]
    engine: EngineArgument,
    #[command(flatten)]
    wide: Wide,
    /// Write the results with their verdicts into this file, which `kvgate accept` can read
    #[arg(long, value_name = "FILE", value_parser = file_to_write())]
    json: Option<PathBuf>,
}

/// The engine that the option `--engine` names.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(super) enum EngineArgument {
    /// kvgate's own engine
    Kvgate,
    /// llama.cpp, by the logs of llama-perplexity
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

impl From<EngineArgument> for MeasuredBy {
    fn from(engine: EngineArgument) -> Self {
        match engine {
            EngineArgument::Kvgate => MeasuredBy::Kvgate,
            EngineArgument::LlamaCpp => MeasuredBy::LlamaCpp,
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    let project = arguments.config.project()?;
    let given = read(arguments, &project)?;
    let report = report(arguments, &project, given)?;
    say_coloured(terminal::render(&report.view(), arguments.wide.columns()).trim_end())?;
    if let Some(path) = &arguments.json {
        json::write_to(path, &report.results)
            .map_err(|error| Stop::new(NOT_MEASURED, error.to_string()))?;
    }
    Ok(report.exit_code())
}

/// The results to judge.
struct Given {
    results: Results,
    /// The engine that measured them: the arguments say it, the results are not believed.
    by: MeasuredBy,
    /// Models that need no results, because logs were given and none belongs to them. It is always empty for
    /// results files: their claim that a model was not needed counts as little as their verdicts.
    left_out: Vec<String>,
}

fn read(arguments: &Arguments, project: &Project) -> Result<Given, Stop> {
    let usage = |error: String| Stop::new(USAGE, error);
    let is_json = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "json");
    let (results, logs): (Vec<_>, Vec<_>) = arguments.files.iter().partition(is_json);
    if !results.is_empty() && !logs.is_empty() {
        return Err(usage("results.json and logs are judged apart: give files of one kind".into()));
    }
    if logs.is_empty() {
        let results = read_results(&results).map_err(usage)?;
        return Ok(Given { results, by: arguments.engine.into(), left_out: Vec::new() });
    }
    let results = read_logs(&logs, project, arguments.model.as_deref()).map_err(usage)?;
    let left_out = results.not_needed.clone();
    Ok(Given { results, by: MeasuredBy::LlamaCpp, left_out })
}

/// Merges the results of all files into one run.
pub(super) fn read_results(files: &[impl AsRef<Path>]) -> Result<Results, String> {
    let read = |path: &Path| json::read(path).map(|results| (path.display().to_string(), results));
    let files = files.iter().map(|path| read(path.as_ref())).collect::<Result<Vec<_>, _>>();
    merge(files.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
}

fn read_logs(
    files: &[&PathBuf],
    project: &Project,
    model: Option<&str>,
) -> Result<Results, String> {
    let mut of_model: Vec<(&ModelPolicy, Vec<Log>)> = Vec::new();
    for path in files {
        let log = llama_perplexity::read(path).map_err(|error| error.to_string())?;
        let model = model_of(&project.policy, &log, model)?;
        match of_model.iter_mut().find(|(known, _)| known.name == model.name) {
            Some((_, logs)) => logs.push(log),
            None => of_model.push((model, vec![log])),
        }
    }
    let mut results = project.results(Vec::new(), Vec::new());
    for (model, logs) in &of_model {
        let measured = llama_perplexity::measurement(logs, model);
        let measured = measured.map_err(|error| error.to_string())?;
        results.engine = measured.conditions.engine.clone();
        results.measurements.push(measured);
    }
    let is_given = |name: &String| of_model.iter().any(|(model, _)| model.name == *name);
    let names = project.policy.models.iter().map(|model| model.name.clone());
    results.not_needed = names.filter(|name| !is_given(name)).collect();
    Ok(results)
}

/// Finds the model of the policy that a log belongs to.
fn model_of<'p>(
    policy: &'p Policy,
    log: &Log,
    model: Option<&str>,
) -> Result<&'p ModelPolicy, String> {
    let is_its = |candidate: &&ModelPolicy| match model {
        Some(wanted) => candidate.name == wanted,
        None => candidate.source.path.file_name().is_some_and(|file| *file == *log.model_file),
    };
    let mut found = policy.models.iter().filter(is_its);
    let names = || policy.models.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", ");
    match (found.next(), found.next(), model) {
        (Some(one), None, _) => Ok(one),
        (None, _, Some(wanted)) => Err(format!("no model `{wanted}`: the policy has {}", names())),
        (_, _, None) | (Some(_), Some(_), _) => Err(format!(
            "{} was measured on {}, and the policy has no model, or several, with that file: choose one of its models \
             with `--model NAME`: {}",
            log.path, log.model_file, names()
        )),
    }
}

#[cfg(feature = "git")]
fn report(arguments: &Arguments, project: &Project, given: Given) -> Result<Report, Stop> {
    match &arguments.against {
        Some(target) => against(&arguments.config.config, target, given.results, given.by),
        None => Ok(here(project, given)),
    }
}

#[cfg(not(feature = "git"))]
fn report(_: &Arguments, project: &Project, given: Given) -> Result<Report, Stop> {
    Ok(here(project, given))
}

/// Judges by the policy and the goldens in the working tree.
fn here(project: &Project, given: Given) -> Report {
    let Given { results, by, left_out } = given;
    let judge = Judge { root: &project.root, goldens: &judge::read_from_disk, offer: None };
    let demands = Demands {
        policy: &project.policy,
        by,
        is_needed: &|model| !left_out.contains(&model.name),
        fault: &|_, _| None,
    };
    let cases = judge.results(&results, &demands);
    let policy = project.results(Vec::new(), Vec::new()).policy;
    // findings in the files are ignored, as their verdicts are
    Results { cases, policy, findings: Vec::new(), not_needed: left_out, ..results }.into()
}

/// Judges as if the working tree were a pull request to `target`.
#[cfg(feature = "git")]
fn against(config: &Path, target: &str, results: Results, by: MeasuredBy) -> Result<Report, Stop> {
    use crate::files::folder_of;
    use crate::proposal::Proposal;
    use crate::repo::Repository;
    let usage = |error: String| Stop::new(USAGE, error);
    let repository = Repository::discover(folder_of(config));
    let repository = repository.map_err(|error| usage(error.to_string()))?;
    let judged = Proposal::open(&repository, config, target, None)
        .and_then(|proposal| proposal.judge(results, by));
    judged.map_err(|error| usage(error.to_string()))
}
