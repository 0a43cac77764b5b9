//! How a scheme's divergence is distributed over positions. [`Shape`] is for people; no verdict depends on it. The
//! histogram's bins are also those of the histograms of chunks, from which intervals of quantiles follow.

use serde::{Deserialize, Serialize};

/// The number of bins of the histogram. The first one is below [`LOWEST`], the last one is open above, and each bin in
/// between is a quarter of a decade wide.
pub const BINS: usize = 34;

/// The decimal logarithm of the KLD in nats at which the second bin begins.
pub const LOWEST: f64 = -7.0;

/// The number of bins in a factor of ten.
pub const PER_DECADE: f64 = 4.0;

/// The bin that a KLD belongs to. A KLD that rounding made negative belongs to the first one.
#[must_use]
pub fn bin(kld: f32) -> usize {
    let at = (f64::from(kld).log10() - LOWEST) * PER_DECADE;
    if at >= 0.0 {
        (at as usize + 1).min(BINS - 1)
    } else {
        0
    }
}

/// How many KLDs belong to each bin.
#[must_use]
pub fn histogram(klds: impl Iterator<Item = f32>) -> Vec<u64> {
    let mut histogram = vec![0; BINS];
    for kld in klds {
        histogram[bin(kld)] += 1;
    }
    histogram
}

/// The KLD in nats at which a bin begins. That of the first bin is 0.
#[must_use]
pub fn begin(bin: usize) -> f64 {
    match bin.checked_sub(1) {
        None => 0.0,
        Some(above) => 10f64.powf(LOWEST + above as f64 / PER_DECADE),
    }
}

/// The distribution of one scheme's KLD.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    /// The number of positions in each of [`BINS`] bins of the KLD.
    pub histogram: Vec<u64>,
    /// The mean KLD of runs of positions, in the order in which they stand in their chunks.
    pub by_position: Vec<Run>,
    /// The positions with the largest KLD, the worst first.
    pub worst: Vec<WorstToken>,
}

/// Some neighbouring positions, taken over all chunks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The first of the positions, counted from the chunk's start.
    pub from: usize,
    /// Mean KLD in nats.
    pub mean_kld: f64,
}

/// A position at which a scheme differs much from the baseline, in words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorstToken {
    /// The category of the chunk.
    pub category: String,
    /// The number of the chunk within its category.
    pub chunk: usize,
    /// The position within the chunk.
    pub position: usize,
    /// KLD in nats.
    pub kld: f64,
    /// The end of the text that both have read.
    pub context: String,
    /// The token that follows in the corpus.
    pub target: String,
    /// The baseline's most likely token.
    pub baseline: String,
    /// The scheme's most likely token.
    pub scheme: String,
    /// The probability of `target`: the baseline's, then the scheme's.
    pub p: [f64; 2],
}
