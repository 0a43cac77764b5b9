//! Damaged and hostile checkpoints: whatever stands in a file, it is read or refused, without a panic, within a
//! bounded time and with memory in proportion to the file.
//!
//! Headers, configurations and tokenizers of `tests/fixtures/checkpoints` are changed at random, by bytes and by
//! their structure, and opened as every command opens them; a text is tokenized where that succeeds. What such
//! runs have found is kept in `tests/fixtures/hostile/found`.
//!
//! `KVGATE_HOSTILE_CASES` is the number of cases, 2,500 by default; the long run is
//! `KVGATE_HOSTILE_CASES=200000 cargo test --test hostile`. `KVGATE_HOSTILE_SEED` begins elsewhere, and with one
//! case it repeats the one that a message names. What fails is kept in `target/hostile`.
//!
//! These tests are an executable of their own, because they count memory in the allocator of the whole process and
//! because a case that hangs ends it.

use candle_core::quantized::gguf_file::{Content, Value};
use kvgate::internals::model::Checkpoint;
use kvgate::internals::source::Source;
use serde_json::Value as Json;
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Memory that any checkpoint may take when it is opened, beside so many times the bytes that are read.
const MEMORY: usize = 4 << 20;
const MEMORY_BY_BYTE: usize = 40;

/// A case that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(10);

const TEXT: &str = "The Straße costs 42 €\u{a0}— <|im_start|>user\n\tdon't\u{0} \u{1f980}</s>";

/// Counts what is allocated.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = ALLOCATED.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Random numbers that are the same everywhere (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    /// A number at which something may go wrong.
    fn number(&mut self) -> u64 {
        const EDGES: [u64; 24] = [
            0,
            1,
            2,
            3,
            7,
            8,
            31,
            32,
            33,
            255,
            256,
            65535,
            1 << 16,
            1 << 31,
            (1 << 31) - 1,
            u32::MAX as u64,
            1 << 32,
            (1 << 32) + 1,
            1 << 40,
            1 << 60,
            1 << 62,
            i64::MAX as u64,
            1 << 63,
            u64::MAX,
        ];
        match self.below(3) {
            0 => self.below(1000) as u64,
            _ => self.of(&EDGES),
        }
    }

    fn float(&mut self) -> f64 {
        let edges = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-38, 1e38, 1e300, f64::NAN, f64::INFINITY];
        self.of(&edges)
    }

    fn text(&mut self) -> String {
        let edges = [
            "",
            " ",
            "a",
            "\u{2581}",
            "Ġ",
            "<0x0A>",
            "<0xZZ>",
            "</s>",
            "<|im_end|>",
            "\0",
            "\u{1b}[31m",
            "llama",
            "gpt2",
            "qwen2",
            "smollm",
            "default",
            "(?i:",
            "(a+)+$",
            "[",
            "\\p{L}+",
            "a b c",
            "nope",
            "\u{10ffff}",
            "ß",
        ];
        match self.below(8) {
            0 => self.of(&edges).repeat(1 + self.below(2000)),
            1 => (0..self.below(8)).map(|_| self.of(&edges)).collect(),
            _ => self.of(&edges).into(),
        }
    }
}

/// Changes bytes below `end`.
fn scramble(bytes: &mut Vec<u8>, random: &mut Random, end: usize) {
    for _ in 0..1 + random.below(4) {
        let end = end.min(bytes.len());
        if end == 0 {
            return;
        }
        let at = random.below(end);
        let length = (1 + random.below(16)).min(end - at);
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => overwrite(bytes, at, &(random.number() as u32).to_le_bytes()),
            3 => overwrite(bytes, at, &random.number().to_le_bytes()),
            4 => drop(bytes.drain(at..at + length)),
            5 => {
                let copy = bytes[at..at + length].to_vec();
                let to = random.below(end);
                bytes.splice(to..to, copy);
            }
            6 => {
                let copy = bytes[at..at + length].to_vec();
                overwrite(bytes, random.below(end), &copy);
            }
            _ if random.one_in(4) => bytes.truncate(at),
            _ => bytes[at] = bytes[at].wrapping_add(1),
        }
    }
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    let with = &with[..with.len().min(bytes.len() - at)];
    bytes[at..][..with.len()].copy_from_slice(with);
}

/// A GGUF file taken apart, so that it can be put together wrongly.
#[derive(Clone)]
struct Parts {
    keys: Vec<(String, Value)>,
    tensors: Vec<(String, Vec<u64>, u32, u64)>,
    data: u64,
}

impl Parts {
    /// `None` if candle, which takes the file apart here, does not know one of its types, such as MXFP4.
    fn of(file: &[u8]) -> Option<Self> {
        let content = match Content::read(&mut Cursor::new(file)) {
            Err(error) if error.to_string().contains("unknown dtype") => return None,
            content => content.unwrap(),
        };
        let mut keys: Vec<_> = content.metadata.into_iter().collect();
        keys.sort_by(|a, b| a.0.cmp(&b.0));
        let mut tensors: Vec<_> = content
            .tensor_infos
            .into_iter()
            .map(|(name, info)| {
                let shape = info.shape.dims().iter().rev().map(|d| *d as u64).collect();
                let content_type =
                    TYPES.iter().find(|(of, _)| *of == format!("{:?}", info.ggml_dtype));
                (name, shape, content_type.expect("a type of the fixtures").1, info.offset)
            })
            .collect();
        tensors.sort_by_key(|(.., offset)| *offset);
        Some(Parts { keys, tensors, data: file.len() as u64 - content.tensor_data_offset })
    }

    /// The header, and the size of the file.
    fn written(&self, random: &mut Random) -> (Vec<u8>, u64) {
        let off = |n: usize, random: &mut Random| match random.below(60) {
            0 => n as u64 + 1,
            1 => (n as u64).wrapping_sub(1),
            2 => random.number(),
            _ => n as u64,
        };
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(off(self.tensors.len(), random).to_le_bytes());
        bytes.extend(off(self.keys.len(), random).to_le_bytes());
        for (key, value) in &self.keys {
            write_text(&mut bytes, key);
            bytes.extend(code(value).to_le_bytes());
            write_value(&mut bytes, value);
        }
        for (name, shape, kind, offset) in &self.tensors {
            write_text(&mut bytes, name);
            bytes.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|dimension| bytes.extend(dimension.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        let size = bytes.len() as u64 + self.data;
        (bytes, size)
    }

    fn change(&mut self, random: &mut Random) {
        let (key, tensor) = (random.below(self.keys.len()), random.below(self.tensors.len()));
        match random.below(12) {
            0..=2 => change_value(&mut self.keys[key].1, random),
            3 => self.keys[key].1 = value(random, 0),
            4 => drop(self.keys.remove(key)),
            5 => self.keys.push(self.keys[key].clone()),
            6 => self.keys[key].0 = self.keys[random.below(self.keys.len())].0.clone(),
            7 => self.keys[key].0 = random.text(),
            8 => self.tensors[tensor].0 = self.tensors[random.below(self.tensors.len())].0.clone(),
            9 => {
                let shape = &mut self.tensors[tensor].1;
                let at = random.below(shape.len());
                shape[at] = random.number();
            }
            10 => self.tensors[tensor].2 = random.below(50) as u32,
            _ => self.tensors[tensor].3 = random.number(),
        }
    }
}

const TYPES: [(&str, u32); 3] = [("F32", 0), ("F16", 1), ("BF16", 30)];

fn write_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn code(value: &Value) -> u32 {
    match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    }
}

fn write_value(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => bytes.push(*v),
        Value::I8(v) => bytes.extend(v.to_le_bytes()),
        Value::U16(v) => bytes.extend(v.to_le_bytes()),
        Value::I16(v) => bytes.extend(v.to_le_bytes()),
        Value::U32(v) => bytes.extend(v.to_le_bytes()),
        Value::I32(v) => bytes.extend(v.to_le_bytes()),
        Value::F32(v) => bytes.extend(v.to_le_bytes()),
        Value::Bool(v) => bytes.push(u8::from(*v)),
        Value::String(v) => write_text(bytes, v),
        Value::U64(v) => bytes.extend(v.to_le_bytes()),
        Value::I64(v) => bytes.extend(v.to_le_bytes()),
        Value::F64(v) => bytes.extend(v.to_le_bytes()),
        Value::Array(entries) => {
            bytes.extend(entries.first().map_or(4, code).to_le_bytes());
            bytes.extend((entries.len() as u64).to_le_bytes());
            entries.iter().for_each(|entry| write_value(bytes, entry));
        }
    }
}

fn value(random: &mut Random, depth: usize) -> Value {
    match random.below(9) {
        0 => Value::U32(random.number() as u32),
        1 => Value::I32(random.number() as i32),
        2 => Value::U64(random.number()),
        3 => Value::F32(random.float() as f32),
        4 => Value::Bool(random.one_in(2)),
        5 => Value::F64(random.float()),
        6 | 7 if depth < 6 => {
            let first = value(random, depth + 1);
            Value::Array(vec![first; random.below(6)])
        }
        _ => Value::String(random.text()),
    }
}

/// Changes a value within its type, entries of an array above all.
fn change_value(value: &mut Value, random: &mut Random) {
    match value {
        Value::Array(entries) if !entries.is_empty() => {
            let (at, other) = (random.below(entries.len()), random.below(entries.len()));
            match random.below(6) {
                0 => drop(entries.remove(at)),
                1 => entries.insert(at, entries[other].clone()),
                2 => entries[at] = entries[other].clone(),
                3 => entries.truncate(at),
                4 => entries.swap(at, other),
                _ => change_value(&mut entries[at], random),
            }
        }
        Value::U32(v) => *v = random.number() as u32,
        Value::I32(v) => *v = random.number() as i32,
        Value::F32(v) => *v = random.float() as f32,
        Value::Bool(v) => *v = !*v,
        Value::String(v) => *v = random.text(),
        other => *other = self::value(random, 0),
    }
}

/// Any JSON.
fn json(random: &mut Random, depth: usize) -> Json {
    match random.below(9) {
        0 => Json::Null,
        1 => random.one_in(2).into(),
        2 | 3 => random.number().into(),
        4 => (-(random.number() as i64 & i64::MAX)).into(),
        5 => serde_json::Number::from_f64(random.float()).map_or(Json::Null, Json::Number),
        6 if depth < 3 => (0..random.below(5)).map(|_| json(random, depth + 1)).collect(),
        7 if random.one_in(20) => {
            (0..random.below(300)).fold(Json::Null, |inner, _| Json::Array(vec![inner]))
        }
        _ => random.text().into(),
    }
}

/// Changes a value somewhere below.
fn change_json(value: &mut Json, random: &mut Random) {
    let stops = random.one_in(6);
    match value {
        Json::Object(members) if !members.is_empty() && !stops => {
            let keys: Vec<_> = members.keys().cloned().collect();
            let (key, other) = (random.of(&keys), random.of(&keys));
            match random.below(12) {
                0 => drop(members.remove(&key)),
                1 => drop(members.insert(random.text(), members[&other].clone())),
                2 => drop(members.insert(key, members[&other].clone())),
                _ => change_json(&mut members[&key], random),
            }
        }
        Json::Array(entries) if !entries.is_empty() && !stops => {
            let (at, other) = (random.below(entries.len()), random.below(entries.len()));
            match random.below(8) {
                0 => drop(entries.remove(at)),
                1 => entries.insert(at, entries[other].clone()),
                2 => entries.swap(at, other),
                _ => change_json(&mut entries[at], random),
            }
        }
        value => *value = json(random, 0),
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// What is changed: the small files of a checkpoint by their names, and the headers of its large ones with the
/// sizes of the files. Weights are not read when a checkpoint is opened: they are holes here.
#[derive(Clone, Default)]
struct Seed {
    name: String,
    files: BTreeMap<String, (Vec<u8>, u64)>,
    gguf: Option<Parts>,
}

/// Quantized folders that open although their numbers are all zero.
const QUANTIZED: [&str; 7] =
    ["awq", "bnb-int8", "ct-fp8-blocks", "ct-nvfp4", "fp8-blocks", "gptq-order", "mlx-affine-4"];

fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut folders: Vec<_> = std::fs::read_dir(fixtures().join("checkpoints")).unwrap().collect();
    folders.sort_by_key(|entry| entry.as_ref().unwrap().file_name());
    let tokenizer = std::fs::read(fixtures().join("checkpoints/llama/tokenizer.json")).unwrap();
    let folders = folders.into_iter().map(|entry| entry.unwrap().path());
    let quantized = QUANTIZED.map(|name| fixtures().join("quantized").join(name));
    for folder in folders.chain(quantized) {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_string_lossy().into_owned();
            let bytes = std::fs::read(&path).unwrap();
            if file.ends_with(".gguf") {
                let Some(parts) = Parts::of(&bytes) else { continue };
                let name = format!("{name}/{file}");
                let beside = folder.join("tokenizer.json");
                seeds.extend(
                    [sentence_piece(&parts), parts]
                        .map(|parts| Seed::of_gguf(&name, parts, &beside)),
                );
            } else if file.ends_with(".safetensors") {
                let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
                files.insert(file, (bytes[..header].to_vec(), bytes.len() as u64));
            } else if !file.starts_with("logits") && file != "oracle.json" {
                let size = bytes.len() as u64;
                files.insert(file, (bytes, size));
            }
        }
        // quantized folders are stored without
        let size = tokenizer.len() as u64;
        files.entry("tokenizer.json".into()).or_insert_with(|| (tokenizer.clone(), size));
        seeds.push(Seed { name, files, gguf: None });
    }
    seeds
}

/// The same model with a vocabulary as SentencePiece's, which no small checkpoint has.
fn sentence_piece(parts: &Parts) -> Parts {
    let size = parts.keys.iter().find(|(key, _)| key == "tokenizer.ggml.tokens").unwrap();
    let size = size.1.to_vec().unwrap().len();
    let special = ["<unk>", "<s>", "</s>"].map(|text| (text.to_owned(), 3));
    let bytes = (0..256).map(|byte| (format!("<0x{byte:02X}>"), 6));
    let pieces =
        ["\u{2581}", "e", "t", "h", "th", "the", "\u{2581}the", "s", "<b>", "\u{2581}\u{2581}"];
    let pieces = pieces.map(|text| (text.to_owned(), if text == "<b>" { 4 } else { 1 }));
    let rest = (0..).map(|n| (format!("[PAD{n}]"), 5));
    let tokens: Vec<(String, i32)> =
        special.into_iter().chain(bytes).chain(pieces).chain(rest).take(size).collect();
    let list = |of: &dyn Fn(&(String, i32)) -> Value| Value::Array(tokens.iter().map(of).collect());
    let mut parts = parts.clone();
    parts.keys.retain(|(key, _)| !key.starts_with("tokenizer."));
    parts.keys.extend(
        [
            ("model", Value::String("llama".into())),
            ("tokens", list(&|(text, _)| Value::String(text.clone()))),
            ("token_type", list(&|(_, kind)| Value::I32(*kind))),
            // each its own, or their order is not told; longer pieces first
            ("scores", Value::Array(scores(&tokens))),
            ("add_space_prefix", Value::Bool(false)),
            ("unknown_token_id", Value::U32(0)),
            ("bos_token_id", Value::U32(1)),
            ("eos_token_id", Value::U32(2)),
        ]
        .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)),
    );
    parts
}

/// A score for each token by its length, and of two of one length the earlier one's is higher.
fn scores(tokens: &[(String, i32)]) -> Vec<Value> {
    let score = |(i, (text, _)): (usize, &(String, i32))| {
        Value::F32(text.len() as f32 - i as f32 / tokens.len() as f32)
    };
    tokens.iter().enumerate().map(score).collect()
}

impl Seed {
    /// A GGUF file, and the `tokenizer.json` that a policy may name beside it.
    fn of_gguf(name: &str, parts: Parts, tokenizer: &Path) -> Self {
        let bytes = std::fs::read(tokenizer).unwrap();
        let size = bytes.len() as u64;
        let files = BTreeMap::from([("tokenizer.json".into(), (bytes, size))]);
        Seed { name: name.into(), files, gguf: Some(parts) }
    }

    /// The files of a changed checkpoint.
    fn changed(&self, random: &mut Random) -> BTreeMap<String, (Vec<u8>, u64)> {
        if let Some(parts) = &self.gguf {
            let mut files = BTreeMap::new();
            if random.one_in(4) {
                files = self.files.clone();
            }
            if !files.is_empty() && random.one_in(2) {
                files.values_mut().for_each(|file| change_json_file(file, random));
                files.insert("model.gguf".into(), parts.written(random));
            } else {
                files.insert("model.gguf".into(), changed_gguf(parts, random));
            }
            return files;
        }
        let mut files = self.files.clone();
        let names: Vec<_> = files.keys().cloned().collect();
        let name = random.of(&names);
        let file = files.get_mut(&name).unwrap();
        if name.ends_with(".safetensors") {
            change_safetensors(file, random);
        } else {
            change_json_file(file, random);
        }
        files
    }
}

fn changed_gguf(parts: &Parts, random: &mut Random) -> (Vec<u8>, u64) {
    let mut parts = parts.clone();
    let structural = random.below(3);
    (0..structural).for_each(|_| parts.change(random));
    let (mut header, mut size) = parts.written(random);
    if structural == 0 || random.one_in(4) {
        let (before, end) = (header.len(), header.len());
        scramble(&mut header, random, end);
        size = size + header.len() as u64 - before as u64;
    }
    if random.one_in(30) {
        size = random.below(size as usize) as u64;
    }
    (header, size)
}

fn change_safetensors((bytes, size): &mut (Vec<u8>, u64), random: &mut Random) {
    let before = bytes.len() as u64;
    if random.one_in(2) {
        let mut header: Json = serde_json::from_slice(&bytes[8..]).unwrap();
        (0..1 + random.below(2)).for_each(|_| change_json(&mut header, random));
        let header = header.to_string();
        *bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    } else {
        // mostly within the text: else the length of the header is all that is ever wrong
        let end = if random.one_in(4) { 8 } else { bytes.len() };
        scramble(bytes, random, end);
    }
    *size = *size + bytes.len() as u64 - before.min(*size + bytes.len() as u64);
    if random.one_in(30) {
        *size = random.below(*size as usize) as u64;
    }
}

fn change_json_file((bytes, size): &mut (Vec<u8>, u64), random: &mut Random) {
    if random.one_in(4) {
        let end = bytes.len();
        scramble(bytes, random, end);
    } else {
        let mut value: Json = serde_json::from_slice(bytes).unwrap();
        (0..1 + random.below(3)).for_each(|_| change_json(&mut value, random));
        *bytes = value.to_string().into_bytes();
    }
    *size = bytes.len() as u64;
}

fn write(folder: &Path, files: &BTreeMap<String, (Vec<u8>, u64)>) {
    for (name, (bytes, size)) in files {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        // what is behind a header is a hole
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(*size).unwrap();
    }
}

/// What became of a checkpoint.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    #[default]
    Refused,
    /// It is open, and the text is tokenized or refused.
    Opened,
}

/// Opens a checkpoint; says how much memory that took at most.
///
/// # Errors
/// A panic, or more memory than the bytes that were read warrant.
fn open(path: &Path, read: usize) -> Result<(Outcome, usize), String> {
    let mut source = Source::at(path.into());
    // what a policy names beside a GGUF
    let tokenizer = path.with_file_name("tokenizer.json");
    source.tokenizer = (path.is_file() && tokenizer.exists()).then_some(tokenizer);
    let before = ALLOCATED.load(Relaxed);
    PEAK.store(before, Relaxed);
    let opened = catch_unwind(AssertUnwindSafe(|| match Checkpoint::open(&source) {
        Err(error) => {
            let words = error.to_string();
            assert!(!words.is_empty());
            Outcome::Refused
        }
        Ok(checkpoint) => {
            let tokenizer = &checkpoint.tokenizer;
            if let Ok(ids) = tokenizer.encode(TEXT) {
                let _ = tokenizer.decode(&ids);
            }
            let _ = tokenizer.encode_rendered(TEXT);
            Outcome::Opened
        }
    }));
    let peak = PEAK.load(Relaxed).saturating_sub(before);
    let outcome = opened.map_err(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        format!("a panic: {}", words.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?"))
    })?;
    if peak > MEMORY + MEMORY_BY_BYTE * read {
        return Err(format!("{peak} bytes were allocated for {read} in its files"));
    }
    Ok((outcome, peak))
}

/// Ends the process where a case hangs, since nothing can end the case alone.
fn watch(current: Arc<Mutex<Option<(Instant, String)>>>) {
    std::thread::spawn(move || loop {
        std::thread::sleep(Duration::from_millis(500));
        let Some((since, what)) = current.lock().unwrap().clone() else { return };
        if since.elapsed() > PATIENCE {
            eprintln!("{what} hangs");
            std::process::abort();
        }
    });
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |n| n.parse().unwrap())
}

/// The file or the folder that a case is opened by.
fn place(folder: &Path) -> PathBuf {
    let gguf = folder.join("model.gguf");
    if gguf.exists() {
        return gguf;
    }
    folder.into()
}

#[test]
fn no_damage_panics_hangs_or_takes_all_memory() {
    let _alone = ALONE.lock();
    let (cases, seed) = (setting("KVGATE_HOSTILE_CASES", 2500), setting("KVGATE_HOSTILE_SEED", 1));
    let seeds = seeds();
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/hostile");
    let current = Arc::new(Mutex::new(Some((Instant::now(), String::new()))));
    watch(current.clone());
    let (mut failures, mut outcomes) = (Vec::new(), BTreeMap::<Outcome, u64>::new());
    let (mut largest, mut longest) = (0, Duration::ZERO);
    for case in seed..seed + cases {
        let mut random = Random(case);
        let origin = &seeds[random.below(seeds.len())];
        let files = origin.changed(&mut random);
        let folder = kept.join(format!("{case}"));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        write(&folder, &files);
        let what = format!("case {case}, of {} ({})", origin.name, folder.display());
        let started = Instant::now();
        *current.lock().unwrap() = Some((started, what.clone()));
        let read = files.values().map(|(bytes, _)| bytes.len()).sum();
        // a text that was given up may still be read on a thread of its own, whose memory is counted here: what a
        // file takes, it takes again
        let opened = open(&place(&folder), read).or_else(|_| open(&place(&folder), read));
        longest = longest.max(started.elapsed());
        match opened {
            Ok((outcome, peak)) => {
                *outcomes.entry(outcome).or_default() += 1;
                largest = largest.max(peak);
                std::fs::remove_dir_all(&folder).unwrap();
            }
            Err(complaint) => failures.push(format!("{what}: {complaint}")),
        }
    }
    *current.lock().unwrap() = None;
    println!("{cases} cases: {outcomes:?}, {} failures", failures.len());
    println!("at most {} KiB of memory and {longest:?} for a case", largest >> 10);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // a mutator that only ever breaks the first bytes finds nothing
    if cases >= 1000 {
        assert!(outcomes[&Outcome::Opened] * 20 > cases, "{outcomes:?}");
        assert!(outcomes[&Outcome::Refused] * 4 > cases, "{outcomes:?}");
    }
}

/// Memory is counted for the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// A checkpoint that was found: the files that were changed, and in `origin.txt` the name of the small checkpoint
/// that all others are of, or the size of the file whose header is kept.
fn found(kept: &Path) -> BTreeMap<String, (Vec<u8>, u64)> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(kept).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let size = bytes.len() as u64;
        files.insert(path.file_name().unwrap().to_string_lossy().into_owned(), (bytes, size));
    }
    let (origin, _) = files.remove("origin.txt").unwrap();
    let origin = String::from_utf8(origin).unwrap();
    if let Ok(size) = origin.trim().parse() {
        files.values_mut().for_each(|file| file.1 = size);
        return files;
    }
    let seed = seeds().into_iter().find(|seed| seed.name == origin.trim()).unwrap();
    seed.files.into_iter().chain(files).collect()
}

#[test]
fn what_was_found_before_stays_mended() {
    let _alone = ALONE.lock();
    let mut count = 0;
    for entry in std::fs::read_dir(fixtures().join("hostile/found")).unwrap() {
        let kept = entry.unwrap().path();
        let files = found(&kept);
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &files);
        let read = files.values().map(|(bytes, _)| bytes.len()).sum();
        open(&place(folder.path()), read).unwrap_or_else(|e| panic!("{}: {e}", kept.display()));
        count += 1;
    }
    assert!(count > 0);
}
