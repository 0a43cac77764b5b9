//! TEMPORARY, until the policy branch is merged: the methods that it adds to `Verdict`.

use crate::verdict::Verdict;

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
        !matches!(self, Self::Pass | Self::FailsAsRequired | Self::Reported | Self::Ignored)
    }
}
