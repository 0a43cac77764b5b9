//! What leaves the program and its test target: streams that are closed or full, and text of strangers.

use crate::support::program::{accepted, command, kvgate, Ran};
use crate::support::tiny::Repository;
use std::fs::OpenOptions;
use std::io::Read;
use std::process::{Command, Stdio};

fn program(repository: &Repository, arguments: &[&str]) -> Command {
    let mut command = command(env!("CARGO_BIN_EXE_kvgate"), repository);
    command.args(arguments);
    command
}

/// A device that is always full.
fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

/// A pipe whose reader has gone.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn a_reader_that_has_gone_changes_no_exit_code() {
    let repository = accepted();
    for (arguments, code) in [(&["schemes"][..], 0), (&["check"], 0), (&["run"], 0)] {
        let ran = Ran::of(program(&repository, arguments).stdout(closed()).output().unwrap());
        ran.exits(code).never_says("panicked");
    }
    repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 1e-9");
    for stderr in [closed(), full()] {
        let ran = program(&repository, &["run"]).stdout(closed()).stderr(stderr).output();
        Ran::of(ran.unwrap()).exits(1);
    }
    let results = ["report", "kvgate-results/results.json"];
    Ran::of(program(&repository, &results).stdout(closed()).output().unwrap()).exits(1);
}

#[test]
fn a_full_disk_is_an_error_and_turns_nothing_green() {
    let repository = accepted();
    for arguments in [&["schemes"][..], &["check"], &["run"], &["run", "--list"]] {
        let ran = Ran::of(program(&repository, arguments).stdout(full()).output().unwrap());
        ran.exits(4).says("No space left").never_says("panicked");
    }
    repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 1e-9");
    Ran::of(program(&repository, &["run"]).stdout(full()).output().unwrap()).exits(1);
}

#[test]
fn errors_that_quote_a_file_are_escaped_and_bounded() {
    let repository = accepted();
    let results = repository.text("kvgate-results/results.json");
    let long = "x".repeat(1 << 20);
    for (what, edited) in [
        ("an unknown key", results.replacen("\"engine\"", "\"\u{9b}2J\u{1b}[2J\u{61c}\"", 1)),
        ("a verdict", results.replacen("\"pass\"", "\"pass\u{9b}2J\\u001b]0;x\\u0007\"", 1)),
        ("a long key", results.replacen("\"engine\"", &format!("\"{long}\""), 1)),
        (
            "a format",
            results.replacen("\"format\": 2", &format!("\"format\": \"\u{202e}{long}\""), 1),
        ),
    ] {
        assert_ne!(edited, results, "{what}");
        std::fs::write(repository.path("edited.json"), edited).unwrap();
        for verb in ["report", "judge", "accept"] {
            let ran = kvgate(&repository, &[verb, "edited.json"]).exits(2);
            let said = format!("{}{}", ran.stdout, ran.stderr);
            assert!(said.len() < 8_000, "{what}, {verb}: {} bytes", said.len());
            for c in ['\u{1b}', '\u{9b}', '\u{7}', '\u{61c}', '\u{202e}'] {
                assert!(!said.contains(c), "{what}, {verb}: {c:?} in {said}");
            }
            assert!(said.starts_with("error: edited.json"), "{what}, {verb}: {said}");
        }
    }
}

#[test]
fn a_file_s_name_is_shown_on_one_line_of_what_can_be_seen() {
    let repository = accepted();
    let name = "a\u{1b}[2J\u{9b}b.json";
    std::fs::write(repository.path(name), "{}").unwrap();
    let ran = kvgate(&repository, &["report", name]).exits(2);
    ran.says(r"a\u{1b}[2J\u{9b}b.json").never_says("\u{1b}").never_says("\u{9b}");
}

#[test]
fn a_pipe_that_is_read_to_the_end_has_everything() {
    let repository = accepted();
    let mut child = program(&repository, &["schemes"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(text.starts_with("codec ") && text.trim_end().ends_with("names a layer counts"));
}
