//! The corpus: text files, cut into chunks of tokens in the way of llama-perplexity.

use crate::model::tokenizer::Tokenizer;
use crate::results::CorpusFile;
use std::collections::hash_map::{Entry, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Consecutive tokens of one text. The model reads each chunk with an empty cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The stem of the text's file name.
    pub category: String,
    /// The chunk's number within its text, from 0.
    pub index: usize,
    /// What the model reads. If the tokenizer adds a BOS, it takes the place of the first token.
    pub tokens: Vec<u32>,
    /// The positions whose next-token distributions are compared.
    pub scored: Range<usize>,
}

/// The scored positions of a chunk of `context` tokens: those of the second half, where the model has seen at least
/// half of the context. The last position is left out because it predicts a token beyond the chunk. That makes
/// n - 1 - n/2 positions of n.
pub fn scored(context: usize) -> Range<usize> {
    context / 2..context.saturating_sub(1)
}

/// Which chunks of the texts are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// The first ones of each text.
    First,
    /// Chunks from all over the texts, among those that [`Draw::First`] does not take.
    Further {
        /// How many chunks `First` takes.
        first: usize,
        /// How many of the further chunks have been taken before and are left out.
        taken: usize,
    },
}

/// Why a corpus gives no chunks.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    #[error("cannot read corpus {}: {error}", path.display())]
    Io { path: PathBuf, error: std::io::Error },
    #[error("corpus {} {why}", path.display())]
    Encoding {
        path: PathBuf,
        /// What it is instead of UTF-8, and what to do.
        why: String,
    },
    /// Results and goldens name the chunks of a file after it, and such a name would look like another.
    #[error("corpus {} has a character in its name that nobody sees; rename it", path.display())]
    Name { path: PathBuf },
    /// The tokenizer cannot encode a text, or it is another model's tokenizer.
    #[error("corpus {}: {message}", path.display())]
    Tokens { path: PathBuf, message: String },
    /// The corpus has fewer chunks than were asked for.
    #[error("the corpus has {found} {}chunks of {context} tokens, {wanted} were asked for ({lengths}); ask for fewer or shorter chunks, or add text", further(*draw))]
    TooShort {
        found: usize,
        draw: Draw,
        wanted: usize,
        context: usize,
        /// How many tokens each file has, in words.
        lengths: String,
    },
    /// A text is shorter than its share of the chunks.
    #[error("{0}")]
    Uneven(Uneven),
    /// Most chunks say nothing new.
    #[error("{repeated} of the corpus' {all} chunks repeat another one: a model knows them by heart, so that a cache that harms looks harmless on them; take other text")]
    Repeats {
        /// How many chunks are equal to an earlier one.
        repeated: usize,
        all: usize,
    },
}

/// A text that has fewer chunks than its share. The other texts supply the rest, so a mean over all chunks is more of them,
/// and the more chunks there are, the less it is of this one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "corpus {} has {found} of the {share} chunks that are its share, so means are more of the other texts; {}",
    path.display(),
    self.mend()
)]
pub struct Uneven {
    pub path: PathBuf,
    /// How many chunks the text has.
    pub found: usize,
    /// How many it would have if all texts were long enough.
    pub share: usize,
    /// How many chunks in all can be asked for so that each text has its share.
    pub even: usize,
    /// How many texts there are.
    pub texts: usize,
}

impl Uneven {
    fn mend(&self) -> String {
        match self.even < self.texts {
            // fewer chunks would leave out texts, this one first
            true => "add text to it, leave it out, or take shorter chunks".into(),
            false => format!("ask for {} chunks at most, or add text to it", self.even),
        }
    }
}

fn further(draw: Draw) -> &'static str {
    match draw {
        Draw::First => "",
        Draw::Further { .. } => "further ",
    }
}

/// A file of the corpus that has been read.
pub struct Text {
    pub path: PathBuf,
    /// What results and goldens say of the file.
    pub file: CorpusFile,
    /// The file's text without its last line feed, which llama.cpp drops, too.
    text: String,
}

impl Text {
    /// Remarks on what the author of the text may not have meant to be read as tokens.
    pub fn remarks(&self) -> Vec<String> {
        remarks(&format!("corpus {}", self.path.display()), &self.text)
    }
}

/// A corpus as a model reads it.
pub struct Corpus {
    /// The chunks that are measured.
    pub chunks: Vec<Chunk>,
    /// How many further chunks could be drawn after these.
    pub left: usize,
    /// A text that has fewer of these chunks than its share.
    pub uneven: Option<Uneven>,
    /// All tokens of each text, including those that no chunk has.
    pub tokens: Vec<Vec<u32>>,
}

impl Corpus {
    /// Refuses chunks of which a text has fewer than its share: more chunks would be another mixture of texts, and so another
    /// mean.
    ///
    /// # Errors
    /// The text, and how many chunks can be asked for.
    pub fn even(&self) -> Result<(), CorpusError> {
        self.uneven.clone().map_or(Ok(()), |uneven| Err(CorpusError::Uneven(uneven)))
    }
}

/// Reads a file of a corpus.
///
/// # Errors
/// If the file cannot be read, or is not UTF-8.
pub fn read(path: &Path) -> Result<Text, CorpusError> {
    let bytes =
        std::fs::read(path).map_err(|error| CorpusError::Io { path: path.into(), error })?;
    let sha256 = crate::hash::of_bytes(&bytes);
    let mut text = utf8(bytes).map_err(|why| CorpusError::Encoding { path: path.into(), why })?;
    if text.ends_with('\n') {
        text.pop();
    }
    let category = category(path);
    if !category.chars().all(crate::text::is_shown) || category.contains('\n') {
        return Err(CorpusError::Name { path: path.into() });
    }
    Ok(Text { path: path.into(), file: CorpusFile { category, sha256 }, text })
}

/// The category of a file's chunks: the stem of its name.
pub fn category(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// How many of `chunks` the text at a place among `texts` gets if all texts are long enough. Texts take turns, so the first
/// ones get what is left over.
pub fn dealt(chunks: usize, texts: usize, place: usize) -> usize {
    let texts = texts.max(1);
    chunks / texts + usize::from(place < chunks % texts)
}

/// The text of a file that a model reads.
///
/// # Errors
/// What the file is instead of UTF-8, and what to do.
pub(super) fn utf8(bytes: Vec<u8>) -> Result<String, String> {
    if let Some(why) = is_wide(&bytes) {
        return Err(format!(
            "is UTF-16 or UTF-32 ({why}), of which a model would read noise; convert it: `iconv -f UTF-16 -t UTF-8`"
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        format!("is not UTF-8 (byte {}); convert it first", error.utf8_error().valid_up_to())
    })
}

/// Says why a file must be UTF-16 or UTF-32, if it is. ASCII in such a file is valid UTF-8 with a zero byte beside
/// every letter, so a check for UTF-8 alone would let it pass.
fn is_wide(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Some("it begins with its byte order mark");
    }
    let zeros = bytes.iter().filter(|byte| **byte == 0).count();
    (zeros > 0 && zeros >= bytes.len() / 4).then_some("a quarter of its bytes and more are zero")
}

/// Remarks on what the author of a text may not have meant to be read as tokens, such as byte order marks. Nothing
/// of it is dropped, because llama.cpp drops nothing either.
pub(super) fn remarks(what: &str, text: &str) -> Vec<String> {
    let count = |is_counted: fn(char) -> bool| text.chars().filter(|c| is_counted(*c)).count();
    let pairs = text.matches("\r\n").count();
    // the last line feed was dropped when the file was read, but not the CR before it
    let pairs = pairs + usize::from(pairs > 0 && text.ends_with('\r'));
    let alone = text.matches('\r').count() - pairs;
    let controls = |c: char| c.is_control() && !['\t', '\n', '\r', '\x0c'].contains(&c);
    let inner = count(|c| c == '\u{feff}') - usize::from(text.starts_with('\u{feff}'));
    let mut remarks = Vec::new();
    let mut remark = |is_so: bool, found: String| {
        if is_so {
            remarks.push(format!("{what} {found}"));
        }
    };
    remark(
        text.starts_with('\u{feff}'),
        "begins with a byte order mark, which the model reads as tokens: save it as UTF-8 without one".into(),
    );
    remark(
        inner > 0,
        format!("has {inner} byte order marks within, which the model reads as tokens: files with one were joined"),
    );
    remark(
        pairs > 0,
        format!("has {pairs} lines that end in CR LF, and the model reads every CR as a token or a part of one: \
                 convert it with dos2unix, and keep git from converting back by `*.txt text eol=lf` in .gitattributes"),
    );
    remark(
        alone > 0,
        format!("has {alone} CR that no LF follows, which the model reads as tokens: convert them to line feeds"),
    );
    remark(
        text.contains(controls),
        format!(
            "has {} control characters, which the model reads as tokens: remove them",
            text.matches(controls).count()
        ),
    );
    remark(
        text.contains('\u{fffd}'),
        format!(
            "has {} U+FFFD, which stand where a conversion lost characters: convert it anew",
            count(|c| c == '\u{fffd}')
        ),
    );
    remarks
}

/// Chunks that are equal to an earlier one: pairs of the first such chunk and its repetition.
fn repetitions(chunks: &[Chunk]) -> Vec<(&Chunk, &Chunk)> {
    let mut seen: HashMap<&[u32], &Chunk> = HashMap::new();
    let mut repetitions = Vec::new();
    for chunk in chunks {
        match seen.entry(&chunk.tokens) {
            Entry::Occupied(first) => repetitions.push((*first.get(), chunk)),
            Entry::Vacant(place) => drop(place.insert(chunk)),
        }
    }
    repetitions
}

/// Refuses a corpus that mostly repeats itself. After the first time a model predicts such text nearly for certain, so
/// that no scheme seems to do harm.
///
/// # Errors
/// If more than half of the chunks are equal to an earlier one.
pub fn mostly_new(chunks: &[Chunk]) -> Result<(), CorpusError> {
    let (repeated, all) = (repetitions(chunks).len(), chunks.len());
    if 2 * repeated > all {
        return Err(CorpusError::Repeats { repeated, all });
    }
    Ok(())
}

/// A remark on chunks that are equal to an earlier one, if there are any. Statistics count each of them as if it were
/// new.
pub fn repeated(chunks: &[Chunk]) -> Option<String> {
    let repetitions = repetitions(chunks);
    let (first, again) = repetitions.first()?;
    let name = |chunk: &Chunk| format!("chunk {} of {}", chunk.index, chunk.category);
    Some(format!(
        "{} of the {} chunks repeat another one ({} is {}): they say nothing new, and standard errors are too \
         small for them; take more text",
        repetitions.len(),
        chunks.len(),
        name(again),
        name(first)
    ))
}

/// Cuts each text into chunks of `context` tokens and drops what is left at its end. Then takes the first chunks of
/// the texts in turn until there are `wanted`.
///
/// # Errors
/// If the corpus has fewer chunks, or the tokenizer cannot encode it.
pub fn chunks(
    texts: &[Text],
    tokenizer: &Tokenizer,
    context: usize,
    wanted: usize,
) -> Result<Vec<Chunk>, CorpusError> {
    tokenized(texts, tokenizer, context, (Draw::First, wanted)).map(|corpus| corpus.chunks)
}

/// As [`chunks`], for chunks that are drawn in any way, and gives all tokens of the texts beside them.
///
/// # Errors
/// As [`chunks`].
pub fn tokenized(
    texts: &[Text],
    tokenizer: &Tokenizer,
    context: usize,
    (draw, wanted): (Draw, usize),
) -> Result<Corpus, CorpusError> {
    let mut files = Vec::new();
    let mut all = Vec::new();
    let mut lengths = Vec::new();
    for text in texts {
        let tokens = tokenizer
            .encode(&text.text)
            .map_err(|message| CorpusError::Tokens { path: text.path.clone(), message })?;
        lengths.push(format!("{}: {} tokens", text.path.display(), tokens.len()));
        files.push(cut(&text.file.category, &tokens, context, tokenizer.bos));
        all.push(tokens);
    }
    let seeds: Vec<&str> = texts.iter().map(|text| text.file.sha256.as_str()).collect();
    let chunks_of: Vec<usize> = files.iter().map(Vec::len).collect();
    let mut places = drawn(&chunks_of, &seeds, draw);
    let found = places.len();
    if found < wanted {
        let lengths = lengths.join(", ");
        return Err(CorpusError::TooShort { found, draw, wanted, context, lengths });
    }
    places.truncate(wanted);
    let (left, uneven) = match draw {
        Draw::First => {
            (further_places(&chunks_of, &seeds, wanted).len(), uneven(texts, &chunks_of, wanted))
        }
        Draw::Further { .. } => (found - wanted, None),
    };
    let chunks = places.into_iter().map(|(file, i)| files[file][i].clone()).collect();
    Ok(Corpus { chunks, left, uneven, tokens: all })
}

/// The first text that has fewer of the first chunks than its share.
fn uneven(texts: &[Text], lengths: &[usize], wanted: usize) -> Option<Uneven> {
    let share = |place: usize| dealt(wanted, texts.len(), place);
    let place = (0..texts.len()).find(|&place| lengths[place] < share(place))?;
    Some(Uneven {
        path: texts[place].path.clone(),
        found: lengths[place],
        share: share(place),
        even: even(lengths),
        texts: texts.len(),
    })
}

/// The places of chunks in the order in which they are taken from texts of so many chunks.
fn drawn(lengths: &[usize], seeds: &[&str], draw: Draw) -> Vec<(usize, usize)> {
    match draw {
        Draw::First => in_turn(lengths),
        Draw::Further { first, taken } => {
            further_places(lengths, seeds, first).into_iter().skip(taken).collect()
        }
    }
}

/// How many chunks texts of so many chunks give in turn before it is the turn of one that has no more.
pub fn even(lengths: &[usize]) -> usize {
    let turns = lengths.iter().enumerate().map(|(place, length)| lengths.len() * length + place);
    turns.min().unwrap_or_default()
}

/// The places of chunks, each as a text and a number in it, in the order in which the first ones are taken from texts of so
/// many chunks: texts take turns.
pub fn in_turn(lengths: &[usize]) -> Vec<(usize, usize)> {
    let of_text = |(text, length): (usize, &usize)| (0..*length).map(move |i| (i, text));
    let mut turns: Vec<_> = lengths.iter().enumerate().flat_map(of_text).collect();
    turns.sort_unstable();
    turns.into_iter().map(|(i, text)| (text, i)).collect()
}

/// The places of chunks beyond the `first` ones, in the order in which they are drawn. Texts go on taking turns, until it is
/// the turn of one that has no more: with the others alone, a mean would become one of other texts. The chunks of a text
/// are in an order that looks random and that the text's seed decides, which is its hash: so they come from all over the
/// text, and every run draws the same ones.
pub fn further_places(lengths: &[usize], seeds: &[&str], first: usize) -> Vec<(usize, usize)> {
    let mut rest: Vec<Vec<usize>> = vec![Vec::new(); lengths.len()];
    for (text, i) in in_turn(lengths).into_iter().skip(first) {
        rest[text].push(i);
    }
    for (rest, seed) in rest.iter_mut().zip(seeds) {
        rest.sort_by_cached_key(|i| {
            crate::hash::of_bytes(format!("kvgate chunk {i} of {seed}").as_bytes())
        });
    }
    // the first turn is that of the text after the last one of the first chunks
    let texts = rest.len();
    let text_of = |turn: usize| (turn + first) % texts;
    let lengths: Vec<usize> = (0..texts).map(|turn| rest[text_of(turn)].len()).collect();
    let places = in_turn(&lengths).into_iter().take(even(&lengths));
    places.map(|(turn, i)| (text_of(turn), rest[text_of(turn)][i])).collect()
}

fn cut(category: &str, tokens: &[u32], context: usize, bos: Option<u32>) -> Vec<Chunk> {
    tokens
        .chunks_exact(context)
        .enumerate()
        .map(|(index, tokens)| {
            let mut tokens = tokens.to_vec();
            if let Some(bos) = bos {
                tokens[0] = bos;
            }
            Chunk { category: category.into(), index, tokens, scored: scored(context) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_drop_the_tail_and_start_with_bos() {
        let tokens: Vec<u32> = (0..35).collect();
        let cut = cut("prose", &tokens, 16, Some(99));
        assert_eq!(cut.len(), 2);
        assert_eq!((cut[1].tokens[0], cut[1].tokens[1], cut[1].index), (99, 17, 1));
        assert_eq!(cut[0].scored, 8..15);
    }

    /// Further chunks are those that were not first, each once, from all over the texts, whatever the portions.
    #[test]
    fn further_chunks_come_from_all_over_what_is_left() {
        let lengths = [40, 40, 40];
        let places = |draw| drawn(&lengths, &["x", "y", "z"], draw);
        let first = places(Draw::First);
        assert_eq!(first.len(), 120);
        let further = |taken| places(Draw::Further { first: 9, taken });
        let rest = further(0);
        let (mut all, mut every) = ([&first[..9], &rest[..]].concat(), first.clone());
        all.sort_unstable();
        every.sort_unstable();
        assert_eq!(all, every, "each chunk once");
        assert_eq!(further(10), rest[10..], "portions do not change the order");
        assert_eq!(further(500), []);
        let of_a: Vec<usize> = rest[..60].iter().filter(|p| p.0 == 0).map(|p| p.1).collect();
        assert!(of_a.iter().any(|i| *i < 15) && of_a.iter().any(|i| *i > 27), "{of_a:?}");
        let other = drawn(&lengths, &["w", "y", "z"], Draw::Further { first: 9, taken: 0 });
        assert_ne!(other[0], rest[0], "another text, another order");
    }

    /// More chunks of the other texts would make the mean one of other texts.
    #[test]
    fn a_text_that_has_no_more_ends_what_is_drawn() {
        for (lengths, expected) in [
            (&[40, 5, 40][..], 16),
            (&[5, 40, 40], 15),
            (&[40, 40, 5], 17),
            (&[7], 7),
            (&[3, 0], 1),
            (&[], 0),
        ] {
            assert_eq!(even(lengths), expected, "{lengths:?}");
        }
        let further = |first| drawn(&[40, 5, 40], &["x"; 3], Draw::Further { first, taken: 0 });
        assert_eq!(further(9).len(), 7);
        let texts: Vec<usize> = further(9).iter().map(|place| place.0).collect();
        assert_eq!(texts, [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(further(15).len(), 1, "of the text before it");
        let next = drawn(&[40, 40, 40], &["x"; 3], Draw::Further { first: 4, taken: 0 });
        let texts: Vec<usize> = next[..5].iter().map(|place| place.0).collect();
        assert_eq!(texts, [1, 2, 0, 1, 2], "turns go on where the first chunks ended");
        let text = |name: &str| Text {
            path: name.into(),
            file: CorpusFile { category: name.into(), sha256: String::new() },
            text: String::new(),
        };
        let texts = ["a", "b", "c"].map(text);
        assert_eq!(uneven(&texts, &[40, 5, 40], 16), None);
        let said = uneven(&texts, &[40, 5, 40], 30).unwrap().to_string();
        assert!(said.starts_with("corpus b has 5 of the 10 chunks that are its share"), "{said}");
        assert!(said.ends_with("ask for 16 chunks at most, or add text to it"), "{said}");
        let said = uneven(&texts, &[40, 0, 40], 30).unwrap().to_string();
        assert!(said.ends_with("add text to it, leave it out, or take shorter chunks"), "{said}");
    }

    #[test]
    fn a_gate_does_not_judge_by_what_repeats_itself() {
        let chunks = |starts: &[u32]| {
            let tokens = |start: &u32| (*start..start + 16).collect::<Vec<u32>>();
            let all: Vec<u32> = starts.iter().flat_map(tokens).collect();
            cut("prose", &all, 16, None)
        };
        assert!(mostly_new(&chunks(&[1, 1, 2, 3])).is_ok());
        assert!(mostly_new(&chunks(&[1, 1, 2, 2])).is_ok());
        assert!(mostly_new(&chunks(&[1, 1, 1, 2])).is_ok(), "half of them are new");
        let error = mostly_new(&chunks(&[1, 1, 1, 1, 2])).unwrap_err().to_string();
        assert!(error.starts_with("3 of the corpus' 5 chunks repeat another one"), "{error}");
    }

    /// Reads a file that holds these bytes.
    fn file(bytes: &[u8]) -> Result<Text, CorpusError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read(file.path())
    }

    #[test]
    fn no_file_has_a_name_that_looks_like_another() {
        let folder = tempfile::tempdir().unwrap();
        for (name, is_refused) in [("prose.txt", false), ("pro\u{200b}se.txt", true)] {
            let path = folder.path().join(name);
            std::fs::write(&path, "some prose").unwrap();
            assert_eq!(
                matches!(read(&path), Err(CorpusError::Name { .. })),
                is_refused,
                "{name:?}"
            );
        }
    }

    #[test]
    fn what_would_be_measured_as_tokens_is_told() {
        let said = |text: &str| file(text.as_bytes()).unwrap().remarks().join("\n");
        assert_eq!(said("Plain text,\n\twith a tab and a form feed\u{c}.\n"), "");
        for (text, words) in [
            ("\u{feff}one\ntwo\n", "begins with a byte order mark"),
            ("one\n\u{feff}two\n", "has 1 byte order marks within"),
            ("one\r\ntwo\r\nthree", "has 2 lines that end in CR LF"),
            ("one\rtwo\r\nthree", "has 1 CR that no LF follows"),
            ("one\r\ntwo\r\n", "has 2 lines that end in CR LF"),
            ("one\0two and some more", "has 1 control characters"),
            ("na\u{fffd}ve", "has 1 U+FFFD"),
        ] {
            assert!(said(text).contains(words), "{text:?}: {}", said(text));
            assert!(said(text).starts_with("corpus /"), "{}", said(text));
        }
        assert_eq!(said("\u{feff}one\r\ntwo").lines().count(), 2);
    }

    /// ASCII in UTF-16 is valid UTF-8 with a zero byte beside every letter.
    #[test]
    fn text_of_two_bytes_a_letter_is_refused_by_its_name() {
        let text = "It was a quiet morning.";
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        let marked = [&[0xff, 0xfe][..], &little].concat();
        for bytes in [&little, &big, &marked, &[&[0xfe, 0xff][..], &big].concat()] {
            let error = file(bytes).err().unwrap().to_string();
            assert!(error.contains("is UTF-16 or UTF-32") && error.contains("iconv"), "{error}");
        }
        let error = file(b"na\xefve").err().unwrap().to_string();
        assert!(error.contains("is not UTF-8 (byte 2)"), "{error}");
    }

    #[test]
    fn chunks_that_repeat_are_told() {
        let chunks = |tokens: &[u32]| cut("prose", tokens, 4, None);
        assert_eq!(repeated(&chunks(&[1, 2, 3, 4, 5, 6, 7, 8])), None);
        let said = repeated(&chunks(&[1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 1, 2, 3, 4])).unwrap();
        assert!(
            said.starts_with("2 of the 4 chunks repeat another one (chunk 2 of prose is chunk 0"),
            "{said}"
        );
    }
}
