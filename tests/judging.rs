//! What llama.cpp measured, judged by a policy as what kvgate's engine did.

use kvgate::engines::{llama_perplexity, Engine};
use kvgate::golden::{self, Comparison, Golden};
use kvgate::measure::stats::Statistic;
use kvgate::policy::{ModelPolicy, Policy};
use kvgate::report::{json, terminal};
use kvgate::results::{Measurement, PolicyFile, Results, FORMAT};
use kvgate::verdict::{self, Verdict};
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
    let distrust = verdict::distrust_by(&measurement, Engine::LlamaCpp);
    assert!(distrust.is_empty(), "{distrust:?}");
    let verdicts = model.cells.iter().zip(&measurement.schemes).map(|(cell, scheme)| {
        let judged = verdict::judge(model, cell, &scheme.outcome, None, None);
        (judged.verdict, judged.breaches.iter().map(|b| b.statistic).collect::<Vec<_>>())
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
    let distrust = verdict::distrust(&measurement);
    assert_eq!(distrust.len(), ALL.len());
    assert!(distrust["q8_0"].contains("measured by `llama.cpp 0c1e570`"), "{distrust:?}");
}

fn results(policy: &Policy) -> Results {
    Results {
        format: FORMAT,
        engine: "kvgate 0.1.0".into(),
        head: None,
        policy: Some(PolicyFile { path: "thresholds.toml".into(), sha256: policy.sha256.clone() }),
        measurements: vec![measurement(&ALL, &policy.models[0])],
        cases: Vec::new(),
    }
}

#[test]
fn results_are_kept_shown_and_accepted_like_any_others() {
    let folder = tempfile::tempdir().unwrap();
    let policy = policy();
    let written = json::write(folder.path(), &results(&policy)).unwrap();
    let results = json::read(&written).unwrap();
    let shown = terminal::render_tables(&results);
    for text in ["q8_0/q4_0 = q8_0·H64/q4_0·H64", "8.5 / 4.5", "86.18 %", "0.06262 ± "] {
        assert!(shown.contains(text), "no `{text}`:\n{shown}");
    }
    let accepted = golden::accept(&results, &policy, None, &[], folder.path()).unwrap();
    assert_eq!(accepted.len(), ALL.len());
    let apart = folder.path().join("goldens/llama.cpp");
    assert!(accepted.iter().all(|golden| golden.path.starts_with(&apart)), "{accepted:?}");
    let measurement = &results.measurements[0];
    for scheme in &measurement.schemes {
        let stem = golden::stem(&measurement.model, &scheme.scheme);
        let file = golden::path_by(folder.path(), Engine::LlamaCpp, &stem);
        let golden = Golden::read(&file).unwrap().unwrap();
        let now = Golden::of(measurement, scheme).unwrap();
        assert_eq!(golden::compare(Some(&golden), &now), Comparison::Matches);
        // another build's numbers are no change, they are of something else
        let mut newer = measurement.clone();
        newer.conditions.engine = "llama.cpp b12000".into();
        let newer = Golden::of(&newer, scheme).unwrap();
        let Comparison::Stale(differences) = golden::compare(Some(&golden), &newer) else {
            panic!()
        };
        assert_eq!(differences[0].to_string(), "engine: llama.cpp 0c1e570 → llama.cpp b12000");
    }
    assert!(!golden::path(folder.path(), "smollm2__q8_0").exists());
}
