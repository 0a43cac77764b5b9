//! Reads the header of a GGUF file (version 2 or 3) strictly: whatever two readers could understand differently is
//! refused, with the places in the file.
//!
//! The rules are those of llama.cpp's own reader (`ggml/src/gguf.cpp`): no key and no tensor stands twice,
//! `general.alignment` is a u32 and a power of two, and every tensor begins where the one before it in the header
//! ends, rounded up to the alignment. Two rules go further. The file ends with its last tensor, whose padding may
//! be there or not: writers pad the last tensor, too (`gguf`'s `write_padding`, llama.cpp's quantizer), but no
//! reader needs it. More bytes than those mean that the header describes another file, for example one tensor
//! fewer, and then the offsets of all others are wrong as well. And texts that are read are UTF-8.

use super::reader::Reader;
use super::types;
use crate::compute::blocks::BlockType;
use crate::files::foreign;
use candle_core::quantized::gguf_file::Value;
use std::collections::hash_map::Entry;
use std::collections::HashMap;
use std::ops::Range;

/// The alignment of a file that does not name one.
const ALIGNMENT: u64 = 32;

const ALIGNMENT_KEY: &str = "general.alignment";

/// The largest number of dimensions of a ggml tensor.
const MOST_DIMENSIONS: u32 = 4;

/// The contents of a header that is known to be sound.
#[derive(Debug)]
pub(super) struct Header {
    pub metadata: HashMap<String, Value>,
    pub tensors: HashMap<String, TensorInfo>,
    /// Keys whose text is not UTF-8, with the text's offset. In the metadata these texts have U+FFFD instead of the
    /// invalid bytes.
    pub not_utf8: Vec<(String, usize)>,
}

/// A tensor of the file.
#[derive(Debug)]
pub(super) struct TensorInfo {
    pub of: &'static BlockType,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// The index of the file that it is in, if the model has several.
    pub part: usize,
    /// Its place in the file.
    pub bytes: Range<usize>,
}

/// A tensor as the header describes it.
struct Described<'b> {
    name: &'b str,
    /// The offset of the description.
    at: usize,
    of: &'static BlockType,
    /// Innermost dimension first.
    shape: Vec<u64>,
    /// Its size in bytes.
    size: u64,
    /// Its offset in the data.
    offset: u64,
}

impl Header {
    /// Reads the header of a file and checks that the whole file is what it describes.
    ///
    /// # Errors
    /// What is wrong, in words that continue the file's name.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut reader = Reader::new(bytes);
        let end = |what: &'static str| move |e| format!("{what}: {e}");
        check_version(&mut reader, bytes)?;
        let tensor_count = reader.u64().map_err(end("its number of tensors"))?;
        let key_count = reader.u64().map_err(end("its number of keys"))?;
        let (metadata, not_utf8) = metadata(&mut reader, key_count)?;
        let alignment = alignment(&metadata)?;
        let described = described(&mut reader, tensor_count)?;
        let start = (reader.at() as u64).next_multiple_of(alignment);
        check_layout(&described, start, alignment, bytes.len() as u64)?;
        let tensors = described.into_iter().map(|tensor| tensor.located(start));
        Ok(Header { metadata, tensors: tensors.collect(), not_utf8 })
    }
}

fn check_version(reader: &mut Reader, bytes: &[u8]) -> Result<(), String> {
    if let Some(complaint) = foreign::instead_of_gguf(bytes) {
        return Err(complaint);
    }
    let magic = reader.u32()?;
    debug_assert_eq!(magic.to_le_bytes(), *b"GGUF");
    match reader.u32()? {
        2 | 3 => Ok(()),
        version => Err(format!("it is GGUF version {version}, of which nothing is known (2 and 3 are read): if it is newer than this version of kvgate, convert the model with an older converter")),
    }
}

/// The largest number of keys that a header may have. Released files have less than a hundred.
const MOST_KEYS: u64 = 1 << 14;

type Metadata = (HashMap<String, Value>, Vec<(String, usize)>);

fn metadata(reader: &mut Reader, count: u64) -> Result<Metadata, String> {
    if count > MOST_KEYS {
        return Err(format!(
            "its header counts {count} keys, and {MOST_KEYS} is the most that is read"
        ));
    }
    let mut places: HashMap<&str, usize> = HashMap::new();
    let (mut values, mut not_utf8) = (HashMap::new(), Vec::new());
    for number in 1..=count {
        let at = reader.at();
        let key = reader.name().map_err(|e| format!("key {number} of {count}: {e}"))?;
        let value = reader
            .typed_value()
            .map_err(|e| format!("the value of key `{key}` (at byte {at}): {e}"))?;
        not_utf8.extend(reader.take_not_utf8().map(|place| (key.to_owned(), place)));
        book(&mut places, "key", key, at)?;
        values.insert(key.to_owned(), value);
    }
    Ok((values, not_utf8))
}

/// Records the offset of a name. It is an error if the name has occurred before.
fn book<'b>(
    places: &mut HashMap<&'b str, usize>,
    what: &str,
    name: &'b str,
    at: usize,
) -> Result<(), String> {
    match places.entry(name) {
        Entry::Vacant(place) => {
            place.insert(at);
            Ok(())
        }
        Entry::Occupied(first) => Err(format!(
            "{what} `{name}` stands twice, at byte {} and at byte {at}: readers differ in which one they take; write the file again with one of them",
            first.get()
        )),
    }
}

fn alignment(metadata: &HashMap<String, Value>) -> Result<u64, String> {
    let alignment = match metadata.get(ALIGNMENT_KEY) {
        None => return Ok(ALIGNMENT),
        Some(Value::U32(alignment)) => u64::from(*alignment),
        Some(other) => {
            let found = other.value_type();
            return Err(format!("{ALIGNMENT_KEY} must be a U32 and is of type {found:?}"));
        }
    };
    if !alignment.is_power_of_two() {
        return Err(format!("{ALIGNMENT_KEY} is {alignment}, which is no power of two"));
    }
    Ok(alignment)
}

fn described<'b>(reader: &mut Reader<'b>, count: u64) -> Result<Vec<Described<'b>>, String> {
    let mut places = HashMap::new();
    let mut tensors = Vec::new();
    for number in 1..=count {
        let at = reader.at();
        let name = reader.name().map_err(|e| format!("tensor {number} of {count}: {e}"))?;
        let tensor = description(reader, name, at)
            .map_err(|e| format!("tensor `{name}` (described at byte {at}) {e}"))?;
        book(&mut places, "tensor", name, at)?;
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn description<'b>(
    reader: &mut Reader<'b>,
    name: &'b str,
    at: usize,
) -> Result<Described<'b>, String> {
    let short = |e: String| format!("is not described to its end: {e}");
    let dimensions = reader.u32().map_err(short)?;
    if dimensions > MOST_DIMENSIONS {
        return Err(format!("has {dimensions} dimensions; {MOST_DIMENSIONS} are possible"));
    }
    let mut shape = Vec::with_capacity(dimensions as usize);
    for _ in 0..dimensions {
        shape.push(reader.u64().map_err(short)?);
    }
    let of = types::by_code(reader.u32().map_err(short)?)?;
    let offset = reader.u64().map_err(short)?;
    let size = size(of, &shape)?;
    Ok(Described { name, at, of, shape, size, offset })
}

/// The size of a tensor in bytes.
fn size(of: &BlockType, shape: &[u64]) -> Result<u64, String> {
    let row = shape.first().copied().unwrap_or(1);
    let (name, block) = (of.name, of.elements as u64);
    if !row.is_multiple_of(block) {
        return Err(format!(
            "has rows of {row} elements, which are no whole blocks of {block} as {name} has"
        ));
    }
    let rows = shape.iter().skip(1).try_fold(1u64, |rows, dimension| rows.checked_mul(*dimension));
    let size = rows.and_then(|rows| (row / block).checked_mul(of.bytes as u64)?.checked_mul(rows));
    // later computations add offsets and paddings to this size
    size.filter(|size| *size <= 1 << 62).ok_or_else(|| format!("has an absurd shape, {shape:?}"))
}

impl Described<'_> {
    fn located(self, start: u64) -> (String, TensorInfo) {
        let begin = (start + self.offset) as usize;
        let shape = self.shape.iter().rev().map(|dimension| *dimension as usize).collect();
        let bytes = begin..begin + self.size as usize;
        (self.name.to_owned(), TensorInfo { of: self.of, shape, part: 0, bytes })
    }
}

/// Checks that the tensors lie one after the other in the order of the header, and that the file ends with the last
/// one.
fn check_layout(
    tensors: &[Described],
    start: u64,
    alignment: u64,
    file: u64,
) -> Result<(), String> {
    let mut before: Option<&Described> = None;
    let mut end = start;
    for tensor in tensors {
        let expected = end.next_multiple_of(alignment) - start;
        if tensor.offset != expected {
            return Err(misplaced(tensor, before, expected, alignment));
        }
        end = start + tensor.offset + tensor.size;
        if end > file {
            return Err(format!(
                "tensor `{}` ends beyond the file's {file} bytes, at {end} (truncated?)",
                tensor.name
            ));
        }
        before = Some(tensor);
    }
    match before {
        Some(last) if file > end.next_multiple_of(alignment) => Err(format!(
            "its last tensor `{}` (described at byte {}) ends at byte {end} and the file at {file}: the header describes another file; fetch or convert it again",
            last.name, last.at
        )),
        _ => Ok(()),
    }
}

fn misplaced(
    tensor: &Described,
    before: Option<&Described>,
    expected: u64,
    alignment: u64,
) -> String {
    let Described { name, at, offset, .. } = tensor;
    let what =
        format!("tensor `{name}` (described at byte {at}) begins at byte {offset} of the data");
    let Some(before) = before else {
        return format!("{what}, but as the first one it must begin at 0");
    };
    let span = format!("{}..{}", before.offset, before.offset + before.size);
    let relation = match *offset {
        offset if offset >= before.offset && offset < before.offset + before.size => {
            "the two overlap"
        }
        offset if offset < expected => "it lies before that or in the padding behind it",
        _ => "what lies between them belongs to no tensor",
    };
    format!(
        "{what}, but must begin at {expected}: tensor `{}` before it (described at byte {}) has the bytes {span}, and the alignment is {alignment}; {relation}",
        before.name, before.at
    )
}
