//! Tiny random checkpoints that tests write themselves, and a model repository around one.
//!
//! The smallest llama that every part of the gate works on: heads of 64, so that blocks of 32 and
//! the Hadamard of 64 apply, two query heads to a KV head, a byte-level vocabulary. K has a few rows
//! that are larger than the rest, so that four bits do visibly more harm than eight.

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use std::path::{Path, PathBuf};

const HIDDEN: usize = 64;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const MLP: usize = 128;
const LAYERS: usize = 2;

/// Merges of the tokenizer, beside the 256 bytes.
const MERGES: [&str; 6] = ["t h", "th e", "Ġ a", "i n", "Ġ the", "e r"];

/// What can be wrong with a checkpoint.
#[derive(Clone)]
pub enum Damage {
    /// An element of the tensor is NaN.
    Nan(&'static str),
    /// The tensor is not in the file.
    Missing(&'static str),
    /// The tensor has a row too few.
    Shape(&'static str),
    /// The tensor is multiplied by this.
    Scaled(&'static str, f32),
    /// `general.architecture` says this.
    Architecture(&'static str),
    /// The file holds a tensor of that name, too, which no layer reads.
    Extra(&'static str),
    /// A metadata key has this value, instead of its own if it has one.
    Metadata(&'static str, Value),
    /// The configuration promises so many layers.
    Blocks(usize),
    /// The file ends in the middle of its last tensor.
    Truncated,
    /// The file ends in the middle of its header.
    Beheaded,
}

/// Writes a checkpoint; the same seed gives the same bytes.
pub fn write(path: &Path, seed: u64, damage: &[Damage]) {
    let tensors = tensors(seed, damage);
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let metadata = metadata(damage);
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let mut file = std::fs::File::create(path).unwrap();
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    let length = file.metadata().unwrap().len();
    for damage in damage {
        match damage {
            Damage::Truncated => file.set_len(length - 100).unwrap(),
            Damage::Beheaded => file.set_len(1000).unwrap(),
            _ => {}
        }
    }
}

fn metadata(damage: &[Damage]) -> Vec<(&'static str, Value)> {
    let architecture = damage.iter().find_map(|d| match d {
        Damage::Architecture(name) => Some(*name),
        _ => None,
    });
    let blocks = damage.iter().find_map(|d| match d {
        Damage::Blocks(blocks) => Some(*blocks),
        _ => None,
    });
    let text = |s: &str| Value::String(s.into());
    let number = |n: usize| Value::U32(n as u32);
    let texts = |list: Vec<String>| Value::Array(list.into_iter().map(Value::String).collect());
    let mut metadata = vec![
        ("general.architecture", text(architecture.unwrap_or("llama"))),
        ("llama.embedding_length", number(HIDDEN)),
        ("llama.block_count", number(blocks.unwrap_or(LAYERS))),
        ("llama.context_length", number(2048)),
        ("llama.feed_forward_length", number(MLP)),
        ("llama.attention.head_count", number(HEADS)),
        ("llama.attention.head_count_kv", number(KV_HEADS)),
        ("llama.attention.key_length", number(HEAD_DIM)),
        ("llama.attention.value_length", number(HEAD_DIM)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("gpt-2")),
        ("tokenizer.ggml.tokens", texts(vocabulary())),
        ("tokenizer.ggml.merges", texts(MERGES.map(String::from).into())),
    ];
    for damage in damage {
        if let Damage::Metadata(key, value) = damage {
            metadata.retain(|(known, _)| known != key);
            metadata.push((key, value.clone()));
        }
    }
    metadata
}

/// The alphabet of GPT-2, which spells each byte as a printable character, then what merges make.
fn vocabulary() -> Vec<String> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=u8::MAX).filter(|byte| !printable(byte)).count() as u32;
    let bytes = (0..=u8::MAX).filter(printable).map(char::from);
    let bytes = bytes.chain((256..256 + others).filter_map(char::from_u32));
    bytes.map(String::from).chain(MERGES.map(|merge| merge.replace(' ', ""))).collect()
}

fn tensors(seed: u64, damage: &[Damage]) -> Vec<(String, QTensor)> {
    let mut random = Random(seed);
    let vocab = 256 + MERGES.len();
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let mut shapes = vec![
        ("token_embd.weight".to_string(), vec![vocab, HIDDEN], 1.0),
        ("output_norm.weight".to_string(), vec![HIDDEN], 0.0),
        ("output.weight".to_string(), vec![vocab, HIDDEN], 0.3),
    ];
    for layer in 0..LAYERS {
        let parts: [(&str, &[usize], f32); 9] = [
            ("attn_norm", &[HIDDEN], 0.0),
            ("attn_q", &[q, HIDDEN], 0.2),
            ("attn_k", &[kv, HIDDEN], 0.2),
            ("attn_v", &[kv, HIDDEN], 0.2),
            ("attn_output", &[HIDDEN, q], 0.15),
            ("ffn_norm", &[HIDDEN], 0.0),
            ("ffn_gate", &[MLP, HIDDEN], 0.1),
            ("ffn_up", &[MLP, HIDDEN], 0.1),
            ("ffn_down", &[HIDDEN, MLP], 0.1),
        ];
        let parts = parts.iter().map(|(part, shape, spread)| {
            (format!("blk.{layer}.{part}.weight"), shape.to_vec(), *spread)
        });
        shapes.extend(parts);
    }
    shapes.extend(damage.iter().filter_map(|d| match d {
        Damage::Extra(name) => Some((name.to_string(), vec![HIDDEN], 0.1)),
        _ => None,
    }));
    let tensors = shapes.into_iter().filter_map(|(name, shape, spread)| {
        let drawn = random.tensor(&name, &shape, spread);
        let (values, shape) = damaged(&name, drawn, shape, damage)?;
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        Some((name, QTensor::quantize(&tensor, GgmlDType::F32).unwrap()))
    });
    tensors.collect()
}

/// What damage leaves of a tensor.
fn damaged(
    name: &str,
    mut values: Vec<f32>,
    mut shape: Vec<usize>,
    damage: &[Damage],
) -> Option<(Vec<f32>, Vec<usize>)> {
    for damage in damage {
        match *damage {
            Damage::Missing(tensor) if tensor == name => return None,
            Damage::Nan(tensor) if tensor == name => values[7] = f32::NAN,
            Damage::Scaled(tensor, by) if tensor == name => {
                values.iter_mut().for_each(|v| *v *= by)
            }
            Damage::Shape(tensor) if tensor == name => {
                shape[0] -= 1;
                values.truncate(shape.iter().product());
            }
            _ => {}
        }
    }
    Some((values, shape))
}

/// SplitMix64: tests need the same numbers everywhere, not good ones.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Nearly normal, with deviation 1: a sum of twelve uniform numbers.
    pub fn normal(&mut self) -> f32 {
        let sum: f64 = (0..12).map(|_| (self.next() >> 11) as f64 / (1u64 << 53) as f64).sum();
        (sum - 6.0) as f32
    }

    /// Around 1 for the weights of a norm, around 0 otherwise; every sixteenth row of K is large.
    fn tensor(&mut self, name: &str, shape: &[usize], spread: f32) -> Vec<f32> {
        let large = |i: usize| name.contains("attn_k") && (i / HIDDEN).is_multiple_of(16);
        let count = shape.iter().product();
        (0..count)
            .map(|i| match spread {
                0.0 => 1.0 + 0.1 * self.normal(),
                _ => spread * if large(i) { 4.0 } else { 1.0 } * self.normal(),
            })
            .collect()
    }
}

/// Text of some thousand bytes: sentences of words drawn by chance.
pub fn corpus(seed: u64, bytes: usize) -> String {
    const WORDS: [&str; 24] = [
        "the", "a", "river", "engine", "quiet", "there", "in", "winter", "letter", "measures",
        "under", "other", "thin", "water", "keeps", "another", "paper", "and", "then", "harder",
        "signal", "within", "7", "naïve",
    ];
    let mut random = Random(seed);
    let mut text = String::new();
    while text.len() < bytes {
        let word = WORDS[random.next() as usize % WORDS.len()];
        let end = [" ", " ", " ", " ", " ", ", ", ".\n"][random.next() as usize % 7];
        text += word;
        text += end;
    }
    text
}

/// The policy of the little repository: a case of each expectation, and one that is ignored.
const POLICY: &str = r#"[defaults]
corpus = ["corpus.txt"]
context = 64
chunks = 4

[defaults.limits]
mean_kld = 0.05

[models.tiny]
path = "tiny.gguf"
fetch = "scripts/fetch tiny"
limits = { baseline_ppl = 20000.0 }
untrained = true

[models.tiny.schemes]
q8_0 = {}
q4_0 = { expect = "fail", reason = "four bits are too few" }
q4_1 = { expect = "report" }
q5_1 = { ignored = true }
"#;

/// Prompts for the little model, which has no chat template.
const PROMPTS: &str = r#"version = 1

[[prompts]]
id = "river"
category = "prose"
text = "The river keeps"

[[prompts]]
id = "letter"
category = "instruction"
messages = [{ role = "user", content = "Write a letter, and then another." }]

[[prompts]]
id = "signal"
category = "list"
text = "signal, paper, 7, "
"#;

/// A model repository in a temporary folder.
pub struct Repository {
    folder: tempfile::TempDir,
}

impl Repository {
    /// With a sound model, a text, and a policy that it meets.
    pub fn new() -> Self {
        let repository = Repository { folder: tempfile::tempdir().unwrap() };
        repository.write_model(&[]);
        repository.put("corpus.txt", &corpus(3, 4000));
        repository.put("thresholds.toml", POLICY);
        repository
    }

    /// The same with a baseline that continues prompts.
    pub fn with_prompts() -> Self {
        let repository = Repository::new();
        repository.put("prompts.toml", PROMPTS);
        let more = "chunks = 4\nprompts = \"prompts.toml\"\ngenerate = 12";
        repository.edit("thresholds.toml", "chunks = 4", more);
        repository
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write_model(&self, damage: &[Damage]) {
        write(&self.path("tiny.gguf"), 1, damage);
    }

    pub fn put(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// Replaces a text that a file must hold.
    pub fn edit(&self, name: &str, old: &str, new: &str) {
        let text = self.text(name);
        assert!(text.contains(old), "{name} holds no `{old}`:\n{text}");
        self.put(name, &text.replace(old, new));
    }
}
