//! The baseline's text as a golden of its own, one a model: what every scheme is fed, and what a person
//! reads when the model changes.
//!
//! ```text
//! weights         a5fd3b62…
//! prompts         0b21…
//! template        none
//! thinking        off
//! tokens          64
//! baseline        f16/f16
//!
//! prompt          tides
//! text            "The sea…"
//! ids             504 3052 …
//! near_ties       3 17
//! ```

use super::{GoldenError, Lines, HEADER};
use crate::measure::replay::{Continuation, Generated};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where a model's is, under the policy's folder. Goldens of cases have `__` in their names.
pub fn text_path(root: &Path, model: &str) -> PathBuf {
    super::path(root, &text_stem(model))
}

/// Stem of the file.
pub(crate) fn text_stem(model: &str) -> String {
    format!("{model}.text")
}

/// The accepted text of a model, or none yet.
///
/// # Errors
/// A file that cannot be read, or is not what kvgate writes.
pub fn read_text(root: &Path, model: &str) -> Result<Option<Generated>, GoldenError> {
    let path = text_path(root, model);
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(&text, &path.display().to_string()).map(Some),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(GoldenError::Read { path: path.display().to_string(), source }),
    }
}

/// The whole file.
pub(super) fn snapshot(generated: &Generated) -> String {
    format!("{HEADER}{}", Shown(generated))
}

pub(super) struct Shown<'a>(pub &'a Generated);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let g = self.0;
        let thinking = if g.thinking { "on" } else { "off" };
        let tokens = g.tokens.to_string();
        let lines: [(&str, &str); 6] = [
            ("weights", &g.weights_sha256),
            ("prompts", &g.prompts_sha256),
            ("template", &g.template_sha256),
            ("thinking", thinking),
            ("tokens", &tokens),
            ("baseline", &g.baseline),
        ];
        for (name, value) in lines {
            writeln!(f, "{name:<16}{value}")?;
        }
        for continuation in &g.continuations {
            writeln!(f, "\n{:<16}{}", "prompt", continuation.prompt)?;
            writeln!(f, "{:<16}{}", "text", quoted(&continuation.text))?;
            writeln!(f, "{:<16}{}", "ids", numbers(&continuation.tokens))?;
            writeln!(f, "{:<16}{}", "near_ties", numbers(&continuation.near_ties))?;
        }
        Ok(())
    }
}

/// Text on one line, as JSON has it.
pub(super) fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("text is JSON")
}

/// Numbers with blanks between them; a dash for none.
fn numbers<N: ToString>(numbers: &[N]) -> String {
    match numbers {
        [] => "-".into(),
        numbers => numbers.iter().map(N::to_string).collect::<Vec<_>>().join(" "),
    }
}

/// The text that a file's content says.
///
/// # Errors
/// What is not what kvgate writes.
pub(crate) fn parse(text: &str, path: &str) -> Result<Generated, GoldenError> {
    let mut lines = Lines { lines: text.lines().enumerate(), path, at: 0 };
    lines.header()?;
    let mut generated = Generated {
        weights_sha256: lines.field("weights")?,
        prompts_sha256: lines.field("prompts")?,
        template_sha256: lines.field("template")?,
        thinking: lines.field("thinking")? == "on",
        tokens: lines.number("tokens")?,
        baseline: lines.field("baseline")?,
        continuations: Vec::new(),
        accepted: true,
        own_flips: 0,
    };
    while lines.is_next("prompt") {
        generated.continuations.push(Continuation {
            prompt: lines.field("prompt")?,
            text: lines.text("text")?,
            tokens: lines.numbers("ids")?,
            near_ties: lines.numbers("near_ties")?,
        });
    }
    match lines.next() {
        None => Ok(generated),
        Some(line) => Err(lines.error(format!("unexpected line `{line}`"))),
    }
}

impl Lines<'_> {
    fn numbers<N: FromStr>(&mut self, name: &str) -> Result<Vec<N>, GoldenError> {
        let value = self.field(name)?;
        if value == "-" {
            return Ok(Vec::new());
        }
        let number = |word: &str| {
            word.parse().map_err(|_| self.error(format!("`{name}` must be numbers, not `{word}`")))
        };
        value.split(' ').map(number).collect()
    }

    /// A field that is text on one line.
    pub(super) fn text(&mut self, name: &str) -> Result<String, GoldenError> {
        let value = self.field(name)?;
        serde_json::from_str(&value)
            .map_err(|_| self.error(format!("`{name}` must be text in quotes, not `{value}`")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;

    #[test]
    fn reads_back_what_it_writes() {
        let generated = fixture::generated();
        let text = snapshot(&generated);
        assert_eq!(parse(&text, "m.text.snap").unwrap(), Generated { accepted: true, ..generated });
        let broken = text.replace("ids             5 6", "ids             5 x");
        let error = parse(&broken, "m.text.snap").unwrap_err().to_string();
        assert!(error.contains("`ids` must be numbers, not `x`"), "{error}");
        assert!(parse(&text[..text.len() - 20], "m.text.snap").is_err());
    }
}
