//! The shell of workflows and of the action, run as GitHub runs it, with stand-ins for what speaks to a network.

use crate::support::program::Ran;
use crate::support::root;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(".github").join(path)).unwrap()
}

/// The script of the step of that name.
fn step(file: &str, name: &str) -> String {
    let text = read(file);
    let lines: Vec<&str> = text.lines().collect();
    let named = format!("- name: {name}");
    let start = lines.iter().position(|line| line.trim() == named);
    let start = start.unwrap_or_else(|| panic!("{file} has no step `{name}`"));
    let run = start + lines[start..].iter().position(|l| l.trim().starts_with("run:")).unwrap();
    script(&lines[run..])
}

/// The script that begins in the first of some lines.
fn script(lines: &[&str]) -> String {
    let depth = |line: &str| line.len() - line.trim_start().len();
    match lines[0].trim().trim_start_matches("- ").strip_prefix("run: ").unwrap() {
        "|" => {
            let inner =
                lines[1..].iter().take_while(|l| l.is_empty() || depth(l) > depth(lines[0]));
            inner.map(|line| line.trim_start_matches("          ").to_owned() + "\n").collect()
        }
        line => line.trim_matches('\'').to_owned(),
    }
}

/// A job's machine: a folder, programs that stand in for others, and the files that steps write to.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Machine { folder: tempfile::tempdir().unwrap() };
        for folder in ["bin", "temp", "work"] {
            std::fs::create_dir(machine.path(folder)).unwrap();
        }
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// A program that says what it was called with, then does something.
    fn stand_in(&self, name: &str, then: &str) {
        let path = self.path("bin").join(name);
        let calls = self.path("calls");
        let log = format!(
            "printf '%s' {name} >> '{0}'; printf ' [%s]' \"$@\" >> '{0}'; echo >> '{0}'",
            calls.display()
        );
        std::fs::write(&path, format!("#!/usr/bin/env bash\n{log}\n{then}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn calls(&self) -> Vec<String> {
        self.text("calls").lines().map(Into::into).collect()
    }

    /// `shell: bash`, as GitHub starts it.
    fn run(&self, script: &str, environment: &[(&str, &str)]) -> Ran {
        let file = self.path("step.sh");
        std::fs::write(&file, script).unwrap();
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let mut bash = Command::new("bash");
        bash.args(["--noprofile", "--norc", "-eo", "pipefail"]).arg(&file);
        bash.current_dir(self.path("work")).env("PATH", path);
        for name in ["OUTPUT", "STEP_SUMMARY", "PATH"] {
            bash.env(format!("GITHUB_{name}"), self.path(name));
        }
        bash.env("RUNNER_TEMP", self.path("temp")).env("GITHUB_SERVER_URL", "https://github.com");
        Ran::of(bash.envs(environment.iter().copied()).output().unwrap())
    }
}

#[test]
fn no_expression_stands_in_a_script() {
    let mut scripts = 0;
    for file in [
        "templates/kvgate.yml",
        "templates/kvgate-post.yml",
        "templates/kvgate-gpu.yml",
        "workflows/ci.yml",
        "workflows/release.yml",
        "actions/kvgate/action.yml",
    ] {
        let text = read(file);
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            if line.trim().trim_start_matches("- ").starts_with("run: ") {
                let script = script(&lines[at..]);
                assert!(!script.contains("${{"), "{file}:{}: {script}", at + 1);
                scripts += 1;
            }
        }
    }
    assert!(scripts >= 15, "{scripts} scripts were looked at");
}

#[test]
fn the_last_job_is_green_only_if_all_are() {
    let last = step("templates/kvgate.yml", "Red unless every job succeeded");
    let ends = |results: &str| Machine::new().run(&last, &[("RESULTS", results)]).code;
    assert_eq!(ends("success success success"), 0);
    for red in ["failure", "skipped", "cancelled", "success skipped", "success success failure", ""]
    {
        assert_eq!(ends(red), 1, "`{red}`");
    }
    let gpu = step("templates/kvgate-gpu.yml", "Red unless it was measured and is well");
    let run = |result: &str| Machine::new().run(&gpu, &[("RESULT", result), ("PULL", "12")]);
    run("success").exits(0);
    run("failure").exits(1).never_says("maintainer");
    run("cancelled").exits(1);
    run("").exits(1);
    run("skipped").exits(1).says("gh pr checkout 12 && git push origin HEAD:kvgate-gpu/12");
}

#[test]
fn a_plan_does_without_costs_that_it_cannot_read() {
    let plan = step("templates/kvgate.yml", "Split the gate over jobs");
    let machine = Machine::new();
    machine.stand_in("kvgate", "case \"$*\" in *--costs*) exit 2;; esac; echo '{\"include\":[]}'");
    machine.run(&plan, &[("SHARDS", "3")]).exits(0);
    assert_eq!(machine.calls(), ["kvgate [plan] [--shards] [3]"]);
    std::fs::create_dir(machine.path("work/kvgate-costs")).unwrap();
    std::fs::write(machine.path("work/kvgate-costs/results.json"), "").unwrap();
    machine.run(&plan, &[("SHARDS", "3")]).exits(0);
    assert_eq!(
        machine.calls()[1..],
        [
            "kvgate [plan] [--shards] [3] [--costs] [kvgate-costs/results.json]",
            "kvgate [plan] [--shards] [3]"
        ]
    );
    assert_eq!(machine.text("OUTPUT"), "matrix={\"include\":[]}\n".repeat(2));
    machine.stand_in("kvgate", "exit 3");
    machine.run(&plan, &[("SHARDS", "3")]).exits(3);
}

#[test]
fn shards_are_merged_and_a_red_report_is_red() {
    let merge = step("templates/kvgate.yml", "Merge the shards; a cell that none has is an error");
    let machine = Machine::new();
    for shard in ["a", "b"] {
        let folder = machine.path("work/shards").join(shard);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("results.json"), "{}").unwrap();
    }
    let report =
        "while [ $# -gt 0 ]; do [ \"$1\" = --output ] && echo report > \"$2\"; shift; done";
    machine.stand_in("kvgate", report);
    machine.run(&merge, &[]).exits(0);
    let first =
        "kvgate [report] [shards/a/results.json] [shards/b/results.json] [--format] [json] \
                 [--output] [kvgate-results/results.json]";
    assert_eq!(machine.calls()[0], first);
    assert_eq!(machine.calls().len(), 4);
    for file in
        ["kvgate-results/report.html", "kvgate-results/junit.xml", "kvgate-costs/results.json"]
    {
        assert!(machine.path("work").join(file).exists(), "{file}");
    }
    machine.stand_in("kvgate", &format!("{report}\nexit 1"));
    machine.run(&merge, &[]).exits(1);
    assert_eq!(machine.calls().len(), 8, "a red report keeps none of the others from being made");
    std::fs::remove_dir_all(machine.path("work/shards")).unwrap();
    machine.stand_in("kvgate", "exit 2");
    machine.run(&merge, &[]).exits(2);
    assert_eq!(
        machine.calls()[8],
        "kvgate [report] [--format] [json] [--output] [kvgate-results/results.json]"
    );
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let mut git = Command::new("git");
    git.current_dir(folder).args(["-c", "user.name=a", "-c", "user.email=a@b"]).args(arguments);
    let output = git.env("GIT_CONFIG_GLOBAL", "/dev/null").output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A repository whose pull request 7 is a fork's, and a clone of its default branch.
fn with_pull_request(machine: &Machine) -> String {
    let origin = machine.path("origin");
    std::fs::create_dir(&origin).unwrap();
    git(&origin, &["init", "-q", "-b", "main"]);
    std::fs::write(origin.join("file"), "theirs").unwrap();
    git(&origin, &["add", "."]);
    git(&origin, &["commit", "-qm", "one"]);
    git(&origin, &["checkout", "-q", "--detach"]);
    std::fs::write(origin.join("file"), "proposed").unwrap();
    git(&origin, &["commit", "-qam", "two"]);
    let head = git(&origin, &["rev-parse", "HEAD"]);
    git(&origin, &["update-ref", "refs/pull/7/head", &head]);
    git(&origin, &["checkout", "-q", "main"]);
    let work = machine.path("work");
    git(&work, &["clone", "-q", origin.to_str().unwrap(), "."]);
    head
}

#[test]
fn the_head_is_fetched_as_objects_and_nothing_is_checked_out() {
    let fetch = step("templates/kvgate-post.yml", "Fetch the commit that was measured, as objects");
    let real =
        String::from_utf8(Command::new("which").arg("git").output().unwrap().stdout).unwrap();
    // a server that gives no commit by name, as well as one that does
    for refuses in ["false", "[[ \"$*\" =~ ^fetch.*[0-9a-f]{40}$ ]]"] {
        let machine = Machine::new();
        let head = with_pull_request(&machine);
        machine.stand_in(
            "git",
            &format!("if {refuses}; then exit 128; fi; exec {} \"$@\"", real.trim()),
        );
        let work = machine.path("work");
        let before = git(&work, &["rev-parse", "HEAD"]);
        machine.run(&fetch, &[("HEAD_SHA", &head)]).exits(0).never_says("::warning::");
        assert_eq!(git(&work, &["cat-file", "-t", &head]), "commit");
        assert_eq!(git(&work, &["rev-parse", "HEAD"]), before);
        assert_eq!(std::fs::read_to_string(work.join("file")).unwrap(), "theirs");
        machine.run(&fetch, &[("HEAD_SHA", COMMIT)]).exits(0).says("::warning::").says(COMMIT);
    }
}

#[test]
fn a_run_without_results_is_posted_all_the_same() {
    let get = step("templates/kvgate-post.yml", "Get the results");
    let post = step("templates/kvgate-post.yml", "Judge by the policy that holds, and say it");
    let machine = Machine::new();
    machine.stand_in("gh", "exit 1");
    machine.run(&get, &[("RUN_ID", "42")]).exits(0).says("::warning::run 42 left no artifact");
    machine.stand_in("kvgate", "exit 4");
    machine.run(&post, &[("WORKFLOW", "kvgate")]).exits(4);
    let results = machine.path("temp/kvgate-results");
    let results = results.display();
    assert_eq!(
        machine.calls(),
        [
            format!("gh [run] [download] [42] [--name] [kvgate-results] [--dir] [{results}]"),
            format!("kvgate [post] [--context] [kvgate] [--id] [kvgate] [{results}/results.json]"),
        ]
    );
}

/// Inputs of the action, each with its standard value.
fn choose(machine: &Machine, inputs: &[(&str, &str)]) -> Ran {
    let mut environment = vec![
        ("VERSION", "1.2.3"),
        ("SHA256", ""),
        ("VARIANT", "cpu"),
        ("REPOSITORY", "org/kvgate"),
        ("BUILD", "false"),
        ("REVISION", ""),
        ("SOURCE", ""),
        ("RUNNER_OS", "Linux"),
        ("RUNNER_ARCH", "X64"),
    ];
    environment.extend(inputs);
    let _ = std::fs::remove_file(machine.path("OUTPUT"));
    machine.run(&read("actions/kvgate/choose"), &environment)
}

#[test]
fn what_is_installed_is_what_was_asked_for() {
    let machine = Machine::new();
    choose(&machine, &[]).exits(0);
    let chosen = machine.text("OUTPUT");
    let archive = "archive=kvgate-1.2.3-x86_64-unknown-linux-gnu.tar.gz\n";
    assert!(chosen.contains(archive), "{chosen}");
    let from = "from=https://github.com/org/kvgate/releases/download/v1.2.3\n";
    assert!(chosen.contains(from), "{chosen}");
    choose(&machine, &[("VARIANT", "cuda")]).exits(0);
    assert!(machine.text("OUTPUT").contains("linux-gnu-cuda.tar.gz"));
    choose(&machine, &[("RUNNER_OS", "macOS"), ("RUNNER_ARCH", "ARM64")]).exits(0);
    assert!(machine.text("OUTPUT").contains("aarch64-apple-darwin"));
    choose(&machine, &[("BUILD", "true"), ("REVISION", COMMIT)]).exits(0);
    assert!(machine.text("OUTPUT").contains(&format!("revision={COMMIT}\n")));
    choose(&machine, &[("BUILD", "true")]).exits(0);
    assert!(machine.text("OUTPUT").contains("revision=v1.2.3\n"));
    for (inputs, said) in [
        (("VERSION", ""), "which release?"),
        (("VERSION", "1.2.3\nkey=x"), "is not a version"),
        (("VERSION", "../../1"), "is not a version"),
        (("SHA256", "abc"), "is not a SHA-256"),
        (("VARIANT", "rocm"), "is not a variant"),
        (("REPOSITORY", ""), "give the input repository"),
        (("REPOSITORY", "a/b/../c"), "is not a repository"),
        (("RUNNER_OS", "Windows"), "no release is made for Windows"),
    ] {
        choose(&machine, &[inputs]).exits(2).says("::error::").says(said);
    }
    let build = ("BUILD", "true");
    choose(&machine, &[build, ("REVISION", "--config=x")])
        .exits(2)
        .says("is not a commit or a tag");
    choose(&machine, &[build, ("SOURCE", "nowhere")]).exits(2).says("no Cargo.toml in nowhere");
}

/// A release with a program that says that it ran, and the hash of its archive.
fn release(machine: &Machine) -> String {
    let folder = machine.path("release");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("kvgate"), "#!/bin/sh\necho it runs\n").unwrap();
    let shell = "chmod +x kvgate && tar -czf a.tar.gz kvgate && rm kvgate && sha256sum a.tar.gz > SHA256SUMS";
    let done = Command::new("sh").current_dir(&folder).args(["-c", shell]).status().unwrap();
    assert!(done.success());
    let from = folder.display();
    let copy = format!("for last; do :; done; while [ \"$1\" != --output ]; do shift; done; cp '{from}'/\"${{last##*/}}\" \"$2\"");
    machine.stand_in("curl", &copy);
    machine.text("release/SHA256SUMS")[..64].to_owned()
}

fn install(machine: &Machine, sha256: &str) -> Ran {
    let (kept, bin) = (machine.path("temp/kept"), machine.path("temp/out"));
    let environment = [
        ("SHA256", sha256),
        ("FROM", "https://example.org/v1"),
        ("ARCHIVE", "a.tar.gz"),
        ("KEPT", kept.to_str().unwrap()),
        ("BIN", bin.to_str().unwrap()),
    ];
    machine.run(&read("actions/kvgate/install"), &environment)
}

#[test]
fn an_archive_is_unpacked_only_if_it_is_the_one_that_was_named() {
    let machine = Machine::new();
    let sha256 = release(&machine);
    let installed = || machine.path("temp/out/kvgate").exists();

    install(&machine, &"0".repeat(64)).exits(1).says("was expected: it is not installed");
    assert!(!installed());
    install(&machine, &sha256).exits(0).says("verified").never_says("::warning::");
    assert!(installed());
    assert!(machine.calls().iter().all(|call| call.contains("[--proto] [=https]")));

    // from the cache: not fetched again, verified again
    let calls = machine.calls().len();
    install(&machine, &sha256).exits(0);
    assert_eq!(machine.calls().len(), calls);
    std::fs::remove_file(machine.path("temp/out/kvgate")).unwrap();
    std::fs::write(machine.path("temp/kept/a.tar.gz"), "something else").unwrap();
    install(&machine, &sha256).exits(1);
    assert!(!installed());
}

#[test]
fn without_a_hash_the_list_of_the_release_counts_and_the_log_says_so() {
    let machine = Machine::new();
    let sha256 = release(&machine);
    install(&machine, "").exits(0).says("no sha256 was given").says(&sha256);
    let other = Machine::new();
    release(&other);
    std::fs::write(other.path("release/SHA256SUMS"), format!("{sha256}  b.tar.gz\n")).unwrap();
    install(&other, "").exits(1).says("does not name a.tar.gz");
    let gone = Machine::new();
    gone.stand_in("curl", "exit 22");
    install(&gone, &sha256).exits(1).says("https://example.org/v1/a.tar.gz cannot be fetched");
}

#[test]
fn a_build_takes_the_locked_versions_of_what_was_named() {
    let build = read("actions/kvgate/build");
    let machine = Machine::new();
    machine.stand_in("cargo", "");
    let run = |inputs: &[(&str, &str)]| {
        let standard = [
            ("SOURCE", ""),
            ("REVISION", ""),
            ("VARIANT", "cpu"),
            ("BIN", "/b/bin"),
            ("FROM", "https://h/o/k"),
        ];
        machine.run(&build, &[&standard[..], inputs].concat()).exits(0);
        machine.calls().pop().unwrap()
    };
    assert_eq!(run(&[("SOURCE", ".")]), "cargo [install] [--locked] [--root] [/b] [--path] [.]");
    assert_eq!(
        run(&[("REVISION", COMMIT), ("VARIANT", "cuda")]),
        format!("cargo [install] [--locked] [--root] [/b] [--git] [https://h/o/k] [--rev] [{COMMIT}] [kvgate] [--features] [cuda]")
    );
    assert_eq!(
        run(&[("REVISION", "v1.2.3")]),
        "cargo [install] [--locked] [--root] [/b] [--git] [https://h/o/k] [--tag] [v1.2.3] [kvgate]"
    );
}

#[test]
fn arguments_of_the_action_are_words_and_no_shell() {
    let run = step("actions/kvgate/action.yml", "Run");
    let machine = Machine::new();
    machine.stand_in("kvgate", "");
    let bin = machine.path("bin");
    let environment = [
        ("COMMAND", "run"),
        ("ARGS", "--model\na b\n$(touch hacked); `touch hacked`\n\n*\n"),
        ("BIN", bin.to_str().unwrap()),
    ];
    machine.run(&run, &environment).exits(0);
    assert_eq!(
        machine.calls(),
        ["kvgate [run] [--model] [a b] [$(touch hacked); `touch hacked`] [*]"]
    );
    assert!(!machine.path("work/hacked").exists());
    let path = step("actions/kvgate/action.yml", "Put it on PATH");
    machine.run(&path, &environment).exits(0);
    assert_eq!(machine.text("PATH"), format!("{}\n", bin.display()));
}
