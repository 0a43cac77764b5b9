//! What OLMo 2 and 3 have in common.

use super::common::{activation, layers_with, llama_layer, mlp, Reach};
use super::gemma::POST_NORMS;
use super::keys::{ACTIVATION, ATTENTION_BIAS, LAYERS};
use super::names;
use super::names::Names;
use crate::model::config::Config;
use crate::model::spec::{Attention, FeedForward, Layer, Mixer, QkNorm};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const HF_NAMES: Names = Names { own: &[POST_NORMS[0], POST_NORMS[2]], ..names::HF };

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
