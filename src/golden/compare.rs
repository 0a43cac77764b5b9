//! Compares a measurement with its golden.

use super::{condition_lines, rounded, subject_lines, Golden};
use crate::results::measured_by::MeasuredBy;
use crate::results::replay::Generated;
use crate::results::statistics::Statistic;
use crate::results::{Conditions, Subject};
use std::fmt;

// Tolerances. Two exact runs that add in another order agree on a mean over 2,048 positions to 2–5 % (one
// standard deviation), on p90 to 2–6 % and on p99 to 5–9 %. Tolerances are five of these deviations, so that
// another CPU does not change goldens, and less than half of a doubling, so that harm is seen.

/// For the mean and the median KLD, relative.
const MEAN: f64 = 0.25;
/// For p90 and p95, relative. It is wider, because a quantile of the tail depends on fewer positions.
const QUANTILE: f64 = 0.35;
/// For the top-1 agreement, absolute. Near ties flip with any change of rounding.
const TOP1: f64 = 0.04;
/// For RMS Δp, relative. The root of a mean varies half as much as the mean, but squares have a heavier tail.
const RMS_DP: f64 = 0.25;
/// For the baseline's perplexity, relative. No scheme changes it; only the order of sums does.
const BASELINE_PPL: f64 = 0.005;
/// Differences of the KLD below this many nats never count. They are rounding of f32 sums, and a lossless
/// scheme's golden must not change because of them.
const KLD_FLOOR: f64 = 1e-6;
/// Differences of RMS Δp below this never count, for the same reason.
const DP_FLOOR: f64 = 1e-4;

/// How far a statistic may move from its golden, in either direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tolerance {
    /// It may move by a share of the golden's value, and by `floor` in any case.
    Relative { share: f64, floor: f64 },
    /// It may move by this difference.
    Absolute(f64),
    /// It is shown to people and not compared.
    Shown,
}

/// The tolerance of a statistic.
pub fn tolerance(statistic: Statistic) -> Tolerance {
    use Statistic::*;
    let relative = |share, floor| Tolerance::Relative { share, floor };
    match statistic {
        MeanKld | MedianKld => relative(MEAN, KLD_FLOOR),
        P90Kld | P95Kld => relative(QUANTILE, KLD_FLOOR),
        // these depend on a handful of positions, so exact runs disagree on them
        P99Kld | P999Kld | MaxKld => Tolerance::Shown,
        Top1Agreement => Tolerance::Absolute(TOP1),
        RmsDp => relative(RMS_DP, DP_FLOOR),
        // signed errors of a mild scheme cancel in these, which leaves noise; what moves them under a harmful scheme
        // moves the mean KLD as well
        Ppl | PplRatio => Tolerance::Shown,
        BaselinePpl => relative(BASELINE_PPL, 0.0),
    }
}

impl Tolerance {
    /// Whether `new` is as near to `old` as it must be. NaN is near nothing.
    pub fn holds(self, old: f64, new: f64) -> bool {
        let difference = (new - old).abs();
        match self {
            Self::Relative { share, floor } => difference <= (share * old.abs()).max(floor),
            Self::Absolute(most) => difference <= most,
            Self::Shown => true,
        }
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relative { share, .. } => write!(f, "± {} %", share * 100.0),
            Self::Absolute(0.0) => write!(f, "equal"),
            Self::Absolute(most) => write!(f, "± {}", (most * 1e3).round() / 1e3),
            Self::Shown => write!(f, "shown"),
        }
    }
}

/// A named text that differs. It is empty on a side that does not have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub what: &'static str,
    pub old: String,
    pub new: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |s: &str| if s.is_empty() { "none".to_string() } else { shortened(s) };
        write!(f, "{}: {} → {}", self.what, side(&self.old), side(&self.new))
    }
}

/// A text in which hashes are cut to the digits that people compare.
fn shortened(value: &str) -> String {
    let is_hash = |word: &str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let word = |word| if is_hash(word) { format!("{}…", &word[..12]) } else { word.to_string() };
    value.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// A statistic in the golden and now.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// `tokens_scored`, the name of a [`Statistic`], or that of a number of a replay.
    pub name: &'static str,
    pub old: f64,
    pub new: f64,
    /// Both values as goldens write them.
    pub text: [String; 2],
    pub tolerance: Tolerance,
}

impl Row {
    /// Whether the value is within its tolerance.
    pub fn holds(&self) -> bool {
        self.tolerance.holds(self.old, self.new)
    }
}

/// How a measurement compares with its golden.
#[derive(Debug, Clone, PartialEq)]
pub enum Comparison {
    /// There is no golden yet.
    Missing,
    /// The golden was made under other conditions, so its values say nothing about the new ones.
    Stale(Vec<Difference>),
    /// A person must look at something and accept it.
    Changed {
        /// The effective scheme, if it is another one.
        effective: Option<Difference>,
        /// How the subject differs.
        subject: Vec<Difference>,
        /// All statistics, including those within their tolerances.
        rows: Vec<Row>,
    },
    /// Subject and conditions are the same, and these values are within their tolerances.
    Matches(Vec<Row>),
}

impl Comparison {
    /// Whether there is nothing to accept.
    pub fn matches(&self) -> bool {
        matches!(self, Comparison::Matches(_))
    }
}

/// A measured scheme beside its golden: what is judged, and what is offered for review.
#[derive(Debug, Clone)]
pub struct Compared<'m> {
    /// The golden that the measurement would be accepted as.
    pub new: Golden,
    /// The accepted golden, if there is one.
    pub accepted: Option<Golden>,
    pub comparison: Comparison,
    /// The baseline's text that the scheme was replayed on, if the policy names prompts.
    pub generated: Option<&'m Generated>,
    /// Whether that text is the accepted one. True where there is no text.
    pub is_text_accepted: bool,
}

impl Compared<'_> {
    /// Whether there is nothing to accept, neither a golden nor a text.
    pub fn is_pass(&self) -> bool {
        self.comparison.matches() && self.is_text_accepted
    }
}

/// Compares a measurement with its golden. An improvement beyond its tolerance is a change as well.
pub fn compare(golden: Option<&Golden>, new: &Golden) -> Comparison {
    let Some(old) = golden else {
        return Comparison::Missing;
    };
    let stale = conditions_differ(&old.conditions, &new.conditions);
    if !stale.is_empty() {
        return Comparison::Stale(stale);
    }
    let effective = (old.effective != new.effective).then(|| Difference {
        what: "effective scheme",
        old: old.effective.clone(),
        new: new.effective.clone(),
    });
    let text = |golden: &Golden| golden.replay.as_ref().map(|replay| ("text", replay.text.clone()));
    let lines = |golden: &Golden| {
        subject_lines(&golden.subject).into_iter().chain(text(golden)).collect::<Vec<_>>()
    };
    let subject = differences(&lines(old), &lines(new));
    let rows = rows(old, new);
    if effective.is_none() && subject.is_empty() && rows.iter().all(Row::holds) {
        Comparison::Matches(rows)
    } else {
        Comparison::Changed { effective, subject, rows }
    }
}

/// How conditions differ. A golden that was made under `old` is stale for a measurement under `new` if they
/// differ at all.
///
/// The device and the number type of its products are no conditions of what kvgate itself measures. All devices give
/// values within the tolerances of goldens (`docs/metrics.md`), so one golden is for all of them. Another engine may
/// compute differently on each device, and with each type of weights.
pub fn conditions_differ(old: &Conditions, new: &Conditions) -> Vec<Difference> {
    let is_own = |conditions: &Conditions| MeasuredBy::of(&conditions.engine) == MeasuredBy::Kvgate;
    let mut lines = [condition_lines(old), condition_lines(new)];
    if is_own(old) && is_own(new) {
        for lines in &mut lines {
            lines.retain(|(name, _)| !matches!(*name, "device" | "weights"));
        }
    }
    differences(&lines[0], &lines[1])
}

/// How what was measured, and the conditions under which it was, differ in any respect, the device included.
pub fn provenance_differs(
    old: (&Subject, &Conditions),
    new: (&Subject, &Conditions),
) -> Vec<Difference> {
    let mut found = differences(&subject_lines(old.0), &subject_lines(new.0));
    found.extend(differences(&condition_lines(old.1), &condition_lines(new.1)));
    found
}

/// The rows of all numbers that both have.
fn rows(old: &Golden, new: &Golden) -> Vec<Row> {
    let tokens = [old.tokens_scored, new.tokens_scored];
    let mut rows = vec![Row {
        name: "tokens_scored",
        old: tokens[0] as f64,
        new: tokens[1] as f64,
        text: tokens.map(|n| n.to_string()),
        tolerance: Tolerance::Absolute(0.0),
    }];
    for (statistic, (&old, &new)) in Statistic::ALL.iter().zip(old.values.iter().zip(&new.values)) {
        if old.is_nan() && new.is_nan() {
            continue; // the engine does not report it
        }
        let text = [old, new].map(|value| rounded(*statistic, value));
        let tolerance = tolerance(*statistic);
        rows.push(Row { name: statistic.name(), old, new, text, tolerance });
    }
    if let (Some(old), Some(new)) = (&old.replay, &new.replay) {
        rows.extend(old.rows(new));
    }
    rows
}

/// Compares lines by their names, which may repeat. Differences stand in the order of the lines.
fn differences(old: &[(&'static str, String)], new: &[(&'static str, String)]) -> Vec<Difference> {
    let values = |lines: &[(&str, String)], name| -> Vec<String> {
        lines.iter().filter(|(n, _)| *n == name).map(|(_, value)| value.clone()).collect()
    };
    let mut names: Vec<&'static str> = Vec::new();
    for (name, _) in old.iter().chain(new) {
        if !names.contains(name) {
            names.push(name);
        }
    }
    let mut found = Vec::new();
    for what in names {
        let (old, new) = (values(old, what), values(new, what));
        if old != new {
            found.push(Difference { what, old: old.join(", "), new: new.join(", ") });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fixture;

    fn golden() -> Golden {
        let results = fixture::results();
        Golden::of(&results.measurements[0], &results.measurements[0].schemes[1]).unwrap()
    }

    /// What compares when one value is multiplied.
    fn scaled(statistic: Statistic, by: f64) -> Comparison {
        let mut new = golden();
        let i = Statistic::ALL.iter().position(|s| *s == statistic).unwrap();
        new.values[i] *= by;
        compare(Some(&golden()), &new)
    }

    #[test]
    fn change_counts_in_both_directions() {
        for (statistic, within, beyond) in [
            (Statistic::MeanKld, [0.8, 1.2], [0.5, 2.0]),
            (Statistic::MedianKld, [0.8, 1.2], [0.7, 1.3]),
            (Statistic::P90Kld, [0.7, 1.3], [0.6, 1.4]),
            (Statistic::P95Kld, [0.7, 1.3], [0.6, 1.4]),
            (Statistic::Top1Agreement, [0.97, 1.03], [0.95, 1.05]),
            (Statistic::RmsDp, [0.8, 1.2], [0.7, 1.3]),
            (Statistic::BaselinePpl, [0.996, 1.004], [0.99, 1.01]),
        ] {
            for by in within {
                assert!(scaled(statistic, by).matches(), "{statistic:?} × {by}");
            }
            for by in beyond {
                let Comparison::Changed { rows, .. } = scaled(statistic, by) else {
                    panic!("{statistic:?} × {by}");
                };
                let out: Vec<_> = rows.iter().filter(|r| !r.holds()).map(|r| r.name).collect();
                assert_eq!(out, [statistic.name()]);
            }
        }
        assert!(scaled(Statistic::P99Kld, 3.0).matches());
    }

    #[test]
    fn not_a_number_never_matches() {
        assert!(matches!(scaled(Statistic::MeanKld, f64::NAN), Comparison::Changed { .. }));
    }

    #[test]
    fn a_kld_of_rounding_does_not_churn() {
        let mut old = golden();
        old.values[..4].copy_from_slice(&[1e-7, 0.0, 2e-7, 3e-7]);
        let mut new = old.clone();
        new.values[..4].copy_from_slice(&[4e-7, 1e-9, 8e-7, 9e-7]);
        assert!(compare(Some(&old), &new).matches());
    }

    #[test]
    fn other_conditions_hide_the_values() {
        let mut new = golden();
        new.conditions.context = 4096;
        new.conditions.corpus.pop();
        new.values[0] *= 9.0;
        let Comparison::Stale(differences) = compare(Some(&golden()), &new) else { panic!() };
        let text: Vec<_> = differences.iter().map(Difference::to_string).collect();
        assert_eq!(text, ["corpus: prose 11aa, code 22bb → prose 11aa", "context: 512 → 4096"]);
    }

    #[test]
    fn a_golden_is_for_every_device_unless_another_engine_measured() {
        let (mut old, mut new) = (golden(), golden());
        new.conditions.device = "cuda".into();
        new.conditions.weights = "f16".into();
        assert!(compare(Some(&old), &new).matches());
        old.conditions.engine = "llama.cpp b11434".into();
        new.conditions.engine = old.conditions.engine.clone();
        let Comparison::Stale(differences) = compare(Some(&old), &new) else { panic!() };
        assert_eq!(differences.len(), 2);
    }

    #[test]
    fn another_subject_must_be_accepted_even_when_values_agree() {
        let mut new = golden();
        new.subject.weights_sha256 = "f".repeat(64);
        let Comparison::Changed { effective, subject, rows } = compare(Some(&golden()), &new)
        else {
            panic!()
        };
        assert_eq!(effective, None);
        assert_eq!(subject[0].to_string(), "weights: a5fd3b62 → ffffffffffff…");
        assert!(rows.iter().all(Row::holds));
    }

    #[test]
    fn another_effective_scheme_and_no_golden() {
        let mut new = golden();
        new.effective = "q4_0:norot".into();
        assert!(matches!(
            compare(Some(&golden()), &new),
            Comparison::Changed { effective: Some(_), .. }
        ));
        assert_eq!(compare(None, &new), Comparison::Missing);
    }
}
