//! GGUF files: metadata and tensors, with errors that name file, key and tensor.
//!
//! Parsing and block dequantization are candle's; this adds what a gate needs: a truncated file is
//! told before anything is read, and rows of a quantized table are read without the rest of it.

use super::config::{Config, Fact, Format};
use super::family::{self, Names};
use super::tensors::{gathered, Joined, Origin, Tensors};
use super::ModelError;
use crate::files;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use candle_core::{Device, Tensor};
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// An open GGUF file whose header has been read.
pub(crate) struct Gguf {
    path: PathBuf,
    bytes: Mmap,
    content: Content,
    architecture: String,
    names: Names,
}

impl Gguf {
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let bytes =
            files::map(path).map_err(|error| ModelError::Io { path: path.into(), error })?;
        let malformed = |message| ModelError::Malformed { path: path.into(), message };
        if has_zero_alignment(&bytes) {
            return Err(malformed("general.alignment is 0".into()));
        }
        let content =
            Content::read(&mut Cursor::new(&bytes[..])).map_err(|e| malformed(brief(&e)))?;
        let architecture = match content.metadata.get("general.architecture") {
            Some(Value::String(name)) => name.clone(),
            _ => return Err(malformed("it has no general.architecture".into())),
        };
        let names = family::gguf_names(path, &architecture)?;
        let gguf = Gguf { path: path.into(), bytes, content, architecture, names };
        gguf.check_extents()?;
        Ok(gguf)
    }

    /// Every tensor must lie inside the file, so that a truncated download is told before inference.
    fn check_extents(&self) -> Result<(), ModelError> {
        for (name, info) in &self.content.tensor_infos {
            let elements = info
                .shape
                .dims()
                .iter()
                .try_fold(1u64, |n, &d| n.checked_mul(d as u64))
                .ok_or_else(|| self.malformed(format!("tensor `{name}` has an absurd shape")))?;
            let blocks = elements / info.ggml_dtype.block_size() as u64;
            let end = blocks
                .checked_mul(info.ggml_dtype.type_size() as u64)
                .and_then(|size| size.checked_add(info.offset))
                .and_then(|end| end.checked_add(self.content.tensor_data_offset));
            match end {
                Some(end) if end <= self.bytes.len() as u64 => {}
                _ => {
                    return Err(self.malformed(format!(
                        "tensor `{name}` ends beyond the file's {} bytes (truncated?)",
                        self.bytes.len()
                    )))
                }
            }
        }
        Ok(())
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Storage types of the tensors with their counts.
    pub fn dtypes(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for info in self.content.tensor_infos.values() {
            *counts.entry(format!("{:?}", info.ggml_dtype)).or_insert(0) += 1;
        }
        counts
    }

    fn malformed(&self, message: String) -> ModelError {
        ModelError::Malformed { path: self.path.clone(), message }
    }

    /// An error about a metadata key by its full name.
    pub fn bad_key(&self, key: &str, message: impl Into<String>) -> ModelError {
        ModelError::Metadata { path: self.path.clone(), key: key.into(), message: message.into() }
    }

    /// A metadata value by its full key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    /// An unsigned integer by its full key.
    pub fn any_number(&self, key: &str) -> Result<Option<usize>, ModelError> {
        match self.value(key).map(fact) {
            None => Ok(None),
            Some(Fact::Integer(n)) if (0..=1 << 32).contains(&n) => Ok(Some(n as usize)),
            Some(_) => Err(self.bad_key(key, "must be an unsigned integer")),
        }
    }

    fn info(&self, own: &str) -> Result<&TensorInfo, ModelError> {
        self.content.tensor_infos.get(own).ok_or_else(|| ModelError::MissingTensor {
            path: self.path.clone(),
            tensor: own.into(),
        })
    }
}

/// What candle says, without the backtrace that it appends where RUST_BACKTRACE is set.
fn brief(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().into()
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
        // vocabularies are long, and nobody asks here what they say
        let said = |key: &str, value| if key.starts_with(&own) { fact(value) } else { Fact::Other };
        let metadata = self.content.metadata.iter();
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
        match own.strip_suffix("ffn_gate_up_exps.weight") {
            Some(block) if self.shape(&own).is_none() => Origin {
                parts: ["gate", "up"].map(|part| format!("{block}ffn_{part}_exps.weight")).into(),
                joined: Joined::Along(1),
                ..Origin::one("")
            },
            _ => Origin::one(own),
        }
    }

    fn shape(&self, own: &str) -> Option<Vec<usize>> {
        self.content.tensor_infos.get(own).map(|info| info.shape.dims().to_vec())
    }

    fn names(&self) -> Vec<String> {
        self.content.tensor_infos.keys().cloned().collect()
    }

    fn read(&self, own: &str) -> Result<Tensor, ModelError> {
        let offset = self.content.tensor_data_offset;
        self.info(own)?
            .read(&mut Cursor::new(&self.bytes[..]), offset, &Device::Cpu)
            .and_then(|quantized| quantized.dequantize(&Device::Cpu))
            .map_err(|e| self.malformed(format!("tensor `{own}`: {}", brief(&e))))
    }

    fn rows(&self, own: &str, ids: &[u32]) -> Result<Tensor, ModelError> {
        let info = self.info(own)?;
        let dtype = info.ggml_dtype;
        let width = info.shape.dims2()?.1;
        if !width.is_multiple_of(dtype.block_size()) {
            return Err(self.malformed(format!("tensor `{own}`: a row is no whole blocks")));
        }
        let row_bytes = width / dtype.block_size() * dtype.type_size();
        let start = (self.content.tensor_data_offset + info.offset) as usize;
        let table = &self.bytes[start..][..info.shape.dims()[0] * row_bytes];
        let bytes = gathered(table, row_bytes, ids)?;
        let quantized = qtensor_from_ggml(dtype, &bytes, vec![ids.len(), width], &Device::Cpu)?;
        Ok(quantized.dequantize(&Device::Cpu)?)
    }
}

/// candle 0.11 divides by `general.alignment` unchecked. The key is looked for in the raw header, with
/// the code of any integer type behind it and a zero of that type's width behind that.
fn has_zero_alignment(bytes: &[u8]) -> bool {
    const HEADER: usize = 64 << 20;
    const KEY: &[u8] = b"general.alignment";
    /// Type codes of U8, I8, U16, I16, U32, I32, U64 and I64, and their widths in bytes.
    const INTEGERS: [(u8, usize); 8] =
        [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (10, 8), (11, 8)];
    let head = &bytes[..bytes.len().min(HEADER)];
    let is_zero = |value: &[u8], (code, width): &(u8, usize)| {
        value.starts_with(&[*code, 0, 0, 0])
            && value.get(4..4 + width).is_some_and(|v| v.iter().all(|b| *b == 0))
    };
    // a text may spell the key as well: every place counts
    let places = head.windows(KEY.len()).enumerate().filter(|(_, window)| *window == KEY);
    let mut values = places.map(|(at, _)| &head[at + KEY.len()..]);
    values.any(|value| INTEGERS.iter().any(|integer| is_zero(value, integer)))
}
