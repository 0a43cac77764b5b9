//! What tests of the engine share: the real models and the fixtures.

pub mod forward;
pub mod generation;
#[path = "../../support/manifest.rs"]
pub mod manifest;
pub mod metadata;
#[allow(dead_code)] // the executable `program` uses all of it
#[path = "../../support/program.rs"]
pub mod program;
#[allow(dead_code)] // the executable `program` uses all of it
#[path = "../../support/tiny.rs"]
pub mod tiny;

use candle_core::Tensor;
use kvgate::internals::model::Checkpoint;
use kvgate::internals::source::Source;
use serde_json::Value;
use std::path::{Path, PathBuf};

pub const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
pub const GEMMA: &str = "gemma-3-270m-q4_k_m.gguf";
pub const QWEN: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";
pub const MODELS: [&str; 3] = [SMOLLM2, GEMMA, QWEN];

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a checkpoint remarks on keys of its configuration; its tokenizer has remarks of its own.
pub fn notes_on_keys(checkpoint: &Checkpoint) -> Vec<String> {
    let on_keys =
        |note: &&String| note.contains("keys that nothing reads") || note.contains("`ignore_keys`");
    checkpoint.notes.iter().filter(on_keys).cloned().collect()
}

pub fn source(file: &str) -> Source {
    let path = root().join("models/real").join(file);
    assert!(path.exists(), "{} is missing: run scripts/fetch-models", path.display());
    Source::at(path)
}

pub fn open(file: &str) -> Checkpoint {
    Checkpoint::open(&source(file)).unwrap_or_else(|e| panic!("{e}"))
}

pub fn fixture(name: &str) -> Value {
    let path = root().join("tests/fixtures").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub fn corpus(name: &str) -> PathBuf {
    root().join("corpora").join(name)
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Largest difference of a logit over the positions of a fixture, each relative to its position's
/// largest one; the arg-max must be the fixture's.
pub fn worst_logit(logits: &Tensor, model: &Value) -> f64 {
    let mut worst = 0.0f64;
    for want in model["positions"].as_array().unwrap() {
        let position = want["position"].as_u64().unwrap() as usize;
        let row: Vec<f32> = logits.get(position).unwrap().to_vec1().unwrap();
        assert!(row.iter().all(|x| x.is_finite()), "logits at {position} are not finite");
        let largest = row.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
        let pairs = ["top", "sample"].iter().flat_map(|k| want[k].as_array().unwrap());
        for pair in pairs {
            let (id, logit) = (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap());
            let error = (f64::from(row[id]) - logit).abs() / largest;
            worst = if error <= worst { worst } else { error };
        }
        let best = (0..row.len()).fold(0, |b, i| if row[i] > row[b] { i } else { b });
        assert_eq!(best as u64, want["argmax"].as_u64().unwrap(), "position {position}");
    }
    worst
}
