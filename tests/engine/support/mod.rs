//! What tests of the engine share: the real models, the fixtures, and the device that models run on.
//!
//! Tests that compare a model's numbers with those of another implementation load the model by [`load`], on the device
//! that `KVGATE_DEVICE` names, so that they show what a card computes, too. All other tests run on the CPU: they are about
//! files, about texts, or about caches that keep their bytes on the host.

pub mod folder;
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
use kvgate::internals::compute::device::Choice;
use kvgate::internals::compute::Device;
use kvgate::internals::measure::{Draw, Request};
use kvgate::internals::model::decoder::{Decoder, Residency};
use kvgate::internals::model::Checkpoint;
use kvgate::internals::source::Source;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

pub const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
pub const GEMMA: &str = "gemma-3-270m-q4_k_m.gguf";
pub const QWEN: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";
pub const MODELS: [&str; 3] = [SMOLLM2, GEMMA, QWEN];

/// The repository. Whoever runs finished tests elsewhere names it by the variable that cargo sets for tests.
pub fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let named = std::env::var_os("CARGO_MANIFEST_DIR");
        named.map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
    });
    &ROOT
}

/// The device that `KVGATE_DEVICE` names, or the CPU if it names none.
pub fn device() -> Device {
    let choice = std::env::var("KVGATE_DEVICE").map_or(Choice::Cpu, |name| name.parse().unwrap());
    Device::open(choice).unwrap()
}

/// Loads a model on that device.
pub fn load(checkpoint: &Checkpoint) -> Decoder {
    checkpoint.load_on(&device(), Residency::Resident).unwrap_or_else(|error| panic!("{error}"))
}

/// How far a number may be from that of another implementation, relative to the largest one beside it. On the CPU this
/// is `on_cpu`. A card rounds values and weights of attention to 11 bits, and may be as far off as [`ON_CARD`].
pub fn tolerance(on_cpu: f64) -> f64 {
    match device().name() {
        "cpu" => on_cpu,
        _ => on_cpu.max(ON_CARD),
    }
}

const ON_CARD: f64 = 2e-4;

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

/// A request to measure schemes as a gate does, on two chunks of 64 tokens and on the CPU. A test says what it needs
/// otherwise.
pub fn request<'r>(source: &'r Source, corpus: &'r [PathBuf], schemes: &[&str]) -> Request<'r> {
    Request {
        model: "m",
        source,
        corpus,
        context: 64,
        chunks: 2,
        draw: Draw::First,
        baseline: "f16".parse().unwrap(),
        schemes: schemes.iter().map(|s| (s.to_string(), s.parse().unwrap())).collect(),
        calibration: None,
        generate: None,
        retrieval: None,
        device: Device::cpu(),
        residency: None,
        mimic: None,
        is_gated: true,
    }
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
            worst = worst.max(error);
        }
        let best = (0..row.len()).fold(0, |b, i| if row[i] > row[b] { i } else { b });
        assert_eq!(best as u64, want["argmax"].as_u64().unwrap(), "position {position}");
    }
    worst
}
