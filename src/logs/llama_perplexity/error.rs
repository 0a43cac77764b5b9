//! What can be wrong with a log, or with some of them together.

use crate::logs::llama_perplexity::{LEAST_TOKENS, MAX_BYTES};

/// Why a log, or some of them, cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{path}: {source}")]
    Read { path: String, source: std::io::Error },
    /// No log is that long.
    #[error("{path}: more than {} MiB; a log of llama-perplexity is shorter: run it with -lv 4, not -v", MAX_BYTES >> 20)]
    TooLong { path: String },
    /// The run ended before it printed its statistics.
    #[error("{path}: the log ends before its statistics, with `{last}`{}", hint(.tokens))]
    EndsEarly {
        path: String,
        /// The last line that is not empty.
        last: String,
        /// How many tokens the run was to score, if it said so.
        tokens: Option<u64>,
    },
    /// The caches are those of another program.
    #[error(
        "{path}:{line}: a log of ik_llama.cpp, whose caches are its own: what it calls q4_0 is rotated and scaled \
         otherwise than llama.cpp's, and it does not say how; kvgate reads logs of llama.cpp itself"
    )]
    Fork {
        path: String,
        /// The line that shows it, counted from 1.
        line: usize,
    },
    /// The build is too old: its log says too little.
    #[error(
        "{path}:{line}: a build of llama.cpp from before May 2024, which prints neither the perplexity's ratio nor \
         the change in probabilities; measure with a newer one"
    )]
    TooOld {
        path: String,
        /// The line that shows it, counted from 1.
        line: usize,
    },
    /// The log is of more than one run, or of the run that made the baseline.
    #[error("{path}:{line}: a second run begins here; write one log a run, and that of the baseline apart")]
    TwoRuns {
        path: String,
        /// The line, counted from 1.
        line: usize,
    },
    /// The log lacks something that a verdict needs.
    #[error("{path}: no line says {what}; {mend}")]
    Missing { path: String, what: String, mend: &'static str },
    /// A statistic is no number.
    #[error("{path}:{line}: {statistic} is `{value}`, which is no number: the measurement cannot be trusted")]
    NotANumber {
        path: String,
        /// The line, counted from 1.
        line: usize,
        statistic: &'static str,
        value: String,
    },
    /// llama.cpp reported an error and went on.
    #[error("{path}:{line}: llama-perplexity reported `{message}` and went on: its numbers mean nothing")]
    Reported {
        path: String,
        /// The line, counted from 1.
        line: usize,
        message: String,
    },
    /// The run altered the checkpoint.
    #[error(
        "{path}:{line}: `{message}`: what was measured is not the checkpoint alone; run llama-perplexity without \
         `--lora`, `--override-kv` and `--control-vector`"
    )]
    Altered {
        path: String,
        /// The line, counted from 1.
        line: usize,
        message: String,
    },
    /// The caches are of several types.
    #[error("{path}: the caches of one context are stored in different ways, {one} and {other}: no scheme says so")]
    MixedCaches { path: String, one: String, other: String },
    /// There is nothing to judge.
    #[error("no log to judge")]
    Nothing,
    /// The log was not measured as the policy says.
    #[error("{path}: {what} is {found}, and {wanted}{mend}")]
    OtherConditions {
        path: String,
        what: &'static str,
        /// The log's.
        found: String,
        /// The model, and what the policy says.
        wanted: String,
        mend: &'static str,
    },
    /// Two logs cannot be compared with each other.
    #[error("{path}: {what} is {found}, and {wanted} in {other}: logs of one model must be of one build and one baseline file")]
    OtherRun { path: String, what: &'static str, found: String, wanted: String, other: String },
    /// The policy does not have the scheme.
    #[error("{path}: its cache is `{scheme}`, and no scheme of `{model}` in the policy is stored so; it has {}", .cells.join(", "))]
    NoCell { path: String, scheme: String, model: String, cells: Vec<String> },
    /// Two logs are of one scheme.
    #[error("{path}: another log of `{scheme}`, as is {other}; judge one of them")]
    Twice { path: String, scheme: String, other: String },
}

fn hint(tokens: &Option<u64>) -> String {
    match tokens {
        Some(tokens) if *tokens < LEAST_TOKENS => format!(
            "; it scores {tokens} tokens, and llama-perplexity prints no statistics of fewer than {LEAST_TOKENS}"
        ),
        _ => "; see why llama-perplexity stopped, and run it again".into(),
    }
}
