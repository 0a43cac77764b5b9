//! `granite`, `granitemoe` and `granitemoeshared`: Granite 3 and 4, which are Llama with factors of embeddings, scores,
//! residuals and logits. Some have experts, and a shared expert beside them.

use super::common::{
    activation, attention, common, has_qkv_bias, layer_count, llama_layer, mlp, plain_experts,
    Family,
};
use super::idle::{gguf, hf, Any, DENSE, ON};
use super::keys::{ACTIVATION, ATTENTION_BIAS, EXPERTS, EXPERTS_USED, HEAD_DIM, MLP, MLP_BIAS};
use super::names;
use super::names::Names;
use super::rope::{rope, Wanted, USUAL};
use crate::model::config::{Config, Format, Key};
use crate::model::spec::{
    Attention, Experts, FeedForward, Layer, Mixer, Mlp, Pairs, SharedExpert, Spec,
};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["granite", "granitemoe"],
    hf: &["granite", "granitemoe", "granitemoeshared"],
    gguf_names: names::GGUF,
    hf_names: Names {
        own: &[
            ("ffn_gate_inp", "block_sparse_moe.router.layer"),
            ("ffn_gate_up_exps.weight", "block_sparse_moe.input_linear.weight"),
            ("ffn_down_exps.weight", "block_sparse_moe.output_linear.weight"),
            ("ffn_gate_up_shexp", "shared_mlp.input_linear"),
            ("ffn_down_shexp", "shared_mlp.output_linear"),
        ],
        ..names::HF
    },
    // GraniteConfig, GraniteMoeConfig and GraniteMoeSharedConfig
    hf_defaults: r#"{
    "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false,
    "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0,
    "attention_multiplier": 1.0, "num_local_experts": 8, "num_experts_per_tok": 2,
    "shared_intermediate_size": 0
}"#,
    idle: &[
        gguf("rope.scaling.finetuned", ON, "for this architecture it says whether there is RoPE"),
        gguf("expert_used_count", Any, DENSE_EXPERTS),
        hf("num_experts_per_tok", Any, DENSE_EXPERTS),
        hf("num_local_experts", Any, DENSE_EXPERTS),
        hf("shared_intermediate_size", Any, DENSE_EXPERTS),
        hf("normalization_function", Any, "the norms are RMS norms, whatever it says"),
        gguf("feed_forward_length", Any, DENSE),
    ],
    spec,
};

const DENSE_EXPERTS: &str = "GraniteModel has no experts, whatever it says";

const EMBEDDING: Key = Key { gguf: "embedding_scale", hf: "embedding_multiplier" };
const SCORES: Key = Key { gguf: "attention.scale", hf: "attention_multiplier" };
const RESIDUAL: Key = Key { gguf: "residual_scale", hf: "residual_multiplier" };
/// A divisor of the logits.
const LOGITS: Key = Key { gguf: "logit_scale", hf: "logits_scaling" };
const COUNT: Key = Key { gguf: EXPERTS.gguf, hf: "num_local_experts" };
const SHARED: Key =
    Key { gguf: "expert_shared_feed_forward_length", hf: "shared_intermediate_size" };

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, ACTIVATION, "silu")?;
    // the GGUF converter permuted Q and K to adjacent pairs
    let pairs = if file.format() == Format::Gguf { Pairs::Adjacent } else { Pairs::Halves };
    let wanted = Wanted { pairs, divisors: true, ..USUAL };
    let attention = attention(config, spec.hidden, |dim| rope(file, &wanted, dim))?;
    one_size(config, &attention, spec.hidden)?;
    let (qkv_bias, output_bias) = match file.format() {
        Format::Gguf => (has_qkv_bias(file), file.has("blk.0.attn_output.bias")),
        Format::Hf => [config.flag(ATTENTION_BIAS)?; 2].into(),
    };
    let scale = factor(config, SCORES)?.unwrap_or(attention.scale);
    let attention = Attention { scale, qkv_bias, output_bias, ..attention };
    let layer = Layer {
        added_scale: factor(config, RESIDUAL)?.unwrap_or(1.0),
        ..llama_layer(Mixer::Attention(attention), feed_forward(file)?)
    };
    let embed_scale = factor(config, EMBEDDING)?.unwrap_or(1.0);
    let logit_scale = 1.0 / config.positive(LOGITS)? as f32;
    Ok(Spec { embed_scale, logit_scale, layers: vec![layer; layer_count(file)?], ..spec })
}

/// A factor. For llama.cpp 0 means that there is none.
fn factor(config: &dyn Config, key: Key) -> Result<Option<f32>, ModelError> {
    match config.optional_float(key)? {
        Some(0.0) if config.format() == Format::Hf => Err(config.bad(key, "must not be 0")),
        found => Ok(found.filter(|factor| *factor != 0.0).map(|factor| factor as f32)),
    }
}

/// Refuses heads of a size of their own, which llama.cpp's converter leaves out.
fn one_size(config: &dyn Config, attention: &Attention, hidden: usize) -> Result<(), ModelError> {
    if attention.q_width() == hidden {
        Ok(())
    } else {
        Err(config.bad(HEAD_DIM, format!("is not that of {} heads in {hidden}", attention.heads)))
    }
}

fn feed_forward(file: &dyn Tensors) -> Result<FeedForward, ModelError> {
    let config: &dyn Config = file;
    if config.architecture() == "granite" {
        let bias = match file.format() {
            Format::Gguf => file.has("blk.0.ffn_gate.bias"),
            Format::Hf => config.flag(MLP_BIAS)?,
        };
        return Ok(FeedForward::Dense(Mlp { bias, ..mlp(config)? }));
    }
    let width = if config.architecture() == "granitemoe" && config.format() == Format::Hf {
        0
    } else {
        config.optional_number(SHARED)?.unwrap_or(0)
    };
    let fused = config.format() == Format::Hf;
    let shared = (width > 0).then_some(SharedExpert { width, gated: false, fused });
    let plain =
        plain_experts(config.number(COUNT)?, config.number(EXPERTS_USED)?, config.number(MLP)?);
    Ok(FeedForward::Experts(Experts { shared, ..plain }))
}
