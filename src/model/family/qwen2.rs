//! `qwen2`: Qwen2 and Qwen2.5, which are Llama with biases on Q, K and V.

use super::{attention, common};
use crate::model::gguf::Gguf;
use crate::model::spec::{Activation, Attention, Layer, Pairs, Spec};
use crate::model::ModelError;

pub(super) fn spec(file: &Gguf) -> Result<Spec, ModelError> {
    let spec = common(file)?;
    let layer = Layer {
        attention: Attention { qkv_bias: true, ..attention(file, spec.hidden, Pairs::Halves)? },
        mlp: file.number("feed_forward_length")?,
        activation: Activation::Silu,
        post_norms: false,
    };
    Ok(Spec { layers: vec![layer; file.layers()?], ..spec })
}
