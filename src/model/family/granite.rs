//! `granite`, `granitemoe`, `granitemoeshared` and `granitemoehybrid`: Granite 3 and 4, which are Llama with factors of
//! embeddings, scores, residuals and logits. Some have experts, and a shared expert beside them. Of `granitemoehybrid`
//! those models are read that have no layer of Mamba.

use super::common::{
    activation, attention, common, has_qkv_bias, layer_count, llama_layer, mlp, plain_experts,
    Family,
};
use super::idle::{gguf, hf, Any, DENSE, NONE, ON};
use super::keys::{
    ACTIVATION, ATTENTION_BIAS, EXPERTS, EXPERTS_USED, HEAD_DIM, LAYER_TYPES, MLP, MLP_BIAS,
};
use super::names;
use super::names::{Mlx, Names};
use super::rope::{rope, Wanted, USUAL};
use crate::model::config::{Config, Format, Key};
use crate::model::spec::{
    Attention, Experts, FeedForward, Layer, Mixer, Mlp, Pairs, Rope, SharedExpert, Spec,
};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["granite", "granitemoe"],
    hf: &["granite", "granitemoe", "granitemoeshared"],
    gguf_names: names::GGUF,
    hf_names: Names { own: &OWN, mlx: Mlx { own: &MLX_OWN, ..names::MLX }, ..names::HF },
    // GraniteConfig, GraniteMoeConfig and GraniteMoeSharedConfig
    hf_defaults: r#"{
    "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false,
    "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0,
    "attention_multiplier": 1.0, "num_local_experts": 8, "num_experts_per_tok": 2,
    "shared_intermediate_size": 0
}"#,
    idle: &[
        gguf("rope.scaling.finetuned", ON, "llama.cpp has no model of experts without RoPE"),
        gguf("ssm.*", Any, NO_MAMBA),
        gguf("expert_used_count", Any, DENSE_EXPERTS),
        gguf("expert_shared_feed_forward_length", Any, DENSE_EXPERTS),
        hf("num_experts_per_tok", Any, DENSE_EXPERTS),
        hf("num_local_experts", Any, DENSE_EXPERTS),
        hf("shared_intermediate_size", Any, DENSE_EXPERTS),
        hf("normalization_function", Any, RMS),
        gguf("feed_forward_length", Any, DENSE),
    ],
    spec,
};

/// `granitemoehybrid`. Its converter calls models without Mamba `granite` and `granitemoe`.
pub(super) const HYBRID: Family = Family {
    gguf: &[],
    hf: &["granitemoehybrid"],
    hf_names: Names {
        own: &HYBRID_OWN,
        mlx: Mlx { own: &HYBRID_MLX_OWN, ..names::MLX },
        ..names::HF
    },
    // GraniteMoeHybridConfig
    hf_defaults: r#"{
    "tie_word_embeddings": false, "attention_bias": false, "embedding_multiplier": 1.0,
    "logits_scaling": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0,
    "num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 1024
}"#,
    idle: &[
        hf("layers_block_type", NONE, "transformers takes it for `layer_types`"),
        hf("mamba_*", Any, NO_MAMBA),
        hf("time_step_*", Any, NO_MAMBA),
        hf("init_method", Any, "it is about training"),
        hf("num_experts_per_tok", Any, "it counts experts, which this checkpoint has not"),
        hf("intermediate_size", Any, "it is the width of experts, which this checkpoint has not"),
        hf("normalization_function", Any, RMS),
    ],
    ..FAMILY
};

const OWN: [(&str, &str); 5] = [
    ("ffn_gate_inp", "block_sparse_moe.router.layer"),
    ("ffn_gate_up_exps.weight", "block_sparse_moe.input_linear.weight"),
    ("ffn_down_exps.weight", "block_sparse_moe.output_linear.weight"),
    ("ffn_gate_up_shexp", "shared_mlp.input_linear"),
    ("ffn_down_shexp", "shared_mlp.output_linear"),
];
/// Without experts, the shared one is the MLP.
const HYBRID_OWN: [(&str, &str); 7] = [
    OWN[0],
    OWN[1],
    OWN[2],
    OWN[3],
    OWN[4],
    ("ffn_up", "shared_mlp.input_linear"),
    ("ffn_down", "shared_mlp.output_linear"),
];
const MLX_OWN: [(&str, &str); 3] = [
    ("ffn_gate_exps.weight", "block_sparse_moe.switch_mlp.gate_proj.weight"),
    ("ffn_up_exps.weight", "block_sparse_moe.switch_mlp.up_proj.weight"),
    ("ffn_down_exps.weight", "block_sparse_moe.switch_mlp.down_proj.weight"),
];
/// MLX's converter takes gate and up apart, and names all three as Llama's.
const HYBRID_MLX_OWN: [(&str, &str); 5] =
    [MLX_OWN[0], MLX_OWN[1], MLX_OWN[2], ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")];

const DENSE_EXPERTS: &str = "GraniteModel has no experts, whatever it says";
const NO_MAMBA: &str = "it is about layers of Mamba, which this checkpoint has not";
const RMS: &str = "the norms are RMS norms, whatever it says";

const EMBEDDING: Key = Key { gguf: "embedding_scale", hf: "embedding_multiplier" };
const SCORES: Key = Key { gguf: "attention.scale", hf: "attention_multiplier" };
const RESIDUAL: Key = Key { gguf: "residual_scale", hf: "residual_multiplier" };
/// A divisor of the logits.
const LOGITS: Key = Key { gguf: "logit_scale", hf: "logits_scaling" };
const COUNT: Key = Key { gguf: EXPERTS.gguf, hf: "num_local_experts" };
const SHARED: Key =
    Key { gguf: "expert_shared_feed_forward_length", hf: "shared_intermediate_size" };
/// Whether there is RoPE: `rope`, or nothing.
const POSITIONS: Key = Key { gguf: "", hf: "position_embedding_type" };
/// The same in a GGUF of `granite`.
const TURNS: Key = Key { gguf: "rope.scaling.finetuned", hf: "" };

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, ACTIVATION, "silu")?;
    // the GGUF converter permuted Q and K to adjacent pairs
    let pairs = if file.format() == Format::Gguf { Pairs::Adjacent } else { Pairs::Halves };
    let wanted = Wanted { pairs, divisors: true, ..USUAL };
    let attention = attention(config, spec.hidden, |dim| rope(file, &wanted, dim))?;
    one_size(config, &attention, spec.hidden)?;
    // a RoPE that nothing uses must be sound all the same
    let rope = if turns(config)? { attention.rope } else { Rope::none() };
    let (qkv_bias, output_bias) = match file.format() {
        Format::Gguf => (has_qkv_bias(file), file.has("blk.0.attn_output.bias")),
        Format::Hf => [config.flag(ATTENTION_BIAS)?; 2].into(),
    };
    let scale = factor(config, SCORES)?.unwrap_or(attention.scale);
    let attention = Attention { scale, qkv_bias, output_bias, rope, ..attention };
    let layer = Layer {
        added_scale: factor(config, RESIDUAL)?.unwrap_or(1.0),
        ..llama_layer(Mixer::Attention(attention), feed_forward(file)?)
    };
    let embed_scale = factor(config, EMBEDDING)?.unwrap_or(1.0);
    let logit_scale = 1.0 / config.positive(LOGITS)? as f32;
    let count = layer_count(file)?;
    if is_hybrid(config) {
        without_mamba(config, count)?;
    }
    Ok(Spec { embed_scale, logit_scale, layers: vec![layer; count], ..spec })
}

fn is_hybrid(config: &dyn Config) -> bool {
    config.architecture() == "granitemoehybrid"
}

/// Refuses layers of Mamba. transformers takes all layers for such if the file does not list them.
fn without_mamba(config: &dyn Config, count: usize) -> Result<(), ModelError> {
    let types = config.words(LAYER_TYPES, count)?;
    let Some(types) = types else { return Err(config.bad(LAYER_TYPES, "is missing")) };
    for (layer, kind) in types.iter().enumerate() {
        match kind.as_str() {
            "attention" | "full_attention" => {}
            "mamba" | "linear_attention" => {
                let what = format!("a layer of Mamba (`{kind}` of layer {layer} in layer_types)");
                return Err(config.unsupported(what));
            }
            other => return Err(config.bad(LAYER_TYPES, format!("names a `{other}` layer"))),
        }
    }
    Ok(())
}

/// Whether Q and K turn with their positions.
fn turns(config: &dyn Config) -> Result<bool, ModelError> {
    if is_hybrid(config) {
        return match config.optional_text(POSITIONS)?.as_deref() {
            Some("rope") => Ok(true),
            None | Some("nope") => Ok(false),
            Some(other) => Err(config.bad(POSITIONS, format!("is `{other}`"))),
        };
    }
    // llama.cpp does not look there for `granitemoe`
    let is_read = config.architecture() == "granite";
    Ok(!is_read || config.optional_flag(TURNS)?.unwrap_or(true))
}

/// A factor. For llama.cpp 0 means that there is none.
fn factor(config: &dyn Config, key: Key) -> Result<Option<f32>, ModelError> {
    match config.optional_float(key)? {
        Some(0.0) if config.format() == Format::Hf => Err(config.bad(key, "must not be 0")),
        found => Ok(found.filter(|factor| *factor != 0.0).map(|factor| factor as f32)),
    }
}

/// Refuses heads of a size of their own, which llama.cpp's converter leaves out.
fn one_size(config: &dyn Config, attention: &Attention, hidden: usize) -> Result<(), ModelError> {
    if attention.q_width() == hidden {
        Ok(())
    } else {
        Err(config.bad(HEAD_DIM, format!("is not that of {} heads in {hidden}", attention.heads)))
    }
}

fn feed_forward(file: &dyn Tensors) -> Result<FeedForward, ModelError> {
    let config: &dyn Config = file;
    if config.architecture() == "granite" {
        let bias = match file.format() {
            Format::Gguf => file.has("blk.0.ffn_gate.bias"),
            Format::Hf => config.flag(MLP_BIAS)?,
        };
        return Ok(FeedForward::Dense(Mlp { bias, ..mlp(config)? }));
    }
    let count = config.number(COUNT)?;
    if is_hybrid(config) && count == 0 {
        // MLX's converter takes gate and up apart
        let fused = !file.has("blk.0.ffn_gate.weight");
        return Ok(FeedForward::Dense(Mlp { width: config.number(SHARED)?, bias: false, fused }));
    }
    let width = if config.architecture() == "granitemoe" && config.format() == Format::Hf {
        0
    } else {
        config.optional_number(SHARED)?.unwrap_or(0)
    };
    let fused = config.format() == Format::Hf;
    let shared = (width > 0).then_some(SharedExpert { width, gated: false, fused });
    let plain = plain_experts(count, config.number(EXPERTS_USED)?, config.number(MLP)?);
    Ok(FeedForward::Experts(Experts { shared, ..plain }))
}
