//! What a scheme costs to store.

use serde::{Deserialize, Serialize};

/// What a scheme costs to store, and how much of what was scored it quantized.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Storage {
    /// Bits of a quantized element, its share of the scales included.
    pub bits_per_element: Sides,
    /// Bits per element over the whole cache at the measured context, including the tokens that the scheme leaves
    /// exact.
    pub bits_at_context: Sides,
    /// Bytes that one more quantized token adds to the cache.
    pub bytes_per_token: f64,
    /// Bytes of the cache at the measured context, divided by the bytes of an f16 cache.
    pub ratio_to_f16: f64,
    /// Of all pairs of a scored query and a key that it sees, the share in which the key was quantized. It is 1 if the
    /// scheme leaves no token exact.
    pub charged_share: Sides,
    /// The share of scales that were clamped to the largest or smallest value of their format. None for formats whose
    /// scales need no clamping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clamped_scales: Option<f64>,
}

/// A number for K and one for V.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sides {
    /// The number for K.
    pub k: f64,
    /// The number for V.
    pub v: f64,
}

impl From<[f64; 2]> for Sides {
    fn from([k, v]: [f64; 2]) -> Self {
        Sides { k, v }
    }
}

/// Bits per element as people read them: with four decimals at most.
pub(crate) fn shown_bits(bits: f64) -> f64 {
    (bits * 1e4).round() / 1e4
}
