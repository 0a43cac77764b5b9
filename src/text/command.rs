//! Commands that people can paste into a shell.

use std::fmt;

/// The command that runs the cases whose names contain `filter`.
pub(crate) fn run(filter: &str) -> String {
    format!("kvgate run {}", word(filter))
}

/// The command that writes the goldens of `cases`, or of all where none is named, from a file of results.
/// `policy` is the policy's file, unless it is the one that the command reads anyway.
pub(crate) fn accept(results: &str, cases: &[&str], policy: Option<&str>) -> String {
    let mut command = format!("kvgate accept {}", word(results));
    for case in cases {
        command += &format!(" {}", word(case));
    }
    if let Some(policy) = policy {
        command += &format!(" --config {}", word(policy));
    }
    command
}

/// The command that measures schemes of a model without a policy.
pub(crate) struct Measure<'a> {
    /// The model, as the command line takes it.
    pub source: &'a str,
    /// Text files, each of which is a category.
    pub corpus: &'a [String],
    /// The calibration, where a scheme needs one.
    pub calibration: Option<String>,
    /// Schemes, separated by commas.
    pub schemes: &'a str,
    /// Tokens in a chunk.
    pub context: usize,
    pub chunks: usize,
    /// The scheme that the others are compared with, unless it is f16, the default.
    pub baseline: Option<&'a str>,
    /// Options that say how the checkpoint is read, word by word.
    pub options: &'a [String],
}

impl fmt::Display for Measure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { context, chunks, .. } = self;
        write!(f, "kvgate measure {}", word(self.source))?;
        for file in self.corpus {
            write!(f, " --corpus {}", word(file))?;
        }
        if let Some(file) = &self.calibration {
            write!(f, " --calibration {}", word(file))?;
        }
        write!(f, " --schemes {} --context {context} --chunks {chunks}", word(self.schemes))?;
        for option in self.options {
            write!(f, " {}", word(option))?;
        }
        self.baseline.map_or(Ok(()), |baseline| write!(f, " --baseline {}", word(baseline)))
    }
}

/// One word of a command, quoted where a shell would read it as something else.
pub(crate) fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@=".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    // a NUL, which no shell can be given, is the only thing that cannot be quoted; it is escaped when it is shown
    let quoted = shlex::Quoter::new().allow_nul(true).quote(text);
    quoted.map_or_else(|_| text.to_owned(), |quoted| quoted.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_words_that_were_meant() {
        let path = "it's a \"folder\"/$HOME/res ults.json";
        for text in [path, "q8_0,q4_0:tail=32", "a`b`", "", "größe", "-x"] {
            assert_eq!(shlex::split(&word(text)).unwrap(), [text]);
        }
        let command = accept(path, &["m::q8_0/q4_0", "m's::q4_0"], Some("my policy.toml"));
        assert_eq!(
            shlex::split(&command).unwrap(),
            ["kvgate", "accept", path, "m::q8_0/q4_0", "m's::q4_0", "--config", "my policy.toml"]
        );
        assert_eq!(shlex::split(&run("a b")).unwrap(), ["kvgate", "run", "a b"]);
        let measure = Measure {
            source: path,
            corpus: &["my prose.txt".into()],
            calibration: Some("my calibration".into()),
            schemes: "q8_0,q4_0",
            context: 512,
            chunks: 16,
            baseline: Some("f32"),
            options: &["--ignore-key".into(), "a b".into()],
        };
        let words = shlex::split(&measure.to_string()).unwrap();
        assert_eq!(words[2..6], [path, "--corpus", "my prose.txt", "--calibration"]);
        assert!(words.contains(&"my calibration".into()) && words.contains(&"a b".into()));
    }

    #[test]
    fn plain_words_stay_as_they_are() {
        assert_eq!(run("m::q8_0/q4_0::"), "kvgate run m::q8_0/q4_0::");
        assert_eq!(word("q8_0,q4_0:tail=32"), "q8_0,q4_0:tail=32");
    }
}
