//! `kvgate check` checks everything that can be checked without running a model.

use super::memory;
use super::shared::{say, say_coloured, Config, Earlier, On, Stop, NOT_MEASURED};
use crate::compute::Device;
use crate::gate::{plan, request, Project};
use crate::golden::{self, Golden, GoldenError};
use crate::judge::limits;
use crate::measure::prepare::{Prepared, PreparedScheme};
use crate::measure::{self, MeasureError};
use crate::model::decoder::{self, Residency};
use crate::policy::{Cell, ModelPolicy};
use crate::results::replay::Generated;
use crate::results::{json, Conditions};
use crate::text;
use crate::text::command;
use crate::text::numbers::{bytes, count};
use std::collections::BTreeSet;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: Config,
    #[command(flatten)]
    on: On,
    #[command(flatten)]
    earlier: Earlier,
}

/// What was found about a model, in the order in which it is printed.
#[derive(Default)]
struct Findings {
    /// What the model's files say.
    lines: Vec<String>,
    /// Why the model, or some of its schemes, cannot be measured.
    errors: Vec<String>,
    /// What is wrong with its goldens.
    goldens: Vec<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    let mut project = arguments.config.project()?;
    let mut earlier = arguments.earlier.results()?;
    if earlier.is_empty() {
        // those of the last run here, if there are any
        earlier.extend(json::read(&project.results.join(json::FILE)));
    }
    project.device = arguments.on.device()?;
    let took = plan::measured(&earlier, &project.device);
    let mut code = 0;
    for model in &project.policy.models {
        say(&model.name)?;
        let findings = if model.cells.iter().all(|cell| cell.ignored) {
            let goldens = damaged_goldens(&project, model);
            Findings { lines: vec!["ignored".into()], goldens, ..Findings::default() }
        } else {
            check(&project, model, took.get(&model.name).copied())
        };
        for line in &findings.lines {
            say(format!("  {line}"))?;
        }
        for error in &findings.errors {
            say_coloured(error)?;
        }
        for golden in &findings.goldens {
            say(format!("  golden   {golden}"))?;
        }
        // as in a run, a golden that does not hold outranks what cannot be measured
        if !findings.goldens.is_empty() {
            code = 1;
        } else if !findings.errors.is_empty() && code == 0 {
            code = NOT_MEASURED;
        }
    }
    Ok(code)
}

/// Checks a model. `pace` is how many seconds a position of a lane took in an earlier run, if that is known.
fn check(project: &Project, model: &ModelPolicy, pace: Option<f64>) -> Findings {
    let missing = model.missing_files();
    if !missing.is_empty() {
        let errors = missing.iter().map(|finding| finding.styled()).collect();
        return Findings { errors, ..Findings::default() };
    }
    let (kept, unreadable) = match accepted_text(project, model) {
        Ok(kept) => (kept, None),
        Err(error) => (None, Some(error.to_string())),
    };
    let cells: Vec<&Cell> = model.cells.iter().collect();
    let [request, without_text] =
        [kept.as_ref(), None].map(|kept| request(model, &cells, kept, &project.device));
    match Prepared::on_disk(&request) {
        // the rest is checked as if no text were accepted
        Err(fault @ MeasureError::Text { .. }) => {
            let prepared = Prepared::on_disk(&without_text);
            report(project, model, prepared, pace, |_| Some(fault.to_string()))
        }
        prepared => report(project, model, prepared, pace, |prepared| {
            unreadable.or_else(|| unaccepted(project, model, prepared, kept.as_ref()))
        }),
    }
}

/// The accepted text of the baseline, if the policy asks for one.
fn accepted_text(project: &Project, model: &ModelPolicy) -> Result<Option<Generated>, GoldenError> {
    if model.generate.is_none() {
        return Ok(None);
    }
    golden::read_text(&project.root, &model.name)
}

/// Says why the baseline's text is not accepted, if it is not.
fn unaccepted(
    project: &Project,
    model: &ModelPolicy,
    prepared: &Prepared,
    kept: Option<&Generated>,
) -> Option<String> {
    let generated = &prepared.text.as_ref()?.generated;
    if generated.accepted {
        return None;
    }
    let mend = format!("`{}`, then `kvgate accept`", command::run(&model.name));
    Some(match kept.and_then(|kept| generated.unlike(kept)) {
        Some(what) => {
            let file = golden::text_path(&project.root, &model.name);
            let file = file.display();
            format!("{file} is of another {what} than this model's text would be: {mend}")
        }
        None => format!("the baseline's text is not accepted yet: {mend}"),
    })
}

/// Puts together what is known of a model. `text_fault` says what is wrong with the golden of the baseline's text.
fn report(
    project: &Project,
    model: &ModelPolicy,
    prepared: Result<Prepared, MeasureError>,
    pace: Option<f64>,
    text_fault: impl FnOnce(&Prepared) -> Option<String>,
) -> Findings {
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            return Findings { errors: vec![styled(&error.to_string())], ..Findings::default() }
        }
    };
    let text = prepared.text.as_ref();
    let mut lines = estimates(model, &prepared, pace);
    lines.extend(text.map(|text| format!("prompts  {}", text.prompts.prompts.len())));
    lines.extend(prepared.request.retrieval.map(|plan| {
        let lengths: Vec<_> = plan.lengths.iter().map(usize::to_string).collect();
        let (contexts, needles) = (count(plan.contexts, "context"), plan.needles);
        format!("needles  {needles} in each of {contexts} of {} tokens", lengths.join(", "))
    }));
    lines.extend(cache(model, &prepared));
    lines.extend(prepared.notes(None).iter().map(|note| format!("note     {note}")));
    let errors =
        prepared.schemes.iter().filter_map(|PreparedScheme { scheme, effective, .. }| {
            let error = effective.as_ref().err()?;
            Some(styled(&format!("{scheme}: {error}")))
        });
    let errors =
        errors.chain(unjudgeable(model, &prepared).into_iter().map(|error| styled(&error)));
    Findings {
        lines,
        errors: errors.collect(),
        goldens: goldens(project, model, &prepared, text_fault(&prepared)),
    }
}

/// Limits by category for which a text is too short. A limit may reach many schemes, and is told once.
fn unjudgeable(model: &ModelPolicy, prepared: &Prepared) -> BTreeSet<String> {
    let categories = || prepared.corpus.chunks.iter().map(|chunk| &chunk.category[..]);
    let limits = model.cells.iter().flat_map(|cell| &cell.limits);
    limits.filter_map(|limit| limits::too_few_chunks(limit, categories())).collect()
}

fn styled(error: &str) -> String {
    text::error(&format!("  error: {error}"))
}

/// What would run where, and what it would take.
fn estimates(model: &ModelPolicy, prepared: &Prepared, pace: Option<f64>) -> Vec<String> {
    let Prepared { device, checkpoint, .. } = prepared;
    let spec = &checkpoint.spec;
    let schemes = model.cells.iter().filter(|cell| !cell.ignored).count();
    let estimated = plan::estimated_seconds(model, schemes + 1, spec);
    let took = pace.map(|seconds| seconds * plan::positions(model, schemes + 1));
    vec![
        format!("model    {} ok, {}", spec.architecture, checkpoint.tokenizer.kind),
        format!("corpus   {} chunks of {} tokens", model.chunks, model.context),
        format!("device   {}, {}", device.describe(), device.arithmetic()),
        format!("memory   {}", memory(prepared, schemes)),
        format!("time     {}", time(device, took, estimated)),
    ]
}

/// What weights and hidden states take, and what there is. What the engine needs for a moment inside a layer is not
/// counted.
fn memory(prepared: &Prepared, schemes: usize) -> String {
    let device = &prepared.device;
    let residency = prepared.residency();
    let checkpoint = &prepared.checkpoint;
    let spec = &checkpoint.spec;
    let weights = decoder::weight_bytes(spec, device, checkpoint.has_short_weights(), residency);
    let (chunks, hidden) = measure::group(prepared, schemes);
    let shown = |n: u64| bytes(n as f64);
    let kept = match residency {
        Residency::Resident => "resident",
        Residency::Streamed => "streamed, one layer at a time",
    };
    let there_is = device.memory();
    let too_much = weights + hidden as u64 > there_is;
    format!(
        "weights {}, {kept}; hidden states of {} {}; {}{}{}",
        shown(weights),
        count(chunks, "chunk"),
        shown(hidden as u64),
        shown(there_is),
        if device.card().is_some() { " free on the card" } else { " in this machine" },
        if too_much { ", which is too little" } else { "" }
    )
}

/// What the cache of one sequence takes where people serve the model, under each scheme of the policy that fits.
fn cache(model: &ModelPolicy, prepared: &Prepared) -> Vec<String> {
    let schemes = model.cells.iter().zip(&prepared.schemes).filter(|(cell, _)| !cell.ignored);
    let fitting =
        schemes.filter_map(|(_, scheme)| Some((scheme.label, scheme.effective.as_ref().ok()?)));
    let spec = &prepared.checkpoint.spec;
    let lines = memory::lines(spec.trained_context, spec.state_bytes(), fitting);
    let titles = std::iter::once("cache").chain(std::iter::repeat(""));
    lines.iter().zip(titles).map(|(line, title)| format!("{title:<7}{line}")).collect()
}

/// How long the model takes, as far as somebody knows.
fn time(device: &Device, took: Option<f64>, estimated: f64) -> String {
    match took {
        Some(seconds) => format!("about {seconds:.0} s, as in an earlier run on such a device"),
        None if device.card().is_some() => {
            "unknown, because no results of an earlier run on such a card are at hand; `--costs RESULTS.json` names some"
                .into()
        }
        None => format!(
            "about {estimated:.0} s if each core does {} GFLOP/s; no results of an earlier run on the CPU are at hand",
            plan::FLOPS_PER_CORE / 1e9
        ),
    }
}

fn read_golden(
    project: &Project,
    model: &ModelPolicy,
    cell: &Cell,
) -> Result<Option<Golden>, GoldenError> {
    Golden::read(&golden::path(&project.root, &model.cell_name(cell).file_stem()))
}

/// The goldens of a model that no run could read. Those of ignored cases count, too.
fn damaged_goldens(project: &Project, model: &ModelPolicy) -> Vec<String> {
    let cells = model.cells.iter().filter_map(|cell| read_golden(project, model, cell).err());
    cells.chain(accepted_text(project, model).err()).map(|error| error.to_string()).collect()
}

/// The goldens that a run would find missing, unreadable or stale.
fn goldens(
    project: &Project,
    model: &ModelPolicy,
    prepared: &Prepared,
    text_fault: Option<String>,
) -> Vec<String> {
    let mut findings = Vec::new();
    let mut missing = Vec::new();
    for (cell, scheme) in model.cells.iter().zip(&prepared.schemes) {
        match read_golden(project, model, cell) {
            Err(error) => findings.push(error.to_string()),
            // a run does not compare the golden of such a case
            Ok(_) if cell.ignored || scheme.effective.is_err() => {}
            Ok(None) => missing.push(cell.label.as_str()),
            Ok(Some(golden)) => {
                let faults = [stale(prepared, scheme, &golden), other_text(prepared, &golden)];
                let faults = faults.into_iter().flatten();
                findings.extend(faults.map(|fault| format!("{} {fault}", cell.label)));
            }
        }
    }
    findings.extend(text_fault);
    if !missing.is_empty() {
        let labels = missing.join(", ");
        findings.push(format!("none yet for {labels}: `kvgate run`, then `kvgate accept`"));
    }
    findings
}

/// Says how a golden's conditions differ from those of a run on this machine.
fn stale(prepared: &Prepared, scheme: &PreparedScheme, golden: &Golden) -> Option<String> {
    let now = Conditions { needs: scheme.needs.clone(), ..prepared.conditions.clone() };
    let differences = golden::conditions_differ(&golden.conditions, &now);
    let differences: Vec<_> = differences.iter().map(ToString::to_string).collect();
    (!differences.is_empty()).then(|| format!("is stale: {}", differences.join("; ")))
}

/// Says if a golden was made on another text of the baseline than the one that is accepted.
fn other_text(prepared: &Prepared, golden: &Golden) -> Option<String> {
    let generated = prepared.text.as_ref().map(|text| &text.generated);
    let accepted = generated.filter(|generated| generated.accepted)?.sha256();
    (accepted != golden.text_sha256()?).then(|| {
        "was made on another text of the baseline than the one that is accepted: take both files from version \
         control again, or run and accept anew"
            .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::device::pretended_card;

    #[test]
    fn nobody_invents_the_speed_of_a_card() {
        let (cpu, card) = (Device::cpu(), pretended_card());
        assert!(time(&card, None, 12.0).starts_with("unknown"));
        assert!(time(&cpu, None, 12.0)
            .starts_with("about 12 s if each core does 60 GFLOP/s; no results"));
        for device in [cpu, card] {
            assert_eq!(
                time(&device, Some(7.4), 12.0),
                "about 7 s, as in an earlier run on such a device"
            );
        }
    }
}
