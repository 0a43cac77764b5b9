//! The lanes of a measurement: two controls that show whether the measuring itself works, and then every scheme
//! that fits the model.

use super::corpus::{self, Chunk};
use super::engine::{self, Group, Lane, LaneError, LaneResult};
use super::mimic::Mimic;
use super::prepare::{Prepared, PreparedScheme};
use super::replay::Replayer;
use super::request::MeasureError;
use super::retrieval;
use super::shape::shape;
use crate::kv::effective::Effective;
use crate::kv::Scheme;
use crate::model::decoder::Decoder;
use crate::progress::Progress;
use crate::results::retrieval::Haystacks;
use crate::results::statistics::{Part, Position, Statistics};
use crate::results::{Control, Outcome, SchemeResult, Storage, BAD_LANE, CONTROLS, IDENTITY};

/// The mean KLD that the deliberately bad control lane must reach. If it reads less, the measuring does not see
/// harm.
pub(crate) const BAD_LANE_KLD: f64 = 0.1;

/// How many chunks travel at a time if so many schemes are measured, and the bytes of their hidden states.
pub(crate) fn group(prepared: &Prepared, schemes: usize) -> (usize, usize) {
    let (spec, context) = (&prepared.checkpoint.spec, prepared.request.context);
    let group = Group::of(spec, &prepared.device, context, 1 + CONTROLS.len() + schemes);
    let chunks = group.chunks.min(prepared.request.chunks);
    (chunks, chunks * group.chunk_bytes)
}

/// What the engine gave.
pub(super) struct LaneResults {
    /// The baseline against itself, then the bad lane. Both are measured on the first tile of chunks only.
    pub controls: Vec<LaneResult>,
    /// One for each scheme that was run, in their order.
    pub schemes: Vec<LaneResult>,
}

/// Runs the controls and the request's schemes over the corpus.
///
/// # Errors
/// If the baseline has no numbers. A scheme that fails carries its own error.
pub(super) fn run(
    prepared: &Prepared,
    decoder: &Decoder,
    progress: Progress,
) -> Result<LaneResults, MeasureError> {
    let fit = prepared.schemes.iter().filter_map(|scheme| scheme.effective.as_ref().ok());
    let schemes = fit.cloned().map(|scheme| match prepared.request.mimic {
        None => scheme,
        Some(mimic) => mimic.adapt(scheme),
    });
    run_schemes(prepared, decoder, &prepared.corpus.chunks, schemes.collect(), progress)
}

/// Runs these schemes over these chunks, and holds the controls to what they must read.
///
/// # Errors
/// As for [`run`], and if a control reads what it must not.
pub(crate) fn run_controlled(
    prepared: &Prepared,
    decoder: &Decoder,
    chunks: &[Chunk],
    schemes: Vec<Effective>,
    progress: Progress,
) -> Result<Controlled, UncontrolledError> {
    let found = run_schemes(prepared, decoder, chunks, schemes, progress)?;
    let controls = controls(prepared, found.controls);
    if let Some(broken) = controls.iter().find(|control| !control.ok) {
        let (name, must) = (broken.name.clone(), broken.must.clone());
        return Err(UncontrolledError::Control { name, read: broken.reading(), must });
    }
    Ok(Controlled { controls, schemes: found.schemes })
}

/// What the engine gave, and the controls read what they must.
pub(crate) struct Controlled {
    pub controls: Vec<Control>,
    /// One for each scheme that was run, in their order.
    pub schemes: Vec<LaneResult>,
}

/// Why lanes have no numbers that can be believed.
#[derive(Debug, thiserror::Error)]
pub enum UncontrolledError {
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// A control read what it must not read.
    #[error("the control `{name}` read {read}, and must read {must}: no number of this run can be believed")]
    Control { name: String, read: String, must: String },
}

fn run_schemes(
    prepared: &Prepared,
    decoder: &Decoder,
    chunks: &[Chunk],
    schemes: Vec<Effective>,
    progress: Progress,
) -> Result<LaneResults, MeasureError> {
    let report = |done, all| progress("measuring", done, all);
    let Prepared { request, baseline, .. } = prepared;
    let lanes = lanes(prepared, chunks.len(), schemes);
    let mut controls = engine::run(decoder, chunks, baseline, &lanes, request.mimic, &report);
    let schemes = controls.split_off(CONTROLS.len());
    if let Some(Err(LaneError::Baseline(why))) = controls.first() {
        return Err(MeasureError::BaselineFailed {
            model: request.model.into(),
            scheme: baseline.to_string(),
            why: why.clone(),
        });
    }
    Ok(LaneResults { controls, schemes })
}

/// The lanes that travel beside the baseline.
fn lanes(prepared: &Prepared, chunks: usize, schemes: Vec<Effective>) -> Vec<Lane> {
    let tile = engine::chunks_per_tile(&prepared.device, prepared.request.context);
    let control = |scheme| Lane { scheme, chunks: tile.min(chunks) };
    let mut lanes =
        vec![control(prepared.baseline.clone()), control(Effective::bad(&prepared.layout))];
    lanes.extend(schemes.into_iter().map(|scheme| Lane { scheme, chunks }));
    lanes
}

/// The results of all schemes of the request, and the positions of those that have numbers.
pub(super) fn results(
    prepared: &Prepared,
    lanes: Vec<LaneResult>,
) -> (Vec<SchemeResult>, Vec<(String, Vec<Position>)>) {
    let mut lanes = lanes.into_iter();
    let mut results = Vec::new();
    let mut positions = Vec::new();
    for scheme in &prepared.schemes {
        let mut result = without_numbers(prepared, scheme);
        if scheme.effective.is_ok() {
            match lanes.next().expect("there is a lane for each scheme that fits") {
                Err(error) => result.outcome = failed(scheme.scheme, &error.brief()),
                Ok(lane) => {
                    add_numbers(&mut result, prepared, &lane);
                    positions.push((scheme.label.to_string(), lane));
                }
            }
        }
        results.push(result);
    }
    (results, positions)
}

/// What is known of a scheme before its lane is looked at. Its outcome is a failure until there are numbers.
fn without_numbers(prepared: &Prepared, scheme: &PreparedScheme) -> SchemeResult {
    let effective = scheme.effective.as_ref();
    SchemeResult {
        scheme: scheme.label.into(),
        effective: effective.map_or_else(|_| scheme.scheme.to_string(), Effective::to_string),
        needs: scheme.needs.clone(),
        storage: effective.ok().map(|effective| storage(prepared, effective)),
        replay: None,
        retrieved: Vec::new(),
        shape: None,
        outcome: failed(scheme.scheme, effective.err().map_or("", String::as_str)),
    }
}

fn failed(scheme: &Scheme, error: &str) -> Outcome {
    Outcome::Failed { error: format!("{scheme}: {error}") }
}

fn add_numbers(result: &mut SchemeResult, prepared: &Prepared, lane: &[Position]) {
    let chunks = &prepared.corpus.chunks;
    let decode = |ids: &[u32]| prepared.checkpoint.tokenizer.decode(ids).unwrap_or_default();
    result.shape = Some(shape(lane, chunks, &decode));
    result.outcome = measured(lane, chunks);
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
    Outcome::measured(Statistics::of(positions), parts)
}

fn storage(prepared: &Prepared, effective: &Effective) -> Storage {
    let context = prepared.request.context;
    let f16 = Effective::new(&Scheme::f16(), &prepared.layout, None).expect("f16 fits any head");
    let bytes = |effective: &Effective| effective.bytes_at(context) as f64;
    Storage {
        bits_per_element: effective.bits_per_element().into(),
        bits_at_context: effective.bits_at(context).into(),
        bytes_per_token: effective.bytes_per_token(),
        ratio_to_f16: bytes(effective) / bytes(&f16),
        charged_share: effective.charged_share(corpus::scored(context)).into(),
        clamped_scales: effective.clamped_share(),
    }
}

/// Feeds the baseline's text to the schemes that have numbers.
pub(super) fn replay(
    prepared: &Prepared,
    replayer: &mut Replayer,
    results: &mut [SchemeResult],
    progress: Progress,
) {
    let (fit, mut results) = with_numbers(prepared, results);
    let replays = replayer.replay(&prepared.baseline, &fit, progress);
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

/// The schemes that have numbers so far, and their results.
fn with_numbers<'r>(
    prepared: &Prepared,
    results: &'r mut [SchemeResult],
) -> (Vec<Effective>, Vec<&'r mut SchemeResult>) {
    let schemes = prepared.schemes.iter().zip(results);
    schemes
        .filter(|(_, result)| matches!(result.outcome, Outcome::Measured { .. }))
        .filter_map(|(scheme, result)| Some((scheme.effective.clone().ok()?, result)))
        .unzip()
}

/// Feeds the long contexts to the schemes that have numbers, if the request asks for that.
pub(super) fn retrieve(
    prepared: &Prepared,
    decoder: &Decoder,
    results: &mut [SchemeResult],
    progress: Progress,
) -> Option<Haystacks> {
    let plan = prepared.request.retrieval?;
    let (fit, mut results) = with_numbers(prepared, results);
    let controls = [&prepared.baseline, &Effective::bad(&prepared.layout)];
    let found = retrieval::run(plan, &prepared.haystacks, decoder, controls, &fit, progress);
    for (result, retrieved) in results.iter_mut().zip(found.schemes) {
        match retrieved {
            Ok(retrieved) => result.retrieved = retrieved,
            Err(error) => {
                result.outcome = Outcome::Failed { error: format!("{}: {error}", result.scheme) };
            }
        }
    }
    Some(found.haystacks)
}

/// What the two control lanes read, and whether that is what they must read.
pub(super) fn controls(prepared: &Prepared, lanes: Vec<LaneResult>) -> Vec<Control> {
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
    let (must, holds) = identity(prepared.request.mimic);
    let bad = Effective::bad(&prepared.layout).to_string();
    vec![
        control(IDENTITY, prepared.baseline.to_string(), must.into(), holds),
        control(BAD_LANE, bad, format!("at least {BAD_LANE_KLD}"), |s| s.mean_kld >= BAD_LANE_KLD),
    ]
}

/// What the baseline must read against itself. An engine that stores its baseline in 16 bits has no exact zero.
fn identity(mimic: Option<Mimic>) -> (&'static str, fn(&Statistics) -> bool) {
    if mimic.is_some() {
        ("0 within 1e-5 (16 bits)", |s| s.mean_kld.abs() < 1e-5)
    } else {
        ("exactly 0 at every position", |s| {
            s.max_kld == 0.0 && s.mean_kld == 0.0 && s.top1_agreement == 1.0
        })
    }
}
