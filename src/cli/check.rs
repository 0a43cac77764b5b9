//! `kvgate check`: everything that can be known without inference.

use super::{bytes, say, say_coloured, Config, Stop, NOT_MEASURED};
use crate::gate::Gate;
use crate::golden::{self, Golden};
use crate::hash;
use crate::hub;
use crate::kv::calibration::Calibration;
use crate::kv::effective::Effective;
use crate::measure::generate::{Asked, Generate};
use crate::measure::replay::Generated;
use crate::measure::{at_work, corpus, needs, MeasureError, NUMERICS};
use crate::model::Checkpoint;
use crate::plan::estimated_seconds;
use crate::policy::{Cell, ModelPolicy, Prompts};
use crate::results::{Conditions, CorpusFile};
use crate::text;

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
    /// The condition of that name.
    prompts: Option<String>,
    /// What is wrong with the golden of the baseline's text.
    text: Option<String>,
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
    hub::verify(&model.source).map_err(|error| error.to_string())?;
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
    corpus::chunks(&texts, &checkpoint.tokenizer, model.context, model.chunks)
        .map_err(|error| error.to_string())?;
    let layout = checkpoint.spec.kv_layout();
    let files: Vec<_> = texts.into_iter().map(|text| text.file).collect();
    let calibration = model
        .calibration
        .as_ref()
        .map(|path| Calibration::read(path, &found, &files))
        .transpose()
        .map_err(|error| error.to_string())?;
    let calibrated = model.calibration.as_ref().map(|path| {
        hash::of_file(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    });
    let calibrated = calibrated.transpose()?;
    let needs = model.cells.iter().map(|Cell { scheme, .. }| {
        Effective::new(scheme, &layout, calibration.as_ref())
            .map_err(|error| error.to_string())
            .and_then(|effective| at_work(scheme, effective))
            .map(|effective| needs(scheme, &effective, calibrated.as_deref()))
            .map_err(|error| format!("{scheme}: {error}"))
    });
    let needs = needs.collect::<Result<_, _>>()?;
    let baseline =
        Effective::new(&model.baseline, &layout, None).map_err(|error| error.to_string())?;
    let kept = golden::read_text(&gate.root, &model.name);
    let (kept, mut text) = match kept {
        Ok(kept) => (kept, None),
        Err(error) => (None, Some(error.to_string())),
    };
    let read = |prompts: &Prompts, kept: Option<&Generated>| {
        let asked = Generate { prompts: &prompts.file, tokens: prompts.tokens, kept };
        Asked::read(&asked, &model.name, &found, &baseline, &checkpoint)
    };
    let asked = model.generate.as_ref().map(|prompts| match read(prompts, kept.as_ref()) {
        Err(fault @ MeasureError::Text { .. }) => {
            text = Some(fault.to_string());
            read(prompts, None)
        }
        read => read,
    });
    let asked = asked.transpose().map_err(|error| error.to_string())?;
    if asked.as_ref().is_some_and(|asked| !asked.generated.accepted) {
        let run = &model.name;
        text.get_or_insert_with(|| {
            format!(
                "the baseline's text is not accepted yet: `kvgate run {run}`, then `kvgate accept`"
            )
        });
    }
    let mut lines = estimates(model, &checkpoint);
    lines.extend(asked.as_ref().map(|asked| format!("prompts  {}", asked.prompts.prompts.len())));
    Ok(Checked {
        lines,
        corpus: files,
        baseline: baseline.to_string(),
        prompts: asked.map(|asked| asked.generated.conditions()),
        text,
        needs,
    })
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

/// Goldens that a run would find missing, unreadable or stale.
fn goldens(gate: &Gate, model: &ModelPolicy, checked: &Checked) -> Vec<String> {
    let mut findings = Vec::new();
    let mut missing = Vec::new();
    let cells = model.cells.iter().zip(&checked.needs);
    for (cell, needs) in cells.filter(|(cell, _)| !cell.ignored) {
        match Golden::read(&golden::path(&gate.root, &golden::stem(&model.name, &cell.label))) {
            Err(error) => findings.push(error.to_string()),
            Ok(None) => missing.push(cell.label.as_str()),
            Ok(Some(golden)) => {
                let old = &golden.conditions;
                let now = Conditions {
                    corpus: checked.corpus.clone(),
                    context: model.context,
                    chunks: model.chunks,
                    baseline: checked.baseline.clone(),
                    engine: NUMERICS.into(),
                    prompts: checked.prompts.clone(),
                    needs: needs.clone(),
                    ..old.clone()
                };
                let stale: Vec<_> =
                    golden::conditions_differ(old, &now).iter().map(ToString::to_string).collect();
                if !stale.is_empty() {
                    findings.push(format!("{} is stale: {}", cell.label, stale.join("; ")));
                }
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
