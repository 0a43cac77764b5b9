//! `qwen3_vl_moe`: the text model of Qwen3-VL's mixtures, which is Qwen3-MoE. The released files store the experts'
//! matrices as (in, out), and files that transformers 5 saves store them as (out, in).

use super::common::Family;
use super::idle::{gguf, hf, Any, DENSE, ON};
use super::names;
use super::names::Names;
use super::qwen3_moe;
use super::rope::{needs_base, turns, SECTIONS};
use crate::model::config::{Config, Format};
use crate::model::spec::{Mixer, Spec};
use crate::model::tensors::{Tensors, Transform};
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["qwen3vlmoe"],
    hf: &["qwen3_vl_moe", "qwen3_vl_moe_text"],
    gguf_names: names::GGUF,
    hf_names: Names {
        ordered: &[
            ("ffn_gate_up_exps.weight", Transform::Transposed),
            ("ffn_down_exps.weight", Transform::Transposed),
        ],
        either_order: true,
        ..names::HF
    },
    // Qwen3VLMoeTextConfig, whose weights of experts are always divided by their sum
    hf_defaults: r#"{
    "tie_word_embeddings": false, "num_key_value_heads": 16, "attention_bias": false,
    "rope_theta": 500000.0, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "num_experts_per_tok": 4, "moe_intermediate_size": 1408
}"#,
    idle: &[
        hf("intermediate_size", Any, DENSE),
        gguf("feed_forward_length", Any, DENSE),
        hf(
            "norm_topk_prob",
            ON,
            "the class divides experts' weights by their sum, whatever it says",
        ),
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
    of_a_text(file, qwen3_moe::spec(file)?)
}

/// What llama.cpp computes of a text: pairs that no section of multimodal RoPE takes do not turn. In transformers' classes
/// there are no such pairs.
pub(super) fn of_a_text(file: &dyn Tensors, mut spec: Spec) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    if config.format() == Format::Hf {
        return Ok(spec);
    }
    let sections = config.list(SECTIONS)?;
    let all: usize = sections.iter().sum();
    if all == 0 {
        return Err(config.bad(SECTIONS, "is missing, or takes no pair of a head"));
    }
    let of_pair = |(pair, frequency): (usize, &f32)| match turns(&sections, pair % all) {
        true => *frequency,
        false => 0.0,
    };
    for layer in &mut spec.layers {
        if let Mixer::Attention(attention) = &mut layer.mixer {
            let frequencies = attention.rope.frequencies.iter().enumerate();
            attention.rope.frequencies = frequencies.map(of_pair).collect();
        }
    }
    Ok(spec)
}

/// Why keys about multimodal RoPE may be passed over.
pub(super) const PLAIN: &str = "for a text, all parts of multimodal RoPE turn by one position";
/// Why layers that images enter may be passed over.
pub(super) const DEEP: &str = "only images enter the residual stream between layers";
