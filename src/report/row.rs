//! One row of a report: a scheme of a model with its numbers and its cases.

use super::named::Named;
use crate::judge::interval;
use crate::kv::Scheme;
use crate::results::case::{CaseKind, CellName};
use crate::results::replay::Replay;
use crate::results::statistics::{Part, Statistic, Statistics};
use crate::results::verdict::{
    limit_on, limits_of, worst, CaseLimit, Decision, JudgedLimit, Verdict,
};
use crate::results::{shown_bits, CaseResult, Moved, Results, SchemeResult, Seen, Sides, Storage};
use crate::text;
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
        Some(self.seen()?.statistics)
    }

    /// What had been measured when the limits were judged.
    pub fn seen(&self) -> Option<Seen<'a>> {
        self.scheme?.outcome.seen_at(self.cases[0].and_then(|case| case.chunks))
    }

    pub fn is_red(&self) -> bool {
        self.cases.iter().flatten().any(|case| case.verdict.is_red())
    }

    /// Whether the limits make the row red and one by category is not kept. A golden may be what makes it red.
    pub fn is_red_by_category(&self) -> bool {
        let is_kept = |limit: &JudgedLimit| limit.decision() == Decision::Kept;
        let is_red = self.cases[0].is_some_and(|case| case.verdict.is_red());
        is_red && self.limits().iter().any(|own| own.category.is_some() && !is_kept(own))
    }

    /// The cases that say how the row stands: those that are no plain pass, or else one that is. An error of the numbers
    /// is one of the golden, too, and is told once.
    pub fn telling(&self) -> Vec<&'a CaseResult> {
        let is_plain =
            |case: &&CaseResult| matches!(case.verdict, Verdict::Pass | Verdict::Ignored);
        let (plain, mut told): (Vec<_>, Vec<_>) =
            self.cases.into_iter().flatten().partition(is_plain);
        told.dedup_by_key(|case| case.verdict);
        if told.is_empty() {
            let pass = plain.iter().find(|case| case.verdict == Verdict::Pass);
            pass.or(plain.first()).copied().into_iter().collect()
        } else {
            told
        }
    }

    /// What a pass leaves open if only one of the two cases was judged.
    pub fn half(&self) -> Option<&'static str> {
        let passes = self.cases.map(|case| case.is_some_and(|c| c.verdict == Verdict::Pass));
        let is_judged = self.cases.map(|case| case.is_some_and(|c| c.verdict != Verdict::Ignored));
        match (passes, is_judged) {
            ([true, _], [_, false]) => Some("golden not compared"),
            ([_, true], [false, _]) => Some("limits not judged"),
            _ => None,
        }
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

    fn mean_kld(&self) -> Option<String> {
        let seen = self.seen()?;
        let shown = shown_mean(seen.statistics, &seen.parts, self.confidence());
        // a further look has more chunks than the line about the model says
        Some(match self.cases[0].and_then(|case| case.chunks) {
            Some(chunks) => format!("{shown} of {chunks} chunks"),
            None => shown,
        })
    }

    /// The confidence of intervals that are shown.
    pub fn confidence(&self) -> f64 {
        let asked = self.limits().iter().find_map(JudgedLimit::confidence_of_interval);
        asked.unwrap_or(interval::SHOWN)
    }

    /// The confidence that the policy asks for, if limits were judged with one.
    pub fn asked_confidence(&self) -> Option<f64> {
        let case = self.cases[0]?;
        let of_retrieval = case.retrieval.iter().find_map(|limit| limit.confidence);
        of_retrieval.or_else(|| case.limits.iter().find_map(|limit| limit.confidence))
    }

    /// Cells of the columns of [`JUDGED`].
    fn judged(&self) -> [String; 3] {
        let golden = self.cases[1];
        let changes = golden.map_or(&[][..], |case| &case.changes);
        let change = changes.iter().find(|change| change.name == Statistic::MeanKld.name());
        let limit = limit_on(self.limits(), Statistic::MeanKld);
        [
            limit.map_or(dash(), |limit| limit.bound.to_string()),
            limit.map_or(dash(), |limit| shown_ratio(limit.ratio())),
            change.map_or(dash(), moved),
        ]
    }

    /// The cell of the column [`WORST`].
    fn worst_ratio(&self) -> String {
        let ratios = self.cases[0].into_iter().flat_map(limits_of).map(CaseLimit::ratio);
        let worst = ratios.max_by(f64::total_cmp);
        worst.map_or(dash(), shown_ratio)
    }

    /// The limits that were judged.
    pub fn limits(&self) -> &'a [JudgedLimit] {
        self.cases[0].map_or(&[], |case| &case.limits)
    }

    /// Cells of a model card: bits, the mean KLD and its limit, and how often both choose the same token.
    pub fn card(&self) -> [String; 4] {
        let ([bits, kld], [limit, ..], [_, top1]) = (self.means(), self.judged(), self.tails());
        [bits, kld, limit, top1]
    }

    /// Cells of the columns of [`TAILS`].
    fn tails(&self) -> [String; 2] {
        self.statistics().map_or([dash(), dash()], |s| {
            [format!("{:.4}", s.p99_kld), shown_agreement(s.top1_agreement)]
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

    /// The scheme's label, with the scheme that ran if the label is a name that only the policy explains.
    pub fn short_name(&self) -> String {
        let is_name = self.label.parse::<Scheme>().is_err();
        if is_name {
            self.name()
        } else {
            self.label.into()
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

/// A mean KLD with its interval, or with its standard error if it has none.
pub(super) fn shown_mean(s: &Statistics, parts: &[Part], confidence: f64) -> String {
    match interval::of(Statistic::MeanKld, s, parts, confidence) {
        Ok(interval) => {
            let [low, high] = [interval.low, interval.high].map(|end| significant(end, 2));
            format!("{:.5} ({low}–{high})", s.mean_kld)
        }
        Err(_) => format!("{:.5} ± {:.5}", s.mean_kld, s.mean_kld_se),
    }
}

/// A share of equal top tokens, in percent.
pub(super) fn shown_agreement(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// The harm as a multiple of what a limit allows.
fn shown_ratio(ratio: f64) -> String {
    if ratio.is_finite() {
        format!("{ratio:.2}")
    } else {
        "∞".into()
    }
}

/// The bound of the mean KLD, if it was judged by one.
pub(super) fn mean_kld_limit(row: &Row) -> Option<f64> {
    limit_on(row.limits(), Statistic::MeanKld).map(|limit| limit.bound)
}

/// Says how much of the cache was quantized, if the scheme leaves some keys exact.
fn storage_remark(storage: &Storage) -> Option<String> {
    let (share, bits) = (storage.charged_share, storage.bits_per_element);
    let bits = if bits.k == bits.v {
        format!("{} bits", shown_bits(bits.k))
    } else {
        format!("{} / {} bits", shown_bits(bits.k), shown_bits(bits.v))
    };
    (share.k < 1.0 || share.v < 1.0).then(|| format!("{}, with {bits} each", read_quantized(share)))
}

/// What share of what queries read was quantized: `81.7 % of the keys and values that queries read were quantized`.
fn read_quantized(share: Sides) -> String {
    let [k, v] = [share.k, share.v].map(|share| format!("{:.1} %", share * 100.0));
    if k == v {
        format!("{k} of the keys and values that queries read were quantized")
    } else {
        format!("{k} of the keys and {v} of the values that queries read were quantized")
    }
}

fn clamp_remark(share: f64) -> String {
    format!(
        "{:.1} % of its scales (factors of blocks) are cut to the largest or smallest number that the format has",
        share * 100.0
    )
}

/// Says how much of the baseline's text was quantized, if the scheme's exact tail covers some or all of it.
fn replay_remark(replay: &Replay) -> Option<String> {
    let share = replay.charged_share;
    if share.k == 0.0 && share.v == 0.0 {
        Some(
            "the texts that the baseline wrote are shorter than its exact tail: flips say nothing"
                .into(),
        )
    } else if share.k.min(share.v) < 1.0 {
        Some(format!("on the texts that the baseline wrote, {}", read_quantized(share)))
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
pub(super) fn worst_limit(case: &CaseResult, named: Named) -> Option<String> {
    worst(case).map(|limit| limit_words(&limit, named))
}

/// How a limit stands to its bound: `mean_kld 1.22 × its limit`.
pub(super) fn limit_words(limit: &CaseLimit, named: Named) -> String {
    match limit {
        CaseLimit::Retrieval(limit) => limit.words(),
        CaseLimit::Statistic(limit) => {
            let words = match limit.decision() {
                Decision::Undecided => limit.doubt(),
                Decision::Kept | Decision::Broken => limit.excess(),
            };
            format!("{} {words}", limit.quantity().name_with(named))
        }
    }
}

/// Says the same, but only of a case that is not as the policy wants: a case that must fail may break limits.
pub(super) fn red_limit(case: &CaseResult, named: Named) -> Option<String> {
    worst_limit(case, named).filter(|_| case.verdict.is_red())
}

/// A verdict in a cell: `✗ regressed mean_kld 1.22 × its limit`.
pub(super) fn verdict_words(case: &CaseResult) -> String {
    let verdict = case.verdict;
    if verdict == Verdict::FailsAsRequired {
        // the words of the verdict say it already
        return verdict.symbol().into();
    }
    let words = format!("{} {}", verdict.symbol(), verdict.label());
    red_limit(case, &text::name).map_or(words.clone(), |limit| format!("{words} {limit}"))
}

/// How much a table shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Columns {
    /// What decides.
    #[default]
    Deciding,
    /// Everything that was measured.
    All,
}

/// The first columns: bits per element of K and V, and the mean KLD.
const MEANS: [&str; 2] = ["bits K/V", "mean KLD"];

/// The next columns of rows that were judged: the limit of the mean KLD, how much of it the mean KLD takes, and its change
/// against the golden.
const JUDGED: [&str; 3] = ["limit", "× limit", "Δ golden"];

/// The columns after these: the 99th percentile of the KLD, and how often both choose the same token.
const TAILS: [&str; 2] = ["p99", "top-1"];

/// Columns by which somebody chooses a scheme: the perplexity's ratio, bytes that a token adds to the cache, and the size
/// of the cache at the measured context in percent of that of f16.
const CHOICE: [&str; 3] = ["PPL ratio", "B/token", "of f16"];

/// The columns of rows that were measured on the baseline's own text: flips and hard flips per 1,000 tokens, how
/// many texts have no flip, and the token by which half of the texts have one.
const REPLAYED: [&str; 4] = ["flips/1k", "hard", "same text", "half part by"];

/// The last column of rows that were judged: the limit of any statistic that is broken the most, or nearest to it.
const WORST: [&str; 1] = ["worst × limit"];

/// How long the name of a scheme that ran may be to stand in a row. Longer names stand below the table.
const LONGEST_NAME: usize = 24;

/// The names of the columns of numbers, and the cells of each row. If nothing was judged, all columns help to choose.
pub(super) fn numbers(rows: &[Row], columns: Columns) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let is_judged = rows.iter().any(|row| row.cases.iter().any(Option::is_some));
    let is_whole = columns == Columns::All || !is_judged;
    let is_replayed =
        is_whole && rows.iter().any(|row| row.scheme.is_some_and(|s| s.replay.is_some()));
    let cells = |row: &Row| {
        let mut cells = Vec::from(row.means());
        cells.extend(if is_judged { row.judged().into() } else { Vec::new() });
        cells.extend(row.tails());
        cells.extend(if is_whole { row.choice().into() } else { Vec::new() });
        cells.extend(if is_replayed { row.replayed().into() } else { Vec::new() });
        cells.extend((is_judged && is_whole).then(|| row.worst_ratio()));
        cells
    };
    let shown = |names: &'static [&'static str], shown: bool| if shown { names } else { &[] };
    let names = [
        &MEANS[..],
        shown(&JUDGED, is_judged),
        &TAILS,
        shown(&CHOICE, is_whole),
        shown(&REPLAYED, is_replayed),
        shown(&WORST, is_judged && is_whole),
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
            ["q8_0: the texts that the baseline wrote are shorter than its exact tail: flips say nothing"]
        );
        assert_eq!(
            remarks(1),
            [
                "q4_0 = q4_0·H256:tail=32/q4_0·H64:tail=32",
                "q4_0: 83.1 % of the keys and 100.0 % of the values that queries read were quantized, with 4.5 bits \
                 each; 25.0 % of its scales (factors of blocks) are cut to the largest or smallest number that the \
                 format has",
            ]
        );
        assert!(remarks(2).is_empty());
        let (names, cells) = numbers(&rows, Columns::All);
        assert_eq!(names[10..14], REPLAYED);
        assert_eq!(cells[1][10..14], ["250.0", "250.0", "1 of 2", "3"]);
        assert_eq!(cells[2][10..14], ["–", "–", "–", "–"]);
    }

    #[test]
    fn the_columns_that_decide_are_few() {
        let mut results = fixture::results();
        let shown = |results: &Results, columns| {
            let cells = Cells::new(results);
            let (names, cells) = numbers(&[cells.row("gemma-3-270m", "q4_0")], columns);
            assert_eq!(names.len(), cells[0].len());
            names.join(" · ")
        };
        let deciding = "bits K/V · mean KLD · limit · × limit · Δ golden · p99 · top-1";
        assert_eq!(shown(&results, Columns::Deciding), deciding);
        let all = format!("{deciding} · PPL ratio · B/token · of f16 · worst × limit");
        assert_eq!(shown(&results, Columns::All), all);
        // without verdicts all of it helps to choose
        results.cases.clear();
        let choice = "bits K/V · mean KLD · p99 · top-1 · PPL ratio · B/token · of f16";
        assert_eq!(shown(&results, Columns::Deciding), choice);
        assert_eq!(shown(&results, Columns::All), choice);
    }

    #[test]
    fn a_row_tells_what_is_no_plain_pass() {
        use Verdict::*;
        let told = |kld: Option<Verdict>, golden: Option<Verdict>| {
            let case = |verdict: Verdict| CaseResult::new("m::q4_0::kld", verdict, "");
            let [kld, golden] = [kld, golden].map(|verdict| verdict.map(case));
            let cases = [kld.as_ref(), golden.as_ref()];
            let row = Row { model: "m", label: "q4_0", scheme: None, cases };
            let told = row.telling().iter().map(|case| case.verdict).collect::<Vec<_>>();
            (told, row.half())
        };
        assert_eq!(told(Some(Pass), Some(Pass)), (vec![Pass], None));
        assert_eq!(told(Some(Pass), Some(GoldenChanged)), (vec![GoldenChanged], None));
        assert_eq!(told(Some(Regressed), Some(Pass)), (vec![Regressed], None));
        assert_eq!(told(Some(Regressed), Some(Stale)), (vec![Regressed, Stale], None));
        assert_eq!(told(Some(FailsAsRequired), Some(Pass)), (vec![FailsAsRequired], None));
        assert_eq!(told(Some(Error), Some(Error)), (vec![Error], None));
        assert_eq!(told(Some(Ignored), Some(Ignored)), (vec![Ignored], None));
        // a pass of one case is none of the row
        for other in [None, Some(Ignored)] {
            assert_eq!(told(Some(Pass), other), (vec![Pass], Some("golden not compared")));
            assert_eq!(told(other, Some(Pass)), (vec![Pass], Some("limits not judged")));
        }
        assert_eq!(told(None, None), (vec![], None));
    }
}
