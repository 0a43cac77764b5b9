//! `qwen3`: Qwen2 without biases, with norms on Q and K and a head size of its own.

use super::common::{activation, attention, common, layer_count, llama_layer, mlp, Family};
use super::keys::{ACTIVATION, ATTENTION_BIAS};
use super::names;
use super::qwen2::without_windows;
use super::rope::{rope, USUAL};
use crate::model::config::Config;
use crate::model::spec::{Attention, FeedForward, Mixer, Spec};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["qwen3"],
    hf: &["qwen3"],
    gguf_names: names::GGUF,
    hf_names: names::HF,
    // Qwen3Config
    hf_defaults: r#"{
    "tie_word_embeddings": false, "num_key_value_heads": 32, "head_dim": 128,
    "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28
}"#,
    idle: &[],
    spec,
};

/// The attention of Qwen3, dense or not.
pub(super) fn qk_normed(file: &dyn Tensors, hidden: usize) -> Result<Attention, ModelError> {
    let config: &dyn Config = file;
    if config.flag(ATTENTION_BIAS)? {
        return Err(config.unsupported("biases in attention (attention_bias)"));
    }
    let attention = attention(config, hidden, |dim| rope(file, &USUAL, dim))?;
    Ok(Attention { qk_norm: true, ..attention })
}

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, ACTIVATION, "silu")?;
    without_windows(config)?;
    let layer = llama_layer(
        Mixer::Attention(qk_normed(file, spec.hidden)?),
        FeedForward::Dense(mlp(config)?),
    );
    Ok(Spec { layers: vec![layer; layer_count(file)?], ..spec })
}
