//! The pieces of a vocabulary, in a form in which those of two files can be compared.
//!
//! Files spell pieces differently: byte-level vocabularies write each byte as a printable character, SentencePiece
//! writes a space as `▁` and a single byte as `<0x0A>`, and added tokens are written as they are. Therefore the bytes
//! that tokens stand for are compared.

use super::kinds::{CONTROL, USER_DEFINED};
use super::SPACE;
use crate::model::hf::files::{optional, optional_json};
use crate::model::ModelError;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// How a vocabulary spells its ordinary pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Each byte is a printable character, as in GPT-2.
    ByteLevel,
    /// Text, in which `▁` is a space and `<0x0A>` a byte.
    SentencePiece,
}

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// As the file writes it.
    pub text: String,
    /// The bytes that it stands for.
    bytes: Vec<u8>,
    /// Whether it was added to the vocabulary, so that it stands for its own text.
    is_added: bool,
    /// Whether it marks something and is no text.
    pub is_special: bool,
}

impl Piece {
    pub fn new(text: &str, spelling: Spelling, is_added: bool, is_special: bool) -> Self {
        let bytes = match spelling {
            Spelling::ByteLevel if is_added => text.into(),
            Spelling::ByteLevel => byte_level(text),
            Spelling::SentencePiece => match lone_byte(text) {
                Some(byte) if !is_added => vec![byte],
                _ => text.replace(SPACE, " ").into_bytes(),
            },
        };
        Piece { text: text.into(), bytes, is_added, is_special }
    }

    /// Whether the name says that the model was not trained on the token. Such tokens fill a table up to a round
    /// size, and people rename them.
    fn is_spare(&self) -> bool {
        const WORDS: [&str; 6] = ["pad", "unused", "reserved", "extra", "empty", "placeholder"];
        let text = self.text.to_lowercase();
        text.is_empty() || WORDS.iter().any(|word| text.contains(word))
    }
}

/// The bytes that printable characters stand for. A character that stands for no byte stands for itself.
fn byte_level(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match byte_of(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// The byte that a character of GPT-2's alphabet stands for. Printable bytes stand for themselves. The characters
/// from U+0100 on stand for the other bytes in their order.
fn byte_of(c: char) -> Option<u8> {
    let is_printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u8::try_from(c) {
        Ok(byte) => Some(byte).filter(is_printable),
        Err(_) => {
            let index = (c as usize).checked_sub(256)?;
            (0..=u8::MAX).filter(|byte| !is_printable(byte)).nth(index)
        }
    }
}

/// The byte of a piece such as `<0x0A>`.
fn lone_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The pieces of a file by their ids.
#[derive(Debug, Clone)]
pub(super) struct Pieces {
    pub file: PathBuf,
    by_id: HashMap<u32, Piece>,
    /// Whether added tokens may be in another file. Then an id that is missing here proves nothing.
    is_part: bool,
}

impl Pieces {
    pub fn new(file: &Path, pieces: impl IntoIterator<Item = (u32, Piece)>) -> Self {
        Pieces { file: file.into(), by_id: pieces.into_iter().collect(), is_part: false }
    }

    /// All pieces of a tokenizer of the library.
    pub fn of_tokenizer(
        tokenizer: &tokenizers::Tokenizer,
        file: &Path,
        spelling: Spelling,
    ) -> Self {
        let added = tokenizer.get_added_tokens_decoder();
        let piece = |(text, id): (String, u32)| {
            let own = added.get(&id);
            let is_special = own.is_some_and(|token| token.special);
            (id, Piece::new(&text, spelling, own.is_some(), is_special))
        };
        Self::new(file, tokenizer.get_vocab(true).into_iter().map(piece))
    }

    /// The pieces of `vocab.json` or `tokenizer.model`, if a checkpoint's folder has one of them.
    pub fn beside(folder: &Path) -> Result<Option<Self>, ModelError> {
        let file = folder.join("vocab.json");
        if let Value::Object(vocab) = optional_json(&file)? {
            let piece = |(text, id): (&String, &Value)| {
                let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
                let id = id.ok_or_else(|| {
                    let what =
                        format!("the id of `{}` is no unsigned integer of 32 bits", cut(text));
                    ModelError::malformed(&file, what)
                })?;
                Ok((id, Piece::new(text, Spelling::ByteLevel, false, false)))
            };
            let pieces = vocab.iter().map(piece).collect::<Result<Vec<_>, ModelError>>()?;
            return Ok(Some(Pieces { is_part: true, ..Self::new(&file, pieces) }));
        }
        let file = folder.join("tokenizer.model");
        let Some(bytes) = optional(&file)? else { return Ok(None) };
        let pieces = sentence_pieces(&bytes)
            .ok_or_else(|| ModelError::malformed(&file, "it is no model of SentencePiece"))?;
        Ok(Some(Pieces { is_part: true, ..Self::new(&file, (0..).zip(pieces)) }))
    }

    pub fn get(&self, id: u32) -> Option<&Piece> {
        self.by_id.get(&id)
    }

    /// How token `id` differs in both, or `None` if it is the same.
    pub fn difference(&self, other: &Pieces, id: u32) -> Option<String> {
        let (here, there) = (self.get(id), other.get(id));
        if here.is_none() && self.is_part && there.is_some_and(|piece| piece.is_added) {
            return None;
        }
        if here.map(|piece| &piece.bytes) == there.map(|piece| &piece.bytes) {
            return None;
        }
        let shown = |piece: Option<&Piece>| match piece {
            Some(piece) => format!("`{}`", cut(&piece.text)),
            None => "nothing".into(),
        };
        let (own, named) = (self.file.display(), other.file.display());
        Some(format!(
            "token {id} is {} in {own} and {} in {named}: it is another model's",
            shown(here),
            shown(there)
        ))
    }

    /// Reports the special token with the lowest id that is not the same in both. A spare token may be any other
    /// token there, and one vocabulary may be shorter than the other.
    pub fn special_difference(&self, other: &Pieces) -> Option<String> {
        let specials = |pieces: &Pieces| -> Vec<u32> {
            let special = pieces.by_id.iter().filter(|(_, piece)| piece.is_special);
            special.map(|(id, _)| *id).collect()
        };
        let mut ids = [specials(self), specials(other)].concat();
        ids.sort_unstable();
        ids.dedup();
        // the tokenizer of a multimodal model has tokens for which this checkpoint has no embedding
        let counts = |id: &u32| self.get(*id).is_some_and(|piece| !piece.is_spare());
        ids.into_iter().filter(counts).find_map(|id| self.difference(other, id))
    }
}

/// A text for people, with bounded length and without line breaks.
pub(super) fn cut(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut shown: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

/// The pieces of a `tokenizer.model`: a message of protocol buffers, in which each field 1 is a piece, a
/// message with its text in field 1 and its kind in field 3.
fn sentence_pieces(mut bytes: &[u8]) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let (number, Field::Bytes(mut piece)) = field(&mut bytes)? else { continue };
        if number != 1 {
            continue;
        }
        let (mut text, mut kind) = (None, 1);
        while !piece.is_empty() {
            match field(&mut piece)? {
                (1, Field::Bytes(bytes)) => text = std::str::from_utf8(bytes).ok(),
                (3, Field::Number(number)) => kind = number,
                _ => {}
            }
        }
        let is_added = kind == CONTROL || kind == USER_DEFINED;
        pieces.push(Piece::new(text?, Spelling::SentencePiece, is_added, kind == CONTROL));
    }
    (!pieces.is_empty()).then_some(pieces)
}

/// A field of a message of protocol buffers.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The next field with its number.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let key = varint(bytes)?;
    let field = match key & 7 {
        0 => Field::Number(varint(bytes)?),
        1 => Field::Bytes(taken(bytes, 8)?),
        2 => {
            let length = varint(bytes)?;
            Field::Bytes(taken(bytes, length)?)
        }
        5 => Field::Bytes(taken(bytes, 4)?),
        _ => return None,
    };
    Some((key >> 3, field))
}

/// Splits off the first bytes.
fn taken<'a>(bytes: &mut &'a [u8], count: u64) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(usize::try_from(count).ok()?)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> Vec<u8> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sentencepiece");
        std::fs::read(folder.join(name)).unwrap()
    }

    #[test]
    fn pieces_of_sentencepiece_are_those_that_its_library_reads() {
        let wanted: Vec<(String, bool)> = serde_json::from_slice(&fixture("pieces.json")).unwrap();
        let model = fixture("tokenizer.model");
        let pieces = sentence_pieces(&model).unwrap();
        let read: Vec<_> = pieces.iter().map(|p| (p.text.clone(), p.is_special)).collect();
        assert_eq!(read, wanted);
        // cut anywhere it is no panic
        for end in (0..model.len()).step_by(7) {
            let _ = sentence_pieces(&model[..end]);
        }
    }

    #[test]
    fn spellings_of_the_same_bytes_are_the_same() {
        use Spelling::{ByteLevel, SentencePiece};
        let bytes = |text, spelling, is_added| Piece::new(text, spelling, is_added, false).bytes;
        assert_eq!(bytes("Ġthe", ByteLevel, false), b" the");
        assert_eq!(bytes("▁the", SentencePiece, false), b" the");
        assert_eq!(bytes("Ċ", ByteLevel, false), b"\n");
        assert_eq!(bytes("<0x0A>", SentencePiece, false), b"\n");
        assert_eq!(bytes("<0x0A>", SentencePiece, true), b"<0x0A>");
        assert_eq!(bytes("Ã¼", ByteLevel, false), "ü".as_bytes());
        assert_eq!(bytes("ü", ByteLevel, true), "ü".as_bytes());
        // every byte has a character of its own
        let alphabet: std::collections::BTreeSet<_> =
            (0..0x200u32).filter_map(char::from_u32).filter_map(byte_of).collect();
        assert_eq!(alphabet.len(), 256);
    }
}
