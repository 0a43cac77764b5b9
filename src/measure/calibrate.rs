//! `kvgate calibrate`: ranges and means of a model's K and V over a text.

use super::corpus::{Chunk, Text};
use super::prepare::Prepared;
use super::request::{MeasureError, Request};
use crate::compute::elements::read;
use crate::compute::Device;
use crate::kv::cache::{CacheError, KvCache, View};
use crate::kv::calibration::{Calibration, Ranges};
use crate::kv::effective::Effective;
use crate::kv::layout::LayerKv;
use crate::kv::measuring::MeasuringCache;
use crate::kv::recurrent::Recurrent;
use crate::kv::Scheme;
use crate::model::decoder::{Decoder, Rows};
use crate::progress::Progress;
use crate::source::Source;
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A calibration, and what people should know about the checkpoint and the texts that it was made from.
pub struct Calibrated {
    pub calibration: Calibration,
    /// One whole sentence each.
    pub notes: Vec<String>,
}

/// Runs a model with an f16 cache over a text, and records what its layers hand to the cache. Each chunk begins with
/// an empty cache.
///
/// # Errors
/// As [`measure`](super::measure()).
pub fn calibrate(
    source: &Source,
    corpus: &[PathBuf],
    context: usize,
    chunks: usize,
    device: &Device,
    progress: Progress,
) -> Result<Calibrated, MeasureError> {
    let request = Request {
        model: &source.to_string(),
        source,
        corpus,
        context,
        chunks,
        baseline: Scheme::f16(),
        schemes: Vec::new(),
        calibration: None,
        generate: None,
        device: device.clone(),
        residency: None,
        mimic: None,
        is_gated: false,
    };
    let prepared = Prepared::open(&request, progress)?;
    let decoder = prepared.load()?;
    let mut observer = Observer::new(&prepared);
    observe(&decoder, &prepared.corpus.chunks, &mut observer, progress)?;
    let remarks = prepared.texts.iter().flat_map(Text::remarks);
    let sides = observer.sides.into_iter();
    Ok(Calibrated {
        calibration: Calibration {
            weights_sha256: prepared.subject.weights_sha256,
            corpus: prepared.conditions.corpus,
            tokens: context * prepared.corpus.chunks.len(),
            layers: sides.map(|(i, sides)| (i, sides.map(Sums::ranges))).collect(),
        },
        notes: prepared.checkpoint.notes.into_iter().chain(remarks).collect(),
    })
}

/// Runs all chunks layer by layer, so that weights are read once.
fn observe(
    decoder: &Decoder,
    chunks: &[Chunk],
    observer: &mut Observer,
    progress: Progress,
) -> Result<(), MeasureError> {
    let context = chunks.first().map_or(0, |chunk| chunk.tokens.len());
    let ropes =
        decoder.ropes(context).map_err(CacheError::from).map_err(MeasureError::Calibrating)?;
    let embedded = chunks.iter().map(|chunk| decoder.embed(&chunk.tokens));
    let embedded = embedded.collect::<Result<Vec<_>, _>>()?;
    let mut states: Vec<Tensor> = embedded.iter().map(|e| e.x.clone()).collect();
    // a layer may read the cache of a layer below it, so each chunk keeps a cache of its own
    let mut caches = vec![MeasuringCache::new(observer.exact.clone()); chunks.len()];
    let layers = decoder.spec.layers.len();
    for index in 0..layers {
        let layer = decoder.ready(index, &ropes)?;
        for ((x, embedded), cache) in states.iter_mut().zip(&embedded).zip(&mut caches) {
            let mut cache = Observed { cache, observer };
            let rows = Rows::of_lane(context);
            *x = layer
                .run(x, embedded.per_layer.as_ref(), rows, &mut cache)
                .map_err(MeasureError::Calibrating)?;
        }
        progress("calibrating", index as u64 + 1, layers as u64);
    }
    Ok(())
}

/// What has been recorded of each layer's K and V.
struct Observer {
    /// The scheme of the caches, which round nothing but to f16.
    exact: Effective,
    layout: Vec<Option<LayerKv>>,
    sides: BTreeMap<usize, [Sums; 2]>,
}

/// Sums and extremes of K or V of one layer, for each of a token's (H_kv, D) numbers.
struct Sums {
    tokens: u64,
    sum: Vec<f64>,
    min: Vec<f32>,
    max: Vec<f32>,
}

impl Observer {
    fn new(prepared: &Prepared) -> Self {
        let exact = prepared.baseline.clone();
        Observer { exact, layout: prepared.layout.clone(), sides: BTreeMap::new() }
    }

    fn record(&mut self, layer: usize, [k, v]: [&Tensor; 2]) -> candle_core::Result<()> {
        let width = self.layout[layer].map_or(0, |kv| kv.width());
        let sides = self.sides.entry(layer).or_insert_with(|| [Sums::new(width), Sums::new(width)]);
        read(k, |x| sides[0].add(x))?;
        read(v, |x| sides[1].add(x))
    }
}

impl Sums {
    fn new(width: usize) -> Self {
        Sums {
            tokens: 0,
            sum: vec![0.0; width],
            min: vec![f32::INFINITY; width],
            max: vec![f32::NEG_INFINITY; width],
        }
    }

    fn add(&mut self, x: &[f32]) {
        for token in x.chunks_exact(self.sum.len()) {
            self.tokens += 1;
            for (i, &v) in token.iter().enumerate() {
                self.sum[i] += f64::from(v);
                self.min[i] = self.min[i].min(v);
                self.max[i] = self.max[i].max(v);
            }
        }
    }

    fn ranges(self) -> Ranges {
        let mean = self.sum.iter().map(|sum| (sum / self.tokens as f64) as f32);
        Ranges { mean: mean.collect(), min: self.min.into(), max: self.max.into() }
    }
}

/// A cache that shows its observer what it is given.
struct Observed<'a> {
    cache: &'a mut MeasuringCache,
    observer: &'a mut Observer,
}

impl KvCache for Observed<'_> {
    fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<View, CacheError> {
        self.observer.record(layer, [&k, &v])?;
        self.cache.append(layer, k, v)
    }

    fn shared(&mut self, owner: usize) -> Result<View, CacheError> {
        self.cache.shared(owner)
    }

    fn recurrent(&mut self, layer: usize) -> &mut Option<Recurrent> {
        self.cache.recurrent(layer)
    }
}
