//! The precision in which a card computes what schemes change.

use std::fmt;
use std::str::FromStr;

/// In which precision a card computes the lanes of schemes. The baseline is the same in both. On the CPU there is one
/// precision only: every lane is computed whole, in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// A lane's products are those of the baseline and of the difference from it, which is rounded to f16.
    #[default]
    Differences,
    /// A lane's products are computed as the baseline's are. This is slower; it is what differences are compared with.
    Whole,
}

impl Precision {
    /// The arithmetic of products on a card, as reports name it.
    pub fn arithmetic(self) -> &'static str {
        match self {
            Precision::Differences => {
                "f16 weights, differences from the baseline in f16, sums in f32"
            }
            Precision::Whole => "f16 weights, activations in two terms of f16, sums in f32",
        }
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let known = [Precision::Differences, Precision::Whole];
        let named = known.into_iter().find(|precision| precision.to_string() == s);
        named.ok_or_else(|| format!("`{s}` is no precision; use differences or whole"))
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::Differences => "differences",
            Precision::Whole => "whole",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_precision_is_read_as_it_is_written() {
        for precision in [Precision::Differences, Precision::Whole] {
            assert_eq!(precision.to_string().parse(), Ok(precision));
        }
        assert!("half".parse::<Precision>().unwrap_err().contains("differences or whole"));
    }
}
