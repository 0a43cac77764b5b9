//! `olmo2`: OLMo 2, whose layers have norms behind their halves and none before, and norms of whole rows of Q and K.

use super::common::{activation, attention, common, layers_with, llama_layer, mlp, Family, Reach};
use super::gemma::POST_NORMS;
use super::idle::{hf, Numbers};
use super::keys::{ACTIVATION, ATTENTION_BIAS, LAYERS, WINDOW};
use super::names;
use super::names::Names;
use super::olmo3;
use super::rope::{rope, USUAL};
use crate::model::config::{Config, Format};
use crate::model::spec::{Attention, FeedForward, Layer, Mixer, QkNorm, Spec};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    // llama.cpp knows OLMo 3 as an `olmo2` with windows
    gguf: &["olmo2"],
    hf: &["olmo2"],
    gguf_names: names::GGUF,
    hf_names: HF_NAMES,
    // Olmo2Config
    hf_defaults: r#"{"tie_word_embeddings": false, "attention_bias": false}"#,
    idle: &[hf("clip_qkv", Numbers(&[]), "Olmo2Attention does not clip")],
    spec,
};

pub(super) const HF_NAMES: Names = Names { own: &[POST_NORMS[0], POST_NORMS[2]], ..names::HF };

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    if file.format() == Format::Gguf && config.optional_number(WINDOW)?.unwrap_or(0) > 0 {
        return olmo3::spec(file);
    }
    let spec = common(file)?;
    let full = attention(config, spec.hidden, |dim| rope(file, &USUAL, dim))?;
    let layers = normed_behind(file, full)?;
    Ok(Spec { layers: vec![layers(Reach::Full, None); count(file)?], ..spec })
}

pub(super) fn count(file: &dyn Tensors) -> Result<usize, ModelError> {
    let config: &dyn Config = file;
    layers_with("post_attention_norm.weight", file, config.number(LAYERS)?)
}

/// Makes layers of the attention of layers without a window, and of that of the others if there are any.
pub(super) fn normed_behind(
    file: &dyn Tensors,
    full: Attention,
) -> Result<impl Fn(Reach, Option<&Attention>) -> Layer, ModelError> {
    let config: &dyn Config = file;
    activation(config, ACTIVATION, "silu")?;
    // the norms stand between the biases and what llama.cpp's converter would make of them
    if config.flag(ATTENTION_BIAS)? {
        return Err(config.unsupported("biases in attention (attention_bias)"));
    }
    let mlp = mlp(config)?;
    Ok(move |reach, sliding: Option<&Attention>| {
        let attention = match (reach, sliding) {
            (Reach::Sliding, Some(sliding)) => sliding.clone(),
            _ => full.clone(),
        };
        let attention = Attention { qk_norm: QkNorm::Rows, ..attention };
        Layer {
            pre_norms: false,
            post_norms: true,
            ..llama_layer(Mixer::Attention(attention), FeedForward::Dense(mlp.clone()))
        }
    })
}
