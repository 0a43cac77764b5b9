//! Model families. Each has a file that maps a checkpoint's configuration to the decoder's specification. A new
//! family needs such a file and a line in [`FAMILIES`].

mod accounts;
mod common;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma4;
mod idle;
mod keys;
mod llama;
mod names;
mod qwen2;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod rope;
mod sound;

pub(super) use names::Names;

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
    llama::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen3_5::FAMILY,
    qwen3_moe::FAMILY,
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
