//! The gate: a policy's cases, measured model by model and judged case by case.

pub mod harness;
pub mod plan;
pub mod select;
mod store;

use crate::files::folder_of;
use crate::golden::{self, Golden};
use crate::judge::{self, Evidence};
use crate::measure::{measure, Generate, Measured, Request};
use crate::policy::{Cell, Diagnostic, ModelPolicy, Policy, PolicyError};
use crate::progress::Progress;
use crate::repo;
use crate::report;
use crate::results::case;
use crate::results::case::CaseKind;
use crate::results::json;
use crate::results::measured_by::MeasuredBy;
use crate::results::replay::Generated;
use crate::results::verdict::{GoldenValues, Verdict};
use crate::results::{CaseResult, Measurement, PolicyFile, Results};
use std::path::{Path, PathBuf};

/// Folder for results, under the policy's folder; `KVGATE_RESULTS` names another.
pub(crate) const RESULTS: &str = "kvgate-results";

/// A policy and the folder that its goldens lie in.
pub struct Gate {
    /// What must hold.
    pub policy: Policy,
    /// The policy's folder.
    pub root: PathBuf,
    /// Where results go.
    pub results: PathBuf,
    /// Whether each case has results of its own, as under nextest, which gives it a process of its own.
    pub case_by_case: bool,
}

/// A case, by its place in the policy.
#[derive(Debug, Clone)]
pub struct Case {
    /// `model::scheme::kld` or `model::scheme::golden`.
    pub name: String,
    /// Index of the model.
    pub model: usize,
    /// Index of the cell.
    pub cell: usize,
    /// Which of the cell's two cases.
    pub kind: CaseKind,
    /// Run only when asked for.
    pub ignored: bool,
}

/// What is asked of the engine for some cells of a model.
pub(crate) fn request<'a>(
    model: &'a ModelPolicy,
    cells: &[&Cell],
    kept: Option<&'a Generated>,
) -> Request<'a> {
    Request {
        model: &model.name,
        source: &model.source,
        corpus: &model.corpus,
        context: model.context,
        chunks: model.chunks,
        baseline: model.baseline.clone(),
        calibration: model.calibration.as_deref(),
        schemes: cells.iter().map(|cell| (cell.label.clone(), cell.scheme.clone())).collect(),
        generate: model.generate.as_ref().map(|prompts| Generate {
            prompts: &prompts.file,
            tokens: prompts.tokens,
            kept,
        }),
        residency: None,
        mimic: None,
        is_gated: true,
    }
}

impl Gate {
    /// Reads a policy; gives its warnings beside the gate.
    ///
    /// # Errors
    /// A policy that cannot be read or says what no policy can mean.
    pub fn open(path: &Path) -> Result<(Self, Vec<Diagnostic>), PolicyError> {
        let (policy, warnings) = Policy::load(path)?;
        let folder = folder_of(path);
        let root = std::path::absolute(folder)
            .map_err(|source| PolicyError::Unreadable { path: path.into(), source })?;
        let results =
            std::env::var_os("KVGATE_RESULTS").map_or_else(|| root.join(RESULTS), PathBuf::from);
        Ok((Gate { policy, root, results, case_by_case: false }, warnings))
    }

    /// All cases, in the policy's order.
    pub fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for (m, model) in self.policy.models.iter().enumerate() {
            for (c, cell) in model.cells.iter().enumerate() {
                cases.extend(CaseKind::ALL.map(|kind| Case {
                    name: model.case(cell, kind).to_string(),
                    model: m,
                    cell: c,
                    kind,
                    ignored: cell.ignored,
                }));
            }
        }
        cases
    }

    /// The folder that gets the `results.json` of a run in which `case` is.
    pub fn results_of(&self, case: &str) -> PathBuf {
        match self.case_by_case {
            true => self.results.join("cases").join(case::file_words(case)),
            false => self.results.clone(),
        }
    }

    /// The cells of the cases of one model, each once, in the policy's order.
    pub fn cells<'a>(&'a self, model: usize, cases: &[Case]) -> Vec<&'a Cell> {
        let wanted = |c: usize| cases.iter().any(|case| case.model == model && case.cell == c);
        let cells = self.policy.models[model].cells.iter().enumerate();
        cells.filter(|(c, _)| wanted(*c)).map(|(_, cell)| cell).collect()
    }

    /// Measures some cells of a model in one pass.
    ///
    /// # Errors
    /// What concerns the whole model, in words.
    pub fn measure(
        &self,
        model: usize,
        cells: &[&Cell],
        progress: Progress,
    ) -> Result<Measured, String> {
        let model = &self.policy.models[model];
        let kept = match &model.generate {
            None => None,
            Some(_) => golden::read_text(&self.root, &model.name).map_err(|e| e.to_string())?,
        };
        let request = request(model, cells, kept.as_ref());
        measure(&request, progress).map_err(|error| error.to_string())
    }

    /// Judges a case by what its model's measuring gave.
    pub fn judge(&self, case: &Case, measured: &Result<Measurement, String>) -> CaseResult {
        let model = &self.policy.models[case.model];
        let cell = &model.cells[case.cell];
        let measured = measured.as_ref().map_err(Clone::clone);
        let measured = measured.map(|measured| Evidence::new(measured, MeasuredBy::Kvgate));
        match case.kind {
            CaseKind::Kld => {
                let golden = self.golden_values(model, cell);
                judge::limits_case(model, cell, &measured, MeasuredBy::Kvgate, golden.as_ref())
            }
            CaseKind::Golden => self.judge_golden(case, &measured),
        }
    }

    /// The golden's case, offered to insta for review.
    fn judge_golden(&self, case: &Case, measured: &Result<Evidence, String>) -> CaseResult {
        let model = &self.policy.models[case.model];
        let cell = &model.cells[case.cell];
        let stem = model.cell_name(cell).file_stem();
        let error = match (measured, judge::found(measured, model, cell, MeasuredBy::Kvgate)) {
            (Ok(measured), Ok((scheme, None))) => {
                let results = self.results_of(&case.name).join(json::FILE);
                let found =
                    golden::check(&self.root, &stem, measured.measurement(), scheme, &results);
                let judged = CaseResult::new(&case.name, found.verdict, found.message);
                return CaseResult { changes: found.changes, ..judged };
            }
            (_, Ok((_, Some(distrust)))) => distrust,
            (_, Err(error)) => error,
            (Err(error), _) => error.clone(),
        };
        golden::note_not_run(&self.root, &model.name, &stem);
        let message = format!("nothing to compare with the golden: {error}");
        CaseResult::new(&case.name, Verdict::Error, message)
    }

    /// The accepted values of a cell. A golden that cannot be read is its own case's error.
    fn golden_values(&self, model: &ModelPolicy, cell: &Cell) -> Option<GoldenValues> {
        let path = golden::path(&self.root, &model.cell_name(cell).file_stem());
        Golden::read(&path).ok().flatten().map(|golden| golden.statistics())
    }

    /// The results of a run of this gate.
    pub fn results(&self, measurements: Vec<Measurement>, cases: Vec<CaseResult>) -> Results {
        let policy = PolicyFile {
            path: self.policy.path.display().to_string(),
            sha256: self.policy.sha256.clone(),
        };
        let head = repo::head(&self.root);
        Results { head, policy: Some(policy), ..Results::new(measurements, cases) }
    }
}

/// Makes a folder ready for results: told before minutes of work, not after, when it cannot be written.
/// Results of an earlier run are removed, or a run that dies would leave them for its own.
///
/// # Errors
/// A folder that cannot be made or written to, in words.
pub fn prepare_results(folder: &Path) -> Result<(), String> {
    let probe = std::fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder));
    let remove = |file: &&str| match std::fs::remove_file(folder.join(file)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    let removed = [json::FILE, report::PAGE].iter().try_for_each(remove);
    probe.and(removed).map_err(|error| {
        let folder = folder.display();
        format!("cannot write results into {folder}: {error}; name another folder with --results or KVGATE_RESULTS")
    })
}
