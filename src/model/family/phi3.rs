//! `phi3`: Phi-3, Phi-3.5 and Phi-4, which are Llama with Q, K and V in one matrix and gate and up in another. Parts of
//! heads turn, in some models by LongRoPE.

use super::common::{activation, attention, common, layer_count, llama_layer, mlp, Family};
use super::idle::{gguf, hf, Any};
use super::keys::{ACTIVATION, WINDOW};
use super::mistral::one_kind;
use super::names;
use super::names::Names;
use super::rope::{rope, Wanted, USUAL};
use crate::model::config::{Config, Key};
use crate::model::spec::{Attention, FeedForward, Mixer, Mlp, Spec};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["phi3"],
    hf: &["phi3"],
    gguf_names: names::GGUF,
    hf_names: Names {
        own: &[("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")],
        ..names::HF
    },
    // Phi3Config
    hf_defaults: r#"{
    "tie_word_embeddings": false, "original_max_position_embeddings": 4096
}"#,
    idle: &[
        gguf(
            "attention.sliding_window",
            Any,
            "llama.cpp computes this architecture without a window",
        ),
        hf("original_max_position_embeddings", Any, "only LongRoPE reads it"),
    ],
    spec,
};

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, ACTIVATION, "silu")?;
    let wanted = Wanted { share: Some(1.0), phi: true, ..USUAL };
    let attention = attention(config, spec.hidden, |dim| rope(file, &wanted, dim))?;
    let window = config.optional_number(Key { gguf: "", ..WINDOW })?;
    let count = layer_count(file)?;
    one_kind(config, count, window)?;
    let layer = llama_layer(
        Mixer::Attention(Attention { window, fused: true, ..attention }),
        FeedForward::Dense(Mlp { fused: true, ..mlp(config)? }),
    );
    Ok(Spec { layers: vec![layer; count], ..spec })
}
