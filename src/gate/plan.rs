//! Splits a gate over the jobs of a CI matrix. Models are dealt by what they cost, the most expensive first,
//! each to the job that has the least to do so far.

use crate::compute::device::Choice;
use crate::compute::{Device, Precision};
use crate::gate::{Case, Project};
use crate::model::decoder;
use crate::model::spec::Spec;
use crate::policy::{ModelPolicy, Policy};
use crate::results::{Measurement, Outcome, Results, SchemeResult};
use crate::text::suggest::did_you_mean;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The speed that estimates assume of each core, in floating-point operations per second. Nothing is assumed of cards.
pub const FLOPS_PER_CORE: f64 = 60e9;

/// The cost of one position in one lane when nothing is known about a model, in seconds: what a model of 500 million
/// parameters takes on sixteen cores.
const SECONDS_PER_POSITION: f64 = 1e-3;

/// The device that a plan is for.
#[derive(Debug, Clone)]
pub enum Place {
    /// A device of the machine that plans.
    Here(Device),
    /// A card that somebody named. The machine that plans computes nothing, so it need not have one.
    Card(Choice, Precision),
}

impl Place {
    /// Whether it is a card, of which no speed is assumed.
    pub fn is_card(&self) -> bool {
        match self {
            Place::Here(device) => device.card().is_some(),
            Place::Card(..) => true,
        }
    }

    /// The device in words.
    pub fn describe(&self) -> String {
        match self {
            Place::Here(device) => device.describe(),
            Place::Card(card, _) => format!("the card {card}"),
        }
    }

    /// Seconds that a position of a lane of each model took there in earlier runs. Those of a card that was named are
    /// of any card in the same arithmetic, as long as all are of one card.
    pub fn measured(&self, results: &[Results]) -> BTreeMap<String, f64> {
        match self {
            Place::Here(device) => measured(results, device),
            Place::Card(_, precision) => {
                let was_there = |m: &&Measurement| {
                    m.conditions.device == "cuda"
                        && m.run.arithmetic.as_deref() == Some(precision.arithmetic())
                };
                let name = |m: &Measurement| m.run.card.as_ref().map(|card| card.name.clone());
                let names: BTreeSet<_> =
                    measurements(results).filter(was_there).map(name).collect();
                let is_one = names.len() == 1 && !names.contains(&None);
                rates(measurements(results).filter(was_there).filter(|_| is_one))
            }
        }
    }
}

/// What it costs to measure a model of the policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    pub model: String,
    /// Seconds, or only a measure to compare models by ([`Costs::in_seconds`]).
    pub seconds: f64,
    pub basis: CostBasis,
}

/// What the models of a plan cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    pub models: Vec<Cost>,
    /// Whether the costs are seconds. If the speed of the device is unknown, they only say which model costs more.
    pub in_seconds: bool,
}

/// How the cost of a model is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CostBasis {
    /// An earlier run says how long it took.
    Measured,
    /// It is computed from the numbers of parameters and positions.
    Estimated,
    /// It is guessed from the number of positions alone.
    Guessed {
        /// Why it could not be estimated.
        why: String,
    },
}

/// A job of the matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Shard {
    /// In the policy's order.
    pub models: Vec<String>,
    /// What its models cost together.
    pub seconds: f64,
}

/// Estimates how many seconds this machine needs to measure a model with a number of lanes. The baseline counts as a
/// lane.
pub fn estimated_seconds(model: &ModelPolicy, lanes: usize, spec: &Spec) -> f64 {
    let positions = positions(model, lanes);
    let table = (spec.vocab * spec.hidden) as f64;
    let tables = if spec.tied_head { 1.0 } else { 2.0 };
    let layers = decoder::parameters(spec) as f64 - tables * table;
    // half of the positions pass the head
    let flops = 2.0 * positions * (layers + table / 2.0);
    flops / (FLOPS_PER_CORE * rayon::current_num_threads() as f64)
}

/// How many positions a model's lanes have. The baseline counts as a lane.
pub fn positions(model: &ModelPolicy, lanes: usize) -> f64 {
    let retrieval = model.retrieval.as_ref().map_or(0, |retrieval| retrieval.plan.tokens());
    (lanes * (model.chunks * model.context + retrieval)) as f64
}

/// How many lanes each model of the policy has for some cases, its baseline included, by the model's index. Models
/// without a case are left out.
pub fn lanes(project: &Project, cases: &[Case]) -> Vec<(usize, usize)> {
    let lanes_of = |model| match project.cells(model, cases).len() {
        0 => None,
        cells => Some((model, cells + 1)),
    };
    (0..project.policy.models.len()).filter_map(lanes_of).collect()
}

/// Whether a measurement was made on such a device, so that its time says how long the next one takes there: on the
/// CPU, or on a card of the same name in the same arithmetic.
fn was_on(measurement: &Measurement, device: &Device) -> bool {
    let run = &measurement.run;
    let card = device.card();
    measurement.conditions.device == device.name()
        && run.card.as_ref().map(|card| &card.name) == card.map(|card| &card.name)
        && (card.is_none() || run.arithmetic.as_deref() == Some(device.arithmetic()))
}

/// Seconds that a position of a lane of each model took on such a device in earlier runs. If several results hold a
/// model, the last ones count.
pub fn measured(results: &[Results], device: &Device) -> BTreeMap<String, f64> {
    rates(measurements(results).filter(|measurement| was_on(measurement, device)))
}

/// The same if all results were measured on one device, whichever it is. Nothing otherwise, because the times of
/// different devices say nothing about each other.
pub fn measured_on_one_device(results: &[Results]) -> BTreeMap<String, f64> {
    let mut devices = measurements(results).map(|m| {
        let card = m.run.card.as_ref().map(|card| &card.name);
        (&m.conditions.device, card, &m.run.arithmetic)
    });
    let first = devices.next();
    // where shards of several devices were merged, the time is that of none of them
    let is_one = |(device, card, arithmetic): &(&String, Option<&String>, &Option<String>)| {
        (card.is_some() || *device == "cpu")
            && arithmetic.as_ref().is_none_or(|arithmetic| !arithmetic.contains("; "))
    };
    if !first.as_ref().is_none_or(is_one) || devices.any(|device| Some(device) != first) {
        return BTreeMap::new();
    }
    rates(measurements(results))
}

fn measurements(results: &[Results]) -> impl Iterator<Item = &Measurement> {
    results.iter().flat_map(|results| &results.measurements)
}

/// Seconds of a position of a lane. If a model is measured several times, the last time counts.
fn rates<'a>(measurements: impl Iterator<Item = &'a Measurement>) -> BTreeMap<String, f64> {
    let rates = measurements.map(|m| {
        let retrieval =
            m.haystacks.as_ref().map_or(0.0, |haystacks| haystacks.plan.tokens() as f64);
        let tokens = m.conditions.chunks as f64 * m.conditions.context as f64 + retrieval;
        let further = further_chunks(m) as f64 * m.conditions.context as f64;
        (m.model.clone(), m.run.seconds / ((m.schemes.len() + 1) as f64 * tokens + further))
    });
    rates.filter(|(_, seconds)| seconds.is_finite() && *seconds > 0.0).collect()
}

/// How many chunks of a lane further looks took, those of the baseline included.
fn further_chunks(measurement: &Measurement) -> usize {
    let of_scheme = |scheme: &SchemeResult| match &scheme.outcome {
        Outcome::Measured { looks, .. } => looks.iter().map(|look| look.parts.len()).sum(),
        Outcome::Failed { .. } => 0,
    };
    let each: Vec<usize> = measurement.schemes.iter().map(of_scheme).collect();
    each.iter().sum::<usize>() + each.iter().max().copied().unwrap_or(0)
}

/// What is known about the cost of a model.
struct Known<'p> {
    model: &'p ModelPolicy,
    positions: f64,
    /// Seconds by earlier runs.
    measured: Option<f64>,
    /// Seconds by the size of the model, or why they could not be estimated.
    estimated: Result<f64, String>,
}

/// What models of the policy cost, each given with its lanes.
///
/// Measured seconds per position are preferred. Otherwise `estimate` counts, scaled by how measured models compare with
/// their estimates. A model that can be neither measured nor estimated is guessed to cost as much per position as the
/// other models do on average. Estimates are of the CPU. On a card they are seconds only once they are scaled.
pub fn costs(
    policy: &Policy,
    lanes: &[(usize, usize)],
    measured: &BTreeMap<String, f64>,
    on_card: bool,
    estimate: impl Fn(&ModelPolicy, usize) -> Result<f64, String>,
) -> Costs {
    let known = lanes.iter().map(|&(model, lanes)| {
        let model = &policy.models[model];
        let positions = positions(model, lanes);
        Known {
            model,
            positions,
            measured: measured.get(&model.name).map(|seconds| seconds * positions),
            estimated: estimate(model, lanes),
        }
    });
    let known: Vec<Known> = known.collect();
    let both =
        known.iter().filter_map(|model| Some((model.measured?, *model.estimated.as_ref().ok()?)));
    let scale = quotient(both);
    let all_measured = known.iter().all(|model| model.measured.is_some());
    let in_seconds = !on_card || scale.is_some() || all_measured;
    let scale = scale.unwrap_or(1.0);
    let seconds =
        |model: &Known| model.measured.or_else(|| Some(model.estimated.as_ref().ok()? * scale));
    let rated = known.iter().filter_map(|model| Some((seconds(model)?, model.positions)));
    let rate = quotient(rated).unwrap_or(SECONDS_PER_POSITION);
    let cost = |known: &Known| {
        let (seconds, basis) = match (known.measured, &known.estimated) {
            (Some(measured), _) => (measured, CostBasis::Measured),
            (None, Ok(estimate)) => (estimate * scale, CostBasis::Estimated),
            (None, Err(why)) => (rate * known.positions, CostBasis::Guessed { why: why.clone() }),
        };
        Cost { model: known.model.name.clone(), seconds, basis }
    };
    Costs { models: known.iter().map(cost).collect(), in_seconds }
}

/// The sum of the first numbers over the sum of the second ones, if both are above 0.
fn quotient(pairs: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (above, below) = pairs.fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1));
    (above > 0.0 && below > 0.0).then(|| above / below)
}

/// Packs models into shards: the most expensive model first, each into the shard that has the least to do so far. There
/// are fewer shards than asked for if there are fewer models, so no shard is empty.
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

/// The matrix for GitHub Actions as one line of JSON: `{"include":[{"shard":"1/3","models":"a,b","seconds":123},…]}`. It
/// has no seconds if costs are none.
pub fn matrix(shards: &[Shard], in_seconds: bool) -> String {
    #[derive(Serialize)]
    struct Job {
        shard: String,
        models: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        seconds: Option<u64>,
    }
    #[derive(Serialize)]
    struct Matrix {
        include: Vec<Job>,
    }
    let job = |(i, shard): (usize, &Shard)| Job {
        shard: format!("{}/{}", i + 1, shards.len()),
        models: shard.models.join(","),
        seconds: in_seconds.then_some(shard.seconds.ceil() as u64),
    };
    let matrix = Matrix { include: shards.iter().enumerate().map(job).collect() };
    serde_json::to_string(&matrix).expect("names and numbers are JSON")
}

/// The indexes of the models with some names, or of all models if no name is given.
///
/// # Errors
/// The policy has no model of such a name. The message names the nearest.
pub fn models_named(policy: &Policy, names: &[String]) -> Result<Vec<usize>, String> {
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
    use crate::compute::device::pretended_card;
    use crate::testing::fixture;

    fn cost(model: &str, seconds: f64) -> Cost {
        Cost { model: model.into(), seconds, basis: CostBasis::Measured }
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
            matrix(&packed, true),
            r#"{"include":[{"shard":"1/2","models":"b \"x\"","seconds":9},{"shard":"2/2","models":"a@long,c","seconds":3}]}"#
        );
        assert_eq!(
            matrix(&packed[..1], false),
            r#"{"include":[{"shard":"1/1","models":"b \"x\""}]}"#,
            "nobody knows the device's speed"
        );
    }

    #[test]
    fn what_is_measured_counts_and_scales_the_rest() {
        let policy = policy(&["a", "b", "c"]);
        let lanes = [(0, 4), (1, 4), (2, 2)];
        let lane = positions(&policy.models[0], 1);
        let measured = BTreeMap::from([("a".to_string(), 5.0 / lane)]);
        // a was estimated at 10 s and takes 4 lanes of 5 s
        let estimate = |model: &ModelPolicy, _| match model.name.as_str() {
            "a" => Ok(10.0),
            "b" => Ok(3.0),
            _ => Err("it is missing".into()),
        };
        let found = costs(&policy, &lanes, &measured, false, estimate).models;
        let found: Vec<_> = found.into_iter().map(|c| (c.seconds, c.basis)).collect();
        // c: as many positions as half of a, at the mean of a and b
        let of_c = (20.0 + 6.0) / 4.0;
        let guessed = CostBasis::Guessed { why: "it is missing".into() };
        assert_eq!(
            found,
            [(20.0, CostBasis::Measured), (6.0, CostBasis::Estimated), (of_c, guessed)]
        );
        let nothing = costs(&policy, &lanes, &BTreeMap::new(), false, |_, _| Err(String::new()));
        assert!(nothing.in_seconds);
        let nothing = nothing.models;
        assert!(nothing[0].seconds > nothing[2].seconds && nothing[2].seconds > 0.0);
    }

    #[test]
    fn a_card_has_no_speed_before_something_was_measured_on_it() {
        let (policy, lanes) = (policy(&["a", "b"]), [(0, 4), (1, 4)]);
        let estimate = |model: &ModelPolicy, _| Ok(if model.name == "a" { 10.0 } else { 30.0 });
        let unknown = costs(&policy, &lanes, &BTreeMap::new(), true, estimate);
        assert!(!unknown.in_seconds);
        assert!(unknown.models[0].seconds < unknown.models[1].seconds);
        let lane = positions(&policy.models[0], 1);
        let measured = BTreeMap::from([("a".to_string(), 0.5 / lane)]);
        let known = costs(&policy, &lanes, &measured, true, estimate);
        assert!(known.in_seconds);
        assert_eq!(known.models.iter().map(|c| c.seconds).collect::<Vec<_>>(), [2.0, 6.0]);
        // a is measured, but nothing tells how b compares with it
        let gone = |_: &ModelPolicy, _| Err(String::new());
        assert!(!costs(&policy, &lanes, &measured, true, gone).in_seconds);
        assert!(costs(&policy, &lanes[..1], &measured, true, gone).in_seconds);
    }

    #[test]
    fn times_of_one_device_count_wherever_they_are_planned() {
        let on_card = || {
            let mut results = fixture::results();
            for measurement in &mut results.measurements {
                fixture::on_a_card(measurement);
            }
            results
        };
        assert!(!measured_on_one_device(&[on_card(), on_card()]).is_empty());
        assert!(measured_on_one_device(&[on_card(), fixture::results()]).is_empty());
    }

    /// There is no card where these tests run.
    #[test]
    fn times_of_a_named_card_are_known_without_it() {
        let on = |name: &str, precision: Precision| {
            let mut results = fixture::results();
            let measurement = &mut results.measurements[0];
            fixture::on_a_card(measurement);
            measurement.run.card.as_mut().unwrap().name = name.into();
            measurement.run.arithmetic = Some(precision.arithmetic().into());
            results
        };
        let (differences, whole) = (Precision::Differences, Precision::Whole);
        let place = Place::Card(Choice::Cuda(1), differences);
        let counts = |results: &[Results]| !place.measured(results).is_empty();
        let card = on("A Card", differences);
        assert!(counts(&[card.clone(), card.clone(), fixture::results()]));
        assert!(!counts(&[fixture::results()]), "the CPU's time is not a card's");
        assert!(!counts(&[on("A Card", whole)]), "nor is that of another precision");
        assert!(!counts(&[card, on("Another Card", differences)]), "which card is it?");
        assert!(place.is_card());
        assert_eq!(place.describe(), "the card cuda:1");
    }

    #[test]
    fn what_another_device_took_does_not_count() {
        let (cpu, card) = (Device::cpu(), pretended_card());
        let counts = |edit: &dyn Fn(&mut Measurement)| {
            let mut results = fixture::results();
            edit(&mut results.measurements[0]);
            [&cpu, &card].map(|device| !measured(&[results.clone()], device).is_empty())
        };
        let on_card = |m: &mut Measurement| {
            m.conditions.device = "cuda".into();
            fixture::on_a_card(m);
            m.run.card.as_mut().unwrap().name = "Pretended Card".into();
            m.run.arithmetic = Some(card.arithmetic().into());
        };
        assert_eq!(counts(&|_| ()), [true, false]);
        assert_eq!(counts(&on_card), [false, true]);
        let another_card = |m: &mut Measurement| {
            on_card(m);
            m.run.card.as_mut().unwrap().name = "Another Card".into();
        };
        assert_eq!(counts(&another_card), [false, false]);
        let another_arithmetic = |m: &mut Measurement| {
            on_card(m);
            m.run.arithmetic = Some("f64".into());
        };
        assert_eq!(counts(&another_arithmetic), [false, false]);
    }

    #[test]
    fn earlier_runs_count_by_the_position_and_the_last_wins() {
        let mut old = fixture::results();
        old.measurements[0].run.seconds = 1000.0;
        let new = fixture::results();
        let cpu = Device::cpu();
        let seconds = measured(&[old.clone(), new], &cpu)["gemma-3-270m"];
        assert!((seconds * 4.0 * 16.0 * 512.0 - 61.34).abs() < 1e-9, "{seconds}");
        for nonsense in [0.0, -5.0, f64::NAN, f64::INFINITY] {
            old.measurements[0].run.seconds = nonsense;
            assert!(measured(&[old.clone()], &cpu).is_empty(), "{nonsense}");
        }
    }

    #[test]
    fn models_are_named_exactly() {
        let policy = policy(&["gemma", "gemma@long", "qwen"]);
        let named = |names: &[&str]| {
            models_named(&policy, &names.iter().map(|n| n.to_string()).collect::<Vec<_>>())
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
