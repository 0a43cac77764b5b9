//! Rebuilds a tokenizer from the tables of a GGUF file.
//!
//! A GGUF file holds a vocabulary and names the kind of its tokenizer: `gpt2` (byte-level BPE with merges and a named
//! pre-tokenizer, see `pre.rs`), `gemma4` (BPE with merges over pieces that SentencePiece spelled) or `llama`
//! (SentencePiece pieces with scores). All become a BPE of the `tokenizers` crate. An unknown pre-tokenizer is an
//! error, because a wrong one would give plausible tokens and wrong numbers.

use super::guard::guarded;
use super::kinds::{BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED};
use super::markers::{self, EXCEPTIONS, INFILL};
use super::pre::{self, Pre};
use super::vocabulary::{cut, Piece, Pieces, Spelling};
use super::{Tokenizer, SPACE};
use crate::model::config::Config;
use crate::model::gguf::Gguf;
use crate::model::ModelError;
use candle_core::quantized::gguf_file::Value;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::models::bpe::{Merges, BPE};
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{NormalizerWrapper, Sequence as NormalizerSequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{AddedToken, SplitDelimiterBehavior};

/// The kind of tokenizer.
pub(super) const MODEL: &str = "tokenizer.ggml.model";
/// The pre-tokenizer of a byte-level one.
pub(super) const PRE: &str = "tokenizer.ggml.pre";
/// The pieces.
const TOKENS: &str = "tokenizer.ggml.tokens";
/// Their types.
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
/// The longest piece that is read, in bytes. Pieces of released vocabularies have some hundred at most, and the work
/// grows with the square of the length.
const LONGEST_PIECE: usize = 2048;
const SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
const SCORES: &str = "tokenizer.ggml.scores";

/// Keys of the tokens that end a text, a turn and a message.
const ENDS: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Several tokens that end a text, as Ollama's converter writes them.
const LISTED_ENDS: &str = "tokenizer.ggml.eos_token_ids";

/// Stands in a tokenizer of the library for text that a byte-level vocabulary cannot spell. No text has this
/// character, because a pre-tokenizer replaces all bytes by printable characters.
const UNSPELLED: &str = "\u{10ffff}";

/// White space that is dropped behind some tokens of Phi-3.
const DROPPED: [char; 6] = [' ', '\t', '\n', '\u{b}', '\u{c}', '\r'];

/// The pre-tokenizer of a file with merges, if it is known.
pub(super) fn pre(file: &Gguf) -> Option<&'static Pre> {
    let named = text(file, PRE).filter(|name| !name.is_empty());
    match text(file, MODEL)? {
        "gpt2" => pre::named(named.unwrap_or(pre::DEFAULT)),
        pre::GEMMA4 => pre::named(pre::GEMMA4),
        _ => None,
    }
}

/// A warning if a file with merges names no pre-tokenizer.
pub(super) fn unnamed_pre(file: &Gguf) -> Option<String> {
    let is_named = text(file, PRE).is_some_and(|name| !name.is_empty());
    (!is_named && text(file, MODEL) == Some("gpt2")).then(|| {
        format!(
            "warning: the file does not say how text is split (`{PRE}`): kvgate takes the rule `{}`, as llama.cpp \
             does, which the model was hardly trained with; convert the model again",
            pre::DEFAULT
        )
    })
}

impl Tokenizer {
    /// The tokenizer that a GGUF file holds, without a BOS yet.
    pub(in crate::model) fn from_gguf(
        file: &Gguf,
        vocabulary: &Vocabulary,
    ) -> Result<Self, ModelError> {
        let build = || {
            let (mut inner, kind) = match (text(file, MODEL).unwrap_or_default(), pre(file)) {
                ("llama", _) => (sentence_piece(file, vocabulary)?, "SentencePiece".to_owned()),
                (_, Some(pre)) => (merging(file, vocabulary, pre)?, format!("BPE, {}", pre.name)),
                (model, None) => return Err(unknown(file, model)),
            };
            inner
                .add_tokens(vocabulary.added(&[USER_DEFINED]))
                .and_then(|_| inner.add_special_tokens(vocabulary.added(&[CONTROL, UNKNOWN])))
                .map_err(|e| unusable(file, e.to_string()))?;
            Ok((inner, kind))
        };
        let (inner, kind) = guarded(build).map_err(|why| unusable(file, why))??;
        let unspelled = inner.token_to_id(UNSPELLED);
        let mut tokenizer = Tokenizer::new(inner, format!("{kind}, from the GGUF"));
        tokenizer.unspelled = unspelled;
        tokenizer.marks = vocabulary.begins.clone();
        tokenizer.drops = vocabulary.drops(file);
        Ok(tokenizer)
    }

    /// Rebuilds the tokenizer of a GGUF file, which needs no weights. It adds no BOS.
    ///
    /// # Errors
    /// If the file is no GGUF, or its tokenizer cannot be rebuilt.
    pub fn from_vocabulary(path: &Path) -> Result<Self, ModelError> {
        let file = Gguf::open(path)?;
        Self::from_gguf(&file, &Vocabulary::read(&file, false)?)
    }
}

/// Why neither the kind nor the pre-tokenizer is known.
fn unknown(file: &Gguf, model: &str) -> ModelError {
    if model != "gpt2" {
        let message = format!("its tokenizer `{model}` is unknown (known: gpt2, gemma4, llama)");
        return unusable(file, message);
    }
    let name = text(file, PRE).unwrap_or_default();
    let message = format!("its pre-tokenizer `{name}` is unknown (known: {})", pre::names());
    unusable(file, message)
}

/// The vocabulary of a GGUF file.
pub(in crate::model) struct Vocabulary {
    tokens: Vec<String>,
    /// The types as they are used. Known marks are control tokens.
    types: Vec<u64>,
    spelling: Spelling,
    /// Tokens at which generation stops.
    pub end_tokens: BTreeSet<u32>,
    /// Marks that begin a turn and that the file declares as ordinary text.
    begins: Vec<String>,
    /// Notes for people about what is read differently from what the file says.
    pub remarks: Vec<String>,
}

impl Vocabulary {
    /// Reads the vocabulary. It is optional if the policy names another tokenizer.
    pub fn read(file: &Gguf, is_optional: bool) -> Result<Self, ModelError> {
        let is_there = !is_optional || file.value(TOKENS).is_some();
        let tokens = if is_there { strings(file, TOKENS)? } else { Vec::new() };
        if let Some((id, token)) = tokens.iter().enumerate().find(|(_, t)| t.len() > LONGEST_PIECE)
        {
            let message = format!(
                "has a piece of {} bytes ({id}), and no vocabulary has one of more than {LONGEST_PIECE}",
                token.len()
            );
            return Err(file.bad_key(TOKENS, message));
        }
        let types = match file.value(TYPES) {
            Some(types) => unsigned(types)
                .ok_or_else(|| file.bad_key(TYPES, "must be a list of I32 or U32, one a token"))?,
            None => vec![NORMAL; tokens.len()],
        };
        if types.len() != tokens.len() {
            return Err(file.bad_key(
                TYPES,
                format!("has {} entries for {} tokens", types.len(), tokens.len()),
            ));
        }
        let mut ids = HashMap::new();
        for (id, token) in tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()) {
            if let Some(first) = ids.insert(token, id) {
                let message = format!("has `{}` twice, as {first} and {id}", cut(token));
                return Err(file.bad_key(TOKENS, message));
            }
        }
        let is_text = pre(file).is_some_and(|pre| pre.is_spelled_as_text);
        let spelling = match text(file, MODEL) {
            Some("gpt2") if !is_text => Spelling::ByteLevel,
            _ => Spelling::SentencePiece,
        };
        let (end_tokens, begins, remarks) = (BTreeSet::new(), Vec::new(), Vec::new());
        let mut vocabulary = Vocabulary { tokens, types, spelling, end_tokens, begins, remarks };
        vocabulary.find_marks(file)?;
        Ok(vocabulary)
    }

    /// Finds the tokens that are marks, and corrects their types.
    fn find_marks(&mut self, file: &Gguf) -> Result<(), ModelError> {
        let ids = self.ids();
        let mut marks: BTreeSet<u32> =
            ids.iter().filter(|(text, _)| markers::ends_answers(text)).map(|(_, id)| *id).collect();
        self.end_tokens.extend(&marks);
        for infill in &INFILL {
            let mut named = None;
            for key in infill.keys {
                // like llama.cpp, ignore a key that names no token
                let id = file.any_number(key)?.filter(|id| *id < self.tokens.len());
                named = named.or(id);
            }
            let spelled = || infill.spelled(|text| ids.get(text).copied());
            let found = named.map_or_else(spelled, |id| Some(id as u32));
            marks.extend(found.filter(|_| named.is_none()));
            self.end_tokens.extend(found.filter(|_| infill.ends));
        }
        for key in ENDS {
            self.end_tokens.extend(self.named(file, key)?);
        }
        self.end_tokens.extend(self.listed_ends(file)?);
        self.except(&ids, &mut marks);
        self.retype(&marks);
        Ok(())
    }

    /// Applies the exceptions from the lists of marks and from the file's types.
    fn except(&mut self, ids: &HashMap<String, u32>, marks: &mut BTreeSet<u32>) {
        for exception in &EXCEPTIONS {
            let ends = |text: &str| ids.get(text).is_some_and(|id| self.end_tokens.contains(id));
            let is_met = exception.holds(ends);
            let Some(id) = ids.get(exception.token).filter(|_| is_met) else { continue };
            if !exception.may_end {
                self.end_tokens.remove(id);
            }
            marks.remove(id);
            self.types[*id as usize] = exception.kind;
        }
    }

    fn retype(&mut self, marks: &BTreeSet<u32>) {
        let (mut retyped, mut begins) = (Vec::new(), Vec::new());
        for (id, (token, kind)) in (0..).zip(self.tokens.iter().zip(&mut self.types)) {
            if marks.contains(&id) && *kind != CONTROL {
                *kind = CONTROL;
                retyped.push(format!("{id} `{token}`"));
            } else if *kind == NORMAL && markers::begins_turns(token) {
                self.begins.push(token.clone());
                begins.push(format!("{id} `{token}`"));
            }
        }
        let remarks = [
            ("they are read as control tokens, as llama.cpp does", retyped),
            ("they are read as marks in what a chat template wrote, and as text elsewhere", begins),
        ];
        let remarks = remarks.into_iter().filter(|(_, tokens)| !tokens.is_empty());
        self.remarks = remarks
            .map(|(how, tokens)| {
                format!("the file types these marks as text, {how}: {}", tokens.join(", "))
            })
            .collect();
    }

    /// Whether the file has no vocabulary.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Refuses a vocabulary that does not have a token for each row of the embedding. So does llama.cpp.
    pub fn check_size(&self, file: &Gguf, rows: usize) -> Result<(), ModelError> {
        let count = self.tokens.len();
        if count == rows {
            return Ok(());
        }
        Err(file.bad_key(TOKENS, format!("has {count} tokens, and token_embd.weight {rows} rows")))
    }

    /// The token that a key names.
    pub fn named(&self, file: &Gguf, key: &str) -> Result<Option<u32>, ModelError> {
        // older writers meant by this that there is no such token
        if matches!(file.value(key), Some(Value::I32(-1) | Value::U32(u32::MAX))) {
            return Ok(None);
        }
        match file.any_number(key)? {
            Some(id) if id >= self.tokens.len() && !self.tokens.is_empty() => {
                let count = self.tokens.len();
                Err(file.bad_key(key, format!("names token {id} of a vocabulary of {count}")))
            }
            id => Ok(id.map(|id| id as u32)),
        }
    }

    /// The tokens of [`LISTED_ENDS`].
    fn listed_ends(&self, file: &Gguf) -> Result<Vec<u32>, ModelError> {
        let Some(value) = file.value(LISTED_ENDS) else { return Ok(Vec::new()) };
        let count = self.tokens.len() as u64;
        let ids = unsigned(value).ok_or_else(|| {
            file.bad_key(LISTED_ENDS, "must be a list of I32 or U32, none below 0")
        })?;
        match ids.iter().find(|id| **id >= count && count > 0) {
            Some(id) => {
                let message = format!("names token {id} of a vocabulary of {count}");
                Err(file.bad_key(LISTED_ENDS, message))
            }
            None => Ok(ids.into_iter().filter_map(|id| u32::try_from(id).ok()).collect()),
        }
    }

    /// Tokens of some types.
    fn added<'a>(&'a self, kinds: &'a [u64]) -> impl Iterator<Item = AddedToken> + 'a {
        let tokens = self.tokens.iter().zip(&self.types);
        let tokens = tokens.filter(|(token, kind)| kinds.contains(kind) && !token.is_empty());
        tokens.map(|(token, &kind)| {
            AddedToken::from(token.as_str(), kind != USER_DEFINED).normalized(false)
        })
    }

    /// Tokens behind which llama.cpp drops white space, and whether they are found in plain text. It knows Phi-3 by
    /// the model's name.
    fn drops(&self, file: &Gguf) -> Vec<(String, bool)> {
        const KEPT: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];
        let name = text(file, "general.name").unwrap_or_default().to_ascii_lowercase();
        if !name.contains("phi-3") && !name.contains("phi3") {
            return Vec::new();
        }
        let tokens = self.tokens.iter().zip(&self.types);
        let tokens = tokens.filter(|(token, kind)| {
            let is_cut_out = matches!(**kind, CONTROL | UNKNOWN | USER_DEFINED);
            is_cut_out && !token.is_empty() && !KEPT.contains(&token.as_str())
        });
        tokens.map(|(token, &kind)| (token.clone(), kind == USER_DEFINED)).collect()
    }

    /// The pieces, to be compared with those of another file.
    pub(super) fn pieces(&self, file: &Gguf) -> Pieces {
        let piece = |(id, (token, &kind)): (u32, (&String, &u64))| {
            let is_added = !matches!(kind, NORMAL | BYTE);
            (id, Piece::new(token, self.spelling, is_added, kind == CONTROL))
        };
        Pieces::new(file.path(), (0..).zip(self.tokens.iter().zip(&self.types)).map(piece))
    }

    /// The text of a token.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    fn ids(&self) -> HashMap<String, u32> {
        self.tokens.iter().zip(0..).map(|(token, id)| (token.clone(), id)).collect()
    }
}

/// The merges of a byte-level tokenizer, as they are written.
pub(super) fn merges(file: &Gguf) -> Result<Option<Vec<String>>, ModelError> {
    file.value(MERGES).map(|_| strings(file, MERGES)).transpose()
}

/// The entries of a list of numbers. `None` if the value is anything else.
fn unsigned(value: &Value) -> Option<Vec<u64>> {
    let Value::Array(entries) = value else { return None };
    let number = |value: &Value| match value {
        Value::I32(v) => u64::try_from(*v).ok(),
        Value::U32(v) => Some(u64::from(*v)),
        _ => None,
    };
    entries.iter().map(number).collect()
}

/// The text without the white space behind tokens that drop it. Tokens of plain text are all that counts in plain
/// text.
pub(super) fn without_dropped(text: &str, drops: &[(String, bool)], is_plain: bool) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let found = drops.iter().filter(|(_, in_plain)| *in_plain || !is_plain);
        let found = found.filter(|(token, _)| rest.starts_with(token)).max_by_key(|(t, _)| t.len());
        let length = found.map_or(c.len_utf8(), |(token, _)| token.len());
        let (head, tail) = rest.split_at(length);
        kept.push_str(head);
        rest = if found.is_some() { tail.trim_start_matches(DROPPED) } else { tail };
    }
    kept
}

/// A BPE with merges.
fn merging(
    file: &Gguf,
    vocabulary: &Vocabulary,
    pre: &Pre,
) -> Result<tokenizers::Tokenizer, ModelError> {
    let failed = |e: tokenizers::Error| unusable(file, e.to_string());
    // if a merge is listed twice, llama.cpp uses the first rank, the library would use the last
    let mut seen = HashSet::new();
    let merges = strings(file, MERGES)?
        .into_iter()
        .filter(|merge| seen.insert(merge.clone()))
        .map(|merge| match parts(&merge) {
            Some((left, right)) => Ok((left.to_string(), right.to_string())),
            None => Err(file.bad_key(MERGES, format!("`{merge}` is no pair"))),
        })
        .collect::<Result<Merges, _>>()?;
    let mut ids = vocabulary.ids();
    let bpe = BPE::builder().ignore_merges(pre.has_whole_words);
    let bpe = if pre.is_spelled_as_text {
        check_bytes(file, &ids)?;
        bpe.byte_fallback(true)
    } else if spells_all_bytes(&ids) {
        bpe
    } else {
        // the characters must stay where they are until everything is merged, so that no pair closes over them
        ids.insert(UNSPELLED.into(), vocabulary.tokens.len() as u32);
        bpe.unk_token(UNSPELLED.into())
    };
    let ids = ids.into_iter().collect::<tokenizers::models::bpe::Vocab>();
    let bpe = bpe.vocab_and_merges(ids, merges).build().map_err(failed)?;
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in pre.splits {
        let pattern = SplitPattern::Regex((*pattern).into());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
        steps.push(split.map_err(failed)?.into());
    }
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    if pre.is_spelled_as_text {
        tokenizer.with_normalizer(Some(replaced(file, " ", SPACE)?)).map_err(failed)?;
        tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
        tokenizer.with_decoder(Some(text_decoder(file)?));
        check_line_feeds(file, vocabulary, &tokenizer)?;
    } else {
        steps.push(ByteLevel::new(false, true, false).into());
        tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
        tokenizer.with_decoder(Some(ByteLevel::default()));
    }
    Ok(tokenizer)
}

/// The two parts of a merge. A space at the beginning belongs to the first.
fn parts(merge: &str) -> Option<(&str, &str)> {
    let (at, _) = merge.char_indices().skip(1).find(|(_, c)| *c == ' ')?;
    Some((&merge[..at], &merge[at + 1..]))
}

/// Whether every byte of a text is a piece.
fn spells_all_bytes(ids: &HashMap<String, u32>) -> bool {
    ByteLevel::alphabet().iter().all(|c| ids.contains_key(c.encode_utf8(&mut [0; 4]) as &str))
}

/// Vocabularies that are spelled as text need a piece for each byte.
fn check_bytes(file: &Gguf, ids: &HashMap<String, u32>) -> Result<(), ModelError> {
    let lacks = |byte: &u8| !ids.contains_key(&format!("<{byte:#04X}>"));
    match (0..=u8::MAX).find(lacks) {
        None => Ok(()),
        Some(byte) => Err(file.bad_key(TOKENS, format!("lacks the piece of byte {byte:#04X}"))),
    }
}

/// llama.cpp takes lines that have a piece of their own as they are, without merging. The merges must come to the same.
fn check_line_feeds(
    file: &Gguf,
    vocabulary: &Vocabulary,
    tokenizer: &tokenizers::Tokenizer,
) -> Result<(), ModelError> {
    let lines = vocabulary.tokens.iter().zip(0u32..);
    for (line, id) in lines.filter(|(t, _)| !t.is_empty() && t.bytes().all(|b| b == b'\n')) {
        let read = tokenizer.encode_fast(line.as_str(), false);
        let read = read.map_err(|e| unusable(file, e.to_string()))?;
        if read.get_ids() != [id] {
            let message = format!("its merges do not make the piece of {} line feeds", line.len());
            return Err(unusable(file, message));
        }
    }
    Ok(())
}

fn replaced(file: &Gguf, from: &str, to: &str) -> Result<Replace, ModelError> {
    let replace = Replace::new(ReplacePattern::String(from.into()), to);
    replace.map_err(|e| unusable(file, e.to_string()))
}

/// Makes text of pieces that are spelled as text.
fn text_decoder(file: &Gguf) -> Result<DecoderSequence, ModelError> {
    let space = replaced(file, SPACE, " ")?;
    Ok(DecoderSequence::new(vec![space.into(), ByteFallback::new().into(), Fuse::new().into()]))
}

/// SentencePiece's BPE merges the adjacent pair whose joined piece scores highest. Merges that are ranked by the score
/// of the piece that they make give the same order.
fn sentence_piece(
    file: &Gguf,
    vocabulary: &Vocabulary,
) -> Result<tokenizers::Tokenizer, ModelError> {
    let ids = vocabulary.ids();
    let merges = ranked_merges(file, vocabulary, &ids)?;
    let unknown = file.any_number("tokenizer.ggml.unknown_token_id")?;
    let unknown = unknown.and_then(|id| vocabulary.tokens.get(id));
    let ids = ids.into_iter().collect::<tokenizers::models::bpe::Vocab>();
    let mut bpe = BPE::builder().vocab_and_merges(ids, merges).fuse_unk(true).byte_fallback(true);
    if let Some(unknown) = unknown {
        bpe = bpe.unk_token(unknown.clone());
    }
    let failed = |e: tokenizers::Error| unusable(file, e.to_string());
    let mut tokenizer = tokenizers::Tokenizer::new(bpe.build().map_err(failed)?);
    let mut steps: Vec<NormalizerWrapper> = vec![replaced(file, " ", SPACE)?.into()];
    if has_space_prefix(file)? {
        steps.insert(0, Prepend::new(SPACE.into()).into());
    }
    tokenizer.with_normalizer(Some(NormalizerSequence::new(steps))).map_err(failed)?;
    tokenizer.with_decoder(Some(text_decoder(file)?));
    Ok(tokenizer)
}

/// Whether a space stands before each text, and before text behind a token that is cut out. It does if the key is
/// missing.
fn has_space_prefix(file: &Gguf) -> Result<bool, ModelError> {
    match file.value(SPACE_PREFIX) {
        None => Ok(true),
        Some(Value::Bool(has)) => Ok(*has),
        Some(_) => Err(file.bad_key(SPACE_PREFIX, "must be true or false")),
    }
}

/// All pairs of pieces that make a piece, those with the highest score first.
///
/// Of two possible merges with the same score llama.cpp and SentencePiece take the left one, which ranks cannot
/// express. There is one exception: in the vocabularies of Llama 2 and Mistral 7B runs of spaces share the lowest score.
/// To merge such a run from the left is to prefer the longest piece.
fn ranked_merges(
    file: &Gguf,
    vocabulary: &Vocabulary,
    ids: &HashMap<String, u32>,
) -> Result<Merges, ModelError> {
    let scores = match file.value(SCORES) {
        Some(Value::Array(scores)) if scores.len() == vocabulary.tokens.len() => scores,
        _ => return Err(file.bad_key(SCORES, "must have one entry a token")),
    };
    let mut with_score: HashMap<u32, Vec<&str>> = HashMap::new();
    let mut merges: Vec<(f32, usize, (String, String))> = Vec::new();
    for ((token, &kind), score) in vocabulary.tokens.iter().zip(&vocabulary.types).zip(scores) {
        let score = match score {
            // a zero has one sign only, so that equal scores have equal bits
            Value::F32(v) if v.is_finite() => *v + 0.0,
            _ => return Err(file.bad_key(SCORES, "must be finite floats")),
        };
        // llama.cpp merges pieces of any type. Those that users define are cut out of a text before that.
        if kind == USER_DEFINED {
            continue;
        }
        let before = merges.len();
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if [left, right].iter().all(|part| ids.contains_key(*part)) {
                merges.push((score, token.len(), (left.into(), right.into())));
            } else if [left, right].iter().all(|part| ids.contains_key(*part) || is_one(part)) {
                let what = format!("its piece `{}` has a character that is no piece", cut(token));
                return Err(unusable(file, what));
            }
        }
        if merges.len() > before {
            with_score.entry(score.to_bits()).or_default().push(token);
        }
    }
    let tied = with_score.values().filter(|tied| tied.len() > 1 && !are_runs(tied, &with_score));
    if let Some(pieces) = tied.min() {
        let (one, other) = (cut(pieces[0]), cut(pieces[1]));
        let what = format!(
            "its pieces `{one}` and `{other}` have one score, so that their order is not told"
        );
        return Err(unusable(file, what));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
    Ok(merges.into_iter().map(|(_, _, pair)| pair).collect())
}

/// Whether a text is a single character.
fn is_one(text: &str) -> bool {
    text.chars().nth(1).is_none()
}

/// Whether pieces with one score are all the runs of one character.
///
/// Merged from the left, such a run always consists of runs that grow no more, one that grows, and single characters.
/// Of the possible merges the one further left then makes the longer piece.
fn are_runs(tied: &[&str], with_score: &HashMap<u32, Vec<&str>>) -> bool {
    let Some(c) = tied[0].chars().next() else { return false };
    let is_run = |piece: &&&str| piece.chars().all(|other| other == c);
    let all = with_score.values().flatten().filter(is_run).count();
    tied.iter().filter(is_run).count() == tied.len() && all == tied.len()
}

pub(in crate::model) fn text<'a>(file: &'a Gguf, key: &str) -> Option<&'a str> {
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
    ModelError::tokenizer(file.path(), message)
}
