//! The verdict on a commit: a status, which every token may set, or a check run, which only the token of an app
//! may make.

use super::error::prefix;
use super::event::is_sha;
use super::{Client, Error};
use crate::text;
use serde_json::json;

/// The most bytes of a context. It is never cut, because protection rules name it whole.
const CONTEXT: usize = 255;
/// The most characters of a description.
const DESCRIPTION: usize = 140;
/// The most bytes of a check run's summary.
const SUMMARY: usize = 65_535;
/// The most bytes of a check run's title.
const TITLE: usize = 255;

/// The verdict on a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It may be merged.
    Success,
    /// It may not be merged.
    Failure,
    /// The verdict could not be found.
    Error,
    /// The verdict is not known yet.
    Pending,
}

impl State {
    fn status(self) -> &'static str {
        match self {
            State::Success => "success",
            State::Failure => "failure",
            State::Error => "error",
            State::Pending => "pending",
        }
    }
}

/// A commit status.
#[derive(Debug, Clone)]
pub struct Status<'a> {
    /// Its name, which a branch's protection can require.
    pub context: &'a str,
    /// The verdict.
    pub state: State,
    /// The verdict in words, which are cut at 140 characters.
    pub description: &'a str,
    /// Where to read more.
    pub target_url: Option<&'a str>,
}

/// Sets a commit status.
///
/// # Errors
/// A name that is too long, a refusal by GitHub, or no answer.
pub fn set(client: &Client, sha: &str, status: &Status) -> Result<(), Error> {
    check(sha, status.context)?;
    let mut body = json!({
        "state": status.state.status(),
        "context": status.context,
        "description": characters(&text::line(status.description, DESCRIPTION), DESCRIPTION),
    });
    if let Some(url) = status.target_url {
        body["target_url"] = url.into();
    }
    // setting it twice does no harm, so it may be sent again
    client.send(&client.post(&["statuses", sha], "statuses: write", body))?;
    Ok(())
}

/// A check run.
#[derive(Debug, Clone)]
pub struct CheckRun<'a> {
    /// Its name, which a branch's protection can require.
    pub name: &'a str,
    /// The verdict. With [`State::Pending`] the check run is in progress.
    pub state: State,
    /// The verdict in a line.
    pub title: &'a str,
    /// The report as Markdown, which is cut at 65,535 bytes.
    pub summary: &'a str,
    /// Where to read more.
    pub details_url: Option<&'a str>,
}

/// Makes a check run. If the answer is lost it is made twice; both say the same, and GitHub shows the newer one.
///
/// # Errors
/// A name that is too long, a refusal by GitHub, or no answer.
pub fn check_run(client: &Client, sha: &str, run: &CheckRun) -> Result<(), Error> {
    check(sha, run.name)?;
    let mut body = json!({
        "name": run.name,
        "head_sha": sha,
        "output": {
            "title": bytes(&text::line(run.title, TITLE), TITLE),
            "summary": bytes(&text::plain(run.summary), SUMMARY),
        },
    });
    let conclusion = match run.state {
        State::Success => Some("success"),
        State::Failure | State::Error => Some("failure"),
        State::Pending => None,
    };
    match conclusion {
        Some(conclusion) => {
            body["status"] = "completed".into();
            body["conclusion"] = conclusion.into();
        }
        None => body["status"] = "in_progress".into(),
    }
    if let Some(url) = run.details_url {
        body["details_url"] = url.into();
    }
    client.send(&client.post(&["check-runs"], "checks: write", body))?;
    Ok(())
}

fn check(sha: &str, context: &str) -> Result<(), Error> {
    if !is_sha(sha) {
        return Err(Error::Invalid(format!("`{}` is no commit", text::name(sha))));
    }
    let is_line = context.chars().all(|c| c != '\n' && text::is_shown(c));
    if is_line && (1..=CONTEXT).contains(&context.len()) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "a status's context has 1 to {CONTEXT} bytes on one line, this has {}",
        context.len()
    )))
}

fn characters(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.into(),
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
    }
}

fn bytes(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.into();
    }
    format!("{}…", prefix(text, most - '…'.len_utf8()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_by_what_github_counts() {
        let (fits, long) = ("é".repeat(140), "é".repeat(141));
        assert_eq!(characters(&fits, 140), fits);
        assert_eq!(characters(&long, 140), "é".repeat(139) + "…");
        assert_eq!(bytes("éé", 4), "éé");
        assert_eq!(bytes("ééx", 4), "…");
        assert_eq!(bytes(&"x".repeat(9), 8), "xxxxx…");
    }

    #[test]
    fn a_context_is_whole_or_refused() {
        let sha = "a".repeat(40);
        assert!(check(&sha, &"x".repeat(255)).is_ok());
        for context in [&"x".repeat(256), "", "a\nb"] {
            assert!(check(&sha, context).is_err());
        }
        assert!(check("HEAD", "kvgate").is_err());
    }
}
