//! Retrieval from long contexts by teacher forcing: what a scheme makes of the answers to questions about needles, and
//! how its divergence grows with the depth of the context.

mod build;
mod needles;
mod random;

pub use build::{build, Haystack, Haystacks, RetrievalError};
pub use needles::{LEAST as LEAST_NEEDLES, MOST as MOST_NEEDLES};

use super::engine::{self, Lane, LaneResult};
use crate::kv::effective::Effective;
use crate::kv::layout::LayerKv;
use crate::model::decoder::Decoder;
use crate::progress::Progress;
use crate::results::retrieval::{self, Answers, NeedleControl, Plan, Retrieved, DEPTHS};
use crate::results::statistics::Position;
use crate::results::CONTROLS;

/// Says which layers cannot carry what stands far back, because they see a window only.
pub(super) fn remark(layout: &[Option<LayerKv>], contexts: &[Haystacks]) -> Option<String> {
    let longest = contexts.iter().map(|contexts| contexts.length).max()?;
    let layers: Vec<&LayerKv> = layout.iter().flatten().collect();
    let windows = layers.iter().filter_map(|layer| layer.window.filter(|window| *window < longest));
    let (few, widest) = (windows.clone().count(), windows.max()?);
    let all = layers.len();
    Some(format!(
        "retrieval: {few} of the {all} layers with K and V see {widest} tokens at most, and carry nothing that stands \
         farther back; layers that see all of a context: {}",
        all - few
    ))
}

/// What all lanes make of all contexts.
pub(super) struct Found {
    /// The contexts, and the control lanes on them.
    pub haystacks: retrieval::Haystacks,
    /// For each scheme what it retrieves at each length, or why it has no numbers.
    pub schemes: Vec<Result<Vec<Retrieved>, String>>,
}

/// Runs the baseline, the controls and the schemes over the contexts, length by length.
pub(super) fn run(
    plan: &Plan,
    contexts: &[Haystacks],
    decoder: &Decoder,
    [baseline, bad]: [&Effective; 2],
    schemes: &[Effective],
    progress: Progress,
) -> Found {
    let report = |done, all| progress("retrieving", done, all);
    let mut found = Found {
        haystacks: retrieval::Haystacks {
            plan: plan.clone(),
            sha256: contexts.iter().map(Haystacks::sha256).collect(),
            controls: Vec::new(),
        },
        schemes: vec![Ok(Vec::new()); schemes.len()],
    };
    for contexts in contexts {
        let chunks: Vec<_> = contexts.all.iter().map(|haystack| haystack.chunk.clone()).collect();
        let tile = engine::chunks_per_tile(decoder.device(), contexts.length).min(chunks.len());
        let lane = |scheme: &Effective, chunks| Lane { scheme: scheme.clone(), chunks };
        let mut lanes = vec![lane(baseline, tile), lane(bad, tile)];
        lanes.extend(schemes.iter().map(|scheme| lane(scheme, chunks.len())));
        let results = engine::run(decoder, &chunks, baseline, &lanes, None, &report);
        let mut results = results.into_iter();
        for (name, result) in CONTROLS.into_iter().zip(&mut results) {
            found.haystacks.controls.extend(control(name, contexts, &result));
        }
        for (scheme, result) in found.schemes.iter_mut().zip(results) {
            match (scheme, result) {
                (Ok(lengths), Ok(lane)) => lengths.push(retrieved(contexts, &lane)),
                (Err(_), _) => {}
                (scheme, Err(error)) => {
                    let length = contexts.length;
                    *scheme = Err(format!("on contexts of {length} tokens: {}", error.brief()));
                }
            }
        }
    }
    found
}

/// A control lane that has no numbers is left out, so that it is missed where results are judged.
fn control(name: &str, contexts: &Haystacks, lane: &LaneResult) -> Option<NeedleControl> {
    let parts = parts(contexts, lane.as_ref().ok()?);
    let answers = parts.map(|(haystack, own)| answers(haystack, own));
    let answers = answers.fold(Answers::default(), |all, part| all.and(&part));
    Some(NeedleControl { name: name.into(), length: contexts.length, answers })
}

fn retrieved(contexts: &Haystacks, lane: &[Position]) -> Retrieved {
    Retrieved {
        length: contexts.length,
        by_depth: by_depth(contexts, lane),
        parts: parts(contexts, lane).map(|(haystack, own)| answers(haystack, own)).collect(),
    }
}

/// Each context with its own positions. A lane may have been measured on the first ones only.
fn parts<'c>(
    contexts: &'c Haystacks,
    lane: &'c [Position],
) -> impl Iterator<Item = (&'c Haystack, &'c [Position])> {
    let each = contexts.all.first().map_or(1, |haystack| haystack.chunk.scored.len());
    contexts.all.iter().zip(lane.chunks_exact(each))
}

/// What a lane makes of the answers. A token is predicted at the position before it.
fn answers(haystack: &Haystack, positions: &[Position]) -> Answers {
    let mut sums = Answers::default();
    for answer in &haystack.answers {
        let own = &positions[answer.start - 1..answer.end - 1];
        let is_retrieved = |top: fn(&Position) -> u32| own.iter().all(|p| top(p) == p.target);
        let (base, scheme) = (is_retrieved(|p| p.top_base), is_retrieved(|p| p.top));
        sums.needles += 1;
        sums.retrieved_base += u64::from(base);
        sums.lost += u64::from(base && !scheme);
        sums.gained += u64::from(scheme && !base);
        sums.tokens += own.len() as u64;
        for position in own {
            sums.kld += f64::from(position.kld);
            sums.nll -= f64::from(position.logp);
            sums.nll_base -= f64::from(position.logp_base);
        }
    }
    sums
}

/// The mean KLD of the haystack in equal parts, over all contexts.
fn by_depth(contexts: &Haystacks, lane: &[Position]) -> Vec<f64> {
    let mut sums = [(0.0, 0usize); DEPTHS];
    for (haystack, positions) in parts(contexts, lane) {
        for (at, position) in positions[..haystack.questions].iter().enumerate() {
            let (sum, count) = &mut sums[at * DEPTHS / haystack.questions];
            *sum += f64::from(position.kld);
            *count += 1;
        }
    }
    sums.into_iter().map(|(sum, count)| sum / count as f64).collect()
}
