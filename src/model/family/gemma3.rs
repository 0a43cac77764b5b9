//! `gemma3`: norms on Q, K and around both halves of a layer, embeddings scaled by √hidden, and five
//! sliding layers to each full one, with a RoPE of their own.

use super::{attention, common};
use crate::model::gguf::Gguf;
use crate::model::spec::{Activation, Attention, Layer, Pairs, Rope, Spec};
use crate::model::ModelError;

/// Every sixth layer is full, the others slide.
const PATTERN: usize = 6;

/// θ of sliding layers where the file names none.
const SLIDING_BASE: f64 = 10_000.0;

/// Layers of the 27B model, the only one whose score scale is not 1/√head_dim.
const LAYERS_27B: usize = 62;

pub(super) fn spec(file: &Gguf) -> Result<Spec, ModelError> {
    let spec = common(file)?;
    if file.optional_float("final_logit_softcapping")?.is_some_and(|c| c != 0.0) {
        return Err(file.unsupported("a soft cap on the logits"));
    }
    let count = file.layers()?;
    let pattern = file.optional_number("attention.sliding_window_pattern")?.unwrap_or(PATTERN);
    let full = Attention { qk_norm: true, ..attention(file, spec.hidden, Pairs::Halves)? };
    let scale = match count {
        LAYERS_27B => ((spec.hidden / full.heads.max(1)) as f32).powf(-0.5),
        _ => full.scale,
    };
    let full = Attention { scale, ..full };
    let sliding = Attention {
        window: Some(file.number("attention.sliding_window")?),
        rope: Rope {
            base: file.optional_float("rope.freq_base_swa")?.unwrap_or(SLIDING_BASE),
            factor: 1.0,
            pairs: Pairs::Halves,
        },
        ..full.clone()
    };
    let mlp = file.number("feed_forward_length")?;
    let layers = (1..=count)
        .map(|n| Layer {
            attention: if n % pattern.max(1) == 0 { full.clone() } else { sliding.clone() },
            mlp,
            activation: Activation::GeluTanh,
            post_norms: true,
        })
        .collect();
    let embed_scale = (spec.hidden as f32).sqrt();
    Ok(Spec { embed_scale, layers, ..spec })
}
