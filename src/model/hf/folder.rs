//! Finds the files that a folder's checkpoint consists of.

use super::files::{io, read};
use super::json;
use crate::model::ModelError;
use crate::source::pinned::{shards_of, CONFIG, INDEX, WEIGHTS};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The files with weights. If there is an index, it says which file holds each tensor.
pub(super) struct Weights {
    pub files: Vec<PathBuf>,
    pub index: Option<BTreeMap<String, String>>,
}

impl Weights {
    /// Finds the files and checks that all of them exist.
    pub fn present(folder: &Path) -> Result<Self, ModelError> {
        let weights = Self::named(folder)?;
        let missing: Vec<_> = weights.files.iter().filter(|file| !file.exists()).collect();
        match missing.first() {
            None => Ok(weights),
            Some(_) if weights.index.is_none() => Err(without_weights(folder)),
            Some(first) => {
                let (first, count) = (first.display(), missing.len());
                let what = format!(
                    "{count} of the {} files that it names are missing, such as {first}: fetch them, too",
                    weights.files.len()
                );
                Err(ModelError::malformed(&folder.join(INDEX), what))
            }
        }
    }

    /// The files that the index names, or else the single file, whether they exist or not. An index may name the
    /// single file, as MLX's does.
    pub fn named(folder: &Path) -> Result<Self, ModelError> {
        let (single, index) = (folder.join(WEIGHTS), folder.join(INDEX));
        if !index.exists() {
            return Ok(Weights { files: vec![single], index: None });
        }
        let map = weight_map(&index)?;
        let names: BTreeSet<&String> = map.values().collect();
        if single.exists() && names.iter().any(|name| *name != WEIGHTS) {
            return Err(ModelError::refused(
                folder,
                format!(
                    "there are two checkpoints: {WEIGHTS}, and the files that {INDEX} names; programs differ in which \
                     they read, so take the one away that is not meant"
                ),
            ));
        }
        let files = names.into_iter().map(|name| folder.join(name)).collect();
        Ok(Weights { files, index: Some(map) })
    }

    /// Refuses an index that was written for other files. `tensors` are the tensors that the files have, each with
    /// its file. Tensors that are not read do not matter.
    pub fn check_index<'n>(
        &self,
        folder: &Path,
        tensors: impl Iterator<Item = (&'n String, &'n Path)>,
        is_read: impl Fn(&String) -> bool,
    ) -> Result<(), ModelError> {
        let Some(index) = &self.index else { return Ok(()) };
        let found: BTreeMap<_, _> = tensors.collect();
        let file_of = |path: &Path| path.strip_prefix(folder).unwrap_or(path).to_path_buf();
        let stale = |what: String| {
            let path = folder.join(INDEX);
            ModelError::malformed(
                &path,
                format!("{what}: it and the files are of different versions"),
            )
        };
        for (tensor, file) in index.iter().filter(|(tensor, _)| is_read(tensor)) {
            if found.get(tensor).map(|path| file_of(path)) != Some(PathBuf::from(file)) {
                return Err(stale(format!("tensor `{tensor}` is not in {file}, as it says")));
            }
        }
        match found.iter().find(|(tensor, _)| is_read(tensor) && !index.contains_key(**tensor)) {
            None => Ok(()),
            Some((tensor, path)) => {
                let file = file_of(path);
                Err(stale(format!("it does not name tensor `{tensor}` of {}", file.display())))
            }
        }
    }

    /// A note about safetensors in the folder that are not read.
    pub fn leftover(&self, folder: &Path) -> Option<String> {
        let read: BTreeSet<_> = self.files.iter().collect();
        let left = ending(folder, &[".safetensors"]);
        let left: Vec<_> =
            left.into_iter().filter(|name| !read.contains(&folder.join(name))).collect();
        let (first, more) = left.split_first()?;
        let more =
            if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        Some(format!(
            "`{first}`{more} in the same folder is no part of the checkpoint and is not read"
        ))
    }
}

/// The map of an index from tensors to files below its folder.
fn weight_map(index: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    let whole = json::object(index, &read(index)?)?;
    if shards_of(&whole).is_none() {
        let what = "it has no weight_map, or one of other things than files below its folder";
        return Err(ModelError::malformed(index, what));
    }
    let map = whole.get("weight_map").and_then(Value::as_object).into_iter().flatten();
    Ok(map.filter_map(|(name, file)| Some((name.clone(), file.as_str()?.into()))).collect())
}

/// Names of a folder's files with one of these endings, sorted. There are none if the folder cannot be read.
fn ending(folder: &Path, ends: &[&str]) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> =
        names.filter(|name| ends.iter().any(|end| name.ends_with(end))).collect();
    names.sort();
    names
}

/// An error about a folder without config.json. It says what is there instead.
pub(super) fn without_config(folder: &Path) -> ModelError {
    let refused = |message: String| ModelError::refused(folder, message);
    let there = |name: &str| folder.join(name).exists();
    if let [gguf, ..] = &ending(folder, &[".gguf"])[..] {
        return refused(format!("the folder has no {CONFIG}, but a GGUF: name the file, `{gguf}`"));
    }
    if there("adapter_config.json") {
        return refused(format!(
            "it has no {CONFIG}, but an adapter's: an adapter is no model, so merge it into its base \
             (peft's `merge_and_unload`) and measure that"
        ));
    }
    if there("snapshots") {
        return refused(
            "it is a repository's folder in the hub's cache: name one of the folders in `snapshots`, or write `hf = \
             \"org/name\"` and a `revision` in the policy"
                .into(),
        );
    }
    if there("params.json") {
        return refused(format!(
            "it has params.json instead of {CONFIG}, as the first releases of Llama and Mistral: convert it to \
             transformers' format"
        ));
    }
    ModelError::Missing { path: folder.join(CONFIG), fetch: None }
}

/// An error about a folder without weights in safetensors. It says what is there instead.
fn without_weights(folder: &Path) -> ModelError {
    let refused = |message: String| ModelError::refused(folder, message);
    if let [part, ..] = &ending(folder, &[".safetensors"])[..] {
        return refused(format!(
            "it has neither {WEIGHTS} nor {INDEX}, which says what is in which file, but `{part}`: fetch the index, \
             too, or save the model again with transformers' `save_pretrained`"
        ));
    }
    if let [pickle, ..] = &ending(folder, &[".bin", ".pt", ".pth"])[..] {
        return refused(format!(
            "it has no weights in safetensors, but `{pickle}`: load the model with transformers and save it again with \
             `save_pretrained`, which writes safetensors"
        ));
    }
    io(&folder.join(WEIGHTS), std::io::ErrorKind::NotFound.into())
}
