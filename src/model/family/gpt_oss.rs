//! `gpt_oss`: a learned score of each head in the softmax's sum, a window in every other layer, biases everywhere, and
//! experts with a gate of their own.

use super::common::{
    activation, attention, common, has_qkv_bias, layer_count, llama_layer, plain_experts, Family,
    Reach,
};
use super::gemma::reaches;
use super::gemma2::one_base;
use super::idle::{gguf, hf, Any, Numbers, DENSE};
use super::keys::{ACTIVATION, ATTENTION_BIAS, EXPERTS, EXPERTS_USED, EXPERT_MLP, MLP, WINDOW};
use super::names;
use super::names::{Mlx, Names};
use super::qwen3_moe::expert_count;
use super::rope::{rope, USUAL};
use crate::model::config::{Config, Fact, Format, Key};
use crate::model::spec::{Activation, Attention, Experts, FeedForward, Layer, Mixer, Spec};
use crate::model::tensors::{Tensors, Transform};
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["gpt-oss"],
    hf: &["gpt_oss"],
    gguf_names: Names {
        // named as in Gemma, but still the norm before the experts
        own: &[("ffn_norm", "post_attention_norm")],
        ..names::GGUF
    },
    hf_names: Names {
        own: &[
            ("attn_sinks.weight", "self_attn.sinks"),
            ("ffn_gate_inp", "mlp.router"),
            ("ffn_gate_up_exps.bias", "mlp.experts.gate_up_proj_bias"),
            ("ffn_down_exps.bias", "mlp.experts.down_proj_bias"),
        ],
        ordered: &[
            ("ffn_gate_up_exps.weight", Transform::TransposedPairs),
            ("ffn_down_exps.weight", Transform::Transposed),
            ("ffn_gate_up_exps.bias", Transform::Pairs),
        ],
        mlx: Mlx { own: MLX_OWN, ..names::MLX },
        ..names::HF
    },
    // GptOssConfig
    hf_defaults: r#"{
    "tie_word_embeddings": false, "num_key_value_heads": 8, "head_dim": 64, "attention_bias": true,
    "sliding_window": 128, "num_experts_per_tok": 4, "rope_theta": 150000.0,
    "rope_parameters": {
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
        "original_max_position_embeddings": 4096
    }
}"#,
    idle: &[
        hf("swiglu_alpha", Numbers(&[1.702]), GATE),
        hf("swiglu_limit", Numbers(&[7.0]), GATE),
        hf(
            "initial_context_length",
            Any,
            "it is the original context of RoPE, which is read there",
        ),
        gguf("feed_forward_length", Any, DENSE),
    ],
    spec,
};

/// Names that MLX's converter gives to experts, which has gate and up apart and not alternating.
const MLX_OWN: &[(&str, &str)] = &[
    ("ffn_gate_exps.weight", "mlp.experts.gate_proj.weight"),
    ("ffn_up_exps.weight", "mlp.experts.up_proj.weight"),
    ("ffn_down_exps.weight", "mlp.experts.down_proj.weight"),
    ("ffn_gate_exps.bias", "mlp.experts.gate_proj.bias"),
    ("ffn_up_exps.bias", "mlp.experts.up_proj.bias"),
    ("ffn_down_exps.bias", "mlp.experts.down_proj.bias"),
];

const GATE: &str = "llama.cpp knows no other number, and no released model has one";

/// A second name of the number of experts for a token in OpenAI's files, which transformers passes over.
const ALSO_USED: Key = Key { gguf: "", hf: "experts_per_token" };
const PATTERN: Key = Key { gguf: "attention.sliding_window_pattern", hf: "" };

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, ACTIVATION, "silu")?;
    let bias = match file.format() {
        Format::Gguf => has_qkv_bias(file),
        Format::Hf => config.flag(ATTENTION_BIAS)?,
    };
    let full = Attention {
        own_scores: true,
        qkv_bias: bias,
        output_bias: bias,
        ..attention(config, spec.hidden, |dim| rope(file, &USUAL, dim))?
    };
    one_base(config, &full)?;
    let window = Some(config.number(WINDOW)?);
    let experts = experts(config)?;
    let layer = |reach| Layer {
        activation: Activation::Clamped,
        ..llama_layer(
            Mixer::Attention(match reach {
                Reach::Full => full.clone(),
                Reach::Sliding => Attention { window, ..full.clone() },
            }),
            FeedForward::Experts(experts.clone()),
        )
    };
    let layers = kinds(config, layer_count(file)?)?.into_iter().map(layer).collect();
    Ok(Spec { layers, ..spec })
}

/// Every other layer has a window, the first one among them, unless the file says otherwise.
fn kinds(config: &dyn Config, count: usize) -> Result<Vec<Reach>, ModelError> {
    let kind = |sliding: bool| if sliding { Reach::Sliding } else { Reach::Full };
    if matches!(config.fact(PATTERN), Some(Fact::List(_))) {
        let flags = config.flags(PATTERN, count)?.unwrap_or_default();
        return Ok(flags.into_iter().map(kind).collect());
    }
    let pattern = config.optional_number(PATTERN)?.unwrap_or(2).max(1);
    reaches(config, count, |i| kind(!(i + 1).is_multiple_of(pattern)))
}

fn experts(config: &dyn Config) -> Result<Experts, ModelError> {
    let used = config.number(EXPERTS_USED)?;
    if config.optional_number(ALSO_USED)?.is_some_and(|other| other != used) {
        return Err(config.bad(ALSO_USED, format!("is not the {used} of `{}`", EXPERTS_USED.hf)));
    }
    let width = Key { gguf: EXPERT_MLP.gguf, hf: MLP.hf };
    let plain = plain_experts(expert_count(config, EXPERTS)?, used, config.number(width)?);
    Ok(Experts { biases: true, ..plain })
}
