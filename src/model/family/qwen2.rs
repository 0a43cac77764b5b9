//! `qwen2`: Qwen2 and Qwen2.5, which are Llama with biases on Q, K and V.

use super::rope::{rope, USUAL};
use super::{activation, attention, common, layer_count, llama_layer, mlp, names, Family};
use super::{ACTIVATION, LAYERS, LAYER_TYPES};
use crate::model::config::{Config, Key};
use crate::model::spec::{Attention, FeedForward, Mixer, Spec};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["qwen2"],
    hf: &["qwen2"],
    gguf_names: names::GGUF,
    hf_names: names::HF,
    hf_defaults: r#"{}"#,
    spec,
};

const USE_WINDOW: Key = Key { gguf: "", hf: "use_sliding_window" };

/// No released model of the Qwen 2 and 3 families has windows, so there is nothing to check them by.
pub(super) fn without_windows(config: &dyn Config) -> Result<(), ModelError> {
    let layers = config.number(LAYERS)?;
    let types = config.words(LAYER_TYPES, layers)?.unwrap_or_default();
    match config.flag(USE_WINDOW)? || types.iter().any(|word| word != "full_attention") {
        true => Err(config.unsupported("a sliding window (use_sliding_window, layer_types)")),
        false => Ok(()),
    }
}

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, ACTIVATION, "silu")?;
    without_windows(config)?;
    let attention = attention(config, spec.hidden, |dim| rope(file, &USUAL, dim))?;
    let layer = llama_layer(
        Mixer::Attention(Attention { qkv_bias: true, ..attention }),
        FeedForward::Dense(mlp(config)?),
    );
    Ok(Spec { layers: vec![layer; layer_count(file)?], ..spec })
}
