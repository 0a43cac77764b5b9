//! Sentences about a run. Each renderer decides how the names in them are written.

use super::row::{relative, worst_limit};
use crate::results::measured_by::MeasuredBy;
use crate::results::verdict::Verdict;
use crate::results::{CaseResult, Finding, Results};
use crate::text;
use crate::text::numbers::count;

/// Words around one name. The name may be a stranger's, so a renderer must write it in a form that nothing obeys: a
/// code span in Markdown, escaped characters on a terminal.
pub(super) struct Phrase {
    before: String,
    name: Option<String>,
    after: String,
}

impl Phrase {
    fn plain(words: String) -> Self {
        Phrase { before: words, name: None, after: String::new() }
    }

    pub fn with(&self, named: &dyn Fn(&str) -> String) -> String {
        let name = self.name.as_deref().map(named).unwrap_or_default();
        format!("{}{name}{}", self.before, self.after)
    }
}

/// Names the engine that measured: the first that is not kvgate's own, or else kvgate's.
pub(super) fn measured_by(results: &Results) -> Option<Phrase> {
    let mut engines = results.measurements.iter().map(|m| m.conditions.engine.as_str());
    let other = engines.clone().find(|engine| MeasuredBy::of(engine) != MeasuredBy::Kvgate);
    engines.next()?;
    let after = match other {
        Some(_) => String::new(),
        None => ": the scheme in its own engine, not a serving kernel".into(),
    };
    let name = other.unwrap_or(&results.engine).into();
    Some(Phrase { before: "measured by ".into(), name: Some(name), after })
}

/// Says how a run ended. `red` are its red cases, the worst first.
pub(super) fn sentence(results: &Results, red: &[&CaseResult]) -> Phrase {
    let findings: Vec<&Finding> = results.findings.iter().filter(|f| f.is_red).collect();
    match (red, &findings[..]) {
        ([worst, others @ ..], _) => {
            let cases = count(results.cases.len(), "case");
            let beside = match findings.len() {
                0 => String::new(),
                n => format!(" and {}", count(n, "finding")),
            };
            let which = if others.is_empty() { "" } else { "worst: " };
            let (model, scheme) = worst.words();
            Phrase {
                before: format!("kvgate: {} of {cases} red{beside} ({which}", red.len()),
                name: Some(format!("{model} {scheme}")),
                after: format!(": {})", harm(worst)),
            }
        }
        ([], [first, ..]) => {
            let all = count(findings.len(), "finding");
            let name = text::name(&first.name);
            let at = if first.place.is_some() { " at " } else { "" };
            let before = format!("kvgate: {all} ({name}{at}");
            Phrase { before, name: first.place.clone(), after: ")".into() }
        }
        ([], []) => Phrase::plain(green(results)),
    }
}

/// Says that nothing in a run is red.
fn green(results: &Results) -> String {
    let none = results.cases.iter().all(|case| case.verdict == Verdict::Ignored);
    if results.measurements.is_empty() && none {
        return "kvgate: nothing needed measuring".into();
    }
    match results.cases.len() {
        0 => {
            let schemes: usize = results.measurements.iter().map(|m| m.schemes.len()).sum();
            format!("kvgate: {} measured, nothing judged", count(schemes, "scheme"))
        }
        n => format!("kvgate: {} as the policy wants ({})", count(n, "case"), tally(results)),
    }
}

/// Says in a few words what is wrong with a case: `mean_kld 2.40 × its limit`.
fn harm(case: &CaseResult) -> String {
    let harm = match case.verdict {
        Verdict::Regressed | Verdict::Inconclusive => worst_limit(case),
        Verdict::UnexpectedPass => Some("passes, and must break a limit".into()),
        Verdict::GoldenChanged => worst_change(case).or(Some("no accepted golden".into())),
        _ => None,
    };
    harm.unwrap_or_else(|| case.verdict.label().into())
}

/// The first value that left its tolerance: `mean_kld +115 % against the golden`.
fn worst_change(case: &CaseResult) -> Option<String> {
    let change = case.changes.iter().find(|change| !change.within)?;
    let moved = relative(change.golden, change.now);
    Some(format!("{} {moved} against the golden", text::name(&change.name)))
}

/// How many cases have each verdict: `12 pass, 3 fails as required`.
fn tally(results: &Results) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for case in &results.cases {
        let label = case.verdict.label();
        match counts.iter_mut().find(|(l, _)| *l == label) {
            Some((_, n)) => *n += 1,
            None => counts.push((label, 1)),
        }
    }
    let words: Vec<_> = counts.iter().map(|(label, n)| format!("{n} {label}")).collect();
    words.join(", ")
}
