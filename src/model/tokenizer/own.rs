//! Compares the checkpoint's own vocabulary with the tokenizer that a policy names. They must be the same.
//!
//! The tokenizer of another model gives plausible ids and wrong numbers. It also hides harm, because a model that
//! reads noise is hardly hurt by a worse cache. Compared are the pieces of all special tokens and of every token of a
//! text. If the checkpoint's own tokenizer can be rebuilt, the ids of the text are compared, too, and otherwise the
//! merges.

use super::file::TokenizerFile;
use super::gguf::{self, Vocabulary};
use super::vocabulary::{cut, Pieces};
use super::Tokenizer;
use crate::model::config::Config;
use crate::model::gguf::Gguf;
use crate::model::hf::files::optional_json;
use crate::model::ModelError;
use crate::source::pinned::{CONFIG, TOKENIZER, TOKENIZER_CONFIG};
use serde_json::Value as Json;
use std::path::Path;

/// Two vocabularies that must be the same.
pub(super) struct Own {
    /// The checkpoint's.
    own: Option<Pieces>,
    /// The vocabulary of the tokenizer in use.
    named: Pieces,
    /// The checkpoint's own tokenizer, if it can be rebuilt.
    tokenizer: Option<Box<Tokenizer>>,
    /// What could not be compared, for people.
    pub remark: Option<String>,
}

impl Own {
    /// The vocabulary of a GGUF file.
    ///
    /// # Errors
    /// If the merges differ and nothing else can be compared.
    pub fn of_gguf(
        file: &Gguf,
        vocabulary: &Vocabulary,
        path: &Path,
        named: &TokenizerFile,
    ) -> Result<Self, ModelError> {
        let pieces = Pieces::of_tokenizer(&named.tokenizer.inner, path, named.spelling);
        if vocabulary.is_empty() {
            return Ok(Self::without_own(pieces, "the GGUF has no vocabulary"));
        }
        let own = Some(vocabulary.pieces(file));
        let (tokenizer, remark) = match Tokenizer::from_gguf(file, vocabulary) {
            Ok(tokenizer) => (Some(Box::new(tokenizer)), None),
            Err(error) => {
                let compared = match Merges::compare(file, named)? {
                    Merges::Equal => "pieces and merges",
                    Merges::None => "pieces alone, since the GGUF has no merges",
                    Merges::Differ(how) => return Err(ModelError::tokenizer(path, how)),
                };
                let remark = format!(
                    "the GGUF's own tokenizer cannot be rebuilt ({}): compared are {compared}, not how text is split",
                    cause(error)
                );
                (None, Some(remark))
            }
        };
        Ok(Own { own, named: pieces, tokenizer, remark })
    }

    /// The vocabulary of a folder: its `tokenizer.json`, or older files that hold one.
    pub fn of_folder(
        folder: &Path,
        path: &Path,
        named: &TokenizerFile,
    ) -> Result<Self, ModelError> {
        let pieces = Pieces::of_tokenizer(&named.tokenizer.inner, path, named.spelling);
        let file = folder.join(TOKENIZER);
        let why = match file.exists().then(|| TokenizerFile::read(&file)) {
            Some(Ok(own)) => {
                let spelled = Pieces::of_tokenizer(&own.tokenizer.inner, &file, own.spelling);
                let tokenizer = Some(Box::new(own.tokenizer));
                return Ok(Own { own: Some(spelled), named: pieces, tokenizer, remark: None });
            }
            // people may have named another tokenizer just because the folder's own cannot be used
            Some(Err(error)) => {
                format!("the folder's own {TOKENIZER} cannot be used ({})", cause(error))
            }
            None => format!("the folder has no {TOKENIZER} of its own"),
        };
        match Pieces::beside(folder)? {
            None => Ok(Self::without_own(pieces, &format!("{why}, and no other vocabulary"))),
            Some(own) => {
                let remark = format!(
                    "{why}: compared with {} are pieces, not how text is split",
                    own.file.display()
                );
                Ok(Own { own: Some(own), named: pieces, tokenizer: None, remark: Some(remark) })
            }
        }
    }

    fn without_own(named: Pieces, why: &str) -> Self {
        let remark = format!(
            "{why}: nothing tells whether the tokenizer that the policy names is the model's"
        );
        Own { own: None, named, tokenizer: None, remark: Some(remark) }
    }

    /// Reports the first special token that is not the same in both.
    pub fn check_specials(&self) -> Result<(), String> {
        let difference = self.own.as_ref().and_then(|own| own.special_difference(&self.named));
        difference.map_or(Ok(()), Err)
    }

    /// Reports the first token of a text that is not the same in both, or else the first place where the checkpoint's
    /// own tokenizer reads the text differently.
    pub fn check(
        &self,
        ids: &[u32],
        read: impl Fn(&Tokenizer) -> Result<Vec<u32>, String>,
    ) -> Result<(), String> {
        let Some(own) = &self.own else { return Ok(()) };
        if let Some(difference) = ids.iter().find_map(|&id| own.difference(&self.named, id)) {
            return Err(difference);
        }
        let Some(tokenizer) = &self.tokenizer else { return Ok(()) };
        let wanted = read(tokenizer)?;
        if wanted == ids {
            return Ok(());
        }
        let at = ids.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
        let shown = |ids: &[u32]| {
            let text = |id: &u32| own.get(*id).map_or("?".into(), |piece| cut(&piece.text));
            ids.iter()
                .take(4)
                .map(text)
                .map(|text| format!("`{text}`"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let (own, named) = (own.file.display(), self.named.file.display());
        Err(format!(
            "{named} reads it otherwise than the checkpoint's own tokenizer in {own}: behind {at} equal tokens \
             {} instead of {}; leave `tokenizer` out, kvgate can read the checkpoint's own",
            shown(&ids[at..]),
            shown(&wanted[at..])
        ))
    }
}

/// Why a tokenizer cannot be rebuilt. The file is left out, since the message names it already, and so is the advice
/// to name another tokenizer.
fn cause(error: ModelError) -> String {
    match error {
        ModelError::Tokenizer { message, .. } | ModelError::Metadata { message, .. } => message,
        error => error.to_string(),
    }
}

/// How the merges of a GGUF file compare with those of a `tokenizer.json`.
enum Merges {
    Equal,
    /// The GGUF has none, because scores rank its pieces.
    None,
    /// In words.
    Differ(String),
}

impl Merges {
    fn compare(file: &Gguf, named: &TokenizerFile) -> Result<Self, ModelError> {
        let Some(own) = gguf::merges(file)? else { return Ok(Merges::None) };
        let named = named.merges().unwrap_or_default();
        if own == named {
            return Ok(Merges::Equal);
        }
        let at = own.iter().zip(&named).take_while(|(a, b)| a == b).count();
        let shown =
            |merges: &[String]| merges.get(at).map_or("none".into(), |m| format!("`{}`", cut(m)));
        Ok(Merges::Differ(format!(
            "merge {at} is {} in {} and {} here: it is another model's",
            shown(&own),
            file.path().display(),
            shown(&named)
        )))
    }
}

/// Checks that the special tokens that a folder's `config.json` names by their ids can be those of the tokenizer. If
/// `tokenizer_config.json` names a token for the same purpose, and the id is ordinary text, then the id belongs to
/// another vocabulary.
pub(super) fn check_config(
    folder: &Path,
    path: &Path,
    file: &TokenizerFile,
) -> Result<(), ModelError> {
    let config = optional_json(&folder.join(CONFIG))?;
    let beside = path.parent().map(|folder| folder.join(TOKENIZER_CONFIG));
    let beside = beside.map_or(Ok(Json::Null), |file| optional_json(&file))?;
    let own = optional_json(&folder.join(TOKENIZER_CONFIG))?;
    let added = file.tokenizer.inner.get_added_tokens_decoder();
    for (key, name) in [("bos_token_id", "bos_token"), ("eos_token_id", "eos_token")] {
        let found = [&config["text_config"][key], &config[key]].into_iter().find(|v| !v.is_null());
        let ids: Vec<u64> = match found {
            Some(Json::Array(list)) => list.iter().filter_map(Json::as_u64).collect(),
            Some(one) => one.as_u64().into_iter().collect(),
            None => continue,
        };
        let named = [&beside, &own].into_iter().map(|config| &config[name]).find(|v| !v.is_null());
        let named = named.and_then(|token| token.get("content").unwrap_or(token).as_str());
        let Some(named) = named else { continue };
        let token = file.tokenizer.token(named);
        let is_special = |id: &u64| u32::try_from(*id).is_ok_and(|id| added.contains_key(&id));
        let is_named = |id: &u64| token.is_some_and(|token| u64::from(token) == *id);
        if ids.is_empty() || ids.iter().any(|id| is_special(id) || is_named(id)) {
            continue;
        }
        let piece = u32::try_from(ids[0]).ok().and_then(|id| file.tokenizer.inner.id_to_token(id));
        let piece = piece.map_or("nothing".into(), |piece| format!("`{}`", cut(&piece)));
        let message = format!(
            "`{key}` of config.json is {}, which is {piece} here, and `{name}` of {TOKENIZER_CONFIG} is `{}`: it is \
             another model's",
            ids[0],
            cut(named)
        );
        return Err(ModelError::tokenizer(path, message));
    }
    Ok(())
}
