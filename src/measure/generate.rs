//! Golden generations by replay: what schemes make of the text that the baseline writes.
//!
//! The baseline's greedy continuation of each prompt is written once, by the packed cache. Every scheme is
//! then fed that text in one pass: up to the first position whose arg-max is another token both have read
//! the same, so there its own greedy text would part, and the positions behind count as well.

use super::corpus::Chunk;
use super::engine::{self, Lane, LaneError, LaneResult};
use super::prompts::{Prompt, PromptError, PromptSet, Prompts};
use super::replay::{Continuation, Divergence, Generated, PromptReplay, Replay};
use super::stats::Position;
use super::{MeasureError, Progress};
use crate::kv::effective::Effective;
use crate::kv::packed::PackedCache;
use crate::model::decoder::{At, Decoder};
use crate::model::layer::RopeTables;
use crate::model::ops::read;
use crate::model::Checkpoint;
use crate::results::Sides;
use std::path::Path;

/// A flip where the baseline's first token leads its second by this much in probability is no matter of
/// rounding.
pub const HARD_MARGIN: f32 = 0.05;

/// A position where it leads by less cannot be compared between machines: sums in another order decide it.
pub const NEAR_TIE: f32 = 0.01;

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

/// A model and the texts that it is fed.
pub(super) struct Replayer<'a> {
    decoder: &'a Decoder,
    checkpoint: &'a Checkpoint,
    prompts: Prompts,
    pub generated: Generated,
}

impl<'a> Replayer<'a> {
    /// Reads the prompts, and has the baseline continue them where its text is not kept.
    pub fn new(
        model: &str,
        asked: &Generate,
        weights_sha256: &str,
        checkpoint: &'a Checkpoint,
        decoder: &'a Decoder,
        baseline: &Effective,
        progress: Progress,
    ) -> Result<Self, MeasureError> {
        let prompts = PromptSet::read(asked.prompts)?.tokens(checkpoint)?;
        super::spelled(prompts.prompts.iter().flat_map(|prompt| &prompt.tokens), checkpoint)?;
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
        };
        match asked.kept.filter(|kept| generated.is_of(kept)) {
            Some(kept) => {
                let why = fault(kept, &prompts, checkpoint);
                if let Some(why) = why {
                    return Err(MeasureError::Text { model: model.into(), why });
                }
                generated.continuations = kept.continuations.clone();
                generated.accepted = true;
            }
            None => {
                for (i, prompt) in prompts.prompts.iter().enumerate() {
                    progress("generating", i as u64, prompts.prompts.len() as u64);
                    let failed = |why| MeasureError::Generating { prompt: prompt.id.clone(), why };
                    let tokens =
                        greedy(decoder, baseline, &prompt.tokens, asked.tokens, &checkpoint.ends)
                            .map_err(|error| failed(error.brief()))?;
                    let text = checkpoint.tokenizer.decode(&tokens);
                    generated.continuations.push(Continuation {
                        prompt: prompt.id.clone(),
                        text: text.map_err(failed)?,
                        tokens,
                        near_ties: Vec::new(),
                    });
                }
            }
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
                    (0, Err(_)) => {}
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
        let replays = lanes.into_iter().zip(schemes).enumerate();
        replays
            .map(|(i, (lane, scheme))| {
                progress("continuing", i as u64, schemes.len() as u64);
                self.summary(&lane?, scheme)
            })
            .collect()
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
        for (continuation, positions) in self.generated.continuations.iter_mut().zip(own) {
            if !self.generated.accepted {
                let near = positions.iter().enumerate().filter(|(_, p)| p.margin < NEAR_TIE);
                continuation.near_ties = near.map(|(i, _)| i).collect();
            }
        }
    }

    fn summary(&self, lane: &[Vec<Position>], scheme: &Effective) -> Result<Replay, String> {
        let prompts: Vec<PromptReplay> =
            lane.iter().enumerate().map(|(i, p)| self.of(i, p)).collect();
        let klds = lane.iter().flatten().map(|p| f64::from(p.kld));
        let positions: u64 = prompts.iter().map(|prompt| prompt.positions).sum();
        Ok(Replay {
            mean_kld: klds.sum::<f64>() / positions as f64,
            charged_share: self.charged_share(scheme),
            texts: self.texts(&prompts, lane, scheme)?,
            prompts,
        })
    }

    fn of(&self, prompt: usize, positions: &[Position]) -> PromptReplay {
        let Prompt { id, category, .. } = &self.prompts.prompts[prompt];
        let count = |of: fn(&Position) -> bool| positions.iter().filter(|p| of(p)).count() as u64;
        PromptReplay {
            prompt: id.clone(),
            category: category.clone(),
            positions: positions.len() as u64,
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

    /// What the scheme itself writes from where it parts, beside the baseline's text.
    fn texts(
        &self,
        prompts: &[PromptReplay],
        lane: &[Vec<Position>],
        scheme: &Effective,
    ) -> Result<Vec<Divergence>, String> {
        let margin = |i: usize, at: usize| lane[i][at].margin;
        let parted = prompts.iter().enumerate().filter_map(|(i, p)| Some((i, p.first_flip?)));
        let mut parted: Vec<(usize, usize)> = parted.collect();
        parted.sort_by(|a, b| margin(b.0, b.1).total_cmp(&margin(a.0, a.1)));
        let decode = |tokens: &[u32]| self.checkpoint.tokenizer.decode(tokens);
        let text = |&(i, at): &(usize, usize)| {
            let common = [&self.prompts.prompts[i].tokens, &self.text(i)[..at]].concat();
            let ends = &self.checkpoint.ends;
            let own = greedy(self.decoder, scheme, &common, SHOWN_TOKENS, ends);
            let own = own.map_err(|error| error.brief())?;
            let baseline = &self.text(i)[at..];
            Ok(Divergence {
                prompt: prompts[i].prompt.clone(),
                at,
                margin: f64::from(margin(i, at)),
                baseline: decode(&baseline[..baseline.len().min(SHOWN_TOKENS)])?,
                scheme: decode(&own)?,
            })
        };
        parted.iter().take(SHOWN).map(text).collect()
    }
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
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            return Some(format!("has token {id} for `{prompt}`, of a vocabulary of {vocab}"));
        }
        let is_spelled = checkpoint.tokenizer.decode(tokens).is_ok_and(|read| read == *text);
        (!is_spelled).then(|| format!("has ids for `{prompt}` that do not spell its text"))
    };
    kept.continuations.iter().find_map(wrong)
}

/// Whether the lane would have written another token.
fn is_flip(p: &Position) -> bool {
    p.top != p.target
}

fn is_hard_flip(p: &Position) -> bool {
    is_flip(p) && p.margin >= HARD_MARGIN
}

/// What a model writes after a prompt with a cache of some scheme, token by token: the most likely token, of
/// equal ones the lowest, until one that ends it, which is the last.
///
/// # Errors
/// What the cache or the decoder refuses; logits that are not finite.
pub fn greedy(
    decoder: &Decoder,
    scheme: &Effective,
    prompt: &[u32],
    count: usize,
    ends: &[u32],
) -> Result<Vec<u32>, LaneError> {
    let ropes = decoder.ropes(prompt.len() + count);
    let mut cache = PackedCache::new(scheme.clone());
    let mut written = Vec::new();
    let mut next = step(decoder, &ropes, &mut cache, prompt, 0)?;
    loop {
        written.push(next);
        if written.len() == count || ends.contains(&next) {
            return Ok(written);
        }
        let start = prompt.len() + written.len() - 1;
        next = step(decoder, &ropes, &mut cache, &[next], start)?;
    }
}

/// Feeds tokens to a sequence; the most likely token after them.
fn step(
    decoder: &Decoder,
    ropes: &RopeTables,
    cache: &mut PackedCache,
    ids: &[u32],
    start: usize,
) -> Result<u32, LaneError> {
    let embedded = decoder.embed(ids)?;
    let at = At { start, tokens: ids.len() };
    let mut x = embedded.x;
    for index in 0..decoder.spec.layers.len() {
        let layer = decoder.ready(index, ropes)?;
        x = layer
            .run(&x, embedded.per_layer.as_ref(), at, cache)
            .map_err(|error| LaneError::at(index, error))?;
    }
    let last = decoder.normed(&x.narrow(0, ids.len() - 1, 1)?)?;
    let logits = decoder.logits(&last, 0, decoder.spec.vocab)?.contiguous()?;
    let best = read(&logits, |logits| {
        let best = |best: (usize, f32), (id, &x): (usize, &f32)| {
            // a NaN is larger than nothing, and is found by its own test
            if x > best.1 {
                (id, x)
            } else {
                best
            }
        };
        let is_finite = logits.iter().all(|x| x.is_finite());
        is_finite.then(|| logits.iter().enumerate().fold((0, f32::NEG_INFINITY), best).0 as u32)
    })?;
    best.ok_or(LaneError::Logits { position: start + ids.len() - 1, chunk: 0 })
}

impl From<PromptError> for MeasureError {
    fn from(error: PromptError) -> Self {
        MeasureError::Prompts(Box::new(error))
    }
}
