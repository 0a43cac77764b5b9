//! Results × policy × goldens → cases, without measuring: pure functions of what has been read.
//!
//! Results may come from elsewhere: another job, another engine, a stranger's pull request. What they say of
//! themselves, verdicts above all, counts for nothing; what contradicts itself or the policy is an error.

pub mod accept;
pub mod limits;
pub mod merge;
pub mod trust;

use crate::golden::{self, Golden, GoldenError};
use crate::policy::{Cell, ModelPolicy, Policy};
use crate::results::case::CaseKind;
use crate::results::measured_by::MeasuredBy;
use crate::results::replay::Generated;
use crate::results::verdict::{GoldenValues, Verdict};
use crate::results::{CaseResult, Change, Measurement, Outcome, Results, SchemeResult};
use std::collections::BTreeMap;
use std::path::Path;

/// Reads a file of the policy's folder, as it is on disk or as it was at a commit; none where there is none.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> Result<Option<String>, String>;

/// A measurement, and what is not to be trusted in it, by the label of the scheme.
pub struct Evidence<'m> {
    measurement: &'m Measurement,
    distrust: BTreeMap<String, String>,
}

impl<'m> Evidence<'m> {
    /// Of a measurement that `by` is said to have made.
    pub fn new(measurement: &'m Measurement, by: MeasuredBy) -> Self {
        Evidence { measurement, distrust: trust::distrust_by(measurement, by) }
    }

    /// The measurement itself.
    pub fn measurement(&self) -> &'m Measurement {
        self.measurement
    }

    /// The result of a cell, and why it cannot be trusted, if it cannot.
    ///
    /// # Errors
    /// No result, or two.
    pub fn found(
        &self,
        model: &ModelPolicy,
        cell: &Cell,
        by: MeasuredBy,
    ) -> Result<(&'m SchemeResult, Option<String>), String> {
        let mut own = self.measurement.schemes.iter().filter(|scheme| scheme.scheme == cell.label);
        let scheme = own.next().ok_or("the run has no result for this scheme")?;
        if own.next().is_some() {
            return Err("the run has two results for this scheme".into());
        }
        let distrust = self.distrust.get(&cell.label).cloned();
        let distrust = distrust
            .or_else(|| trust::contradiction(self.measurement, scheme, by))
            .or_else(|| trust::unlike_cell(model, cell, scheme, by));
        Ok((scheme, distrust))
    }
}

/// A scheme's result and why it cannot be trusted, if it cannot.
///
/// # Errors
/// What keeps its model from having results, and as of [`Evidence::found`].
pub fn found<'m>(
    measured: &Result<Evidence<'m>, String>,
    model: &ModelPolicy,
    cell: &Cell,
    by: MeasuredBy,
) -> Result<(&'m SchemeResult, Option<String>), String> {
    measured.as_ref().map_err(Clone::clone)?.found(model, cell, by)
}

/// What results are judged by.
pub struct Judge<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// Accepted goldens.
    pub goldens: ReadFile<'a>,
    /// The engine that is asked for, which results do not choose: see [`trust::distrust_by`].
    pub by: MeasuredBy,
    /// Whether a model must be there; of the others what is there is judged.
    pub is_needed: &'a dyn Fn(&ModelPolicy) -> bool,
    /// Why the measurement of a model is not of what is asked for.
    pub fault: &'a dyn Fn(&ModelPolicy, &Measurement) -> Option<String>,
}

impl Judge<'_> {
    /// Judges every cell of the policy, in its order. A cell that is needed and not there is an error: a job
    /// that is lost must not look like one that passed.
    pub fn cases(&self, results: &Results) -> Vec<CaseResult> {
        let models = self.policy.models.iter().flat_map(|model| {
            let measured = self.measurement_of(model, results);
            let measured = measured.map(|measurement| Evidence::new(measurement, self.by));
            let cells =
                model.cells.iter().flat_map(|cell| self.cell(model, cell, results, &measured));
            cells.collect::<Vec<_>>()
        });
        models.collect()
    }

    /// The cases of a cell.
    fn cell(
        &self,
        model: &ModelPolicy,
        cell: &Cell,
        results: &Results,
        measured: &Result<Evidence, String>,
    ) -> Vec<CaseResult> {
        if !is_there(results, model, cell) {
            if cell.ignored {
                let ignored = |kind| CaseResult::new(model.case(cell, kind), Verdict::Ignored, "");
                return CaseKind::ALL.map(ignored).into();
            }
            if !(self.is_needed)(model) {
                return Vec::new();
            }
        }
        let golden = golden_of(model, cell, self.by, self.goldens);
        let values = golden.as_ref().ok().and_then(Option::as_ref).map(Golden::statistics);
        vec![
            limits_case(model, cell, measured, self.by, values.as_ref()),
            self.golden_case(model, cell, measured, golden),
        ]
    }

    /// The measurement of a model, as the policy wants it measured.
    fn measurement_of<'r>(
        &self,
        model: &ModelPolicy,
        results: &'r Results,
    ) -> Result<&'r Measurement, String> {
        let mut own = results.measurements.iter().filter(|m| m.model == model.name);
        let missing = match results.not_needed.contains(&model.name) {
            true => NOT_NEEDED,
            false => "it is not in these results: the job that measures it is missing",
        };
        let found = own.next().ok_or(missing)?;
        if own.next().is_some() {
            return Err(
                "these results hold its model twice: which one counts cannot be told".into()
            );
        }
        let unlike = trust::unlike_policy(model, found, self.by);
        match unlike.or_else(|| (self.fault)(model, found)) {
            Some(fault) => Err(fault),
            None => Ok(found),
        }
    }

    /// The `golden` case of a cell: its accepted snapshot.
    fn golden_case(
        &self,
        model: &ModelPolicy,
        cell: &Cell,
        measured: &Result<Evidence, String>,
        golden: Result<Option<Golden>, String>,
    ) -> CaseResult {
        let name = model.case(cell, CaseKind::Golden).to_string();
        match self.compared(model, cell, measured, golden) {
            Err(error) => CaseResult::new(name, Verdict::Error, error),
            Ok(judged) => {
                let case = CaseResult::new(name, judged.verdict, judged.message.trim_end());
                CaseResult { changes: judged.changes, ..case }
            }
        }
    }

    fn compared(
        &self,
        model: &ModelPolicy,
        cell: &Cell,
        measured: &Result<Evidence, String>,
        golden: Result<Option<Golden>, String>,
    ) -> Result<golden::GoldenVerdict, String> {
        let nothing = |error: String| format!("nothing to compare with the golden: {error}");
        let scheme = match found(measured, model, cell, self.by).map_err(nothing)? {
            (scheme, None) => scheme,
            (_, Some(distrust)) => return Err(nothing(distrust)),
        };
        let measurement = measured.as_ref().map_err(Clone::clone)?.measurement;
        let new = Golden::of(measurement, scheme).map_err(|error| error.to_string())?;
        let text = text_is_accepted(measurement, self.goldens)?;
        Ok(golden::verdict_of(&golden::compare(golden?.as_ref(), &new), text))
    }
}

/// Of a model that must be there and that results leave out by their own word.
const NOT_NEEDED: &str =
    "it is not in these results, which say that it was not needed, and that is no more than their word: measure \
     it, or judge with `--against REVISION`, which knows from the commits what was not needed";

/// Whether results say anything about a cell.
fn is_there(results: &Results, model: &ModelPolicy, cell: &Cell) -> bool {
    let own = results.measurements.iter().filter(|measurement| measurement.model == model.name);
    own.flat_map(|measurement| &measurement.schemes).any(|scheme| scheme.scheme == cell.label)
}

/// How the values of a cell have moved from a golden, which may be another one than the cell is judged by.
pub fn changes(
    model: &ModelPolicy,
    cell: &Cell,
    by: MeasuredBy,
    results: &Results,
    goldens: ReadFile,
) -> Vec<Change> {
    let own = results.measurements.iter().find(|measurement| measurement.model == model.name);
    let compared = own.and_then(|measurement| {
        let scheme = measurement.schemes.iter().find(|scheme| scheme.scheme == cell.label)?;
        let golden = golden_of(model, cell, by, goldens).ok()??;
        Some(golden::compare(Some(&golden), &Golden::of(measurement, scheme).ok()?))
    });
    compared.map_or(Vec::new(), |comparison| golden::verdict_of(&comparison, true).changes)
}

/// The `kld` case of a cell: its limits.
pub fn limits_case(
    model: &ModelPolicy,
    cell: &Cell,
    measured: &Result<Evidence, String>,
    by: MeasuredBy,
    golden: Option<&GoldenValues>,
) -> CaseResult {
    let (outcome, distrust) = match found(measured, model, cell, by) {
        Ok((scheme, distrust)) => (scheme.outcome.clone(), distrust),
        Err(error) => (Outcome::Failed { error }, None),
    };
    let judged = limits::judge(model, cell, &outcome, distrust.as_deref(), golden);
    let case = CaseResult::new(model.case(cell, CaseKind::Kld), judged.verdict, judged.message);
    CaseResult { limits: judged.limits, ..case }
}

/// The golden of a cell, of the engine that measured.
fn golden_of(
    model: &ModelPolicy,
    cell: &Cell,
    by: MeasuredBy,
    goldens: ReadFile,
) -> Result<Option<Golden>, String> {
    let path = golden::path_by(Path::new(""), by, &model.cell_name(cell).file_stem());
    let text = goldens(&path)?;
    let parse = |text: String| Golden::parse(&text, &path.display().to_string());
    text.map(parse).transpose().map_err(|error: GoldenError| error.to_string())
}

/// Whether the text that was measured on is the accepted one, by its tokens.
fn text_is_accepted(measurement: &Measurement, goldens: ReadFile) -> Result<bool, String> {
    let Some(generated) = &measurement.generated else { return Ok(true) };
    let path = golden::text_path(Path::new(""), &measurement.model);
    let Some(text) = goldens(&path)? else { return Ok(false) };
    let accepted = golden::parse_text(&text, &path.display().to_string());
    let accepted = accepted.map_err(|error| error.to_string())?;
    let ties = |text: &Generated| -> Vec<Vec<usize>> {
        text.continuations.iter().map(|continuation| continuation.near_ties.clone()).collect()
    };
    // a text that was written anew has the near ties of its own machine
    let same_ties = !generated.accepted || ties(generated) == ties(&accepted);
    Ok(generated.is_of(&accepted) && generated.sha256() == accepted.sha256() && same_ties)
}
