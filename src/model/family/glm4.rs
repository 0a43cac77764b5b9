//! `glm4`: GLM-4 0414. Four norms to a layer, as in Gemma, RoPE of neighbours in the first half of each head, and gate
//! and up in one matrix.

use super::common::{
    activation, attention, common, has_qkv_bias, layer_count, llama_layer, mlp, Family,
};
use super::keys::{ACTIVATION, ATTENTION_BIAS};
use super::names;
use super::names::Names;
use super::rope::{rope, Wanted, USUAL};
use crate::model::config::{Config, Format};
use crate::model::spec::{Attention, FeedForward, Layer, Mixer, Mlp, Pairs, Spec};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["glm4"],
    hf: &["glm4"],
    gguf_names: names::GGUF,
    hf_names: Names {
        own: &[
            ("post_attention_norm", "post_self_attn_layernorm"),
            ("post_ffw_norm", "post_mlp_layernorm"),
            ("ffn_up", "mlp.gate_up_proj"),
        ],
        ..names::HF
    },
    // Glm4Config
    hf_defaults: r#"{
    "tie_word_embeddings": false, "num_key_value_heads": 2, "head_dim": 128, "attention_bias": true
}"#,
    idle: &[],
    spec,
};

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, ACTIVATION, "silu")?;
    let qkv_bias = match file.format() {
        Format::Gguf => has_qkv_bias(file),
        Format::Hf => config.flag(ATTENTION_BIAS)?,
    };
    let wanted = Wanted { pairs: Pairs::Adjacent, share: Some(0.5), ..USUAL };
    let attention = attention(config, spec.hidden, |dim| rope(file, &wanted, dim))?;
    let layer = Layer {
        post_norms: true,
        ..llama_layer(
            Mixer::Attention(Attention { qkv_bias, ..attention }),
            FeedForward::Dense(Mlp { fused: true, ..mlp(config)? }),
        )
    };
    Ok(Spec { layers: vec![layer; layer_count(file)?], ..spec })
}
