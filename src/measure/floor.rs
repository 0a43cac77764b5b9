//! The floor of a measurement: the divergence that another batch size causes.
//!
//! A serving engine computes a prompt in batches of any size. Products of another shape add the same numbers in another
//! order, so the next-token distributions differ in their last bits although nothing was quantized. The baseline is
//! therefore computed once more on the first chunks, in batches of an odd size with a cache that grows, and compared with
//! itself as schemes are compared with it. A difference between schemes that is not well above this floor means nothing.

use super::corpus::{scored, Chunk};
use super::engine::{positions, LaneError};
use super::generate::growing_cache;
use super::prepare::Prepared;
use crate::kv::cache::{CacheError, KvCache};
use crate::kv::measuring::MeasuringCache;
use crate::model::decoder::{Decoder, Embedded, ReadyLayer, Residency, Rows};
use crate::progress::Progress;
use crate::results::statistics::Statistics;
use crate::results::Floor;
use candle_core::Tensor;
use std::ops::Range;

/// How many of the first chunks are computed again.
const CHUNKS: usize = 2;

/// In how many batches a chunk is computed. Three of equal size, but for the last, have a length that no tile of a device
/// has if the context is a power of two.
const BATCHES: usize = 3;

/// In how many batches it is computed if the weights are read from the file once for each.
const STREAMED_BATCHES: usize = 2;

/// How many positions a floor is the mean of, in a run on so many chunks of `context` tokens.
pub fn tokens_scored(chunks: usize, context: usize) -> usize {
    chunks.min(CHUNKS) * scored(context).len()
}

/// Measures the floor.
///
/// # Errors
/// If the device has no memory, or the decoder refuses something.
pub(super) fn measure(
    prepared: &Prepared,
    decoder: &Decoder,
    progress: Progress,
) -> Result<Floor, LaneError> {
    let chunks = &prepared.corpus.chunks;
    let chunks = &chunks[..chunks.len().min(CHUNKS)];
    let context = prepared.request.context;
    let batches = match prepared.residency() {
        Residency::Resident => BATCHES,
        Residency::Streamed => STREAMED_BATCHES,
    };
    let batch = context.div_ceil(batches);
    let baseline = &prepared.baseline;
    let mut whole = Vec::new();
    let mut batched = Vec::new();
    for chunk in chunks {
        let cache = Box::new(MeasuringCache::new(baseline.clone()));
        whole.push(Way::new(decoder, chunk, context, cache)?);
        batched.push(Way::new(decoder, chunk, batch, growing_cache(baseline, decoder.device()))?);
    }
    let ropes = decoder.ropes(context)?;
    let units = (batches * decoder.spec.layers.len()) as u64;
    for sweep in 0..batches {
        // a layer's weights are made ready once for all that travels
        for index in 0..decoder.spec.layers.len() {
            let done = sweep * decoder.spec.layers.len() + index;
            progress("measuring the floor", done as u64, units);
            let layer = decoder.ready(index, &ropes)?;
            for way in whole.iter_mut().chain(&mut batched).filter(|way| way.is_travelling()) {
                way.step(&layer).map_err(|error| LaneError::at(index, error))?;
            }
        }
        whole.iter_mut().chain(&mut batched).try_for_each(Way::next_batch)?;
    }
    let mut found = Vec::new();
    for (whole, batched) in whole.iter().zip(&batched) {
        let rows = [whole.scored_rows(decoder)?, batched.scored_rows(decoder)?];
        found.extend(positions(decoder, whole.chunk, &rows, None)?.remove(0));
    }
    let Statistics { mean_kld, tokens_scored, .. } = Statistics::of(&found);
    Ok(Floor { mean_kld, tokens_scored, batch })
}

/// A chunk on its way through the layers, batch by batch. All layers run for a batch before the next one begins, because a
/// layer may read the cache of a layer below it, which must not know later batches yet.
struct Way<'c> {
    chunk: &'c Chunk,
    embedded: Embedded,
    cache: Box<dyn KvCache>,
    batch: usize,
    /// The tokens that travel now.
    now: Range<usize>,
    /// Their hidden states.
    x: Tensor,
    /// The hidden states of earlier batches after the last layer.
    done: Vec<Tensor>,
}

impl<'c> Way<'c> {
    fn new(
        decoder: &Decoder,
        chunk: &'c Chunk,
        batch: usize,
        cache: Box<dyn KvCache>,
    ) -> Result<Self, LaneError> {
        let embedded = decoder.embed(&chunk.tokens)?;
        let x = embedded.x.narrow(0, 0, batch.min(chunk.tokens.len()))?;
        Ok(Way { chunk, embedded, cache, batch, now: 0..x.dim(0)?, x, done: Vec::new() })
    }

    fn is_travelling(&self) -> bool {
        !self.now.is_empty()
    }

    fn step(&mut self, layer: &ReadyLayer) -> Result<(), CacheError> {
        let Range { start, .. } = self.now;
        let tokens = self.now.len();
        let inputs = self.embedded.per_layer.as_ref();
        let inputs = inputs.map(|inputs| inputs.narrow(0, start, tokens)).transpose()?;
        let rows = Rows { lanes: 1, start, tokens };
        self.x = layer.run(&self.x, inputs.as_ref(), rows, &mut *self.cache)?;
        Ok(())
    }

    fn next_batch(&mut self) -> Result<(), LaneError> {
        if self.is_travelling() {
            let all = self.chunk.tokens.len();
            self.now = self.now.end..(self.now.end + self.batch).min(all);
            let next = self.embedded.x.narrow(0, self.now.start, self.now.len())?;
            self.done.push(std::mem::replace(&mut self.x, next));
        }
        Ok(())
    }

    /// The rows of the scored positions after the final norm, (n, H).
    fn scored_rows(&self, decoder: &Decoder) -> Result<Tensor, LaneError> {
        let scored = &self.chunk.scored;
        let all = Tensor::cat(&self.done, 0)?;
        Ok(decoder.normed(&all.narrow(0, scored.start, scored.len())?)?)
    }
}
