//! Pull requests: which one a commit belongs to, and which labels it carries.

use super::event::is_sha;
use super::{Client, Error, HeadBranch};
use serde::Deserialize;

const PERMISSION: &str = "pull-requests: read";

/// A pull request, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pull {
    pub number: u64,
    /// The commit that it proposes now.
    pub head: String,
    /// The branch that it is to be merged into.
    pub base_ref: String,
    /// The head of that branch when GitHub last looked, which is not the merge base.
    pub base: String,
    pub labels: Vec<String>,
    /// Whether it is neither merged nor closed.
    pub is_open: bool,
}

impl Pull {
    /// Whether it carries a label. Two labels of GitHub cannot differ in case alone, so case does not count.
    #[must_use]
    pub fn has_label(&self, name: &str) -> bool {
        self.labels.iter().any(|label| label.to_lowercase() == name.to_lowercase())
    }
}

/// What looking for the pull request of a commit found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The pull request whose head is the commit.
    Pull(Pull),
    /// The only pull request of the branch. It has another head by now.
    Moved(Pull),
    /// There is none that is open.
    None,
}

/// Reads a pull request by its number.
///
/// # Errors
/// No such pull request, a refusal by GitHub, or no answer.
pub fn get(client: &Client, number: u64) -> Result<Pull, Error> {
    let request = client.get(&["pulls", &number.to_string()], PERMISSION);
    let raw: Raw = client.parse(&request, &client.send(&request)?)?;
    raw.checked().map_err(|why| request.unusable(why))
}

/// Looks for the open pull request of a branch whose head is a commit. `workflow_run` needs it, because that event
/// does not name the pull requests of forks.
///
/// # Errors
/// [`Error::Ambiguous`] where there are several, a refusal by GitHub, or no answer.
pub fn find(client: &Client, from: &HeadBranch, head: &str) -> Result<Found, Error> {
    let branch = format!("{}:{}", from.owner, from.branch);
    let query = [("state", "open"), ("head", &branch[..]), ("per_page", "100")];
    let request = client.get(&["pulls"], PERMISSION).with_query(&query);
    let list: Vec<Raw> = client.parse(&request, &client.send(&request)?)?;
    // GitHub ignores a filter that it cannot read, and then lists all
    let list = list.into_iter().filter(|raw| raw.is_from(from));
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
    head: RawBranch,
    base: RawBranch,
}

#[derive(Deserialize)]
struct Label {
    name: String,
}

#[derive(Deserialize)]
struct RawBranch {
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
    fn is_from(&self, head: &HeadBranch) -> bool {
        let owner = self.head.repo.as_ref().and_then(|repo| repo.full_name.split('/').next());
        self.head.branch == head.branch
            && owner.is_some_and(|owner| owner.eq_ignore_ascii_case(&head.owner))
    }

    /// The pull request, or what its answer lacks.
    fn checked(self) -> Result<Pull, String> {
        if !is_sha(&self.head.sha) || !is_sha(&self.base.sha) {
            return Err("it names no commits".into());
        }
        Ok(Pull {
            number: self.number,
            is_open: self.state == "open",
            head: self.head.sha,
            base_ref: self.base.branch,
            base: self.base.sha,
            labels: self.labels.into_iter().map(|label| label.name).collect(),
        })
    }
}
