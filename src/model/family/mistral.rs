//! `mistral`: Llama, perhaps with a window in all layers. llama.cpp's converter writes it as `llama`.

use super::common::{activation, attention, common, layer_count, llama_layer, mlp, Family};
use super::keys::{ACTIVATION, LAYER_TYPES, WINDOW};
use super::names;
use super::rope::{rope, USUAL};
use crate::model::config::Config;
use crate::model::spec::{Attention, FeedForward, Mixer, Spec};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &[],
    hf: &["mistral"],
    gguf_names: names::GGUF,
    hf_names: names::HF,
    // MistralConfig; its `head_dim` follows from the other sizes
    hf_defaults: r#"{
    "tie_word_embeddings": false, "num_key_value_heads": 8, "sliding_window": 4096
}"#,
    idle: &[],
    spec,
};

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, ACTIVATION, "silu")?;
    let attention = attention(config, spec.hidden, |dim| rope(file, &USUAL, dim))?;
    let window = config.optional_number(WINDOW)?;
    let count = layer_count(file)?;
    one_kind(config, count, window)?;
    let layer = llama_layer(
        Mixer::Attention(Attention { window, ..attention }),
        FeedForward::Dense(mlp(config)?),
    );
    Ok(Spec { layers: vec![layer; count], ..spec })
}

/// Refuses layers whose types are not that of all layers. The class passes the types over, with a warning.
pub(super) fn one_kind(
    config: &dyn Config,
    count: usize,
    window: Option<usize>,
) -> Result<(), ModelError> {
    let kind = if window.is_some() { "sliding_attention" } else { "full_attention" };
    let types = config.words(LAYER_TYPES, count)?.unwrap_or_default();
    match types.iter().find(|word| *word != kind) {
        None => Ok(()),
        Some(other) => {
            let message =
                format!("names a `{other}` layer, and by `sliding_window` all are `{kind}`");
            Err(config.bad(LAYER_TYPES, message))
        }
    }
}
