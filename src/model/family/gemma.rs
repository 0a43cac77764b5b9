//! What the families of Gemma have in common.

use super::common::{llama_layer, Reach};
use super::keys::LAYER_TYPES;
use super::names;
use super::names::Names;
use crate::model::config::{Config, Fact, Key};
use crate::model::spec::{Activation, FeedForward, Layer, Mixer};
use crate::model::ModelError;

/// Names of Gemma 2 and 3 in safetensors. Their norms are stored around zero.
pub(super) const HF_NAMES: Names =
    Names { own: POST_NORMS, zero_centred: &["norm.weight"], ..names::HF };

/// Gemma's norm after attention has the name that Llama's norm before the MLP has.
pub(super) const POST_NORMS: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// The reach of each layer: named by the file, or else by the family's pattern.
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

/// The 27B models scale scores by 1/√(hidden / heads) instead of 1/√d, which GGUF does not record.
pub(super) fn scale_27b(hidden: usize, heads: usize) -> f32 {
    ((hidden / heads.max(1)) as f32).powf(-0.5)
}

const BIDIRECTIONAL: Key<'static> = Key { gguf: "", hf: "use_bidirectional_attention" };

/// Refuses attention that looks ahead. The value `"vision"` is accepted, because then only images are attended to in
/// both directions.
pub(super) fn causal(config: &dyn Config) -> Result<(), ModelError> {
    match config.fact(BIDIRECTIONAL) {
        Some(Fact::Bool(true)) => Err(config.unsupported("attention in both directions")),
        Some(Fact::Text(word)) if word != "vision" => {
            Err(config.unsupported(format!("attention in both directions (`{word}`)")))
        }
        _ => Ok(()),
    }
}

/// A layer of Gemma, with norms before and after both halves and the tanh form of GELU.
pub(super) fn gemma_layer(mixer: Mixer, feed_forward: FeedForward) -> Layer {
    Layer { activation: Activation::GeluTanh, post_norms: true, ..llama_layer(mixer, feed_forward) }
}
