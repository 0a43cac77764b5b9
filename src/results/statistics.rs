//! Statistics of a scheme against the baseline, as llama-perplexity defines them.

use super::shape::histogram;
use serde::{Deserialize, Serialize};

/// One scored position. Percentiles, plots and worst tokens are made of positions.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Position {
    /// The token that follows in the corpus.
    pub target: u32,
    /// KL divergence between the baseline's next-token distribution and the scheme's, in nats.
    pub kld: f32,
    /// The baseline's log-probability of the target, in nats.
    pub logp_base: f32,
    /// The scheme's log-probability of the target, in nats.
    pub logp: f32,
    /// The baseline's most likely token. The lowest id wins ties.
    pub top_base: u32,
    /// The scheme's most likely token. The lowest id wins ties.
    pub top: u32,
    /// By how much probability the baseline's most likely token leads its second.
    pub margin: f32,
}

impl Position {
    /// Δp: how much the scheme changes the probability of the target.
    pub fn dp(&self) -> f64 {
        f64::from(self.logp).exp() - f64::from(self.logp_base).exp()
    }
}

/// Sums over the scored positions of one chunk. Statistics follow from the sums of all chunks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The category of the chunk: the stem of its file's name.
    pub category: String,
    /// The number of the chunk within its category.
    pub chunk: usize,
    /// Scored positions.
    pub tokens: u64,
    /// Sum of KLD.
    pub kld: f64,
    /// Sum of squared KLD.
    pub kld2: f64,
    /// Sum of the scheme's negative log-likelihood.
    pub nll: f64,
    /// Sum of the baseline's negative log-likelihood.
    pub nll_base: f64,
    /// Sum of the scheme's squared negative log-likelihood.
    pub nll2: f64,
    /// Sum of the baseline's squared negative log-likelihood.
    pub nll_base2: f64,
    /// Sum of the products of both negative log-likelihoods.
    pub nll_cross: f64,
    /// Sum of Δp², the squared change of the target's probability.
    pub dp2: f64,
    /// Sum of Δp⁴.
    pub dp4: f64,
    /// The number of positions at which both have the same most likely token.
    pub same_top: u64,
    /// The number of positions in each of the [bins](super::shape::BINS) of KLD, of which intervals of quantiles are
    /// made. Empty in files of format 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub histogram: Vec<u64>,
}

/// With fewer chunks than these a statistic has no interval: whatever is computed of them misses too often.
pub const LEAST_CHUNKS: usize = 8;

/// The statistics of one scheme.
///
/// Divergences are in nats per token; shares and probabilities are within 0 and 1. Fields named `_se` are
/// standard errors. Like llama.cpp's, they treat positions as independent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Scored positions.
    pub tokens_scored: u64,
    /// Mean KL divergence.
    pub mean_kld: f64,
    /// Standard error of `mean_kld`.
    pub mean_kld_se: f64,
    /// Median KL divergence.
    pub median_kld: f64,
    /// 90th percentile of the KL divergence.
    pub p90_kld: f64,
    /// 95th percentile of the KL divergence.
    pub p95_kld: f64,
    /// 99th percentile of the KL divergence.
    pub p99_kld: f64,
    /// 99.9th percentile of the KL divergence.
    pub p999_kld: f64,
    /// Largest KL divergence.
    pub max_kld: f64,
    /// Share of positions whose most likely token is the baseline's.
    pub top1_agreement: f64,
    /// Standard error of `top1_agreement`.
    pub top1_agreement_se: f64,
    /// Root mean square of the change in the target's probability.
    pub rms_dp: f64,
    /// Standard error of `rms_dp`.
    pub rms_dp_se: f64,
    /// Perplexity of the scheme.
    pub ppl: f64,
    /// Standard error of `ppl`.
    pub ppl_se: f64,
    /// Perplexity of the scheme divided by that of the baseline.
    pub ppl_ratio: f64,
    /// Standard error of `ppl_ratio`.
    pub ppl_ratio_se: f64,
    /// Perplexity of the baseline on the same positions.
    pub baseline_ppl: f64,
    /// The statistics that another engine does not report. Their fields hold 0 and mean nothing, and a limit
    /// on one of them is an error.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<Statistic>,
}

/// A statistic that a policy can bound. It names a field of [`Statistics`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// [`Statistics::mean_kld`]
    MeanKld,
    /// [`Statistics::median_kld`]
    MedianKld,
    /// [`Statistics::p90_kld`]
    P90Kld,
    /// [`Statistics::p95_kld`]
    P95Kld,
    /// [`Statistics::p99_kld`]
    P99Kld,
    /// [`Statistics::p999_kld`]
    P999Kld,
    /// [`Statistics::max_kld`]
    MaxKld,
    /// [`Statistics::top1_agreement`]
    Top1Agreement,
    /// [`Statistics::rms_dp`]
    RmsDp,
    /// [`Statistics::ppl`]
    Ppl,
    /// [`Statistics::ppl_ratio`]
    PplRatio,
    /// [`Statistics::baseline_ppl`]
    BaselinePpl,
}

/// On which side of a bound the good values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The bound is the largest value that passes.
    AtMost,
    /// The bound is the smallest value that passes.
    AtLeast,
}

impl Statistic {
    /// All statistics, in the order of reports and goldens.
    pub const ALL: [Statistic; 12] = [
        Self::MeanKld,
        Self::MedianKld,
        Self::P90Kld,
        Self::P95Kld,
        Self::P99Kld,
        Self::P999Kld,
        Self::MaxKld,
        Self::Top1Agreement,
        Self::RmsDp,
        Self::Ppl,
        Self::PplRatio,
        Self::BaselinePpl,
    ];

    /// The statistic's key in `thresholds.toml`, goldens and `results.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::MeanKld => "mean_kld",
            Self::MedianKld => "median_kld",
            Self::P90Kld => "p90_kld",
            Self::P95Kld => "p95_kld",
            Self::P99Kld => "p99_kld",
            Self::P999Kld => "p999_kld",
            Self::MaxKld => "max_kld",
            Self::Top1Agreement => "top1_agreement",
            Self::RmsDp => "rms_dp",
            Self::Ppl => "ppl",
            Self::PplRatio => "ppl_ratio",
            Self::BaselinePpl => "baseline_ppl",
        }
    }

    /// The statistic with a key, if there is one.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }

    /// On which side of a bound the good values are.
    pub fn direction(self) -> Direction {
        match self {
            Self::Top1Agreement => Direction::AtLeast,
            _ => Direction::AtMost,
        }
    }

    /// The smallest and the largest value that the statistic can take. A limit outside of them would always
    /// hold or never hold.
    pub fn range(self) -> (f64, f64) {
        match self {
            Self::Top1Agreement | Self::RmsDp => (0.0, 1.0),
            Self::Ppl | Self::BaselinePpl => (1.0, f64::INFINITY),
            _ => (0.0, f64::INFINITY),
        }
    }

    /// Whether the statistic follows from the sums of chunks, so that it is known of any of them together. A quantile
    /// does not.
    pub fn is_of_sums(self) -> bool {
        match self {
            Self::MeanKld
            | Self::Top1Agreement
            | Self::RmsDp
            | Self::Ppl
            | Self::PplRatio
            | Self::BaselinePpl => true,
            Self::MedianKld
            | Self::P90Kld
            | Self::P95Kld
            | Self::P99Kld
            | Self::P999Kld
            | Self::MaxKld => false,
        }
    }

    /// The unit that people read. Empty for pure numbers.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Top1Agreement | Self::RmsDp | Self::Ppl | Self::PplRatio | Self::BaselinePpl => {
                ""
            }
            _ => "nats",
        }
    }
}

/// What a limit bounds: a statistic of all chunks, or of the chunks of one category.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    /// None for all chunks.
    pub category: Option<String>,
    /// The statistic.
    pub statistic: Statistic,
}

impl From<Statistic> for Quantity {
    fn from(statistic: Statistic) -> Self {
        Quantity { category: None, statistic }
    }
}

impl Quantity {
    /// Its name, such as `mean_kld` or `mean_kld of tools`, with the category in the form that `named` gives it.
    pub fn name_with(&self, named: &dyn Fn(&str) -> String) -> String {
        let name = self.statistic.name();
        match &self.category {
            Some(category) => format!("{name} of {}", named(category)),
            None => name.into(),
        }
    }

    /// The same name with the category as it is.
    pub fn name(&self) -> String {
        self.name_with(&|category| category.into())
    }
}

impl Statistics {
    /// Whether a statistic was measured.
    pub fn knows(&self, statistic: Statistic) -> bool {
        !self.unknown.contains(&statistic)
    }

    /// The value of a statistic.
    pub fn get(&self, statistic: Statistic) -> f64 {
        match statistic {
            Statistic::MeanKld => self.mean_kld,
            Statistic::MedianKld => self.median_kld,
            Statistic::P90Kld => self.p90_kld,
            Statistic::P95Kld => self.p95_kld,
            Statistic::P99Kld => self.p99_kld,
            Statistic::P999Kld => self.p999_kld,
            Statistic::MaxKld => self.max_kld,
            Statistic::Top1Agreement => self.top1_agreement,
            Statistic::RmsDp => self.rms_dp,
            Statistic::Ppl => self.ppl,
            Statistic::PplRatio => self.ppl_ratio,
            Statistic::BaselinePpl => self.baseline_ppl,
        }
    }

    /// The standard error of a statistic. None for statistics without one.
    pub fn standard_error(&self, statistic: Statistic) -> Option<f64> {
        match statistic {
            Statistic::MeanKld => Some(self.mean_kld_se),
            Statistic::Top1Agreement => Some(self.top1_agreement_se),
            Statistic::RmsDp => Some(self.rms_dp_se),
            Statistic::Ppl => Some(self.ppl_se),
            Statistic::PplRatio => Some(self.ppl_ratio_se),
            _ => None,
        }
    }

    /// Computes the statistics of the positions of one scheme.
    pub fn of(positions: &[Position]) -> Self {
        let n = positions.len() as f64;
        let sum = |f: &dyn Fn(&Position) -> f64| positions.iter().map(f).sum::<f64>();
        let nll = |p: &Position| -f64::from(p.logp);
        let nll_base = |p: &Position| -f64::from(p.logp_base);
        let (mean_kld, mean_kld_se) = mean_and_error(positions, &|p| f64::from(p.kld));
        let (mean_nll, nll_se) = mean_and_error(positions, &nll);
        let (mean_base, base_se) = mean_and_error(positions, &nll_base);
        let (dp2, dp2_se) = mean_and_error(positions, &|p| p.dp().powi(2));
        let covariance =
            (sum(&|p| nll(p) * nll_base(p)) / n - mean_nll * mean_base) / (n - 1.0).max(1.0);
        let log_ratio_se = (nll_se.powi(2) + base_se.powi(2) - 2.0 * covariance).max(0.0).sqrt();
        let top1 = sum(&|p| f64::from(u8::from(p.top == p.top_base))) / n;
        let rms_dp = dp2.sqrt();
        let ppl_ratio = (mean_nll - mean_base).exp();

        let mut klds: Vec<f32> = positions.iter().map(|p| p.kld).collect();
        klds.sort_by(f32::total_cmp);
        Statistics {
            tokens_scored: positions.len() as u64,
            mean_kld,
            mean_kld_se,
            median_kld: median(&klds),
            p90_kld: percentile(&klds, 0.90),
            p95_kld: percentile(&klds, 0.95),
            p99_kld: percentile(&klds, 0.99),
            p999_kld: percentile(&klds, 0.999),
            max_kld: percentile(&klds, 1.0),
            top1_agreement: top1,
            top1_agreement_se: (top1 * (1.0 - top1) / (n - 1.0).max(1.0)).sqrt(),
            rms_dp,
            rms_dp_se: if rms_dp > 0.0 { 0.5 * dp2_se / rms_dp } else { 0.0 },
            ppl: mean_nll.exp(),
            ppl_se: mean_nll.exp() * nll_se,
            ppl_ratio,
            ppl_ratio_se: ppl_ratio * log_ratio_se,
            baseline_ppl: mean_base.exp(),
            unknown: Vec::new(),
        }
    }

    /// The statistics of chunks together, as far as they follow from sums: see [`Statistic::is_of_sums`]. The others are
    /// unknown.
    pub fn of_parts<'p>(parts: impl IntoIterator<Item = &'p Part>) -> Self {
        let parts: Vec<&Part> = parts.into_iter().collect();
        let tokens: u64 = parts.iter().map(|part| part.tokens).sum();
        let n = tokens as f64;
        let mean = |of: fn(&Part) -> f64| parts.iter().map(|part| of(part)).sum::<f64>() / n;
        let error = |squares: f64, mean: f64| {
            ((squares - mean.powi(2)).max(0.0) / (n - 1.0).max(1.0)).sqrt()
        };
        let (kld, nll, base) = (mean(|p| p.kld), mean(|p| p.nll), mean(|p| p.nll_base));
        let (nll_se, base_se) = (error(mean(|p| p.nll2), nll), error(mean(|p| p.nll_base2), base));
        let covariance = (mean(|p| p.nll_cross) - nll * base) / (n - 1.0).max(1.0);
        let ratio_se = (nll_se.powi(2) + base_se.powi(2) - 2.0 * covariance).max(0.0).sqrt();
        let (top1, dp2) = (mean(|p| p.same_top as f64), mean(|p| p.dp2));
        let dp2_se = error(mean(|p| p.dp4), dp2);
        // a difference of sums, in which rounding does not add up
        let ppl_ratio = mean(|p| p.nll - p.nll_base).exp();
        Statistics {
            tokens_scored: tokens,
            mean_kld: kld,
            mean_kld_se: error(mean(|p| p.kld2), kld),
            top1_agreement: top1,
            top1_agreement_se: error(top1, top1),
            rms_dp: dp2.sqrt(),
            rms_dp_se: if dp2 > 0.0 { 0.5 * dp2_se / dp2.sqrt() } else { 0.0 },
            ppl: nll.exp(),
            ppl_se: nll.exp() * nll_se,
            ppl_ratio,
            ppl_ratio_se: ppl_ratio * ratio_se,
            baseline_ppl: base.exp(),
            unknown: Statistic::ALL.into_iter().filter(|s| !s.is_of_sums()).collect(),
            ..Statistics::default()
        }
    }
}

impl Part {
    /// Sums over the positions of one chunk.
    pub fn of(category: &str, chunk: usize, positions: &[Position]) -> Self {
        let histogram = histogram(positions.iter().map(|position| position.kld));
        let mut part = Part { category: category.into(), chunk, histogram, ..Part::default() };
        for p in positions {
            part.tokens += 1;
            part.kld += f64::from(p.kld);
            part.kld2 += f64::from(p.kld).powi(2);
            part.nll -= f64::from(p.logp);
            part.nll_base -= f64::from(p.logp_base);
            part.nll2 += f64::from(p.logp).powi(2);
            part.nll_base2 += f64::from(p.logp_base).powi(2);
            part.nll_cross += f64::from(p.logp) * f64::from(p.logp_base);
            part.dp2 += p.dp().powi(2);
            part.dp4 += p.dp().powi(4);
            part.same_top += u64::from(p.top == p.top_base);
        }
        part
    }
}

/// A mean and its standard error, as llama-perplexity's `mean_and_uncertainty` computes them.
fn mean_and_error(positions: &[Position], f: &dyn Fn(&Position) -> f64) -> (f64, f64) {
    let n = positions.len() as f64;
    let mean = positions.iter().map(f).sum::<f64>() / n;
    // E[(x - mean)²] and not E[x²] - mean², which is the same quantity but cancels
    let variance = positions.iter().map(|p| (f(p) - mean).powi(2)).sum::<f64>() / n;
    (mean, (variance / (n - 1.0).max(1.0)).sqrt())
}

/// A percentile, interpolated linearly between the two values around position `q (n - 1)`, as in llama-perplexity.
fn percentile(sorted: &[f32], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = q * last as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let (a, b) = (f64::from(sorted[low]), f64::from(sorted[(low + 1).min(last)]));
    a + part * (b - a)
}

fn median(sorted: &[f32]) -> f64 {
    percentile(sorted, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(kld: f32, logp_base: f32, logp: f32, same: bool) -> Position {
        Position { kld, logp_base, logp, top: u32::from(!same), ..Position::default() }
    }

    #[test]
    fn small_sample_by_hand() {
        let s = Statistics::of(&[
            position(0.1, -1.0, -1.5, true),
            position(0.3, -2.0, -2.0, false),
            position(0.2, -3.0, -2.5, true),
            position(0.4, -2.0, -2.0, true),
        ]);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} != {b}");
        near(s.mean_kld, 0.25);
        near(s.mean_kld_se, (0.0125f64 / 3.0).sqrt());
        near(s.median_kld, 0.25);
        near(s.p90_kld, 0.37);
        near(s.max_kld, 0.4);
        near(s.top1_agreement, 0.75);
        near(s.baseline_ppl, 2f64.exp());
        near(s.ppl_ratio, 1.0);
        let dp = [(-1.5f64).exp() - (-1f64).exp(), (-2.5f64).exp() - (-3f64).exp()];
        near(s.rms_dp, ((dp[0] * dp[0] + dp[1] * dp[1]) / 4.0).sqrt());
    }

    /// All that is no quantile can be made again from the parts.
    #[test]
    fn parts_hold_what_the_statistics_are_made_of() {
        let positions: Vec<_> = (0..50)
            .map(|i| {
                let x = (i * 37 % 50) as f32 / 50.0;
                position(x * x, -1.0 - x, -1.2 - x * x, i % 7 != 0)
            })
            .collect();
        let s = Statistics::of(&positions);
        let (a, b) = positions.split_at(20);
        let made = Statistics::of_parts(&[Part::of("x", 0, a), Part::of("x", 1, b)]);
        assert_eq!(made.tokens_scored, 50);
        let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-9, "{a} != {b}");
        for statistic in Statistic::ALL {
            assert_eq!(made.knows(statistic), statistic.is_of_sums(), "{statistic:?}");
            if made.knows(statistic) {
                near(made.get(statistic), s.get(statistic));
                let errors = [&made, &s].map(|all| all.standard_error(statistic));
                if let [Some(made), Some(own)] = errors {
                    near(made, own);
                }
            }
        }
    }

    #[test]
    fn nothing_scored_is_not_a_number() {
        let s = Statistics::of(&[]);
        assert_eq!(s.tokens_scored, 0);
        assert!(s.mean_kld.is_nan() && s.max_kld.is_nan() && s.ppl.is_nan());
    }

    #[test]
    fn names_are_found_again() {
        for statistic in Statistic::ALL {
            assert_eq!(Statistic::find(statistic.name()), Some(statistic));
        }
        assert_eq!(Statistic::find("mean_kl"), None);
    }
}
