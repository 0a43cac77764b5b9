//! The verdict as a badge: the JSON that shields.io's endpoint makes a badge of.

use super::view::View;
use crate::text;
use crate::text::numbers::count;
use serde::Serialize;

/// What shields.io reads. Its names are those of its schema, version 1.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Badge {
    schema_version: u8,
    label: &'static str,
    message: String,
    color: &'static str,
}

/// The JSON of the badge.
pub fn render(view: &View) -> Result<String, serde_json::Error> {
    let (message, color) = verdict(view);
    let badge = Badge { schema_version: 1, label: "kv cache", message, color };
    Ok(serde_json::to_string_pretty(&badge)? + "\n")
}

/// The words and their colour. Green says that a scheme passes for every model that was judged.
fn verdict(view: &View) -> (String, &'static str) {
    let (cases, findings) = (view.red_cases.len(), view.red_findings().count());
    let red = if view.exit_code == 1 { "red" } else { "orange" };
    if cases > 0 {
        return (format!("{cases} of {} red", view.results.cases.len()), red);
    }
    if findings > 0 {
        return (count(findings, "red finding"), red);
    }
    let advised: Vec<_> = view.models.iter().filter_map(|one| one.advice.as_ref()).collect();
    if advised.is_empty() {
        return ("not judged".into(), "lightgrey");
    }
    if advised.iter().any(|advice| advice.withheld.is_some()) {
        return ("a control failed".into(), "orange");
    }
    let served: Vec<_> = advised.iter().filter_map(|advice| advice.serve()).collect();
    match &served[..] {
        [] => ("no scheme passes".into(), "lightgrey"),
        [first, others @ ..] if served.len() == advised.len() => {
            let is_one = others.iter().all(|row| row.label == first.label);
            let name = if is_one { text::name(first.label) } else { "a scheme".into() };
            let models = if others.is_empty() {
                String::new()
            } else {
                format!(" for {}", count(served.len(), "model"))
            };
            (format!("{name} passes{models}"), "brightgreen")
        }
        _ => {
            let models = count(advised.len(), "model");
            (format!("a scheme passes for {} of {models}", served.len()), "yellow")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;
    use crate::results::verdict::Verdict;
    use crate::testing::fixture;

    /// Changes a report.
    type Edit = fn(&mut Report);

    fn said(report: &Report) -> (String, &'static str) {
        verdict(&report.view())
    }

    /// The fixture without red cases: one model of which a scheme passes, and one of which none does.
    fn green() -> Report {
        let mut report = fixture::report();
        report.results.cases.retain(|case| !case.verdict.is_red());
        report
    }

    #[test]
    fn it_is_what_the_endpoint_reads() {
        let json = render(&fixture::report().view()).unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        let expected = serde_json::json!({
            "schemaVersion": 1, "label": "kv cache", "message": "3 of 7 red", "color": "red"
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn green_only_where_every_model_has_a_scheme() {
        let mut report = green();
        assert_eq!(said(&report), ("a scheme passes for 1 of 2 models".into(), "yellow"));
        report.results.cases.retain(|case| !case.case.starts_with("tiny"));
        assert_eq!(said(&report), ("q8_0 passes".into(), "brightgreen"));
        for case in &mut report.results.cases {
            case.verdict = Verdict::FailsAsRequired;
        }
        assert_eq!(said(&report), ("no scheme passes".into(), "lightgrey"));
        report.results.cases.clear();
        assert_eq!(said(&report), ("not judged".into(), "lightgrey"));
    }

    #[test]
    fn whatever_is_wrong_is_not_green() {
        let edits: [(&str, &str, Edit); 4] = [
            ("1 of 3 red", "red", |r| r.results.cases[0].verdict = Verdict::GoldenChanged),
            ("1 of 3 red", "orange", |r| r.results.cases[0].verdict = Verdict::Error),
            ("1 red finding", "red", |r| r.results.findings = vec![fixture::weakened()]),
            ("a control failed", "orange", |r| r.results.measurements[0].controls[0].ok = false),
        ];
        for (message, color, edit) in edits {
            let mut report = green();
            report.results.cases[2].verdict = Verdict::Ignored;
            edit(&mut report);
            let n = report.results.cases.len();
            assert_eq!(said(&report), (message.replace("of 3", &format!("of {n}")), color));
        }
    }

    #[test]
    fn several_models_may_share_a_scheme() {
        let mut report = green();
        report.results.cases.retain(|case| !case.case.starts_with("tiny"));
        let mut other = report.results.measurements[0].clone();
        other.model = "other".into();
        report.results.measurements.push(other);
        for mut case in report.results.cases.clone() {
            case.case = case.case.replace("gemma-3-270m", "other");
            report.results.cases.push(case);
        }
        assert_eq!(said(&report), ("q8_0 passes for 2 models".into(), "brightgreen"));
    }
}
