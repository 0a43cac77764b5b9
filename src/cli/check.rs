//! `kvgate check`: everything that can be known without inference.

use super::{say, say_coloured, Config, Stop, NOT_MEASURED};
use crate::gate::plan::estimated_seconds;
use crate::gate::Gate;
use crate::golden::{self, Golden};
use crate::hash;
use crate::kv::calibration::Calibration;
use crate::kv::effective::Effective;
use crate::measure::generate::{Asked, Generate};
use crate::measure::{corpus, needs, remarks, MeasureError, NUMERICS};
use crate::model::Checkpoint;
use crate::policy::{Cell, ModelPolicy};
use crate::results::replay::Generated;
use crate::results::{Conditions, CorpusFile};
use crate::source;
use crate::text;
use crate::text::command;
use crate::text::numbers::bytes;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: Config,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    let gate = arguments.config.gate()?;
    let mut code = 0;
    for model in &gate.policy.models {
        say(&model.name)?;
        if model.cells.iter().all(|cell| cell.ignored) {
            say("  ignored")?;
            for finding in damaged(&gate, model) {
                code = 1;
                say(format!("  golden   {finding}"))?;
            }
            continue;
        }
        match check(&gate, model) {
            Ok(checked) => {
                for line in &checked.lines {
                    say(format!("  {line}"))?;
                }
                for finding in goldens(&gate, model, &checked) {
                    code = 1;
                    say(format!("  golden   {finding}"))?;
                }
            }
            Err(findings) => {
                code = if code == 1 { 1 } else { NOT_MEASURED };
                for finding in &findings {
                    say_coloured(finding)?;
                }
            }
        }
    }
    Ok(code)
}

/// What a model's files say.
struct Checked {
    lines: Vec<String>,
    corpus: Vec<CorpusFile>,
    /// Effective scheme of the baseline.
    baseline: String,
    /// How the checkpoint is read, as conditions say it.
    reading: Vec<String>,
    /// The condition of that name.
    prompts: Option<String>,
    /// What is wrong with the golden of the baseline's text.
    text: Option<String>,
    /// SHA-256 of the accepted text, where it is sound.
    text_sha256: Option<String>,
    /// What each cell's scheme needs.
    needs: Vec<Vec<String>>,
}

fn check(gate: &Gate, model: &ModelPolicy) -> Result<Checked, Vec<String>> {
    let missing = model.missing_files();
    if !missing.is_empty() {
        return Err(missing.iter().map(|finding| finding.styled()).collect());
    }
    one_by_one(gate, model).map_err(|finding| vec![text::error(&format!("  error: {finding}"))])
}

fn one_by_one(gate: &Gate, model: &ModelPolicy) -> Result<Checked, String> {
    source::verify(&model.source).map_err(|error| error.to_string())?;
    let checkpoint = Checkpoint::open(&model.source).map_err(|error| error.to_string())?;
    let found = hash::of_files(checkpoint.files())
        .map_err(|(path, error)| format!("cannot read {}: {error}", path.display()))?;
    match &model.source.sha256 {
        Some(expected) if *expected != found => {
            return Err(format!("SHA-256 is {found}, the policy says {expected}"));
        }
        _ => {}
    }
    let texts = model.corpus.iter().map(|path| corpus::read(path));
    let texts = texts.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    let chunks = corpus::chunks(&texts, &checkpoint.tokenizer, model.context, model.chunks)
        .map_err(|error| error.to_string())?;
    corpus::mostly_new(&chunks).map_err(|error| error.to_string())?;
    let layout = checkpoint.spec.kv_layout();
    let files: Vec<_> = texts.iter().map(|text| text.file.clone()).collect();
    let calibration = calibration(model, &found, &files)?;
    let (calibration, calibrated) = calibration.unzip();
    let needs = model.cells.iter().map(|Cell { scheme, .. }| {
        Effective::new(scheme, &layout, calibration.as_ref())
            .map(|effective| needs(scheme, &effective, calibrated.as_deref()))
            .map_err(|error| format!("{scheme}: {error}"))
    });
    let needs = needs.collect::<Result<_, _>>()?;
    let baseline =
        Effective::new(&model.baseline, &layout, None).map_err(|error| error.to_string())?;
    let (asked, text) = prompts(gate, model, &found, &baseline, &checkpoint)?;
    let mut lines = estimates(model, &checkpoint);
    lines.extend(asked.as_ref().map(|asked| format!("prompts  {}", asked.prompts.prompts.len())));
    let schemes = model.cells.iter().map(|cell| &cell.scheme);
    let remarks = remarks(&texts, &chunks, asked.as_ref(), schemes, &layout);
    let notes = checkpoint.notes.iter().chain(&remarks);
    lines.extend(notes.map(|note| format!("note     {note}")));
    Ok(Checked {
        lines,
        corpus: files,
        baseline: baseline.to_string(),
        text_sha256: asked
            .as_ref()
            .map(|a| &a.generated)
            .filter(|g| g.accepted)
            .map(|g| g.sha256()),
        prompts: asked.map(|asked| asked.generated.conditions()),
        text,
        needs,
        reading: checkpoint.reading,
    })
}

/// The model's calibration and the hash of its file.
fn calibration(
    model: &ModelPolicy,
    weights_sha256: &str,
    corpus: &[CorpusFile],
) -> Result<Option<(Calibration, String)>, String> {
    let Some(path) = &model.calibration else { return Ok(None) };
    let calibration =
        Calibration::read(path, weights_sha256, corpus).map_err(|error| error.to_string())?;
    let sha256 = hash::of_file(path);
    let sha256 = sha256.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(Some((calibration, sha256)))
}

/// What the model is asked, and what is wrong with the golden of the text that the baseline writes then.
fn prompts(
    gate: &Gate,
    model: &ModelPolicy,
    weights_sha256: &str,
    baseline: &Effective,
    checkpoint: &Checkpoint,
) -> Result<(Option<Asked>, Option<String>), String> {
    let Some(prompts) = &model.generate else { return Ok((None, None)) };
    let read = |kept: Option<&Generated>| {
        let asked = Generate { prompts: &prompts.file, tokens: prompts.tokens, kept };
        Asked::read(&asked, &model.name, weights_sha256, baseline, checkpoint)
    };
    let (kept, damage) = match golden::read_text(&gate.root, &model.name) {
        Ok(kept) => (kept, None),
        Err(error) => (None, Some(error.to_string())),
    };
    let (asked, fault) = match read(kept.as_ref()) {
        Err(fault @ MeasureError::Text { .. }) => (read(None), Some(fault.to_string())),
        asked => (asked, None),
    };
    let asked = asked.map_err(|error| error.to_string())?;
    let other = kept.as_ref().and_then(|kept| asked.generated.unlike(kept));
    let mend = format!("`{}`, then `kvgate accept`", command::run(&model.name));
    let unaccepted = (!asked.generated.accepted).then(|| match other {
        Some(what) => {
            let file = golden::text_path(&gate.root, &model.name);
            format!(
                "{} is of another {what} than this model's text would be: {mend}",
                file.display()
            )
        }
        None => format!("the baseline's text is not accepted yet: {mend}"),
    });
    Ok((Some(asked), damage.or(fault).or(unaccepted)))
}

fn estimates(model: &ModelPolicy, checkpoint: &Checkpoint) -> Vec<String> {
    let spec = &checkpoint.spec;
    let lanes = model.cells.iter().filter(|cell| !cell.ignored).count() + 1;
    let tokens = (lanes * model.chunks * model.context) as f64;
    let cores = rayon::current_num_threads();
    let hidden = tokens * spec.hidden as f64 * 4.0;
    vec![
        format!("model    {} ok, {}", spec.architecture, checkpoint.tokenizer.kind),
        format!("corpus   {} chunks of {} tokens", model.chunks, model.context),
        format!("memory   about {}", bytes(spec.parameters() as f64 * 4.0 + hidden.min(2e9))),
        format!("time     about {:.0} s on {cores} cores", estimated_seconds(model, lanes, spec)),
    ]
}

/// Goldens that no run could read, of cases that are ignored as well.
fn damaged(gate: &Gate, model: &ModelPolicy) -> Vec<String> {
    let path = |cell: &Cell| golden::path(&gate.root, &model.cell_name(cell).file_stem());
    let cases = model.cells.iter().filter_map(|cell| Golden::read(&path(cell)).err());
    let text = model.generate.as_ref().map(|_| golden::read_text(&gate.root, &model.name));
    let text = text.and_then(Result::err);
    cases.chain(text).map(|error| error.to_string()).collect()
}

/// Goldens that a run would find missing, unreadable or stale.
fn goldens(gate: &Gate, model: &ModelPolicy, checked: &Checked) -> Vec<String> {
    let mut findings = Vec::new();
    let mut missing = Vec::new();
    let cells = model.cells.iter().zip(&checked.needs);
    for (cell, needs) in cells {
        let path = golden::path(&gate.root, &model.cell_name(cell).file_stem());
        match Golden::read(&path) {
            Err(error) => findings.push(error.to_string()),
            Ok(_) if cell.ignored => {}
            Ok(None) => missing.push(cell.label.as_str()),
            Ok(Some(golden)) => {
                let findings_of =
                    [stale(model, checked, needs, &golden), other_text(checked, &golden)];
                let findings_of = findings_of.into_iter().flatten();
                findings.extend(findings_of.map(|finding| format!("{} {finding}", cell.label)));
            }
        }
    }
    findings.extend(checked.text.clone());
    if !missing.is_empty() {
        let labels = missing.join(", ");
        findings.push(format!("none yet for {labels}: `kvgate run`, then `kvgate accept`"));
    }
    findings
}

/// How a golden's conditions differ from those of a run.
fn stale(
    model: &ModelPolicy,
    checked: &Checked,
    needs: &[String],
    golden: &Golden,
) -> Option<String> {
    let old = &golden.conditions;
    let now = Conditions {
        corpus: checked.corpus.clone(),
        context: model.context,
        chunks: model.chunks,
        baseline: checked.baseline.clone(),
        engine: NUMERICS.into(),
        reading: checked.reading.clone(),
        prompts: checked.prompts.clone(),
        needs: needs.into(),
        ..old.clone()
    };
    let stale: Vec<_> =
        golden::conditions_differ(old, &now).iter().map(ToString::to_string).collect();
    (!stale.is_empty()).then(|| format!("is stale: {}", stale.join("; ")))
}

/// A case is of the text that was accepted with it.
fn other_text(checked: &Checked, golden: &Golden) -> Option<String> {
    let (accepted, own) = (checked.text_sha256.as_deref()?, golden.text_sha256()?);
    (accepted != own).then(|| {
        "was made on another text of the baseline than the one that is accepted: take both files from version \
         control again, or run and accept anew"
            .into()
    })
}
