//! The sticky comment: a pull request has one for each id. It is found by its marker and its author, is edited in
//! place, and is never overwritten by an older run.

use super::client::{Failure, Request};
use super::error::prefix;
use super::event::is_sha;
use super::{pull, Client, Error, Run};
use crate::text;
use serde::Deserialize;
use serde_json::json;

/// The most bytes of a comment, its marker included. GitHub's limit is 65,536; whether it counts bytes or characters
/// is not documented.
pub const LONGEST: usize = 60_000;
/// The most bytes when GitHub has refused a comment as too long.
const SHRUNK: usize = 30_000;
const PERMISSION: &str = "pull-requests: write";

/// What a comment says of itself in its last two lines, which readers do not see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sticky {
    /// Which of a pull request's comments: letters, digits, `-`, `_` and `.`.
    pub id: String,
    /// The run that measured.
    pub run: Run,
    /// The commit that was measured.
    pub head: String,
    /// SHA-256 of what is reported, by which a run sees that there is nothing new to say.
    pub hash: String,
}

impl Sticky {
    fn check(&self) -> Result<(), Error> {
        let is_id = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        // a comment of HTML ends at `--`
        let id = (1..=64).contains(&self.id.len())
            && self.id.bytes().all(is_id)
            && !self.id.contains("--");
        let hash = self.hash.len() == 64 && is_sha(&self.hash);
        if id && hash && is_sha(&self.head) {
            Ok(())
        } else {
            Err(Error::Invalid(format!("no marker can be made of {self:?}")))
        }
    }

    fn marker(id: &str) -> String {
        format!("<!-- kvgate:v1 id={id} -->")
    }

    /// The last two lines of the comment.
    fn lines(&self) -> String {
        let Sticky { id, run, head, hash } = self;
        let marker = Sticky::marker(id);
        let Run { id, attempt } = run;
        format!(
            "{marker}\n<!-- kvgate-data: run={id} attempt={attempt} head={head} hash={hash} -->"
        )
    }

    /// Reads a comment's last two lines. None if they are not exactly as [`Sticky::lines`] writes them, or of
    /// another id.
    fn parse(body: &str, id: &str) -> Option<Self> {
        let mut lines = body.trim_end().lines().rev();
        let (last, marker) = (lines.next()?, lines.next()?);
        let data = last.strip_prefix("<!-- kvgate-data: run=")?.strip_suffix(" -->")?;
        let (run, data) = data.split_once(" attempt=")?;
        let (attempt, data) = data.split_once(" head=")?;
        let (head, hash) = data.split_once(" hash=")?;
        let run = Run { id: run.parse().ok()?, attempt: attempt.parse().ok()? };
        let found = Sticky { id: id.into(), run, head: head.into(), hash: hash.into() };
        found.check().ok()?;
        let is_so = found.lines().lines().eq([marker, last]);
        is_so.then_some(found)
    }
}

/// When a comment is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// When the report has changed, but not before there is something red to report.
    #[default]
    OnChange,
    /// Whenever the report has changed.
    Always,
    /// Never.
    Never,
}

/// A comment that is to be published.
pub struct Comment<'a> {
    /// What it says of itself.
    pub sticky: &'a Sticky,
    /// When to write it.
    pub mode: Mode,
    /// Whether nothing is red. [`Mode::OnChange`] makes no new comment then.
    pub is_green: bool,
    /// Makes its text, of so many bytes at most.
    pub body: &'a dyn Fn(usize) -> String,
}

impl Comment<'_> {
    /// The text with its marker, of so many bytes at most.
    fn text(&self, longest: usize) -> String {
        let lines = self.sticky.lines();
        let room = longest.saturating_sub(lines.len() + "\n\n".len());
        let body = (self.body)(room);
        let body = text::plain(&body);
        let body = prefix(&body, room).trim_end();
        format!("{body}\n\n{lines}")
    }
}

/// What became of a comment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// A new one was made.
    Created,
    /// The old one was edited.
    Updated,
    /// The old one says the same already.
    Unchanged,
    /// Nothing was written.
    Skipped(Reason),
}

/// Why no comment was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// [`Mode::Never`].
    Never,
    /// [`Mode::OnChange`], nothing is red, and there is no older comment that says otherwise.
    NothingToSay,
    /// The pull request has another head by now.
    HeadMoved,
    /// A newer run about the same commit has written it already.
    NewerRun,
}

/// A comment of ours.
#[derive(Debug)]
struct Existing {
    id: u64,
    sticky: Sticky,
}

/// What to do with the comment.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Create,
    Update(u64),
    Leave(Published),
}

/// Writes a comment at a pull request, or edits it in place.
///
/// Everything that the decision depends on is read again before each try: while this run waited, the head may have
/// moved, another run may have written, or the write whose answer was lost may have succeeded. Nobody else's comment
/// is ever touched.
///
/// # Errors
/// A refusal by GitHub, or no answer.
pub fn publish(client: &Client, pull: u64, comment: &Comment) -> Result<Published, Error> {
    comment.sticky.check()?;
    if comment.mode == Mode::Never {
        return Ok(Published::Skipped(Reason::Never));
    }
    let mut viewer = None;
    let mut longest = LONGEST;
    let mut written = None;
    let mut tries = 0;
    loop {
        if pull::get(client, pull)?.head != comment.sticky.head {
            return Ok(Published::Skipped(Reason::HeadMoved));
        }
        let viewer = match &mut viewer {
            Some(viewer) => viewer,
            none => none.insert(client.viewer()?),
        };
        let existing = existing(client, pull, viewer, &comment.sticky.id)?;
        let is_own = existing.as_ref().is_some_and(|found| found.sticky == *comment.sticky);
        let text = |longest| json!({ "body": comment.text(longest) });
        let (request, done) = match decide(existing.as_ref(), comment) {
            // an earlier write of this run succeeded, and only its answer was lost
            Decision::Leave(Published::Unchanged) if is_own => {
                return Ok(written.unwrap_or(Published::Unchanged));
            }
            Decision::Leave(left) => return Ok(left),
            Decision::Create => (create(client, pull, text(longest)), Published::Created),
            Decision::Update(id) => (update(client, id, text(longest)), Published::Updated),
        };
        let failure = match client.once(&request) {
            Ok(_) => return Ok(done),
            Err(failure) => failure,
        };
        written = Some(done);
        tries += 1;
        if failure.is(422) && longest == LONGEST {
            longest = SHRUNK;
        } else if !(is_gone(&failure, done) && tries < 3) {
            client.wait(&request, failure, tries)?;
        }
    }
}

/// Whether somebody has deleted the comment meanwhile.
fn is_gone(failure: &Failure, done: Published) -> bool {
    done == Published::Updated && (failure.is(404) || failure.is(410))
}

fn create(client: &Client, pull: u64, body: serde_json::Value) -> Request {
    client.post(&["issues", &pull.to_string(), "comments"], PERMISSION, body)
}

fn update(client: &Client, id: u64, body: serde_json::Value) -> Request {
    client.patch(&["issues", "comments", &id.to_string()], PERMISSION, body)
}

fn decide(existing: Option<&Existing>, comment: &Comment) -> Decision {
    let own = comment.sticky;
    let Some(Existing { id, sticky: old }) = existing else {
        if comment.mode == Mode::OnChange && comment.is_green {
            return Decision::Leave(Published::Skipped(Reason::NothingToSay));
        }
        return Decision::Create;
    };
    let is_about_this = old.head == own.head;
    if is_about_this && old.hash == own.hash {
        Decision::Leave(Published::Unchanged)
    } else if is_about_this && old.run > own.run {
        Decision::Leave(Published::Skipped(Reason::NewerRun))
    } else {
        Decision::Update(*id)
    }
}

#[derive(Deserialize)]
struct Raw {
    id: u64,
    body: Option<String>,
    user: Option<User>,
}

#[derive(Deserialize)]
struct User {
    login: String,
}

/// Our comment, by author and marker.
fn existing(client: &Client, pull: u64, viewer: &str, id: &str) -> Result<Option<Existing>, Error> {
    let first = client.get(&["issues", &pull.to_string(), "comments"], PERMISSION);
    client.find(first.with_query(&[("per_page", "100")]), |raw: Raw| {
        let is_own = raw.user.is_some_and(|user| is_same(viewer, &user.login));
        let sticky = Sticky::parse(&raw.body?, id).filter(|_| is_own)?;
        Some(Existing { id: raw.id, sticky })
    })
}

/// Whether an author is the token's account. The name of an app ends in `[bot]` in one of GitHub's APIs and may lack
/// that in the other. A person may have the name of an app without the suffix, and is somebody else.
fn is_same(viewer: &str, author: &str) -> bool {
    let bot = "[bot]";
    let plain = |login: &str| login.strip_suffix(bot).unwrap_or(login).to_lowercase();
    let is_person = viewer.ends_with(bot) && !author.ends_with(bot);
    plain(viewer) == plain(author) && !is_person
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sticky(run: u64, attempt: u64) -> Sticky {
        let run = Run { id: run, attempt };
        Sticky { id: "main".into(), run, head: "a".repeat(40), hash: "b".repeat(64) }
    }

    fn comment(sticky: &Sticky, mode: Mode, is_green: bool) -> Comment<'_> {
        Comment { sticky, mode, is_green, body: &|room| "é".repeat(room) }
    }

    #[test]
    fn markers_come_back_as_they_were_written() {
        let sticky = sticky(7, 2);
        let text = comment(&sticky, Mode::Always, true).text(1000);
        assert_eq!(Sticky::parse(&text, "main"), Some(sticky.clone()));
        assert_eq!(Sticky::parse(&text.replace('\n', "\r\n"), "main"), Some(sticky.clone()));
        assert_eq!(Sticky::parse(&format!("{text}\n \n"), "main"), Some(sticky));
    }

    #[test]
    fn what_is_nearly_a_marker_is_none() {
        let text = format!("x\n\n{}", sticky(7, 2).lines());
        assert!(Sticky::parse(&text, "main").is_some());
        for (from, to) in [
            ("id=main", "id=main2"),
            ("v1", "v2"),
            ("run=7", "run=+7"),
            ("run=7", "run=07"),
            ("run=7", "run=18446744073709551616"),
            ("attempt=2 ", "attempt=2  "),
            ("head=a", "head="),
            ("hash=b", "hash=g"),
            ("<!-- kvgate:", "> <!-- kvgate:"),
        ] {
            assert!(text.contains(from));
            assert_eq!(Sticky::parse(&text.replace(from, to), "main"), None, "{to}");
        }
        assert_eq!(Sticky::parse(&format!("{text}\nthanks"), "main"), None);
        assert_eq!(Sticky::parse("", "main"), None);
    }

    #[test]
    fn an_id_cannot_end_a_marker() {
        for id in ["", "a b", "-->", "a--b", "é", &"x".repeat(65)] {
            assert!(Sticky { id: id.into(), ..sticky(1, 1) }.check().is_err(), "{id}");
        }
    }

    #[test]
    fn a_text_keeps_its_bounds_and_its_marker() {
        let sticky = sticky(7, 2);
        for longest in [LONGEST, SHRUNK, 1001] {
            let long =
                Comment { body: &|room| "é".repeat(room), ..comment(&sticky, Mode::Always, true) };
            let text = long.text(longest);
            assert!(text.len() <= longest && text.len() + 2 >= longest, "{}", text.len());
            assert_eq!(Sticky::parse(&text, "main").as_ref(), Some(&sticky));
        }
    }

    #[test]
    fn decisions() {
        let own = sticky(5, 2);
        let other_hash = |run, attempt| Sticky { hash: "c".repeat(64), ..sticky(run, attempt) };
        let other_head = |run| Sticky { head: "d".repeat(40), ..sticky(run, 1) };
        let decide = |old: Option<Sticky>, mode, is_green| {
            let existing = old.map(|sticky| Existing { id: 9, sticky });
            decide(existing.as_ref(), &comment(&own, mode, is_green))
        };
        let left = |reason| Decision::Leave(Published::Skipped(reason));
        assert_eq!(decide(None, Mode::Always, true), Decision::Create);
        assert_eq!(decide(None, Mode::OnChange, false), Decision::Create);
        assert_eq!(decide(None, Mode::OnChange, true), left(Reason::NothingToSay));
        for is_green in [true, false] {
            let decide = |old| decide(Some(old), Mode::OnChange, is_green);
            assert_eq!(decide(sticky(1, 1)), Decision::Leave(Published::Unchanged));
            assert_eq!(decide(other_hash(5, 1)), Decision::Update(9));
            assert_eq!(decide(other_hash(5, 2)), Decision::Update(9));
            assert_eq!(decide(other_hash(4, 9)), Decision::Update(9));
            assert_eq!(decide(other_hash(5, 3)), left(Reason::NewerRun));
            assert_eq!(decide(other_hash(6, 1)), left(Reason::NewerRun));
            // the head is the pull request's now: what is newer about another is out of date
            assert_eq!(decide(other_head(6)), Decision::Update(9));
        }
    }

    #[test]
    fn authors() {
        assert!(is_same("github-actions[bot]", "github-actions[bot]"));
        assert!(is_same("github-actions", "github-actions[bot]"));
        assert!(is_same("octocat", "Octocat"));
        assert!(!is_same("github-actions[bot]", "github-actions"));
        assert!(!is_same("github-actions[bot]", "octocat"));
    }
}
