//! A proposed change, such as a pull request: the policy and the goldens that hold at the merge base, those that it
//! proposes, and what both make of the results of a run.
//!
//! A change must not be judged by what it loosened. So limits are judged by the policy that holds and by the
//! proposed one, unless people allow the change to loosen the policy, and whatever gates less than before is
//! a finding of its own. Goldens are the proposed ones, because people review them. Results may have been
//! written by the change itself, so nothing that they say of themselves counts.

pub mod changed;
pub mod weakened;

use crate::files::folder_of;
use crate::judge::{Demands, Judge};
use crate::measure::prompts::documents;
use crate::policy::{ModelPolicy, Policy, Retrieval};
use crate::proposal::changed::{touched, untracked, untracked_at, Touched, Untracked};
use crate::repo::{FileChange, Files, Folder, RepoError, Repository};
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
    #[error(transparent)]
    Repository(#[from] RepoError),
    /// The policy lies outside of the repository.
    #[error("{} is not in the repository {}: run this where the policy is", config.display(), repository.display())]
    Outside { config: PathBuf, repository: PathBuf },
    /// There is no policy to judge by.
    #[error("there is no {} at {base}, and none is proposed; `--config FILE` names another", config.display())]
    NoPolicy { config: PathBuf, base: String },
    /// The policy that holds is damaged.
    #[error("{} at {base}, which holds, cannot be used:\n{problem}", config.display())]
    Policy { config: PathBuf, base: String, problem: String },
}

/// Whether people let the change loosen the policy, for example by a label on the pull request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loosening {
    /// Every loosening is a red finding, and limits are judged by the policy that holds as well.
    Forbidden,
    /// Loosenings are shown, and only the proposed policy judges.
    Allowed,
}

/// A proposed change beside what holds at the merge base.
pub struct Proposal<'r> {
    repository: &'r Repository,
    /// The policy's path as people named it.
    config: PathBuf,
    /// The merge base: the commit of what holds.
    base: String,
    /// The proposed commit, or the one that the working tree was checked out from.
    head: Option<String>,
    /// Whether `head` itself is proposed, and not the working tree on top of it.
    is_commit: bool,
    /// The files that hold, seen from the policy's folder.
    old: Box<dyn Files + 'r>,
    /// The files that are proposed, seen from there as well.
    new: Box<dyn Files + 'r>,
    /// Files that differ, by their paths from the repository's root.
    changes: Vec<FileChange>,
    /// The policy's folder, from the repository's root.
    folder: PathBuf,
    /// Whether results must hold every model, whatever has changed.
    pub whole: bool,
    pub loosening: Loosening,
}

/// A policy with more cells is refused: it may be a stranger's, and judging it would take too long.
const MOST_CELLS: usize = 2_000;

/// The policy that holds and the one that is proposed.
struct Policies {
    old: Option<Policy>,
    /// None where it is damaged or not there.
    new: Option<Policy>,
    /// Whether the proposal has no policy at all.
    is_gone: bool,
    findings: Vec<Finding>,
}

impl<'r> Proposal<'r> {
    /// What `head` proposes to `target`, or what the working tree proposes if there is no `head`. It is
    /// compared with the merge base of both.
    ///
    /// # Errors
    /// This clone does not have a revision or its history, or the policy lies outside of it.
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
            loosening: Loosening::Forbidden,
        })
    }

    /// Judges results by what holds and by what is proposed.
    ///
    /// # Errors
    /// There is no policy on either side, or the one that holds is damaged.
    pub fn judge(&self, mut results: Results, by: MeasuredBy) -> Result<Report, ProposalError> {
        let Policies { old, new, is_gone, mut findings } = self.policies()?;
        let mut replaced = Vec::new();
        if let (Some(old), Some(new)) = (&old, &new) {
            findings.extend(self.loosenings(old, new)?);
            replaced = self.texts_replaced(old);
        }
        findings.extend(self.other_commit(&results));
        let is_known = |name: &str| {
            let policies = [&old, &new].into_iter().flatten();
            policies.flat_map(|policy| &policy.models).any(|model| model.name == name)
        };
        findings.extend(remove_unknown_models(&mut results, is_known));

        let judged_by = match (old, new) {
            (Some(old), Some(new)) if self.loosening == Loosening::Forbidden => {
                vec![measured_as(old, &new), new]
            }
            (_, Some(new)) => vec![new],
            (Some(_), None) if self.loosening == Loosening::Allowed && is_gone => Vec::new(),
            (Some(old), None) => vec![old],
            (None, None) => return Err(self.no_policy()),
        };
        (results.policy, results.cases, results.findings) = (None, Vec::new(), findings);
        self.judge_by(&judged_by, &mut results, by, replaced)?;
        let links = Links { base: Some(self.base.clone()), ..Links::default() };
        Ok(Report { results, links })
    }

    /// Judges results by each of the policies. The last of them says which models must be there.
    fn judge_by(
        &self,
        policies: &[Policy],
        results: &mut Results,
        by: MeasuredBy,
        replaced: Vec<Finding>,
    ) -> Result<(), RepoError> {
        let Some(last) = policies.last() else { return Ok(()) };
        let touched = if self.whole || !replaced.is_empty() {
            Touched::All("all is asked for".into())
        } else {
            let untracked = self.untracked(last)?;
            touched(last, &self.folder, &self.changes).with_untracked(last, &untracked)
        };
        results.findings.extend(replaced);
        results.not_needed = not_needed(last, results, &touched);
        results.policy = Some(PolicyFile {
            path: self.config.display().to_string(),
            sha256: last.sha256.clone(),
        });
        for policy in policies {
            let cases = self.cases(policy, results, by, &touched);
            add_cases(&mut results.cases, cases);
        }
        Ok(())
    }

    /// Models of which the commits cannot say whether they changed.
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

    /// Reads both policies. A damaged one that holds is an error. A damaged one that is proposed is a finding, because
    /// it may be a stranger's.
    fn policies(&self) -> Result<Policies, ProposalError> {
        let name = Path::new(self.config.file_name().unwrap_or_default());
        let read = |files: &dyn Files| {
            files.read(name).map(|bytes| bytes.map(|bytes| self.parse_policy(&bytes)))
        };
        let damaged = |problem: String| ProposalError::Policy {
            config: self.config.clone(),
            base: self.base.clone(),
            problem,
        };
        let old = read(&*self.old)?.transpose().map_err(damaged)?;
        let proposed = read(&*self.new)?;
        let is_gone = proposed.is_none();
        let mut findings = Vec::new();
        if is_gone && old.is_some() {
            let message = "the policy is gone: nothing would be gated any more".into();
            findings.push(self.loosening_at(self.config.display(), message));
        }
        let new = match proposed.transpose() {
            Ok(policy) => policy,
            Err(problem) => {
                findings.push(Finding {
                    name: "policy::invalid".into(),
                    place: Some(self.config.display().to_string()),
                    message: problem,
                    is_red: true,
                });
                None
            }
        };
        Ok(Policies { old, new, is_gone, findings })
    }

    fn parse_policy(&self, bytes: &[u8]) -> Result<Policy, String> {
        let parsed = Policy::parse(&String::from_utf8_lossy(bytes), &self.config);
        let (policy, _) = parsed.map_err(|error| error.to_string())?;
        let cells: usize = policy.models.iter().map(|model| model.cells.len()).sum();
        if cells > MOST_CELLS {
            return Err(format!(
                "{cells} schemes of models, more than the {MOST_CELLS} that are judged"
            ));
        }
        Ok(policy)
    }

    /// What gates less than before.
    fn loosenings(&self, old: &Policy, new: &Policy) -> Result<Vec<Finding>, RepoError> {
        let mut list = weakened::weakened(old, new, &text_sizes(new, &*self.old, &*self.new));
        list.extend(goldens_removed(new, &*self.old, &*self.new)?);
        let finding = |weakened: &Weakened| {
            let Weakened { place, what, old, new, .. } = weakened;
            let message = format!("{what}: {old} → {new} ({})", weakened.reach());
            self.loosening_at(place, message)
        };
        Ok(list.iter().map(finding).collect())
    }

    /// A finding that is red unless people allowed the change to loosen the policy.
    fn loosening_at(&self, place: impl ToString, message: String) -> Finding {
        Finding {
            name: "policy::weakened".into(),
            place: Some(place.to_string()),
            message,
            is_red: self.loosening == Loosening::Forbidden,
        }
    }

    /// A finding where results were measured at another commit than the proposed one.
    fn other_commit(&self, results: &Results) -> Option<Finding> {
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

    /// Judges results by one policy and the proposed goldens. The changes that a case shows are against the
    /// goldens that hold, because people review what moves from those.
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
        // files are seen from the policy's folder
        let root = Path::new("");
        let proposed = Judge { root, goldens: &|path| read(&*self.new, path), offer: None };
        let holding = Judge { root, goldens: &|path| read(&*self.old, path), offer: None };
        let demands = Demands {
            policy,
            by,
            is_needed: &|model| touched.contains(&model.name),
            fault: &|model, measurement| self.other_text(model, measurement, by),
        };
        let mut cases = proposed.results(results, &demands);
        for model in &policy.models {
            for cell in &model.cells {
                let name = model.case(cell, CaseKind::Golden).to_string();
                if let Some(case) = cases.iter_mut().find(|case| case.case == name) {
                    case.changes = holding.moved(model, cell, by, results);
                }
            }
        }
        cases
    }

    /// A path that a policy names, seen from the policy's folder, as the files of both sides are.
    fn within<'p>(&self, path: &'p Path) -> &'p Path {
        path.strip_prefix(self.config.parent().unwrap_or(Path::new(""))).unwrap_or(path)
    }

    /// Texts to measure on whose content is proposed to be another. An easier text hides harm, and nobody can see that
    /// in a number, so people must say that the replacement is meant. A text that becomes shorter or is deleted is
    /// found by [`weakened()`](weakened::weakened).
    fn texts_replaced(&self, old: &Policy) -> Vec<Finding> {
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
            // a deleted text is another finding, and an unreadable one was never measured on
            !matches!((&old, &new), (Ok(None), _) | (_, Ok(None))) && old != new
        };
        let finding = |path: PathBuf| {
            let message = "another text to measure on: what it hides cannot be seen in a number";
            self.loosening_at(path.display(), message.into())
        };
        texts.into_iter().filter(is_replaced).map(finding).collect()
    }

    /// Why a measurement was made on another text than the proposed one. A text that is not in the repository cannot be
    /// compared here; its hash is in the goldens' conditions.
    fn other_text(
        &self,
        model: &ModelPolicy,
        measurement: &Measurement,
        by: MeasuredBy,
    ) -> Option<String> {
        if by != MeasuredBy::Kvgate {
            return None; // another engine's logs do not name its texts
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

/// What the policy that holds judges by, with the proposed way of measuring: its limits, those on what is retrieved
/// included, its expectations and its confidence. The results were measured in the proposed way, and measuring less is a
/// finding of its own.
fn measured_as(mut old: Policy, new: &Policy) -> Policy {
    for model in &mut old.models {
        if let Some(new) = new.models.iter().find(|new| new.name == model.name) {
            let held = model.retrieval.take().map_or_else(Vec::new, |retrieval| retrieval.limits);
            let retrieval = new.retrieval.clone();
            *model = ModelPolicy {
                cells: std::mem::take(&mut model.cells),
                confidence: model.confidence,
                // more looks make each of them surer, so whichever policy has more of them is the stricter one
                max_chunks: model.max_chunks.max(new.max_chunks),
                retrieval: retrieval.map(|new| Retrieval { limits: held, ..new }),
                ..new.clone()
            };
        }
    }
    old
}

/// Removes the measurements of models that no policy names, with a finding for each such model.
fn remove_unknown_models(results: &mut Results, is_known: impl Fn(&str) -> bool) -> Vec<Finding> {
    let (own, others): (Vec<_>, Vec<_>) =
        std::mem::take(&mut results.measurements).into_iter().partition(|m| is_known(&m.model));
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

/// Models that need no results, because the change does not touch them, and that have none.
fn not_needed(policy: &Policy, results: &Results, touched: &Touched) -> Vec<String> {
    let is_measured = |name: &str| results.measurements.iter().any(|m| m.model == name);
    let names = policy.models.iter().filter(|model| model.cells.iter().any(|cell| !cell.ignored));
    let names = names.map(|model| &model.name);
    names.filter(|name| !touched.contains(name) && !is_measured(name)).cloned().collect()
}

/// Adds the cases of one more policy. A case that two policies judge is red if one of them says so.
fn add_cases(all: &mut Vec<CaseResult>, cases: Vec<CaseResult>) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::limits;
    use crate::policy::RetrievalLimit;
    use crate::results::retrieval::{Measure, Plan};
    use crate::results::verdict::Verdict;
    use crate::testing::fixture;

    fn policy(loss: f64, contexts: usize, edit: impl Fn(&mut ModelPolicy)) -> Policy {
        let mut policy = fixture::limited_policy();
        let plan = Plan { lengths: vec![512], contexts, needles: 5, seed: 7 };
        let (measure, origin) = (Measure::Loss, "thresholds.toml:9".into());
        let limits = vec![RetrievalLimit { measure, bound: loss, origin }];
        policy.models[0].retrieval = Some(Retrieval { plan, limits });
        edit(&mut policy.models[0]);
        policy
    }

    /// A proposal does not judge itself by the limit that it raised: 3 of 10 needles are lost.
    #[test]
    fn limits_on_what_is_retrieved_hold_until_they_are_merged() {
        let mut measurement = fixture::sound().measurements.remove(0);
        fixture::with_needles(&mut measurement);
        let [q8_0, q4_0, ..] = &measurement.schemes[..] else { panic!() };
        let verdict = |policy: &Policy| {
            let model = &policy.models[0];
            let found = (&q8_0.outcome, &q4_0.retrieved[..]);
            limits::judge_with_retrieval(model, &model.cells[0], found, None, None).verdict
        };
        let new = policy(0.5, 2, |_| ());
        let held = measured_as(policy(0.05, 8, |_| ()), &new);
        assert_eq!((verdict(&held), verdict(&new)), (Verdict::Regressed, Verdict::Pass));
        assert_eq!(held.models[0].retrieval.as_ref().unwrap().plan.contexts, 2);
        // where nothing was retrieved before, or nothing any more, there is nothing to hold it against
        let dropped = |model: &mut ModelPolicy| model.retrieval = None;
        let held = measured_as(policy(0.05, 2, dropped), &new);
        assert_eq!(verdict(&held), Verdict::Pass);
        let held = measured_as(policy(0.05, 2, |_| ()), &policy(0.05, 2, dropped));
        assert_eq!(held.models[0].retrieval, None);
    }

    #[test]
    fn the_confidence_that_holds_judges() {
        let of = |confidence, max_chunks| {
            policy(0.05, 8, move |model| {
                (model.confidence, model.max_chunks) = (confidence, max_chunks);
            })
        };
        for (old, new, confidence, max_chunks) in [
            (of(Some(0.95), Some(64)), of(None, None), Some(0.95), Some(64)),
            (of(None, None), of(Some(0.95), Some(64)), None, Some(64)),
            (of(Some(0.95), Some(64)), of(Some(0.8), Some(96)), Some(0.95), Some(96)),
        ] {
            let model = &measured_as(old, &new).models[0];
            assert_eq!((model.confidence, model.max_chunks), (confidence, max_chunks));
        }
    }
}
