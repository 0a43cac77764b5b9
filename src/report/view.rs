//! What a report shows, computed once. Renderers only decide in which form it is shown, and how much of it.

use super::advice::Advice;
use super::named::Named;
use super::phrase;
use super::row::{Cells, Row};
use super::Links;
use crate::results::statistics::Statistics;
use crate::results::verdict::{self, worst, CaseLimit, Verdict};
use crate::results::{CaseResult, Control, Finding, Measurement, Results, RunInfo};
use crate::text;
use crate::text::numbers::bytes;
use std::collections::HashMap;

/// What a report shows. Renderers take it, and [`Report::view`](super::Report::view) makes it.
pub struct View<'a> {
    pub(super) results: &'a Results,
    pub(super) links: &'a Links,
    /// 0: everything is as the policy wants. 1: something is not. 4: something could not be measured.
    pub exit_code: u8,
    /// The cases that must not be green, the worst first.
    pub red_cases: Vec<&'a CaseResult>,
    pub(super) standing: Standing,
    /// Models in the order of the measurements, and after them those that have cases only.
    pub(super) models: Vec<ModelView<'a>>,
    /// The rows with a red case, the worst first.
    pub(super) failing: Vec<Row<'a>>,
    /// All other rows in the order of `models`, but for those that are [ignored](View::ignored).
    pub(super) passing: Vec<Row<'a>>,
    /// Controls that do not read what they must, each with its model: the numbers of that model say little.
    pub(super) failed_controls: Vec<(&'a str, &'a Control)>,
    /// Whether `kvgate accept` would change anything.
    pub(super) is_acceptable: bool,
}

/// A model of a report.
pub(super) struct ModelView<'a> {
    pub name: &'a str,
    /// It is None if the model has cases only, because it could not be loaded or none of its cases was run.
    pub measurement: Option<&'a Measurement>,
    /// Schemes in the order of the measurement, and after them those that have cases only.
    pub rows: Vec<Row<'a>>,
    pub cases: Vec<&'a CaseResult>,
    /// Which scheme to serve. None if no scheme was judged.
    pub advice: Option<Advice<'a>>,
}

/// The most models and schemes that are named as ignored.
const IGNORED: usize = 12;

impl ModelView<'_> {
    /// Whether no case of the model was asked for.
    pub fn is_ignored(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(Row::is_ignored)
    }
}

/// How a row, a case or the whole run stands with the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Judged, and as the policy wants.
    Pass,
    /// Not as the policy wants.
    Red,
    /// Fails, as the policy requires.
    Expected,
    /// Skipped, reported or not judged at all, which is never a pass.
    Unjudged,
}

impl<'a> View<'a> {
    pub(super) fn new(results: &'a Results, links: &'a Links) -> Self {
        let cells = Cells::new(results);
        let red_cases = red_cases(results, &cells);
        let models = models(results, &cells);
        let rows = models.iter().flat_map(|model| model.rows.iter().copied());
        let rows = rows.filter(|row| !row.is_ignored());
        let (mut failing, passing): (Vec<_>, Vec<_>) = rows.partition(Row::is_red);
        let places = places(&red_cases);
        let place = |case: &&CaseResult| places.get(case.case.as_str()).copied();
        failing.sort_by_key(|row| row.cases.iter().flatten().filter_map(place).min());
        let exit_code = exit_code(results);
        let controls = results.measurements.iter().flat_map(|m| {
            m.controls
                .iter()
                .filter(|control| !control.ok)
                .map(|control| (m.model.as_str(), control))
        });
        let is_open =
            |case: &CaseResult| matches!(case.verdict, Verdict::Stale | Verdict::GoldenChanged);
        View {
            results,
            links,
            exit_code,
            standing: Standing::of_run(exit_code, &results.cases),
            models,
            failing,
            passing,
            failed_controls: controls.collect(),
            is_acceptable: results.cases.iter().any(is_open),
            red_cases,
        }
    }

    /// The run in one sentence: `kvgate: 2 of 18 cases red (worst: gemma-3-270m q4_0: mean_kld 2.40 × its limit)`.
    #[must_use]
    pub fn sentence(&self) -> String {
        self.sentence_with(&text::name)
    }

    /// The same sentence, with each name in the form that `named` gives it.
    pub(super) fn sentence_with(&self, named: Named) -> String {
        phrase::sentence(self.results, &self.red_cases, named)
    }

    /// How many cases were judged with a confidence, and what chance does to so many.
    pub(super) fn confidence(&self) -> Option<String> {
        phrase::confidence(self.results)
    }

    /// The engine that measured. Every report says it: a scheme in kvgate's engine is not a serving kernel.
    pub(super) fn measured_by(&self, named: Named) -> Option<String> {
        phrase::measured_by(self.results, named)
    }

    /// What of the policy was not asked for, in one line: models of which nothing was, and schemes of the others.
    pub(super) fn ignored(&self, named: Named) -> Option<String> {
        let of_model = |model: &ModelView| -> Vec<String> {
            let ignored = model.rows.iter().filter(|row| row.is_ignored());
            if model.is_ignored() {
                vec![named(model.name)]
            } else {
                ignored.map(|row| named(&format!("{} {}", row.model, row.label))).collect()
            }
        };
        let mut names: Vec<String> = self.models.iter().flat_map(of_model).collect();
        let more = names.len().saturating_sub(IGNORED);
        names.truncate(IGNORED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        (!names.is_empty()).then(|| format!("ignored, not run: {}{more}", names.join(", ")))
    }

    /// Whether a limit by category is what makes some scheme red, so that the table of categories is not folded away.
    pub(super) fn is_red_by_category(&self) -> bool {
        self.failing.iter().any(Row::is_red_by_category)
    }

    /// The findings that make the run red.
    pub fn red_findings(&self) -> impl Iterator<Item = &'a Finding> {
        self.results.findings.iter().filter(|finding| finding.is_red)
    }

    /// The rows of a model.
    #[cfg(any(test, feature = "reports"))]
    pub(super) fn rows(&self, model: &str) -> &[Row<'a>] {
        self.models.iter().find(|one| one.name == model).map_or(&[], |model| &model.rows)
    }
}

impl Standing {
    /// How a row stands: as the worst of its cases.
    #[cfg(feature = "reports")]
    pub fn of_row(row: &Row) -> Self {
        let all = || row.cases.iter().flatten().map(|case| Self::of_case(case));
        [Self::Red, Self::Expected, Self::Pass]
            .into_iter()
            .find(|one| all().any(|standing| standing == *one))
            .unwrap_or(Self::Unjudged)
    }

    pub fn of_case(case: &CaseResult) -> Self {
        match case.verdict {
            Verdict::Pass => Self::Pass,
            Verdict::FailsAsRequired => Self::Expected,
            verdict if verdict.is_red() => Self::Red,
            _ => Self::Unjudged,
        }
    }

    fn of_run(exit_code: u8, cases: &[CaseResult]) -> Self {
        let is_held = |case| matches!(Self::of_case(case), Self::Pass | Self::Expected);
        if exit_code != 0 {
            Self::Red
        } else if cases.iter().any(is_held) {
            Self::Pass
        } else {
            Self::Unjudged
        }
    }
}

/// The exit code of a run. A red finding counts as a regression.
pub(super) fn exit_code(results: &Results) -> u8 {
    let findings = results.findings.iter().filter(|finding| finding.is_red);
    let findings = findings.map(|_| Verdict::Regressed);
    verdict::exit_code(results.cases.iter().map(|case| case.verdict).chain(findings))
}

/// Cases that are not as the policy wants, the worst first: harm before change, change before what could not be
/// measured, and last what was never accepted. Among cases of one kind, the one that breaks its limit the most, or is
/// nearest to that, is first, and then the one with the larger divergence.
fn red_cases<'a>(results: &'a Results, cells: &Cells<'a>) -> Vec<&'a CaseResult> {
    let red = results.cases.iter().filter(|case| case.verdict.is_red());
    let mut red: Vec<_> = red
        .map(|case| {
            let excess = worst(case).map_or(0.0, CaseLimit::ratio);
            let (model, label) = case.words();
            let statistics: Option<&Statistics> = cells.row(model, label).statistics();
            (rank(case), excess, statistics.map_or(0.0, |s| s.mean_kld), case)
        })
        .collect();
    red.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)).then(b.2.total_cmp(&a.2)));
    red.into_iter().map(|(.., case)| case).collect()
}

fn rank(case: &CaseResult) -> u8 {
    match case.verdict {
        Verdict::Regressed => 0,
        Verdict::UnexpectedPass => 1,
        // a golden that is missing says nothing of what was measured
        Verdict::GoldenChanged if case.changes.is_empty() => 6,
        Verdict::GoldenChanged => 2,
        Verdict::Stale => 3,
        Verdict::Inconclusive => 4,
        Verdict::Error => 5,
        Verdict::Pass | Verdict::FailsAsRequired | Verdict::Reported | Verdict::Ignored => 7,
    }
}

/// The place of each red case in the list, by the case's name.
fn places<'a>(red: &[&'a CaseResult]) -> HashMap<&'a str, usize> {
    let mut places = HashMap::new();
    for (place, case) in red.iter().enumerate() {
        places.entry(case.case.as_str()).or_insert(place);
    }
    places
}

fn models<'a>(results: &'a Results, cells: &Cells<'a>) -> Vec<ModelView<'a>> {
    let has_red_finding = results.findings.iter().any(|finding| finding.is_red);
    let mut models: Vec<ModelView> = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::new();
    let mut index = |models: &mut Vec<ModelView<'a>>, name: &'a str| {
        *known.entry(name).or_insert_with(|| {
            let (rows, cases) = (Vec::new(), Vec::new());
            models.push(ModelView { name, measurement: None, rows, cases, advice: None });
            models.len() - 1
        })
    };
    for measurement in &results.measurements {
        let at = index(&mut models, &measurement.model);
        models[at].measurement.get_or_insert(measurement);
    }
    for case in &results.cases {
        let at = index(&mut models, case.words().0);
        models[at].cases.push(case);
    }
    for model in &mut models {
        let measured = model.measurement.into_iter().flat_map(|m| &m.schemes);
        let judged = model.cases.iter().map(|case| case.words().1);
        let labels = unique(measured.map(|scheme| scheme.scheme.as_str()).chain(judged));
        model.rows = labels.into_iter().map(|label| cells.row(model.name, label)).collect();
        model.advice = Advice::of(model.measurement, &model.rows, has_red_finding);
    }
    models
}

fn unique<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = std::collections::HashSet::new();
    names.filter(|name| seen.insert(*name)).collect()
}

/// The arithmetic as the measurement names it, or else the type of the activations, and that of the weights if it is
/// another.
pub(super) fn arithmetic(measurement: &Measurement) -> String {
    if let Some(arithmetic) = &measurement.run.arithmetic {
        return arithmetic.clone();
    }
    let (dtype, weights) = (&measurement.run.dtype, &measurement.conditions.weights);
    if dtype == weights {
        dtype.clone()
    } else {
        format!("{dtype}, weights kept as {weights}")
    }
}

/// The memory of the card that was taken, if a card computed and its driver said how much was free.
pub(super) fn memory_of_card(run: &RunInfo) -> Option<String> {
    let peak = run.card.as_ref()?.peak_bytes?;
    Some(format!("{} of the card", bytes(peak as f64)))
}
