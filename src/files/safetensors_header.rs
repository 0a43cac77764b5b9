//! Checks the header of a safetensors file before the file is read.
//!
//! The `safetensors` crate reads a header into a map, in which the last of two tensors with the same name wins, and
//! it does not say what is wrong with a layout. Here both faults are reported with the names and places of the
//! tensors.

use super::foreign;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use std::collections::{HashMap, HashSet};

/// Bytes of the header's length, which the file begins with.
const LENGTH: usize = 8;

/// The member of the header that is not a tensor.
const METADATA: &str = "__metadata__";

/// A tensor's name, type, shape and place.
type Entry = (String, TensorInfo);

/// The header's tensors in its order.
struct Entries(Vec<Entry>);

/// Checks a whole file. Its header must describe each tensor once, and the tensors must follow each other without
/// gaps until the file ends, as the format demands.
///
/// # Errors
/// What is wrong, in words that continue the file's name.
pub(crate) fn check(bytes: &[u8]) -> Result<(), String> {
    if let Some(complaint) = foreign::complaint(bytes) {
        return Err(complaint);
    }
    let (header, data) = parts(bytes)?;
    let Entries(mut tensors) =
        serde_json::from_slice(header).map_err(|e| format!("its header: {e}"))?;
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    check_layout(&tensors, data)
}

/// The header, and the number of bytes of data after it.
fn parts(bytes: &[u8]) -> Result<(&[u8], usize), String> {
    let file = bytes.len();
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else {
        return Err(format!("it has {file} bytes, too few for safetensors (truncated?)"));
    };
    let length = u64::from_le_bytes(*length);
    let within = usize::try_from(length).ok().filter(|length| *length <= rest.len());
    let Some((header, data)) = within.map(|length| rest.split_at(length)) else {
        // eight characters are an absurd number
        if bytes.trim_ascii_start().starts_with(b"{") {
            return Err("it is JSON and not safetensors".into());
        }
        return Err(format!(
            "its header of {length} bytes goes beyond the file's {file} (truncated, or no safetensors?)"
        ));
    };
    if !header.starts_with(b"{") {
        return Err(format!("what should be its header of {length} bytes does not begin with `{{`: it is no safetensors file"));
    }
    Ok((header, data.len()))
}

/// Checks the layout of tensors, which are sorted by their places.
fn check_layout(tensors: &[Entry], data: usize) -> Result<(), String> {
    let mut end = 0;
    let mut before = "the beginning".to_owned();
    for (name, info) in tensors {
        let (from, to) = info.data_offsets;
        if from < end {
            return Err(format!(
                "tensor `{name}` has the bytes {from}..{to} of the data, which overlap {before}"
            ));
        }
        if from > end {
            return Err(format!(
                "the bytes {end}..{from} of the data, between {before} and tensor `{name}` ({from}..{to}), belong to no tensor"
            ));
        }
        check_size(name, info)?;
        if to > data {
            return Err(format!("tensor `{name}` ends beyond the file, at byte {to} of the data, which has {data} (truncated?)"));
        }
        (end, before) = (to, format!("tensor `{name}` ({from}..{to})"));
    }
    match data - end {
        0 => Ok(()),
        more => Err(format!("the last {more} bytes, behind {before}, belong to no tensor")),
    }
}

/// Checks that the size of a tensor's place is that of the tensor.
fn check_size(name: &str, info: &TensorInfo) -> Result<(), String> {
    let (from, to) = info.data_offsets;
    let elements = info.shape.iter().try_fold(1usize, |n, dimension| n.checked_mul(*dimension));
    let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
    let place = to.checked_sub(from).and_then(|bytes| bytes.checked_mul(8));
    if bits.is_none() || bits != place {
        return Err(format!(
            "tensor `{name}` of shape {:?} in {:?} does not take the bytes {from}..{to} of the data",
            info.shape, info.dtype
        ));
    }
    Ok(())
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Header)
    }
}

/// The members of `__metadata__`. None may occur twice, because one of them, `format`, decides how norms are read.
struct Metadata;

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Metadata)
    }
}

impl<'de> Visitor<'de> for Metadata {
    type Value = Metadata;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "an object of texts as `{METADATA}`")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Metadata, M::Error> {
        let mut names = HashSet::new();
        while let Some((name, _)) = map.next_entry::<String, String>()? {
            if let Some(name) = names.replace(name) {
                let message = format!("`{name}` of `{METADATA}` stands twice");
                return Err(serde::de::Error::custom(message));
            }
        }
        Ok(Metadata)
    }
}

struct Header;

impl<'de> Visitor<'de> for Header {
    type Value = Entries;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an object with a tensor's description for each name")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Entries, M::Error> {
        let mut tensors: Vec<Entry> = Vec::new();
        let mut numbers: HashMap<String, usize> = HashMap::new();
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                map.next_value::<Metadata>()?;
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(serde::de::Error::custom(format!("`{METADATA}` stands twice")));
                }
                continue;
            }
            let info: TensorInfo = map.next_value()?;
            if let Some(first) = numbers.insert(name.clone(), tensors.len()) {
                let place = |info: &TensorInfo| format!("{:?}", info.data_offsets);
                return Err(serde::de::Error::custom(format!(
                    "tensor `{name}` stands twice, with the data_offsets {} and {}: readers differ in which one they take",
                    place(&tensors[first].1),
                    place(&info)
                )));
            }
            tensors.push((name, info));
        }
        Ok(Entries(tensors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 1);
        bytes
    }

    fn tensor(name: &str, shape: &str, from: usize, to: usize) -> String {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    }

    fn of(tensors: &[String], data: usize) -> Vec<u8> {
        file(&format!("{{{}}}", tensors.join(",")), data)
    }

    #[test]
    fn what_the_format_allows_passes() {
        let (a, b) = (tensor("a", "[2]", 8, 16), tensor("b", "[2,1]", 0, 8));
        let (empty, scalar) = (tensor("e", "[0]", 8, 8), tensor("s", "[]", 16, 20));
        let metadata = r#""__metadata__":{"format":"pt"}"#.to_string();
        for tensors in [vec![a.clone(), b.clone()], vec![metadata, a, b, empty, scalar]] {
            let data = if tensors.len() == 2 { 16 } else { 20 };
            let bytes = of(&tensors, data);
            check(&bytes).unwrap();
            safetensors::SafeTensors::deserialize(&bytes).unwrap();
        }
        // a header as long as a brace's number
        let header = format!("{{{}}}", tensor("a", "[2]", 0, 8));
        let bytes = file(&format!("{header:<123}"), 8);
        assert_eq!(bytes[0], b'{');
        check(&bytes).unwrap();
    }

    #[test]
    fn what_can_be_understood_in_two_ways_is_refused_with_both_places() {
        let a = tensor("a", "[2]", 0, 8);
        let metadata = r#""__metadata__":{"format":"pt"}"#.to_string();
        for (bytes, words) in [
            (
                of(&[a.clone(), tensor("a", "[2,1]", 0, 8)], 8),
                &["tensor `a` stands twice", "(0, 8)"][..],
            ),
            (
                of(&[a.clone(), tensor("\\u0061", "[2]", 8, 16)], 16),
                &["`a` stands twice", "(0, 8)", "(8, 16)"],
            ),
            (of(&[metadata.clone(), metadata, a.clone()], 8), &["`__metadata__` stands twice"]),
            (
                of(&[r#""__metadata__":{"format":"pt","format":"mlx"}"#.into(), a.clone()], 8),
                &["`format` of `__metadata__` stands twice"],
            ),
            (
                of(&[a.clone(), tensor("b", "[2]", 4, 12)], 12),
                &["`b`", "4..12", "overlap", "`a` (0..8)"],
            ),
            (
                of(&[a.clone(), tensor("b", "[2]", 12, 20)], 20),
                &["8..12", "`a` (0..8)", "`b`", "no tensor"],
            ),
            (of(std::slice::from_ref(&a), 12), &["4 bytes", "`a`", "no tensor"]),
            (of(std::slice::from_ref(&a), 4), &["`a`", "beyond", "truncated"]),
            (of(&[tensor("a", "[3]", 0, 8)], 8), &["`a`", "[3]", "0..8"]),
            (of(&[tensor("a", "[2]", 8, 0)], 8), &["`a`"]),
            (of(&[tensor("a", "[4294967296,4294967296,2]", 0, 8)], 8), &["`a`", "shape"]),
            (file("[]", 0), &["does not begin with `{`"]),
            (file("{\"a\":1}", 0), &["header", "column"]),
            (b"{\"model_type\":\"llama\"}".to_vec(), &["JSON"]),
            (vec![255; 40], &["beyond the file's 40"]),
            (vec![1, 0], &["2 bytes", "truncated"]),
            (Vec::new(), &["empty"]),
        ] {
            let complaint = check(&bytes).unwrap_err();
            for word in words {
                assert!(complaint.contains(word), "{complaint} lacks {word}");
            }
        }
    }
}
