//! The report as JUnit's XML, which CI servers show as tests: each model is a suite, each case a test.

use super::view::{arithmetic, ModelView, View};
use crate::results::case;
use crate::results::verdict::Verdict;
use crate::results::{CaseResult, Finding, Measurement, Results};
use crate::text;
use quick_junit::{
    NonSuccessKind, Property, Report, SerializeError, TestCase, TestCaseStatus, TestSuite,
};
use std::time::Duration;

/// The most notes on a measurement that are shown.
const NOTES: usize = 30;

/// The whole file.
pub fn render(view: &View) -> Result<String, SerializeError> {
    let mut report = Report::new("kvgate");
    report.add_test_suites(view.models.iter().map(|model| suite(view.results, model)));
    let findings = &view.results.findings;
    if !findings.is_empty() {
        let mut suite = TestSuite::new("findings");
        suite.add_test_cases(findings.iter().map(finding));
        report.add_test_suite(suite);
    }
    report.to_string()
}

/// A finding that belongs to no case, as a test of its own.
fn finding(finding: &Finding) -> TestCase {
    let status = if finding.is_red {
        let mut failure = TestCaseStatus::non_success(NonSuccessKind::Failure);
        failure.set_message(text(&finding.message));
        failure
    } else {
        TestCaseStatus::success()
    };
    let place = finding.place.as_ref().map(|place| format!(" {place}"));
    let name = format!("{}{}", finding.name, place.unwrap_or_default());
    let mut test = TestCase::new(text(&name), status);
    test.set_classname("findings");
    test
}

fn suite(results: &Results, model: &ModelView) -> TestSuite {
    let ModelView { name: model, measurement, cases, .. } = model;
    let seconds = measurement.map(|m| m.run.seconds);
    let mut suite = TestSuite::new(text(model));
    suite.add_properties(properties(results, *measurement));
    if let Some(seconds) = seconds.and_then(duration) {
        suite.set_time(seconds);
    }
    // all schemes of a model are measured in one pass, so each gets an equal share of its time; goldens take none
    let timed = cases.iter().filter(|case| is_timed(case)).count();
    let share = seconds.and_then(|seconds| duration(seconds / timed as f64));
    suite.add_test_cases(cases.iter().map(|case| {
        let mut test = test(model, case);
        if let Some(share) = share.filter(|_| is_timed(case)) {
            test.set_time(share);
        }
        test
    }));
    suite
}

/// A case's name within its model. A name without a model is shown as well, because a red case must not be lost.
fn name_in_model(case: &CaseResult) -> &str {
    case::model_and_rest(&case.case).map_or(&case.case, |(_, name)| name)
}

fn is_timed(case: &CaseResult) -> bool {
    name_in_model(case).ends_with("::kld") && case.verdict != Verdict::Ignored
}

fn properties(results: &Results, measured: Option<&Measurement>) -> Vec<Property> {
    let engine = measured.map_or(&results.engine, |m| &m.conditions.engine);
    let device = measured.map(|m| format!("{}, {}", m.conditions.device, m.run.device));
    let named = [
        ("engine", Some(engine.clone())),
        ("commit", results.head.clone()),
        ("device", device),
        ("arithmetic", measured.map(arithmetic)),
    ];
    let named = named.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let all = measured.map_or(&[][..], |m| &m.run.notes);
    let more = all.len().saturating_sub(NOTES);
    let more = (more > 0).then(|| ("note", format!("… and {more} more")));
    let notes = all.iter().take(NOTES).map(|note| ("note", text::remark(note)));
    named.chain(notes).chain(more).map(|(name, value)| Property::new(name, text(&value))).collect()
}

fn test(model: &str, case: &CaseResult) -> TestCase {
    let mut test = TestCase::new(text(name_in_model(case)), status(case));
    test.set_classname(text(model));
    if case.verdict == Verdict::FailsAsRequired {
        let said = format!("{}\n{}", case.verdict.symbol(), case.message);
        test.set_system_out(text(said.trim_end()));
    }
    test
}

fn status(case: &CaseResult) -> TestCaseStatus {
    let label = case.verdict.label();
    let kind = match case.verdict {
        Verdict::Pass | Verdict::FailsAsRequired => return TestCaseStatus::success(),
        Verdict::Reported => return skipped("reported, not judged"),
        Verdict::Ignored => return skipped("ignored"),
        Verdict::Error => NonSuccessKind::Error,
        Verdict::Regressed
        | Verdict::UnexpectedPass
        | Verdict::GoldenChanged
        | Verdict::Stale
        | Verdict::Inconclusive => NonSuccessKind::Failure,
    };
    let mut status = TestCaseStatus::non_success(kind);
    // viewers show the message as a title, and it is an attribute, which has no lines
    let title = case.message.lines().next().unwrap_or(label);
    status.set_type(label).set_message(text(title));
    if !case.message.is_empty() {
        status.set_description(text(&case.message));
    }
    status
}

fn skipped(why: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::skipped();
    status.set_message(why);
    status
}

/// Makes a duration of seconds, unless they are negative or not a number, as those of a file may be.
fn duration(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

/// A text of bounded length, escaped, and without the two characters that XML 1.0 forbids and quick-junit keeps.
fn text(text: &str) -> String {
    text::error(text).replace(['\u{fffe}', '\u{ffff}'], "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Links;
    use crate::testing::fixture;

    fn xml(results: &Results) -> String {
        render(&View::new(results, &Links::default())).unwrap()
    }

    fn parsed(results: &Results) -> Report {
        let xml = xml(results);
        Report::deserialize_from_str(&xml).unwrap_or_else(|e| panic!("{e}\n{xml}"))
    }

    fn case<'a>(report: &'a Report, model: &str, name: &str) -> &'a TestCase {
        let suite = report.test_suites.iter().find(|suite| suite.name.as_str() == model).unwrap();
        suite.test_cases.iter().find(|case| case.name.as_str() == name).unwrap()
    }

    #[test]
    fn a_suite_a_model_and_a_test_a_case() {
        let report = parsed(&fixture::results());
        let suites: Vec<_> = report.test_suites.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(suites, ["gemma-3-270m", "tiny"]);
        let gemma = &report.test_suites[0];
        let names: Vec<_> = gemma.test_cases.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(
            names,
            ["q8_0::kld", "q8_0::golden", "q4_0::kld", "q4_0::golden", "q8_0/q4_0::kld"]
        );
        assert!(gemma
            .test_cases
            .iter()
            .all(|c| c.classname.as_ref().unwrap().as_str() == "gemma-3-270m"));
        assert_eq!((gemma.tests, gemma.failures, gemma.errors, gemma.skipped), (5, 2, 1, 0));
        assert_eq!((report.tests, report.failures, report.errors), (7, 2, 1));
        let property = |name: &str| {
            let mut all = gemma.properties.iter();
            all.find(|p| p.name.as_str() == name).map(|p| p.value.as_str().to_owned())
        };
        assert_eq!(property("engine").as_deref(), Some("kvgate 0.1.0"));
        assert_eq!(property("commit").as_deref(), Some("abc123"));
        assert_eq!(property("device").as_deref(), Some("cpu, Some CPU"));
        assert_eq!(property("arithmetic").as_deref(), Some("f32"));
        assert_eq!(property("note").as_deref(), Some("code: 37 tokens of the tail dropped"));
    }

    #[test]
    fn verdicts_are_what_viewers_know() {
        let mut results = fixture::results();
        results.cases[1].verdict = Verdict::Reported;
        results.cases[5].message = "mean_kld 0.2 is over its limit".into();
        let report = parsed(&results);
        let status = |model: &str, name: &str| case(&report, model, name).status.clone();
        let TestCaseStatus::NonSuccess { kind, message, ty, description, .. } =
            status("gemma-3-270m", "q4_0::kld")
        else {
            panic!()
        };
        assert_eq!(kind, NonSuccessKind::Failure);
        assert_eq!(ty.unwrap().as_str(), "regressed");
        let title = "mean_kld 0.0612 is over its limit 0.05 (thresholds.toml:9)";
        assert_eq!(message.unwrap().as_str(), title);
        assert!(description.unwrap().ends_with("run `kvgate run gemma-3-270m::q4_0`"));
        let TestCaseStatus::NonSuccess { kind, ty, .. } = status("gemma-3-270m", "q8_0/q4_0::kld")
        else {
            panic!()
        };
        assert_eq!((kind, ty.unwrap().as_str()), (NonSuccessKind::Error, "error"));
        let skipped = |model: &str, name: &str| match status(model, name) {
            TestCaseStatus::Skipped { message, .. } => message.unwrap().into_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(skipped("gemma-3-270m", "q8_0::golden"), "reported, not judged");
        assert_eq!(skipped("tiny", "q4_0::golden"), "ignored");
        let required = case(&report, "tiny", "q4_0::kld");
        assert!(matches!(required.status, TestCaseStatus::Success { .. }));
        let out = required.system_out.as_ref().unwrap().as_str();
        assert_eq!(out, "✗ (expected)\nmean_kld 0.2 is over its limit");
        assert!(case(&report, "gemma-3-270m", "q8_0::kld").system_out.is_none());
    }

    #[test]
    fn no_verdict_that_is_red_is_a_success() {
        for verdict in [
            Verdict::Regressed,
            Verdict::UnexpectedPass,
            Verdict::GoldenChanged,
            Verdict::Stale,
            Verdict::Inconclusive,
            Verdict::Error,
        ] {
            let case = CaseResult { verdict, ..fixture::results().cases[0].clone() };
            let TestCaseStatus::NonSuccess { ty, message, .. } = status(&case) else {
                panic!("{verdict:?}")
            };
            assert_eq!(ty.unwrap().as_str(), verdict.label());
            assert_eq!(message.unwrap().as_str(), verdict.label(), "where nothing was said");
        }
    }

    #[test]
    fn seconds_are_those_of_the_model() {
        let report = parsed(&fixture::results());
        let gemma = &report.test_suites[0];
        assert_eq!(gemma.time.unwrap(), Duration::from_millis(61_340));
        let times: Vec<_> = gemma.test_cases.iter().map(|c| c.time.is_some()).collect();
        assert_eq!(times, [true, false, true, false, true]);
        let sum: f64 =
            gemma.test_cases.iter().filter_map(|c| c.time).map(|t| t.as_secs_f64()).sum();
        assert!((sum - 61.34).abs() < 0.01, "{sum}");
        assert_eq!(report.test_suites[1].time, None, "it was not measured");
        for seconds in [f64::NAN, -1.0, f64::INFINITY, 1e300] {
            let mut results = fixture::results();
            results.measurements[0].run.seconds = seconds;
            assert_eq!(parsed(&results).test_suites[0].time, None, "{seconds}");
        }
    }

    #[test]
    fn notes_that_are_not_shown_are_counted() {
        let mut results = fixture::results();
        results.measurements[0].run.notes = vec!["a note".into(); NOTES + 2];
        let report = parsed(&results);
        let notes = report.test_suites[0].properties.iter().filter(|p| p.name.as_str() == "note");
        let notes: Vec<_> = notes.map(|p| p.value.as_str()).collect();
        assert_eq!((notes.len(), notes[NOTES]), (NOTES + 1, "… and 2 more"));
    }

    #[test]
    fn hostile_text_is_text() {
        let mut results = fixture::results();
        let evil = "]]></failure><testcase name=\"x\"/>&\u{0}\u{8}\u{b}\u{1b}[31m\u{fffe}\u{ffff}é";
        results.cases[2].message = evil.into();
        results.cases[5].case = format!("{evil}::q4_0::kld");
        results.cases[6].case = "no model".into();
        results.measurements[0].run.device = evil.into();
        let xml = xml(&results);
        let forbidden = |c: char| matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}');
        assert!(!xml.contains(forbidden), "{xml:?}");
        let report = parsed(&results);
        assert_eq!(report.tests, 7);
        let TestCaseStatus::NonSuccess { description, .. } =
            &case(&report, "gemma-3-270m", "q4_0::kld").status
        else {
            panic!()
        };
        let kept = r#"]]></failure><testcase name="x"/>&\u{0}\u{8}\u{b}\u{1b}[31mé"#;
        assert_eq!(description.as_ref().unwrap().as_str(), kept);
    }
}
