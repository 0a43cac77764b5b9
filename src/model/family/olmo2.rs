//! `olmo2`: OLMo 2, whose layers have norms behind their halves and none before, and norms of whole rows of Q and K.

use super::common::{attention, common, Family, Reach};
use super::idle::{hf, Numbers};
use super::keys::WINDOW;
use super::names;
use super::olmo::{count, normed_behind, HF_NAMES};
use super::olmo3;
use super::rope::{rope, USUAL};
use crate::model::config::{Config, Format};
use crate::model::spec::Spec;
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    // llama.cpp knows OLMo 3 as an `olmo2` with windows
    gguf: &["olmo2"],
    hf: &["olmo2"],
    gguf_names: names::GGUF,
    hf_names: HF_NAMES,
    // Olmo2Config
    hf_defaults: r#"{"tie_word_embeddings": false, "attention_bias": false}"#,
    idle: &[hf("clip_qkv", Numbers(&[]), "Olmo2Attention does not clip")],
    spec,
};

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    if file.format() == Format::Gguf && config.optional_number(WINDOW)?.unwrap_or(0) > 0 {
        return olmo3::spec(file);
    }
    let spec = common(file)?;
    let full = attention(config, spec.hidden, |dim| rope(file, &USUAL, dim))?;
    let layers = normed_behind(file, full)?;
    Ok(Spec { layers: vec![layers(Reach::Full, None); count(file)?], ..spec })
}
