//! What is known of a limit.

use serde::{Deserialize, Serialize};

/// What is known of a limit, on a statistic or on what is retrieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It is kept, with the confidence that the policy asks for.
    Kept,
    /// It is broken, with that confidence.
    Broken,
    /// The interval holds the bound, so it may be either.
    Undecided,
}

impl Decision {
    /// Its mark beside a limit.
    #[must_use]
    pub fn mark(self) -> &'static str {
        match self {
            Decision::Kept => "✓",
            Decision::Broken => "✗",
            Decision::Undecided => "?",
        }
    }

    /// What an interval of a value makes of the largest value that passes.
    pub(crate) fn of((low, high): (f64, f64), most: f64) -> Self {
        if high <= most {
            Decision::Kept
        } else if low > most {
            Decision::Broken
        } else {
            Decision::Undecided
        }
    }
}

/// The harm divided by the harm that a limit allows, which is infinite if the limit allows none and there is some.
pub(crate) fn ratio(harm: f64, allowed: f64) -> f64 {
    if harm <= 0.0 {
        0.0
    } else {
        harm / allowed
    }
}

/// By how much a value is over the largest one that passes: `2.40 × its limit`.
pub(crate) fn excess(value: f64, most: f64) -> String {
    match ratio(value, most) {
        ratio if ratio.is_finite() => format!("{ratio:.2} × its limit"),
        _ => format!("over its limit of {most}"),
    }
}
