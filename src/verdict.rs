//! Limits × expectation → verdict: pure functions of statistics and policy.
//!
//! What cannot be trusted is an error whatever the policy expects: a gate that fails open is none.

use crate::kv::Scheme;
use crate::measure::stats::{Direction, Statistic, Statistics};
use crate::policy::{CaseKind, Cell, Expectation, Limit, ModelPolicy};
use crate::results::Outcome;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// What a case came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All limits hold, or the golden matches.
    Pass,
    /// `expect = "fail"` and a limit is broken: as required, and never a recommendation.
    FailsAsRequired,
    /// `expect = "report"`: measured and shown.
    Reported,
    /// A limit is broken.
    Regressed,
    /// `expect = "fail"`, yet every limit holds.
    UnexpectedPass,
    /// The values left the golden's tolerance, or there is no golden yet.
    GoldenChanged,
    /// The golden was made under other conditions: measure and accept again.
    Stale,
    /// Not decided by the positions measured.
    Inconclusive,
    /// Listed and not run.
    Ignored,
    /// Could not be measured, or the measurement cannot be trusted.
    Error,
}

impl Verdict {
    /// The mark in tables. Only a pass has a check mark.
    pub fn symbol(self) -> &'static str {
        match self {
            Verdict::Pass => "✓",
            Verdict::FailsAsRequired => "✗ (expected)",
            Verdict::Reported => "•",
            Verdict::Regressed | Verdict::UnexpectedPass => "✗",
            Verdict::GoldenChanged => "≠",
            Verdict::Stale => "↻",
            Verdict::Inconclusive => "?",
            Verdict::Ignored => "–",
            Verdict::Error => "!",
        }
    }

    /// The verdict in words.
    pub fn label(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::FailsAsRequired => "fails as required",
            Verdict::Reported => "reported",
            Verdict::Regressed => "regressed",
            Verdict::UnexpectedPass => "unexpected pass",
            Verdict::GoldenChanged => "golden changed",
            Verdict::Stale => "stale",
            Verdict::Inconclusive => "inconclusive",
            Verdict::Ignored => "ignored",
            Verdict::Error => "error",
        }
    }

    /// Whether the gate must not be green with it.
    pub fn is_red(self) -> bool {
        match self {
            Verdict::Pass | Verdict::FailsAsRequired | Verdict::Reported | Verdict::Ignored => {
                false
            }
            Verdict::Regressed
            | Verdict::UnexpectedPass
            | Verdict::GoldenChanged
            | Verdict::Stale
            | Verdict::Inconclusive
            | Verdict::Error => true,
        }
    }
}

/// The exit code of a run with these verdicts: 0 all as the policy wants, 1 something is not as it
/// should be, 4 something could not be measured. 1 outranks 4: a retry must not hide a regression.
pub fn exit_code(verdicts: impl IntoIterator<Item = Verdict>) -> u8 {
    verdicts.into_iter().filter(|verdict| verdict.is_red()).fold(0, |code, verdict| {
        match (code, verdict) {
            (1, _) => 1,
            (_, Verdict::Error) => 4,
            _ => 1,
        }
    })
}

/// The accepted values of a case.
pub type GoldenValues = BTreeMap<Statistic, f64>;

/// What judging a cell's limits gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// What the `kld` case came to.
    pub verdict: Verdict,
    /// The limits that were judged. Empty where nothing is.
    pub limits: Vec<JudgedLimit>,
    /// What people read; empty for a plain pass.
    pub message: String,
}

impl Judgement {
    /// The limits that do not hold.
    pub fn broken(&self) -> impl Iterator<Item = &JudgedLimit> {
        self.limits.iter().filter(|limit| !limit.holds)
    }
}

/// A limit, and what a measurement makes of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JudgedLimit {
    /// What is bounded.
    pub statistic: Statistic,
    /// What was measured.
    pub value: f64,
    /// The last good value.
    pub bound: f64,
    /// Where the limit was written: `thresholds.toml:12`.
    pub origin: String,
    /// Whether it holds.
    pub holds: bool,
    /// Whether the value is within two standard errors of it.
    pub borderline: bool,
}

impl JudgedLimit {
    fn of(limit: &Limit, statistics: &Statistics) -> Self {
        let Limit { statistic, bound, ref origin } = *limit;
        let value = statistics.get(statistic);
        JudgedLimit {
            statistic,
            value,
            bound,
            origin: origin.clone(),
            holds: holds(statistic, value, bound),
            borderline: is_borderline(statistics, limit),
        }
    }

    /// Harm over allowed harm: above 1 where the limit is broken. Of a share that must be large, its
    /// complement is the harm: agreement 0.70 where 0.85 is asked for has ratio 2. Infinite where no
    /// harm is allowed and some is there.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        let (harm, allowed) = match self.statistic.direction() {
            Direction::AtMost => (self.value, self.bound),
            Direction::AtLeast => (1.0 - self.value, 1.0 - self.bound),
        };
        match harm <= 0.0 {
            true => 0.0,
            false => harm / allowed,
        }
    }
}

/// Judges a cell by its limits.
///
/// `distrust` is why its measurement cannot be trusted (see [`crate::trust`]), `golden` its accepted
/// values, which only the message looks at.
pub fn judge(
    model: &ModelPolicy,
    cell: &Cell,
    outcome: &Outcome,
    distrust: Option<&str>,
    golden: Option<&GoldenValues>,
) -> Judgement {
    let statistics = match trusted(cell, outcome, distrust) {
        Ok(statistics) => statistics,
        Err(reason) => {
            let message = format!(
                "{}: {reason}\n{}",
                model.case(cell, CaseKind::Kld),
                next_commands(model, cell)
            );
            return Judgement { verdict: Verdict::Error, limits: Vec::new(), message };
        }
    };
    let judged: &[Limit] = match cell.expect {
        Expectation::Report => &[],
        Expectation::Pass | Expectation::Fail => &cell.limits,
    };
    let limits: Vec<_> = judged.iter().map(|limit| JudgedLimit::of(limit, statistics)).collect();
    let broken: Vec<_> = limits.iter().filter(|limit| !limit.holds).collect();
    let borderline = limits.iter().any(|limit| limit.borderline);
    // a limit on the baseline is about the model: a ruined one fails no scheme as required
    let ruined = broken.iter().any(|limit| limit.statistic == Statistic::BaselinePpl);
    let verdict = match (cell.expect, broken.is_empty()) {
        (Expectation::Pass, true) => Verdict::Pass,
        (Expectation::Pass, false) => Verdict::Regressed,
        (Expectation::Fail, true) => Verdict::UnexpectedPass,
        (Expectation::Fail, false) if ruined => Verdict::Regressed,
        (Expectation::Fail, false) => Verdict::FailsAsRequired,
        (Expectation::Report, _) => Verdict::Reported,
    };
    let message = match (verdict, borderline) {
        (Verdict::Pass, false) => String::new(),
        _ => Message { model, cell, statistics, limits: &limits, verdict, golden }.to_string(),
    };
    Judgement { verdict, limits, message }
}

/// The numbers, or why there are none to judge.
fn trusted<'o>(
    cell: &Cell,
    outcome: &'o Outcome,
    distrust: Option<&str>,
) -> Result<&'o Statistics, String> {
    let statistics = match outcome {
        Outcome::Failed { error } => return Err(format!("could not be measured: {error}")),
        Outcome::Measured { statistics, .. } => statistics,
    };
    if let Some(reason) = distrust {
        return Err(format!("the measurement cannot be trusted: {reason}"));
    }
    if statistics.tokens_scored == 0 {
        return Err("no token was scored".into());
    }
    for statistic in Statistic::ALL {
        let (value, error) = (statistics.get(statistic), statistics.standard_error(statistic));
        if !value.is_finite() || !error.unwrap_or(0.0).is_finite() {
            let error = error.map(|error| format!(" ± {error}")).unwrap_or_default();
            return Err(format!("{} is {value}{error}, which is no number", statistic.name()));
        }
    }
    if let Some(limit) = cell.limits.iter().find(|limit| !limit.bound.is_finite()) {
        let name = limit.statistic.name();
        return Err(format!("the limit {name} = {} ({}) is no bound", limit.bound, limit.origin));
    }
    if let Some(limit) = cell.limits.iter().find(|limit| !statistics.knows(limit.statistic)) {
        let name = limit.statistic.name();
        return Err(format!(
            "the limit {name} = {} ({}) cannot be judged: what measured does not say {name}; measure with a newer \
             build, or set `{name} = false` for this scheme",
            limit.bound, limit.origin
        ));
    }
    if cell.limits.is_empty() && cell.expect != Expectation::Report {
        return Err("no limit applies: there is nothing to judge by".into());
    }
    Ok(statistics)
}

fn holds(statistic: Statistic, value: f64, bound: f64) -> bool {
    match statistic.direction() {
        Direction::AtMost => value <= bound,
        Direction::AtLeast => value >= bound,
    }
}

fn is_borderline(statistics: &Statistics, limit: &Limit) -> bool {
    let distance = (statistics.get(limit.statistic) - limit.bound).abs();
    // without a spread (an exact zero against a bound of zero) there is nothing to be unsure of
    let error = statistics.standard_error(limit.statistic).filter(|error| *error > 0.0);
    error.is_some_and(|error| distance <= 2.0 * error)
}

/// What people read under a case.
struct Message<'a> {
    model: &'a ModelPolicy,
    cell: &'a Cell,
    statistics: &'a Statistics,
    limits: &'a [JudgedLimit],
    verdict: Verdict,
    golden: Option<&'a GoldenValues>,
}

impl fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let case = self.model.case(self.cell, CaseKind::Kld);
        let broken = self.limits.iter().filter(|limit| !limit.holds).count();
        write!(f, "{case}: {}", self.verdict.label())?;
        match self.limits.len() {
            0 => writeln!(f)?,
            limits => writeln!(f, ", {broken} of {limits} limits broken")?,
        }
        for statistic in Statistic::ALL.into_iter().filter(|s| self.statistics.knows(*s)) {
            self.row(f, statistic)?;
        }
        writeln!(f, "  {} tokens scored", self.statistics.tokens_scored)?;
        if let Some(reason) = &self.cell.reason {
            writeln!(f, "the policy's reason: {reason}")?;
        }
        if self.verdict == Verdict::UnexpectedPass {
            let mend = "if the scheme was mended, drop the `expect`; if not, tighten a limit";
            writeln!(f, "the policy expects a broken limit: {mend}")?;
        }
        if self.verdict.is_red() && self.golden.is_none() {
            writeln!(f, "no accepted golden: whether a value has moved cannot be told")?;
        }
        f.write_str(&next_commands(self.model, self.cell))
    }
}

impl Message<'_> {
    /// A statistic, and what its limit makes of it.
    fn row(&self, f: &mut fmt::Formatter<'_>, statistic: Statistic) -> fmt::Result {
        let value = self.statistics.get(statistic);
        let error = self.statistics.standard_error(statistic);
        let error = error.map(|error| format!(" ± {}", significant(error, 2))).unwrap_or_default();
        let limit = self.limits.iter().find(|limit| limit.statistic == statistic);
        let mark = match limit.map(|limit| limit.holds) {
            Some(true) => "✓",
            Some(false) => "✗",
            None => " ",
        };
        let shown = format!("{}{error} {}", number(value), statistic.unit());
        let name = statistic.name();
        let Some(limit) = limit else {
            return writeln!(f, "{mark} {name:<15} {}", shown.trim_end());
        };
        let side = match statistic.direction() {
            Direction::AtMost => "at most",
            Direction::AtLeast => "at least",
        };
        let JudgedLimit { bound, origin, .. } = limit;
        write!(f, "{mark} {name:<15} {shown:<27} limit: {side} {bound} ({origin})")?;
        if !limit.holds {
            write!(f, ", {}", excess(limit))?;
        }
        let borderline = if limit.borderline { ", borderline" } else { "" };
        writeln!(f, "{borderline}")?;
        match self.moved(limit) {
            Some(moved) => writeln!(f, "    {moved}"),
            None => Ok(()),
        }
    }

    /// What has moved since the golden was accepted, the value or its limit.
    fn moved(&self, limit: &JudgedLimit) -> Option<String> {
        let now = limit.value;
        let then = *self.golden?.get(&limit.statistic)?;
        let held = |value| holds(limit.statistic, value, limit.bound);
        let golden = number(then);
        match (self.verdict, held(then), held(now)) {
            (Verdict::Regressed, false, false) => Some(format!(
                "the golden's {golden} breaks it, too: the limit has moved, or was never met"
            )),
            (Verdict::UnexpectedPass, true, true) => Some(format!(
                "the golden's {golden} holds, too: the limit has moved, or was never broken"
            )),
            (Verdict::Regressed, true, false) | (Verdict::UnexpectedPass, false, true) => {
                Some(format!("the value has moved: {golden} in the golden, {} now", number(now)))
            }
            _ => None,
        }
    }
}

/// By how much a limit is broken.
pub(crate) fn excess(limit: &JudgedLimit) -> String {
    let allowed = match limit.statistic.direction() {
        Direction::AtMost => "what it allows",
        Direction::AtLeast => "the misses it allows",
    };
    match limit.ratio().is_finite() {
        true => format!("{:.2} times {allowed}", limit.ratio()),
        false => "it allows none".into(),
    }
}

/// A value in five significant digits.
fn number(value: f64) -> String {
    significant(value, 5)
}

/// So many significant digits, in eight decimals at most.
fn significant(value: f64, digits: u8) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let decimals = f64::from(digits) - 1.0 - value.abs().log10().floor();
    format!("{value:.*}", decimals.clamp(0.0, 8.0) as usize)
}

/// What to run to see more of a cell.
fn next_commands(model: &ModelPolicy, cell: &Cell) -> String {
    let word = |path: &PathBuf| path.to_string_lossy().into_owned();
    let measure = Measure {
        source: &model.source.to_string(),
        corpus: &model.corpus.iter().map(word).collect::<Vec<_>>(),
        calibration: model.calibration.as_ref().filter(|_| cell.scheme.is_calibrated()).map(word),
        schemes: &cell.scheme.to_string(),
        context: model.context,
        chunks: model.chunks,
        baseline: &model.baseline.to_string(),
        options: &model.source.options(),
    };
    let run = run_command(&format!("{}::{}::", model.name, cell.label));
    format!("again:        {run}\nwithout gate: {measure}")
}

/// The command that runs the cases whose names contain a word.
pub(crate) fn run_command(filter: &str) -> String {
    format!("kvgate run '{}'", filter.replace('\'', r"'\''"))
}

/// The command that measures schemes of a model without a policy.
pub(crate) struct Measure<'a> {
    /// The model, as the command line takes it.
    pub source: &'a str,
    /// Files of text.
    pub corpus: &'a [String],
    /// What calibrated schemes need.
    pub calibration: Option<String>,
    /// With commas between.
    pub schemes: &'a str,
    /// Tokens in a chunk.
    pub context: usize,
    /// Chunks.
    pub chunks: usize,
    /// What schemes are compared with.
    pub baseline: &'a str,
    /// How the checkpoint is read, word by word.
    pub options: &'a [String],
}

impl fmt::Display for Measure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { context, chunks, .. } = self;
        write!(f, "kvgate measure {}", quoted(self.source))?;
        for file in self.corpus {
            write!(f, " --corpus {}", quoted(file))?;
        }
        if let Some(file) = &self.calibration {
            write!(f, " --calibration {}", quoted(file))?;
        }
        write!(f, " --schemes {} --context {context} --chunks {chunks}", quoted(self.schemes))?;
        for word in self.options {
            write!(f, " {}", quoted(word))?;
        }
        if self.baseline.parse::<Scheme>().is_ok_and(|baseline| baseline == Scheme::f16()) {
            return Ok(());
        }
        write!(f, " --baseline {}", quoted(self.baseline))
    }
}

/// A word that a shell takes as it is.
fn quoted(word: &str) -> String {
    if word.chars().all(|c| c.is_alphanumeric() || "/._-+,:@=".contains(c)) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests;
