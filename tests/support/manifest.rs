//! Released models that nobody downloads for a test or a benchmark: their configurations and the names and shapes of
//! their tensors (fixtures: `scripts/oracle/manifests.py`), in files without content.

use serde_json::{json, Map, Value};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A tensor as a manifest lists it.
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    /// Bytes (U8), where all else is BF16.
    pub bytes: bool,
    /// Some releases of the model leave it out.
    pub optional: bool,
}

/// The repository. A program that runs elsewhere than it was built is told by the variable.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR")
        .unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into())
        .into()
}

fn folder(model: &str) -> PathBuf {
    root().join("tests/fixtures/real").join(model)
}

/// Lines `name d0,d1,…`, and ` U8` behind the shape of bytes; `{a..b}` stands for every number from a to b.
pub fn manifest(model: &str) -> Vec<Tensor> {
    let text = std::fs::read_to_string(folder(model).join("tensors.txt")).unwrap();
    text.lines().flat_map(tensors).collect()
}

fn tensors(line: &str) -> Vec<Tensor> {
    let (line, optional) = match line.strip_suffix(" optional") {
        Some(line) => (line, true),
        None => (line, false),
    };
    let (line, bytes) = match line.strip_suffix(" U8") {
        Some(line) => (line, true),
        None => (line, false),
    };
    let (name, shape) = line.split_once(' ').unwrap_or((line, ""));
    let dims = shape.split(',').filter(|dim| !dim.is_empty());
    let shape: Vec<usize> = dims.map(|dim| dim.parse().unwrap()).collect();
    let tensor = |name| Tensor { name, shape: shape.clone(), bytes, optional };
    names(name).into_iter().map(tensor).collect()
}

fn names(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('{') else { return vec![pattern.into()] };
    let (range, after) = rest.split_once('}').unwrap();
    let (first, last) = range.split_once("..").unwrap();
    let numbers = first.parse::<usize>().unwrap()..=last.parse().unwrap();
    numbers.flat_map(|n| names(&format!("{before}{n}{after}"))).collect()
}

/// A checkpoint with these tensors, whose data are holes in its file.
pub fn write(folder: &Path, model: &str, tensors: &[Tensor]) {
    let fixtures = root().join("tests/fixtures");
    let copy = |from: PathBuf, name| std::fs::copy(from.join(name), folder.join(name)).unwrap();
    copy(self::folder(model), "config.json");
    copy(fixtures.join("checkpoints/llama"), "tokenizer.json");
    let mut header = Map::new();
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        let (dtype, size) = if tensor.bytes { ("U8", 1) } else { ("BF16", 2) };
        end += size * tensor.shape.iter().product::<usize>();
        let entry = json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end]});
        header.insert(tensor.name.clone(), entry);
    }
    let header = Value::from(header).to_string();
    let mut file = File::create(folder.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
}
