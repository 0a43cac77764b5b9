//! How a scheme's divergence is spread over positions: what people look at, and no verdict.

use serde::{Deserialize, Serialize};

/// Bins of the histogram: one below [`LOWEST`], a quarter of a decade each, one above.
pub const BINS: usize = 34;

/// Decimal logarithm of the KLD, in nats, where the second bin begins.
pub const LOWEST: f64 = -7.0;

/// Bins in a factor of ten.
pub const PER_DECADE: f64 = 4.0;

/// The spread of one scheme's KLD.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    /// Positions by KLD, in [`BINS`] bins.
    pub histogram: Vec<u64>,
    /// Mean KLD, in nats, in runs of positions as they stand in their chunk.
    pub by_position: Vec<Run>,
    /// The largest KLDs with their words, the worst first.
    pub worst: Vec<WorstToken>,
}

/// Some neighbouring positions of every chunk.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The first of them, counted from the chunk's start.
    pub from: usize,
    /// Mean KLD in nats.
    pub mean_kld: f64,
}

/// A position where a scheme parts from the baseline, in words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorstToken {
    /// Category of the corpus.
    pub category: String,
    /// Number of the chunk within its category.
    pub chunk: usize,
    /// Position within the chunk.
    pub position: usize,
    /// KLD in nats.
    pub kld: f64,
    /// The text that both have read, its end.
    pub context: String,
    /// What follows in the corpus.
    pub target: String,
    /// What the baseline holds most likely.
    pub baseline: String,
    /// What the scheme holds most likely.
    pub scheme: String,
    /// Probability of `target`: the baseline's, the scheme's.
    pub p: [f64; 2],
}
