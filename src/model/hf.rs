//! Checkpoints as transformers saves them: a folder with `config.json` and `model.safetensors`, or
//! several such files and an index.

use super::config::{Config, Fact, Format};
use super::family::{self, Names};
use super::once;
use super::tensors::{gathered, Joined, Origin, Tensors};
use super::ModelError;
use crate::files;
use crate::hub::{shards, CONFIG, INDEX, TOKENIZER, WEIGHTS};
use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The member of a multimodal model's configuration that describes its text model.
const TEXT: &str = "text_config";
const TEXT_PREFIX: &str = "text_config.";

/// Whether the head is the embedding.
const TIED: &str = "tie_word_embeddings";

/// An open checkpoint folder whose headers have been read.
pub(crate) struct HfCheckpoint {
    folder: PathBuf,
    /// All of config.json.
    whole: Value,
    /// The member of it that describes the text model.
    text: Value,
    architecture: String,
    names: Names,
    /// What the configuration leaves out.
    defaults: Value,
    /// What stands before `embed_tokens` in the files' names.
    prefix: String,
    shards: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Located>,
}

/// A tensor in a file.
struct Located {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl HfCheckpoint {
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let whole = json(&folder.join(CONFIG))?;
        // a multimodal model nests the configuration of its text model
        let text = whole.get(TEXT).unwrap_or(&whole).clone();
        let architecture = match (text.get("model_type"), whole.get("model_type")) {
            (Some(Value::String(name)), _) | (None, Some(Value::String(name))) => name.clone(),
            _ => {
                return Err(malformed(&folder.join(CONFIG), "it names no model_type".into()));
            }
        };
        let (names, defaults) = family::hf(folder, &architecture)?;
        let defaults = serde_json::from_str(defaults).expect("defaults in the source are JSON");
        let mut checkpoint = HfCheckpoint {
            folder: folder.into(),
            whole,
            text,
            architecture,
            names,
            defaults,
            prefix: String::new(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
        };
        for file in weights(folder)? {
            checkpoint.add(file)?;
        }
        let embedding = "embed_tokens.weight";
        let prefixed = checkpoint.tensors.keys().find_map(|name| name.strip_suffix(embedding));
        checkpoint.prefix = prefixed.unwrap_or("model.").into();
        Ok(checkpoint)
    }

    /// Maps a file and books its tensors.
    fn add(&mut self, path: PathBuf) -> Result<(), ModelError> {
        let bytes = files::map(&path).map_err(|error| io(&path, error))?;
        // deserializing reads the header only; it checks that every tensor lies inside the file
        let sound = |e: safetensors::SafeTensorError| malformed(&path, e.to_string());
        let parsed = SafeTensors::deserialize(&bytes).map_err(sound)?;
        for (name, info) in parsed.tensors() {
            let start = info.data().as_ptr() as usize - bytes.as_ptr() as usize;
            let located = Located {
                shard: self.shards.len(),
                dtype: info.dtype(),
                shape: info.shape().to_vec(),
                bytes: start..start + info.data().len(),
            };
            if self.tensors.insert(name.clone(), located).is_some() {
                return Err(malformed(&path, format!("tensor `{name}` is in another file, too")));
            }
        }
        self.shards.push((path, bytes));
        Ok(())
    }

    /// The configuration and the files that hold weights, in order.
    pub fn files(&self) -> Vec<PathBuf> {
        let config = self.folder.join(CONFIG);
        std::iter::once(config).chain(self.shards.iter().map(|(path, _)| path.clone())).collect()
    }

    /// All files that a folder's checkpoint consists of, whether they are there or not.
    pub fn files_in(folder: &Path) -> Vec<PathBuf> {
        let weights = weights(folder).unwrap_or_else(|_| vec![folder.join(INDEX)]);
        [CONFIG, TOKENIZER].iter().map(|name| folder.join(name)).chain(weights).collect()
    }

    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Storage types of the tensors with their counts.
    pub fn dtypes(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for located in self.tensors.values() {
            *counts.entry(format!("{:?}", located.dtype)).or_insert(0) += 1;
        }
        counts
    }

    fn located(&self, own: &str) -> Result<(&Located, &[u8], DType), ModelError> {
        let located = self.tensors.get(own).ok_or_else(|| ModelError::MissingTensor {
            path: self.folder.clone(),
            tensor: own.into(),
        })?;
        let dtype = match located.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                let what = format!("tensor `{own}` in {other:?} (known: F32, F16, BF16)");
                return Err(ModelError::Unsupported { path: self.folder.clone(), what });
            }
        };
        Ok((located, &self.shards[located.shard].1[located.bytes.clone()], dtype))
    }

    /// Own names with the text model's prefix, but for the head, which stands beside the model.
    fn full(&self, own: &str) -> String {
        let head = "lm_head.weight";
        if own != head {
            return format!("{}{own}", self.prefix);
        }
        if self.tensors.contains_key(head) {
            return head.into();
        }
        // `lm_head.weight`, or `language_model.lm_head.weight` where all of the text model is nested
        let nested = self.tensors.keys().find(|name| name.ends_with(&format!(".{head}")));
        nested.cloned().unwrap_or_else(|| head.into())
    }

    /// Who may speak of a key, and what stands before it in full names. transformers makes the text
    /// model by its own object alone, but for the tied head, which the whole model decides.
    fn speakers(&self, key: &str) -> Vec<(&Value, &'static str)> {
        match (self.nested(), key) {
            (false, _) => vec![(&self.whole, "")],
            (true, TIED) => vec![(&self.whole, ""), (&self.text, TEXT_PREFIX)],
            (true, _) => vec![(&self.text, TEXT_PREFIX), (&self.whole, "")],
        }
    }

    /// Who speaks of a key: the file or the family's defaults. Who has the first member of a path has
    /// all of it: objects are not merged.
    fn place(&self, key: &str) -> Option<&Value> {
        let first = key.split('.').next()?;
        let (speaker, _) = *self.speakers(key).first()?;
        [speaker, &self.defaults].into_iter().find(|v| v.get(first).is_some())
    }

    /// Whether the text model has an object of its own.
    fn nested(&self) -> bool {
        self.whole.get(TEXT).is_some()
    }

    /// Per-expert tensors where the fused one is not there.
    fn experts(&self, own: &str) -> Option<Vec<String>> {
        let (stem, parts): (_, &[&str]) = match own.strip_suffix("gate_up_proj") {
            Some(stem) => (stem, &["gate_proj", "up_proj"]),
            None => (own.strip_suffix("down_proj")?, &["down_proj"]),
        };
        let name = |e: usize, part: &str| format!("{stem}{e}.{part}.weight");
        let count = (0..).take_while(|&e| self.tensors.contains_key(&name(e, parts[0]))).count();
        let names = (0..count).flat_map(|e| parts.iter().map(move |part| name(e, part)));
        (count > 0).then(|| names.collect())
    }
}

/// The files with weights: those that the index names, or the one.
fn weights(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let index = folder.join(INDEX);
    if folder.join(WEIGHTS).exists() || !index.exists() {
        return Ok(vec![folder.join(WEIGHTS)]);
    }
    match shards(&index) {
        Some(names) => Ok(names.into_iter().map(|name| folder.join(name)).collect()),
        None => {
            let what = "it has no weight_map, or one of other things than files below its folder";
            Err(malformed(&index, what.into()))
        }
    }
}

fn json(path: &Path) -> Result<Value, ModelError> {
    let bytes = std::fs::read(path).map_err(|error| io(path, error))?;
    once::parse(&bytes).map_err(|error| malformed(path, error.to_string()))
}

fn parse(path: &Path, json: &[u8]) -> Result<Value, ModelError> {
    serde_json::from_slice(json).map_err(|error| malformed(path, error.to_string()))
}

/// A file that a checkpoint may lack.
pub(super) fn optional(path: &Path) -> Result<Option<Vec<u8>>, ModelError> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(|error| io(path, error)),
    }
}

/// The same with JSON in it; null where it is not there.
pub(super) fn optional_json(path: &Path) -> Result<Value, ModelError> {
    optional(path)?.map_or(Ok(Value::Null), |bytes| parse(path, &bytes))
}

pub(super) fn utf8(path: &Path, bytes: Vec<u8>) -> Result<String, ModelError> {
    String::from_utf8(bytes).map_err(|error| malformed(path, error.to_string()))
}

fn io(path: &Path, error: std::io::Error) -> ModelError {
    match error.kind() {
        std::io::ErrorKind::NotFound => ModelError::Missing { path: path.into(), fetch: None },
        _ => ModelError::Io { path: path.into(), error },
    }
}

fn malformed(path: &Path, message: String) -> ModelError {
    ModelError::Malformed { path: path.into(), message }
}

fn walk<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(value, |value, member| value.get(member))
}

/// The members that are no objects, by their paths.
fn flatten(path: &str, value: &Value, into: &mut Vec<(String, Option<Fact>)>) {
    match value {
        Value::Null => into.push((path.into(), None)),
        Value::Object(members) => {
            let dot = if path.is_empty() { "" } else { "." };
            for (name, member) in members {
                flatten(&format!("{path}{dot}{name}"), member, into);
            }
        }
        _ => into.push((path.into(), Some(fact(value)))),
    }
}

fn fact(value: &Value) -> Fact {
    match value {
        Value::Bool(flag) => Fact::Bool(*flag),
        Value::Number(n) => match n.as_i128() {
            Some(n) => Fact::Integer(n),
            None => Fact::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Fact::Text(text.clone()),
        Value::Array(list) => Fact::List(list.iter().map(fact).collect()),
        Value::Null | Value::Object(_) => Fact::Other,
    }
}

impl Config for HfCheckpoint {
    fn path(&self) -> &Path {
        &self.folder
    }

    fn format(&self) -> Format {
        Format::Hf
    }

    fn architecture(&self) -> &str {
        &self.architecture
    }

    fn lookup(&self, key: &str) -> Option<Fact> {
        // a null says none, and nobody else is asked
        let found = self.place(key).and_then(|place| walk(place, key))?;
        (!found.is_null()).then(|| fact(found))
    }

    fn full_name(&self, key: &str) -> String {
        let prefix = if self.nested() && key != TIED { TEXT_PREFIX } else { "" };
        format!("{prefix}{key}")
    }

    fn entries(&self) -> Vec<(String, Option<Fact>)> {
        let mut entries = Vec::new();
        flatten("", &self.whole, &mut entries);
        entries
    }

    fn places(&self, key: &str) -> Vec<(String, Option<Fact>)> {
        let said = |(speaker, prefix): (&Value, &str)| {
            let found = walk(speaker, key)?;
            Some((format!("{prefix}{key}"), (!found.is_null()).then(|| fact(found))))
        };
        let places: Vec<_> = self.speakers(key).into_iter().map(said).collect();
        // what stands beside the text model's object only is not about the text model
        match &places[..] {
            [None, Some(_)] => Vec::new(),
            _ => places.into_iter().flatten().collect(),
        }
    }
}

impl Tensors for HfCheckpoint {
    fn origin(&self, name: &str) -> Origin {
        let own = self.names.own(name).unwrap_or_else(|| name.into());
        let full = self.full(&own);
        let change = self.names.change(name);
        match self.experts(&full) {
            Some(parts) if !self.tensors.contains_key(&full) => {
                Origin { parts, joined: Joined::ByEntry, change }
            }
            _ => Origin { change, ..Origin::one(full) },
        }
    }

    fn shape(&self, own: &str) -> Option<Vec<usize>> {
        self.tensors.get(own).map(|located| located.shape.clone())
    }

    fn names(&self) -> Vec<String> {
        let counts = |name: &&String| !self.names.elsewhere(name);
        self.tensors.keys().filter(counts).cloned().collect()
    }

    fn read(&self, own: &str) -> Result<Tensor, ModelError> {
        let (located, bytes, dtype) = self.located(own)?;
        Ok(Tensor::from_raw_buffer(bytes, dtype, &located.shape, &Device::Cpu)?)
    }

    fn rows(&self, own: &str, ids: &[u32]) -> Result<Tensor, ModelError> {
        let (located, bytes, dtype) = self.located(own)?;
        let width = located.shape.last().copied().unwrap_or(1);
        let rows = gathered(bytes, width * dtype.size_in_bytes(), ids)?;
        let rows = Tensor::from_raw_buffer(&rows, dtype, &[ids.len(), width], &Device::Cpu)?;
        Ok(rows.to_dtype(DType::F32)?)
    }
}
