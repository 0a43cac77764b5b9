//! What a report advises for a model: the scheme to serve, and the schemes that break their limits.
//!
//! A scheme is recommended only if both of its cases pass, and of these the one with the fewest bits. Nothing is
//! recommended if a control lane does not read what it must, because then the numbers say little, or if a finding is
//! red, because then the limits themselves are in question.

use super::row::{mean_kld_limit, Row};
use crate::judge::trust;
use crate::results::measured_by::MeasuredBy;
use crate::results::verdict::Verdict;
use crate::results::{shown_bits, Measurement};
use crate::text::numbers::significant;

/// The most schemes that a list names.
const NAMES: usize = 8;

/// What the cases of a scheme say about serving it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advised {
    /// Both cases pass.
    Passes,
    /// It breaks a limit, whether the policy requires that or not.
    Breaks,
    /// It has numbers, and is neither: its golden changed or is stale, a limit is undecided, or its numbers cannot be judged.
    Open,
    /// It was asked for, and has no numbers.
    Unmeasured,
    /// It was skipped, only reported, or not judged at all.
    Unjudged,
}

/// Why nothing is recommended whatever passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Withheld {
    Control,
    Finding,
}

/// The advice about a model.
pub(super) struct Advice<'a> {
    pub rows: Vec<(Row<'a>, Advised)>,
    pub withheld: Option<Withheld>,
}

impl<'a> Advice<'a> {
    /// The advice that follows from a model's rows. None if no scheme was judged.
    pub fn of(
        measurement: Option<&Measurement>,
        rows: &[Row<'a>],
        has_red_finding: bool,
    ) -> Option<Self> {
        let distrust = measurement.map(|m| {
            let engine = MeasuredBy::of(&m.conditions.engine);
            trust::distrust_by(m, engine)
        });
        let is_trusted =
            |row: &Row| distrust.as_ref().is_some_and(|reasons| !reasons.contains_key(row.label));
        let rows: Vec<_> = rows.iter().map(|row| (*row, advised(row, is_trusted(row)))).collect();
        if rows.iter().all(|(_, advised)| *advised == Advised::Unjudged) {
            return None;
        }
        let withheld = if measurement.is_some_and(trust::has_broken_control) {
            Some(Withheld::Control)
        } else {
            has_red_finding.then_some(Withheld::Finding)
        };
        Some(Advice { rows, withheld })
    }

    /// The scheme to serve.
    pub fn serve(&self) -> Option<Row<'a>> {
        self.passing().first().copied()
    }

    /// The schemes that may be served, the best first: by the fewest bits, and of equally many by the lower mean KLD.
    pub fn passing(&self) -> Vec<Row<'a>> {
        if self.withheld.is_some() {
            return Vec::new();
        }
        let passing = self.rows.iter().filter(|(_, advised)| *advised == Advised::Passes);
        let mut costs: Vec<_> = passing.filter_map(|(row, _)| Some((*row, cost(row)?))).collect();
        costs.sort_by(|(_, a), (_, b)| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        costs.into_iter().map(|(row, _)| row).collect()
    }

    /// One line: ``serve `q8_0/q4_0` (6.5 bits, KLD 0.0077 of 0.03) · not `q5_1`, `q4_0` ``. `named` writes a name
    /// in a form that nothing obeys.
    pub fn words(&self, named: &dyn Fn(&str) -> String) -> String {
        if let Some(withheld) = self.withheld {
            return format!("nothing recommended: {}", withheld.words());
        }
        if self.rows.iter().all(|(_, advised)| *advised == Advised::Unmeasured) {
            return "nothing was measured".into();
        }
        let best = self.serve().and_then(|row| serving(&row, named));
        let lists = [
            ("not", Advised::Breaks),
            ("open", Advised::Open),
            ("not measured", Advised::Unmeasured),
        ];
        let lists = lists.into_iter().filter_map(|(word, which)| {
            let names = self.names(which, named);
            (!names.is_empty()).then(|| format!("{word} {names}"))
        });
        let parts = std::iter::once(best.unwrap_or_else(|| "no scheme passes".into())).chain(lists);
        parts.collect::<Vec<_>>().join(" · ")
    }

    fn names(&self, which: Advised, named: &dyn Fn(&str) -> String) -> String {
        let those = self.rows.iter().filter(|(_, advised)| *advised == which);
        let mut names: Vec<_> = those.map(|(row, _)| row.label).collect();
        let more = names.len().saturating_sub(NAMES);
        names.truncate(NAMES);
        let names: Vec<_> = names.into_iter().map(named).collect();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        names.join(", ") + &more
    }
}

impl Withheld {
    pub fn words(self) -> &'static str {
        match self {
            Withheld::Control => "a control lane does not read what it must",
            Withheld::Finding => "a finding is red",
        }
    }
}

/// What the cases of a row say. A file can call a case a pass, so a pass counts only with the limits that were judged,
/// the numbers that it rests on, and if these can be trusted.
fn advised(row: &Row, is_trusted: bool) -> Advised {
    let [kld, golden] = row.cases.map(|case| case.map(|case| case.verdict));
    let has_limits = row.cases[0].is_some_and(|case| !case.limits.is_empty());
    let is_sound = has_limits && is_trusted && cost(row).is_some();
    match (kld, golden) {
        (Some(Verdict::Regressed | Verdict::FailsAsRequired), _) => Advised::Breaks,
        (Some(Verdict::Pass), Some(Verdict::Pass)) if is_sound => Advised::Passes,
        (Some(Verdict::Error), _) if cost(row).is_none() => Advised::Unmeasured,
        (Some(Verdict::Pass), _) => Advised::Open,
        _ if row.is_red() => Advised::Open,
        _ => Advised::Unjudged,
    }
}

/// The bits of an element at the measured context, K's and V's mean, and the mean KLD. None if the scheme has no
/// numbers.
fn cost(row: &Row) -> Option<(f64, f64)> {
    let bits = row.scheme?.storage?.bits_at_context;
    Some((shown_bits((bits.k + bits.v) / 2.0), row.statistics()?.mean_kld))
}

fn serving(row: &Row, named: &dyn Fn(&str) -> String) -> Option<String> {
    let (bits, kld) = cost(row)?;
    let limit = mean_kld_limit(row).map(|bound| format!(" of {bound}")).unwrap_or_default();
    let (bits, kld) = ((bits * 100.0).round() / 100.0, significant(kld, 2));
    Some(format!("serve {} ({bits} bits, KLD {kld}{limit})", named(&row.short_name())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Links, View};
    use crate::results::{CaseResult, Outcome, Results, Sides};
    use crate::testing::fixture;

    /// A run in which all three schemes were measured and pass.
    fn passing() -> Results {
        let mut results = fixture::results();
        let m = &mut results.measurements[0];
        m.schemes[2].outcome = m.schemes[0].outcome.clone();
        let Outcome::Measured { statistics, .. } = &mut m.schemes[2].outcome else { panic!() };
        statistics.mean_kld = 0.0077;
        let limits = results.cases[0].limits.clone();
        let golden = CaseResult::new("gemma-3-270m::q8_0/q4_0::golden", Verdict::Pass, "");
        results.cases.truncate(5);
        results.cases.push(golden);
        for case in &mut results.cases {
            case.verdict = Verdict::Pass;
            case.limits = limits.clone();
        }
        results
    }

    /// Changes results.
    type Edit = fn(&mut Results);

    fn said(results: &Results) -> String {
        let links = Links::default();
        let view = View::new(results, &links);
        let advice = view.models[0].advice.as_ref();
        advice.map_or("none".into(), |advice| advice.words(&|name| name.into()))
    }

    #[test]
    fn the_fewest_bits_that_pass_are_served() {
        let mut results = passing();
        assert_eq!(said(&results), "serve q4_0 (4.5 bits, KLD 0.061 of 0.05)");
        results.cases[2].verdict = Verdict::Regressed;
        assert_eq!(said(&results), "serve q8_0/q4_0 (6.5 bits, KLD 0.0077 of 0.05) · not q4_0");
        let storage = results.measurements[0].schemes[0].storage.as_mut().unwrap();
        storage.bits_at_context = Sides { k: 6.5, v: 6.5 };
        let lower = "serve q8_0 (6.5 bits, KLD 0.00051 of 0.05) · not q4_0";
        assert_eq!(said(&results), lower, "of equal bits the lower KLD counts");
    }

    /// `q4_0`, which has the fewest bits, with each verdict in either case.
    #[test]
    fn only_two_passes_are_a_recommendation() {
        use Verdict::*;
        let instead = "serve q8_0/q4_0 (6.5 bits, KLD 0.0077 of 0.05)";
        for (kld, golden, rest) in [
            (Pass, GoldenChanged, " · open q4_0"),
            (Pass, Stale, " · open q4_0"),
            (Pass, Ignored, " · open q4_0"),
            (Inconclusive, Pass, " · open q4_0"),
            (UnexpectedPass, Pass, " · open q4_0"),
            (Error, Pass, " · open q4_0"),
            (Error, Error, " · open q4_0"),
            (Pass, Error, " · open q4_0"),
            (FailsAsRequired, Pass, " · not q4_0"),
            (Regressed, GoldenChanged, " · not q4_0"),
            (Reported, Pass, ""),
            (Reported, GoldenChanged, " · open q4_0"),
            (Ignored, Pass, ""),
            (Ignored, Ignored, ""),
        ] {
            let mut results = passing();
            (results.cases[2].verdict, results.cases[3].verdict) = (kld, golden);
            assert_eq!(said(&results), format!("{instead}{rest}"), "{kld:?}, {golden:?}");
        }
        let edits: [Edit; 4] = [
            |results| drop(results.cases.remove(3)),
            |results| results.cases[2].limits.clear(),
            |results| results.measurements[0].schemes[1].storage = None,
            |results| {
                let schemes = &mut results.measurements[0].schemes;
                // the numbers of another scheme: one of the two did not engage
                schemes[1].outcome = schemes[0].outcome.clone();
            },
        ];
        for (i, edit) in edits.into_iter().enumerate() {
            let mut results = passing();
            edit(&mut results);
            assert!(said(&results).starts_with(instead), "{i}: {}", said(&results));
        }
    }

    #[test]
    fn nothing_is_recommended_without_ground() {
        let control = "nothing recommended: a control lane does not read what it must";
        let edits: [(&str, Edit); 8] = [
            (control, |results| results.measurements[0].controls[0].ok = false),
            (control, |results| results.measurements[0].controls[1].mean_kld = Some(0.0)),
            (control, |results| results.measurements[0].controls.clear()),
            ("nothing recommended: a finding is red", |results| {
                results.findings = vec![fixture::weakened()]
            }),
            ("no scheme passes · not q8_0, q4_0, q8_0/q4_0", |results| {
                results.cases.iter_mut().for_each(|case| case.verdict = Verdict::FailsAsRequired)
            }),
            ("no scheme passes · open q8_0, q4_0, q8_0/q4_0", |results| {
                results.cases.iter_mut().for_each(|case| case.verdict = Verdict::Error)
            }),
            ("nothing was measured", |results| {
                results.cases.iter_mut().for_each(|case| case.verdict = Verdict::Error);
                let failed = Outcome::Failed { error: "no memory".into() };
                let schemes = &mut results.measurements[0].schemes;
                schemes.iter_mut().for_each(|scheme| scheme.outcome = failed.clone());
            }),
            ("none", |results| results.cases.clear()),
        ];
        for (words, edit) in edits {
            let mut results = passing();
            edit(&mut results);
            assert_eq!(said(&results), words);
        }
        let mut results = passing();
        results.findings = vec![fixture::weakened()];
        results.findings[0].is_red = false;
        assert!(said(&results).starts_with("serve"), "a finding that is not red says nothing");
    }

    #[test]
    fn a_name_of_the_policy_is_explained_and_long_lists_are_cut() {
        let mut results = passing();
        let scheme = &mut results.measurements[0].schemes[1];
        (scheme.scheme, scheme.effective) = ("prod".into(), "q4_0·H64/q4_0·H64".into());
        for case in &mut results.cases[2..4] {
            case.case = case.case.replace("q4_0", "prod");
        }
        assert_eq!(said(&results), "serve prod = q4_0·H64/q4_0·H64 (4.5 bits, KLD 0.061 of 0.05)");
        let red = |n| CaseResult::new(format!("gemma-3-270m::{n}::kld"), Verdict::Regressed, "");
        results.cases = (0..10).map(red).collect();
        assert_eq!(said(&results), "no scheme passes · not 0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
    }
}
