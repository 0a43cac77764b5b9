//! Measuring a model: how far each scheme's next-token distributions are from the baseline's.
//!
//! The way of a measurement: `request` says what is wanted, `prepare` finds out everything that can be known
//! before a layer runs, `lanes` decides which schemes travel, `engine` runs them all through the model side by
//! side, and `divergence` compares their logits at its end. `replay` feeds the schemes a text that the baseline
//! has written, and `retrieval` feeds them long contexts with questions. [`measure()`] puts the parts together.

pub(crate) mod baseline_text;
pub mod calibrate;
pub mod corpus;
mod divergence;
pub mod engine;
pub(crate) mod floor;
pub mod generate;
mod lanes;
pub mod mimic;
pub mod prepare;
pub mod prompts;
mod replay;
mod request;
pub mod retrieval;
pub mod sanity;
mod shape;
mod tap;

pub use corpus::Draw;
pub use lanes::UncontrolledError;
pub(crate) use lanes::{group, run_controlled, BAD_LANE_KLD};
pub use request::{Generate, MeasureError, Measured, Request};
pub(crate) use tap::{observe, Observer};

use crate::compute::{machine, Device};
use crate::model::decoder::Decoder;
use crate::progress::Progress;
use crate::results::statistics::{Position, Statistics};
use crate::results::{Card, Floor, Measurement, RunInfo};
use engine::LaneResult;
use prepare::Prepared;
use replay::Replayer;
use sanity::{Doubt, Unigram, SUSPICION};
use std::time::Instant;

/// What measured, as a measurement's conditions name it. The number goes up if values may change by more than
/// rounding, and every golden is stale then. A release that changes no value keeps it.
pub const NUMERICS: &str = "kvgate numerics 1";

/// Measures all schemes of a request in one pass: prepares the request, runs the lanes, has the baseline write its
/// text and feeds it to the schemes, has the schemes answer questions about long contexts, and collects what was found.
///
/// # Errors
/// What concerns the whole model. A scheme that fails has its error in its own result.
pub fn measure(request: &Request, progress: Progress) -> Result<Measured, MeasureError> {
    let began = Instant::now();
    let mut prepared = Prepared::open(request, progress)?;
    prepared.device.begin_noting_memory();
    let decoder = prepared.load()?;

    let found = lanes::run(&prepared, &decoder, progress)?;
    let (mut schemes, positions) = lanes::results(&prepared, found.schemes);
    let scored = baseline_positions(&positions, &found.controls);
    let baseline_ppl = Statistics::of(scored).baseline_ppl;
    let remark = remark_on_perplexity(&prepared, baseline_ppl, scored)?;
    let floor = floor(&prepared, &decoder, progress);
    let mut generated = None;
    if let Some(text) = prepared.text.take() {
        let mut replayer = Replayer::new(text, &prepared, &decoder, progress)?;
        lanes::replay(&prepared, &mut replayer, &mut schemes, progress);
        generated = Some(replayer.generated);
    }

    let haystacks = lanes::retrieve(&prepared, &decoder, &mut schemes, progress);

    prepared.device.note_memory();
    let run = RunInfo {
        baseline_ppl,
        device: prepared.device.describe(),
        dtype: prepared.device.dtype().into(),
        arithmetic: Some(prepared.device.arithmetic().into()),
        card: card(&prepared.device),
        seconds: began.elapsed().as_secs_f64(),
        peak_bytes: machine::peak_bytes(),
        notes: prepared.notes(remark.into_iter().chain(floor.as_ref().err().cloned())),
    };
    let controls = lanes::controls(&prepared, found.controls);
    let chunks_left = prepared.corpus.left;
    let (model, Prepared { subject, conditions, .. }) = (request.model.to_string(), prepared);
    let floor = floor.ok().flatten();
    let measurement = Measurement {
        model,
        subject,
        conditions,
        run,
        controls,
        floor,
        schemes,
        generated,
        haystacks,
    };
    Ok(Measured { measurement, positions, chunks_left })
}

/// The floor of the measurement. Where another engine is imitated, and where schemes were measured to learn more of what
/// has one, there is none.
///
/// # Errors
/// Why it could not be measured, for people. The schemes' numbers do not depend on it.
fn floor(
    prepared: &Prepared,
    decoder: &Decoder,
    progress: Progress,
) -> Result<Option<Floor>, String> {
    let Request { mimic, draw, .. } = prepared.request;
    if mimic.is_some() || *draw != Draw::First {
        return Ok(None);
    }
    let found = floor::measure(prepared, decoder, progress);
    found.map(Some).map_err(|error| format!("the floor could not be measured: {}", error.brief()))
}

/// The card that computed, with the memory that was taken there.
fn card(device: &Device) -> Option<Card> {
    device.card().map(|card| Card {
        name: card.name.clone(),
        driver: card.driver.clone(),
        memory_bytes: card.memory,
        peak_bytes: device.peak_bytes(),
    })
}

/// Scored positions that have the baseline's log-probabilities. Those of any scheme do. If no scheme has numbers,
/// they are those of the identity control, which is measured on the first chunks only.
fn baseline_positions<'p>(
    schemes: &'p [(String, Vec<Position>)],
    controls: &'p [LaneResult],
) -> &'p [Position] {
    let schemes = schemes.iter().map(|(_, positions)| positions.as_slice());
    let control = controls.first().and_then(|identity| identity.as_deref().ok());
    schemes.chain(control).next().unwrap_or_default()
}

/// Compares the baseline's perplexity with what a model without knowledge has, and says what people should know.
///
/// # Errors
/// If the perplexity is worse than the vocabulary's size, or worse than a unigram model's and verdicts will rest on
/// the measurement. Weights that are declared untrained are never refused.
pub(crate) fn remark_on_perplexity(
    prepared: &Prepared,
    perplexity: f64,
    scored: &[Position],
) -> Result<Option<String>, MeasureError> {
    let (request, vocab) = (prepared.request, prepared.checkpoint.spec.vocab);
    let unigram = Unigram::fitted(&prepared.corpus.tokens, vocab);
    let doubt = Doubt::about(perplexity, vocab, unigram.as_ref(), scored);
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
