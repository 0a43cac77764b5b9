//! What was measured of a model.

use super::control::Control;
use super::look::{Look, Seen};
use super::provenance::{Conditions, Subject};
use super::replay::{Generated, Replay};
use super::retrieval::{Haystacks, Retrieved};
use super::shape::Shape;
use super::statistics::{Part, Statistics};
use super::storage::Storage;
use serde::{Deserialize, Serialize};

/// All schemes of one model, measured in one pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measurement {
    /// The model as cases name it: `gemma-3-270m` or `gemma-3-270m@long`.
    pub model: String,
    /// What was measured. When it changes, values are compared with the golden and must be accepted.
    pub subject: Subject,
    /// How it was measured. When it changes, the golden is stale and its values say nothing.
    pub conditions: Conditions,
    /// Facts about this run that no verdict depends on.
    pub run: RunInfo,
    /// The control lanes, which show that the measurement itself works. They run on the first chunks only.
    pub controls: Vec<Control>,
    /// What the baseline reads against itself if it is computed in other batches. None in files of format 1, where it
    /// could not be measured, and for other engines unless there is a log of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Floor>,
    /// One entry for each scheme, in the policy's order.
    pub schemes: Vec<SchemeResult>,
    /// The text that the baseline wrote after each prompt, if the policy names prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated: Option<Generated>,
    /// The long contexts from which schemes had to retrieve something, if the policy names lengths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub haystacks: Option<Haystacks>,
}

/// Facts about a run that no verdict depends on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunInfo {
    /// Perplexity of the baseline.
    pub baseline_ppl: f64,
    /// A description of the device, for people.
    pub device: String,
    /// The type of activations and products: `f32`.
    pub dtype: String,
    /// The arithmetic in words. Files of earlier states of kvgate and those of other engines do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arithmetic: Option<String>,
    /// The card that computed. None if it was the CPU, or if the file does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<Card>,
    /// Wall-clock time in seconds, loading included.
    pub seconds: f64,
    /// Peak resident memory of the process, in bytes.
    pub peak_bytes: u64,
    /// Remarks for people, such as that the context is longer than the model was trained for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A card that computed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// As its driver calls it.
    pub name: String,
    /// The newest version of CUDA that the driver knows, the driver's own version if it is known, and the version of
    /// cuBLAS, such as `13.0 (580.65.06), cuBLAS 13.1.0`.
    pub driver: String,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// The most bytes of its memory that were taken at once since the run opened it. None if the driver does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
}

/// The divergence between two computations of the unquantized cache, in which nothing differs but the order of sums.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Floor {
    /// Its mean KLD on the first chunks, in nats.
    pub mean_kld: f64,
    /// How many positions that is the mean of.
    pub tokens_scored: u64,
    /// How many tokens the other batches have. 0 if another engine does not say it.
    pub batch: usize,
}

/// One scheme of one model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SchemeResult {
    /// The scheme's label in the policy. Its cases are named after it.
    pub scheme: String,
    /// The scheme that really ran on this model, as the cache reports it.
    pub effective: String,
    /// What the values depend on beside the measurement's conditions: a calibration, or a codec that another crate
    /// brought.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// What the scheme costs to store. None if the scheme does not fit the model.
    #[serde(flatten)]
    pub storage: Option<Storage>,
    /// How the scheme does on the baseline's text, if the policy names prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
    /// What the scheme retrieves from long contexts, an entry for each length that the policy names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retrieved: Vec<Retrieved>,
    /// How the divergence is distributed. It is for people; no verdict depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Shape>,
    /// The statistics, or why there are none.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Outcome {
    /// What had been measured at the look at so many chunks, or at the first look. None if there are no numbers.
    pub(crate) fn seen_at(&self, chunks: Option<usize>) -> Option<Seen<'_>> {
        let Outcome::Measured { statistics, parts, looks } = self else { return None };
        let mut all = Seen::all(statistics, parts, looks);
        let first = all.next()?;
        Some(all.find(|seen| Some(seen.parts.len()) == chunks).unwrap_or(first))
    }

    /// What was measured in one look.
    #[must_use]
    pub fn measured(statistics: Statistics, parts: Vec<Part>) -> Self {
        Outcome::Measured { statistics, parts, looks: Vec::new() }
    }
}

/// What measuring a scheme gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Outcome {
    /// The scheme was measured.
    Measured {
        /// The statistics that limits and goldens look at.
        #[serde(flatten)]
        statistics: Statistics,
        /// The sums that the statistics are made of, one entry a chunk.
        parts: Vec<Part>,
        /// Further chunks, which were measured because the first ones left the verdict open. Goldens do not know them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        looks: Vec<Look>,
    },
    /// The scheme could not be measured.
    Failed {
        /// What went wrong, where, and what to do about it.
        error: String,
    },
}
