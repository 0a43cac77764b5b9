//! The runs of a search: lanes over some chunks, and what each lane read.

use super::SuggestError;
use crate::judge::interval;
use crate::kv::effective::Effective;
use crate::measure::corpus::Chunk;
use crate::measure::prepare::Prepared;
use crate::measure::run_controlled;
use crate::model::decoder::Decoder;
use crate::progress::Progress;
use crate::results::statistics::{Part, Position, Statistic, Statistics};
use crate::results::Control;
use serde::Serialize;
use std::collections::BTreeMap;

/// What a scheme does on some chunks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reading {
    pub mean_kld: f64,
    /// The interval of the mean KLD. None if there are too few chunks.
    pub interval: Option<[f64; 2]>,
    pub p99_kld: f64,
    pub top1_agreement: f64,
    #[serde(skip)]
    pub statistics: Statistics,
    /// The chunks, numbered anew within their categories.
    #[serde(skip)]
    pub parts: Vec<Part>,
}

impl Reading {
    pub(super) fn of(statistics: Statistics, parts: Vec<Part>) -> Self {
        let interval = interval::of(Statistic::MeanKld, &statistics, &parts, interval::SHOWN);
        Reading {
            mean_kld: statistics.mean_kld,
            interval: interval.ok().map(|interval| [interval.low, interval.high]),
            p99_kld: statistics.p99_kld,
            top1_agreement: statistics.top1_agreement,
            statistics,
            parts,
        }
    }

    fn of_positions(positions: &[Position], chunks: &[Chunk]) -> Self {
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let mut rest = positions;
        let parts = chunks.iter().map(|chunk| {
            let (own, others) = rest.split_at(chunk.scored.len());
            rest = others;
            let number = numbers.entry(&chunk.category).or_default();
            *number += 1;
            Part::of(&chunk.category, *number - 1, own)
        });
        let parts = parts.collect();
        Reading::of(Statistics::of(positions), parts)
    }

    /// The mean KLD on the first chunks.
    pub(super) fn mean_of_first(&self, chunks: usize) -> f64 {
        let parts = self.parts.iter().take(chunks);
        let (sum, tokens) = parts.fold((0.0, 0), |(s, t), part| (s + part.kld, t + part.tokens));
        sum / tokens.max(1) as f64
    }
}

/// Runs lanes of one model, and counts them.
pub(super) struct Passes<'p> {
    prepared: &'p Prepared<'p>,
    decoder: &'p Decoder,
    progress: Progress<'p>,
    controls: Vec<Control>,
    /// The positions of a lane, which have the baseline's log-probabilities.
    scored: Vec<Position>,
    lane_chunks: usize,
    failures: Vec<String>,
}

impl<'p> Passes<'p> {
    pub fn new(prepared: &'p Prepared<'p>, decoder: &'p Decoder, progress: Progress<'p>) -> Self {
        let (controls, scored, failures) = (Vec::new(), Vec::new(), Vec::new());
        Passes { prepared, decoder, progress, controls, scored, lane_chunks: 0, failures }
    }

    /// Runs lanes, each of which is named in words. A lane that fails has no reading, and neither has one that cannot have
    /// done what its name says: a lossy one that changed nothing, or two that did the same to the last bit.
    pub fn run(
        &mut self,
        what: &str,
        chunks: &[Chunk],
        lanes: Vec<(String, Effective)>,
    ) -> Result<Vec<Option<Reading>>, SuggestError> {
        let (names, schemes): (Vec<_>, Vec<_>) = lanes.into_iter().unzip();
        self.lane_chunks += schemes.len() * chunks.len();
        let report = |_: &str, done, all| (self.progress)(what, done, all);
        let found = run_controlled(self.prepared, self.decoder, chunks, schemes, &report)?;
        self.controls = found.controls;
        let mut readings = Vec::new();
        for (name, lane) in names.iter().zip(found.schemes) {
            readings.push(match lane {
                Ok(positions) => {
                    let reading = Reading::of_positions(&positions, chunks);
                    if positions.len() > self.scored.len() {
                        self.scored = positions;
                    }
                    Some(reading)
                }
                Err(error) => {
                    self.failures.push(format!("{name} has no numbers: {}", error.brief()));
                    None
                }
            });
        }
        for i in idle(&readings) {
            readings[i] = None;
            self.failures.push(format!(
                "{} has no numbers that can be believed: it changed nothing, or exactly what another one did",
                names[i]
            ));
        }
        Ok(readings)
    }

    pub fn controls(&self) -> &[Control] {
        &self.controls
    }

    pub fn scored(&self) -> &[Position] {
        &self.scored
    }

    pub fn baseline_ppl(&self) -> f64 {
        Statistics::of(&self.scored).baseline_ppl
    }

    pub fn lane_chunks(&self) -> usize {
        self.lane_chunks
    }

    /// Remarks on lanes that have no numbers.
    pub fn failures(&self) -> Vec<String> {
        self.failures.clone()
    }
}

/// The readings that changed nothing, or that are those of another lane. Every lane stores some part with a lossy codec,
/// and each in a way of its own.
fn idle(readings: &[Option<Reading>]) -> Vec<usize> {
    let is_idle = |i: usize, own: &Reading| {
        let is_twin = |(j, other): (usize, &Option<Reading>)| {
            i != j && other.as_ref().is_some_and(|other| own.parts == other.parts)
        };
        own.mean_kld == 0.0 || readings.iter().enumerate().any(is_twin)
    };
    let known = readings.iter().enumerate();
    let known = known.filter_map(|(i, reading)| Some((i, reading.as_ref()?)));
    known.filter(|(i, reading)| is_idle(*i, reading)).map(|(i, _)| i).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::reading;
    use super::*;

    #[test]
    fn lanes_that_did_not_engage_are_found() {
        let of = |means: &[f64]| {
            idle(&means.iter().map(|mean| Some(reading(*mean))).collect::<Vec<_>>())
        };
        assert!(of(&[0.1, 0.2, 0.3]).is_empty());
        assert_eq!(of(&[0.1, 0.0, 0.3]), [1]);
        assert_eq!(of(&[0.1, 0.2, 0.1]), [0, 2]);
        assert!(idle(&[None, None]).is_empty());
    }

    #[test]
    fn the_first_chunks_have_a_mean_of_their_own() {
        let reading = reading(0.1);
        assert!((reading.mean_of_first(10) - 0.1).abs() < 1e-12);
        assert!((reading.mean_of_first(1) - 0.091).abs() < 1e-12);
    }
}
