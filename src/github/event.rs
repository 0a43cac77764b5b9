//! What GitHub Actions tells a job: the environment, and the event that started it.

use super::error::one_line;
use super::Error;
use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};

/// The secret that requests are made with. Printing it shows nothing of it.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// A token, unless the text is blank.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Token(text.into()))
    }

    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("…")
    }
}

/// What GitHub Actions tells a job by environment variables.
#[derive(Debug, Clone)]
pub struct Environment {
    /// `GITHUB_API_URL`, without a slash at its end.
    pub api: String,
    /// `GITHUB_SERVER_URL`, for links.
    pub server: String,
    /// `GITHUB_GRAPHQL_URL`, or the address that belongs to `api`.
    pub graphql: String,
    /// `GITHUB_TOKEN`, or else `GH_TOKEN`.
    pub token: Option<Token>,
    /// `GITHUB_REPOSITORY`.
    pub repository: Option<Repository>,
    /// `GITHUB_EVENT_NAME`.
    pub event_name: Option<String>,
    /// `GITHUB_EVENT_PATH`.
    pub event_path: Option<PathBuf>,
    /// `GITHUB_SHA`. For `pull_request` it is a merge commit that GitHub made and that no branch has.
    pub sha: Option<String>,
    /// `GITHUB_RUN_ID` and `GITHUB_RUN_ATTEMPT`: the run that this process is part of.
    pub run: Option<Run>,
    /// `GITHUB_STEP_SUMMARY`: the file that the step's summary is appended to.
    pub step_summary: Option<PathBuf>,
}

impl Environment {
    /// Reads the environment through a lookup of its variables.
    ///
    /// # Errors
    /// A variable that is there and cannot be used.
    pub fn read(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let get = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        let url = |name: &str| get(name).map(|url| url.trim_end_matches('/').to_owned());
        let api = url("GITHUB_API_URL").unwrap_or_else(|| "https://api.github.com".into());
        let number = |name: &str| get(name).map(|text| numeric(name, &text)).transpose();
        let run = match (number("GITHUB_RUN_ID")?, number("GITHUB_RUN_ATTEMPT")?) {
            (Some(id), attempt) => Some(Run { id, attempt: attempt.unwrap_or(1) }),
            (None, _) => None,
        };
        Ok(Environment {
            server: url("GITHUB_SERVER_URL").unwrap_or_else(|| "https://github.com".into()),
            graphql: url("GITHUB_GRAPHQL_URL").unwrap_or_else(|| graphql_beside(&api)),
            api,
            token: get("GITHUB_TOKEN").or_else(|| get("GH_TOKEN")).and_then(|t| Token::new(&t)),
            repository: get("GITHUB_REPOSITORY")
                .map(|name| Repository::parse(&name))
                .transpose()?,
            event_name: get("GITHUB_EVENT_NAME"),
            event_path: get("GITHUB_EVENT_PATH").map(PathBuf::from),
            sha: get("GITHUB_SHA").map(|text| sha("GITHUB_SHA", &text)).transpose()?,
            run,
            step_summary: get("GITHUB_STEP_SUMMARY").map(PathBuf::from),
        })
    }

    /// The environment of this process.
    ///
    /// # Errors
    /// A variable that is there and cannot be used.
    pub fn of_process() -> Result<Self, Error> {
        Environment::read(&|name| std::env::var(name).ok())
    }
}

/// The address of GraphQL that belongs to that of the API. A GitHub Enterprise server has `/api/graphql` beside
/// `/api/v3`.
fn graphql_beside(api: &str) -> String {
    let base = api.strip_suffix("/v3").filter(|base| base.ends_with("/api")).unwrap_or(api);
    format!("{base}/graphql")
}

fn numeric(name: &str, text: &str) -> Result<u64, Error> {
    let text = text.trim();
    let error = || Error::Invalid(format!("{name}: `{}` is no number", one_line(text)));
    text.parse().map_err(|_| error())
}

/// The SHA of a commit: 40 or 64 hexadecimal digits.
fn sha(name: &str, text: &str) -> Result<String, Error> {
    if is_sha(text) {
        return Ok(text.to_ascii_lowercase());
    }
    let text = one_line(text);
    Err(Error::Invalid(format!("{name}: `{text}` is no commit: 40 or 64 hexadecimal digits are")))
}

pub(super) fn is_sha(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A repository at GitHub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// The account that it belongs to.
    pub owner: String,
    /// Its own name.
    pub name: String,
}

impl Repository {
    /// Parses `owner/name`.
    ///
    /// # Errors
    /// A text of another form, or with characters that no such name has.
    pub fn parse(full_name: &str) -> Result<Self, Error> {
        let is_name = |part: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            let is_folder = matches!(part, "." | "..");
            (1..=100).contains(&part.len()) && part.bytes().all(allowed) && !is_folder
        };
        match full_name.split_once('/') {
            Some((owner, name)) if is_name(owner) && is_name(name) => {
                Ok(Repository { owner: owner.into(), name: name.into() })
            }
            _ => Err(Error::Invalid(format!(
                "`{}` is no repository of GitHub: OWNER/NAME is",
                one_line(full_name)
            ))),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// A run of a workflow. Of two runs the larger is the newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    pub id: u64,
    /// Which attempt, from 1.
    pub attempt: u64,
}

/// What started a workflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A pull request was opened, or has new commits.
    PullRequest,
    /// A run of another workflow has ended.
    WorkflowRun,
    /// Commits were pushed.
    Push,
    /// A merge queue tests a group of pull requests.
    MergeGroup,
    /// The workflow's schedule started it.
    Schedule,
    /// Somebody started it by hand.
    WorkflowDispatch,
}

impl EventKind {
    const ALL: [(&'static str, EventKind); 6] = [
        ("pull_request", EventKind::PullRequest),
        ("workflow_run", EventKind::WorkflowRun),
        ("push", EventKind::Push),
        ("merge_group", EventKind::MergeGroup),
        ("schedule", EventKind::Schedule),
        ("workflow_dispatch", EventKind::WorkflowDispatch),
    ];

    fn parse(name: &str) -> Result<Self, Error> {
        let known = EventKind::ALL.iter().find(|(known, _)| *known == name);
        known.map(|(_, kind)| *kind).ok_or_else(|| {
            let known = EventKind::ALL.map(|(known, _)| known).join(", ");
            let name = one_line(name);
            Error::Invalid(format!("GITHUB_EVENT_NAME: `{name}` is none of {known}"))
        })
    }
}

/// The branch that a pull request proposes, which may be in a fork.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadBranch {
    /// The account whose repository the branch is in.
    pub owner: String,
    pub branch: String,
}

/// What started this workflow, and the commit and run that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    /// The repository that the workflow is in, which is never the fork.
    pub repository: Repository,
    /// The pull request, if the event has its number.
    pub pull: Option<u64>,
    /// The commit that was measured.
    pub head: String,
    /// The branch that the commit is to be merged into or was pushed to, without `refs/heads/`.
    pub base_ref: Option<String>,
    /// The head of that branch, which is not the merge base.
    pub base: Option<String>,
    /// For `workflow_run`, the branch that was measured. None if its repository is gone.
    pub head_branch: Option<HeadBranch>,
    /// The name of the event that started the run that measured. For `workflow_run` that is another run.
    pub trigger: String,
    /// The run that measured. For `workflow_run` it is not the one that this process is part of.
    pub run: Run,
    /// Whether the commit comes from another repository, or from one that is gone.
    pub is_fork: bool,
    /// The repository's default branch, if the event names it.
    pub default_branch: Option<String>,
}

/// The most bytes of an event that are read. GitHub's events have 25 MB at most.
const LARGEST: u64 = 32 << 20;

impl Event {
    /// Whether its commit is accepted already: it is on the default branch, or in the merge queue. A run that
    /// somebody starts on another branch proposes what is on that branch, so it is not.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let is_default = |branch: &String| Some(branch) == self.default_branch.as_ref();
        match (self.kind, &self.head_branch) {
            _ if self.pull.is_some() || self.trigger == "pull_request" => false,
            _ if self.trigger == "merge_group" => true,
            (EventKind::WorkflowRun, Some(head)) => !self.is_fork && is_default(&head.branch),
            (EventKind::WorkflowRun, None) => false,
            _ => self.base_ref.as_ref().is_none_or(is_default),
        }
    }

    /// Reads the file that `GITHUB_EVENT_PATH` names.
    ///
    /// # Errors
    /// A file that cannot be read, an event that lacks something, or one of a kind that is not known here.
    pub fn read(path: &Path, environment: &Environment) -> Result<Self, Error> {
        let error = |why: String| Error::Invalid(format!("event {}: {why}", path.display()));
        let file = std::fs::File::open(path).map_err(|why| error(why.to_string()))?;
        let file = std::io::Read::take(file, LARGEST);
        let payload = serde_json::from_reader(std::io::BufReader::new(file));
        Event::parse(&payload.map_err(|why| error(why.to_string()))?, environment)
    }

    /// Reads the payload of an event, which is what such a file holds.
    ///
    /// # Errors
    /// An event that lacks something, or of a kind that is not known here.
    pub fn parse(payload: &Value, environment: &Environment) -> Result<Self, Error> {
        let name = environment.event_name.as_deref().ok_or_else(|| lacks("GITHUB_EVENT_NAME"))?;
        let event = Event {
            kind: EventKind::parse(name)?,
            repository: repository(payload, environment)?,
            pull: None,
            head: String::new(),
            base_ref: None,
            base: None,
            head_branch: None,
            trigger: name.into(),
            run: environment.run.ok_or_else(|| lacks("GITHUB_RUN_ID"))?,
            is_fork: false,
            default_branch: Payload(payload).find("repository.default_branch").map(Into::into),
        };
        let payload = Payload(payload);
        match event.kind {
            EventKind::PullRequest => event.pull_request(payload),
            EventKind::WorkflowRun => event.workflow_run(payload),
            EventKind::Push => event.push(payload),
            EventKind::MergeGroup => event.merge_group(payload),
            EventKind::Schedule | EventKind::WorkflowDispatch => {
                let head = environment.sha.clone().ok_or_else(|| lacks("GITHUB_SHA"))?;
                let base_ref = payload.find("ref").map(branch);
                Ok(Event { head, base_ref, ..event })
            }
        }
    }

    fn pull_request(self, payload: Payload) -> Result<Self, Error> {
        let head_repository = payload.find("pull_request.head.repo.full_name");
        Ok(Event {
            pull: Some(payload.number("pull_request.number")?),
            head: payload.sha("pull_request.head.sha")?,
            base_ref: Some(payload.text("pull_request.base.ref")?.into()),
            base: Some(payload.sha("pull_request.base.sha")?),
            is_fork: self.is_elsewhere(head_repository),
            ..self
        })
    }

    fn workflow_run(self, payload: Payload) -> Result<Self, Error> {
        let owner = payload.find("workflow_run.head_repository.owner.login");
        let branch = payload.find("workflow_run.head_branch");
        let head_branch = owner
            .zip(branch)
            .map(|(owner, branch)| HeadBranch { owner: owner.into(), branch: branch.into() });
        let head_repository = payload.find("workflow_run.head_repository.full_name");
        Ok(Event {
            head: payload.sha("workflow_run.head_sha")?,
            head_branch,
            trigger: payload.text("workflow_run.event")?.into(),
            run: Run {
                id: payload.number("workflow_run.id")?,
                attempt: payload.number("workflow_run.run_attempt")?,
            },
            is_fork: self.is_elsewhere(head_repository),
            ..self
        })
    }

    fn push(self, payload: Payload) -> Result<Self, Error> {
        let head = payload.sha("after")?;
        if is_no_commit(&head) {
            return Err(Error::Invalid("event: the push deletes its branch".into()));
        }
        let before = Some(payload.sha("before")?).filter(|sha| !is_no_commit(sha));
        let base_ref = Some(branch(payload.text("ref")?));
        Ok(Event { head, base_ref, base: before, ..self })
    }

    fn merge_group(self, payload: Payload) -> Result<Self, Error> {
        Ok(Event {
            head: payload.sha("merge_group.head_sha")?,
            base_ref: Some(branch(payload.text("merge_group.base_ref")?)),
            base: Some(payload.sha("merge_group.base_sha")?),
            ..self
        })
    }

    fn is_elsewhere(&self, head_repository: Option<&str>) -> bool {
        let own = self.repository.to_string();
        !head_repository.is_some_and(|name| name.eq_ignore_ascii_case(&own))
    }

    /// The page of the run that measured, where its artifacts are.
    #[must_use]
    pub fn run_url(&self, environment: &Environment) -> String {
        let Run { id, attempt } = self.run;
        let server = &environment.server;
        format!("{server}/{}/actions/runs/{id}/attempts/{attempt}", self.repository)
    }
}

fn lacks(what: &str) -> Error {
    Error::Invalid(format!("{what} is not set: `post` runs in a job of GitHub Actions"))
}

/// The repository of the environment. If the event names one, too, both must be the same.
fn repository(payload: &Value, environment: &Environment) -> Result<Repository, Error> {
    let said = Payload(payload).find("repository.full_name").map(Repository::parse).transpose()?;
    match (&environment.repository, said) {
        (Some(own), Some(said)) if !own.to_string().eq_ignore_ascii_case(&said.to_string()) => {
            Err(Error::Invalid(format!("the event is of {said}, GITHUB_REPOSITORY is {own}")))
        }
        (Some(own), _) => Ok(own.clone()),
        (None, Some(said)) => Ok(said),
        (None, None) => Err(lacks("GITHUB_REPOSITORY")),
    }
}

/// Whether a SHA is all zeros, by which Git says that there is no commit.
fn is_no_commit(sha: &str) -> bool {
    sha.bytes().all(|byte| byte == b'0')
}

fn branch(name: &str) -> String {
    name.strip_prefix("refs/heads/").unwrap_or(name).into()
}

/// An event's JSON, read by the dotted names of GitHub's documentation.
#[derive(Clone, Copy)]
struct Payload<'a>(&'a Value);

impl<'a> Payload<'a> {
    fn value(self, name: &str) -> Option<&'a Value> {
        name.split('.').try_fold(self.0, |value, key| value.get(key))
    }

    fn find(self, name: &str) -> Option<&'a str> {
        self.value(name)?.as_str()
    }

    fn text(self, name: &str) -> Result<&'a str, Error> {
        self.find(name).ok_or_else(|| Error::Invalid(format!("event: it has no text `{name}`")))
    }

    fn number(self, name: &str) -> Result<u64, Error> {
        let number = self.value(name).and_then(Value::as_u64);
        number.ok_or_else(|| Error::Invalid(format!("event: it has no number `{name}`")))
    }

    fn sha(self, name: &str) -> Result<String, Error> {
        sha(&format!("event: `{name}`"), self.text(name)?)
    }
}
