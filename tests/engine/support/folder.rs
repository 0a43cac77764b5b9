//! Folders with `config.json` and safetensors that a test edits.

use kvgate::internals::model::Checkpoint;
use kvgate::internals::source::Source;
use serde_json::{json, Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

pub const WEIGHTS: &str = "model.safetensors";

/// A file in safetensors, to be edited and written again.
pub struct File {
    pub metadata: Map<String, Value>,
    pub tensors: BTreeMap<String, Stored>,
}

#[derive(Clone)]
pub struct Stored {
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl File {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let mut header: Map<String, Value> = serde_json::from_slice(header).unwrap();
        let metadata = header.remove("__metadata__").unwrap_or(json!({}));
        let stored = |(name, info): (String, Value)| {
            let numbers = |key: &str| -> Vec<usize> {
                info[key].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
            };
            let at = numbers("data_offsets");
            let dtype = info["dtype"].as_str().unwrap().into();
            (name, Stored { dtype, shape: numbers("shape"), bytes: data[at[0]..at[1]].to_vec() })
        };
        File {
            metadata: metadata.as_object().unwrap().clone(),
            tensors: header.into_iter().map(stored).collect(),
        }
    }

    pub fn write(&self, path: &Path) {
        let (mut header, mut data) = (Map::new(), Vec::new());
        if !self.metadata.is_empty() {
            header.insert("__metadata__".into(), self.metadata.clone().into());
        }
        for (name, Stored { dtype, shape, bytes }) in &self.tensors {
            let start = data.len();
            data.extend_from_slice(bytes);
            let at = [start, data.len()];
            header
                .insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": at}));
        }
        let mut header = Value::from(header).to_string();
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        let length = (header.len() as u64).to_le_bytes();
        std::fs::write(path, [&length, header.as_bytes(), &data].concat()).unwrap();
    }

    /// Gives every tensor another name.
    pub fn renamed(&mut self, rename: impl Fn(&str) -> String) {
        let tensors = std::mem::take(&mut self.tensors).into_iter();
        self.tensors = tensors.map(|(name, stored)| (rename(&name), stored)).collect();
    }

    pub fn add(&mut self, name: &str, dtype: &str, shape: &[usize], width: usize) {
        let bytes = vec![0; shape.iter().product::<usize>() * width];
        let stored = Stored { dtype: dtype.into(), shape: shape.into(), bytes };
        self.tensors.insert(name.into(), stored);
    }
}

/// A copy of a folder's files but for its GGUF, in which a test writes.
pub fn copied(from: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_none_or(|extension| extension != "gguf") {
            std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
        }
    }
    folder
}

/// Edits the weights of a folder.
pub fn edit_weights(folder: &TempDir, edit: impl Fn(&mut File)) {
    let path = folder.path().join(WEIGHTS);
    let mut file = File::read(&path);
    edit(&mut file);
    file.write(&path);
}

/// Edits the configuration of a folder.
pub fn edit_config(folder: &TempDir, edit: impl Fn(&mut Value)) {
    let path = folder.path().join("config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
}

pub fn open(folder: &Path) -> Result<Checkpoint, String> {
    Checkpoint::open(&Source::at(folder.into())).map_err(|error| error.to_string())
}
