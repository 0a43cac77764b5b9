//! Tokenizers, from the checkpoint itself or a `tokenizer.json`, so that token ids are llama.cpp's.
//!
//! What a tokenizer gives is checked as it is given: every id must have an embedding, and where a policy names
//! a tokenizer beside a checkpoint that has a vocabulary, every token must be the same one in both
//! (`own.rs`). So nobody who reads a text can forget it.

mod beside;
mod bos;
mod file;
mod gguf;
mod guard;
pub(crate) mod markers;
mod own;
mod vocabulary;

pub(super) use gguf::{text, Vocabulary};

use super::config::Config;
use super::gguf::Gguf;
use super::spec::Spec;
use super::ModelError;
use crate::source::pinned::TOKENIZER;
use crate::source::Source;
use beside::Contested;
use bos::{Bos, Rule, Says};
use file::TokenizerFile;
use guard::guarded;
use own::Own;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tokenizers::AddedToken;
use vocabulary::cut;

/// SentencePiece writes a space as this.
const SPACE: &str = "\u{2581}";

/// A tokenizer from outside that takes longer than this for a text of so many bytes would take for ever for
/// a corpus: patterns exist whose time grows without bound.
const SLOWEST: (usize, Duration) = (512, Duration::from_secs(2));

/// Text to token ids, and back.
pub struct Tokenizer {
    /// Reads special tokens in a text as plain text.
    inner: tokenizers::Tokenizer,
    /// The same reading them as tokens, from when it is first needed.
    with_specials: OnceLock<tokenizers::Tokenizer>,
    /// Tokens of the vocabulary that are special only in what a template wrote.
    marks: Vec<String>,
    /// The token that stands before a text and, in llama.cpp's chunks, before each chunk.
    pub bos: Option<u32>,
    /// What it was built from, for people.
    pub kind: String,
    /// Whether somebody else wrote its patterns.
    is_from_outside: bool,
    /// Rows of the model's table of embeddings.
    rows: Option<usize>,
    /// The checkpoint's own vocabulary, where this is another one's.
    own: Option<Own>,
    /// Tokens that the files beside a `tokenizer.json` know as others.
    contested: Vec<Contested>,
}

impl Tokenizer {
    fn new(mut inner: tokenizers::Tokenizer, kind: String) -> Self {
        inner.set_encode_special_tokens(true);
        Tokenizer {
            inner,
            with_specials: OnceLock::new(),
            marks: Vec::new(),
            bos: None,
            kind,
            is_from_outside: false,
            rows: None,
            own: None,
            contested: Vec::new(),
        }
    }

    /// Reads a Hugging Face `tokenizer.json`; BOS is what the file's own template puts before a text.
    ///
    /// # Errors
    /// A file that is missing or malformed, or that its library would panic at.
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let TokenizerFile { mut tokenizer, template_bos, .. } = TokenizerFile::read(path)?;
        tokenizer.bos = template_bos;
        Ok(tokenizer)
    }

    /// Token ids of a text: BOS first where the tokenizer adds one, special tokens in the text read
    /// as plain text (llama.cpp's `add_special = true, parse_special = false`).
    ///
    /// # Errors
    /// Text that the vocabulary cannot spell, or that shows that the vocabulary is another model's.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        beside::check(&self.contested, &self.inner, text, false)?;
        let ids = self.checked(text, Tokenizer::plain)?;
        Ok(self.bos.into_iter().chain(ids).collect())
    }

    /// Token ids of what a chat template wrote: special tokens in the text are read as such, and BOS is
    /// one of them (`add_special = false, parse_special = true`).
    ///
    /// # Errors
    /// Text that the vocabulary cannot spell, or that shows that the vocabulary is another model's.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, String> {
        beside::check(&self.contested, &self.inner, text, true)?;
        self.checked(text, Tokenizer::rendered)
    }

    /// The text of tokens, special ones included; U+FFFD where they begin or end within a character.
    ///
    /// # Errors
    /// What a `tokenizer.json` with a decoder of its own cannot decode.
    pub fn decode(&self, ids: &[u32]) -> Result<String, String> {
        guarded(|| self.inner.decode(ids, false))?.map_err(|e| e.to_string())
    }

    /// The token that a text is as a whole, if it marks something and is no text.
    pub(super) fn mark(&self, text: &str) -> Option<u32> {
        let id = self.inner.token_to_id(text)?;
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id);
        let is_mark = added.is_some_and(|token| token.special);
        (is_mark || self.marks.iter().any(|mark| mark == text)).then_some(id)
    }

    /// The token that a text is as a whole.
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
        ids(&self.inner, text)
    }

    fn rendered(&self, text: &str) -> Result<Vec<u32>, String> {
        let inner = self.with_specials.get_or_init(|| {
            let mut inner = self.inner.clone();
            inner.set_encode_special_tokens(false);
            let marks = self.marks.iter().map(|mark| AddedToken::from(mark.as_str(), true));
            // they are in the vocabulary, so there is nothing that can fail
            let _ = inner.add_special_tokens(marks.map(|mark| mark.normalized(false)));
            inner
        });
        ids(inner, text)
    }

    /// Refuses a tokenizer from outside that takes seconds for the beginning of a text.
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

fn ids(inner: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>, String> {
    let encoding = guarded(|| inner.encode_fast(text, false))?.map_err(|e| e.to_string())?;
    Ok(encoding.get_ids().to_vec())
}

/// The tokenizer of a checkpoint, and what is to be said of it.
pub(super) struct Opened {
    pub tokenizer: Tokenizer,
    /// Where it is, unless the weights file holds it.
    pub file: Option<PathBuf>,
    /// For people.
    pub notes: Vec<String>,
    /// What is not as kvgate 0.1.0 did it, for goldens.
    pub reading: Vec<String>,
}

/// The tokenizer for a GGUF file: its own, or the one that the policy names.
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
            opened = Opened { tokenizer, file: None, notes: Vec::new(), reading: Vec::new() };
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

/// The tokenizer for a folder: its own, or the one that the policy names.
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

/// The word of a `tokenizer_config.json` beside a tokenizer that is named.
fn says_beside(path: &Path, named: &TokenizerFile) -> Result<Option<Says>, ModelError> {
    let Some(folder) = path.parent() else { return Ok(None) };
    Ok(Some(Says::of_folder(folder, |text| named.tokenizer.token(text))?.beside()))
}

/// What kvgate 0.1.0 put before the chunks of a GGUF file with its own tokenizer: its key, or else BOS for
/// SentencePiece. Of a `tokenizer.json` it was the template's.
fn bos_of_0_1_0(file: &Gguf, says: &Says) -> Option<u32> {
    let is_sentence_piece = text(file, gguf::MODEL) == Some("llama");
    says.adds.unwrap_or(is_sentence_piece).then_some(says.token).flatten()
}

impl Opened {
    fn of_file(file: TokenizerFile, path: &Path, spec: &Spec) -> Self {
        let (count, rows) = (file.tokenizer.inner.get_vocab_size(true), spec.vocab);
        let mut notes = file.remarks;
        // tables are padded by some hundred rows at most
        if count < rows - rows / 10 {
            notes.push(format!(
                "the tokenizer has {count} tokens, the model {rows}: it may be another model's"
            ));
        }
        Opened { tokenizer: file.tokenizer, file: Some(path.into()), notes, reading: Vec::new() }
    }

    /// Holds the tokenizer to the checkpoint's own vocabulary.
    fn compare(&mut self, own: Own) -> Result<(), ModelError> {
        let path = self.file.as_deref().unwrap_or(Path::new(""));
        own.check_specials().map_err(|why| ModelError::tokenizer(path, why))?;
        self.notes.extend(own.remark.clone());
        self.tokenizer.own = Some(own);
        Ok(())
    }

    /// Sets BOS and says so, as a condition where the policy decided or where it is not what kvgate 0.1.0 did, which
    /// is `before`.
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
