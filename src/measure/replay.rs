//! Feeding schemes the text that the baseline writes, as golden generations do.
//!
//! The baseline continues each prompt once, by greedy decoding. Every scheme is then fed that text in one pass
//! (teacher forcing). Until the first position where the scheme's most likely token differs from the baseline's,
//! both have read the same tokens. That position is therefore where the scheme's own greedy text would diverge.
//! Later positions are fed the baseline's text and count, too.

use super::baseline_text::BaselineText;
use super::corpus::Chunk;
use super::engine::{self, Lane, LaneResult};
use super::generate::{continuations, greedy_where_it_fits, Writing};
use super::prepare::Prepared;
use super::prompts::{Prompt, Prompts};
use super::request::MeasureError;
use crate::compute::Device;
use crate::kv::effective::Effective;
use crate::model::decoder::Decoder;
use crate::model::Checkpoint;
use crate::progress::Progress;
use crate::results::replay::{Divergence, Generated, PromptReplay, Replay};
use crate::results::statistics::Position;
use crate::results::Sides;
use std::collections::BTreeMap;

/// The lead of the baseline's first token over its second, in probability, from which on a flip cannot be a matter
/// of rounding.
const HARD_MARGIN: f32 = 0.05;

/// The lead below which a position cannot be compared between machines: sums in another order decide which token is
/// the most likely one.
const NEAR_TIE: f32 = 0.01;

/// The lead below which a position must have been a near tie on every machine. Rounding moves a margin by far less
/// than what lies between this and [`NEAR_TIE`].
const SURE_TIE: f32 = 0.002;

/// How many diverging prompts of a scheme are shown with their texts. Those with the largest margin come first.
const SHOWN: usize = 2;

/// How many tokens of these texts are shown.
const SHOWN_TOKENS: usize = 24;

/// Prompts are padded to a multiple of this length, so that those of about one length travel together.
const BUCKET: usize = 128;

/// The positions of one lane, prompt by prompt.
type PromptPositions = Vec<Vec<Position>>;

/// A model, and the baseline's texts that schemes are fed.
pub(super) struct Replayer<'a> {
    decoder: &'a Decoder,
    checkpoint: &'a Checkpoint,
    prompts: Prompts,
    pub generated: Generated,
}

impl<'a> Replayer<'a> {
    /// Takes the accepted text. If there is none, the baseline writes one.
    pub fn new(
        text: BaselineText,
        prepared: &'a Prepared,
        decoder: &'a Decoder,
        progress: Progress,
    ) -> Result<Self, MeasureError> {
        let BaselineText { prompts, mut generated } = text;
        let Prepared { checkpoint, baseline, .. } = prepared;
        if !generated.accepted {
            let report = |done, all| progress("generating", done, all);
            let count = generated.tokens;
            generated.continuations =
                continuations(&prompts, checkpoint, decoder, baseline, count, &report)?;
        }
        Ok(Replayer { decoder, checkpoint, prompts, generated })
    }

    /// Feeds the texts to all schemes.
    pub fn replay(
        &mut self,
        baseline: &Effective,
        schemes: &[Effective],
        progress: Progress,
    ) -> Vec<Result<Replay, String>> {
        let (own, lanes) = self.lanes(baseline, schemes, progress);
        self.compare_with_baseline(&own);
        let summaries = lanes.iter().zip(schemes);
        let mut replays: Vec<_> = summaries
            .map(|(lane, scheme)| Ok(self.summary(lane.as_ref().map_err(String::clone)?, scheme)))
            .collect();
        self.continue_diverging(schemes, &lanes, &mut replays, progress);
        replays
    }

    fn text(&self, prompt: usize) -> &[u32] {
        &self.generated.continuations[prompt].tokens
    }

    /// All lanes over all prompts. The first result is what the baseline makes of its own text.
    fn lanes(
        &self,
        baseline: &Effective,
        schemes: &[Effective],
        progress: Progress,
    ) -> (PromptPositions, Vec<Result<PromptPositions, String>>) {
        let mut own = vec![Vec::new(); self.prompts.prompts.len()];
        let mut lanes = vec![Ok(own.clone()); schemes.len()];
        for bucket in self.buckets() {
            let mut results =
                self.bucket_positions(&bucket, baseline, schemes, progress).into_iter();
            match results.next() {
                Some(Ok(positions)) => self.deal_to_prompts(&bucket, positions, &mut own),
                // if the baseline fails, nothing shows that the text is the baseline's
                Some(Err(error)) => lanes.fill(Err(error.brief())),
                None => {}
            }
            for (lane, result) in lanes.iter_mut().zip(results) {
                match (lane, result) {
                    (Ok(lane), Ok(positions)) => self.deal_to_prompts(&bucket, positions, lane),
                    (lane, Err(error)) => *lane = Err(error.brief()),
                    (Err(_), Ok(_)) => {}
                }
            }
        }
        (own, lanes)
    }

    /// Indices of the prompts, put together by the length that they are padded to.
    fn buckets(&self) -> Vec<Vec<usize>> {
        let length = |i: usize| self.prompts.prompts[i].tokens.len() + self.text(i).len();
        let mut buckets = BTreeMap::<usize, Vec<usize>>::new();
        for i in 0..self.prompts.prompts.len() {
            buckets.entry(length(i).next_multiple_of(BUCKET)).or_default().push(i);
        }
        buckets.into_values().collect()
    }

    /// All lanes over some prompts, the baseline's own lane first.
    fn bucket_positions(
        &self,
        bucket: &[usize],
        baseline: &Effective,
        schemes: &[Effective],
        progress: Progress,
    ) -> Vec<LaneResult> {
        let chunk = |&i: &usize| {
            let Prompt { id, tokens, .. } = &self.prompts.prompts[i];
            let start = tokens.len() - 1;
            let mut tokens = tokens.clone();
            tokens.extend(self.text(i));
            let scored = start..tokens.len() - 1;
            Chunk { category: id.clone(), index: 0, tokens, scored }
        };
        let mut chunks: Vec<Chunk> = bucket.iter().map(chunk).collect();
        let longest = chunks.iter().map(|chunk| chunk.tokens.len()).max().unwrap_or(0);
        for chunk in &mut chunks {
            // attention is causal, so that padding behind a text does not change what is read before it
            chunk.tokens.resize(longest, 0);
        }
        let lane = |scheme: &Effective| Lane { scheme: scheme.clone(), chunks: chunks.len() };
        let lanes: Vec<Lane> = std::iter::once(baseline).chain(schemes).map(lane).collect();
        let report = |done, all| progress("replaying", done, all);
        engine::run(self.decoder, &chunks, baseline, &lanes, None, &report)
    }

    /// Deals a lane's positions to the prompts that they belong to.
    fn deal_to_prompts(
        &self,
        bucket: &[usize],
        positions: Vec<Position>,
        prompts: &mut PromptPositions,
    ) {
        let mut rest = positions.into_iter();
        for &i in bucket {
            prompts[i] = rest.by_ref().take(self.text(i).len()).collect();
        }
    }

    /// Notes where the baseline would not write its own text again. The near ties of a new text are noted, those of
    /// an accepted text are checked.
    fn compare_with_baseline(&mut self, own: &[Vec<Position>]) {
        self.generated.own_flips = own.iter().flatten().filter(|p| is_hard_flip(p)).count() as u64;
        let accepted = self.generated.accepted;
        let mut wrong = 0;
        for (continuation, positions) in self.generated.continuations.iter_mut().zip(own) {
            let margins = positions.iter().map(|p| p.margin).enumerate();
            if accepted {
                let ties = &continuation.near_ties;
                wrong +=
                    margins.filter(|(i, margin)| is_wrong_tie(ties.contains(i), *margin)).count();
            } else {
                let near = margins.filter(|(_, margin)| *margin < NEAR_TIE);
                continuation.near_ties = near.map(|(i, _)| i).collect();
            }
        }
        self.generated.wrong_ties = wrong as u64;
    }

    fn summary(&self, lane: &[Vec<Position>], scheme: &Effective) -> Replay {
        let prompts = lane.iter().enumerate();
        let prompts: Vec<PromptReplay> =
            prompts.map(|(i, positions)| self.prompt_replay(i, positions)).collect();
        let klds = lane.iter().flatten().map(|p| f64::from(p.kld));
        let positions: u64 = prompts.iter().map(|prompt| prompt.positions).sum();
        Replay {
            text_sha256: self.generated.sha256(),
            mean_kld: klds.sum::<f64>() / positions as f64,
            charged_share: self.charged_share(scheme),
            prompts,
            texts: Vec::new(),
        }
    }

    fn prompt_replay(&self, prompt: usize, positions: &[Position]) -> PromptReplay {
        let Prompt { id, category, .. } = &self.prompts.prompts[prompt];
        let near_ties = &self.generated.continuations[prompt].near_ties;
        let decided = positions.iter().enumerate().filter(|(i, _)| !near_ties.contains(i));
        let decided: Vec<&Position> = decided.map(|(_, position)| position).collect();
        let count = |is_counted: fn(&Position) -> bool| {
            decided.iter().filter(|position| is_counted(position)).count() as u64
        };
        PromptReplay {
            prompt: id.clone(),
            category: category.clone(),
            positions: positions.len() as u64,
            undecided: (positions.len() - decided.len()) as u64,
            flips: count(is_flip),
            hard_flips: count(is_hard_flip),
            first_flip: positions.iter().position(is_flip),
        }
    }

    /// The share of query-key pairs that read a quantized key: the mean over all positions.
    fn charged_share(&self, scheme: &Effective) -> Sides {
        let mut sums = [0.0; 2];
        let mut all = 0;
        for (prompt, continuation) in self.prompts.prompts.iter().zip(&self.generated.continuations)
        {
            let (start, count) = (prompt.tokens.len() - 1, continuation.tokens.len());
            let shares = scheme.charged_share(start..start + count);
            sums = [0, 1].map(|side| sums[side] + shares[side] * count as f64);
            all += count;
        }
        sums.map(|sum| sum / all as f64).into()
    }

    /// The prompts where a scheme's text would diverge, those first where the baseline was most decided.
    fn first_flips(&self, replay: &Replay, lane: &[Vec<Position>]) -> Vec<FirstFlip> {
        let prompts = replay.prompts.iter().enumerate();
        let first_flip = |(prompt, replay): (usize, &PromptReplay)| {
            let at = replay.first_flip?;
            Some(FirstFlip { prompt, at, margin: lane[prompt][at].margin })
        };
        let mut flips: Vec<FirstFlip> = prompts.filter_map(first_flip).collect();
        flips.sort_by(|a, b| b.margin.total_cmp(&a.margin));
        flips.truncate(SHOWN);
        flips
    }

    /// Has each scheme write its own text from its first flip on, to be shown beside the baseline's. A scheme that
    /// fails on the way fails alone.
    fn continue_diverging(
        &self,
        schemes: &[Effective],
        lanes: &[Result<PromptPositions, String>],
        replays: &mut [Result<Replay, String>],
        progress: Progress,
    ) {
        let report = |done, all| progress("continuing", done, all);
        loop {
            let mut flips = Vec::new();
            for (l, (replay, lane)) in replays.iter().zip(lanes).enumerate() {
                let (Ok(replay), Ok(lane)) = (replay, lane) else { continue };
                flips.extend(self.first_flips(replay, lane).into_iter().map(|flip| (l, flip)));
            }
            let begin = |device: &Device| {
                let text = |(l, flip): &(usize, FirstFlip)| {
                    let prompt = &self.prompts.prompts[flip.prompt].tokens;
                    let common = [prompt, &self.text(flip.prompt)[..flip.at]].concat();
                    Writing::after(&common, &schemes[*l], device)
                };
                flips.iter().map(text).collect()
            };
            let ends = &self.checkpoint.end_tokens;
            match greedy_where_it_fits(self.decoder, &begin, SHOWN_TOKENS, ends, &report) {
                // the other schemes are continued again without this one
                Err((i, error)) => replays[flips[i].0] = Err(error.brief()),
                Ok(texts) => return self.add_texts(&flips, &texts, replays),
            }
        }
    }

    /// Adds the schemes' texts to their replays, each beside the baseline's.
    fn add_texts(
        &self,
        flips: &[(usize, FirstFlip)],
        texts: &[Vec<u32>],
        replays: &mut [Result<Replay, String>],
    ) {
        for ((l, flip), text) in flips.iter().zip(texts) {
            match (&mut replays[*l], self.divergence(flip, text)) {
                (Ok(replay), Ok(divergence)) => replay.texts.push(divergence),
                (replay, Err(error)) => *replay = Err(error),
                (Err(_), Ok(_)) => {}
            }
        }
    }

    fn divergence(&self, flip: &FirstFlip, scheme: &[u32]) -> Result<Divergence, String> {
        let decode = |tokens: &[u32]| self.checkpoint.tokenizer.decode(tokens);
        let baseline = &self.text(flip.prompt)[flip.at..];
        Ok(Divergence {
            prompt: self.prompts.prompts[flip.prompt].id.clone(),
            at: flip.at,
            margin: f64::from(flip.margin),
            baseline: decode(&baseline[..baseline.len().min(SHOWN_TOKENS)])?,
            scheme: decode(scheme)?,
        })
    }
}

/// Where a scheme's greedy text would diverge from the baseline's.
struct FirstFlip {
    prompt: usize,
    /// The position in the continuation.
    at: usize,
    /// The baseline's lead there.
    margin: f32,
}

/// Whether an accepted text cannot be right about a position being a near tie.
///
/// A flip at a near tie is not counted, so a list with too many of them would hide harm. Another machine adds in
/// another order, but that moves a margin by far less than what lies between the three bounds.
fn is_wrong_tie(is_listed: bool, margin: f32) -> bool {
    if is_listed {
        margin >= HARD_MARGIN
    } else {
        margin < SURE_TIE
    }
}

/// Whether the lane would have written another token.
fn is_flip(p: &Position) -> bool {
    p.top != p.target
}

fn is_hard_flip(p: &Position) -> bool {
    is_flip(p) && p.margin >= HARD_MARGIN
}
