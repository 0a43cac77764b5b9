//! Reports: renderers of [`Results`].
//!
//! A run is measured and judged once; every renderer reads the same [`Results`]. One that fails
//! silences none of the others and changes no verdict.

pub mod json;
#[cfg(feature = "reports")]
pub mod junit;
pub mod markdown;
pub mod sidecar;
pub mod terminal;

#[cfg(test)]
pub(crate) mod fixture;
mod row;
pub(crate) mod table;

use crate::results::Results;
use row::{red_cases, statistics_of};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where a report goes.
#[derive(Debug, Clone, Default)]
pub struct Outputs {
    /// Whether tables are printed to standard output.
    pub terminal: bool,
    /// Folder that gets `results.json`.
    pub folder: Option<PathBuf>,
    /// File that the markdown summary is appended to: `$GITHUB_STEP_SUMMARY`.
    pub step_summary: Option<PathBuf>,
}

/// A report that did not get out.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Standard output is gone.
    #[error("the report could not be printed: {0}")]
    Terminal(#[source] io::Error),
    /// `results.json` was not written: nothing can be accepted or reported from this run.
    #[error(transparent)]
    Json(#[from] json::JsonError),
    /// A warning: the verdict is in the exit code.
    #[error("the summary could not be appended to {path}: {source}")]
    StepSummary {
        /// The file.
        path: String,
        /// The reason.
        source: io::Error,
    },
}

impl ReportError {
    /// Whether the run is as good without that report.
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::StepSummary { .. })
    }
}

/// Renders everything that was asked for and returns what went wrong.
pub fn emit(results: &Results, outputs: &Outputs) -> Vec<ReportError> {
    let mut errors = Vec::new();
    if let Some(folder) = &outputs.folder {
        errors.extend(json::write(folder, results).err().map(ReportError::Json));
    }
    if let Some(path) = &outputs.step_summary {
        let failed = append(path, &markdown::render(results)).err();
        errors.extend(
            failed.map(|source| ReportError::StepSummary {
                path: path.display().to_string(),
                source,
            }),
        );
    }
    if outputs.terminal {
        let printed = anstream::stdout().write_all(terminal::render(results).as_bytes());
        errors.extend(printed.err().map(ReportError::Terminal));
    }
    errors
}

fn append(path: &Path, text: &str) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(text.as_bytes())
}

/// The run in one sentence: `kvgate: 2 of 18 cases red (…the worst…)`.
pub fn sentence(results: &Results) -> String {
    if results.cases.is_empty() {
        let schemes: usize = results.measurements.iter().map(|m| m.schemes.len()).sum();
        return format!("kvgate: {} measured, nothing judged", count(schemes, "scheme"));
    }
    let red = red_cases(results);
    let cases = count(results.cases.len(), "case");
    let Some(worst) = red.first() else {
        return format!("kvgate: {cases} as the policy wants ({})", tally(results));
    };
    let value = statistics_of(results, &worst.case)
        .map_or(String::new(), |s| format!(", mean KLD {:.4}", s.mean_kld));
    let others = if red.len() == 1 { "" } else { "worst: " };
    let label = worst.verdict.label();
    format!("kvgate: {} of {cases} red ({others}{} {label}{value})", red.len(), worst.case)
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// How many cases came to what: `12 pass, 3 fails as required`.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Verdict;

    #[test]
    fn one_sentence() {
        let mut results = fixture::results();
        assert_eq!(
            sentence(&results),
            "kvgate: 3 of 7 cases red (worst: gemma-3-270m::q4_0::kld regressed, mean KLD 0.0612)"
        );
        results.cases.truncate(3);
        assert_eq!(
            sentence(&results),
            "kvgate: 1 of 3 cases red (gemma-3-270m::q4_0::kld regressed, mean KLD 0.0612)"
        );
        results.cases[2].verdict = Verdict::FailsAsRequired;
        assert_eq!(
            sentence(&results),
            "kvgate: 3 cases as the policy wants (2 pass, 1 fails as required)"
        );
        results.cases.clear();
        assert_eq!(sentence(&results), "kvgate: 3 schemes measured, nothing judged");
    }

    #[test]
    fn a_failing_renderer_silences_none_of_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        std::fs::write(&blocked, "").unwrap();
        let summary = folder.path().join("summary.md");
        std::fs::write(&summary, "before\n").unwrap();
        let errors = emit(
            &fixture::results(),
            &Outputs {
                folder: Some(blocked.clone()),
                step_summary: Some(summary.clone()),
                terminal: false,
            },
        );
        let [error] = &errors[..] else { panic!("{errors:?}") };
        assert!(!error.is_warning());
        assert!(error.to_string().contains("results.json: "), "{error}");
        assert!(std::fs::read_to_string(&summary).unwrap().starts_with("before\n### ❌ kvgate: 3"));

        let no_file = Some(blocked.join("summary.md"));
        let outputs =
            Outputs { folder: Some(folder.path().into()), step_summary: no_file, terminal: false };
        let errors = emit(&fixture::results(), &outputs);
        assert!(matches!(&errors[..], [e] if e.is_warning()), "{errors:?}");
        assert!(folder.path().join("results.json").exists());
    }
}
