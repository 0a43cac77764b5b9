//! A file of prompts → the tokens that a model reads before it answers.

use super::corpus;
use crate::hash;
use crate::model::chat::{Message, THINKING};
use crate::model::tokenizer::Tokenizer;
use crate::model::{Checkpoint, ModelError};
use crate::results::replay::{NO_TEMPLATE, UNKNOWN_TEMPLATE};
use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// The version of the format that this kvgate reads.
const VERSION: u32 = 1;

/// Where a prompt's document goes.
const PLACEHOLDER: &str = "{document}";

/// What separates messages where no template does.
const BLANK_LINE: &str = "\n\n";

/// A file of prompts with the documents that it names.
#[derive(Debug)]
pub struct PromptSet {
    path: PathBuf,
    entries: Vec<Entry>,
    sha256: String,
}

/// What a model is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Its name in the file.
    pub id: String,
    /// What kind of text its answer is.
    pub category: String,
    /// What the model reads, BOS included where it wants one.
    pub tokens: Vec<u32>,
}

/// Prompts as one model reads them, and what made them so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    /// In the file's order.
    pub prompts: Vec<Prompt>,
    /// SHA-256 of the file; with documents, of the lines `hash  name` of it and them.
    pub sha256: String,
    /// SHA-256 of the chat template; `none` where messages were joined by blank lines, and `unknown` where
    /// they were because a hub's cache does not tell whether there is one.
    pub template_sha256: String,
    /// Whether templates were asked to let the model think.
    pub thinking: bool,
    /// What is in the texts that their author may not have meant to be read as tokens.
    pub remarks: Vec<String>,
}

/// Why there are no prompts.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not what a file of prompts must be.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// An entry cannot be used.
    #[error("{}:{line}: prompt `{id}` {message}", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The entry.
        id: String,
        /// What is wrong.
        message: String,
    },
    /// The model's template cannot render a prompt.
    #[error("prompt `{id}`: {error}")]
    Template {
        /// The prompt.
        id: String,
        /// Where and why.
        error: ModelError,
    },
}

/// What a file of any version says.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "version")]
    _version: u32,
    prompts: Vec<RawEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    id: Spanned<String>,
    category: String,
    messages: Option<Vec<Message>>,
    text: Option<String>,
    document: Option<Document>,
    #[serde(default, deserialize_with = "json")]
    tools: Option<Json>,
}

/// A part of a text file, and a sentence hidden in it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    file: PathBuf,
    /// Text that the part begins with.
    from: String,
    /// The part is whole sentences, at most so many tokens of them.
    tokens: usize,
    needle: Option<String>,
    /// Where the needle goes, from 0 to 1.
    #[serde(default)]
    depth: f64,
    /// The file from `from` on.
    #[serde(skip)]
    text: String,
}

#[derive(Debug)]
struct Entry {
    id: String,
    line: usize,
    category: String,
    body: Body,
    document: Option<Document>,
}

#[derive(Debug)]
enum Body {
    /// For a chat template.
    Chat { messages: Vec<Message>, tools: Option<Json> },
    /// As it stands.
    Text(String),
}

/// JSON in a string: TOML has other types and no order.
fn json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    let text = String::deserialize(deserializer)?;
    serde_json::from_str(&text).map(Some).map_err(serde::de::Error::custom)
}

/// The documents that a file of prompts names, relative to its folder; none of a text that is no such file.
pub fn documents(text: &str) -> BTreeSet<PathBuf> {
    let file: Option<File> = toml::from_str(text).ok();
    let prompts = file.into_iter().flat_map(|file| file.prompts);
    prompts.filter_map(|prompt| Some(prompt.document?.file)).collect()
}

impl PromptSet {
    /// Reads a file of prompts and the documents that it names, relative to its folder.
    ///
    /// # Errors
    /// Files that cannot be read; keys, types and entries that are wrong, each with its line.
    pub fn read(path: &Path) -> Result<Self, PromptError> {
        let text = read(path)?;
        let format = |message| PromptError::Format { path: path.into(), message };
        let Version { version } = toml::from_str(&text).map_err(|e| format(e.to_string()))?;
        if version != VERSION {
            let message = format!("has format {version}, this version of kvgate reads {VERSION}");
            return Err(format(message));
        }
        let file: File = toml::from_str(&text).map_err(|e| format(e.to_string()))?;
        if file.prompts.is_empty() {
            return Err(format("has no prompts".into()));
        }
        let entries = entries(path, &text, file.prompts)?;
        let documents: BTreeSet<_> = entries.iter().filter_map(Entry::file).collect();
        let files = std::iter::once(path).chain(documents);
        let files: Vec<PathBuf> = files.map(Path::to_owned).collect();
        let sha256 =
            hash::of_files(&files).map_err(|(path, error)| PromptError::Io { path, error })?;
        Ok(PromptSet { path: path.into(), entries, sha256 })
    }

    /// SHA-256 of the file; with documents, of the lines `hash  name` of it and them.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The prompts as a model reads them: conversations through its chat template, or joined by blank
    /// lines where it has none.
    ///
    /// # Errors
    /// A template that cannot render a prompt, and text that the tokenizer cannot spell.
    pub fn tokens(&self, checkpoint: &Checkpoint) -> Result<Prompts, PromptError> {
        let prompts = self.entries.iter().map(|entry| {
            Ok(Prompt {
                id: entry.id.clone(),
                category: entry.category.clone(),
                tokens: self.tokens_of(entry, checkpoint)?,
            })
        });
        Ok(Prompts {
            prompts: prompts.collect::<Result<_, _>>()?,
            sha256: self.sha256.clone(),
            template_sha256: match &checkpoint.template {
                _ if !checkpoint.is_template_known => UNKNOWN_TEMPLATE.into(),
                Some(template) => template.sha256(),
                None => NO_TEMPLATE.into(),
            },
            thinking: THINKING,
            remarks: self.remarks(),
        })
    }

    /// What is in the texts that their author may not have meant to be read as tokens.
    fn remarks(&self) -> Vec<String> {
        let path = self.path.display();
        let of_entry = |entry: &Entry| {
            let own = format!("prompt `{}` of {path}", entry.id);
            let mut remarks = corpus::remarks(&own, &entry.body.plain());
            remarks.extend(entry.document.iter().flat_map(|document| {
                let file = format!("document {}", document.file.display());
                corpus::remarks(&file, &document.text)
            }));
            remarks
        };
        let mut all: Vec<String> = self.entries.iter().flat_map(of_entry).collect();
        // several prompts may have parts of one document
        let mut seen = BTreeSet::new();
        all.retain(|remark| seen.insert(remark.clone()));
        all
    }

    fn tokens_of(&self, entry: &Entry, checkpoint: &Checkpoint) -> Result<Vec<u32>, PromptError> {
        let fail = |message| PromptError::Entry {
            path: self.path.clone(),
            line: entry.line,
            id: entry.id.clone(),
            message,
        };
        let tokenizer = &checkpoint.tokenizer;
        let body = entry.body_for(tokenizer).map_err(fail)?;
        let tokens = match (&body, &checkpoint.template) {
            (Body::Chat { messages, tools }, Some(template)) => {
                let rendered = template
                    .render(messages, tools.as_ref())
                    .map_err(|error| PromptError::Template { id: entry.id.clone(), error })?;
                tokenizer.encode_rendered(&rendered)
            }
            _ => tokenizer.encode(&body.plain()),
        };
        tokens.map_err(fail)
    }
}

/// Entries that are sound, each by its own line.
fn entries(path: &Path, text: &str, raw: Vec<RawEntry>) -> Result<Vec<Entry>, PromptError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut entries: Vec<Entry> = Vec::new();
    for raw in raw {
        let (id, line) = (raw.id.get_ref().clone(), line(text, raw.id.span().start));
        let entry = match entries.iter().find(|entry| entry.id == id) {
            Some(first) => Err(format!("is also in line {}", first.line)),
            None => raw.checked(line, folder),
        };
        let fail = |message| PromptError::Entry { path: path.into(), line, id, message };
        entries.push(entry.map_err(fail)?);
    }
    Ok(entries)
}

impl RawEntry {
    fn checked(self, line: usize, folder: &Path) -> Result<Entry, String> {
        let id = self.id.into_inner();
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if id.is_empty() || !id.chars().all(allowed) {
            return Err("has a name of other characters than A-Z a-z 0-9 . _ -".into());
        }
        let body = match (self.messages, self.text) {
            (Some(messages), None) if !messages.is_empty() => {
                Body::Chat { messages, tools: self.tools }
            }
            (None, Some(text)) if !text.is_empty() && self.tools.is_none() => Body::Text(text),
            (None, Some(_)) if self.tools.is_some() => {
                return Err(
                    "has `tools`, which only a chat template can show: use `messages`".into()
                )
            }
            _ => return Err("must have either `messages` or `text`, and not empty".into()),
        };
        let document = self.document.map(|document| document.read(folder)).transpose()?;
        match (body.plain().matches(PLACEHOLDER).count(), &document) {
            (0, None) | (1, Some(_)) => {}
            (_, None) => return Err(format!("has {PLACEHOLDER} but no `document`")),
            (n, Some(_)) => return Err(format!("must have {PLACEHOLDER} once, has it {n} times")),
        }
        Ok(Entry { id, line, category: self.category, body, document })
    }
}

impl Entry {
    fn file(&self) -> Option<&Path> {
        self.document.as_ref().map(|document| document.file.as_path())
    }

    /// The body with the document in its place.
    fn body_for(&self, tokenizer: &Tokenizer) -> Result<Body, String> {
        let document =
            self.document.as_ref().map(|document| document.part(tokenizer)).transpose()?;
        let filled =
            |text: &str| text.replace(PLACEHOLDER, document.as_deref().unwrap_or_default());
        Ok(match &self.body {
            Body::Text(text) => Body::Text(filled(text)),
            Body::Chat { messages, tools } => {
                let message = |m: &Message| Message { content: filled(&m.content), ..m.clone() };
                Body::Chat {
                    messages: messages.iter().map(message).collect(),
                    tools: tools.clone(),
                }
            }
        })
    }
}

impl Body {
    /// Without a template: what is said, and before it the tools.
    fn plain(&self) -> String {
        match self {
            Body::Text(text) => text.clone(),
            Body::Chat { messages, tools } => {
                let tools = tools.iter().map(Json::to_string);
                let contents = messages.iter().map(|message| message.content.clone());
                tools.chain(contents).collect::<Vec<_>>().join(BLANK_LINE)
            }
        }
    }
}

impl Document {
    fn read(mut self, folder: &Path) -> Result<Self, String> {
        self.file = folder.join(&self.file);
        let text = read(&self.file).map_err(|error| error.to_string())?;
        let file = self.file.display();
        let (_, rest) = text.split_once(&self.from).ok_or_else(|| {
            format!("begins its document at {:?}, which is not in {file}", self.from)
        })?;
        if self.needle.as_ref().is_some_and(|needle| text.contains(needle)) {
            return Err(format!("hides what {file} already says"));
        }
        if !(0.0..=1.0).contains(&self.depth) {
            return Err(format!("has a needle at depth {}, which is not in 0..1", self.depth));
        }
        self.text = format!("{}{rest}", self.from);
        Ok(self)
    }

    /// As many whole sentences as fit, with the needle between two of them.
    fn part(&self, tokenizer: &Tokenizer) -> Result<String, String> {
        let mut end = 0;
        for next in sentence_ends(&self.text) {
            if tokenizer.encode(&self.text[..next])?.len() > self.tokens {
                break;
            }
            end = next;
        }
        if end == 0 {
            return Err(format!(
                "has a document whose first sentence is over {} tokens",
                self.tokens
            ));
        }
        let part = &self.text[..end];
        let Some(needle) = &self.needle else { return Ok(part.into()) };
        let depth = (self.depth * end as f64) as usize;
        let at = sentence_ends(part).take_while(|end| *end <= depth).last().unwrap_or(0);
        let (before, after) = part.split_at(at);
        Ok([before, needle, after.trim_start()].join(" ").trim().into())
    }
}

/// Where sentences end: behind a mark that whitespace or the text's end follows, and behind the marks of
/// scripts that put none there.
fn sentence_ends(text: &str) -> impl Iterator<Item = usize> + '_ {
    text.match_indices(['.', '!', '?', '。', '！', '？']).filter_map(move |(at, mark)| {
        let end = at + mark.len();
        let ends = mark.len() > 1 || !text[end..].starts_with(|c: char| !c.is_whitespace());
        ends.then_some(end)
    })
}

fn read(path: &Path) -> Result<String, PromptError> {
    std::fs::read_to_string(path).map_err(|error| PromptError::Io { path: path.into(), error })
}

/// The line of a byte, from 1.
fn line(text: &str, byte: usize) -> usize {
    1 + text[..byte].matches('\n').count()
}
