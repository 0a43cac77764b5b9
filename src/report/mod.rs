//! Reports for people: a terminal's tables, Markdown, a model card, a badge, a page of HTML, and JUnit's XML.
//!
//! A [`Report`] holds results that were judged. Its [`View`] is everything that is shown of it, computed once, and
//! renderers only give the view a form. A renderer that fails silences none of the others and changes no verdict.

pub mod badge;
pub mod card;
#[cfg(feature = "reports")]
pub mod html;
#[cfg(feature = "reports")]
pub mod junit;
pub mod markdown;
pub mod terminal;

mod advice;
mod categories;
pub(crate) mod flags;
mod glossary;
mod named;
mod needles;
mod phrase;
mod row;
mod todo;
mod view;

pub use row::Columns;
pub use view::View;

use crate::results::{json, Results};
use crate::text;
use crate::text::out;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Results with their verdicts, and links for whoever reads them.
#[derive(Debug, Clone)]
pub struct Report {
    pub results: Results,
    pub links: Links,
}

/// What a reader of a report may want next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Links {
    /// The page of the run that measured.
    pub run: Option<String>,
    /// The commit whose goldens the values are compared with.
    pub base: Option<String>,
    /// The command that accepts what was measured.
    pub accept: Option<String>,
}

impl From<Results> for Report {
    fn from(results: Results) -> Self {
        Report { results, links: Links::default() }
    }
}

impl Report {
    /// Computes everything that is shown of the report.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View::new(&self.results, &self.links)
    }

    /// The exit code: 0 if everything is as the policy wants, 1 if something is not, 4 if something could not be
    /// measured.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        view::exit_code(&self.results)
    }
}

/// The name of the page of HTML that a run leaves if it is built with the feature `reports`.
pub(crate) const PAGE: &str = "report.html";

/// Where a report goes.
#[derive(Debug, Clone, Default)]
pub struct Outputs {
    /// How much of the tables is printed to standard output. None if they are not.
    pub terminal: Option<Columns>,
    /// The folder that gets `results.json` and, with the feature `reports`, `report.html`.
    pub folder: Option<PathBuf>,
    /// The file that Markdown is appended to: that of `$GITHUB_STEP_SUMMARY`.
    pub step_summary: Option<PathBuf>,
}

/// A report that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Standard output cannot be written.
    #[error("the report could not be printed: {0}")]
    Terminal(#[source] io::Error),
    /// `results.json` was not written, so nothing can be accepted or reported from this run.
    #[error(transparent)]
    Json(#[from] json::JsonError),
    /// A warning, because `kvgate report` can make the page from `results.json`.
    #[cfg(feature = "reports")]
    #[error("no report.html: {0}")]
    Html(#[from] html::HtmlError),
    /// A warning, because the exit code has the verdict.
    #[error("the summary could not be appended to {path}: {source}")]
    StepSummary { path: String, source: io::Error },
}

impl ReportError {
    /// Whether the run is still complete without this report, so that its exit code stays that of the verdict.
    pub fn is_warning(&self) -> bool {
        match self {
            Self::Terminal(_) | Self::Json(_) => false,
            #[cfg(feature = "reports")]
            Self::Html(_) => true,
            Self::StepSummary { .. } => true,
        }
    }
}

/// Renders everything that was asked for. Errors are collected, so that one renderer does not keep the others from
/// their work.
pub fn emit(report: &Report, outputs: &Outputs) -> Vec<ReportError> {
    let view = report.view();
    let mut errors = Vec::new();
    if let Some(folder) = &outputs.folder {
        errors.extend(json::write(folder, &report.results).err().map(ReportError::Json));
        #[cfg(feature = "reports")]
        errors.extend(html::write(folder, &view).err().map(ReportError::Html));
    }
    if let Some(path) = &outputs.step_summary {
        let failed = append(path, &markdown::render(&view, markdown::STEP_SUMMARY)).err();
        errors.extend(
            failed.map(|source| ReportError::StepSummary {
                path: path.display().to_string(),
                source,
            }),
        );
    }
    if let Some(columns) = outputs.terminal {
        let printed = out::print_coloured(terminal::render(&view, columns).trim_end());
        errors.extend(printed.err().map(ReportError::Terminal));
    }
    errors
}

fn append(path: &Path, text: &str) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(text::plain(text).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::statistics::Statistic;
    use crate::results::verdict::Verdict;
    use crate::results::CaseResult;
    use crate::testing::fixture;

    #[test]
    fn one_sentence() {
        let mut report = fixture::report();
        assert_eq!(
            report.view().sentence(),
            "kvgate: 3 of 7 cases red (worst: gemma-3-270m q4_0: mean_kld 1.22 × its limit)"
        );
        report.results.cases.truncate(3);
        assert_eq!(
            report.view().sentence(),
            "kvgate: 1 of 3 cases red (gemma-3-270m q4_0: mean_kld 1.22 × its limit)"
        );
        report.results.findings = vec![fixture::weakened()];
        assert_eq!(
            report.view().sentence(),
            "kvgate: 1 of 3 cases red and 1 finding (gemma-3-270m q4_0: mean_kld 1.22 × its limit)"
        );
        report.results.cases[2].verdict = Verdict::FailsAsRequired;
        assert_eq!(
            report.view().sentence(),
            "kvgate: 1 finding (policy::weakened at thresholds.toml:9)"
        );
        report.results.findings.clear();
        assert_eq!(
            report.view().sentence(),
            "kvgate: 3 cases as the policy wants (2 pass, 1 fails as required)"
        );
        report.results.cases.clear();
        assert_eq!(report.view().sentence(), "kvgate: 3 schemes measured, nothing judged");
        report.results.measurements.clear();
        assert_eq!(report.view().sentence(), "kvgate: nothing needed measuring");
    }

    #[test]
    fn the_worst_case_is_told_in_its_own_terms() {
        let mut report = fixture::report();
        report.results.cases = vec![fixture::results().cases[2].clone()];
        let mut tells = |edit: &dyn Fn(&mut CaseResult)| {
            edit(&mut report.results.cases[0]);
            let sentence = report.view().sentence();
            let told = sentence.strip_prefix("kvgate: 1 of 1 case red (gemma-3-270m q4_0: ");
            told.and_then(|told| told.strip_suffix(')')).unwrap_or(&sentence).to_owned()
        };
        let top1 = |case: &mut CaseResult| {
            let limit = &mut case.limits[0];
            limit.statistic = Statistic::Top1Agreement;
            (limit.value, limit.bound) = (0.70, 0.85);
        };
        assert_eq!(tells(&top1), "top1_agreement 2.00 × the misses that its limit allows");
        let all = tells(&|case| case.limits[0].bound = 1.0);
        assert_eq!(all, "top1_agreement under its limit of 1");
        let changed = tells(&|case| case.verdict = Verdict::GoldenChanged);
        assert_eq!(changed, "no accepted golden");
        let change =
            |case: &mut CaseResult| case.changes = fixture::results().cases[3].changes.clone();
        assert_eq!(tells(&change), "mean_kld +206 % against the golden");
        assert_eq!(tells(&|case| case.verdict = Verdict::Stale), "stale");
    }

    /// A weakened policy is red, and exit code 1 outranks 4.
    #[test]
    fn findings_count_in_the_exit_code() {
        let mut report = fixture::report();
        report.results.cases.retain(|case| !case.verdict.is_red());
        assert_eq!(report.exit_code(), 0);
        let mut finding = fixture::weakened();
        finding.is_red = false;
        report.results.findings = vec![finding];
        assert_eq!(report.exit_code(), 0);
        report.results.findings = vec![fixture::weakened()];
        assert_eq!(report.exit_code(), 1);
        report.results.cases[0].verdict = Verdict::Error;
        assert_eq!(report.exit_code(), 1);
        report.results.findings.clear();
        assert_eq!(report.exit_code(), 4);
    }

    /// A stranger's report, in which every text contains a character that must not be shown as it is.
    fn hostile(c: char) -> Report {
        fn spoil(key: &str, value: &mut serde_json::Value, c: char) {
            use serde_json::Value;
            // words of a fixed set are no texts
            const WORDS: [&str; 4] = ["verdict", "statistic", "expect", "status"];
            match value {
                Value::String(text) if !WORDS.contains(&key) => {
                    *text = format!("{c}[35m{c}{text}{c}")
                }
                Value::Array(values) => values.iter_mut().for_each(|value| spoil(key, value, c)),
                Value::Object(fields) => fields.iter_mut().for_each(|(key, v)| spoil(key, v, c)),
                _ => {}
            }
        }
        let mut results = fixture::results();
        results.findings = vec![fixture::weakened()];
        results.not_needed = vec!["other".into()];
        let mut value = serde_json::to_value(&results).unwrap();
        spoil("", &mut value, c);
        let results = serde_json::from_value(value).unwrap();
        let accept = Some(format!("kvgate accept {c}"));
        Report { results, links: Links { accept, base: Some(format!("{c}")), run: None } }
    }

    /// Tries every renderer with every character that must not be shown as it is.
    #[test]
    fn nothing_leaves_that_a_terminal_obeys_or_nobody_sees() {
        for c in text::HOSTILE {
            let report = hostile(c);
            let view = report.view();
            let exits = [
                (
                    "terminal",
                    anstream::adapter::strip_str(&terminal::render(&view, Columns::All))
                        .to_string(),
                ),
                ("terminal, coloured", without_colours(&terminal::render(&view, Columns::All))),
                ("tables", without_colours(&terminal::render_tables(&view, Columns::Deciding))),
                ("Markdown", markdown::render(&view, markdown::STEP_SUMMARY)),
                ("card", card::render(&view)),
                ("badge", badge::render(&view).unwrap()),
                ("sentence", view.sentence()),
                ("JSON", json::text(&report.results).unwrap()),
                #[cfg(feature = "reports")]
                ("HTML", html::render(&view).unwrap()),
                #[cfg(feature = "reports")]
                ("JUnit", junit::render(&view).unwrap()),
                ("error", text::error(&report.results.cases[0].message)),
            ];
            for (exit, shown) in exits {
                assert!(!shown.contains(c), "{c:?} leaves by {exit}: {shown}");
            }
        }
    }

    /// A text without our own colours, which must be all that is coloured.
    fn without_colours(text: &str) -> String {
        let mut text = text.to_owned();
        for colour in ["0", "1", "2", "31", "32", "33", "36", "1m\u{1b}[31"] {
            text = text.replace(&format!("\u{1b}[{colour}m"), "");
        }
        text
    }

    #[test]
    fn a_failing_renderer_silences_none_of_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        std::fs::write(&blocked, "").unwrap();
        let summary = folder.path().join("summary.md");
        std::fs::write(&summary, "before\n").unwrap();
        let errors = emit(
            &fixture::report(),
            &Outputs {
                folder: Some(blocked.clone()),
                step_summary: Some(summary.clone()),
                terminal: None,
            },
        );
        // the page has no folder either, and is only missed
        let Some((error, others)) = errors.split_first() else { panic!("{errors:?}") };
        assert!(!error.is_warning());
        assert!(others.iter().all(ReportError::is_warning), "{others:?}");
        assert!(error.to_string().contains("results.json: "), "{error}");
        assert!(std::fs::read_to_string(&summary).unwrap().starts_with("before\n### ❌ kvgate: 3"));

        let no_file = Some(blocked.join("summary.md"));
        let outputs =
            Outputs { folder: Some(folder.path().into()), step_summary: no_file, terminal: None };
        let errors = emit(&fixture::report(), &outputs);
        assert!(matches!(&errors[..], [e] if e.is_warning()), "{errors:?}");
        assert!(folder.path().join("results.json").exists());
    }
}
