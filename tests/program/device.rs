//! The device as a user sees it: which one computes, what is said of it, and what would run where.

use crate::support::program::{accepted, command, kvgate, kvgate_with, Ran};
use crate::support::tiny::Repository;
use kvgate::internals::compute::Device;
use serde_json::Value;

fn measure(repository: &Repository, more: &[&str], vars: &[(&str, &str)]) -> Ran {
    let arguments = [
        "measure",
        "tiny.gguf",
        "--untrained",
        "--corpus",
        "corpus.txt",
        "--context",
        "64",
        "--chunks",
        "1",
        "--schemes",
        "q8_0",
    ];
    kvgate_with(repository, &[&arguments[..], more].concat(), vars)
}

/// A build that knows cards says once what `auto` came to. A build that knows none has nothing to say.
#[test]
fn auto_says_which_device_it_took_only_where_there_was_a_choice() {
    let repository = Repository::new();
    for arguments in [&["check"][..], &["plan", "--shards", "1"]] {
        let ran = kvgate(&repository, arguments);
        let said = ran.stderr.matches("note: models run on ").count();
        assert_eq!(said, usize::from(Device::knows_cards()), "{}", ran.stderr);
    }
    measure(&repository, &["--device", "cpu"], &[]).exits(0).never_says("models run on");
    measure(&repository, &[], &[("KVGATE_DEVICE", "cpu")]).exits(0).never_says("models run on");
}

#[test]
fn a_device_that_cannot_be_used_is_refused_by_every_command_that_computes() {
    let repository = Repository::new();
    // no machine has so many cards
    let asked = ["--device", "cuda:99"];
    for command in ["run", "check"] {
        let on_card = [command, asked[0], asked[1]];
        kvgate(&repository, &on_card).exits(2).says("use --device cpu");
    }
    for command in [&["run"][..], &["check"], &["plan", "--shards", "1"]] {
        kvgate_with(&repository, command, &[("KVGATE_DEVICE", "gpu")])
            .exits(2)
            .says("KVGATE_DEVICE: `gpu` is no device");
    }
    measure(&repository, &asked, &[]).exits(2).says("use --device cpu");
    measure(&repository, &["--device", "gpu"], &[]).exits(2).says("`gpu` is no device");
}

#[test]
fn a_precision_changes_nothing_on_the_cpu_and_is_said_to() {
    let repository = Repository::new();
    let note = "note: the precision `whole` changes nothing on the CPU";
    let statistics = |more: &[&str], vars: &[(&str, &str)]| {
        let more = [&["--device", "cpu", "--json", "out.json"], more].concat();
        let ran = measure(&repository, &more, vars).exits(0);
        let json: Value = serde_json::from_str(&repository.text("out.json")).unwrap();
        (json["measurements"][0]["schemes"].clone(), ran)
    };
    let (plain, ran) = statistics(&[], &[]);
    ran.never_says("precision");
    let (whole, ran) = statistics(&["--precision", "whole"], &[]);
    ran.says(note);
    let (by_environment, ran) = statistics(&[], &[("KVGATE_PRECISION", "whole")]);
    ran.says(note);
    assert_eq!((&whole, &by_environment), (&plain, &plain));
    measure(&repository, &["--precision", "half"], &[])
        .exits(2)
        .says("`half` is no precision; use differences or whole");
    measure(&repository, &[], &[("KVGATE_PRECISION", "half")])
        .exits(2)
        .says("KVGATE_PRECISION: `half` is no precision");
}

#[test]
fn results_name_the_arithmetic_and_no_card_where_there_is_none() {
    let repository = Repository::new();
    measure(&repository, &["--device", "cpu", "--json", "out.json"], &[])
        .exits(0)
        .says(" CPU threads, f32 · ");
    let json: Value = serde_json::from_str(&repository.text("out.json")).unwrap();
    let run = &json["measurements"][0]["run"];
    assert_eq!(run["arithmetic"], "f32");
    assert!(run.get("card").is_none(), "{run}");
}

/// Files of earlier states of kvgate do not name the arithmetic.
#[test]
fn results_without_the_arithmetic_are_judged_and_shown() {
    let repository = accepted();
    let mut results: Value =
        serde_json::from_str(&repository.text("kvgate-results/results.json")).unwrap();
    results["measurements"][0]["run"].as_object_mut().unwrap().remove("arithmetic").unwrap();
    repository.put("old.json", &results.to_string());
    kvgate(&repository, &["judge", "old.json"]).exits(0).says(", f32");
}

#[test]
fn a_check_says_what_would_run_where() {
    let repository = Repository::new();
    let check =
        |more: &[&str]| kvgate(&repository, &[&["check", "--device", "cpu"], more].concat());
    // 2 layers of 64 wide states, with 262 tokens in two tables
    check(&[])
        .says("  device   ")
        .says(" CPU threads, f32\n")
        .says("  memory   weights 708.3 KiB, resident; hidden states of 4 chunks 384 KiB; ")
        .says(" in this machine\n")
        .says("no results of an earlier run on the CPU are at hand");
    kvgate(&repository, &["run", "--device", "cpu"]).exits(1);
    // without --costs those of the last run count
    check(&[]).says(" s, as in an earlier run on such a device\n");
    // what a card took says nothing of the CPU
    let path = "kvgate-results/results.json";
    as_of_a_card(&repository, path);
    check(&[]).says("no results of an earlier run on the CPU are at hand");
    check(&["--costs", "none.json"]).exits(2).says("none.json");
}

/// Has results say that a card measured.
fn as_of_a_card(repository: &Repository, path: &str) {
    repository.edit(path, "\"device\": \"cpu\"", "\"device\": \"cuda\"");
    repository.edit(path, "\"weights\": \"f32\"", "\"weights\": \"f16\"");
}

#[test]
fn a_plan_counts_no_times_of_another_device() {
    let repository = Repository::new();
    kvgate(&repository, &["run", "--device", "cpu"]).exits(1);
    let path = "kvgate-results/results.json";
    let plan =
        || kvgate(&repository, &["plan", "--device", "cpu", "--shards", "1", "--costs", path]);
    plan().exits(0).never_says("warning");
    as_of_a_card(&repository, path);
    plan().exits(0).says("warning: tiny: its results in --costs do not tell its cost on ");
}

/// A plan computes nothing, so the machine that makes it needs no card.
#[test]
fn a_plan_for_a_card_needs_none() {
    let repository = Repository::new();
    kvgate(&repository, &["run", "--device", "cpu"]).exits(1);
    let path = "kvgate-results/results.json";
    let plan = ["plan", "--device", "cuda:1", "--shards", "1", "--costs", path];
    kvgate(&repository, &plan)
        .exits(0)
        .says("warning: tiny: its results in --costs do not tell its cost on the card cuda:1")
        .says("the matrix has no seconds");
    let mut results: Value = serde_json::from_str(&repository.text(path)).unwrap();
    let measurement = &mut results["measurements"][0];
    measurement["conditions"]["device"] = "cuda".into();
    measurement["conditions"]["weights"] = "f16".into();
    let run = &mut measurement["run"];
    run["card"] = serde_json::json!({ "name": "A Card", "driver": "13.0", "memory_bytes": 1 });
    run["arithmetic"] = "f16 weights, differences from the baseline in f16, sums in f32".into();
    repository.put(path, &results.to_string());
    kvgate(&repository, &plan).exits(0).says("\"seconds\":").never_says("warning");
}

/// `kvgate` in a folder of its own, beside a `kvgate-cuda` that is a script.
#[cfg(unix)]
fn beside(script: &str, repository: &Repository, arguments: &[&str]) -> Ran {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("kvgate");
    std::fs::copy(env!("CARGO_BIN_EXE_kvgate"), &program).unwrap();
    let other = folder.path().join("kvgate-cuda");
    std::fs::write(&other, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o755)).unwrap();
    Ran::of(command(&program, repository).args(arguments).output().unwrap())
}

/// The program for cards takes over if it starts and is of the same release. An older one would measure otherwise.
#[cfg(unix)]
#[test]
fn the_program_for_cards_takes_over_if_it_is_of_the_same_release() {
    let repository = Repository::new();
    let version = format!("kvgate {}", env!("CARGO_PKG_VERSION"));
    let ours = format!(
        "if [ \"$1\" = --version ]; then echo '{version}'; else echo \"took over $*\"; exit 7; fi"
    );
    let check = ["check"];
    beside(&ours, &repository, &check).exits(7).says("took over check");
    let on_cpu = beside(&ours, &repository, &["check", "--device", "cpu"]);
    on_cpu.says("CPU threads").never_says("took over");
    beside(&ours, &repository, &["schemes"]).exits(0).never_says("took over");
    let other = beside("echo kvgate 9.9.9", &repository, &check).exits(4);
    other.says("of another version (kvgate 9.9.9)").says("--device cpu");
    let broken = "echo 'libcublas.so.13: cannot open shared object file' >&2; exit 127";
    let ran = beside(broken, &repository, &check).says("does not start on this machine");
    ran.says("libcublas.so.13").says("CPU threads");
}
