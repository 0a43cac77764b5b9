//! Intervals of the mean of chunk values.
//!
//! Chunks of a category are like each other, and categories are not. So a chunk's value is compared with the mean of its
//! category, and what is left is taken as one sample of all categories together. Its spread gives the standard error, with
//! as many degrees of freedom as there are chunks more than categories. What is left is the difference to the mean. If
//! values cannot be negative, it is also taken relative to the mean, and the wider interval counts: a category of which
//! few chunks were seen borrows the relative spread of the others, but not where its own is larger.
//!
//! The values are skewed: a few chunks can hold most of a scheme's divergence, and a sample that missed them looks
//! harmless. So an upper end is not taken from the sample alone, but from the sample and one chunk more, which nobody has
//! seen, and which is some [times](Unseen) as far above the mean as the farthest chunk that was seen. `docs/intervals.md` has
//! the coverage that was measured.

use super::Interval;
use crate::results::statistics::Part;
use std::collections::BTreeMap;

/// How much farther above its mean than the farthest chunk the unseen one is. The numbers were chosen by coverage: with
/// them intervals of three real models missed in fewer than 7 of 100 draws of 8, 16 and 32 chunks.
#[derive(Clone, Copy)]
pub(super) struct Unseen(f64);

impl Unseen {
    /// For shares of positions among which many count.
    pub const SHARE: Self = Unseen(1.5);
    /// For changes of means of divergences on the same chunks, which move together.
    pub const CHANGE: Self = Unseen(1.5);
    /// For means of divergences, and for shares of positions with large ones.
    pub const DIVERGENCE: Self = Unseen(3.0);
    /// For means of what is decided by few positions of a chunk: squares, and differences that may cancel.
    pub const SQUARE: Self = Unseen(5.0);
}

/// A value of each chunk, by category.
pub(super) struct Chunks {
    categories: Vec<Vec<f64>>,
    unseen: Unseen,
}

impl Chunks {
    /// Values that cannot be negative, for [`Chunks::mean_of_ratios`]. Those of a category are divided by its mean, so
    /// categories are told apart only if each has a mean above 0.
    pub fn of_ratios(parts: &[Part], unseen: Unseen, value: &dyn Fn(&Part) -> f64) -> Self {
        Self::of(parts, unseen, value, |category| mean(category.iter()) > 0.0)
    }

    /// Values of either sign, for [`Chunks::mean_of_differences`].
    pub fn of_differences(parts: &[Part], unseen: Unseen, value: &dyn Fn(&Part) -> f64) -> Self {
        Self::of(parts, unseen, value, |_| true)
    }

    /// The values of all chunks. Categories are told apart only if each has two chunks or more, and `is_fit` finds nothing
    /// against its values.
    fn of(
        parts: &[Part],
        unseen: Unseen,
        value: &dyn Fn(&Part) -> f64,
        is_fit: fn(&[f64]) -> bool,
    ) -> Self {
        let mut categories: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for part in parts {
            categories.entry(&part.category).or_default().push(value(part));
        }
        let categories: Vec<_> = categories.into_values().collect();
        if categories.iter().all(|values| values.len() >= 2 && is_fit(values)) {
            Chunks { categories, unseen }
        } else {
            Chunks { categories: vec![parts.iter().map(value).collect()], unseen }
        }
    }

    fn count(&self) -> f64 {
        self.values().count() as f64
    }

    fn values(&self) -> impl Iterator<Item = &f64> {
        self.categories.iter().flatten()
    }

    fn degrees_of_freedom(&self) -> f64 {
        self.count() - self.categories.len() as f64
    }

    /// What is left of each value, made of it and of its category's mean. It is scaled to the spread that it would have
    /// if the category's mean were known.
    fn residuals(&self, of: &dyn Fn(f64, f64) -> f64) -> Vec<f64> {
        let of_category = |values: &Vec<f64>| {
            let (mean, n) = (mean(values.iter()), values.len() as f64);
            let scale = (n / (n - 1.0)).sqrt();
            values.iter().map(move |value| of(*value, mean) * scale).collect::<Vec<_>>()
        };
        self.categories.iter().flat_map(of_category).collect()
    }

    /// The interval of the mean of values that cannot be negative. `step` is the smallest value above 0 that a chunk can
    /// have: one position's share for shares, and 0 for sums of divergences.
    pub fn mean_of_ratios(&self, confidence: f64, step: f64) -> Interval {
        let m = mean(self.values());
        if m <= 0.0 {
            return Interval { low: 0.0, high: self.bound_of_nothing(confidence, step) };
        }
        let t = student(confidence, self.degrees_of_freedom());
        let ends = |residuals: &[f64], weight: f64| {
            let seen = standard_error(residuals) * weight;
            let (center, error) = self.with_unseen(residuals, step / m);
            let center = 1.0 + center;
            ((-t * seen).exp(), center * (t * error * weight / center).exp())
        };
        // how much more the mean spreads if chunks with larger values spread more
        let squares = |values: &Vec<f64>| values.len() as f64 * mean(values.iter()).powi(2);
        let weight = (self.categories.iter().map(squares).sum::<f64>() / self.count()).sqrt() / m;
        let alike = ends(&self.residuals(&|value, mean| value / mean - 1.0), weight);
        let apart = ends(&self.residuals(&|value, mean| (value - mean) / m), 1.0);
        Interval { low: m * alike.0.min(apart.0), high: m * alike.1.max(apart.1) }
    }

    /// The interval of the mean of values of either sign.
    pub fn mean_of_differences(&self, confidence: f64) -> Interval {
        let m = mean(self.values());
        let t = student(confidence, self.degrees_of_freedom());
        let residuals = self.residuals(&|value, mean| value - mean);
        let mirrored: Vec<f64> = residuals.iter().map(|residual| -residual).collect();
        let reach = |residuals: &[f64]| {
            let (center, error) = self.with_unseen(residuals, 0.0);
            center + t * error
        };
        Interval { low: m - reach(&mirrored), high: m + reach(&residuals) }
    }

    /// The mean of residuals and of the unseen one, and its standard error. A residual is not below `least` on the chunk that
    /// is farthest.
    fn with_unseen(&self, residuals: &[f64], least: f64) -> (f64, f64) {
        let farthest = residuals.iter().copied().fold(least, f64::max);
        let sample: Vec<f64> =
            residuals.iter().copied().chain([self.unseen.0 * farthest]).collect();
        let n = sample.len() as f64;
        let center = mean(sample.iter());
        let squares: f64 = sample.iter().map(|x| (x - center).powi(2)).sum();
        (center, (squares / (n - 1.0) / n).sqrt())
    }

    /// The upper end if all values are 0: the share of chunks that may have something, times what the unseen chunk has.
    fn bound_of_nothing(&self, confidence: f64, step: f64) -> f64 {
        let share = 1.0 - ((1.0 - confidence) / 2.0).powf(1.0 / self.count());
        self.unseen.0 * step * share
    }
}

/// The standard error of the mean of residuals, whose own mean is 0.
fn standard_error(residuals: &[f64]) -> f64 {
    let squares: f64 = residuals.iter().map(|x| x.powi(2)).sum();
    squares.sqrt() / residuals.len() as f64
}

fn mean<'x>(values: impl Iterator<Item = &'x f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0.0), |(sum, n), value| (sum + value, n + 1.0));
    sum / n
}

/// The quantile of Student's t that a two-sided interval needs.
fn student(confidence: f64, degrees_of_freedom: f64) -> f64 {
    use statrs::distribution::{ContinuousCDF, StudentsT};
    let t = StudentsT::new(0.0, 1.0, degrees_of_freedom.max(1.0));
    t.map_or(f64::INFINITY, |t| t.inverse_cdf(0.5 + confidence / 2.0))
}
