//! `olmo3`: OLMo 2 with a window in three of four layers. Only layers without a window have their RoPE scaled.

use super::common::{attention, common, Family, Reach};
use super::gemma::reaches;
use super::keys::WINDOW;
use super::names;
use super::olmo::{count, normed_behind, HF_NAMES};
use super::rope::{needs_base, rope, Layout, Wanted, USUAL};
use crate::model::config::{Config, Key};
use crate::model::spec::{Attention, Spec};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &[],
    hf: &["olmo3"],
    gguf_names: names::GGUF,
    hf_names: HF_NAMES,
    // Olmo3Config, which gives its own θ to layers with a window
    hf_defaults: r#"{
    "tie_word_embeddings": false, "attention_bias": false, "sliding_window": 4096,
    "rope_theta": 500000.0, "rope_local_base_freq": 500000.0
}"#,
    idle: &[],
    spec,
};

const PATTERN: Key = Key { gguf: "attention.sliding_window_pattern", hf: "" };

pub(super) fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    needs_base(file)?;
    let kind = |reach| Wanted { reach, layout: Layout::ByKindOrOlder, sliding_base: None, ..USUAL };
    let full = attention(config, spec.hidden, |dim| rope(file, &kind(Reach::Full), dim))?;
    let sliding = Attention {
        window: Some(config.number(WINDOW)?),
        rope: rope(file, &kind(Reach::Sliding), full.head_dim)?,
        ..full.clone()
    };
    let layer = normed_behind(file, full)?;
    let reaches = kinds(config, count(file)?)?;
    let layers = reaches.into_iter().map(|reach| layer(reach, Some(&sliding))).collect();
    Ok(Spec { layers, ..spec })
}

/// Every fourth layer has no window, unless the file says otherwise.
fn kinds(config: &dyn Config, count: usize) -> Result<Vec<Reach>, ModelError> {
    let kind = |sliding: bool| if sliding { Reach::Sliding } else { Reach::Full };
    match config.flags(PATTERN, count)? {
        Some(flags) => Ok(flags.into_iter().map(kind).collect()),
        None => reaches(config, count, |i| kind(!(i + 1).is_multiple_of(4))),
    }
}
