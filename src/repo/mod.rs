//! The repository that a policy lives in: its history, and files as they were or are.

mod error;
mod files;
#[cfg(feature = "git")]
mod repository;
#[cfg(feature = "git")]
mod tree;

pub use error::RepoError;
pub use files::{Files, Folder};
#[cfg(feature = "git")]
pub use repository::{FileChange, Repository};
#[cfg(feature = "git")]
pub use tree::Tree;

use std::path::Path;

/// The commit that a run is about. In a pull request's run on GitHub Actions it is the head of the pull request,
/// because what is checked out there is a temporary merge commit. Otherwise it is the head of the repository, or
/// without git the commit that Actions names.
#[must_use]
pub fn head(folder: &Path) -> Option<String> {
    event_head().or_else(|| repository_head(folder)).or_else(|| std::env::var("GITHUB_SHA").ok())
}

fn event_head() -> Option<String> {
    let event = std::fs::read(std::env::var_os("GITHUB_EVENT_PATH")?).ok()?;
    let event: serde_json::Value = serde_json::from_slice(&event).ok()?;
    event["pull_request"]["head"]["sha"].as_str().map(Into::into)
}

#[cfg(feature = "git")]
fn repository_head(folder: &Path) -> Option<String> {
    Repository::discover(folder).ok()?.head().ok()
}

#[cfg(not(feature = "git"))]
fn repository_head(_: &Path) -> Option<String> {
    None
}
