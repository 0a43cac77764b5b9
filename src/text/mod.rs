//! Text that may come from a stranger, made fit to be shown. What a file, a server or a pull request says may be
//! hostile: it is bounded in length, and characters that a terminal obeys or that nobody sees are escaped.
//!
//! This is done where text leaves the process ([`out`], the renderers, what is sent to GitHub). An error may
//! therefore quote any text as it is.

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
/// Longest error that is shown whole. A policy with fifty faults is about as long.
const ERROR: usize = 16_000;
/// Longest line of an error that is shown whole.
const ERROR_LINE: usize = 2_000;

/// The text for people: what a terminal obeys or nobody sees is escaped, tabs are blanks, and line breaks stay.
/// `##[` is parted by a blank, because GitHub's runner obeys `##[command]` wherever it stands.
pub(crate) fn printable(text: &str) -> String {
    plain(&text.replace("\r\n", "\n")).replace('\t', "    ").replace("##[", "## [")
}

/// The text in which each character that a terminal obeys or nobody sees is escaped, as `\u{9b}`. Line breaks and
/// tabs stay.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    let Some(first) = text.find(|c| !is_harmless(c)) else { return Cow::Borrowed(text) };
    let mut out = text[..first].to_owned();
    for c in text[first..].chars() {
        if is_harmless(c) {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
    }
    Cow::Owned(out)
}

/// As [`plain()`], but colours stay. A colour in a quoted text would stay as well, so quoted texts must be escaped
/// before the whole is coloured.
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

/// The length in bytes of the colour that a text begins with, such as `ESC [ 1 ; 31 m`, or 0.
fn colour(text: &str) -> usize {
    let parameters = text.strip_prefix("\u{1b}[").unwrap_or_default();
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';');
    match end.filter(|end| parameters[*end..].starts_with('m')) {
        Some(end) => "\u{1b}[".len() + end + "m".len(),
        None => 0,
    }
}

/// JSON in whose strings such characters have JSON's own escapes.
pub(crate) fn json(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmless(c) {
            out.push(c);
        } else {
            let mut units = [0; 2];
            out.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
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

/// Marks of direction and width, fillers, tags and other characters by which one text looks like another. The
/// characters that select an emoji's shape are harmless.
pub(crate) fn is_invisible(c: char) -> bool {
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

/// A text of so many characters at most. A longer one loses its middle, because an error names its file at the
/// beginning and the mend at the end.
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
    // cut first, so that a text of megabytes is not escaped as a whole
    printable(&clipped(text, characters)).replace('\n', " ").trim().into()
}

/// A message of bounded length.
pub(crate) fn message(text: &str) -> String {
    printable(&clipped(text, MESSAGE)).trim_end().into()
}

/// An error for a terminal or a log: of bounded length, and without a line that begins with `::` after any blanks,
/// which GitHub's runner would obey as a command.
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

/// Characters that must not be shown as they are.
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

/// `a, b and c`.
pub(crate) fn listed(words: impl Iterator<Item = String>) -> String {
    let words: Vec<String> = words.collect();
    match words.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
    }
}

/// The width of a line of words.
const WIDTH: usize = 100;

/// Breaks a sentence into lines, all but the first indented.
pub(crate) fn wrapped(sentence: &str) -> String {
    let (mut out, mut width) = (String::from(" "), 1);
    for word in sentence.split(' ') {
        let long = word.chars().count();
        if width + 1 + long > WIDTH && width > 3 {
            out += "\n   ";
            width = 3;
        }
        out.push(' ');
        out += word;
        width += 1 + long;
    }
    out.push('\n');
    out
}

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
