//! The gate of a policy: its cases are measured model by model and judged case by case.

pub(crate) mod device;
mod error;
pub mod harness;
mod looks;
pub mod plan;
pub mod select;
mod store;
#[cfg(test)]
mod tests;

pub use error::GateError;

use crate::compute::Device;
use crate::files::folder_of;
use crate::golden::{self, Compared, Review};
use crate::judge::{self, CompareError, Evidence, Judge, ModelEvidence};
use crate::measure::{self, Draw, Generate, Request};
use crate::policy::{Cell, Diagnostic, ModelPolicy, Policy, PolicyError};
use crate::progress::{Bar, Progress};
use crate::repo;
use crate::report;
use crate::results::case::{self, CaseKind, CellName};
use crate::results::json;
use crate::results::measured_by::MeasuredBy;
use crate::results::replay::Generated;
use crate::results::sidecar::{self, SidecarError};
use crate::results::{CaseResult, Measurement, PolicyFile, Results};
use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

/// The folder of results in the policy's folder, unless `KVGATE_RESULTS` names another.
pub(crate) const RESULTS: &str = "kvgate-results";

/// A policy with the folders that belong to it: what the gate judges.
pub struct Project {
    pub policy: Policy,
    /// The policy's folder, in which the goldens lie.
    pub root: PathBuf,
    /// The folder that results are written into.
    pub results: PathBuf,
    /// Whether each case has a folder of results of its own. nextest needs this, as it gives each case its own process.
    pub case_by_case: bool,
    /// Where models are computed.
    pub device: Device,
}

/// A case, by its place in the policy.
#[derive(Debug, Clone)]
pub struct Case {
    /// `model::scheme::kld` or `model::scheme::golden`.
    pub name: String,
    /// Index of the model in the policy.
    pub model: usize,
    /// Index of the cell in the model.
    pub cell: usize,
    pub kind: CaseKind,
    /// Whether the case runs only when it is asked for.
    pub ignored: bool,
}

/// The request to measure some cells of a model. `kept` is the accepted text of its baseline.
pub(crate) fn request<'a>(
    model: &'a ModelPolicy,
    cells: &[&Cell],
    kept: Option<&'a Generated>,
    device: &Device,
) -> Request<'a> {
    Request {
        model: &model.name,
        source: &model.source,
        corpus: &model.corpus,
        context: model.context,
        chunks: model.chunks,
        draw: Draw::First,
        baseline: model.baseline.clone(),
        calibration: model.calibration.as_deref(),
        schemes: cells.iter().map(|cell| (cell.label.clone(), cell.scheme.clone())).collect(),
        generate: model.generate.as_ref().map(|prompts| Generate {
            prompts: &prompts.file,
            tokens: prompts.tokens,
            kept,
        }),
        retrieval: model.retrieval.as_ref().map(|retrieval| &retrieval.plan),
        device: device.clone(),
        residency: None,
        mimic: None,
        is_gated: true,
    }
}

impl Project {
    /// Reads a policy. Returns its warnings beside the project, whose device is the CPU.
    ///
    /// # Errors
    /// The policy cannot be read, or it is not valid.
    pub fn open(path: &Path) -> Result<(Self, Vec<Diagnostic>), PolicyError> {
        let (policy, warnings) = Policy::load(path)?;
        let folder = folder_of(path);
        let root = std::path::absolute(folder)
            .map_err(|source| PolicyError::Unreadable { path: path.into(), source })?;
        let results =
            std::env::var_os("KVGATE_RESULTS").map_or_else(|| root.join(RESULTS), PathBuf::from);
        let device = Device::cpu();
        Ok((Project { policy, root, results, case_by_case: false, device }, warnings))
    }

    /// All cases in the policy's order.
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

    /// The folder of the `results.json` that will hold a case.
    pub fn results_of(&self, case: &str) -> PathBuf {
        if self.case_by_case {
            self.results.join("cases").join(case::file_words(case))
        } else {
            self.results.clone()
        }
    }

    /// The cells of one model that some cases belong to, each once, in the policy's order.
    pub fn cells<'a>(&'a self, model: usize, cases: &[Case]) -> Vec<&'a Cell> {
        let wanted = |c: usize| cases.iter().any(|case| case.model == model && case.cell == c);
        let cells = self.policy.models[model].cells.iter().enumerate();
        cells.filter(|(c, _)| wanted(*c)).map(|(_, cell)| cell).collect()
    }

    /// Measures some cells of a model in one pass, shows the progress, and writes the scored positions of the first
    /// chunks beside the results. If verdicts are open, further chunks are measured as the policy allows.
    ///
    /// # Errors
    /// What keeps the whole model from being measured. That the positions could not be written is no such error: it is
    /// said in [`Measured::positions`].
    pub fn measure(&self, model: usize, cells: &[&Cell]) -> Result<Measured, GateError> {
        let model = &self.policy.models[model];
        let bar = Bar::new(&model.name);
        let measured =
            self.measure_cells(model, cells, &|s, done, all| bar.update(s, done, all))?;
        let lanes: Vec<_> =
            measured.positions.iter().map(|(l, p)| (l.as_str(), p.as_slice())).collect();
        let positions = sidecar::write(&self.results, &model.name, &lanes).map(|_| ());
        Ok(Measured { measurement: measured.measurement, positions })
    }

    fn measure_cells(
        &self,
        model: &ModelPolicy,
        cells: &[&Cell],
        progress: Progress,
    ) -> Result<measure::Measured, GateError> {
        let accepted_text = match &model.generate {
            None => None,
            Some(_) => golden::read_text(&self.root, &model.name)?,
        };
        let request = request(model, cells, accepted_text.as_ref(), &self.device);
        let mut measured = measure::measure(&request, progress)?;
        looks::look_again(model, cells, &self.device, &mut measured, progress)?;
        Ok(measured)
    }

    /// Judges a case by what was measured of its model, and offers a golden that has changed to insta.
    pub fn judge(&self, case: &Case, evidence: &ModelEvidence) -> CaseResult {
        let model = &self.policy.models[case.model];
        let results = self.results_of(&case.name).join(json::FILE);
        let offer = |cell: &CellName, compared: Result<&Compared, &CompareError>| {
            self.offer(cell, compared, &results)
        };
        let judge =
            Judge { root: &self.root, goldens: &judge::read_from_disk, offer: Some(&offer) };
        judge.case(model, &model.cells[case.cell], case.kind, evidence)
    }

    /// Offers a golden to insta, and says how to accept what was measured where there is something to accept.
    fn offer(
        &self,
        cell: &CellName,
        compared: Result<&Compared, &CompareError>,
        results: &Path,
    ) -> String {
        let review = Review { root: &self.root, cell, by: MeasuredBy::Kvgate };
        match compared {
            Ok(compared) => {
                let is_pending = review.offer(compared);
                if compared.is_pass() {
                    String::new()
                } else {
                    review.how_to_accept(results, is_pending)
                }
            }
            Err(error) => {
                review.note_not_compared();
                match error {
                    // what was measured is sound, and would replace the damaged golden
                    CompareError::Unreadable(_) => review.how_to_accept(results, false),
                    CompareError::NoEvidence(_) | CompareError::NoGoldenOfResult(_) => {
                        String::new()
                    }
                }
            }
        }
    }

    /// The results of a run, with the commit and the policy that they belong to.
    pub fn results(&self, measurements: Vec<Measurement>, cases: Vec<CaseResult>) -> Results {
        let policy = PolicyFile {
            path: self.policy.path.display().to_string(),
            sha256: self.policy.sha256.clone(),
        };
        let head = repo::head(&self.root);
        Results { head, policy: Some(policy), ..Results::new(measurements, cases) }
    }
}

/// What measuring a model gave.
pub struct Measured {
    pub measurement: Measurement,
    /// Whether the scored positions could be written.
    pub positions: Result<(), SidecarError>,
}

impl Measured {
    /// Examines the measurement, which this process made itself.
    pub fn into_evidence(self) -> Evidence<'static> {
        Evidence::new(Cow::Owned(self.measurement), MeasuredBy::Kvgate)
    }
}

/// Prepares a folder for results. A folder that cannot be written is an error now, not after minutes of work. Results
/// of an earlier run are removed: if this run died, they would be taken for its own.
///
/// # Errors
/// The folder cannot be made, or nothing can be written into it.
pub fn prepare_results(folder: &Path) -> Result<(), GateError> {
    let probe = std::fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder));
    let remove = |file: &&str| match std::fs::remove_file(folder.join(file)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    let removed = [json::FILE, report::PAGE].iter().try_for_each(remove);
    probe.and(removed).map_err(|source| GateError::Results { folder: folder.into(), source })
}
