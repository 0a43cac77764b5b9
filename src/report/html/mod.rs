//! The report as a page of HTML: one file without scripts, and without fonts or anything else from other servers.
//!
//! Results may be a stranger's, so every text is bounded here and escaped by the template.

mod figures;
mod plot;
mod words;

use super::advice::Advice;
use super::categories;
use super::glossary::{self, Word};
use super::needles::{self, Depths};
use super::phrase;
use super::row::{numbers, verdict_words, Columns, Row};
use super::todo::{self, Step};
use super::view::{arithmetic, memory_of_card, Standing, View};
use crate::files::write_atomically;
use crate::kv::Scheme;
use crate::results::measured_by::MeasuredBy;
use crate::results::verdict::Decision;
use crate::results::{CaseResult, Control, Finding, Measurement, Results, SchemeResult};
use crate::source::{BOS, IGNORED_KEY, UNTRAINED};
use crate::text;
use crate::text::command::{self, Measure};
use crate::text::numbers::{bytes, count, significant};
use askama::Template;
use figures::SCHEMES;
use serde_json::Value;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use words::{OfScheme, ShownToken, TextPair};

/// The name of the page's file.
pub const FILE: &str = super::PAGE;

/// The most rows of the table of schemes.
const ROWS: usize = 300;
/// The most rows of the table by category.
const CATEGORIES: usize = 1_000;
/// The most models that have a section of their own.
const MODELS: usize = 30;
/// The most messages, and the most findings, that are shown.
const MESSAGES: usize = 50;
/// The most bytes of JSON in the page.
const JSON: usize = 2_000_000;

/// Why the page was not made.
#[derive(Debug, thiserror::Error)]
pub enum HtmlError {
    #[error("the page could not be made: {0}")]
    Page(#[from] askama::Error),
    #[error("a figure could not be drawn: {0}")]
    Plot(String),
    #[error("the results could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{path}: {source}; is the folder writable, and the disk not full?")]
    Write { path: String, source: io::Error },
}

/// Makes the page. Hostile results are no error.
pub fn render(view: &View) -> Result<String, HtmlError> {
    Ok(Page::new(view)?.render()?)
}

/// Makes the page, writes it into the folder and returns its path.
pub fn write(folder: &Path, view: &View) -> Result<PathBuf, HtmlError> {
    let page = render(view)?;
    let path = folder.join(FILE);
    write_atomically(&path, |file| file.write_all(page.as_bytes()))
        .map_err(|source| HtmlError::Write { path: path.display().to_string(), source })?;
    Ok(path)
}

impl Standing {
    /// The mark before a name. A scheme that fails as required is neither green nor red.
    fn symbol(self) -> &'static str {
        match self {
            Self::Pass => "✓",
            Self::Red => "✗",
            Self::Expected => "✗ (expected)",
            Self::Unjudged => "•",
        }
    }

    /// The mark, if there is room for one character only.
    fn sign(self) -> char {
        match self {
            Self::Pass => '✓',
            Self::Red => '✗',
            Self::Expected => '×',
            Self::Unjudged => '•',
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Pass => "good",
            Self::Red => "bad",
            Self::Expected | Self::Unjudged => "neutral",
        }
    }
}

#[derive(Template)]
#[template(path = "report.html")]
struct Page {
    standing: Standing,
    sentence: String,
    /// What to do about what is red.
    steps: Vec<Step>,
    /// What to serve of each model that was judged.
    advice: Vec<(String, String)>,
    facts: Vec<String>,
    findings: Vec<ShownFinding>,
    /// The table of schemes with what decides.
    deciding: Schemes,
    /// The table with everything.
    all: Schemes,
    by_category: Schemes,
    /// Whether a limit by category is what makes a scheme red.
    is_red_by_category: bool,
    remarks: Vec<String>,
    ignored: Option<String>,
    messages: Vec<Message>,
    /// What stands in `results.json` only.
    left_out: Vec<String>,
    models: Vec<ModelSection>,
    accept: Option<String>,
    run: Option<String>,
    words: Vec<Word>,
    provenance: Vec<(&'static str, String)>,
    json: Json,
}

struct ShownFinding {
    is_red: bool,
    name: String,
    place: Option<String>,
    message: String,
}

/// A table of numbers, whose first column has names.
#[derive(Default)]
struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new<const N: usize>(head: [&str; N], rows: impl Iterator<Item = Vec<String>>) -> Self {
        Self { head: head.map(String::from).into(), rows: rows.collect() }
    }
}

/// A table of schemes.
struct Schemes {
    /// The columns of verdicts.
    verdicts: &'static [&'static str],
    /// The columns of numbers.
    numbers: Vec<&'static str>,
    lines: Vec<Line>,
}

/// A row of a table of schemes.
struct Line {
    standing: Standing,
    model: String,
    label: String,
    effective: String,
    /// Each number with the name of its column, which a narrow screen shows beside it.
    numbers: Vec<(&'static str, String)>,
    /// The words of each column of verdicts, with their CSS class. None where nothing was judged.
    verdicts: Vec<(&'static str, String)>,
}

struct Message {
    title: String,
    label: &'static str,
    text: String,
}

/// A plot, and its numbers as a table.
struct Figure {
    title: String,
    caption: String,
    /// What stands between `<svg>` and `</svg>`, with its texts escaped.
    drawing: String,
    numbers: Table,
}

struct ModelSection {
    name: String,
    frontier: Option<Figure>,
    positions: Option<Figure>,
    tails: Vec<Figure>,
    tail_numbers: Table,
    worst: Vec<OfScheme<ShownToken>>,
    partings: Vec<OfScheme<TextPair>>,
    needles: Option<Needles>,
    how: String,
    commands: Vec<String>,
    controls: Vec<(bool, String)>,
    notes: Vec<String>,
    provenance: Vec<(&'static str, String)>,
}

/// What schemes retrieve from long contexts.
struct Needles {
    title: String,
    table: Table,
    remarks: Vec<String>,
}

impl Needles {
    fn new(rows: &[Row], m: &Measurement) -> Option<Self> {
        let named = |row: Vec<String>| row.iter().map(|cell| text::name(cell)).collect::<Vec<_>>();
        let rows = needles::rows(rows, Depths::All).into_iter().take(ROWS).map(named);
        Some(Needles {
            title: needles::title(m)?,
            table: Table::new(needles::COLUMNS, rows),
            remarks: needles::remarks(m),
        })
    }
}

struct Json {
    text: String,
    remark: Option<&'static str>,
}

impl Page {
    fn new(view: &View) -> Result<Self, HtmlError> {
        let (results, links) = (view.results, view.links);
        let shown = view.failing.iter().chain(&view.passing).copied();
        let shown: Vec<Row> = shown.take(ROWS).collect();
        let messages = view.red_cases.iter().filter(|case| !case.message.is_empty());
        let models = results.measurements.iter().take(MODELS);
        let link = |url: &&String| url.starts_with("https://") || url.starts_with("http://");
        Ok(Self {
            standing: view.standing,
            sentence: view.sentence(),
            steps: todo::steps(view, &text::name),
            advice: advice(view),
            facts: facts(view),
            findings: results.findings.iter().take(MESSAGES).map(ShownFinding::new).collect(),
            remarks: shown.iter().flat_map(Row::remarks).map(|r| text::message(&r)).collect(),
            deciding: Schemes::new(&shown, Columns::Deciding),
            all: Schemes::new(&shown, Columns::All),
            by_category: Schemes::by_category(&shown),
            is_red_by_category: view.is_red_by_category(),
            ignored: view.ignored(&text::name),
            messages: messages.take(MESSAGES).map(|case| Message::new(case)).collect(),
            left_out: all_left_out(view),
            models: models
                .map(|m| ModelSection::new(view.rows(&m.model), m))
                .collect::<Result<_, _>>()?,
            accept: links.accept.as_deref().map(text::message),
            run: links.run.as_ref().filter(link).cloned(),
            words: glossary::words(view),
            provenance: provenance(results),
            json: Json::new(results)?,
        })
    }
}

/// What stands in `results.json` only, because the page has no room for it.
fn all_left_out(view: &View) -> Vec<String> {
    let rows = view.failing.len() + view.passing.len();
    let all = [
        left_out(view.results.findings.len(), MESSAGES, "finding"),
        left_out(rows, ROWS, "scheme"),
        left_out(view.red_cases.len(), MESSAGES, "red case"),
        left_out(view.results.measurements.len(), MODELS, "model"),
    ];
    all.into_iter().flatten().collect()
}

fn left_out(all: usize, most: usize, what: &str) -> Option<String> {
    let more = all.checked_sub(most).filter(|more| *more > 0)?;
    Some(format!("{} more than are shown", count(more, what)))
}

fn facts(view: &View) -> Vec<String> {
    let results = view.results;
    let mut facts: Vec<_> =
        view.measured_by(&text::name).into_iter().chain(view.confidence()).collect();
    let base = view.links.base.as_deref().map(text::name);
    facts.extend(base.map(|base| format!("changes are against the goldens at {base}")));
    if !results.not_needed.is_empty() {
        let names: Vec<_> = results.not_needed.iter().take(MODELS).map(|n| text::name(n)).collect();
        facts.push(format!("not needed: {}", names.join(", ")));
    }
    facts
}

/// What to serve of each model that was judged.
fn advice(view: &View) -> Vec<(String, String)> {
    let advised = view.models.iter().filter_map(|model| Some((model.name, model.advice.as_ref()?)));
    let words = |(model, advice): (&str, &Advice)| (text::name(model), advice.words(&text::name));
    advised.take(MODELS).map(words).collect()
}

impl Schemes {
    fn new(rows: &[Row], columns: Columns) -> Self {
        let (names, cells) = numbers(rows, columns);
        let is_judged = rows.iter().any(|row| row.cases.iter().any(Option::is_some));
        let verdicts: &[&str] = match columns {
            _ if !is_judged => &[],
            Columns::Deciding => &["verdict"],
            Columns::All => &["limits", "golden"],
        };
        let line = |(row, numbers): (&Row, Vec<String>)| Line {
            standing: Standing::of_row(row),
            model: text::name(row.model),
            label: text::name(row.label),
            effective: row
                .renamed()
                .filter(|_| columns == Columns::All)
                .map(text::name)
                .unwrap_or_default(),
            numbers: names.iter().copied().zip(numbers).collect(),
            verdicts: match columns {
                _ if !is_judged => Vec::new(),
                Columns::Deciding => vec![whole_verdict(row)],
                Columns::All => row.cases.map(verdict).into(),
            },
        };
        let lines = rows.iter().zip(cells).map(line).collect();
        Schemes { verdicts, numbers: names, lines }
    }

    /// What each scheme does to each category of text. A limit that is not kept stands as the scheme's case does: it may
    /// be broken as required.
    fn by_category(rows: &[Row]) -> Self {
        let of_row = |row: &Row| -> Vec<Line> {
            let of_case = row.cases[0].map_or(Standing::Unjudged, Standing::of_case);
            let lines = categories::lines(row, &text::name).into_iter();
            let lines = lines.map(|line| {
                let (standing, words) = match line.limits {
                    Some((Decision::Kept, words)) => (Standing::Pass, words),
                    Some((_, words)) => (of_case, words),
                    None => (Standing::Unjudged, String::new()),
                };
                Line {
                    standing,
                    model: text::name(line.model),
                    label: text::name(line.label),
                    effective: String::new(),
                    numbers: categories::HEAD.into_iter().zip(line.numbers).collect(),
                    verdicts: vec![("", text::name(&line.category)), (standing.class(), words)],
                }
            });
            lines.collect()
        };
        let [numbers @ .., _] = categories::HEAD;
        let lines = rows.iter().flat_map(of_row).take(CATEGORIES).collect();
        Schemes { verdicts: &["category", "limits"], numbers: numbers.into(), lines }
    }

    /// Whether the table says of some scheme what ran, because that is written in another way than its label.
    fn is_renamed(&self) -> bool {
        self.lines.iter().any(|line| !line.effective.is_empty())
    }
}

fn verdict(case: Option<&CaseResult>) -> (&'static str, String) {
    case.map_or(("", String::new()), |case| (Standing::of_case(case).class(), verdict_words(case)))
}

/// Both verdicts of a row in one cell.
fn whole_verdict(row: &Row) -> (&'static str, String) {
    let words: Vec<_> = row.telling().into_iter().map(verdict_words).collect();
    let half = row.half().map(|half| format!(" ({half})")).unwrap_or_default();
    (Standing::of_row(row).class(), words.join(", ") + &half)
}

impl ShownFinding {
    fn new(finding: &Finding) -> Self {
        Self {
            is_red: finding.is_red,
            name: text::name(&finding.name),
            place: finding.place.as_deref().map(text::name),
            message: text::message(&finding.message),
        }
    }
}

impl Message {
    fn new(case: &CaseResult) -> Self {
        let label = case.verdict.label();
        Self { title: text::name(&case.case), label, text: text::message(&case.message) }
    }
}

impl ModelSection {
    fn new(rows: &[Row], m: &Measurement) -> Result<Self, HtmlError> {
        let mut rows = rows.to_vec();
        rows.sort_by_key(|row| !row.is_red());
        let (how, commands) = reproduction(m);
        Ok(Self {
            name: text::name(&m.model),
            frontier: figures::frontier(&rows)?,
            positions: figures::positions(&rows)?,
            tails: figures::tails(&rows)?,
            tail_numbers: figures::tail_numbers(&rows),
            worst: words::worst(&rows, SCHEMES),
            partings: words::partings(&rows, m.generated.as_ref(), SCHEMES),
            needles: Needles::new(&rows, m),
            how,
            commands,
            controls: phrase::controls(m).into_iter().take(MESSAGES).map(control).collect(),
            notes: m.run.notes.iter().take(MESSAGES).map(|note| text::message(note)).collect(),
            provenance: conditions(m),
        })
    }
}

fn control((control, reading): (&Control, String)) -> (bool, String) {
    let Control { name, effective, must, .. } = control;
    let line = format!("{name} ({effective}): mean KLD {reading}, must be {must}");
    (control.ok, text::message(&line))
}

/// How to measure a model again. Results name files by their hashes, so the reader has to fill in the paths.
fn reproduction(m: &Measurement) -> (String, Vec<String>) {
    if MeasuredBy::of(&m.conditions.engine) != MeasuredBy::Kvgate {
        let engine = text::name(&m.conditions.engine);
        return (
            format!("Measured by {engine}; its logs are judged again with:"),
            vec!["kvgate judge LOG…".into()],
        );
    }
    let files = m.conditions.corpus.iter().take(MESSAGES);
    let corpus: Vec<String> = files.map(|file| format!("{}.txt", file.category)).collect();
    // `kvgate measure` does not know the names that a policy gives to schemes, and the scheme that ran may be written
    // as a list of layers, which it cannot read
    let scheme = |s: &SchemeResult| {
        [&s.scheme, &s.effective].into_iter().find(|name| name.parse::<Scheme>().is_ok()).cloned()
    };
    let schemes: Vec<String> = m.schemes.iter().filter_map(scheme).take(SCHEMES).collect();
    let baseline = &m.conditions.baseline;
    let is_f16 = baseline.parse().is_ok_and(|baseline: Scheme| baseline == Scheme::f16());
    let again = Measure {
        source: "MODEL",
        corpus: &corpus,
        calibration: None,
        schemes: &schemes.join(","),
        context: m.conditions.context,
        chunks: m.conditions.chunks,
        baseline: (!is_f16).then_some(baseline.as_str()),
        options: &options(&m.conditions.reading),
    };
    let mut how = "In the policy's folder, at the commit below.".to_owned();
    let mut commands = vec![command::run(&format!("{}::", m.model))];
    if !schemes.is_empty() {
        how += " Or the schemes that need no policy, without it; MODEL and the corpus are the files whose \
                hashes are below.";
        commands.push(again.to_string());
    }
    (how, commands.iter().map(|command| text::message(command)).collect())
}

/// The options with which `kvgate measure` reads the checkpoint as this run did.
fn options(reading: &[String]) -> Vec<String> {
    let words = reading.iter().flat_map(|line| {
        if let Some(key) = line.strip_prefix(IGNORED_KEY) {
            vec!["--ignore-key".into(), key.to_owned()]
        } else if let Some(token) = line.strip_prefix(BOS) {
            vec!["--bos".into(), (token != "none").to_string()]
        } else if line == UNTRAINED {
            vec!["--untrained".into()]
        } else {
            Vec::new()
        }
    });
    words.collect()
}

/// Where the whole run is from.
fn provenance(results: &Results) -> Vec<(&'static str, String)> {
    let mut facts = vec![("engine", results.engine.clone())];
    facts.extend(results.head.clone().map(|head| ("commit", head)));
    if let Some(policy) = &results.policy {
        facts.push(("policy", format!("{} {}", policy.path, policy.sha256)));
    }
    bounded(facts)
}

/// What was measured of one model, and how.
fn conditions(m: &Measurement) -> Vec<(&'static str, String)> {
    let (subject, conditions, run) = (&m.subject, &m.conditions, &m.run);
    let mut facts = vec![
        ("architecture", subject.architecture.clone()),
        ("weights", subject.weights_sha256.clone()),
    ];
    facts.extend(subject.tokenizer_sha256.clone().map(|sha| ("tokenizer", sha)));
    let corpus = conditions.corpus.iter().take(MESSAGES);
    facts.extend(corpus.map(|file| ("corpus", format!("{} {}", file.category, file.sha256))));
    let tokens = format!("{} chunks of {} tokens", conditions.chunks, conditions.context);
    let baseline = format!("{}, perplexity {:.3}", conditions.baseline, run.baseline_ppl);
    facts.extend([("text", tokens), ("baseline", baseline)]);
    facts.extend(m.floor.iter().map(|floor| ("floor", phrase::floor(floor))));
    facts.extend(conditions.reading.iter().map(|line| ("reading", line.clone())));
    facts.extend(conditions.prompts.clone().map(|prompts| ("prompts", prompts)));
    facts.extend(conditions.needs.iter().take(MESSAGES).map(|need| ("needs", need.clone())));
    facts.extend([
        ("engine", conditions.engine.clone()),
        ("device", format!("{} ({})", run.device, conditions.device)),
        ("arithmetic", arithmetic(m)),
        ("took", format!("{:.1} s, {} at most", run.seconds, bytes(run.peak_bytes as f64))),
    ]);
    facts.extend(memory_of_card(run).map(|taken| ("card memory", format!("{taken} at most"))));
    bounded(facts)
}

fn bounded(facts: Vec<(&'static str, String)>) -> Vec<(&'static str, String)> {
    facts.into_iter().map(|(name, fact)| (name, text::name(&fact))).collect()
}

impl Json {
    /// Results that are too large for the page go without the sums of each chunk, or are left out.
    fn new(results: &Results) -> Result<Self, HtmlError> {
        let mut value = serde_json::to_value(results)?;
        let whole = serde_json::to_string_pretty(&value)?;
        if whole.len() <= JSON {
            return Ok(Self { text: text::json(&whole).into_owned(), remark: None });
        }
        without_parts(&mut value);
        let short = serde_json::to_string_pretty(&value)?;
        if short.len() <= JSON {
            let remark = Some("Without the sums of each chunk (parts), which results.json has.");
            return Ok(Self { text: text::json(&short).into_owned(), remark });
        }
        let remark = Some("Too large for a page: it is in results.json.");
        Ok(Self { text: String::new(), remark })
    }
}

fn without_parts(results: &mut Value) {
    let list = |value: &mut Value, key: &str| -> Vec<Value> {
        value.get_mut(key).and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default()
    };
    let mut measurements = list(results, "measurements");
    for measurement in &mut measurements {
        for scheme in measurement["schemes"].as_array_mut().into_iter().flatten() {
            scheme.as_object_mut().and_then(|scheme| scheme.remove("parts"));
        }
    }
    results["measurements"] = measurements.into();
}

/// A value in three significant digits.
fn number(value: f64) -> String {
    significant(value, 3)
}

/// A share, in percent.
fn share(value: f64) -> String {
    match value * 100.0 {
        percent if percent != 0.0 && percent.abs() < 0.001 => format!("{percent:.1e} %"),
        percent if percent != 0.0 && percent.abs() < 0.1 => format!("{percent:.3} %"),
        percent => format!("{percent:.1} %"),
    }
}

#[cfg(test)]
mod tests;
