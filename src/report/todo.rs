//! What to do about what is red, one line for each kind of fault.

use super::named::Named;
use super::phrase::harm;
use super::row::limit_words;
use super::view::View;
use crate::results::verdict::{
    breaks_the_baseline, limits_of, worst, CaseLimit, Decision, Verdict,
};
use crate::results::{CaseResult, Control};
use crate::text::numbers::count;

/// The most cases that a line names.
const NAMES: usize = 3;

/// A fault, which cases have it, and what helps.
pub(super) struct Step {
    pub fault: &'static str,
    pub remedy: String,
}

/// What to do, the most urgent first. Empty if nothing is red.
pub(super) fn steps(view: &View, named: Named) -> Vec<Step> {
    let mut steps = Vec::new();
    steps.extend(broken_measurement(view, named));
    steps.extend(weaker_policy(view));
    steps.extend(KINDS.iter().filter_map(|kind| kind.step(view, named)));
    steps
}

/// A kind of fault that cases may have.
struct Kind {
    fault: &'static str,
    is_its: fn(&CaseResult) -> bool,
    told: Told,
    remedy: &'static str,
}

/// What a line says of each case beside its name.
enum Told {
    Name,
    /// How far its values moved.
    Change,
    /// How it stands to its worst limit, and where this limit is set.
    Limit,
}

/// The kinds in the order in which reports list red cases.
const KINDS: [Kind; 8] = [
    Kind {
        fault: "The model itself is worse",
        is_its: |case| case.verdict == Verdict::Regressed && breaks_the_baseline(case),
        told: Told::Limit,
        remedy: "No scheme has a part in the perplexity of the unquantized cache. Find what changed (weights, tokenizer, \
                 texts) and mend it; raise the limit only if the model is meant to be so.",
    },
    Kind {
        fault: "Too much harm",
        is_its: |case| case.verdict == Verdict::Regressed && !breaks_the_baseline(case),
        told: Told::Limit,
        remedy: "Serve another scheme, or find what changed (weights, codec, texts) and mend it. Only if this harm is \
                 wanted, raise the limit, which a reviewer must allow.",
    },
    Kind {
        fault: "Better than the policy requires",
        is_its: |case| case.verdict == Verdict::UnexpectedPass,
        told: Told::Name,
        remedy: "The policy says that it must break a limit, and it keeps all. If the scheme was mended, drop its \
                 expectation; if not, a limit is too wide.",
    },
    Kind {
        fault: "Not the accepted numbers",
        is_its: |case| case.verdict == Verdict::GoldenChanged && !case.changes.is_empty(),
        told: Told::Change,
        remedy: "If a change of the model or of kvgate explains it, look at the numbers and accept them \
                 (kvgate accept); if nothing does, find what changed before you merge.",
    },
    Kind {
        fault: "Accepted under other conditions",
        is_its: |case| case.verdict == Verdict::Stale,
        told: Told::Name,
        remedy: "The golden was made with other texts, settings or formats, so it says nothing about these numbers. \
                 Look at them, then accept them (kvgate accept).",
    },
    Kind {
        fault: "Not sure enough",
        is_its: |case| case.verdict == Verdict::Inconclusive,
        told: Told::Limit,
        remedy: "Other chunks of the text might keep the limit, or break it. Measure more chunks or move the limit: the \
                 message says how many, and where to.",
    },
    Kind {
        fault: "Not measured",
        is_its: |case| case.verdict == Verdict::Error,
        told: Told::Name,
        remedy: "The message says why. Mend that and run again: an error is neither a pass nor a failure.",
    },
    Kind {
        fault: "Nothing accepted yet",
        is_its: |case| case.verdict == Verdict::GoldenChanged && case.changes.is_empty(),
        told: Told::Name,
        remedy: "Look at what was measured, then accept it (kvgate accept) and commit the golden.",
    },
];

impl Kind {
    fn step(&self, view: &View, named: Named) -> Option<Step> {
        let cases: Vec<&CaseResult> =
            view.red_cases.iter().copied().filter(|case| (self.is_its)(case)).collect();
        if cases.is_empty() {
            return None;
        }
        let mut names: Vec<_> = cases.iter().map(|case| self.name(case, named)).collect();
        names.dedup(); // both cases of a scheme may be errors
        let more = match names.len().saturating_sub(NAMES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        names.truncate(NAMES);
        let remedy = format!("{}{more}. {}", names.join(", "), self.remedy);
        Some(Step { fault: self.fault, remedy })
    }

    /// The scheme of a case, and what is told of it.
    fn name(&self, case: &CaseResult, named: Named) -> String {
        let (model, scheme) = case.words();
        let name = named(&format!("{model} {scheme}"));
        let told = match self.told {
            Told::Name => None,
            Told::Change => Some(harm(case, named)),
            Told::Limit => worst(case).map(|limit| {
                let set_at = named(limit.origin());
                format!("{}, set at {set_at}{}", limit_words(&limit, named), others(case, &limit))
            }),
        };
        told.map_or(name.clone(), |told| format!("{name} ({told})"))
    }
}

/// How many limits of a case are broken, or open, beside the worst one. If the model itself is worse, they wait.
fn others(case: &CaseResult, worst: &CaseLimit) -> String {
    if worst.is_of_the_baseline() {
        return String::new();
    }
    let decision = worst.decision();
    let alike = limits_of(case).filter(|limit| limit.decision() == decision).count();
    match (alike.saturating_sub(1), decision) {
        (0, _) => String::new(),
        (others, Decision::Undecided) => format!("; {} open", are_more(others)),
        (others, _) => format!("; {} broken", are_more(others)),
    }
}

/// `1 more limit is`, `2 more limits are`.
fn are_more(limits: usize) -> String {
    match limits {
        1 => "1 more limit is".into(),
        _ => format!("{limits} more limits are"),
    }
}

/// Control lanes that do not read what they must: the numbers of their models say nothing.
fn broken_measurement(view: &View, named: Named) -> Option<Step> {
    let one = |(model, control): &(&str, &Control)| {
        format!(
            "{}: the control {} must read {}",
            named(model),
            named(&control.name),
            named(&control.must)
        )
    };
    let mut all: Vec<_> = view.failed_controls.iter().map(one).collect();
    all.dedup(); // each look has its own
    all.truncate(NAMES);
    (!all.is_empty()).then(|| Step {
        fault: "The measurement itself is broken",
        remedy: format!("{}. Trust no number of this model before that is mended.", all.join("; ")),
    })
}

/// Findings that make the run red.
fn weaker_policy(view: &View) -> Option<Step> {
    let findings = view.red_findings().count();
    (findings > 0).then(|| Step {
        fault: "The gate itself was changed",
        remedy: format!(
            "{} below. Undo what is not meant; a reviewer has to allow the rest, as each finding says.",
            count(findings, "finding")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;
    use crate::results::statistics::Statistic;
    use crate::results::verdict::JudgedLimit;
    use crate::testing::fixture;

    fn told(report: &Report) -> Vec<String> {
        let steps = steps(&report.view(), &|name| format!("<{name}>"));
        steps.into_iter().map(|step| format!("{}: {}", step.fault, step.remedy)).collect()
    }

    #[test]
    fn each_kind_of_fault_has_its_line() {
        let mut report = fixture::report();
        let harm =
            "Too much harm: <gemma-3-270m q4_0> (mean_kld 1.22 × its limit, set at <thresholds.toml:9>). Serve another";
        let starts = |report: &Report, expected: &[&str]| {
            let told = told(report);
            assert_eq!(told.len(), expected.len(), "{told:?}");
            for (line, start) in told.iter().zip(expected) {
                assert!(line.starts_with(start), "{line}");
            }
        };
        let error = "Not measured: <gemma-3-270m q8_0/q4_0>. The message";
        starts(&report, &[harm, "Not the accepted numbers: <gemma-3-270m q4_0> (mean_kld +206 % against the golden). If", error]);
        report.results.cases[3].changes.clear();
        starts(&report, &[harm, error, "Nothing accepted yet: <gemma-3-270m q4_0>. Look"]);
        for (verdict, start) in [
            (Verdict::UnexpectedPass, "Better than the policy requires: <gemma-3-270m q4_0>. The"),
            (Verdict::Stale, "Accepted under other conditions: <gemma-3-270m q4_0>. The golden"),
            (Verdict::Inconclusive, "Not sure enough: <gemma-3-270m q4_0>"),
        ] {
            let mut report = report.clone();
            report.results.cases = vec![report.results.cases[2].clone()];
            report.results.cases[0].verdict = verdict;
            starts(&report, &[start]);
        }
        report.results.findings = vec![fixture::weakened()];
        report.results.measurements[0].controls[0].ok = false;
        let control =
            "The measurement itself is broken: <gemma-3-270m>: the control <identity> must read \
                       <exactly 0>. Trust";
        assert!(told(&report)[0].starts_with(control));
        assert!(told(&report)[1].starts_with("The gate itself was changed: 1 finding below."));
        let mut green = fixture::report();
        green.results.cases.retain(|case| !case.verdict.is_red());
        assert!(told(&green).is_empty());
    }

    /// The words, the place and the annotation are of one limit.
    #[test]
    fn the_worst_limit_may_be_one_on_what_is_retrieved() {
        let mut report = fixture::report();
        fixture::with_broken_loss(&mut report.results.cases[2]);
        let loss = "(loss at 512 2.00 × its limit, set at <thresholds.toml:12>";
        let is_told = |report: &Report, words: &str| told(report).iter().any(|l| l.contains(words));
        assert!(
            is_told(&report, &format!("{loss}; 1 more limit is broken)")),
            "{:?}",
            told(&report)
        );
        // what is broken is told before what is undecided, however near that is to its limit
        let limit = &mut report.results.cases[2].limits[0];
        (limit.confidence, limit.low, limit.high) = (Some(0.95), Some(0.0), Some(1.0));
        limit.value = 3.0 * limit.bound;
        assert!(is_told(&report, &format!("{loss})")), "{:?}", told(&report));
        report.results.cases[2].retrieval[0].decision = Decision::Undecided;
        let both_open = "set at <thresholds.toml:9>; 1 more limit is open)";
        assert!(is_told(&report, both_open), "{:?}", told(&report));
    }

    /// A limit on the baseline is about the model, and another scheme mends nothing.
    #[test]
    fn a_worse_model_is_no_harm_of_a_scheme() {
        let mut report = fixture::report();
        report.results.cases = vec![report.results.cases[2].clone()];
        let limits = &mut report.results.cases[0].limits;
        let harm = limits[0].clone();
        let of_model = JudgedLimit {
            statistic: Statistic::BaselinePpl,
            value: 50.0,
            bound: 40.0,
            origin: "thresholds.toml:7".into(),
            ..harm.clone()
        };
        *limits = vec![of_model.clone()];
        let only = told(&report);
        assert_eq!(only.len(), 1, "{only:?}");
        let line = "The model itself is worse: <gemma-3-270m q4_0> (baseline_ppl 1.25 × its limit, set at \
                    <thresholds.toml:7>). No scheme has a part";
        assert!(only[0].starts_with(line), "{only:?}");
        report.results.cases[0].limits = vec![of_model, harm];
        assert_eq!(told(&report), only, "what it does to a worse model waits");
    }

    /// Every red case is in a line, whatever its verdict.
    #[test]
    fn no_red_case_is_without_a_line() {
        use Verdict::*;
        for verdict in [Regressed, UnexpectedPass, GoldenChanged, Stale, Inconclusive, Error] {
            let mut report = fixture::report();
            let case = |i| CaseResult::new(format!("m::q4_{i}::kld"), verdict, "");
            report.results.cases = (0..5).map(case).collect();
            let told = told(&report);
            assert_eq!(told.len(), 1, "{verdict:?}: {told:?}");
            assert!(told[0].contains("<m q4_0>, <m q4_1>, <m q4_2> and 2 more. "), "{told:?}");
        }
    }
}
