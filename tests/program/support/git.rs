//! Real repositories, made by git itself, away from whatever is configured here.

use super::environment;
use std::cell::Cell;
use std::path::PathBuf;
use std::process::Command;

/// A folder that git works in.
pub struct Git {
    pub folder: PathBuf,
    /// Commits are a minute apart, so that one of them is the youngest.
    pub minutes: Cell<u64>,
}

impl Git {
    pub fn at(folder: PathBuf) -> Git {
        environment::settle();
        std::fs::create_dir_all(&folder).unwrap();
        Git { folder, minutes: Cell::new(0) }
    }

    /// What git prints.
    #[track_caller]
    pub fn run(&self, arguments: &str) -> String {
        self.minutes.set(self.minutes.get() + 1);
        let date = format!("{} +0000", 1_700_000_000 + 60 * self.minutes.get());
        let mut git = Command::new("git");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("GIT_") {
                git.env_remove(name);
            }
        }
        for (name, value) in [
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_AUTHOR_NAME", "A"),
            ("GIT_AUTHOR_EMAIL", "a@example.org"),
            ("GIT_COMMITTER_NAME", "C"),
            ("GIT_COMMITTER_EMAIL", "c@example.org"),
            ("GIT_AUTHOR_DATE", &date),
            ("GIT_COMMITTER_DATE", &date),
        ] {
            git.env(name, value);
        }
        let settings = ["-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always"];
        let ran = git.args(settings).args(arguments.split(' ')).current_dir(&self.folder).output();
        let ran = ran.expect("git is there");
        assert!(ran.status.success(), "git {arguments}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap().trim().to_owned()
    }

    pub fn put(&self, path: &str, text: &str) {
        let path = self.folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn edit(&self, path: &str, old: &str, new: &str) {
        let text = std::fs::read_to_string(self.folder.join(path)).unwrap();
        assert!(text.contains(old), "{path} holds no `{old}`");
        self.put(path, &text.replace(old, new));
    }

    /// Commits all there is; its hash.
    pub fn commit(&self, message: &str) -> String {
        self.run("add --all");
        self.run(&format!("commit --quiet --allow-empty --message {message}"));
        self.run("rev-parse HEAD")
    }
}
