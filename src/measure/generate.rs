//! Greedy decoding: the text that a model writes with a cache of some scheme.

use super::engine::LaneError;
use super::prompts::{Prompt, Prompts};
use super::request::MeasureError;
use crate::compute::elements::read;
use crate::compute::finite::all_finite;
use crate::compute::Device;
use crate::kv::cache::KvCache;
use crate::kv::effective::Effective;
use crate::kv::growing::GrowingCache;
use crate::kv::packed::PackedCache;
use crate::model::decoder::{Decoder, Part, PartError, ReadyLayer, Rows};
use crate::model::layer::RopeTables;
use crate::model::Checkpoint;
use crate::results::replay::Continuation;
use candle_core::Tensor;

/// A text that a model is writing.
pub struct Writing {
    cache: Box<dyn KvCache>,
    /// Tokens that the model has not read yet.
    next: Vec<u32>,
    /// How many tokens it has read.
    read: usize,
    written: Vec<u32>,
}

impl Writing {
    /// Starts a text that continues some tokens. Its cache is on a card if the model is and the scheme allows it, so
    /// that a step copies no K and V.
    pub fn after(tokens: &[u32], scheme: &Effective, device: &Device) -> Self {
        Writing {
            cache: growing_cache(scheme, device),
            next: tokens.into(),
            read: 0,
            written: Vec::new(),
        }
    }

    /// The rows of the tokens that the model has not read yet.
    fn part(&mut self) -> Part<'_> {
        let rows = Rows { lanes: 1, start: self.read, tokens: self.next.len() };
        Part { rows, sequences: 1, cache: &mut *self.cache }
    }
}

/// A cache that takes tokens in any portions. It is on a card if the model is and the scheme allows it.
pub(super) fn growing_cache(scheme: &Effective, device: &Device) -> Box<dyn KvCache> {
    let scheme = scheme.clone();
    if !device.at().is_cpu() && scheme.encodes_tokens_alone() {
        Box::new(GrowingCache::new(scheme))
    } else {
        Box::new(PackedCache::new(scheme))
    }
}

/// Has the baseline continue every prompt.
pub(super) fn continuations(
    prompts: &Prompts,
    checkpoint: &Checkpoint,
    decoder: &Decoder,
    baseline: &Effective,
    count: usize,
    progress: &dyn Fn(u64, u64),
) -> Result<Vec<Continuation>, MeasureError> {
    let prompts = &prompts.prompts;
    let failed = |i: usize, why| MeasureError::Generating { prompt: prompts[i].id.clone(), why };
    let begin = |device: &Device| {
        let text = |prompt: &Prompt| Writing::after(&prompt.tokens, baseline, device);
        prompts.iter().map(text).collect()
    };
    let written = greedy_where_it_fits(decoder, &begin, count, &checkpoint.end_tokens, progress)
        .map_err(|(i, error)| failed(i, error.brief()))?;
    let continuation = |(i, tokens): (usize, Vec<u32>)| {
        let text = checkpoint.tokenizer.decode(&tokens).map_err(|why| failed(i, why))?;
        let prompt = prompts[i].id.clone();
        Ok(Continuation { prompt, tokens, near_ties: Vec::new(), text })
    };
    written.into_iter().enumerate().map(continuation).collect()
}

/// Continues texts by greedy decoding. `begin` starts them with caches on a device. If a card turns out to have no memory
/// for the caches, the texts are begun again with caches on the host. If a step that texts share fails and nobody knows
/// for which of them, they are begun again, and none shares a step.
///
/// # Errors
/// As of [`greedy`].
pub(super) fn greedy_where_it_fits(
    decoder: &Decoder,
    begin: &dyn Fn(&Device) -> Vec<Writing>,
    count: usize,
    ends: &[u32],
    progress: &dyn Fn(u64, u64),
) -> Result<Vec<Vec<u32>>, (usize, LaneError)> {
    let on_host = Device::cpu();
    let mut device = decoder.device();
    let write = |device, sharing| write_all(decoder, begin(device), count, ends, sharing, progress);
    let mut written = write(device, sharing(decoder));
    if matches!(written, Err((_, LaneError::Memory))) {
        device = &on_host;
        written = write(device, sharing(decoder));
    }
    if matches!(written, Err((None, _))) {
        written = write(device, 1);
    }
    written.map_err(of_first)
}

/// The error of a text, or of the first one if it is that of all.
fn of_first((index, error): (Option<usize>, LaneError)) -> (usize, LaneError) {
    (index.unwrap_or(0), error)
}

/// How many texts share the steps of a layer. A step of a card takes as long for a few rows as for one. On the CPU texts
/// share none, so that the bits of a text do not depend on the others.
fn sharing(decoder: &Decoder) -> usize {
    if decoder.device().at().is_cpu() {
        1
    } else {
        usize::MAX
    }
}

/// Continues texts by greedy decoding: token by token, each time the most likely one, and the one with the lowest
/// id if several are equally likely. A text ends with the first token of `ends`, which belongs to it, or after
/// `count` tokens.
///
/// The texts advance side by side, layer by layer, so that weights are read once for a token of all texts.
///
/// # Errors
/// What the cache or the decoder refuses, and logits that are not finite. The index of the text stands beside the
/// error.
pub fn greedy(
    decoder: &Decoder,
    texts: Vec<Writing>,
    count: usize,
    ends: &[u32],
    progress: &dyn Fn(u64, u64),
) -> Result<Vec<Vec<u32>>, (usize, LaneError)> {
    write_all(decoder, texts, count, ends, sharing(decoder), progress).map_err(of_first)
}

/// Why texts were not written, beside the index of the text if it is known.
type Failed = (Option<usize>, LaneError);

/// Does the same. So many texts share the steps of a layer.
fn write_all(
    decoder: &Decoder,
    mut texts: Vec<Writing>,
    count: usize,
    ends: &[u32],
    sharing: usize,
    progress: &dyn Fn(u64, u64),
) -> Result<Vec<Vec<u32>>, Failed> {
    let longest = texts.iter().map(|text| text.next.len()).max().unwrap_or(0);
    let ropes = decoder.ropes(longest + count).map_err(|error| (None, error.into()))?;
    for step in 0..count {
        progress(step as u64, count as u64);
        let is_open = |text: &Writing| text.written.last().is_none_or(|last| !ends.contains(last));
        let mut open: Vec<(usize, &mut Writing)> =
            texts.iter_mut().enumerate().filter(|(_, text)| is_open(text)).collect();
        if open.is_empty() {
            break;
        }
        write_token(decoder, &ropes, &mut open, sharing)?;
    }
    Ok(texts.into_iter().map(|text| text.written).collect())
}

/// Writes the next token of each text. So many texts share the steps of a layer.
fn write_token(
    decoder: &Decoder,
    ropes: &RopeTables,
    texts: &mut [(usize, &mut Writing)],
    sharing: usize,
) -> Result<(), Failed> {
    let batches = texts.chunks_mut(sharing).map(|texts| Batch::new(decoder, texts));
    let mut batches = batches.collect::<Result<Vec<_>, _>>()?;
    for index in 0..decoder.spec.layers.len() {
        let layer =
            decoder.ready(index, ropes).map_err(|error| batches[0].failed(None, error.into()))?;
        batches.iter_mut().try_for_each(|batch| batch.run(index, &layer))?;
    }
    batches.into_iter().try_for_each(|batch| batch.write(decoder))
}

/// The tokens of some texts that the model has not read yet, on their way through the layers.
struct Batch<'t, 'w> {
    texts: &'t mut [(usize, &'w mut Writing)],
    /// Hidden states of all tokens, text by text, (rows, H).
    x: Tensor,
    /// Each layer's own inputs, if the model has such inputs.
    per_layer: Option<Tensor>,
}

impl<'t, 'w> Batch<'t, 'w> {
    fn new(decoder: &Decoder, texts: &'t mut [(usize, &'w mut Writing)]) -> Result<Self, Failed> {
        let tokens: Vec<u32> = texts.iter().flat_map(|(_, text)| &text.next).copied().collect();
        let embedded =
            decoder.embed(&tokens).map_err(|error| (index_of(texts, None), error.into()))?;
        Ok(Batch { texts, x: embedded.x, per_layer: embedded.per_layer })
    }

    /// An error, beside the index of the text at a place in the batch.
    fn failed(&self, place: Option<usize>, error: LaneError) -> Failed {
        (index_of(self.texts, place), error)
    }

    fn run(&mut self, index: usize, layer: &ReadyLayer) -> Result<(), Failed> {
        let mut parts: Vec<Part> = self.texts.iter_mut().map(|(_, text)| text.part()).collect();
        let ran = layer.run_parts(&self.x, self.per_layer.as_ref(), &mut parts);
        self.x = ran
            .map_err(|PartError { part, error }| self.failed(part, LaneError::at(index, error)))?;
        Ok(())
    }

    /// Appends the most likely token to each text.
    fn write(self, decoder: &Decoder) -> Result<(), Failed> {
        let last = self.last_rows().and_then(|last| {
            decoder.logits(&decoder.normed(&last)?, 1, 0, decoder.spec.vocab)?.contiguous()
        });
        let logits = last.map_err(|error| self.failed(None, error.into()))?;
        let tokens = read(&logits, |logits: &[f32]| {
            logits.chunks(decoder.spec.vocab).map(most_likely).collect::<Vec<_>>()
        });
        let tokens = tokens.map_err(|error| self.failed(None, error.into()))?;
        for ((index, text), token) in self.texts.iter_mut().zip(tokens) {
            text.read += text.next.len();
            let not_finite = LaneError::Logits { position: text.read - 1, chunk: 0 };
            let token = token.ok_or((Some(*index), not_finite))?;
            text.written.push(token);
            text.next = vec![token];
        }
        Ok(())
    }

    /// The hidden state of each text's last token, (texts, H).
    fn last_rows(&self) -> candle_core::Result<Tensor> {
        let mut end = 0;
        let mut last = |(_, text): &(usize, &mut Writing)| {
            end += text.next.len();
            self.x.narrow(0, end - 1, 1)
        };
        let rows = self.texts.iter().map(&mut last).collect::<candle_core::Result<Vec<_>>>()?;
        Tensor::cat(&rows, 0)
    }
}

/// The index of the text at a place among some, or of the only one.
fn index_of(texts: &[(usize, &mut Writing)], place: Option<usize>) -> Option<usize> {
    let place = if texts.len() == 1 { Some(0) } else { place };
    place.map(|place| texts[place].0)
}

/// The token with the largest logit, the first one if several have it. `None` if a logit is not finite.
fn most_likely(logits: &[f32]) -> Option<u32> {
    let larger = |best: (usize, f32), (id, &x): (usize, &f32)| {
        if x > best.1 {
            (id, x)
        } else {
            best
        }
    };
    let best = logits.iter().enumerate().fold((0, f32::NEG_INFINITY), larger);
    all_finite(logits).then_some(best.0 as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::textbook;
    use crate::kv::Scheme;
    use crate::model::decoder::Residency;
    use crate::source::Source;

    /// Texts of different lengths, with states of recurrent layers, shared keys, experts and inputs of each layer.
    #[test]
    fn texts_that_share_steps_are_what_each_is_alone() {
        for model in ["gemma4-e2b-mini", "qwen3.6-moe-mini"] {
            let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
            let path = std::path::Path::new(&root).join("models").join(model);
            let checkpoint = Checkpoint::open(&Source::at(path)).unwrap();
            let device = textbook::device();
            let decoder = checkpoint.load_on(&device, Residency::Resident).unwrap();
            let scheme = "q8_0".parse::<Scheme>().unwrap();
            let scheme = Effective::new(&scheme, &decoder.spec.kv_layout(), None).unwrap();
            let ropes = decoder.ropes(64).unwrap();
            let write = |together: usize| {
                let text = |i: u32| {
                    let token = |t: u32| (t * t * 11 + t * 5 + i * 97) % 300 + 10;
                    let tokens: Vec<u32> = (0..7 + 13 * i).map(token).collect();
                    Writing::after(&tokens, &scheme, &device)
                };
                let mut texts: Vec<Writing> = (0..3).map(text).collect();
                for _ in 0..12 {
                    let mut open: Vec<_> = texts.iter_mut().enumerate().collect();
                    write_token(&decoder, &ropes, &mut open, together).unwrap();
                }
                texts.into_iter().map(|text| text.written).collect::<Vec<_>>()
            };
            let alone = write(1);
            assert_eq!(write(3), alone, "{model}");
            assert_eq!(write(2), alone, "{model}");
            assert!(alone[0] != alone[1] && alone[1] != alone[2], "{model}: {alone:?}");
        }
    }

    #[test]
    fn the_first_of_equally_likely_tokens_is_taken_and_none_of_bad_ones() {
        assert_eq!(most_likely(&[-1.0, 2.0, 2.0, 0.5]), Some(1));
        assert_eq!(most_likely(&[-1.0, f32::NAN]), None);
        assert_eq!(most_likely(&[f32::INFINITY, 0.0]), None);
    }
}
