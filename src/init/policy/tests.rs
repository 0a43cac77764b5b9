use super::*;
use crate::judge::limits;
use crate::policy::{Expectation, Policy};
use crate::results::statistics::Position;
use crate::results::verdict::{JudgedLimit, Verdict};
use crate::results::{Sides, Storage};
use crate::testing::fixture;
use std::path::Path;
use std::time::Duration;

fn found(mean_kld: f64, p99_kld: f64, top1_agreement: f64) -> Statistics {
    Statistics {
        tokens_scored: 3000,
        mean_kld,
        p99_kld,
        max_kld: p99_kld,
        top1_agreement,
        ppl: 18.0,
        ppl_ratio: 1.0,
        baseline_ppl: 18.0,
        ..Statistics::default()
    }
}

#[test]
fn far_from_the_starting_point_it_stands_near_it_there_is_another() {
    assert_eq!(propose(&found(0.0375, 0.37, 0.91), &[], &ANY, JudgedBy::Values), Proposal::Start);
    assert_eq!(propose(&found(0.0625, 0.37, 0.91), &[], &ANY, JudgedBy::Values), Proposal::Fail);
    assert_eq!(
        propose(&found(0.01, 0.63, 0.91), &[], &ANY, JudgedBy::Values),
        Proposal::Fail,
        "the tail alone"
    );
    assert_eq!(
        propose(&found(0.01, 0.1, 0.83), &[], &ANY, JudgedBy::Values),
        Proposal::Fail,
        "flips alone"
    );
    let Proposal::Own(own) = propose(&found(0.055, 0.4, 0.86), &[], &ANY, JudgedBy::Values) else {
        panic!("near")
    };
    let bound = |statistic| own.iter().find(|(s, _)| *s == statistic).unwrap().1.unwrap();
    assert!((bound(Statistic::MeanKld) - 0.083).abs() < 1e-9, "{own:?}");
    assert!((bound(Statistic::Top1Agreement) - 0.79).abs() < 1e-9, "{own:?}");
    assert!((bound(Statistic::P99Kld) - 0.6).abs() < 1e-9, "{own:?}");
    // 0.02 is near to nothing but two errors of 0.02
    let unsure = Statistics { mean_kld_se: 0.02, ..found(0.02, 0.1, 0.95) };
    let Proposal::Own(own) = propose(&unsure, &[], &ANY, JudgedBy::Values) else {
        panic!("near by its error")
    };
    assert!(own[0].1 >= Some(0.06), "{own:?}");
}

/// Flips that other chunks may have more of leave the limit on the mean KLD as it is.
#[test]
fn no_limit_is_stretched_to_agree_with_another() {
    let flips = |i: usize, j: usize| u32::from(i == 0 && j.is_multiple_of(2));
    let chunk = |i: usize| -> Vec<Position> {
        let position = |j: usize| Position { kld: 0.04, top: flips(i, j), ..Position::default() };
        (0..240).map(position).collect()
    };
    let parts: Vec<_> = (0..8).map(|i| Part::of("x", i, &chunk(i))).collect();
    let statistics = Statistics::of(&(0..8).flat_map(chunk).collect::<Vec<_>>());
    let own = |judged_by| match propose(&statistics, &parts, &ANY, judged_by) {
        Proposal::Own(own) => [own[0].1, own[1].1],
        other => panic!("{other:?}"),
    };
    let [kld, top1] = own(JudgedBy::Intervals);
    assert_eq!(kld, Some(0.06));
    assert!(top1.is_some_and(|top1| top1 < 0.8), "{top1:?}");
    let [kld, top1] = own(JudgedBy::Values);
    assert_eq!(kld, Some(0.06));
    assert!(top1.is_some_and(|top1| (top1 - 0.82).abs() < 1e-9), "0.75 times the root: {top1:?}");
    let limits = own_limits(&[(&statistics, &parts)], JudgedBy::Values);
    assert_eq!(limits[..2], [(Statistic::MeanKld, kld), (Statistic::Top1Agreement, top1)]);
    // and few flips beside much KLD: they get room, so that the limit on the mean KLD makes a difference
    let top1 = |flips, seen, judged_by| means(0.16, flips, seen, judged_by)[1].1;
    assert_eq!(top1(0.01, 0.005, JudgedBy::Values), Some(0.9));
    assert_eq!(top1(0.01, 0.005, JudgedBy::Intervals), Some(0.99));
    // 0.75 times the root of 0.16 is 0.3
    assert_eq!(top1(0.36, 0.22, JudgedBy::Values), Some(0.7), "tightened");
    assert_eq!(top1(0.36, 0.24, JudgedBy::Values), None, "no margin is left");
    assert_eq!(top1(0.36, 0.24, JudgedBy::Intervals), Some(0.64));
}

#[test]
fn two_digits_and_never_down() {
    for (value, want) in
        [(0.03, 0.03), (0.0301, 0.031), (15.45, 16.0), (154.2, 155.0), (1e-5, 1e-5)]
    {
        assert!((rounded_up(value) / want - 1.0).abs() < 1e-12, "{value}: {}", rounded_up(value));
    }
}

/// A measurement with a scheme of each kind, in eight bits and in four.
fn measurement(found: &[(&str, f64, Statistics)]) -> Measurement {
    let mut measurement = fixture::results().measurements.remove(0);
    measurement.subject.weights_sha256 = "a5".repeat(32);
    let one = measurement.schemes[0].clone();
    let scheme = |(label, bits, statistics): &(&str, f64, Statistics)| {
        let bits_per_element = Sides { k: *bits, v: *bits };
        let storage = one.storage.map(|storage| Storage { bits_per_element, ..storage });
        let outcome = Outcome::measured(statistics.clone(), Vec::new());
        SchemeResult { scheme: (*label).into(), storage, outcome, ..one.clone() }
    };
    measurement.schemes = found.iter().map(scheme).collect();
    measurement
}

fn draft(corpus: &[String], chunks: usize) -> Draft<'_> {
    Draft { corpus, context: 512, chunks }
}

/// Whatever is found, the policy has no finding, judges what it was made of as it says, and no value is
/// nearer to its limit than the margin.
#[test]
fn a_policy_of_any_numbers_holds_for_them() {
    let corpus = ["corpora/a \"b\".txt".to_string()];
    let numbers = [0.0001, 0.004, 0.013, 0.016, 0.021, 0.026, 0.036, 0.045, 0.055, 0.07, 0.4];
    // few chunks have no intervals, and then values decide
    let chunks_and_means = [4, 12].into_iter().flat_map(|c| numbers.map(|mean| (c, mean)));
    for (chunks, mean) in chunks_and_means {
        for flips in [0.25, 0.45, 0.6, 0.75, 0.9] {
            let agreement = 1.0 - flips * f64::sqrt(mean);
            let statistics = found(mean, 8.0 * mean, agreement);
            let found =
                [("q8_0", 8.5, statistics.clone()), ("q4_0:norot", 4.5, statistics.clone())];
            let text = draft(&corpus, chunks)
                .of_model(&Source::at("m/o.gguf".into()), &measurement(&found));
            let (policy, warnings) = Policy::parse(&text, Path::new("thresholds.toml"))
                .unwrap_or_else(|e| panic!("{e}\n{text}"));
            assert!(warnings.is_empty(), "{}\n{text}", warnings[0]);
            let model = &policy.models[0];
            for cell in &model.cells {
                let outcome = Outcome::measured(statistics.clone(), Vec::new());
                let judged = limits::judge(model, cell, &outcome, None, None);
                let as_said = [Verdict::Pass, Verdict::FailsAsRequired].contains(&judged.verdict);
                assert!(as_said, "{} {mean} {flips}: {}\n{text}", cell.label, judged.message);
                let apart = |limit: &JudgedLimit| (limit.ratio() - 1.0).abs() >= MARGIN - 1e-9;
                let is_apart = match cell.expect {
                    Expectation::Fail => judged.broken().any(apart),
                    _ => judged.limits.iter().all(apart),
                };
                assert!(is_apart, "{} {mean} {flips}: {:?}\n{text}", cell.label, judged.limits);
            }
        }
    }
}

/// Chunks that are alike, that differ, and of which one is far from the others: the policy asks for a confidence, and its
/// own measurement leaves nothing open.
#[test]
fn a_policy_of_any_chunks_is_decided_by_them() {
    let corpus = ["corpora/a.txt".to_string()];
    for (mean, spread) in
        [(0.004, 0.1), (0.02, 0.8), (0.03, 3.0), (0.045, 0.5), (0.09, 6.0), (0.4, 0.2)]
    {
        let chunk = |i: usize| -> Vec<Position> {
            let factor = if i == 5 { 1.0 + spread } else { 1.0 };
            let position = |j: usize| Position {
                kld: (mean * factor * (j % 20) as f64 / 10.0) as f32,
                logp: -2.9,
                logp_base: -2.9,
                top: u32::from(j % 30 == i),
                ..Position::default()
            };
            (0..240).map(position).collect()
        };
        let parts: Vec<_> = (0..12).map(|i| Part::of("x", i, &chunk(i))).collect();
        let statistics = Statistics::of(&(0..12).flat_map(chunk).collect::<Vec<_>>());
        let outcome = Outcome::measured(statistics.clone(), parts);
        let mut measurement =
            measurement(&[("q8_0", 8.5, statistics.clone()), ("q4_0", 4.5, statistics)]);
        measurement.schemes.iter_mut().for_each(|scheme| scheme.outcome = outcome.clone());
        let text = draft(&corpus, 12).of_model(&Source::at("m/o.gguf".into()), &measurement);
        let (policy, _) = Policy::parse(&text, Path::new("thresholds.toml")).unwrap();
        assert_eq!(policy.models[0].confidence, Some(CONFIDENCE));
        for cell in &policy.models[0].cells {
            let judged = limits::judge(&policy.models[0], cell, &outcome, None, None);
            let as_said = [Verdict::Pass, Verdict::FailsAsRequired].contains(&judged.verdict);
            assert!(as_said, "{} {mean} {spread}: {}\n{text}", cell.label, judged.message);
        }
    }
}

#[test]
fn the_policy_without_a_model_says_so_and_how_to_get_one() {
    let text = draft(&["corpora/prose.txt".into()], 12).skeleton();
    let error = Policy::parse(&text, Path::new("thresholds.toml")).unwrap_err().to_string();
    assert!(error.contains("has no model") && error.contains("kvgate init --model"), "{error}");
    assert_eq!(error.matches("error").count(), 1, "{error}");
}

#[test]
fn days_are_those_of_the_calendar() {
    for (seconds, want) in [
        (0, "1970-01-01"),
        (951_782_400, "2000-02-29"),
        (1_772_323_199, "2026-02-28"),
        (1_772_323_200, "2026-03-01"),
        (4_102_444_800, "2100-01-01"),
    ] {
        assert_eq!(day(UNIX_EPOCH + Duration::from_secs(seconds)), want);
    }
}

#[test]
fn a_checkpoint_of_the_hub_is_named_with_its_commit() {
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let pinned = format!("hf:org/name@{commit}/a.gguf").parse().unwrap();
    let corpus = ["corpora/prose.txt".to_string()];
    let found = measurement(&[("q8_0", 8.5, found(0.001, 0.01, 0.98))]);
    let text = draft(&corpus, 12).of_model(&Source::of_hub(pinned), &found);
    let (policy, warnings) = Policy::parse(&text, Path::new("thresholds.toml")).unwrap();
    assert!(warnings.is_empty(), "{text}");
    let pinned = policy.models[0].source.hub.as_ref().unwrap();
    assert_eq!((&*pinned.repository, &*pinned.revision), ("org/name", commit));
    assert_eq!(pinned.file.as_deref(), Some("a.gguf"));
    assert!(policy.models[0].source.sha256.is_some());
}
