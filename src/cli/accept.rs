//! `kvgate accept`: goldens from a run's results.

use super::{Config, Stop, USAGE};
use crate::golden;
use crate::repo;
use crate::report::json;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Results of a run of this policy at this commit
    #[arg(value_name = "RESULTS.json")]
    results: PathBuf,
    /// Accept only these: model::scheme
    #[arg(value_name = "CASE")]
    cases: Vec<String>,
    #[command(flatten)]
    config: Config,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    let gate = arguments.config.gate()?;
    let usage = |error: String| Stop::new(USAGE, error);
    let results = json::read(&arguments.results).map_err(|error| usage(error.to_string()))?;
    let head = repo::head(&gate.root);
    let accepted =
        golden::accept(&results, &gate.policy, head.as_deref(), &arguments.cases, &gate.root)
            .map_err(|error| usage(error.to_string()))?;
    for golden in &accepted {
        println!("accepted {} in {}", golden.case, golden.path.display());
    }
    Ok(0)
}
