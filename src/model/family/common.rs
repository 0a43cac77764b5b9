//! What a family is, and the parts of a specification that several families spell alike.

use super::idle::Idle;
use super::keys::{
    ATTENTION_SCALAR, CONTEXT, HEADS, HEAD_DIM, HIDDEN, KV_HEADS, LAYERS, MLP, NORM_EPS, TIED,
    VALUE_DIM, VOCAB,
};
use super::names::Names;
use super::sound::bounded;
use crate::model::config::{Config, Format, Key};
use crate::model::spec::{
    Activation, Attention, Experts, FeedForward, Kv, Layer, Mixer, Mlp, QkNorm, Rope, Scoring, Spec,
};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

/// How a family reads a checkpoint.
pub(super) struct Family {
    /// Its names in `general.architecture`.
    pub gguf: &'static [&'static str],
    /// Its names in `model_type`.
    pub hf: &'static [&'static str],
    /// Names of its tensors in GGUF files and in safetensors.
    pub gguf_names: Names,
    pub hf_names: Names,
    /// The defaults of transformers' class for keys that config.json leaves out, as JSON. A key that has no default
    /// here and is not optional in `spec` must be in the file.
    pub hf_defaults: &'static str,
    /// Keys of this family that nothing reads, in addition to those of all families.
    pub idle: &'static [Idle],
    pub spec: fn(&dyn Tensors) -> Result<Spec, ModelError>,
}

/// How far back the attention of a layer reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    Full,
    Sliding,
}

/// The parts of a specification that every family spells alike. It has no layers yet.
pub(super) fn common(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let vocab = match file.format() {
        Format::Hf => config.number(VOCAB)?,
        Format::Gguf => match file.shape("token_embd.weight").as_deref() {
            Some([rows, _]) => *rows,
            _ => 0,
        },
    };
    let gguf = file.format() == Format::Gguf;
    Ok(Spec {
        architecture: file.architecture().into(),
        hidden: config.number(HIDDEN)?,
        vocab,
        trained_context: config.number(CONTEXT)?,
        embed_scale: 1.0,
        // if the file has a head, it is used, whatever the configuration says
        tied_head: !file.has("output.weight") && config.optional_flag(TIED)?.unwrap_or(gguf),
        norm_eps: config.float(NORM_EPS)? as f32,
        logit_scale: 1.0,
        final_softcap: None,
        per_layer_inputs: None,
        layers: Vec::new(),
        ignored_tensors: Vec::new(),
    })
}

/// A norm that every layer of most families has.
const FIRST_NORM: &str = "attn_norm.weight";

/// The number of layers. The file must have the last one, so that a damaged count is an error before that many layers
/// are made.
pub(super) fn layers(file: &dyn Tensors, count: usize) -> Result<usize, ModelError> {
    layers_with(FIRST_NORM, file, count)
}

/// The same for layers that have a tensor of another name.
pub(super) fn layers_with(
    part: &str,
    file: &dyn Tensors,
    count: usize,
) -> Result<usize, ModelError> {
    let tensors = file.names().len();
    if count > tensors {
        let config: &dyn Config = file;
        return Err(config.unsupported(format!("{count} layers in {tensors} tensors")));
    }
    let last = count.checked_sub(1).map(|last| file.origin(&format!("blk.{last}.{part}")));
    match last.and_then(|origin| origin.parts.into_iter().find(|own| file.shape(own).is_none())) {
        None => Ok(count),
        Some(tensor) => Err(ModelError::missing_tensor(file.path(), &tensor)),
    }
}

pub(super) fn layer_count(file: &dyn Tensors) -> Result<usize, ModelError> {
    let config: &dyn Config = file;
    layers(file, config.number(LAYERS)?)
}

/// A soft cap. `gguf` is llama.cpp's default if a GGUF file does not have the key, where 0 means no cap.
pub(super) fn softcap(config: &dyn Config, key: Key, gguf: f64) -> Result<Option<f32>, ModelError> {
    let absent = if config.format() == Format::Gguf { gguf } else { 0.0 };
    let cap = config.optional_float(key)?.unwrap_or(absent);
    if cap == 0.0 && config.format() == Format::Hf && config.has(key) {
        return Err(config.bad(key, "is 0, by which transformers divides: null means none"));
    }
    Ok((cap != 0.0).then_some(cap as f32))
}

/// Full attention without norms, scaled by 1/√d. Its numbers stand under keys that every family spells alike.
pub(super) fn attention(
    config: &dyn Config,
    hidden: usize,
    rope: impl FnOnce(usize) -> Result<Rope, ModelError>,
) -> Result<Attention, ModelError> {
    let heads = config.number(HEADS)?;
    let head_dim = match config.optional_number(HEAD_DIM)? {
        Some(dim) => dim,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    bounded(config, &[("number of heads", heads), ("head size", head_dim)])?;
    if config.optional_number(VALUE_DIM)?.is_some_and(|v| v != head_dim) {
        return Err(config.unsupported("a V head of another size than the K head"));
    }
    let kv_heads = config.optional_number(KV_HEADS)?.unwrap_or(heads);
    Ok(plain_attention(heads, kv_heads, head_dim, rope(head_dim)?))
}

/// Fails unless a GGUF file has what belongs to each of some layers that predict further tokens. A wrong count would take
/// layers of the model itself for such layers.
pub(super) fn predict_further(
    file: &dyn Tensors,
    key: Key,
    layers: std::ops::Range<usize>,
) -> Result<(), ModelError> {
    let (config, names): (&dyn Config, _) = (file, file.names());
    for layer in layers {
        let start = format!("blk.{layer}.nextn.");
        if !names.iter().any(|name| name.starts_with(&start)) {
            return Err(config.bad(key, format!("counts layer {layer}, which has no {start}*")));
        }
    }
    Ok(())
}

/// Whether a GGUF file has biases of Q, K and V, each by itself or joined.
pub(super) fn has_qkv_bias(file: &dyn Tensors) -> bool {
    file.has("blk.0.attn_q.bias") || file.has("blk.0.attn_qkv.bias")
}

pub(super) fn plain_attention(
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rope: Rope,
) -> Attention {
    Attention {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        softcap: None,
        window: None,
        kv: Kv::Projected,
        fused: false,
        own_scores: false,
        qkv_bias: false,
        output_bias: false,
        qk_norm: QkNorm::None,
        v_norm: false,
        gated: false,
        rope,
        cache_scales: None,
    }
}

/// A layer of Llama and of the families after it: two norms, SiLU.
pub(super) fn llama_layer(mixer: Mixer, feed_forward: FeedForward) -> Layer {
    Layer {
        mixer,
        feed_forward,
        activation: Activation::Silu,
        pre_norms: true,
        post_norms: false,
        added_scale: 1.0,
        scaled: false,
    }
}

/// Experts as most families have them: weighed by a softmax over those that were chosen, without biases, and without
/// a shared expert.
pub(super) fn plain_experts(count: usize, used: usize, width: usize) -> Experts {
    Experts {
        count,
        used,
        width,
        scoring: Scoring::Softmax,
        normalised: true,
        factor: 1.0,
        biases: false,
        shared: None,
        scaled_router: false,
    }
}

pub(super) fn mlp(config: &dyn Config) -> Result<Mlp, ModelError> {
    Ok(Mlp { width: config.number(MLP)?, bias: false, fused: false })
}

/// Refuses an activation that is not the family's.
pub(super) fn activation(config: &dyn Config, key: Key, expected: &str) -> Result<(), ModelError> {
    // `swish` is another name for the same function in transformers
    let named =
        config.optional_text(key)?.map(|name| if name == "swish" { "silu".into() } else { name });
    match named {
        Some(other) if other != expected => {
            Err(config.unsupported(format!("the activation `{other}`")))
        }
        _ => Ok(()),
    }
}

/// The factor of the scores: 1/√scalar if the file names a scalar, else 1/√d.
pub(super) fn scale(config: &dyn Config, attention: &Attention) -> Result<f32, ModelError> {
    let scalar = config.optional_float(ATTENTION_SCALAR)?;
    if scalar.is_some_and(|scalar| scalar <= 0.0) {
        return Err(config.bad(ATTENTION_SCALAR, "must be positive"));
    }
    Ok(scalar.map_or(attention.scale, |scalar| (scalar as f32).powf(-0.5)))
}
