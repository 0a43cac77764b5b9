//! Measuring: corpus, chunks, lanes, the engine, the streaming head, statistics.

pub mod calibrate;
pub mod corpus;
mod divergence;
pub mod engine;
pub mod generate;
pub mod mimic;
pub mod prompts;
pub mod sanity;
pub mod shape;

use crate::compute::{machine, Device};
use crate::hash;
use crate::kv::cache::CacheError;
use crate::kv::calibration::{Calibration, CalibrationError};
use crate::kv::effective::{remarks_on_missing_layers, Effective, UnfitError};
use crate::kv::layout::LayerKv;
use crate::kv::Scheme;
use crate::model::decoder::{self, Decoder, Residency};
use crate::model::{warnings_first, Checkpoint, ModelError};
use crate::progress::Progress;
use crate::results::replay::Generated;
use crate::results::statistics::{Part, Position, Statistics};
use crate::results::{
    Conditions, Control, CorpusFile, Measurement, Outcome, RunInfo, SchemeResult, Storage, Subject,
};
use crate::source;
use crate::source::pinned::HubError;
use crate::source::Source;
use corpus::{Chunk, CorpusError};
use engine::{Lane, LaneError, LaneResult};
use generate::{Asked, Generate, Replayer};
use mimic::Mimic;
use prompts::{PromptError, PromptSet};
use sanity::{Doubt, Unigram};
use std::path::{Path, PathBuf};
use std::time::Instant;

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
    /// What `kvgate calibrate` wrote for the model, for schemes that need it.
    pub calibration: Option<&'a Path>,
    /// Text that the baseline writes and every scheme is fed.
    pub generate: Option<Generate<'a>>,
    /// Where weights are; chosen by the machine's memory if not given.
    pub residency: Option<Residency>,
    /// Another engine's habits to take on, for comparisons with its numbers.
    pub mimic: Option<Mimic>,
    /// Whether verdicts will rest on it: then a baseline that knows less than how often each token occurs is an
    /// error, and not only a remark.
    pub is_gated: bool,
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
    Baseline(UnfitError),
    /// The calibration.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// The prompts.
    #[error(transparent)]
    Prompts(Box<PromptError>),
    /// The baseline cannot write.
    #[error("the baseline cannot continue the prompt `{prompt}`: {why}")]
    Generating {
        /// The prompt's name.
        prompt: String,
        /// Why.
        why: String,
    },
    /// The accepted text.
    #[error("the golden {model}.text.snap {why}; take it from version control again, or remove it and accept anew")]
    Text {
        /// The model as cases name it.
        model: String,
        /// What is wrong with it.
        why: String,
    },
    /// K or V cannot be stored, as of damaged weights.
    #[error("cannot calibrate: {0}")]
    Calibrating(CacheError),
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
    /// The baseline has numbers that no sound model has.
    #[error("{model}: {doubt}: {SUSPICION}; for weights that are known to be untrained say `untrained = true` in the policy, or --untrained")]
    Implausible {
        /// The model as cases name it.
        model: String,
        /// What gives it away.
        doubt: Doubt,
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

/// Measures all schemes of a request in one pass.
///
/// # Errors
/// What concerns the whole model; a scheme that fails has its error in its own result.
pub fn measure(request: &Request, progress: Progress) -> Result<Measured, MeasureError> {
    let began = Instant::now();
    // what is wrong with a file of prompts is told before weights are fetched or read
    let set = request.generate.as_ref().map(|asked| PromptSet::read(asked.prompts)).transpose()?;
    source::fetch(request.source, progress)?;
    progress("reading", 0, 0);
    let checkpoint = Checkpoint::open(request.source)?;
    let subject = subject_of(request.source, &checkpoint)?;
    let layout = checkpoint.spec.kv_layout();
    let baseline =
        Effective::new(&request.baseline, &layout, None).map_err(MeasureError::Baseline)?;
    let texts =
        request.corpus.iter().map(|path| corpus::read(path)).collect::<Result<Vec<_>, _>>()?;
    let files: Vec<_> = texts.iter().map(|text| text.file.clone()).collect();
    let calibration = calibration(request, &subject, &files)?;
    let tokenizer = &checkpoint.tokenizer;
    let corpus::Corpus { chunks, tokens } =
        corpus::tokenized(&texts, tokenizer, request.context, request.chunks)?;
    if request.is_gated {
        corpus::mostly_new(&chunks)?;
    }
    // before minutes of work, not after
    let asked = request.generate.as_ref().zip(set.as_ref()).map(|(asked, set)| {
        let sha256 = &subject.weights_sha256;
        Asked::of(set, asked, request.model, sha256, &baseline, &checkpoint)
    });
    let asked = asked.transpose()?;
    let schemes = request.schemes.iter().map(|(_, scheme)| scheme);
    let mut remarks = remarks(&texts, &chunks, asked.as_ref(), schemes, &layout);
    let device = Device::cpu();
    let parameters = decoder::parameters(&checkpoint.spec);
    let residency = request.residency.unwrap_or_else(|| fitting(&device, parameters));
    let decoder = checkpoint.load_on(&device, residency)?;

    let lanes = Lanes::plan(request, &device, &baseline, &layout, calibration.as_ref());
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
    let decode = |ids: &[u32]| checkpoint.tokenizer.decode(ids).unwrap_or_default();
    let (mut schemes, positions) = lanes.results(schemes, &chunks, &decode);
    let own = baseline_positions(&positions, &results);
    let baseline_ppl = Statistics::of(own).baseline_ppl;
    let unigram = Unigram::of(&tokens, checkpoint.spec.vocab);
    let doubt = Doubt::of(baseline_ppl, checkpoint.spec.vocab, unigram.as_ref(), own);
    remarks.extend(bounded(request, doubt)?);
    let generated = match asked {
        None => None,
        Some(asked) => {
            let mut replayer = Replayer::new(asked, &checkpoint, &decoder, &baseline, progress)?;
            lanes.replay(&mut replayer, &baseline, &mut schemes, progress);
            Some(replayer.generated)
        }
    };

    let conditions =
        conditions(request, &device, &checkpoint, &baseline, files, generated.as_ref());
    let effective = [baseline.to_string(), Effective::bad(&layout).to_string()];
    let controls = controls(effective, request.mimic, results);
    let mut notes = [checkpoint.notes.clone(), remarks, notes(&decoder, request)].concat();
    warnings_first(&mut notes);
    let run = RunInfo {
        baseline_ppl,
        device: device.describe(),
        dtype: device.dtype().into(),
        seconds: began.elapsed().as_secs_f64(),
        peak_bytes: machine::peak_bytes(),
        notes,
    };
    let model = request.model.to_string();
    let measurement = Measurement { model, subject, conditions, run, controls, schemes, generated };
    Ok(Measured { measurement, positions })
}

/// What people should know before they believe numbers: what is odd about texts, and about names of schemes.
pub(crate) fn remarks<'s>(
    texts: &[corpus::Text],
    chunks: &[Chunk],
    asked: Option<&Asked>,
    schemes: impl Iterator<Item = &'s Scheme>,
    layout: &[Option<LayerKv>],
) -> Vec<String> {
    let mut remarks: Vec<String> = texts.iter().flat_map(corpus::Text::remarks).collect();
    remarks.extend(corpus::repeated(chunks));
    remarks.extend(asked.iter().flat_map(|asked| asked.prompts.remarks.clone()));
    remarks.extend(schemes.flat_map(|scheme| remarks_on_missing_layers(scheme, layout)));
    remarks
}

fn conditions(
    request: &Request,
    device: &Device,
    checkpoint: &Checkpoint,
    baseline: &Effective,
    corpus: Vec<CorpusFile>,
    generated: Option<&Generated>,
) -> Conditions {
    Conditions {
        corpus,
        context: request.context,
        chunks: request.chunks,
        baseline: baseline.to_string(),
        engine: match request.mimic {
            None => NUMERICS.into(),
            Some(mimic) => format!("{NUMERICS}, mimicking {}", mimic.name()),
        },
        device: device.name().into(),
        weights: device.weights().into(),
        reading: checkpoint.reading.clone(),
        prompts: generated.map(Generated::conditions),
        needs: Vec::new(),
    }
}

/// Positions that have the baseline's log-probabilities: those of any scheme, or where none has numbers those of
/// the identity control, which is on the first chunks only.
fn baseline_positions<'p>(
    schemes: &'p [(String, Vec<Position>)],
    controls: &'p [LaneResult],
) -> &'p [Position] {
    let schemes = schemes.iter().map(|(_, positions)| positions.as_slice());
    let control = controls.first().and_then(|identity| identity.as_deref().ok());
    schemes.chain(control).next().unwrap_or_default()
}

/// What is said of a baseline's perplexity where it is over a bound, and of weights that are held against none.
///
/// # Errors
/// A perplexity over a bound that nobody calls that of untrained weights: where verdicts rest on it, and anywhere if
/// the model knows less than nothing.
fn bounded(request: &Request, doubt: Option<Doubt>) -> Result<Option<String>, MeasureError> {
    let untrained = "the weights are untrained, as was said";
    Ok(match doubt {
        Some(doubt) if request.source.untrained => Some(format!("{untrained}: {doubt}")),
        None if request.source.untrained => Some(format!(
            "{untrained}, and the baseline's perplexity would not give it away: no bound is held against it"
        )),
        None => None,
        Some(doubt) if request.is_gated || matches!(doubt, Doubt::Vocabulary { .. }) => {
            return Err(MeasureError::Implausible { model: request.model.into(), doubt })
        }
        Some(doubt) => Some(format!("{doubt}: {SUSPICION}; a gate would not judge by it")),
    })
}

/// Why a baseline may have a perplexity that no sound model has.
const SUSPICION: &str =
    "the tokenizer may be another model's, the weights may be in another program's \
                         convention, or they are damaged";

fn subject_of(source: &Source, checkpoint: &Checkpoint) -> Result<Subject, MeasureError> {
    let io = |(path, error)| MeasureError::Io { path, error };
    let found = hash::of_files(checkpoint.files()).map_err(io)?;
    match &source.sha256 {
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

/// The calibration that a request names, if one of its schemes needs it, and its file's hash.
fn calibration(
    request: &Request,
    subject: &Subject,
    corpus: &[CorpusFile],
) -> Result<Option<(Calibration, String)>, MeasureError> {
    let is_needed = request.schemes.iter().any(|(_, scheme)| scheme.is_calibrated());
    let Some(path) = request.calibration.filter(|_| is_needed) else { return Ok(None) };
    let calibration = Calibration::read(path, &subject.weights_sha256, corpus)?;
    let sha256 =
        hash::of_file(path).map_err(|error| MeasureError::Io { path: path.into(), error })?;
    Ok(Some((calibration, sha256)))
}

/// The lanes of a request: the control lanes, then the schemes that fit the model.
struct Lanes<'a> {
    engine: Vec<Lane>,
    schemes: Vec<(&'a str, &'a Scheme, Result<Effective, String>)>,
    f16: Effective,
    context: usize,
    /// Hash of the calibration.
    calibration: Option<&'a str>,
}

impl<'a> Lanes<'a> {
    fn plan(
        request: &'a Request,
        device: &Device,
        baseline: &Effective,
        layout: &[Option<LayerKv>],
        calibration: Option<&'a (Calibration, String)>,
    ) -> Self {
        let context = request.context;
        let effective = |scheme: &Scheme| match scheme.least_context() {
            least if least > context => Err(too_short(least, context)),
            _ => Effective::new(scheme, layout, calibration.map(|(calibration, _)| calibration))
                .map_err(|error| error.to_string()),
        };
        let schemes: Vec<_> = request
            .schemes
            .iter()
            .map(|(label, scheme)| (label.as_str(), scheme, effective(scheme)))
            .collect();
        let chunks = engine::chunks_per_tile(device, context).min(request.chunks);
        let control = |scheme| Lane { scheme, chunks };
        let mut engine = vec![control(baseline.clone()), control(Effective::bad(layout))];
        engine.extend(schemes.iter().filter_map(|(.., effective)| {
            let scheme = effective.as_ref().ok()?.clone();
            let scheme = match request.mimic {
                None => scheme,
                Some(mimic) => mimic.adapt(scheme),
            };
            Some(Lane { scheme, chunks: request.chunks })
        }));
        let f16 = Effective::new(&Scheme::f16(), layout, None).expect("halves fit any head");
        let calibration = calibration.map(|(_, sha256)| sha256.as_str());
        Lanes { engine, schemes, f16, context, calibration }
    }

    fn controls(&self) -> usize {
        2
    }

    fn results(
        &self,
        lanes: Vec<LaneResult>,
        chunks: &[Chunk],
        decode: &dyn Fn(&[u32]) -> String,
    ) -> (Vec<SchemeResult>, Vec<(String, Vec<Position>)>) {
        let mut lanes = lanes.into_iter();
        let mut results = Vec::new();
        let mut positions = Vec::new();
        for (label, scheme, effective) in &self.schemes {
            let failed = |error| Outcome::Failed { error: format!("{scheme}: {error}") };
            let mut shape = None;
            let mut result = SchemeResult {
                scheme: (*label).into(),
                effective: scheme.to_string(),
                needs: Vec::new(),
                storage: None,
                replay: None,
                shape: None,
                outcome: match effective {
                    Err(error) => failed(error.clone()),
                    Ok(_) => match lanes.next().expect("a lane for each scheme that fits") {
                        Err(error) => failed(error.brief()),
                        Ok(lane) => {
                            let outcome = measured(&lane, chunks);
                            shape = Some(shape::shape(&lane, chunks, decode));
                            positions.push(((*label).to_string(), lane));
                            outcome
                        }
                    },
                },
            };
            result.shape = shape;
            if let Ok(effective) = effective {
                result.effective = effective.to_string();
                result.needs = needs(scheme, effective, self.calibration);
                result.storage = Some(self.storage(effective));
            }
            results.push(result);
        }
        (results, positions)
    }

    /// Feeds the baseline's text to the schemes that have numbers.
    fn replay(
        &self,
        replayer: &mut Replayer,
        baseline: &Effective,
        results: &mut [SchemeResult],
        progress: Progress,
    ) {
        let lanes = self.schemes.iter().zip(results);
        let (fit, mut results): (Vec<_>, Vec<_>) = lanes
            .filter(|(_, result)| matches!(result.outcome, Outcome::Measured { .. }))
            .filter_map(|((.., effective), result)| Some((effective.clone().ok()?, result)))
            .unzip();
        let replays = replayer.replay(baseline, &fit, progress);
        for (result, replay) in results.iter_mut().zip(replays) {
            match replay {
                Ok(replay) => result.replay = Some(replay),
                Err(error) => {
                    let error = format!("{}: on the baseline's text: {error}", result.scheme);
                    result.outcome = Outcome::Failed { error };
                }
            }
        }
    }

    fn storage(&self, effective: &Effective) -> Storage {
        let bytes = |effective: &Effective| effective.bytes_at(self.context) as f64;
        Storage {
            bits_per_element: effective.bits_per_element().into(),
            bits_at_context: effective.bits_at(self.context).into(),
            bytes_per_token: effective.bytes_per_token(),
            ratio_to_f16: bytes(effective) / bytes(&self.f16),
            charged_share: effective.charged_share(corpus::scored(self.context)).into(),
            clamped_scales: effective.clamped_share(),
        }
    }
}

/// What a scheme's values depend on beside the conditions of all: the calibration of this hash, codecs
/// from outside.
pub(crate) fn needs(
    scheme: &Scheme,
    effective: &Effective,
    calibration: Option<&str>,
) -> Vec<String> {
    let calibration = calibration.filter(|_| scheme.is_calibrated());
    let calibration = calibration.map(|sha256| format!("calibration {sha256}"));
    let codecs = effective.foreign_codecs();
    calibration.into_iter().chain(codecs.into_iter().map(|c| format!("codec {c}"))).collect()
}

/// A tail that covers most of what is measured would pass for a good codec.
fn too_short(least: usize, context: usize) -> String {
    format!(
        "a context of {context} is too short for its exact tail and sink: they would hide what the codec does \
         to most of it; measure at {least} at least"
    )
}

fn measured(positions: &[Position], chunks: &[Chunk]) -> Outcome {
    let mut rest = positions;
    let parts = chunks
        .iter()
        .map(|chunk| {
            let (own, others) = rest.split_at(chunk.scored.len());
            rest = others;
            Part::of(&chunk.category, chunk.index, own)
        })
        .collect();
    Outcome::Measured { statistics: Statistics::of(positions), parts }
}

/// A deliberately bad lane that reads less than this is not bad: the ruler does not see harm.
pub(crate) const BAD_LANE_KLD: f64 = 0.1;

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

/// In memory where f32 weights take no more than half of the device's, from the file layer by layer otherwise.
/// Values are the same either way.
fn fitting(device: &Device, parameters: u64) -> Residency {
    if parameters * size_of::<f32>() as u64 <= device.memory() / 2 {
        Residency::Resident
    } else {
        Residency::Streamed
    }
}

fn notes(decoder: &Decoder, request: &Request) -> Vec<String> {
    let (context, trained) = (request.context, decoder.spec.trained_context);
    let beyond = format!("context {context} is beyond the model's trained {trained}");
    (context > trained).then_some(beyond).into_iter().collect()
}
