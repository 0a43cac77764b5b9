//! `qwen2`: Qwen2 and Qwen2.5, which are Llama with biases on Q, K and V.

use super::common::{activation, attention, common, layer_count, llama_layer, mlp, Family};
use super::idle::{hf, Any};
use super::keys::{ACTIVATION, LAYERS, LAYER_TYPES, WINDOW};
use super::names;
use super::rope::{rope, USUAL};
use crate::model::config::{Config, Key};
use crate::model::spec::{Attention, FeedForward, Mixer, Spec};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["qwen2"],
    hf: &["qwen2"],
    gguf_names: names::GGUF,
    hf_names: names::HF,
    // Qwen2Config
    hf_defaults: r#"{
    "tie_word_embeddings": false, "num_key_value_heads": 32, "use_sliding_window": false,
    "sliding_window": 4096, "max_window_layers": 28
}"#,
    idle: &[hf("attention_bias", Any, "Qwen2Attention has biases on Q, K and V, whatever it says")],
    spec,
};

pub(super) const USE_WINDOW: Key<'static> = Key { gguf: "", hf: "use_sliding_window" };

const WINDOW_FROM: Key = Key { gguf: "", hf: "max_window_layers" };

/// Refuses sliding windows. No released model of the Qwen 2 and 3 families has them, so there is nothing to check an
/// implementation against. transformers looks at the window only if `use_sliding_window` is set. Then the layers'
/// types say which layers slide, or else all do from `max_window_layers` on.
pub(super) fn without_windows(config: &dyn Config) -> Result<(), ModelError> {
    let layers = config.number(LAYERS)?;
    let types = config.words(LAYER_TYPES, layers)?;
    let window = config.optional_number(Key { gguf: "", ..WINDOW })?;
    let from = config.optional_number(WINDOW_FROM)?.unwrap_or(0);
    let used = config.flag(USE_WINDOW)? && window.is_some();
    let slides = match types {
        Some(types) => types.iter().any(|word| word != "full_attention"),
        None => used && from < layers,
    };
    if slides {
        Err(config.unsupported("a sliding window (use_sliding_window, layer_types)"))
    } else {
        Ok(())
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
