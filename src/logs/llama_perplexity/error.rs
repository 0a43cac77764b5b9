//! What can be wrong with a log, or with some of them together.

use crate::logs::llama_perplexity::{LEAST_TOKENS, MAX_BYTES};

/// Why a log, or some of them, cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The reason.
        source: std::io::Error,
    },
    /// No log is that long.
    #[error("{path}: more than {} MiB; a log of llama-perplexity is shorter: run it with -lv 4, not -v", MAX_BYTES >> 20)]
    TooLong {
        /// The file.
        path: String,
    },
    /// The run did not come to its statistics.
    #[error("{path}: the log ends before its statistics, with `{last}`{}", hint(.tokens))]
    EndsEarly {
        /// The file.
        path: String,
        /// Its last line that says something.
        last: String,
        /// Tokens that the run was to score, if it said.
        tokens: Option<u64>,
    },
    /// Another program's caches.
    #[error(
        "{path}:{line}: a log of ik_llama.cpp, whose caches are its own: what it calls q4_0 is rotated and scaled \
         otherwise than llama.cpp's, and it does not say how; kvgate reads logs of llama.cpp itself"
    )]
    Fork {
        /// The file.
        path: String,
        /// The line that tells, counted from 1.
        line: usize,
    },
    /// A build that said too little.
    #[error(
        "{path}:{line}: a build of llama.cpp from before May 2024, which prints neither the perplexity's ratio nor \
         the change in probabilities; measure with a newer one"
    )]
    TooOld {
        /// The file.
        path: String,
        /// The line that tells, counted from 1.
        line: usize,
    },
    /// More than one run, or the run that made the baseline.
    #[error("{path}:{line}: a second run begins here; write one log a run, and that of the baseline apart")]
    TwoRuns {
        /// The file.
        path: String,
        /// The line, counted from 1.
        line: usize,
    },
    /// Something that a verdict needs is not said.
    #[error("{path}: no line says {what}; {mend}")]
    Missing {
        /// The file.
        path: String,
        /// What it is.
        what: String,
        /// How to have it said.
        mend: &'static str,
    },
    /// A statistic that is no number.
    #[error("{path}:{line}: {statistic} is `{value}`, which is no number: the measurement cannot be trusted")]
    NotANumber {
        /// The file.
        path: String,
        /// The line, counted from 1.
        line: usize,
        /// Its name in policies and goldens.
        statistic: &'static str,
        /// As it was printed.
        value: String,
    },
    /// llama.cpp went on after an error.
    #[error("{path}:{line}: llama-perplexity reported `{message}` and went on: its numbers mean nothing")]
    Reported {
        /// The file.
        path: String,
        /// The line, counted from 1.
        line: usize,
        /// What it said.
        message: String,
    },
    /// Not the checkpoint as it is was measured.
    #[error(
        "{path}:{line}: `{message}`: what was measured is not the checkpoint alone; run llama-perplexity without \
         `--lora`, `--override-kv` and `--control-vector`"
    )]
    Altered {
        /// The file.
        path: String,
        /// The line, counted from 1.
        line: usize,
        /// What it says.
        message: String,
    },
    /// Caches of several types.
    #[error("{path}: the caches of one context are stored in different ways, {one} and {other}: no scheme says so")]
    MixedCaches {
        /// The file.
        path: String,
        /// One way.
        one: String,
        /// Another.
        other: String,
    },
    /// There is nothing to judge.
    #[error("no log to judge")]
    Nothing,
    /// Measured otherwise than the policy says.
    #[error("{path}: {what} is {found}, and {wanted}{mend}")]
    OtherConditions {
        /// The file.
        path: String,
        /// What differs.
        what: &'static str,
        /// The log's.
        found: String,
        /// The policy's, of which model.
        wanted: String,
        /// What to do.
        mend: &'static str,
    },
    /// Logs that cannot stand in one table.
    #[error("{path}: {what} is {found}, and {wanted} in {other}: logs of one model must be of one build and one baseline file")]
    OtherRun {
        /// The file.
        path: String,
        /// What differs.
        what: &'static str,
        /// This log's.
        found: String,
        /// The other's.
        wanted: String,
        /// The other file.
        other: String,
    },
    /// A scheme that the policy has not.
    #[error("{path}: its cache is `{scheme}`, and no scheme of `{model}` in the policy is stored so; it has {}", .cells.join(", "))]
    NoCell {
        /// The file.
        path: String,
        /// What ran.
        scheme: String,
        /// The model in the policy.
        model: String,
        /// The policy's schemes.
        cells: Vec<String>,
    },
    /// Two logs of one scheme.
    #[error("{path}: another log of `{scheme}`, as is {other}; judge one of them")]
    Twice {
        /// The file.
        path: String,
        /// The scheme's label.
        scheme: String,
        /// The other file.
        other: String,
    },
}

fn hint(tokens: &Option<u64>) -> String {
    match tokens {
        Some(tokens) if *tokens < LEAST_TOKENS => format!(
            "; it scores {tokens} tokens, and llama-perplexity prints no statistics of fewer than {LEAST_TOKENS}"
        ),
        _ => "; see why llama-perplexity stopped, and run it again".into(),
    }
}
