//! A proposed change: the policy and the goldens that hold, those that it proposes, and what they make of the
//! results of a run that it may have written itself.
//!
//! Limits are judged by the policy that holds, at the merge base, unless people allowed another; a change
//! must not be judged by what it loosened. Goldens are those of the change: people review them. What gates
//! less than before is a finding of its own.

pub mod changed;
pub mod weakened;

use crate::files::folder_of;
use crate::judge::{self, Judge};
use crate::measure::prompts::documents;
use crate::policy::{Cell, ModelPolicy, Policy};
use crate::proposal::changed::{touched, untracked, untracked_at, Touched, Untracked};
use crate::repo::{Files, Folder, RepoError, Repository};
use crate::report::{Links, Report};
use crate::results::case::CaseKind;
use crate::results::measured_by::MeasuredBy;
use crate::results::{CaseResult, Finding, Measurement, PolicyFile, Results};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use weakened::{goldens_removed, text_sizes, Weakened};

/// Why results cannot be judged as a proposal.
#[derive(Debug, thiserror::Error)]
pub enum ProposalError {
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepoError),
    /// The policy lies elsewhere.
    #[error("{} is not in the repository {}: run this where the policy is", config.display(), repository.display())]
    Outside {
        /// The policy.
        config: PathBuf,
        /// The repository.
        repository: PathBuf,
    },
    /// There is nothing to judge by.
    #[error("there is no {} at {base}, and none is proposed; `--config FILE` names another", config.display())]
    NoPolicy {
        /// The policy.
        config: PathBuf,
        /// The merge base.
        base: String,
    },
    /// The policy that holds is damaged.
    #[error("{} at {base}, which holds, cannot be used:\n{problem}", config.display())]
    Policy {
        /// The policy.
        config: PathBuf,
        /// The merge base.
        base: String,
        /// Every finding.
        problem: String,
    },
}

/// What is proposed, beside what holds.
pub struct Proposal<'r> {
    repository: &'r Repository,
    /// The policy as it is named to people.
    config: PathBuf,
    /// Commit of what holds.
    base: String,
    /// Commit that is proposed, or that the working tree is at.
    head: Option<String>,
    /// Whether it is the commit itself.
    is_commit: bool,
    /// What holds.
    old: Box<dyn Files + 'r>,
    /// What is proposed.
    new: Box<dyn Files + 'r>,
    /// Paths that differ, from the repository's root, and the policy's folder seen from there.
    changes: Vec<crate::repo::FileChange>,
    folder: PathBuf,
    /// Whether all models must be there, whatever has changed.
    pub whole: bool,
}

/// Cells of a policy that are judged at all: it may be a stranger's.
const MOST_CELLS: usize = 2_000;

/// The policies of both sides.
struct Policies {
    old: Option<Policy>,
    new: Option<Policy>,
    /// Whether it is the new one that is not there.
    is_gone: bool,
    findings: Vec<Finding>,
}

impl<'r> Proposal<'r> {
    /// What `head` proposes to `target`, against where they parted. Without `head`, what the working tree
    /// proposes.
    ///
    /// # Errors
    /// A revision or history that this clone does not have, a policy outside of it.
    pub fn open(
        repository: &'r Repository,
        config: &Path,
        target: &str,
        head: Option<&str>,
    ) -> Result<Self, ProposalError> {
        let folder = folder_of(config);
        let outside = || ProposalError::Outside {
            config: config.into(),
            repository: repository.workdir().into(),
        };
        let within = repository.relative(folder).ok_or_else(outside)?;
        let base = repository.merge_base(head.unwrap_or("HEAD"), target)?;
        let seen = |revision: &str| repository.tree(revision).map(|tree| tree.seen_from(&within));
        let old = Box::new(seen(&base)?);
        let (new, changes): (Box<dyn Files + 'r>, _) = match head {
            Some(head) => (Box::new(seen(head)?), repository.changed_paths(&base, head)?),
            None => {
                let files = Folder::new(folder, repository.workdir())?;
                (Box::new(files), repository.changed_in_workdir(&base)?)
            }
        };
        let is_commit = head.is_some();
        let head = head.map(Into::into).or_else(|| repository.head().ok());
        let (config, folder) = (config.to_owned(), within);
        Ok(Proposal {
            repository,
            config,
            base,
            head,
            is_commit,
            old,
            new,
            changes,
            folder,
            whole: false,
        })
    }

    /// Judges results. `is_allowed` says that people let the change loosen the policy.
    ///
    /// # Errors
    /// No policy on either side, or one that holds and is damaged.
    pub fn judge(
        &self,
        mut results: Results,
        by: MeasuredBy,
        is_allowed: bool,
    ) -> Result<Report, ProposalError> {
        let Policies { old, new, is_gone, mut findings } = self.policies(is_allowed)?;
        let mut replaced = Vec::new();
        if let (Some(old), Some(new)) = (&old, &new) {
            findings.extend(self.weakened(old, new, is_allowed)?);
            replaced = self.texts_replaced(old, is_allowed);
        }
        findings.extend(self.of_another_commit(&results));
        let known = |name: &str| {
            let policies = [&old, &new].into_iter().flatten();
            policies.flat_map(|policy| &policy.models).any(|model| model.name == name)
        };
        findings.extend(unknown(&mut results, known));

        let judged_by = match (old, new) {
            (Some(old), Some(new)) if !is_allowed => vec![measured_as(old, &new), new],
            (_, Some(new)) => vec![new],
            (Some(_), None) if is_allowed && is_gone => Vec::new(),
            (Some(old), None) => vec![old],
            (None, None) => return Err(self.no_policy()),
        };
        (results.policy, results.cases, results.findings) = (None, Vec::new(), findings);
        self.judge_by(&judged_by, &mut results, by, replaced)?;
        let links = Links { base: Some(self.base.clone()), ..Links::default() };
        Ok(Report { results, links })
    }

    /// Judges by all of some policies; what must be there is known by the last.
    fn judge_by(
        &self,
        policies: &[Policy],
        results: &mut Results,
        by: MeasuredBy,
        replaced: Vec<Finding>,
    ) -> Result<(), RepoError> {
        let Some(last) = policies.last() else { return Ok(()) };
        let touched = match self.whole || !replaced.is_empty() {
            true => Touched::All("all is asked for".into()),
            false => {
                let untracked = self.untracked(last)?;
                touched(last, &self.folder, &self.changes).with(last, &untracked)
            }
        };
        results.findings.extend(replaced);
        results.not_needed = left_out(last, results, &touched);
        results.policy = Some(PolicyFile {
            path: self.config.display().to_string(),
            sha256: last.sha256.clone(),
        });
        for policy in policies {
            let cases = self.cases(policy, results, by, &touched);
            add(&mut results.cases, cases);
        }
        Ok(())
    }

    /// Models of which the commits do not say whether they changed.
    fn untracked(&self, policy: &Policy) -> Result<Untracked, RepoError> {
        match &self.head {
            Some(head) if self.is_commit => {
                untracked_at(policy, self.repository, head, &self.folder)
            }
            _ => untracked(policy, self.repository),
        }
    }

    fn no_policy(&self) -> ProposalError {
        ProposalError::NoPolicy { config: self.config.clone(), base: self.base.clone() }
    }

    /// The policies of both sides. One that is proposed and damaged is a finding: it may be a stranger's.
    fn policies(&self, is_allowed: bool) -> Result<Policies, ProposalError> {
        let name = Path::new(self.config.file_name().unwrap_or_default());
        let parse = |bytes: Vec<u8>| {
            let parsed = Policy::parse(&String::from_utf8_lossy(&bytes), &self.config);
            let (policy, _) = parsed.map_err(|error| error.to_string())?;
            let cells: usize = policy.models.iter().map(|model| model.cells.len()).sum();
            match cells > MOST_CELLS {
                true => Err(format!(
                    "{cells} schemes of models, more than the {MOST_CELLS} that are judged"
                )),
                false => Ok(policy),
            }
        };
        let read = |files: &dyn Files| files.read(name).map(|bytes| bytes.map(parse));
        let damaged = |problem: String| ProposalError::Policy {
            config: self.config.clone(),
            base: self.base.clone(),
            problem,
        };
        let old = read(&*self.old)?.transpose().map_err(damaged)?;
        let mut findings = Vec::new();
        let read_new = read(&*self.new)?;
        let is_gone = read_new.is_none();
        let new = match read_new {
            Some(Ok(policy)) => Some(policy),
            Some(Err(problem)) => {
                findings.push(self.finding("policy::invalid", problem));
                None
            }
            None if old.is_some() => {
                let message = "the policy is gone: nothing would be gated any more".into();
                let finding = self.finding("policy::weakened", message);
                findings.push(Finding { is_red: !is_allowed, ..finding });
                None
            }
            None => None,
        };
        Ok(Policies { old, new, is_gone, findings })
    }

    fn finding(&self, name: &str, message: String) -> Finding {
        let place = Some(self.config.display().to_string());
        Finding { name: name.into(), place, message, is_red: true }
    }

    fn weakened(
        &self,
        old: &Policy,
        new: &Policy,
        is_allowed: bool,
    ) -> Result<Vec<Finding>, RepoError> {
        let mut list = weakened::weakened(old, new, &text_sizes(new, &*self.old, &*self.new));
        list.extend(goldens_removed(new, &*self.old, &*self.new)?);
        Ok(list.iter().map(|weakened| finding(weakened, is_allowed)).collect())
    }

    /// Results name the commit that they were measured at, and that must be the one that is proposed.
    fn of_another_commit(&self, results: &Results) -> Option<Finding> {
        let head = self.head.as_ref()?;
        let theirs = results.head.as_deref().unwrap_or("none");
        (theirs != head).then(|| Finding {
            name: "results::other_commit".into(),
            place: None,
            message: format!("these results are of commit {theirs}, and {head} is proposed"),
            // goldens of a working tree are accepted in a commit after the one that was measured
            is_red: self.is_commit,
        })
    }

    /// What a policy makes of results; changes are against the goldens that hold.
    fn cases(
        &self,
        policy: &Policy,
        results: &Results,
        by: MeasuredBy,
        touched: &Touched,
    ) -> Vec<CaseResult> {
        let read = |files: &dyn Files, path: &Path| -> Result<Option<String>, String> {
            let bytes = files.read(path).map_err(|error| error.to_string())?;
            Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
        };
        let mut cases = Judge {
            policy,
            goldens: &|path| read(&*self.new, path),
            by,
            is_needed: &|model| touched.contains(&model.name),
            fault: &|model, measurement| self.of_another_text(model, measurement, by),
        }
        .cases(results);
        let moved = |model: &ModelPolicy, cell: &Cell| {
            judge::changes(model, cell, by, results, &|path| read(&*self.old, path))
        };
        for model in &policy.models {
            for cell in &model.cells {
                let name = model.case(cell, CaseKind::Golden).to_string();
                if let Some(case) = cases.iter_mut().find(|case| case.case == name) {
                    case.changes = moved(model, cell);
                }
            }
        }
        cases
    }

    /// A file that a policy names, as both sides read it: from the policy's folder.
    fn within<'p>(&self, path: &'p Path) -> &'p Path {
        path.strip_prefix(self.config.parent().unwrap_or(Path::new(""))).unwrap_or(path)
    }

    /// Texts that schemes were measured on and that are others now. What an easier text hides cannot be seen
    /// in its size, so people say that it is meant; one that is shorter or gone is found with the policy.
    fn texts_replaced(&self, old: &Policy, is_allowed: bool) -> Vec<Finding> {
        let texts = old.models.iter().flat_map(|model| {
            model.corpus.iter().chain(model.generate.as_ref().map(|prompts| &prompts.file))
        });
        let texts: BTreeSet<PathBuf> = texts.map(|path| self.within(path).into()).collect();
        let documents = texts.iter().flat_map(|path| {
            let text = self.old.read(path).ok().flatten().unwrap_or_default();
            let documents = documents(&String::from_utf8_lossy(&text));
            documents.into_iter().map(|document| folder_of(path).join(document))
        });
        let texts: BTreeSet<PathBuf> = documents.chain(texts.iter().cloned()).collect();
        let is_replaced = |path: &PathBuf| {
            let [old, new] = [&self.old, &self.new].map(|files| files.sha256(path));
            // not there is another finding, and not readable is no text that was measured on
            !matches!((&old, &new), (Ok(None), _) | (_, Ok(None))) && old != new
        };
        let finding = |path: PathBuf| Finding {
            name: "policy::weakened".into(),
            place: Some(path.display().to_string()),
            message: "another text to measure on: what it hides cannot be seen in a number".into(),
            is_red: !is_allowed,
        };
        texts.into_iter().filter(is_replaced).map(finding).collect()
    }

    /// Measured on another text than what is proposed. A text that is not in the repository is not known
    /// here, and goldens hold its hash.
    fn of_another_text(
        &self,
        model: &ModelPolicy,
        measurement: &Measurement,
        by: MeasuredBy,
    ) -> Option<String> {
        if by != MeasuredBy::Kvgate {
            return None; // their logs do not name it
        }
        let measured = &measurement.conditions.corpus;
        if measured.len() != model.corpus.len() {
            let (theirs, ours) = (measured.len(), model.corpus.len());
            return Some(format!("it was measured on {theirs} texts, and the policy names {ours}"));
        }
        let mut corpus = model.corpus.iter().zip(measured.iter().map(|file| &file.sha256));
        corpus.find_map(|(path, measured)| {
            let path = self.within(path);
            match self.new.sha256(path) {
                Ok(None) => None,
                Ok(Some(proposed)) if proposed == *measured => None,
                Ok(Some(_)) => {
                    Some(format!("it was measured on another {} than is proposed", path.display()))
                }
                Err(error) => Some(format!("what it was measured on cannot be compared: {error}")),
            }
        })
    }
}

fn finding(weakened: &Weakened, is_allowed: bool) -> Finding {
    let Weakened { place, what, old, new, .. } = weakened;
    Finding {
        name: "policy::weakened".into(),
        place: Some(place.to_string()),
        message: format!("{what}: {old} → {new} ({})", weakened.reach()),
        is_red: !is_allowed,
    }
}

/// The policy that holds, with the way of measuring of the one that is proposed: results were measured so,
/// and measuring less is a finding of its own.
fn measured_as(mut old: Policy, new: &Policy) -> Policy {
    for model in &mut old.models {
        if let Some(new) = new.models.iter().find(|new| new.name == model.name) {
            let cells = std::mem::take(&mut model.cells);
            *model = ModelPolicy { cells, ..new.clone() };
        }
    }
    old
}

/// Measurements of models that no policy names are left out, and told.
fn unknown(results: &mut Results, known: impl Fn(&str) -> bool) -> Vec<Finding> {
    let (own, others): (Vec<_>, Vec<_>) =
        std::mem::take(&mut results.measurements).into_iter().partition(|m| known(&m.model));
    results.measurements = own;
    let names: BTreeSet<_> = others.iter().map(|measurement| &measurement.model).collect();
    let finding = |name| Finding {
        name: "results::unknown_model".into(),
        place: None,
        message: format!("no policy names `{name}`, which these results hold"),
        is_red: false,
    };
    names.into_iter().map(finding).collect()
}

/// Models that a change does not touch and that were not measured.
fn left_out(policy: &Policy, results: &Results, touched: &Touched) -> Vec<String> {
    let is_measured = |name: &str| results.measurements.iter().any(|m| m.model == name);
    let names = policy.models.iter().filter(|model| model.cells.iter().any(|cell| !cell.ignored));
    let names = names.map(|model| &model.name);
    names.filter(|name| !touched.contains(name) && !is_measured(name)).cloned().collect()
}

/// A case that two policies judge is red where one of them says so.
fn add(all: &mut Vec<CaseResult>, cases: Vec<CaseResult>) {
    for case in cases {
        match all.iter_mut().find(|known| known.case == case.case) {
            None => all.push(case),
            Some(known) if !known.verdict.is_red() && case.verdict.is_red() => *known = case,
            Some(known) if case.verdict.is_red() && known.message != case.message => {
                known.message += &format!("\nby the policy that is proposed:\n{}", case.message);
            }
            Some(_) => {}
        }
    }
}
