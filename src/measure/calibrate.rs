//! `kvgate calibrate`: ranges and means of a model's K and V over a text.

use super::corpus::{self, Chunk};
use crate::compute::elements::read;
use crate::compute::Device;
use crate::kv::cache::{CacheError, KvCache, View};
use crate::kv::calibration::{Calibration, Ranges};
use crate::kv::effective::Effective;
use crate::kv::layout::LayerKv;
use crate::kv::measuring::MeasuringCache;
use crate::kv::recurrent::Recurrent;
use crate::kv::Scheme;
use crate::measure::{fitting, subject_of, MeasureError};
use crate::model::decoder::{self, At, Decoder};
use crate::model::Checkpoint;
use crate::progress::Progress;
use crate::source;
use crate::source::Source;
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What was found, and what people should know about the checkpoint and the texts that it was found from.
pub struct Calibrated {
    /// What is written into the file.
    pub calibration: Calibration,
    /// One whole sentence each.
    pub notes: Vec<String>,
}

/// Runs a model with an f16 cache over a text, each chunk from its beginning, and gives what its layers
/// hand to the cache.
///
/// # Errors
/// As [`measure`](super::measure()).
pub fn calibrate(
    source: &Source,
    corpus: &[PathBuf],
    context: usize,
    chunks: usize,
    progress: Progress,
) -> Result<Calibrated, MeasureError> {
    source::fetch(source, progress)?;
    progress("reading", 0, 0);
    let checkpoint = Checkpoint::open(source)?;
    let subject = subject_of(source, &checkpoint)?;
    let texts = corpus.iter().map(|path| corpus::read(path)).collect::<Result<Vec<_>, _>>()?;
    let chunks = corpus::chunks(&texts, &checkpoint.tokenizer, context, chunks)?;
    let device = Device::cpu();
    let residency = fitting(&device, decoder::parameters(&checkpoint.spec));
    let decoder = checkpoint.load_on(&device, residency)?;
    let mut observer = Observer::new(&decoder);
    observe(&decoder, &chunks, &mut observer, progress)?;
    let remarks = texts.iter().flat_map(corpus::Text::remarks);
    let notes = checkpoint.notes.iter().cloned().chain(remarks).collect();
    let sides = observer.sides.into_iter();
    let calibration = Calibration {
        weights_sha256: subject.weights_sha256,
        corpus: texts.into_iter().map(|text| text.file).collect(),
        tokens: context * chunks.len(),
        layers: sides.map(|(i, sides)| (i, sides.map(Sums::ranges))).collect(),
    };
    Ok(Calibrated { calibration, notes })
}

/// Layer by layer, so that weights are read once.
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
    // layers may read the cache of one below: each chunk keeps its own
    let mut caches = vec![MeasuringCache::new(observer.exact.clone()); chunks.len()];
    let layers = decoder.spec.layers.len();
    for index in 0..layers {
        let layer = decoder.ready(index, &ropes)?;
        for ((x, embedded), cache) in states.iter_mut().zip(&embedded).zip(&mut caches) {
            let mut cache = Observed { cache, observer };
            let at = At { start: 0, tokens: context };
            *x = layer
                .run(x, embedded.per_layer.as_ref(), at, &mut cache)
                .map_err(MeasureError::Calibrating)?;
        }
        progress("calibrating", index as u64 + 1, layers as u64);
    }
    Ok(())
}

/// What has been seen of each layer's K and V.
struct Observer {
    exact: Effective,
    layout: Vec<Option<LayerKv>>,
    sides: BTreeMap<usize, [Sums; 2]>,
}

/// Of (H_kv, D) numbers a token.
struct Sums {
    tokens: u64,
    sum: Vec<f64>,
    min: Vec<f32>,
    max: Vec<f32>,
}

impl Observer {
    fn new(decoder: &Decoder) -> Self {
        let layout = decoder.spec.kv_layout();
        let exact = Effective::new(&Scheme::f16(), &layout, None).expect("halves fit any head");
        Observer { exact, layout, sides: BTreeMap::new() }
    }

    fn see(&mut self, layer: usize, [k, v]: [&Tensor; 2]) -> candle_core::Result<()> {
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

/// A cache that is looked into.
struct Observed<'a> {
    cache: &'a mut MeasuringCache,
    observer: &'a mut Observer,
}

impl KvCache for Observed<'_> {
    fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<View, CacheError> {
        self.observer.see(layer, [&k, &v])?;
        self.cache.append(layer, k, v)
    }

    fn shared(&mut self, owner: usize) -> Result<View, CacheError> {
        self.cache.shared(owner)
    }

    fn recurrent(&mut self, layer: usize) -> &mut Option<Recurrent> {
        self.cache.recurrent(layer)
    }
}
