//! MeasuredBys that measured: kvgate's own, and those whose output is read.
//!
//! A release engineer trusts the engine that they ship. What it measured is judged by the same
//! policy, compared with goldens of its own, and never with those of another engine.

/// Who measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeasuredBy {
    /// This crate, and whatever is not known: both must bring control lanes.
    Kvgate,
    /// llama.cpp, by the logs of its `llama-perplexity`.
    LlamaCpp,
}

impl MeasuredBy {
    /// All of them.
    pub const ALL: [MeasuredBy; 2] = [MeasuredBy::Kvgate, MeasuredBy::LlamaCpp];

    /// The engine that [`Conditions::engine`](crate::results::Conditions::engine) names: its first word.
    pub fn of(conditions: &str) -> Self {
        match conditions.split_whitespace().next() {
            Some("llama.cpp") => MeasuredBy::LlamaCpp,
            _ => MeasuredBy::Kvgate,
        }
    }

    /// Its name, without a version.
    pub fn name(self) -> &'static str {
        match self {
            MeasuredBy::Kvgate => "kvgate",
            MeasuredBy::LlamaCpp => "llama.cpp",
        }
    }

    /// The folder under `goldens/` that its goldens lie in; none for kvgate's own.
    pub fn folder(self) -> Option<&'static str> {
        match self {
            MeasuredBy::Kvgate => None,
            MeasuredBy::LlamaCpp => Some(self.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_names_the_engine() {
        assert_eq!(MeasuredBy::of("llama.cpp b11434"), MeasuredBy::LlamaCpp);
        for own in
            ["kvgate numerics 1", "kvgate numerics 1, mimicking llama.cpp", "", "llama.cppx b1"]
        {
            assert_eq!(MeasuredBy::of(own), MeasuredBy::Kvgate, "{own}");
        }
    }
}
