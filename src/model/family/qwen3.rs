//! `qwen3`: Qwen2 without biases, with norms on Q and K and a head size of its own.

use super::common::{
    activation, attention, common, has_qkv_bias, layer_count, llama_layer, mlp, Family,
};
use super::keys::{ACTIVATION, ATTENTION_BIAS};
use super::names;
use super::qwen2::windows;
use super::rope::{rope, USUAL};
use crate::model::config::{Config, Format};
use crate::model::spec::{Attention, FeedForward, Mixer, QkNorm, Spec};
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
    let (qkv_bias, output_bias) = match file.format() {
        Format::Gguf => (has_qkv_bias(file), file.has("blk.0.attn_output.bias")),
        Format::Hf => [config.flag(ATTENTION_BIAS)?; 2].into(),
    };
    let attention = attention(config, hidden, |dim| rope(file, &USUAL, dim))?;
    Ok(Attention { qk_norm: QkNorm::Heads, qkv_bias, output_bias, ..attention })
}

pub(super) fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, ACTIVATION, "silu")?;
    let (attention, mlp) = (qk_normed(file, spec.hidden)?, mlp(config)?);
    let layer = |window| {
        let attention = Attention { window, ..attention.clone() };
        llama_layer(Mixer::Attention(attention), FeedForward::Dense(mlp.clone()))
    };
    let layers = windows(config, layer_count(file)?)?.into_iter().map(layer).collect();
    Ok(Spec { layers, ..spec })
}
