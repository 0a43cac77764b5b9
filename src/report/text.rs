//! Text that may come from a stranger, made fit to be shown: results of a pull request are hostile until
//! they are bounded and escaped.

/// Longest name that is shown whole.
const NAME: usize = 120;
/// Longest remark that is shown whole.
const REMARK: usize = 400;
/// Longest message that is shown whole.
const MESSAGE: usize = 4_000;

/// The text without characters that a terminal obeys or that turn the reading direction. Line breaks stay.
/// GitHub's runner obeys `##[command]` wherever it stands.
pub(crate) fn printable(text: &str) -> String {
    let shown: String = text.replace('\t', "    ").chars().filter(|c| is_shown(*c)).collect();
    shown.replace("##[", "## [")
}

/// Whether a terminal or a page shows a character as itself.
pub(crate) fn is_shown(c: char) -> bool {
    c == '\n' || !(c.is_control() || is_invisible(c))
}

/// Marks of direction and width that make a text read as another.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}')
}

/// The first so many characters, and an ellipsis where there are more.
pub(crate) fn clipped(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        None => text.into(),
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}

/// A name on one line, of bounded length.
pub(crate) fn name(text: &str) -> String {
    match line(text, NAME) {
        line if line.is_empty() => "(empty)".into(),
        line => line,
    }
}

/// A remark on one line, of bounded length.
pub(crate) fn remark(text: &str) -> String {
    line(text, REMARK)
}

fn line(text: &str, characters: usize) -> String {
    // most of a text of megabytes need not be looked at
    printable(&clipped(text, characters)).replace('\n', " ").trim().into()
}

/// A message of bounded length.
pub(crate) fn message(text: &str) -> String {
    printable(&clipped(text, MESSAGE)).trim_end().into()
}

/// So many of something: `2 cases`.
pub(crate) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_short_line() {
        assert_eq!(name("a\nb\u{1b}[31m\u{202e}c\td"), "a b[31mc    d");
        assert_eq!(name(" \u{200b}"), "(empty)");
        assert_eq!(name("boom #\u{200b}#[add-mask]x"), "boom ## [add-mask]x");
        let long = name(&"é".repeat(10_000_000));
        assert_eq!(long.chars().count(), 121);
        assert!(long.ends_with('…'));
    }

    #[test]
    fn messages_keep_their_lines() {
        assert_eq!(message("one\r\n\ttwo\n\n"), "one\n    two");
        assert_eq!(message(&"x".repeat(5_000)).chars().count(), 4_001);
    }
}
