//! Where a measurement comes from.
//!
//! Provenance has two halves. A new *subject* is what a gate is for: its values are compared with the golden, and a
//! change of them must be accepted. Under new *conditions* the values cannot be compared: the golden is stale.

use serde::{Deserialize, Serialize};

/// What was measured: the first half of provenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// SHA-256 of the file or files of weights, in hex.
    pub weights_sha256: String,
    /// SHA-256 of the tokenizer's file. None if the file of weights holds the tokenizer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tokenizer_sha256: Option<String>,
    /// The architecture as the checkpoint names it.
    pub architecture: String,
}

/// How something was measured: the second half of provenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conditions {
    /// The files of the corpus, in the policy's order.
    pub corpus: Vec<CorpusFile>,
    /// Tokens in a chunk.
    pub context: usize,
    /// Chunks that were measured.
    pub chunks: usize,
    /// The effective scheme of the baseline.
    pub baseline: String,
    /// The engine that measured, with its version.
    pub engine: String,
    /// The kind of device: `cpu`, `cuda` or `metal`.
    pub device: String,
    /// The type that weights had when they were multiplied: `f32` or `bf16`.
    pub weights: String,
    /// How the checkpoint was read, if the policy asked for something special or kvgate 0.1.0 would have read it in
    /// another way: `bos 2`, `bos none`, `untrained`, `ignored key llama.foo`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reading: Vec<String>,
    /// The prompts, the chat template and the length of the baseline's text, if the policy names prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<String>,
    /// What a scheme's values depend on beside all this: a calibration, or a codec that another crate
    /// brought. It is empty in the conditions of a measurement, where each scheme has
    /// [`needs`](super::SchemeResult::needs) of its own, and filled in those of a golden, which is of one
    /// scheme.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
}

/// One file of a corpus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorpusFile {
    /// The stem of the file's name. It is the category of the file's chunks.
    pub category: String,
    /// SHA-256 of the file's bytes, in hex.
    pub sha256: String,
}
