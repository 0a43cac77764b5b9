//! The baseline's text as a golden of its own. There is one for each model with prompts. Every scheme is fed
//! this text, and people read it when the model changes.
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

use super::lines::Lines;
use super::{GoldenError, HEADER};
use crate::hash;
use crate::results::replay::{Continuation, Generated, NO_TEMPLATE, UNKNOWN_TEMPLATE};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The file of a model's text. `root` is the policy's folder. It cannot be the file of a cell, whose name has
/// `__` in it.
pub fn text_path(root: &Path, model: &str) -> PathBuf {
    super::path(root, &text_stem(model))
}

/// The stem of the file's name.
pub fn text_stem(model: &str) -> String {
    format!("{model}.text")
}

/// Reads the accepted text of a model. There may be none yet.
///
/// # Errors
/// The file cannot be read, or it is not what kvgate writes.
pub fn read_text(root: &Path, model: &str) -> Result<Option<Generated>, GoldenError> {
    let path = text_path(root, model);
    let text = super::read_file(&path)?;
    text.map(|text| parse(&text, &path.display().to_string())).transpose()
}

/// The text of the whole file.
pub(crate) fn snapshot(generated: &Generated) -> String {
    format!("{HEADER}{}", Shown(generated))
}

/// The text of the whole file, if it is read as the same text again.
///
/// # Errors
/// Why the file would not be read, or would be read as another text.
pub(crate) fn readable_snapshot(generated: &Generated) -> Result<String, String> {
    let text = snapshot(generated);
    let read = parse(&text, super::FOLDER).map_err(GoldenError::problem)?;
    let same = read.is_of(generated) || generated.template_sha256 == UNKNOWN_TEMPLATE;
    if same && read.continuations == generated.continuations {
        Ok(text)
    } else {
        Err("it would be read as another text than was written".into())
    }
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

/// A text on one line, quoted as in JSON.
pub(super) fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("text is JSON")
}

/// Numbers with blanks between them, or a dash if there are none.
fn numbers<N: ToString>(numbers: &[N]) -> String {
    match numbers {
        [] => "-".into(),
        numbers => numbers.iter().map(N::to_string).collect::<Vec<_>>().join(" "),
    }
}

/// Parses a file's content. `path` is for messages.
///
/// # Errors
/// The content is not what kvgate writes.
pub(crate) fn parse(text: &str, path: &str) -> Result<Generated, GoldenError> {
    let mut lines = Lines::of(text, path);
    lines.header()?;
    let mut generated = Generated {
        weights_sha256: lines.sha256("weights")?,
        prompts_sha256: lines.sha256("prompts")?,
        template_sha256: match lines.field("template")? {
            word if [NO_TEMPLATE, UNKNOWN_TEMPLATE].contains(&word.as_str()) => word,
            hash => lines.checked_sha256("template", hash)?,
        },
        thinking: match &lines.field("thinking")?[..] {
            "on" => true,
            "off" => false,
            other => return Err(lines.error(format!("`thinking` is on or off, not `{other}`"))),
        },
        tokens: lines.number("tokens")?,
        baseline: lines.field("baseline")?,
        continuations: Vec::new(),
        accepted: true,
        own_flips: 0,
        wrong_ties: 0,
    };
    while lines.is_next("prompt") {
        let continuation = lines.continuation(generated.tokens)?;
        if generated.continuations.iter().any(|other| other.prompt == continuation.prompt) {
            return Err(lines.error(format!("`{}` is continued twice", continuation.prompt)));
        }
        generated.continuations.push(continuation);
    }
    match lines.next() {
        Some(line) => Err(lines.error(format!("unexpected line `{line}`"))),
        None if generated.continuations.is_empty() => {
            Err(lines.error("the file ends where `prompt` must stand"))
        }
        None => Ok(generated),
    }
}

impl Lines<'_> {
    /// What the baseline writes after a prompt, in at most `most` tokens.
    fn continuation(&mut self, most: usize) -> Result<Continuation, GoldenError> {
        let (prompt, text) = (self.field("prompt")?, self.text("text")?);
        let tokens: Vec<u32> = self.numbers("ids")?;
        if tokens.is_empty() || tokens.len() > most {
            let count = tokens.len();
            return Err(self.error(format!("`{prompt}` has {count} ids, not 1 to {most}")));
        }
        let near_ties: Vec<usize> = self.numbers("near_ties")?;
        if near_ties.last().is_some_and(|last| *last >= tokens.len()) {
            let count = tokens.len();
            return Err(self.error(format!("`near_ties` go beyond the {count} ids of `{prompt}`")));
        }
        if near_ties.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(self.error(format!("`near_ties` of `{prompt}` are not in their order")));
        }
        Ok(Continuation { prompt, tokens, near_ties, text })
    }

    fn sha256(&mut self, name: &str) -> Result<String, GoldenError> {
        let hash = self.field(name)?;
        self.checked_sha256(name, hash)
    }

    fn checked_sha256(&self, name: &str, hash: String) -> Result<String, GoldenError> {
        if !hash::is_sha256(&hash) {
            return Err(self.error(format!("`{name}` must be a SHA-256, not `{hash}`")));
        }
        Ok(hash)
    }

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

    /// A field whose value is a quoted text.
    pub(super) fn text(&mut self, name: &str) -> Result<String, GoldenError> {
        let value = self.field(name)?;
        serde_json::from_str(&value)
            .map_err(|_| self.error(format!("`{name}` must be text in quotes, not `{value}`")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fixture;

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

    #[test]
    fn what_no_baseline_can_have_written_is_named_with_its_line() {
        let text = snapshot(&fixture::generated());
        for (old, new, why) in [
            ("weights         a5", "weights         A5", ":4: `weights` must be a SHA-256"),
            ("prompts         77", "prompts         7", ":5: `prompts` must be a SHA-256"),
            ("template        none", "template        nine", ":6: `template` must be a SHA-256"),
            ("thinking        off", "thinking        of", ":7: `thinking` is on or off, not `of`"),
            ("tokens          64", "tokens          2", ":13: `tides` has 3 ids, not 1 to 2"),
            ("ids             5 6 7", "ids             -", ":13: `tides` has 0 ids"),
            ("near_ties       1", "near_ties       3", ":14: `near_ties` go beyond the 3 ids"),
            ("near_ties       1", "near_ties       1 1", ":14: `near_ties` of `tides` are not in"),
            ("prompt          list", "prompt          tides", "`tides` is continued twice"),
        ] {
            assert!(text.contains(old), "{old}: {text}");
            let error = parse(&text.replacen(old, new, 1), "m.text.snap").unwrap_err().to_string();
            assert!(error.contains(why), "{new}: {error}");
        }
        let head = text.split("\nprompt ").next().unwrap();
        let error = parse(head, "m.text.snap").unwrap_err().to_string();
        assert!(error.contains("ends where `prompt` must stand"), "{error}");
    }
}
