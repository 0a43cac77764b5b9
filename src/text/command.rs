//! Commands that people can paste into a shell.

use std::fmt;

/// The command that runs the cases whose names contain a word.
pub(crate) fn run_command(filter: &str) -> String {
    format!("kvgate run '{}'", filter.replace('\'', r"'\''"))
}

/// The command that measures schemes of a model without a policy.
pub(crate) struct Measure<'a> {
    /// The model, as the command line takes it.
    pub source: &'a str,
    /// Files of text.
    pub corpus: &'a [String],
    /// What calibrated schemes need.
    pub calibration: Option<String>,
    /// With commas between.
    pub schemes: &'a str,
    /// Tokens in a chunk.
    pub context: usize,
    /// Chunks.
    pub chunks: usize,
    /// What schemes are compared with, unless it is f16, the default.
    pub baseline: Option<&'a str>,
    /// How the checkpoint is read, word by word.
    pub options: &'a [String],
}

impl fmt::Display for Measure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { context, chunks, .. } = self;
        write!(f, "kvgate measure {}", quoted(self.source))?;
        for file in self.corpus {
            write!(f, " --corpus {}", quoted(file))?;
        }
        if let Some(file) = &self.calibration {
            write!(f, " --calibration {}", quoted(file))?;
        }
        write!(f, " --schemes {} --context {context} --chunks {chunks}", quoted(self.schemes))?;
        for word in self.options {
            write!(f, " {}", quoted(word))?;
        }
        self.baseline.map_or(Ok(()), |baseline| write!(f, " --baseline {}", quoted(baseline)))
    }
}

/// A word that a shell takes as it is.
fn quoted(word: &str) -> String {
    if word.chars().all(|c| c.is_alphanumeric() || "/._-+,:@=".contains(c)) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_fit_for_a_shell() {
        assert_eq!(quoted("models/a-b_1.gguf"), "models/a-b_1.gguf");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted("$HOME"), "'$HOME'");
    }
}
