//! The report as a page: one file without scripts, fonts or anything else from elsewhere.
//!
//! Results may be a stranger's: every text is bounded, and escaped by the template.

mod figures;
mod plot;
mod words;

use super::row::{any_held, numbers, ranked, red_cases, rows, verdict_words, Row};
use super::terminal::{arithmetic, memory};
use super::Report;
use crate::files::write_atomically;
use crate::kv::Scheme;
use crate::results::measured_by::MeasuredBy;
use crate::results::verdict::{JudgedLimit, Verdict};
use crate::results::{CaseResult, Control, Measurement, SchemeResult};
use crate::source::{BOS, IGNORED_KEY, UNTRAINED};
use crate::text;
use crate::text::command::{run_command, Measure};
use askama::Template;
use figures::SCHEMES;
use serde_json::Value;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use words::{OfScheme, Parting, Token};

/// The file's name.
pub const FILE: &str = super::PAGE;

/// Rows of the table at most.
const ROWS: usize = 300;
/// Models that are shown at length.
const MODELS: usize = 30;
/// Messages and findings that are shown.
const MESSAGES: usize = 50;
/// Bytes of JSON in the page at most.
const JSON: usize = 2_000_000;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum HtmlError {
    /// The template.
    #[error("the page could not be made: {0}")]
    Page(#[from] askama::Error),
    /// A figure.
    #[error("a figure could not be drawn: {0}")]
    Plot(String),
    /// The results as JSON.
    #[error("the results could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The file.
    #[error("{path}: {source}; is the folder writable, and the disk not full?")]
    Write {
        /// The file.
        path: String,
        /// The reason.
        source: io::Error,
    },
}

/// The page.
///
/// # Errors
/// Something that could not be made; hostile results are no reason.
pub fn render(report: &Report) -> Result<String, HtmlError> {
    Ok(Page::of(report)?.render()?)
}

/// Writes the page into the folder and returns its path.
///
/// # Errors
/// As of [`render`], and a file that cannot be written.
pub fn write(folder: &Path, report: &Report) -> Result<PathBuf, HtmlError> {
    let page = render(report)?;
    let path = folder.join(FILE);
    write_atomically(&path, |file| file.write_all(page.as_bytes()))
        .map_err(|source| HtmlError::Write { path: path.display().to_string(), source })?;
    Ok(path)
}

/// What the policy makes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Pass,
    Red,
    Expected,
    Unjudged,
}

impl Standing {
    fn of(row: &Row) -> Self {
        let verdicts = || row.cases.iter().flatten().map(|case| Self::of_case(case));
        [Self::Red, Self::Expected, Self::Pass]
            .into_iter()
            .find(|one| verdicts().any(|verdict| verdict == *one))
            .unwrap_or(Self::Unjudged)
    }

    fn of_case(case: &CaseResult) -> Self {
        match case.verdict {
            Verdict::Pass => Self::Pass,
            Verdict::FailsAsRequired => Self::Expected,
            verdict if verdict.is_red() => Self::Red,
            _ => Self::Unjudged,
        }
    }

    /// The mark before a name: a scheme that fails as required is never green, nor red.
    fn symbol(self) -> &'static str {
        match self {
            Self::Pass => "✓",
            Self::Red => "✗",
            Self::Expected => "✗ (expected)",
            Self::Unjudged => "•",
        }
    }

    /// The same where there is little room.
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
    facts: Vec<String>,
    findings: Vec<Found>,
    head: Vec<String>,
    lines: Vec<Line>,
    remarks: Vec<String>,
    messages: Vec<Message>,
    /// What stands in `results.json` only.
    left_out: Vec<String>,
    models: Vec<Model>,
    accept: Option<String>,
    run: Option<String>,
    provenance: Vec<(&'static str, String)>,
    json: Json,
}

struct Found {
    is_red: bool,
    name: String,
    place: Option<String>,
    message: String,
}

/// A table of numbers; its first column is of names.
#[derive(Default)]
struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn of<const N: usize>(head: [&str; N], rows: impl Iterator<Item = Vec<String>>) -> Self {
        Self { head: head.map(String::from).into(), rows: rows.collect() }
    }
}

/// A row of the great table.
struct Line {
    standing: Standing,
    model: String,
    label: String,
    effective: String,
    numbers: Vec<String>,
    /// Of limits and golden, each with its class; none where nothing was judged.
    verdicts: Vec<(&'static str, String)>,
}

struct Message {
    title: String,
    label: &'static str,
    text: String,
}

/// A plot with its numbers.
struct Figure {
    title: String,
    caption: String,
    /// What is between `<svg>` and `</svg>`, escaped.
    drawing: String,
    numbers: Table,
}

struct Model {
    name: String,
    frontier: Option<Figure>,
    positions: Option<Figure>,
    tails: Vec<Figure>,
    tail_numbers: Table,
    worst: Vec<OfScheme<Token>>,
    partings: Vec<OfScheme<Parting>>,
    how: String,
    commands: Vec<String>,
    controls: Vec<(bool, String)>,
    notes: Vec<String>,
    provenance: Vec<(&'static str, String)>,
}

struct Json {
    text: String,
    remark: Option<&'static str>,
}

impl Page {
    fn of(report: &Report) -> Result<Self, HtmlError> {
        let results = &report.results;
        let links = &report.links;
        let (failing, passing) = ranked(results);
        let (rows, red) = (failing.len() + passing.len(), red_cases(results));
        let shown: Vec<Row> = failing.into_iter().chain(passing).take(ROWS).collect();
        let (head, lines) = lines(&shown);
        let found = report.results.findings.iter().take(MESSAGES).map(|finding| Found {
            is_red: finding.is_red,
            name: text::name(&finding.name),
            place: finding.place.as_deref().map(text::name),
            message: text::message(&finding.message),
        });
        let messages = red.iter().filter(|case| !case.message.is_empty()).take(MESSAGES);
        let measurements = &results.measurements;
        let models = measurements.iter().take(MODELS).map(|m| Model::of(report, m));
        let link = |url: &&String| url.starts_with("https://") || url.starts_with("http://");
        Ok(Self {
            standing: standing(report),
            sentence: report.sentence(),
            facts: facts(report),
            findings: found.collect(),
            remarks: shown.iter().flat_map(Row::remarks).map(|r| text::message(&r)).collect(),
            head,
            lines,
            messages: messages.map(|case| Message::of(case)).collect(),
            left_out: [
                left_out(report.results.findings.len(), MESSAGES, "finding"),
                left_out(rows, ROWS, "scheme"),
                left_out(red.len(), MESSAGES, "red case"),
                left_out(measurements.len(), MODELS, "model"),
            ]
            .into_iter()
            .flatten()
            .collect(),
            models: models.collect::<Result<_, _>>()?,
            accept: links.accept.as_deref().map(text::message),
            run: links.run.as_ref().filter(link).cloned(),
            provenance: provenance(report),
            json: Json::of(report)?,
        })
    }
}

/// Of the whole report. Skipped, reported or not judged at all is never a pass.
fn standing(report: &Report) -> Standing {
    match (report.exit_code(), any_held(&report.results)) {
        (0, true) => Standing::Pass,
        (0, false) => Standing::Unjudged,
        _ => Standing::Red,
    }
}

fn left_out(all: usize, most: usize, what: &str) -> Option<String> {
    let more = all.checked_sub(most).filter(|more| *more > 0)?;
    Some(format!("{} more than are shown", text::count(more, what)))
}

fn facts(report: &Report) -> Vec<String> {
    let results = &report.results;
    let mut facts: Vec<_> = report.measured_by(&text::name).into_iter().collect();
    let base = report.links.base.as_deref().map(text::name);
    facts.extend(base.map(|base| format!("changes are against the goldens at {base}")));
    if !results.not_needed.is_empty() {
        let names: Vec<_> = results.not_needed.iter().take(MODELS).map(|n| text::name(n)).collect();
        facts.push(format!("not needed: {}", names.join(", ")));
    }
    facts
}

/// The head and the rows of the great table.
fn lines(rows: &[Row]) -> (Vec<String>, Vec<Line>) {
    let (names, cells) = numbers(rows);
    let judged = rows.iter().any(|row| row.cases.iter().any(Option::is_some));
    let mut head: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    if judged {
        head.splice(0..0, ["limits", "golden"].map(String::from));
        head.extend(["PPL ratio", "worst × limit"].map(String::from));
    }
    head.push("what ran".into());
    let line = |(row, mut numbers): (&Row, Vec<String>)| {
        if judged {
            let ratio = row.statistics().map_or("–".into(), |s| format!("{:.4}", s.ppl_ratio));
            numbers.extend([ratio, nearest(row)]);
        }
        let verdict = |case: Option<&CaseResult>| match case {
            Some(case) => (Standing::of_case(case).class(), verdict_words(case)),
            None => ("", String::new()),
        };
        Line {
            standing: Standing::of(row),
            model: text::name(row.model),
            label: text::name(row.label),
            effective: row.renamed().map(text::name).unwrap_or_default(),
            numbers,
            verdicts: row.cases.into_iter().filter(|_| judged).map(verdict).collect(),
        }
    };
    (head, rows.iter().zip(cells).map(line).collect())
}

/// The limit that is nearest to being broken, or broken the most.
fn nearest(row: &Row) -> String {
    let limits = row.cases[0].map_or(&[][..], |case| &case.limits);
    let ratio = limits.iter().map(JudgedLimit::ratio).max_by(f64::total_cmp);
    match ratio {
        None => "–".into(),
        Some(ratio) if ratio.is_finite() => format!("{ratio:.2} ×"),
        Some(_) => "∞ ×".into(),
    }
}

impl Message {
    fn of(case: &CaseResult) -> Self {
        let label = case.verdict.label();
        Self { title: text::name(&case.case), label, text: text::message(&case.message) }
    }
}

impl Model {
    fn of(report: &Report, m: &Measurement) -> Result<Self, HtmlError> {
        let mut rows = rows(&report.results, &m.model);
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
            how,
            commands,
            controls: m.controls.iter().take(MESSAGES).map(control).collect(),
            notes: m.run.notes.iter().take(MESSAGES).map(|note| text::message(note)).collect(),
            provenance: conditions(m),
        })
    }
}

fn control(control: &Control) -> (bool, String) {
    let Control { name, effective, must, .. } = control;
    let line = format!("{name} ({effective}): mean KLD {}, must be {must}", control.reading());
    (control.ok, text::message(&line))
}

/// How to measure it again. Paths are the reader's: results name files by what is in them.
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
    // a name of the policy says nothing without it, nor does what it stands for in all layers
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
    let mut commands = vec![run_command(&format!("{}::", m.model))];
    if !schemes.is_empty() {
        how += " Or the schemes that need no policy, without it; MODEL and the corpus are the files whose \
                hashes are below.";
        commands.push(again.to_string());
    }
    (how, commands.iter().map(|command| text::message(command)).collect())
}

/// The options of `kvgate measure` that a measurement's `reading` tells of.
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

/// Of the whole run.
fn provenance(report: &Report) -> Vec<(&'static str, String)> {
    let results = &report.results;
    let mut facts = vec![("engine", results.engine.clone())];
    facts.extend(results.head.clone().map(|head| ("commit", head)));
    if let Some(policy) = &results.policy {
        facts.push(("policy", format!("{} {}", policy.path, policy.sha256)));
    }
    bounded(facts)
}

/// Of one model.
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
    facts.extend(conditions.reading.iter().map(|line| ("reading", line.clone())));
    facts.extend(conditions.prompts.clone().map(|prompts| ("prompts", prompts)));
    facts.extend(conditions.needs.iter().take(MESSAGES).map(|need| ("needs", need.clone())));
    facts.extend([
        ("engine", conditions.engine.clone()),
        ("device", format!("{} ({})", run.device, conditions.device)),
        ("arithmetic", arithmetic(m)),
        ("took", format!("{:.1} s, {} at most", run.seconds, memory(run.peak_bytes))),
    ]);
    bounded(facts)
}

fn bounded(facts: Vec<(&'static str, String)>) -> Vec<(&'static str, String)> {
    facts.into_iter().map(|(name, fact)| (name, text::name(&fact))).collect()
}

impl Json {
    /// What is larger than a page can be goes without its parts, or is left out.
    fn of(report: &Report) -> Result<Self, HtmlError> {
        let mut value = serde_json::to_value(&report.results)?;
        let whole = serde_json::to_string_pretty(&value)?;
        if whole.len() <= JSON {
            return Ok(Self { text: text::json(&whole).into_owned(), remark: None });
        }
        without_parts(&mut value);
        let short = serde_json::to_string_pretty(&value)?;
        Ok(match short.len() <= JSON {
            true => Self {
                text: text::json(&short).into_owned(),
                remark: Some("Without the sums of each chunk (parts), which results.json has."),
            },
            false => Self {
                text: String::new(),
                remark: Some("Too large for a page: it is in results.json."),
            },
        })
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

/// A number in three digits.
fn number(value: f64) -> String {
    match value.abs() {
        _ if value == 0.0 => "0".into(),
        size if (0.001..1e5).contains(&size) => {
            let decimals = (2.0 - size.log10().floor()).clamp(0.0, 5.0);
            format!("{value:.*}", decimals as usize)
        }
        _ => format!("{value:.2e}"),
    }
}

/// A share of one, in percent.
fn share(value: f64) -> String {
    match value * 100.0 {
        percent if percent != 0.0 && percent.abs() < 0.001 => format!("{percent:.1e} %"),
        percent if percent != 0.0 && percent.abs() < 0.1 => format!("{percent:.3} %"),
        percent => format!("{percent:.1} %"),
    }
}

#[cfg(test)]
mod tests;
