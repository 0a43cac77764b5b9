//! Makes goldens from the results of a run, without measuring again. This is what `kvgate accept` does.

use crate::files::write_atomically;
use crate::golden::review::pending;
use crate::golden::{engine, path_by, text, Golden};
use crate::judge::trust;
use crate::judge::Evidence;
use crate::measure::baseline_text::fault_in_continuation;
use crate::measure::corpus::{self, CorpusError};
use crate::model::Checkpoint;
use crate::policy::{ModelPolicy, Policy};
use crate::results::case::CaseKind;
use crate::results::case::CellName;
use crate::results::measured_by::MeasuredBy;
use crate::results::replay::Generated;
use crate::results::verdict::Verdict;
use crate::results::{Measurement, Results, SchemeResult};
use crate::text::suggest::did_you_mean;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A golden that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// What it is the golden of, for people: `model::scheme`, or the text of a model.
    pub case: String,
    /// The cell that it belongs to. None for a text.
    pub cell: Option<CellName>,
    pub path: PathBuf,
}

/// Why nothing, or not everything, was accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The results are those of `kvgate measure`, which knows no cases.
    #[error("these results were measured without a policy: accept the results of `kvgate run`")]
    NoPolicy,
    /// The policy has changed since, so the results were judged by other limits or measured under other settings.
    #[error("these results are of another policy: {theirs}, and {ours} has changed since; run the gate again")]
    OtherPolicy { theirs: String, ours: String },
    /// The results were measured at another commit.
    #[error("these results are of commit {theirs}, and the repository is at commit {ours}; run again, or check out that commit")]
    OtherHead { theirs: String, ours: String },
    /// A filter that names no case of the results.
    #[error("no case `{case}` in these results{hint}")]
    UnknownCase {
        case: String,
        /// ` (did you mean …?)`, or nothing.
        hint: String,
    },
    /// There is nothing in the results.
    #[error("these results hold no case to accept")]
    Nothing,
    /// Some cells must not be accepted. Each line names one, with the reason. No golden was written.
    #[error("nothing was accepted:\n  {}", .0.join("\n  "))]
    Refused(Vec<String>),
    /// A golden could not be written. Those before it were written.
    #[error("{path}: {source}; is the folder writable, and the disk not full?")]
    Write { path: String, source: io::Error },
}

/// Writes goldens for the cells that `only` names (`model::scheme` or `model::scheme::golden`), or for all cells if it
/// names none. `root` is the policy's folder, and `head` is the repository's commit.
///
/// It is all or nothing: one cell that must not be accepted refuses all of them.
pub fn accept(
    results: &Results,
    policy: &Policy,
    head: Option<&str>,
    only: &[String],
    root: &Path,
) -> Result<Vec<Accepted>, AcceptError> {
    refuse_other_run(results, policy, head)?;
    let selected = selected(results, only)?;
    let mut refusals = Vec::new();
    let (mut goldens, mut texts) = (Vec::new(), Vec::new());
    for (measurement, schemes) in &selected {
        refusals.extend(mismatch(results, measurement, policy));
        match acceptable_text(measurement, policy) {
            Ok(text) => texts.extend(text),
            Err(reason) => refusals.push(reason),
        }
        // use the engine that the measurement names: it decides in which folder the golden lies
        let evidence = Evidence::new(Cow::Borrowed(measurement), engine(measurement));
        for scheme in schemes {
            match acceptable(results, policy, &evidence, scheme) {
                Ok(golden) => {
                    goldens.push((engine(measurement), cell_name(measurement, scheme), golden))
                }
                Err(reason) => refusals.push(reason),
            }
        }
    }
    // a model or a scheme that stands twice in the results is refused twice for the same reason
    let mut seen = BTreeSet::new();
    refusals.retain(|refusal| seen.insert(refusal.clone()));
    if !refusals.is_empty() {
        return Err(AcceptError::Refused(refusals));
    }
    let accepted = goldens.into_iter().map(|(by, cell, golden)| write(root, by, &cell, &golden));
    let mut accepted = accepted.collect::<Result<Vec<_>, _>>()?;
    // texts come last: goldens hold the hash of their text, so a failure in between leaves red cases
    for (model, snapshot) in &texts {
        accepted.push(write_text(root, model, snapshot)?);
    }
    Ok(accepted)
}

/// The golden that the baseline's text of a model would become, by the model's name, or why it must not become one.
fn acceptable_text(
    measurement: &Measurement,
    policy: &Policy,
) -> Result<Option<(String, String)>, String> {
    let Some(generated) = &measurement.generated else { return Ok(None) };
    let model = &measurement.model;
    let snapshot = text::readable_snapshot(generated).and_then(|snapshot| {
        let own = policy.models.iter().find(|own| own.name == *model);
        match own.and_then(|own| misspelled(generated, own)) {
            Some(why) => Err(why),
            None => Ok(snapshot),
        }
    });
    let snapshot = snapshot.map_err(|why| format!("the text of {model} cannot be read: {why}"))?;
    Ok(Some((model.clone(), snapshot)))
}

/// Says which text is not the one that its tokens spell, if the model is on this machine. Where it is not, the next run
/// finds out.
fn misspelled(generated: &Generated, model: &ModelPolicy) -> Option<String> {
    let is_here = model.source.hub.is_none() && model.source.path.exists();
    let checkpoint = is_here.then(|| Checkpoint::open(&model.source).ok()).flatten()?;
    let fault = |c| fault_in_continuation(c, generated.tokens, &checkpoint);
    generated.continuations.iter().find_map(fault).map(|why| format!("it {why}"))
}

/// Writes the baseline's text as a golden of its own. The model's cells were measured on this text.
fn write_text(root: &Path, model: &str, snapshot: &str) -> Result<Accepted, AcceptError> {
    let path = text::text_path(root, model);
    write_atomically(&path, |w| w.write_all(snapshot.as_bytes()))
        .map_err(|source| AcceptError::Write { path: path.display().to_string(), source })?;
    let _ = std::fs::remove_file(pending(root, MeasuredBy::Kvgate, &text::text_stem(model)));
    Ok(Accepted { case: format!("the text of {model}"), cell: None, path })
}

fn cell_name(measurement: &Measurement, scheme: &SchemeResult) -> CellName {
    CellName::new(&measurement.model, &scheme.scheme)
}

/// Refuses results of another policy or of another commit.
fn refuse_other_run(
    results: &Results,
    policy: &Policy,
    head: Option<&str>,
) -> Result<(), AcceptError> {
    let theirs = results.policy.as_ref().ok_or(AcceptError::NoPolicy)?;
    if theirs.sha256 != policy.sha256 {
        return Err(AcceptError::OtherPolicy {
            theirs: theirs.path.clone(),
            ours: policy.path.display().to_string(),
        });
    }
    // a test target that was built without git knows no commit; policy and corpus are compared all the same
    match (results.head.as_deref(), head) {
        (Some(theirs), Some(ours)) if theirs != ours => {
            Err(AcceptError::OtherHead { theirs: theirs.into(), ours: ours.into() })
        }
        _ => Ok(()),
    }
}

/// The results of a model that are to be accepted.
type Selected<'a> = (&'a Measurement, Vec<&'a SchemeResult>);

/// The results that `only` names, or all of them.
fn selected<'a>(results: &'a Results, only: &[String]) -> Result<Vec<Selected<'a>>, AcceptError> {
    let all = results.measurements.iter().map(|m| (m, m.schemes.iter().collect::<Vec<_>>()));
    let all: Vec<Selected> = all.filter(|(_, schemes)| !schemes.is_empty()).collect();
    let name = |m: &Measurement, scheme: &SchemeResult| cell_name(m, scheme).to_string();
    let names: Vec<String> =
        all.iter().flat_map(|(m, schemes)| schemes.iter().map(|s| name(m, s))).collect();
    if names.is_empty() {
        return Err(AcceptError::Nothing);
    }
    if only.is_empty() {
        return Ok(all);
    }
    let mut wanted = BTreeSet::new();
    for filter in only {
        let name = filter.strip_suffix("::golden").unwrap_or(filter);
        if !names.iter().any(|known| known == name) {
            let hint = did_you_mean(name, names.iter().map(String::as_str));
            return Err(AcceptError::UnknownCase { case: filter.clone(), hint });
        }
        wanted.insert(name.to_owned());
    }
    let chosen = all.into_iter().map(|(m, mut schemes)| {
        schemes.retain(|scheme| wanted.contains(&name(m, scheme)));
        (m, schemes)
    });
    Ok(chosen.filter(|(_, schemes)| !schemes.is_empty()).collect())
}

/// Says why no cell of a model may be accepted: it was measured under other conditions than the policy and its
/// files ask for today.
fn mismatch(results: &Results, measurement: &Measurement, policy: &Policy) -> Option<String> {
    let own = results.measurements.iter().filter(|other| other.model == measurement.model);
    let is_twice = own.count() > 1;
    let reason = match policy.models.iter().find(|m| m.name == measurement.model) {
        Some(_) if is_twice => {
            Some("these results hold it twice: which one counts cannot be told".into())
        }
        Some(model) => other_conditions(measurement, model),
        None => Some("the policy has no such model".into()),
    };
    reason.map(|reason| format!("{}: {reason}", measurement.model))
}

/// Says how a measurement differs from what the policy and its files ask for today.
fn other_conditions(measurement: &Measurement, policy: &ModelPolicy) -> Option<String> {
    let then = &measurement.conditions;
    if then.context != policy.context {
        return Some(format!("measured at context {}, not {}", then.context, policy.context));
    }
    if then.chunks != policy.chunks {
        return Some(format!("measured on {} chunks, not {}", then.chunks, policy.chunks));
    }
    let by = engine(measurement);
    if let Some(mismatch) = trust::mismatch_with_policy(policy, measurement, by) {
        return Some(mismatch);
    }
    if by == MeasuredBy::LlamaCpp {
        return None; // llama.cpp's logs name no corpus
    }
    let now = policy.corpus.iter().map(|path| Ok(corpus::read(path)?.file));
    match now.collect::<Result<Vec<_>, CorpusError>>() {
        Err(error) => Some(error.to_string()),
        Ok(now) if now != then.corpus => Some("the corpus has changed since; run again".into()),
        Ok(_) => None,
    }
}

/// The file of the golden that a result would become, or why it must not become one.
fn acceptable(
    results: &Results,
    policy: &Policy,
    evidence: &Evidence,
    scheme: &SchemeResult,
) -> Result<String, String> {
    let measurement = evidence.measurement();
    let case = cell_name(measurement, scheme);
    let models = policy.models.iter().filter(|m| m.name == measurement.model);
    let mut cells = models.flat_map(|model| model.cells.iter().map(move |cell| (model, cell)));
    let own = cells.find(|(_, cell)| cell.label == scheme.scheme);
    let (model, cell) = own.ok_or_else(|| format!("{case}: the policy has no such scheme"))?;
    let untrusted = |why: &str| format!("{case}: the measurement cannot be trusted: {why}");
    let result = evidence.result_of(model, cell);
    if let (_, Some(reason)) = result.map_err(|error| format!("{case}: {error}"))? {
        return Err(untrusted(&reason));
    }
    let kld = case.case(CaseKind::Kld).to_string();
    let judged = results.cases.iter().find(|c| c.case == kld);
    if let Some(error) = judged.filter(|c| c.verdict == Verdict::Error) {
        return Err(untrusted(&error.message));
    }
    let golden = Golden::of(measurement, scheme).map_err(|error| format!("{case}: {error}"))?;
    golden.readable_snapshot().map_err(|why| format!("{case}: its golden cannot be read: {why}"))
}

/// Writes one golden, and removes a snapshot of it that waits for review.
fn write(
    root: &Path,
    by: MeasuredBy,
    cell: &CellName,
    snapshot: &str,
) -> Result<Accepted, AcceptError> {
    let stem = cell.file_stem();
    let path = path_by(root, by, &stem);
    write_atomically(&path, |w| w.write_all(snapshot.as_bytes()))
        .map_err(|source| AcceptError::Write { path: path.display().to_string(), source })?;
    // a pending snapshot would offer for review what has just been decided; usually there is none
    let _ = std::fs::remove_file(pending(root, by, &stem));
    Ok(Accepted { case: cell.to_string(), cell: Some(cell.clone()), path })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use crate::results::statistics::Statistics;
    use crate::results::Outcome;
    use crate::testing::fixture;

    /// The fixture's results made acceptable: the failed scheme is gone, corpus files are real.
    fn ready(root: &Path) -> (Results, Policy) {
        let mut results = fixture::results();
        results.measurements[0].schemes.truncate(2);
        results.measurements[0].schemes.iter_mut().for_each(fixture::make_sound);
        let mut policy = fixture::policy();
        for (i, text) in ["some prose", "some code"].iter().enumerate() {
            let file = root.join(["prose.txt", "code.txt"][i]);
            std::fs::write(&file, text).unwrap();
            results.measurements[0].conditions.corpus[i] = corpus::read(&file).unwrap().file;
            policy.models[0].corpus[i] = file;
        }
        (results, policy)
    }

    fn accepted(results: &Results, policy: &Policy, only: &[&str], root: &Path) -> Vec<String> {
        let only: Vec<String> = only.iter().map(|s| s.to_string()).collect();
        let accepted = accept(results, policy, results.head.as_deref(), &only, root).unwrap();
        accepted.into_iter().map(|a| a.case).collect()
    }

    fn error(results: &Results, policy: &Policy, only: &[&str], root: &Path) -> String {
        let only: Vec<String> = only.iter().map(|s| s.to_string()).collect();
        accept(results, policy, Some("abc123"), &only, root).unwrap_err().to_string()
    }

    #[test]
    fn writes_what_the_check_and_insta_read() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let (results, policy) = ready(root);
        let pending = root.join("goldens/gemma-3-270m__q4_0.snap.new");
        std::fs::create_dir_all(root.join("goldens")).unwrap();
        std::fs::write(&pending, "pending").unwrap();
        let all = ["gemma-3-270m::q8_0", "gemma-3-270m::q4_0"];
        assert_eq!(accepted(&results, &policy, &[], root), all);
        assert!(!pending.exists());

        let measurement = &results.measurements[0];
        for scheme in &measurement.schemes {
            let golden = Golden::of(measurement, scheme).unwrap();
            let stem = cell_name(measurement, scheme).file_stem();
            let read = Golden::read(&golden::path(root, &stem)).unwrap().unwrap();
            assert!(golden::compare(Some(&read), &golden).matches());
            // insta's own comparison, of the whole text
            let mut settings = insta::Settings::clone_current();
            settings.set_snapshot_path(root.join("goldens"));
            settings.set_prepend_module_to_snapshot(false);
            settings.bind(|| insta::assert_snapshot!(stem, golden.to_string()));
        }
    }

    #[test]
    fn filters_name_cases() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let (results, policy) = ready(root);
        for filter in ["gemma-3-270m::q4_0", "gemma-3-270m::q4_0::golden"] {
            assert_eq!(accepted(&results, &policy, &[filter], root), ["gemma-3-270m::q4_0"]);
        }
        assert_eq!(
            error(&results, &policy, &["gemma-3-270m::q4_1"], root),
            "no case `gemma-3-270m::q4_1` in these results (did you mean `gemma-3-270m::q4_0`?)"
        );
        assert_eq!(error(&results, &policy, &["x"], root), "no case `x` in these results");
    }

    /// A model repository's test target is built without git, the program with it.
    #[test]
    fn results_of_no_commit_are_of_this_policy_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (mut results, policy) = ready(folder.path());
        results.head = None;
        let accepted = accept(&results, &policy, Some("abc123"), &[], folder.path()).unwrap();
        assert_eq!(accepted.len(), 2);
    }

    #[test]
    fn refuses_what_is_not_trusted_though_no_case_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let (mut results, policy) = ready(folder.path());
        results.cases.clear();
        results.measurements[0].controls[0].ok = false;
        let error = error(&results, &policy, &[], folder.path());
        assert!(error.contains("cannot be trusted") && error.contains("control"), "{error}");
    }

    /// What `judge` refuses must not become a golden, which would pass ever after.
    #[test]
    fn refuses_what_contradicts_itself() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let (results, policy) = ready(root);
        let says = |edit: &dyn Fn(&mut Results), why: &str| {
            let mut results = results.clone();
            edit(&mut results);
            let error = error(&results, &policy, &[], root);
            assert!(error.contains(why), "{error}");
            assert!(!root.join("goldens").exists());
        };
        let forge = |r: &mut Results, edit: &dyn Fn(&mut Statistics)| {
            let outcome = &mut r.measurements[0].schemes[1].outcome;
            let Outcome::Measured { statistics, .. } = outcome else { panic!("it is measured") };
            edit(statistics);
        };
        says(&|r| forge(r, &|s| s.mean_kld *= 0.8), "and its parts make 0.06");
        says(&|r| forge(r, &|s| s.p99_kld = 1e-7), "its quantiles contradict each other");
        says(&|r| forge(r, &|s| s.ppl_ratio = 0.5), "its ppl_ratio is 0.5");
    }

    /// kvgate would refuse to read the golden afterwards, and the accepted one would be lost.
    #[test]
    fn refuses_what_could_not_be_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let (mut results, policy) = ready(root);
        let measurement = &mut results.measurements[0];
        let generated = fixture::generated();
        measurement.subject.weights_sha256 = generated.weights_sha256.clone();
        measurement.conditions.prompts = Some(generated.conditions());
        measurement.generated = Some(generated);
        measurement.schemes.iter_mut().for_each(|s| s.replay = Some(fixture::replay()));
        let says = |edit: &dyn Fn(&mut Measurement), why: &str| {
            let mut results = results.clone();
            edit(&mut results.measurements[0]);
            let error = error(&results, &policy, &[], root);
            assert!(error.contains(why), "{error}");
            assert!(!root.join("goldens").exists());
        };
        fn text(m: &mut Measurement) -> &mut Generated {
            m.generated.as_mut().unwrap()
        }
        let ends =
            "the text of gemma-3-270m cannot be read: the file ends where `prompt` must stand";
        says(&|m| text(m).continuations.clear(), ends);
        says(&|m| text(m).continuations[0].near_ties = vec![7], "`near_ties` go beyond the 3 ids");
        says(&|m| text(m).continuations[0].tokens.truncate(1), "or other lengths of them");
        says(&|m| drop(text(m).continuations.pop()), "its replay has other prompts");
        let other =
            |m: &mut Measurement| m.schemes[0].replay.as_mut().unwrap().text_sha256.push('0');
        says(&other, "its replay is of the text");
        says(&|m| text(m).weights_sha256 = "b5".repeat(32), "is of other weights than the measu");
        says(
            &|m| m.schemes[0].needs = vec!["a\nb".into()],
            "its golden cannot be read: unexpected",
        );
        let all = accept(&results, &policy, Some("abc123"), &[], root).unwrap();
        assert_eq!(all.last().unwrap().case, "the text of gemma-3-270m");
    }

    #[test]
    fn what_stands_twice_in_results_is_refused_in_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let (results, policy) = ready(root);
        let says = |edit: &dyn Fn(&mut Vec<Measurement>), why: &str| {
            let mut results = results.clone();
            edit(&mut results.measurements);
            let error = error(&results, &policy, &[], root);
            assert_eq!(error, format!("nothing was accepted:\n  {why}"));
            assert!(!root.join("goldens").exists());
        };
        let model = "gemma-3-270m: these results hold it twice: which one counts cannot be told";
        says(&|all| all.push(all[0].clone()), model);
        let scheme = "gemma-3-270m::q8_0: the run has two results for this scheme";
        says(&|all| all[0].schemes.extend_from_within(..1), scheme);
    }

    #[test]
    fn what_another_engine_measured_is_accepted_apart() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let (mut results, policy) = ready(root);
        let conditions = &mut results.measurements[0].conditions;
        conditions.engine = "llama.cpp b11434".into();
        conditions.corpus.clear();
        results.measurements[0].controls.clear();
        let all = ["gemma-3-270m::q8_0", "gemma-3-270m::q4_0"];
        assert_eq!(accepted(&results, &policy, &[], root), all);
        assert!(root.join("goldens/llama.cpp/gemma-3-270m__q4_0.snap").exists());
        assert!(!root.join("goldens/gemma-3-270m__q4_0.snap").exists());
        results.measurements[0].conditions.context = 4096;
        let error = error(&results, &policy, &[], root);
        assert!(error.contains("measured at context 4096, not 512"), "{error}");
    }

    #[test]
    fn refuses_another_run() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let (results, policy) = ready(root);
        let starts = |edit: &dyn Fn(&mut Results, &mut Policy), start: &str| {
            let (mut results, mut policy) = (results.clone(), policy.clone());
            edit(&mut results, &mut policy);
            let error = error(&results, &policy, &[], root);
            assert!(error.starts_with(start), "{error}");
            assert!(!root.join("goldens").exists());
        };
        starts(&|r, _| r.policy = None, "these results were measured without a policy");
        starts(&|_, p| p.sha256 = "other".into(), "these results are of another policy");
        starts(
            &|r, _| r.head = Some("f00".into()),
            "these results are of commit f00, and the repos",
        );
        starts(&|r, _| r.measurements.clear(), "these results hold no case");
        starts(
            &|_, p| p.models[0].context = 4096,
            "nothing was accepted:\n  gemma-3-270m: measured at context 512, not 4096",
        );
        starts(
            &|_, p| p.models[0].chunks = 8,
            "nothing was accepted:\n  gemma-3-270m: measured on 16 chunks, not 8",
        );
        starts(
            &|r, _| r.measurements[0].conditions.corpus[0].sha256 = "0".into(),
            "nothing was accepted:\n  gemma-3-270m: the corpus has changed since",
        );
        starts(
            &|_, p| p.models[0].corpus[0] = root.join("gone.txt"),
            "nothing was accepted:\n  gem",
        );
        starts(
            &|_, p| p.models[0].cells.clear(),
            "nothing was accepted:\n  gemma-3-270m::q8_0: the policy has no such scheme",
        );
    }

    #[test]
    fn refuses_what_was_not_measured_or_is_not_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let (mut results, policy) = ready(root);
        let failed = fixture::results().measurements[0].schemes[2].clone();
        results.measurements[0].schemes.push(failed);
        assert_eq!(
            error(&results, &policy, &[], root),
            "nothing was accepted:\n  gemma-3-270m::q8_0/q4_0: the measurement cannot be trusted: \
             layer 3: K is NaN"
        );
        results.cases.clear();
        let error = error(&results, &policy, &[], root);
        assert!(error.ends_with("q8_0/q4_0: not measured: layer 3: K is NaN"), "{error}");
        assert!(!root.join("goldens").exists(), "all or nothing");
    }

    #[cfg(unix)]
    #[test]
    fn an_unwritable_folder_is_one_clear_error() {
        let folder = tempfile::tempdir().unwrap();
        let (results, policy) = ready(folder.path());
        std::fs::write(folder.path().join("goldens"), "a file, not a folder").unwrap();
        let error = error(&results, &policy, &[], folder.path());
        assert!(error.contains("q8_0.snap: "), "{error}");
        assert!(error.ends_with("is the folder writable, and the disk not full?"), "{error}");
    }
}
