//! Intervals of quantiles, by inverting a test (Woodruff, 1952): a value x may be the quantile f if the share of positions
//! above x may be 1 - f, by the interval of that share.

use super::chunks::{Chunks, Unseen};
use super::{per_token, step, Interval, NoInterval};
use crate::results::shape::{begin, BINS};
use crate::results::statistics::Part;

/// How many values are tried in each bin of the histogram.
const STEPS: usize = 8;

/// The interval of the quantile `f` of KLD.
///
/// # Errors
/// If a part has no histogram.
pub(super) fn interval(parts: &[Part], f: f64, confidence: f64) -> Result<Interval, NoInterval> {
    let pooled = Pooled::of(parts)?;
    // the tail can be that of a few chunks, and half of the positions cannot
    let unseen = if f > 0.5 { Unseen::DIVERGENCE } else { Unseen::SHARE };
    let share = |value: &Value| {
        let above = |part: &Part| per_token(part, value.above(&part.histogram));
        Chunks::of_ratios(parts, unseen, &above).mean_of_ratios(confidence, step(parts))
    };
    let values: Vec<_> = pooled.values().collect();
    let (mut low, mut high) = (0.0, f64::INFINITY);
    // the share above a value falls with the value
    if let Some(first) = values.iter().find(|value| share(value).low <= 1.0 - f) {
        low = first.kld;
    }
    if let Some(first) = values.iter().find(|value| share(value).high < 1.0 - f) {
        high = first.kld;
    }
    Ok(Interval { low, high })
}

/// The quantile itself, as the histograms show it.
///
/// # Errors
/// If a part has no histogram.
pub(super) fn value(parts: &[Part], f: f64) -> Result<f64, NoInterval> {
    let (pooled, tokens) =
        (Pooled::of(parts)?, parts.iter().map(|part| part.tokens as f64).sum::<f64>());
    let above = |value: &Value| parts.iter().map(|part| value.above(&part.histogram)).sum::<f64>();
    let found = pooled.values().find(|value| above(value) <= (1.0 - f) * tokens);
    Ok(found.map_or(f64::INFINITY, |value| value.kld))
}

/// A value of KLD, as a place in the histogram.
struct Value {
    kld: f64,
    bin: usize,
    /// The share of the bin's positions that lie above the value.
    above: f64,
}

impl Value {
    /// How many positions lie above it.
    fn above(&self, histogram: &[u64]) -> f64 {
        let count = |count: u64| count as f64;
        let higher: f64 = histogram[self.bin + 1..].iter().copied().map(count).sum();
        higher + self.above * count(histogram[self.bin])
    }
}

/// The histogram of all chunks together.
struct Pooled {
    /// How many positions lie in each bin or above.
    from: [f64; BINS + 1],
}

impl Pooled {
    fn of(parts: &[Part]) -> Result<Self, NoInterval> {
        if parts.iter().any(|part| part.histogram.len() != BINS) {
            return Err(NoInterval::NoHistograms);
        }
        let mut from = [0.0; BINS + 1];
        for bin in (0..BINS).rev() {
            let own: u64 = parts.iter().map(|part| part.histogram[bin]).sum();
            from[bin] = from[bin + 1] + own as f64;
        }
        Ok(Pooled { from })
    }

    /// Values to try, from the smallest on.
    fn values(&self) -> impl Iterator<Item = Value> + '_ {
        (0..BINS).flat_map(move |bin| (0..STEPS).map(move |step| self.value(bin, step)))
    }

    /// A value within a bin. Shares above it are taken to fall by a power of the value there, and in proportion where
    /// nothing lies above the bin.
    fn value(&self, bin: usize, step: usize) -> Value {
        let part = step as f64 / STEPS as f64;
        let [here, next] = [self.from[bin], self.from[bin + 1]];
        let above =
            if next > 0.0 { here.powf(1.0 - part) * next.powf(part) } else { here * (1.0 - part) };
        let above = if here > next { (above - next) / (here - next) } else { 0.0 };
        let kld = match bin {
            0 => begin(1) * part,
            _ => begin(bin) * (begin(2) / begin(1)).powf(part),
        };
        Value { kld, bin, above }
    }
}
