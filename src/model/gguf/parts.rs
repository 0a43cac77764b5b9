//! Models in several GGUF files, as llama.cpp's `llama-gguf-split` and its converter write them. The first part has the
//! metadata. Every part says which one it is (`split.no`, from 0), how many there are (`split.count`) and how many
//! tensors they have together (`split.tensors.count`). The rules are those of llama.cpp's loader
//! (`src/llama-model-loader.cpp`); beyond them, another part must not contradict the first one's metadata.

use super::fact;
use super::header::Header;
use crate::files;
use crate::files::gguf_parts::PartName;
use crate::model::config::Fact;
use crate::model::ModelError;
use candle_core::quantized::gguf_file::Value;
use memmap2::Mmap;
use std::path::{Path, PathBuf};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// A file that has been mapped into memory, and its header.
pub(super) struct Part {
    path: PathBuf,
    pub bytes: Mmap,
    pub header: Header,
}

/// A model whose parts have been joined: the header has the tensors of all parts.
pub(super) struct Joined {
    pub header: Header,
    /// Path and content of each part.
    pub parts: Vec<(PathBuf, Mmap)>,
}

impl Part {
    fn open(path: &Path) -> Result<Self, ModelError> {
        let bytes = match files::map(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ModelError::Missing { path: path.into(), fetch: None })
            }
            Err(error) => return Err(ModelError::Io { path: path.into(), error }),
        };
        let header =
            Header::read(&bytes).map_err(|message| ModelError::malformed(path, message))?;
        Ok(Part { path: path.into(), bytes, header })
    }

    fn number(&self, key: &str) -> Result<Option<usize>, ModelError> {
        match self.header.metadata.get(key).map(fact) {
            None => Ok(None),
            Some(Fact::Integer(n)) if (0..1 << 32).contains(&n) => Ok(Some(n as usize)),
            Some(_) => Err(ModelError::bad_key(&self.path, key, "must be an unsigned integer")),
        }
    }

    /// Its name, if it is one of several. The name must say what the header says.
    fn name(&self) -> Result<Option<PartName<'_>>, ModelError> {
        let name = self.path.file_name().and_then(|name| name.to_str());
        let name = name.and_then(PartName::read).filter(|name| name.count > 1);
        let count = self.number(COUNT)?.filter(|count| *count > 1);
        if name.as_ref().map(|name| name.count) == count {
            return Ok(name);
        }
        let parts = |count: Option<usize>| {
            count.map_or("a whole model".into(), |count| format!("one of {count} parts"))
        };
        Err(ModelError::malformed(
            &self.path,
            format!(
                "by its header it is {} ({COUNT}), and by its name {}: it must be named as in \
                 `model-00001-of-00003.gguf`, in lower case, and so must a link to it",
                parts(count),
                parts(name.map(|name| name.count))
            ),
        ))
    }

    /// The header must say which part it is, or say nothing if there are no others.
    fn check_number(&self, index: usize, is_one_of_several: bool) -> Result<(), ModelError> {
        match self.number(NUMBER)? {
            Some(number) if number == index => Ok(()),
            None if !is_one_of_several => Ok(()),
            _ => Err(ModelError::bad_key(
                &self.path,
                NUMBER,
                format!("must be {index}, as this is part {}", index + 1),
            )),
        }
    }

    /// What another part says must be what the first one says.
    fn agrees_with(&self, first: &Self) -> Result<(), ModelError> {
        let differs = |(key, value): &(&String, &Value)| {
            let of_first = first.header.metadata.get(*key).map(fact);
            *key != NUMBER && of_first.is_none_or(|of_first| of_first != fact(value))
        };
        match self.header.metadata.iter().filter(differs).map(|(key, _)| key).min() {
            None => Ok(()),
            Some(key) => Err(ModelError::bad_key(
                &self.path,
                key,
                format!("is not what {} has", first.path.display()),
            )),
        }
    }
}

/// Opens the file of a model, and its other parts if it is the first one.
pub(super) fn open(path: &Path) -> Result<Joined, ModelError> {
    let mut first = Part::open(path)?;
    let mut others = others_of(&first)?;
    for (index, other) in others.iter_mut().enumerate() {
        take_tensors(&mut first, other, index + 1)?;
    }
    let found = first.header.tensors.len();
    if first.number(TENSORS)?.is_some_and(|count| count != found) {
        let message = format!("has another value than {found}, the number of tensors in all parts");
        return Err(ModelError::bad_key(path, TENSORS, message));
    }
    let others = others.into_iter().map(|other| (other.path, other.bytes));
    let parts = [(first.path, first.bytes)].into_iter().chain(others).collect();
    Ok(Joined { header: first.header, parts })
}

/// The parts that follow the first one.
fn others_of(first: &Part) -> Result<Vec<Part>, ModelError> {
    let Some(name) = first.name()? else {
        first.check_number(0, false)?;
        return Ok(Vec::new());
    };
    let PartName { number, count, .. } = name;
    if number != 1 {
        let message =
            format!("it is part {number} of {count}: name the first one, `{}`", name.of(1));
        return Err(ModelError::malformed(&first.path, message));
    }
    first.check_number(0, true)?;
    let other = |index: usize| {
        let other = Part::open(&first.path.with_file_name(name.of(index + 1)))?;
        other.name()?;
        other.check_number(index, true)?;
        other.agrees_with(first)?;
        Ok(other)
    };
    (1..count).map(other).collect()
}

/// Moves the tensors of another part into the first one's header.
fn take_tensors(first: &mut Part, other: &mut Part, index: usize) -> Result<(), ModelError> {
    let mut tensors: Vec<_> = other.header.tensors.drain().collect();
    tensors.sort_by(|(one, _), (other, _)| one.cmp(other));
    for (name, mut tensor) in tensors {
        tensor.part = index;
        if first.header.tensors.contains_key(&name) {
            let message = format!("tensor `{name}` stands in another part, too");
            return Err(ModelError::malformed(&other.path, message));
        }
        first.header.tensors.insert(name, tensor);
    }
    Ok(())
}
