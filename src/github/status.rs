//! What stands beside a commit: a status, which every token may set, or a check run, which only an
//! app's may.

use super::error::prefix;
use super::event::is_sha;
use super::{Client, Error};
use crate::text;
use serde_json::json;

/// Bytes of a context: protection rules name it whole.
const CONTEXT: usize = 255;
/// Characters of a description.
const DESCRIPTION: usize = 140;
/// Bytes of a check run's summary.
const SUMMARY: usize = 65_535;
/// Bytes of a check run's title.
const TITLE: usize = 255;

/// What is said of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It may be merged.
    Success,
    /// It may not.
    Failure,
    /// It could not be told.
    Error,
    /// It is not known yet.
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
    /// What it says.
    pub state: State,
    /// The same in words; cut at 140 characters.
    pub description: &'a str,
    /// Where to read more.
    pub target_url: Option<&'a str>,
}

/// Sets a commit status.
///
/// # Errors
/// GitHub's refusal, or no way to it; a name that is too long.
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
    // twice the same is once
    client.send(&client.post(&["statuses", sha], "statuses: write", body))?;
    Ok(())
}

/// A check run.
#[derive(Debug, Clone)]
pub struct CheckRun<'a> {
    /// Its name, which a branch's protection can require.
    pub name: &'a str,
    /// What it says; [`State::Pending`] is one that goes on.
    pub state: State,
    /// The verdict in a line.
    pub title: &'a str,
    /// The report, as Markdown; cut at 65,535 bytes.
    pub summary: &'a str,
    /// Where to read more.
    pub details_url: Option<&'a str>,
}

/// Makes a check run. One that is made twice, because the first answer was lost, says the same twice:
/// GitHub shows the newest.
///
/// # Errors
/// GitHub's refusal, or no way to it; a name that is too long.
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
    match (1..=CONTEXT).contains(&context.len())
        && context.chars().all(|c| c != '\n' && text::is_shown(c))
    {
        true => Ok(()),
        false => Err(Error::Invalid(format!(
            "a status's context has 1 to {CONTEXT} bytes on one line, this has {}",
            context.len()
        ))),
    }
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
