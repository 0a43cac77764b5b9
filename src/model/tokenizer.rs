//! Tokenizers, rebuilt from the checkpoint itself so that token ids are llama.cpp's.
//!
//! A GGUF file holds a vocabulary and a kind: `gpt2` (byte-level BPE with merges and a named
//! pre-tokenizer) or `llama` (SentencePiece pieces with scores). Both become a BPE of the
//! `tokenizers` crate. An unknown pre-tokenizer is an error: a wrong one gives plausible tokens and
//! wrong numbers.

use super::config::Config;
use super::gguf::Gguf;
use super::ModelError;
use candle_core::quantized::gguf_file::Value;
use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::models::bpe::{Merges, BPE};
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{AddedToken, SplitDelimiterBehavior};

/// SentencePiece writes a space as this.
const SPACE: &str = "\u{2581}";

/// Types of `tokenizer.ggml.token_type`: tokens that text spells only where special tokens are asked
/// for, and tokens that it always spells.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

const GPT2_SPLIT: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Pre-tokenizers by their names in `tokenizer.ggml.pre`: patterns that split one after the other.
const PRE_TOKENIZERS: &[(&str, &[&str])] =
    &[("gpt-2", &[GPT2_SPLIT]), ("smollm", &[r"\p{N}", GPT2_SPLIT]), ("qwen2", &[QWEN2_SPLIT])];

/// Text to token ids, and back.
pub struct Tokenizer {
    /// Reads special tokens in a text as plain text.
    inner: tokenizers::Tokenizer,
    /// The same reading them as tokens, from when it is first needed.
    with_specials: OnceLock<tokenizers::Tokenizer>,
    /// The token that stands before a text and, in llama.cpp's chunks, before each chunk.
    pub bos: Option<u32>,
    /// What it was built from, for people.
    pub kind: String,
}

impl Tokenizer {
    fn new(mut inner: tokenizers::Tokenizer, bos: Option<u32>, kind: String) -> Self {
        inner.set_encode_special_tokens(true);
        Tokenizer { inner, with_specials: OnceLock::new(), bos, kind }
    }

    /// Reads a Hugging Face `tokenizer.json`.
    ///
    /// # Errors
    /// A file that is missing or malformed.
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let fail = |e: tokenizers::Error| ModelError::Tokenizer {
            path: path.into(),
            message: format!("cannot use this tokenizer: {e}"),
        };
        let mut inner = tokenizers::Tokenizer::from_file(path).map_err(fail)?;
        inner.with_truncation(None).map_err(fail)?.with_padding(None);
        // BOS is what the file's own template puts before a text
        let first = |special| -> Result<Option<u32>, ModelError> {
            Ok(inner.encode_fast("a", special).map_err(fail)?.get_ids().first().copied())
        };
        let (with, without) = (first(true)?, first(false)?);
        let bos = if with == without { None } else { with };
        Ok(Tokenizer::new(inner, bos, "tokenizer.json".into()))
    }

    pub(crate) fn from_gguf(file: &Gguf) -> Result<Self, ModelError> {
        let vocabulary = Vocabulary::read(file)?;
        let model = text(file, "tokenizer.ggml.model").unwrap_or_default();
        let pre = text(file, "tokenizer.ggml.pre").unwrap_or_default();
        let (mut inner, bos_by_default) = match model {
            "gpt2" => (byte_level(file, &vocabulary, pre)?, false),
            "llama" => (sentence_piece(file, &vocabulary)?, true),
            other => return Err(unusable(file, format!("its tokenizer `{other}` is unknown"))),
        };
        let added = |kind: u64| {
            let special = kind == CONTROL;
            let tokens = vocabulary.tokens.iter().zip(&vocabulary.types);
            let tokens = tokens.filter(move |&(token, &of)| of == kind && !token.is_empty());
            tokens
                .map(move |(token, _)| AddedToken::from(token.as_str(), special).normalized(false))
        };
        inner
            .add_tokens(added(USER_DEFINED))
            .and_then(|_| inner.add_special_tokens(added(CONTROL)))
            .map_err(|e| unusable(file, e.to_string()))?;
        let add_bos = match file.value("tokenizer.ggml.add_bos_token") {
            Some(Value::Bool(b)) => *b,
            _ => bos_by_default,
        };
        let bos = match file.any_number("tokenizer.ggml.bos_token_id")? {
            Some(id) if add_bos && id < vocabulary.tokens.len() => Some(id as u32),
            _ if add_bos => {
                return Err(unusable(file, "it adds a BOS token but names no known one"))
            }
            _ => None,
        };
        let kind = if model == "gpt2" { format!("BPE, {pre}") } else { "SentencePiece".into() };
        Ok(Tokenizer::new(inner, bos, format!("{kind}, from the GGUF")))
    }

    /// Token ids of a text: BOS first where the tokenizer adds one, special tokens in the text read
    /// as plain text (llama.cpp's `add_special = true, parse_special = false`).
    ///
    /// # Errors
    /// Text that the vocabulary cannot spell.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| e.to_string())?;
        Ok(self.bos.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// Token ids of what a chat template wrote: special tokens in the text are read as such, and BOS is
    /// one of them (`add_special = false, parse_special = true`).
    ///
    /// # Errors
    /// Text that the vocabulary cannot spell.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, String> {
        let inner = self.with_specials.get_or_init(|| {
            let mut inner = self.inner.clone();
            inner.set_encode_special_tokens(false);
            inner
        });
        let encoding = inner.encode_fast(text, false).map_err(|e| e.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens, special ones included; U+FFFD where they begin or end within a character.
    ///
    /// # Errors
    /// What a `tokenizer.json` with a decoder of its own cannot decode.
    pub fn decode(&self, ids: &[u32]) -> Result<String, String> {
        self.inner.decode(ids, false).map_err(|e| e.to_string())
    }
}

/// The vocabulary of a GGUF file.
pub(super) struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<u64>,
}

impl Vocabulary {
    pub fn read(file: &Gguf) -> Result<Self, ModelError> {
        let tokens = strings(file, "tokenizer.ggml.tokens")?;
        let types = match file.value("tokenizer.ggml.token_type") {
            Some(Value::Array(types)) => types
                .iter()
                .map(|t| match t {
                    Value::I32(v) => *v as u64,
                    Value::U32(v) => u64::from(*v),
                    _ => 0,
                })
                .collect(),
            _ => vec![1; tokens.len()],
        };
        if types.len() != tokens.len() {
            return Err(file.bad_key(
                "tokenizer.ggml.token_type",
                format!("has {} entries for {} tokens", types.len(), tokens.len()),
            ));
        }
        Ok(Vocabulary { tokens, types })
    }

    /// Control tokens with their texts.
    pub fn control(&self) -> impl Iterator<Item = (u32, &str)> {
        let tokens = (0..).zip(&self.tokens).zip(&self.types);
        tokens.filter(|(_, &kind)| kind == CONTROL).map(|((id, text), _)| (id, text.as_str()))
    }

    fn ids(&self) -> HashMap<String, u32> {
        self.tokens.iter().zip(0..).map(|(token, id)| (token.clone(), id)).collect()
    }
}

fn byte_level(
    file: &Gguf,
    vocabulary: &Vocabulary,
    pre: &str,
) -> Result<tokenizers::Tokenizer, ModelError> {
    let Some((_, patterns)) = PRE_TOKENIZERS.iter().find(|(name, _)| *name == pre) else {
        let known: Vec<_> = PRE_TOKENIZERS.iter().map(|(name, _)| *name).collect();
        return Err(unusable(
            file,
            format!("its pre-tokenizer `{pre}` is unknown (known: {})", known.join(", ")),
        ));
    };
    let merges = strings(file, "tokenizer.ggml.merges")?
        .into_iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok((left.to_string(), right.to_string())),
            None => Err(file.bad_key("tokenizer.ggml.merges", format!("`{merge}` is no pair"))),
        })
        .collect::<Result<Merges, _>>()?;
    let bpe = BPE::builder()
        .vocab_and_merges(
            vocabulary.ids().into_iter().collect::<tokenizers::models::bpe::Vocab>(),
            merges,
        )
        .build()
        .map_err(|e| unusable(file, e.to_string()))?;
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in *patterns {
        let pattern = SplitPattern::Regex((*pattern).into());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
        steps.push(split.map_err(|e| unusable(file, e.to_string()))?.into());
    }
    steps.push(ByteLevel::new(false, true, false).into());
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok(tokenizer)
}

/// SentencePiece's BPE merges the adjacent pair whose joined piece scores highest. The same order is
/// had from merges ranked by the score of what they make.
fn sentence_piece(
    file: &Gguf,
    vocabulary: &Vocabulary,
) -> Result<tokenizers::Tokenizer, ModelError> {
    if matches!(file.value("tokenizer.ggml.add_space_prefix"), None | Some(Value::Bool(true))) {
        return Err(unusable(file, "a SentencePiece tokenizer with a space prefix is unsupported"));
    }
    let scores = match file.value("tokenizer.ggml.scores") {
        Some(Value::Array(scores)) if scores.len() == vocabulary.tokens.len() => scores,
        _ => return Err(file.bad_key("tokenizer.ggml.scores", "must have one entry a token")),
    };
    let ids = vocabulary.ids();
    let mut merges: Vec<(f32, (String, String))> = Vec::new();
    for ((token, &kind), score) in vocabulary.tokens.iter().zip(&vocabulary.types).zip(scores) {
        let score = match score {
            Value::F32(v) if v.is_finite() => *v,
            _ => return Err(file.bad_key("tokenizer.ggml.scores", "must be finite floats")),
        };
        // only normal pieces are made by merging; byte and control tokens are not
        if kind != 1 {
            continue;
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                merges.push((score, (left.into(), right.into())));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    let unknown = file.any_number("tokenizer.ggml.unknown_token_id")?;
    let unknown = unknown.and_then(|id| vocabulary.tokens.get(id));
    let mut bpe = BPE::builder()
        .vocab_and_merges(
            ids.into_iter().collect::<tokenizers::models::bpe::Vocab>(),
            merges.into_iter().map(|(_, pair)| pair).collect(),
        )
        .fuse_unk(true)
        .byte_fallback(true);
    if let Some(unknown) = unknown {
        bpe = bpe.unk_token(unknown.clone());
    }
    let mut tokenizer =
        tokenizers::Tokenizer::new(bpe.build().map_err(|e| unusable(file, e.to_string()))?);
    let spaces = Replace::new(ReplacePattern::String(" ".into()), SPACE)
        .map_err(|e| unusable(file, e.to_string()))?;
    tokenizer.with_normalizer(Some(spaces)).map_err(|e| unusable(file, e.to_string()))?;
    let spaces = Replace::new(ReplacePattern::String(SPACE.into()), " ")
        .map_err(|e| unusable(file, e.to_string()))?;
    tokenizer.with_decoder(Some(DecoderSequence::new(vec![
        spaces.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ])));
    Ok(tokenizer)
}

pub(super) fn text<'a>(file: &'a Gguf, key: &str) -> Option<&'a str> {
    match file.value(key) {
        Some(Value::String(s)) => Some(s),
        _ => None,
    }
}

fn strings(file: &Gguf, key: &str) -> Result<Vec<String>, ModelError> {
    let wrong = || file.bad_key(key, "must be an array of strings");
    match file.value(key) {
        Some(Value::Array(values)) => {
            values.iter().map(|v| v.to_string().cloned().map_err(|_| wrong())).collect()
        }
        _ => Err(wrong()),
    }
}

fn unusable(file: &Gguf, message: impl Into<String>) -> ModelError {
    ModelError::Tokenizer { path: file.path().into(), message: message.into() }
}
