//! What a run found: `results.json`, format 1.
//!
//! One file holds the measurements (statistics with their parts and both halves of provenance) and
//! the verdicts of the policy that the run was made under. Goldens are accepted from it, and reports
//! are rendered from it, without a model.

pub mod case;
pub mod json;
pub mod measured_by;
pub mod replay;
pub mod shape;
pub mod sidecar;
pub mod statistics;
pub mod verdict;

use crate::results::replay::{Generated, Replay};
use crate::results::shape::Shape;
use crate::results::statistics::{Part, Statistics};
use crate::results::verdict::{JudgedLimit, Verdict};
use serde::{Deserialize, Serialize};

/// What measured, as reports name it.
pub const ENGINE: &str = concat!("kvgate ", env!("CARGO_PKG_VERSION"));

/// Version of the file format. Readers refuse any other.
pub const FORMAT: u32 = 1;

/// A whole run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    /// [`FORMAT`]
    pub format: u32,
    /// What measured: `kvgate 0.1.0`.
    pub engine: String,
    /// Commit of the repository that the policy lives in, if it is one.
    pub head: Option<String>,
    /// The policy that the verdicts are of; none for `kvgate measure`.
    pub policy: Option<PolicyFile>,
    /// One entry for each model and way of measuring it.
    pub measurements: Vec<Measurement>,
    /// One entry for each case that was selected.
    pub cases: Vec<CaseResult>,
    /// Models of the policy that the run left out because nothing that they depend on has changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_needed: Vec<String>,
    /// What was found beside the cases. Whoever judges anew finds anew.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

impl Results {
    /// Of kvgate's own engine, of no commit and no policy.
    pub fn new(measurements: Vec<Measurement>, cases: Vec<CaseResult>) -> Self {
        Results {
            format: FORMAT,
            engine: ENGINE.into(),
            head: None,
            policy: None,
            measurements,
            cases,
            not_needed: Vec::new(),
            findings: Vec::new(),
        }
    }
}

/// Something about a change that no case says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `policy::weakened`
    pub name: String,
    /// File and line, where there is one: `thresholds.toml:12`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// What was found, and the mend.
    pub message: String,
    /// Whether the gate must not be green with it.
    pub is_red: bool,
}

/// The policy of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyFile {
    /// As it was named.
    pub path: String,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
}

/// All schemes of one model, measured in one pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measurement {
    /// The model as cases name it: `gemma-3-270m` or `gemma-3-270m@long`.
    pub model: String,
    /// What was measured; when it changes, values are compared and must be accepted.
    pub subject: Subject,
    /// How it was measured; when it changes, goldens are stale.
    pub conditions: Conditions,
    /// Facts about this run that no verdict depends on.
    pub run: RunInfo,
    /// The lanes that prove that the ruler works, each on the first chunks.
    pub controls: Vec<Control>,
    /// One entry for each scheme, in the policy's order.
    pub schemes: Vec<SchemeResult>,
    /// The baseline's text, where the policy names prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated: Option<Generated>,
}

/// First half of provenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// SHA-256 of the weights file.
    pub weights_sha256: String,
    /// SHA-256 of a tokenizer file of its own, where the weights file does not hold it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tokenizer_sha256: Option<String>,
    /// Architecture as the checkpoint names it.
    pub architecture: String,
}

/// Second half of provenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conditions {
    /// Stem and SHA-256 of each corpus file, in the policy's order.
    pub corpus: Vec<CorpusFile>,
    /// Tokens in a chunk.
    pub context: usize,
    /// Chunks measured.
    pub chunks: usize,
    /// Effective scheme of the baseline.
    pub baseline: String,
    /// What measured, with its version.
    pub engine: String,
    /// `cpu`, `cuda` or `metal`.
    pub device: String,
    /// How weights were stored: `f32` or `bf16`.
    pub weights: String,
    /// How the checkpoint was read, where that is not what kvgate 0.1.0 did or where the policy asked for
    /// something special: `bos 2`, `bos none`, `untrained`, `ignored key llama.foo`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reading: Vec<String>,
    /// Prompts, template and length of the text that the baseline writes, where there are prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<String>,
    /// What else a scheme's values depend on: a calibration, a codec from outside. Of a measurement
    /// nothing; of a golden what its scheme needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
}

/// One file of a corpus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorpusFile {
    /// The file's stem: the category of its chunks.
    pub category: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
}

/// Facts about a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunInfo {
    /// Perplexity of the baseline.
    pub baseline_ppl: f64,
    /// The device in words.
    pub device: String,
    /// Type of activations and products: `f32`.
    pub dtype: String,
    /// Wall time, loading included.
    pub seconds: f64,
    /// Peak resident memory of the process, in bytes.
    pub peak_bytes: u64,
    /// Remarks, such as a context beyond what the model was trained for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A control lane: what it was for, and whether it read as it must.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Control {
    /// `identity` or `bad lane`.
    pub name: String,
    /// What ran.
    pub effective: String,
    /// Its mean KLD on the first chunks, in nats; none if it could not be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_kld: Option<f64>,
    /// Its top-1 agreement on the first chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<f64>,
    /// What it must read, in words.
    pub must: String,
    /// Whether it did.
    pub ok: bool,
}

/// One scheme of one model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SchemeResult {
    /// The scheme's label in the policy, which cases are named after.
    pub scheme: String,
    /// The scheme that really ran, read from the cache.
    pub effective: String,
    /// A calibration, or a codec from outside, that its values depend on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// What it costs to store; none for a scheme that does not fit the model.
    #[serde(flatten)]
    pub storage: Option<Storage>,
    /// What it makes of the baseline's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
    /// How its divergence is spread, for people: no verdict rests on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Shape>,
    /// Numbers, or why there are none.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What a scheme costs, and how much of it was at work.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Storage {
    /// Bits of an encoded element, scales included.
    pub bits_per_element: Sides,
    /// The same over all that is kept at the measured context, exact tails and sinks included.
    pub bits_at_context: Sides,
    /// Bytes that a token adds to the cache, once encoded.
    pub bytes_per_token: f64,
    /// Bytes at the measured context over those of f16.
    pub ratio_to_f16: f64,
    /// Share of the scored queries' pairs with a key that they see that read a quantized key; 1 without
    /// exact tails and sinks.
    pub charged_share: Sides,
    /// Share of scales that stand at a limit which their format sets to them; none for most formats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clamped_scales: Option<f64>,
}

/// Bits per element for people: four decimals at most.
pub(crate) fn shown_bits(bits: f64) -> f64 {
    (bits * 1e4).round() / 1e4
}

impl From<[f64; 2]> for Sides {
    fn from([k, v]: [f64; 2]) -> Self {
        Sides { k, v }
    }
}

impl Control {
    /// Its mean KLD for people.
    #[must_use]
    pub fn reading(&self) -> String {
        self.mean_kld.map_or("nothing".into(), |kld| format!("{kld:.4}"))
    }
}

/// A number for K and one for V.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sides {
    /// Of K.
    pub k: f64,
    /// Of V.
    pub v: f64,
}

/// What measuring a scheme gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Outcome {
    /// Numbers.
    Measured {
        /// The statistics that limits and goldens look at.
        #[serde(flatten)]
        statistics: Statistics,
        /// The sums that they are made of, per chunk.
        parts: Vec<Part>,
    },
    /// No numbers: what went wrong, where, and the mend.
    Failed {
        /// The whole message.
        error: String,
    },
}

/// A case and its verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseResult {
    /// `model::scheme::kld` or `model::scheme::golden`.
    pub case: String,
    /// The verdict.
    pub verdict: Verdict,
    /// What people read when it is not as the policy wants; empty for a plain pass.
    pub message: String,
    /// Of a `kld` case, the limits that were judged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<JudgedLimit>,
    /// Of a `golden` case, its values then and now; empty where they say nothing about each other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Moved>,
}

impl CaseResult {
    /// A verdict without numbers.
    pub fn new(case: impl ToString, verdict: Verdict, message: impl Into<String>) -> Self {
        let (case, message) = (case.to_string(), message.into());
        CaseResult { case, verdict, message, limits: Vec::new(), changes: Vec::new() }
    }

    /// Model and scheme of its name.
    #[must_use]
    pub fn words(&self) -> (&str, &str) {
        case::model_and_scheme(&self.case)
    }
}

/// A value in the golden, and now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// The statistic's name.
    pub name: String,
    /// The golden's.
    pub golden: f64,
    /// Now.
    pub now: f64,
    /// Whether it is as near to the golden as it must be.
    pub within: bool,
}
