//! What llama.cpp measured, judged by a policy as what kvgate's engine did.

use crate::support::program::kvgate;
use crate::support::tiny::Repository;
use kvgate::internals::judge::limits;
use kvgate::internals::judge::trust;
use kvgate::internals::logs::llama_perplexity;
use kvgate::internals::policy::{ModelPolicy, Policy};
use kvgate::internals::results::measured_by::MeasuredBy;
use kvgate::internals::results::statistics::Statistic;
use kvgate::internals::results::verdict::Verdict;
use kvgate::internals::results::{Measurement, Outcome};
use std::path::Path;

const POLICY: &str = r#"[defaults]
corpus = ["corpus.txt"]
context = 512
chunks = 4

[defaults.limits]
mean_kld = 0.05
top1_agreement = 0.85

[models.smollm2]
path = "models/SmolLM2-135M-Instruct.Q4_1.gguf"

[models.smollm2.schemes]
f16 = {}
q8_0 = {}
"q8_0/q4_0" = {}
q4_0 = {}
"q4_0:norot" = { expect = "fail", reason = "K of this model needs the rotation" }
"#;

fn policy() -> Policy {
    Policy::parse(POLICY, Path::new("thresholds.toml")).unwrap().0
}

fn log(name: &str) -> llama_perplexity::Log {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-perplexity");
    llama_perplexity::read(&folder.join(name).with_extension("log")).unwrap()
}

fn measurement(names: &[&str], model: &ModelPolicy) -> Measurement {
    let logs: Vec<_> = names.iter().map(|name| log(name)).collect();
    llama_perplexity::measurement(&logs, model).unwrap()
}

const ALL: [&str; 5] = ["q4_0-norot", "q8_0", "f16", "q4_0", "q8_0-q4_0"];

#[test]
fn genuine_logs_are_judged_by_the_policy() {
    let policy = policy();
    let model = &policy.models[0];
    let measurement = measurement(&ALL, model);
    let schemes: Vec<_> = measurement.schemes.iter().map(|s| s.scheme.as_str()).collect();
    assert_eq!(schemes, ["f16", "q8_0", "q8_0/q4_0", "q4_0", "q4_0:norot"], "the policy's order");
    assert_eq!(measurement.conditions.engine, "llama.cpp 0c1e570");
    assert!(measurement.controls.is_empty() && measurement.conditions.corpus.is_empty());
    assert!(measurement.run.notes.iter().any(|note| note.contains("the corpus")));
    let distrust = trust::distrust_by(&measurement, MeasuredBy::LlamaCpp);
    assert!(distrust.is_empty(), "{distrust:?}");
    // the log of the f16 cache is the floor, and there is none without it
    let Outcome::Measured { statistics: of_f16, .. } = &measurement.schemes[0].outcome else {
        panic!("it is measured")
    };
    assert_eq!(measurement.floor.map(|floor| floor.mean_kld), Some(of_f16.mean_kld.max(0.0)));
    assert_eq!(self::measurement(&ALL[3..], model).floor, None);
    let verdicts = model.cells.iter().zip(&measurement.schemes).map(|(cell, scheme)| {
        let judged = limits::judge(model, cell, &scheme.outcome, None, None);
        (judged.verdict, judged.broken().map(|limit| limit.statistic).collect::<Vec<_>>())
    });
    let both = vec![Statistic::MeanKld, Statistic::Top1Agreement];
    assert_eq!(
        verdicts.collect::<Vec<_>>(),
        [
            (Verdict::Pass, vec![]),
            (Verdict::Pass, vec![]),
            (Verdict::Pass, vec![]),
            (Verdict::Regressed, vec![Statistic::MeanKld]),
            (Verdict::FailsAsRequired, both),
        ]
    );
}

/// What is judged as kvgate's own is not trusted, whatever its numbers are.
#[test]
fn logs_are_trusted_only_where_llama_cpp_was_asked_for() {
    let policy = policy();
    let measurement = measurement(&ALL, &policy.models[0]);
    let distrust = trust::distrust(&measurement);
    assert_eq!(distrust.len(), ALL.len());
    assert!(distrust["q8_0"].contains("measured by `llama.cpp 0c1e570`"), "{distrust:?}");
}

/// The program, on the logs: table, verdicts, goldens apart from kvgate's own, another build, a lost log.
#[test]
fn logs_are_judged_shown_and_accepted_like_any_results() {
    let repository = Repository::new();
    repository.put("thresholds.toml", POLICY);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-perplexity");
    let logs = ALL.map(|name| folder.join(name).with_extension("log").display().to_string());
    let judge = |logs: &[String], more: &[&str]| {
        let logs = logs.iter().map(String::as_str);
        let arguments: Vec<&str> =
            ["judge"].into_iter().chain(logs).chain(more.iter().copied()).collect();
        kvgate(&repository, &arguments)
    };
    let json = ["--wide", "--json", "judged.json"];
    judge(&logs, &json)
        .exits(1)
        .says("q8_0/q4_0 = q8_0·H64/q4_0·H64")
        .says("✗ regressed mean_kld 1.25 ×")
        .says("measured by llama.cpp 0c1e570")
        .says("✗ (expected)")
        .says("no golden yet");
    kvgate(&repository, &["accept", "judged.json"]).exits(0).says("goldens/llama.cpp/smollm2__f16");
    assert!(!repository.path("goldens/smollm2__q8_0.snap").exists());
    judge(&logs, &json).exits(1).says("1 of 10 cases red").never_says("no golden yet");
    // what a run did not hold is not what it passed
    judge(&logs[1..], &[]).exits(1).says("smollm2::q4_0:norot::kld: error");
    judge(&logs, &["--model", "nobody"]).exits(2).says("no model `nobody`");
    // as kvgate's own nothing of it is trusted
    kvgate(&repository, &["judge", "judged.json"]).exits(4).says("it calls itself measured by");
    kvgate(&repository, &["judge", "judged.json", "--engine", "llama.cpp"]).exits(1);

    let newer = std::fs::read_to_string(&logs[1]).unwrap().replace("0c1e570", "1234567");
    repository.put("newer.log", &newer);
    judge(&["newer.log".into()], &[])
        .exits(1)
        .says("engine: llama.cpp 0c1e570 → llama.cpp 1234567")
        .says("llama.cpp's numerics change from build to build");
    let refused = folder.join("refused.log").display().to_string();
    judge(&[refused], &[]).exits(2);
}
