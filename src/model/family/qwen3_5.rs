//! `qwen3_5` and `qwen3_5_moe`: Qwen3.5 and Qwen3.6. Three layers with the gated delta rule are followed by one with
//! gated attention, which applies RoPE to the first quarter of each head. The feed-forward parts are MLPs, or experts
//! with a shared expert.

use super::common::{
    activation, attention, common, layers, llama_layer, mlp, plain_experts, predict_further, Family,
};
use super::idle::{gguf, hf, Any, DENSE, ON};
use super::keys::{ACTIVATION, EXPERTS, EXPERTS_USED, EXPERT_MLP, LAYERS, LAYER_TYPES};
use super::names;
use super::names::{Mlx, Names};
use super::rope::{rope, turns, Wanted, SECTIONS, USUAL};
use crate::model::config::{Config, Format, Key};
use crate::model::spec::{
    Attention, DeltaNet, Experts, FeedForward, HeadOrder, Mixer, QkNorm, SharedExpert, Spec,
};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["qwen35", "qwen35moe"],
    hf: &["qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"],
    gguf_names: Names {
        // named as in Gemma, but still the norm before the MLP
        own: &[("ffn_norm", "post_attention_norm")],
        ..names::GGUF
    },
    hf_names: Names {
        own: &[
            ("attn_qkv", "linear_attn.in_proj_qkv"),
            ("attn_gate", "linear_attn.in_proj_z"),
            ("ssm_beta", "linear_attn.in_proj_b"),
            ("ssm_alpha", "linear_attn.in_proj_a"),
            ("ssm_conv1d", "linear_attn.conv1d"),
            ("ssm_a", "linear_attn.A_log"),
            ("ssm_dt.bias", "linear_attn.dt_bias"),
            ("ssm_norm", "linear_attn.norm"),
            ("ssm_out", "linear_attn.out_proj"),
            ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
            ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
            ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
            ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
        ],
        zero_centred: &[
            "attn_norm.weight",
            "ffn_norm.weight",
            "q_norm.weight",
            "k_norm.weight",
            "output_norm.weight",
        ],
        logarithmic: &["ssm_a"],
        unit: &[("ssm_conv1d.weight", 1)],
        mlx: Mlx { plain_norms: true, unit: &[("ssm_conv1d.weight", 2)], ..names::MLX },
        ..names::HF
    },
    // Qwen3_5TextConfig and Qwen3_5MoeTextConfig, which differ in their heads of K and V
    hf_defaults: r#"{"tie_word_embeddings": false, "head_dim": 256, "attention_bias": false}"#,
    idle: &[
        hf("intermediate_size", Any, DENSE),
        gguf("feed_forward_length", Any, DENSE),
        hf("attn_output_gate", ON, "Qwen3_5Attention has the gate, whatever it says"),
        hf("mtp_num_hidden_layers", Any, FURTHER_ONLY),
        hf("mtp_use_dedicated_embeddings", Any, FURTHER_ONLY),
        hf("rope_parameters.mrope_section", Any, PLAIN),
        hf("rope_parameters.mrope_interleaved", Any, PLAIN),
        hf("rope_scaling.mrope_section", Any, PLAIN),
        hf("rope_scaling.mrope_interleaved", Any, PLAIN),
    ],
    spec,
};

const FURTHER_ONLY: &str = "it is about layers that predict further tokens";
const PLAIN: &str = "for a text, all parts of multimodal RoPE turn by one position";

const INTERVAL: Key = Key { gguf: "full_attention_interval", hf: "full_attention_interval" };
const RECURRENT: Key = Key { gguf: "attention.recurrent_layers", hf: "" };
/// How many layers at the end predict tokens after the next one. They are not measured.
const FURTHER: Key = Key { gguf: "nextn_predict_layers", hf: "" };
const KERNEL: Key = Key { gguf: "ssm.conv_kernel", hf: "linear_conv_kernel_dim" };
const KEY_DIM: Key = Key { gguf: "ssm.state_size", hf: "linear_key_head_dim" };
const KEY_HEADS: Key = Key { gguf: "ssm.group_count", hf: "linear_num_key_heads" };
const VALUE_HEADS: Key = Key { gguf: "ssm.time_step_rank", hf: "linear_num_value_heads" };
const VALUE_DIM: Key = Key { gguf: "", hf: "linear_value_head_dim" };
const VALUE_WIDTH: Key = Key { gguf: "ssm.inner_size", hf: "" };
const SHARED_MLP: Key =
    Key { gguf: "expert_shared_feed_forward_length", hf: "shared_expert_intermediate_size" };

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, ACTIVATION, "silu")?;
    let further = config.optional_number(FURTHER)?.unwrap_or(0);
    let all = layers(file, config.number(LAYERS)?)?;
    let count =
        all.checked_sub(further).ok_or_else(|| config.bad(FURTHER, "exceeds all layers"))?;
    predict_further(file, FURTHER, count..all)?;
    let full = full_layers(config, count, further)?;
    // the class sets `partial_rotary_factor` where the file does not
    let wanted = Wanted { share: Some(0.25), ..USUAL };
    sections(config)?;
    let attention = Attention {
        gated: true,
        qk_norm: QkNorm::Heads,
        ..attention(config, spec.hidden, |dim| rope(file, &wanted, dim))?
    };
    let delta_net = delta_net(config)?;
    // the class, or the architecture's name in GGUF, decides
    let mixture = ["qwen35moe", "qwen3_5_moe", "qwen3_5_moe_text"].contains(&config.architecture());
    let feed_forward = if mixture {
        FeedForward::Experts(experts(config)?)
    } else {
        FeedForward::Dense(mlp(config)?)
    };
    let layer = |full: bool| {
        llama_layer(
            if full {
                Mixer::Attention(attention.clone())
            } else {
                Mixer::DeltaNet(delta_net.clone())
            },
            feed_forward.clone(),
        )
    };
    let ignored_tensors = (count..count + further).map(|i| format!("blk.{i}.")).collect();
    Ok(Spec { layers: full.into_iter().map(layer).collect(), ignored_tensors, ..spec })
}

/// Refuses sections of multimodal RoPE that assign a pair to none of time, height and width. llama.cpp turns such a
/// pair by a fourth position, which is 0 in a text.
fn sections(config: &dyn Config) -> Result<(), ModelError> {
    let counts = config.list(SECTIONS)?;
    let all: usize = counts.iter().sum();
    if all > 1 << 16 || (0..all).any(|pair| !turns(&counts, pair)) {
        Err(config.bad(SECTIONS, "leaves pairs of a text where they are"))
    } else {
        Ok(())
    }
}

/// Which layers have full attention. The file names the type of each layer, flags them, or gives an interval. If it
/// gives an interval as well, it must not contradict the others.
fn full_layers(config: &dyn Config, count: usize, further: usize) -> Result<Vec<bool>, ModelError> {
    let interval = config.optional_number(INTERVAL)?;
    let every = |interval: usize| -> Vec<bool> {
        (1..=count).map(|n| n.is_multiple_of(interval.max(1))).collect()
    };
    let Some(named) = named_layers(config, count, further)? else {
        // 4 is transformers' and llama.cpp's
        return Ok(every(interval.unwrap_or(4)));
    };
    if interval.is_some_and(|interval| every(interval) != named) {
        Err(config.bad(INTERVAL, "contradicts the list of layers"))
    } else {
        Ok(named)
    }
}

fn named_layers(
    config: &dyn Config,
    count: usize,
    further: usize,
) -> Result<Option<Vec<bool>>, ModelError> {
    if let Some(types) = config.words(LAYER_TYPES, count)? {
        let full = |word: &String| match word.as_str() {
            "full_attention" => Ok(true),
            "linear_attention" => Ok(false),
            other => Err(config.bad(LAYER_TYPES, format!("names a `{other}` layer"))),
        };
        return types.iter().map(full).collect::<Result<_, _>>().map(Some);
    }
    if let Some(mut recurrent) = config.flags(RECURRENT, count + further)? {
        recurrent.truncate(count);
        return Ok(Some(recurrent.iter().map(|recurrent| !recurrent).collect()));
    }
    Ok(None)
}

fn delta_net(config: &dyn Config) -> Result<DeltaNet, ModelError> {
    let value_heads = config.number(VALUE_HEADS)?;
    let value_dim = match config.format() {
        Format::Hf => config.number(VALUE_DIM)?,
        Format::Gguf => config.number(VALUE_WIDTH)?.checked_div(value_heads).unwrap_or(0),
    };
    Ok(DeltaNet {
        key_heads: config.number(KEY_HEADS)?,
        value_heads,
        key_dim: config.number(KEY_DIM)?,
        value_dim,
        kernel: config.number(KERNEL)?,
        order: match config.format() {
            Format::Hf => HeadOrder::Grouped,
            Format::Gguf => HeadOrder::Tiled,
        },
    })
}

fn experts(config: &dyn Config) -> Result<Experts, ModelError> {
    let (count, used) = (config.number(EXPERTS)?, config.number(EXPERTS_USED)?);
    let width = config.number(SHARED_MLP)?;
    let shared = Some(SharedExpert { width, gated: true, fused: false });
    Ok(Experts { shared, ..plain_experts(count, used, config.number(EXPERT_MLP)?) })
}
