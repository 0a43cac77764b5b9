//! `ministral3`: Ministral 3, which is Mistral with YaRN and a factor of Q that grows with the position. llama.cpp's
//! converter gives its architecture, `mistral3`, also to the text models of Mistral Small 3.1 and later.

use super::common::{activation, attention, common, layer_count, llama_layer, mlp, Family};
use super::idle::{hf, Any};
use super::keys::{ACTIVATION, CONTEXT, WINDOW};
use super::mistral::one_kind;
use super::names;
use super::rope::{rope, Wanted, ORIGINAL, USUAL};
use crate::model::config::{Config, Format, Key};
use crate::model::spec::{Attention, FeedForward, Mixer, Pairs, Rope, Spec, Temperature};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["mistral3"],
    hf: &["ministral3"],
    gguf_names: names::GGUF,
    hf_names: names::HF,
    // Ministral3Config
    hf_defaults: r#"{
    "tie_word_embeddings": false, "num_key_value_heads": 8, "head_dim": 128,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0,
        "original_max_position_embeddings": 16384, "beta_fast": 32.0, "beta_slow": 1.0,
        "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1
    }
}"#,
    idle: &[hf(
        "rope_parameters.max_position_embeddings",
        Any,
        "Ministral3Config keeps it, and nothing reads it",
    )],
    spec,
};

/// β of the factor of Q. In GGUF 0 means that there is no factor.
const BETA: Key =
    Key { gguf: "attention.temperature_scale", hf: "rope_parameters.llama_4_scaling_beta" };
/// For how many positions the factor stays the same.
const STEPS: Key =
    Key { gguf: ORIGINAL.gguf, hf: "rope_parameters.original_max_position_embeddings" };

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, ACTIVATION, "silu")?;
    // the GGUF converter permuted Q and K to adjacent pairs
    let pairs = if file.format() == Format::Gguf { Pairs::Adjacent } else { Pairs::Halves };
    let wanted = Wanted { pairs, own_yarn: true, divisors: true, ..USUAL };
    let temperature = temperature(config)?;
    let attention = attention(config, spec.hidden, |dim| {
        Ok(Rope { temperature, ..rope(file, &wanted, dim)? })
    })?;
    let window = config.optional_number(Key { gguf: "", ..WINDOW })?;
    let count = layer_count(file)?;
    one_kind(config, count, window)?;
    let layer = llama_layer(
        Mixer::Attention(Attention { window, ..attention }),
        FeedForward::Dense(mlp(config)?),
    );
    Ok(Spec { layers: vec![layer; count], ..spec })
}

fn temperature(config: &dyn Config) -> Result<Option<Temperature>, ModelError> {
    let beta = match config.format() {
        Format::Hf => config.float(BETA)?,
        Format::Gguf => config.optional_float(BETA)?.unwrap_or(0.0),
    };
    if beta == 0.0 {
        return Ok(None);
    }
    let steps = match config.format() {
        Format::Hf => config.number(STEPS)?,
        // llama.cpp takes the context if the file does not say
        Format::Gguf => match config.optional_number(STEPS)? {
            Some(steps) => steps,
            None => config.number(CONTEXT)?,
        },
    };
    Ok(Some(Temperature { beta, steps }))
}
