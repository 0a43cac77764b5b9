//! Golden generations by replay: what schemes make of the text that the baseline writes.
//!
//! The baseline's greedy continuation of each prompt is written once, by the packed cache. Every scheme is
//! then fed that text in one pass: up to the first position whose arg-max is another token both have read
//! the same, so there its own greedy text would part, and the positions behind count as well.

use super::corpus::Chunk;
use super::engine::{self, Lane, LaneError, LaneResult};
use super::prompts::{Prompt, PromptError, PromptSet, Prompts};
use crate::compute::elements::read;
use crate::compute::finite::all_finite;
use crate::kv::effective::Effective;
use crate::kv::packed::PackedCache;
use crate::measure::MeasureError;
use crate::model::decoder::{At, Decoder};
use crate::model::layer::RopeTables;
use crate::model::Checkpoint;
use crate::progress::Progress;
use crate::results::replay::{Continuation, Divergence, Generated, PromptReplay, Replay};
use crate::results::statistics::Position;
use crate::results::Sides;
use candle_core::Tensor;
use std::path::Path;

/// A flip where the baseline's first token leads its second by this much in probability is no matter of
/// rounding.
pub const HARD_MARGIN: f32 = 0.05;

/// A position where it leads by less cannot be compared between machines: sums in another order decide it.
pub const NEAR_TIE: f32 = 0.01;

/// A position where it leads by less was a near tie on every machine: what rounding does to a margin is smaller
/// than the rest of [`NEAR_TIE`] by far.
const SURE_TIE: f32 = 0.002;

/// Diverging prompts of a scheme whose texts are shown, those with the largest margin first.
const SHOWN: usize = 2;

/// Tokens of these texts.
const SHOWN_TOKENS: usize = 24;

/// Prompts whose lengths differ by less are padded to one length and travel together.
const BUCKET: usize = 128;

/// What to generate.
pub struct Generate<'a> {
    /// A file of prompts.
    pub prompts: &'a Path,
    /// Tokens of each continuation, at most.
    pub tokens: usize,
    /// The accepted continuations, which stand if they are of the same model and prompts.
    pub kept: Option<&'a Generated>,
}

/// The prompts as a model reads them, and the accepted text where it is of them.
pub(crate) struct Asked {
    pub prompts: Prompts,
    /// Without continuations where they are to be written.
    pub generated: Generated,
}

impl Asked {
    /// Reads the prompts, and looks at the accepted text.
    ///
    /// # Errors
    /// Prompts that cannot be read, and as of [`Asked::of`].
    pub fn read(
        asked: &Generate,
        model: &str,
        weights_sha256: &str,
        baseline: &Effective,
        checkpoint: &Checkpoint,
    ) -> Result<Self, MeasureError> {
        let set = PromptSet::read(asked.prompts)?;
        Self::of(&set, asked, model, weights_sha256, baseline, checkpoint)
    }

    /// What a model makes of the prompts that were read.
    ///
    /// # Errors
    /// Prompts that give the model nothing or more than it was trained for, a text that the baseline cannot have
    /// written.
    pub fn of(
        set: &PromptSet,
        asked: &Generate,
        model: &str,
        weights_sha256: &str,
        baseline: &Effective,
        checkpoint: &Checkpoint,
    ) -> Result<Self, MeasureError> {
        let prompts = set.tokens(checkpoint)?;
        if let Some(prompt) = prompts.prompts.iter().find(|prompt| prompt.tokens.is_empty()) {
            let why = "it gives the model nothing to read".into();
            return Err(MeasureError::Generating { prompt: prompt.id.clone(), why });
        }
        let (most, trained) = (asked.tokens, checkpoint.spec.trained_context);
        let too_long = |prompt: &&Prompt| prompt.tokens.len().saturating_add(most) > trained;
        if let Some(prompt) = prompts.prompts.iter().find(too_long) {
            let why = format!(
                "it has {} tokens, and {most} after them are more than the {trained} that the model was trained \
                 for; shorten it, or lower `generate`",
                prompt.tokens.len()
            );
            return Err(MeasureError::Generating { prompt: prompt.id.clone(), why });
        }
        let mut generated = Generated {
            weights_sha256: weights_sha256.into(),
            prompts_sha256: prompts.sha256.clone(),
            template_sha256: prompts.template_sha256.clone(),
            thinking: prompts.thinking,
            tokens: asked.tokens,
            baseline: baseline.to_string(),
            continuations: Vec::new(),
            accepted: false,
            own_flips: 0,
            wrong_ties: 0,
        };
        if let Some(kept) = asked.kept.filter(|kept| generated.is_of(kept)) {
            if let Some(why) = fault(kept, &prompts, checkpoint) {
                return Err(MeasureError::Text { model: model.into(), why });
            }
            generated.continuations = kept.continuations.clone();
            generated.accepted = true;
        }
        Ok(Asked { prompts, generated })
    }
}

/// A model and the texts that it is fed.
pub(super) struct Replayer<'a> {
    decoder: &'a Decoder,
    checkpoint: &'a Checkpoint,
    prompts: Prompts,
    pub generated: Generated,
}

impl<'a> Replayer<'a> {
    /// Has the baseline continue the prompts where its text is not accepted.
    pub fn new(
        asked: Asked,
        checkpoint: &'a Checkpoint,
        decoder: &'a Decoder,
        baseline: &Effective,
        progress: Progress,
    ) -> Result<Self, MeasureError> {
        let Asked { prompts, mut generated } = asked;
        if !generated.accepted {
            let tell = |done, all| progress("generating", done, all);
            let count = generated.tokens;
            generated.continuations =
                continuations(&prompts, checkpoint, decoder, baseline, count, &tell)?;
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
        let count = self.prompts.prompts.len();
        let mut lanes: Vec<Result<Vec<Vec<Position>>, String>> =
            schemes.iter().map(|_| Ok(vec![Vec::new(); count])).collect();
        // the baseline beside itself tells what it says of its own text
        let mut own = vec![Vec::new(); count];
        for bucket in self.buckets() {
            let results = self.positions(&bucket, baseline, schemes, progress);
            for (l, result) in results.into_iter().enumerate() {
                match (l, result) {
                    (0, Ok(positions)) => self.file(&bucket, positions, &mut own),
                    // without it nothing says that the text is the baseline's
                    (0, Err(error)) => lanes.fill(Err(error.brief())),
                    (l, Ok(positions)) => {
                        if let Ok(lane) = &mut lanes[l - 1] {
                            self.file(&bucket, positions, lane);
                        }
                    }
                    (l, Err(error)) => lanes[l - 1] = Err(error.brief()),
                }
            }
        }
        self.mark(&own);
        let summaries = lanes.iter().zip(schemes);
        let mut replays: Vec<_> = summaries
            .map(|(lane, scheme)| Ok(self.summary(lane.as_ref().map_err(String::clone)?, scheme)))
            .collect();
        self.continue_parted(schemes, &lanes, &mut replays, progress);
        replays
    }

    fn text(&self, prompt: usize) -> &[u32] {
        &self.generated.continuations[prompt].tokens
    }

    /// Indices of prompts that are padded to one length.
    fn buckets(&self) -> Vec<Vec<usize>> {
        let length = |i: usize| self.prompts.prompts[i].tokens.len() + self.text(i).len();
        let mut buckets = std::collections::BTreeMap::<usize, Vec<usize>>::new();
        for i in 0..self.prompts.prompts.len() {
            buckets.entry(length(i).next_multiple_of(BUCKET)).or_default().push(i);
        }
        buckets.into_values().collect()
    }

    /// All lanes over some prompts, the baseline's own first.
    fn positions(
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
            // a model is causal: what follows changes nothing
            chunk.tokens.resize(longest, 0);
        }
        let lane = |scheme: &Effective| Lane { scheme: scheme.clone(), chunks: chunks.len() };
        let lanes: Vec<Lane> = std::iter::once(baseline).chain(schemes).map(lane).collect();
        let report = |done, all| progress("replaying", done, all);
        engine::run(self.decoder, &chunks, baseline, &lanes, None, &report)
    }

    /// Deals a lane's positions to its prompts.
    fn file(&self, bucket: &[usize], positions: Vec<Position>, prompts: &mut [Vec<Position>]) {
        let mut rest = positions.into_iter();
        for &i in bucket {
            prompts[i] = rest.by_ref().take(self.text(i).len()).collect();
        }
    }

    /// Notes where the baseline is undecided, and where it would not write its own text again.
    fn mark(&mut self, own: &[Vec<Position>]) {
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
        let prompts: Vec<PromptReplay> =
            lane.iter().enumerate().map(|(i, positions)| self.of(i, positions)).collect();
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

    fn of(&self, prompt: usize, positions: &[Position]) -> PromptReplay {
        let Prompt { id, category, .. } = &self.prompts.prompts[prompt];
        let near_ties = &self.generated.continuations[prompt].near_ties;
        let decided = positions.iter().enumerate().filter(|(i, _)| !near_ties.contains(i));
        let decided: Vec<&Position> = decided.map(|(_, position)| position).collect();
        let count = |of: fn(&Position) -> bool| decided.iter().filter(|p| of(p)).count() as u64;
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

    /// The mean over all positions.
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

    /// The prompts where a scheme parts, those first where the baseline was most decided.
    fn parted(&self, replay: &Replay, lane: &[Vec<Position>]) -> Vec<Parting> {
        let prompts = replay.prompts.iter().enumerate();
        let parting = |(prompt, replay): (usize, &PromptReplay)| {
            let at = replay.first_flip?;
            Some(Parting { prompt, at, margin: lane[prompt][at].margin })
        };
        let mut parted: Vec<Parting> = prompts.filter_map(parting).collect();
        parted.sort_by(|a, b| b.margin.total_cmp(&a.margin));
        parted.truncate(SHOWN);
        parted
    }

    /// What each scheme itself writes from where it parts, beside the baseline's text.
    fn continue_parted(
        &self,
        schemes: &[Effective],
        lanes: &[Result<Vec<Vec<Position>>, String>],
        replays: &mut [Result<Replay, String>],
        progress: Progress,
    ) {
        let tell = |done, all| progress("continuing", done, all);
        loop {
            let mut of = Vec::new();
            let mut texts = Vec::new();
            for (l, (replay, lane)) in replays.iter().zip(lanes).enumerate() {
                let (Ok(replay), Ok(lane)) = (replay, lane) else { continue };
                for parting in self.parted(replay, lane) {
                    let prompt = &self.prompts.prompts[parting.prompt].tokens;
                    let common = [prompt, &self.text(parting.prompt)[..parting.at]].concat();
                    texts.push(Writing::after(&common, &schemes[l]));
                    of.push((l, parting));
                }
            }
            match greedy(self.decoder, texts, SHOWN_TOKENS, &self.checkpoint.end_tokens, &tell) {
                // a scheme that fails leaves the others theirs
                Err((i, error)) => replays[of[i].0] = Err(error.brief()),
                Ok(texts) => return self.show(&of, &texts, replays),
            }
        }
    }

    /// Puts texts beside the baseline's.
    fn show(
        &self,
        of: &[(usize, Parting)],
        texts: &[Vec<u32>],
        replays: &mut [Result<Replay, String>],
    ) {
        for ((l, parting), text) in of.iter().zip(texts) {
            match (&mut replays[*l], self.divergence(parting, text)) {
                (Ok(replay), Ok(divergence)) => replay.texts.push(divergence),
                (replay, Err(error)) => *replay = Err(error),
                (Err(_), Ok(_)) => {}
            }
        }
    }

    fn divergence(&self, parting: &Parting, scheme: &[u32]) -> Result<Divergence, String> {
        let decode = |tokens: &[u32]| self.checkpoint.tokenizer.decode(tokens);
        let baseline = &self.text(parting.prompt)[parting.at..];
        Ok(Divergence {
            prompt: self.prompts.prompts[parting.prompt].id.clone(),
            at: parting.at,
            margin: f64::from(parting.margin),
            baseline: decode(&baseline[..baseline.len().min(SHOWN_TOKENS)])?,
            scheme: decode(scheme)?,
        })
    }
}

/// Where a scheme's text parts from the baseline's.
struct Parting {
    prompt: usize,
    at: usize,
    margin: f32,
}

/// The baseline's text.
fn continuations(
    prompts: &Prompts,
    checkpoint: &Checkpoint,
    decoder: &Decoder,
    baseline: &Effective,
    count: usize,
    progress: &dyn Fn(u64, u64),
) -> Result<Vec<Continuation>, MeasureError> {
    let prompts = &prompts.prompts;
    let failed = |i: usize, why| MeasureError::Generating { prompt: prompts[i].id.clone(), why };
    let texts = prompts.iter().map(|prompt| Writing::after(&prompt.tokens, baseline)).collect();
    let written = greedy(decoder, texts, count, &checkpoint.end_tokens, progress)
        .map_err(|(i, error)| failed(i, error.brief()))?;
    let continuation = |(i, tokens): (usize, Vec<u32>)| {
        let text = checkpoint.tokenizer.decode(&tokens).map_err(|why| failed(i, why))?;
        let prompt = prompts[i].id.clone();
        Ok(Continuation { prompt, tokens, near_ties: Vec::new(), text })
    };
    written.into_iter().enumerate().map(continuation).collect()
}

/// Why an accepted text is not one that the baseline can have written after the prompts.
fn fault(kept: &Generated, prompts: &Prompts, checkpoint: &Checkpoint) -> Option<String> {
    let ids = prompts.prompts.iter().map(|prompt| &prompt.id);
    if !kept.continuations.iter().map(|continuation| &continuation.prompt).eq(ids) {
        return Some("does not continue the prompts one by one, in their order".into());
    }
    let wrong = |Continuation { prompt, tokens, text, .. }: &Continuation| {
        let vocab = checkpoint.spec.vocab;
        if tokens.is_empty() || tokens.len() > kept.tokens {
            let (count, most) = (tokens.len(), kept.tokens);
            return Some(format!("has {count} tokens for `{prompt}`, not 1 to {most}"));
        }
        let ends = |id: &u32| checkpoint.end_tokens.contains(id);
        let (last, others) = tokens.split_last()?;
        if others.iter().any(ends) || (tokens.len() < kept.tokens && !ends(last)) {
            return Some(format!("does not end where its text for `{prompt}` would"));
        }
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            return Some(format!("has token {id} for `{prompt}`, of a vocabulary of {vocab}"));
        }
        let is_spelled = checkpoint.tokenizer.decode(tokens).is_ok_and(|read| read == *text);
        (!is_spelled).then(|| format!("has ids for `{prompt}` that do not spell its text"))
    };
    kept.continuations.iter().find_map(wrong)
}

/// Whether an accepted text cannot be right about a position being a near tie.
///
/// At a near tie no flip is counted, so a list of too many hides harm, and must not be believed. Another machine
/// adds in another order, which moves a margin by far less than lies between the three bounds.
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

/// A text that a model writes with a cache of some scheme.
pub struct Writing {
    cache: PackedCache,
    /// Tokens that have not been fed.
    next: Vec<u32>,
    /// Tokens that have.
    fed: usize,
    written: Vec<u32>,
}

impl Writing {
    /// Behind some tokens.
    pub fn after(tokens: &[u32], scheme: &Effective) -> Self {
        Writing {
            cache: PackedCache::new(scheme.clone()),
            next: tokens.into(),
            fed: 0,
            written: Vec::new(),
        }
    }
}

/// What a model writes, token by token: the most likely token, of equal ones the lowest, until one that ends
/// the text, which is the last, or until there are `count`.
///
/// Texts are written side by side, layer by layer: weights are read once for a token of all of them.
///
/// # Errors
/// What the cache or the decoder refuses, and logits that are not finite, with the text's index.
pub fn greedy(
    decoder: &Decoder,
    mut texts: Vec<Writing>,
    count: usize,
    ends: &[u32],
    progress: &dyn Fn(u64, u64),
) -> Result<Vec<Vec<u32>>, (usize, LaneError)> {
    let longest = texts.iter().map(|text| text.next.len()).max().unwrap_or(0);
    let ropes = decoder.ropes(longest + count).map_err(|error| (0, error.into()))?;
    for step in 0..count {
        progress(step as u64, count as u64);
        let open = |text: &Writing| text.written.last().is_none_or(|last| !ends.contains(last));
        let mut open: Vec<(usize, &mut Writing)> =
            texts.iter_mut().enumerate().filter(|(_, text)| open(text)).collect();
        if open.is_empty() {
            break;
        }
        one_more(decoder, &ropes, &mut open)?;
    }
    Ok(texts.into_iter().map(|text| text.written).collect())
}

/// Writes a token of each text.
fn one_more(
    decoder: &Decoder,
    ropes: &RopeTables,
    texts: &mut [(usize, &mut Writing)],
) -> Result<(), (usize, LaneError)> {
    let of = |i: usize| move |error: LaneError| (i, error);
    let embed = |(i, text): &(usize, &mut Writing)| {
        decoder.embed(&text.next).map_err(|error| of(*i)(error.into()))
    };
    let embedded = texts.iter().map(embed).collect::<Result<Vec<_>, _>>()?;
    let mut states: Vec<Tensor> = embedded.iter().map(|embedded| embedded.x.clone()).collect();
    for index in 0..decoder.spec.layers.len() {
        let layer = decoder.ready(index, ropes).map_err(|error| of(texts[0].0)(error.into()))?;
        for ((x, embedded), (i, text)) in states.iter_mut().zip(&embedded).zip(&mut *texts) {
            let at = At { start: text.fed, tokens: text.next.len() };
            *x = layer
                .run(x, embedded.per_layer.as_ref(), at, &mut text.cache)
                .map_err(|error| of(*i)(LaneError::at(index, error)))?;
        }
    }
    for (x, (i, text)) in states.iter().zip(texts) {
        text.fed += text.next.len();
        let token = most_likely(decoder, x, text.fed - 1).map_err(of(*i))?;
        text.written.push(token);
        text.next = vec![token];
    }
    Ok(())
}

/// The most likely token after the last of some rows.
fn most_likely(decoder: &Decoder, x: &Tensor, position: usize) -> Result<u32, LaneError> {
    let last = decoder.normed(&x.narrow(0, x.dim(0)? - 1, 1)?)?;
    let logits = decoder.logits(&last, 0, decoder.spec.vocab)?.contiguous()?;
    let best = read(&logits, |logits: &[f32]| {
        let larger = |best: (usize, f32), (id, &x): (usize, &f32)| {
            if x > best.1 {
                (id, x)
            } else {
                best
            }
        };
        let best = logits.iter().enumerate().fold((0, f32::NEG_INFINITY), larger);
        all_finite(logits).then_some(best.0 as u32)
    })?;
    best.ok_or(LaneError::Logits { position, chunk: 0 })
}

impl From<PromptError> for MeasureError {
    fn from(error: PromptError) -> Self {
        MeasureError::Prompts(Box::new(error))
    }
}
