//! Chat templates: Jinja as transformers runs it, so that a model reads its prompts as it was trained to.
//!
//! A template may ask for the date, but prompts must not change from day to day. Every template is therefore told
//! that it is [`TODAY`]. Thinking is off ([`THINKING`]).

use super::config::Config;
use super::gguf::Gguf;
use super::hf::files::{optional, optional_json, utf8};
use super::tokenizer::{markers, text, Tokenizer, Vocabulary};
use super::ModelError;
use crate::hash;
use crate::source::pinned::{CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{context, AutoEscape, Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat;
use serde::{Deserialize, Serialize};
use serde_json::ser::Formatter;
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

/// `enable_thinking`, which every template is given.
pub const THINKING: bool = false;

/// The date that every template is told: the one that Llama 3's templates use if there is no clock.
pub const TODAY: &str = "2024-07-26";

/// [`TODAY`] at midnight, by the directives of `strftime`.
const CLOCK: [(char, &str); 14] = [
    ('a', "Fri"),
    ('A', "Friday"),
    ('b', "Jul"),
    ('B', "July"),
    ('d', "26"),
    ('F', TODAY),
    ('H', "00"),
    ('j', "208"),
    ('m', "07"),
    ('M', "00"),
    ('S', "00"),
    ('y', "24"),
    ('Y', "2024"),
    ('%', "%"),
];

/// How many steps a template may take. Real templates take some thousands. More is an error, since a template could
/// loop forever.
const FUEL: u64 = 20_000_000;

/// Special tokens by the names that templates know them by, and by GGUF's.
const SPECIALS: [(&str, &str); 6] = [
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ("sep_token", "tokenizer.ggml.seperator_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
    ("mask_token", "tokenizer.ggml.mask_token_id"),
];

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A checkpoint's chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    checkpoint: PathBuf,
    place: String,
    text: String,
    specials: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// A template that stands in `place` (a key or a file) of a checkpoint. `specials` are the texts of
    /// special tokens by the names that templates know them by, such as `bos_token`.
    pub fn new(
        checkpoint: &Path,
        place: &str,
        text: String,
        specials: BTreeMap<String, String>,
    ) -> Self {
        ChatTemplate { checkpoint: checkpoint.into(), place: place.into(), text, specials }
    }

    pub(super) fn from_gguf(
        file: &Gguf,
        vocabulary: &Vocabulary,
    ) -> Result<Option<Self>, ModelError> {
        const KEY: &str = "tokenizer.chat_template";
        let Some(template) = text(file, KEY) else { return Ok(None) };
        let mut specials = BTreeMap::new();
        for (name, key) in SPECIALS {
            let id = file.any_number(key)?.and_then(|id| u32::try_from(id).ok());
            let text = id.and_then(|id| vocabulary.token(id));
            specials.extend(text.map(|text| (name.into(), text.into())));
        }
        Ok(Some(Self::new(file.path(), KEY, template.into(), specials)))
    }

    /// `chat_template.jinja`, or what `tokenizer_config.json` holds.
    pub(crate) fn from_folder(folder: &Path) -> Result<Option<Self>, ModelError> {
        let config = optional_json(&folder.join(TOKENIZER_CONFIG))?;
        let file = folder.join(CHAT_TEMPLATE);
        let (place, template) = match optional(&file)? {
            Some(bytes) => (CHAT_TEMPLATE, Some(utf8(&file, bytes)?)),
            None => (TOKENIZER_CONFIG, named_default(&config["chat_template"])),
        };
        let special = |name: &str| {
            let token = &config[name];
            // a token with its properties, or its text alone
            let text = token.get("content").unwrap_or(token).as_str()?;
            Some((name.to_owned(), text.to_owned()))
        };
        let specials = SPECIALS.iter().filter_map(|(name, _)| special(name)).collect();
        Ok(template.map(|template| Self::new(folder, place, template, specials)))
    }

    /// SHA-256 of the template's text, in hex.
    pub fn sha256(&self) -> String {
        hash::of_bytes(self.text.as_bytes())
    }

    /// The conversation as the model reads it, up to where its answer begins.
    ///
    /// # Errors
    /// If the template is no Jinja, or refuses the conversation. The error names the line.
    pub fn render(&self, messages: &[Message], tools: Option<&Json>) -> Result<String, ModelError> {
        let text = without_generation_tags(&self.text);
        let context = context! {
            // `none` and not undefined, as in transformers
            tools => Value::from(Serde(tools)),
            documents => Value::from(()),
            messages => Serde(messages),
            add_generation_prompt => true,
            enable_thinking => THINKING,
            ..Value::from(Serde(&self.specials))
        };
        environment().render_named_str(&self.place, &text, context).map_err(|e| self.error(&e))
    }

    /// The tokens by which the template ends a turn. It writes their text, or `eos_token`.
    fn end_tokens(&self, tokenizer: &Tokenizer) -> BTreeSet<u32> {
        let marks =
            markers::written_by(&self.text).into_iter().filter(|m| markers::ends_answers(m));
        let eos = self.specials.get("eos_token").filter(|_| self.text.contains("eos_token"));
        marks.chain(eos.map(String::as_str)).filter_map(|mark| tokenizer.mark(mark)).collect()
    }

    /// A warning about marks that the template writes and that the tokenizer reads as ordinary text.
    pub(super) fn unread_marks(&self, tokenizer: &Tokenizer) -> Option<String> {
        let unread = markers::written_by(&self.text).into_iter().filter_map(|mark| {
            let what = match (tokenizer.mark(mark), tokenizer.token(mark)) {
                (Some(_), _) => return None,
                (None, Some(id)) => format!("which is token {id} in any text"),
                (None, None) => "which is no token".into(),
            };
            Some(format!("`{mark}`, {what}"))
        });
        let unread: Vec<_> = unread.collect();
        (!unread.is_empty()).then(|| {
            let unread = unread.join("; ");
            format!("warning: the chat template writes what the vocabulary does not have as a mark: {unread}")
        })
    }

    fn error(&self, error: &Error) -> ModelError {
        let line = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
        ModelError::Template {
            path: self.checkpoint.clone(),
            place: format!("{}{line}", self.place),
            message: error.detail().map_or_else(|| error.kind().to_string(), Into::into),
        }
    }
}

/// The template that a value holds. If the value is a list of `{ name, template }`, it is the one named `default`.
fn named_default(value: &Json) -> Option<String> {
    let default = |list: &Vec<Json>| {
        let entry = list.iter().find(|entry| entry["name"] == "default")?;
        Some(entry["template"].as_str()?.to_owned())
    };
    value.as_str().map(Into::into).or_else(|| value.as_array().and_then(default))
}

/// Tokens at which generation stops, in rising order: those of the generation configuration, or else those of the
/// configuration; and the tokens by which the chat template ends a turn.
pub(super) fn end_tokens_of_folder(
    folder: &Path,
    template: Option<&ChatTemplate>,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>, ModelError> {
    let generation = optional_json(&folder.join(GENERATION_CONFIG))?;
    let config = optional_json(&folder.join(CONFIG))?;
    let places = [&generation, &config, &config["text_config"]];
    let found = places.into_iter().map(|place| &place["eos_token_id"]).find(|v| !v.is_null());
    let id = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let written = template.map(|template| template.end_tokens(tokenizer)).unwrap_or_default();
    let ends: Option<BTreeSet<u32>> = match found {
        None => Some(BTreeSet::new()),
        Some(Json::Array(list)) => list.iter().map(id).collect(),
        Some(one) => id(one).map(|id| BTreeSet::from([id])),
    };
    ends.map(|ends| ends.union(&written).copied().collect()).ok_or_else(|| {
        ModelError::bad_key(folder, "eos_token_id", "must be a token or a list of tokens")
    })
}

/// Jinja with transformers' settings, filters and functions.
fn environment<'source>() -> Environment<'source> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("Jinja's own delimiters are distinct"));
    environment.set_fuel(Some(FUEL));
    // minijinja escapes values if the template's name ends in `.json`, which must not happen here
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(pycompat::unknown_method_callback);
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        let directive = if c == '%' { rest.next() } else { None };
        match CLOCK.iter().find(|(name, _)| Some(*name) == directive) {
            Some((_, value)) => text += value,
            None if c != '%' => text.push(c),
            None => {
                let message = format!("strftime_now(\"{format}\") has a directive that is unknown");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
    }
    Ok(text)
}

/// `{% generation %}` marks what a model is trained on and writes nothing; Jinja proper does not know
/// it. A `with` block has the same scope.
fn without_generation_tags(template: &str) -> String {
    let mut tags = template.split("{%");
    let mut text = tags.next().unwrap_or_default().to_owned();
    for tag in tags {
        text += "{%";
        let word = tag.trim_start_matches(['-', '+']).trim_start();
        let (own, jinja) = match word.split(|c: char| !c.is_alphanumeric()).next() {
            Some("generation") => ("generation", "with"),
            Some("endgeneration") => ("endgeneration", "endwith"),
            _ => ("", ""),
        };
        text += &tag.replacen(own, jinja, 1);
    }
    text
}

/// Jinja's own test. It differs from minijinja's, which also iterates over `none` as over an empty list.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// Jinja's own test: whatever has a length and can be indexed is a sequence, so texts and mappings are, too.
fn is_sequence(value: &Value) -> bool {
    let kinds = [ValueKind::Undefined, ValueKind::String, ValueKind::Seq, ValueKind::Map];
    kinds.contains(&value.kind()) || (value.kind() == ValueKind::Iterable && value.len().is_some())
}

/// Python's `json.dumps(value, ensure_ascii=False)`, and the options that templates give it; Jinja's
/// own filter escapes HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let [comma, colon] = match separators {
        Some(pair) => <[String; 2]>::try_from(pair)
            .map_err(|_| Error::new(ErrorKind::InvalidOperation, "separators must be a pair"))?,
        None => [if indent.is_some() { "," } else { ", " }, ": "].map(String::from),
    };
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let mut value = serde_json::to_value(value).map_err(failed)?;
    if options.get::<Option<bool>>("sort_keys")?.unwrap_or(false) {
        value.sort_all_objects();
    }
    options.assert_all_used()?;
    let mut json = Vec::new();
    let style = PythonStyle { comma, colon, indent, ascii, depth: 0, is_empty: true };
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, style);
    value.serialize(&mut serializer).map_err(failed)?;
    Ok(String::from_utf8(json).expect("JSON of text is text"))
}

/// How `json.dumps` lays out.
struct PythonStyle {
    comma: String,
    colon: String,
    indent: Option<usize>,
    /// Whether other characters than ASCII's are escaped.
    ascii: bool,
    depth: usize,
    /// Whether the innermost array or object has nothing in it yet.
    is_empty: bool,
}

impl PythonStyle {
    fn begin<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        writer.write_all(bracket)
    }

    fn end<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.is_empty {
            self.new_line(writer)?;
        }
        self.is_empty = false;
        writer.write_all(bracket)
    }

    fn item<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.is_empty = false;
        if !first {
            writer.write_all(self.comma.as_bytes())?;
        }
        self.new_line(writer)
    }

    fn new_line<W: ?Sized + io::Write>(&self, writer: &mut W) -> io::Result<()> {
        self.indent.map_or(Ok(()), |n| write!(writer, "\n{:1$}", "", n * self.depth))
    }
}

impl Formatter for PythonStyle {
    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.item(writer, first)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.item(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.colon.as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if !self.ascii {
            return writer.write_all(fragment.as_bytes());
        }
        let mut units = fragment.encode_utf16();
        units.try_for_each(|unit| match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii() => writer.write_all(&[byte]),
            _ => write!(writer, "\\u{unit:04x}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> ChatTemplate {
        let specials = BTreeMap::from([("bos_token".into(), "<s>".into())]);
        ChatTemplate::new(Path::new("m.gguf"), "tokenizer.chat_template", text.into(), specials)
    }

    fn rendered(text: &str) -> Result<String, String> {
        let message = Message { role: "user".into(), content: "Hi".into() };
        template(text).render(&[message], None).map_err(|e| e.to_string())
    }

    #[test]
    fn the_clock_stands() {
        let text = "{{ strftime_now('%d %b %Y') }}, {{ strftime_now('%A %F 100%%') }}";
        assert_eq!(rendered(text).unwrap(), "26 Jul 2024, Friday 2024-07-26 100%");
        let error = rendered("{{ strftime_now('%Q') }}").unwrap_err();
        assert!(error.contains("strftime_now(\"%Q\")"), "{error}");
    }

    #[test]
    fn generation_tags_write_nothing() {
        let text = "a\n  {%- generation -%}\n b\n{% endgeneration %}\n{{ 'generation' }}";
        assert_eq!(rendered(text).unwrap(), "ab\ngeneration");
    }

    #[test]
    fn a_template_without_an_end_is_an_error() {
        let text = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}";
        let error = rendered(text).unwrap_err();
        assert!(error.contains("cannot be rendered"), "{error}");
    }

    #[test]
    fn an_error_names_the_checkpoint_the_place_and_the_line() {
        for (text, line, message) in [
            ("\n\n{{ raise_exception('No users here.') }}", "line 3", "No users here."),
            ("{{ bos_token }}\n{% nonsense %}", "line 2", "nonsense"),
            ("{{ messages[0].content.nonsense() }}", "line 1", "nonsense"),
        ] {
            let error = rendered(text).unwrap_err();
            for part in ["m.gguf", "tokenizer.chat_template", line, message] {
                assert!(error.contains(part), "{error}");
            }
        }
    }
}
