//! `kvgate accept` writes goldens from a run's results.

use super::shared::{say, Config, Stop, USAGE};
use crate::judge::accept;
use crate::judge::accept::Accepted;
use crate::repo;
use crate::results::case::CaseKind;
use crate::results::json;
use crate::results::{CaseResult, Results};
use crate::text::out;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Results of a run with the current policy at the current commit
    #[arg(value_name = "RESULTS.json")]
    results: PathBuf,
    /// Accept only these cases, written as model::scheme [default: all cases of the results]
    #[arg(value_name = "CASE")]
    cases: Vec<String>,
    #[command(flatten)]
    config: Config,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    let project = arguments.config.project()?;
    let usage = |error: String| Stop::new(USAGE, error);
    let results = json::read(&arguments.results).map_err(|error| usage(error.to_string()))?;
    let head = repo::head(&project.root);
    let accepted =
        accept::accept(&results, &project.policy, head.as_deref(), &arguments.cases, &project.root)
            .map_err(|error| usage(error.to_string()))?;
    for golden in &accepted {
        say(format!("accepted {} in {}", golden.case, golden.path.display()))?;
    }
    for case in still_red(&results, &accepted) {
        out::eprint(format!(
            "note: {} is still {}: accepting a golden changes no limit",
            case.case,
            case.verdict.label()
        ));
    }
    Ok(0)
}

/// Finds the accepted schemes that break their limits, to warn about them: recording harm in a golden does
/// not make it smaller.
fn still_red<'a>(
    results: &'a Results,
    accepted: &'a [Accepted],
) -> impl Iterator<Item = &'a CaseResult> {
    let of = |case: &CaseResult, golden: &Accepted| {
        golden.cell.as_ref().is_some_and(|cell| case.case == cell.case(CaseKind::Kld).to_string())
    };
    let red = results.cases.iter().filter(|case| case.verdict.is_red());
    red.filter(move |case| accepted.iter().any(|golden| of(case, golden)))
}
