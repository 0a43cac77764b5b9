//! Families: one file each, which maps a checkpoint's configuration to the decoder's specification.
//! Adding a family is a file and a line in [`FAMILIES`].

mod accounts;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma4;
mod idle;
mod llama;
mod names;
mod qwen2;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod rope;

use names::Mlx;
pub(super) use names::Names;

use super::config::{Config, Format, Key};
use super::spec::{
    Activation, Attention, DeltaNet, Experts, FeedForward, Kv, Layer, Mixer, Mlp, Rope, Spec,
};
use super::tensors::Tensors;
use super::ModelError;
use accounts::Accounts;
use idle::Idle;
use std::path::Path;

/// How a family reads a checkpoint.
struct Family {
    /// Its names in `general.architecture`.
    gguf: &'static [&'static str],
    /// Its names in `model_type`.
    hf: &'static [&'static str],
    /// Names of its tensors in each format, where they differ from the usual ones.
    gguf_names: Names,
    hf_names: Names,
    /// What transformers' class takes where config.json does not have a key, as JSON. Keys that are
    /// neither here nor optional in `spec` are needed.
    hf_defaults: &'static str,
    /// Keys of this family that nobody reads, beside those of all families.
    idle: &'static [Idle],
    spec: fn(&dyn Tensors) -> Result<Spec, ModelError>,
}

const FAMILIES: &[Family] = &[
    gemma2::FAMILY,
    gemma3::FAMILY,
    gemma4::FAMILY,
    llama::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen3_5::FAMILY,
    qwen3_moe::FAMILY,
];

fn find(
    path: &Path,
    architecture: &str,
    names: fn(&Family) -> &'static [&'static str],
) -> Result<&'static Family, ModelError> {
    FAMILIES.iter().find(|family| names(family).contains(&architecture)).ok_or_else(|| {
        let known: Vec<_> = FAMILIES.iter().flat_map(names).copied().collect();
        ModelError::UnknownArchitecture {
            path: path.into(),
            architecture: architecture.into(),
            known: known.join(", "),
        }
    })
}

/// Tensor names of a GGUF architecture.
pub(super) fn gguf_names(path: &Path, architecture: &str) -> Result<Names, ModelError> {
    Ok(find(path, architecture, |family| family.gguf)?.gguf_names)
}

/// Tensor names of a model type of transformers, and what its configuration leaves out.
pub(super) fn hf(path: &Path, model_type: &str) -> Result<(Names, &'static str), ModelError> {
    let family = find(path, model_type, |family| family.hf)?;
    Ok((family.hf_names, family.hf_defaults))
}

/// The specification of a checkpoint, and what people should know about its keys. All of them are
/// accounted for, but those that the policy lets pass.
pub(super) fn read(
    file: &dyn Tensors,
    ignore_keys: &[String],
) -> Result<(Spec, Vec<String>), ModelError> {
    let names: fn(&Family) -> _ = match file.format() {
        Format::Gguf => |family| family.gguf,
        Format::Hf => |family| family.hf,
    };
    let family = find(file.path(), file.architecture(), names)?;
    let accounts = Accounts::new(file);
    let spec = (family.spec)(&accounts).map_err(|error| accounts.explained(error))?;
    check(file, &spec)?;
    let notes = accounts.close(family, ignore_keys)?;
    Ok((spec, notes))
}

/// What every family must satisfy, so that a hostile header is an error and not a panic.
fn check(config: &dyn Config, spec: &Spec) -> Result<(), ModelError> {
    let sound = || {
        sizes(&[("hidden size", spec.hidden), ("vocabulary", spec.vocab)])?;
        demand(!spec.layers.is_empty(), || "a model without layers".into())?;
        demand(spec.norm_eps > 0.0, || format!("an ε of {} in norms", spec.norm_eps))?;
        if let Some(inputs) = &spec.per_layer_inputs {
            sizes(&[("width of per-layer inputs", inputs.width), ("vocabulary", inputs.vocab)])?;
        }
        for (index, layer) in spec.layers.iter().enumerate() {
            layer_is_sound(spec, index, layer).map_err(|what| format!("{what} (layer {index})"))?;
        }
        Ok(())
    };
    sound().map_err(|what: String| config.unsupported(what))
}

/// Refuses sizes from a header before anything is made by them.
fn bounded(config: &dyn Config, named: &[(&str, usize)]) -> Result<(), ModelError> {
    sizes(named).map_err(|what| config.unsupported(what))
}

fn demand(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    match holds {
        true => Ok(()),
        false => Err(what()),
    }
}

/// Whether all are at least 1 and no more than any model has: products of them stay far from overflow.
fn sizes(named: &[(&str, usize)]) -> Result<(), String> {
    const MOST: usize = 1 << 20;
    match named.iter().find(|(_, n)| !(1..=MOST).contains(n)) {
        None => Ok(()),
        Some((name, n)) => Err(format!("an absurd {name} of {n}")),
    }
}

fn layer_is_sound(spec: &Spec, index: usize, layer: &Layer) -> Result<(), String> {
    match &layer.mixer {
        Mixer::Attention(attention) => {
            attention_is_sound(attention)?;
            if let Kv::Shared { owner } = attention.kv {
                let below = spec.layers[..index].get(owner).and_then(Layer::attention);
                let fits = |o: &Attention| {
                    let geometry = |a: &Attention| (a.kv_heads, a.head_dim, a.window);
                    o.owns_kv() && geometry(o) == geometry(attention)
                };
                demand(below.is_some_and(fits), || format!("sharing the cache of layer {owner}"))?;
            }
        }
        Mixer::DeltaNet(net) => delta_net_is_sound(net)?,
    }
    let (mlp, experts) = match &layer.feed_forward {
        FeedForward::Dense(mlp) => (Some(mlp), None),
        FeedForward::Experts(experts) => (None, Some(experts)),
        FeedForward::Both(mlp, experts) => (Some(mlp), Some(experts)),
    };
    sizes(&mlp.map(|mlp| ("MLP width", mlp.width)).into_iter().collect::<Vec<_>>())?;
    experts.map_or(Ok(()), experts_are_sound)
}

fn attention_is_sound(a: &Attention) -> Result<(), String> {
    sizes(&[("number of heads", a.heads), ("number of KV heads", a.kv_heads)])?;
    sizes(&[("head size", a.head_dim), ("window", a.window.unwrap_or(1))])?;
    sizes(&[("width of Q", a.q_width())])?;
    let (heads, kv_heads, dim) = (a.heads, a.kv_heads, a.head_dim);
    demand(heads.is_multiple_of(kv_heads), || format!("{kv_heads} KV heads for {heads} heads"))?;
    demand(dim.is_multiple_of(2), || format!("an odd head size of {dim}"))?;
    let turns = &a.rope.frequencies;
    let sound = 2 * turns.len() <= dim && turns.iter().all(|f| f.is_finite());
    demand(sound, || format!("RoPE with {} pairs in heads of {dim}", turns.len()))
}

fn delta_net_is_sound(d: &DeltaNet) -> Result<(), String> {
    sizes(&[("number of key heads", d.key_heads), ("number of value heads", d.value_heads)])?;
    sizes(&[("key size", d.key_dim), ("value size", d.value_dim), ("kernel", d.kernel)])?;
    demand(d.kernel > 1, || "a convolution over single tokens".into())?;
    sizes(&[("width of keys", d.key_width()), ("width of values", d.value_width())])?;
    let (values, keys) = (d.value_heads, d.key_heads);
    demand(values.is_multiple_of(keys), || format!("{values} value heads for {keys} key heads"))
}

fn experts_are_sound(e: &Experts) -> Result<(), String> {
    sizes(&[("number of experts", e.count), ("number of experts a token", e.used)])?;
    sizes(&[("expert width", e.width), ("shared expert's width", e.shared.unwrap_or(1))])?;
    demand(e.used <= e.count, || format!("{} of {} experts a token", e.used, e.count))
}

const LAYERS: Key<'static> = Key { gguf: "block_count", hf: "num_hidden_layers" };
const HIDDEN: Key<'static> = Key { gguf: "embedding_length", hf: "hidden_size" };
const VOCAB: Key<'static> = Key { gguf: "", hf: "vocab_size" };
const CONTEXT: Key<'static> = Key { gguf: "context_length", hf: "max_position_embeddings" };
const NORM_EPS: Key<'static> = Key { gguf: "attention.layer_norm_rms_epsilon", hf: "rms_norm_eps" };
/// transformers' class decides where the key is absent; GGUF leaves the head out where it is tied.
const TIED: Key<'static> = Key { gguf: "", hf: "tie_word_embeddings" };
const HEADS: Key<'static> = Key { gguf: "attention.head_count", hf: "num_attention_heads" };
const KV_HEADS: Key<'static> = Key { gguf: "attention.head_count_kv", hf: "num_key_value_heads" };
const HEAD_DIM: Key<'static> = Key { gguf: "attention.key_length", hf: "head_dim" };
const VALUE_DIM: Key<'static> = Key { gguf: "attention.value_length", hf: "" };
const MLP: Key<'static> = Key { gguf: "feed_forward_length", hf: "intermediate_size" };
const WINDOW: Key<'static> = Key { gguf: "attention.sliding_window", hf: "sliding_window" };
const LAYER_TYPES: Key<'static> = Key { gguf: "", hf: "layer_types" };
const EXPERTS: Key<'static> = Key { gguf: "expert_count", hf: "num_experts" };
const EXPERTS_USED: Key<'static> = Key { gguf: "expert_used_count", hf: "num_experts_per_tok" };
const EXPERT_MLP: Key<'static> =
    Key { gguf: "expert_feed_forward_length", hf: "moe_intermediate_size" };
const ATTENTION_BIAS: Key<'static> = Key { gguf: "", hf: "attention_bias" };
const MLP_BIAS: Key<'static> = Key { gguf: "", hf: "mlp_bias" };
const ATTENTION_SCALAR: Key<'static> = Key { gguf: "", hf: "query_pre_attn_scalar" };
const ATTENTION_SOFTCAP: Key<'static> =
    Key { gguf: "attn_logit_softcapping", hf: "attn_logit_softcapping" };
const FINAL_SOFTCAP: Key<'static> =
    Key { gguf: "final_logit_softcapping", hf: "final_logit_softcapping" };
const ACTIVATION: Key<'static> = Key { gguf: "", hf: "hidden_act" };
const GEMMA_ACTIVATION: Key<'static> = Key { gguf: "", hf: "hidden_activation" };

/// What a layer's attention reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Full,
    Sliding,
}

/// The parts of a specification that every family spells alike; no layers yet.
fn common(file: &dyn Tensors) -> Result<Spec, ModelError> {
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
        // a head in the file is the head, whatever the configuration says
        tied_head: !file.has("output.weight") && config.optional_flag(TIED)?.unwrap_or(gguf),
        norm_eps: config.float(NORM_EPS)? as f32,
        final_softcap: None,
        per_layer_inputs: None,
        layers: Vec::new(),
        ignored_tensors: Vec::new(),
    })
}

/// The number of layers. The last one must be there: a damaged count is told before layers are made
/// by it.
fn layers(file: &dyn Tensors, count: usize) -> Result<usize, ModelError> {
    let tensors = file.names().len();
    if count > tensors {
        let config: &dyn Config = file;
        return Err(config.unsupported(format!("{count} layers in {tensors} tensors")));
    }
    let last =
        count.checked_sub(1).map(|last| file.origin(&format!("blk.{last}.attn_norm.weight")));
    match last.and_then(|origin| origin.parts.into_iter().find(|own| file.shape(own).is_none())) {
        None => Ok(count),
        Some(tensor) => Err(ModelError::MissingTensor { path: file.path().into(), tensor }),
    }
}

fn layer_count(file: &dyn Tensors) -> Result<usize, ModelError> {
    let config: &dyn Config = file;
    layers(file, config.number(LAYERS)?)
}

/// A cap. `gguf` is what llama.cpp takes where a GGUF file does not have the key; its zero is none.
fn softcap(config: &dyn Config, key: Key, gguf: f64) -> Result<Option<f32>, ModelError> {
    let absent = if config.format() == Format::Gguf { gguf } else { 0.0 };
    let cap = config.optional_float(key)?.unwrap_or(absent);
    if cap == 0.0 && config.format() == Format::Hf && config.has(key) {
        return Err(config.bad(key, "is 0, by which transformers divides: null means none"));
    }
    Ok((cap != 0.0).then_some(cap as f32))
}

/// Full attention, scaled by 1/√d, without norms, from numbers that every family spells alike.
fn attention(
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

fn plain_attention(heads: usize, kv_heads: usize, head_dim: usize, rope: Rope) -> Attention {
    Attention {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        softcap: None,
        window: None,
        kv: Kv::Projected,
        qkv_bias: false,
        output_bias: false,
        qk_norm: false,
        v_norm: false,
        gated: false,
        rope,
    }
}

/// A layer as Llama and the families after it have them: two norms, SiLU.
fn llama_layer(mixer: Mixer, feed_forward: FeedForward) -> Layer {
    let activation = Activation::Silu;
    Layer { mixer, feed_forward, activation, post_norms: false, scaled: false }
}

fn mlp(config: &dyn Config) -> Result<Mlp, ModelError> {
    Ok(Mlp { width: config.number(MLP)?, bias: false })
}

/// Refuses an activation that is not the family's.
fn activation(config: &dyn Config, key: Key, expected: &str) -> Result<(), ModelError> {
    // transformers' other name of the same function
    let named =
        config.optional_text(key)?.map(|name| if name == "swish" { "silu".into() } else { name });
    match named {
        Some(other) if other != expected => {
            Err(config.unsupported(format!("the activation `{other}`")))
        }
        _ => Ok(()),
    }
}

/// A square root's inverse, or 1/√d where the file names no scalar of its own.
fn scale(config: &dyn Config, attention: &Attention) -> Result<f32, ModelError> {
    let scalar = config.optional_float(ATTENTION_SCALAR)?;
    if scalar.is_some_and(|scalar| scalar <= 0.0) {
        return Err(config.bad(ATTENTION_SCALAR, "must be positive"));
    }
    Ok(scalar.map_or(attention.scale, |scalar| (scalar as f32).powf(-0.5)))
}
