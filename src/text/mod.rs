//! Text that may come from a stranger, made fit to be shown: what a file, a server or a pull request says
//! is hostile until it is bounded and escaped.
//!
//! It is done where text leaves the process ([`crate::text::out`], the renderers, what is sent to GitHub), so that
//! an error may quote what it likes.

pub mod command;
pub mod numbers;
pub mod out;
pub mod suggest;
pub mod table;

use std::borrow::Cow;

/// Longest name that is shown whole.
const NAME: usize = 120;
/// Longest remark that is shown whole.
const REMARK: usize = 400;
/// Longest message that is shown whole.
const MESSAGE: usize = 4_000;
/// Longest error that is shown whole: a policy with fifty faults.
const ERROR: usize = 16_000;
/// Longest line of an error that is shown whole.
const ERROR_LINE: usize = 2_000;

/// The text for people: what a terminal obeys or nobody sees is escaped, line breaks stay.
/// GitHub's runner obeys `##[command]` wherever it stands.
pub(crate) fn printable(text: &str) -> String {
    plain(&text.replace("\r\n", "\n")).replace('\t', "    ").replace("##[", "## [")
}

/// The text with `\u{9b}` for each character that a terminal obeys or nobody sees. Line breaks and tabs stay.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    let Some(first) = text.find(|c| !is_harmless(c)) else { return Cow::Borrowed(text) };
    let mut out = text[..first].to_owned();
    for c in text[first..].chars() {
        match is_harmless(c) {
            true => out.push(c),
            false => out.extend(c.escape_default()),
        }
    }
    Cow::Owned(out)
}

/// As [`plain()`], but our own colours stay, and no other escape sequence: what the text quotes must have been
/// escaped before it was coloured.
pub(crate) fn coloured(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\u{1b}') {
        out += &plain(&rest[..at]);
        let length = colour(&rest[at..]);
        match length {
            0 => out.extend('\u{1b}'.escape_default()),
            length => out += &rest[at..at + length],
        }
        rest = &rest[at + length.max(1)..];
    }
    out + &plain(rest)
}

/// Bytes of the colour that a text begins with: `ESC [ 1 ; 31 m`.
fn colour(text: &str) -> usize {
    let parameters = text.strip_prefix("\u{1b}[").unwrap_or_default();
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';');
    match end.filter(|end| parameters[*end..].starts_with('m')) {
        Some(end) => "\u{1b}[".len() + end + "m".len(),
        None => 0,
    }
}

/// JSON in which strings have JSON's escapes for such characters.
pub(crate) fn json(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match is_harmless(c) {
            true => out.push(c),
            false => {
                let mut units = [0; 2];
                out.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
            }
        }
    }
    Cow::Owned(out)
}

/// Whether a terminal or a page shows a character as itself.
pub(crate) fn is_shown(c: char) -> bool {
    c == '\n' || !(c.is_control() || is_invisible(c))
}

fn is_harmless(c: char) -> bool {
    c == '\t' || is_shown(c)
}

/// Marks of direction and width, fillers, tags and what else makes a text read as another. Selectors of an
/// emoji's shape are no such marks.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{AD}' | '\u{34F}' | '\u{61C}' | '\u{115F}' | '\u{1160}' | '\u{17B4}' | '\u{17B5}'
            | '\u{180B}'..='\u{180F}'
            | '\u{200B}'..='\u{200F}'
            | '\u{2028}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}'
            | '\u{3164}' | '\u{FEFF}' | '\u{FFA0}'
            | '\u{FFF9}'..='\u{FFFB}'
            | '\u{E0000}'..='\u{E0FFF}'
    )
}

/// The first so many characters.
pub(crate) fn first(text: &str, characters: usize) -> &str {
    text.char_indices().nth(characters).map_or(text, |(at, _)| &text[..at])
}

/// The first so many characters, and an ellipsis where there are more.
pub(crate) fn clipped(text: &str, characters: usize) -> String {
    let first = first(text, characters);
    format!("{first}{}", if first.len() < text.len() { "…" } else { "" })
}

/// So many characters at most, without the middle of what is longer: an error names its file first and the mend
/// last.
fn without_middle(text: &str, characters: usize) -> Cow<'_, str> {
    if text.char_indices().nth(characters).is_none() {
        return Cow::Borrowed(text);
    }
    let (head, tail) = (characters * 2 / 3, characters / 3);
    let head = text.char_indices().nth(head).map_or(text.len(), |(at, _)| at);
    let tail = text.char_indices().rev().nth(tail.saturating_sub(1)).map_or(0, |(at, _)| at);
    Cow::Owned(format!("{} … {}", &text[..head], &text[tail..]))
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

/// One line of so many characters at most, before they are escaped.
pub(crate) fn line(text: &str, characters: usize) -> String {
    // most of a text of megabytes need not be looked at
    printable(&clipped(text, characters)).replace('\n', " ").trim().into()
}

/// A message of bounded length.
pub(crate) fn message(text: &str) -> String {
    printable(&clipped(text, MESSAGE)).trim_end().into()
}

/// An error as people read it in a terminal or a log: of bounded length, and no line of it is a command to
/// GitHub's runner, which obeys lines that begin with `::` after any blanks.
pub(crate) fn error(text: &str) -> String {
    let text = without_middle(text, ERROR);
    let lines = text.lines().map(|line| inert(&printable(&without_middle(line, ERROR_LINE))));
    lines.collect::<Vec<_>>().join("\n")
}

fn inert(line: &str) -> String {
    let blanks = line.len() - line.trim_start().len();
    match line[blanks..].strip_prefix("::") {
        Some(rest) => format!("{}: :{rest}", &line[..blanks]),
        None => line.into(),
    }
}

/// Characters that a terminal, a runner or a reader must never get as they are.
#[cfg(test)]
pub(crate) const HOSTILE: [char; 26] = [
    '\0',
    '\u{7}',
    '\u{8}',
    '\r',
    '\u{1b}',
    '\u{7f}',
    '\u{80}',
    '\u{85}',
    '\u{90}',
    '\u{9b}',
    '\u{9d}',
    '\u{ad}',
    '\u{61c}',
    '\u{180e}',
    '\u{200b}',
    '\u{200d}',
    '\u{200e}',
    '\u{200f}',
    '\u{2028}',
    '\u{2029}',
    '\u{202e}',
    '\u{2060}',
    '\u{2066}',
    '\u{3164}',
    '\u{feff}',
    '\u{e0041}',
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_short_line() {
        let hostile = "a\nb\u{1b}[31m\u{202e}c\td";
        assert_eq!(name(hostile), r"a b\u{1b}[31m\u{202e}c    d");
        assert_eq!((name(" \n"), name("\u{200b}")), ("(empty)".into(), r"\u{200b}".into()));
        assert_eq!(name("boom #\u{200b}#[add-mask]x"), r"boom #\u{200b}#[add-mask]x");
        assert_eq!(name("boom ##[add-mask]x"), "boom ## [add-mask]x");
        let long = name(&"é".repeat(10_000_000));
        assert_eq!(long.chars().count(), 121);
        assert!(long.ends_with('…'));
    }

    #[test]
    fn messages_keep_their_lines() {
        assert_eq!(message("one\r\n\ttwo\n\n"), "one\n    two");
        assert_eq!(message("one\rtwo"), r"one\rtwo");
        assert_eq!(message(&"x".repeat(5_000)).chars().count(), 4_001);
    }

    #[test]
    fn errors_keep_their_file_and_their_mend() {
        let text = format!("a.gguf: no architecture `{}`; convert it again", "é".repeat(1 << 20));
        let shown = error(&text);
        assert!(shown.starts_with("a.gguf: no architecture `éé"), "{shown}");
        assert!(shown.ends_with("éé`; convert it again") && shown.contains(" … "), "{shown}");
        assert!(shown.chars().count() <= ERROR_LINE + 3);
        let many = error(&"a line\n".repeat(1 << 20));
        assert!(many.chars().count() <= ERROR + 3, "{}", many.chars().count());
        assert_eq!(error("one\n  ::stop-commands::x\na::b"), "one\n  : :stop-commands::x\na::b");
    }

    #[test]
    fn only_colours_are_left_of_escape_sequences() {
        let ours = "\u{1b}[1;31mred\u{1b}[0m and \u{1b}[mplain";
        assert_eq!(coloured(ours), ours);
        for (theirs, shown) in [
            ("\u{1b}[2J", r"\u{1b}[2J"),
            ("\u{1b}]0;title\u{7}", r"\u{1b}]0;title\u{7}"),
            ("\u{1b}[31\u{1b}[1m", "\\u{1b}[31\u{1b}[1m"),
            ("\u{1b}", r"\u{1b}"),
            ("\u{1b}[", r"\u{1b}["),
            ("\u{9b}31mx", r"\u{9b}31mx"),
        ] {
            assert_eq!(coloured(theirs), shown);
        }
    }

    #[test]
    fn json_has_its_own_escapes() {
        let value = serde_json::json!({ "a\u{9b}": HOSTILE.iter().collect::<String>() });
        let text = json(&value.to_string()).into_owned();
        assert!(text.chars().all(is_harmless), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn what_people_write_stays_as_it_is() {
        for text in ["größer als Δ ± 0.1", "⚠️ 警告", "שלום", "a\tb\nc", "👍🏽"] {
            assert_eq!((plain(text), coloured(text)), (Cow::Borrowed(text), text.to_owned()));
        }
        for c in HOSTILE {
            assert!(!is_harmless(c), "{c:?}");
            let shown = plain(&c.to_string()).into_owned();
            assert!(shown.starts_with('\\') && shown.is_ascii(), "{shown}");
        }
    }
}
