//! Corpus → chunks, as llama-perplexity makes them.

use crate::model::tokenizer::Tokenizer;
use crate::results::CorpusFile;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Consecutive tokens of one file of the corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The file's stem.
    pub category: String,
    /// Number within the category.
    pub index: usize,
    /// What the model reads: the first is BOS where the tokenizer adds one.
    pub tokens: Vec<u32>,
    /// Positions whose distributions are compared.
    pub scored: Range<usize>,
}

/// Positions of a chunk of so many tokens that are compared: those of the second half that predict a
/// token of the chunk, n - 1 - n/2 of them.
pub fn scored(context: usize) -> Range<usize> {
    context / 2..context.saturating_sub(1)
}

/// Why a corpus gives no chunks.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// A file cannot be read.
    #[error("cannot read corpus {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file is not UTF-8.
    #[error("corpus {} is not UTF-8 (byte {at}); convert it first", path.display())]
    Encoding {
        /// The file.
        path: PathBuf,
        /// Offset of the first wrong byte.
        at: usize,
    },
    /// The tokenizer cannot spell it.
    #[error("corpus {}: {message}", path.display())]
    Tokens {
        /// The file.
        path: PathBuf,
        /// The tokenizer's words.
        message: String,
    },
    /// Fewer chunks than asked for.
    #[error("the corpus has {found} chunks of {context} tokens, {wanted} were asked for ({lengths}); lower `chunks` or `context`, or add text")]
    TooShort {
        /// Whole chunks in the corpus.
        found: usize,
        /// Chunks asked for.
        wanted: usize,
        /// Tokens in a chunk.
        context: usize,
        /// Tokens of each file.
        lengths: String,
    },
}

/// One file, read.
pub struct Text {
    /// Where it was.
    pub path: PathBuf,
    /// Its category and hash.
    pub file: CorpusFile,
    /// One trailing line feed is dropped, as llama.cpp does.
    text: String,
}

/// Reads a file of a corpus.
///
/// # Errors
/// A file that cannot be read or is not UTF-8.
pub fn read(path: &Path) -> Result<Text, CorpusError> {
    let bytes =
        std::fs::read(path).map_err(|error| CorpusError::Io { path: path.into(), error })?;
    let sha256 = crate::hash::of_bytes(&bytes);
    let mut text = String::from_utf8(bytes).map_err(|e| CorpusError::Encoding {
        path: path.into(),
        at: e.utf8_error().valid_up_to(),
    })?;
    if text.ends_with('\n') {
        text.pop();
    }
    let category = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Text { path: path.into(), file: CorpusFile { category, sha256 }, text })
}

/// Cuts each text into chunks of `context` tokens, drops its tail, and deals the chunks round-robin
/// over the texts until there are `wanted`.
///
/// # Errors
/// A corpus that has fewer.
pub fn chunks(
    texts: &[Text],
    tokenizer: &Tokenizer,
    context: usize,
    wanted: usize,
) -> Result<Vec<Chunk>, CorpusError> {
    let mut files = Vec::new();
    let mut lengths = Vec::new();
    for text in texts {
        let tokens = tokenizer
            .encode(&text.text)
            .map_err(|message| CorpusError::Tokens { path: text.path.clone(), message })?;
        lengths.push(format!("{}: {} tokens", text.path.display(), tokens.len()));
        files.push(cut(&text.file.category, &tokens, context, tokenizer.bos));
    }
    let found = files.iter().map(Vec::len).sum();
    if found < wanted {
        let lengths = lengths.join(", ");
        return Err(CorpusError::TooShort { found, wanted, context, lengths });
    }
    let longest = files.iter().map(Vec::len).max().unwrap_or(0);
    let dealt = (0..longest).flat_map(|i| files.iter().filter_map(move |file| file.get(i)));
    Ok(dealt.take(wanted).cloned().collect())
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
}
