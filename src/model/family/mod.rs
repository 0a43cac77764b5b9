//! Model families. Each has a file that maps a checkpoint's configuration to the decoder's specification. A new
//! family needs such a file and a line in [`FAMILIES`].

mod accounts;
mod common;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma4;
mod glm4;
mod glm4_moe;
mod gpt_oss;
mod granite;
mod idle;
mod keys;
mod llama;
mod ministral3;
mod mistral;
mod names;
mod olmo;
mod olmo2;
mod olmo3;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod qwen3_vl;
mod qwen3_vl_moe;
mod rope;
mod smollm3;
mod sound;

pub(super) use names::Names;
pub(super) use rope::{DIVISORS, LONG_DIVISORS, SHORT_DIVISORS};

use super::config::Format;
use super::spec::Spec;
use super::tensors::Tensors;
use super::ModelError;
use accounts::Accounts;
use common::Family;
use std::path::Path;

const FAMILIES: &[Family] = &[
    gemma2::FAMILY,
    gemma3::FAMILY,
    gemma4::FAMILY,
    glm4::FAMILY,
    glm4_moe::FAMILY,
    gpt_oss::FAMILY,
    granite::FAMILY,
    granite::HYBRID,
    llama::FAMILY,
    ministral3::FAMILY,
    mistral::FAMILY,
    olmo2::FAMILY,
    olmo3::FAMILY,
    phi3::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen3_5::FAMILY,
    qwen3_moe::FAMILY,
    qwen3_vl::FAMILY,
    qwen3_vl_moe::FAMILY,
    smollm3::FAMILY,
];

fn find(
    path: &Path,
    architecture: &str,
    names: fn(&Family) -> &'static [&'static str],
) -> Result<&'static Family, ModelError> {
    FAMILIES.iter().find(|family| names(family).contains(&architecture)).ok_or_else(|| {
        let known: Vec<_> = FAMILIES.iter().flat_map(names).copied().collect();
        ModelError::UnknownArchitecture {
            path: path.into(),
            architecture: architecture.into(),
            known: known.join(", "),
        }
    })
}

/// Tensor names of a GGUF architecture.
pub(super) fn gguf_names(path: &Path, architecture: &str) -> Result<Names, ModelError> {
    Ok(find(path, architecture, |family| family.gguf)?.gguf_names)
}

/// Whether a family reads a model type of transformers.
pub(super) fn has_model_type(model_type: &str) -> bool {
    FAMILIES.iter().any(|family| family.hf.contains(&model_type))
}

/// Tensor names of a model type of transformers, and the defaults for keys that its configuration leaves out.
pub(super) fn hf(path: &Path, model_type: &str) -> Result<(Names, &'static str), ModelError> {
    let family = find(path, model_type, |family| family.hf)?;
    Ok((family.hf_names, family.hf_defaults))
}

/// Reads the specification of a checkpoint, with notes about its keys for people. Every key must be accounted for,
/// except those that the policy tells kvgate to ignore.
pub(super) fn read(
    file: &dyn Tensors,
    ignore_keys: &[String],
) -> Result<(Spec, Vec<String>), ModelError> {
    let names: fn(&Family) -> _ = match file.format() {
        Format::Gguf => |family| family.gguf,
        Format::Hf => |family| family.hf,
    };
    let family = find(file.path(), file.architecture(), names)?;
    let accounts = Accounts::new(file);
    let spec = (family.spec)(&accounts).map_err(|error| accounts.explained(error))?;
    sound::check(file, &spec)?;
    let notes = accounts.close(family.idle, ignore_keys)?;
    Ok((spec, notes))
}
