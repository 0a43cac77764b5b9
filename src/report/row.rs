//! One row of a report: a scheme of a model with its numbers and its cases.

use crate::judge::interval;
use crate::results::case::{CaseKind, CellName};
use crate::results::replay::Replay;
use crate::results::retrieval::{Decided, JudgedRetrieval};
use crate::results::statistics::{Statistic, Statistics};
use crate::results::verdict::{worst_broken, worst_undecided, JudgedLimit, Verdict};
use crate::results::{shown_bits, CaseResult, Moved, Results, SchemeResult, Storage};
use crate::text::numbers::significant;
use std::collections::HashMap;

/// Schemes and cases by their names. If a stranger's results have a name twice, the first one counts.
pub(super) struct Cells<'a> {
    schemes: HashMap<(&'a str, &'a str), &'a SchemeResult>,
    cases: HashMap<&'a str, &'a CaseResult>,
}

impl<'a> Cells<'a> {
    pub fn new(results: &'a Results) -> Self {
        let mut schemes = HashMap::new();
        for measurement in &results.measurements {
            for scheme in &measurement.schemes {
                let name = (measurement.model.as_str(), scheme.scheme.as_str());
                schemes.entry(name).or_insert(scheme);
            }
        }
        let mut cases = HashMap::new();
        for case in &results.cases {
            cases.entry(case.case.as_str()).or_insert(case);
        }
        Cells { schemes, cases }
    }

    pub fn row(&self, model: &'a str, label: &'a str) -> Row<'a> {
        let cell = CellName::new(model, label);
        let case = |kind| self.cases.get(cell.case(kind).to_string().as_str()).copied();
        let scheme = self.schemes.get(&(model, label)).copied();
        Row { model, label, scheme, cases: CaseKind::ALL.map(case) }
    }
}

/// A scheme of a model. Its numbers or its cases may be missing: a model that could not be loaded has cases only,
/// and `kvgate measure` has numbers only.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub model: &'a str,
    pub label: &'a str,
    pub scheme: Option<&'a SchemeResult>,
    /// The `kld` case and the `golden` case.
    pub cases: [Option<&'a CaseResult>; 2],
}

impl<'a> Row<'a> {
    pub fn statistics(&self) -> Option<&'a Statistics> {
        self.scheme?.outcome.latest()
    }

    pub fn is_red(&self) -> bool {
        self.cases.iter().flatten().any(|case| case.verdict.is_red())
    }

    /// Whether no case of the scheme was asked for: it has cases, and all of them are ignored.
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
        [bits, self.mean_kld().unwrap_or_else(dash)]
    }

    /// The mean KLD with its interval, or with its standard error if it has none.
    fn mean_kld(&self) -> Option<String> {
        let (s, parts) = (self.statistics()?, self.scheme?.outcome.all_parts());
        let limits = self.cases[0].map_or(&[][..], |case| &case.limits);
        let confidence =
            limits.iter().find_map(JudgedLimit::confidence_of_interval).unwrap_or(interval::SHOWN);
        Some(match interval::of(Statistic::MeanKld, s, &parts, confidence) {
            Ok(interval) => {
                let [low, high] = [interval.low, interval.high].map(|end| significant(end, 2));
                format!("{:.5} ({low}–{high})", s.mean_kld)
            }
            Err(_) => format!("{:.5} ± {:.5}", s.mean_kld, s.mean_kld_se),
        })
    }

    /// Cells of the columns of [`JUDGED`].
    fn judged(&self) -> [String; 2] {
        let golden = self.cases[1];
        let changes = golden.map_or(&[][..], |case| &case.changes);
        let change = changes.iter().find(|change| change.name == Statistic::MeanKld.name());
        [
            mean_kld_limit(self).map_or(dash(), |bound| bound.to_string()),
            change.map_or(dash(), moved),
        ]
    }

    /// Cells of a model card: bits, the mean KLD and its limit, and how often both choose the same token.
    pub fn card(&self) -> [String; 4] {
        let ([bits, kld], [limit, _], [_, top1]) = (self.means(), self.judged(), self.tails());
        [bits, kld, limit, top1]
    }

    /// Cells of the columns of [`TAILS`].
    fn tails(&self) -> [String; 2] {
        self.statistics().map_or([dash(), dash()], |s| {
            [format!("{:.4}", s.p99_kld), format!("{:.2} %", s.top1_agreement * 100.0)]
        })
    }

    /// Cells of the columns of [`CHOICE`].
    fn choice(&self) -> [String; 3] {
        let ratio = self.statistics().map(|s| format!("{:.4}", s.ppl_ratio));
        let storage = self.scheme.and_then(|scheme| scheme.storage);
        let bytes = storage.map(|s| format!("{:.0}", s.bytes_per_token));
        let share = storage.map(|s| format!("{:.1} %", s.ratio_to_f16 * 100.0));
        [ratio, bytes, share].map(|cell| cell.unwrap_or_else(dash))
    }

    /// Cells of the columns of [`REPLAYED`].
    fn replayed(&self) -> [String; 4] {
        let replay = self.scheme.and_then(|scheme| scheme.replay.as_ref());
        // if nothing was quantized, the scheme has no flips, which says nothing about it
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

    /// The scheme's label, followed by the scheme that ran, if that is written in another way and is short.
    pub fn name(&self) -> String {
        match self.renamed().filter(|effective| effective.len() <= LONGEST_NAME) {
            Some(effective) => format!("{} = {effective}", self.label),
            None => self.label.into(),
        }
    }

    /// The scheme that ran, if it is written in another way than the label.
    pub fn renamed(&self) -> Option<&'a str> {
        self.scheme.map(|s| s.effective.as_str()).filter(|effective| *effective != self.label)
    }

    /// What the columns have no room for: the scheme that ran, if its name is long, and how much of the cache was
    /// quantized.
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
}

/// The bound of the mean KLD, if it was judged by one.
pub(super) fn mean_kld_limit(row: &Row) -> Option<f64> {
    let limits = &row.cases[0]?.limits;
    let limit = limits.iter().find(|limit| limit.statistic == Statistic::MeanKld);
    limit.map(|limit| limit.bound)
}

/// Says how much of the cache was quantized, if the scheme leaves some keys exact.
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

/// Says how much of the baseline's text was quantized, if the scheme's exact tail covers some or all of it.
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

/// A cell without a value.
fn dash() -> String {
    "–".into()
}

/// The change from the golden's value, in percent of it, and how well it is known: `+12 % ± 3 %`.
fn moved(change: &Moved) -> String {
    let moved = relative(change.golden, change.now);
    match change.change {
        Some([low, high]) if change.golden > 0.0 && moved != SAME => {
            let half = (high - low) / 2.0 / change.golden * 100.0;
            format!("{moved} ± {} %", significant(half, 2))
        }
        _ => moved,
    }
}

/// What stands for no change.
const SAME: &str = "=";

/// The change from an older value, in percent of it.
pub(super) fn relative(old: f64, new: f64) -> String {
    match (new / old - 1.0) * 100.0 {
        _ if old == 0.0 && new != 0.0 => "from 0".into(),
        // goldens have four digits, so a smaller change may be their rounding
        percent if old == new || percent.abs() < 0.05 => SAME.into(),
        percent if percent.abs() < 10.0 => format!("{percent:+.1} %"),
        percent => format!("{percent:+.0} %"),
    }
}

/// The limit that a case breaks the most, and by how much: `mean_kld 1.22 × its limit`. If it breaks none, the undecided
/// one that is nearest to that: `mean_kld 0.95 × its limit (0.78 to 1.40)`.
pub(super) fn worst_limit(case: &CaseResult) -> Option<String> {
    let words = |limit: &JudgedLimit, words: String| format!("{} {words}", limit.statistic.name());
    let broken = worst_broken(&case.limits).map(|limit| words(limit, limit.excess()));
    let undecided = || worst_undecided(&case.limits).map(|limit| words(limit, limit.doubt()));
    let retrieval = |decision| worst_retrieval(case, decision).map(JudgedRetrieval::words);
    broken
        .or_else(|| retrieval(Decided::Broken))
        .or_else(undecided)
        .or_else(|| retrieval(Decided::Undecided))
}

fn worst_retrieval(case: &CaseResult, decision: Decided) -> Option<&JudgedRetrieval> {
    let limits = case.retrieval.iter().filter(|limit| limit.decision == decision);
    limits.max_by(|a, b| a.ratio().total_cmp(&b.ratio()))
}

/// Says the same, but only of a case that is not as the policy wants: a case that must fail may break limits.
pub(super) fn red_limit(case: &CaseResult) -> Option<String> {
    worst_limit(case).filter(|_| case.verdict.is_red())
}

/// A verdict in a cell: `✗ regressed mean_kld 1.22 × its limit`.
pub(super) fn verdict_words(case: &CaseResult) -> String {
    let verdict = case.verdict;
    if verdict == Verdict::FailsAsRequired {
        // the words of the verdict say it already
        return verdict.symbol().into();
    }
    let words = format!("{} {}", verdict.symbol(), verdict.label());
    red_limit(case).map_or(words.clone(), |limit| format!("{words} {limit}"))
}

/// The first columns: bits per element of K and V, and the mean KLD.
const MEANS: [&str; 2] = ["bits K/V", "mean KLD"];

/// The next columns of rows that were judged: the limit of the mean KLD, and its change against the golden.
const JUDGED: [&str; 2] = ["limit", "Δ golden"];

/// The columns after these: the 99th percentile of the KLD, and how often both choose the same token.
const TAILS: [&str; 2] = ["p99", "top-1"];

/// The columns of rows that were not judged, by which somebody chooses a scheme: the perplexity's ratio, bytes that
/// a token adds to the cache, and the size of the cache at the measured context in percent of that of f16.
const CHOICE: [&str; 3] = ["PPL ratio", "B/token", "of f16"];

/// The columns of rows that were measured on the baseline's own text: flips and hard flips per 1,000 tokens, how
/// many texts have no flip, and the token by which half of the texts have one.
const REPLAYED: [&str; 4] = ["flips/1k", "hard", "same text", "half part by"];

/// How long the name of a scheme that ran may be to stand in a row. Longer names stand below the table.
const LONGEST_NAME: usize = 24;

/// The names of the columns of numbers, and the cells of each row.
pub(super) fn numbers(rows: &[Row]) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let replayed = rows.iter().any(|row| row.scheme.is_some_and(|s| s.replay.is_some()));
    let judged = rows.iter().any(|row| row.cases.iter().any(Option::is_some));
    let cells = |row: &Row| {
        let mut cells = Vec::from(row.means());
        cells.extend(if judged { row.judged().into() } else { Vec::new() });
        cells.extend(row.tails());
        cells.extend(if judged { Vec::new() } else { row.choice().into() });
        cells.extend(if replayed { row.replayed().into() } else { Vec::new() });
        cells
    };
    let shown = |names: &'static [&'static str], shown: bool| if shown { names } else { &[] };
    let names = [
        &MEANS[..],
        shown(&JUDGED, judged),
        &TAILS,
        shown(&CHOICE, !judged),
        shown(&REPLAYED, replayed),
    ];
    (names.concat(), rows.iter().map(cells).collect())
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
        let cells = Cells::new(&results);
        let rows = ["q8_0", "q4_0", "q8_0/q4_0"].map(|label| cells.row("gemma-3-270m", label));
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
