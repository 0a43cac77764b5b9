//! The engines whose measurements are judged.
//!
//! A release engineer trusts the engine that they ship. What that engine measured is judged by the same policy, and
//! compared with goldens of its own, never with those of another engine.

/// The engine that made a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeasuredBy {
    /// This crate. Measurements of unknown origin count as its own, so they must carry control lanes as well.
    Kvgate,
    /// llama.cpp, through the logs of its `llama-perplexity`.
    LlamaCpp,
}

impl MeasuredBy {
    /// All engines.
    pub const ALL: [MeasuredBy; 2] = [MeasuredBy::Kvgate, MeasuredBy::LlamaCpp];

    /// The engine that [`Conditions::engine`](crate::results::Conditions::engine) names with its first word.
    pub fn of(conditions: &str) -> Self {
        match conditions.split_whitespace().next() {
            Some("llama.cpp") => MeasuredBy::LlamaCpp,
            _ => MeasuredBy::Kvgate,
        }
    }

    /// The engine's name, without a version.
    pub fn name(self) -> &'static str {
        match self {
            MeasuredBy::Kvgate => "kvgate",
            MeasuredBy::LlamaCpp => "llama.cpp",
        }
    }

    /// The folder of the engine's goldens in `goldens/`. None for kvgate, whose goldens lie in `goldens/` itself.
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
