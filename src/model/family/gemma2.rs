//! `gemma2`: norms around both halves of a layer, caps on scores and logits, embeddings scaled by
//! √hidden, and a window in every other layer.

use super::rope::{rope, USUAL};
use super::{activation, attention, common, layer_count, mlp, names, scale, softcap};
use super::{Family, Names, Reach};
use super::{ATTENTION_SOFTCAP, GEMMA_ACTIVATION, LAYER_TYPES, WINDOW};
use crate::model::config::{Config, Format};
use crate::model::spec::{Activation, Attention, FeedForward, Layer, Mixer, Spec};
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

/// Names of Gemma 2 and 3 in safetensors, whose norms are stored around zero.
pub(super) const HF_NAMES: Names =
    Names { own: POST_NORMS, zero_centred: &["norm.weight"], ..names::HF };

/// Gemma's norm behind attention has the name of Llama's norm before the MLP.
pub(super) const POST_NORMS: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// Layers of the 27B model, the only one whose scores are not scaled by 1/√d; GGUF does not record it.
const LAYERS_27B: usize = 46;

/// The reach of each layer: by name, or by the family's pattern.
pub(super) fn reaches(
    config: &dyn Config,
    count: usize,
    pattern: impl Fn(usize) -> Reach,
) -> Result<Vec<Reach>, ModelError> {
    let Some(types) = config.words(LAYER_TYPES, count)? else {
        return Ok((0..count).map(pattern).collect());
    };
    let reach = |word: &String| match word.as_str() {
        "full_attention" => Ok(Reach::Full),
        "sliding_attention" => Ok(Reach::Sliding),
        other => Err(config.bad(LAYER_TYPES, format!("names a `{other}` layer"))),
    };
    types.iter().map(reach).collect()
}

/// 1/√(hidden / heads), which GGUF's 27B models have instead of 1/√d.
pub(super) fn scale_27b(hidden: usize, heads: usize) -> f32 {
    ((hidden / heads.max(1)) as f32).powf(-0.5)
}

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
    let layer = |reach| Layer {
        mixer: Mixer::Attention(match reach {
            Reach::Full => full.clone(),
            Reach::Sliding => Attention { window, ..full.clone() },
        }),
        feed_forward: FeedForward::Dense(mlp.clone()),
        activation: Activation::GeluTanh,
        post_norms: true,
        scaled: false,
    };
    let layers = reaches(config, count, even)?.into_iter().map(layer).collect();
    Ok(Spec { embed_scale: (spec.hidden as f32).sqrt(), layers, ..spec })
}
