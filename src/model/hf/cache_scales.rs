//! Scales of an FP8 cache that a checkpoint brings: one for K and one for V of each layer. The names are those that vLLM
//! reads (`maybe_remap_kv_scale_name` and `get_cache_scale`).

use super::quantized::Raw;
use crate::model::ModelError;
use std::collections::BTreeMap;

/// What the names of a layer's scales end in, behind its index, and whether they are K's and V's.
const NAMES: [(&str, [bool; 2]); 11] = [
    ("self_attn.k_scale", [true, false]),
    ("self_attn.v_scale", [false, true]),
    ("self_attn.attn.k_scale", [true, false]),
    ("self_attn.attn.v_scale", [false, true]),
    ("self_attn.k_proj.k_scale", [true, false]),
    ("self_attn.v_proj.v_scale", [false, true]),
    ("self_attn.qkv_proj.k_scale", [true, false]),
    ("self_attn.qkv_proj.v_scale", [false, true]),
    ("self_attn.k_proj.output_scale", [true, false]),
    ("self_attn.v_proj.output_scale", [false, true]),
    // one for both, from before there were two
    ("self_attn.kv_scale", [true, true]),
];

/// Scales of queries and of attention's weights, which the cache does not store.
const OTHERS: [&str; 6] = [
    "self_attn.q_scale",
    "self_attn.attn.q_scale",
    "self_attn.q_proj.output_scale",
    "self_attn.prob_scale",
    "self_attn.attn.prob_scale",
    "self_attn.prob_output_scale",
];

/// The scales of K and, if it has one of its own, V of each layer that has some.
pub(super) type CacheScales = BTreeMap<usize, (f32, Option<f32>)>;

/// The index of a layer as checkpoints write it, without leading zeros.
fn index_of(text: &str) -> Option<usize> {
    let index: usize = text.parse().ok()?;
    (index.to_string() == text).then_some(index)
}

/// Takes the scales from a checkpoint whose layers' names begin with `layers`.
pub(super) fn take(raw: &mut Raw, layers: &str) -> Result<CacheScales, ModelError> {
    let mut found: BTreeMap<usize, [Option<f32>; 2]> = BTreeMap::new();
    for end in OTHERS {
        for stem in raw.stems(&format!(".{end}")) {
            raw.drop(&format!("{stem}.{end}"));
        }
    }
    for (end, sides) in NAMES {
        for stem in raw.stems(&format!(".{end}")) {
            let name = format!("{stem}.{end}");
            let Some(index) = stem.strip_prefix(layers).and_then(index_of) else {
                return Err(
                    raw.refuse(&name, "is a scale of the cache in no layer of the text model")
                );
            };
            let scale = scale(raw, &name)?;
            let layer = found.entry(index).or_default();
            for (known, _) in layer.iter_mut().zip(sides).filter(|(_, is_meant)| *is_meant) {
                if known.replace(scale).is_some() {
                    return Err(raw.refuse(
                        &name,
                        "is a second scale of the same cache: nothing says which is meant",
                    ));
                }
            }
        }
    }
    let both = |(index, sides): (usize, [Option<f32>; 2])| match sides {
        [Some(k), v] => Ok((index, (k, v))),
        _ => Err(ModelError::refused(
            raw.folder,
            format!("layer {index} has a scale for the cache of V and none for that of K"),
        )),
    };
    found.into_iter().map(both).collect()
}

fn scale(raw: &mut Raw, name: &str) -> Result<f32, ModelError> {
    let scales = raw.floats(name)?;
    match scales[..] {
        [scale] if scale.is_finite() && scale > 0.0 => Ok(scale),
        [scale] => Err(raw.refuse(
            name,
            format!("is {scale}, and a scale of the cache must be finite and over 0"),
        )),
        _ => {
            let message = format!(
                "has {} scales, and a cache with several for a layer is not read",
                scales.len()
            );
            Err(raw.refuse(name, message))
        }
    }
}

/// A note for people about the scales.
pub(super) fn note(scales: &CacheScales) -> Option<String> {
    let (layers, alone) = (scales.len(), scales.values().filter(|(_, v)| v.is_none()).count());
    let alone = match alone {
        0 => String::new(),
        alone => format!(
            " ({alone} of these layers have no scale for V, which then has K's, as in vLLM)"
        ),
    };
    (layers > 0).then(|| {
        format!(
            "the checkpoint has scales for an FP8 cache in {layers} layer{}{alone}: the scheme \
             `fp8_e4m3:checkpoint` uses them, and `fp8_e4m3` has the scale 1",
            if layers == 1 { "" } else { "s" }
        )
    })
}
