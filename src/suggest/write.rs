//! Adds what was suggested to a policy. Comments and everything else in the file stay as they are.

use super::{Row, Suggestion};
use crate::init::policy::{limits_of, own_limits, quoted, JudgedBy};
use crate::kv::Scheme;
use crate::policy::{Cell, Diagnostic, Expectation, Limit, ModelPolicy, Policy, PolicyError};
use crate::results::statistics::Statistic;
use crate::text::numbers::{count, significant};
use std::path::Path;
use toml_edit::{DocumentMut, InlineTable, Item, Table, Value};

/// How many schemes are added that must fail.
const MUST_FAIL: usize = 2;
/// A scheme must be this far beyond the limit that it is required to break, so that another machine's rounding leaves it
/// there.
const CLEARLY: f64 = 1.25;

/// A scheme for the policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The name of its cases: its text, or a name for a mixture.
    label: String,
    scheme: String,
    expect: Expectation,
    /// Its keys, as an inline table.
    keys: String,
    /// What stands above it.
    comment: String,
}

/// A policy with additions.
#[derive(Debug)]
pub struct Edited {
    pub text: String,
    /// What was added, in words.
    pub added: Vec<String>,
    /// What was left as it is, and why.
    pub left: Vec<String>,
    /// Limits that let an added scheme do more than the policy lets a scheme do that says none of its own, in words.
    pub looser: Vec<String>,
    pub warnings: Vec<Diagnostic>,
}

/// Why nothing is written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("nothing is written: {0}")]
    NothingToWrite(&'static str),
    #[error("the policy is no TOML: {0}")]
    Toml(#[from] toml_edit::TomlError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("the policy has no model `{0}`")]
    NoModel(String),
    /// The edited policy does not say what it should, so it is not written.
    #[error("nothing is written: {0} could not be added as it should")]
    Astray(String),
}

/// The scheme to serve, with limits that leave a margin over what was verified, and schemes that are clearly worse, which
/// must break these limits. `confidence` is that of the policy.
///
/// # Errors
/// If there is nothing to serve, or if nothing was verified on as many chunks as an interval needs.
pub fn entries(suggestion: &Suggestion, confidence: Option<f64>) -> Result<Vec<Entry>, WriteError> {
    let served = suggestion.recommended.map(|own| &suggestion.rows[own.row]);
    let served = served.ok_or(WriteError::NothingToWrite("there is nothing to recommend"))?;
    let verified = served.verified.as_ref();
    let verified = verified.ok_or(WriteError::NothingToWrite("nothing was verified"))?;
    if verified.interval.is_none() {
        return Err(WriteError::NothingToWrite("there is no interval, of which limits are made"));
    }
    let judged_by = if confidence.is_some() { JudgedBy::Intervals } else { JudgedBy::Values };
    // a run measures the chunks that chose
    let readings = [&served.measured, verified].map(|own| (&own.statistics, &own.parts[..]));
    let limits = own_limits(&readings, judged_by);
    let most = limits
        .iter()
        .find_map(|(statistic, limit)| limit.filter(|_| *statistic == Statistic::MeanKld));
    let most = most.unwrap_or(f64::INFINITY);
    let chunks = count(suggestion.verifying, "chunk");
    let serve = Entry {
        label: label(served),
        scheme: served.scheme.clone(),
        expect: Expectation::Pass,
        keys: format!("{{ {} }}", limits_of(&limits)),
        comment: format!(
            "suggested: {} bits, {} on {chunks} that did not choose it",
            super::words::bits(served.bits),
            kld(verified)
        ),
    };
    let own = suggestion.rows.iter().enumerate().filter(|(i, _)| suggestion.may_serve(*i));
    let worse = own.filter_map(|(_, row)| {
        let verified = row.verified.as_ref().filter(|_| row.bits < served.bits)?;
        let least = |reading: &super::Reading| reading.interval.map_or(0.0, |[low, _]| low);
        (least(verified).min(least(&row.measured)) > CLEARLY * most).then_some((row, verified))
    });
    let mut worse: Vec<_> = worse.collect();
    worse.sort_by(|(_, a), (_, b)| a.mean_kld.total_cmp(&b.mean_kld));
    let must_fail = worse.into_iter().take(MUST_FAIL).map(|(row, verified)| {
        let reason = format!("{} on {chunks}: more than {} may do", kld(verified), serve.label);
        let limits: Vec<_> =
            limits.iter().copied().filter(|(s, _)| *s != Statistic::P99Kld).collect();
        Entry {
            label: label(row),
            scheme: row.scheme.clone(),
            expect: Expectation::Fail,
            keys: format!(
                "{{ expect = \"fail\", reason = {}, {} }}",
                quoted(&reason),
                limits_of(&limits)
            ),
            comment: String::new(),
        }
    });
    let must_fail: Vec<_> = must_fail.collect();
    Ok(std::iter::once(serve).chain(must_fail).collect())
}

fn kld(reading: &super::Reading) -> String {
    format!("mean KLD {}", significant(reading.mean_kld, 2))
}

/// Mixtures have long texts, so they get a name.
fn label(row: &Row) -> String {
    if row.is_mixed {
        format!("mixed-{}", super::words::bits(row.bits))
    } else {
        row.scheme.clone()
    }
}

/// Adds entries to the policy with this text. An entry is left out if the model has the scheme already, under whatever
/// name, or if its name is taken. If the first is left out, all are: the others are judged by its limits.
///
/// # Errors
/// If the policy has errors before or after, or does not have the model.
pub fn edited(
    text: &str,
    path: &Path,
    model: &str,
    entries: &[Entry],
) -> Result<Edited, WriteError> {
    let (policy, _) = Policy::parse(text, path)?;
    let own = find(&policy, model).ok_or_else(|| WriteError::NoModel(model.into()))?;
    let mut document: DocumentMut = text.parse()?;
    let (mut added, mut left) = (Vec::new(), Vec::new());
    for (i, entry) in entries.iter().enumerate() {
        match taken(entry, own, &document) {
            Some(why) => {
                left.push(why);
                if i == 0 {
                    break;
                }
            }
            None => {
                add(&mut document, model, entry)
                    .ok_or_else(|| WriteError::Astray(entry.label.clone()))?;
                added.push(entry);
            }
        }
    }
    let text = with_line_ends_of(text, document.to_string());
    let (policy, warnings) = Policy::parse(&text, path)?;
    let own = find(&policy, model).ok_or_else(|| WriteError::NoModel(model.into()))?;
    if let Some(astray) = added.iter().find(|entry| !is_there(entry, own)) {
        return Err(WriteError::Astray(astray.label.clone()));
    }
    let looser = added.iter().flat_map(|entry| looser(entry, own)).collect();
    let added = added.into_iter().map(|entry| match entry.expect {
        Expectation::Fail => format!("{}, which must fail", entry.label),
        _ => entry.label.clone(),
    });
    Ok(Edited { text, added: added.collect(), left, looser, warnings })
}

/// The limits of an entry that must pass which are looser than those that it would have if it said none.
fn looser(entry: &Entry, model: &ModelPolicy) -> Vec<String> {
    let is_its = |cell: &&Cell| cell.label == entry.label && cell.expect == Expectation::Pass;
    let Some(cell) = model.cells.iter().find(is_its) else { return Vec::new() };
    let words = |limit: &Limit| {
        let (_, bound) = limit.loosened_by(&cell.limits)?;
        let bound = bound.map_or("none".into(), |bound| bound.to_string());
        let Limit { quantity, bound: inherited, origin } = limit;
        Some(format!("{} {bound} instead of {inherited} ({origin})", quantity.name()))
    };
    model.limits.iter().filter_map(words).collect()
}

/// The text with the line ends of the file that it was edited from: a TOML document has line feeds only.
fn with_line_ends_of(original: &str, text: String) -> String {
    if original.contains("\r\n") {
        text.replace("\r\n", "\n").replace('\n', "\r\n")
    } else {
        text
    }
}

fn find<'p>(policy: &'p Policy, model: &str) -> Option<&'p ModelPolicy> {
    policy.models.iter().find(|own| own.name == model)
}

/// Why an entry is not added.
fn taken(entry: &Entry, model: &ModelPolicy, document: &DocumentMut) -> Option<String> {
    let scheme: Scheme = entry.scheme.parse().ok()?;
    if let Some(cell) = model.cells.iter().find(|cell| cell.scheme == scheme) {
        return Some(format!(
            "{} has {} already: its entry is left as it is",
            model.name, cell.label
        ));
    }
    let names = document.get("schemes").and_then(Item::as_table_like);
    let is_name = names.is_some_and(|names| names.contains_key(&entry.label));
    (is_name || model.cells.iter().any(|cell| cell.label == entry.label))
        .then(|| format!("the name {} is taken", entry.label))
}

fn is_there(entry: &Entry, model: &ModelPolicy) -> bool {
    let scheme: Result<Scheme, _> = entry.scheme.parse();
    let mut cells = model.cells.iter().filter(|cell| cell.label == entry.label);
    let cell = cells.next();
    cell.is_some_and(|cell| scheme == Ok(cell.scheme.clone()) && cell.expect == entry.expect)
}

/// Adds an entry to the schemes of a model, and its name to `[schemes]` if it has one. None if the file has something else
/// in these places.
fn add(document: &mut DocumentMut, model: &str, entry: &Entry) -> Option<()> {
    if entry.label != entry.scheme {
        let names = document.entry("schemes").or_insert(Item::Table(Table::new()));
        names.as_table_like_mut()?.insert(&entry.label, toml_edit::value(&entry.scheme));
    }
    let (name, at) = model.split_once('@').map_or((model, None), |(name, at)| (name, Some(at)));
    let mut own = document.get_mut("models")?.get_mut(name)?;
    if let Some(at) = at {
        own = own.get_mut("at")?.get_mut(at)?;
    }
    let empty = match own.is_inline_table() {
        true => Item::Value(Value::InlineTable(InlineTable::new())),
        false => Item::Table(Table::new()),
    };
    let schemes = own.as_table_like_mut()?.entry("schemes").or_insert(empty);
    // an inline table has no room for a comment
    let has_room = schemes.is_table() && !entry.comment.is_empty();
    let schemes = schemes.as_table_like_mut()?;
    let keys: InlineTable = entry.keys.parse::<Value>().ok()?.as_inline_table()?.clone();
    schemes.insert(&entry.label, Item::Value(Value::InlineTable(keys)));
    if has_room {
        let prefix = format!("# {}\n", entry.comment);
        schemes.key_mut(&entry.label)?.leaf_decor_mut().set_prefix(prefix);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{row, suggestion};
    use super::super::REFERENCE;
    use super::*;

    const POLICY: &str = r#"# What a cache may do.
[defaults]
corpus = "prose.txt" # the text
context = 512
chunks = 10
limits = { mean_kld = 0.05, top1_agreement = 0.87 }

[models.tiny] # ours
path = "tiny.gguf"
limits = { baseline_ppl = 40.0 }

[models.tiny.schemes]
# the old one
q8_0 = {} # stays

# ---- another one
[models.other]
path = "other.gguf"
schemes = { q8_0 = {} }
at.long = { context = 1024 }
"#;

    fn found() -> Vec<Entry> {
        let rows = vec![
            row("q4_0", 4.5, 0.3),
            row("q5_1", 6.0, 0.004),
            row(REFERENCE, 6.5, 0.0077),
            row("q8_0", 8.5, 0.001),
        ];
        entries(&suggestion(rows, None), None).unwrap()
    }

    fn written(text: &str, model: &str, entries: &[Entry]) -> Edited {
        edited(text, Path::new("thresholds.toml"), model, entries).unwrap()
    }

    #[test]
    fn a_scheme_is_added_and_all_else_stays() {
        let Edited { text, added, left, looser, warnings } = written(POLICY, "tiny", &found());
        assert_eq!(looser, [""; 0]);
        assert_eq!(added, ["q5_1", "q4_0, which must fail"]);
        assert!(left.is_empty() && warnings.is_empty(), "{left:?} {warnings:?}");
        for line in POLICY.lines() {
            assert!(text.lines().any(|own| own == line), "{line}\nin\n{text}");
        }
        let schemes = text.split_once("[models.tiny.schemes]").unwrap().1;
        let schemes = schemes.split_once("# ---- another one").unwrap().0;
        insta::assert_snapshot!(schemes, @r#"
        # the old one
        q8_0 = {} # stays
        # suggested: 6 bits, mean KLD 0.0044 on 10 chunks that did not choose it
        q5_1 = { limits = { mean_kld = 0.0066, top1_agreement = 0.95, p99_kld = 0.066 } }
        q4_0 = { expect = "fail", reason = "mean KLD 0.33 on 10 chunks: more than q5_1 may do", limits = { mean_kld = 0.0066, top1_agreement = 0.95 } }
        "#);
        let (policy, _) = Policy::parse(&text, Path::new("thresholds.toml")).unwrap();
        let cells = &find(&policy, "tiny").unwrap().cells;
        let limit = |label: &str| {
            let cell = cells.iter().find(|cell| cell.label == label).unwrap();
            let of = |limit: &&crate::policy::Limit| limit.quantity == Statistic::MeanKld.into();
            cell.limits.iter().find(of).unwrap().bound
        };
        // 1.5 times what was verified
        assert_eq!(limit("q5_1"), 0.0066);
        assert_eq!(limit("q4_0"), 0.0066);
        assert_eq!(limit("q8_0"), 0.05);
    }

    /// A run measures the chunks that chose, which may be harder than those that verify.
    #[test]
    fn limits_leave_a_margin_over_both_readings() {
        let mut own = suggestion(vec![row("q5_1", 6.0, 0.004), row("q8_0", 8.5, 0.001)], None);
        let served = own.recommended.unwrap().row;
        let keys = |own: &Suggestion| entries(own, None).unwrap()[0].keys.clone();
        let verified = own.rows[served].verified.clone().unwrap();
        let before = keys(&own);
        own.rows[served].measured = verified.clone();
        own.rows[served].verified = Some(super::super::fixture::reading(0.5 * verified.mean_kld));
        assert_eq!(keys(&own), before);
    }

    /// Limits over what was measured may be looser than those of all other schemes.
    #[test]
    fn limits_that_let_more_through_are_told() {
        let looser = |kld: f64| {
            let rows = vec![row("q4_0", 4.5, kld), row("q8_0", 8.5, kld)];
            let budget = super::super::budget::Budget::of_bits(5.0);
            let entries = entries(&suggestion(rows, Some(budget)), None).unwrap();
            written(&POLICY.replace("q4_0", "q4_1"), "tiny", &entries).looser
        };
        assert_eq!(looser(0.002), [""; 0]);
        let said = looser(0.3).join(", ");
        assert!(said.starts_with("mean_kld 0.5 instead of 0.05 (thresholds.toml:"), "{said}");
    }

    /// What is there only to compare is none of the engine's schemes.
    #[test]
    fn the_reference_is_not_written_where_it_may_not_be_served() {
        let rows = vec![row(REFERENCE, 6.5, 0.3), row("q8_0", 8.5, 0.001)];
        let mut own = suggestion(rows, Some(super::super::budget::Budget::of_bits(9.0)));
        own.rows[0].verified = Some(super::super::fixture::reading(0.3));
        let names = |own: &Suggestion| {
            let entries = entries(own, None).unwrap();
            entries.into_iter().map(|entry| entry.label).collect::<Vec<_>>()
        };
        assert_eq!(names(&own), ["q8_0", REFERENCE]);
        own.serves_reference = false;
        assert_eq!(names(&own), ["q8_0"]);
    }

    #[test]
    fn line_ends_stay_what_they_are() {
        let Edited { text, .. } = written(&POLICY.replace('\n', "\r\n"), "tiny", &found());
        let Edited { text: plain, .. } = written(POLICY, "tiny", &found());
        assert_eq!(text, plain.replace('\n', "\r\n"));
    }

    #[test]
    fn nothing_is_overwritten() {
        let Edited { text, .. } = written(POLICY, "tiny", &found());
        let Edited { text: again, added, left, .. } = written(&text, "tiny", &found());
        assert_eq!((again, added.len()), (text, 0));
        assert_eq!(left, ["tiny has q5_1 already: its entry is left as it is"]);
        let other_name =
            POLICY.replace("q8_0 = {} # stays", "own = {}") + "\n[schemes]\nown = \"q5_1/q5_1\"\n";
        let Edited { left, .. } = written(&other_name, "tiny", &found());
        assert_eq!(left, ["tiny has own already: its entry is left as it is"]);
    }

    #[test]
    fn inline_tables_and_other_ways_of_measuring_are_edited_too() {
        let Edited { text, .. } = written(POLICY, "other", &found());
        assert!(text.contains("schemes = { q8_0 = {} , q5_1 = { limits = {"), "{text}");
        let Edited { text, .. } = written(POLICY, "other@long", &found());
        let (policy, _) = Policy::parse(&text, Path::new("thresholds.toml")).unwrap();
        assert!(find(&policy, "other@long").unwrap().cells.iter().any(|c| c.label == "q5_1"));
        assert!(!find(&policy, "other").unwrap().cells.iter().any(|c| c.label == "q5_1"));
    }

    #[test]
    fn a_mixture_gets_a_name() {
        let mixture = "q5_0/q4_0@0=f16/q4_0";
        let rows = vec![row(mixture, 5.25, 0.004), row(REFERENCE, 6.5, 0.0077)];
        let entries = entries(&suggestion(rows, None), None).unwrap();
        let Edited { text, .. } = written(POLICY, "tiny", &entries);
        assert!(text.contains(&format!("[schemes]\n\"mixed-5.25\" = \"{mixture}\"")), "{text}");
        let other = format!("{POLICY}\n[schemes]\n\"mixed-5.25\" = \"q4_1\"\n");
        let Edited { text, left, .. } = written(&other, "tiny", &entries);
        assert_eq!((text, left), (other, vec!["the name mixed-5.25 is taken".to_string()]));
    }

    #[test]
    fn what_was_not_verified_is_not_written() {
        let mut suggestion = suggestion(vec![row(REFERENCE, 6.5, 0.0077)], None);
        suggestion.rows[0].verified = None;
        let error = entries(&suggestion, None).unwrap_err().to_string();
        assert_eq!(error, "nothing is written: nothing was verified");
        suggestion.recommended = None;
        assert!(entries(&suggestion, None)
            .unwrap_err()
            .to_string()
            .contains("nothing to recommend"));
    }

    #[test]
    fn a_limit_that_is_never_reached_is_written_only_under_a_confidence() {
        let mut suggestion = suggestion(vec![row(REFERENCE, 6.5, 0.0077)], None);
        let statistics = &mut suggestion.rows[0].verified.as_mut().unwrap().statistics;
        // so many flips go with a mean KLD of 0.1
        statistics.top1_agreement = 0.8;
        let entries = |confidence| entries(&suggestion, confidence).unwrap();
        let Edited { text, warnings, .. } = written(POLICY, "tiny", &entries(None));
        assert!(warnings.is_empty(), "{}", warnings[0].styled());
        assert!(text.contains("top1_agreement = false, p99_kld = "), "{text}");
        let sure = POLICY.replace("chunks = 10", "chunks = 10\nconfidence = 0.95");
        let Edited { text, warnings, .. } = written(&sure, "tiny", &entries(Some(0.95)));
        assert!(warnings.is_empty() && text.contains("top1_agreement = 0.7"), "{text}");
    }

    #[test]
    fn a_policy_with_errors_stays_as_it_is() {
        let path = Path::new("thresholds.toml");
        assert!(edited("[models.tiny]\n", path, "tiny", &found()).is_err());
        assert!(edited(POLICY, path, "nobody", &found()).is_err());
    }
}
