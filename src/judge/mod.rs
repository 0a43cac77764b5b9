//! Judges measurements by a policy and its goldens: each case of a cell gets its verdict.
//!
//! A measurement may have been made by this process, or it may be read from a file that anybody wrote:
//! another job, another engine, a stranger's pull request. Both are judged by the same code. What results say
//! of themselves, verdicts above all, counts for nothing, and what contradicts itself or the policy is an
//! error.

pub mod accept;
pub mod interval;
pub mod limits;
pub mod merge;
#[cfg(test)]
mod tests;
pub mod trust;

use self::limits::Judgement;
use crate::golden::{self, Compared, Golden, GoldenError};
use crate::policy::{Cell, ModelPolicy, Policy};
use crate::results::case::{CaseKind, CellName};
use crate::results::measured_by::MeasuredBy;
use crate::results::replay::Generated;
use crate::results::retrieval::Retrieved;
use crate::results::statistics::Statistic;
use crate::results::verdict::{GoldenValues, Verdict};
use crate::results::{CaseResult, Measurement, Moved, Outcome, Results, SchemeResult};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// Reads a golden by its path, from disk or from a commit. `Ok(None)` means that there is no such file.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> Result<Option<String>, String>;

/// Reads a golden from disk.
///
/// # Errors
/// The file is there and cannot be read.
pub fn read_from_disk(path: &Path) -> Result<Option<String>, String> {
    golden::read_file(path).map_err(|error| error.to_string())
}

/// A measurement of a model, and which of its schemes cannot be trusted.
///
/// Whether a scheme can be trusted depends on all lanes together: no scheme is trusted if a control lane is
/// broken, and two schemes with the same statistics are both distrusted. So a whole measurement is examined
/// once, not each case.
#[derive(Debug, Clone)]
pub struct Evidence<'m> {
    measurement: Cow<'m, Measurement>,
    by: MeasuredBy,
    /// Why a scheme cannot be trusted, by its label.
    distrust: BTreeMap<String, String>,
}

impl<'m> Evidence<'m> {
    /// Examines a measurement. `by` is the engine that was asked to make it, which a file of results does not choose:
    /// see [`trust::distrust_by`].
    pub fn new(measurement: Cow<'m, Measurement>, by: MeasuredBy) -> Self {
        let distrust = trust::distrust_by(&measurement, by);
        Evidence { measurement, by, distrust }
    }

    pub fn measurement(&self) -> &Measurement {
        &self.measurement
    }

    pub fn into_measurement(self) -> Measurement {
        self.measurement.into_owned()
    }

    /// The result of a cell, and why it cannot be trusted, if it cannot.
    ///
    /// # Errors
    /// The measurement has no result for the cell, or two.
    pub fn result_of(
        &self,
        model: &ModelPolicy,
        cell: &Cell,
    ) -> Result<(&SchemeResult, Option<String>), String> {
        let mut own = self.measurement.schemes.iter().filter(|scheme| scheme.scheme == cell.label);
        let scheme = own.next().ok_or("the run has no result for this scheme")?;
        if own.next().is_some() {
            return Err("the run has two results for this scheme".into());
        }
        let distrust = self.distrust.get(&cell.label).cloned();
        let distrust = distrust
            .or_else(|| trust::contradiction(&self.measurement, scheme, self.by))
            .or_else(|| trust::mismatch_with_cell(model, cell, scheme, self.by));
        Ok((scheme, distrust))
    }

    /// The result of a cell, and why its limits cannot be judged, if they cannot.
    ///
    /// # Errors
    /// The measurement has no result for the cell, or two.
    pub fn to_judge(
        &self,
        model: &ModelPolicy,
        cell: &Cell,
    ) -> Result<(&SchemeResult, Option<String>), String> {
        let (scheme, distrust) = self.result_of(model, cell)?;
        let distrust = distrust.map(|why| format!("the measurement cannot be trusted: {why}"));
        let floor = self.measurement.floor;
        let obstacle = distrust.or_else(|| limits::floor_fault(cell, scheme, floor, self.by));
        Ok((scheme, obstacle))
    }
}

/// The evidence about a model, or why there is none for any of its cases.
pub type ModelEvidence<'m> = Result<Evidence<'m>, String>;

/// The result of a cell, and why it cannot be trusted, if it cannot.
///
/// # Errors
/// The model has no measurement, or the measurement has no single result for the cell.
fn result_of<'e>(
    evidence: &'e ModelEvidence,
    model: &ModelPolicy,
    cell: &Cell,
) -> Result<(&'e SchemeResult, Option<String>), String> {
    evidence.as_ref().map_err(Clone::clone)?.result_of(model, cell)
}

/// Adds to the change of the mean KLD how well it is known, if the golden holds the means of the same chunks.
fn with_change(
    mut moved: Vec<Moved>,
    golden: Option<&Golden>,
    scheme: Option<&SchemeResult>,
) -> Vec<Moved> {
    let mean = moved.iter_mut().find(|moved| moved.name == Statistic::MeanKld.name());
    let outcome = scheme.map(|scheme| &scheme.outcome);
    if let (Some(mean), Some(golden), Some(Outcome::Measured { parts, .. })) =
        (mean, golden, outcome)
    {
        mean.change = interval::of_change(parts, &golden.chunk_means);
    }
    moved
}

/// Why a scheme could not be compared with its golden.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// There is no result, or none that can be trusted.
    #[error("nothing to compare with the golden: {0}")]
    NoEvidence(String),
    /// The result holds no numbers that a golden could hold.
    #[error(transparent)]
    NoGoldenOfResult(#[from] GoldenError),
    /// The accepted golden, or the accepted text of the baseline, cannot be read.
    #[error("{0}")]
    Unreadable(String),
}

/// Offers a comparison for review. It returns what a person is told about accepting it, which may be an empty
/// text.
pub type Offer<'a> = &'a dyn Fn(&CellName, Result<&Compared, &CompareError>) -> String;

/// Judges the cases of cells by limits and goldens.
pub struct Judge<'a> {
    /// The policy's folder, which paths of goldens begin with.
    pub root: &'a Path,
    pub goldens: ReadFile<'a>,
    /// Offers changed goldens to insta for review. It is None where a file of results is judged.
    pub offer: Option<Offer<'a>>,
}

/// Which models a file of results must hold, and how they must have been measured.
pub struct Demands<'a> {
    pub policy: &'a Policy,
    /// The engine that is asked for: see [`Evidence::new`].
    pub by: MeasuredBy,
    /// Whether results must hold a model. Results of other models are judged if they are there.
    pub is_needed: &'a dyn Fn(&ModelPolicy) -> bool,
    /// Says why the measurement of a model is not the one that is asked for, for a reason that the policy does not
    /// know.
    pub fault: &'a dyn Fn(&ModelPolicy, &Measurement) -> Option<String>,
}

impl Judge<'_> {
    /// Judges every cell of the policy, in the policy's order. A needed cell without a result is an error, because
    /// a lost job must not look like one that passed.
    pub fn results(&self, results: &Results, demands: &Demands) -> Vec<CaseResult> {
        let mut cases = Vec::new();
        for model in &demands.policy.models {
            let measurement = demands.measurement_of(model, results);
            let evidence = measurement
                .map(|measurement| Evidence::new(Cow::Borrowed(measurement), demands.by));
            for cell in &model.cells {
                let is_there = has_result(results, model, cell);
                for kind in CaseKind::ALL {
                    if is_there || (!cell.ignored && (demands.is_needed)(model)) {
                        cases.push(self.case(model, cell, kind, &evidence));
                    } else if cell.ignored {
                        let name = model.case(cell, kind);
                        cases.push(CaseResult::new(name, Verdict::Ignored, ""));
                    }
                }
            }
        }
        cases
    }

    /// Judges one case of a cell.
    pub fn case(
        &self,
        model: &ModelPolicy,
        cell: &Cell,
        kind: CaseKind,
        evidence: &ModelEvidence,
    ) -> CaseResult {
        match kind {
            CaseKind::Kld => self.limits_case(model, cell, evidence),
            CaseKind::Golden => self.golden_case(model, cell, evidence),
        }
    }

    /// The `kld` case of a cell: do its limits hold?
    fn limits_case(
        &self,
        model: &ModelPolicy,
        cell: &Cell,
        evidence: &ModelEvidence,
    ) -> CaseResult {
        let golden = self.golden_values(model, cell, evidence);
        let judge = |found: (&Outcome, &[Retrieved]), obstacle: Option<String>| {
            let obstacle = obstacle.as_deref();
            limits::judge_with_retrieval(model, cell, found, obstacle, golden.as_ref())
        };
        let found = evidence.as_ref().map_err(Clone::clone);
        let judged = match found.and_then(|evidence| evidence.to_judge(model, cell)) {
            Ok((scheme, obstacle)) => judge((&scheme.outcome, &scheme.retrieved), obstacle),
            Err(error) => judge((&Outcome::Failed { error }, &[]), None),
        };
        let case = CaseResult::new(model.case(cell, CaseKind::Kld), judged.verdict, judged.message);
        let Judgement { limits, retrieval, chunks, .. } = judged;
        CaseResult { limits, retrieval, chunks, ..case }
    }

    /// The `golden` case of a cell: has anything changed since its snapshot was accepted?
    fn golden_case(
        &self,
        model: &ModelPolicy,
        cell: &Cell,
        evidence: &ModelEvidence,
    ) -> CaseResult {
        let compared = self.compare(model, cell, evidence);
        let offered = self.offer.map(|offer| offer(&model.cell_name(cell), compared.as_ref()));
        let (verdict, message, changes) = match &compared {
            Err(error) => (Verdict::Error, error.to_string(), Vec::new()),
            Ok(compared) => {
                let judged = compared.verdict();
                let scheme = result_of(evidence, model, cell).ok().map(|(scheme, _)| scheme);
                let moved = with_change(judged.moved, compared.accepted.as_ref(), scheme);
                (judged.verdict, judged.message, moved)
            }
        };
        let message = format!("{}\n{}", message.trim_end(), offered.unwrap_or_default());
        let case = CaseResult::new(model.case(cell, CaseKind::Golden), verdict, message.trim_end());
        CaseResult { changes, ..case }
    }

    /// Compares the result of a cell with its golden, and the text that it was measured on with the accepted one.
    fn compare<'e>(
        &self,
        model: &ModelPolicy,
        cell: &Cell,
        evidence: &'e ModelEvidence,
    ) -> Result<Compared<'e>, CompareError> {
        let evidence = evidence.as_ref().map_err(|e| CompareError::NoEvidence(e.clone()))?;
        let scheme = match evidence.result_of(model, cell).map_err(CompareError::NoEvidence)? {
            (scheme, None) => scheme,
            (_, Some(distrust)) => return Err(CompareError::NoEvidence(distrust)),
        };
        let measurement = evidence.measurement();
        let new = Golden::of(measurement, scheme)?;
        let is_text_accepted =
            self.is_text_accepted(measurement).map_err(CompareError::Unreadable)?;
        let accepted = self.golden(model, cell, evidence.by).map_err(CompareError::Unreadable)?;
        Ok(Compared {
            comparison: golden::compare(accepted.as_ref(), &new),
            new,
            accepted,
            generated: measurement.generated.as_ref(),
            is_text_accepted,
        })
    }

    /// How the values of a cell have moved from the golden that this judge reads, which need not be the golden that
    /// decides the verdict. Empty where there is no such golden or no such result.
    pub fn moved(
        &self,
        model: &ModelPolicy,
        cell: &Cell,
        by: MeasuredBy,
        results: &Results,
    ) -> Vec<Moved> {
        let own = results.measurements.iter().find(|measurement| measurement.model == model.name);
        let compared = own.and_then(|measurement| {
            let scheme = measurement.schemes.iter().find(|scheme| scheme.scheme == cell.label)?;
            let golden = self.golden(model, cell, by).ok()??;
            let comparison = golden::compare(Some(&golden), &Golden::of(measurement, scheme).ok()?);
            Some(with_change(comparison.moved(), Some(&golden), Some(scheme)))
        });
        compared.unwrap_or_default()
    }

    /// The accepted values of a cell. A golden that cannot be read is an error of the `golden` case only.
    fn golden_values(
        &self,
        model: &ModelPolicy,
        cell: &Cell,
        evidence: &ModelEvidence,
    ) -> Option<GoldenValues> {
        let golden = self.golden(model, cell, evidence.as_ref().ok()?.by);
        golden.ok().flatten().map(|golden| golden.statistics())
    }

    /// The golden of a cell that was accepted from what `by` measured.
    fn golden(
        &self,
        model: &ModelPolicy,
        cell: &Cell,
        by: MeasuredBy,
    ) -> Result<Option<Golden>, String> {
        let path = golden::path_by(self.root, by, &model.cell_name(cell).file_stem());
        let text = (self.goldens)(&path)?;
        let parse = |text: String| Golden::parse(&text, &path.display().to_string());
        text.map(parse).transpose().map_err(|error: GoldenError| error.to_string())
    }

    /// Whether the text that was measured on is the accepted one, token by token.
    fn is_text_accepted(&self, measurement: &Measurement) -> Result<bool, String> {
        let Some(generated) = &measurement.generated else { return Ok(true) };
        let path = golden::text_path(self.root, &measurement.model);
        let Some(text) = (self.goldens)(&path)? else { return Ok(false) };
        let accepted = golden::parse_text(&text, &path.display().to_string());
        let accepted = accepted.map_err(|error| error.to_string())?;
        let ties = |text: &Generated| -> Vec<Vec<usize>> {
            text.continuations.iter().map(|continuation| continuation.near_ties.clone()).collect()
        };
        // near ties are not compared, because those of a new text are those of the machine that wrote it
        let same_ties = !generated.accepted || ties(generated) == ties(&accepted);
        Ok(generated.is_of(&accepted) && generated.sha256() == accepted.sha256() && same_ties)
    }
}

impl Demands<'_> {
    /// Finds the measurement of a model, and checks that it is the one that is asked for.
    fn measurement_of<'r>(
        &self,
        model: &ModelPolicy,
        results: &'r Results,
    ) -> Result<&'r Measurement, String> {
        let mut own = results.measurements.iter().filter(|m| m.model == model.name);
        let missing = if results.not_needed.contains(&model.name) { NOT_NEEDED } else { MISSING };
        let found = own.next().ok_or(missing)?;
        if own.next().is_some() {
            return Err(
                "these results hold its model twice: which one counts cannot be told".into()
            );
        }
        let mismatch = trust::mismatch_with_policy(model, found, self.by);
        match mismatch.or_else(|| (self.fault)(model, found)) {
            Some(fault) => Err(fault),
            None => Ok(found),
        }
    }
}

/// The message about a model that the results must hold and do not hold.
const MISSING: &str = "it is not in these results: the job that measures it is missing";

/// The message about such a model if the results claim that it was not needed.
const NOT_NEEDED: &str =
    "it is not in these results, which claim that it was not needed, but such a claim does not count: measure it, \
     or judge with `--against REVISION`, which finds out from the commits what was not needed";

/// Whether results say anything about a cell.
fn has_result(results: &Results, model: &ModelPolicy, cell: &Cell) -> bool {
    let own = results.measurements.iter().filter(|measurement| measurement.model == model.name);
    own.flat_map(|measurement| &measurement.schemes).any(|scheme| scheme.scheme == cell.label)
}
