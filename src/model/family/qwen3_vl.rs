//! `qwen3_vl`: the text model of Qwen3-VL, which is Qwen3.

use super::common::Family;
use super::idle::{gguf, hf, Any};
use super::names;
use super::qwen3;
use super::qwen3_vl_moe::{of_a_text, DEEP, PLAIN};
use super::rope::needs_base;
use crate::model::spec::Spec;
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["qwen3vl"],
    hf: &["qwen3_vl", "qwen3_vl_text"],
    gguf_names: names::GGUF,
    hf_names: names::HF,
    // Qwen3VLTextConfig; whether the head is tied is the whole model's affair (Qwen3VLConfig)
    hf_defaults: r#"{
    "tie_word_embeddings": false, "num_key_value_heads": 32, "head_dim": 128,
    "attention_bias": false, "rope_theta": 500000.0
}"#,
    idle: &[
        hf("rope_parameters.mrope_section", Any, PLAIN),
        hf("rope_parameters.mrope_interleaved", Any, PLAIN),
        hf("rope_scaling.mrope_section", Any, PLAIN),
        hf("rope_scaling.mrope_interleaved", Any, PLAIN),
        gguf("n_deepstack_layers", Any, DEEP),
    ],
    spec,
};

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    needs_base(file)?;
    of_a_text(file, qwen3::spec(file)?)
}
