//! Tokens and texts: the positions with the largest KLD in their context, and texts in which a scheme chose another
//! token than the baseline.

use super::{number, share};
use crate::report::row::Row;
use crate::report::view::Standing;
use crate::results::replay::{Divergence, Generated};
use crate::results::shape::WorstToken;
use crate::text;
use similar::{ChangeTag, TextDiff};

/// The most tokens, and the most texts, that are shown of a scheme.
const EACH: usize = 8;
/// The most characters that are shown of a context: its last ones.
const CONTEXT: usize = 200;
/// The most characters that are shown of a token.
const TOKEN: usize = 40;
/// The most characters that are shown of a text.
const TEXT: usize = 1_500;

/// Tokens or texts of one scheme.
pub(super) struct OfScheme<T> {
    pub label: String,
    pub standing: Standing,
    pub remark: String,
    pub items: Vec<T>,
}

/// A position with one of the largest KLDs of a scheme.
pub(super) struct ShownToken {
    pub kld: String,
    pub place: String,
    pub context: String,
    pub target: String,
    /// The most likely token of the baseline and that of the scheme.
    pub top: [String; 2],
    /// The probabilities that they give to the token of the corpus.
    pub p: [String; 2],
}

impl From<&WorstToken> for ShownToken {
    fn from(worst: &WorstToken) -> Self {
        let category = text::name(&worst.category);
        Self {
            kld: number(worst.kld),
            place: format!("{category}, chunk {}, position {}", worst.chunk, worst.position),
            context: visible(&ending(&worst.context, CONTEXT)),
            target: token(&worst.target),
            top: [token(&worst.baseline), token(&worst.scheme)],
            p: worst.p.map(share),
        }
    }
}

/// The positions with the largest KLD, for each scheme whose results have them.
pub(super) fn worst(rows: &[Row], most: usize) -> Vec<OfScheme<ShownToken>> {
    let tokens = |row: &Row| {
        let worst = &row.scheme?.shape.as_ref()?.worst;
        let first = worst.first()?;
        Some(OfScheme {
            label: text::name(row.label),
            standing: Standing::of_row(row),
            remark: format!("up to {} nats", number(first.kld)),
            items: worst.iter().take(EACH).map(ShownToken::from).collect(),
        })
    };
    rows.iter().filter_map(tokens).take(most).collect()
}

/// The baseline's text and a scheme's text, from the first token in which they differ.
pub(super) struct TextPair {
    pub prompt: String,
    pub at: usize,
    pub margin: String,
    /// The end of the text that both share before they differ. It is empty if that text is not known.
    pub common: String,
    pub baseline: Vec<Piece>,
    pub scheme: Vec<Piece>,
}

/// Neighbouring words of a text. Either the other text has all of them, or it has none.
pub(super) struct Piece {
    pub words: String,
    /// Whether only this text has the words.
    pub own: bool,
}

/// The texts that differ from the baseline's, for each scheme that has such texts.
pub(super) fn partings(
    rows: &[Row],
    generated: Option<&Generated>,
    most: usize,
) -> Vec<OfScheme<TextPair>> {
    let texts = |row: &Row| {
        let replay = row.scheme?.replay.as_ref()?;
        let parted = &replay.texts;
        (!parted.is_empty()).then(|| OfScheme {
            label: text::name(row.label),
            standing: Standing::of_row(row),
            remark: format!("{} of {} texts part", parted.len(), replay.prompts.len()),
            items: parted.iter().take(EACH).map(|text| parting(text, generated)).collect(),
        })
    };
    rows.iter().filter_map(texts).take(most).collect()
}

fn parting(text: &Divergence, generated: Option<&Generated>) -> TextPair {
    let [old, new] = [&text.baseline, &text.scheme].map(|text| bounded(text));
    let continuations = generated.map_or(&[][..], |generated| &generated.continuations);
    let whole = continuations.iter().find(|continuation| continuation.prompt == text.prompt);
    let common = whole.and_then(|whole| whole.text.strip_suffix(text.baseline.as_str()));
    let diff = TextDiff::from_words(&old, &new);
    let side = |other: ChangeTag, own: ChangeTag| {
        let changes = diff.iter_all_changes().filter(move |change| change.tag() != other);
        pieces(changes.map(|change| (change.value(), change.tag() == own)))
    };
    TextPair {
        prompt: text::name(&text.prompt),
        at: text.at,
        margin: share(text.margin),
        common: common.map(|common| bounded(&ending(common, CONTEXT))).unwrap_or_default(),
        baseline: side(ChangeTag::Insert, ChangeTag::Delete),
        scheme: side(ChangeTag::Delete, ChangeTag::Insert),
    }
}

/// Joins neighbouring words that only one text has, or that both have.
fn pieces<'a>(words: impl Iterator<Item = (&'a str, bool)>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for (words, own) in words {
        match pieces.last_mut() {
            Some(last) if last.own == own => last.words += words,
            _ => pieces.push(Piece { words: words.into(), own }),
        }
    }
    pieces
}

fn bounded(text: &str) -> String {
    text::printable(&text::clipped(text, TEXT))
}

/// The end of a text, at most so many characters.
fn ending(text: &str, characters: usize) -> String {
    match text.char_indices().rev().nth(characters) {
        None => text.into(),
        Some((at, c)) => format!("…{}", &text[at + c.len_utf8()..]),
    }
}

fn token(text: &str) -> String {
    match visible(&text::clipped(text, TOKEN)) {
        text if text.is_empty() => "(nothing to see)".into(),
        text => text,
    }
}

/// A text on one line, in which line breaks can be seen.
fn visible(text: &str) -> String {
    text::printable(text).replace('\n', "↵")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fixture;

    #[test]
    fn texts_part_word_by_word() {
        let mut text = fixture::replay().texts.remove(0);
        let mut generated = fixture::generated();
        (text.baseline, text.scheme) = (" sea is calm".into(), " moon is bright\u{202e}".into());
        generated.continuations[0].text = format!("{}. The sea is calm", "x".repeat(300));
        let parting = parting(&text, Some(&generated));
        let shown = |pieces: &[Piece]| -> Vec<String> {
            pieces.iter().map(|p| format!("{}{}", if p.own { "*" } else { "" }, p.words)).collect()
        };
        assert_eq!(shown(&parting.baseline), [" ", "*sea", " is ", "*calm"]);
        assert_eq!(shown(&parting.scheme), [" ", "*moon", " is ", r"*bright\u{202e}"]);
        assert!(parting.common.starts_with("…xx") && parting.common.ends_with("x. The"));
        assert_eq!(parting.common.chars().count(), CONTEXT + 1);
        generated.continuations[0].text = "another text".into();
        assert_eq!(super::parting(&text, Some(&generated)).common, "");
    }

    #[test]
    fn tokens_are_short_and_can_be_seen() {
        assert_eq!(token("\n a\t"), "↵ a    ");
        assert_eq!((token(""), token("\u{200b}")), ("(nothing to see)".into(), r"\u{200b}".into()));
        assert_eq!(token(&"é".repeat(1_000_000)).chars().count(), TOKEN + 1);
        assert_eq!(ending("añb", 2), "…ñb");
        assert_eq!(ending("añb", 3), "añb");
    }
}
