//! The modules that a description leaves out of quantization, by their names or by patterns.

/// The entries of a description's lists.
pub(super) struct LeftOut<'a>(Vec<(&'a str, Entry)>);

enum Entry {
    /// A name, with a dot before and behind it. It stands for all modules that have these parts in their names.
    Name(String),
    Pattern(Vec<Piece>),
    /// A pattern that is not read here.
    Unread,
}

/// A piece of a pattern.
#[derive(Clone, Copy, PartialEq)]
enum Piece {
    Exactly(u8),
    AnyOne,
    Anything,
    /// The end of the name or of one of its parts.
    End,
}

impl<'a> LeftOut<'a> {
    pub fn new(entries: impl Iterator<Item = &'a String>) -> Self {
        let named = entries.map(|entry| (entry.as_str(), Entry::read(entry)));
        LeftOut(named.collect())
    }

    /// The entry that leaves a module out.
    pub fn entry(&self, module: &str) -> Option<&'a str> {
        let dotted = format!(".{module}.");
        let is_meant = |entry: &Entry| match entry {
            Entry::Name(name) => dotted.contains(name),
            Entry::Pattern(pieces) => matches(pieces, module.as_bytes()),
            Entry::Unread => false,
        };
        self.0.iter().find(|(_, entry)| is_meant(entry)).map(|(text, _)| *text)
    }

    /// Patterns that are compared with no module.
    pub fn unread(&self) -> Vec<&'a str> {
        let unread = self.0.iter().filter(|(_, entry)| matches!(entry, Entry::Unread));
        unread.map(|(text, _)| *text).collect()
    }
}

impl Entry {
    fn read(entry: &str) -> Self {
        if let Some(expression) = entry.strip_prefix("re:") {
            return read_expression(expression).map_or(Entry::Unread, Entry::Pattern);
        }
        if entry.contains(|c: char| "\\^$|(){}[]+".contains(c)) {
            return Entry::Unread;
        }
        if entry.contains(['*', '?']) {
            let pieces = entry.bytes().map(of_shell).chain([Piece::End]);
            return Entry::Pattern(pieces.collect());
        }
        match entry.trim_matches('.') {
            "" => Entry::Pattern(Vec::new()),
            name => Entry::Name(format!(".{name}.")),
        }
    }
}

fn of_shell(byte: u8) -> Piece {
    match byte {
        b'*' => Piece::Anything,
        b'?' => Piece::AnyOne,
        other => Piece::Exactly(other),
    }
}

/// Reads an expression as Python's `re.match` does, which compares the beginning of a name. `None` if it has more than
/// dots, `.*`, escaped signs, and anchors at its ends.
fn read_expression(text: &str) -> Option<Vec<Piece>> {
    let text = text.strip_prefix('^').unwrap_or(text);
    let (text, is_whole) = match text.strip_suffix('$') {
        Some(text) if !text.ends_with('\\') => (text, true),
        _ => (text, false),
    };
    let mut pieces = Vec::new();
    let mut bytes = text.bytes().peekable();
    while let Some(byte) = bytes.next() {
        pieces.push(match byte {
            b'.' if bytes.next_if_eq(&b'*').is_some() => Piece::Anything,
            b'.' => Piece::AnyOne,
            b'\\' => Piece::Exactly(bytes.next().filter(u8::is_ascii_punctuation)?),
            other if b"*+?()[]{}|^$".contains(&other) => return None,
            other => Piece::Exactly(other),
        });
    }
    if !is_whole {
        pieces.push(Piece::Anything);
    }
    Some(pieces)
}

/// Whether the pieces make up the whole text. After a mismatch the last run takes one more byte, so that time grows only
/// with the product of the two lengths.
fn matches(pieces: &[Piece], text: &[u8]) -> bool {
    let (mut piece, mut at) = (0, 0);
    let mut run = None;
    loop {
        match (pieces.get(piece), text.get(at)) {
            (Some(Piece::Anything), _) => {
                piece += 1;
                run = Some((piece, at));
                continue;
            }
            (None, None) | (Some(Piece::End), None | Some(b'.')) => return true,
            (Some(Piece::AnyOne), Some(_)) => {
                (piece, at) = (piece + 1, at + 1);
                continue;
            }
            (Some(Piece::Exactly(byte)), Some(found)) if byte == found => {
                (piece, at) = (piece + 1, at + 1);
                continue;
            }
            _ => {}
        }
        match run {
            Some((after, from)) if from < text.len() => {
                run = Some((after, from + 1));
                (piece, at) = (after, from + 1);
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "model.layers.10.self_attn.q_proj";

    fn leaves_out(entry: &str) -> Option<bool> {
        let entries = [entry.to_owned()];
        let left_out = LeftOut::new(entries.iter());
        left_out.unread().is_empty().then(|| left_out.entry(MODULE).is_some())
    }

    #[test]
    fn names_count_at_every_dot_and_patterns_as_their_programs_read_them() {
        for entry in [
            MODULE,
            "q_proj",
            "self_attn",
            "model.layers.10.",
            "layers.10.self_attn",
            "model.layers.10.self_attn*",
            "*.q_proj",
            "model.layers.*.self_attn",
            "*layers.1?.*",
            "re:.*q_proj",
            "re:.*q_proj$",
            r"re:model\.layers\.10\.self",
            "re:^model.layers.10.*attn.*proj$",
        ] {
            assert_eq!(leaves_out(entry), Some(true), "{entry}");
        }
        for entry in [
            "",
            ".",
            "proj",
            "model.layers.1",
            "self_attn.k_proj",
            "*.mlp",
            "model.layers.1.*",
            "re:q_proj",
            "re:.*self_attn$",
            r"re:.*\.mlp\.",
            "Linear",
        ] {
            assert_eq!(leaves_out(entry), Some(false), "{entry}");
        }
        for entry in [r"re:.*layers\.\d+\..*", "re:.*(q|k)_proj", "layers.[0-9]*", "re:a+", "re:\\"]
        {
            assert_eq!(leaves_out(entry), None, "{entry}");
        }
    }
}
