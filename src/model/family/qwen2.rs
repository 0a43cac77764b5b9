//! `qwen2`: Qwen2 and Qwen2.5, which are Llama with biases on Q, K and V.

use super::common::{activation, attention, common, layer_count, llama_layer, mlp, Family};
use super::idle::{hf, Any};
use super::keys::{ACTIVATION, LAYER_TYPES, WINDOW};
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

/// The window of each layer. transformers looks at it only if `use_sliding_window` is set. Then the layers' types say
/// which layers have it, or else all do from `max_window_layers` on. In GGUF and for llama.cpp there are no windows.
pub(super) fn windows(config: &dyn Config, count: usize) -> Result<Vec<Option<usize>>, ModelError> {
    let types = config.words(LAYER_TYPES, count)?;
    let window = config.optional_number(Key { gguf: "", ..WINDOW })?;
    let from = config.optional_number(WINDOW_FROM)?.unwrap_or(0);
    let window = if config.flag(USE_WINDOW)? { window } else { None };
    let Some(types) = types else {
        return Ok((0..count).map(|i| window.filter(|_| i >= from)).collect());
    };
    let of_type = |word: &String| match word.as_str() {
        "full_attention" => Ok(None),
        "sliding_attention" if window.is_some() => Ok(window),
        "sliding_attention" => {
            let message = "names layers with a window, and `use_sliding_window` and `sliding_window` give none";
            Err(config.bad(LAYER_TYPES, message))
        }
        other => Err(config.bad(LAYER_TYPES, format!("names a `{other}` layer"))),
    };
    let windows = types.iter().map(of_type).collect::<Result<Vec<_>, _>>()?;
    let by_number = (0..count).map(|i| window.filter(|_| i >= from));
    if config.in_file(WINDOW_FROM) && by_number.ne(windows.iter().copied()) {
        return Err(config.bad(WINDOW_FROM, "contradicts `layer_types`"));
    }
    Ok(windows)
}

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, ACTIVATION, "silu")?;
    let (attention, mlp) =
        (attention(config, spec.hidden, |dim| rope(file, &USUAL, dim))?, mlp(config)?);
    let layer = |window| {
        let attention = Attention { qkv_bias: true, window, ..attention.clone() };
        llama_layer(Mixer::Attention(attention), FeedForward::Dense(mlp.clone()))
    };
    let layers = windows(config, layer_count(file)?)?.into_iter().map(layer).collect();
    Ok(Spec { layers, ..spec })
}
