//! `smollm3`: Llama, in which every fourth layer has no RoPE.

use super::common::{
    activation, attention, common, has_qkv_bias, layer_count, llama_layer, mlp, Family,
};
use super::keys::{ACTIVATION, ATTENTION_BIAS, MLP_BIAS};
use super::names;
use super::qwen2::windows;
use super::rope::{rope, Wanted, USUAL};
use crate::model::config::{Config, Format, Key};
use crate::model::spec::{Attention, FeedForward, Mixer, Mlp, Pairs, Rope, Spec};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["smollm3"],
    hf: &["smollm3"],
    gguf_names: names::GGUF,
    hf_names: names::HF,
    // SmolLM3Config
    hf_defaults: r#"{
    "tie_word_embeddings": true, "num_key_value_heads": 4, "rope_theta": 2000000.0,
    "use_sliding_window": false, "attention_bias": false, "mlp_bias": false
}"#,
    idle: &[],
    spec,
};

/// A 0 for each layer without RoPE.
const ROPES: Key = Key { gguf: "", hf: "no_rope_layers" };
/// If there is no such list, each so many-th layer has none. For llama.cpp it is always the fourth.
const STEP: Key = Key { gguf: "", hf: "no_rope_layer_interval" };
const USUAL_STEP: usize = 4;

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, ACTIVATION, "silu")?;
    // the GGUF converter permuted Q and K to adjacent pairs
    let pairs = if file.format() == Format::Gguf { Pairs::Adjacent } else { Pairs::Halves };
    let wanted = Wanted { pairs, ..USUAL };
    let bias = match file.format() {
        Format::Gguf => has_qkv_bias(file),
        Format::Hf => config.flag(ATTENTION_BIAS)?,
    };
    let turning = Attention {
        qkv_bias: bias,
        output_bias: bias,
        ..attention(config, spec.hidden, |dim| rope(file, &wanted, dim))?
    };
    let mlp = Mlp { bias: config.flag(MLP_BIAS)?, ..mlp(config)? };
    let layer = |turns: bool| {
        let rope = if turns { turning.rope.clone() } else { Rope::none() };
        llama_layer(
            Mixer::Attention(Attention { rope, ..turning.clone() }),
            FeedForward::Dense(mlp.clone()),
        )
    };
    let count = layer_count(file)?;
    if windows(config, count)?.iter().any(Option::is_some) {
        return Err(config.unsupported("a sliding window (use_sliding_window, layer_types)"));
    }
    let layers = ropes(config, count)?.into_iter().map(layer).collect();
    Ok(Spec { layers, ..spec })
}

/// Whether each layer has RoPE.
fn ropes(config: &dyn Config, count: usize) -> Result<Vec<bool>, ModelError> {
    let said = config.optional_number(STEP)?;
    let by_step = |step: usize| (1..=count).map(move |n| !n.is_multiple_of(step));
    match (config.flags(ROPES, count)?, said) {
        (Some(flags), Some(step)) if by_step(step).ne(flags.iter().copied()) => {
            Err(config.bad(STEP, "contradicts `no_rope_layers`"))
        }
        (Some(flags), _) => Ok(flags),
        (None, Some(0)) => Err(config.bad(STEP, "must not be 0")),
        (None, _) => Ok(by_step(said.unwrap_or(USUAL_STEP)).collect()),
    }
}
