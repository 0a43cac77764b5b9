//! GGUF files: metadata and tensors, with errors that name file, key and tensor.
//!
//! The header is read here and not by candle, since a gate must refuse what a lenient reader passes over. Blocks are
//! dequantized by `compute/blocks/`. Rows of a quantized table are read without the rest of it.

mod header;
mod parts;
mod reader;
mod scales;
mod types;

use super::config::{Config, Fact, Format};
use super::family::{self, Names};
use super::tensors::{gathered, Joined, Origin, Tensors};
use super::ModelError;
use crate::compute::device::HOST;
use candle_core::quantized::gguf_file::Value;
use candle_core::{Device, Tensor};
use header::{Header, TensorInfo};
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The key with the version of ggml's block formats, which has been 2 since before GGUF.
const QUANTIZATION_VERSION: &str = "general.quantization_version";

/// The beginnings of names of what only images pass through, in files that hold the tower beside the text model, as
/// Ollama's do.
const TOWERS: [&str; 2] = ["v.", "mm."];

/// An open GGUF file whose header has been read, or several that are the parts of one model.
pub(crate) struct Gguf {
    /// The file, or the first part.
    path: PathBuf,
    /// Path and content of each part.
    parts: Vec<(PathBuf, Mmap)>,
    header: Header,
    architecture: String,
    names: Names,
}

impl Gguf {
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let parts::Joined { header, parts } = parts::open(path)?;
        let malformed = |message: String| ModelError::malformed(path, message);
        let architecture = match header.metadata.get("general.architecture") {
            Some(Value::String(name)) => name.clone(),
            _ => return Err(malformed("it has no general.architecture".into())),
        };
        let names = family::gguf_names(path, &architecture)?;
        let gguf = Gguf { path: path.into(), parts, header, architecture, names };
        gguf.check_texts()?;
        gguf.check_whole()?;
        gguf.check_types()?;
        gguf.check_scales()?;
        Ok(gguf)
    }

    /// Texts on which the model depends must be UTF-8, since two different invalid texts could be read as the same
    /// one. Others, such as a path on somebody's disk, may be anything.
    fn check_texts(&self) -> Result<(), ModelError> {
        let own = format!("{}.", self.architecture);
        let is_read = |key: &str| {
            key == "general.architecture" || key.starts_with("tokenizer.") || key.starts_with(&own)
        };
        match self.header.not_utf8.iter().find(|(key, _)| is_read(key)) {
            None => Ok(()),
            Some((key, at)) => {
                Err(self.bad_key(key, format!("holds a text, at byte {at}, that is no UTF-8")))
            }
        }
    }

    /// The file must hold a whole model, in a known version of the block formats.
    fn check_whole(&self) -> Result<(), ModelError> {
        let unsupported = |what: String| Err(ModelError::unsupported(&self.path, what));
        if let Some(Value::String(kind)) = self.value("general.type") {
            if kind != "model" {
                return unsupported(format!("a GGUF of type `{kind}`, which is no model,"));
            }
        }
        // in another version of the block formats the same bytes would mean something else
        match self.any_number(QUANTIZATION_VERSION)? {
            None | Some(2) => Ok(()),
            Some(version) => unsupported(format!("{QUANTIZATION_VERSION} {version} (known: 2)")),
        }
    }

    /// Every tensor must have a type that kvgate can read.
    fn check_types(&self) -> Result<(), ModelError> {
        let tensors = self.header.tensors.iter();
        let unread = tensors.filter(|(_, info)| !info.of.is_read());
        // the first in the file, so that the same file always gives the same words
        let Some((tensor, info)) = unread.min_by_key(|(_, info)| (info.part, info.bytes.start))
        else {
            return Ok(());
        };
        Err(ModelError::WeightType {
            path: self.path.clone(),
            tensor: tensor.clone(),
            found: info.of.name.into(),
            known: types::known().into(),
        })
    }

    /// The size of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// The file, or the parts in order.
    pub fn files(&self) -> Vec<PathBuf> {
        self.parts.iter().map(|(path, _)| path.clone()).collect()
    }

    /// Storage types of the tensors with their counts.
    pub fn dtypes(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for info in self.header.tensors.values() {
            *counts.entry(info.of.name.to_owned()).or_insert(0) += 1;
        }
        counts
    }

    fn malformed(&self, message: String) -> ModelError {
        ModelError::malformed(&self.path, message)
    }

    /// An error about a metadata key by its full name.
    pub fn bad_key(&self, key: &str, message: impl Into<String>) -> ModelError {
        ModelError::bad_key(&self.path, key, message)
    }

    /// A metadata value by its full key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.header.metadata.get(key)
    }

    /// An unsigned integer by its full key.
    pub fn any_number(&self, key: &str) -> Result<Option<usize>, ModelError> {
        match self.value(key).map(fact) {
            None => Ok(None),
            Some(Fact::Integer(n)) if (0..1 << 32).contains(&n) => Ok(Some(n as usize)),
            Some(_) => Err(self.bad_key(key, "must be an unsigned integer")),
        }
    }

    /// A tensor with its bytes.
    fn info(&self, own: &str) -> Result<(&TensorInfo, &[u8]), ModelError> {
        let info = self
            .header
            .tensors
            .get(own)
            .ok_or_else(|| ModelError::missing_tensor(&self.path, own))?;
        Ok((info, self.bytes_of(info)))
    }

    fn bytes_of(&self, info: &TensorInfo) -> &[u8] {
        &self.parts[info.part].1[info.bytes.clone()]
    }
}

fn fact(value: &Value) -> Fact {
    match value {
        Value::Bool(v) => Fact::Bool(*v),
        Value::U8(v) => Fact::Integer((*v).into()),
        Value::I8(v) => Fact::Integer((*v).into()),
        Value::U16(v) => Fact::Integer((*v).into()),
        Value::I16(v) => Fact::Integer((*v).into()),
        Value::U32(v) => Fact::Integer((*v).into()),
        Value::I32(v) => Fact::Integer((*v).into()),
        Value::U64(v) => Fact::Integer((*v).into()),
        Value::I64(v) => Fact::Integer((*v).into()),
        Value::F32(v) => Fact::Float((*v).into()),
        Value::F64(v) => Fact::Float(*v),
        Value::String(v) => Fact::Text(v.clone()),
        Value::Array(list) => Fact::List(list.iter().map(fact).collect()),
    }
}

impl Config for Gguf {
    fn path(&self) -> &Path {
        &self.path
    }

    fn format(&self) -> Format {
        Format::Gguf
    }

    fn architecture(&self) -> &str {
        &self.architecture
    }

    fn lookup(&self, key: &str) -> Option<Fact> {
        self.value(&self.full_name(key)).map(fact)
    }

    fn full_name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn entries(&self) -> Vec<(String, Option<Fact>)> {
        let own = self.full_name("");
        // vocabularies are long, and nobody needs their values here
        let said = |key: &str, value| if key.starts_with(&own) { fact(value) } else { Fact::Other };
        let metadata = self.header.metadata.iter();
        let mut entries: Vec<_> =
            metadata.map(|(key, value)| (key.clone(), Some(said(key, value)))).collect();
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        entries
    }

    fn places(&self, key: &str) -> Vec<(String, Option<Fact>)> {
        let name = self.full_name(key);
        let found = self.value(&name).map(fact);
        found.map(|fact| (name, Some(fact))).into_iter().collect()
    }
}

impl Tensors for Gguf {
    fn origin(&self, name: &str) -> Origin {
        let own = self.names.own(name).unwrap_or_else(|| name.into());
        match own.split_once("ffn_gate_up_exps.") {
            Some((block, kind)) if self.shape(&own).is_none() => Origin {
                parts: ["gate", "up"].map(|part| format!("{block}ffn_{part}_exps.{kind}")).into(),
                joined: Joined::Along(1),
                ..Origin::one("")
            },
            _ => Origin::one(own),
        }
    }

    fn shape(&self, own: &str) -> Option<Vec<usize>> {
        self.header.tensors.get(own).map(|info| info.shape.clone())
    }

    fn names(&self) -> Vec<String> {
        let of_text = |name: &&String| !TOWERS.iter().any(|start| name.starts_with(start));
        self.header.tensors.keys().filter(of_text).cloned().collect()
    }

    fn read(&self, own: &str, at: &Device) -> Result<Tensor, ModelError> {
        let (info, blocks) = self.info(own)?;
        self.scaled(own, info.of.dequantized(blocks, &info.shape, at)?)
    }

    fn companions(&self, own: &str) -> Vec<String> {
        self.scales_beside(own)
    }

    fn rows(&self, own: &str, ids: &[u32]) -> Result<Tensor, ModelError> {
        let (info, table) = self.info(own)?;
        let (&[_, width], of) = (&info.shape[..], info.of) else {
            return Err(self.malformed(format!("tensor `{own}` is no table")));
        };
        let row = of.row_bytes(width).expect("rows are whole blocks, as the header says");
        Ok(of.dequantized(&gathered(table, row, ids)?, &[ids.len(), width], &HOST)?)
    }
}

#[cfg(test)]
mod tests;
