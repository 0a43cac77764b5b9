//! What llama.cpp measured, judged by a policy as what kvgate's engine did.

use kvgate::engines::{llama_perplexity, Engine};
use kvgate::golden::{self, Comparison, Golden};
use kvgate::measure::stats::Statistic;
use kvgate::policy::{ModelPolicy, Policy};
use kvgate::report::{json, terminal};
use kvgate::results::{CaseResult, Measurement, PolicyFile, Results, FORMAT};
use kvgate::verdict::{self, Verdict};
use std::path::{Path, PathBuf};

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
