//! `gemma2`: norms around both halves of a layer, caps on scores and logits, embeddings scaled by
//! √hidden, and a window in every other layer.

use super::common::{
    activation, attention, common, layer_count, mlp, scale, softcap, Family, Reach,
};
use super::gemma::{causal, gemma_layer, reaches, scale_27b, HF_NAMES};
use super::idle::{hf, Any};
use super::keys::{ATTENTION_SOFTCAP, FINAL_SOFTCAP, GEMMA_ACTIVATION, WINDOW};
use super::names;
use super::rope::{rope, USUAL};
use crate::model::config::{Config, Format, Key};
use crate::model::spec::{Attention, FeedForward, Mixer, Spec};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["gemma2"],
    hf: &["gemma2"],
    gguf_names: names::GGUF,
    hf_names: HF_NAMES,
    // Gemma2Config
    hf_defaults: r#"{
    "tie_word_embeddings": true, "num_key_value_heads": 4, "head_dim": 256,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0
}"#,
    idle: &[hf("hidden_act", Any, "Gemma2MLP takes hidden_activation")],
    spec,
};

const WINDOW_SIZE: Key = Key { gguf: "", hf: "sliding_window_size" };
const SLIDING_BASE: Key = Key { gguf: "rope.freq_base_swa", hf: "" };

/// The number of layers by which the 27B model is recognised. It alone does not scale scores by 1/√d, and GGUF does
/// not record that.
const LAYERS_27B: usize = 46;

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, GEMMA_ACTIVATION, "gelu_pytorch_tanh")?;
    causal(config)?;
    let full = attention(config, spec.hidden, |dim| rope(file, &USUAL, dim))?;
    let count = layer_count(file)?;
    let scale = match (file.format(), count) {
        (Format::Gguf, LAYERS_27B) => scale_27b(spec.hidden, full.heads),
        _ => scale(config, &full)?,
    };
    let full = Attention { scale, softcap: cap(config, ATTENTION_SOFTCAP, 50.0)?, ..full };
    let window = Some(window(config)?);
    one_base(config, &full)?;
    let mlp = mlp(config)?;
    let even = |i: usize| if i.is_multiple_of(2) { Reach::Sliding } else { Reach::Full };
    let layer = |reach| {
        gemma_layer(
            Mixer::Attention(match reach {
                Reach::Full => full.clone(),
                Reach::Sliding => Attention { window, ..full.clone() },
            }),
            FeedForward::Dense(mlp.clone()),
        )
    };
    let layers = reaches(config, count, even)?.into_iter().map(layer).collect();
    let embed_scale = (spec.hidden as f32).sqrt();
    // the caps are those of llama.cpp's `llama_hparams`, for files from before the keys existed
    let final_softcap = cap(config, FINAL_SOFTCAP, 30.0)?;
    Ok(Spec { embed_scale, final_softcap, layers, ..spec })
}

/// A soft cap. It must not be 0: in other architectures that means no cap, but for Gemma 2 llama.cpp divides by it.
fn cap(config: &dyn Config, key: Key, gguf: f64) -> Result<Option<f32>, ModelError> {
    match softcap(config, key, gguf)? {
        None if config.format() == Format::Gguf => {
            let message =
                "is 0, by which llama.cpp divides: it must be positive, as in Google's files";
            Err(config.bad(key, message))
        }
        cap => Ok(cap),
    }
}

/// The window. If the file does not have it, llama.cpp and the class of transformers both take 4096.
fn window(config: &dyn Config) -> Result<usize, ModelError> {
    let window = match (config.optional_number(WINDOW)?, config.format()) {
        (Some(window), _) => window,
        (None, Format::Gguf) => 4096,
        (None, Format::Hf) => return config.number(WINDOW),
    };
    // the released 9B and 27B have it under both names
    if config.optional_number(WINDOW_SIZE)?.is_some_and(|size| size != window) {
        return Err(config.bad(WINDOW_SIZE, "is not the size of `sliding_window`"));
    }
    Ok(window)
}

/// Refuses a separate RoPE base for sliding layers, which llama.cpp could read but no model has.
pub(super) fn one_base(config: &dyn Config, full: &Attention) -> Result<(), ModelError> {
    if config.optional_float(SLIDING_BASE)?.is_some_and(|base| base != full.rope.base) {
        Err(config.bad(SLIDING_BASE, "differs from the base of full attention"))
    } else {
        Ok(())
    }
}
