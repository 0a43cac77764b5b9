//! GitHub: the event that started a job, the pull request that it is about, and what is written there.
//!
//! It knows nothing of reports: it is given texts and small values, and sends them by GitHub's rules. What GitHub
//! answers is bounded in size, what other people wrote there is never taken for an instruction, and the token is
//! sent to one server only and is part of no message.
//!
//! [`GitHub`] does all of it for one job. The modules can be used one by one as well.

pub mod annotations;
mod client;
pub mod comment;
mod error;
mod event;
pub mod pull;
pub mod status;
pub mod summary;

pub use annotations::Annotation;
pub use client::{Client, Clock, SystemClock};
pub use comment::{Comment, Mode, Published, Reason, Sticky};
pub use error::Error;
pub use event::{Environment, Event, EventKind, HeadBranch, Repository, Run, Token};
pub use pull::{Found, Pull};
pub use status::{CheckRun, State, Status};

/// GitHub as one job sees it: its event, and a client for its repository.
#[derive(Debug)]
pub struct GitHub {
    client: Client,
    event: Event,
    run_url: String,
}

impl GitHub {
    /// Reads the job's event and makes a client.
    ///
    /// # Errors
    /// What the environment or the event lacks.
    pub fn new(environment: &Environment, clock: Box<dyn Clock>) -> Result<Self, Error> {
        let path = environment.event_path.as_deref().ok_or_else(|| {
            Error::Invalid("GITHUB_EVENT_PATH is not set: this runs in GitHub Actions".into())
        })?;
        let event = Event::read(path, environment)?;
        let client = Client::new(environment, &event.repository, clock)?;
        let run_url = event.run_url(environment);
        Ok(GitHub { client, event, run_url })
    }

    /// What started the job.
    #[must_use]
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// The page of the run that measured.
    #[must_use]
    pub fn run_url(&self) -> &str {
        &self.run_url
    }

    /// The pull request that the event is about, as it is now. A `workflow_run` is about the pull request whose
    /// head it measured, no matter who started the run: otherwise somebody could start one by hand on the branch
    /// of a pull request, and it would be judged by another policy and posted there.
    ///
    /// # Errors
    /// [`Error::Ambiguous`], a refusal by GitHub, or no answer.
    pub fn pull(&self) -> Result<Found, Error> {
        let Event { head, head_branch, trigger, .. } = &self.event;
        if let Some(number) = self.event.pull {
            let pull = pull::get(&self.client, number)?;
            let is_current = pull.head == *head;
            return Ok(if is_current { Found::Pull(pull) } else { Found::Moved(pull) });
        }
        match head_branch {
            Some(branch) if trigger != "merge_group" => pull::find(&self.client, branch, head),
            _ => Ok(Found::None),
        }
    }

    /// What a comment about this event's commit and run says of itself.
    #[must_use]
    pub fn sticky(&self, id: &str, hash: &str) -> Sticky {
        let Event { head, run, .. } = &self.event;
        Sticky { id: id.into(), run: *run, head: head.clone(), hash: hash.into() }
    }

    /// Publishes a comment, see [`comment::publish`].
    ///
    /// # Errors
    /// A refusal by GitHub, or no answer.
    pub fn comment(&self, pull: u64, comment: &Comment) -> Result<Published, Error> {
        comment::publish(&self.client, pull, comment)
    }

    /// Sets a status on the event's commit, see [`status::set`].
    ///
    /// # Errors
    /// A refusal by GitHub, or no answer.
    pub fn status(&self, status: &Status) -> Result<(), Error> {
        status::set(&self.client, &self.event.head, status)
    }

    /// Makes a check run on the event's commit, see [`status::check_run`].
    ///
    /// # Errors
    /// A refusal by GitHub, or no answer.
    pub fn check_run(&self, run: &CheckRun) -> Result<(), Error> {
        status::check_run(&self.client, &self.event.head, run)
    }
}
