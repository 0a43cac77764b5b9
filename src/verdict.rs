//! Limits × expectation → verdict: pure functions of statistics and policy.

use serde::{Deserialize, Serialize};

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
