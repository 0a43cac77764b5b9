//! `kvgate plan` splits a gate over CI jobs, and prints the matrix of these jobs.

use super::shared::{say_whole, Config, Stop, NOTHING_SELECTED, USAGE};
use crate::gate::plan::{self, CostBasis};
use crate::gate::select::{nothing_selected, Ignored, Selection};
use crate::model::Checkpoint;
use crate::policy::ModelPolicy;
use crate::results::json;
use crate::text::out;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Plan only models that have a case whose name contains one of these texts
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    #[command(flatten)]
    config: Config,
    /// The largest number of jobs; there are never more jobs than models
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    shards: u16,
    /// Results of earlier runs, to estimate what each model costs; if several files have a model, the last one
    /// counts
    #[arg(long, value_name = "RESULTS.json", num_args = 1)]
    costs: Vec<PathBuf>,
    /// Also plan cases that the policy marks as ignored
    #[arg(long)]
    include_ignored: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    let project = arguments.config.project()?;
    let usage = |message: String| Stop::new(USAGE, message);
    let results: Result<Vec<_>, _> = arguments.costs.iter().map(|path| json::read(path)).collect();
    let results = results.map_err(|error| usage(error.to_string()))?;
    let mut cases = project.cases();
    let ignored = Ignored::included(arguments.include_ignored);
    let selection = Selection::containing(&arguments.filters, ignored);
    if let Some(filter) = selection.unmatched_filter(&project) {
        let message = nothing_selected(&project, std::slice::from_ref(filter));
        return Err(Stop::new(NOTHING_SELECTED, message));
    }
    cases.retain(|case| selection.names(case) && selection.runs(case));
    let lanes = plan::lanes(&project, &cases);
    if lanes.is_empty() {
        return Err(Stop::new(NOTHING_SELECTED, nothing_selected(&project, &arguments.filters)));
    }
    let costs = plan::costs(&project.policy, &lanes, &plan::measured(&results), estimate);
    if let Some(cost) = costs.iter().find(|cost| cost.model.contains(',')) {
        let message = format!(
            "the model `{}` has a comma in its name, which separates models in a matrix; rename it",
            cost.model
        );
        return Err(usage(message));
    }
    for cost in &costs {
        if let CostBasis::Guessed { why } = &cost.basis {
            out::eprint(format!(
                "warning: {}: its cost is guessed from its tokens, because no results in --costs have it, and it cannot be \
                 estimated: {why}",
                cost.model
            ));
        }
    }
    say_whole(plan::matrix(&plan::pack(&costs, arguments.shards.into())))?;
    Ok(0)
}

/// Estimates a model's cost from its checkpoint's configuration, or says why that is not possible.
fn estimate(model: &ModelPolicy, lanes: usize) -> Result<f64, String> {
    let checkpoint = Checkpoint::open(&model.source).map_err(|error| error.to_string())?;
    Ok(plan::estimated_seconds(model, lanes, &checkpoint.spec))
}
