//! `gemma4`: E2B, E4B, 26B-A4B and 31B. Layers with full attention have larger heads than sliding layers. Scores are
//! not scaled, and V is normalised. The small models have additional inputs for each layer, and their upper layers
//! read the caches of lower layers. The large models have experts, or take V from K.

use super::common::{
    activation, common, layer_count, plain_attention, plain_experts, softcap, Family, Reach,
};
use super::gemma::{causal, gemma_layer, reaches, POST_NORMS};
use super::idle::{hf, Any};
use super::keys::{
    EXPERTS, EXPERTS_USED, EXPERT_MLP, FINAL_SOFTCAP, GEMMA_ACTIVATION, HEADS, KV_HEADS, MLP,
    WINDOW,
};
use super::names;
use super::names::{Mlx, Names};
use super::rope::{rope, Layout, Wanted, DIVISORS, USUAL};
use super::sound::bounded;
use crate::model::config::{Config, Format, Key};
use crate::model::spec::{
    Attention, Experts, FeedForward, Kv, Layer, Mixer, Mlp, PerLayerInputs, QkNorm, Spec,
};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["gemma4"],
    hf: &["gemma4_text", "gemma4", "gemma4_unified_text"],
    // a factor of each expert. llama.cpp's converter multiplies the scales of NVFP4 into it
    gguf_names: Names { own_scales: &["ffn_down_exps.scale"], ..names::GGUF },
    hf_names: Names { own: HF_OWN, mlx: Mlx { own: MLX_OWN, ..names::MLX }, ..names::HF },
    // Gemma4TextConfig
    hf_defaults: r#"{
    "tie_word_embeddings": true, "num_key_value_heads": 4, "head_dim": 256, "global_head_dim": 512,
    "sliding_window": 512, "vocab_size_per_layer_input": 262144, "hidden_size_per_layer_input": 256,
    "rope_parameters": {
        "full_attention": {
            "rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0
        },
        "sliding_attention": { "rope_type": "default", "rope_theta": 10000.0 }
    }
}"#,
    idle: &[hf("hidden_act", Any, "Gemma4TextMLP takes hidden_activation")],
    spec,
};

const HF_OWN: &[(&str, &str)] = &[
    POST_NORMS[0],
    POST_NORMS[1],
    POST_NORMS[2],
    ("layer_output_scale.weight", "layer_scalar"),
    ("per_layer_token_embd", "embed_tokens_per_layer"),
    ("per_layer_model_proj", "per_layer_model_projection"),
    ("per_layer_proj_norm", "per_layer_projection_norm"),
    ("inp_gate", "per_layer_input_gate"),
    ("proj", "per_layer_projection"),
    ("post_norm", "post_per_layer_input_norm"),
    ("ffn_gate_inp.weight", "router.proj.weight"),
    ("ffn_gate_inp.scale", "router.scale"),
    ("ffn_down_exps.scale", "router.per_expert_scale"),
    ("ffn_gate_up_exps.weight", "experts.gate_up_proj"),
    ("ffn_down_exps.weight", "experts.down_proj"),
    ("pre_ffw_norm_2", "pre_feedforward_layernorm_2"),
    ("post_ffw_norm_1", "post_feedforward_layernorm_1"),
    ("post_ffw_norm_2", "post_feedforward_layernorm_2"),
];

/// Names that MLX's converter gives to experts.
const MLX_OWN: &[(&str, &str)] = &[
    ("ffn_gate_exps.weight", "experts.switch_glu.gate_proj.weight"),
    ("ffn_up_exps.weight", "experts.switch_glu.up_proj.weight"),
    ("ffn_down_exps.weight", "experts.switch_glu.down_proj.weight"),
];

const SLIDING: Key = Key { gguf: "attention.sliding_window_pattern", hf: "" };
const SLIDING_DIM: Key = Key { gguf: "attention.key_length_swa", hf: "head_dim" };
const FULL_DIM: Key = Key { gguf: "attention.key_length", hf: "global_head_dim" };
const FULL_KV_HEADS: Key = Key { gguf: "", hf: "num_global_key_value_heads" };
const KEY_IS_VALUE: Key = Key { gguf: "", hf: "attention_k_eq_v" };
const SHARED: Key = Key { gguf: "attention.shared_kv_layers", hf: "num_kv_shared_layers" };
const DOUBLE_WIDE: Key = Key { gguf: "", hf: "use_double_wide_mlp" };
const INPUTS: Key =
    Key { gguf: "embedding_length_per_layer_input", hf: "hidden_size_per_layer_input" };
const INPUTS_VOCAB: Key = Key { gguf: "", hf: "vocab_size_per_layer_input" };
const HAS_EXPERTS: Key = Key { gguf: "", hf: "enable_moe_block" };
const EXPERTS_USED_HF: Key = Key { gguf: EXPERTS_USED.gguf, hf: "top_k_experts" };

const LAYER_CONFIG: Key = Key { gguf: "", hf: "per_layer_config" };
/// Keys with the sizes of V's heads. They must equal those of K.
const VALUE_DIMS: [(Key, Key); 2] = [
    (Key { gguf: "attention.value_length", hf: "" }, FULL_DIM),
    (Key { gguf: "attention.value_length_swa", hf: "" }, SLIDING_DIM),
];

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, GEMMA_ACTIVATION, "gelu_pytorch_tanh")?;
    causal(config)?;
    let count = layer_count(file)?;
    let reaches = layer_reaches(config, count)?;
    // transformers' class shares none by default; every converter to GGUF writes the number
    let shared = match file.format() {
        Format::Hf => config.optional_number(SHARED)?.unwrap_or(0),
        Format::Gguf => config.number(SHARED)?,
    };
    let first_shared = count.saturating_sub(shared);
    let heads = kv_heads(config, &reaches)?;
    let widths = mlp_widths(config, count, first_shared)?;
    let kinds = Kinds::read(file, &heads, &reaches)?;
    let experts = experts(config)?;
    let mut layers = Vec::new();
    for (i, &reach) in reaches.iter().enumerate() {
        let kind = match reach {
            Reach::Full => &kinds.full,
            Reach::Sliding => &kinds.sliding,
        };
        let kv = if i >= first_shared {
            Kv::Shared { owner: owner(config, &reaches[..first_shared], reach)? }
        } else if reach == Reach::Full && kinds.key_is_value(file, i)? {
            Kv::KeyIsValue
        } else {
            Kv::Projected
        };
        let mlp = Mlp { width: widths[i], bias: false, fused: false };
        let attention = Attention { kv_heads: heads[i].count, kv, ..kind.clone() };
        let feed_forward = match &experts {
            Some(experts) => FeedForward::Both(mlp, experts.clone()),
            None => FeedForward::Dense(mlp),
        };
        let layer = gemma_layer(Mixer::Attention(attention), feed_forward);
        layers.push(Layer { scaled: true, ..layer });
    }
    let per_layer_inputs = per_layer_inputs(file, spec.vocab)?;
    let embed_scale = (spec.hidden as f32).sqrt();
    // llama.cpp takes the cap of `llama_hparams`, transformers' class none
    let final_softcap = softcap(config, FINAL_SOFTCAP, 30.0)?;
    Ok(Spec { embed_scale, final_softcap, per_layer_inputs, layers, ..spec })
}

/// The owner of the cache that a layer without its own reads: the last layer of the same kind that has one.
fn owner(config: &dyn Config, owning: &[Reach], reach: Reach) -> Result<usize, ModelError> {
    let last = owning.iter().rposition(|&own| own == reach);
    last.ok_or_else(|| config.bad(SHARED, "leaves no layer whose cache the shared ones could read"))
}

/// The reach of each layer. GGUF has a flag for each one. In transformers' class every sixth layer has full attention
/// if the file does not say, and the last layer always has.
fn layer_reaches(config: &dyn Config, count: usize) -> Result<Vec<Reach>, ModelError> {
    let kind = |sliding: bool| if sliding { Reach::Sliding } else { Reach::Full };
    if config.format() == Format::Gguf {
        let flags = config.flags(SLIDING, count)?;
        let flags = flags.ok_or_else(|| config.bad(SLIDING, "is missing"))?;
        return Ok(flags.into_iter().map(kind).collect());
    }
    let mut reaches = reaches(config, count, |i| kind(!(i + 1).is_multiple_of(6)))?;
    if let Some(last) = reaches.last_mut() {
        *last = Reach::Full;
    }
    Ok(reaches)
}

/// Number and size of a layer's heads of K and V.
#[derive(Clone, Copy, PartialEq)]
struct KvHeads {
    count: usize,
    dim: usize,
}

fn kv_heads(config: &dyn Config, reaches: &[Reach]) -> Result<Vec<KvHeads>, ModelError> {
    let counts = config.numbers(KV_HEADS, reaches.len())?;
    let counts = counts.ok_or_else(|| config.bad(KV_HEADS, "is missing"))?;
    let sliding = config.number(SLIDING_DIM)?;
    let full = config.number(FULL_DIM)?;
    if config.format() == Format::Gguf {
        value_heads(config)?;
        let dim = |reach: &Reach| if *reach == Reach::Full { full } else { sliding };
        let heads = counts.into_iter().zip(reaches.iter().map(dim));
        return Ok(heads.map(|(count, dim)| KvHeads { count, dim }).collect());
    }
    // the class looks at the number of full layers' KV heads only where V is K
    let own_count = config
        .optional_number(FULL_KV_HEADS)?
        .filter(|_| config.flag(KEY_IS_VALUE).is_ok_and(|v| v));
    let usual = counts.into_iter().zip(reaches).map(|(count, reach)| match reach {
        Reach::Full => KvHeads { count: own_count.unwrap_or(count), dim: full },
        Reach::Sliding => KvHeads { count, dim: sliding },
    });
    let usual: Vec<_> = usual.collect();
    if !config.has(LAYER_CONFIG) {
        return Ok(usual);
    }
    let layers = reaches.iter().zip(&usual).enumerate();
    layers.map(|(i, (_, usual))| configured(config, i, *usual, sliding)).collect()
}

/// The heads of a layer, if `per_layer_config` describes each layer. transformers' class then ignores the keys about
/// full layers, so they must not contradict it.
fn configured(
    config: &dyn Config,
    layer: usize,
    usual: KvHeads,
    dim: usize,
) -> Result<KvHeads, ModelError> {
    let own = |name: &str| {
        let hf = format!("per_layer_config.{layer}.{name}");
        config.optional_number(Key { gguf: "", hf: &hf })
    };
    let count = match own("num_key_value_heads")? {
        Some(count) => count,
        None => config.number(KV_HEADS)?,
    };
    let heads = KvHeads { count, dim: own("head_dim")?.unwrap_or(dim) };
    let contradicted =
        [(FULL_DIM, heads.dim != usual.dim), (FULL_KV_HEADS, heads.count != usual.count)];
    match contradicted.into_iter().find(|(key, other)| *other && config.in_file(*key)) {
        None => Ok(heads),
        Some((key, _)) => {
            Err(config.bad(key, format!("contradicts `per_layer_config` (layer {layer})")))
        }
    }
}

/// Refuses heads of V whose size is not that of K.
fn value_heads(config: &dyn Config) -> Result<(), ModelError> {
    for (value, key) in VALUE_DIMS {
        let dim = config.number(key)?;
        if config.optional_number(value)?.is_some_and(|value| value != dim) {
            return Err(config.bad(value, format!("is not the {dim} of K's heads")));
        }
    }
    Ok(())
}

/// Width of each layer's MLP. A flag in config.json doubles it for layers that share a cache.
fn mlp_widths(
    config: &dyn Config,
    count: usize,
    first_shared: usize,
) -> Result<Vec<usize>, ModelError> {
    let widths = config.numbers(MLP, count)?.ok_or_else(|| config.bad(MLP, "is missing"))?;
    let double = config.flag(DOUBLE_WIDE)?;
    let width =
        |(i, width): (usize, usize)| if double && i >= first_shared { 2 * width } else { width };
    Ok(widths.into_iter().enumerate().map(width).collect())
}

/// The attention of both kinds of layers.
struct Kinds {
    full: Attention,
    sliding: Attention,
    /// Whether config.json says that full layers take V from K. In GGUF the tensor of V is missing instead.
    key_is_value: bool,
}

impl Kinds {
    fn read(file: &dyn Tensors, owned: &[KvHeads], reaches: &[Reach]) -> Result<Self, ModelError> {
        let config: &dyn Config = file;
        let heads = config.number(HEADS)?;
        let sliding_dim = dim_of(config, owned, reaches, Reach::Sliding)?;
        let full_dim = dim_of(config, owned, reaches, Reach::Full)?;
        bounded(config, &[("number of heads", heads), ("head size", sliding_dim.max(full_dim))])?;
        if file.format() == Format::Gguf && !file.has(DIVISORS) {
            return Err(ModelError::missing_tensor(file.path(), DIVISORS));
        }
        let kinds = |reach| Wanted { reach, layout: Layout::ByKind, divisors: true, ..USUAL };
        // KV heads are each layer's own
        let kind = |head_dim, rope| Attention {
            scale: 1.0,
            qk_norm: QkNorm::Heads,
            v_norm: true,
            ..plain_attention(heads, heads, head_dim, rope)
        };
        let full = kind(full_dim, rope(file, &kinds(Reach::Full), full_dim)?);
        let sliding = Attention {
            window: Some(config.number(WINDOW)?),
            ..kind(sliding_dim, rope(file, &kinds(Reach::Sliding), sliding_dim)?)
        };
        Ok(Kinds { full, sliding, key_is_value: config.flag(KEY_IS_VALUE)? })
    }

    fn key_is_value(&self, file: &dyn Tensors, layer: usize) -> Result<bool, ModelError> {
        Ok(match file.format() {
            Format::Hf => self.key_is_value,
            Format::Gguf => !file.has(&format!("blk.{layer}.attn_v.weight")),
        })
    }
}

/// The head size that all layers of a kind share.
fn dim_of(
    config: &dyn Config,
    owned: &[KvHeads],
    reaches: &[Reach],
    kind: Reach,
) -> Result<usize, ModelError> {
    let dims = owned.iter().zip(reaches).filter(|(_, reach)| **reach == kind);
    let mut dims = dims.map(|(heads, _)| heads.dim);
    let Some(first) = dims.next() else {
        // no layer is of this kind: the size is not used
        return config.number(SLIDING_DIM);
    };
    if dims.all(|dim| dim == first) {
        Ok(first)
    } else {
        Err(config.unsupported("heads of several sizes in layers of one kind"))
    }
}

fn experts(config: &dyn Config) -> Result<Option<Experts>, ModelError> {
    let has = match config.format() {
        Format::Hf => config.flag(HAS_EXPERTS)?,
        Format::Gguf => config.optional_number(EXPERTS)?.unwrap_or(0) > 0,
    };
    let experts = || {
        let (count, used) = (config.number(EXPERTS)?, config.number(EXPERTS_USED_HF)?);
        let plain = plain_experts(count, used, config.number(EXPERT_MLP)?);
        Ok(Experts { scaled_router: true, ..plain })
    };
    has.then(experts).transpose()
}

fn per_layer_inputs(
    file: &dyn Tensors,
    vocab: usize,
) -> Result<Option<PerLayerInputs>, ModelError> {
    let config: &dyn Config = file;
    let width = config.number(INPUTS)?;
    let vocab = config.optional_number(INPUTS_VOCAB)?.unwrap_or(vocab);
    Ok((width > 0).then_some(PerLayerInputs { width, vocab }))
}
