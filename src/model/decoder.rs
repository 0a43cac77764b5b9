//! The one decoder: embedding, layers with attention over a [`KvCache`] or a recurrent state, a final
//! norm and a head.
//!
//! Activations are matrices in f32 with B·T rows: B sequences of T tokens, one after the other. The caller runs the
//! decoder layer by layer, so that the weights of one layer serve every lane and chunk before the next layer is
//! touched.

use super::config::Config;
pub(crate) use super::layer::{Fault, Part, PartError, Watch};

use super::family::{DIVISORS, LONG_DIVISORS, SHORT_DIVISORS};
use super::layer::{norm, Layer, RopeTables};
use super::spec::{PerLayerInputs, Spec};
use super::tensors::{Reader, Tensors};
use super::ModelError;
use crate::compute::norm::RmsNorm;
use crate::compute::product::Matrix;
pub use crate::compute::Rows;
use crate::compute::{run, Device};
use crate::kv::cache::{CacheError, KvCache};
use candle_core::{Result as TensorResult, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where the weights are while a model is measured. Products are computed in f32 either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// All weights in memory, at four bytes each.
    Resident,
    /// Weights of one layer at a time, which are read from the file when its turn comes.
    Streamed,
}

/// A decoder with its weights, or with the file that they are read from layer by layer.
pub struct Decoder {
    /// The facts that it was built from.
    pub spec: Spec,
    device: Device,
    /// The file. A decoder with random weights has none.
    tensors: Option<Arc<dyn Tensors>>,
    top: Top,
    /// Empty if layers are streamed.
    layers: Vec<Arc<Layer>>,
}

/// Weights below and above the layers.
struct Top {
    /// (V, H)
    embedding: Tensor,
    /// (V, H)
    head: Matrix,
    norm: RmsNorm,
    per_layer: Option<PerLayerProjection>,
}

/// The weights from which the additional inputs of each layer are made. Their table is not among them: it is large,
/// and only rows of it are read.
struct PerLayerProjection {
    /// (L·P, H)
    projection: Matrix,
    norm: RmsNorm,
}

/// The table of per-layer inputs.
const PER_LAYER_TABLE: &str = "per_layer_token_embd.weight";

/// What the first layer and all layers receive for some tokens.
#[derive(Clone)]
pub struct Embedded {
    /// Scaled embeddings, (rows, H).
    pub x: Tensor,
    /// The additional inputs of all layers, (rows, L·P), if the model has any.
    pub per_layer: Option<Tensor>,
}

/// A layer that is ready to run.
pub struct ReadyLayer {
    index: usize,
    layer: Arc<Layer>,
    ropes: RopeTables,
}

/// Every tensor that a specification asks for, by the decoder's names, with its shape.
pub(super) fn declared(spec: &Spec) -> Vec<(String, Vec<usize>)> {
    let reader = Reader::declaring();
    walk(spec, &reader).expect("declaring reads nothing");
    reader.declared()
}

/// The number of parameters that a specification implies.
pub fn parameters(spec: &Spec) -> u64 {
    let sizes = declared(spec).into_iter().map(|(_, shape)| shape.iter().product::<usize>() as u64);
    sizes.sum()
}

/// Bytes of a device that the weights of a specification take, which are short or not ([`Device::weight_bytes`]). The
/// table of per-layer inputs is not among them, because it stays in the file.
pub fn weight_bytes(spec: &Spec, device: &Device, is_short: bool, residency: Residency) -> u64 {
    let table = (spec.vocab * spec.hidden) as u64;
    let declared = declared(spec);
    let (mut outside, mut layers) = (0, BTreeMap::<&str, u64>::new());
    for (name, shape) in declared.iter().filter(|(name, _)| name != PER_LAYER_TABLE) {
        let size = shape.iter().product::<usize>() as u64;
        match name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()) {
            Some(layer) => *layers.entry(layer).or_default() += size,
            None => outside += size,
        }
    }
    let in_layers = match residency {
        Residency::Resident => layers.values().sum::<u64>(),
        Residency::Streamed => layers.values().copied().max().unwrap_or(0),
    };
    let embedding = match device.embedding_bytes() {
        // the head's weights are the embedding's, in the same type
        None => 0,
        Some(bytes) if spec.tied_head => table * bytes,
        Some(bytes) => table * (bytes - device.weight_bytes(is_short)),
    };
    (outside + in_layers) * device.weight_bytes(is_short) + embedding
}

/// Checks names and shapes of all tensors without reading them.
pub(super) fn check(spec: &Spec, tensors: &dyn Tensors) -> Result<(), ModelError> {
    let reader = Reader::checking(tensors);
    walk(spec, &reader)?;
    // if a tensor is read by no layer, the file holds another model than the one that would be measured
    let mut unused = reader.unused(tensors);
    unused.retain(|name| !spec.ignored_tensors.iter().any(|start| name.starts_with(start)));
    match &unused[..] {
        [] => Ok(()),
        unused @ [first, ..] => Err((tensors as &dyn Config).unsupported(format!(
            "an architecture with {} tensors that `{}` does not have, such as `{first}`,",
            unused.len(),
            spec.architecture
        ))),
    }
}

fn walk(spec: &Spec, reader: &Reader) -> Result<(Top, Vec<Layer>), ModelError> {
    let top = Top::read(spec, reader)?;
    let layers = (0..spec.layers.len()).map(|i| Layer::read(spec, i, reader));
    Ok((top, layers.collect::<Result<_, _>>()?))
}

impl Top {
    fn read(spec: &Spec, reader: &Reader) -> Result<Self, ModelError> {
        let table = [spec.vocab, spec.hidden];
        let embedding = reader.tensor("token_embd.weight", &table)?;
        let head = if spec.tied_head {
            reader.allow_unused("output.weight");
            embedding.clone()
        } else {
            reader.tensor("output.weight", &table)?
        };
        // the frequencies of the specification already contain these factors
        for divisors in [DIVISORS, SHORT_DIVISORS, LONG_DIVISORS] {
            reader.allow_unused(divisors);
        }
        let per_layer = spec.per_layer_inputs.as_ref();
        Ok(Top {
            embedding,
            head: reader.matrix_of(head)?,
            norm: reader.norm("output_norm.weight", spec.hidden, spec.norm_eps)?,
            per_layer: per_layer.map(|p| PerLayerProjection::read(spec, p, reader)).transpose()?,
        })
    }
}

impl PerLayerProjection {
    fn read(spec: &Spec, inputs: &PerLayerInputs, reader: &Reader) -> Result<Self, ModelError> {
        let width = spec.layers.len() * inputs.width;
        reader.table(PER_LAYER_TABLE, &[inputs.vocab, width])?;
        let norm = "per_layer_proj_norm.weight";
        Ok(PerLayerProjection {
            projection: reader.matrix("per_layer_model_proj.weight", &[width, spec.hidden])?,
            norm: reader.norm(norm, inputs.width, spec.norm_eps)?,
        })
    }
}

impl Decoder {
    pub(super) fn load(
        spec: &Spec,
        tensors: Arc<dyn Tensors>,
        device: &Device,
        residency: Residency,
    ) -> Result<Self, ModelError> {
        let (top, layers) = {
            let reader = Reader::reading(&*tensors, device);
            match residency {
                Residency::Resident => walk(spec, &reader)?,
                Residency::Streamed => (Top::read(spec, &reader)?, Vec::new()),
            }
        };
        let layers = layers.into_iter().map(Arc::new).collect();
        let tensors = Some(tensors);
        Ok(Decoder { spec: spec.clone(), device: device.clone(), tensors, top, layers })
    }

    /// A decoder with random weights, for benchmarks and for comparing devices: all that is real are its sizes. `maker`
    /// makes the numbers. A card makes the same ones each time.
    ///
    /// # Errors
    /// If a device has no memory for the weights.
    pub fn with_random_weights(
        spec: &Spec,
        maker: &Device,
        device: &Device,
    ) -> Result<Self, ModelError> {
        const SEED: u64 = 20_261_129;
        if !maker.at().is_cpu() {
            maker.at().set_seed(SEED)?;
        }
        let (top, layers) = walk(spec, &Reader::inventing(maker.at(), device))?;
        let layers = layers.into_iter().map(Arc::new).collect();
        Ok(Decoder { spec: spec.clone(), device: device.clone(), tensors: None, top, layers })
    }

    /// The device that it computes on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Looks up the embeddings of token ids, and the additional inputs that layers have for them.
    ///
    /// # Errors
    /// If an id is outside of the vocabulary, or the table of additional inputs cannot be read.
    pub fn embed(&self, ids: &[u32]) -> Result<Embedded, ModelError> {
        let rows = Tensor::new(ids, self.device.at())?;
        let x = self.top.embedding.index_select(&rows, 0)?;
        let x = x.affine(f64::from(self.spec.embed_scale), 0.0)?;
        let per_layer = self.per_layer_inputs(ids, &x)?;
        Ok(Embedded { x, per_layer })
    }

    /// The additional inputs of all layers: (norm(project(x)/√H) + √P·table[id]) / √2, (rows, L·P).
    fn per_layer_inputs(&self, ids: &[u32], x: &Tensor) -> Result<Option<Tensor>, ModelError> {
        let (Some(inputs), Some(weights)) = (&self.spec.per_layer_inputs, &self.top.per_layer)
        else {
            return Ok(None);
        };
        let (rows, layers) = (ids.len(), self.spec.layers.len());
        let table = match &self.tensors {
            Some(tensors) => {
                let own = tensors.origin(PER_LAYER_TABLE).parts.swap_remove(0);
                super::tensors::finite(&**tensors, &own, tensors.rows(&own, ids)?)?
            }
            None => invented_rows(ids, layers * inputs.width, self.device.at())?,
        };
        let table = table.to_device(self.device.at())?;
        let projected = weights.projection.product(x, 1)?;
        let projected = (projected / (self.spec.hidden as f64).sqrt())?;
        let normed = run(&weights.norm, [&projected.reshape((rows * layers, inputs.width))?])?
            .reshape((rows, layers * inputs.width))?;
        let sum = (normed + (table * (inputs.width as f64).sqrt())?)?;
        Ok(Some((sum * std::f64::consts::FRAC_1_SQRT_2)?))
    }

    /// RoPE tables for contexts of up to `tokens`.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn ropes(&self, tokens: usize) -> TensorResult<RopeTables> {
        RopeTables::new(&self.spec, tokens, &self.device)
    }

    /// Makes a layer ready, reading its weights if they are streamed.
    ///
    /// # Errors
    /// If the weights cannot be read or are not finite.
    pub fn ready(&self, index: usize, ropes: &RopeTables) -> Result<ReadyLayer, ModelError> {
        let layer = match (self.layers.get(index), &self.tensors) {
            (Some(layer), _) => layer.clone(),
            (None, Some(tensors)) => {
                let reader = Reader::reading(&**tensors, &self.device);
                Arc::new(Layer::read(&self.spec, index, &reader)?)
            }
            (None, None) => unreachable!("random weights are resident"),
        };
        Ok(ReadyLayer { index, layer, ropes: ropes.clone() })
    }

    /// Applies the final norm.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn normed(&self, x: &Tensor) -> TensorResult<Tensor> {
        norm(x, &self.top.norm)
    }

    /// The logits of the normed rows of some lanes for the vocabulary entries `start..start + len`, (rows, len).
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn logits(
        &self,
        normed: &Tensor,
        lanes: usize,
        start: usize,
        len: usize,
    ) -> TensorResult<Tensor> {
        let logits = self.top.head.rows(start, len)?.product(normed, lanes)?;
        let logits = match self.spec.logit_scale {
            1.0 => logits,
            scale => logits.affine(f64::from(scale), 0.0)?,
        };
        match self.spec.final_softcap {
            None => Ok(logits),
            Some(cap) => (logits / f64::from(cap))?.tanh()? * f64::from(cap),
        }
    }
}

/// Rows of a table that nobody has, of numbers from -0.035 to 0.035 that look random and are the same on every device.
fn invented_rows(ids: &[u32], width: usize, at: &candle_core::Device) -> TensorResult<Tensor> {
    const PERIOD: f64 = 257.0;
    let ids: Vec<f32> = ids.iter().map(|&id| id as f32).collect();
    let column = Tensor::new(ids, at)?.affine(31.0, 0.0)?.unsqueeze(1)?;
    let row = Tensor::arange(0f32, width as f32, at)?.affine(17.0, 0.0)?.unsqueeze(0)?;
    // whole numbers below 2^24, so that f32 holds them exactly
    let sum = column.broadcast_add(&row)?;
    let rest = (&sum - (&sum / PERIOD)?.floor()?.affine(PERIOD, 0.0)?)?;
    rest.affine(0.07 / PERIOD, -0.035)
}

impl ReadyLayer {
    /// Runs the layer on some tokens of B sequences: (B·T, H) → (B·T, H). `per_layer` is what
    /// [`Decoder::embed`] gave for the same rows.
    ///
    /// # Errors
    /// If the cache refuses the layer's K and V, or a tensor operation fails.
    pub fn run(
        &self,
        x: &Tensor,
        per_layer: Option<&Tensor>,
        rows: Rows,
        cache: &mut dyn KvCache,
    ) -> Result<Tensor, CacheError> {
        let sequences = x.dim(0)? / rows.tokens;
        let mut parts = [Part { rows, sequences, cache }];
        self.run_parts(x, per_layer, &mut parts).map_err(|refused| refused.error)
    }

    /// Runs the layer on the rows of several parts, of which each has a cache of its own and one lane.
    ///
    /// # Errors
    /// If a cache refuses the layer's K and V, or a tensor operation fails.
    pub(crate) fn run_parts(
        &self,
        x: &Tensor,
        per_layer: Option<&Tensor>,
        parts: &mut [Part],
    ) -> Result<Tensor, PartError> {
        let (x, watch) = self.layer.run(self.index, x, per_layer, parts, &self.ropes)?;
        watch.stored()?;
        Ok(x)
    }

    /// Runs the layer on the rows of several lanes, and returns what its ops have seen in each of them.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub(crate) fn watched(
        &self,
        x: &Tensor,
        per_layer: Option<&Tensor>,
        rows: Rows,
        cache: &mut dyn KvCache,
    ) -> Result<(Tensor, Watch), CacheError> {
        let sequences = x.dim(0)? / (rows.lanes * rows.tokens);
        let mut parts = [Part { rows, sequences, cache }];
        let ran = self.layer.run(self.index, x, per_layer, &mut parts, &self.ropes);
        ran.map_err(|refused| refused.error)
    }
}
