//! `gemma2`: norms around both halves of a layer, caps on scores and logits, embeddings scaled by
//! √hidden, and a window in every other layer.

use super::gemma::{gemma_layer, reaches, scale_27b, HF_NAMES};
use super::rope::{rope, USUAL};
use super::{activation, attention, common, layer_count, mlp, names, scale, softcap};
use super::{Family, Reach, ATTENTION_SOFTCAP, GEMMA_ACTIVATION, WINDOW};
use crate::model::config::{Config, Format};
use crate::model::spec::{Attention, FeedForward, Mixer, Spec};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["gemma2"],
    hf: &["gemma2"],
    gguf_names: names::GGUF,
    hf_names: HF_NAMES,
    hf_defaults: r#"{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256}"#,
    spec,
};

/// Layers of the 27B model, the only one whose scores are not scaled by 1/√d; GGUF does not record it.
const LAYERS_27B: usize = 46;

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, GEMMA_ACTIVATION, "gelu_pytorch_tanh")?;
    let full = attention(config, spec.hidden, |dim| rope(file, &USUAL, dim))?;
    let count = layer_count(file)?;
    let scale = match (file.format(), count) {
        (Format::Gguf, LAYERS_27B) => scale_27b(spec.hidden, full.heads),
        _ => scale(config, &full)?,
    };
    let full = Attention { scale, softcap: softcap(config, ATTENTION_SOFTCAP)?, ..full };
    let window = Some(config.number(WINDOW)?);
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
    Ok(Spec { embed_scale: (spec.hidden as f32).sqrt(), layers, ..spec })
}
