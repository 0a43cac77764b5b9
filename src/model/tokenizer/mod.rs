//! Tokenizers, from the checkpoint itself or from a `tokenizer.json`. They give the token ids that llama.cpp gives.
//!
//! A tokenizer checks every text that it encodes, so that no caller can forget to: every id must have an embedding,
//! and if a policy names a tokenizer for a checkpoint that has a vocabulary of its own, every token must be the same
//! in both (`own.rs`).

mod beside;
mod bos;
mod file;
mod gguf;
mod guard;
mod kinds;
pub(crate) mod markers;
mod own;
mod pre;
mod vocabulary;

pub(super) use gguf::{text, Vocabulary};

use super::config::Config;
use super::gguf::Gguf;
use super::spec::Spec;
use super::ModelError;
use crate::source::pinned::TOKENIZER;
use crate::source::Source;
use beside::Contested;
use bos::{Bos, Says};
use file::TokenizerFile;
use guard::guarded;
use own::Own;
use pre::Rule;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tokenizers::AddedToken;
use vocabulary::cut;

/// How SentencePiece writes a space.
const SPACE: &str = "\u{2581}";

/// A tokenizer from outside must encode a text of this many bytes in this time. Some patterns take time without
/// bound, and would never finish a corpus.
const SLOWEST: (usize, Duration) = (512, Duration::from_secs(2));

/// Text to token ids, and back.
pub struct Tokenizer {
    /// Encodes special tokens in a text as plain text.
    inner: tokenizers::Tokenizer,
    /// The same tokenizer, but it encodes special tokens as such. It is made when it is first needed.
    with_specials: OnceLock<tokenizers::Tokenizer>,
    /// Tokens that count as special only in text that a chat template wrote.
    marks: Vec<String>,
    /// Tokens behind which white space is dropped, and whether they are found in plain text.
    drops: Vec<(String, bool)>,
    /// The id of text that the vocabulary cannot spell. Like llama.cpp, kvgate leaves such text out.
    unspelled: Option<u32>,
    /// The token that stands before a text and before each of its chunks, if any.
    pub bos: Option<u32>,
    /// What the tokenizer was built from, for people.
    pub kind: String,
    /// Whether its patterns come from a file and not from kvgate.
    is_from_outside: bool,
    /// The number of rows of the model's embedding.
    rows: Option<usize>,
    /// The checkpoint's own vocabulary, if the policy names this tokenizer instead.
    own: Option<Own>,
    /// Tokens that `tokenizer.json` and the files beside it define differently.
    contested: Vec<Contested>,
}

impl Tokenizer {
    fn new(mut inner: tokenizers::Tokenizer, kind: String) -> Self {
        inner.set_encode_special_tokens(true);
        Tokenizer {
            inner,
            with_specials: OnceLock::new(),
            marks: Vec::new(),
            drops: Vec::new(),
            unspelled: None,
            bos: None,
            kind,
            is_from_outside: false,
            rows: None,
            own: None,
            contested: Vec::new(),
        }
    }

    /// Reads a Hugging Face `tokenizer.json`. BOS is the token that the file's own template puts before a text.
    ///
    /// # Errors
    /// If the file is missing or malformed, or the library that reads it would panic.
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let TokenizerFile { mut tokenizer, template_bos, .. } = TokenizerFile::read(path)?;
        tokenizer.bos = template_bos;
        Ok(tokenizer)
    }

    /// Encodes a text. BOS comes first if the tokenizer adds one. Special tokens in the text are read as plain text
    /// (llama.cpp's `add_special = true, parse_special = false`).
    ///
    /// # Errors
    /// If the vocabulary cannot spell the text, or the text shows that the vocabulary is that of another
    /// model.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        beside::check(&self.contested, &self.inner, text, false)?;
        let ids = self.checked(text, Tokenizer::plain)?;
        Ok(self.bos.into_iter().chain(ids).collect())
    }

    /// Encodes text that a chat template wrote. Special tokens in the text are read as such, BOS among them
    /// (`add_special = false, parse_special = true`).
    ///
    /// # Errors
    /// If the vocabulary cannot spell the text, or the text shows that the vocabulary is that of another
    /// model.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, String> {
        beside::check(&self.contested, &self.inner, text, true)?;
        self.checked(text, Tokenizer::rendered)
    }

    /// The text of tokens, special ones included. It has U+FFFD if the tokens begin or end within a character.
    ///
    /// # Errors
    /// If a `tokenizer.json` brings its own decoder and that decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, String> {
        guarded(|| self.inner.decode(ids, false))?.map_err(|e| e.to_string())
    }

    /// The token whose whole text this is, if that token is a mark and not ordinary text.
    pub(super) fn mark(&self, text: &str) -> Option<u32> {
        let id = self.inner.token_to_id(text)?;
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id);
        let is_mark = added.is_some_and(|token| token.special);
        (is_mark || self.marks.iter().any(|mark| mark == text)).then_some(id)
    }

    /// The token whose whole text this is.
    pub(super) fn token(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    fn checked(
        &self,
        text: &str,
        read: fn(&Tokenizer, &str) -> Result<Vec<u32>, String>,
    ) -> Result<Vec<u32>, String> {
        self.is_in_time(text, read)?;
        let ids = read(self, text)?;
        if let Some((&id, rows)) = self.rows.and_then(|rows| {
            let beyond = ids.iter().find(|&&id| id as usize >= rows);
            beyond.map(|id| (id, rows))
        }) {
            let piece = self.inner.id_to_token(id).unwrap_or_default();
            let kind = &self.kind;
            return Err(format!(
                "the tokenizer ({kind}) gives token {id} (`{}`), the model has {rows}: it is another model's",
                cut(&piece)
            ));
        }
        if let Some(own) = &self.own {
            own.check(&ids, |own| read(own, text))?;
        }
        Ok(ids)
    }

    fn plain(&self, text: &str) -> Result<Vec<u32>, String> {
        self.ids(&self.inner, text, true)
    }

    fn rendered(&self, text: &str) -> Result<Vec<u32>, String> {
        let inner = self.with_specials.get_or_init(|| {
            let mut inner = self.inner.clone();
            inner.set_encode_special_tokens(false);
            let marks = self.marks.iter().map(|mark| AddedToken::from(mark.as_str(), true));
            // this cannot fail, because the marks are in the vocabulary
            let _ = inner.add_special_tokens(marks.map(|mark| mark.normalized(false)));
            inner
        });
        self.ids(inner, text, false)
    }

    fn ids(
        &self,
        inner: &tokenizers::Tokenizer,
        text: &str,
        is_plain: bool,
    ) -> Result<Vec<u32>, String> {
        let text = match &*self.drops {
            [] => Cow::Borrowed(text),
            drops => gguf::without_dropped(text, drops, is_plain).into(),
        };
        let encoding = guarded(|| inner.encode_fast(text, false))?.map_err(|e| e.to_string())?;
        let ids = encoding.get_ids().iter().copied();
        Ok(ids.filter(|id| Some(*id) != self.unspelled).collect())
    }

    /// Refuses a tokenizer from outside that takes several seconds for the beginning of a text.
    fn is_in_time(
        &self,
        text: &str,
        read: fn(&Tokenizer, &str) -> Result<Vec<u32>, String>,
    ) -> Result<(), String> {
        let (bytes, longest) = SLOWEST;
        if !self.is_from_outside || text.len() <= bytes {
            return Ok(());
        }
        let end = (0..=bytes).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        let began = Instant::now();
        read(self, &text[..end])?;
        let taken = began.elapsed();
        if taken > longest {
            let seconds = taken.as_secs_f64();
            return Err(format!(
                "the tokenizer ({}) takes {seconds:.0} s for {end} bytes: one of its patterns has no end",
                self.kind
            ));
        }
        Ok(())
    }
}

/// The tokenizer of a checkpoint, and notes about it.
pub(super) struct Opened {
    pub tokenizer: Tokenizer,
    /// The file that it was read from, unless the weights file holds it.
    pub file: Option<PathBuf>,
    /// For people.
    pub notes: Vec<String>,
    /// What differs from how kvgate 0.1.0 read the checkpoint, for goldens.
    pub reading: Vec<String>,
}

/// Opens the tokenizer for a GGUF file: its own, or the one that the policy names.
pub(super) fn of_gguf(
    file: &Gguf,
    vocabulary: &Vocabulary,
    spec: &Spec,
    source: &Source,
) -> Result<Opened, ModelError> {
    let mut says = vec![Says::of_gguf(file, vocabulary)?];
    let rule = Rule::of_gguf(file);
    let mut opened;
    let (before, template) = match &source.tokenizer {
        None => {
            vocabulary.check_size(file, spec.vocab)?;
            let tokenizer = Tokenizer::from_gguf(file, vocabulary)?;
            let notes = gguf::unnamed_pre(file).into_iter().collect();
            opened = Opened { tokenizer, file: None, notes, reading: Vec::new() };
            (bos_of_0_1_0(file, &says[0]), None)
        }
        Some(path) => {
            let named = TokenizerFile::read(path)?;
            says.extend(says_beside(path, &named)?);
            let template = named.template_bos;
            let own = Own::of_gguf(file, vocabulary, path, &named)?;
            opened = Opened::of_file(named, path, spec);
            opened.compare(own)?;
            (template, template)
        }
    };
    opened.notes.extend(vocabulary.remarks.iter().cloned());
    let bos = bos::decide(source.bos, &says, template, rule);
    let bos = bos.map_err(|why| ModelError::tokenizer(file.path(), why))?;
    opened.put_bos(bos, source.bos.is_some(), before, spec)?;
    Ok(opened)
}

/// Opens the tokenizer for a folder: its own, or the one that the policy names.
pub(super) fn of_folder(folder: &Path, spec: &Spec, source: &Source) -> Result<Opened, ModelError> {
    let path = source.tokenizer.clone().unwrap_or_else(|| folder.join(TOKENIZER));
    let file = TokenizerFile::read(&path)?;
    let mut says = vec![Says::of_folder(folder, |text| file.tokenizer.token(text))?];
    let mut own = None;
    if path != folder.join(TOKENIZER) {
        says.extend(says_beside(&path, &file)?);
        own = Some(Own::of_folder(folder, &path, &file)?);
    }
    says.push(Says::of_config(folder)?);
    let template = file.template_bos;
    own::check_config(folder, &path, &file)?;
    let mut opened = Opened::of_file(file, &path, spec);
    own.map_or(Ok(()), |own| opened.compare(own))?;
    let rule = Rule::of_architecture(&spec.architecture);
    let bos = bos::decide(source.bos, &says, template, rule);
    let bos = bos.map_err(|why| ModelError::tokenizer(folder, why))?;
    opened.put_bos(bos, source.bos.is_some(), template, spec)?;
    Ok(opened)
}

/// What a `tokenizer_config.json` beside the named tokenizer says of BOS.
fn says_beside(path: &Path, named: &TokenizerFile) -> Result<Option<Says>, ModelError> {
    let Some(folder) = path.parent() else { return Ok(None) };
    Ok(Some(Says::of_folder(folder, |text| named.tokenizer.token(text))?.beside()))
}

/// The BOS that kvgate 0.1.0 used for a GGUF file with its own tokenizer: as the file's key says, or else BOS for
/// SentencePiece only. For a `tokenizer.json` it used the token of the file's template.
fn bos_of_0_1_0(file: &Gguf, says: &Says) -> Option<u32> {
    let is_sentence_piece = text(file, gguf::MODEL) == Some("llama");
    says.adds.unwrap_or(is_sentence_piece).then_some(says.token).flatten()
}

impl Opened {
    fn of_file(file: TokenizerFile, path: &Path, spec: &Spec) -> Self {
        let (count, rows) = (file.tokenizer.inner.get_vocab_size(true), spec.vocab);
        let mut notes = file.remarks;
        // embeddings are padded by some hundred rows at most
        if count < rows - rows / 10 {
            notes.push(format!(
                "the tokenizer has {count} tokens, the model {rows}: it may be another model's"
            ));
        }
        Opened { tokenizer: file.tokenizer, file: Some(path.into()), notes, reading: Vec::new() }
    }

    /// Compares the special tokens with the checkpoint's own vocabulary, and keeps that vocabulary for texts.
    fn compare(&mut self, own: Own) -> Result<(), ModelError> {
        let path = self.file.as_deref().unwrap_or(Path::new(""));
        own.check_specials().map_err(|why| ModelError::tokenizer(path, why))?;
        self.notes.extend(own.remark.clone());
        self.tokenizer.own = Some(own);
        Ok(())
    }

    /// Sets BOS and adds a note about it. It is also recorded as a condition of the measurement if the policy decided
    /// it, or if it is not `before`, which kvgate 0.1.0 used.
    fn put_bos(
        &mut self,
        bos: Bos,
        is_asked: bool,
        before: Option<u32>,
        spec: &Spec,
    ) -> Result<(), ModelError> {
        let Bos { token, by } = bos;
        self.tokenizer.rows = Some(spec.vocab);
        self.notes.push(match token {
            None => format!("no BOS, by {by}"),
            Some(id) => {
                let piece = self.tokenizer.inner.id_to_token(id);
                let Some(piece) = piece.filter(|_| (id as usize) < spec.vocab) else {
                    let path = self.file.as_deref().unwrap_or(Path::new(""));
                    let message =
                        format!("BOS is token {id}, by {by}, which the vocabulary does not have");
                    return Err(ModelError::tokenizer(path, message));
                };
                format!("BOS {id} {} before each chunk, by {by}", cut(&piece))
            }
        });
        if token.is_none() && spec.architecture.starts_with("gemma") {
            self.notes.push(
                "warning: a Gemma without BOS reads far worse than it is: `bos = true` in the policy adds it"
                    .into(),
            );
        }
        if is_asked || token != before {
            let word = token.map_or("none".into(), |id| id.to_string());
            self.reading.push(format!("bos {word}"));
        }
        self.tokenizer.bos = token;
        Ok(())
    }
}
