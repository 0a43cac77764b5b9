//! Sentences about a run. Each renderer decides how the names in them are written: see [`Named`].

use super::named::Named;
use super::row::{relative, worst_limit};
use crate::results::measured_by::MeasuredBy;
use crate::results::retrieval::JudgedRetrieval;
use crate::results::verdict::Verdict;
use crate::results::{CaseResult, Control, Finding, Floor, Measurement, Results};
use crate::text;
use crate::text::numbers::{count, significant};

/// Names the engine that measured: the first that is not kvgate's own, or else kvgate's.
pub(super) fn measured_by(results: &Results, named: Named) -> Option<String> {
    let mut engines = results.measurements.iter().map(|m| m.conditions.engine.as_str());
    let other = engines.clone().find(|engine| MeasuredBy::of(engine) != MeasuredBy::Kvgate);
    engines.next()?;
    let after = match other {
        Some(_) => "",
        None => ": the scheme in its own engine, not a serving kernel",
    };
    Some(format!("measured by {}{after}", named(other.unwrap_or(&results.engine))))
}

/// The controls of a measurement, each with its reading. Every look has its own, and so has every shard that another
/// machine ran, so those that are alike but for it are told together.
pub(super) fn controls(measurement: &Measurement) -> Vec<(&Control, String)> {
    let mut told: Vec<(&Control, Vec<f64>)> = Vec::new();
    for control in &measurement.controls {
        let is_like = |own: &Control| {
            own.name == control.name
                && own.effective == control.effective
                && own.must == control.must
                && own.ok == control.ok
        };
        match told.iter_mut().find(|(own, _)| is_like(own)) {
            Some((_, klds)) => klds.extend(control.mean_kld),
            None => told.push((control, control.mean_kld.into_iter().collect())),
        }
    }
    told.into_iter().map(|(control, klds)| (control, reading(control, &klds))).collect()
}

/// `2.5476`, or `2.0671 to 2.5476 in 3 readings`.
fn reading(control: &Control, klds: &[f64]) -> String {
    if klds.len() < 2 {
        return control.reading();
    }
    let ends = |(low, high): (f64, f64), kld: &f64| (low.min(*kld), high.max(*kld));
    let (low, high) = klds.iter().fold((f64::INFINITY, 0.0), ends);
    format!("{low:.4} to {high:.4} in {}", count(klds.len(), "reading"))
}

/// What the unquantized cache reads against itself.
pub(super) fn floor(floor: &Floor) -> String {
    let kld = match floor.mean_kld {
        0.0 => "exactly 0".to_owned(),
        kld => significant(kld, 2),
    };
    let how = match floor.batch {
        0 => "by its own log".to_owned(),
        batch => format!("in batches of {batch} tokens"),
    };
    format!(
        "mean KLD {kld} of the unquantized cache against itself, {how}: less says nothing of a scheme"
    )
}

/// Says how many limits were judged with a confidence, and how often chance alone calls one broken.
pub(super) fn confidence(results: &Results) -> Option<String> {
    let of_case = |case: &CaseResult| -> Vec<f64> {
        let of_retrieval =
            |limit: &JudgedRetrieval| limit.confidence.filter(|_| limit.low.is_some());
        let own = case.limits.iter().filter_map(|limit| limit.confidence);
        own.chain(case.retrieval.iter().filter_map(of_retrieval)).collect()
    };
    let of_cases = results.cases.iter().map(of_case).filter(|own| !own.is_empty());
    let of_cases: Vec<Vec<f64>> = of_cases.collect();
    let confidences = of_cases.concat();
    let least = confidences.iter().copied().fold(1.0, f64::min);
    // an interval is too high or too low with half of what its confidence leaves
    let one = (1.0 - least) / 2.0;
    let any = 1.0 - (1.0 - one).powi(confidences.len() as i32);
    (!confidences.is_empty()).then(|| {
        format!(
            "{} of {} judged with {} % confidence: if every value stood exactly at its limit, and chance were another one \
             for each, at least one would be called broken with {:.0} %",
            count(confidences.len(), "limit"),
            count(of_cases.len(), "case"),
            (least * 1000.0).round() / 10.0,
            any * 100.0
        )
    })
}

/// Says how a run ended. `red` are its red cases, the worst first.
pub(super) fn sentence(results: &Results, red: &[&CaseResult], named: Named) -> String {
    let findings: Vec<&Finding> = results.findings.iter().filter(|f| f.is_red).collect();
    match (red, &findings[..]) {
        ([worst, others @ ..], _) => {
            let cases = count(results.cases.len(), "case");
            let beside = match findings.len() {
                0 => String::new(),
                n => format!(" and {}", count(n, "finding")),
            };
            let which = if others.is_empty() { "" } else { "worst: " };
            let (model, scheme) = worst.words();
            let name = named(&format!("{model} {scheme}"));
            let harm = harm(worst, named);
            format!("kvgate: {} of {cases} red{beside} ({which}{name}: {harm})", red.len())
        }
        ([], [first, ..]) => {
            let all = count(findings.len(), "finding");
            let name = text::name(&first.name);
            let at = first.place.as_ref().map(|place| format!(" at {}", named(place)));
            format!("kvgate: {all} ({name}{})", at.unwrap_or_default())
        }
        ([], []) => green(results),
    }
}

/// Says that nothing in a run is red.
fn green(results: &Results) -> String {
    let none = results.cases.iter().all(|case| case.verdict == Verdict::Ignored);
    if results.measurements.is_empty() && none {
        return "kvgate: nothing needed measuring".into();
    }
    match results.cases.len() {
        0 => {
            let schemes: usize = results.measurements.iter().map(|m| m.schemes.len()).sum();
            format!("kvgate: {} measured, nothing judged", count(schemes, "scheme"))
        }
        n => format!("kvgate: {} as the policy wants ({})", count(n, "case"), tally(results)),
    }
}

/// Says in a few words what is wrong with a case: `mean_kld 2.40 × its limit`.
pub(super) fn harm(case: &CaseResult, named: Named) -> String {
    let harm = match case.verdict {
        Verdict::Regressed | Verdict::Inconclusive => worst_limit(case, named),
        Verdict::UnexpectedPass => Some("passes, and must break a limit".into()),
        Verdict::GoldenChanged => worst_change(case).or(Some("no accepted golden".into())),
        _ => None,
    };
    harm.unwrap_or_else(|| case.verdict.label().into())
}

/// The first value that left its tolerance: `mean_kld +115 % against the golden`.
fn worst_change(case: &CaseResult) -> Option<String> {
    let change = case.changes.iter().find(|change| !change.within)?;
    let moved = relative(change.golden, change.now);
    Some(format!("{} {moved} against the golden", text::name(&change.name)))
}

/// How many cases have each verdict: `12 pass, 3 fails as required`.
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
    use crate::testing::fixture;

    #[test]
    fn controls_that_differ_only_in_their_reading_are_told_together() {
        let mut measurement = fixture::results().measurements.remove(0);
        let alone = controls(&measurement);
        let told: Vec<_> = alone.iter().map(|(own, told)| (&own.name[..], &told[..])).collect();
        assert_eq!(told, [("identity", "0.0000"), ("bad lane", "2.5000")]);
        let again = Control { mean_kld: Some(2.1), ..measurement.controls[1].clone() };
        let failed = Control { mean_kld: Some(0.01), ok: false, ..again.clone() };
        measurement.controls.extend([again, failed]);
        let told: Vec<_> = controls(&measurement).into_iter().map(|(_, told)| told).collect();
        assert_eq!(told, ["0.0000", "2.1000 to 2.5000 in 2 readings", "0.0100"]);
    }

    #[test]
    fn chance_is_told_of_cases_with_a_confidence() {
        let mut results = fixture::results();
        assert_eq!(confidence(&results), None);
        let cases = results.cases.iter().filter(|case| !case.limits.is_empty()).count();
        let judged = results.cases.iter().map(|case| case.limits.len()).sum::<usize>();
        for limit in results.cases.iter_mut().flat_map(|case| &mut case.limits) {
            limit.confidence = Some(0.95);
        }
        let told = confidence(&results).unwrap();
        let any = 100.0 * (1.0 - 0.975f64.powi(judged as i32));
        assert!(
            told.starts_with(&format!(
                "{judged} limits of {cases} cases judged with 95 % confidence: "
            )),
            "{told}"
        );
        assert!(told.ends_with(&format!("called broken with {any:.0} %")), "{told}");
        // limits on what is retrieved count, too, if they were judged by an interval
        let case = results.cases.iter_mut().find(|case| !case.limits.is_empty()).unwrap();
        fixture::with_broken_loss(case);
        case.retrieval[0].confidence = Some(0.95);
        case.retrieval.push(JudgedRetrieval { low: None, ..case.retrieval[0].clone() });
        let told = confidence(&results).unwrap();
        assert!(told.starts_with(&format!("{} limits of {cases} cases", judged + 1)), "{told}");
    }
}
