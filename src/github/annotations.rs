//! Annotations: lines of a log that GitHub Actions shows beside lines of the changed files.

use crate::text;
use std::fmt::Write;

/// The most annotations of one step that GitHub shows.
const MOST: usize = 10;
/// The most characters of a message. The report has the rest.
const MESSAGE: usize = 2000;
/// The most characters of a file's name or of a title.
const PROPERTY: usize = 400;

/// A message that is shown at a line of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotation {
    /// The file, relative to the repository.
    pub file: Option<String>,
    /// The line, from 1.
    pub line: Option<u64>,
    /// What is wrong, in a few words.
    pub title: String,
    pub message: String,
}

/// `::error` lines of the first ten annotations, which must be the worst: GitHub drops the rest.
#[must_use]
pub fn errors(annotations: &[Annotation]) -> String {
    annotations.iter().take(MOST).map(|annotation| command("error", annotation)).collect()
}

/// A `::warning` line.
#[must_use]
pub fn warning(title: &str, message: &str) -> String {
    let (title, message) = (title.into(), message.into());
    command("warning", &Annotation { title, message, ..Annotation::default() })
}

fn command(name: &str, annotation: &Annotation) -> String {
    let mut properties = Vec::new();
    if let Some(file) = &annotation.file {
        properties.push(format!("file={}", property(file)));
        properties.extend(annotation.line.map(|line| format!("line={line}")));
    }
    properties.push(format!("title={}", property(&annotation.title)));
    let mut line = format!("::{name} {}::", properties.join(","));
    // writing to a String cannot fail
    let _ = writeln!(line, "{}", data(&annotation.message));
    line
}

/// A text escaped as the runner's own toolkit does it. Characters that a terminal obeys or that nobody sees are
/// escaped before that.
fn data(text: &str) -> String {
    let shown = text::plain(text::first(text, MESSAGE)).into_owned();
    shown.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text::first(text, PROPERTY)).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotation(title: &str, message: &str) -> Annotation {
        let (file, line) = (Some("thresholds.toml".into()), Some(7));
        Annotation { file, line, title: title.into(), message: message.into() }
    }

    #[test]
    fn whole_lines() {
        let text = errors(&[annotation("q4_0: worse", "mean KLD, twice")]);
        let want = "::error file=thresholds.toml,line=7,title=q4_0%3A worse::mean KLD, twice\n";
        assert_eq!(text, want);
        assert_eq!(warning("kvgate", "no"), "::warning title=kvgate::no\n");
        let nowhere = Annotation { file: None, ..annotation("t", "m") };
        assert_eq!(errors(&[nowhere]), "::error title=t::m\n");
    }

    #[test]
    fn a_text_cannot_start_another_command() {
        let text = errors(&[Annotation {
            file: Some("a,line=1::x\n::stop-commands::t".into()),
            ..annotation("100%,x=y::\n::set-env name=A::b\u{9b}", "50%\n::add-mask::a\u{1b}[2J")
        }]);
        assert_eq!(text.lines().count(), 1);
        assert_eq!(
            text,
            "::error file=a%2Cline=1%3A%3Ax%0A%3A%3Astop-commands%3A%3At,line=7,\
             title=100%25%2Cx=y%3A%3A%0A%3A%3Aset-env name=A%3A%3Ab\\u{9b}::\
             50%25%0A::add-mask::a\\u{1b}[2J\n"
        );
    }

    #[test]
    fn nothing_leaves_that_a_terminal_obeys_or_nobody_sees() {
        for c in text::HOSTILE {
            let hostile = format!("a{c}b");
            let file = Some(hostile.clone());
            let all = [Annotation { file, ..annotation(&hostile, &hostile) }];
            let shown = errors(&all) + &warning(&hostile, &hostile);
            assert!(!shown.contains(c), "{c:?}: {shown}");
        }
    }

    #[test]
    fn ten_at_most_and_none_is_long() {
        let many = vec![annotation("t", &"é".repeat(100_000)); 11];
        let text = errors(&many);
        assert_eq!(text.lines().count(), 10);
        assert!(text.lines().all(|line| line.chars().count() < MESSAGE + 100));
    }
}
