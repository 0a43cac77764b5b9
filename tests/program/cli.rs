//! The program in a little model repository: exit codes, and what it says when something is wrong.

use crate::support;
use candle_core::quantized::gguf_file::Value;

use crate::support::program::{accept, accepted, command, kvgate, kvgate_with, replayed, Ran};
use crate::support::tiny::{Damage, Repository};
use std::path::Path;

const Q8_GOLDEN: &str = "goldens/tiny__q8_0.snap";

/// The line of q8_0's golden that has its mean.
fn mean_line(repository: &Repository) -> String {
    let golden = repository.text(Q8_GOLDEN);
    golden.lines().find(|line| line.starts_with("mean_kld")).unwrap().to_string()
}

fn mean(repository: &Repository) -> f64 {
    mean_line(repository).split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Makes the golden one that earlier states of kvgate wrote, without chunk means, and doubles its mean.
fn double_the_mean(repository: &Repository) {
    let golden = repository.text(Q8_GOLDEN);
    let [start, end] = ["chunk means\n", "subject\n"].map(|title| golden.find(title).unwrap());
    repository.edit(Q8_GOLDEN, &golden[start..end], "");
    let doubled = format!("mean_kld        {}", 2.0 * mean(repository));
    repository.edit(Q8_GOLDEN, &mean_line(repository), &doubled);
}

#[test]
fn a_run_that_is_accepted_is_green_and_stays_so() {
    let repository = accepted();
    for _ in 0..2 {
        kvgate(&repository, &["run"])
            .exits(0)
            .says("identity f16/f16 KLD 0.0000 ✓")
            .says("bad lane")
            .says("✗ (expected)")
            .says("• reported")
            .says("ignored, not run: tiny q5_1");
    }
    assert!(repository.path("goldens/tiny__q4_0.snap").exists(), "expected harm has a golden, too");
    assert!(!repository.path("goldens/tiny__q5_1.snap").exists(), "an ignored case has none");
}

#[test]
fn a_limit_that_is_edited_is_red_with_value_limit_and_place() {
    let repository = accepted();
    repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 1e-9");
    let policy = repository.text("thresholds.toml");
    let at = 1 + policy.lines().position(|line| line.contains("1e-9")).unwrap();
    let ran = kvgate(&repository, &["run", "q8_0"])
        .exits(1)
        .says("tiny::q8_0::kld")
        .says("at most 0.000000001")
        .says(format!("thresholds.toml:{at}"))
        .says("the limit has moved");
    let row = ran.stdout.lines().find(|row| row.contains("✗ mean_kld")).unwrap();
    let shown: f64 = row.split_whitespace().nth(3).unwrap().parse().unwrap();
    let golden = mean(&repository);
    assert!((shown / golden - 1.0).abs() < 1e-3, "{row} does not show {golden}");
}

#[test]
fn no_mode_of_insta_turns_a_broken_limit_or_a_doubled_golden_green() {
    let repository = accepted();
    double_the_mean(&repository);
    repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 1e-9");
    let golden = repository.text(Q8_GOLDEN);
    for vars in [&[("INSTA_FORCE_PASS", "1")], &[("INSTA_UPDATE", "always")]] {
        kvgate_with(&repository, &["run", "q8_0::kld"], vars).exits(1).says("regressed");
        kvgate_with(&repository, &["run", "q8_0::golden"], vars).exits(1).says("golden changed");
    }
    assert_eq!(repository.text(Q8_GOLDEN), golden, "a golden is overwritten by nobody");
}

#[test]
fn an_expected_failure_that_does_not_happen_is_red() {
    let repository = accepted();
    repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 100.0");
    kvgate(&repository, &["run", "q4_0::kld"]).exits(1).says("unexpected pass");
}

#[test]
fn a_golden_whose_mean_was_doubled_is_red_and_waits_for_review() {
    let repository = accepted();
    double_the_mean(&repository);
    kvgate(&repository, &["run", "q8_0"]).exits(1).says("golden changed").says("-50.");
    let pending = repository.path("goldens/tiny__q8_0.snap.new");
    assert!(pending.exists(), "`cargo insta review` has something to show");
    accept(&repository);
    kvgate(&repository, &["run", "q8_0"]).exits(0);
    assert!(!pending.exists(), "what was accepted is not pending");
}

#[test]
fn a_golden_of_other_conditions_is_stale() {
    let repository = accepted();
    repository.edit("thresholds.toml", "chunks = 4", "chunks = 3");
    kvgate(&repository, &["run", "q8_0::golden"]).exits(1).says("stale").says("chunks: 4 → 3");
    kvgate(&repository, &["check"]).exits(1).says("q8_0 is stale: chunks: 4 → 3");
}

/// A golden says what measured it, and holds for whatever device measures next.
#[test]
fn a_golden_of_another_device_holds_in_a_run_and_in_a_check() {
    let repository = accepted();
    for (name, own, others) in [("device", "cpu", "cuda"), ("weights", "f32", "f16")] {
        let line = |value: &str| format!("  {name:<14}{value}\n");
        repository.edit("goldens/tiny__q8_0.snap", &line(own), &line(others));
    }
    kvgate(&repository, &["run", "q8_0::golden"]).exits(0);
    kvgate(&repository, &["check"]).never_says("stale");
}

/// Each scheme is checked for itself, so that people see all that there is to mend.
#[test]
fn a_check_names_every_scheme_that_cannot_be_measured_and_every_golden_that_is_stale() {
    let repository = accepted();
    repository.edit(
        "thresholds.toml",
        "q4_1 = {",
        "\"q4_0@first99=f32\" = {}\n\"q5_0@0-99=f16\" = {}\nq4_1 = {",
    );
    let words =
        ["no layer of the model is left to `q4_0", "no layer of the model is left to `q5_0"];
    let ran = kvgate(&repository, &["check"]).exits(4).says("4 chunks of 64 tokens");
    let ran = words.iter().fold(ran, |ran, words| ran.says(words));
    ran.never_says("none yet");
    repository.edit("thresholds.toml", "chunks = 4", "chunks = 3");
    // as in a run, what is stale outranks what cannot be measured
    let ran = kvgate(&repository, &["check"]).exits(1).says("q8_0 is stale: chunks: 4 → 3");
    words.iter().fold(ran, |ran, words| ran.says(words));
}

#[test]
fn a_filter_that_matches_nothing_says_what_to_type() {
    let repository = Repository::new();
    kvgate(&repository, &["run", "q9_0"])
        .exits(3)
        .says("no case of the gate that is not ignored matches `q9_0`")
        .says("cargo test --lib q9_0")
        .says("tiny::q8_0::kld");
    kvgate(&repository, &["run", "q5_1"]).exits(3);
    kvgate(&repository, &["run", "--exact", "tiny::q8_0"]).exits(3);
    assert!(!repository.path("kvgate-results").exists(), "nothing was measured");
}

#[test]
fn a_typo_in_the_policy_has_a_place_and_a_mend() {
    let repository = Repository::new();
    repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kdl = 0.05");
    let ran = kvgate(&repository, &["run"]).exits(2).says("thresholds.toml:7:1").says("`mean_kld`");
    assert!(ran.stderr.starts_with("error"), "{}", ran.stderr);
    kvgate(&repository, &["run", "--config", "nothing.toml"]).exits(2).says("nothing.toml");
}

#[test]
fn a_missing_model_names_the_command_that_gets_it() {
    let repository = accepted();
    std::fs::remove_file(repository.path("tiny.gguf")).unwrap();
    kvgate(&repository, &["run"]).exits(4).says("tiny.gguf").says("scripts/fetch tiny");
    kvgate(&repository, &["check"]).exits(4).says("scripts/fetch tiny");
    kvgate(&repository, &["run", "--list"]).exits(0).says("tiny::q8_0::kld");
}

/// Exit code 4, in `run` and in `measure`, with the same words; nothing is green.
fn cannot_be_measured(repository: &Repository, words: &[&str]) {
    let measure = [
        "measure",
        "tiny.gguf",
        "--untrained",
        "--corpus",
        "corpus.txt",
        "--schemes",
        "q8_0",
        "--context",
        "64",
    ];
    for arguments in [&["run"][..], &measure] {
        let ran =
            kvgate(repository, arguments).exits(4).never_says("✓ pass").never_says("panicked");
        words.iter().fold(ran, Ran::says);
    }
}

fn text(s: &str) -> Value {
    Value::String(s.into())
}

#[test]
fn a_damaged_checkpoint_is_named_with_its_tensor_or_file() {
    let repository = accepted();
    for (damage, words) in [
        (Damage::Truncated, &["blk.1.ffn_down.weight", "truncated"][..]),
        (Damage::Beheaded, &["tiny.gguf is not a sound checkpoint"]),
        (Damage::Blocks(3), &["tensor `blk.2.attn_norm.weight` is missing"]),
        (Damage::Blocks(1 << 31), &["2147483648 layers in 21 tensors"]),
        (Damage::Blocks(0), &["is not supported"]),
        (Damage::Nan("blk.1.attn_k.weight"), &["blk.1.attn_k.weight", "NaN at element 7"]),
        (Damage::Missing("blk.0.attn_v.weight"), &["tensor `blk.0.attn_v.weight` is missing"]),
        (Damage::Shape("blk.0.attn_q.weight"), &["blk.0.attn_q.weight", "[255, 64]", "[256, 64]"]),
        (Damage::Architecture("mamba"), &["unknown architecture `mamba`", "llama"]),
        (Damage::Metadata("general.alignment", Value::U32(0)), &["general.alignment", "is 0"]),
        (Damage::Metadata("general.alignment", Value::U8(0)), &["general.alignment", "a U32"]),
        (Damage::Metadata("general.alignment", Value::I32(32)), &["general.alignment", "a U32"]),
        (Damage::Metadata("llama.feed_forward_length", Value::U32(0)), &["absurd"]),
        (Damage::Metadata("llama.attention.head_count", Value::U64(1 << 32)), &["absurd"]),
        (
            Damage::Metadata("llama.rope.freq_base", Value::F32(-1.0)),
            &["rope.freq_base", "above 1"],
        ),
        (
            Damage::Metadata("llama.rope.scaling.type", text("longrope")),
            &["RoPE scaling `longrope`"],
        ),
        (Damage::Metadata("tokenizer.ggml.add_bos_token", Value::Bool(true)), &["BOS"]),
        (Damage::Metadata("tokenizer.ggml.pre", text("mine")), &["`mine` is unknown", "qwen35"]),
        (Damage::Metadata("tokenizer.ggml.model", text("bert")), &["`bert` is unknown", "gemma4"]),
        (
            Damage::Extra("blk.0.attn_q_norm.weight"),
            &["tensors that `llama` does not have", "attn_q_norm.weight"],
        ),
    ] {
        repository.write_model(&[damage]);
        cannot_be_measured(&repository, words);
    }
    repository.put("tiny.gguf", "no checkpoint at all");
    cannot_be_measured(&repository, &["tiny.gguf is not a sound checkpoint", "begins with `no c`"]);
    repository
        .put("tiny.gguf", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n");
    cannot_be_measured(&repository, &["tiny.gguf", "Git LFS pointer", "`git lfs pull`"]);
    repository.put("tiny.gguf", "");
    cannot_be_measured(&repository, &["tiny.gguf", "empty"]);
}

#[test]
fn numbers_that_run_away_name_scheme_and_layer() {
    let repository = accepted();
    // finite weights whose products are not
    repository.write_model(&[
        Damage::Scaled("blk.1.ffn_down.weight", 1e30),
        Damage::Scaled("blk.1.ffn_up.weight", 1e30),
    ]);
    cannot_be_measured(&repository, &["the baseline", "layer 1: the hidden state is not finite"]);
    repository.write_model(&[Damage::Scaled("output.weight", 1e38)]);
    cannot_be_measured(&repository, &["the baseline", "the logits"]);
    repository.write_model(&[Damage::Scaled("blk.1.attn_k.weight", 1e5)]);
    cannot_be_measured(
        &repository,
        &["the baseline", "layer 1: K is not finite once it is stored"],
    );
}

#[test]
fn a_scheme_that_fails_is_an_error_beside_those_that_do_not() {
    let repository = Repository::new();
    repository.write_model(&[Damage::Scaled("blk.1.attn_k.weight", 1e5)]);
    repository.edit("thresholds.toml", "chunks = 4", "chunks = 4\nbaseline = \"f32\"");
    repository.edit(
        "thresholds.toml",
        "q8_0 = {}",
        "f16 = { expect = \"fail\", reason = \"overflows\" }\nbf16 = { limits = { mean_kld = 50.0 } }",
    );
    // an error is not the failure that was expected
    kvgate(&repository, &["run", "f16::kld"])
        .exits(4)
        .says("tiny::f16::kld: error")
        .says("f16: layer 1: K is not finite once it is stored");
}

#[test]
fn the_wrong_file_is_told_by_its_hash() {
    let repository = accepted();
    let zeros = "0".repeat(64);
    let hash = format!("fetch = \"scripts/fetch tiny\"\nsha256 = \"{zeros}\"");
    repository.edit("thresholds.toml", "fetch = \"scripts/fetch tiny\"", &hash);
    kvgate(&repository, &["run"]).exits(4).says(format!("the policy says {zeros}"));
    kvgate(&repository, &["check"]).exits(4).says(format!("the policy says {zeros}"));
}

/// The hash of a model in several files is that of their list, which the message says.
#[test]
fn the_wrong_files_are_told_by_the_hash_of_their_list() {
    let repository = accepted();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf-parts");
    for file in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        std::fs::copy(&file, repository.path(file.file_name().unwrap().to_str().unwrap())).unwrap();
    }
    repository.edit("thresholds.toml", "tiny.gguf", "llama-00001-of-00003.gguf");
    let hash = format!("fetch = \"scripts/fetch tiny\"\nsha256 = \"{}\"", "0".repeat(64));
    repository.edit("thresholds.toml", "fetch = \"scripts/fetch tiny\"", &hash);
    kvgate(&repository, &["run"])
        .exits(4)
        .says("the list, as `sha256sum` prints it, of the 3 files of")
        .says("llama-00001-of-00003.gguf has SHA-256");
}

#[test]
fn a_corpus_that_is_too_short_says_how_short() {
    let repository = accepted();
    repository.put("corpus.txt", "Only this.");
    kvgate(&repository, &["run"])
        .exits(4)
        .says("the corpus has 0 chunks of 64 tokens, 4 were asked for")
        .says("corpus.txt: 9 tokens");
    std::fs::write(repository.path("corpus.txt"), b"ok \xff no").unwrap();
    kvgate(&repository, &["run"]).exits(4).says("is not UTF-8 (byte 3)");
}

#[test]
fn results_that_cannot_be_written_are_told_before_the_work() {
    let repository = accepted();
    // below a regular file nobody can write, root included
    let ran = kvgate(&repository, &["run", "--results", "corpus.txt/results"]);
    ran.exits(4).says("cannot write results into corpus.txt/results").never_says("tiny: reading");
    let vars = [("KVGATE_RESULTS", "corpus.txt/results")];
    kvgate_with(&repository, &["run"], &vars).exits(4).says("cannot write results");
}

#[test]
fn a_step_summary_is_appended_and_its_loss_is_no_verdict() {
    let repository = accepted();
    repository.put("summary.md", "before\n");
    let vars = [("GITHUB_STEP_SUMMARY", "summary.md")];
    kvgate_with(&repository, &["run"], &vars).exits(0);
    let summary = repository.text("summary.md");
    assert!(summary.starts_with("before\n") && summary.contains("q8_0"), "{summary}");
    let vars = [("GITHUB_STEP_SUMMARY", "corpus.txt/summary.md")];
    kvgate_with(&repository, &["run"], &vars).exits(0).says("warning: the summary");
}

fn measure(repository: &Repository, more: &[&str]) -> Ran {
    let arguments =
        ["measure", "tiny.gguf", "--untrained", "--corpus", "corpus.txt", "--context", "64"];
    kvgate(repository, &[&arguments[..], more].concat())
}

#[test]
fn measure_refuses_what_it_cannot_mean() {
    let repository = Repository::new();
    measure(&repository, &["--schemes", "q8_O"]).exits(2).says("did you mean `q8_0`");
    measure(&repository, &["--schemes", "q8_0,q8_0/q8_0"]).exits(2).says("are the same scheme");
    measure(&repository, &["--schemes", "q8_0", "--chunks", "0"]).exits(2);
    measure(&repository, &["--schemes", "q8_0", "--baseline", "f17"]).exits(2).says("f17");
    measure(&repository, &["--schemas", "q8_0"]).exits(2).says("--schemes");
    kvgate(&repository, &[]).exits(2);
}

#[test]
fn json_has_what_is_documented() {
    const STATISTICS: [&str; 15] = [
        "tokens_scored",
        "mean_kld",
        "mean_kld_se",
        "median_kld",
        "p90_kld",
        "p95_kld",
        "p99_kld",
        "p999_kld",
        "max_kld",
        "top1_agreement",
        "top1_agreement_se",
        "rms_dp",
        "ppl",
        "ppl_ratio",
        "baseline_ppl",
    ];
    let repository = Repository::new();
    measure(&repository, &["--chunks", "2", "--schemes", "q8_0/q4_0", "--json", "out.json"])
        .exits(0);
    let json: serde_json::Value = serde_json::from_str(&repository.text("out.json")).unwrap();
    assert_eq!(json["format"], 2);
    assert!(json["policy"].is_null());
    let measurement = &json["measurements"][0];
    for name in ["baseline_ppl", "seconds", "peak_bytes"] {
        assert!(measurement["run"][name].as_f64().unwrap() > 0.0, "{name}");
    }
    assert_eq!(measurement["run"]["dtype"], "f32");
    assert!(measurement["run"]["device"].is_string());
    assert_eq!(measurement["subject"]["weights_sha256"].as_str().unwrap().len(), 64);
    assert_eq!(measurement["conditions"]["context"], 64);
    let scheme = &measurement["schemes"][0];
    assert_eq!(scheme["scheme"], "q8_0/q4_0");
    assert_eq!(scheme["effective"], "q8_0·H64/q4_0·H64");
    assert_eq!((scheme["bits_per_element"]["k"].as_f64()), Some(8.5));
    assert_eq!((scheme["bits_per_element"]["v"].as_f64()), Some(4.5));
    // 2 layers of 2 heads of 64, 13 bits a pair of elements
    assert_eq!(scheme["bits_at_context"], scheme["bits_per_element"]);
    assert_eq!(scheme["bytes_per_token"], 2.0 * 128.0 * 13.0 / 8.0);
    assert_eq!(scheme["ratio_to_f16"], 13.0 / 32.0);
    assert_eq!(scheme["charged_share"], serde_json::json!({ "k": 1.0, "v": 1.0 }));
    for absent in ["clamped_scales", "needs", "replay"] {
        assert!(scheme[absent].is_null(), "{absent}");
    }
    assert_eq!(scheme["tokens_scored"], 2 * 31);
    for name in STATISTICS {
        assert!(scheme[name].is_f64() || scheme[name].is_u64(), "{name}: {}", scheme[name]);
    }
    let parts = scheme["parts"].as_array().unwrap();
    let sum: f64 = parts.iter().map(|part| part["kld"].as_f64().unwrap()).sum();
    let mean = scheme["mean_kld"].as_f64().unwrap();
    assert!((sum / 62.0 / mean - 1.0).abs() < 1e-6, "{sum} / 62 is not {mean}");
}

#[test]
fn accept_refuses_results_that_are_not_of_this_policy() {
    let repository = accepted();
    let golden = repository.text(Q8_GOLDEN);
    let results = "kvgate-results/results.json";
    kvgate(&repository, &["accept", results, "tiny::q8_1"]).exits(2).says("tiny::q8_0");
    repository.edit("thresholds.toml", "chunks = 4", "chunks = 3");
    kvgate(&repository, &["accept", results]).exits(2).says("of another policy");
    measure(&repository, &["--schemes", "q8_0", "--json", "measured.json"]).exits(0);
    kvgate(&repository, &["accept", "measured.json"]).exits(2).says("without a policy");
    kvgate(&repository, &["accept", "corpus.txt"]).exits(2);
    kvgate(&repository, &["accept", "nothing.json"]).exits(2).says("nothing.json");
    assert_eq!(repository.text(Q8_GOLDEN), golden, "nothing was written");
}

#[test]
fn the_rest_of_the_commands_answer() {
    let repository = accepted();
    kvgate(&repository, &["--help"]).exits(0).says("measure").says("accept").says("Exit codes");
    kvgate(&repository, &["schemes"]).exits(0).says("iq4_nl").says(":norot");
    kvgate(&repository, &["check"]).exits(0).says("4 chunks of 64 tokens").says("BPE, gpt-2");
    kvgate(&repository, &["inspect", "tiny.gguf"])
        .exits(0)
        .says("architecture  llama")
        .says("4 heads, 2 KV heads of 64")
        .says("262 tokens, no BOS");
    kvgate(&repository, &["inspect", "nothing.gguf"]).exits(2).says("nothing.gguf is missing");
}

#[test]
fn cargo_kvgate_is_the_same_program() {
    let repository = Repository::new();
    let cargo = Path::new(env!("CARGO_BIN_EXE_cargo-kvgate"));
    let ran = |arguments: &[&str]| {
        Ran::of(command(cargo, &repository).args(arguments).output().unwrap()).exits(0).stdout
    };
    let ours = kvgate(&repository, &["schemes"]).exits(0).stdout;
    assert_eq!(ran(&["kvgate", "schemes"]), ours);
    assert_eq!(ran(&["schemes"]), ours);
}

/// On one machine and build two runs are equal to the last bit, in processes of their own as well.
#[test]
fn two_runs_are_equal_to_the_last_bit() {
    let repository = accepted();
    let schemes = |folder: &str| {
        kvgate(&repository, &["run", "--results", folder]).exits(0);
        let text = repository.text(&format!("{folder}/results.json"));
        let results: serde_json::Value = serde_json::from_str(&text).unwrap();
        let schemes = results["measurements"][0]["schemes"].clone();
        assert!(schemes[0]["parts"][0]["kld"].is_number(), "{schemes}");
        schemes
    };
    assert_eq!(schemes("first"), schemes("second"));
}

#[test]
fn accepting_a_red_run_says_that_it_stays_red() {
    let repository = accepted();
    repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 1e-9");
    kvgate(&repository, &["run", "q8_0"]).exits(1);
    let results = ["accept", "kvgate-results/results.json"];
    kvgate(&repository, &results).exits(0).says("tiny::q8_0::kld is still regressed");
    kvgate(&repository, &["run", "q8_0"]).exits(1);
}

#[cfg(target_os = "linux")]
#[test]
fn an_output_that_is_full_is_an_error_and_one_that_was_closed_is_none() {
    let repository = Repository::new();
    let program = Path::new(env!("CARGO_BIN_EXE_kvgate"));
    for arguments in [&["schemes"][..], &["inspect", "tiny.gguf"], &["check"], &["run", "--list"]] {
        let mut full = command(program, &repository);
        full.stdout(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
        let ran = Ran::of(full.args(arguments).output().unwrap()).exits(4);
        ran.says("cannot write to standard output").never_says("panicked");
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut closed = command(program, &repository);
    closed.stdout(writer).arg("schemes");
    Ran::of(closed.output().unwrap()).exits(0).never_says("panicked");
}

/// A calibration of the little model from a text of its own.
fn calibrate(repository: &Repository, corpus: &str) -> Ran {
    let arguments = ["calibrate", "tiny.gguf", "--context", "64", "--chunks", "4", "--corpus"];
    kvgate(repository, &[&arguments[..], &[corpus, "-o", "tiny.calibration"]].concat())
}

/// With another text to calibrate on.
fn calibrated() -> Repository {
    let repository = Repository::new();
    repository.put("other.txt", &support::tiny::corpus(9, 4000));
    calibrate(&repository, "other.txt")
        .exits(0)
        .says("tiny.calibration: K and V of 2 layers over 256 tokens")
        .says("--calibration");
    repository
}

const CALIBRATED: [&str; 4] =
    ["--schemes", "q4_0,q4_0:center,fp8_e4m3:head", "--calibration", "tiny.calibration"];

#[test]
fn calibrated_schemes_are_measured_with_their_calibration() {
    let repository = calibrated();
    measure(&repository, &[&CALIBRATED[..], &["--json", "out.json"]].concat())
        .exits(0)
        .says("q4_0:center = q4_0·H64:center/q4_0·H64")
        .says("fp8_e4m3:head = fp8_e4m3:head/fp8_e4m3:head");
    let json: serde_json::Value = serde_json::from_str(&repository.text("out.json")).unwrap();
    let schemes = json["measurements"][0]["schemes"].as_array().unwrap();
    let needs = |i: usize| schemes[i]["needs"].to_string();
    assert_eq!(needs(0), "null");
    assert!(needs(1).contains("calibration ") && needs(1) == needs(2), "{}", needs(1));
}

#[test]
fn a_calibration_that_says_nothing_about_the_measurement_is_refused() {
    let repository = calibrated();
    let refused = |words: &str| measure(&repository, &CALIBRATED).exits(4).says(words);
    let whole = std::fs::read(repository.path("tiny.calibration")).unwrap();
    std::fs::write(repository.path("tiny.calibration"), &whole[..whole.len() / 2]).unwrap();
    refused("tiny.calibration is no calibration that this kvgate can read");
    repository.put("tiny.calibration", "no calibration at all");
    refused("is no calibration");
    std::fs::remove_file(repository.path("tiny.calibration")).unwrap();
    refused("cannot use the calibration tiny.calibration");
    calibrate(&repository, "corpus.txt").exits(0);
    refused("made from the text that is measured (`corpus`)");
    std::fs::write(repository.path("tiny.calibration"), &whole).unwrap();
    repository.write_model(&[Damage::Scaled("output.weight", 2.0)]);
    refused("calibrate this model").says("was made from weights with SHA-256");
    // a scheme that needs none is measured beside one that has none
    measure(&repository, &["--schemes", "q8_0,q4_0:center"])
        .exits(4)
        .says("`:center` needs a calibration")
        .says("kvgate calibrate MODEL");
}

#[test]
fn calibrate_says_what_it_cannot_read() {
    let repository = Repository::new();
    let arguments = ["calibrate", "tiny.gguf", "--corpus"];
    let calibrate = |more: &[&str]| kvgate(&repository, &[&arguments[..], more].concat());
    calibrate(&["nothing.txt"]).exits(4).says("nothing.txt");
    calibrate(&["corpus.txt", "--chunks", "4000"]).exits(4).says("4000 were asked for");
    calibrate(&["corpus.txt", "--context", "8"]).exits(2);
    let into = ["corpus.txt", "--context", "64", "--chunks", "1", "-o", "corpus.txt/calibration"];
    calibrate(&into).exits(4).says("corpus.txt/calibration");
    repository.write_model(&[Damage::Nan("blk.1.attn_k.weight")]);
    let sound = ["corpus.txt", "--context", "64", "--chunks", "1"];
    calibrate(&sound).exits(4).says("NaN at element 7");
    assert!(!repository.path("tiny.calibration").exists());
}

#[test]
fn a_golden_of_another_calibration_is_stale() {
    let repository = calibrated();
    let line = "path = \"tiny.gguf\"\ncalibration = \"tiny.calibration\"";
    repository.edit("thresholds.toml", "path = \"tiny.gguf\"", line);
    repository.edit("thresholds.toml", "q4_1 = {", "\"q4_0:center\" = {");
    kvgate(&repository, &["run"]).exits(1);
    accept(&repository);
    kvgate(&repository, &["run"]).exits(0);
    kvgate(&repository, &["check"]).exits(0);
    repository.put("other.txt", &support::tiny::corpus(10, 4000));
    calibrate(&repository, "other.txt").exits(0);
    kvgate(&repository, &["run", "q4_0:center::golden"]).exits(1).says("stale").says("calibration");
    kvgate(&repository, &["run", "q8_0::golden"]).exits(0);
    kvgate(&repository, &["check"])
        .exits(1)
        .says("q4_0:center is stale")
        .never_says("q8_0 is stale");
    std::fs::remove_file(repository.path("tiny.calibration")).unwrap();
    kvgate(&repository, &["run"]).exits(4).says("cannot use the calibration");
    kvgate(&repository, &["check"]).exits(4).says("make it by `kvgate calibrate`");
}

#[test]
fn a_tail_that_hides_the_codec_is_refused() {
    let repository = Repository::new();
    measure(&repository, &["--schemes", "q8_0,q4_0:tail=33"])
        .exits(4)
        .says("a context of 64 is too short for its exact tail and sink")
        .says("measure at 66 at least");
    measure(&repository, &["--schemes", "q4_0:tail=32"]).exits(0);
}

/// A release would read the name and trust the codec.
#[test]
fn a_scheme_that_is_not_what_its_name_says_is_an_error() {
    let repository = Repository::new();
    for scheme in ["q4_0@0-99=f16", "q4_0@first99=f32", "q4_0:tail=8@global=f16"] {
        measure(&repository, &["--schemes", &format!("q8_0,{scheme}")])
            .exits(4)
            .says("no layer of the model is left to `q4_0");
    }
    measure(&repository, &["--schemes", "f16,q4_0@0=f16"]).exits(0).never_says("is about");
    // what is there of a range is measured, and what is not is said
    measure(&repository, &["--schemes", "q8_0@1-9=f16"])
        .exits(0)
        .says("`@1-9` of q8_0@1-9=f16 is about 1");
    repository.edit("thresholds.toml", "q4_1 = {", "\"q4_1@global=f32\" = {");
    let case = ["run", "q4_1@global=f32::kld"];
    kvgate(&repository, &case).exits(4).says("no layer of the model is left to `q4_1`");
    // the other schemes have no goldens, which outranks an error
    kvgate(&repository, &["check"]).exits(1).says("no layer of the model is left to `q4_1`");
    repository.edit("thresholds.toml", "q4_1@global=f32", "q4_1@0-7=f32@0=q4_1@1=q8_0");
    kvgate(&repository, &["check"]).exits(1).says("`@0-7=f32` changes nothing");
    repository.edit("thresholds.toml", "q4_1@0-7=f32@0=q4_1@1=q8_0", "q4_1@1-7=f32");
    kvgate(&repository, &["check"]).says("`@1-7` of q4_1@1-7=f32 is about 1");
}

/// Halves of three layers beside an f32 baseline: nothing is hidden behind a tail that is not there.
#[test]
fn halves_are_measured_against_a_baseline_in_f32() {
    let repository = Repository::new();
    let ran = ["--baseline", "f32", "--schemes", "f16,bf16,q8_0"];
    measure(&repository, &ran).exits(0).never_says("its tail hides all of it");
}

const TEXT_GOLDEN: &str = "goldens/tiny.text.snap";

#[test]
fn the_baselines_text_is_written_once_accepted_and_replayed() {
    let repository = Repository::with_prompts();
    let ran = kvgate(&repository, &["run"]).exits(1).says("no golden yet");
    ran.says("kvgate: tiny: generating");
    let pending = repository.path("goldens/tiny.text.snap.new");
    assert!(pending.exists(), "`cargo insta review` shows the text");
    let offered = std::fs::read_to_string(&pending).unwrap();
    accept(&repository);
    assert!(!pending.exists(), "what was accepted is not pending");
    assert_eq!(repository.text(TEXT_GOLDEN), offered, "review and accept write the same file");
    assert!(repository.text(Q8_GOLDEN).contains("\nflips_per_1k"), "cases hold their replay");
    for _ in 0..2 {
        kvgate(&repository, &["run"]).exits(0).never_says("tiny: generating");
        let json: serde_json::Value =
            serde_json::from_str(&repository.text("kvgate-results/results.json")).unwrap();
        let measurement = &json["measurements"][0];
        assert_eq!(measurement["generated"]["accepted"], true);
        assert_eq!(measurement["generated"]["own_flips"], 0);
        let replay = &measurement["schemes"][0]["replay"];
        let prompts = replay["prompts"].as_array().unwrap();
        assert_eq!(prompts.iter().map(|p| p["positions"].as_u64().unwrap()).sum::<u64>(), 3 * 12);
    }
    assert_eq!(repository.text(TEXT_GOLDEN), offered, "a run leaves it alone");
    kvgate(&repository, &["check"]).exits(0).says("prompts  3");
}

#[test]
fn a_text_that_is_not_accepted_is_red_though_every_value_holds() {
    let repository = replayed();
    let text = repository.text(TEXT_GOLDEN);
    std::fs::remove_file(repository.path(TEXT_GOLDEN)).unwrap();
    kvgate(&repository, &["run", "golden"])
        .exits(1)
        .says("the baseline's text, which it was measured on, is not accepted yet")
        .says("kvgate accept");
    kvgate(&repository, &["check"]).exits(1).says("the baseline's text is not accepted yet");
    accept(&repository);
    assert_eq!(repository.text(TEXT_GOLDEN), text, "the baseline writes it again");
    kvgate(&repository, &["run"]).exits(0);
}

#[test]
fn other_prompts_make_goldens_stale() {
    let repository = replayed();
    repository.edit("prompts.toml", "The river keeps", "The winter keeps");
    kvgate(&repository, &["run", "q8_0::golden"]).exits(1).says("stale").says("prompts: ");
    kvgate(&repository, &["check"]).exits(1).says("q8_0 is stale: prompts: ");
    repository.edit("prompts.toml", "The winter keeps", "The river keeps");
    repository.edit("thresholds.toml", "generate = 12", "generate = 11");
    kvgate(&repository, &["run", "q8_0::golden"]).exits(1).says("tokens 12").says("tokens 11");
    repository.edit("thresholds.toml", "generate = 11", "generate = 12");
    kvgate(&repository, &["run", "q8_0::golden"]).exits(0);
    // a golden without a replay is no golden of a gate that has one
    repository.edit("thresholds.toml", "prompts = \"prompts.toml\"\ngenerate = 12\n", "");
    kvgate(&repository, &["run", "q8_0::golden"]).exits(1).says("stale").says("prompts: ");
}

#[test]
fn prompts_that_cannot_be_read_are_errors() {
    let repository = replayed();
    repository.edit("prompts.toml", "category = \"list\"", "categorie = \"list\"");
    kvgate(&repository, &["run"]).exits(4).says("prompts.toml").says("categorie");
    kvgate(&repository, &["check"]).exits(4).says("categorie");
    std::fs::remove_file(repository.path("prompts.toml")).unwrap();
    kvgate(&repository, &["run"]).exits(4).says("cannot read").says("prompts.toml");
    let line = 1 + repository
        .text("thresholds.toml")
        .lines()
        .position(|line| line.starts_with("prompts"))
        .unwrap();
    kvgate(&repository, &["check"]).exits(4).says(format!("thresholds.toml:{line}:"));
}

/// The next run would refuse such a golden, after the accepted one was lost.
#[test]
fn a_text_that_its_tokens_do_not_spell_is_not_accepted() {
    let repository = replayed();
    let text = repository.text(TEXT_GOLDEN);
    let path = "kvgate-results/results.json";
    let mut results: serde_json::Value = serde_json::from_str(&repository.text(path)).unwrap();
    results["measurements"][0]["generated"]["continuations"][1]["text"] = "Another text".into();
    repository.put(path, &results.to_string());
    kvgate(&repository, &["accept", path]).exits(2).says("that do not spell its text");
    assert_eq!(repository.text(TEXT_GOLDEN), text);
}

/// The lines of a prompt's continuation in the text golden.
fn lines_of(repository: &Repository, prompt: &str, name: &str) -> String {
    let text = repository.text(TEXT_GOLDEN);
    let lines = text.lines().skip_while(|line| !line.ends_with(&format!(" {prompt}")));
    lines.into_iter().find(|line| line.starts_with(name)).unwrap().to_string()
}

#[test]
fn an_accepted_text_that_is_damaged_is_an_error() {
    let repository = replayed();
    let text = repository.text(TEXT_GOLDEN);
    let ids = lines_of(&repository, "river", "ids");
    let line = 1 + text.lines().position(|line| line == ids).unwrap();
    let words: Vec<&str> = ids.split_whitespace().collect();
    let with = |id: &str| ids.replacen(&format!(" {}", words[1]), &format!(" {id}"), 1);
    let faulty = |damaged: String, words: &str| {
        repository.put(TEXT_GOLDEN, &damaged);
        kvgate(&repository, &["run", "q8_0"])
            .exits(4)
            .says("tiny.text.snap")
            .says(words)
            .never_says("panicked");
        kvgate(&repository, &["check"]).exits(1).says("tiny.text.snap").says(words);
    };
    faulty(text.replace(&ids, &with("x")), &format!("tiny.text.snap:{line}: `ids` must be"));
    faulty(text.replace(&ids, &with("262")), "has token 262 for `river`, of a vocabulary of 262");
    faulty(text.replace(&ids, &with("65")), "has ids for `river` that do not spell its text");
    let first = format!("ids             {}", words[1]);
    let short = text.replace(&ids, &first);
    let ties = lines_of(&repository, "river", "near_ties");
    faulty(
        short.replace(&ties, "near_ties       -"),
        "does not end where its text for `river` would",
    );
    faulty(text.replace(&ids, "ids             -"), "`river` has 0 ids, not 1 to 12");
    faulty(
        text.replacen(&ties, "near_ties       12", 1),
        "`near_ties` go beyond the 12 ids of `river`",
    );
    faulty(text.replace("thinking        off", "thinking        no"), "`thinking` is on or off");
    let last = text.rfind("\nprompt ").unwrap();
    faulty(text[..last].to_string(), "does not continue the prompts one by one");
    faulty(text[..text.len() / 2].to_string(), "take the file from version control again");
    repository.put(TEXT_GOLDEN, &text);
    kvgate(&repository, &["run", "q8_0"]).exits(0);
}

/// A sound file with what the baseline says to another prompt.
#[test]
fn an_accepted_text_that_the_baseline_would_not_write_is_an_error() {
    let repository = replayed();
    let text = repository.text(TEXT_GOLDEN);
    let mut swapped = text.clone();
    for name in ["text", "ids"] {
        let [one, two] = ["river", "letter"].map(|p| lines_of(&repository, p, name));
        assert_ne!(one, two);
        swapped = swapped.replace(&one, "\u{0}").replace(&two, &one).replace('\u{0}', &two);
    }
    repository.put(TEXT_GOLDEN, &swapped);
    kvgate(&repository, &["run", "q8_0"])
        .exits(4)
        .says("the baseline would not write its own text again")
        .says("tiny.text.snap");
}

/// At a near tie no flip is counted: a list of all positions would hide every one.
#[test]
fn near_ties_that_are_none_are_not_believed() {
    let repository = replayed();
    let text = repository.text(TEXT_GOLDEN);
    let all: Vec<String> = (0..12).map(|i| i.to_string()).collect();
    let edited = text.lines().map(|line| match line.starts_with("near_ties") {
        true => format!("near_ties       {}\n", all.join(" ")),
        false => format!("{line}\n"),
    });
    repository.put(TEXT_GOLDEN, &edited.collect::<String>());
    kvgate(&repository, &["run", "q8_0"])
        .exits(4)
        .says("the near ties of its text are not the baseline's")
        .says("remove the golden tiny.text.snap");
}

/// Both files are sound, and one was accepted without the other.
#[test]
fn check_holds_cases_and_their_text_together() {
    let repository = replayed();
    kvgate(&repository, &["check"]).exits(0);
    let case = repository.text(Q8_GOLDEN);
    let own = case.lines().find(|line| line.starts_with("text  ")).unwrap();
    repository.edit(Q8_GOLDEN, own, &format!("text            {}", "a".repeat(64)));
    kvgate(&repository, &["check"]).exits(1).says("q8_0 was made on another text of the baseline");
    repository.put(Q8_GOLDEN, &case);
    let weights = repository.text(TEXT_GOLDEN);
    let weights = weights.lines().find(|line| line.starts_with("weights")).unwrap();
    repository.edit(TEXT_GOLDEN, weights, &format!("weights         {}", "a".repeat(64)));
    kvgate(&repository, &["check"]).exits(1).says("tiny.text.snap is of another weights");
    // of a model that is ignored files are read as well
    repository.edit("thresholds.toml", "untrained = true", "untrained = true\nignored = true");
    kvgate(&repository, &["check"]).exits(0).says("ignored");
    repository.edit(TEXT_GOLDEN, "thinking        off", "thinking        maybe");
    kvgate(&repository, &["check"]).exits(1).says("`thinking` is on or off, not `maybe`");
}

/// Random weights know less than nothing.
#[test]
fn a_baseline_that_no_sound_model_has_is_an_error() {
    let repository = Repository::new();
    kvgate(&repository, &["run"]).exits(1).says("note: the weights are untrained, as was said");
    let results = repository.text("kvgate-results/results.json");
    assert!(results.contains("\"reading\""), "it is a condition");
    repository.edit("thresholds.toml", "untrained = true\n", "");
    let words = "a model that knows nothing has that of its vocabulary, 262";
    kvgate(&repository, &["run"])
        .exits(4)
        .says("tiny: the baseline's perplexity is")
        .says(words)
        .says("the tokenizer may be another model's")
        .says("`untrained = true`")
        .never_says("✓ pass");
    let arguments = ["measure", "tiny.gguf", "--corpus", "corpus.txt", "--context", "64"];
    let arguments = [&arguments[..], &["--schemes", "q8_0"]].concat();
    kvgate(&repository, &arguments).exits(4).says(words);
    kvgate(&repository, &[&arguments[..], &["--untrained"]].concat()).exits(0).says(words);
}

/// What an editor or git's conversion leaves in a text is measured, and said.
#[test]
fn a_corpus_that_is_not_what_it_seems_is_told() {
    let repository = Repository::new();
    let text = repository.text("corpus.txt");
    kvgate(&repository, &["run"]).never_says("byte order mark").never_says("CR LF");
    repository.put("corpus.txt", &format!("\u{feff}{}", text.replace('\n', "\r\n")));
    for command in ["run", "check"] {
        kvgate(&repository, &[command])
            .says("corpus.txt begins with a byte order mark")
            .says("lines that end in CR LF");
    }
    for (format, out) in [("markdown", "out.md"), ("junit", "out.xml"), ("html", "out.html")] {
        let results = "kvgate-results/results.json";
        kvgate(&repository, &["report", results, "--format", format, "--output", out]);
        let report = repository.text(out);
        assert!(report.contains("begins with a byte order mark"), "{report}");
    }
    let calibrate = ["calibrate", "tiny.gguf", "--corpus", "corpus.txt", "--context", "64"];
    kvgate(&repository, &[&calibrate[..], &["--chunks", "4"]].concat())
        .exits(0)
        .says("note: corpus corpus.txt begins with a byte order mark");
    let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(repository.path("corpus.txt"), wide).unwrap();
    for command in ["run", "check"] {
        kvgate(&repository, &[command]).exits(4).says("is UTF-16 or UTF-32").says("iconv");
    }
    repository.put("corpus.txt", &"a".repeat(1000));
    for command in ["run", "check"] {
        kvgate(&repository, &[command])
            .exits(4)
            .says("3 of the corpus' 4 chunks repeat another one");
    }
}

/// More chunks of the other texts would be another mixture of texts, and another mean.
#[test]
fn a_text_that_is_too_short_for_its_share_is_refused_under_a_policy() {
    let repository = accepted();
    let text: String = repository.text("corpus.txt").chars().take(100).collect();
    repository.put("short.txt", &text);
    repository.edit("thresholds.toml", "[\"corpus.txt\"]", "[\"corpus.txt\", \"short.txt\"]");
    for command in ["run", "check"] {
        kvgate(&repository, &[command])
            .exits(4)
            .says("short.txt has 1 of the 2 chunks that are its share")
            .says("ask for 3 chunks at most, or add text to it");
    }
    repository.edit("thresholds.toml", "chunks = 4", "chunks = 3");
    kvgate(&repository, &["run", "q8_0::kld"]).exits(0);
    measure(&repository, &["--schemes", "q8_0", "--chunks", "4", "--corpus", "short.txt"])
        .exits(0)
        .says("note: corpus short.txt has 1 of the 2 chunks that are its share")
        .never_says("measure again");
}

/// Before weights are read, and before minutes of measuring.
#[test]
fn prompts_are_read_before_anything_is_measured() {
    let repository = Repository::with_prompts();
    let before = "tiny: measuring";
    repository.edit("prompts.toml", "The river keeps", "");
    kvgate(&repository, &["run"]).exits(4).says("not empty").never_says(before);
    repository.edit("prompts.toml", "text = \"\"", "text = \"The river keeps\"");
    repository.edit("thresholds.toml", "generate = 12", "generate = 2046");
    for command in ["run", "check"] {
        kvgate(&repository, &[command])
            .exits(4)
            .says("cannot continue the prompt `river`")
            .says("2046 after them are more than the 2048 that the model was trained for")
            .never_says(before);
    }
    repository.edit("thresholds.toml", "prompts = \"prompts.toml\"\n", "");
    kvgate(&repository, &["check"]).exits(2).says("`generate` without `prompts`");
}

#[test]
fn measure_replays_without_a_policy() {
    let repository = Repository::with_prompts();
    let arguments = ["--schemes", "f16,q8_0,q4_0", "--prompts", "prompts.toml", "--generate", "12"];
    measure(&repository, &[&arguments[..], &["--json", "out.json"]].concat())
        .exits(0)
        .says("tiny: generating");
    let json: serde_json::Value = serde_json::from_str(&repository.text("out.json")).unwrap();
    let measurement = &json["measurements"][0];
    assert_eq!(measurement["generated"]["accepted"], false);
    assert!(measurement["conditions"]["prompts"].as_str().unwrap().ends_with("tokens 12"));
    let replay = |i: usize| &measurement["schemes"][i]["replay"];
    let flips = |i: usize| -> u64 {
        let prompts = replay(i)["prompts"].as_array().unwrap();
        prompts.iter().map(|prompt| prompt["flips"].as_u64().unwrap()).sum()
    };
    assert_eq!((flips(0), replay(0)["mean_kld"].as_f64()), (0, Some(0.0)));
    let kld = |i: usize| replay(i)["mean_kld"].as_f64().unwrap();
    assert!(0.0 < kld(1) && kld(1) < kld(2), "{} and {}", kld(1), kld(2));
    assert!(flips(2) > 0, "four bits write another text");
    measure(&repository, &["--schemes", "q8_0", "--prompts", "nothing.toml"])
        .exits(4)
        .says("nothing.toml");
    measure(&repository, &["--schemes", "q8_0", "--generate", "12"]).exits(2).says("--prompts");
}

#[test]
fn inspect_says_what_schemes_cost_at_a_context() {
    let repository = Repository::new();
    let schemes = "f16,q4_0,q4_0:tail=32,q8_0@0=f16,q4_0:center";
    let ran =
        kvgate(&repository, &["inspect", "tiny.gguf", "--context", "64", "--schemes", schemes])
            .exits(0)
            .says("at a context of 64 tokens");
    let row = |scheme: &str| -> Vec<String> {
        let line = ran.stdout.lines().find(|line| line.split(' ').next() == Some(scheme));
        line.unwrap().split_whitespace().map(String::from).collect()
    };
    assert_eq!(row("f16")[1..4], ["16", "/", "16"]);
    assert_eq!(row("q4_0")[1..4], ["4.5", "/", "4.5"]);
    assert_eq!(row("q4_0:center")[1..4], ["4.5", "/", "4.5"]);
    // half of the tokens in halves, half in 4.5 bits
    assert_eq!(row("q4_0:tail=32")[1..4], ["10.25", "/", "10.25"]);
    assert_eq!(row("q8_0@0=f16")[1..4], ["12.25", "/", "12.25"]);
    assert_eq!(row("q4_0:tail=32").last().unwrap(), "%");
    let wrong = ["inspect", "tiny.gguf", "--schemes", "q9_0"];
    kvgate(&repository, &wrong).exits(2).says("unknown codec `q9_0`");
    kvgate(&repository, &["inspect", "tiny.gguf", "--context", "0"]).exits(2).says("--context");
    repository.write_model(&[Damage::Metadata("llama.context_length", Value::U32(0))]);
    kvgate(&repository, &["inspect", "tiny.gguf"])
        .exits(2)
        .says("trained for 0 tokens")
        .never_says("NaN");
}

#[test]
fn inspect_shows_a_model_whose_tokenizer_cannot_be_rebuilt() {
    let repository = Repository::new();
    repository.write_model(&[Damage::Metadata("tokenizer.ggml.pre", text("mine"))]);
    kvgate(&repository, &["inspect", "tiny.gguf", "--schemes", "q8_0"])
        .exits(0)
        .says("tokenizer     none, so that nothing can be measured")
        .says("`mine` is unknown")
        .says("4 heads, 2 KV heads of 64")
        .says("8.5 / 8.5");
    let missing = ["inspect", "tiny.gguf", "--tokenizer", "nothing.json"];
    kvgate(&repository, &missing).exits(2).says("nothing.json");
}

/// The model was trained for 2,048 tokens. In halves, its 2 layers with 2 heads of 64 take 1,024 bytes a token.
#[test]
fn inspect_and_check_say_what_the_cache_of_a_sequence_takes() {
    let repository = accepted();
    let row = |ran: &Ran, scheme: &str| -> Vec<String> {
        let sizes = ran.stdout.lines().skip_while(|line| !line.contains("KV of a sequence"));
        let mut words = sizes.map(|line| line.split_whitespace().map(String::from).collect());
        words.find(|words: &Vec<String>| words[0] == scheme).unwrap()
    };
    let ran =
        kvgate(&repository, &["inspect", "tiny.gguf"]).exits(0).says("trained for 2048 tokens");
    assert_eq!(row(&ran, "f16")[1..], ["2", "MiB"]);
    assert_eq!(row(&ran, "q8_0/q4_0")[1..], ["832", "KiB"]);
    let ran = kvgate(&repository, &["check"]).exits(0).says("trained for 2048 tokens");
    assert_eq!(row(&ran, "q8_0")[1..], ["1.1", "MiB"]);
}

#[test]
fn a_card_and_a_badge_say_which_scheme_to_serve() {
    let repository = accepted();
    kvgate(&repository, &["run"]).exits(0).says("serve q8_0 (8.5 bits, KLD ").says("· not ");
    let report = |format| {
        kvgate(&repository, &["report", "kvgate-results/results.json", "--format", format])
    };
    report("card")
        .exits(0)
        .says("## KV cache")
        .says("- `tiny`: serve `q8_0` (8.5 bits, KLD ")
        .says("`-fa on -ctk q8_0 -ctv q8_0`");
    let badge: serde_json::Value = serde_json::from_str(&report("badge").exits(0).stdout).unwrap();
    assert_eq!(badge["message"], "q8_0 passes");
    repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 1e-9");
    kvgate(&repository, &["run"]).exits(1).says("no scheme passes · not q8_0");
    report("card").exits(1).never_says("-ctk");
    let badge: serde_json::Value = serde_json::from_str(&report("badge").exits(1).stdout).unwrap();
    assert_eq!(badge["color"], "red");
}

/// What a file says that it found counts as little as its verdicts.
#[test]
fn judge_takes_no_findings_from_a_file() {
    let repository = accepted();
    kvgate(&repository, &["run"]).exits(0);
    let results = repository.text("kvgate-results/results.json");
    let found =
        r#""findings": [{"name": "policy::weakened", "message": "x", "is_red": true}], "cases""#;
    repository.put("found.json", &results.replacen("\"cases\"", found, 1));
    kvgate(&repository, &["report", "found.json"]).exits(1).says("policy::weakened");
    kvgate(&repository, &["judge", "found.json"]).exits(0).never_says("policy::weakened");
}

fn explain(repository: &Repository, more: &[&str]) -> Ran {
    kvgate(repository, &[&["explain", "tiny"], more].concat())
}

#[test]
fn explain_takes_a_model_of_the_policy_and_writes_what_it_found() {
    let repository = Repository::new();
    explain(&repository, &["--scheme", "q4_0", "--chunks", "2", "--json", "out.json"])
        .exits(0)
        .says("q4_0 costs tiny a mean KLD of")
        .says("(64 × 2 of corpus)")
        .says("One by one, the parts add up to")
        .says("K alone")
        .says("K's mean taken out");
    let json: serde_json::Value = serde_json::from_str(&repository.text("out.json")).unwrap();
    assert_eq!(json["format"], 1);
    assert_eq!(json["conditions"]["chunks"], 2);
    for list in ["sites", "experiments", "heads", "answer", "controls"] {
        assert!(!json[list].as_array().unwrap().is_empty(), "{list}");
    }
    assert_eq!(json["sites"][0]["side"], "K");
    assert!(json["sites"][0]["mean_kld"].as_f64().unwrap() > 0.0);
    assert!(json["heads"][0]["channels"][0]["pair"]["partner"].is_number());
}

#[test]
fn explain_takes_a_path_and_says_what_it_needs() {
    let repository = Repository::new();
    let path = ["explain", "tiny.gguf", "--untrained", "--context", "64", "--chunks", "1"];
    let by_path = |more: &[&str]| kvgate(&repository, &[&path[..], more].concat());
    by_path(&["--scheme", "q8_0", "--corpus", "corpus.txt"]).exits(0).says("64 × 1 of corpus");
    by_path(&["--scheme", "q8_0"]).exits(2).says("--corpus is needed");
    explain(&repository, &["--scheme", "f16"]).exits(2).says("there is nothing to explain");
    explain(&repository, &["--scheme", "q4_O"]).exits(2).says("did you mean `q4_0`");
    explain(&repository, &["--scheme", "q4_0", "--untrained"]).exits(2).says("the model's path");
    explain(&repository, &["--scheme", "q4_0", "--config", "no.toml"]).exits(2).says("no.toml");
    explain(&repository, &["--scheme", "q4_0:center"]).exits(4).says("needs a calibration");
}

#[test]
#[cfg(feature = "reports")]
fn explain_makes_a_page_that_is_well_formed() {
    let repository = Repository::new();
    explain(
        &repository,
        &["--scheme", "q4_0/f16", "--chunks", "1", "--heads", "--html", "out.html"],
    )
    .exits(0)
    .says("not tried: only_k: the scheme quantizes one side only");
    let page = repository.text("out.html");
    let mut reader = quick_xml::Reader::from_str(page.trim_start_matches("<!DOCTYPE html>"));
    loop {
        match reader.read_event() {
            Ok(quick_xml::events::Event::Eof) => break,
            Ok(_) => {}
            Err(error) => panic!("{error} at {}", reader.error_position()),
        }
    }
    let has_column = |name: &str| page.contains(&format!("<th scope=\"col\">{name}</th>"));
    assert!(has_column("K head 1") && !has_column("V head 1"), "heads of K only");
    assert!(page.contains("style=\"--heat: ") && !page.contains("<script"));
}

/// A scheme that breaks its limit is explained where that is asked for, and one that must fail is not.
#[test]
fn a_red_run_says_why_where_it_is_asked() {
    let repository = accepted();
    repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 1e-7");
    let page = repository.path("kvgate-results/explain-tiny__q8_0.html");
    kvgate(&repository, &["run", "q8_0"]).exits(1).never_says("why tiny::q8_0 is red");
    assert!(!page.exists());
    kvgate(&repository, &["run", "q8_0", "q4_0", "--explain"])
        .exits(1)
        .says("why tiny::q8_0 is red")
        .says("costs tiny a mean KLD of")
        .never_says("why tiny::q4_0 is red");
    assert!(page.exists());
}

/// What a run of today always measures is not missed in silence. Files of format 1 have none, and are still judged.
#[test]
fn a_file_that_lost_its_floor_is_judged_by_no_limit_on_the_mean() {
    let repository = accepted();
    let mut results: serde_json::Value =
        serde_json::from_str(&repository.text("kvgate-results/results.json")).unwrap();
    let measurement = &mut results["measurements"][0];
    measurement.as_object_mut().unwrap().remove("floor").unwrap();
    repository.put("lost.json", &results.to_string());
    kvgate(&repository, &["judge", "lost.json"]).exits(4).says("the floor is missing");

    results["format"] = 1.into();
    for scheme in results["measurements"][0]["schemes"].as_array_mut().unwrap() {
        for part in scheme["parts"].as_array_mut().unwrap() {
            part.as_object_mut().unwrap().remove("histogram").unwrap();
        }
    }
    repository.put("old.json", &results.to_string());
    kvgate(&repository, &["judge", "old.json"]).exits(0);
}

/// A limit within the interval of the first chunks is looked at again, on chunks from all over the text. The golden
/// compares the first ones only, and the text ends before the maximum.
#[test]
fn an_open_verdict_is_looked_at_again() {
    let repository = accepted();
    repository.edit("thresholds.toml", "chunks = 4", "chunks = 8\nconfidence = 0.95");
    repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 0.00001");
    let json = |repository: &Repository| -> serde_json::Value {
        serde_json::from_str(&repository.text("kvgate-results/results.json")).unwrap()
    };
    kvgate(&repository, &["run", "q8_0"]).exits(1);
    accept(&repository);
    let limit = json(&repository)["cases"][0]["limits"][0].clone();
    let bound = (limit["value"].as_f64().unwrap() + limit["high"].as_f64().unwrap()) / 2.0;
    repository.edit("thresholds.toml", "mean_kld = 0.00001", &format!("mean_kld = {bound:.9}"));
    kvgate(&repository, &["run", "q8_0"]).exits(1).says("? inconclusive");

    repository.edit("thresholds.toml", "chunks = 8", "chunks = 8\nmax_chunks = 500");
    let ran = kvgate(&repository, &["run", "q8_0"]).exits(0).says("look 2 of at most 7");
    let found = json(&repository);
    let scheme = &found["measurements"][0]["schemes"][0];
    let looks = scheme["looks"].as_array().unwrap();
    assert!(!looks.is_empty(), "{}", ran.stdout);
    let chunks = |parts: &serde_json::Value| -> Vec<u64> {
        parts.as_array().unwrap().iter().map(|part| part["chunk"].as_u64().unwrap()).collect()
    };
    assert_eq!(chunks(&scheme["parts"]), (0..8).collect::<Vec<_>>());
    let further = chunks(&looks[0]["parts"]);
    assert_eq!(further.len(), 8);
    assert!(further.iter().all(|chunk| *chunk >= 8) && !further.is_sorted(), "{further:?}");
    assert_eq!(found["cases"][1]["verdict"], "pass", "the golden knows the first chunks only");

    // what the run drew is believed, and what somebody chose is not
    let others = "q4_0 = { expect = \"fail\", reason = \"four bits are too few\" }\nq4_1 = { expect = \"report\" }\n";
    repository.edit("thresholds.toml", others, "");
    kvgate(&repository, &["judge", "kvgate-results/results.json"]).exits(0);
    let mut chosen = found;
    let parts = &mut chosen["measurements"][0]["schemes"][0]["looks"][0]["parts"];
    parts.as_array_mut().unwrap().swap(0, 1);
    repository.put("chosen.json", &chosen.to_string());
    let words = format!("chunk {} of corpus where a run draws chunk {}", further[1], further[0]);
    kvgate(&repository, &["judge", "chosen.json"]).exits(4).says(&words);
}
