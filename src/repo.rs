//! The repository that a policy lives in.

use std::path::Path;

/// The commit that a run is about: the pull request's head where GitHub Actions tells it (its checkout
/// is a merge commit that nobody has), the repository's head otherwise.
#[must_use]
pub fn head(folder: &Path) -> Option<String> {
    event_head().or_else(|| repository_head(folder))
}

fn event_head() -> Option<String> {
    let event = std::fs::read(std::env::var_os("GITHUB_EVENT_PATH")?).ok()?;
    let event: serde_json::Value = serde_json::from_slice(&event).ok()?;
    event["pull_request"]["head"]["sha"].as_str().map(Into::into)
}

#[cfg(feature = "git")]
fn repository_head(folder: &Path) -> Option<String> {
    let repository = git2::Repository::discover(folder).ok()?;
    let head = repository.head().ok()?.peel_to_commit().ok()?;
    Some(head.id().to_string())
}

#[cfg(not(feature = "git"))]
fn repository_head(_: &Path) -> Option<String> {
    None
}
