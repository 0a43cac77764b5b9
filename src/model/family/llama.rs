//! `llama`: Llama, SmolLM2 and their kin.

use super::common::{
    activation, attention, common, has_qkv_bias, layer_count, llama_layer, mlp, Family,
};
use super::keys::{ACTIVATION, ATTENTION_BIAS, EXPERTS, MLP_BIAS};
use super::names;
use super::rope::{rope, Wanted, USUAL};
use crate::model::config::{Config, Format};
use crate::model::spec::{Attention, FeedForward, Mixer, Mlp, Pairs, Spec};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["llama"],
    hf: &["llama"],
    gguf_names: names::GGUF,
    hf_names: names::HF,
    // LlamaConfig; its `head_dim` and `num_key_value_heads` follow from the other sizes
    hf_defaults: r#"{"tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false}"#,
    idle: &[],
    spec,
};

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, ACTIVATION, "silu")?;
    if config.optional_number(EXPERTS)?.unwrap_or(0) > 0 {
        return Err(config.unsupported("a mixture of experts under `llama`"));
    }
    // the GGUF converter permuted Q and K to adjacent pairs
    let pairs = if file.format() == Format::Gguf { Pairs::Adjacent } else { Pairs::Halves };
    let bias = match file.format() {
        Format::Gguf => has_qkv_bias(file),
        Format::Hf => config.flag(ATTENTION_BIAS)?,
    };
    let output_bias = match file.format() {
        Format::Gguf => file.has("blk.0.attn_output.bias"),
        Format::Hf => bias,
    };
    let mlp_bias = match file.format() {
        Format::Gguf => file.has("blk.0.ffn_gate.bias"),
        Format::Hf => config.flag(MLP_BIAS)?,
    };
    let wanted = Wanted { pairs, divisors: true, ..USUAL };
    let layer = llama_layer(
        Mixer::Attention(Attention {
            qkv_bias: bias,
            output_bias,
            ..attention(config, spec.hidden, |dim| rope(file, &wanted, dim))?
        }),
        FeedForward::Dense(Mlp { bias: mlp_bias, ..mlp(config)? }),
    );
    Ok(Spec { layers: vec![layer; layer_count(file)?], ..spec })
}
