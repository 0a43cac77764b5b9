//! Families: one file each, which maps a checkpoint's configuration to the decoder's specification.
//! Adding a family is a file and a line in [`FAMILIES`].

mod gemma3;
mod llama;
mod qwen2;

use super::gguf::Gguf;
use super::spec::{Attention, Pairs, Rope, Spec};
use super::ModelError;

type Family = fn(&Gguf) -> Result<Spec, ModelError>;

/// Architectures by their names in `general.architecture`.
const FAMILIES: &[(&str, Family)] =
    &[("gemma3", gemma3::spec), ("llama", llama::spec), ("qwen2", qwen2::spec)];

/// The specification of a checkpoint.
pub(super) fn spec(file: &Gguf) -> Result<Spec, ModelError> {
    let name = file.architecture();
    let Some((_, family)) = FAMILIES.iter().find(|(known, _)| *known == name) else {
        let known: Vec<_> = FAMILIES.iter().map(|(name, _)| *name).collect();
        return Err(ModelError::UnknownArchitecture {
            path: file.path().into(),
            architecture: name.into(),
            known: known.join(", "),
        });
    };
    let spec = family(file)?;
    check(file, &spec)?;
    Ok(spec)
}

/// What every family must satisfy, so that a hostile header is an error and not a panic.
fn check(file: &Gguf, spec: &Spec) -> Result<(), ModelError> {
    /// More heads, elements or columns than any model has; products of them stay far from overflow.
    const MOST: usize = 1 << 20;
    let bounded = |n: usize| (1..=MOST).contains(&n);
    let sound = spec.layers.first().is_some_and(|layer| {
        let a = &layer.attention;
        [a.heads, a.kv_heads, a.head_dim, spec.hidden, layer.mlp].into_iter().all(bounded)
            && a.heads.is_multiple_of(a.kv_heads)
            && a.head_dim.is_multiple_of(2)
            && bounded(a.q_width())
            && a.window != Some(0)
    });
    let positive = spec.norm_eps > 0.0
        && spec.layers.iter().all(|l| l.attention.rope.base > 0.0 && l.attention.rope.factor > 0.0);
    if !sound || spec.vocab == 0 || !positive {
        return Err(file.unsupported("an empty, absurd or indivisible shape in its metadata"));
    }
    if let Some(scaling) = file.optional_text("rope.scaling.type") {
        if !["none", "linear"].contains(&scaling) {
            return Err(file.unsupported(format!("RoPE scaling `{scaling}`")));
        }
    }
    if file.has_tensor("rope_freqs.weight") {
        return Err(file.unsupported("RoPE with frequency factors (rope_freqs)"));
    }
    Ok(())
}

/// The parts of a specification that every family of GGUF files spells alike; no layers yet.
fn common(file: &Gguf) -> Result<Spec, ModelError> {
    Ok(Spec {
        architecture: file.architecture().into(),
        hidden: file.number("embedding_length")?,
        vocab: file.rows("token_embd.weight")?,
        trained_context: file.number("context_length")?,
        embed_scale: 1.0,
        tied_head: !file.has_tensor("output.weight"),
        norm_eps: file.float("attention.layer_norm_rms_epsilon")? as f32,
        layers: Vec::new(),
    })
}

/// Attention as every family of GGUF files spells it: full, scaled by 1/√d, without norms or biases.
fn attention(file: &Gguf, hidden: usize, pairs: Pairs) -> Result<Attention, ModelError> {
    let heads = file.number("attention.head_count")?;
    let head_dim = match file.optional_number("attention.key_length")? {
        Some(dim) => dim,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    if file.optional_number("attention.value_length")?.is_some_and(|v| v != head_dim) {
        return Err(file.unsupported("a V head of another size than the K head"));
    }
    if file.optional_number("rope.dimension_count")?.is_some_and(|d| d != head_dim) {
        return Err(file.unsupported("partial RoPE"));
    }
    Ok(Attention {
        heads,
        kv_heads: file.optional_number("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        window: None,
        qkv_bias: false,
        qk_norm: false,
        rope: Rope {
            base: file.optional_float("rope.freq_base")?.unwrap_or(10_000.0),
            factor: match file.optional_text("rope.scaling.type") {
                Some("none") => 1.0,
                _ => file.optional_float("rope.scaling.factor")?.unwrap_or(1.0),
            },
            pairs,
        },
    })
}
