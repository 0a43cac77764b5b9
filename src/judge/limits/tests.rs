use super::*;
use crate::judge::trust::{distrust, distrust_by};
use crate::policy::Policy;
use crate::results::measured_by::MeasuredBy;
use crate::results::statistics::Position;
use crate::results::{Conditions, Control, Floor, Look, RunInfo, Subject};
use crate::results::{Measurement, SchemeResult};
use std::path::Path;

/// A model with one cell: `q4_0` under these limits, expecting this.
fn model(limits: &str, expect: &str) -> ModelPolicy {
    let text = format!(
        "[models.m]\npath = \"a model.gguf\"\ncorpus = [\"a.txt\", \"b.txt\"]\ncontext = 512\nchunks = 4\n\
         limits = {{ {limits} }}\nschemes.q4_0 = {{ expect = \"{expect}\", reason = \"outliers in K\" }}\n"
    );
    Policy::parse(&text, Path::new("thresholds.toml")).unwrap().0.models.remove(0)
}

fn statistics() -> Statistics {
    Statistics {
        tokens_scored: 1024,
        mean_kld: 0.04,
        mean_kld_se: 0.001,
        median_kld: 0.01,
        p90_kld: 0.1,
        p95_kld: 0.2,
        p99_kld: 0.3,
        p999_kld: 0.4,
        max_kld: 0.5,
        top1_agreement: 0.9,
        top1_agreement_se: 0.01,
        rms_dp: 0.05,
        rms_dp_se: 0.001,
        ppl: 21.0,
        ppl_se: 0.5,
        ppl_ratio: 1.05,
        ppl_ratio_se: 0.01,
        baseline_ppl: 20.0,
        unknown: Vec::new(),
    }
}

fn measured(statistics: Statistics) -> Outcome {
    Outcome::measured(statistics, Vec::new())
}

fn judged(limits: &str, expect: &str, golden: Option<&GoldenValues>) -> Judgement {
    let model = model(limits, expect);
    judge(&model, &model.cells[0], &measured(statistics()), None, golden)
}

#[test]
fn limits_and_expectation_decide() {
    use Verdict::*;
    let cases = [
        ("mean_kld = 0.05", "pass", Pass),
        ("mean_kld = 0.04", "pass", Pass), // the bound itself is good
        ("mean_kld = 0.03", "pass", Regressed),
        ("mean_kld = 0.05", "fail", UnexpectedPass),
        ("mean_kld = 0.03", "fail", FailsAsRequired),
        ("mean_kld = 0.03", "report", Reported),
        ("top1_agreement = 0.9", "pass", Pass),
        ("top1_agreement = 0.95", "pass", Regressed),
        ("top1_agreement = 0.85", "fail", UnexpectedPass),
        ("mean_kld = 0.05, baseline_ppl = 19.0", "pass", Regressed), // one is enough
        // a damaged model fails nothing as required
        ("mean_kld = 0.05, baseline_ppl = 19.0", "fail", Regressed),
        ("mean_kld = 0.03, baseline_ppl = 19.0", "fail", Regressed),
    ];
    for (limits, expect, verdict) in cases {
        assert_eq!(judged(limits, expect, None).verdict, verdict, "{limits} {expect}");
    }
}

#[test]
fn every_statistic_is_judged() {
    for statistic in Statistic::ALL {
        let value = statistics().get(statistic);
        let (good, bad) = match statistic.direction() {
            Direction::AtMost => (value * 1.001, value * 0.999),
            Direction::AtLeast => (value * 0.999, value * 1.001),
        };
        for (bound, verdict) in [(good, Verdict::Pass), (bad, Verdict::Regressed)] {
            // beside one that holds: the baseline's own limit is none on the scheme
            let other =
                if statistic == Statistic::RmsDp { "max_kld = 1.0" } else { "rms_dp = 0.9" };
            let limits = format!("{} = {bound}, {other}", statistic.name());
            assert_eq!(judged(&limits, "pass", None).verdict, verdict, "{limits}");
        }
    }
}

#[test]
fn breaches_say_by_how_much() {
    let judgement = judged("mean_kld = 0.02, top1_agreement = 0.95, max_kld = 0.0", "pass", None);
    let shown: Vec<_> = judgement
        .broken()
        .map(|b| {
            (b.statistic, b.value, b.bound, b.origin.as_str(), (b.ratio() * 1e9).round() / 1e9)
        })
        .collect();
    let origin = "thresholds.toml:6";
    let expected = [
        (Statistic::MeanKld, 0.04, 0.02, origin, 2.0),
        (Statistic::MaxKld, 0.5, 0.0, origin, f64::INFINITY),
        (Statistic::Top1Agreement, 0.9, 0.95, origin, 2.0),
    ];
    assert_eq!(shown, expected);
    assert!(judged("mean_kld = 0.02", "report", None).limits.is_empty());
}

/// What must be an error under every expectation.
#[track_caller]
fn assert_error(
    edit: impl Fn(&mut ModelPolicy),
    outcome: &Outcome,
    distrust: Option<&str>,
    words: &str,
) {
    for expect in ["pass", "fail", "report"] {
        // one limit that the statistics break, so that `fail` would be met
        let mut model = model("mean_kld = 0.02", expect);
        edit(&mut model);
        let judgement = judge(&model, &model.cells[0], outcome, distrust, None);
        assert_eq!(judgement.verdict, Verdict::Error, "{expect}");
        assert!(judgement.message.contains(words), "{}", judgement.message);
        assert!(judgement.message.contains("kvgate run m::q4_0::"), "{}", judgement.message);
        assert!(judgement.limits.is_empty());
    }
}

#[test]
fn what_cannot_be_trusted_is_an_error_whatever_is_expected() {
    let as_is = |_: &mut ModelPolicy| {};
    let failed = Outcome::Failed { error: "layer 3: NaN".into() };
    assert_error(as_is, &failed, None, "layer 3: NaN");
    assert_error(as_is, &measured(statistics()), Some("did not engage"), "did not engage");
    let none = Statistics { tokens_scored: 0, ..statistics() };
    assert_error(as_is, &measured(none), None, "no token was scored");
    let nan_bound = |model: &mut ModelPolicy| model.cells[0].limits[0].bound = f64::NAN;
    assert_error(
        nan_bound,
        &measured(statistics()),
        None,
        "mean_kld = NaN (thresholds.toml:6) is no bound",
    );
}

#[test]
fn no_limit_is_an_error_but_for_reports() {
    for (expect, verdict) in
        [("pass", Verdict::Error), ("fail", Verdict::Error), ("report", Verdict::Reported)]
    {
        let mut model = model("mean_kld = 0.02", expect);
        model.cells[0].limits.clear();
        let judgement = judge(&model, &model.cells[0], &measured(statistics()), None, None);
        assert_eq!(judgement.verdict, verdict, "{}", judgement.message);
    }
}

#[test]
fn every_number_must_be_one() {
    let fields: [fn(&mut Statistics) -> &mut f64; 17] = [
        |s| &mut s.mean_kld,
        |s| &mut s.mean_kld_se,
        |s| &mut s.median_kld,
        |s| &mut s.p90_kld,
        |s| &mut s.p95_kld,
        |s| &mut s.p99_kld,
        |s| &mut s.p999_kld,
        |s| &mut s.max_kld,
        |s| &mut s.top1_agreement,
        |s| &mut s.top1_agreement_se,
        |s| &mut s.rms_dp,
        |s| &mut s.rms_dp_se,
        |s| &mut s.ppl,
        |s| &mut s.ppl_se,
        |s| &mut s.ppl_ratio,
        |s| &mut s.ppl_ratio_se,
        |s| &mut s.baseline_ppl,
    ];
    for field in fields {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut statistics = statistics();
            *field(&mut statistics) = bad;
            assert_error(|_| {}, &measured(statistics), None, "is no number");
        }
    }
}

#[test]
fn borderline_is_within_two_standard_errors() {
    let cases = [
        ("mean_kld = 0.0419", "pass", true),
        ("mean_kld = 0.0421", "pass", false),
        ("mean_kld = 0.0381", "pass", true),
        ("mean_kld = 0.0379", "pass", false),
        ("mean_kld = 0.0381", "fail", true),
        ("mean_kld = 0.0381", "report", false),
        ("top1_agreement = 0.881", "pass", true),
        ("top1_agreement = 0.879", "pass", false),
        ("p99_kld = 0.3", "pass", false), // keeps no standard error
    ];
    for (limits, expect, borderline) in cases {
        let judgement = judged(limits, expect, None);
        let found = judgement.limits.iter().any(|limit| limit.borderline);
        assert_eq!(found, borderline, "{limits} {expect}");
        assert_eq!(judgement.message.contains(", borderline"), borderline, "{}", judgement.message);
    }
    let exact = Statistics { mean_kld: 0.0, mean_kld_se: 0.0, ..statistics() };
    let model = model("mean_kld = 0.0", "pass");
    let judgement = judge(&model, &model.cells[0], &measured(exact), None, None);
    assert_eq!(judgement.verdict, Verdict::Pass);
    assert!(!judgement.limits[0].borderline);
}

#[test]
fn a_plain_pass_has_nothing_to_say() {
    assert_eq!(judged("mean_kld = 0.06", "pass", None).message, "");
}

#[test]
fn a_failure_says_all() {
    let golden = GoldenValues::from([(Statistic::MeanKld, 0.0123)]);
    let limits = "mean_kld = 0.02, top1_agreement = 0.95, max_kld = 0.0, baseline_ppl = 40";
    insta::assert_snapshot!(judged(limits, "pass", Some(&golden)).message, @"
m::q4_0::kld: regressed, 3 of 4 limits broken
✗ mean_kld        0.040000 ± 0.0010 nats      limit: at most 0.02 (thresholds.toml:6), 2.00 × its limit
    the value has moved: 0.012300 in the golden, 0.040000 now
  median_kld      0.010000 nats
  p90_kld         0.10000 nats
  p95_kld         0.20000 nats
  p99_kld         0.30000 nats
  p999_kld        0.40000 nats
✗ max_kld         0.50000 nats                limit: at most 0 (thresholds.toml:6), over its limit of 0
✗ top1_agreement  0.90000 ± 0.010             limit: at least 0.95 (thresholds.toml:6), 2.00 × the misses that its limit allows
  rms_dp          0.050000 ± 0.0010
  ppl             21.000 ± 0.50
  ppl_ratio       1.0500 ± 0.010
✓ baseline_ppl    20.000                      limit: at most 40 (thresholds.toml:6)
  1024 tokens scored
the policy's reason: outliers in K
again:        kvgate run m::q4_0::
without gate: kvgate measure 'a model.gguf' --corpus a.txt --corpus b.txt --schemes q4_0 --context 512 --chunks 4
    ");
}

#[test]
fn messages_tell_what_has_moved() {
    let cases = [
        ("pass", 0.02, Some(0.01), "the value has moved: 0.010000 in the golden, 0.040000 now"),
        ("pass", 0.02, Some(0.03), "the golden's 0.030000 breaks it, too: the limit has moved"),
        ("pass", 0.02, None, "no accepted golden"),
        ("fail", 0.05, Some(0.06), "the value has moved: 0.060000 in the golden"),
        ("fail", 0.05, Some(0.03), "the golden's 0.030000 holds, too: the limit has moved"),
        ("fail", 0.05, None, "drop the `expect`"),
        ("fail", 0.02, None, "m::q4_0::kld: fails as required, 1 of 1 limits broken"),
        ("report", 0.02, None, "m::q4_0::kld: reported\n"),
    ];
    for (expect, bound, golden, words) in cases {
        let golden = golden.map(|value| GoldenValues::from([(Statistic::MeanKld, value)]));
        let message = judged(&format!("mean_kld = {bound}"), expect, golden.as_ref()).message;
        assert!(message.contains(words), "{words}:\n{message}");
    }
    let green = judged("mean_kld = 0.02", "fail", None).message;
    assert!(!green.contains("moved") && !green.contains("no accepted golden"), "{green}");
}

fn measurement(schemes: &[(&str, &str, Statistics)]) -> Measurement {
    let control = |name: &str, mean_kld, top1| Control {
        name: name.into(),
        effective: "f16".into(),
        mean_kld: Some(mean_kld),
        top1_agreement: Some(top1),
        must: "exactly 0".into(),
        ok: true,
    };
    Measurement {
        model: "m".into(),
        subject: Subject {
            weights_sha256: String::new(),
            tokenizer_sha256: None,
            architecture: "llama".into(),
        },
        conditions: Conditions {
            corpus: Vec::new(),
            context: 512,
            chunks: 4,
            baseline: "f16".into(),
            engine: String::new(),
            device: "cpu".into(),
            weights: "f32".into(),
            reading: Vec::new(),
            prompts: None,
            needs: Vec::new(),
        },
        run: RunInfo {
            baseline_ppl: 20.0,
            device: String::new(),
            dtype: "f32".into(),
            arithmetic: None,
            card: None,
            seconds: 1.0,
            peak_bytes: 1,
            notes: Vec::new(),
        },
        controls: vec![control("identity", 0.0, 1.0), control("bad lane", 0.25, 0.5)],
        schemes: schemes
            .iter()
            .map(|(scheme, effective, statistics)| SchemeResult {
                scheme: scheme.to_string(),
                effective: effective.to_string(),
                needs: Vec::new(),
                storage: None,
                replay: None,
                retrieved: Vec::new(),
                shape: None,
                outcome: measured(statistics.clone()),
            })
            .collect(),
        floor: None,
        generated: None,
        haystacks: None,
    }
}

fn with_mean(mean_kld: f64, mean_kld_se: f64) -> Statistics {
    Statistics { mean_kld, mean_kld_se, ..statistics() }
}

fn identical() -> Statistics {
    Statistics { mean_kld: 0.0, mean_kld_se: 0.0, max_kld: 0.0, ..statistics() }
}

/// The labels that are distrusted, each with a word of its reason.
#[track_caller]
fn assert_distrust(measurement: &Measurement, expected: &[(&str, &str)]) {
    let reasons = distrust(measurement);
    let labels: Vec<_> = reasons.keys().map(String::as_str).collect();
    assert_eq!(labels, expected.iter().map(|(label, _)| *label).collect::<Vec<_>>(), "{reasons:?}");
    for (label, words) in expected {
        assert!(reasons[*label].contains(words), "{reasons:?}");
    }
}

#[test]
fn sound_lanes_are_trusted() {
    let sound = measurement(&[
        ("f16", "f16", identical()),
        ("q8_0", "q8_0", with_mean(0.001, 0.0001)),
        ("q4_0", "q4_0", with_mean(0.04, 0.001)),
        ("q4_0:norot", "q4_0", with_mean(0.04, 0.001)), // the same scheme may read the same
    ]);
    assert_distrust(&sound, &[]);
}

#[test]
fn a_scheme_that_did_not_engage() {
    let lossless = measurement(&[("f16", "f16", identical()), ("prod", "q4_0", identical())]);
    assert_distrust(&lossless, &[("prod", "`q4_0` reads a KLD of exactly 0")]);
    // both must be zero: tiny divergences may cancel in neither
    let mean_only = Statistics { mean_kld: 0.0, ..statistics() };
    let max_only = Statistics { max_kld: 0.0, ..statistics() };
    assert_distrust(&measurement(&[("a", "q8_0", mean_only), ("b", "q4_0", max_only)]), &[]);
}

/// Sums of shares make 15.999999999999998 bits of halves; a file may hold such a number.
#[test]
fn halves_hide_nothing_whatever_their_bits_add_up_to() {
    let storage = |bits: f64| crate::results::Storage {
        bits_per_element: [bits; 2].into(),
        bits_at_context: [16.0; 2].into(),
        bytes_per_token: 1.0,
        ratio_to_f16: 1.0,
        charged_share: [0.0; 2].into(),
        clamped_scales: None,
    };
    let of = |effective: &str, bits| {
        let mut measurement = measurement(&[("x", effective, with_mean(1e-6, 1e-7))]);
        measurement.conditions.baseline = "f32/f32".into();
        measurement.schemes[0].storage = Some(storage(bits));
        measurement
    };
    assert_distrust(&of("f16/f16", 15.999999999999998), &[]);
    assert_distrust(&of("q4_0/q4_0:tail=99", 16.0), &[("x", "its tail hides all of it")]);
}

#[test]
fn a_broken_identity() {
    let tiny = Statistics { mean_kld: 1e-12, ..identical() };
    assert_distrust(&measurement(&[("f16", "f16", tiny)]), &[("f16", "exactly 0; it read")]);
    let one_position = Statistics { max_kld: 1e-12, ..identical() };
    assert_distrust(&measurement(&[("f16", "f16", one_position)]), &[("f16", "exactly 0")]);
}

#[test]
fn two_schemes_with_one_result() {
    let same = with_mean(0.04, 0.001);
    let twins = measurement(&[
        ("a", "q4_0", same.clone()),
        ("b", "q4_1", same.clone()),
        ("c", "q5_0", with_mean(0.02, 0.001)),
        ("d", "q5_1", same.clone()),
        ("e", "iq4_nl", Statistics { p999_kld: 0.41, ..same }),
    ]);
    let expected =
        [("a", "`q4_0` and `q4_1`"), ("b", "`q4_1` and `q4_0`"), ("d", "`q5_1` and `q4_0`")];
    assert_distrust(&twins, &expected);
}

#[test]
fn a_mean_below_zero_beyond_its_noise() {
    for (mean, error, distrusted) in
        [(-0.0031, 0.001, true), (-0.0029, 0.001, false), (-2e-6, 0.0, true), (-5e-7, 0.0, false)]
    {
        let expected = [("q8_0", "below 0 beyond its noise")];
        let expected = if distrusted { &expected[..] } else { &[] };
        assert_distrust(&measurement(&[("q8_0", "q8_0", with_mean(mean, error))]), expected);
    }
}

#[test]
fn a_failed_control_takes_all() {
    let lanes = [("f16", "f16", identical()), ("q8_0", "q8_0", with_mean(0.001, 0.0001))];
    for control in 0..2 {
        let mut measurement = measurement(&lanes);
        measurement.controls[control].ok = false;
        measurement.schemes[0].outcome = Outcome::Failed { error: "x".into() };
        let words = format!("control `{}`", measurement.controls[control].name);
        assert_distrust(
            &measurement,
            &[("f16", &words), ("q8_0", "must read a mean KLD of exactly 0")],
        );
    }
    let mut measurement = measurement(&lanes);
    measurement.controls.clear();
    assert_distrust(
        &measurement,
        &[("f16", "no control lane `identity`"), ("q8_0", "no control lane")],
    );
}

#[test]
fn a_text_that_the_baseline_would_not_write_takes_all() {
    let lanes = [("f16", "f16", identical()), ("q8_0", "q8_0", with_mean(0.001, 0.0001))];
    let mut measurement = measurement(&lanes);
    let text = crate::testing::fixture::generated();
    measurement.subject.weights_sha256 = text.weights_sha256.clone();
    measurement.conditions.prompts = Some(text.conditions());
    measurement.generated = Some(text);
    assert_distrust(&measurement, &[]);
    measurement.generated.as_mut().unwrap().own_flips = 1;
    let words = "would not write its own text again: 1 flip";
    assert_distrust(&measurement, &[("f16", words), ("q8_0", "remove the golden m.text.snap")]);
    let text = measurement.generated.as_mut().unwrap();
    (text.own_flips, text.wrong_ties) = (0, 2);
    let words = "near ties of its text are not the baseline's: 2 positions";
    assert_distrust(&measurement, &[("f16", words), ("q8_0", "remove the golden m.text.snap")]);
}

#[test]
fn lanes_without_numbers_need_no_distrust() {
    let mut measurement = measurement(&[("a", "q4_0", statistics())]);
    measurement.schemes[0].outcome = Outcome::Failed { error: "x".into() };
    assert_distrust(&measurement, &[]);
}

/// Lanes as llama-perplexity's logs give them.
fn of_llama_cpp(schemes: &[(&str, &str, Statistics)]) -> Measurement {
    let mut measurement = measurement(schemes);
    measurement.controls.clear();
    measurement.conditions.engine = "llama.cpp b11434".into();
    measurement.conditions.baseline = "a file".into();
    measurement
}

#[test]
fn another_engine_needs_no_controls_where_it_is_asked_for() {
    let nearly = Statistics { mean_kld: -2e-6, mean_kld_se: 0.0, max_kld: 6e-5, ..statistics() };
    let logs = of_llama_cpp(&[
        ("f16", "f16/f16", nearly),
        ("q8_0", "q8_0/q8_0", with_mean(0.001, 0.0001)),
    ]);
    assert!(distrust_by(&logs, MeasuredBy::LlamaCpp).is_empty());
    // what a lane says by itself counts for every engine
    let bad = of_llama_cpp(&[
        ("f16", "f16/f16", identical()),
        ("q8_0", "q8_0/q8_0", with_mean(-0.1, 0.001)),
        ("q4_0", "q4_0/q4_0", with_mean(0.04, 0.001)),
        ("q4_1", "q4_1/q4_1", with_mean(0.04, 0.001)),
    ]);
    let reasons = distrust_by(&bad, MeasuredBy::LlamaCpp);
    assert_eq!(reasons.len(), 4, "{reasons:?}");
    assert!(reasons["f16"].contains("did not engage"));
    assert!(reasons["q8_0"].contains("below 0"));
    assert!(reasons["q4_0"].contains("the same statistics"));
}

/// A `results.json` must not do without controls by calling itself another engine's.
#[test]
fn a_file_does_not_say_by_whom_it_may_be_measured() {
    let mut claimed = measurement(&[("q8_0", "q8_0", with_mean(0.001, 0.0001))]);
    claimed.controls.clear();
    claimed.conditions.engine = "llama.cpp b11434".into();
    assert_distrust(&claimed, &[("q8_0", "measured by `llama.cpp b11434`, and what kvgate meas")]);
    claimed.conditions.engine = "vllm 0.9".into();
    assert_distrust(&claimed, &[("q8_0", "no control lane `identity`")]);
    // nor the reverse: controls are no licence for another engine's place
    let own = measurement(&[("q8_0", "q8_0", with_mean(0.001, 0.0001))]);
    assert!(distrust_by(&own, MeasuredBy::LlamaCpp)["q8_0"].contains("what llama.cpp measured"));
}

#[test]
fn a_limit_near_the_floor_says_nothing_of_a_lossy_scheme() {
    let model = model("mean_kld = 0.002, p99_kld = 1e-9", "pass");
    let says = |effective, mean_kld| {
        let measured = measurement(&[("q4_0", effective, statistics())]);
        let floor = Some(Floor { mean_kld, tokens_scored: 510, batch: 171 });
        floor_fault(&model.cells[0], &measured.schemes[0], floor, MeasuredBy::Kvgate)
    };
    assert_eq!(says("q4_0", 0.0), None);
    assert_eq!(says("q4_0", 0.0006), None);
    assert_eq!(says("f16", 0.01), None, "what quantizes nothing is compared with exactly this");
    for effective in ["q4_0", "f16/q8_0", "a codec of another crate"] {
        let said = says(effective, 0.001).unwrap();
        assert!(said.starts_with("the limit mean_kld = 0.002 (thresholds.toml:"), "{said}");
        assert!(said.contains("three times the floor 0.0010,"), "{said}");
        assert!(said.ends_with("set it to 0.0030 at least"), "{said}");
        let said = says(effective, 0.00411).unwrap();
        assert!(said.ends_with("set it to 0.013 at least"), "0.01233 is needed: {said}");
    }
}

/// What a run of today measures is there, or nobody knows what a limit near it says.
#[test]
fn without_a_floor_a_lossy_scheme_has_no_limit_on_its_mean() {
    let judged = |effective: &str, limits: &str, expect: &str, by| {
        let mut measured = measurement(&[("q4_0", effective, statistics())]);
        let part = Part::of("x", 0, &[Position::default()]);
        measured.schemes[0].outcome = Outcome::measured(statistics(), vec![part]);
        let model = model(limits, expect);
        let said = floor_fault(&model.cells[0], &measured.schemes[0], None, by);
        let Outcome::Measured { parts, .. } = &mut measured.schemes[0].outcome else { panic!() };
        parts[0].histogram.clear();
        let of_format_1 = floor_fault(&model.cells[0], &measured.schemes[0], None, by);
        assert_eq!(of_format_1, None, "{effective} {limits}");
        said.unwrap_or_default()
    };
    let (mean, by) = ("mean_kld = 0.05", MeasuredBy::Kvgate);
    let said = judged("q4_0", mean, "pass", by);
    assert!(said.starts_with("the limit mean_kld = 0.05 (thresholds.toml:"), "{said}");
    assert!(said.contains("cannot be judged: the floor is missing"), "{said}");
    assert_ne!(judged("q4_0", mean, "fail", by), "");
    assert_eq!(judged("f16/f16", mean, "pass", by), "");
    assert_eq!(judged("q4_0", "p99_kld = 0.5", "pass", by), "");
    assert_eq!(judged("q4_0", mean, "report", by), "", "nothing is judged");
    assert_eq!(judged("q4_0", mean, "pass", MeasuredBy::LlamaCpp), "", "only with a log of it");
}

#[test]
fn a_baseline_that_is_not_itself_in_other_batches_is_distrusted() {
    let with = |mean_kld| {
        let mut measured = measurement(&[("q8_0", "q8_0", with_mean(0.001, 0.0001))]);
        measured.floor = Some(Floor { mean_kld, tokens_scored: 510, batch: 171 });
        measured
    };
    assert_distrust(&with(0.0), &[]);
    assert_distrust(&with(1e-5), &[]);
    assert_distrust(&with(-1e-9), &[]);
    assert_distrust(&with(-1e-3), &[("q8_0", "a mean KLD of -0.001 against itself")]);
    assert_distrust(&with(0.1), &[("q8_0", "the baseline reads a mean KLD of 0.1 against itself")]);
    assert_distrust(&with(f64::NAN), &[("q8_0", "a mean KLD of NaN against itself")]);
}

/// Eight chunks whose mean KLDs are 0.02, but for one.
fn chunks(last: f64, confidence: Option<f64>) -> impl Fn(&str, &str) -> Judgement {
    let position =
        |kld: f64| Position { kld: kld as f32, logp: -1.0, logp_base: -1.0, ..Default::default() };
    let chunk = move |i: usize| {
        vec![position(if i == 7 { last } else { 0.018 + 0.004 * (i % 2) as f64 }); 100]
    };
    move |limits, expect| {
        let parts = (0..8).map(|i| Part::of("x", i, &chunk(i))).collect();
        let statistics = Statistics::of(&(0..8).flat_map(chunk).collect::<Vec<_>>());
        let model = ModelPolicy { confidence, ..model(limits, expect) };
        judge(&model, &model.cells[0], &Outcome::measured(statistics, parts), None, None)
    }
}

#[test]
fn with_a_confidence_a_limit_may_be_undecided() {
    use Verdict::*;
    for (bound, pass, fail) in [
        (0.015, Regressed, FailsAsRequired),
        (0.019, Inconclusive, Inconclusive),
        (0.021, Inconclusive, Inconclusive),
        (0.04, Pass, UnexpectedPass),
    ] {
        let limits = format!("mean_kld = {bound}, baseline_ppl = 40.0");
        let judged = chunks(0.02, Some(0.95));
        assert_eq!(judged(&limits, "pass").verdict, pass, "{bound}");
        assert_eq!(judged(&limits, "fail").verdict, fail, "{bound}");
        // without it the value decides, and a bound within the interval is a note
        let judged = chunks(0.02, None)(&limits, "pass");
        assert_eq!(judged.verdict, if bound < 0.02 { Regressed } else { Pass }, "{bound}");
        assert_eq!(judged.limits[0].borderline, pass == Inconclusive, "{bound}");
    }
    // a limit that is broken with confidence decides beside one that nobody knows
    let both = chunks(0.02, Some(0.95))("mean_kld = 0.021, median_kld = 0.001", "pass");
    assert_eq!(both.verdict, Regressed);
    let damaged = chunks(0.02, Some(0.95))("mean_kld = 0.001, baseline_ppl = 2.0", "fail");
    assert_eq!(damaged.verdict, Regressed);
}

#[test]
fn an_undecided_limit_says_what_would_decide() {
    let message = chunks(0.02, Some(0.95))("mean_kld = 0.021", "pass").message;
    for words in [
        "m::q4_0::kld: inconclusive, 0 of 1 limits broken, 1 undecided",
        "? mean_kld ",
        "95 % interval: 0.01",
        " chunks would decide if the value stays; a limit of 0.02",
    ] {
        assert!(message.contains(words), "{words}: {message}");
    }
}

/// Looks at chunks of about 0.02, first 8 of them, and as many more as the counts say.
fn looked(counts: &[usize], max_chunks: Option<usize>, bound: f64, expect: &str) -> Judgement {
    looked_at(counts, |i| i, max_chunks, bound, expect)
}

/// The same with chunks of other numbers.
fn looked_at(
    counts: &[usize],
    number: fn(usize) -> usize,
    max_chunks: Option<usize>,
    bound: f64,
    expect: &str,
) -> Judgement {
    let chunk = |i: usize| {
        let kld = 0.0195 + 0.001 * (i % 2) as f32;
        vec![Position { kld, logp: -1.0, logp_base: -1.0, ..Default::default() }; 100]
    };
    let all = |chunks: usize| (0..chunks).flat_map(chunk).collect::<Vec<_>>();
    let parts = |from: usize, to: usize| (from..to).map(|i| Part::of("x", number(i), &chunk(i)));
    let looks = counts.windows(2).map(|pair| Look {
        statistics: Statistics::of(&all(pair[1])),
        parts: parts(pair[0], pair[1]).collect(),
    });
    let outcome = Outcome::Measured {
        statistics: Statistics::of(&all(counts[0])),
        parts: parts(0, counts[0]).collect(),
        looks: looks.collect(),
    };
    let model = model(&format!("mean_kld = {bound}, baseline_ppl = 40.0"), expect);
    let model = ModelPolicy { confidence: Some(0.95), chunks: 8, max_chunks, ..model };
    judge(&model, &model.cells[0], &outcome, None, None)
}

#[test]
fn looks_share_what_the_confidence_leaves_and_the_first_that_decides_counts() {
    let most = Some(64);
    let one = looked(&[8], None, 0.0204, "pass");
    let [low, high] = [one.limits[0].low.unwrap(), one.limits[0].high.unwrap()];
    assert_eq!((one.verdict, one.limits[0].looks), (Verdict::Inconclusive, None));
    let first = looked(&[8], most, 0.0204, "pass");
    let limit = &first.limits[0];
    assert_eq!((limit.confidence, limit.looks), (Some(0.95), Some(4)));
    assert!((limit.confidence_of_interval().unwrap() - 0.9875).abs() < 1e-12);
    assert!(limit.low.unwrap() < low && limit.high.unwrap() > high, "a look more is a price");
    let message = &first.message;
    assert!(message.contains("98.8 % interval: 0.01"), "{message}");

    let last = looked(&[8, 16, 32, 64], most, 0.0204, "pass");
    assert_eq!(last.verdict, Verdict::Pass);
    assert!(last.limits[0].high.unwrap() < high);
    for (bound, verdict) in [(0.0204, Verdict::UnexpectedPass), (0.0196, Verdict::FailsAsRequired)]
    {
        assert_eq!(looked(&[8, 16, 32, 64], most, bound, "fail").verdict, verdict, "{bound}");
    }
    let open = looked(&[8, 16, 32, 64], most, 0.02001, "pass");
    assert_eq!(open.verdict, Verdict::Inconclusive);
    let told = "looked at more than once: 8 and 16 and 32 chunks left it open, 64 leave it open, too (at most 64";
    assert!(open.message.contains(told), "{}", open.message);

    // a first look that decides is not undone by later ones
    let early = looked(&[8, 16], most, 0.05, "pass");
    assert_eq!(early.limits, looked(&[8], most, 0.05, "pass").limits);
}

/// The largest KLD of more chunks is larger, and another part of a text has another perplexity: neither says anything new
/// of the scheme, and their limits were made for the first chunks.
#[test]
fn further_looks_leave_values_without_an_interval_as_they_are() {
    let position = |kld: f32, logp_base: f32| Position {
        kld,
        logp: logp_base,
        logp_base,
        ..Default::default()
    };
    let chunk = |i: usize| {
        let kld = 0.0195 + 0.001 * (i % 2) as f32;
        vec![position(kld + if i < 8 { 0.0 } else { 0.0005 }, if i < 8 { -1.0 } else { -2.0 }); 100]
    };
    let all = |to: usize| Statistics::of(&(0..to).flat_map(chunk).collect::<Vec<_>>());
    let parts = |from: usize, to: usize| (from..to).map(|i| Part::of("x", i, &chunk(i))).collect();
    let looks = vec![Look { statistics: all(16), parts: parts(8, 16) }];
    let outcome = Outcome::Measured { statistics: all(8), parts: parts(0, 8), looks };
    let judged = |limits: &str| {
        let model = ModelPolicy {
            confidence: Some(0.95),
            chunks: 8,
            max_chunks: Some(16),
            ..model(limits, "pass")
        };
        judge(&model, &model.cells[0], &outcome, None, None)
    };
    let judgement = judged("mean_kld = 0.02027, baseline_ppl = 3.0, max_kld = 0.0206");
    assert_eq!(judgement.verdict, Verdict::Inconclusive);
    let [mean, max, ppl] = &judgement.limits[..] else { panic!("{:?}", judgement.limits) };
    assert!(mean.value > 0.0202, "all chunks: {}", mean.value);
    assert!(max.holds && max.value < 0.0206, "the first chunks: {}", max.value);
    assert!(ppl.holds && (ppl.value - 1f64.exp()).abs() < 1e-6, "the first chunks: {}", ppl.value);
    // a golden has the values of the first chunks, so the mean of more says nothing of a change
    let model = ModelPolicy {
        confidence: Some(0.95),
        chunks: 8,
        max_chunks: Some(16),
        ..model("mean_kld = 0.0198", "pass")
    };
    let golden = GoldenValues::from([(Statistic::MeanKld, 0.0196)]);
    let red = judge(&model, &model.cells[0], &outcome, None, Some(&golden));
    assert_eq!((red.verdict, red.chunks), (Verdict::Regressed, Some(16)), "{}", red.message);
    assert!(!red.message.contains("the value has moved"), "{}", red.message);
    let told = "the value is that of the first 8 chunks";
    assert_eq!(judgement.message.matches(told).count(), 2, "{}", judgement.message);
}

/// A run that was asked for more chunks, or a stranger, does not choose how often a policy looks.
#[test]
fn chunks_that_the_policy_does_not_ask_for_do_not_count() {
    let without = looked(&[8], None, 0.0204, "pass");
    assert_eq!(looked(&[8, 64], None, 0.0204, "pass").limits, without.limits);
    let too_many = looked(&[8, 64], Some(64), 0.0204, "pass");
    assert_eq!(too_many.limits, looked(&[8], Some(64), 0.0204, "pass").limits);
    let fewer = looked(&[8, 12], Some(64), 0.0204, "pass");
    assert!(fewer.limits[0].high < too_many.limits[0].high, "the text may end before the maximum");
    // chunk 11 was not looked at, and chunk 12 was, so the text did not end
    let stopped = looked_at(&[8, 12], |i| i + usize::from(i == 11), Some(64), 0.0204, "pass");
    assert_eq!(stopped.limits, too_many.limits);
}

/// The same values but for one chunk, which is ten times as far: the mean is known much worse.
#[test]
fn one_far_chunk_makes_a_verdict_unsure() {
    let judged = |last: f64| chunks(last, Some(0.95))("mean_kld = 0.06", "pass").verdict;
    assert_eq!(judged(0.02), Verdict::Pass);
    assert_eq!(judged(0.2), Verdict::Inconclusive);
}

#[test]
fn what_has_no_interval_decides_as_it_is_and_says_so() {
    let judgement = chunks(0.02, Some(0.95))("max_kld = 0.01, mean_kld = 1.0", "pass");
    assert_eq!(judgement.verdict, Verdict::Regressed);
    let why = "the value decides as it is: so few positions decide the value";
    assert!(judgement.message.contains(why), "{}", judgement.message);
    // logs of another engine have no chunks
    let model = ModelPolicy { confidence: Some(0.95), ..model("mean_kld = 0.041", "pass") };
    let judgement = judge(&model, &model.cells[0], &measured(statistics()), None, None);
    assert_eq!(judgement.verdict, Verdict::Pass);
    assert_eq!(judgement.limits[0].confidence, None);
    let why = judgement.limits[0].no_interval.as_deref().unwrap();
    assert!(why.contains("gives no values of chunks"), "{why}");
}

/// Results without histograms would otherwise pass by the value alone.
#[test]
fn a_quantile_without_histograms_is_undecided() {
    let model = ModelPolicy { confidence: Some(0.95), ..model("p99_kld = 1.0", "pass") };
    let position = Position { kld: 0.02, ..Default::default() };
    let part = |i| Part { histogram: Vec::new(), ..Part::of("x", i, &[position; 100]) };
    let statistics = Statistics::of(&[position; 800]);
    let outcome = Outcome::measured(statistics, (0..8).map(part).collect());
    let judgement = judge(&model, &model.cells[0], &outcome, None, None);
    assert_eq!(judgement.verdict, Verdict::Inconclusive);
    let mend = "or measure again with a kvgate that writes histograms of chunks";
    assert!(!judgement.message.contains("too near the limit"), "{}", judgement.message);
    assert!(judgement.message.contains(mend), "{}", judgement.message);
}

/// Nine chunks of prose with a mean KLD of 0.02, and as many of tools as are asked for, with that of `tools`.
fn of_two_categories(tools: f32, chunks: usize) -> Outcome {
    let position = |kld: f32| Position { kld, logp: -1.0, logp_base: -1.0, ..Default::default() };
    let of = |category: &'static str, chunks: usize, kld: f32| {
        let chunk = move |i: usize| vec![position(kld * (0.95 + 0.1 * (i % 2) as f32)); 100];
        (0..chunks).map(move |i| (category, i, chunk(i)))
    };
    let all: Vec<_> = of("prose", 9, 0.02).chain(of("tools", chunks, tools)).collect();
    let parts = all.iter().map(|(category, i, chunk)| Part::of(category, *i, chunk)).collect();
    let positions: Vec<_> = all.into_iter().flat_map(|(.., chunk)| chunk).collect();
    Outcome::measured(Statistics::of(&positions), parts)
}

/// A model whose policy has these limits on `q4_0`, and 8 chunks of each category.
fn by_category(limits: &str, confidence: Option<f64>) -> ModelPolicy {
    let text = format!(
        "[models.m]\npath = \"m.gguf\"\ncorpus = [\"prose.txt\", \"tools.txt\"]\ncontext = 512\nchunks = 16\n\
         schemes.q4_0.limits = {{ {limits} }}\n"
    );
    let mut policy = Policy::parse(&text, Path::new("thresholds.toml")).unwrap().0;
    ModelPolicy { confidence, ..policy.models.remove(0) }
}

#[test]
fn a_limit_by_category_judges_its_chunks_alone() {
    let judged = |limits: &str, tools: f32, confidence| {
        let model = by_category(limits, confidence);
        judge(&model, &model.cells[0], &of_two_categories(tools, 8), None, None)
    };
    // the mean of all is 0.039
    let limits = "mean_kld = 0.05, category.tools.mean_kld = 0.04";
    assert_eq!(judged(limits, 0.03, None).verdict, Verdict::Pass);
    let harmed = judged(limits, 0.06, None);
    assert_eq!(harmed.verdict, Verdict::Regressed);
    let [all, tools] = &harmed.limits[..] else { panic!("{harmed:?}") };
    assert!(all.holds && all.category.is_none());
    assert!(!tools.holds && (tools.value - 0.06).abs() < 1e-6, "{tools:?}");
    assert_eq!(tools.category.as_deref(), Some("tools"));
    for words in [
        "m::q4_0::kld: regressed, 1 of 2 limits broken",
        "✓ mean_kld          0.0387",
        "✗ mean_kld of tools 0.060000 nats",
        "limit: at most 0.04 (thresholds.toml:6), 1.50 × its limit",
    ] {
        assert!(harmed.message.contains(words), "{words}: {}", harmed.message);
    }
    // with a confidence, the interval is that of the chunks of this category
    let limits = "mean_kld = 1.0, category.tools.mean_kld = 0.061";
    let unsure = judged(limits, 0.06, Some(0.95));
    assert_eq!(unsure.verdict, Verdict::Inconclusive);
    assert!(unsure.message.contains(" of all texts, would decide"), "{}", unsure.message);
    let (low, high) = unsure.limits[1].interval().unwrap();
    assert!(0.05 < low && low < 0.06 && 0.061 < high && high < 0.07, "{low} {high}");
    let sure = judged("mean_kld = 1.0, category.tools.mean_kld = 0.1", 0.06, Some(0.95));
    assert_eq!(sure.verdict, Verdict::Pass);
}

/// A text may be shorter than the policy thinks, and another engine's log has no chunks.
#[test]
fn a_limit_on_too_few_chunks_of_a_category_is_an_error() {
    let model = by_category("category.tools.mean_kld = 1.0", None);
    let judged = |outcome: &Outcome| judge(&model, &model.cells[0], outcome, None, None);
    let few = judged(&of_two_categories(0.01, 7));
    assert_eq!(few.verdict, Verdict::Error);
    let words = "there are 7 chunks of `tools`, and 8 are needed: its text is too short; add text, or drop the limit: \
                 `category.tools.mean_kld = false`";
    assert!(few.message.contains(words), "{}", few.message);
    let none = judged(&measured(statistics()));
    assert_eq!(none.verdict, Verdict::Error);
    assert!(none.message.contains("set `category.tools.mean_kld = false`"), "{}", none.message);
}

/// All texts together may have a perplexity where one of them has none.
#[test]
fn a_limit_on_a_category_whose_value_is_no_number_is_an_error() {
    let Outcome::Measured { statistics, mut parts, .. } = of_two_categories(0.01, 8) else {
        panic!("it is measured")
    };
    for part in parts.iter_mut().filter(|part| part.category == "tools") {
        part.nll = 1000.0 * part.tokens as f64;
    }
    let outcome = Outcome::measured(statistics, parts);
    let judged = |limit: &str| {
        let model = by_category(&format!("mean_kld = 1.0, category.tools.{limit}"), None);
        judge(&model, &model.cells[0], &outcome, None, None)
    };
    let overflown = judged("ppl = 40.0");
    assert_eq!(overflown.verdict, Verdict::Error, "{}", overflown.message);
    let why = "cannot be judged: of `tools`, ppl is inf";
    assert!(overflown.message.contains(why), "{}", overflown.message);
    assert_eq!(judged("mean_kld = 0.5").verdict, Verdict::Pass);
}
