//! Finds measurements that were not made in the way that the policy asks for.

use super::{drawn, mimics};
use crate::kv::effective::codec_names;
use crate::policy::{Cell, ModelPolicy};
use crate::results::measured_by::MeasuredBy;
use crate::results::retrieval::Plan;
use crate::results::{Measurement, Outcome, SchemeResult};
use crate::source::{Source, BOS};
use std::collections::BTreeSet;

/// How a measurement differs from what the policy asks for, apart from the texts that it was made on.
pub fn mismatch_with_policy(
    model: &ModelPolicy,
    measurement: &Measurement,
    by: MeasuredBy,
) -> Option<String> {
    let conditions = &measurement.conditions;
    if (conditions.context, conditions.chunks) != (model.context, model.chunks) {
        return Some(format!(
            "it was measured at {} × {}, and the policy asks for {} × {}",
            conditions.context, conditions.chunks, model.context, model.chunks
        ));
    }
    if by != MeasuredBy::Kvgate || MeasuredBy::of(&conditions.engine) != by {
        return None; // logs of another engine do not say the rest, and a false name of an engine is distrusted elsewhere
    }
    let found = &measurement.subject.weights_sha256;
    let pinned = model.source.sha256.as_ref().filter(|pinned| *pinned != found);
    let baseline = model.baseline.default.k.codec.name();
    if mimics(measurement) {
        Some(format!("it was measured with another engine's habits: {}", conditions.engine))
    } else if codec_names(&conditions.baseline) != BTreeSet::from([baseline]) {
        let theirs = &conditions.baseline;
        Some(format!(
            "it was compared with the baseline {theirs}, and the policy asks for {baseline}"
        ))
    } else if let Some(pinned) = pinned {
        Some(format!("it is of weights with SHA-256 {found}, and the policy asks for {pinned}"))
    } else if model.generate.is_some() && measurement.generated.is_none() {
        Some("it was measured without the prompts that the policy asks for".into())
    } else if let Some(retrieval) = model.retrieval.as_ref().filter(|retrieval| {
        measurement.haystacks.as_ref().map(|haystacks| &haystacks.plan) != Some(&retrieval.plan)
    }) {
        let Plan { lengths, contexts, needles, seed } = &retrieval.plan;
        Some(format!(
            "it was measured without the contexts for `retrieval` that the policy asks for: {contexts} of each of the \
             lengths {lengths:?} with {needles} needles and the seed {seed}"
        ))
    } else {
        drawn::other_mixture(measurement)
            .or_else(|| mismatch_with_source(&model.source, &conditions.reading))
    }
}

/// How the checkpoint was read in another way than the policy asks for.
fn mismatch_with_source(source: &Source, reading: &[String]) -> Option<String> {
    let is_bos = |line: &&String| {
        let word = line.strip_prefix(BOS);
        word.is_some_and(|word| word == "none" || word.parse::<u32>().is_ok())
    };
    let (bos, asked): (Vec<_>, Vec<_>) = reading.iter().partition(is_bos);
    let wanted = source.reading();
    if asked != wanted.iter().collect::<Vec<_>>() {
        let words = |lines: &[&String]| match lines {
            [] => "as it is".to_owned(),
            lines => lines.iter().map(|line| format!("`{line}`")).collect::<Vec<_>>().join(", "),
        };
        return Some(format!(
            "its checkpoint was read {}, and the policy asks for it to be read {}",
            words(&asked),
            words(&wanted.iter().collect::<Vec<_>>())
        ));
    }
    let wanted = source.bos?;
    match bos[..] {
        [line] if line.ends_with(NO_BOS) != wanted => None,
        [line] => {
            Some(format!("it was measured with `{line}`, and the policy says otherwise (`bos`)"))
        }
        _ => Some(
            "it does not say which BOS it was measured with, and the policy does (`bos`)".into(),
        ),
    }
}

/// The end of the line about BOS if chunks do not begin with it.
const NO_BOS: &str = " none";

/// How a scheme's result differs from what its cell of the policy asks for.
pub fn mismatch_with_cell(
    model: &ModelPolicy,
    cell: &Cell,
    scheme: &SchemeResult,
    by: MeasuredBy,
) -> Option<String> {
    if by != MeasuredBy::Kvgate || matches!(scheme.outcome, Outcome::Failed { .. }) {
        return None;
    }
    let pairs = cell.scheme.layers.iter().map(|(_, pair)| pair).chain([&cell.scheme.default]);
    let named: BTreeSet<&str> =
        pairs.flat_map(|pair| [pair.k.codec.name(), pair.v.codec.name()]).collect();
    let ran = codec_names(&scheme.effective);
    if let Some(other) = ran.difference(&named).next() {
        return Some(format!(
            "`{}` ran, and `{other}` is no codec of `{}`, which the policy asks for",
            scheme.effective, cell.scheme
        ));
    }
    // every codec that a scheme names stores some layer, or the scheme would have been refused before it was measured
    if let Some(idle) = named.difference(&ran).next() {
        return Some(format!(
            "`{}` ran, and nothing of it is the `{idle}` of `{}`, which the policy asks for",
            scheme.effective, cell.scheme
        ));
    }
    (model.generate.is_some() && scheme.replay.is_none())
        .then(|| "it has no replay of the text that the policy asks for".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{self, Golden};
    use crate::policy::Policy;
    use crate::testing::fixture;
    use std::path::Path;

    /// What really ran under every scheme of this repository's own gate is what its cell names.
    #[test]
    fn the_repository_s_own_goldens_ran_what_they_are_called() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (policy, _) = Policy::load(&root.join("thresholds.toml")).unwrap();
        let mut seen = 0;
        for model in &policy.models {
            for cell in &model.cells {
                let path = golden::path(root, &model.cell_name(cell).file_stem());
                let Some(golden) = Golden::read(&path).unwrap() else { continue };
                let mut ran = fixture::results().measurements[0].schemes[0].clone();
                ran.effective = golden.effective;
                let unpromptly = ModelPolicy { generate: None, ..model.clone() };
                let found = mismatch_with_cell(&unpromptly, cell, &ran, MeasuredBy::Kvgate);
                assert_eq!(found, None, "{}::{}", model.name, cell.label);
                seen += 1;
            }
        }
        assert!(seen >= 28, "{seen} goldens");
    }

    #[test]
    fn what_was_not_asked_for_is_told() {
        let policy = fixture::policy();
        let mut model = policy.models[0].clone();
        let measurement = &fixture::results().measurements[0];
        let cell = model.cells[0].clone();
        let says = |model: &ModelPolicy, edit: &dyn Fn(&mut Measurement)| {
            let mut measurement = measurement.clone();
            edit(&mut measurement);
            let of_cell =
                mismatch_with_cell(model, &cell, &measurement.schemes[0], MeasuredBy::Kvgate);
            mismatch_with_policy(model, &measurement, MeasuredBy::Kvgate)
                .or(of_cell)
                .unwrap_or_default()
        };
        assert_eq!(says(&model, &|_| ()), "");
        let starts = |said: String, start: &str| assert!(said.starts_with(start), "{said}");
        starts(says(&model, &|m| m.conditions.context = 4096), "it was measured at 4096 × 16, and");
        starts(
            says(&model, &|m| m.conditions.baseline = "q4_0/q4_0".into()),
            "it was compared with the baseline q4_0/q4_0, and the policy asks for f16",
        );
        let mimics = |m: &mut Measurement| m.conditions.engine += ", mimicking llama.cpp";
        starts(says(&model, &mimics), "it was measured with another engine's habits");
        starts(
            says(&model, &|m| m.schemes[0].effective = "bf16/bf16".into()),
            "`bf16/bf16` ran, and `bf16` is no codec of `q8_0`",
        );
        let untrained = |m: &mut Measurement| m.conditions.reading = vec!["untrained".into()];
        starts(
            says(&model, &untrained),
            "its checkpoint was read `untrained`, and the policy asks for it to be read as it is",
        );
        model.source.untrained = true;
        assert_eq!(says(&model, &untrained), "");
        starts(
            says(&model, &|_| ()),
            "its checkpoint was read as it is, and the policy asks for it",
        );
        model.source.untrained = false;
        let without_bos = |m: &mut Measurement| m.conditions.reading = vec!["bos none".into()];
        assert_eq!(
            says(&model, &without_bos),
            "",
            "the checkpoint decides where the policy does not"
        );
        model.source.bos = Some(true);
        starts(says(&model, &without_bos), "it was measured with `bos none`, and the policy says");
        starts(says(&model, &|_| ()), "it does not say which BOS it was measured with");
        let with_bos = |m: &mut Measurement| m.conditions.reading = vec!["bos 2".into()];
        assert_eq!(says(&model, &with_bos), "");
        model.source.bos = Some(false);
        starts(says(&model, &with_bos), "it was measured with `bos 2`, and the policy says");
        model.source.bos = None;
        let odd = |m: &mut Measurement| m.conditions.reading = vec!["bos two".into()];
        starts(says(&model, &odd), "its checkpoint was read `bos two`, and the policy");
        model.source.sha256 = Some("00".into());
        starts(says(&model, &|_| ()), "it is of weights with SHA-256 a5fd3b62, and the policy");
        model.source.sha256 = None;
        let file = "prompts.toml".into();
        model.generate = Some(crate::policy::Prompts { file, tokens: 8 });
        starts(says(&model, &|_| ()), "it was measured without the prompts");
        let texts = |m: &mut Measurement| m.generated = Some(fixture::generated());
        starts(says(&model, &texts), "it has no replay of the text");
    }
}
