//! Engines that measured: kvgate's own, and those whose output is read.
//!
//! A release engineer trusts the engine that they ship. What it measured is judged by the same
//! policy, compared with goldens of its own, and never with those of another engine.

pub mod llama_perplexity;

/// Who measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// This crate, and whatever is not known: both must bring control lanes.
    Kvgate,
    /// llama.cpp, by the logs of its `llama-perplexity`.
    LlamaCpp,
}

impl Engine {
    /// All of them.
    pub const ALL: [Engine; 2] = [Engine::Kvgate, Engine::LlamaCpp];

    /// The engine that [`Conditions::engine`](crate::results::Conditions::engine) names: its first word.
    pub fn of(conditions: &str) -> Self {
        match conditions.split_whitespace().next() {
            Some("llama.cpp") => Engine::LlamaCpp,
            _ => Engine::Kvgate,
        }
    }

    /// Its name, without a version.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Kvgate => "kvgate",
            Engine::LlamaCpp => "llama.cpp",
        }
    }

    /// The folder under `goldens/` that its goldens lie in; none for kvgate's own.
    pub(crate) fn folder(self) -> Option<&'static str> {
        match self {
            Engine::Kvgate => None,
            Engine::LlamaCpp => Some(self.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_names_the_engine() {
        assert_eq!(Engine::of("llama.cpp b11434"), Engine::LlamaCpp);
        for own in
            ["kvgate numerics 1", "kvgate numerics 1, mimicking llama.cpp", "", "llama.cppx b1"]
        {
            assert_eq!(Engine::of(own), Engine::Kvgate, "{own}");
        }
    }
}
