//! One line of a report: a scheme with its numbers and its cases.

use crate::results::case::CaseKind;
use crate::results::case::CellName;
use crate::results::replay::Replay;
use crate::results::statistics::{Statistic, Statistics};
use crate::results::verdict::{JudgedLimit, Verdict};
use crate::results::{
    shown_bits, CaseResult, Measurement, Outcome, Results, SchemeResult, Storage,
};

/// A scheme of a model. Its numbers, or its cases, may be missing: a model that could not be loaded
/// has cases only, and `kvgate measure` has numbers only.
pub(super) struct Row<'a> {
    pub model: &'a str,
    pub label: &'a str,
    pub scheme: Option<&'a SchemeResult>,
    /// The `kld` case and the `golden` case.
    pub cases: [Option<&'a CaseResult>; 2],
}

impl<'a> Row<'a> {
    pub fn statistics(&self) -> Option<&'a Statistics> {
        match &self.scheme?.outcome {
            Outcome::Measured { statistics, .. } => Some(statistics),
            Outcome::Failed { .. } => None,
        }
    }

    pub fn is_red(&self) -> bool {
        self.cases.iter().flatten().any(|case| case.verdict.is_red())
    }

    /// Whether nothing of it was asked for.
    pub fn is_ignored(&self) -> bool {
        let mut cases = self.cases.iter().flatten().peekable();
        cases.peek().is_some() && cases.all(|case| case.verdict == Verdict::Ignored)
    }

    /// Cells of the columns of [`MEANS`].
    fn means(&self) -> [String; 2] {
        let bits = self.scheme.and_then(|s| s.storage).map_or(dash(), |storage| {
            let bits = storage.bits_at_context;
            format!("{} / {}", shown_bits(bits.k), shown_bits(bits.v))
        });
        let mean = |s: &Statistics| format!("{:.5} ± {:.5}", s.mean_kld, s.mean_kld_se);
        [bits, self.statistics().map_or(dash(), mean)]
    }

    /// Cells of the columns of [`JUDGED`].
    fn judged(&self) -> [String; 2] {
        let [kld, golden] = self.cases;
        let limits = kld.map_or(&[][..], |case| &case.limits);
        let limit = limits.iter().find(|limit| limit.statistic == Statistic::MeanKld);
        let changes = golden.map_or(&[][..], |case| &case.changes);
        let change = changes.iter().find(|change| change.name == Statistic::MeanKld.name());
        [
            limit.map_or(dash(), |limit| limit.bound.to_string()),
            change.map_or(dash(), |change| relative(change.golden, change.now)),
        ]
    }

    /// Cells of the columns of [`TAILS`].
    fn tails(&self) -> [String; 2] {
        self.statistics().map_or([dash(), dash()], |s| {
            [format!("{:.4}", s.p99_kld), format!("{:.2} %", s.top1_agreement * 100.0)]
        })
    }

    /// Cells of the columns of [`COSTS`], and before them the perplexity's ratio.
    fn unjudged(&self) -> [String; 3] {
        let ratio = self.statistics().map_or(dash(), |s| format!("{:.4}", s.ppl_ratio));
        let [bytes, share] = self.costs();
        [ratio, bytes, share]
    }

    /// Cells of the columns of [`COSTS`].
    fn costs(&self) -> [String; 2] {
        match self.scheme.and_then(|scheme| scheme.storage) {
            None => std::array::from_fn(|_| dash()),
            Some(s) => {
                [format!("{:.0}", s.bytes_per_token), format!("{:.1} %", s.ratio_to_f16 * 100.0)]
            }
        }
    }

    /// Cells of the columns of [`REPLAYED`].
    fn replayed(&self) -> [String; 4] {
        let replay = self.scheme.and_then(|scheme| scheme.replay.as_ref());
        // flips of what nothing of a scheme was at work on are no flips that it avoided
        let charged = |replay: &&Replay| replay.charged_share.k + replay.charged_share.v > 0.0;
        let Some(replay) = replay.filter(charged) else {
            return std::array::from_fn(|_| dash());
        };
        let exact = replay.prompts.iter().filter(|prompt| prompt.first_flip.is_none()).count();
        [
            format!("{:.1}", replay.flips_per_1k()),
            format!("{:.1}", replay.hard_flips_per_1k()),
            format!("{exact} of {}", replay.prompts.len()),
            replay.median_first_flip().map_or("–".into(), |at| (at + 1).to_string()),
        ]
    }

    /// The scheme's name, and what really ran where that is spelled otherwise and short.
    pub fn name(&self) -> String {
        match self.renamed().filter(|effective| effective.len() <= LONGEST_NAME) {
            Some(effective) => format!("{} = {effective}", self.label),
            None => self.label.into(),
        }
    }

    /// What really ran, where it is spelled otherwise.
    pub fn renamed(&self) -> Option<&'a str> {
        self.scheme.map(|s| s.effective.as_str()).filter(|effective| *effective != self.label)
    }

    /// What the columns have no room for: what ran, and how much of it was at work.
    pub fn remarks(&self) -> Vec<String> {
        let effective = self.renamed().filter(|effective| effective.len() > LONGEST_NAME);
        let effective = effective.map(|effective| format!("{} = {effective}", self.label));
        let storage = self.scheme.and_then(|scheme| scheme.storage);
        let at_work: Vec<_> = [
            storage.as_ref().and_then(storage_remark),
            storage.and_then(|s| s.clamped_scales).map(clamp_remark),
            self.scheme.and_then(|scheme| scheme.replay.as_ref()).and_then(replay_remark),
        ]
        .into_iter()
        .flatten()
        .collect();
        let at_work =
            (!at_work.is_empty()).then(|| format!("{}: {}", self.label, at_work.join("; ")));
        effective.into_iter().chain(at_work).collect()
    }

    fn of(model: &'a str, label: &'a str, results: &'a Results) -> Self {
        let scheme = results
            .measurements
            .iter()
            .filter(|m| m.model == model)
            .flat_map(|m| &m.schemes)
            .find(|s| s.scheme == label);
        let cell = CellName::new(model, label);
        let cases = CaseKind::ALL.map(|kind| {
            let name = cell.case(kind).to_string();
            results.cases.iter().find(|case| case.case == name)
        });
        Self { model, label, scheme, cases }
    }
}

/// Of schemes that leave some keys exact.
fn storage_remark(storage: &Storage) -> Option<String> {
    let (share, bits) = (storage.charged_share, storage.bits_per_element);
    (share.k < 1.0 || share.v < 1.0).then(|| {
        format!(
            "{:.1} / {:.1} % of query-key pairs read a quantized key, of {} / {} bits",
            share.k * 100.0,
            share.v * 100.0,
            shown_bits(bits.k),
            shown_bits(bits.v)
        )
    })
}

fn clamp_remark(share: f64) -> String {
    format!("{:.1} % of its scales stand at their limit", share * 100.0)
}

/// Of schemes whose tail covers the baseline's text, or some of it.
fn replay_remark(replay: &Replay) -> Option<String> {
    let share = replay.charged_share;
    let charged = share.k.min(share.v);
    if share.k == 0.0 && share.v == 0.0 {
        Some("the baseline's text is shorter than its tail: flips say nothing".into())
    } else if charged < 1.0 {
        let share = [share.k, share.v].map(|share| share * 100.0);
        Some(format!("on the baseline's text {:.1} / {:.1} %", share[0], share[1]))
    } else {
        None
    }
}

/// What is not there.
fn dash() -> String {
    "–".into()
}

/// A value against an older one, as a share of it.
pub(super) fn relative(old: f64, new: f64) -> String {
    match (new / old - 1.0) * 100.0 {
        _ if old == 0.0 && new != 0.0 => "from 0".into(),
        // goldens have four digits
        percent if old == new || percent.abs() < 0.05 => "=".into(),
        percent if percent.abs() < 10.0 => format!("{percent:+.1} %"),
        percent => format!("{percent:+.0} %"),
    }
}

/// The limit that a case breaks the most.
pub(super) fn worst(case: &CaseResult) -> Option<&JudgedLimit> {
    let broken = case.limits.iter().filter(|limit| !limit.holds);
    broken.max_by(|a, b| a.ratio().total_cmp(&b.ratio()))
}

/// How far a red case is beyond it: `mean_kld 1.22 ×`.
pub(super) fn excess(case: &CaseResult) -> Option<String> {
    let worst = worst(case).filter(|_| case.verdict.is_red())?;
    let name = worst.statistic.name();
    Some(match worst.ratio().is_finite() {
        true => format!("{name} {:.2} ×", worst.ratio()),
        false => format!("{name} ∞ ×"),
    })
}

/// The first columns.
const MEANS: [&str; 2] = ["bits K/V", "mean KLD"];

/// Of rows with cases: the limit of the mean KLD, and its change against the golden.
const JUDGED: [&str; 2] = ["limit", "Δ golden"];

/// The columns after these.
const TAILS: [&str; 2] = ["p99", "top-1"];

/// The columns of rows without cases, where a scheme is looked for: the perplexity's ratio, bytes that a
/// token adds to the cache, and what the cache at the measured context takes of that of f16.
const COSTS: [&str; 3] = ["PPL ratio", "B/token", "of f16"];

/// The columns of rows that have replays: flips and hard flips per 1,000 tokens, prompts without a flip,
/// tokens by which half of the texts have parted.
const REPLAYED: [&str; 4] = ["flips/1k", "hard", "same text", "half part by"];

/// Longer names of what ran stand below the table.
const LONGEST_NAME: usize = 24;

/// Names of the numbers' columns, and each row's cells.
pub(super) fn numbers(rows: &[Row]) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let replayed = rows.iter().any(|row| row.scheme.is_some_and(|s| s.replay.is_some()));
    let judged = rows.iter().any(|row| row.cases.iter().any(Option::is_some));
    let cells = |row: &Row| {
        let mut cells = Vec::from(row.means());
        cells.extend(if judged { row.judged().into() } else { Vec::new() });
        cells.extend(row.tails());
        cells.extend(if judged { Vec::new() } else { row.unjudged().into() });
        cells.extend(if replayed { row.replayed().into() } else { Vec::new() });
        cells
    };
    let shown = |names: &'static [&'static str], shown: bool| if shown { names } else { &[] };
    let names = [
        &MEANS[..],
        shown(&JUDGED, judged),
        &TAILS,
        shown(&COSTS, !judged),
        shown(&REPLAYED, replayed),
    ];
    (names.concat(), rows.iter().map(cells).collect())
}

/// Names of models, in the order of measurements, then of cases.
pub(super) fn models(results: &Results) -> Vec<&str> {
    let measured = results.measurements.iter().map(|m| m.model.as_str());
    unique(measured.chain(results.cases.iter().map(|case| case.words().0)))
}

/// The rows of a model: schemes in the order of the measurement, then those with cases only.
pub(super) fn rows<'a>(results: &'a Results, model: &'a str) -> Vec<Row<'a>> {
    let measured = measurement(results, model).into_iter().flat_map(|m| &m.schemes);
    let judged = results.cases.iter().map(CaseResult::words).filter(|w| w.0 == model);
    let labels = unique(measured.map(|s| s.scheme.as_str()).chain(judged.map(|w| w.1)));
    labels.into_iter().map(|label| Row::of(model, label, results)).collect()
}

pub(super) fn measurement<'a>(results: &'a Results, model: &str) -> Option<&'a Measurement> {
    results.measurements.iter().find(|m| m.model == model)
}

/// Numbers of the scheme that a case is about.
fn statistics_of<'a>(results: &'a Results, case: &'a CaseResult) -> Option<&'a Statistics> {
    let (model, label) = case.words();
    Row::of(model, label, results).statistics()
}

/// Cases that are not as the policy wants, the worst first: harm before change, change before what
/// could not be measured, and the larger divergence first.
pub(super) fn red_cases(results: &Results) -> Vec<&CaseResult> {
    let mut red: Vec<_> = results.cases.iter().filter(|case| case.verdict.is_red()).collect();
    let excess = |case: &CaseResult| worst(case).map_or(0.0, JudgedLimit::ratio);
    let kld = |case| statistics_of(results, case).map_or(0.0, |s| s.mean_kld);
    red.sort_by(|a, b| {
        let by_harm = excess(b).total_cmp(&excess(a)).then(kld(b).total_cmp(&kld(a)));
        rank(a.verdict).cmp(&rank(b.verdict)).then(by_harm)
    });
    red
}

/// All rows: those that are not as the policy wants, the worst first, and the others.
pub(super) fn ranked(results: &Results) -> (Vec<Row<'_>>, Vec<Row<'_>>) {
    let red = red_cases(results);
    let all = models(results).into_iter().flat_map(|model| rows(results, model));
    let (mut failing, passing): (Vec<_>, Vec<_>) = all.partition(Row::is_red);
    let place = |row: &Row| {
        let is_its = |case: &&CaseResult| row.cases.iter().flatten().any(|c| c.case == case.case);
        red.iter().position(is_its)
    };
    failing.sort_by_key(place);
    (failing, passing)
}

/// Whether anything was judged and held: skipped, reported or not judged at all is never a pass.
pub(super) fn any_held(results: &Results) -> bool {
    let held = |case: &CaseResult| matches!(case.verdict, Verdict::Pass | Verdict::FailsAsRequired);
    results.cases.iter().any(held)
}

/// A verdict in a cell: `✗ regressed mean_kld 1.22 ×`.
pub(super) fn verdict_words(case: &CaseResult) -> String {
    let verdict = case.verdict;
    match excess(case) {
        // its symbol says it in words already
        _ if verdict == Verdict::FailsAsRequired => verdict.symbol().into(),
        Some(excess) => format!("{} {} {excess}", verdict.symbol(), verdict.label()),
        None => format!("{} {}", verdict.symbol(), verdict.label()),
    }
}

fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Regressed => 0,
        Verdict::UnexpectedPass => 1,
        Verdict::GoldenChanged => 2,
        Verdict::Stale => 3,
        Verdict::Inconclusive => 4,
        Verdict::Error => 5,
        Verdict::Pass | Verdict::FailsAsRequired | Verdict::Reported | Verdict::Ignored => 6,
    }
}

fn unique<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut unique = Vec::new();
    for name in names {
        if !unique.contains(&name) {
            unique.push(name);
        }
    }
    unique
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Sides;
    use crate::testing::fixture;

    #[test]
    fn remarks_say_what_was_at_work() {
        let mut results = fixture::results();
        let schemes = &mut results.measurements[0].schemes;
        schemes[1].effective = "q4_0·H256:tail=32/q4_0·H64:tail=32".into();
        schemes[1].replay = Some(fixture::replay());
        let storage = schemes[1].storage.as_mut().unwrap();
        storage.charged_share = Sides { k: 0.831, v: 1.0 };
        storage.clamped_scales = Some(0.25);
        schemes[0].replay =
            Some(Replay { charged_share: Sides { k: 0.0, v: 0.0 }, ..fixture::replay() });
        let rows = rows(&results, "gemma-3-270m");
        let remarks = |i: usize| rows[i].remarks();
        assert_eq!(
            remarks(0),
            ["q8_0: the baseline's text is shorter than its tail: flips say nothing"]
        );
        assert_eq!(
            remarks(1),
            [
                "q4_0 = q4_0·H256:tail=32/q4_0·H64:tail=32",
                "q4_0: 83.1 / 100.0 % of query-key pairs read a quantized key, of 4.5 / 4.5 bits; 25.0 % of \
                 its scales stand at their limit",
            ]
        );
        assert!(remarks(2).is_empty());
        let (names, cells) = numbers(&rows);
        assert_eq!(names[6..], REPLAYED);
        assert_eq!(cells[1][6..], ["250.0", "250.0", "1 of 2", "3"]);
        assert_eq!(cells[2][6..], ["–", "–", "–", "–"]);
    }
}
