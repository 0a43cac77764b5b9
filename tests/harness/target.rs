//! The contract of the test target that a model repository has: what cargo and nextest ask of a test
//! executable, on the little repository.

use crate::support;
use crate::support::program::{accept, accepted, command, kvgate, replayed, Ran};
use crate::support::tiny::Repository;
use crate::trials;
use libtest_mimic::Trial;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// Set where this executable is the gate of the repository that it runs in.
pub const AS_GATE: &str = "KVGATE_TEST_AS_GATE";

pub fn tests() -> Vec<Trial> {
    trials![
        target:
        lists_are_pure_and_need_no_model,
        a_green_gate_passes,
        one_case_runs_alone,
        a_broken_limit_is_101_under_any_mode_of_insta,
        nothing_selected_is_101_and_says_what_to_type,
        filters_are_libtests,
        what_cannot_be_measured_or_written_is_101,
        nextest_measures_once,
        nextest_judges_stored_values_anew,
        nextest_measures_anew_what_depends_on_another_text,
        a_run_that_was_killed_is_run_again,
        a_reader_that_has_gone_turns_nothing_green,
        device_and_precision_are_those_of_the_environment,
    ]
}

/// The gate of a repository, run as cargo runs it.
fn gate_command(repository: &Repository, arguments: &[&str], vars: &[(&str, &str)]) -> Command {
    let mut command = command(std::env::current_exe().unwrap(), repository);
    command.args(arguments).env(AS_GATE, "1").envs(vars.iter().copied());
    command
}

fn gate_with(repository: &Repository, arguments: &[&str], vars: &[(&str, &str)]) -> Ran {
    Ran::of(gate_command(repository, arguments, vars).output().unwrap())
}

fn gate(repository: &Repository, arguments: &[&str]) -> Ran {
    gate_with(repository, arguments, &[])
}

/// Names and outcomes as libtest prints them: `name ... ok`.
fn outcomes(ran: &Ran) -> Vec<String> {
    let lines = ran.stdout.lines().filter_map(|line| line.strip_prefix("test "));
    let lines = lines.filter(|line| line.contains(" ... "));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// libtest-mimic answers a stream that takes nothing with a panic; what it had to say is not lost as a green.
fn a_reader_that_has_gone_turns_nothing_green() {
    let repository = accepted();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ran = gate_command(&repository, &[], &[]).stdout(writer).output().unwrap();
    Ran::of(ran).exits(101).says("error: standard output was closed or is full");
}

fn device_and_precision_are_those_of_the_environment() {
    let repository = accepted();
    gate_with(&repository, &["q8_0::kld"], &[("KVGATE_DEVICE", "gpu")])
        .exits(101)
        .says("error: KVGATE_DEVICE: `gpu` is no device");
    gate_with(&repository, &["q8_0::kld"], &[("KVGATE_PRECISION", "half")])
        .exits(101)
        .says("error: KVGATE_PRECISION: `half` is no precision");
    let cpu = ("KVGATE_DEVICE", "cpu");
    gate_with(&repository, &["q8_0::kld"], &[cpu]).exits(0).never_says("the precision");
    gate_with(&repository, &["q8_0::kld"], &[cpu, ("KVGATE_PRECISION", "whole")])
        .exits(0)
        .says("note: the precision `whole` changes nothing on the CPU");
}

fn lists_are_pure_and_need_no_model() {
    let repository = Repository::new();
    std::fs::remove_file(repository.path("tiny.gguf")).unwrap();
    std::fs::remove_file(repository.path("corpus.txt")).unwrap();
    let names = |schemes: &[&str]| -> String {
        let cases = schemes.iter().flat_map(|s| ["kld", "golden"].map(|kind| (s, kind)));
        cases.map(|(scheme, kind)| format!("tiny::{scheme}::{kind}: test\n")).collect()
    };
    // libtest lists ignored tests unless only they are asked for, and nextest counts on it
    let all = gate(&repository, &["--list", "--format", "terse"]).exits(0);
    assert_eq!(all.stdout, names(&["q8_0", "q4_0", "q4_1", "q5_1"]));
    let ignored = gate(&repository, &["--list", "--format", "terse", "--ignored"]).exits(0);
    assert_eq!(ignored.stdout, names(&["q5_1"]));
    assert_eq!(format!("{}{}", all.stderr, ignored.stderr), "");
    let none = gate(&repository, &["--list", "--format", "terse", "no_such"]).exits(0);
    assert_eq!(none.stdout, "");
    assert!(!repository.path("kvgate-results").exists(), "a list leaves nothing behind");
}

fn a_green_gate_passes() {
    let repository = accepted();
    let ran = gate(&repository, &[]).exits(0).says("bad lane");
    let mut outcomes = outcomes(&ran);
    outcomes.sort();
    let of = |name: &str| outcomes.iter().find(|line| line.starts_with(name)).unwrap().as_str();
    assert_eq!(outcomes.len(), 8);
    for case in ["q8_0::kld", "q8_0::golden", "q4_0::kld", "q4_0::golden", "q4_1::golden"] {
        assert!(of(&format!("tiny::{case}")).ends_with("... ok"), "{outcomes:?}");
    }
    // neither measured for show nor left out counts as passed
    assert!(of("tiny::q4_1::kld").contains("... ignored"), "{outcomes:?}");
    assert!(of("tiny::q5_1::kld").contains("... ignored"), "{outcomes:?}");
    ran.says("5 passed").says("3 ignored");
    // what the target measured can be accepted as what `kvgate run` did
    accept(&repository);
}

fn one_case_runs_alone() {
    let repository = accepted();
    let ran = gate(&repository, &["--exact", "tiny::q8_0::kld", "--nocapture"]).exits(0);
    assert_eq!(outcomes(&ran), ["tiny::q8_0::kld ... ok"]);
    assert!(!repository.text("kvgate-results/results.json").contains("q4_0"), "one lane is enough");
    let ran = gate(&repository, &["--exact", "tiny::q5_1::kld", "--ignored"]).exits(0);
    assert_eq!(outcomes(&ran), ["tiny::q5_1::kld ... ok"]);
}

fn a_broken_limit_is_101_under_any_mode_of_insta() {
    let repository = accepted();
    repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 1e-9");
    for vars in [&[][..], &[("INSTA_FORCE_PASS", "1")], &[("INSTA_UPDATE", "always")]] {
        let ran = gate_with(&repository, &["q8_0"], vars).exits(101).says("thresholds.toml:7");
        let mut outcomes = outcomes(&ran);
        outcomes.sort();
        assert_eq!(outcomes, ["tiny::q8_0::golden ... ok", "tiny::q8_0::kld ... FAILED"]);
    }
    std::fs::remove_file(repository.path("goldens/tiny__q8_0.snap")).unwrap();
    gate_with(&repository, &["q8_0::golden"], &[("INSTA_UPDATE", "always")]).exits(101);
    assert!(
        !repository.path("goldens/tiny__q8_0.snap").exists(),
        "insta accepts nothing by itself"
    );
}

fn nothing_selected_is_101_and_says_what_to_type() {
    let repository = Repository::new();
    gate(&repository, &["my_unit_test"])
        .exits(101)
        .says("cargo test --lib my_unit_test")
        .says("tiny::q8_0::kld");
    gate(&repository, &["q5_1"]).exits(101).says("--include-ignored runs it");
    gate(&repository, &["--skip", "tiny"]).exits(101);
    // what would run nothing is no green run either, and no hang
    gate(&repository, &["--bench"]).exits(101).says("no benchmarks");
    gate(&repository, &["--test-threads=0"]).exits(101).says("at least 1");
    repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kdl = 0.05");
    gate(&repository, &[]).exits(101).says("thresholds.toml:7:1");
}

fn filters_are_libtests() {
    let repository = accepted();
    let kld = |ran: Ran| {
        let mut outcomes = outcomes(&ran.exits(0));
        outcomes.sort();
        outcomes
    };
    let two = ["tiny::q4_0::kld ... ok", "tiny::q8_0::kld ... ok"];
    assert_eq!(kld(gate(&repository, &["q8_0::kld", "q4_0::kld"])), two);
    let exact = ["--exact", "tiny::q8_0::kld", "tiny::q4_0::kld", "--no-capture"];
    assert_eq!(kld(gate(&repository, &exact)), two);
    let skip = ["--skip", "golden", "--skip", "q4_1", "--skip=q5_1", "--test-threads", "1", "tiny"];
    assert_eq!(kld(gate(&repository, &skip)), two);
    // the repository that a policy is in may be another than the working folder
    let elsewhere = Repository::new();
    let policy = repository.path("thresholds.toml").display().to_string();
    let ran = gate_with(&elsewhere, &["q8_0"], &[("KVGATE_CONFIG", &policy)]);
    assert_eq!(kld(ran), ["tiny::q8_0::golden ... ok", "tiny::q8_0::kld ... ok"]);
}

fn what_cannot_be_measured_or_written_is_101() {
    let repository = accepted();
    let vars = [("KVGATE_RESULTS", "corpus.txt/results")];
    gate_with(&repository, &["q8_0"], &vars).exits(101).says("corpus.txt/results");
    repository.put("corpus.txt", "Only this.");
    gate(&repository, &["q8_0"]).exits(101).says("were asked for");
    std::fs::remove_file(repository.path("tiny.gguf")).unwrap();
    gate(&repository, &["q4_0"]).exits(101).says("scripts/fetch tiny").never_says("... ok");
}

/// As nextest runs a case.
fn case(repository: &Repository, name: &str) -> Command {
    let vars = [("NEXTEST", "1"), ("NEXTEST_EXECUTION_MODE", "process-per-test")];
    gate_command(repository, &["--exact", name, "--nocapture"], &vars)
}

/// Entries of the store.
fn entries(repository: &Repository) -> usize {
    let Ok(store) = std::fs::read_dir(repository.path("kvgate-results/store")) else { return 0 };
    let names = store.map(|entry| entry.unwrap().path());
    names.filter(|path| path.extension().is_some_and(|e| e == "json")).count()
}

/// Runs of the engine that these processes began.
fn measurings(ran: &[Ran]) -> usize {
    ran.iter().map(|ran| ran.stderr.matches("kvgate: tiny: reading").count()).sum()
}

/// A repository whose measuring takes long enough to be met at work, and its goldens.
fn busy() -> Repository {
    let repository = Repository::new();
    repository.put("corpus.txt", &support::tiny::corpus(3, 80_000));
    repository.edit("thresholds.toml", "chunks = 4", "chunks = 250");
    kvgate(&repository, &["run"]).exits(1);
    accept(&repository);
    repository
}

fn nextest_measures_once() {
    let repository = busy();
    let names = ["q8_0::kld", "q8_0::golden", "q4_0::kld", "q4_1::golden"];
    let started: Vec<_> = names
        .iter()
        .map(|name| {
            let mut command = case(&repository, &format!("tiny::{name}"));
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let ran: Vec<Ran> =
        started.into_iter().map(|child| Ran::of(child.wait_with_output().unwrap())).collect();
    let measured = measurings(&ran);
    for ran in ran {
        ran.exits(0).says("1 passed");
    }
    assert_eq!((measured, entries(&repository)), (1, 1));
    // an ignored scheme is measured for itself
    let mut ignored = case(&repository, "tiny::q5_1::kld");
    let ignored = Ran::of(ignored.arg("--ignored").output().unwrap()).exits(0);
    assert_eq!((measurings(&[ignored]), entries(&repository)), (1, 2));
    // a text is part of the key
    repository.put("corpus.txt", &support::tiny::corpus(4, 80_000));
    let other = Ran::of(case(&repository, "tiny::q8_0::kld").output().unwrap()).exits(0);
    assert_eq!((measurings(&[other]), entries(&repository)), (1, 3));
}

fn nextest_judges_stored_values_anew() {
    let repository = accepted();
    let run = || Ran::of(case(&repository, "tiny::q8_0::kld").output().unwrap());
    assert_eq!(measurings(&[run().exits(0)]), 1);
    repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 1e-9");
    assert_eq!(measurings(&[run().exits(101).says("thresholds.toml:7")]), 0);
    repository.edit("thresholds.toml", "mean_kld = 1e-9", "mean_kld = 0.05");
    // an entry that was damaged is measured again
    let store = repository.path("kvgate-results/store");
    let entry = std::fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path());
    let entry = entry.into_iter().find(|path| path.extension().is_some_and(|e| e == "json"));
    std::fs::write(entry.unwrap(), "{\"model\":\"ti").unwrap();
    assert_eq!(measurings(&[run().exits(0)]), 1);
}

fn nextest_measures_anew_what_depends_on_another_text() {
    let repository = replayed();
    let text = "goldens/tiny.text.snap";
    let run = || {
        let names = ["tiny::q8_0::golden", "tiny::q4_0::golden"];
        names.map(|name| Ran::of(case(&repository, name).output().unwrap()))
    };
    let [first, second] = run().map(|ran| ran.exits(0).never_says("tiny: generating"));
    assert_eq!(measurings(&[first, second]), 1);
    let accepted = repository.text(text);
    std::fs::remove_file(repository.path(text)).unwrap();
    let red =
        run().map(|ran| ran.exits(101).says("text, which it was measured on, is not accepted"));
    assert_eq!(measurings(&red), 1);
    let results = "kvgate-results/cases/tiny__q8_0__golden/results.json";
    kvgate(&repository, &["accept", results]).exits(0);
    assert_eq!(repository.text(text), accepted);
    assert_eq!(measurings(&run().map(|ran| ran.exits(0))), 0, "what was stored is of this text");
}

fn a_run_that_was_killed_is_run_again() {
    let repository = busy();
    let results = repository.path("kvgate-results");
    std::fs::remove_dir_all(&results).unwrap();
    let mut command = case(&repository, "tiny::q8_0::kld");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap() == "kvgate: tiny: reading"), "it never began");
    assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    assert_eq!(entries(&repository), 0, "half a run leaves no results");
    assert!(!results.join("cases/tiny__q8_0__kld/results.json").exists());
    // its lock died with it, and what is served later is whole
    let again = |name: &str| Ran::of(case(&repository, name).output().unwrap());
    assert_eq!(measurings(&[again("tiny::q8_0::kld").exits(0)]), 1);
    assert_eq!(measurings(&[again("tiny::q4_0::kld").exits(0).says("1 passed")]), 0);
    assert_eq!(entries(&repository), 1);
}
