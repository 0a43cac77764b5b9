//! Judges a cell's statistics by its limits and its expectation.
//!
//! A measurement that cannot be trusted is an error, whatever the policy expects: not even `expect = "fail"`
//! is met by it.

mod confidence;
mod retrieval;

use crate::judge::interval;
use crate::kv::codec;
use crate::kv::effective::codec_names;
use crate::kv::Scheme;
use crate::policy::{Cell, Expectation, Limit, ModelPolicy};
use crate::results::case::CaseKind;
use crate::results::measured_by::MeasuredBy;
use crate::results::retrieval::{JudgedRetrieval, Retrieved};
use crate::results::statistics::{Direction, Part, Quantity, Statistic, Statistics, LEAST_CHUNKS};
use crate::results::verdict::GoldenValues;
use crate::results::verdict::{limit_on, of_each_look, Decision, JudgedLimit, Verdict};
use crate::results::{Floor, Outcome, SchemeResult, Seen};
use crate::text::command::{self, Measure};
use crate::text::numbers::{count, rounded, significant, Rounded};
use std::fmt;
use std::path::PathBuf;

/// The result of judging a cell by its limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// The verdict of the `kld` case.
    pub verdict: Verdict,
    /// The limits that were judged. Empty for an error and for `expect = "report"`.
    pub limits: Vec<JudgedLimit>,
    /// The limits on what is retrieved that were judged: see [`judge_with_retrieval`].
    pub retrieval: Vec<JudgedRetrieval>,
    /// How many chunks the limits were judged by, if that was not the first look.
    pub chunks: Option<usize>,
    /// The explanation for people. Empty for a plain pass.
    pub message: String,
}

impl Judgement {
    /// The limits that are broken.
    pub fn broken(&self) -> impl Iterator<Item = &JudgedLimit> {
        self.limits.iter().filter(|limit| limit.decision() == Decision::Broken)
    }
}

/// Judges one limit, with the confidence that the policy asks for, if it asks for one.
fn judged(
    limit: &Limit,
    (statistics, parts): (&Statistics, &[Part]),
    (confidence, looks): (Option<f64>, usize),
) -> JudgedLimit {
    let Limit { quantity: Quantity { ref category, statistic }, bound, ref origin } = *limit;
    let of_category = category.as_ref().map(|category| of_category(parts, category));
    let (statistics, parts) =
        of_category.as_ref().map_or((statistics, parts), |(own, parts)| (own, &parts[..]));
    let value = statistics.get(statistic);
    let of_look = confidence.map(|confidence| of_each_look(confidence, looks));
    let interval = confidence::interval(statistic, (statistics, parts), of_look);
    let borderline = match &interval {
        Ok(interval) => {
            (interval.low..=interval.high).contains(&bound) && interval.low < interval.high
        }
        Err(_) => is_borderline(statistics, statistic, bound),
    };
    let (low, high, no_interval) = confidence::told(interval, confidence);
    JudgedLimit {
        statistic,
        category: category.clone(),
        value,
        bound,
        origin: origin.clone(),
        holds: holds(statistic, value, bound),
        borderline,
        confidence: confidence.filter(|_| low.is_some()),
        looks: confidence.filter(|_| low.is_some() && looks > 1).map(|_| looks),
        low,
        high,
        no_interval,
    }
}

/// How many floors a limit on the mean KLD must be.
const FLOORS: f64 = 3.0;

/// Why a limit on the mean KLD of a scheme that quantizes says nothing: the unquantized cache alone, computed in other
/// batches, reads about as much, or nobody knows how much it reads. A scheme that quantizes nothing reads less than that,
/// and its limit may be as low as people like.
pub(super) fn floor_fault(
    cell: &Cell,
    scheme: &SchemeResult,
    floor: Option<Floor>,
    by: MeasuredBy,
) -> Option<String> {
    let is_lossy = |name: &&str| codec::find(name).is_none_or(|c| !c.exactness().is_unquantized());
    if !codec_names(&scheme.effective).iter().any(is_lossy) {
        return None;
    }
    let on_mean = |limit: &&Limit| limit.quantity.statistic == Statistic::MeanKld;
    let mut limits = applied(cell).iter().filter(on_mean);
    let Some(floor) = floor else {
        let limit = limits.next().filter(|_| by == MeasuredBy::Kvgate && has_histograms(scheme))?;
        return Some(format!(
            "{} cannot be judged: the floor is missing, which every run of this kvgate measures; measure again (if it \
             could not be measured, a note of the run says why)",
            named(limit)
        ));
    };
    let least = FLOORS * floor.mean_kld;
    let limit = limits.find(|limit| limit.bound < least)?;
    Some(format!(
        "{} is below three times the floor {}, which the unquantized cache reads against itself if nothing but the order \
         of sums differs; set it to {} at least",
        named(limit),
        significant(floor.mean_kld, 2),
        rounded(least, 2, Rounded::Up)
    ))
}

/// Whether a scheme's chunks have histograms. Files of format 1 have neither these nor a floor.
fn has_histograms(scheme: &SchemeResult) -> bool {
    let Outcome::Measured { parts, .. } = &scheme.outcome else { return false };
    parts.iter().any(|part| !part.histogram.is_empty())
}

/// The chunks of a category, and their statistics.
fn of_category(parts: &[Part], category: &str) -> (Statistics, Vec<Part>) {
    let parts: Vec<Part> = parts.iter().filter(|part| part.category == category).cloned().collect();
    (Statistics::of_parts(&parts), parts)
}

/// Judges a cell by its limits on statistics, which is all that further chunks may decide.
///
/// `obstacle` is the reason why it cannot be judged, if it cannot: see [`crate::judge::Evidence::to_judge`].
/// `golden` holds the accepted values, which only the message shows.
pub fn judge(
    model: &ModelPolicy,
    cell: &Cell,
    outcome: &Outcome,
    obstacle: Option<&str>,
    golden: Option<&GoldenValues>,
) -> Judgement {
    let seen = trusted(model, cell, outcome, obstacle);
    seen.map_or_else(
        |reason| not_judged(model, cell, &reason),
        |seen| judge_seen(model, cell, &seen, (&[], &[]), golden),
    )
}

/// Judges a cell by all of its limits, also by those on what a scheme retrieved from long contexts.
pub fn judge_with_retrieval(
    model: &ModelPolicy,
    cell: &Cell,
    (outcome, retrieved): (&Outcome, &[Retrieved]),
    obstacle: Option<&str>,
    golden: Option<&GoldenValues>,
) -> Judgement {
    let judged = trusted(model, cell, outcome, obstacle)
        .and_then(|seen| Ok((seen, retrieval::judged(model, cell, retrieved)?)));
    judged.map_or_else(
        |reason| not_judged(model, cell, &reason),
        |(seen, judged)| judge_seen(model, cell, &seen, (&judged, retrieved), golden),
    )
}

/// The error of a cell that cannot be judged.
fn not_judged(model: &ModelPolicy, cell: &Cell, reason: &str) -> Judgement {
    let (case, next) = (model.case(cell, CaseKind::Kld), next_commands(model, cell));
    Judgement {
        verdict: Verdict::Error,
        limits: Vec::new(),
        retrieval: Vec::new(),
        chunks: None,
        message: format!("{case}: {reason}\n{next}"),
    }
}

/// Judges a cell by what was there at each look, and by what is known of its limits on what was retrieved.
fn judge_seen(
    model: &ModelPolicy,
    cell: &Cell,
    seen: &[Seen],
    (retrieval, retrieved): (&[JudgedRetrieval], &[Retrieved]),
    golden: Option<&GoldenValues>,
) -> Judgement {
    let looks = model.looks();
    let first = seen.first().expect("there is a first look");
    let mut judged = Vec::new();
    for (seen, planned) in seen.iter().zip(&looks) {
        // chunks that this policy does not ask for do not count, whoever measured them
        if !judged.is_empty() && !is_planned(seen, *planned) {
            break;
        }
        judged.push((seen, judged_limits(model, cell, (first, seen), looks.len())));
        if judged.last().is_some_and(|(_, limits)| is_decided(cell, limits)) {
            break;
        }
    }
    let chunks: Vec<usize> = judged.iter().map(|(seen, _)| seen.parts.len()).collect();
    let of_look = chunks[1..].last().copied();
    let (seen, limits) = judged.pop().expect("there is a first look");
    let verdict = confidence::verdict(cell.expect, &limits);
    let verdict = retrieval::verdict(cell.expect, verdict, retrieval);
    let is_plain = verdict == Verdict::Pass && !limits.iter().any(|limit| limit.borderline);
    let message = match is_plain {
        true => String::new(),
        false => {
            let limits = &limits;
            let message = Message {
                model,
                cell,
                seen,
                chunks,
                limits,
                retrieval,
                retrieved,
                verdict,
                golden,
            };
            message.to_string()
        }
    };
    Judgement { verdict, limits, retrieval: retrieval.to_vec(), chunks: of_look, message }
}

/// Whether a look was at as many chunks as the policy plans, or at fewer because there is no more text. Whoever measured
/// could otherwise look whenever the values are good.
fn is_planned(seen: &Seen, planned: usize) -> bool {
    let chunks = seen.parts.len();
    chunks == planned || (chunks < planned && seen.is_whole())
}

/// The limits of a cell, judged by what was there at one of several looks. More chunks make a value that has no interval no
/// surer. So it stays that of the first chunks, for which its limit was made: the largest KLD of more chunks is larger,
/// and the perplexity of another part of a text is another.
fn judged_limits(
    model: &ModelPolicy,
    cell: &Cell,
    (first, seen): (&Seen, &Seen),
    looks: usize,
) -> Vec<JudgedLimit> {
    let of_its_chunks = |limit: &Limit| {
        let Seen { statistics, parts } =
            if interval::may_have_one(limit.quantity.statistic) { seen } else { first };
        judged(limit, (statistics, parts), (model.confidence, looks))
    };
    applied(cell).iter().map(of_its_chunks).collect()
}

/// The limits that a cell is judged by.
fn applied(cell: &Cell) -> &[Limit] {
    match cell.expect {
        Expectation::Report => &[],
        Expectation::Pass | Expectation::Fail => &cell.limits,
    }
}

fn is_decided(cell: &Cell, limits: &[JudgedLimit]) -> bool {
    confidence::verdict(cell.expect, limits) != Verdict::Inconclusive
}

/// Returns what was there at each look, or the reason why it cannot be judged.
fn trusted<'o>(
    model: &ModelPolicy,
    cell: &Cell,
    outcome: &'o Outcome,
    obstacle: Option<&str>,
) -> Result<Vec<Seen<'o>>, String> {
    let (statistics, parts, looks) = match outcome {
        Outcome::Failed { error } => return Err(format!("could not be measured: {error}")),
        Outcome::Measured { statistics, parts, looks } => (statistics, parts, looks),
    };
    if let Some(reason) = obstacle {
        return Err(reason.into());
    }
    let looks = &looks[..looks.len().min(model.looks().len() - 1)];
    let seen: Vec<_> = Seen::all(statistics, parts, looks).collect();
    seen.iter().try_for_each(|seen| numbers(cell, seen))?;
    if cell.limits.is_empty() && cell.expect != Expectation::Report {
        return Err("no limit applies: there is nothing to judge by".into());
    }
    Ok(seen)
}

/// Checks that there are numbers which the limits of a cell can be held against.
///
/// # Errors
/// What is no number, or no bound, or not known.
fn numbers(cell: &Cell, seen: &Seen) -> Result<(), String> {
    let (statistics, parts) = (seen.statistics, &seen.parts[..]);
    if statistics.tokens_scored == 0 {
        return Err("no token was scored".into());
    }
    if let Some(reason) = Statistic::ALL.into_iter().find_map(|own| no_number(statistics, own)) {
        return Err(reason);
    }
    if let Some(limit) = cell.limits.iter().find(|limit| !limit.bound.is_finite()) {
        return Err(format!("{} is no bound", named(limit)));
    }
    if let Some(reason) =
        applied(cell).iter().find_map(|limit| unjudgeable(limit, statistics, parts))
    {
        return Err(reason);
    }
    Ok(())
}

/// Why a limit cannot be judged by what was measured, if it cannot.
fn unjudgeable(limit: &Limit, statistics: &Statistics, parts: &[Part]) -> Option<String> {
    let (quantity, named) = (&limit.quantity, named(limit));
    let name = quantity.statistic.name();
    if !statistics.knows(quantity.statistic) {
        return Some(format!(
            "{named} cannot be judged: what measured does not say {name}; measure with a newer build, or set \
             `{name} = false` for this scheme"
        ));
    }
    match &quantity.category {
        Some(category) if parts.is_empty() => Some(format!(
            "{named} cannot be judged: what measured gives no values of chunks; set `category.{category}.{name} = \
             false` for this scheme"
        )),
        Some(category) => too_few_chunks(limit, parts.iter().map(|part| &part.category[..]))
            .or_else(|| {
                let (of_category, _) = of_category(parts, category);
                no_number(&of_category, quantity.statistic)
                    .map(|why| format!("{named} cannot be judged: of `{category}`, {why}"))
            }),
        None => None,
    }
}

/// Says that a statistic or its standard error is no number, if it is none.
fn no_number(statistics: &Statistics, statistic: Statistic) -> Option<String> {
    let (value, error) = (statistics.get(statistic), statistics.standard_error(statistic));
    if value.is_finite() && error.unwrap_or(0.0).is_finite() {
        return None;
    }
    let error = error.map(|error| format!(" ± {error}")).unwrap_or_default();
    Some(format!("{} is {value}{error}, which is no number", statistic.name()))
}

/// Why a limit by category cannot be judged on chunks of these categories, if they are too few. A text may be too short
/// for its share.
pub fn too_few_chunks<'c>(limit: &Limit, chunks: impl Iterator<Item = &'c str>) -> Option<String> {
    let category = limit.quantity.category.as_ref()?;
    let found = chunks.filter(|own| own == category).count();
    (found < LEAST_CHUNKS).then(|| {
        let name = limit.quantity.statistic.name();
        format!(
            "{} cannot be judged: there are {} of `{category}`, and {LEAST_CHUNKS} are needed: its text is too short; add \
             text, or drop the limit: `category.{category}.{name} = false`",
            named(limit),
            count(found, "chunk")
        )
    })
}

/// A limit and where it stands.
fn named(Limit { quantity, bound, origin }: &Limit) -> String {
    format!("the limit {} = {bound} ({origin})", quantity.name())
}

fn holds(statistic: Statistic, value: f64, bound: f64) -> bool {
    match statistic.direction() {
        Direction::AtMost => value <= bound,
        Direction::AtLeast => value >= bound,
    }
}

fn is_borderline(statistics: &Statistics, statistic: Statistic, bound: f64) -> bool {
    let distance = (statistics.get(statistic) - bound).abs();
    // without a standard error, such as for an exact zero and a bound of zero, nothing is uncertain
    let error = statistics.standard_error(statistic).filter(|error| *error > 0.0);
    error.is_some_and(|error| distance <= 2.0 * error)
}

/// The least width of the column of names, for messages that stand below each other.
const NAME_WIDTH: usize = 15;

/// The explanation of a case for people.
struct Message<'a> {
    model: &'a ModelPolicy,
    cell: &'a Cell,
    seen: &'a Seen<'a>,
    /// How many chunks there were in all at each look.
    chunks: Vec<usize>,
    limits: &'a [JudgedLimit],
    retrieval: &'a [JudgedRetrieval],
    /// What the limits on what is retrieved were held against.
    retrieved: &'a [Retrieved],
    verdict: Verdict,
    golden: Option<&'a GoldenValues>,
}

impl fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let case = self.model.case(self.cell, CaseKind::Kld);
        let decisions = || {
            let of_retrieval = self.retrieval.iter().map(|limit| limit.decision);
            self.limits.iter().map(JudgedLimit::decision).chain(of_retrieval)
        };
        let count = |wanted| decisions().filter(|decision| *decision == wanted).count();
        let (broken, undecided) = (count(Decision::Broken), count(Decision::Undecided));
        write!(f, "{case}: {}", self.verdict.label())?;
        match (decisions().count(), undecided) {
            (0, _) => writeln!(f)?,
            (limits, 0) => writeln!(f, ", {broken} of {limits} limits broken")?,
            (limits, _) => {
                writeln!(f, ", {broken} of {limits} limits broken, {undecided} undecided")?
            }
        }
        for statistic in Statistic::ALL.into_iter().filter(|s| self.seen.statistics.knows(*s)) {
            self.row(f, statistic)?;
        }
        for limit in self.limits.iter().filter(|limit| limit.category.is_some()) {
            self.limit_row(f, limit, &shown(limit.value, None, limit.statistic))?;
        }
        for limit in self.retrieval {
            writeln!(f, "{}", retrieval::lines(limit, self.retrieved))?;
        }
        writeln!(f, "  {} tokens scored", self.seen.statistics.tokens_scored)?;
        if let Some(looks) = self.looks() {
            writeln!(f, "{looks}")?;
        }
        if let Some(reason) = &self.cell.reason {
            writeln!(f, "the policy's reason: {reason}")?;
        }
        if self.verdict == Verdict::UnexpectedPass {
            let mend = "if the scheme was mended, drop the `expect`; if not, tighten a limit";
            writeln!(f, "the policy expects a broken limit: {mend}")?;
        }
        if self.verdict.is_red() && self.golden.is_none() {
            writeln!(f, "no accepted golden: whether a value has moved cannot be told")?;
        }
        f.write_str(&next_commands(self.model, self.cell))
    }
}

impl Message<'_> {
    /// The line of a statistic, with its limit if there is one.
    fn row(&self, f: &mut fmt::Formatter<'_>, statistic: Statistic) -> fmt::Result {
        let limit = limit_on(self.limits, statistic);
        let value = limit.map_or_else(|| self.seen.statistics.get(statistic), |limit| limit.value);
        let shown = shown(value, self.seen.statistics.standard_error(statistic), statistic);
        match limit {
            Some(limit) => self.limit_row(f, limit, &shown),
            None => {
                let width = self.width();
                writeln!(f, "  {:<width$} {}", statistic.name(), shown.trim_end())
            }
        }
    }

    /// The line of a limit beside its value.
    fn limit_row(
        &self,
        f: &mut fmt::Formatter<'_>,
        limit: &JudgedLimit,
        shown: &str,
    ) -> fmt::Result {
        let mark = limit.decision().mark();
        let side = match limit.statistic.direction() {
            Direction::AtMost => "at most",
            Direction::AtLeast => "at least",
        };
        let JudgedLimit { bound, origin, .. } = limit;
        let name = limit.quantity().name();
        let width = self.width();
        write!(f, "{mark} {name:<width$} {shown:<27} limit: {side} {bound} ({origin})")?;
        if limit.decision() == Decision::Broken {
            write!(f, ", {}", limit.excess())?;
        }
        let borderline = if limit.borderline { ", borderline" } else { "" };
        writeln!(f, "{borderline}")?;
        let remarks =
            confidence::remarks(limit, (self.chunks_of(limit), self.seen.parts.len())).into_iter();
        remarks
            .chain(self.of_the_first(limit))
            .chain(self.moved(limit))
            .try_for_each(|remark| writeln!(f, "    {remark}"))
    }

    /// How wide the column of names is.
    fn width(&self) -> usize {
        let names = self.limits.iter().map(|limit| limit.quantity().name().chars().count());
        names.fold(NAME_WIDTH, usize::max)
    }

    /// How many chunks a limit is judged by.
    fn chunks_of(&self, limit: &JudgedLimit) -> usize {
        let is_its = |part: &&Part| limit.category.as_ref().is_none_or(|own| part.category == *own);
        self.seen.parts.iter().filter(is_its).count()
    }

    /// Says of which chunks a value is that further looks leave as it is.
    fn of_the_first(&self, limit: &JudgedLimit) -> Option<String> {
        let is_its = self.chunks.len() > 1 && !interval::may_have_one(limit.statistic);
        is_its.then(|| format!("the value is that of the first {}", count(self.chunks[0], "chunk")))
    }

    /// Says how often the scheme was looked at, if the policy lets a run look more than once.
    fn looks(&self) -> Option<String> {
        let most = self.model.max_chunks?;
        let chunks: Vec<String> = self.chunks.iter().map(ToString::to_string).collect();
        let after = match &chunks[..] {
            [] | [_] => return None,
            [before @ .., last] => format!("{} chunks left it open, {last}", before.join(" and ")),
        };
        let found = match confidence::verdict(self.cell.expect, self.limits) {
            Verdict::Inconclusive => "leave it open, too",
            _ => "decide",
        };
        Some(format!("looked at more than once: {after} {found} (at most {most} are measured)"))
    }

    /// Says whether the value or the limit has moved since the golden was accepted.
    fn moved(&self, limit: &JudgedLimit) -> Option<String> {
        let is_of_more_chunks = self.chunks.len() > 1 && interval::may_have_one(limit.statistic);
        if limit.category.is_some() || is_of_more_chunks {
            return None; // goldens have the values of the first chunks, and of all categories together
        }
        let now = limit.value;
        let then = *self.golden?.get(&limit.statistic)?;
        let held = |value| holds(limit.statistic, value, limit.bound);
        let golden = significant(then, 5);
        match (self.verdict, held(then), held(now)) {
            (Verdict::Regressed, false, false) => Some(format!(
                "the golden's {golden} breaks it, too: the limit has moved, or was never met"
            )),
            (Verdict::UnexpectedPass, true, true) => Some(format!(
                "the golden's {golden} holds, too: the limit has moved, or was never broken"
            )),
            (Verdict::Regressed, true, false) | (Verdict::UnexpectedPass, false, true) => Some(
                format!("the value has moved: {golden} in the golden, {} now", significant(now, 5)),
            ),
            _ => None,
        }
    }
}

/// A value with its standard error and its unit.
fn shown(value: f64, error: Option<f64>, statistic: Statistic) -> String {
    let error = error.map(|error| format!(" ± {}", significant(error, 2))).unwrap_or_default();
    format!("{}{error} {}", significant(value, 5), statistic.unit())
}

/// What to run to see more of a cell.
fn next_commands(model: &ModelPolicy, cell: &Cell) -> String {
    let word = |path: &PathBuf| path.to_string_lossy().into_owned();
    let baseline = model.baseline.to_string();
    let measure = Measure {
        source: &model.source.to_string(),
        corpus: &model.corpus.iter().map(word).collect::<Vec<_>>(),
        calibration: model.calibration.as_ref().filter(|_| cell.scheme.is_calibrated()).map(word),
        schemes: &cell.scheme.to_string(),
        context: model.context,
        chunks: model.chunks,
        baseline: (model.baseline != Scheme::f16()).then_some(baseline.as_str()),
        options: &model.source.options(),
    };
    let run = command::run(&format!("{}::", model.cell_name(cell)));
    format!("again:        {run}\nwithout gate: {measure}")
}

#[cfg(test)]
mod tests;
