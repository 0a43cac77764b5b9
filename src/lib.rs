//! The regression gate for quantized KV caches.
//!
//! Serving engines can store the K and V of attention in few bits (`q8_0`, `q4_0`, or one for K and another for
//! V). What that costs depends on the model. kvgate turns every pair of a model and a KV scheme in a policy,
//! `thresholds.toml`, into tests: it runs the model with the quantized cache and with an unquantized one,
//! measures the KL divergence between their next-token distributions, judges it by the policy's limits, and
//! compares it with an accepted snapshot, the golden.
//!
//! # Usage
//!
//! A model's repository has a policy and a test target. `kvgate init` writes both; by hand they are:
//!
//! ```toml
//! # Cargo.toml
//! [dev-dependencies]
//! kvgate = { git = "https://github.com/OWNER/kvgate", default-features = false }
//!
//! [[test]]
//! name = "gate"
//! harness = false
//!
//! [profile.test.package."*"] # without these the engine is many times slower
//! opt-level = 3
//! debug-assertions = false
//! overflow-checks = false
//! ```
//!
//! ```no_run
//! // tests/gate.rs
//! fn main() -> std::process::ExitCode {
//!     kvgate::main()
//! }
//! ```
//!
//! ```toml
//! # thresholds.toml
//! [defaults]
//! corpus = "corpora/prose.txt"
//! context = 512
//! chunks = 16
//! limits = { mean_kld = 0.05, top1_agreement = 0.87 }
//!
//! [models.my-model]
//! path = "models/my-model.gguf"
//!
//! [models.my-model.schemes]
//! q8_0 = {}
//! q4_0 = { expect = "fail", reason = "K has outliers: recommend q8_0/q4_0" }
//! ```
//!
//! `cargo test --test gate` then runs the cases `my-model::q8_0::kld`, `my-model::q8_0::golden` and so on. The
//! program `kvgate`, which this package also builds, accepts goldens, posts the verdict to a pull request, and
//! measures without a policy.
//!
//! # A codec of your own
//!
//! [`Codec`] describes one way to store a head of K or V. [`Gate::codec`] adds it, so that schemes can name it:
//!
//! ```
//! use kvgate::Codec;
//!
//! /// Keeps the sign of each number, and nothing else.
//! struct SignOnly;
//!
//! impl Codec for SignOnly {
//!     fn name(&self) -> &str {
//!         "sign-only"
//!     }
//!     fn version(&self) -> &str {
//!         "1"
//!     }
//!     fn accepted_by(&self) -> &str {
//!         ""
//!     }
//!     fn is_rotated(&self) -> bool {
//!         false
//!     }
//!     fn block(&self, _head_dim: usize) -> usize {
//!         8
//!     }
//!     fn block_bytes(&self, _head_dim: usize) -> usize {
//!         1
//!     }
//!     fn encode(&self, x: &[f32], bytes: &mut [u8]) {
//!         for (x, byte) in x.chunks_exact(8).zip(bytes) {
//!             *byte = x.iter().enumerate().map(|(i, v)| u8::from(*v < 0.0) << i).sum();
//!         }
//!     }
//!     fn decode(&self, bytes: &[u8], x: &mut [f32]) {
//!         for (i, v) in x.iter_mut().enumerate() {
//!             *v = if bytes[i / 8] >> (i % 8) & 1 == 1 { -1.0 } else { 1.0 };
//!         }
//!     }
//! }
//!
//! let gate = kvgate::Gate::new().codec(SignOnly); // `gate.main()` is the test target
//! # let _ = gate;
//! ```
//!
//! # Results
//!
//! A run leaves `results.json`. Its types are in [`results`], for programs that read it.
//!
//! # Limits of this version
//!
//! - Models are computed on the CPU in f32, or on one CUDA card in arithmetic that keeps KL divergences right. What is
//!   measured is the scheme, not the kernels of a serving engine.
//! - Checkpoints are GGUF files, or folders of safetensors, of the families Llama, Mistral, Ministral 3, gpt-oss,
//!   Phi-3, SmolLM3, OLMo 2 and 3, Granite, GLM-4, Qwen2 to Qwen3.6, Qwen3-VL, and Gemma 2 to 4.
//!
//! # Features
//!
//! The first four are on by default. A test target needs none of them.
//!
//! - `git`: the commit in `results.json`, and what a pull request changes.
//! - `github`: comments, statuses and labels of pull requests.
//! - `hub`: fetches checkpoints of the Hugging Face hub. Without it, those that are in the hub's cache can be used.
//! - `reports`: HTML with plots, and JUnit's XML.
//! - `cuda`: kernels for CUDA cards. Building them needs nvcc, and the program then needs the card's driver to start. The
//!   environment variable `KVGATE_DEVICE` names the device of a test target: `auto`, `cpu` or `cuda:0`. `KVGATE_PRECISION`
//!   names the precision of schemes on a card: `differences` or `whole`.
//!
//! # The layers
//!
//! A file imports only from lower layers, which are those above it here, and from its own. `→` goes one layer up,
//! and entries with `·` between them do not import each other. A test holds every file to this.
//!
//! ```text
//! tools      text → files → hash → progress
//! findings   results
//! engine     compute → kv → source → model → measure
//! judgement  policy → golden → judge
//! outside    report · repo · github · logs
//! gate       gate → proposal → init → explain → suggest → cli → entry
//! ```
#![deny(unsafe_code)]

mod cli;
mod compute;
mod entry;
mod explain;
mod files;
mod gate;
#[cfg(feature = "github")]
mod github;
mod golden;
mod hash;
mod init;
mod judge;
mod kv;
mod logs;
mod measure;
mod model;
mod policy;
mod progress;
#[cfg(feature = "git")]
mod proposal;
mod repo;
mod report;
pub mod results;
mod source;
mod suggest;
#[cfg(test)]
mod testing;
mod text;

pub use entry::{main, Gate};
pub use kv::codec::{Codec, Exactness, RegisterError};
pub use kv::exact::{Exact, Tail};

/// What this repository's own tests and benchmarks reach for. It is no part of the crate's interface: anything in
/// it may change in any release.
#[doc(hidden)]
pub mod internals {
    macro_rules! reach {
        ($($(#[$condition:meta])* $module:ident),* $(,)?) => {
            $($(#[$condition])* pub mod $module { pub use crate::$module::*; })*
        };
    }

    reach! {
        cli, compute, explain, gate, golden, hash, judge, kv, logs, measure, model, policy, repo, report, results, source,
        suggest,
        #[cfg(feature = "github")]
        github,
        #[cfg(feature = "git")]
        proposal,
    }
}
