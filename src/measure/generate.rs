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
use crate::model::decoder::{Decoder, Rows};
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
        let scheme = scheme.clone();
        let is_on_card = !device.at().is_cpu() && scheme.encodes_tokens_alone();
        Writing {
            cache: if is_on_card {
                Box::new(GrowingCache::new(scheme))
            } else {
                Box::new(PackedCache::new(scheme))
            },
            next: tokens.into(),
            read: 0,
            written: Vec::new(),
        }
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
/// for the caches, the texts are begun again with caches on the host.
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
    let write = |device| greedy(decoder, begin(device), count, ends, progress);
    match write(decoder.device()) {
        Err((_, LaneError::Memory)) => write(&Device::cpu()),
        written => written,
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
    mut texts: Vec<Writing>,
    count: usize,
    ends: &[u32],
    progress: &dyn Fn(u64, u64),
) -> Result<Vec<Vec<u32>>, (usize, LaneError)> {
    let longest = texts.iter().map(|text| text.next.len()).max().unwrap_or(0);
    let ropes = decoder.ropes(longest + count).map_err(|error| (0, error.into()))?;
    for step in 0..count {
        progress(step as u64, count as u64);
        let is_open = |text: &Writing| text.written.last().is_none_or(|last| !ends.contains(last));
        let mut open: Vec<(usize, &mut Writing)> =
            texts.iter_mut().enumerate().filter(|(_, text)| is_open(text)).collect();
        if open.is_empty() {
            break;
        }
        write_token(decoder, &ropes, &mut open)?;
    }
    Ok(texts.into_iter().map(|text| text.written).collect())
}

/// Writes the next token of each text.
fn write_token(
    decoder: &Decoder,
    ropes: &RopeTables,
    texts: &mut [(usize, &mut Writing)],
) -> Result<(), (usize, LaneError)> {
    let in_text = |i: usize| move |error: LaneError| (i, error);
    let embed = |(i, text): &(usize, &mut Writing)| {
        decoder.embed(&text.next).map_err(|error| in_text(*i)(error.into()))
    };
    let embedded = texts.iter().map(embed).collect::<Result<Vec<_>, _>>()?;
    let mut states: Vec<Tensor> = embedded.iter().map(|embedded| embedded.x.clone()).collect();
    for index in 0..decoder.spec.layers.len() {
        let layer =
            decoder.ready(index, ropes).map_err(|error| in_text(texts[0].0)(error.into()))?;
        for ((x, embedded), (i, text)) in states.iter_mut().zip(&embedded).zip(&mut *texts) {
            let rows = Rows { lanes: 1, start: text.read, tokens: text.next.len() };
            *x = layer
                .run(x, embedded.per_layer.as_ref(), rows, &mut *text.cache)
                .map_err(|error| in_text(*i)(LaneError::at(index, error)))?;
        }
    }
    for (x, (i, text)) in states.iter().zip(texts) {
        text.read += text.next.len();
        let token = most_likely(decoder, x, text.read - 1).map_err(in_text(*i))?;
        text.written.push(token);
        text.next = vec![token];
    }
    Ok(())
}

/// The most likely token after the last of some rows.
fn most_likely(decoder: &Decoder, x: &Tensor, position: usize) -> Result<u32, LaneError> {
    let last = decoder.normed(&x.narrow(0, x.dim(0)? - 1, 1)?)?;
    let logits = decoder.logits(&last, 1, 0, decoder.spec.vocab)?.contiguous()?;
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
