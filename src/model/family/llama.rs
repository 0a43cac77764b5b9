//! `llama`: Llama, SmolLM2 and their kin.

use super::{attention, common};
use crate::model::gguf::Gguf;
use crate::model::spec::{Activation, Layer, Pairs, Spec};
use crate::model::ModelError;

pub(super) fn spec(file: &Gguf) -> Result<Spec, ModelError> {
    let spec = common(file)?;
    if file.optional_number("expert_count")?.unwrap_or(0) > 0 {
        return Err(file.unsupported("a mixture of experts under `llama`"));
    }
    let layer = Layer {
        // the converter permuted Q and K to adjacent pairs
        attention: attention(file, spec.hidden, Pairs::Adjacent)?,
        mlp: file.number("feed_forward_length")?,
        activation: Activation::Silu,
        post_norms: false,
    };
    Ok(Spec { layers: vec![layer; file.layers()?], ..spec })
}
