//! Measuring: corpus, chunks, lanes, the engine, the streaming head, statistics.

pub mod corpus;
mod divergence;
pub mod engine;
pub mod mimic;
pub mod prompts;
pub mod stats;

use crate::hash;
use crate::hub::{self, HubError};
use crate::kv::cache::{bits_per_element, BlockSizeError, Effective, LayerKv};
use crate::kv::Scheme;
use crate::model::decoder::{Decoder, Residency};
use crate::model::{Checkpoint, ModelError};
use crate::policy::Source;
use crate::results::{
    BitsPerElement, Conditions, Control, Measurement, Outcome, RunInfo, SchemeResult, Subject,
};
use corpus::{Chunk, CorpusError};
use engine::{Lane, LaneError, LaneResult};
use mimic::Mimic;
use stats::{Part, Position, Statistics};
use std::path::PathBuf;
use std::time::Instant;

/// What measured, as reports name it.
pub const ENGINE: &str = concat!("kvgate ", env!("CARGO_PKG_VERSION"));

/// What measured, as conditions name it. The number goes up when values may change by more than
/// rounding, and with it every golden becomes stale; a release that changes none leaves it.
pub const NUMERICS: &str = "kvgate numerics 1";

/// A model, a text, and the schemes to measure on them.
pub struct Request<'a> {
    /// The model as cases name it.
    pub model: &'a str,
    /// Where its weights are.
    pub source: &'a Source,
    /// Corpus files.
    pub corpus: &'a [PathBuf],
    /// Tokens in a chunk.
    pub context: usize,
    /// Chunks to measure.
    pub chunks: usize,
    /// What lanes are compared with.
    pub baseline: Scheme,
    /// Label and scheme of each lane.
    pub schemes: Vec<(String, Scheme)>,
    /// Where weights are; chosen by the machine's memory if not given.
    pub residency: Option<Residency>,
    /// Another engine's habits to take on, for comparisons with its numbers.
    pub mimic: Option<Mimic>,
}

/// A measurement and the positions that it was made from, by the label of their scheme.
pub struct Measured {
    /// Statistics and provenance.
    pub measurement: Measurement,
    /// Scored positions of each scheme that has numbers.
    pub positions: Vec<(String, Vec<Position>)>,
}

/// Why a model could not be measured at all.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The hub.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The checkpoint.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The text.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The baseline does not fit the model.
    #[error("baseline: {0}")]
    Baseline(BlockSizeError),
    /// The baseline has no numbers.
    #[error(
        "{model}: the baseline {scheme} cannot be measured: {why}; the weights may be damaged"
    )]
    BaselineFailed {
        /// The model as cases name it.
        model: String,
        /// The baseline's effective scheme.
        scheme: String,
        /// Where it failed.
        why: String,
    },
    /// The file is not the one that the policy names.
    #[error("{} has SHA-256 {found}, the policy says {expected}; fetch the right file, or accept it as the new subject by editing `sha256`", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// The policy's.
        expected: String,
        /// The file's.
        found: String,
    },
    /// A file cannot be hashed.
    #[error("cannot read {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

/// How far a run is: what it does now, work done, work in all.
pub type Progress<'a> = &'a (dyn Fn(&str, u64, u64) + Sync);

/// Measures all schemes of a request in one pass.
///
/// # Errors
/// What concerns the whole model; a scheme that fails has its error in its own result.
pub fn measure(request: &Request, progress: Progress) -> Result<Measured, MeasureError> {
    let began = Instant::now();
    hub::fetch(request.source, progress)?;
    progress("reading", 0, 0);
    let checkpoint = Checkpoint::open(request.source)?;
    let subject = subject(request, &checkpoint)?;
    let layout = checkpoint.spec.kv_layout();
    let baseline = Effective::new(&request.baseline, &layout).map_err(MeasureError::Baseline)?;
    let texts =
        request.corpus.iter().map(|path| corpus::read(path)).collect::<Result<Vec<_>, _>>()?;
    let chunks = corpus::chunks(&texts, &checkpoint.tokenizer, request.context, request.chunks)?;
    fits(&chunks, &checkpoint)?;
    let residency = request.residency.unwrap_or_else(|| fitting(checkpoint.spec.parameters()));
    let decoder = checkpoint.load(residency)?;

    let lanes = Lanes::plan(request, &baseline, &layout);
    let report = |done, all| progress("measuring", done, all);
    let mut results =
        engine::run(&decoder, &chunks, &baseline, &lanes.engine, request.mimic, &report);
    let schemes = results.split_off(lanes.controls());
    if let Some(Err(LaneError::Baseline(why))) = results.first() {
        return Err(MeasureError::BaselineFailed {
            model: request.model.into(),
            scheme: baseline.to_string(),
            why: why.clone(),
        });
    }
    let (schemes, positions) = lanes.results(schemes, &chunks);

    let conditions = Conditions {
        corpus: texts.into_iter().map(|text| text.file).collect(),
        context: request.context,
        chunks: request.chunks,
        baseline: baseline.to_string(),
        engine: match request.mimic {
            None => NUMERICS.into(),
            Some(mimic) => format!("{NUMERICS}, mimicking {}", mimic.name()),
        },
        device: "cpu".into(),
        weights: "f32".into(),
    };
    let baseline_ppl = positions
        .iter()
        .map(|(_, positions)| positions.as_slice())
        .chain(results[0].as_deref().ok())
        .next()
        .map_or(f64::NAN, |positions| Statistics::of(positions).baseline_ppl);
    let effective = [baseline.to_string(), Effective::bad(&layout).to_string()];
    let controls = controls(effective, request.mimic, results);
    let run = RunInfo {
        baseline_ppl,
        device: format!("{} CPU threads", rayon::current_num_threads()),
        dtype: "f32".into(),
        seconds: began.elapsed().as_secs_f64(),
        peak_bytes: peak_bytes(),
        notes: notes(&decoder, request),
    };
    let model = request.model.to_string();
    let measurement = Measurement { model, subject, conditions, run, controls, schemes };
    Ok(Measured { measurement, positions })
}

/// A tokenizer of another model gives tokens that this one has no embedding for.
fn fits(chunks: &[Chunk], checkpoint: &Checkpoint) -> Result<(), ModelError> {
    let vocab = checkpoint.spec.vocab;
    let beyond = chunks.iter().flat_map(|c| &c.tokens).find(|&&token| token as usize >= vocab);
    match beyond {
        None => Ok(()),
        Some(token) => Err(ModelError::Tokenizer {
            path: checkpoint.tokenizer_file().unwrap_or(checkpoint.path()).into(),
            message: format!(
                "it gives token {token}, the model has {vocab}: it is another model's"
            ),
        }),
    }
}

fn subject(request: &Request, checkpoint: &Checkpoint) -> Result<Subject, MeasureError> {
    let io = |(path, error)| MeasureError::Io { path, error };
    let found = hash::of_files(checkpoint.files()).map_err(io)?;
    match &request.source.sha256 {
        Some(expected) if *expected != found => Err(MeasureError::Hash {
            path: checkpoint.path().into(),
            expected: expected.clone(),
            found,
        }),
        _ => Ok(Subject {
            weights_sha256: found,
            tokenizer_sha256: checkpoint
                .tokenizer_file()
                .map(|file| hash::of_files(&[file.into()]).map_err(io))
                .transpose()?,
            architecture: checkpoint.spec.architecture.clone(),
        }),
    }
}

/// The lanes of a request: the control lanes, then the schemes that fit the model.
struct Lanes<'a> {
    engine: Vec<Lane>,
    schemes: Vec<(&'a str, Result<Effective, BlockSizeError>, Scheme)>,
    layout: &'a [Option<LayerKv>],
}

impl<'a> Lanes<'a> {
    fn plan(request: &'a Request, baseline: &Effective, layout: &'a [Option<LayerKv>]) -> Self {
        let schemes: Vec<_> = request
            .schemes
            .iter()
            .map(|(label, scheme)| (label.as_str(), Effective::new(scheme, layout), *scheme))
            .collect();
        let chunks = engine::chunks_per_tile(request.context).min(request.chunks);
        let control = |scheme| Lane { scheme, chunks };
        let mut engine = vec![control(baseline.clone()), control(Effective::bad(layout))];
        engine.extend(schemes.iter().filter_map(|(_, effective, _)| {
            let scheme = effective.as_ref().ok()?.clone();
            let scheme = match request.mimic {
                None => scheme,
                Some(mimic) => mimic.adapt(scheme),
            };
            Some(Lane { scheme, chunks: request.chunks })
        }));
        Lanes { engine, schemes, layout }
    }

    fn controls(&self) -> usize {
        2
    }

    fn results(
        self,
        lanes: Vec<LaneResult>,
        chunks: &[Chunk],
    ) -> (Vec<SchemeResult>, Vec<(String, Vec<Position>)>) {
        let mut lanes = lanes.into_iter();
        let mut results = Vec::new();
        let mut positions = Vec::new();
        for (label, effective, scheme) in self.schemes {
            let (name, outcome) = match effective {
                Err(error) => {
                    (scheme.to_string(), Outcome::Failed { error: format!("{scheme}: {error}") })
                }
                Ok(effective) => {
                    let outcome = match lanes.next().expect("a lane for each scheme that fits") {
                        Err(error) => {
                            Outcome::Failed { error: format!("{scheme}: {}", error.brief()) }
                        }
                        Ok(lane) => {
                            let outcome = measured(&lane, chunks);
                            positions.push((label.to_string(), lane));
                            outcome
                        }
                    };
                    (effective.to_string(), outcome)
                }
            };
            results.push(SchemeResult {
                scheme: label.into(),
                effective: name,
                bits_per_element: BitsPerElement {
                    k: bits_per_element(scheme.k.codec, self.layout),
                    v: bits_per_element(scheme.v.codec, self.layout),
                },
                outcome,
            });
        }
        (results, positions)
    }
}

fn measured(positions: &[Position], chunks: &[Chunk]) -> Outcome {
    let mut rest = positions;
    let parts = chunks
        .iter()
        .map(|chunk| {
            let (own, others) = rest.split_at(chunk.scored().len());
            rest = others;
            Part::of(&chunk.category, chunk.index, own)
        })
        .collect();
    Outcome::Measured { statistics: Statistics::of(positions), parts }
}

/// A deliberately bad lane that reads less than this is not bad: the ruler does not see harm.
const BAD_LANE_KLD: f64 = 0.1;

/// What the two control lanes read, each on the first tile of chunks. An engine that stores its baseline in 16
/// bits has no exact zero.
/// The effective schemes are those of the two lanes.
fn controls(
    [baseline, bad]: [String; 2],
    mimic: Option<Mimic>,
    lanes: Vec<LaneResult>,
) -> Vec<Control> {
    let mut lanes = lanes.into_iter();
    let mut control =
        |name: &str, effective: String, must: String, holds: fn(&Statistics) -> bool| {
            let statistics = lanes.next().and_then(Result::ok).map(|lane| Statistics::of(&lane));
            Control {
                name: name.into(),
                effective,
                mean_kld: statistics.as_ref().map(|s| s.mean_kld),
                top1_agreement: statistics.as_ref().map(|s| s.top1_agreement),
                must,
                ok: statistics.as_ref().is_some_and(holds),
            }
        };
    vec![
        match mimic {
            None => control("identity", baseline, "exactly 0 at every position".into(), |s| {
                s.max_kld == 0.0 && s.mean_kld == 0.0 && s.top1_agreement == 1.0
            }),
            Some(_) => control("identity", baseline, "0 within 1e-5 (16 bits)".into(), |s| {
                s.mean_kld.abs() < 1e-5
            }),
        },
        control("bad lane", bad, format!("at least {BAD_LANE_KLD}"), |s| {
            s.mean_kld >= BAD_LANE_KLD
        }),
    ]
}

/// In memory where f32 weights take no more than half of it, from the file layer by layer otherwise.
/// Values are the same either way.
fn fitting(parameters: u64) -> Residency {
    let memory = proc_value("/proc/meminfo", "MemTotal:").unwrap_or(u64::MAX);
    match parameters * size_of::<f32>() as u64 <= memory / 2 {
        true => Residency::Resident,
        false => Residency::Streamed,
    }
}

/// Peak resident memory of this process, 0 where the system does not tell.
fn peak_bytes() -> u64 {
    proc_value("/proc/self/status", "VmHWM:").unwrap_or(0)
}

/// A `Name:  123 kB` line of Linux's /proc, in bytes.
fn proc_value(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn notes(decoder: &Decoder, request: &Request) -> Vec<String> {
    let trained = decoder.spec.trained_context;
    (request.context > trained)
        .then(|| format!("context {} is beyond the model's trained {trained}", request.context))
        .into_iter()
        .collect()
}
