//! A run of the baseline in which somebody sees the K and V that the layers hand to the cache.

use super::corpus::Chunk;
use super::request::MeasureError;
use crate::kv::cache::{CacheError, KvCache, View};
use crate::kv::effective::Effective;
use crate::kv::measuring::MeasuringCache;
use crate::kv::recurrent::Recurrent;
use crate::model::decoder::{Decoder, Rows};
use candle_core::Tensor;

/// Is shown the K and V of a run.
pub(crate) trait Observer {
    /// K, after its norm and RoPE, and V of one chunk, (1, T, H_kv, D) each, before anything is stored. Chunks come in
    /// order, all of them for one layer before those for the next.
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn record(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> candle_core::Result<()>;
}

/// Runs all chunks layer by layer, so that weights are read once. Each chunk begins with an empty cache, which stores
/// what `baseline` says. `progress` is told how many layers are done and how many there are.
pub(crate) fn observe(
    decoder: &Decoder,
    chunks: &[Chunk],
    baseline: &Effective,
    observer: &mut dyn Observer,
    progress: &dyn Fn(u64, u64),
) -> Result<(), MeasureError> {
    let context = chunks.first().map_or(0, |chunk| chunk.tokens.len());
    let ropes =
        decoder.ropes(context).map_err(CacheError::from).map_err(MeasureError::Observing)?;
    let embedded = chunks.iter().map(|chunk| decoder.embed(&chunk.tokens));
    let embedded = embedded.collect::<Result<Vec<_>, _>>()?;
    let mut states: Vec<Tensor> = embedded.iter().map(|e| e.x.clone()).collect();
    // a layer may read the cache of a layer below it, so each chunk keeps a cache of its own
    let mut caches = vec![MeasuringCache::new(baseline.clone()); chunks.len()];
    let layers = decoder.spec.layers.len();
    for index in 0..layers {
        let layer = decoder.ready(index, &ropes)?;
        for ((x, embedded), cache) in states.iter_mut().zip(&embedded).zip(&mut caches) {
            let mut cache = Observed { cache, observer: &mut *observer };
            let rows = Rows::of_lane(context);
            *x = layer
                .run(x, embedded.per_layer.as_ref(), rows, &mut cache)
                .map_err(MeasureError::Observing)?;
        }
        progress(index as u64 + 1, layers as u64);
    }
    Ok(())
}

/// A cache that shows its observer what it is given.
struct Observed<'a> {
    cache: &'a mut MeasuringCache,
    observer: &'a mut dyn Observer,
}

impl KvCache for Observed<'_> {
    fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<View, CacheError> {
        self.observer.record(layer, &k, &v)?;
        self.cache.append(layer, k, v)
    }

    fn shared(&mut self, owner: usize) -> Result<View, CacheError> {
        self.cache.shared(owner)
    }

    fn recurrent(&mut self, layer: usize) -> &mut Option<Recurrent> {
        self.cache.recurrent(layer)
    }
}
