//! Pull requests: which one a commit belongs to, and what people set at it.

use super::event::is_sha;
use super::{Client, Error, Source};
use serde::Deserialize;

const PERMISSION: &str = "pull-requests: read";

/// A pull request, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pull {
    /// Its number.
    pub number: u64,
    /// The commit that it proposes now.
    pub head: String,
    /// The branch that it is for.
    pub base_ref: String,
    /// The head of that branch when GitHub last looked: not the merge base.
    pub base: String,
    /// Its labels.
    pub labels: Vec<String>,
    /// Whether it is neither merged nor closed.
    pub is_open: bool,
    /// Whether it comes from another repository, or from one that is gone.
    pub is_fork: bool,
}

impl Pull {
    /// Whether it carries a label. GitHub's labels differ by more than case.
    #[must_use]
    pub fn has_label(&self, name: &str) -> bool {
        self.labels.iter().any(|label| label.to_lowercase() == name.to_lowercase())
    }
}

/// What a search by branch found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The pull request whose head is the commit.
    Pull(Pull),
    /// The branch's one pull request, which has another head by now.
    Moved(Pull),
    /// None that is open.
    None,
}

/// A pull request by its number.
///
/// # Errors
/// No such pull request, or no way to it.
pub fn get(client: &Client, number: u64) -> Result<Pull, Error> {
    let request = client.get(&["pulls", &number.to_string()], PERMISSION);
    let raw: Raw = client.parse(&request, &client.send(&request)?)?;
    raw.checked().map_err(|why| request.unusable(why))
}

/// The open pull request of a branch whose head is a commit: for `workflow_run`, which does not name
/// those of forks.
///
/// # Errors
/// [`Error::Ambiguous`] where there are several; no way to them.
pub fn find(client: &Client, source: &Source, head: &str) -> Result<Found, Error> {
    let branch = format!("{}:{}", source.owner, source.branch);
    let query = [("state", "open"), ("head", &branch[..]), ("per_page", "100")];
    let request = client.get(&["pulls"], PERMISSION).with_query(&query);
    let list: Vec<Raw> = client.parse(&request, &client.send(&request)?)?;
    // GitHub leaves out a filter that it cannot read
    let list = list.into_iter().filter(|raw| raw.is_of(source));
    let list: Result<Vec<Pull>, String> = list.map(Raw::checked).collect();
    let list = list.map_err(|why| request.unusable(why))?;
    let (mut here, mut moved): (Vec<_>, Vec<_>) = list.into_iter().partition(|p| p.head == head);
    match (here.len(), moved.len()) {
        (1, _) => Ok(Found::Pull(here.remove(0))),
        (0, 1) => Ok(Found::Moved(moved.remove(0))),
        (0, _) => Ok(Found::None),
        _ => {
            let numbers = here.iter().map(|pull| pull.number).collect();
            Err(Error::Ambiguous { head: head.into(), numbers })
        }
    }
}

#[derive(Deserialize)]
struct Raw {
    number: u64,
    state: String,
    labels: Vec<Label>,
    head: Side,
    base: Side,
}

#[derive(Deserialize)]
struct Label {
    name: String,
}

#[derive(Deserialize)]
struct Side {
    sha: String,
    #[serde(rename = "ref")]
    branch: String,
    repo: Option<Repo>,
}

#[derive(Deserialize)]
struct Repo {
    full_name: String,
}

impl Raw {
    fn is_of(&self, source: &Source) -> bool {
        let owner = self.head.repo.as_ref().and_then(|repo| repo.full_name.split('/').next());
        self.head.branch == source.branch
            && owner.is_some_and(|owner| owner.eq_ignore_ascii_case(&source.owner))
    }

    fn checked(self) -> Result<Pull, String> {
        if !is_sha(&self.head.sha) || !is_sha(&self.base.sha) {
            return Err("it names no commits".into());
        }
        let name = |side: &Side| side.repo.as_ref().map(|repo| repo.full_name.clone());
        let (head, base) = (name(&self.head), name(&self.base));
        Ok(Pull {
            number: self.number,
            is_open: self.state == "open",
            is_fork: head.is_none() || head != base,
            head: self.head.sha,
            base_ref: self.base.branch,
            base: self.base.sha,
            labels: self.labels.into_iter().map(|label| label.name).collect(),
        })
    }
}
