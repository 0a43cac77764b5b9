use super::*;
use crate::testing::fixture;
use std::path::PathBuf;

/// What an offer says in these tests.
const OFFERED: &str = "to accept it, say so";

/// The files of goldens and texts, by their paths.
type Files = BTreeMap<PathBuf, String>;

/// The goldens of every scheme that has numbers.
fn accepted(measurement: &Measurement) -> Files {
    let golden = |scheme: &SchemeResult| {
        let stem = CellName::new(&measurement.model, &scheme.scheme).file_stem();
        let golden = Golden::of(measurement, scheme).ok()?;
        Some((golden::path(Path::new(""), &stem), golden.snapshot()))
    };
    measurement.schemes.iter().filter_map(golden).collect()
}

/// Goldens of which that of `q8_0` holds and that of `q4_0` has changed.
fn changed() -> Files {
    let mut then = fixture::edited("nothing");
    let Outcome::Measured { statistics, parts, .. } = &mut then.schemes[1].outcome else {
        panic!()
    };
    statistics.mean_kld *= 0.5;
    parts.iter_mut().for_each(|part| part.kld *= 0.5);
    accepted(&then)
}

fn q4_0() -> PathBuf {
    golden::path(Path::new(""), "gemma-3-270m__q4_0")
}

/// Judges every case of a policy by a measurement that this process made.
fn live(policy: &Policy, measurement: &Measurement, files: &Files) -> Vec<CaseResult> {
    let goldens = |path: &Path| Ok(files.get(path).cloned());
    let offer = |_: &CellName, compared: Result<&Compared, &CompareError>| match compared {
        Ok(compared) if compared.is_pass() => String::new(),
        _ => OFFERED.into(),
    };
    let judge = Judge { root: Path::new(""), goldens: &goldens, offer: Some(&offer) };
    let evidence = Ok(Evidence::new(Cow::Owned(measurement.clone()), MeasuredBy::Kvgate));
    let model = &policy.models[0];
    let cases = |cell| CaseKind::ALL.map(|kind| judge.case(model, cell, kind, &evidence));
    model.cells.iter().flat_map(cases).collect()
}

/// Judges a file of results, which must hold the models that are `needed`.
fn from_file(policy: &Policy, results: &Results, files: &Files, needed: bool) -> Vec<CaseResult> {
    let goldens = |path: &Path| Ok(files.get(path).cloned());
    let judge = Judge { root: Path::new(""), goldens: &goldens, offer: None };
    let (is_needed, fault) = (|_: &ModelPolicy| needed, |_: &ModelPolicy, _: &Measurement| None);
    let by = MeasuredBy::Kvgate;
    judge.results(results, &Demands { policy, by, is_needed: &is_needed, fault: &fault })
}

fn of(measurement: Measurement) -> Results {
    Results { measurements: vec![measurement], ..fixture::sound() }
}

fn verdicts(cases: &[CaseResult]) -> Vec<(&str, Verdict)> {
    let short = |case: &str| -> usize { case.find("::").unwrap() + 2 };
    cases.iter().map(|case| (&case.case[short(&case.case)..], case.verdict)).collect()
}

fn case<'c>(cases: &'c [CaseResult], name: &str) -> &'c CaseResult {
    cases.iter().find(|c| c.case == format!("gemma-3-270m::{name}")).expect("the case is judged")
}

#[test]
fn every_cell_gets_its_verdicts() {
    let cases = live(&fixture::limited_policy(), &fixture::edited("nothing"), &changed());
    let expected = [
        ("q8_0::kld", Verdict::Pass),
        ("q8_0::golden", Verdict::Pass),
        ("q4_0::kld", Verdict::Regressed),
        ("q4_0::golden", Verdict::GoldenChanged),
        ("q8_0/q4_0::kld", Verdict::Error),
        ("q8_0/q4_0::golden", Verdict::Error),
    ];
    assert_eq!(verdicts(&cases), expected);
    let holds = |name| case(&cases, name).limits.iter().map(|l| l.holds).collect::<Vec<_>>();
    assert_eq!([holds("q8_0::kld"), holds("q4_0::kld")], [[true], [false]]);
    let out = |name| case(&cases, name).changes.iter().filter(|c| !c.within).count();
    assert_eq!([out("q8_0::golden"), out("q4_0::golden")], [0, 1]);
    assert!(!case(&cases, "q8_0::golden").changes.is_empty(), "values within are shown as well");
}

/// A file is judged as the run that wrote it was: only the offer differs.
#[test]
fn a_file_is_judged_like_the_run_that_wrote_it() {
    let policy = fixture::limited_policy();
    let damaged = Files::from([(q4_0(), "<<<<<<< HEAD\n".into())]);
    let mut stale = fixture::edited("nothing");
    stale.conditions.context += 1;
    let all = [changed(), accepted(&fixture::edited("nothing")), accepted(&stale), damaged];
    for (edit, _) in fixture::EDITS {
        for files in all.iter().chain([&Files::new(), &accepted(&fixture::edited(edit))]) {
            let measurement = fixture::edited(edit);
            let lived = live(&policy, &measurement, files);
            let read = from_file(&policy, &of(measurement), files, true);
            assert_eq!(verdicts(&lived), verdicts(&read), "{edit}");
            for (live, read) in lived.iter().zip(&read) {
                let own = live.message.strip_suffix(OFFERED).unwrap_or(&live.message).trim_end();
                assert_eq!(own, read.message, "{edit}");
                assert_eq!((&live.limits, &live.changes), (&read.limits, &read.changes), "{edit}");
                let is_offered = live.message.ends_with(OFFERED);
                let is_red_golden =
                    live.case.ends_with("::golden") && live.verdict != Verdict::Pass;
                assert_eq!(is_offered, is_red_golden, "{edit}: {live:?}");
            }
        }
    }
}

/// What a file says about its own verdicts counts for nothing.
#[test]
fn verdicts_in_a_file_are_not_believed() {
    let mut results = of(fixture::edited("nothing"));
    results.cases = ["kld", "golden"]
        .map(|kind| format!("gemma-3-270m::q4_0::{kind}"))
        .map(|name| CaseResult::new(name, Verdict::Pass, ""))
        .into();
    let cases = from_file(&fixture::limited_policy(), &results, &changed(), true);
    assert_eq!(case(&cases, "q4_0::kld").verdict, Verdict::Regressed);
    assert_eq!(case(&cases, "q4_0::golden").verdict, Verdict::GoldenChanged);
}

#[test]
fn a_model_that_must_be_there_and_is_not_is_an_error() {
    let policy = fixture::limited_policy();
    let says = |results: &Results, why: &str| {
        let cases = from_file(&policy, results, &changed(), true);
        assert_eq!(cases.len(), 6, "{why}");
        for case in &cases {
            assert_eq!(case.verdict, Verdict::Error, "{why}");
            assert!(case.message.contains(why), "{}", case.message);
        }
    };
    let mut results = of(fixture::edited("nothing"));
    results.measurements.push(results.measurements[0].clone());
    says(&results, "these results hold its model twice");
    results.measurements.clear();
    says(&results, "the job that measures it is missing");
    assert_eq!(from_file(&policy, &results, &changed(), false), [], "it is not needed");
    results.not_needed.push("gemma-3-270m".into());
    says(&results, "such a claim does not count");
    let mut other = fixture::edited("nothing");
    other.conditions.context = 4096;
    says(&of(other), "it was measured at 4096 × 16, and the policy asks for 512 × 16");
    let mut other = fixture::edited("nothing");
    other.conditions.engine = "llama.cpp b11434".into();
    let cases = from_file(&policy, &of(other), &changed(), true);
    for name in ["q4_0::kld", "q4_0::golden"] {
        let case = case(&cases, name);
        assert_eq!(case.verdict, Verdict::Error);
        assert!(case.message.contains("it calls itself measured by `llama.cpp b11434`"));
    }
}

#[test]
fn an_ignored_cell_is_judged_where_results_hold_it() {
    let mut policy = fixture::limited_policy();
    policy.models[0].cells[1].ignored = true;
    let cases = from_file(&policy, &of(fixture::edited("nothing")), &changed(), true);
    assert_eq!(case(&cases, "q4_0::kld").verdict, Verdict::Regressed);
    let cases = from_file(&policy, &of(fixture::edited("no result")), &changed(), true);
    assert_eq!(case(&cases, "q4_0::kld").verdict, Verdict::Ignored);
    assert_eq!(case(&cases, "q4_0::golden").verdict, Verdict::Ignored);
}

/// What decides a case and what its changes are made of must be the same file.
#[test]
fn a_case_reads_its_golden_once() {
    let (policy, files, reads) = (fixture::limited_policy(), changed(), std::cell::Cell::new(0));
    let goldens = |path: &Path| {
        reads.set(reads.get() + 1);
        Ok(files.get(path).cloned())
    };
    let judge = Judge { root: Path::new(""), goldens: &goldens, offer: None };
    let evidence = Evidence::new(Cow::Owned(fixture::edited("nothing")), MeasuredBy::Kvgate);
    let model = &policy.models[0];
    let case = judge.case(model, &model.cells[1], CaseKind::Golden, &Ok(evidence));
    assert_eq!((case.verdict, reads.get()), (Verdict::GoldenChanged, 1));
    assert!(!case.changes.is_empty());
}

#[test]
fn limits_are_judged_without_a_golden_that_can_be_read() {
    let (policy, measurement) = (fixture::limited_policy(), fixture::edited("nothing"));
    let mut files = changed();
    let with = live(&policy, &measurement, &files);
    files.insert(q4_0(), "<<<<<<< HEAD\n".into());
    let without = live(&policy, &measurement, &files);
    assert_eq!(case(&without, "q4_0::golden").verdict, Verdict::Error);
    let [with, without] = [&with, &without].map(|cases| case(cases, "q4_0::kld"));
    assert_eq!((with.verdict, &with.limits), (without.verdict, &without.limits));
    assert_ne!(with.message, without.message, "the message shows the accepted value");
}

#[test]
fn the_text_must_be_the_accepted_one_token_by_token() {
    let policy = fixture::limited_policy();
    let path = golden::text_path(Path::new(""), "gemma-3-270m");
    let verdict = |written_anew: bool, edit: &dyn Fn(&mut Generated)| {
        let mut measurement = fixture::edited("prompts");
        let mut files = accepted(&measurement);
        measurement.generated.as_mut().unwrap().accepted = !written_anew;
        let mut text = fixture::generated();
        edit(&mut text);
        files.insert(path.clone(), golden::text::snapshot(&text));
        case(&live(&policy, &measurement, &files), "q4_0::golden").verdict
    };
    let ties = |text: &mut Generated| text.continuations[0].near_ties.clear();
    let tokens = |text: &mut Generated| text.continuations[0].tokens[0] = 1;
    let prompts = |text: &mut Generated| text.prompts_sha256 = "78".repeat(32);
    assert_eq!(verdict(false, &|_| ()), Verdict::Pass);
    assert_eq!(verdict(false, &tokens), Verdict::GoldenChanged);
    assert_eq!(verdict(false, &prompts), Verdict::GoldenChanged);
    assert_eq!(verdict(false, &ties), Verdict::GoldenChanged);
    assert_eq!(verdict(true, &ties), Verdict::Pass, "they are another machine's");
}

#[test]
fn values_move_from_the_golden_of_the_engine_that_measured() {
    let policy = fixture::limited_policy();
    let (results, files) = (of(fixture::edited("nothing")), changed());
    let goldens = |path: &Path| Ok(files.get(path).cloned());
    let judge = Judge { root: Path::new(""), goldens: &goldens, offer: None };
    let model = &policy.models[0];
    let moved = |cell: usize, by| judge.moved(model, &model.cells[cell], by, &results);
    let cases = live(&policy, &results.measurements[0], &files);
    assert_eq!(moved(1, MeasuredBy::Kvgate), case(&cases, "q4_0::golden").changes);
    assert_eq!(moved(1, MeasuredBy::LlamaCpp), [], "it has no golden");
    assert_eq!(moved(2, MeasuredBy::Kvgate), [], "it was not measured");
}
