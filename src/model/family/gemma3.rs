//! `gemma3`: Gemma 2 with norms on Q and K instead of caps, five sliding layers to each full one, and a
//! RoPE of its own for each kind.

use super::common::{
    activation, attention, common, layer_count, mlp, scale, softcap, Family, Reach,
};
use super::gemma::{causal, gemma_layer, reaches, scale_27b, HF_NAMES};
use super::idle::{hf, Any, Numbers};
use super::keys::{FINAL_SOFTCAP, GEMMA_ACTIVATION, WINDOW};
use super::names;
use super::rope::{rope, Layout, Wanted, USUAL};
use crate::model::config::{Config, Fact, Format, Key};
use crate::model::spec::{Attention, FeedForward, Mixer, QkNorm, Spec};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["gemma3"],
    hf: &["gemma3_text", "gemma3"],
    gguf_names: names::GGUF,
    hf_names: HF_NAMES,
    // Gemma3TextConfig, and `default_theta` of it
    hf_defaults: r#"{
    "tie_word_embeddings": true, "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0
}"#,
    idle: &[
        hf("hidden_act", Any, "Gemma3MLP takes hidden_activation"),
        hf("attn_logit_softcapping", Numbers(&[]), UNCAPPED_SCORES),
        hf("final_logit_softcapping", Numbers(&[]), UNCAPPED_LOGITS),
        hf("_sliding_window_pattern", Any, "Gemma3TextConfig makes it and does not read it"),
    ],
    spec,
};

const UNCAPPED_SCORES: &str =
    "transformers' Gemma3Attention passes it over, and other programs may obey it";
const UNCAPPED_LOGITS: &str =
    "transformers' class with a vision tower passes it over, and that of the text model alone obeys it";

/// If the file says nothing, every sixth layer has full attention.
const PATTERN: Key = Key { gguf: "attention.sliding_window_pattern", hf: "sliding_window_pattern" };
const USUAL_PATTERN: usize = 6;
const SLIDING_DIMS: [Key; 2] = [
    Key { gguf: "attention.key_length_swa", hf: "" },
    Key { gguf: "attention.value_length_swa", hf: "" },
];

/// The number of layers by which the 27B model is recognised. It alone does not scale scores by 1/√d, and GGUF does
/// not record that.
const LAYERS_27B: usize = 62;

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, GEMMA_ACTIVATION, "gelu_pytorch_tanh")?;
    causal(config)?;
    let count = layer_count(file)?;
    let kind = |reach| Wanted { reach, layout: Layout::ByKindOrOlder, ..USUAL };
    let full = attention(config, spec.hidden, |dim| rope(file, &kind(Reach::Full), dim))?;
    let scale = match (file.format(), count) {
        (Format::Gguf, LAYERS_27B) => scale_27b(spec.hidden, full.heads),
        _ => scale(config, &full)?,
    };
    let full = Attention { scale, qk_norm: QkNorm::Heads, ..full };
    one_head(config, full.head_dim)?;
    let sliding = Attention {
        window: Some(config.number(WINDOW)?),
        rope: rope(file, &kind(Reach::Sliding), full.head_dim)?,
        ..full.clone()
    };
    let mlp = mlp(config)?;
    let layer = |reach| {
        gemma_layer(
            Mixer::Attention(match reach {
                Reach::Full => full.clone(),
                Reach::Sliding => sliding.clone(),
            }),
            FeedForward::Dense(mlp.clone()),
        )
    };
    let layers = kinds(config, count)?.into_iter().map(layer).collect();
    let embed_scale = (spec.hidden as f32).sqrt();
    // Gemma3ForConditionalGeneration caps nothing
    let final_softcap =
        if is_beside_a_tower(config) { None } else { softcap(config, FINAL_SOFTCAP, 0.0)? };
    Ok(Spec { embed_scale, final_softcap, layers, ..spec })
}

/// Whether config.json describes the text model as a part of a model with a vision tower.
fn is_beside_a_tower(config: &dyn Config) -> bool {
    config.format() == Format::Hf && config.full_name(FINAL_SOFTCAP.hf) != FINAL_SOFTCAP.hf
}

/// Refuses another head size for sliding layers, which GGUF can express but no Gemma 3 has.
fn one_head(config: &dyn Config, dim: usize) -> Result<(), ModelError> {
    for key in SLIDING_DIMS {
        if config.optional_number(key)?.is_some_and(|sliding| sliding != dim) {
            return Err(config.bad(key, format!("is not the {dim} of full attention")));
        }
    }
    Ok(())
}

fn kinds(config: &dyn Config, count: usize) -> Result<Vec<Reach>, ModelError> {
    let kind = |sliding: bool| if sliding { Reach::Sliding } else { Reach::Full };
    // a number or a list, by who wrote it
    if matches!(config.fact(PATTERN), Some(Fact::List(_))) {
        let flags = config.flags(PATTERN, count)?.unwrap_or_default();
        return Ok(flags.into_iter().map(kind).collect());
    }
    let named = config.optional_number(PATTERN)?;
    let pattern = named.unwrap_or(USUAL_PATTERN).max(1);
    let by_pattern = |i: usize| kind(!(i + 1).is_multiple_of(pattern));
    let reaches = reaches(config, count, by_pattern)?;
    if named.is_some() && (0..count).map(by_pattern).ne(reaches.iter().copied()) {
        Err(config.bad(PATTERN, "contradicts `layer_types`"))
    } else {
        Ok(reaches)
    }
}
