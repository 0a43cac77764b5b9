//! How sure a statistic is: the interval that holds, with a confidence, what a long text of the same categories would
//! give.
//!
//! The unit is the chunk. Positions of one chunk share its text and its cache, so they say less than as many independent
//! ones; the standard errors of [`Statistics`], which are llama.cpp's, do not know that.

mod chunks;
mod needles;
mod quantile;
#[cfg(test)]
mod tests;

use crate::golden::ChunkMeans;
pub use crate::results::statistics::LEAST_CHUNKS;
use crate::results::statistics::{Part, Statistic, Statistics};
use chunks::{Chunks, Unseen};
pub use needles::{of_answers, of_share};

/// The confidence of intervals that are shown where nobody asks for another.
pub const SHOWN: f64 = 0.95;

/// The interval, at the confidence [`SHOWN`], of how far the mean KLD has moved from that of a golden, from the differences
/// of the same chunks. Chunks move together, so it is much narrower than the intervals of both means are. None if there are
/// too few chunks, or not the same.
#[must_use]
pub fn of_change(parts: &[Part], golden: &ChunkMeans) -> Option<[f64; 2]> {
    if parts.len() < LEAST_CHUNKS || parts.iter().any(|part| golden.get(part).is_none()) {
        return None;
    }
    let moved = |part: &Part| per_token(part, part.kld) - golden.get(part).unwrap_or(f64::NAN);
    let found = Chunks::of_differences(parts, Unseen::CHANGE, &moved).mean_of_differences(SHOWN);
    Some([found.low, found.high])
}

/// The quantile of chunks together as their histograms show it, in nats: within a few percent of that of the positions.
/// NaN if a chunk has no histogram.
pub fn quantile_of(parts: &[Part], f: f64) -> f64 {
    quantile::value(parts, f).unwrap_or(f64::NAN)
}

/// Two ends of a range of values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    pub low: f64,
    /// It is infinite if nothing bounds the value from above.
    pub high: f64,
}

/// Why a statistic has no interval, so that its value counts as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoInterval {
    #[error("{0} chunks are too few for an interval, which needs {LEAST_CHUNKS}")]
    FewChunks(usize),
    #[error("{0} contexts are too few for an interval, which needs {LEAST_CHUNKS}")]
    FewContexts(usize),
    #[error("what measured gives no values of chunks")]
    NoParts,
    #[error(
        "what measured gives no histograms of chunks, of which the interval of a quantile is made"
    )]
    NoHistograms,
    #[error("so few positions decide the value that chunks say nothing of it")]
    FewPositions,
    #[error("it is about the model on this text, and not about a scheme")]
    OfTheModel,
}

/// Whether a statistic has an interval if there are enough chunks, so that more chunks make its value surer.
pub fn may_have_one(statistic: Statistic) -> bool {
    !matches!(statistic, Statistic::P999Kld | Statistic::MaxKld | Statistic::BaselinePpl)
}

/// The interval of a statistic, two-sided: each of its ends is meant to miss in (1 - `confidence`)/2 of all draws of
/// chunks. `docs/intervals.md` has how often they did.
///
/// # Errors
/// Why it has none.
pub fn of(
    statistic: Statistic,
    statistics: &Statistics,
    parts: &[Part],
    confidence: f64,
) -> Result<Interval, NoInterval> {
    match parts.len() {
        0 => return Err(NoInterval::NoParts),
        few if few < LEAST_CHUNKS => return Err(NoInterval::FewChunks(few)),
        _ => (),
    }
    if parts.iter().all(|part| part.kld == 0.0) {
        // equal distributions everywhere: nothing is lost, and that is no matter of chance
        let value = statistics.get(statistic);
        return Ok(Interval { low: value, high: value });
    }
    let ratios = |unseen: Unseen, step: f64, value: &dyn Fn(&Part) -> f64| {
        Chunks::of_ratios(parts, unseen, value).mean_of_ratios(confidence, step)
    };
    let differences = |value: &dyn Fn(&Part) -> f64| {
        Chunks::of_differences(parts, Unseen::SQUARE, value).mean_of_differences(confidence)
    };
    let interval = match statistic {
        Statistic::MeanKld => ratios(Unseen::DIVERGENCE, 0.0, &|part| per_token(part, part.kld)),
        Statistic::Top1Agreement => {
            let misses = ratios(Unseen::SHARE, step(parts), &|part| per_token(part, flips(part)));
            Interval { low: 1.0 - misses.high, high: 1.0 - misses.low }
        }
        Statistic::RmsDp => {
            ratios(Unseen::SQUARE, 0.0, &|part| per_token(part, part.dp2)).map(f64::sqrt)
        }
        Statistic::Ppl => differences(&|part| per_token(part, part.nll)).map(f64::exp),
        Statistic::PplRatio => {
            differences(&|part| per_token(part, part.nll - part.nll_base)).map(f64::exp)
        }
        Statistic::MedianKld => quantile::interval(parts, 0.5, confidence)?,
        Statistic::P90Kld => quantile::interval(parts, 0.9, confidence)?,
        Statistic::P95Kld => quantile::interval(parts, 0.95, confidence)?,
        Statistic::P99Kld => quantile::interval(parts, 0.99, confidence)?,
        Statistic::P999Kld | Statistic::MaxKld => return Err(NoInterval::FewPositions),
        Statistic::BaselinePpl => return Err(NoInterval::OfTheModel),
    };
    Ok(interval.around(statistics.get(statistic)).within(statistic.range()))
}

impl Interval {
    fn map(self, of: impl Fn(f64) -> f64) -> Self {
        Interval { low: of(self.low), high: of(self.high) }
    }

    /// Widened so that it holds a value, which may have been computed in another way than its ends.
    fn around(self, value: f64) -> Self {
        Interval { low: self.low.min(value), high: self.high.max(value) }
    }

    /// Cut to what a statistic can be.
    fn within(self, (least, most): (f64, f64)) -> Self {
        Interval { low: self.low.max(least), high: self.high.min(most) }
    }
}

fn per_token(part: &Part, sum: f64) -> f64 {
    sum / part.tokens as f64
}

fn flips(part: &Part) -> f64 {
    part.tokens.saturating_sub(part.same_top) as f64
}

/// The share that one position has in a chunk.
fn step(parts: &[Part]) -> f64 {
    parts.first().map_or(0.0, |part| per_token(part, 1.0))
}
