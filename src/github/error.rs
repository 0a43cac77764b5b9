//! What can go wrong at GitHub, and what to do about it.

use crate::text;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Why something was not done at GitHub. No message contains the token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The environment, the event or an argument cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// No answer came to any of the tries.
    #[error("{request}: no answer: {why}")]
    Unreachable {
        /// Method and path.
        request: String,
        /// What the connection said.
        why: String,
    },
    /// GitHub refused the request.
    #[error("{request}: GitHub answered {status}: {message}{mend}")]
    Refused {
        /// Method and path.
        request: String,
        /// The HTTP status.
        status: u16,
        /// GitHub's words, escaped and cut.
        message: String,
        /// The line that the job's `permissions:` may lack.
        permission: Option<&'static str>,
        /// What to do about it, with `: ` before it, or nothing.
        mend: String,
    },
    /// GitHub asks to wait for longer than a job can.
    #[error("{request}: GitHub answered {status}: {message}: try again {}", when(*at, *wait))]
    Limited {
        /// Method and path.
        request: String,
        /// The HTTP status.
        status: u16,
        /// GitHub's words, escaped and cut.
        message: String,
        /// How long to wait.
        wait: Duration,
        /// When that is over.
        at: SystemTime,
    },
    /// GitHub's answer is not what its documentation promises.
    #[error("{request}: the answer cannot be used: {why}")]
    Answer {
        /// Method and path.
        request: String,
        /// What is wrong with it.
        why: String,
    },
    /// Several open pull requests propose the same commit to different branches.
    #[error(
        "{head} is the head of {}: which one is meant cannot be told; close all but one",
        list(numbers)
    )]
    Ambiguous {
        /// The commit.
        head: String,
        /// The pull requests.
        numbers: Vec<u64>,
    },
}

impl Error {
    /// The line that the job's `permissions:` may lack, as `pull-requests: write`.
    #[must_use]
    pub fn permission(&self) -> Option<&'static str> {
        match self {
            Error::Refused { permission, .. } => *permission,
            _ => None,
        }
    }
}

fn list(numbers: &[u64]) -> String {
    let numbers: Vec<_> = numbers.iter().map(|number| format!("#{number}")).collect();
    numbers.join(" and ")
}

fn when(at: SystemTime, wait: Duration) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (hour, minute) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("in {} (after {hour:02}:{minute:02} UTC)", indicatif::HumanDuration(wait))
}

/// The most bytes of GitHub's words that an error repeats.
const WORDS: usize = 400;

/// The beginning of a text, of so many bytes at most, that ends between two characters.
pub(super) fn prefix(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// Somebody else's text as part of one line of a log: cut, and without control characters, which could start a
/// workflow command.
pub(super) fn one_line(text: &str) -> String {
    let start = prefix(text, WORDS);
    let mut line = text::plain(start).replace('\n', "\\n").replace('\t', "\\t");
    if start.len() < text.len() {
        line.push('…');
    }
    line
}

/// What to do about a refusal.
pub(super) fn mend(status: u16, message: &str, permission: &str) -> String {
    let says = |words: &str| message.to_lowercase().contains(words);
    let line = format!("add `{permission}` to the job's `permissions:`");
    match status {
        401 => ": the token is not accepted: it is of another server, or has expired".into(),
        403 if says("via a github app") => {
            ": only an app's token may do this, as the job's own GITHUB_TOKEN is: use that, or do \
             without the check run"
                .into()
        }
        403 if says("locked") => ": unlock the conversation, or leave it at the status".into(),
        403 if says("not accessible by integration") => format!(
            ": the token is read-only here: {line}; runs of `pull_request` from a fork or by \
             Dependabot get a read-only token whatever is written there: post from a \
             `workflow_run` workflow"
        ),
        403 | 404 if says("personal access token") => {
            format!(": the personal access token lacks the permission `{permission}`")
        }
        403 => format!(": {line}"),
        404 => format!(": it is not there, or the token may not see it: {line}"),
        300..=399 => ": the repository has moved: use its new name".into(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_stay_on_their_line_and_are_cut() {
        assert_eq!(one_line("a\r\n::error::b\u{1b}[m"), r"a\r\n::error::b\u{1b}[m");
        for c in text::HOSTILE {
            assert!(!one_line(&format!("a{c}b")).contains(c), "{c:?}");
        }
        let long = one_line(&"é".repeat(5000));
        assert!(long.len() <= WORDS + '…'.len_utf8() && long.ends_with('…'), "{}", long.len());
    }

    #[test]
    fn a_limit_says_when_it_is_over() {
        let at = UNIX_EPOCH + Duration::from_secs(1_700_000_000); // 22:13:20 UTC
        let told = when(at, Duration::from_secs(3600));
        assert_eq!(told, "in 60 minutes (after 22:13 UTC)");
    }

    #[test]
    fn a_refusal_names_the_permission_only_where_one_would_help() {
        let mend = |status, message| mend(status, message, "checks: write");
        assert!(mend(403, "Resource not accessible by integration").contains("from a fork"));
        assert!(mend(403, "Forbidden").contains("add `checks: write`"));
        assert!(mend(404, "Not Found").contains("add `checks: write`"));
        for (status, message) in [(401, "Bad credentials"), (500, "Oops"), (301, "Moved")] {
            assert!(!mend(status, message).contains("checks: write"), "{status}");
        }
        let app = "You must authenticate via a GitHub App.";
        assert!(!mend(403, app).contains("checks: write"));
    }
}
