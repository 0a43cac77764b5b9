//! Control lanes, which show that a measurement itself works.

use serde::{Deserialize, Serialize};

/// The control lane of the baseline against itself.
pub const IDENTITY: &str = "identity";

/// The control lane of a deliberately damaged cache.
pub const BAD_LANE: &str = "bad lane";

/// The control lanes that every run carries, in the order in which they run.
pub const CONTROLS: [&str; 2] = [IDENTITY, BAD_LANE];

/// A control lane: a scheme whose result is known beforehand. If it reads something else, nothing of the
/// measurement can be trusted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Control {
    /// One of [`CONTROLS`].
    pub name: String,
    /// The scheme that ran.
    pub effective: String,
    /// Mean KLD on the first chunks, in nats. None if it could not be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_kld: Option<f64>,
    /// Top-1 agreement on the first chunks. None if it could not be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<f64>,
    /// The mean KLD that the lane must read, in words.
    pub must: String,
    /// Whether it did.
    pub ok: bool,
}

impl Control {
    /// The mean KLD as people read it.
    #[must_use]
    pub fn reading(&self) -> String {
        self.mean_kld.map_or("nothing".into(), |kld| format!("{kld:.4}"))
    }
}
