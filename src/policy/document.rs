//! The file's text → [`Document`]: keys, types and single values, each checked where it stands.
//! What a section leaves out, and how sections inherit, is the business of `resolve`.
//!
//! A faulty value is reported and then replaced by a harmless one, so that one mistake gives one
//! finding; nothing is built from a file with findings.

use super::diagnostic::Findings;
use super::Expectation;
use crate::kv::{codec, Scheme};
use crate::results::statistics::{Direction, Statistic};
use crate::source::pinned;
use crate::text::suggest::nearest;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::de::{DeString, DeTable, DeValue};
use toml::Spanned;

const TOP: &[&str] = &["defaults", "schemes", "models"];
const DEFAULTS: &[&str] =
    &["corpus", "context", "chunks", "baseline", "prompts", "generate", "limits", "schemes"];
const AT: &[&str] = &[
    "corpus", "context", "chunks", "baseline", "prompts", "generate", "ignored", "limits",
    "schemes",
];
const MODEL: &[&str] = &[
    "path",
    "hf",
    "revision",
    "file",
    "sha256",
    "fetch",
    "tokenizer",
    "bos",
    "ignore_keys",
    "untrained",
    "calibration",
    "corpus",
    "context",
    "chunks",
    "baseline",
    "prompts",
    "generate",
    "ignored",
    "limits",
    "schemes",
    "at",
];
const SCHEME: &[&str] = &["expect", "reason", "limits", "ignored"];

/// The shortest context that can be measured. A chunk of fewer tokens would leave only a handful of scored positions.
pub const LEAST_CONTEXT: usize = 16;

type Key<'i> = Spanned<DeString<'i>>;
type Value<'i> = Spanned<DeValue<'i>>;
type Entry<'a, 'i> = (&'a Key<'i>, &'a Value<'i>);

/// Limits of one table: a bound, or none where `false` removes an inherited one. The place is
/// that of `key = value`.
pub(super) type Limits = BTreeMap<Statistic, Spanned<Option<f64>>>;

/// The file, section by section.
#[derive(Default)]
pub(super) struct Document {
    pub defaults: Section,
    pub models: Vec<Section>,
    /// The names of `[schemes]`, and where each is given.
    pub named: BTreeMap<String, Range<usize>>,
}

/// `[defaults]`, a model, or one of its `at` sections: what it says, and nothing else.
#[derive(Default)]
pub(super) struct Section {
    pub name: String,
    pub name_span: Range<usize>,
    pub path: Option<Spanned<PathBuf>>,
    pub hf: Option<Spanned<String>>,
    pub revision: Option<Spanned<String>>,
    pub file: Option<Spanned<String>>,
    pub tokenizer: Option<Spanned<PathBuf>>,
    pub calibration: Option<Spanned<PathBuf>>,
    pub sha256: Option<String>,
    pub fetch: Option<Spanned<String>>,
    pub bos: Option<bool>,
    pub ignore_keys: Vec<String>,
    pub untrained: bool,
    pub corpus: Option<Vec<Spanned<PathBuf>>>,
    pub context: Option<usize>,
    pub chunks: Option<usize>,
    pub baseline: Option<Scheme>,
    /// None inside where `false` drops an inherited file.
    pub prompts: Option<Option<Spanned<PathBuf>>>,
    pub generate: Option<usize>,
    pub ignored: Option<bool>,
    pub limits: Limits,
    pub schemes: Vec<SchemeEntry>,
    pub at: Vec<Section>,
    pub keys: Keys,
}

/// Where each key of a table stands.
pub(super) type Keys = BTreeMap<String, Range<usize>>;

/// One line of a `schemes` table.
pub(super) struct SchemeEntry {
    pub label: String,
    pub span: Range<usize>,
    /// None if it is no scheme, which has been reported.
    pub scheme: Option<Scheme>,
    /// None for `= false`, which drops an inherited scheme.
    pub body: Option<SchemeBody>,
}

/// What is said about a scheme.
#[derive(Default)]
pub(super) struct SchemeBody {
    pub expect: Option<Expectation>,
    pub reason: Option<String>,
    pub ignored: Option<bool>,
    pub limits: Limits,
    pub keys: Keys,
}

/// Reads a document, collecting every finding.
pub(super) struct Reader<'f> {
    findings: &'f mut Findings,
    /// What relative paths start from.
    folder: PathBuf,
    /// `[schemes]`; none where the text is no scheme, which has been reported.
    named: BTreeMap<String, Option<Scheme>>,
    named_at: Keys,
}

impl<'f> Reader<'f> {
    pub fn new(findings: &'f mut Findings) -> Self {
        let folder = findings.text().path.parent().unwrap_or(Path::new("")).to_owned();
        Reader { findings, folder, named: BTreeMap::new(), named_at: Keys::new() }
    }

    /// Reads the whole file; a file that is not TOML gives no section.
    pub fn document(mut self) -> Document {
        let text = self.findings.text().clone();
        let (root, faults) = DeTable::parse_recoverable(&text.text);
        for fault in &faults {
            let span = fault.span().unwrap_or_default();
            let help = syntax_help(&text.text, &span);
            self.findings.error(span, fault.message(), help);
        }
        if !faults.is_empty() {
            return Document::default();
        }
        let top = entries(root.get_ref());
        // names first: sections of the whole file may use them
        for (key, value) in top.iter().filter(|(key, _)| key.get_ref() == "schemes") {
            self.name_schemes(key, value);
        }
        let mut document = Document::default();
        for (key, value) in top {
            match key.get_ref().as_ref() {
                "defaults" => {
                    let entries = self.table(key, value);
                    document.defaults = self.section(key, entries, DEFAULTS);
                }
                "models" => document.models = self.models(key, value),
                "schemes" => {}
                _ => self.unknown_key(key, TOP),
            }
        }
        if root.get_ref().get("models").is_none() {
            self.no_models(0..0);
        }
        document.named = self.named_at;
        document
    }

    fn models(&mut self, key: &Key, value: &Value) -> Vec<Section> {
        let models = self.table(key, value);
        if models.is_empty() {
            self.no_models(key.span());
        }
        self.named_sections("models", models, MODEL)
    }

    fn no_models(&mut self, span: Range<usize>) {
        self.findings.error(
            span,
            "the policy has no model: nothing would be gated",
            "add one: `[models.NAME]` with `path = \"…\"` or `hf = \"org/name\"`; `kvgate init --model MODEL` \
             measures one and proposes its limits",
        );
    }

    fn name_schemes(&mut self, key: &Key, value: &Value) {
        for (key, value) in self.table(key, value) {
            let name = key.get_ref().as_ref();
            self.check_name(key, "a scheme");
            if codec::all().any(|codec| codec.name().eq_ignore_ascii_case(name)) {
                self.findings.error(
                    key.span(),
                    format!("`{name}` is a codec: a scheme of that name would hide it"),
                    "choose another name",
                );
            }
            let scheme = match value.get_ref() {
                DeValue::Table(_) => self.mixed_scheme(key, value),
                _ => self.scheme_value(key, value),
            };
            self.named.insert(name.to_owned(), scheme);
            self.named_at.insert(name.to_owned(), key.span());
        }
    }

    /// A scheme for most layers, `default`, and others for some: the later line wins where both name a
    /// layer.
    fn mixed_scheme(&mut self, key: &Key, value: &Value) -> Option<Scheme> {
        let mut members = self.table(key, value);
        members.sort_by_key(|(key, _)| key.span().start);
        let (default, layers): (Vec<Entry>, _) =
            members.into_iter().partition(|(key, _)| key.get_ref() == "default");
        let Some((default_key, default)) = default.first() else {
            let help = "for example `{ default = \"q4_0\", first2 = \"q8_0\" }`";
            self.findings.error(key.span(), "a mixed scheme without a `default`", help);
            return None;
        };
        let mut mixed = self.scheme_value(default_key, default)?;
        for (key, value) in layers {
            let text = self.string(key, value);
            if text.is_empty() {
                return None;
            }
            let part = format!("{}@{}={text}", mixed, key.get_ref());
            mixed = self.scheme(&part, key.span().start..value.span().end)?;
        }
        Some(mixed)
    }

    /// The members of `models`, or of a model's `at`.
    fn named_sections(&mut self, table: &str, members: Vec<Entry>, known: &[&str]) -> Vec<Section> {
        let mut sections = Vec::new();
        for (key, value) in members {
            let (rests, own): (Vec<Entry>, Vec<Entry>) = self
                .table(key, value)
                .into_iter()
                .partition(|(key, value)| rest_of_name(key, value, known).is_some());
            for rest in rests.iter().filter_map(|(key, value)| rest_of_name(key, value, known)) {
                self.unquoted_name(table, key, &rest);
            }
            self.check_name(key, if table == "models" { "a model" } else { "an `at` section" });
            // what holds only the rests of unquoted names is no section itself
            if value.get_ref().is_table() && (rests.is_empty() || !own.is_empty()) {
                sections.push(self.section(key, own, known));
            }
        }
        sections
    }

    fn section(&mut self, name: &Key, entries: Vec<Entry>, known: &[&str]) -> Section {
        let mut section = Section {
            name: name.get_ref().to_string(),
            name_span: name.span(),
            ..Section::default()
        };
        for (key, value) in entries {
            section.keys.insert(key.get_ref().to_string(), key.span());
            match key.get_ref().as_ref() {
                word if !known.contains(&word) => self.unknown_key(key, known),
                "path" => section.path = Some(self.file(key, value)),
                "hf" => section.hf = Some(self.hub_word(key, value, pinned::repository_fault)),
                "revision" => {
                    section.revision = Some(self.hub_word(key, value, pinned::revision_fault));
                }
                "file" => section.file = Some(self.hub_word(key, value, pinned::file_fault)),
                "tokenizer" => section.tokenizer = Some(self.file(key, value)),
                "bos" => section.bos = Some(self.boolean(key, value)),
                "ignore_keys" => section.ignore_keys = self.key_names(key, value),
                "untrained" => section.untrained = self.boolean(key, value),
                "calibration" => section.calibration = Some(self.file(key, value)),
                "sha256" => section.sha256 = Some(self.sha256(key, value)),
                "fetch" => {
                    section.fetch = Some(Spanned::new(value.span(), self.string(key, value)));
                }
                "corpus" => section.corpus = Some(self.corpus(key, value)),
                "context" => section.context = Some(self.count(key, value, LEAST_CONTEXT)),
                "chunks" => section.chunks = Some(self.count(key, value, 1)),
                "baseline" => section.baseline = self.scheme_value(key, value),
                "prompts" => {
                    section.prompts = Some(match value.get_ref() {
                        DeValue::Boolean(false) => None,
                        _ => Some(self.file(key, value)),
                    });
                }
                "generate" => section.generate = Some(self.count(key, value, 1)),
                "ignored" => section.ignored = Some(self.boolean(key, value)),
                "limits" => section.limits = self.limits(key, value),
                "schemes" => section.schemes = self.schemes(key, value),
                "at" => {
                    let members = self.table(key, value);
                    section.at = self.named_sections("at", members, AT);
                }
                word => unreachable!("`{word}` is a known key that nothing reads"),
            }
        }
        section
    }

    fn schemes(&mut self, key: &Key, value: &Value) -> Vec<SchemeEntry> {
        let members = self.table(key, value);
        members
            .into_iter()
            .map(|(key, value)| SchemeEntry {
                label: key.get_ref().to_string(),
                span: key.span(),
                scheme: self.scheme(key.get_ref(), key.span()),
                body: match value.get_ref() {
                    DeValue::Boolean(false) => None,
                    _ => Some(self.scheme_body(key, value)),
                },
            })
            .collect()
    }

    fn scheme_body(&mut self, key: &Key, value: &Value) -> SchemeBody {
        let mut body = SchemeBody::default();
        if !value.get_ref().is_table() {
            self.findings.error(
                value.span(),
                format!("a scheme takes a table or `false`, not {}", kind(value)),
                "`{}` measures it under the inherited limits, `false` drops it",
            );
            return body;
        }
        let mut expect_span = key.span();
        for (key, value) in self.table(key, value) {
            body.keys.insert(key.get_ref().to_string(), key.span());
            match key.get_ref().as_ref() {
                "expect" => {
                    body.expect = self.expectation(key, value);
                    expect_span = value.span();
                }
                "reason" => body.reason = Some(self.string(key, value)),
                "limits" => body.limits = self.limits(key, value),
                "ignored" => body.ignored = Some(self.boolean(key, value)),
                _ => self.unknown_key(key, SCHEME),
            }
        }
        let reasoned = body.reason.as_ref().is_some_and(|reason| !reason.trim().is_empty());
        if body.expect == Some(Expectation::Fail) && !reasoned {
            self.findings.error(
                expect_span,
                "`expect = \"fail\"` without a reason",
                "say what is known to break: `reason = \"outliers in K\"`",
            );
        }
        body
    }

    fn expectation(&mut self, key: &Key, value: &Value) -> Option<Expectation> {
        let word = self.string(key, value);
        let known = [Expectation::Pass, Expectation::Fail, Expectation::Report]
            .map(|expectation| (expectation.name(), expectation));
        let found = known.into_iter().find(|(name, _)| *name == word);
        if found.is_none() && value.get_ref().is_str() {
            self.findings.error(
                value.span(),
                format!("unknown expectation `{word}`"),
                suggestion(&word, &known.map(|(name, _)| name), "expectations"),
            );
        }
        found.map(|(_, expectation)| expectation)
    }

    fn limits(&mut self, key: &Key, value: &Value) -> Limits {
        let mut limits = Limits::new();
        let names = Statistic::ALL.map(Statistic::name);
        for (key, value) in self.table(key, value) {
            let name = key.get_ref().as_ref();
            if !names.contains(&name) {
                self.findings.error(
                    key.span(),
                    format!("unknown statistic `{name}`"),
                    suggestion(name, &names, "statistics"),
                );
            }
            let meant = nearest(name, names).and_then(Statistic::find);
            if let Some(statistic) = meant {
                let bound = self.bound(statistic, value);
                limits.insert(statistic, Spanned::new(key.span().start..value.span().end, bound));
            }
        }
        limits
    }

    fn bound(&mut self, statistic: Statistic, value: &Value) -> Option<f64> {
        let name = statistic.name();
        let bound = match value.get_ref() {
            DeValue::Boolean(false) => return None,
            DeValue::Integer(n) => {
                i64::from_str_radix(n.as_str(), n.radix()).map(|n| n as f64).ok()
            }
            DeValue::Float(x) => x.as_str().parse().ok(),
            _ => None,
        };
        let Some(bound) = bound else {
            let unquoted = value.get_ref().as_str().filter(|text| text.parse::<f64>().is_ok());
            self.findings.error(
                value.span(),
                format!("`{name}` takes a number or `false`, not {}", kind(value)),
                match unquoted {
                    Some(number) => format!("without quotes: `{name} = {number}`"),
                    None => bound_help(statistic),
                },
            );
            return Some(f64::NAN);
        };
        if let Some((message, help)) = impossible(statistic, bound) {
            self.findings.error(value.span(), message, help);
        }
        Some(bound)
    }

    fn scheme_value(&mut self, key: &Key, value: &Value) -> Option<Scheme> {
        let text = self.string(key, value);
        if text.is_empty() {
            return None;
        }
        self.scheme(&text, value.span())
    }

    /// A scheme by its own name, or by one of `[schemes]`.
    fn scheme(&mut self, text: &str, span: Range<usize>) -> Option<Scheme> {
        if let Some(scheme) = self.named.get(text) {
            return scheme.clone();
        }
        if text.contains(char::is_whitespace) {
            let dense: String = text.split_whitespace().collect();
            let message = format!("`{text}` has a blank in it");
            self.findings.error(span, message, format!("write `{dense}`"));
            return None;
        }
        let error = match text.parse() {
            Ok(scheme) => return Some(scheme),
            Err(error) => error,
        };
        let help = match nearest(text, self.named.keys().map(String::as_str)) {
            Some(name) => format!("did you mean `{name}` of [schemes]?"),
            None => {
                "a scheme is CODEC or K/V, as in `q8_0/q4_0`, or a name given in [schemes]".into()
            }
        };
        self.findings.error(span, format!("`{text}` is no scheme: {error}"), help);
        None
    }

    fn corpus(&mut self, key: &Key, value: &Value) -> Vec<Spanned<PathBuf>> {
        let items: Vec<&Value> = match value.get_ref() {
            DeValue::Array(items) => items.iter().collect(),
            _ => vec![value],
        };
        if items.is_empty() {
            self.findings.error(value.span(), "an empty corpus", example(key));
        }
        let files: Vec<_> = items.into_iter().map(|item| self.file(key, item)).collect();
        let mut stems = BTreeMap::new();
        for file in &files {
            let stem = file.get_ref().file_stem();
            if stems.insert(stem, file).is_some() {
                let stem = stem.unwrap_or_default().display();
                self.findings.error(
                    file.span(),
                    format!(
                        "a second corpus file with the stem `{stem}`, which names its category"
                    ),
                    "rename one of the files",
                );
            }
        }
        files
    }

    /// A path, resolved against the policy's folder.
    fn file(&mut self, key: &Key, value: &Value) -> Spanned<PathBuf> {
        let path = self.string(key, value);
        // `./a` is `a`: names are compared
        let path = Path::new(&path);
        let path = path.strip_prefix(".").unwrap_or(path);
        Spanned::new(value.span(), self.folder.join(path))
    }

    /// A text that must mean something to the hub.
    fn hub_word(
        &mut self,
        key: &Key,
        value: &Value,
        fault: fn(&str) -> Option<pinned::Fault>,
    ) -> Spanned<String> {
        let word = self.string(key, value);
        // an empty one has its finding
        if let Some((message, help)) = fault(&word).filter(|_| !word.is_empty()) {
            self.findings.error(value.span(), message, help);
        }
        Spanned::new(value.span(), word)
    }

    fn sha256(&mut self, key: &Key, value: &Value) -> String {
        let hash = self.string(key, value);
        let is_hex = hash.len() == 64 && hash.chars().all(|c| c.is_ascii_hexdigit());
        if value.get_ref().is_str() && !is_hex {
            self.findings.error(
                value.span(),
                format!("no SHA-256: {} characters, not 64 hexadecimal digits", hash.len()),
                "`sha256sum FILE` prints it",
            );
        }
        hash.to_ascii_lowercase()
    }

    fn count(&mut self, key: &Key, value: &Value, least: usize) -> usize {
        let DeValue::Integer(number) = value.get_ref() else {
            self.wrong_type(key, value, "a whole number");
            return least;
        };
        match usize::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) if number >= least => number,
            _ => {
                self.findings.error(
                    value.span(),
                    format!("`{}` must be at least {least}", key.get_ref()),
                    example(key),
                );
                least
            }
        }
    }

    /// Names of configuration keys, which goldens and reports quote in one line each.
    fn key_names(&mut self, key: &Key, value: &Value) -> Vec<String> {
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(key, value, "a list of strings");
            return Vec::new();
        };
        let mut names: Vec<String> = Vec::new();
        for item in items {
            let name = self.string(key, item);
            let fault = if names.contains(&name) {
                "a key that stands twice"
            } else if name.contains(|c: char| c.is_whitespace() || c.is_control()) {
                "white space in the name of a key"
            } else {
                names.push(name);
                continue;
            };
            self.findings.error(item.span(), fault, example(key));
        }
        names
    }

    fn boolean(&mut self, key: &Key, value: &Value) -> bool {
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.wrong_type(key, value, "`true` or `false`");
            false
        })
    }

    /// The text; a wrong type or an empty text is a finding, and reads as empty.
    fn string(&mut self, key: &Key, value: &Value) -> String {
        match value.get_ref().as_str() {
            Some("") => self.findings.error(
                value.span(),
                format!("`{}` is empty", key.get_ref()),
                example(key),
            ),
            Some(text) => return text.to_owned(),
            None => self.wrong_type(key, value, "a string"),
        }
        String::new()
    }

    /// The entries of a table, in the file's order.
    fn table<'a, 'i>(&mut self, key: &Key, value: &'a Value<'i>) -> Vec<Entry<'a, 'i>> {
        match value.get_ref().as_table() {
            Some(table) => entries(table),
            None => {
                self.wrong_type(key, value, "a table");
                Vec::new()
            }
        }
    }

    fn wrong_type(&mut self, key: &Key, value: &Value, wanted: &str) {
        self.findings.error(
            value.span(),
            format!("`{}` takes {wanted}, not {}", key.get_ref(), kind(value)),
            example(key),
        );
    }

    fn unknown_key(&mut self, key: &Key, known: &[&str]) {
        let name = key.get_ref();
        let help = suggestion(name, known, "keys here");
        self.findings.error(key.span(), format!("unknown key `{name}`"), help);
    }

    /// Names become cases and files.
    fn check_name(&mut self, key: &Key, what: &str) {
        let name = key.get_ref();
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || !name.chars().all(allowed) {
            self.findings.error(
                key.span(),
                format!("`{name}` cannot name {what}: cases and golden files are named after it"),
                "use only A-Z a-z 0-9 . _ -",
            );
        }
    }

    fn unquoted_name(&mut self, table: &str, first: &Key, rest: &[&Key]) {
        let words = [first].into_iter().chain(rest.iter().copied());
        let name = words.map(|key| key.get_ref().as_ref()).collect::<Vec<_>>().join(".");
        let last = rest.last().map_or(first.span(), |key| key.span());
        let whole = first.span().start..last.end;
        // sections may share a first word that stands elsewhere in the file
        let together = self.findings.text().text.get(whole.clone()) == Some(name.as_str());
        self.findings.error(
            if together { whole } else { last },
            format!("a name with a dot, unquoted: TOML reads tables within `{}`", first.get_ref()),
            format!("quote it: `{table}.\"{name}\"`"),
        );
    }
}

/// The entries of a table, in the file's order.
fn entries<'a, 'i>(table: &'a DeTable<'i>) -> Vec<Entry<'a, 'i>> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// The keys that an unquoted dotted name was broken into, its first word aside: tables that are
/// not among the known keys, down to one that reads like a section.
fn rest_of_name<'a, 'i>(
    key: &'a Key<'i>,
    value: &'a Value<'i>,
    known: &[&str],
) -> Option<Vec<&'a Key<'i>>> {
    let table = value.get_ref().as_table()?;
    if nearest(key.get_ref(), known.iter().copied()).is_some() {
        return None;
    }
    let deeper = match entries(table).as_slice() {
        [(key, value)] => rest_of_name(key, value, known),
        _ => None,
    };
    let is_section = known.iter().any(|word| table.get(*word).is_some());
    let is_version = key.get_ref().starts_with(|c: char| c.is_ascii_digit());
    match deeper {
        Some(rest) => Some([vec![key], rest].concat()),
        None => (is_section || is_version).then(|| vec![key]),
    }
}

/// Why a bound can never bind or never hold, and the mend.
fn impossible(statistic: Statistic, bound: f64) -> Option<(String, String)> {
    let name = statistic.name();
    let (low, high) = statistic.range();
    let (least_strict, most) = match statistic.direction() {
        Direction::AtMost => (high, "at most"),
        Direction::AtLeast => (low, "at least"),
    };
    let help = bound_help(statistic);
    if !bound.is_finite() {
        Some((format!("`{name} = {bound}` is no bound"), help))
    } else if bound == least_strict {
        Some((format!("`{name} = {bound}` can never bind: it is always {most} {bound}"), help))
    } else if bound < low || bound > high {
        let range = match high.is_finite() {
            true => format!("from {low} to {high}"),
            false => format!("at least {low}"),
        };
        let help = match high == 1.0 && (1.0..=100.0).contains(&bound) {
            true => format!("a share, not a percentage: `{name} = {}`", bound / 100.0),
            false => help,
        };
        Some((format!("`{name} = {bound}` is impossible: it is {range}"), help))
    } else {
        None
    }
}

/// The nearest of `known`, or all of them.
fn suggestion(name: &str, known: &[&str], what: &str) -> String {
    match nearest(name, known.iter().copied()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("{what}: {}", known.join(", ")),
    }
}

/// What TOML's own message leaves out.
fn syntax_help(text: &str, span: &Range<usize>) -> String {
    let line_start = text[..span.start].rfind('\n').map_or(0, |newline| newline + 1);
    let key = text[line_start..].split(['=', '\n']).next().unwrap_or_default().trim();
    let in_key = span.start < line_start + key.len();
    match text.get(span.clone()) {
        Some("/" | ":") if in_key => format!("quote it: `\"{key}\"`"),
        _ => "the file must be TOML 1.0: https://toml.io".into(),
    }
}

/// The type of a value, in words.
fn kind(value: &Value) -> &'static str {
    match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(true) => "`true`",
        DeValue::Boolean(false) => "`false`",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// A line that would be right.
fn example(key: &Key) -> String {
    let example = match key.get_ref().as_ref() {
        "path" => "path = \"models/model.gguf\"",
        "hf" => "hf = \"org/name\"",
        "revision" => "revision = \"…\"",
        "file" => "file = \"model-Q4_K_M.gguf\"",
        "tokenizer" => "tokenizer = \"models/tokenizer.json\"",
        "bos" => "bos = true",
        "ignore_keys" => "ignore_keys = [\"llama.vendor.remark\"]",
        "untrained" => "untrained = true",
        "calibration" => "calibration = \"models/model.calibration\"",
        "sha256" => "sha256 = \"…\"",
        "fetch" => "fetch = \"scripts/fetch-models NAME\"",
        "corpus" => "corpus = [\"corpora/prose.txt\"]",
        "context" => "context = 512",
        "chunks" => "chunks = 16",
        "baseline" => "baseline = \"f16\"",
        "prompts" => "prompts = \"prompts/default.toml\"",
        "generate" => "generate = 64",
        "ignored" => "ignored = true",
        "expect" => "expect = \"fail\"",
        "reason" => "reason = \"outliers in K\"",
        "limits" => "limits = { mean_kld = 0.05 }",
        "schemes" => "schemes = { q8_0 = {} }",
        "at" => "at.long = { context = 4096 }",
        "defaults" => "[defaults]",
        "models" => "[models.NAME]",
        // the rest are names that the author chose
        _ => return "the README of kvgate shows a whole policy".into(),
    };
    format!("for example `{example}`")
}

/// A limit that would be right.
fn bound_help(statistic: Statistic) -> String {
    let name = statistic.name();
    let bound = match statistic {
        Statistic::MeanKld | Statistic::MedianKld => 0.05,
        Statistic::Top1Agreement => 0.85,
        Statistic::RmsDp => 0.1,
        Statistic::PplRatio => 1.05,
        Statistic::Ppl | Statistic::BaselinePpl => 40.0,
        _ => 1.0,
    };
    format!("for example `{name} = {bound}`; `{name} = false` removes an inherited limit")
}
