//! Reads the lines of a golden.

use super::{GoldenError, UNKNOWN};
use crate::results::statistics::Statistic;
use crate::results::{Conditions, CorpusFile, Subject};

/// Reads the lines of a golden that are not empty, in their fixed order.
pub(super) struct Lines<'a> {
    lines: std::iter::Enumerate<std::str::Lines<'a>>,
    path: &'a str,
    /// The number of the line that was read last, for messages.
    at: usize,
}

impl<'a> Lines<'a> {
    /// The lines of a text. `path` is for messages.
    pub(super) fn of(text: &'a str, path: &'a str) -> Self {
        Lines { lines: text.lines().enumerate(), path, at: 0 }
    }

    pub(super) fn error(&self, problem: impl Into<String>) -> GoldenError {
        GoldenError::Parse { path: self.path.into(), line: self.at, problem: problem.into() }
    }

    pub(super) fn next(&mut self) -> Option<&'a str> {
        let (i, line) = self.lines.find(|(_, line)| !line.trim().is_empty())?;
        self.at = i + 1;
        Some(line.trim())
    }

    /// The next line, in which `what` must stand.
    pub(super) fn expect(&mut self, what: &str) -> Result<&'a str, GoldenError> {
        let Some(line) = self.next() else {
            self.at += 1;
            return Err(self.error(format!("the file ends where `{what}` must stand")));
        };
        if ["<<<<<<<", "=======", ">>>>>>>", "|||||||"].iter().any(|m| line.starts_with(m)) {
            return Err(self.error("a merge left its markers here"));
        }
        Ok(line)
    }

    /// Skips insta's header with whatever fields it has.
    pub(super) fn header(&mut self) -> Result<(), GoldenError> {
        if self.expect("---")? != "---" {
            return Err(self.error("a snapshot starts with `---`"));
        }
        while self.expect("---")? != "---" {}
        Ok(())
    }

    /// The next line, which must be this title.
    pub(super) fn title(&mut self, title: &str) -> Result<(), GoldenError> {
        match self.expect(title)? {
            line if line == title => Ok(()),
            line => Err(self.error(format!("expected `{title}`, found `{line}`"))),
        }
    }

    /// The value of the next line, which must have this name.
    pub(super) fn field(&mut self, name: &str) -> Result<String, GoldenError> {
        let line = self.expect(name)?;
        match line.split_once(char::is_whitespace) {
            Some((found, value)) if found == name => Ok(value.trim().into()),
            _ => Err(self.error(format!("expected `{name}` and a value, found `{line}`"))),
        }
    }

    pub(super) fn number<T: std::str::FromStr>(&mut self, name: &str) -> Result<T, GoldenError> {
        let value = self.field(name)?;
        value.parse().map_err(|_| self.error(format!("`{name}` must be a number, not `{value}`")))
    }

    /// The value of a statistic. It is NaN for a percentile that some builds of llama.cpp do not report.
    pub(super) fn statistic(&mut self, statistic: Statistic) -> Result<f64, GoldenError> {
        let name = statistic.name();
        if self.is_next(name) && matches!(statistic, Statistic::P90Kld | Statistic::P95Kld) {
            let mut ahead = self.lines.clone();
            let line = ahead.find(|(_, line)| !line.trim().is_empty());
            if line.is_some_and(|(_, line)| line.trim_end().ends_with(UNKNOWN)) {
                self.field(name)?;
                return Ok(f64::NAN);
            }
        }
        match self.number(name)? {
            value if f64::is_finite(value) => Ok(value),
            _ => Err(self.error(format!("`{name}` must be a number"))),
        }
    }

    /// Whether the next line has this name. It is not consumed.
    pub(super) fn is_next(&self, name: &str) -> bool {
        let mut ahead = self.lines.clone().map(|(_, line)| line.trim()).filter(|l| !l.is_empty());
        ahead.next().is_some_and(|line| line.split_whitespace().next() == Some(name))
    }

    /// Whether the next line is this title. It is not consumed.
    pub(super) fn is_title(&self, title: &str) -> bool {
        let mut ahead = self.lines.clone().map(|(_, line)| line.trim_end());
        ahead.find(|line| !line.is_empty()) == Some(title)
    }

    pub(super) fn subject(&mut self) -> Result<Subject, GoldenError> {
        self.title("subject")?;
        let weights_sha256 = self.field("weights")?;
        let tokenizer_sha256 =
            self.is_next("tokenizer").then(|| self.field("tokenizer")).transpose()?;
        Ok(Subject { weights_sha256, tokenizer_sha256, architecture: self.field("architecture")? })
    }

    pub(super) fn conditions(&mut self) -> Result<Conditions, GoldenError> {
        self.title("conditions")?;
        let mut corpus = Vec::new();
        while self.is_next("corpus") {
            let value = self.field("corpus")?;
            let Some((category, sha256)) = value.rsplit_once(' ') else {
                return Err(self.error("`corpus` must have a name and a SHA-256"));
            };
            corpus.push(CorpusFile { category: category.into(), sha256: sha256.into() });
        }
        let mut conditions = Conditions {
            corpus,
            context: self.number("context")?,
            chunks: self.number("chunks")?,
            baseline: self.field("baseline")?,
            engine: self.field("engine")?,
            device: self.field("device")?,
            weights: self.field("weights")?,
            reading: Vec::new(),
            prompts: None,
            needs: Vec::new(),
        };
        while self.is_next("reading") {
            conditions.reading.push(self.field("reading")?);
        }
        if self.is_next("prompts") {
            conditions.prompts = Some(self.field("prompts")?);
        }
        while self.is_next("needs") {
            conditions.needs.push(self.field("needs")?);
        }
        Ok(conditions)
    }
}
