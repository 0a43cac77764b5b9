//! Reads the text of the file into a [`Document`], and checks keys, types and single values. `resolve` then handles
//! inheritance between sections and missing values.
//!
//! A wrong value is reported and then replaced by a harmless one, so that one mistake gives only one finding. No
//! policy is built from a file with errors.

use super::diagnostic::Findings;
use super::Expectation;
use crate::kv::{codec, Scheme};
use crate::measure::retrieval::{LEAST_NEEDLES, MOST_NEEDLES};
use crate::results::retrieval::{Measure, Plan};
use crate::results::statistics::{Direction, Quantity, Statistic};
use crate::source::pinned;
use crate::text::suggest::nearest;
use std::collections::BTreeMap;
use std::num::IntErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::de::{DeString, DeTable, DeValue};
use toml::Spanned;

/// The shortest context that can be measured. A chunk of fewer tokens would leave only a handful of scored positions.
pub const LEAST_CONTEXT: usize = 16;

type Key<'i> = Spanned<DeString<'i>>;
type Value<'i> = Spanned<DeValue<'i>>;
type Entry<'a, 'i> = (&'a Key<'i>, &'a Value<'i>);

/// The limits of one table. `None` means that `false` removes an inherited limit. The span is that of `key = value`.
pub(super) type Limits = BTreeMap<Quantity, Spanned<Option<f64>>>;

/// The file, section by section.
#[derive(Default)]
pub(super) struct Document {
    pub defaults: Section,
    pub models: Vec<Section>,
    /// The names in `[schemes]`, and where each stands.
    pub named: BTreeMap<String, Range<usize>>,
}

impl Document {
    /// Drops every `max_chunks`: whether it is more than `chunks` cannot be told if these are wrong.
    fn drop_maxima(&mut self) {
        self.defaults.max_chunks = None;
        for model in &mut self.models {
            model.max_chunks = None;
            model.at.iter_mut().for_each(|at| at.max_chunks = None);
        }
    }
}

/// What `[defaults]`, a model or one of its `at` sections says itself. Inherited values are not in it.
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
    /// The inner `None` means that `false` drops an inherited confidence.
    pub confidence: Option<Option<f64>>,
    /// The inner `None` means that `false` drops an inherited maximum.
    pub max_chunks: Option<Option<usize>>,
    pub baseline: Option<Scheme>,
    /// The inner `None` means that `false` drops an inherited file.
    pub prompts: Option<Option<Spanned<PathBuf>>>,
    pub generate: Option<usize>,
    /// It is not inherited: contexts that an `at` section shares with its model would be measured twice.
    pub retrieval: Option<RetrievalBody>,
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
    /// `None` if the label is not a scheme, which has been reported.
    pub scheme: Option<Scheme>,
    /// `None` for `= false`, which drops an inherited scheme.
    pub body: Option<SchemeBody>,
}

/// The table of a scheme.
#[derive(Default)]
pub(super) struct SchemeBody {
    pub expect: Option<Expectation>,
    /// Where the value of `expect` stands, or else the scheme.
    expect_span: Range<usize>,
    pub reason: Option<String>,
    pub ignored: Option<bool>,
    pub limits: Limits,
    pub keys: Keys,
}

/// The table `retrieval` of a model or of one of its `at` sections.
pub(super) struct RetrievalBody {
    pub plan: Plan,
    pub limits: Vec<(Measure, Spanned<f64>)>,
    /// Where its keys stand, and its limits.
    pub keys: Keys,
}

/// A key of a table. A new key of the policy needs such a row and a field in `Into`, the struct that the table is
/// read into.
struct KeyRow<Into> {
    name: &'static str,
    /// A correct line, which findings show as an example.
    example: &'static str,
    /// The tables that it may stand in.
    tables: &'static [Table],
    read: fn(&mut Reader, &Key, &Value, &mut Into),
}

/// Stands for a value that is wrong, which has been reported.
struct Reported;

/// More chunks of each text than any limit needs, and more than any corpus has.
const MANY_CHUNKS: usize = 1 << 20;

/// The tables of a policy that have keys of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    Defaults,
    Model,
    At,
    Scheme,
    Retrieval,
}

/// The shortest context from which something can be retrieved: two needles and their questions must fit.
const LEAST_LENGTH: usize = 128;

/// How many contexts and how many needles in each there are if the policy does not say: enough for intervals.
const CONTEXTS: usize = 8;
const NEEDLES: usize = 8;

/// The least and the largest confidence that a policy may ask for. Coverage was measured within them.
const CONFIDENCES: (f64, f64) = (0.8, 0.999);

/// The key of limits under which those by category stand.
const CATEGORY: &str = "category";

const MODEL: &[Table] = &[Table::Model];
const MODEL_AND_AT: &[Table] = &[Table::Model, Table::At];
const EVERYWHERE: &[Table] = &[Table::Defaults, Table::Model, Table::At];
const SCHEME: &[Table] = &[Table::Scheme];
const RETRIEVAL: &[Table] = &[Table::Retrieval];

/// The tables at the top of a policy, each with a correct line.
const TOP: [(&str, &str); 3] = [
    ("defaults", "[defaults]"),
    ("schemes", "schemes = { q8_0 = {} }"),
    ("models", "[models.NAME]"),
];

/// The keys of `[defaults]`, of models and of their `at` sections.
const SECTION_KEYS: &[KeyRow<Section>] = &[
    KeyRow {
        name: "path",
        example: "path = \"models/model.gguf\"",
        tables: MODEL,
        read: |reader, key, value, section| section.path = Some(reader.file(key, value)),
    },
    KeyRow {
        name: "hf",
        example: "hf = \"org/name\"",
        tables: MODEL,
        read: |reader, key, value, section| {
            section.hf = Some(reader.hub_word(key, value, pinned::repository_fault))
        },
    },
    KeyRow {
        name: "revision",
        example: "revision = \"…\"",
        tables: MODEL,
        read: |reader, key, value, section| {
            section.revision = Some(reader.hub_word(key, value, pinned::revision_fault))
        },
    },
    KeyRow {
        name: "file",
        example: "file = \"model-Q4_K_M.gguf\"",
        tables: MODEL,
        read: |reader, key, value, section| {
            section.file = Some(reader.hub_word(key, value, pinned::file_fault))
        },
    },
    KeyRow {
        name: "sha256",
        example: "sha256 = \"…\"",
        tables: MODEL,
        read: |reader, key, value, section| section.sha256 = Some(reader.sha256(key, value)),
    },
    KeyRow {
        name: "fetch",
        example: "fetch = \"scripts/fetch-models NAME\"",
        tables: MODEL,
        read: |reader, key, value, section| {
            section.fetch = Some(Spanned::new(value.span(), reader.string(key, value)))
        },
    },
    KeyRow {
        name: "tokenizer",
        example: "tokenizer = \"models/tokenizer.json\"",
        tables: MODEL,
        read: |reader, key, value, section| section.tokenizer = Some(reader.file(key, value)),
    },
    KeyRow {
        name: "bos",
        example: "bos = true",
        tables: MODEL,
        read: |reader, key, value, section| section.bos = Some(reader.boolean(key, value)),
    },
    KeyRow {
        name: "ignore_keys",
        example: "ignore_keys = [\"llama.vendor.remark\"]",
        tables: MODEL,
        read: |reader, key, value, section| section.ignore_keys = reader.key_names(key, value),
    },
    KeyRow {
        name: "untrained",
        example: "untrained = true",
        tables: MODEL,
        read: |reader, key, value, section| section.untrained = reader.boolean(key, value),
    },
    KeyRow {
        name: "calibration",
        example: "calibration = \"models/model.calibration\"",
        tables: MODEL,
        read: |reader, key, value, section| section.calibration = Some(reader.file(key, value)),
    },
    KeyRow {
        name: "corpus",
        example: "corpus = [\"corpora/prose.txt\"]",
        tables: EVERYWHERE,
        read: |reader, key, value, section| section.corpus = Some(reader.corpus(key, value)),
    },
    KeyRow {
        name: "context",
        example: "context = 512",
        tables: EVERYWHERE,
        read: |reader, key, value, section| {
            section.context = Some(reader.count(key, value, LEAST_CONTEXT))
        },
    },
    KeyRow {
        name: "chunks",
        example: "chunks = 16",
        tables: EVERYWHERE,
        read: |reader, key, value, section| section.chunks = Some(reader.chunks(key, value)),
    },
    KeyRow {
        name: "confidence",
        example: "confidence = 0.95",
        tables: EVERYWHERE,
        read: |reader, key, value, section| {
            section.confidence = Some(reader.confidence(key, value))
        },
    },
    KeyRow {
        name: "max_chunks",
        example: "max_chunks = 64",
        tables: EVERYWHERE,
        read: |reader, key, value, section| {
            let is_dropped = value.get_ref().as_bool() == Some(false);
            section.max_chunks =
                Some(if is_dropped { None } else { reader.counted(key, value, 1).ok() })
        },
    },
    KeyRow {
        name: "baseline",
        example: "baseline = \"f16\"",
        tables: EVERYWHERE,
        read: |reader, key, value, section| section.baseline = reader.scheme_value(key, value),
    },
    KeyRow {
        name: "prompts",
        example: "prompts = \"prompts/default.toml\"",
        tables: EVERYWHERE,
        read: |reader, key, value, section| section.prompts = Some(reader.prompts(key, value)),
    },
    KeyRow {
        name: "generate",
        example: "generate = 64",
        tables: EVERYWHERE,
        read: |reader, key, value, section| section.generate = Some(reader.count(key, value, 1)),
    },
    KeyRow {
        name: "retrieval",
        example: "retrieval = { lengths = [4096, 16384] }",
        tables: MODEL_AND_AT,
        read: |reader, key, value, section| section.retrieval = reader.retrieval(key, value),
    },
    KeyRow {
        name: "ignored",
        example: "ignored = true",
        tables: MODEL_AND_AT,
        read: |reader, key, value, section| section.ignored = Some(reader.boolean(key, value)),
    },
    KeyRow {
        name: "limits",
        example: "limits = { mean_kld = 0.05 }",
        tables: EVERYWHERE,
        read: |reader, key, value, section| section.limits = reader.limits(key, value),
    },
    KeyRow {
        name: "schemes",
        example: "schemes = { q8_0 = {} }",
        tables: EVERYWHERE,
        read: |reader, key, value, section| section.schemes = reader.schemes(key, value),
    },
    KeyRow {
        name: "at",
        example: "at.long = { context = 4096 }",
        tables: MODEL,
        read: |reader, key, value, section| section.at = reader.at_sections(key, value),
    },
];

/// The keys of a scheme.
const SCHEME_KEYS: &[KeyRow<SchemeBody>] = &[
    KeyRow {
        name: "expect",
        example: "expect = \"fail\"",
        tables: SCHEME,
        read: |reader, key, value, body| {
            body.expect = reader.expectation(key, value);
            body.expect_span = value.span();
        },
    },
    KeyRow {
        name: "reason",
        example: "reason = \"outliers in K\"",
        tables: SCHEME,
        read: |reader, key, value, body| body.reason = Some(reader.string(key, value)),
    },
    KeyRow {
        name: "limits",
        example: "limits = { mean_kld = 0.05 }",
        tables: SCHEME,
        read: |reader, key, value, body| body.limits = reader.limits(key, value),
    },
    KeyRow {
        name: "ignored",
        example: "ignored = true",
        tables: SCHEME,
        read: |reader, key, value, body| body.ignored = Some(reader.boolean(key, value)),
    },
];

/// The keys of `retrieval`.
const RETRIEVAL_KEYS: &[KeyRow<RetrievalBody>] = &[
    KeyRow {
        name: "lengths",
        example: "lengths = [4096, 16384]",
        tables: RETRIEVAL,
        read: |reader, key, value, body| body.plan.lengths = reader.lengths(key, value),
    },
    KeyRow {
        name: "contexts",
        example: "contexts = 8",
        tables: RETRIEVAL,
        read: |reader, key, value, body| body.plan.contexts = reader.count(key, value, 1),
    },
    KeyRow {
        name: "needles",
        example: "needles = 8",
        tables: RETRIEVAL,
        read: |reader, key, value, body| body.plan.needles = reader.needles(key, value),
    },
    KeyRow {
        name: "seed",
        example: "seed = 1",
        tables: RETRIEVAL,
        read: |reader, key, value, body| body.plan.seed = reader.count(key, value, 0) as u64,
    },
    KeyRow {
        name: "limits",
        example: "limits = { loss = 0.05 }",
        tables: RETRIEVAL,
        read: |reader, key, value, body| body.limits = reader.retrieval_limits(key, value),
    },
];

/// The keys that a table may have, in the order in which findings list them.
fn known_keys(table: Table) -> Vec<&'static str> {
    let own = SECTION_KEYS.iter().map(|row| (row.name, row.tables));
    let of_schemes = SCHEME_KEYS.iter().map(|row| (row.name, row.tables));
    let of_retrieval = RETRIEVAL_KEYS.iter().map(|row| (row.name, row.tables));
    let rows = own.chain(of_schemes).chain(of_retrieval);
    let rows = rows.filter(|(_, tables)| tables.contains(&table));
    rows.map(|(name, _)| name).collect()
}

/// Reads a document, collecting every finding.
pub(super) struct Reader<'f> {
    findings: &'f mut Findings,
    /// The folder that relative paths start from.
    folder: PathBuf,
    /// The schemes named in `[schemes]`. `None` if the text was not a scheme, which has been reported.
    named: BTreeMap<String, Option<Scheme>>,
    named_at: Keys,
    /// Whether a number of chunks was wrong, which has been reported.
    has_wrong_chunks: bool,
}

impl<'f> Reader<'f> {
    pub fn new(findings: &'f mut Findings) -> Self {
        let folder = findings.text().path.parent().unwrap_or(Path::new("")).to_owned();
        let (named, named_at) = (BTreeMap::new(), Keys::new());
        Reader { findings, folder, named, named_at, has_wrong_chunks: false }
    }

    /// Reads the whole file. If it is not TOML, there are no sections.
    pub fn document(mut self) -> Document {
        let text = self.findings.text().clone();
        let (root, faults) = DeTable::parse_recoverable(&text.text);
        for fault in &faults {
            let span = fault.span().unwrap_or_default();
            let help = syntax_help(&text.text, fault.message(), &span);
            self.findings.error(span, fault.message(), help);
        }
        if !faults.is_empty() {
            return Document::default();
        }
        let top = entries(root.get_ref());
        // the names come first, because sections anywhere in the file may use them
        for (key, value) in top.iter().filter(|(key, _)| key.get_ref() == "schemes") {
            self.name_schemes(key, value);
        }
        let mut document = Document::default();
        for (key, value) in top {
            match key.get_ref().as_ref() {
                "defaults" => {
                    let entries = self.table(key, value);
                    document.defaults = self.section(key, entries, Table::Defaults);
                }
                "models" => document.models = self.models(key, value),
                "schemes" => {}
                _ => self.unknown_key(key, &TOP.map(|(name, _)| name)),
            }
        }
        if root.get_ref().get("models").is_none() {
            self.no_models(0..0);
        }
        document.named = self.named_at;
        if self.has_wrong_chunks {
            document.drop_maxima();
        }
        document
    }

    fn models(&mut self, key: &Key, value: &Value) -> Vec<Section> {
        let models = self.table(key, value);
        if models.is_empty() {
            self.no_models(key.span());
        }
        self.named_sections(Table::Model, models)
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

    /// A table with a scheme for most layers, `default`, and others for some layers. If two lines name the same
    /// layer, the later one counts.
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
    fn named_sections(&mut self, table: Table, members: Vec<Entry>) -> Vec<Section> {
        let known = &known_keys(table)[..];
        let (parent, what) = match table {
            Table::At => ("at", "an `at` section"),
            _ => ("models", "a model"),
        };
        let mut sections = Vec::new();
        for (key, value) in members {
            let (rests, own): (Vec<Entry>, Vec<Entry>) = self
                .table(key, value)
                .into_iter()
                .partition(|(key, value)| rest_of_name(key, value, known).is_some());
            for rest in rests.iter().filter_map(|(key, value)| rest_of_name(key, value, known)) {
                self.unquoted_name(parent, key, &rest);
            }
            self.check_name(key, what);
            // a table that holds only the remainders of unquoted names is no section
            if value.get_ref().is_table() && (rests.is_empty() || !own.is_empty()) {
                sections.push(self.section(key, own, table));
            }
        }
        sections
    }

    fn section(&mut self, name: &Key, entries: Vec<Entry>, table: Table) -> Section {
        let mut section = Section {
            name: name.get_ref().to_string(),
            name_span: name.span(),
            ..Section::default()
        };
        for (key, value) in entries {
            section.keys.insert(key.get_ref().to_string(), key.span());
            self.read_key(SECTION_KEYS, table, key, value, &mut section);
        }
        section
    }

    /// Reads the value of a key into the struct of its table.
    fn read_key<Into>(
        &mut self,
        rows: &[KeyRow<Into>],
        table: Table,
        key: &Key,
        value: &Value,
        into: &mut Into,
    ) {
        let is_its = |row: &&KeyRow<Into>| row.name == key.get_ref() && row.tables.contains(&table);
        match rows.iter().find(is_its) {
            Some(row) => (row.read)(self, key, value, into),
            None => self.unknown_key(key, &known_keys(table)),
        }
    }

    fn at_sections(&mut self, key: &Key, value: &Value) -> Vec<Section> {
        let members = self.table(key, value);
        self.named_sections(Table::At, members)
    }

    /// A file of prompts. `false` drops an inherited one.
    fn prompts(&mut self, key: &Key, value: &Value) -> Option<Spanned<PathBuf>> {
        match value.get_ref() {
            DeValue::Boolean(false) => None,
            _ => Some(self.file(key, value)),
        }
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
        body.expect_span = key.span();
        for (key, value) in self.table(key, value) {
            body.keys.insert(key.get_ref().to_string(), key.span());
            self.read_key(SCHEME_KEYS, Table::Scheme, key, value, &mut body);
        }
        let reasoned = body.reason.as_ref().is_some_and(|reason| !reason.trim().is_empty());
        if body.expect == Some(Expectation::Fail) && !reasoned {
            self.findings.error(
                body.expect_span.clone(),
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

    /// Limits on all chunks, and under [`CATEGORY`] those on the chunks of single categories.
    fn limits(&mut self, key: &Key, value: &Value) -> Limits {
        let of_categories = |(key, _): &Entry| key.get_ref() == CATEGORY;
        let (categories, own): (Vec<Entry>, _) =
            self.table(key, value).into_iter().partition(of_categories);
        let mut limits = self.limits_on(None, own);
        for (key, value) in categories {
            for (category, value) in self.table(key, value) {
                if value.get_ref().as_bool() == Some(false) {
                    self.not_dropped_as_a_whole(category, value);
                    continue;
                }
                let own = self.table(category, value);
                limits.extend(self.limits_on(Some(category.get_ref()), own));
            }
        }
        limits
    }

    fn not_dropped_as_a_whole(&mut self, category: &Key, value: &Value) {
        let name = category.get_ref();
        self.findings.error(
            value.span(),
            format!("the limits on `{name}` cannot be dropped as a whole"),
            format!(
                "drop each by its name: `{CATEGORY}.{name}.{} = false`",
                Statistic::MeanKld.name()
            ),
        );
    }

    /// The limits of one table. Those of a category are on what follows from the sums of its chunks.
    fn limits_on(&mut self, category: Option<&str>, entries: Vec<Entry>) -> Limits {
        let is_known = |statistic: &Statistic| category.is_none() || statistic.is_of_sums();
        let statistics = Statistic::ALL.into_iter().filter(is_known).map(Statistic::name);
        let names: Vec<_> = statistics.chain(category.is_none().then_some(CATEGORY)).collect();
        let mut limits = Limits::new();
        for (key, value) in entries {
            let name = key.get_ref().as_ref();
            if !names.contains(&name) {
                self.no_limit(key, category, &names);
            }
            let meant = nearest(name, names.iter().copied()).and_then(Statistic::find);
            if let Some(statistic) = meant {
                let quantity = Quantity { category: category.map(Into::into), statistic };
                let bound = self.bound(&quantity, value);
                limits.insert(quantity, Spanned::new(key.span().start..value.span().end, bound));
            }
        }
        limits
    }

    /// Reports a key that names nothing which a limit could be on.
    fn no_limit(&mut self, key: &Key, category: Option<&str>, names: &[&str]) {
        let name = key.get_ref();
        let (message, help) = match category.filter(|_| Statistic::find(name).is_some()) {
            Some(category) => (
                format!("no limit on `{name}` can be judged on `{category}` alone"),
                format!(
                    "of chunks only sums are kept, from which no quantile follows; limits by category: {}",
                    names.join(", ")
                ),
            ),
            None => (
                format!("unknown statistic `{name}`"),
                suggestion(name, names, "statistics"),
            ),
        };
        self.findings.error(key.span(), message, help);
    }

    fn bound(&mut self, quantity: &Quantity, value: &Value) -> Option<f64> {
        let statistic = quantity.statistic;
        let name = statistic.name();
        if value.get_ref().as_bool() == Some(false) {
            return None;
        }
        let Some(bound) = number(value) else {
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
        let wrong = impossible(statistic, bound).or_else(|| always_broken(quantity, bound));
        if let Some((message, help)) = wrong {
            self.findings.error(value.span(), message, help);
        }
        Some(bound)
    }

    /// What must be retrieved from long contexts. None if nothing is left of it, which has been reported.
    fn retrieval(&mut self, key: &Key, value: &Value) -> Option<RetrievalBody> {
        let plan = Plan { lengths: Vec::new(), contexts: CONTEXTS, needles: NEEDLES, seed: 0 };
        let mut body = RetrievalBody { plan, limits: Vec::new(), keys: Keys::new() };
        for (key, value) in self.table(key, value) {
            body.keys.insert(key.get_ref().to_string(), key.span());
            self.read_key(RETRIEVAL_KEYS, Table::Retrieval, key, value, &mut body);
        }
        if value.get_ref().is_table() && !body.keys.contains_key("lengths") {
            let help = "say them: `lengths = [4096, 16384]`, in tokens";
            self.findings.error(key.span(), "`retrieval` without `lengths`", help);
        }
        let limits = body.limits.iter();
        body.keys.extend(limits.map(|(measure, bound)| (measure.name().into(), bound.span())));
        (!body.plan.lengths.is_empty()).then_some(body)
    }

    /// Lengths of contexts, each once.
    fn lengths(&mut self, key: &Key, value: &Value) -> Vec<usize> {
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(key, value, "a list of whole numbers");
            return Vec::new();
        };
        if items.is_empty() {
            self.findings.error(
                value.span(),
                "no lengths: nothing would be retrieved",
                example(key),
            );
        }
        let mut lengths = Vec::new();
        for item in items.iter() {
            let length = self.count(key, item, LEAST_LENGTH);
            if lengths.contains(&length) {
                let message = format!("a length of {length} that stands twice");
                self.findings.error(item.span(), message, "remove it");
            }
            lengths.push(length);
        }
        lengths
    }

    fn needles(&mut self, key: &Key, value: &Value) -> usize {
        let needles = self.count(key, value, LEAST_NEEDLES);
        if needles > MOST_NEEDLES {
            let message = format!("`needles` must be at most {MOST_NEEDLES}");
            self.findings.error(value.span(), message, "measure more `contexts` instead");
        }
        needles
    }

    fn retrieval_limits(&mut self, key: &Key, value: &Value) -> Vec<(Measure, Spanned<f64>)> {
        let names = Measure::ALL.map(Measure::name);
        let mut limits = Vec::new();
        for (key, value) in self.table(key, value) {
            let name: &str = key.get_ref().as_ref();
            let Some(measure) = Measure::ALL.into_iter().find(|measure| measure.name() == name)
            else {
                let help = suggestion(name, &names, "limits on retrieval");
                self.findings.error(key.span(), format!("unknown limit `{name}`"), help);
                continue;
            };
            let (most, example) = match measure {
                Measure::Loss => (1.0, "a share of the needles, such as `loss = 0.05`"),
                Measure::AnswerNll => {
                    (f64::INFINITY, "nats per token, such as `answer_nll = 0.02`")
                }
            };
            match number(value).filter(|bound| (0.0..most).contains(bound)) {
                Some(bound) => {
                    let span = key.span().start..value.span().end;
                    limits.push((measure, Spanned::new(span, bound)));
                }
                None => {
                    let most = if most.is_finite() { " and below 1" } else { "" };
                    let message = format!("`{name}` takes a number from 0 on{most}");
                    self.findings.error(value.span(), message, example);
                }
            }
        }
        limits
    }

    fn scheme_value(&mut self, key: &Key, value: &Value) -> Option<Scheme> {
        let text = self.string(key, value);
        if text.is_empty() {
            return None;
        }
        self.scheme(&text, value.span())
    }

    /// A scheme, written out or by its name in `[schemes]`.
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
        // `./a` becomes `a`, because paths are compared
        let path = Path::new(&path);
        let path = path.strip_prefix(".").unwrap_or(path);
        Spanned::new(value.span(), self.folder.join(path))
    }

    /// A text that must be a valid name on the hub.
    fn hub_word(
        &mut self,
        key: &Key,
        value: &Value,
        fault: fn(&str) -> Option<pinned::Fault>,
    ) -> Spanned<String> {
        let word = self.string(key, value);
        // an empty text has been reported already
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

    /// A number of chunks. A wrong one is reported, and read as so many that none of their limits lacks chunks.
    fn chunks(&mut self, key: &Key, value: &Value) -> usize {
        self.counted(key, value, 1).unwrap_or_else(|Reported| {
            self.has_wrong_chunks = true;
            MANY_CHUNKS
        })
    }

    /// A whole number. A wrong one is reported, and read as the least one.
    fn count(&mut self, key: &Key, value: &Value, least: usize) -> usize {
        self.counted(key, value, least).unwrap_or(least)
    }

    fn counted(&mut self, key: &Key, value: &Value, least: usize) -> Result<usize, Reported> {
        let DeValue::Integer(number) = value.get_ref() else {
            self.wrong_type(key, value, "a whole number");
            return Err(Reported);
        };
        let wrong = match usize::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) if number >= least => return Ok(number),
            Err(error) if *error.kind() == IntErrorKind::PosOverflow => {
                format!("at most {}", usize::MAX)
            }
            _ => format!("at least {least}"),
        };
        let message = format!("`{}` must be {wrong}", key.get_ref());
        self.findings.error(value.span(), message, example(key));
        Err(Reported)
    }

    /// One of [`CONFIDENCES`], or `false`. Anything else is reported, and read as `false`.
    fn confidence(&mut self, key: &Key, value: &Value) -> Option<f64> {
        let number = match value.get_ref() {
            DeValue::Boolean(false) => return None,
            DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
            _ => {
                self.wrong_type(key, value, "a number such as 0.95, or `false`");
                return None;
            }
        };
        let is_sound = |number: &f64| (CONFIDENCES.0..=CONFIDENCES.1).contains(number);
        let sound = number.filter(is_sound);
        if sound.is_none() {
            let (least, most) = CONFIDENCES;
            let message = format!("`confidence` must be within {least} and {most}");
            self.findings.error(value.span(), message, "usual is `confidence = 0.95`");
        }
        sound
    }

    /// Names of configuration keys. Goldens and reports quote each in one line, so they must not contain white space.
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

    /// A text. A value of another type and an empty text are reported, and read as an empty text.
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

    /// Checks a name that becomes part of cases and file names.
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
        // several sections may share a first word, which then stands elsewhere in the file
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

/// The keys into which TOML broke an unquoted name with dots, without the first one: nested tables with unknown keys,
/// down to one that looks like a section.
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

/// Says why no value can break a bound, or why no value can meet it, and how to mend that.
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
        let range = if high.is_finite() {
            format!("from {low} to {high}")
        } else {
            format!("at least {low}")
        };
        let help = if high == 1.0 && (1.0..=100.0).contains(&bound) {
            format!("a share, not a percentage: `{name} = {}`", bound / 100.0)
        } else {
            help
        };
        Some((format!("`{name} = {bound}` is impossible: it is {range}"), help))
    } else {
        None
    }
}

/// Says why whatever is measured breaks a bound of 0. On all chunks a scheme that quantizes nothing keeps a mean KLD of 0,
/// and with it that of each category.
fn always_broken(quantity: &Quantity, bound: f64) -> Option<(String, String)> {
    let Quantity { category, statistic } = quantity;
    let name = statistic.name();
    let why = match (statistic, category) {
        _ if bound != 0.0 => return None,
        (Statistic::PplRatio, _) => "no perplexity is 0",
        (Statistic::MeanKld | Statistic::RmsDp, Some(_)) => "a scheme that quantizes reads more",
        _ => return None,
    };
    let message = format!("`{name} = {bound}` is broken by every value: {why}");
    Some((message, bound_help(*statistic)))
}

/// Names the most similar of the known names, or else all of them.
fn suggestion(name: &str, known: &[&str], what: &str) -> String {
    match nearest(name, known.iter().copied()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("{what}: {}", known.join(", ")),
    }
}

/// Help that the TOML parser's own message leaves out.
fn syntax_help(text: &str, message: &str, span: &Range<usize>) -> String {
    let at = |place: Range<usize>| text.get(place).unwrap_or_default();
    let (found, from) = (at(span.clone()), at(span.start..text.len()));
    let is = |start: &str| message.starts_with(start);
    let is_in_key = is("invalid unquoted key");
    match found {
        ":" if is_in_key && (from.starts_with(": ") || from.starts_with(":\t")) => {
            "write `=` between a key and its value".into()
        }
        "/" | ":" if is_in_key => {
            format!("quote it: `\"{}\"`", broken_key(at(0..span.start), from))
        }
        "" if is("string values must be quoted") => {
            "the value must begin in the line of its key".into()
        }
        _ if is("extra comma") => {
            "remove it: one comma stands between two entries, and one may stand after the last"
                .into()
        }
        _ if is("missing comma between key-value pairs") => {
            "entries of a table in braces need a comma between them, even if each has its own line; \
             those of a section, `[a.b]`, need none"
                .into()
        }
        _ if is("missing key for inline table element") && from.starts_with('[') => {
            "close the table in braces above it: `}`".into()
        }
        _ => "the file must be TOML 1.1: https://toml.io".into(),
    }
}

/// The unquoted key in which a text is broken into two.
fn broken_key(before: &str, from: &str) -> String {
    let is_end = |c: char| c.is_whitespace() || ".=,{}[]".contains(c);
    let begin = before.rsplit(is_end).next().unwrap_or_default();
    let end = from.split(is_end).next().unwrap_or_default();
    format!("{begin}{end}")
}

/// The number that a value is, if it is one.
fn number(value: &Value) -> Option<f64> {
    match value.get_ref() {
        DeValue::Integer(n) => i64::from_str_radix(n.as_str(), n.radix()).map(|n| n as f64).ok(),
        DeValue::Float(x) => x.as_str().parse().ok(),
        _ => None,
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

/// A correct line as an example.
fn example(key: &Key) -> String {
    let name = key.get_ref().as_ref();
    let own = SECTION_KEYS.iter().map(|row| (row.name, row.example));
    let of_schemes = SCHEME_KEYS.iter().map(|row| (row.name, row.example));
    let of_retrieval = RETRIEVAL_KEYS.iter().map(|row| (row.name, row.example));
    let rows = TOP.into_iter().chain(own).chain(of_schemes).chain(of_retrieval);
    match rows.into_iter().find(|(known, _)| *known == name) {
        Some((_, example)) => format!("for example `{example}`"),
        // all other keys are names that the author chose
        None => "the README of kvgate shows a whole policy".into(),
    }
}

/// A correct limit as an example.
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
