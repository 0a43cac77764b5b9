//! `gemma4`: E2B, E4B, 26B-A4B and 31B. Full layers have larger heads than sliding ones; scores are not
//! scaled; V is normalised. The small models add inputs for each layer and let the upper layers read
//! the caches of lower ones; the large ones have experts, or take V from K.

use super::gemma::{causal, reaches, POST_NORMS};
use super::rope::{rope, Wanted, DIVISORS, USUAL};
use super::{
    activation, bounded, common, expert_count, layer_count, names, plain_attention, Family, Mlx,
    Names, Reach,
};
use super::{EXPERTS, EXPERTS_USED, EXPERT_MLP, GEMMA_ACTIVATION, HEADS, KV_HEADS, MLP, WINDOW};
use crate::model::config::{Config, Format, Key};
use crate::model::spec::{
    Activation, Attention, Experts, FeedForward, Kv, Layer, Mixer, Mlp, PerLayerInputs, Spec,
};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["gemma4"],
    hf: &["gemma4_text", "gemma4", "gemma4_unified_text"],
    gguf_names: names::GGUF,
    hf_names: Names { own: HF_OWN, mlx: Mlx { own: MLX_OWN, ..names::MLX }, ..names::HF },
    hf_defaults: r#"{
    "rope_parameters": {
        "full_attention": {
            "rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0
        },
        "sliding_attention": { "rope_type": "default", "rope_theta": 10000.0 }
    }
}"#,
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

/// Experts as MLX's converter names them.
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

const ROPE: Key = Key { gguf: "", hf: "rope_parameters.full_attention" };

/// Head size of full layers where config.json says nothing.
const USUAL_FULL_DIM: usize = 512;

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, GEMMA_ACTIVATION, "gelu_pytorch_tanh")?;
    causal(config)?;
    let count = layer_count(file)?;
    let reaches = layer_reaches(config, count)?;
    let first_shared = count.saturating_sub(config.optional_number(SHARED)?.unwrap_or(0));
    let kv_heads = kv_heads(config, &reaches)?;
    let widths = mlp_widths(config, count, first_shared)?;
    let kinds = Kinds::of(file)?;
    let experts = experts(config)?;
    let mut layers = Vec::new();
    for (i, &reach) in reaches.iter().enumerate() {
        let kind = match reach {
            Reach::Full => &kinds.full,
            Reach::Sliding => &kinds.sliding,
        };
        let kv = match i < first_shared {
            true if reach == Reach::Full && kinds.key_is_value(file, i)? => Kv::KeyIsValue,
            true => Kv::Projected,
            false => Kv::Shared { owner: owner(config, &reaches[..first_shared], reach)? },
        };
        let mlp = Mlp { width: widths[i], bias: false };
        layers.push(Layer {
            mixer: Mixer::Attention(Attention { kv_heads: kv_heads[i], kv, ..kind.clone() }),
            feed_forward: match &experts {
                Some(experts) => FeedForward::Both(mlp, experts.clone()),
                None => FeedForward::Dense(mlp),
            },
            activation: Activation::GeluTanh,
            post_norms: true,
            scaled: true,
        });
    }
    let per_layer_inputs = per_layer_inputs(file, spec.vocab)?;
    let embed_scale = (spec.hidden as f32).sqrt();
    Ok(Spec { embed_scale, per_layer_inputs, layers, ..spec })
}

/// The owner of the cache that a shared layer reads: the last owning layer of the same kind.
fn owner(config: &dyn Config, owning: &[Reach], reach: Reach) -> Result<usize, ModelError> {
    let last = owning.iter().rposition(|&own| own == reach);
    last.ok_or_else(|| config.bad(SHARED, "leaves no layer whose cache the shared ones could read"))
}

fn layer_reaches(config: &dyn Config, count: usize) -> Result<Vec<Reach>, ModelError> {
    if let Some(flags) = config.flags(SLIDING, count)? {
        let reach = |sliding: bool| if sliding { Reach::Sliding } else { Reach::Full };
        return Ok(flags.into_iter().map(reach).collect());
    }
    let pattern = |i: usize| match (i + 1).is_multiple_of(6) || i + 1 == count {
        true => Reach::Full,
        false => Reach::Sliding,
    };
    reaches(config, count, pattern)
}

/// KV heads of each layer. transformers lets full layers differ only where V is K.
fn kv_heads(config: &dyn Config, reaches: &[Reach]) -> Result<Vec<usize>, ModelError> {
    let usual = config.numbers(KV_HEADS, reaches.len())?;
    let mut heads = usual.ok_or_else(|| config.bad(KV_HEADS, "is missing"))?;
    for (i, reach) in reaches.iter().enumerate() {
        let own = format!("per_layer_config.{i}.num_key_value_heads");
        let full = match *reach == Reach::Full && config.flag(KEY_IS_VALUE)? {
            true => config.optional_number(FULL_KV_HEADS)?,
            false => None,
        };
        if let Some(own) = config.optional_number(Key { gguf: "", hf: &own })?.or(full) {
            heads[i] = own;
        }
    }
    Ok(heads)
}

/// Width of each layer's MLP. config.json doubles those of layers that share a cache by a flag.
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

/// Attention of the two kinds of layers.
struct Kinds {
    full: Attention,
    sliding: Attention,
    /// What config.json says about layers that take V from K; GGUF leaves the tensor out.
    key_is_value: bool,
}

impl Kinds {
    fn of(file: &dyn Tensors) -> Result<Self, ModelError> {
        let config: &dyn Config = file;
        let heads = config.number(HEADS)?;
        let (sliding_dim, full_dim) = (config.number(SLIDING_DIM)?, full_dim(config)?);
        bounded(config, &[("number of heads", heads), ("head size", sliding_dim.max(full_dim))])?;
        if file.format() == Format::Hf && !config.has(ROPE) {
            return Err(config.bad(ROPE, "is missing"));
        }
        if file.format() == Format::Gguf && !file.has(DIVISORS) {
            let (path, tensor) = (file.path().into(), DIVISORS.into());
            return Err(ModelError::MissingTensor { path, tensor });
        }
        let local = Wanted { reach: Reach::Sliding, ..USUAL };
        // KV heads are each layer's own
        let kind = |head_dim, rope| Attention {
            scale: 1.0,
            qk_norm: true,
            v_norm: true,
            ..plain_attention(heads, heads, head_dim, rope)
        };
        let full = kind(full_dim, rope(file, &USUAL, full_dim)?);
        let sliding = Attention {
            window: Some(config.number(WINDOW)?),
            ..kind(sliding_dim, rope(file, &local, sliding_dim)?)
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

/// Head size of full layers; transformers 5 writes it for each layer that differs.
fn full_dim(config: &dyn Config) -> Result<usize, ModelError> {
    if let Some(dim) = config.optional_number(FULL_DIM)? {
        return Ok(dim);
    }
    let layers = config.number(super::LAYERS)?;
    let own = |i: usize| format!("per_layer_config.{i}.head_dim");
    let dims = (0..layers).map(|i| config.optional_number(Key { gguf: "", hf: &own(i) }));
    let first = dims.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().next();
    Ok(first.unwrap_or(USUAL_FULL_DIM))
}

fn experts(config: &dyn Config) -> Result<Option<Experts>, ModelError> {
    let has = match config.format() {
        Format::Hf => config.flag(HAS_EXPERTS)?,
        Format::Gguf => config.optional_number(EXPERTS)?.unwrap_or(0) > 0,
    };
    let experts = || {
        Ok(Experts {
            count: expert_count(config)?,
            used: config.number(EXPERTS_USED_HF)?,
            width: config.number(EXPERT_MLP)?,
            normalised: true,
            shared: None,
            scaled_router: true,
        })
    };
    has.then(experts).transpose()
}

fn per_layer_inputs(
    file: &dyn Tensors,
    vocab: usize,
) -> Result<Option<PerLayerInputs>, ModelError> {
    let config: &dyn Config = file;
    let width = config.optional_number(INPUTS)?.unwrap_or(0);
    let vocab = config.optional_number(INPUTS_VOCAB)?.unwrap_or(vocab);
    Ok((width > 0).then_some(PerLayerInputs { width, vocab }))
}
