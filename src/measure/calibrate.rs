//! `kvgate calibrate`: ranges and means of a model's K and V over a text.

use super::corpus::{Draw, Text};
use super::prepare::Prepared;
use super::request::{MeasureError, Request};
use super::tap::{observe, Observer};
use crate::compute::elements::read;
use crate::compute::Device;
use crate::kv::calibration::{Calibration, Ranges};
use crate::kv::layout::LayerKv;
use crate::kv::Scheme;
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
        draw: Draw::First,
        baseline: Scheme::f16(),
        schemes: Vec::new(),
        calibration: None,
        generate: None,
        retrieval: None,
        device: device.clone(),
        residency: None,
        mimic: None,
        is_gated: false,
    };
    let prepared = Prepared::open(&request, progress)?;
    let decoder = prepared.load()?;
    let mut recorded = Recorded { layout: prepared.layout.clone(), sides: BTreeMap::new() };
    let report = |done, all| progress("calibrating", done, all);
    // the baseline is f16, which rounds nothing else
    observe(&decoder, &prepared.corpus.chunks, &prepared.baseline, &mut recorded, &report)?;
    let remarks = prepared.texts.iter().flat_map(Text::remarks);
    let sides = recorded.sides.into_iter();
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

/// What has been recorded of each layer's K and V.
struct Recorded {
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

impl Observer for Recorded {
    fn record(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> candle_core::Result<()> {
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
