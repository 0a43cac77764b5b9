//! Verdicts: what a case came to, and the exit code of a run.

use super::statistics::{Direction, Statistic};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a case came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All limits hold, or the golden matches.
    Pass,
    /// `expect = "fail"` and a limit is broken: as required, and never a recommendation.
    FailsAsRequired,
    /// `expect = "report"`: measured and shown.
    Reported,
    /// A limit is broken.
    Regressed,
    /// `expect = "fail"`, yet every limit holds.
    UnexpectedPass,
    /// The values left the golden's tolerance, or there is no golden yet.
    GoldenChanged,
    /// The golden was made under other conditions: measure and accept again.
    Stale,
    /// Not decided by the positions measured.
    Inconclusive,
    /// Listed and not run.
    Ignored,
    /// Could not be measured, or the measurement cannot be trusted.
    Error,
}

impl Verdict {
    /// The mark in tables. Only a pass has a check mark.
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

/// The exit code of a run with these verdicts: 0 all as the policy wants, 1 something is not as it
/// should be, 4 something could not be measured. 1 outranks 4: a retry must not hide a regression.
pub fn exit_code(verdicts: impl IntoIterator<Item = Verdict>) -> u8 {
    verdicts.into_iter().filter(|verdict| verdict.is_red()).fold(0, |code, verdict| {
        match (code, verdict) {
            (1, _) => 1,
            (_, Verdict::Error) => 4,
            _ => 1,
        }
    })
}

/// The accepted values of a case.
pub type GoldenValues = BTreeMap<Statistic, f64>;

/// A limit, and what a measurement makes of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JudgedLimit {
    /// What is bounded.
    pub statistic: Statistic,
    /// What was measured.
    pub value: f64,
    /// The last good value.
    pub bound: f64,
    /// Where the limit was written: `thresholds.toml:12`.
    pub origin: String,
    /// Whether it holds.
    pub holds: bool,
    /// Whether the value is within two standard errors of it.
    pub borderline: bool,
}

impl JudgedLimit {
    /// Harm over allowed harm: above 1 where the limit is broken. Of a share that must be large, its
    /// complement is the harm: agreement 0.70 where 0.85 is asked for has ratio 2. Infinite where no
    /// harm is allowed and some is there.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        let (harm, allowed) = match self.statistic.direction() {
            Direction::AtMost => (self.value, self.bound),
            Direction::AtLeast => (1.0 - self.value, 1.0 - self.bound),
        };
        if harm <= 0.0 {
            0.0
        } else {
            harm / allowed
        }
    }

    /// By how much the limit is broken: `2.40 × its limit`. Of a statistic that must be large the misses are
    /// counted: agreement 0.70 where 0.85 is asked for is `2.00 × the misses that its limit allows`.
    #[must_use]
    pub fn excess(&self) -> String {
        let ratio = self.ratio();
        match self.statistic.direction() {
            Direction::AtMost if ratio.is_finite() => format!("{ratio:.2} × its limit"),
            Direction::AtLeast if ratio.is_finite() => {
                format!("{ratio:.2} × the misses that its limit allows")
            }
            Direction::AtMost => format!("over its limit of {}", self.bound),
            Direction::AtLeast => format!("under its limit of {}", self.bound),
        }
    }
}

/// The limit that is broken the most, if one is broken.
#[must_use]
pub fn worst_broken(limits: &[JudgedLimit]) -> Option<&JudgedLimit> {
    let broken = limits.iter().filter(|limit| !limit.holds);
    broken.max_by(|a, b| a.ratio().total_cmp(&b.ratio()))
}
