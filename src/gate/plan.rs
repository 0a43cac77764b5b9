//! How a gate is split over the jobs of a CI matrix: models by what they cost, the longest first, each to
//! the job that has the least to do.

use crate::gate::{Case, Project};
use crate::model::spec::Spec;
use crate::policy::{ModelPolicy, Policy};
use crate::results::Results;
use crate::text::suggest::did_you_mean;
use serde::Serialize;
use std::collections::BTreeMap;

/// Products per second that estimates assume of each core, in FLOP.
const FLOPS_PER_CORE: f64 = 60e9;

/// Seconds of a position of a lane of a model of which nothing is known: that of a model of 500 million
/// parameters on sixteen cores.
const SECONDS_PER_POSITION: f64 = 1e-3;

/// What a model of the policy costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// The model as cases name it.
    pub model: String,
    /// Seconds that it takes.
    pub seconds: f64,
    /// How that is known.
    pub source: CostBasis,
}

/// How a cost is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CostBasis {
    /// An earlier run took so long.
    Measured,
    /// From parameters and positions.
    Estimated,
    /// From positions alone: its checkpoint is not here.
    Guessed,
}

/// A job of the matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Shard {
    /// Its models, in the policy's order.
    pub models: Vec<String>,
    /// Seconds that they take together.
    pub seconds: f64,
}

/// Seconds that a run of a model with so many lanes, the baseline's included, is estimated to take on this
/// machine's cores.
pub fn estimated_seconds(model: &ModelPolicy, lanes: usize, spec: &Spec) -> f64 {
    let positions = positions(model, lanes);
    let table = (spec.vocab * spec.hidden) as f64;
    let tables = if spec.tied_head { 1.0 } else { 2.0 };
    let layers = spec.parameters() as f64 - tables * table;
    // half of the positions pass the head
    let flops = 2.0 * positions * (layers + table / 2.0);
    flops / (FLOPS_PER_CORE * rayon::current_num_threads() as f64)
}

fn positions(model: &ModelPolicy, lanes: usize) -> f64 {
    (lanes * model.chunks * model.context) as f64
}

/// Lanes that each model of the policy runs for some cases, the baseline's included; models without a case
/// are left out.
pub fn lanes(gate: &Project, cases: &[Case]) -> Vec<(usize, usize)> {
    let of = |model| match gate.cells(model, cases).len() {
        0 => None,
        cells => Some((model, cells + 1)),
    };
    (0..gate.policy.models.len()).filter_map(of).collect()
}

/// Seconds of a lane of each model in results of earlier runs; of a model in several of them the last's.
pub fn measured(results: &[Results]) -> BTreeMap<String, f64> {
    let measurements = results.iter().flat_map(|results| &results.measurements);
    let took = measurements.filter(|m| m.run.seconds.is_finite() && m.run.seconds > 0.0);
    took.map(|m| (m.model.clone(), m.run.seconds / (m.schemes.len() + 1) as f64)).collect()
}

/// What models of the policy cost, each given with its lanes: as `measured` says, else as `estimate` does,
/// scaled by what measured models took of their estimates.
pub fn costs(
    policy: &Policy,
    lanes: &[(usize, usize)],
    measured: &BTreeMap<String, f64>,
    estimate: impl Fn(&ModelPolicy, usize) -> Option<f64>,
) -> Vec<Cost> {
    let models = lanes.iter().map(|&(model, lanes)| {
        let model = &policy.models[model];
        let took = measured.get(&model.name).map(|seconds| seconds * lanes as f64);
        (model, lanes, took, estimate(model, lanes))
    });
    let models: Vec<_> = models.collect();
    let known = models.iter().filter_map(|(model, lanes, took, estimate)| {
        Some((positions(model, *lanes), (*took)?, (*estimate)?))
    });
    let (_, took, estimated) =
        known.fold((0.0, 0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2));
    let scale = if took > 0.0 && estimated > 0.0 { took / estimated } else { 1.0 };
    // what nothing is known of is taken for the mean of the others
    let seconds = models.iter().filter_map(|(model, lanes, took, estimate)| {
        let seconds = took.or(estimate.map(|estimate| estimate * scale))?;
        Some((positions(model, *lanes), seconds))
    });
    let (positions_known, seconds) =
        seconds.fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let rate = if positions_known > 0.0 { seconds / positions_known } else { SECONDS_PER_POSITION };
    let cost =
        |(model, lanes, took, estimate): &(&ModelPolicy, usize, Option<f64>, Option<f64>)| {
            let (seconds, source) = match (took, estimate) {
                (Some(took), _) => (*took, CostBasis::Measured),
                (None, Some(estimate)) => (estimate * scale, CostBasis::Estimated),
                (None, None) => (rate * positions(model, *lanes), CostBasis::Guessed),
            };
            Cost { model: model.name.clone(), seconds, source }
        };
    models.iter().map(cost).collect()
}

/// Packs models into so many shards at most: the longest first, each into the one that has the least to do.
/// No shard is empty.
pub fn pack(costs: &[Cost], shards: usize) -> Vec<Shard> {
    let mut order: Vec<usize> = (0..costs.len()).collect();
    // stable: equal costs keep the policy's order
    order.sort_by(|&a, &b| costs[b].seconds.total_cmp(&costs[a].seconds));
    let mut packed: Vec<(f64, Vec<usize>)> = vec![(0.0, Vec::new()); shards.min(costs.len())];
    for index in order {
        let least = packed.iter_mut().min_by(|a, b| {
            // an empty shard is taken before one whose models cost nothing
            a.0.total_cmp(&b.0).then(a.1.len().cmp(&b.1.len()))
        });
        let Some((seconds, models)) = least else { break };
        *seconds += costs[index].seconds;
        models.push(index);
    }
    packed
        .into_iter()
        .map(|(seconds, mut models)| {
            models.sort_unstable();
            Shard { models: models.iter().map(|&i| costs[i].model.clone()).collect(), seconds }
        })
        .collect()
}

/// The matrix of GitHub Actions, on one line: `{"include":[{"shard":"1/3","models":"a,b","seconds":123},…]}`.
pub fn matrix(shards: &[Shard]) -> String {
    #[derive(Serialize)]
    struct Job {
        shard: String,
        models: String,
        seconds: u64,
    }
    #[derive(Serialize)]
    struct Matrix {
        include: Vec<Job>,
    }
    let job = |(i, shard): (usize, &Shard)| Job {
        shard: format!("{}/{}", i + 1, shards.len()),
        models: shard.models.join(","),
        seconds: shard.seconds.ceil() as u64,
    };
    let matrix = Matrix { include: shards.iter().enumerate().map(job).collect() };
    serde_json::to_string(&matrix).expect("names and numbers are JSON")
}

/// The models of the policy that some exact names mean; all for no name.
///
/// # Errors
/// A name that no model has, with the nearest.
pub fn named(policy: &Policy, names: &[String]) -> Result<Vec<usize>, String> {
    if names.is_empty() {
        return Ok((0..policy.models.len()).collect());
    }
    let known = || policy.models.iter().map(|model| model.name.as_str());
    if let Some(name) = names.iter().find(|name| !known().any(|k| k == **name)) {
        let near = did_you_mean(name, known());
        let all: Vec<_> = known().collect();
        return Err(format!("the policy has no model `{name}`{near}; it has {}", all.join(", ")));
    }
    let chosen = policy.models.iter().enumerate();
    Ok(chosen.filter(|(_, model)| names.contains(&model.name)).map(|(i, _)| i).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fixture;

    fn cost(model: &str, seconds: f64) -> Cost {
        Cost { model: model.into(), seconds, source: CostBasis::Measured }
    }

    fn shards(costs: &[(&str, f64)], shards: usize) -> Vec<(String, f64)> {
        let costs: Vec<_> = costs.iter().map(|(model, seconds)| cost(model, *seconds)).collect();
        pack(&costs, shards).into_iter().map(|s| (s.models.join(","), s.seconds)).collect()
    }

    fn policy(names: &[&str]) -> Policy {
        let mut policy = fixture::policy();
        let model = policy.models[0].clone();
        policy.models =
            names.iter().map(|n| ModelPolicy { name: (*n).into(), ..model.clone() }).collect();
        policy
    }

    #[test]
    fn the_longest_first_each_to_the_least_loaded() {
        let costs = [("a", 2.0), ("b", 7.0), ("c", 4.0), ("d", 5.0), ("e", 3.0)];
        // 7+3 and 5+4+2 by order of length, not of the policy
        assert_eq!(shards(&costs, 2), [("b,e".into(), 10.0), ("a,c,d".into(), 11.0)]);
        assert_eq!(shards(&costs, 1), [("a,b,c,d,e".into(), 21.0)]);
    }

    #[test]
    fn no_shard_is_empty_and_order_breaks_ties() {
        assert_eq!(shards(&[("a", 1.0), ("b", 1.0)], 5), [("a".into(), 1.0), ("b".into(), 1.0)]);
        assert_eq!(shards(&[("a", 0.0), ("b", 0.0)], 2), [("a".into(), 0.0), ("b".into(), 0.0)]);
        assert!(shards(&[], 3).is_empty());
    }

    #[test]
    fn the_matrix_is_one_line_of_json() {
        let packed = pack(&[cost("a@long", 1.2), cost("b \"x\"", 9.0), cost("c", 1.0)], 2);
        assert_eq!(
            matrix(&packed),
            r#"{"include":[{"shard":"1/2","models":"b \"x\"","seconds":9},{"shard":"2/2","models":"a@long,c","seconds":3}]}"#
        );
    }

    #[test]
    fn what_is_measured_counts_and_scales_the_rest() {
        let policy = policy(&["a", "b", "c"]);
        let lanes = [(0, 4), (1, 4), (2, 2)];
        let measured = BTreeMap::from([("a".to_string(), 5.0)]);
        // a was estimated at 10 s and takes 4 lanes of 5 s
        let estimate = |model: &ModelPolicy, _| match model.name.as_str() {
            "a" => Some(10.0),
            "b" => Some(3.0),
            _ => None,
        };
        let found = costs(&policy, &lanes, &measured, estimate);
        let found: Vec<_> = found.iter().map(|c| (c.seconds, c.source)).collect();
        // c: as many positions as half of a, at the mean of a and b
        let of_c = (20.0 + 6.0) / 4.0;
        assert_eq!(
            found,
            [(20.0, CostBasis::Measured), (6.0, CostBasis::Estimated), (of_c, CostBasis::Guessed)]
        );
        let nothing = costs(&policy, &lanes, &BTreeMap::new(), |_, _| None);
        assert!(nothing[0].seconds > nothing[2].seconds && nothing[2].seconds > 0.0);
    }

    #[test]
    fn earlier_runs_count_by_the_lane_and_the_last_wins() {
        let mut old = fixture::results();
        old.measurements[0].run.seconds = 1000.0;
        let new = fixture::results();
        let seconds = measured(&[old.clone(), new])["gemma-3-270m"];
        assert!((seconds - 61.34 / 4.0).abs() < 1e-9, "{seconds}");
        for nonsense in [0.0, -5.0, f64::NAN, f64::INFINITY] {
            old.measurements[0].run.seconds = nonsense;
            assert!(measured(&[old.clone()]).is_empty(), "{nonsense}");
        }
    }

    #[test]
    fn models_are_named_exactly() {
        let policy = policy(&["gemma", "gemma@long", "qwen"]);
        let named = |names: &[&str]| {
            named(&policy, &names.iter().map(|n| n.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(named(&[]).unwrap(), [0, 1, 2]);
        assert_eq!(named(&["qwen", "gemma"]).unwrap(), [0, 2]);
        assert_eq!(
            named(&["gemma", "qwem"]).unwrap_err(),
            "the policy has no model `qwem` (did you mean `qwen`?); it has gemma, gemma@long, qwen"
        );
        assert!(named(&[""]).is_err());
    }
}
