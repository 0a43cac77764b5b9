//! Cases with their verdicts, and the exit code of a run.

use super::case;
pub use super::decision::Decision;
use super::decision::{excess, ratio};
use super::retrieval::JudgedRetrieval;
use super::statistics::{Direction, Quantity, Statistic};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A case and its verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseResult {
    /// The case's name: `model::scheme::kld` or `model::scheme::golden`.
    pub case: String,
    /// The verdict.
    pub verdict: Verdict,
    /// The explanation for people. Empty for a plain pass.
    pub message: String,
    /// The limits that were judged, in a `kld` case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<JudgedLimit>,
    /// The limits on what is retrieved that were judged, in a `kld` case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retrieval: Vec<JudgedRetrieval>,
    /// How many chunks the limits were judged by, in a `kld` case, if that was not the first look at the scheme. Limits on
    /// values without an interval are judged by the first chunks all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunks: Option<usize>,
    /// Each value in the golden and now, in a `golden` case. Empty if the two cannot be compared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Moved>,
}

impl CaseResult {
    /// A verdict without limits and without values.
    pub fn new(case: impl ToString, verdict: Verdict, message: impl Into<String>) -> Self {
        let (case, message) = (case.to_string(), message.into());
        CaseResult {
            case,
            verdict,
            message,
            limits: Vec::new(),
            retrieval: Vec::new(),
            chunks: None,
            changes: Vec::new(),
        }
    }

    /// The model and the scheme in the case's name.
    #[must_use]
    pub fn words(&self) -> (&str, &str) {
        case::model_and_scheme(&self.case)
    }
}

/// A value that may have moved since its golden was accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// The name of the statistic.
    pub name: String,
    /// The value in the golden.
    pub golden: f64,
    /// The value now.
    pub now: f64,
    /// Whether the value is within the golden's tolerance.
    pub within: bool,
    /// The interval of 95 % of the change, `now` - `golden`, from the differences of chunks. Only the mean KLD has one, and
    /// only if the golden holds those of its chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<[f64; 2]>,
}

/// The verdict of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All limits hold, or the measurement matches the golden.
    Pass,
    /// The policy says `expect = "fail"`, and a limit is broken as expected. Such a scheme is never recommended.
    FailsAsRequired,
    /// The policy says `expect = "report"`: the scheme is measured and shown, and no limit is judged.
    Reported,
    /// A limit is broken.
    Regressed,
    /// The policy says `expect = "fail"`, but every limit holds.
    UnexpectedPass,
    /// A value left the golden's tolerance, or there is no golden yet.
    GoldenChanged,
    /// The golden was made under other conditions. Measure and accept again.
    Stale,
    /// The policy asks for a confidence, and a limit is neither kept nor broken with it: more text must be measured, or
    /// the limit must move.
    Inconclusive,
    /// The case is listed and was not run.
    Ignored,
    /// The scheme could not be measured, or the measurement cannot be trusted.
    Error,
}

impl Verdict {
    /// The mark of the verdict in tables. Only a pass has a check mark.
    pub fn symbol(self) -> &'static str {
        match self {
            Verdict::Pass => "✓",
            Verdict::FailsAsRequired => "✗ (expected)",
            Verdict::Reported => "•",
            Verdict::Regressed | Verdict::UnexpectedPass => "✗",
            Verdict::GoldenChanged => "≠",
            Verdict::Stale => "↻",
            Verdict::Inconclusive => "?",
            Verdict::Ignored => "–",
            Verdict::Error => "!",
        }
    }

    /// The verdict in words.
    pub fn label(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::FailsAsRequired => "fails as required",
            Verdict::Reported => "reported",
            Verdict::Regressed => "regressed",
            Verdict::UnexpectedPass => "unexpected pass",
            Verdict::GoldenChanged => "golden changed",
            Verdict::Stale => "stale",
            Verdict::Inconclusive => "inconclusive",
            Verdict::Ignored => "ignored",
            Verdict::Error => "error",
        }
    }

    /// Whether the gate must not be green with it.
    pub fn is_red(self) -> bool {
        match self {
            Verdict::Pass | Verdict::FailsAsRequired | Verdict::Reported | Verdict::Ignored => {
                false
            }
            Verdict::Regressed
            | Verdict::UnexpectedPass
            | Verdict::GoldenChanged
            | Verdict::Stale
            | Verdict::Inconclusive
            | Verdict::Error => true,
        }
    }
}

/// The exit code of a run with these verdicts.
///
/// It is 0 if no verdict is red, 1 if one is red, and 4 if all that is red could not be measured. So a regression is
/// never hidden behind an error that a retry might cure.
pub fn exit_code(verdicts: impl IntoIterator<Item = Verdict>) -> u8 {
    verdicts.into_iter().filter(|verdict| verdict.is_red()).fold(0, |code, verdict| {
        match (code, verdict) {
            (1, _) => 1,
            (_, Verdict::Error) => 4,
            _ => 1,
        }
    })
}

/// The accepted values of a golden.
pub(crate) type GoldenValues = BTreeMap<Statistic, f64>;

/// The confidence that each of several looks must have, so that all together have the given one: none of them may then
/// be wrong more often than its share, however much they depend on each other (Bonferroni's inequality).
pub(crate) fn of_each_look(confidence: f64, looks: usize) -> f64 {
    1.0 - (1.0 - confidence) / looks.max(1) as f64
}

/// A limit, and what a measurement makes of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JudgedLimit {
    /// The statistic that is bounded.
    pub statistic: Statistic,
    /// The category whose chunks it is taken of. None for all chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// The value that was measured.
    pub value: f64,
    /// The bound, which is itself a good value.
    pub bound: f64,
    /// Where the policy states the limit: `thresholds.toml:12`.
    pub origin: String,
    /// Whether the value keeps the bound.
    pub holds: bool,
    /// Whether the bound is within the value's interval, or within two standard errors if there is no interval.
    pub borderline: bool,
    /// The confidence with which the bound must be kept. None if the value decides as it is, because the policy says no
    /// confidence or because the value has no interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// How many looks share what the confidence leaves to chance, if the policy lets a run look more than once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looks: Option<usize>,
    /// The lower end of the value's interval, if it has one. Its confidence is 0.95 if the policy says none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// The upper end of the interval. None if nothing bounds the value from above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    /// Why the value decides as it is although the policy says a confidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_interval: Option<String>,
}

impl JudgedLimit {
    /// The confidence of the interval, if the policy asks for one: each of several looks has an equal share of what the
    /// policy's confidence leaves to chance.
    #[must_use]
    pub fn confidence_of_interval(&self) -> Option<f64> {
        self.confidence.map(|confidence| of_each_look(confidence, self.looks.unwrap_or(1)))
    }

    /// What is bounded.
    #[must_use]
    pub fn quantity(&self) -> Quantity {
        Quantity { category: self.category.clone(), statistic: self.statistic }
    }

    /// What is known of the limit.
    #[must_use]
    pub fn decision(&self) -> Decision {
        let Some((low, high)) = self.confidence.and(self.interval()) else {
            return if self.holds { Decision::Kept } else { Decision::Broken };
        };
        match self.statistic.direction() {
            Direction::AtMost => Decision::of((low, high), self.bound),
            Direction::AtLeast => Decision::of((-high, -low), -self.bound),
        }
    }

    /// The ends of the value's interval. The upper one may be infinite.
    #[must_use]
    pub fn interval(&self) -> Option<(f64, f64)> {
        self.low.map(|low| (low, self.high.unwrap_or(f64::INFINITY)))
    }

    /// The harm divided by the harm that the limit allows: above 1 if the limit is broken.
    ///
    /// Where a statistic must be large, its complement is the harm: an agreement of 0.70 where 0.85 is required has the
    /// ratio 2. The ratio is infinite if the limit allows no harm and there is some.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        match self.statistic.direction() {
            Direction::AtMost => ratio(self.value, self.bound),
            Direction::AtLeast => ratio(1.0 - self.value, 1.0 - self.bound),
        }
    }

    /// How an undecided value stands to its limit: `0.95 × its limit (0.78 to 1.40)`.
    #[must_use]
    pub fn doubt(&self) -> String {
        let ratio = |value: f64| JudgedLimit { value, ..self.clone() }.ratio();
        let (low, high) = self.interval().unwrap_or((self.value, self.value));
        let [least, most] = match self.statistic.direction() {
            Direction::AtMost => [ratio(low), ratio(high)],
            Direction::AtLeast => [ratio(high), ratio(low)],
        };
        let what = match self.statistic.direction() {
            Direction::AtMost => "its limit",
            Direction::AtLeast => "the misses that its limit allows",
        };
        let most = if most.is_finite() { format!("to {most:.2}") } else { "and more".into() };
        format!("{:.2} × {what} ({least:.2} {most})", self.ratio())
    }

    /// By how much the limit is broken: `2.40 × its limit`. Of a statistic that must be large the misses are
    /// counted: agreement 0.70 where 0.85 is asked for is `2.00 × the misses that its limit allows`.
    #[must_use]
    pub fn excess(&self) -> String {
        match (self.statistic.direction(), self.ratio()) {
            (Direction::AtMost, _) => excess(self.value, self.bound),
            (Direction::AtLeast, ratio) if ratio.is_finite() => {
                format!("{ratio:.2} × the misses that its limit allows")
            }
            (Direction::AtLeast, _) => format!("under its limit of {}", self.bound),
        }
    }
}

/// The limit on a statistic of all chunks, if there is one.
pub(crate) fn limit_on(limits: &[JudgedLimit], statistic: Statistic) -> Option<&JudgedLimit> {
    limits.iter().find(|limit| limit.statistic == statistic && limit.category.is_none())
}

/// A limit of a case, whatever it is on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum CaseLimit<'c> {
    /// A limit on a statistic.
    Statistic(&'c JudgedLimit),
    /// A limit on what is retrieved.
    Retrieval(&'c JudgedRetrieval),
}

impl<'c> CaseLimit<'c> {
    /// Whether it is about the model, and not about a scheme.
    pub fn is_of_the_baseline(&self) -> bool {
        matches!(self, CaseLimit::Statistic(own) if own.statistic == Statistic::BaselinePpl)
    }

    /// What is known of the limit.
    pub fn decision(self) -> Decision {
        match self {
            CaseLimit::Statistic(limit) => limit.decision(),
            CaseLimit::Retrieval(limit) => limit.decision,
        }
    }

    /// The harm divided by the harm that the limit allows.
    pub fn ratio(self) -> f64 {
        match self {
            CaseLimit::Statistic(limit) => limit.ratio(),
            CaseLimit::Retrieval(limit) => limit.ratio(),
        }
    }

    /// Where the policy states the limit.
    pub fn origin(self) -> &'c str {
        match self {
            CaseLimit::Statistic(limit) => &limit.origin,
            CaseLimit::Retrieval(limit) => &limit.origin,
        }
    }
}

/// All limits of a case.
pub(crate) fn limits_of(case: &CaseResult) -> impl Iterator<Item = CaseLimit<'_>> {
    let of_retrieval = case.retrieval.iter().map(CaseLimit::Retrieval);
    of_retrieval.chain(case.limits.iter().map(CaseLimit::Statistic))
}

/// The limit that a case breaks the most, or, if it breaks none, the undecided one that is nearest to that. A limit on the
/// baseline is before all others: the numbers of schemes say little where the model itself is worse.
pub(crate) fn worst(case: &CaseResult) -> Option<CaseLimit<'_>> {
    [Decision::Broken, Decision::Undecided].into_iter().find_map(|wanted| {
        let own = limits_of(case).filter(|limit| limit.decision() == wanted);
        own.max_by(|a, b| {
            let of_the_model = a.is_of_the_baseline().cmp(&b.is_of_the_baseline());
            of_the_model.then(a.ratio().total_cmp(&b.ratio()))
        })
    })
}

/// Whether the model itself is what breaks a limit of a case, whatever its scheme does.
pub(crate) fn breaks_the_baseline(case: &CaseResult) -> bool {
    worst(case)
        .is_some_and(|limit| limit.is_of_the_baseline() && limit.decision() == Decision::Broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_has_its_mark_word_and_colour() {
        use Verdict::*;
        let red = [Regressed, UnexpectedPass, GoldenChanged, Stale, Inconclusive, Error];
        let all = [vec![Pass, FailsAsRequired, Reported, Ignored], red.to_vec()].concat();
        for verdict in all {
            assert_eq!(verdict.is_red(), red.contains(&verdict), "{verdict:?}");
            assert_eq!(verdict.symbol().contains('✓'), verdict == Pass, "{verdict:?}");
            let word = serde_json::to_string(&verdict).unwrap().replace('_', " ");
            assert_eq!(word, format!("\"{}\"", verdict.label()));
        }
        assert_eq!(FailsAsRequired.symbol(), "✗ (expected)");
    }

    #[test]
    fn exit_codes() {
        use Verdict::*;
        for (verdicts, code) in [
            (vec![], 0),
            (vec![Pass, FailsAsRequired, Reported, Ignored], 0),
            (vec![Pass, Error, Pass], 4),
            (vec![Error, Regressed], 1),
            (vec![Regressed, Error], 1),
            (vec![Error, Pass, Error], 4),
        ] {
            assert_eq!(exit_code(verdicts.clone()), code, "{verdicts:?}");
        }
        for one in [Regressed, UnexpectedPass, GoldenChanged, Stale, Inconclusive] {
            assert_eq!(exit_code([one]), 1, "{one:?}");
        }
    }
}
