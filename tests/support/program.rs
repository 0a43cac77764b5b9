//! Programs run in a model repository, away from the environment that the tests themselves run in.

use super::tiny::Repository;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

/// What a program did.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code; it said:\n{}\n{}", self.stdout, self.stderr);
        self
    }

    /// On either stream.
    #[track_caller]
    pub fn says(self, text: impl AsRef<str>) -> Self {
        let text = text.as_ref();
        let said = self.stdout.contains(text) || self.stderr.contains(text);
        assert!(said, "`{text}` was not said:\n{}\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub fn never_says(self, text: &str) -> Self {
        let said = self.stdout.contains(text) || self.stderr.contains(text);
        assert!(!said, "`{text}` was said:\n{}\n{}", self.stdout, self.stderr);
        self
    }
}

/// A program to be run in a repository: whatever tells it that it is on CI, under nextest, how insta
/// shall behave or where the hub is is taken away.
pub fn command(program: impl AsRef<OsStr>, repository: &Repository) -> Command {
    const OURS: [&str; 7] = ["KVGATE_", "GITHUB_", "INSTA_", "NEXTEST", "CARGO", "CLICOLOR", "HF_"];
    let is_ours = |name: &str| {
        ["CI", "TF_BUILD"].contains(&name)
            || OURS.iter().any(|prefix| name.starts_with(prefix))
            || name.to_ascii_lowercase().ends_with("_proxy")
    };
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if is_ours(&name.to_string_lossy()) {
            command.env_remove(&name);
        }
    }
    command.current_dir(repository.path("")).env("XDG_CACHE_HOME", repository.path("cache"));
    command
}

/// `kvgate` with arguments.
pub fn kvgate(repository: &Repository, arguments: &[&str]) -> Ran {
    kvgate_with(repository, arguments, &[])
}

/// The same with variables of the environment.
pub fn kvgate_with(repository: &Repository, arguments: &[&str], vars: &[(&str, &str)]) -> Ran {
    let program = Path::new(env!("CARGO_BIN_EXE_kvgate"));
    let mut command = command(program, repository);
    Ran::of(command.args(arguments).envs(vars.iter().copied()).output().unwrap())
}

/// A repository whose goldens have been accepted.
pub fn accepted() -> Repository {
    let repository = Repository::new();
    kvgate(&repository, &["run"]).exits(1).says("no golden yet");
    accept(&repository);
    repository
}

/// The same with prompts.
pub fn replayed() -> Repository {
    let repository = Repository::with_prompts();
    kvgate(&repository, &["run"]).exits(1).says("no golden yet");
    accept(&repository);
    repository
}

/// Accepts what was measured last.
#[track_caller]
pub fn accept(repository: &Repository) {
    kvgate(repository, &["accept", "kvgate-results/results.json"]).exits(0);
}
