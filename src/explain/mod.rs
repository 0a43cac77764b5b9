//! `kvgate explain`: where the harm that a scheme does comes from.
//!
//! The way of an explanation: a run of the baseline is tapped (`tap`, `rope`, `statistics`). From what it showed, lanes
//! are made (`lanes`): the whole scheme, one for each site, and one for each suspected cause. The engine runs them in
//! one pass, and a second pass has one lane, in which the culprits are exact. Rules turn the numbers into findings
//! (`findings`), which are told in words (`words`), in a terminal and on a page.

pub mod findings;
#[cfg(test)]
mod fixture;
pub mod lanes;
mod map;
#[cfg(feature = "reports")]
pub mod page;
mod rope;
pub mod statistics;
mod tap;
pub mod terminal;
pub mod words;

use crate::kv::effective::Effective;
use crate::kv::layout::Slot;
use crate::measure::prepare::Prepared;
use crate::measure::{
    observe, remark_on_perplexity, run_controlled, MeasureError, Request, UncontrolledError,
};
use crate::model::decoder::Decoder;
use crate::progress::Progress;
use crate::results::statistics::{Position, Statistics};
use crate::results::{Conditions, Control, Subject};
use findings::{additivity, culprits, shares, Additivity, Culprits, SiteReading};
use lanes::{Experiment, Lanes, Makings, Skipped};
use serde::Serialize;
use statistics::HeadStatistics;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tap::Tap;

/// The version of the format of an explanation as JSON.
const FORMAT: u32 = 1;

/// How many channels of each head an experiment keeps exact if nobody says another number.
pub const CHANNELS: usize = 4;

/// What an explanation may be asked for beside the scheme.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many channels of each head an experiment keeps exact.
    pub channels: usize,
    /// Whether each KV head is a site of its own.
    pub by_head: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { channels: CHANNELS, by_head: false }
    }
}

/// Where the harm of a scheme comes from.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    pub format: u32,
    pub model: String,
    /// As it was asked for.
    pub scheme: String,
    /// As it ran.
    pub effective: String,
    pub subject: Subject,
    pub conditions: Conditions,
    pub controls: Vec<Control>,
    pub baseline_ppl: f64,
    /// A description of the device, for people.
    pub device: String,
    pub arithmetic: String,
    /// Wall-clock time, loading included.
    pub seconds: f64,
    /// Remarks for people.
    pub notes: Vec<String>,
    /// The whole scheme.
    pub whole: Reading,
    /// With one site quantized, and all else exact.
    pub sites: Vec<SiteReading>,
    pub additivity: Additivity,
    pub culprits: Culprits,
    pub experiments: Vec<Trial>,
    pub skipped: Vec<Skipped>,
    pub heads: Vec<HeadStatistics>,
    /// The answer in words, one sentence or two each.
    pub answer: Vec<String>,
}

/// What one lane reads, in nats per token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Reading {
    pub mean_kld: f64,
    pub mean_kld_se: f64,
    pub top1_agreement: f64,
}

/// An experiment, and what came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Trial {
    /// The name for programs.
    pub experiment: &'static str,
    /// What was different from the whole scheme.
    pub words: String,
    #[serde(flatten)]
    pub reading: Reading,
    /// Its mean KLD as a share of the whole scheme's.
    pub of_whole: f64,
}

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// The scheme cannot be measured with this model.
    #[error("{scheme}: {why}")]
    Unfit { scheme: String, why: String },
    /// There is no harm to explain.
    #[error("{scheme} stores K and V exactly, so there is nothing to explain")]
    Exact { scheme: String },
    /// A lossy scheme left no trace.
    #[error("{scheme} changed nothing: its KLD is exactly 0, although it is lossy")]
    NoEffect { scheme: String },
    #[error(transparent)]
    Uncontrolled(#[from] UncontrolledError),
    /// A lane has no numbers.
    #[error("with {lane}: {why}")]
    Lane { lane: String, why: String },
}

impl Reading {
    fn of(positions: &[Position]) -> Self {
        let Statistics { mean_kld, mean_kld_se, top1_agreement, .. } = Statistics::of(positions);
        Reading { mean_kld, mean_kld_se, top1_agreement }
    }
}

impl Trial {
    fn new(experiment: &Experiment, reading: Reading, whole: &Reading) -> Self {
        Trial {
            experiment: experiment.name(),
            words: experiment.words(),
            reading,
            of_whole: reading.mean_kld / whole.mean_kld,
        }
    }
}

/// Explains the only scheme of a request.
///
/// # Errors
/// If the model, the scheme or one of the lanes cannot be measured, or if there is nothing to explain.
pub fn explain(
    request: &Request,
    options: Options,
    progress: Progress,
) -> Result<Explanation, ExplainError> {
    let began = Instant::now();
    let prepared = Prepared::open(request, progress)?;
    let prepared_scheme = prepared.schemes.first().expect("a scheme was asked for");
    let scheme = prepared_scheme.label.to_string();
    let whole = prepared_scheme.effective.as_ref();
    let whole =
        whole.map_err(|why| ExplainError::Unfit { scheme: scheme.clone(), why: why.clone() })?;
    if !whole.slots().iter().any(|slot| whole.slot(*slot).is_lossy()) {
        return Err(ExplainError::Exact { scheme });
    }
    let decoder = prepared.load()?;

    let mut tap = Tap::new(&prepared.checkpoint.spec, whole);
    let report = |done, all| progress("looking at K and V", done, all);
    observe(&decoder, &prepared.corpus.chunks, &prepared.baseline, &mut tap, &report)?;
    let mut heads = tap.statistics();
    let worst = worst_channels(&heads, options.channels);
    heads.iter_mut().for_each(HeadStatistics::shorten);
    let makings = Makings {
        exact: &prepared.baseline,
        whole,
        by_head: options.by_head,
        worst: &|slot| worst[&slot].clone(),
        channels: options.channels,
        mean: &|layer| tap.mean_of_k(layer),
    };

    let Lanes { sites, experiments, skipped } = makings.lanes();
    let lane = |words: &str, scheme: &Effective| (words.to_string(), scheme.clone());
    let mut lanes = vec![lane("the whole scheme", whole)];
    lanes.extend(sites.iter().map(|(site, s)| lane(&words::sites(&[*site]), s)));
    lanes.extend(experiments.iter().map(|(experiment, s)| lane(&experiment.words(), s)));
    let first = run(&prepared, &decoder, lanes, progress)?;
    let notes = prepared.notes(remark_on_perplexity(&prepared, first.baseline_ppl, &first.scored)?);
    let mut readings = first.readings.into_iter();
    let whole_reading = readings.next().expect("the whole scheme is the first lane");
    if whole_reading.mean_kld == 0.0 {
        return Err(ExplainError::NoEffect { scheme });
    }
    let sites = shares(sites.into_iter().map(|(site, _)| site).zip(&mut readings).collect());
    let trial = |((experiment, _), reading): (&(Experiment, Effective), Reading)| {
        Trial::new(experiment, reading, &whole_reading)
    };
    let mut trials: Vec<Trial> = experiments.iter().zip(readings).map(trial).collect();

    let culprits = culprits(&sites);
    let experiment = Experiment::WithoutCulprits(words::sites(&culprits.sites));
    let lanes = vec![(experiment.words(), makings.without(&culprits.sites))];
    let second = run(&prepared, &decoder, lanes, progress)?;
    trials.extend(second.readings.into_iter().map(|r| Trial::new(&experiment, r, &whole_reading)));

    let mut explanation = Explanation {
        format: FORMAT,
        model: request.model.into(),
        scheme,
        effective: whole.to_string(),
        controls: first.controls,
        baseline_ppl: first.baseline_ppl,
        device: prepared.device.describe(),
        arithmetic: prepared.device.arithmetic().into(),
        seconds: 0.0,
        notes,
        whole: whole_reading,
        additivity: additivity(&sites, &whole_reading),
        sites,
        culprits,
        experiments: trials,
        skipped,
        heads,
        answer: Vec::new(),
        subject: prepared.subject,
        conditions: prepared.conditions,
    };
    explanation.answer = words::answer(&explanation);
    explanation.seconds = began.elapsed().as_secs_f64();
    Ok(explanation)
}

/// The channels with the largest rms of each head of each slot.
fn worst_channels(heads: &[HeadStatistics], count: usize) -> BTreeMap<Slot, Arc<[Vec<usize>]>> {
    let mut slots: BTreeMap<Slot, Vec<Vec<usize>>> = BTreeMap::new();
    for head in heads {
        let worst = head.channels.iter().take(count).map(|c| c.channel).collect();
        slots.entry(Slot { layer: head.layer, side: head.side }).or_default().push(worst);
    }
    slots.into_iter().map(|(slot, heads)| (slot, heads.into())).collect()
}

/// What a pass of the engine gave.
struct Pass {
    controls: Vec<Control>,
    /// One for each lane.
    readings: Vec<Reading>,
    baseline_ppl: f64,
    /// The positions of the first lane, which have the baseline's log-probabilities.
    scored: Vec<Position>,
}

/// Runs lanes, each of which is named in words.
fn run(
    prepared: &Prepared,
    decoder: &Decoder,
    lanes: Vec<(String, Effective)>,
    progress: Progress,
) -> Result<Pass, ExplainError> {
    let (words, schemes): (Vec<_>, Vec<_>) = lanes.into_iter().unzip();
    let found = run_controlled(prepared, decoder, &prepared.corpus.chunks, schemes, progress)?;
    let mut pass = Pass {
        controls: found.controls,
        readings: Vec::new(),
        baseline_ppl: f64::NAN,
        scored: Vec::new(),
    };
    for (lane, positions) in words.into_iter().zip(found.schemes) {
        let positions =
            positions.map_err(|error| ExplainError::Lane { lane, why: error.brief() })?;
        if pass.scored.is_empty() {
            pass.baseline_ppl = Statistics::of(&positions).baseline_ppl;
            pass.scored = positions.clone();
        }
        pass.readings.push(Reading::of(&positions));
    }
    Ok(pass)
}
