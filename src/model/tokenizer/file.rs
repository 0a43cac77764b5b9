//! Reads a Hugging Face `tokenizer.json`. Parts of the file are checked before the library reads it, because the
//! library relies on them without checking.

use super::beside::{self, Beside};
use super::guard::guarded;
use super::markers::{self, INFILL};
use super::vocabulary::{cut, Spelling};
use super::Tokenizer;
use crate::model::hf::json;
use crate::model::ModelError;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;
use tokenizers::AddedToken;

/// How many times longer all replacements together may make a text.
const GROWTH: f64 = 1024.0;

/// The parts of the file that are looked at here. Only the library reads the vocabulary.
#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: RawModel,
}

#[derive(Deserialize)]
struct RawModel {
    dropout: Option<f64>,
    #[serde(default)]
    merges: Value,
}

/// A merge, as older and newer files write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair([String; 2]),
    Text(String),
}

/// A `tokenizer.json` that has been read.
pub(in crate::model) struct TokenizerFile {
    pub tokenizer: Tokenizer,
    pub(super) spelling: Spelling,
    /// The token that the file's own template puts before a text.
    pub template_bos: Option<u32>,
    merges: Value,
    /// Notes for people about what is read differently from what this file or those beside it say.
    pub remarks: Vec<String>,
}

impl TokenizerFile {
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let unusable = |message: String| ModelError::Tokenizer {
            path: path.into(),
            message: format!("cannot use this tokenizer: {message}"),
        };
        let bytes = std::fs::read(path).map_err(|e| unusable(e.to_string()))?;
        let strict = json::object(path, &bytes)?;
        let raw: Raw = serde_json::from_value(strict).map_err(|e| unusable(e.to_string()))?;
        raw.check().map_err(unusable)?;
        let read = || -> Result<_, tokenizers::Error> {
            let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)?;
            inner.with_truncation(None)?.with_padding(None);
            let before = before_a_text(&inner)?;
            let written: Vec<_> = inner.get_added_tokens_decoder().into_iter().collect();
            let remark = retype(&mut inner)?;
            Ok((inner, before, written, remark))
        };
        let read = guarded(read).map_err(unusable)?;
        let (inner, before, written, remark) = read.map_err(|e| unusable(e.to_string()))?;
        raw.check_ids(&inner).map_err(unusable)?;
        let spelling = if is_byte_level(&raw.pre_tokenizer) || is_byte_level(&raw.decoder) {
            Spelling::ByteLevel
        } else {
            Spelling::SentencePiece
        };
        let beside = Beside::read(path)?;
        let contested = beside.contested(&written, &inner)?;
        let remarks = [
            beside::told(&contested),
            beside.prefix_space(&raw.pre_tokenizer),
            left_out(&inner, &before),
            remark,
        ];
        let mut tokenizer = Tokenizer::new(inner, "tokenizer.json".into());
        tokenizer.is_from_outside = true;
        tokenizer.contested = contested;
        let template_bos = before.first().copied();
        let remarks = remarks.into_iter().flatten().collect();
        let merges = raw.model.merges;
        Ok(TokenizerFile { tokenizer, spelling, template_bos, merges, remarks })
    }

    /// The merges, as a GGUF file writes them. `None` if the tokenizer has none.
    pub(super) fn merges(&self) -> Option<Vec<String>> {
        let merges = Vec::<Merge>::deserialize(&self.merges).ok()?;
        // a space within a piece is written as llama.cpp's converter writes it
        let part = |part: &str| part.replace(' ', "\u{120}");
        let text = |merge| match merge {
            Merge::Text(text) => text,
            Merge::Pair([left, right]) => format!("{} {}", part(&left), part(&right)),
        };
        Some(merges.into_iter().map(text).collect())
    }
}

/// The tokens that the file's template puts before a text.
fn before_a_text(inner: &tokenizers::Tokenizer) -> Result<Vec<u32>, tokenizers::Error> {
    let ids = |special| -> Result<Vec<u32>, tokenizers::Error> {
        Ok(inner.encode_fast("a", special)?.get_ids().to_vec())
    };
    let (mut with, without) = (ids(true)?, ids(false)?);
    if with.first() == without.first() {
        return Ok(Vec::new());
    }
    let is_text = |at: &usize| with[*at..].starts_with(&without);
    with.truncate((1..with.len()).find(is_text).unwrap_or(1));
    Ok(with)
}

/// A warning if the template puts more than one token before a text, since only one can be BOS.
fn left_out(inner: &tokenizers::Tokenizer, before: &[u32]) -> Option<String> {
    let (_, left) = before.split_first().filter(|(_, left)| !left.is_empty())?;
    let piece = |id: &u32| inner.id_to_token(*id).unwrap_or_default();
    let left: Vec<_> = left.iter().map(|id| format!("{id} `{}`", cut(&piece(id)))).collect();
    Some(format!(
        "warning: the template of tokenizer.json puts {} tokens before a text, and only one can be BOS; left out are: {}",
        before.len(),
        left.join(", ")
    ))
}

/// Makes marks that the file has as text special tokens.
fn retype(inner: &mut tokenizers::Tokenizer) -> Result<Option<String>, tokenizers::Error> {
    let added = inner.get_added_tokens_decoder();
    let is_mark = |text: &str| {
        let infill =
            INFILL.iter().any(|mark| mark.spelled(|known| (known == text).then_some(())).is_some());
        // `</s>` is also HTML, and files in which it ends a text say so
        (markers::ends_answers(text) || infill) && text != "</s>"
    };
    let mut retyped: Vec<(u32, String)> = Vec::new();
    for (text, id) in inner.get_vocab(true) {
        let own = added.get(&id);
        let is_read_as_one = own.is_some_and(|token| token.special);
        if !is_read_as_one && (is_mark(&text) || (own.is_none() && markers::begins_turns(&text))) {
            retyped.push((id, text));
        }
    }
    if retyped.is_empty() {
        return Ok(None);
    }
    retyped.sort_unstable();
    let tokens =
        retyped.iter().map(|(_, text)| AddedToken::from(text.as_str(), true).normalized(false));
    inner.add_special_tokens(tokens.collect::<Vec<_>>())?;
    let tokens: Vec<_> = retyped.iter().map(|(id, text)| format!("{id} `{text}`")).collect();
    let tokens = tokens.join(", ");
    Ok(Some(format!("tokenizer.json has these marks as text, they are read as special tokens, as llama.cpp does: {tokens}")))
}

impl Raw {
    /// Refuses what would make the library panic, draw random tokens, or use up the memory.
    fn check(&self) -> Result<(), String> {
        if let Some(dropout) = self.model.dropout.filter(|dropout| *dropout != 0.0) {
            return Err(format!("its `dropout` of {dropout} draws tokens by lot; set it to null"));
        }
        for template in self.templates() {
            check_template(template)?;
        }
        let growth = growth(&self.normalizer) * growth(&self.pre_tokenizer) * growth(&self.decoder);
        if growth > GROWTH {
            return Err("its replacements make a text more than a thousand times longer".into());
        }
        Ok(())
    }

    /// Checks that the tokens of the templates are those of the vocabulary.
    fn check_ids(&self, inner: &tokenizers::Tokenizer) -> Result<(), String> {
        for template in self.templates() {
            let declared = template["special_tokens"].as_object().into_iter().flatten();
            for (_, special) in declared {
                let texts = special["tokens"].as_array().into_iter().flatten();
                let ids = special["ids"].as_array().into_iter().flatten();
                for (text, id) in texts.filter_map(Value::as_str).zip(ids.filter_map(Value::as_u64))
                {
                    let known = inner.token_to_id(text);
                    if known.map(u64::from) != Some(id) {
                        let known =
                            known.map_or("does not have it".into(), |id| format!("has it as {id}"));
                        let text = cut(text);
                        return Err(format!(
                            "its template writes `{text}` as token {id}, its vocabulary {known}"
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    fn templates(&self) -> Vec<&Value> {
        let mut found = Vec::new();
        let mut open = vec![&self.post_processor];
        while let Some(processor) = open.pop() {
            open.extend(processor["processors"].as_array().into_iter().flatten());
            if processor["type"] == "TemplateProcessing" {
                found.push(processor);
            }
        }
        found
    }
}

/// Checks that a template names only tokens that it declares.
fn check_template(template: &Value) -> Result<(), String> {
    for (name, sequences) in [("single", &["A"][..]), ("pair", &["A", "B"])] {
        for piece in template[name].as_array().into_iter().flatten() {
            let id = |kind: &str| piece[kind]["id"].as_str();
            if let Some(id) = id("SpecialToken") {
                if template["special_tokens"].get(id).is_none() {
                    let id = cut(id);
                    return Err(format!("its template `{name}` names `{id}`, which it does not declare among its `special_tokens`"));
                }
            }
            if let Some(id) = id("Sequence").filter(|id| !sequences.contains(id)) {
                let id = cut(id);
                return Err(format!(
                    "its template `{name}` has a sequence `{id}`, which there is none of"
                ));
            }
        }
    }
    Ok(())
}

/// How many times longer the replacements of a part of the file can make a text.
fn growth(part: &Value) -> f64 {
    let within = match part {
        Value::Array(list) => list.iter().map(growth).product(),
        Value::Object(members) => members.values().map(growth).product(),
        _ => 1.0,
    };
    if part["type"] != "Replace" {
        return within;
    }
    let pattern = part["pattern"]["String"].as_str().map_or(1, |text| text.len().max(1));
    let content = part["content"].as_str().map_or(0, str::len);
    within * (content as f64 / pattern as f64).max(1.0)
}

fn is_byte_level(part: &Value) -> bool {
    match part {
        Value::Array(list) => list.iter().any(is_byte_level),
        Value::Object(members) => {
            part["type"] == "ByteLevel" || members.values().any(is_byte_level)
        }
        _ => false,
    }
}
