//! What a run found, as `results.json` holds it, in format 2.
//!
//! The file holds the measurements (statistics, the sums that they are made of, and where they come from) and the
//! verdicts of the policy that the run was made under. Goldens are accepted from it and reports are rendered from it,
//! neither of which needs a model. [`json::read`] reads it into [`Results`].
//!
//! A type here is serialized as its fields stand, except where a field says `flatten`: the fields of
//! [`Storage`] and of [`Outcome`] stand among those of their [`SchemeResult`], and those of
//! [`Statistics`](statistics::Statistics) among those of their outcome.
#![deny(missing_docs)]

pub mod case;
mod control;
mod decision;
pub mod json;
mod look;
pub mod measured_by;
mod measurement;
mod provenance;
pub mod replay;
pub mod retrieval;
pub mod shape;
pub(crate) mod sidecar;
pub mod statistics;
mod storage;
pub mod verdict;

pub use control::{Control, BAD_LANE, CONTROLS, IDENTITY};
pub use look::Look;
pub(crate) use look::Seen;
pub use measurement::{Card, Floor, Measurement, Outcome, RunInfo, SchemeResult};
pub use provenance::{Conditions, CorpusFile, Subject};
pub(crate) use storage::shown_bits;
pub use storage::{Sides, Storage};
pub use verdict::{CaseResult, Moved};

use serde::{Deserialize, Serialize};

/// This crate and its version, as results and goldens name the engine that measured.
pub const ENGINE: &str = concat!("kvgate ", env!("CARGO_PKG_VERSION"));

/// The version of the file format that is written. Readers refuse what is neither this one nor [`OLDEST_FORMAT`] or any
/// between.
pub const FORMAT: u32 = 2;

/// The oldest version that is read. Format 1 has no histograms of chunks and no intervals.
pub const OLDEST_FORMAT: u32 = 1;

/// A whole run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    /// The version of the file format: [`FORMAT`].
    pub format: u32,
    /// The engine that measured, with its version: `kvgate 0.1.0`.
    pub engine: String,
    /// The commit of the repository that the policy lies in. None outside of a repository.
    pub head: Option<String>,
    /// The policy that the verdicts follow from. None for `kvgate measure`, which knows no policy.
    pub policy: Option<PolicyFile>,
    /// One entry for each model and way of measuring it.
    pub measurements: Vec<Measurement>,
    /// One entry for each case that was selected.
    pub cases: Vec<CaseResult>,
    /// Models of the policy that the run left out, because nothing that they depend on has changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_needed: Vec<String>,
    /// Findings that belong to no case, such as a loosened policy. They are computed again whenever results are judged
    /// again; what a file claims here is ignored then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

impl Results {
    /// Results of this version of kvgate, without a commit and without a policy.
    #[must_use]
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

/// A finding about a change that belongs to no case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The kind of the finding: `policy::weakened`.
    pub name: String,
    /// File and line, if the finding has a place: `thresholds.toml:12`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// What was found, and what to do about it.
    pub message: String,
    /// Whether the gate must not be green with this finding.
    pub is_red: bool,
}

/// The policy of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyFile {
    /// The file's path, as it was named.
    pub path: String,
    /// SHA-256 of the file's bytes, in hex.
    pub sha256: String,
}
