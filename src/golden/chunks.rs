//! The mean KLDs of the chunks in a golden, by which a later change of the mean is known to be one or to be chance. They
//! are not compared, because the mean of all of them is.

use super::lines::Lines;
use super::{rounded, GoldenError, SIGNIFICANT_DIGITS};
use crate::results::statistics::{Part, Statistic};
use crate::text::numbers::count;
use std::fmt;

/// The title of the lines.
const TITLE: &str = "chunk means";

/// Mean KLDs of chunks in nats, in order, by category. There are none in goldens of earlier states of kvgate and of other
/// engines.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChunkMeans(Vec<(String, Vec<f64>)>);

impl ChunkMeans {
    /// The means of these chunks, which stand in order within each category.
    #[must_use]
    pub fn of(parts: &[Part]) -> Self {
        let mut categories: Vec<(String, Vec<f64>)> = Vec::new();
        for part in parts {
            let mean = part.kld / part.tokens.max(1) as f64;
            match categories.iter_mut().find(|(category, _)| *category == part.category) {
                Some((_, means)) => means.push(mean),
                None => categories.push((part.category.clone(), vec![mean])),
            }
        }
        ChunkMeans(categories)
    }

    /// The mean KLD of a chunk, by its category and its number within that.
    #[must_use]
    pub fn get(&self, part: &Part) -> Option<f64> {
        let (_, means) = self.0.iter().find(|(category, _)| *category == part.category)?;
        means.get(part.chunk).copied()
    }

    pub(super) fn is_finite(&self) -> bool {
        self.0.iter().flat_map(|(_, means)| means).all(|mean| mean.is_finite())
    }

    /// How these are not the means of so many chunks with this mean. A golden without any is sound.
    pub(super) fn contradiction(&self, mean: f64, chunks: usize) -> Option<String> {
        let all: Vec<f64> = self.0.iter().flat_map(|(_, means)| means).copied().collect();
        if all.is_empty() {
            return None;
        }
        if all.len() != chunks {
            return Some(format!(
                "it has `{TITLE}` of {}, and its `chunks` are {chunks}",
                count(all.len(), "chunk")
            ));
        }
        // all chunks have as many tokens; each number may be half a unit of its last digit off
        let average = |of: fn(f64) -> f64| all.iter().copied().map(of).sum::<f64>() / chunks as f64;
        let rounding = 0.5 / 10f64.powi(i32::from(SIGNIFICANT_DIGITS) - 1);
        let slack = 1.1 * rounding * (mean.abs() + average(f64::abs)) + f64::EPSILON;
        let made = average(|mean| mean);
        ((made - mean).abs() > slack).then(|| {
            let name = Statistic::MeanKld.name();
            let [made, mean] = [made, mean].map(|value| rounded(Statistic::MeanKld, value));
            format!("its `{TITLE}` average {made}, and its `{name}` is {mean}")
        })
    }

    pub(super) fn parse(lines: &mut Lines) -> Result<Self, GoldenError> {
        let mut categories = Vec::new();
        if !lines.is_title(TITLE) {
            return Ok(ChunkMeans(categories));
        }
        lines.title(TITLE)?;
        while !lines.is_title("subject") && !lines.is_next("text") {
            let line = lines.expect("subject")?;
            let number = |word: &str| word.parse().ok().filter(|x: &f64| x.is_finite());
            let split = line.rsplit_once(": ");
            let means = split.and_then(|(_, means)| means.split(' ').map(number).collect());
            match (split, means) {
                (Some((category, _)), Some(means)) => categories.push((category.into(), means)),
                _ => {
                    return Err(lines
                        .error(format!("expected a category and its chunk means, found `{line}`")))
                }
            }
        }
        Ok(ChunkMeans(categories))
    }
}

impl fmt::Display for ChunkMeans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n{TITLE}")?;
        self.0.iter().try_for_each(|(category, means)| {
            let means: Vec<_> = means.iter().map(|x| rounded(Statistic::MeanKld, *x)).collect();
            writeln!(f, "  {category}: {}", means.join(" "))
        })
    }
}
