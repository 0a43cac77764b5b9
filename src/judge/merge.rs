//! Merges the results of several jobs, each of which measured a part of one policy at one commit, into those
//! of one run.

use super::trust::is_same_baseline;
use crate::golden;
use crate::policy::Policy;
use crate::results::case::CaseKind;
use crate::results::case::CellName;
use crate::results::json;
use crate::results::retrieval::Plan;
use crate::results::verdict::Verdict;
use crate::results::{Card, CaseResult, Control, Measurement, Outcome, Results, SchemeResult};
use std::collections::BTreeSet;

/// Why results cannot be merged into one run.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// No files were given.
    #[error("no results to merge")]
    Nothing,
    /// Two files differ in something that all shards of a run share.
    #[error("{second} is of another {what} than {first}: {theirs}, not {ours}; merge results of one run")]
    Unlike {
        /// `commit`, `policy` or `engine`.
        what: &'static str,
        first: String,
        second: String,
        ours: String,
        theirs: String,
    },
    /// Two files hold the same thing.
    #[error("{second} holds `{what}`, which another of these files holds, too: which one counts cannot be told")]
    Twice {
        /// The model, scheme or case.
        what: String,
        second: String,
    },
    /// Two files hold schemes of one model that were not measured in the same way.
    #[error("{second} measured `{model}` in another way than another of these files: {how}; merge shards of a model only if all were measured in the same way")]
    OtherWay {
        model: String,
        second: String,
        /// What differs, and how.
        how: String,
    },
}

/// Merges results, each given with the name of its file.
///
/// # Errors
/// The files belong to different runs, or two of them hold the same case, scheme or model.
pub fn merge(files: Vec<(String, Results)>) -> Result<Results, MergeError> {
    let mut files = files.into_iter();
    let (first, mut merged) = files.next().ok_or(MergeError::Nothing)?;
    for (second, results) in files {
        refuse_other_run(&first, &merged, &second, &results)?;
        for measurement in results.measurements {
            add_measurement(&mut merged.measurements, measurement, &second)?;
        }
        merged.findings.extend(results.findings);
        for case in results.cases {
            add_case(&mut merged.cases, case)
                .map_err(|what| MergeError::Twice { what, second: second.clone() })?;
        }
        merged.not_needed.extend(results.not_needed);
    }
    // a shard knows only of its own models that they were not needed, so a model that another shard measured was
    // needed
    let is_measured = |model: &String| merged.measurements.iter().any(|m| m.model == *model);
    let mut not_needed: Vec<_> = std::mem::take(&mut merged.not_needed);
    let mut seen = BTreeSet::new();
    not_needed.retain(|model| !is_measured(model) && seen.insert(model.clone()));
    merged.not_needed = not_needed;
    Ok(merged)
}

/// Refuses results of different commits, policies or engines.
fn refuse_other_run(
    first: &str,
    one: &Results,
    second: &str,
    other: &Results,
) -> Result<(), MergeError> {
    let policy = |results: &Results| {
        results.policy.as_ref().map_or("none".to_string(), |policy| policy.sha256.clone())
    };
    let head = |results: &Results| results.head.clone().unwrap_or("none".into());
    let shared = [
        ("commit", head(one), head(other)),
        ("policy", policy(one), policy(other)),
        ("engine", one.engine.clone(), other.engine.clone()),
    ];
    match shared.into_iter().find(|(_, ours, theirs)| ours != theirs) {
        None => Ok(()),
        Some((what, ours, theirs)) => Err(MergeError::Unlike {
            what,
            first: first.into(),
            second: second.into(),
            ours,
            theirs,
        }),
    }
}

/// Adds a measurement. A model may have been measured by two shards, each of which measured other schemes.
fn add_measurement(
    all: &mut Vec<Measurement>,
    new: Measurement,
    second: &str,
) -> Result<(), MergeError> {
    let Some(known) = all.iter_mut().find(|measurement| measurement.model == new.model) else {
        all.push(new);
        return Ok(());
    };
    let twice = new.schemes.iter().find(|s| known.schemes.iter().any(|k| k.scheme == s.scheme));
    if let Some(twice) = twice {
        let what = CellName::new(new.model, &twice.scheme).to_string();
        return Err(MergeError::Twice { what, second: second.into() });
    }
    if let Some(how) = other_way(known, &new) {
        return Err(MergeError::OtherWay { model: new.model, second: second.into(), how });
    }
    // each shard has control lanes of its own: if they read differently both are kept, and a bad one counts
    // for all schemes
    let others = new.controls.into_iter().filter(|control| !known.controls.contains(control));
    let others: Vec<_> = others.collect();
    known.controls.extend(others);
    if let (Some(known), Some(new)) = (&mut known.haystacks, new.haystacks) {
        let others = new.controls.into_iter().filter(|control| !known.controls.contains(control));
        let others: Vec<_> = others.collect();
        known.controls.extend(others);
    }
    // each shard measures the floor, and may have failed to: the highest one binds all schemes
    let floors = [known.floor, new.floor].into_iter().flatten();
    known.floor = floors.max_by(|one, other| one.mean_kld.total_cmp(&other.mean_kld));
    // a shard without numbers knows the perplexity of its controls' chunks only
    if !known.schemes.iter().any(is_measured) {
        known.run.baseline_ppl = new.run.baseline_ppl;
    }
    known.schemes.extend(new.schemes);
    // each may be as long as a reader believes, and the sum is read again
    known.run.seconds = (known.run.seconds + new.run.seconds).min(json::LONGEST);
    let notes = new.run.notes.into_iter().filter(|note| !known.run.notes.contains(note));
    let notes: Vec<_> = notes.collect();
    known.run.notes.extend(notes);
    known.run.peak_bytes = known.run.peak_bytes.max(new.run.peak_bytes);
    add_once(&mut known.run.device, &new.run.device);
    match (&mut known.run.arithmetic, new.run.arithmetic) {
        (Some(known), Some(new)) => add_once(known, &new),
        (known, new) => *known = known.take().or(new),
    }
    known.run.card = match (known.run.card.take(), new.run.card) {
        // of cards of one name the one with the most memory stands for all, because no peak is above its memory
        (Some(known), Some(new)) if known.name == new.name => Some(Card {
            memory_bytes: known.memory_bytes.max(new.memory_bytes),
            peak_bytes: known.peak_bytes.max(new.peak_bytes),
            ..known
        }),
        // the time of several cards, or of a card and a processor, is that of neither
        _ => None,
    };
    Ok(())
}

/// How two measurements of a model were made in different ways.
fn other_way(one: &Measurement, other: &Measurement) -> Option<String> {
    let differences = golden::provenance_differs(
        (&one.subject, &one.conditions),
        (&other.subject, &other.conditions),
    );
    if !differences.is_empty() {
        return Some(differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    }
    let words = |measurement: &Measurement| {
        names(&measurement.controls).into_iter().collect::<Vec<_>>().join(", ")
    };
    let (ours, theirs) = (words(one), words(other));
    if ours != theirs {
        Some(format!("its control lanes are `{theirs}`, not `{ours}`"))
    } else if one.generated != other.generated {
        Some("its text of the baseline is another one".into())
    } else if contexts(one) != contexts(other) {
        Some("its contexts with needles are other ones".into())
    } else {
        other_baseline(one, other)
    }
}

/// How the baselines of two measurements are different ones. Other machines add in other orders, so their perplexities and
/// floors differ a little.
fn other_baseline(one: &Measurement, other: &Measurement) -> Option<String> {
    let (ours, theirs) = (one.run.baseline_ppl, other.run.baseline_ppl);
    // a shard without numbers has no perplexity of the chunks
    let both = one.schemes.iter().any(is_measured) && other.schemes.iter().any(is_measured);
    if both && !is_same_baseline(ours.ln(), theirs.ln()) {
        return Some(format!("its baseline has a perplexity of {theirs}, not {ours}"));
    }
    let [ours, theirs] = [one.floor?, other.floor?].map(|floor| floor.tokens_scored);
    (ours != theirs).then(|| format!("its floor is of {theirs} positions, not {ours}"))
}

/// Which contexts with needles a measurement was made on.
fn contexts(measurement: &Measurement) -> Option<(&Plan, &[String])> {
    measurement.haystacks.as_ref().map(|haystacks| (&haystacks.plan, &haystacks.sha256[..]))
}

fn is_measured(scheme: &SchemeResult) -> bool {
    matches!(scheme.outcome, Outcome::Measured { .. })
}

/// Shards of a model may have been computed on several devices and in several precisions, and each is named once.
fn add_once(known: &mut String, new: &str) {
    if !known.split("; ").any(|one| one == new) {
        *known += "; ";
        *known += new;
    }
}

/// The names of a shard's control lanes.
fn names(controls: &[Control]) -> BTreeSet<&str> {
    controls.iter().map(|control| control.name.as_str()).collect()
}

/// Adds a case. A shard may list a case as ignored that another shard ran.
fn add_case(all: &mut Vec<CaseResult>, new: CaseResult) -> Result<(), String> {
    match all.iter_mut().find(|case| case.case == new.case) {
        None => all.push(new),
        Some(known) if known.verdict == Verdict::Ignored => *known = new,
        Some(_) if new.verdict == Verdict::Ignored => {}
        Some(_) => return Err(new.case),
    }
    Ok(())
}

/// Adds an error for each case that the policy wants and the results lack, because a shard that is lost must
/// not look like one that passed. Afterwards the cases stand in the policy's order.
pub fn complete(results: &mut Results, policy: &Policy) {
    let mut cases = Vec::new();
    for model in &policy.models {
        for cell in &model.cells {
            for kind in CaseKind::ALL {
                let name = model.case(cell, kind).to_string();
                let needed = !cell.ignored && !results.not_needed.contains(&model.name);
                match results.cases.iter().position(|case| case.case == name) {
                    Some(at) => cases.push(results.cases.remove(at)),
                    None if needed => cases.push(CaseResult::new(name, Verdict::Error, MISSING)),
                    None => {}
                }
            }
        }
    }
    // cases that the policy does not name are kept, so that a red one stays red
    cases.append(&mut results.cases);
    results.cases = cases;
}

const MISSING: &str =
    "missing: none of these results holds it; the job that measures it failed, or its results were not given";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::trust::distrust;
    use crate::results::Floor;
    use crate::testing::fixture;

    fn shards() -> [(String, Results); 2] {
        let (mut a, mut b) = (fixture::results(), fixture::results());
        a.measurements[0].schemes.truncate(1);
        b.measurements[0].schemes.remove(0);
        a.cases.truncate(2);
        b.cases.drain(..2);
        [("a.json".into(), a), ("b.json".into(), b)]
    }

    #[test]
    fn shards_of_a_run_are_the_run() {
        let merged = merge(shards().into()).unwrap();
        let whole = fixture::results();
        assert_eq!(merged.cases, whole.cases);
        let labels = |r: &Results| {
            r.measurements[0].schemes.iter().map(|s| s.scheme.clone()).collect::<Vec<_>>()
        };
        assert_eq!(labels(&merged), labels(&whole));
    }

    #[test]
    fn what_is_not_one_run_is_refused() {
        let error = |edit: &dyn Fn(&mut Results)| {
            let mut shards = shards();
            edit(&mut shards[1].1);
            merge(shards.into()).unwrap_err().to_string()
        };
        assert_eq!(
            error(&|r| r.head = Some("def".into())),
            "b.json is of another commit than a.json: def, not abc123; merge results of one run"
        );
        assert!(error(&|r| r.policy = None).contains("of another policy than a.json: none, not 9f"));
        assert!(error(&|r| r.engine = "kvgate 9".into()).contains("another engine"));
        let twice = "b.json holds `gemma-3-270m::q8_0`, which another";
        assert!(error(&|r| r.measurements = fixture::results().measurements).starts_with(twice));
        assert!(
            error(&|r| r.cases = fixture::results().cases).contains("`gemma-3-270m::q8_0::kld`")
        );
        let way = "b.json measured `gemma-3-270m` in another way than another of these files: ";
        let differs = |edit: &dyn Fn(&mut Measurement), how: &str| {
            let error = error(&|r| edit(&mut r.measurements[0]));
            assert!(error.starts_with(&format!("{way}{how}; merge shards of a model")), "{error}");
        };
        differs(&|m| m.conditions.chunks = 2, "chunks: 16 → 2");
        let on_a_card = |m: &mut Measurement| {
            (m.conditions.device, m.conditions.weights) = ("cuda".into(), "f16".into());
        };
        differs(&on_a_card, "device: cpu → cuda, weights: f32 → f16");
        differs(&|m| m.subject.architecture = "llama".into(), "architecture: gemma3 → llama");
        let none = "its control lanes are ``, not `bad lane, identity`";
        differs(&|m| m.controls.clear(), none);
        let text = "its text of the baseline is another one";
        differs(&|m| m.generated = Some(fixture::generated()), text);
        let perplexity = "its baseline has a perplexity of 21.4, not 21.1";
        differs(&|m| m.run.baseline_ppl = 21.4, perplexity);
        differs(
            &|m| m.run.baseline_ppl = f64::NAN,
            "its baseline has a perplexity of NaN, not 21.1",
        );
        assert!(merge(Vec::new()).is_err());
    }

    /// Machines differ in their rounding, and the largest floor binds. Its positions are those of the first chunks.
    #[test]
    fn shards_of_other_machines_have_one_baseline_up_to_rounding() {
        let merged = |floors: [(f64, u64); 2]| {
            let mut shards = shards();
            for ((_, results), (mean_kld, tokens_scored)) in shards.iter_mut().zip(floors) {
                let floor = Some(Floor { mean_kld, tokens_scored, batch: 171 });
                results.measurements[0].floor = floor;
            }
            shards[1].1.measurements[0].run.baseline_ppl += 1e-3;
            merge(shards.into()).map_err(|error| error.to_string())
        };
        let floor = merged([(1e-4, 510), (2e-4, 510)]).unwrap().measurements[0].floor.unwrap();
        assert_eq!(floor.mean_kld, 2e-4);
        let error = merged([(1e-4, 510), (2e-4, 255)]).unwrap_err();
        assert!(error.contains("its floor is of 255 positions, not 510"), "{error}");
    }

    /// A broken control lane counts for all schemes, in whichever shard it is.
    #[test]
    fn the_ruler_of_every_shard_counts() {
        let broken = |shard: usize, edit: fn(&mut Control)| {
            let mut shards = shards();
            edit(&mut shards[shard].1.measurements[0].controls[0]);
            let merged = merge(shards.into()).unwrap();
            distrust(&merged.measurements[0]).len()
        };
        let all = shards().iter().map(|(_, r)| r.measurements[0].schemes.len()).sum::<usize>();
        for shard in [0, 1] {
            assert_eq!(broken(shard, |control| control.mean_kld = Some(5.0)), all);
            assert_eq!(broken(shard, |control| control.ok = false), all);
        }
        assert!(broken(0, |_| ()) < all);
    }

    #[test]
    fn the_card_of_a_run_was_as_full_as_in_its_fullest_shard_and_each_arithmetic_is_named() {
        let mut shards = shards();
        for (_, results) in &mut shards {
            fixture::on_a_card(&mut results.measurements[0]);
        }
        let run = &mut shards[1].1.measurements[0].run;
        run.arithmetic = Some("another".into());
        run.card.as_mut().unwrap().peak_bytes = Some(99 << 30);
        let merged = merge(shards.clone().into()).unwrap();
        let run = &merged.measurements[0].run;
        assert_eq!(run.arithmetic.as_deref(), Some("f16 weights, sums in f32; another"));
        assert_eq!(run.card.as_ref().unwrap().peak_bytes, Some(99 << 30));
        shards[1].1.measurements[0].run.arithmetic = None;
        let merged = merge(shards.into()).unwrap();
        let arithmetic = merged.measurements[0].run.arithmetic.as_deref();
        assert_eq!(arithmetic, Some("f16 weights, sums in f32"));
    }

    /// A shard in which every scheme failed has the perplexity of its controls' chunks only.
    #[test]
    fn the_baseline_of_a_run_is_that_of_a_shard_with_numbers() {
        let mut shards = shards();
        shards[0].1.measurements[0].schemes[0].outcome = Outcome::Failed { error: "x".into() };
        shards[0].1.measurements[0].run.baseline_ppl = 9.5;
        let merged = merge(shards.into()).unwrap();
        assert_eq!(merged.measurements[0].run.baseline_ppl, 21.1);
    }

    /// What is merged is written as a file, which must be read again.
    #[test]
    fn the_merged_file_of_cards_of_one_name_is_read_again() {
        let mut shards = shards();
        for (i, (_, results)) in shards.iter_mut().enumerate() {
            fixture::on_a_card(&mut results.measurements[0]);
            let run = &mut results.measurements[0].run;
            run.seconds = json::LONGEST;
            let card = run.card.as_mut().unwrap();
            (card.memory_bytes, card.peak_bytes) = ([80 << 30, 139 << 30][i], Some(79 << 30));
        }
        shards[1].1.measurements[0].run.card.as_mut().unwrap().peak_bytes = Some(99 << 30);
        for order in [[0, 1], [1, 0]] {
            let merged = merge(order.map(|i| shards[i].clone()).into()).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let read = json::read(&json::write(folder.path(), &merged).unwrap()).unwrap();
            let run = &read.measurements[0].run;
            let card = run.card.as_ref().unwrap();
            assert_eq!((card.memory_bytes, card.peak_bytes), (139 << 30, Some(99 << 30)));
            assert_eq!(run.seconds, json::LONGEST);
        }
    }

    #[test]
    fn an_ignored_case_gives_way() {
        let mut shards = shards();
        let known = CaseResult::new("gemma-3-270m::q4_0::kld", Verdict::Ignored, "");
        shards[0].1.cases.push(known);
        let merged = merge(shards.into()).unwrap();
        let case = merged.cases.iter().find(|case| case.case == "gemma-3-270m::q4_0::kld");
        assert_eq!(case.unwrap().verdict, Verdict::Regressed);
    }

    #[test]
    fn what_is_missing_is_an_error() {
        let [(name, results), _] = shards();
        let mut merged = merge(vec![(name, results)]).unwrap();
        let before = merged.clone();
        complete(&mut merged, &fixture::policy());
        let missing = merged.cases.iter().filter(|case| case.message == MISSING);
        assert_eq!(missing.clone().count(), 4);
        assert!(missing.clone().all(|case| case.verdict == Verdict::Error));
        let mut changed = Results { not_needed: vec!["gemma-3-270m".into()], ..before.clone() };
        complete(&mut changed, &fixture::policy());
        assert_eq!(changed.cases, before.cases);
    }

    /// Each shard leaves out of its own models what is not needed; what another measured was needed.
    #[test]
    fn not_needed_is_what_none_measured() {
        let mut shards = shards();
        shards[0].1.not_needed = vec!["a".into(), "b".into()];
        shards[1].1.not_needed = vec!["a".into(), "b".into(), "gemma-3-270m".into()];
        assert_eq!(merge(shards.into()).unwrap().not_needed, ["a", "b"]);
    }
}
