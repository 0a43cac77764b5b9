//! GitHub: the event that started a job, the pull request that it is about, and what is written there.
//!
//! It knows nothing of reports: texts and small values come in, and go out by GitHub's rules. What
//! GitHub sends is bounded, what others wrote is no instruction, and the token goes to one server and
//! into no text.
//!
//! [`GitHub`] is the whole of it for one job; its parts can be had one by one.

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
pub use event::{Environment, Event, EventKind, Repository, Run, Source, Token};
pub use pull::{Found, Pull};
pub use status::{CheckRun, State, Status};

/// One job's way to GitHub.
#[derive(Debug)]
pub struct GitHub {
    client: Client,
    event: Event,
    run_url: String,
}

impl GitHub {
    /// Of a job's environment.
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

    /// The pull request that the event is about, as it is now. A `workflow_run` is about the one whose head
    /// it measured, whoever started it: a run that somebody starts on a branch must not speak for its pull
    /// request by another policy.
    ///
    /// # Errors
    /// [`Error::Ambiguous`], GitHub's refusal, or no way to it.
    pub fn pull(&self) -> Result<Found, Error> {
        let Event { head, source, trigger, .. } = &self.event;
        if let Some(number) = self.event.pull {
            let pull = pull::get(&self.client, number)?;
            return Ok(match pull.head == *head {
                true => Found::Pull(pull),
                false => Found::Moved(pull),
            });
        }
        match source {
            Some(source) if trigger != "merge_group" => pull::find(&self.client, source, head),
            _ => Ok(Found::None),
        }
    }

    /// The marker of a comment about this event's commit and run.
    #[must_use]
    pub fn sticky(&self, id: &str, hash: &str) -> Sticky {
        let Event { head, run, .. } = &self.event;
        Sticky { id: id.into(), run: *run, head: head.clone(), hash: hash.into() }
    }

    /// [`comment::publish`].
    ///
    /// # Errors
    /// GitHub's refusal, or no way to it.
    pub fn comment(&self, pull: u64, comment: &Comment) -> Result<Published, Error> {
        comment::publish(&self.client, pull, comment)
    }

    /// [`status::set`] on the event's commit.
    ///
    /// # Errors
    /// GitHub's refusal, or no way to it.
    pub fn status(&self, status: &Status) -> Result<(), Error> {
        status::set(&self.client, &self.event.head, status)
    }

    /// [`status::check_run`] on the event's commit.
    ///
    /// # Errors
    /// GitHub's refusal, or no way to it.
    pub fn check_run(&self, run: &CheckRun) -> Result<(), Error> {
        status::check_run(&self.client, &self.event.head, run)
    }
}
