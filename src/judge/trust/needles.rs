//! Finds results of retrieval that cannot be trusted.

use super::{is_same_baseline, LEAST_MEAN_KLD};
use crate::measure::BAD_LANE_KLD;
use crate::results::retrieval::{Answers, Haystacks, NeedleControl, Retrieved, DEPTHS};
use crate::results::{Measurement, Outcome, SchemeResult, CONTROLS};

/// Why nothing that a measurement retrieved can be trusted: a control lane is missing or does not read as it must, or
/// schemes were compared with different baselines.
pub fn broken_needles(measurement: &Measurement) -> Option<String> {
    let haystacks = measurement.haystacks.as_ref()?;
    broken_control(haystacks).or_else(|| contradicting_baselines(measurement))
}

fn broken_control(haystacks: &Haystacks) -> Option<String> {
    let Haystacks { plan, sha256, controls } = haystacks;
    if sha256.len() != plan.lengths.len() {
        return Some("it does not say which contexts its needles stood in".into());
    }
    for length in &plan.lengths {
        for name in CONTROLS {
            if !controls.iter().any(|control| control.name == name && control.length == *length) {
                return Some(format!(
                    "the run carried no control lane `{name}` on contexts of {length} tokens"
                ));
            }
        }
    }
    controls.iter().find_map(|control| {
        let contradiction = control.answers.contradiction().map(|what| {
            format!(
                "of the control `{}` on contexts of {} tokens, {what}",
                control.name, control.length
            )
        });
        contradiction.or_else(|| control.fault(BAD_LANE_KLD))
    })
}

fn contradicting_baselines(measurement: &Measurement) -> Option<String> {
    let mut all = measurement.schemes.iter().filter(|scheme| !scheme.retrieved.is_empty());
    let first = all.next()?;
    let parts = |scheme: &SchemeResult| -> Vec<(usize, Answers)> {
        let lengths = scheme.retrieved.iter();
        lengths.flat_map(|one| one.parts.iter().map(|part| (one.length, *part))).collect()
    };
    let known = parts(first);
    let is_same = |(known, own): (&(usize, Answers), &(usize, Answers))| {
        known.0 == own.0
            && known.1.tokens == own.1.tokens
            && known.1.retrieved_base.abs_diff(own.1.retrieved_base) <= 1
            && is_same_baseline(known.1.nll_base, own.1.nll_base)
    };
    let differs = |scheme: &&SchemeResult| {
        let own = parts(scheme);
        own.len() != known.len() || !known.iter().zip(&own).all(is_same)
    };
    if let Some(other) = all.find(differs) {
        return Some(format!(
            "`{}` and `{}` were compared with different baselines on the contexts with needles",
            first.scheme, other.scheme
        ));
    }
    let haystacks = measurement.haystacks.as_ref()?;
    let control =
        haystacks.controls.iter().find(|control| is_of_another(control, haystacks, first))?;
    Some(format!(
        "the control `{}` on contexts of {} tokens was compared with another baseline than `{}`",
        control.name, control.length, first.scheme
    ))
}

/// Whether a control's baseline is not that of a scheme on the same contexts, which are the first ones of a length.
fn is_of_another(control: &NeedleControl, haystacks: &Haystacks, scheme: &SchemeResult) -> bool {
    let each = (haystacks.plan.needles as u64).max(1);
    if !control.answers.needles.is_multiple_of(each) {
        return false; // whichever is wrong, the contexts do not have so many needles
    }
    let contexts = control.answers.needles / each;
    let of_length = scheme.retrieved.iter().find(|retrieved| retrieved.length == control.length);
    let parts = of_length.map_or(&[][..], |retrieved| &retrieved.parts);
    let first = || parts.iter().take(contexts as usize);
    let retrieved: u64 = first().map(|part| part.retrieved_base).sum();
    let nll: f64 = first().map(|part| part.nll_base).sum();
    control.answers.retrieved_base.abs_diff(retrieved) > contexts
        || !is_same_baseline(nll, control.answers.nll_base)
}

/// How what a scheme retrieved contradicts itself, or what the measurement says of its contexts.
pub fn contradiction(measurement: &Measurement, scheme: &SchemeResult) -> Option<String> {
    if matches!(scheme.outcome, Outcome::Failed { .. }) {
        return None;
    }
    let Some(haystacks) = &measurement.haystacks else {
        let is_there = !scheme.retrieved.is_empty();
        return is_there.then(|| "it retrieved needles, and their contexts are missing".into());
    };
    let plan = &haystacks.plan;
    if !scheme.retrieved.iter().map(|retrieved| &retrieved.length).eq(&plan.lengths) {
        return Some("it was not measured on the contexts with needles, or on others".into());
    }
    let is_baseline = scheme.effective == measurement.conditions.baseline;
    let wrong = |retrieved: &Retrieved| {
        let Retrieved { by_depth, parts, .. } = retrieved;
        let is_kld = |kld: &f64| kld.is_finite() && *kld >= LEAST_MEAN_KLD;
        let all = retrieved.all();
        let is_same = all.kld == 0.0 && all.nll == all.nll_base && (all.lost, all.gained) == (0, 0);
        if parts.len() != plan.contexts {
            Some(format!("there are {} contexts and not {}", parts.len(), plan.contexts))
        } else if parts.iter().any(|part| part.needles != plan.needles as u64) {
            Some(format!("a context does not have {} needles", plan.needles))
        } else if by_depth.len() != DEPTHS || !by_depth.iter().all(is_kld) {
            Some(format!("its KLD by depth is {by_depth:?}"))
        } else if is_baseline && !(is_same && by_depth.iter().all(|kld| *kld == 0.0)) {
            Some("it is the baseline, and must give the baseline's own answers".into())
        } else {
            parts.iter().find_map(Answers::contradiction).map(String::from)
        }
    };
    let found =
        scheme.retrieved.iter().find_map(|retrieved| Some((retrieved.length, wrong(retrieved)?)));
    found.map(|(length, what)| format!("on contexts of {length} tokens, {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fixture;

    /// Whatever is edited in results that are sound is found.
    #[test]
    fn results_that_contradict_themselves_are_found() {
        let mut sound = fixture::sound().measurements.remove(0);
        fixture::with_needles(&mut sound);
        let found = |edit: &dyn Fn(&mut Measurement)| {
            let mut measurement = sound.clone();
            edit(&mut measurement);
            broken_needles(&measurement)
                .or_else(|| contradiction(&measurement, &measurement.schemes[0]))
                .unwrap_or_default()
        };
        assert_eq!(found(&|_| ()), "");
        fn own(m: &mut Measurement) -> &mut Retrieved {
            &mut m.schemes[0].retrieved[0]
        }
        let fewer = |retrieved: &mut Retrieved| retrieved.parts[0].retrieved_base = 2;
        type Edit<'e> = (&'e dyn Fn(&mut Measurement), &'e str);
        let edits: [Edit; 13] = [
            (&|m| m.haystacks = None, "contexts are missing"),
            (&|m| m.haystacks.as_mut().unwrap().controls.truncate(1), "no control lane `bad lane`"),
            (&|m| m.haystacks.as_mut().unwrap().controls[0].answers.kld = 1e-3, "`identity` read"),
            (&|m| m.haystacks.as_mut().unwrap().sha256.clear(), "which contexts"),
            (&|m| own(m).length = 1024, "different baselines"),
            (&|m| m.schemes[0].retrieved.clear(), "not measured on the contexts"),
            (&|m| own(m).parts[0].nll_base += 1.0, "different baselines"),
            (
                &|m| m.schemes.iter_mut().flat_map(|s| &mut s.retrieved).for_each(fewer),
                "the control `identity` on contexts of 512 tokens was compared with another baseline",
            ),
            (&|m| own(m).parts[0].lost = 9, "more needles are lost"),
            (&|m| own(m).by_depth[3] = f64::NAN, "KLD by depth"),
            (&|m| own(m).by_depth.truncate(7), "KLD by depth"),
            (&|m| m.schemes[0].effective = "f16".into(), "it is the baseline"),
            (
                &|m| m.haystacks.as_mut().unwrap().plan.needles = 9,
                "a context does not have 9 needles",
            ),
        ];
        for (edit, words) in edits {
            assert!(found(edit).contains(words), "{words}: {}", found(edit));
        }
    }
}
