//! The table by category: what a scheme does to each kind of text.

use super::named::Named;
use super::row::{shown_agreement, shown_mean, worst_limit, Row};
use crate::results::statistics::{Part, Statistic, Statistics};
use crate::results::verdict::{limit_on, Decision, JudgedLimit};
use crate::results::CaseResult;
use std::collections::BTreeMap;

/// The names of the columns after scheme and category.
pub(super) const HEAD: [&str; 5] = ["chunks", "mean KLD", "limit", "top-1", "limits"];

/// A category under a scheme. Category and label are a stranger's words.
pub(super) struct Line<'a> {
    pub model: &'a str,
    pub label: &'a str,
    pub category: String,
    /// The number of chunks, the mean KLD, its limit, and how often both choose the same token.
    pub numbers: [String; 4],
    /// What is known of the limits on the category, with the worst one in words. None without limits.
    pub limits: Option<(Decision, String)>,
}

/// The lines of a row. There are none for a corpus of one category, which the row itself tells of, unless it has a limit.
pub(super) fn lines<'a>(row: &Row<'a>, named: Named) -> Vec<Line<'a>> {
    let parts = row.seen().map(|seen| seen.parts.into_owned()).unwrap_or_default();
    let mut categories: BTreeMap<String, Vec<Part>> = BTreeMap::new();
    for part in parts {
        categories.entry(part.category.clone()).or_default().push(part);
    }
    if categories.len() < 2 && !has_limits(row) {
        return Vec::new();
    }
    categories.into_iter().map(|(category, parts)| line(row, category, &parts, named)).collect()
}

/// Whether a row has limits by category.
pub(super) fn has_limits(row: &Row) -> bool {
    row.limits().iter().any(|limit| limit.category.is_some())
}

fn line<'a>(row: &Row<'a>, category: String, parts: &[Part], named: Named) -> Line<'a> {
    let statistics = Statistics::of_parts(parts);
    // as if they were limits on all chunks, which these are
    let own = row.limits().iter().filter(|limit| limit.category.as_ref() == Some(&category));
    let own: Vec<JudgedLimit> =
        own.map(|limit| JudgedLimit { category: None, ..limit.clone() }).collect();
    let bound = limit_on(&own, Statistic::MeanKld).map(|limit| limit.bound.to_string());
    Line {
        model: row.model,
        label: row.label,
        category,
        numbers: [
            parts.len().to_string(),
            shown_mean(&statistics, parts, row.confidence()),
            bound.unwrap_or_else(|| "–".into()),
            shown_agreement(statistics.top1_agreement),
        ],
        limits: decided(row, own, named),
    }
}

/// What the limits of a category come to.
fn decided(row: &Row, limits: Vec<JudgedLimit>, named: Named) -> Option<(Decision, String)> {
    let all = [Decision::Broken, Decision::Undecided, Decision::Kept];
    let is_there = |wanted: &Decision| limits.iter().any(|limit| limit.decision() == *wanted);
    let decision = all.into_iter().find(is_there)?;
    let case = CaseResult { limits, retrieval: Vec::new(), ..row.cases[0]?.clone() };
    let worst = worst_limit(&case, named).map(|worst| format!(" {worst}")).unwrap_or_default();
    Some((decision, format!("{}{worst}", decision.mark())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;
    use crate::results::Outcome;
    use crate::testing::fixture;

    fn shown(report: &Report) -> Vec<String> {
        let view = report.view();
        let of = |row: &Row| {
            let lines = lines(row, &|name| name.into()).into_iter().map(|line| {
                let limits = line.limits.map(|(_, words)| words).unwrap_or_default();
                format!("{} {} {} {limits}", line.label, line.category, line.numbers.join(" | "))
            });
            lines.collect::<Vec<_>>()
        };
        view.rows("gemma-3-270m").iter().flat_map(of).collect()
    }

    #[test]
    fn each_category_has_its_numbers_and_its_limits() {
        assert_eq!(
            shown(&fixture::by_category()),
            [
                "q4_0 prose 2 | 0.02000 ± 0.00071 | – | 100.00 % ",
                "q4_0 tools 2 | 0.15000 ± 0.00354 | 0.1 | 100.00 % ✗ mean_kld 1.50 × its limit",
            ]
        );
    }

    /// The row itself says it.
    #[test]
    fn one_category_needs_no_table() {
        let mut report = fixture::by_category();
        let scheme = &mut report.results.measurements[0].schemes[1];
        let Outcome::Measured { parts, .. } = &mut scheme.outcome else { panic!() };
        parts.retain(|part| part.category == "tools");
        assert_eq!(shown(&report).len(), 1, "it has a limit");
        report.results.cases[2].limits.pop();
        assert!(shown(&report).is_empty());
    }
}
