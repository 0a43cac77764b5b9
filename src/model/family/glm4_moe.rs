//! `glm4_moe`: GLM-4.5 and GLM-4.5-Air. The first layers are dense. In the others experts are chosen by σ and a learned
//! correction, and a shared expert stands beside them. RoPE turns the first half of each head.

use super::common::{
    activation, attention, common, has_qkv_bias, layers, llama_layer, mlp, plain_experts,
    predict_further, Family,
};
use super::idle::{gguf, hf, Numbers};
use super::keys::{ACTIVATION, ATTENTION_BIAS, EXPERTS, EXPERTS_USED, EXPERT_MLP, LAYERS};
use super::names;
use super::names::Names;
use super::qwen3_moe::expert_count;
use super::rope::{rope, Wanted, USUAL};
use crate::model::config::{Config, Format, Key};
use crate::model::spec::{
    Attention, Experts, FeedForward, Mixer, QkNorm, Scoring, SharedExpert, Spec,
};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["glm4moe"],
    hf: &["glm4_moe"],
    gguf_names: Names {
        // named as in Gemma, but still the norm before the MLP
        own: &[("ffn_norm", "post_attention_norm")],
        ..names::GGUF
    },
    hf_names: Names {
        own: &[
            ("exp_probs_b.bias", "mlp.gate.e_score_correction_bias"),
            ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
            ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
            ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
        ],
        ..names::HF
    },
    // Glm4MoeConfig
    hf_defaults: r#"{
    "tie_word_embeddings": false, "num_key_value_heads": 8, "attention_bias": false,
    "num_experts_per_tok": 8, "n_shared_experts": 1, "n_routed_experts": 128,
    "moe_intermediate_size": 1408, "routed_scaling_factor": 1.0, "first_k_dense_replace": 1,
    "norm_topk_prob": true, "use_qk_norm": false, "num_nextn_predict_layers": 1
}"#,
    idle: &[
        hf("n_group", Numbers(&[1.0]), GROUPS),
        hf("topk_group", Numbers(&[1.0]), GROUPS),
        gguf("expert_group_count", Numbers(&[0.0, 1.0]), GROUPS),
        gguf("expert_group_used_count", Numbers(&[0.0, 1.0]), GROUPS),
        gguf("expert_gating_func", Numbers(&[0.0, 2.0]), "experts are chosen by σ"),
    ],
    spec,
};

const GROUPS: &str = "experts are not chosen by groups";

const COUNT: Key = Key { gguf: EXPERTS.gguf, hf: "n_routed_experts" };
const SHARED: Key = Key { gguf: "expert_shared_count", hf: "n_shared_experts" };
const DENSE_LAYERS: Key = Key { gguf: "leading_dense_block_count", hf: "first_k_dense_replace" };
const FACTOR: Key = Key { gguf: "expert_weights_scale", hf: "routed_scaling_factor" };
const NORMALISED: Key = Key { gguf: "expert_weights_norm", hf: "norm_topk_prob" };
const QK_NORM: Key = Key { gguf: "", hf: "use_qk_norm" };
/// Layers that predict further tokens. They are the last blocks of a GGUF, and follow the others in a folder, too.
const FURTHER: Key = Key { gguf: "nextn_predict_layers", hf: "num_nextn_predict_layers" };

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, ACTIVATION, "silu")?;
    let (qkv_bias, normed) = match file.format() {
        Format::Gguf => (has_qkv_bias(file), file.has("blk.0.attn_q_norm.weight")),
        Format::Hf => (config.flag(ATTENTION_BIAS)?, config.flag(QK_NORM)?),
    };
    let wanted = Wanted { share: Some(0.5), ..USUAL };
    let attention = Attention {
        qkv_bias,
        qk_norm: if normed { QkNorm::Heads } else { QkNorm::None },
        ..attention(config, spec.hidden, |dim| rope(file, &wanted, dim))?
    };
    let further = config.optional_number(FURTHER)?.unwrap_or(0);
    let blocks = config.number(LAYERS)?;
    let (count, first_ignored) = match file.format() {
        Format::Gguf => (blocks.checked_sub(further), "blk."),
        Format::Hf => (Some(blocks), "model.layers."),
    };
    let count = count.ok_or_else(|| config.bad(FURTHER, format!("is more than {blocks}")))?;
    let count = layers(file, count)?;
    if file.format() == Format::Gguf {
        predict_further(file, FURTHER, count..blocks)?;
    }
    let dense = config.optional_number(DENSE_LAYERS)?.unwrap_or(0);
    let experts = experts(config)?;
    let layer = |i: usize| {
        let feed_forward = match i < dense {
            true => FeedForward::Dense(mlp(config)?),
            false => FeedForward::Experts(experts.clone()),
        };
        Ok(llama_layer(Mixer::Attention(attention.clone()), feed_forward))
    };
    let ignored =
        (count..count + further.min(MOST_FURTHER)).map(|i| format!("{first_ignored}{i}."));
    Ok(Spec {
        layers: (0..count).map(layer).collect::<Result<_, ModelError>>()?,
        ignored_tensors: ignored.collect(),
        ..spec
    })
}

/// More layers that predict further tokens are not named, so that a damaged count does not cost memory.
const MOST_FURTHER: usize = 64;

fn experts(config: &dyn Config) -> Result<Experts, ModelError> {
    let width = config.number(EXPERT_MLP)?;
    let shared = config.number(SHARED)?;
    let gguf = config.format() == Format::Gguf;
    Ok(Experts {
        scoring: Scoring::Sigmoid,
        // llama.cpp takes 0 for "not set", and then scales by nothing
        factor: match config.optional_float(FACTOR)? {
            None | Some(0.0) if gguf => 1.0,
            factor => factor.unwrap_or(1.0) as f32,
        },
        normalised: config.optional_flag(NORMALISED)?.unwrap_or(false),
        shared: (shared > 0).then(|| SharedExpert {
            width: width.saturating_mul(shared),
            gated: false,
            fused: false,
        }),
        ..plain_experts(expert_count(config, COUNT)?, config.number(EXPERTS_USED)?, width)
    })
}
