//! Whether a BOS token stands before a text and before each chunk of it, and which one.
//!
//! The first of these that has an answer decides:
//!
//! 1. `bos` of the model in the policy;
//! 2. the checkpoint: `tokenizer.ggml.add_bos_token` of a GGUF file, `add_bos_token` of the
//!    `tokenizer_config.json` of a folder, also where the policy names another tokenizer; then the
//!    `tokenizer_config.json` beside the tokenizer that the policy names;
//! 3. the template (post-processor) of the `tokenizer.json` in use, where it puts a token before a text;
//! 4. llama.cpp's rule for the vocabulary: BOS for SentencePiece's and for some pre-tokenizers;
//! 5. nothing: no BOS.
//!
//! For Gemma 4 llama.cpp overrules a `false` in the file, because some files have it by mistake. So does kvgate, in
//! both formats, and only the policy can overrule that. The token is the one named by the file that asks for it
//! (`tokenizer.ggml.bos_token_id`, `bos_token`), or else the first that is named in the order above. An end-of-text
//! token is never added (`add_eos_token` is ignored), since a chunk is only a part of a text.

use super::gguf::{self, text, Vocabulary, MODEL};
use super::pre::{self, Rule};
use crate::model::config::Config;
use crate::model::gguf::Gguf;
use crate::model::hf::files::optional_json;
use crate::model::ModelError;
use crate::source::pinned::{CONFIG, TOKENIZER_CONFIG};
use candle_core::quantized::gguf_file::Value;
use serde_json::Value as Json;
use std::path::Path;

const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const BOS: &str = "tokenizer.ggml.bos_token_id";

/// Vocabularies for which llama.cpp adds BOS if the file does not say.
const MODELS_WITH_BOS: [&str; 2] = ["llama", "bert"];

/// What one file says about BOS.
pub(super) struct Says {
    /// The key and its file, for people.
    place: String,
    pub adds: Option<bool>,
    pub token: Option<u32>,
}

/// The decision, and who made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bos {
    pub token: Option<u32>,
    pub by: String,
}

impl Says {
    /// What a GGUF file says.
    pub fn of_gguf(file: &Gguf, vocabulary: &Vocabulary) -> Result<Self, ModelError> {
        let adds = match file.value(ADD_BOS) {
            None => None,
            Some(Value::Bool(adds)) => Some(*adds),
            Some(_) => return Err(file.bad_key(ADD_BOS, "must be true or false")),
        };
        let token = vocabulary.named(file, BOS)?;
        Ok(Says { place: ADD_BOS.into(), adds, token })
    }

    /// What a folder's `tokenizer_config.json` says. The tokenizer in use looks up its token.
    pub fn of_folder(
        folder: &Path,
        token_to_id: impl Fn(&str) -> Option<u32>,
    ) -> Result<Self, ModelError> {
        let file = folder.join(TOKENIZER_CONFIG);
        let config = optional_json(&file)?;
        let adds = match &config["add_bos_token"] {
            Json::Null => None,
            Json::Bool(adds) => Some(*adds),
            _ => return Err(ModelError::bad_key(&file, "add_bos_token", "must be true or false")),
        };
        let named = &config["bos_token"];
        let text = named.get("content").unwrap_or(named).as_str();
        let token = text.and_then(token_to_id);
        if let (Some(text), None, Some(true)) = (text, token, adds) {
            let message = format!("is `{text}`, which the tokenizer does not have");
            return Err(ModelError::bad_key(&file, "bos_token", message));
        }
        let place = format!("`add_bos_token` of {TOKENIZER_CONFIG}");
        Ok(Says { place, adds, token })
    }

    /// What `config.json` says. It names a token, but not whether to add it.
    pub fn of_config(folder: &Path) -> Result<Self, ModelError> {
        let config = optional_json(&folder.join(CONFIG))?;
        let id = |place: &Json| u32::try_from(place["bos_token_id"].as_u64()?).ok();
        let token = id(&config["text_config"]).or_else(|| id(&config));
        Ok(Says { place: CONFIG.into(), adds: None, token })
    }

    /// Marks this as said by a file beside the tokenizer that the policy names.
    pub fn beside(mut self) -> Self {
        self.place += " beside the named tokenizer";
        self
    }
}

impl Rule {
    /// llama.cpp's for a GGUF file.
    pub fn of_gguf(file: &Gguf) -> Self {
        let model = text(file, MODEL).unwrap_or_default();
        match Self::of_architecture(file.architecture()) {
            Rule::Silent if MODELS_WITH_BOS.contains(&model) => Rule::Adds,
            Rule::Silent => gguf::pre(file).map_or(Rule::Silent, |pre| pre.bos),
            rule => rule,
        }
    }

    /// The same by the architecture alone.
    pub fn of_architecture(architecture: &str) -> Self {
        if architecture.starts_with(pre::GEMMA4) {
            Rule::Forced
        } else {
            Rule::Silent
        }
    }
}

/// Decides by the list at the top of this file. `template` is the token that a `tokenizer.json` puts before a text.
///
/// # Errors
/// If BOS is asked for and no file names the token.
pub(super) fn decide(
    asked: Option<bool>,
    says: &[Says],
    template: Option<u32>,
    rule: Rule,
) -> Result<Bos, String> {
    let word = says.iter().find(|says| says.adds.is_some());
    let (adds, by, own) = match (asked, word) {
        (Some(adds), _) => (adds, "`bos` in the policy".to_owned(), None),
        (None, Some(word @ Says { adds: Some(true), .. })) => {
            (true, word.place.clone(), word.token)
        }
        (None, None) if template.is_some() => {
            (true, "the template of tokenizer.json".into(), template)
        }
        (None, word) if rule == Rule::Forced => {
            let against = word.map(|word| format!(" against {}", word.place)).unwrap_or_default();
            (true, format!("llama.cpp's rule for Gemma 4{against}"), None)
        }
        (None, Some(word)) => (false, word.place.clone(), None),
        (None, None) if rule == Rule::Adds => {
            (true, "llama.cpp's rule for this vocabulary".into(), None)
        }
        (None, None) => (false, "default, since no file asks for one".into(), None),
    };
    if !adds {
        return Ok(Bos { token: None, by });
    }
    let token = own.or_else(|| says.iter().find_map(|says| says.token)).or(template);
    match token {
        Some(_) => Ok(Bos { token, by }),
        None => Err(format!("BOS is added by {by}, and no file says which token it is; `bos = false` in the policy does without")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(adds: Option<bool>, token: Option<u32>) -> Says {
        Says { place: "the file".into(), adds, token }
    }

    /// The token, and the beginning of by whose word.
    fn bos(
        asked: Option<bool>,
        file: Says,
        template: Option<u32>,
        rule: Rule,
    ) -> (Option<u32>, String) {
        let bos = decide(asked, &[file, says(None, Some(9))], template, rule).unwrap();
        (bos.token, bos.by.chars().take(8).collect())
    }

    #[test]
    fn the_first_word_counts() {
        use Rule::{Adds, Forced, Silent};
        for (asked, file, template, rule, token, by) in [
            (Some(false), says(Some(true), Some(1)), Some(2), Forced, None, "`bos` in"),
            (Some(true), says(Some(false), Some(1)), Some(2), Silent, Some(1), "`bos` in"),
            (None, says(Some(true), Some(1)), Some(2), Forced, Some(1), "the file"),
            (None, says(Some(true), None), Some(2), Silent, Some(9), "the file"),
            (None, says(Some(false), Some(1)), Some(2), Adds, None, "the file"),
            (None, says(Some(false), Some(1)), Some(2), Forced, Some(1), "llama.cp"),
            (None, says(None, Some(1)), Some(2), Silent, Some(2), "the temp"),
            (None, says(None, Some(1)), None, Forced, Some(1), "llama.cp"),
            (None, says(None, Some(1)), None, Adds, Some(1), "llama.cp"),
            (None, says(None, Some(1)), None, Silent, None, "default,"),
        ] {
            let got = bos(asked, file, template, rule);
            assert_eq!(got, (token, by.to_owned()), "{asked:?} {template:?} {rule:?}");
        }
    }

    #[test]
    fn a_bos_that_nobody_names_is_an_error() {
        let error = decide(None, &[says(Some(true), None)], None, Rule::Silent).unwrap_err();
        assert!(error.contains("the file") && error.contains("`bos = false`"), "{error}");
    }
}
