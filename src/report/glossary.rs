//! The words of reports, each explained once.

use super::view::View;
use crate::results::verdict::Verdict;

/// A word, and what it means.
pub(super) type Word = (&'static str, &'static str);

/// The words that every report uses.
const ALWAYS: [Word; 7] = [
    ("scheme", "How the cache stores K and V, the keys and values of attention: q8_0/q4_0 is K in q8_0 and V in q4_0."),
    ("baseline", "The same model with a cache that is not quantized. Schemes are compared with it."),
    (
        "KLD",
        "The KL divergence, by which the next-token distribution under a scheme differs from that under the baseline, in \
         nats per token (natural logarithms). 0 is no difference. The mean is over all scored tokens.",
    ),
    (
        "interval",
        "The range behind a mean KLD, as in 0.0077 (0.0067–0.010): the mean over the whole text lies within it, with 95 % \
         confidence if the policy asks for no other.",
    ),
    ("bits K/V", "How many bits the cache keeps for each number of K and of V at the measured context; f16 has 16."),
    ("p99", "The KLD that one token in a hundred exceeds."),
    ("top-1", "How often scheme and baseline have the same most likely token."),
];

/// The words of reports in which something was judged.
const JUDGED: [Word; 3] = [
    ("limit, × limit", "The most mean KLD that the policy allows, and how much of that the scheme has: above 1 is too much."),
    ("golden, Δ golden", "The accepted numbers of an earlier run, and the change of the mean KLD since; = is no change."),
    (
        "✗ (expected)",
        "The scheme breaks a limit, as the policy requires: it is known to be too coarse for this model. Do not serve it.",
    ),
];

/// The words of schemes that were measured on texts of the baseline's own.
const REPLAYED: [Word; 2] = [
    (
        "flips/1k, hard",
        "Of a thousand tokens that the baseline wrote, those at which the scheme would have written another one; hard \
         are those at which the baseline was sure.",
    ),
    (
        "same text, half part by",
        "How many of the baseline's texts a scheme would have written to the end, and the token by which half of them \
         differ.",
    ),
];

/// The words of the columns that tell what a scheme costs.
const ALL_COLUMNS: [Word; 3] = [
    (
        "PPL ratio",
        "The perplexity under the scheme divided by that under the baseline, on the same text.",
    ),
    (
        "B/token, of f16",
        "Bytes that a token adds to the cache, and the size of the cache in percent of one in f16.",
    ),
    (
        "chunks, category",
        "Pieces of a text, each of which is read with an empty cache, and the text that they are from.",
    ),
];

/// The word of reports in which limits by category were judged.
const CATEGORIES: Word = (
    "limits",
    "Whether a category keeps all of its limits (✓), breaks one (✗) or leaves one open (?), and how it stands to the worst.",
);

/// The words of schemes that had to retrieve something from long contexts.
const RETRIEVED: [Word; 6] = [
    ("needle", "A sentence that nobody can guess, hidden in a long context, with a question about it at the end."),
    (
        "tokens, baseline finds",
        "The length of the contexts, and how many of their needles the baseline answers rightly. The others say nothing \
         about a scheme.",
    ),
    (
        "lost, gained",
        "The needles that the baseline finds and the scheme does not, with the interval of their share, and those that \
         only the scheme finds.",
    ),
    (
        "Δ answer NLL",
        "How much less likely the right answers are under the scheme, in nats per token, with its interval if there are \
         enough contexts. 0 is no harm.",
    ),
    ("KLD of answers", "The mean KLD at the tokens of the right answers."),
    (
        "KLD by depth",
        "The mean KLD of equal parts of the text before the questions, the first part first: if it grows, longer \
         contexts are harmed more.",
    ),
];

/// The word of reports in which the floor was measured.
const FLOOR: Word = (
    "floor",
    "The KLD of the unquantized cache from itself if only the order of its sums differs. Less than that means nothing.",
);

/// The words that a report uses.
pub(super) fn words(view: &View) -> Vec<Word> {
    let is_judged = !view.results.cases.is_empty();
    let schemes = || view.results.measurements.iter().flat_map(|m| &m.schemes);
    let is_replayed = schemes().any(|scheme| scheme.replay.is_some());
    let expected = |word: &Word| {
        let is_there = |verdict| view.results.cases.iter().any(|case| case.verdict == verdict);
        word.0 != Verdict::FailsAsRequired.symbol() || is_there(Verdict::FailsAsRequired)
    };
    let mut words = ALWAYS.to_vec();
    words.extend(JUDGED.iter().filter(|_| is_judged).filter(|word| expected(word)));
    words.extend(ALL_COLUMNS);
    let has_floor = view.results.measurements.iter().any(|m| m.floor.is_some());
    words.extend(has_floor.then_some(FLOOR));
    let mut limits = view.results.cases.iter().flat_map(|case| &case.limits);
    words.extend(limits.any(|limit| limit.category.is_some()).then_some(CATEGORIES));
    let is_retrieved = schemes().any(|scheme| !scheme.retrieved.is_empty());
    words.extend(RETRIEVED.iter().filter(|_| is_retrieved));
    words.extend(REPLAYED.iter().filter(|_| is_replayed));
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::row::{numbers, Columns};
    use crate::report::{categories, needles, Report};
    use crate::results::verdict::JudgedLimit;
    use crate::testing::fixture;

    /// Every column of every table of a report is explained.
    #[test]
    fn every_column_has_its_words() {
        let mut report: Report = fixture::report();
        report.results.measurements[0].schemes[0].replay = Some(fixture::replay());
        fixture::with_needles(&mut report.results.measurements[0]);
        let limits = &mut report.results.cases[2].limits;
        limits.push(JudgedLimit { category: Some("tools".into()), ..limits[0].clone() });
        let view = report.view();
        let words: Vec<_> = words(&view).iter().flat_map(|(word, _)| word.split(", ")).collect();
        let (columns, _) = numbers(view.rows("gemma-3-270m"), Columns::All);
        let of_categories = categories::HEAD.into_iter().chain(["category"]);
        for column in columns.into_iter().chain(needles::COLUMNS).chain(of_categories) {
            let known = column.trim_start_matches("mean ").trim_start_matches("worst ");
            assert!(words.contains(&known), "{column} is not in {words:?}");
        }
    }

    #[test]
    fn words_that_a_report_does_not_use_are_left_out() {
        let mut report: Report = fixture::report();
        let has = |report: &Report, word: &str| words(&report.view()).iter().any(|w| w.0 == word);
        assert!(has(&report, "✗ (expected)") && !has(&report, "flips/1k, hard"));
        report.results.cases.truncate(4);
        assert!(!has(&report, "✗ (expected)") && has(&report, "limit, × limit"));
        report.results.cases.clear();
        assert!(!has(&report, "limit, × limit") && has(&report, "KLD"));
        assert!(!has(&report, "limits") && !has(&report, "KLD by depth"));
    }
}
