//! Test data that several modules share.

use std::path::Path;
use std::process::Command;

pub mod fixture;
#[allow(dead_code)] // integration tests use the rest
#[path = "../../tests/support/tiny.rs"]
pub mod tiny;

/// The variable that tells a [`child`] its folder.
pub(crate) const ROOT: &str = "KVGATE_TEST_ROOT";

/// A process that runs one ignored test of this binary in a folder of its own. insta reads its environment once in a
/// process, so each of its settings needs a process. It gets none from the process that runs now.
pub(crate) fn child(test: &str, root: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]);
    for (name, _) in std::env::vars_os() {
        if name == "CI" || name == "TF_BUILD" || name.to_string_lossy().starts_with("INSTA_") {
            command.env_remove(name);
        }
    }
    command.env(ROOT, root);
    command
}
