//! GGUF files: metadata and tensors, with errors that name file, key and tensor.
//!
//! Parsing and block dequantization are candle's; this adds what a gate needs: shapes are checked
//! against the configuration before anything is read, and a weight that is not finite is an error.

use super::ModelError;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use candle_core::{Device, Tensor};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// An open GGUF file whose header has been read.
pub(crate) struct Gguf {
    path: PathBuf,
    bytes: u64,
    content: Content,
    architecture: String,
    /// Names of the tensors that were asked for.
    read: RefCell<BTreeSet<String>>,
}

impl Gguf {
    pub fn open(path: &Path, fetch: Option<&str>) -> Result<Self, ModelError> {
        let io = |error| ModelError::Io { path: path.into(), error };
        let file = File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                ModelError::Missing { path: path.into(), fetch: fetch.map(Into::into) }
            }
            _ => io(error),
        })?;
        let bytes = file.metadata().map_err(io)?.len();
        let malformed = |message| ModelError::Malformed { path: path.into(), message };
        if has_zero_alignment(path).map_err(io)? {
            return Err(malformed("general.alignment is 0".into()));
        }
        let content =
            Content::read(&mut BufReader::new(file)).map_err(|e| malformed(e.to_string()))?;
        let architecture = match content.metadata.get("general.architecture") {
            Some(Value::String(name)) => name.clone(),
            _ => return Err(malformed("it has no general.architecture".into())),
        };
        let gguf =
            Gguf { path: path.into(), bytes, content, architecture, read: RefCell::default() };
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
                Some(end) if end <= self.bytes => {}
                _ => {
                    return Err(self.malformed(format!(
                        "tensor `{name}` ends beyond the file's {} bytes (truncated?)",
                        self.bytes
                    )))
                }
            }
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Storage types of the tensors with their counts.
    pub fn dtypes(&self) -> Vec<(String, usize)> {
        let mut counts = BTreeMap::new();
        for info in self.content.tensor_infos.values() {
            *counts.entry(format!("{:?}", info.ggml_dtype)).or_insert(0) += 1;
        }
        counts.into_iter().collect()
    }

    fn malformed(&self, message: String) -> ModelError {
        ModelError::Malformed { path: self.path.clone(), message }
    }

    /// An error about a metadata key.
    pub fn bad_key(&self, key: &str, message: impl Into<String>) -> ModelError {
        ModelError::Metadata { path: self.path.clone(), key: key.into(), message: message.into() }
    }

    /// An error about something that this version cannot do.
    pub fn unsupported(&self, what: impl Into<String>) -> ModelError {
        ModelError::Unsupported { path: self.path.clone(), what: what.into() }
    }

    /// The key with the architecture's prefix.
    fn own(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// A metadata value by its full key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    /// An unsigned integer of the architecture, such as `block_count`.
    pub fn number(&self, key: &str) -> Result<usize, ModelError> {
        self.optional_number(key)?.ok_or_else(|| self.bad_key(&self.own(key), "is missing"))
    }

    pub fn optional_number(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.any_number(&self.own(key))
    }

    /// An unsigned integer by its full key.
    pub fn any_number(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let number = match self.value(key) {
            None => return Ok(None),
            Some(Value::U8(v)) => Some(u64::from(*v)),
            Some(Value::U16(v)) => Some(u64::from(*v)),
            Some(Value::U32(v)) => Some(u64::from(*v)),
            Some(Value::U64(v)) => Some(*v),
            Some(Value::I32(v)) => u64::try_from(*v).ok(),
            Some(Value::I64(v)) => u64::try_from(*v).ok(),
            Some(_) => None,
        };
        match number.filter(|&n| n <= 1 << 32) {
            Some(n) => Ok(Some(n as usize)),
            None => Err(self.bad_key(key, "must be an unsigned integer")),
        }
    }

    /// A float of the architecture, such as `rope.freq_base`.
    pub fn optional_float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let key = self.own(key);
        match self.value(&key) {
            None => Ok(None),
            Some(Value::F32(v)) if v.is_finite() => Ok(Some(f64::from(*v))),
            Some(Value::F64(v)) if v.is_finite() => Ok(Some(*v)),
            Some(_) => Err(self.bad_key(&key, "must be a finite float")),
        }
    }

    pub fn float(&self, key: &str) -> Result<f64, ModelError> {
        self.optional_float(key)?.ok_or_else(|| self.bad_key(&self.own(key), "is missing"))
    }

    /// A text of the architecture, such as `rope.scaling.type`.
    pub fn optional_text(&self, key: &str) -> Option<&str> {
        match self.value(&self.own(key)) {
            Some(Value::String(s)) => Some(s),
            _ => None,
        }
    }

    pub fn has_tensor(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    fn info(&self, name: &str) -> Result<&TensorInfo, ModelError> {
        self.content.tensor_infos.get(name).ok_or_else(|| ModelError::MissingTensor {
            path: self.path.clone(),
            tensor: name.into(),
        })
    }

    /// The number of layers. The last one must be there: a damaged count is told before layers are
    /// made by it.
    pub fn layers(&self) -> Result<usize, ModelError> {
        let count = self.number("block_count")?;
        if let Some(last) = count.checked_sub(1) {
            self.info(&format!("blk.{last}.attn_norm.weight"))?;
        }
        Ok(count)
    }

    /// Rows of a matrix, such as the vocabulary of the embedding.
    pub fn rows(&self, name: &str) -> Result<usize, ModelError> {
        Ok(self.info(name)?.shape.dims().first().copied().unwrap_or(0))
    }

    /// Tensors that nobody asked for, in order.
    pub fn unread(&self) -> Vec<String> {
        let read = self.read.borrow();
        let mut names: Vec<_> = self
            .content
            .tensor_infos
            .keys()
            .filter(|name| !read.contains(*name))
            .cloned()
            .collect();
        names.sort();
        names
    }

    /// Reads a tensor of the given shape, dequantized to f32.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let info = self.info(name)?;
        self.read.borrow_mut().insert(name.into());
        if info.shape.dims() != shape {
            return Err(ModelError::Shape {
                path: self.path.clone(),
                tensor: name.into(),
                expected: shape.into(),
                found: info.shape.dims().into(),
            });
        }
        let mut file = File::open(&self.path)
            .map_err(|error| ModelError::Io { path: self.path.clone(), error })?;
        let tensor = info
            .read(&mut file, self.content.tensor_data_offset, &Device::Cpu)
            .and_then(|q| q.dequantize(&Device::Cpu))
            .map_err(|e| self.malformed(format!("tensor `{name}`: {e}")))?;
        match super::ops::first_non_finite(&tensor)? {
            None => Ok(tensor),
            Some((index, value)) => Err(ModelError::NotFinite {
                path: self.path.clone(),
                tensor: name.into(),
                index,
                value,
            }),
        }
    }
}

/// candle 0.11 divides by `general.alignment` unchecked. The key is looked for in the raw header, with
/// the code of any integer type behind it and a zero of that type's width behind that.
fn has_zero_alignment(path: &Path) -> std::io::Result<bool> {
    const HEADER: u64 = 64 << 20;
    const KEY: &[u8] = b"general.alignment";
    /// Type codes of U8, I8, U16, I16, U32, I32, U64 and I64, and their widths in bytes.
    const INTEGERS: [(u8, usize); 8] =
        [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (10, 8), (11, 8)];
    let mut head = Vec::new();
    File::open(path)?.take(HEADER).read_to_end(&mut head)?;
    let Some(at) = head.windows(KEY.len()).position(|w| w == KEY) else {
        return Ok(false);
    };
    let value = &head[at + KEY.len()..];
    let is_zero = |(code, width): &(u8, usize)| {
        value.starts_with(&[*code, 0, 0, 0])
            && value.get(4..4 + width).is_some_and(|v| v.iter().all(|b| *b == 0))
    };
    Ok(INTEGERS.iter().any(is_zero))
}
