//! What tests of the program share: repositories, and servers on this machine.

#[cfg(feature = "git")]
pub mod environment;
#[cfg(feature = "git")]
pub mod git;
#[cfg(feature = "github")]
pub mod github;
#[cfg(all(unix, feature = "hub"))]
pub mod hub;
#[path = "../../support/program.rs"]
pub mod program;
#[path = "../../support/tiny.rs"]
pub mod tiny;

use std::path::Path;

/// The folder of kvgate's own repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
