//! `kvgate plan` splits a gate over CI jobs, and prints the matrix of these jobs.

use super::shared::{say_whole, Config, Earlier, On, Stop, NOTHING_SELECTED, USAGE};
use crate::gate::plan::{self, Cost, CostBasis, Costs, Place};
use crate::gate::select::{nothing_selected, Ignored, Selection};
use crate::model::Checkpoint;
use crate::policy::ModelPolicy;
use crate::results::Results;
use crate::text::out;

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
    #[command(flatten)]
    earlier: Earlier,
    #[command(flatten)]
    on: On,
    /// Also plan cases that the policy marks as ignored
    #[arg(long)]
    include_ignored: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    let project = arguments.config.project()?;
    let results = arguments.earlier.results()?;
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
    let place = arguments.on.place()?;
    let mut measured = place.measured(&results);
    // the machine that plans need not be the one that measures
    if measured.is_empty() && !arguments.on.is_named() {
        measured = plan::measured_on_one_device(&results);
    }
    let costs = plan::costs(&project.policy, &lanes, &measured, place.is_card(), estimate);
    if let Some(cost) = costs.models.iter().find(|cost| cost.model.contains(',')) {
        let message = format!(
            "the model `{}` has a comma in its name, which separates models in a matrix; rename it",
            cost.model
        );
        return Err(Stop::new(USAGE, message));
    }
    warn(&costs, &results, &place);
    let shards = plan::pack(&costs.models, arguments.shards.into());
    say_whole(plan::matrix(&shards, costs.in_seconds))?;
    Ok(0)
}

/// Says of which costs less is known than people may think.
fn warn(costs: &Costs, results: &[Results], place: &Place) {
    let device = place.describe();
    let has_results = |model: &str| {
        let mut measurements = results.iter().flat_map(|results| &results.measurements);
        measurements.any(|measurement| measurement.model == model)
    };
    for Cost { model, basis, .. } in &costs.models {
        if *basis != CostBasis::Measured && has_results(model) {
            out::eprint(format!(
                "warning: {model}: its results in --costs do not tell its cost on {device}"
            ));
        }
        if let CostBasis::Guessed { why } = basis {
            out::eprint(format!(
                "warning: {model}: its cost is guessed from its tokens, because no results in --costs have it, and it \
                 cannot be estimated: {why}"
            ));
        }
    }
    if !costs.in_seconds {
        out::eprint(format!(
            "warning: how fast {device} is was not measured: jobs are packed by the sizes of their models, and the matrix \
             has no seconds"
        ));
    }
}

/// Estimates a model's cost from its checkpoint's configuration, or says why that is not possible.
fn estimate(model: &ModelPolicy, lanes: usize) -> Result<f64, String> {
    let checkpoint = Checkpoint::open(&model.source).map_err(|error| error.to_string())?;
    Ok(plan::estimated_seconds(model, lanes, &checkpoint.spec))
}
