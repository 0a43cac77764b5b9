//! Prompts: a file of them becomes the tokens that a model reads before it answers.

use super::corpus;
use crate::hash;
use crate::model::chat::{Message, THINKING};
use crate::model::tokenizer::Tokenizer;
use crate::model::{Checkpoint, ModelError};
use crate::results::replay::{NO_TEMPLATE, UNKNOWN_TEMPLATE};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// The version of the file format that this kvgate reads.
const VERSION: u32 = 1;

/// What stands in a prompt at the place of its document.
const PLACEHOLDER: &str = "{document}";

/// What separates messages if the model has no chat template.
const BLANK_LINE: &str = "\n\n";

/// A file of prompts that has been read, together with the documents that it names.
#[derive(Debug)]
pub struct PromptSet {
    path: PathBuf,
    entries: Vec<Entry>,
    sha256: String,
}

/// One prompt as a model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The prompt's name in the file.
    pub id: String,
    /// The kind of text that the answer is, such as `code`.
    pub category: String,
    /// The tokens, with a BOS if the model wants one.
    pub tokens: Vec<u32>,
}

/// All prompts as one model reads them, and what decided how it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    /// In the file's order.
    pub prompts: Vec<Prompt>,
    /// The SHA-256 of the file. If it names documents, it is that of a list with a line `hash  name` for the file and
    /// for each document.
    pub sha256: String,
    /// The SHA-256 of the chat template. It is `none` if the model has no template, so that messages were joined by
    /// blank lines. It is `unknown` if they were joined because the hub's cache does not show whether there is a
    /// template.
    pub template_sha256: String,
    /// Whether the template was asked to let the model think first.
    pub thinking: bool,
    /// Remarks on what the author of the texts may not have meant to be read as tokens.
    pub remarks: Vec<String>,
}

/// Why prompts cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    #[error("cannot read {}: {error}", path.display())]
    Io { path: PathBuf, error: std::io::Error },
    /// The file is no file of prompts of this version.
    #[error("{}: {message}", path.display())]
    Format { path: PathBuf, message: String },
    /// One entry of the file cannot be used.
    #[error("{}:{line}: prompt `{id}` {message}", path.display())]
    Entry {
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        id: String,
        message: String,
    },
    /// The model's template cannot render a prompt.
    #[error("prompt `{id}`: {error}")]
    Template { id: String, error: ModelError },
}

/// What a file of any version has.
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

/// An excerpt of a text file that goes into a prompt. A sentence may be hidden in it, which the prompt asks for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    file: PathBuf,
    /// The text that the excerpt begins with.
    from: String,
    /// The most tokens that the excerpt may have. It is cut at the end of a sentence.
    tokens: usize,
    /// The sentence that is hidden in the excerpt.
    needle: Option<String>,
    /// Where the needle goes: 0 is the beginning of the excerpt, 1 is its end.
    #[serde(default)]
    depth: f64,
    /// The file's text, beginning with `from`.
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
    /// A conversation for the chat template.
    Chat { messages: Vec<Message>, tools: Option<Json> },
    /// Text that the model continues as it stands.
    Text(String),
}

/// Reads JSON that stands in a string. TOML itself has other types, and does not keep the order of keys.
fn json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let wrong = |error: serde_json::Error| {
        D::Error::custom(format!("the value must be JSON in a string: {error}"))
    };
    serde_json::from_str(&text).map(Some).map_err(wrong)
}

/// The documents that a file of prompts names, relative to its folder. A text that is no such file names none.
pub fn documents(text: &str) -> BTreeSet<PathBuf> {
    let file: Option<File> = toml::from_str(text).ok();
    let prompts = file.into_iter().flat_map(|file| file.prompts);
    prompts.filter_map(|prompt| Some(prompt.document?.file)).collect()
}

impl PromptSet {
    /// Reads a file of prompts and the documents that it names, which are relative to its folder.
    ///
    /// # Errors
    /// If a file cannot be read, or if a key, a type or an entry is wrong. The error names the line.
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

    /// As [`Prompts::sha256`].
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The prompts as a model reads them. Its chat template renders conversations. If it has none, their messages are
    /// joined by blank lines.
    ///
    /// # Errors
    /// If the template cannot render a prompt, or the tokenizer cannot encode it.
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

    /// Remarks on what the author of the texts may not have meant to be read as tokens, each only once.
    fn remarks(&self) -> Vec<String> {
        let path = self.path.display();
        let remarks_on = |entry: &Entry| {
            let own = format!("prompt `{}` of {path}", entry.id);
            let mut remarks = corpus::remarks(&own, &entry.body.plain());
            remarks.extend(entry.document.iter().flat_map(|document| {
                let file = format!("document {}", document.file.display());
                corpus::remarks(&file, &document.text)
            }));
            remarks
        };
        let mut all: Vec<String> = self.entries.iter().flat_map(remarks_on).collect();
        // several prompts may have excerpts of one document
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

/// Checks the entries one by one, so that an error names the line of its entry.
fn entries(path: &Path, text: &str, raw: Vec<RawEntry>) -> Result<Vec<Entry>, PromptError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut entries: Vec<Entry> = Vec::new();
    for raw in raw {
        let (id, line) = (raw.id.get_ref().clone(), line(text, raw.id.span().start));
        let entry = match entries.iter().find(|entry| entry.id == id) {
            Some(first) => Err(format!("is also in line {}", first.line)),
            None => raw.check(line, folder),
        };
        let fail = |message| PromptError::Entry { path: path.into(), line, id, message };
        entries.push(entry.map_err(fail)?);
    }
    Ok(entries)
}

impl RawEntry {
    fn check(self, line: usize, folder: &Path) -> Result<Entry, String> {
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

    /// The body with the excerpt in the place of its placeholder.
    fn body_for(&self, tokenizer: &Tokenizer) -> Result<Body, String> {
        let document =
            self.document.as_ref().map(|document| document.excerpt(tokenizer)).transpose()?;
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
    /// What a model without a chat template reads: the tools, and then the messages.
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

    /// As many whole sentences as fit into the tokens. The needle goes between two of them.
    fn excerpt(&self, tokenizer: &Tokenizer) -> Result<String, String> {
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
        let excerpt = &self.text[..end];
        let Some(needle) = &self.needle else { return Ok(excerpt.into()) };
        let depth = (self.depth * end as f64) as usize;
        let at = sentence_ends(excerpt).take_while(|end| *end <= depth).last().unwrap_or(0);
        let (before, after) = excerpt.split_at(at);
        Ok([before, needle, after.trim_start()].join(" ").trim().into())
    }
}

/// Where sentences end: after a mark that is followed by whitespace or by the end of the text. Marks of scripts
/// without such spaces always end a sentence.
fn sentence_ends(text: &str) -> impl Iterator<Item = usize> + '_ {
    text.match_indices(['.', '!', '?', '。', '！', '？']).filter_map(move |(at, mark)| {
        let end = at + mark.len();
        let ends = mark.len() > 1 || !text[end..].starts_with(|c: char| !c.is_whitespace());
        ends.then_some(end)
    })
}

fn read(path: &Path) -> Result<String, PromptError> {
    let bytes =
        std::fs::read(path).map_err(|error| PromptError::Io { path: path.into(), error })?;
    corpus::utf8(bytes).map_err(|message| PromptError::Format { path: path.into(), message })
}

/// The line that a byte is in, counted from 1.
fn line(text: &str, byte: usize) -> usize {
    1 + text[..byte].matches('\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.toml");
        std::fs::write(&path, bytes).unwrap();
        PromptSet::read(&path).unwrap_err().to_string()
    }

    const FILE: &str = "version = 1\n[[prompts]]\nid = \"a\"\ncategory = \"list\"\n\
                        messages = [{ role = \"user\", content = \"Hello\" }]\n";

    #[test]
    fn a_file_of_two_bytes_a_letter_is_refused_by_its_name() {
        let wide: Vec<u8> = FILE.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let marked = [&[0xff, 0xfe], &wide[..]].concat();
        for bytes in [wide, marked] {
            let error = error(&bytes);
            assert!(error.contains("prompts.toml: is UTF-16 or UTF-32 ("), "{error}");
            assert!(error.ends_with("convert it: `iconv -f UTF-16 -t UTF-8`"), "{error}");
        }
        let error = error(b"version = 1 # \xff");
        assert!(error.ends_with("is not UTF-8 (byte 14); convert it first"), "{error}");
    }

    #[test]
    fn tools_are_json() {
        let error = error(format!("{FILE}tools = \"not json\"\n").as_bytes());
        assert!(error.contains("the value must be JSON in a string: expected ident"), "{error}");
        assert!(error.contains("tools = \"not json\""), "{error}");
    }
}
