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
}
