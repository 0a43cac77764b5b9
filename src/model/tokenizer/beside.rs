//! What the files beside a `tokenizer.json` say about it: `tokenizer_config.json`, and in older folders
//! `added_tokens.json`.
//!
//! transformers (5.24) adds the tokens of both files to those of `tokenizer.json`, and so does llama.cpp's converter,
//! which uses transformers. kvgate uses the tokens of `tokenizer.json` alone. If the files define a token
//! differently, a note says so, and a text to which that token makes a difference is an error. All other texts give
//! the same ids either way.

use super::guard::guarded;
use super::vocabulary::cut;
use crate::model::hf::files::optional_json;
use crate::model::ModelError;
use crate::source::pinned::{TOKENIZER, TOKENIZER_CONFIG};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokenizers::{AddedToken, NormalizedString, Normalizer};

/// Tokens that older versions of transformers added, by their texts.
const ADDED_TOKENS: &str = "added_tokens.json";
/// Added tokens in `tokenizer_config.json`, by their ids.
const DECODER: &str = "added_tokens_decoder";
/// Members of `tokenizer_config.json` that name one special token each.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Members that list special tokens without a particular purpose.
const LISTED: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];

const MEND: &str =
    "save the tokenizer again with transformers, so that tokenizer.json has it as it is meant";

/// The files beside a `tokenizer.json`.
pub(super) struct Beside {
    folder: PathBuf,
    config: Json,
}

/// A token that the files define differently.
pub(super) struct Contested {
    content: String,
    /// Whether the difference matters for a text that is read as plain text.
    in_text: bool,
    /// The difference in words.
    what: String,
}

/// A token that is added to a vocabulary.
#[derive(Debug, Clone, PartialEq)]
struct Added {
    id: u32,
    special: bool,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
}

impl Added {
    fn new(id: u32, token: &AddedToken) -> Self {
        let AddedToken { single_word, lstrip, rstrip, normalized, special, .. } = *token;
        Added { id, special, single_word, lstrip, rstrip, normalized }
    }

    /// Makes a token of an object as transformers does: a flag that the object leaves out is false, except that a
    /// token that is not special is normalized.
    fn of_object(id: u32, token: &Json) -> Self {
        let flag = |key: &str| token[key].as_bool();
        let set = |key: &str| flag(key).unwrap_or(false);
        let special = set("special");
        Added {
            id,
            special,
            single_word: set("single_word"),
            lstrip: set("lstrip"),
            rstrip: set("rstrip"),
            normalized: flag("normalized").unwrap_or(!special),
        }
    }

    fn shown(&self) -> String {
        let flags = [
            (self.special, "special"),
            (self.single_word, "single_word"),
            (self.lstrip, "lstrip"),
            (self.rstrip, "rstrip"),
            (self.normalized, "normalized"),
        ];
        let flags: Vec<_> = flags.into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect();
        let flags = if flags.is_empty() { "no flags".into() } else { flags.join(", ") };
        format!("token {} ({flags})", self.id)
    }
}

impl Beside {
    /// The files in the folder of a `tokenizer.json`.
    pub fn read(tokenizer: &Path) -> Result<Self, ModelError> {
        let folder = tokenizer.parent().unwrap_or(Path::new("")).to_path_buf();
        let config = optional_json(&folder.join(TOKENIZER_CONFIG))?;
        Ok(Beside { folder, config })
    }

    /// The tokens that the files define differently. `own` are the tokens of `tokenizer.json` as written there, and
    /// `inner` has them as they are used.
    pub fn contested(
        &self,
        own: &[(u32, AddedToken)],
        inner: &tokenizers::Tokenizer,
    ) -> Result<Vec<Contested>, ModelError> {
        let has_normalizer = inner.get_normalizer().is_some();
        // without a normalizer it makes no difference whether a token is normalized
        let comparable =
            |added: Added| Added { normalized: added.normalized && has_normalizer, ..added };
        let written: BTreeMap<&str, Added> = own
            .iter()
            .map(|(id, t)| (t.content.as_str(), comparable(Added::new(*id, t))))
            .collect();
        let read = inner.get_added_tokens_decoder();
        let (place, tokens) = self.tokens(own)?;
        let mut found = Vec::new();
        for (content, mut other) in tokens {
            other = comparable(other);
            if content.is_empty() || written.get(content.as_str()) == Some(&other) {
                continue;
            }
            // transformers makes a token special if it is named for a purpose
            other.special |= self.is_named(&content);
            let is_it = |(id, token): (&u32, &AddedToken)| {
                (token.content == content).then(|| comparable(Added::new(*id, token)))
            };
            let here = read.iter().find_map(is_it);
            if here.as_ref() == Some(&other) {
                continue;
            }
            let shown = |added: Option<&Added>| added.map_or("no added token".into(), Added::shown);
            let what = format!(
                "`{}` is {} in {TOKENIZER} and {} in {place}",
                cut(&content),
                shown(written.get(content.as_str()).or(here.as_ref())),
                other.shown()
            );
            // in plain text special tokens are read as text
            let cuts = |added: Option<Added>| added.filter(|added| !added.special);
            let in_text = cuts(here) != cuts(Some(other));
            found.push(Contested { content, in_text, what });
        }
        Ok(found)
    }

    /// The tokens that are named beside `tokenizer.json`, and where. transformers reads the older file only if the
    /// newer one has none, and then only uses ids that `tokenizer.json` does not have.
    fn tokens(
        &self,
        own: &[(u32, AddedToken)],
    ) -> Result<(String, Vec<(String, Added)>), ModelError> {
        let file = self.folder.join(TOKENIZER_CONFIG);
        match &self.config[DECODER] {
            Json::Null => {}
            Json::Object(members) => {
                let tokens = members.iter().map(|(id, token)| {
                    let id_and_text = id.parse::<u32>().ok().zip(token["content"].as_str());
                    let (id, text) = id_and_text.ok_or_else(|| {
                        let what = "must be an id with a token that has a `content`";
                        ModelError::bad_key(&file, &format!("{DECODER}.{id}"), what)
                    })?;
                    Ok::<_, ModelError>((text.to_owned(), Added::of_object(id, token)))
                });
                let place = format!("`{DECODER}` of {TOKENIZER_CONFIG}");
                return Ok((place, tokens.collect::<Result<_, _>>()?));
            }
            _ => return Err(ModelError::bad_key(&file, DECODER, "must be an object")),
        }
        let file = self.folder.join(ADDED_TOKENS);
        let older = optional_json(&file)?;
        let mut tokens = Vec::new();
        for (text, id) in older.as_object().into_iter().flatten() {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id =
                id.ok_or_else(|| ModelError::bad_key(&file, text, "must be the id of a token"))?;
            if own.iter().all(|(known, _)| *known != id) {
                let special = self.is_named(text) || self.is_listed(text);
                tokens.push((
                    text.clone(),
                    Added::of_object(id, &serde_json::json!({ "special": special })),
                ));
            }
        }
        Ok((ADDED_TOKENS.into(), tokens))
    }

    fn is_named(&self, text: &str) -> bool {
        NAMED.iter().any(|name| spelled(&self.config[*name]) == Some(text))
    }

    fn is_listed(&self, text: &str) -> bool {
        let lists = LISTED.iter().filter_map(|name| self.config[*name].as_array()).flatten();
        lists.into_iter().any(|token| spelled(token) == Some(text))
    }

    /// A warning if `tokenizer_config.json` contradicts the pre-tokenizer about a space before a text.
    pub fn prefix_space(&self, pre_tokenizer: &Json) -> Option<String> {
        const KEY: &str = "add_prefix_space";
        let here = self.config[KEY].as_bool()?;
        let own = prefix_space_of(pre_tokenizer)?;
        (here != own).then(|| {
            format!(
                "warning: `{KEY}` of {TOKENIZER_CONFIG} is {here}, and the pre-tokenizer of {TOKENIZER} has it as {own}, \
                 which is how a text is read: some of transformers' classes (Qwen2's and GPT-2's) obey the former"
            )
        })
    }
}

/// Whether a pre-tokenizer puts a space before a text. `None` if no part of it says anything about that.
fn prefix_space_of(part: &Json) -> Option<bool> {
    match part["type"].as_str()? {
        "Sequence" => part["pretokenizers"].as_array()?.iter().find_map(prefix_space_of),
        "Metaspace" => match part["prepend_scheme"].as_str() {
            Some(scheme) => Some(scheme != "never"),
            None => part["add_prefix_space"].as_bool(),
        },
        _ => part["add_prefix_space"].as_bool(),
    }
}

/// The text of a token, which is written with its properties or alone.
fn spelled(token: &Json) -> Option<&str> {
    token.get("content").unwrap_or(token).as_str()
}

/// The warning about such tokens that is shown once.
pub(super) fn told(contested: &[Contested]) -> Option<String> {
    const FIRST: usize = 3;
    let first: Vec<_> = contested.iter().take(FIRST).map(|token| &*token.what).collect();
    let more = match contested.len() {
        0 => return None,
        count if count <= FIRST => String::new(),
        count => format!("; and {} more", count - FIRST),
    };
    let first = first.join("; ");
    Some(format!("warning: a text with one of these tokens is refused: {first}{more}; {MEND}"))
}

/// Refuses a text in which such a token would make a difference. Only text that a chat template wrote has special
/// tokens in it.
pub(super) fn check(
    contested: &[Contested],
    inner: &tokenizers::Tokenizer,
    text: &str,
    is_rendered: bool,
) -> Result<(), String> {
    let mut counting = contested.iter().filter(|token| token.in_text || is_rendered).peekable();
    if counting.peek().is_none() {
        return Ok(());
    }
    // some tokens are searched for in the normalized text
    let mut normal = NormalizedString::from(text);
    if let Some(normalizer) = inner.get_normalizer() {
        guarded(|| normalizer.normalize(&mut normal))?.map_err(|error| error.to_string())?;
    }
    let has =
        |token: &&Contested| text.contains(&token.content) || normal.get().contains(&token.content);
    match counting.find(has) {
        None => Ok(()),
        Some(token) => {
            Err(format!("the text has a token that the files know as two: {}; {MEND}", token.what))
        }
    }
}
