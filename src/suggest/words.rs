//! What a search found, in words, by fixed rules.

use super::choice::{Change, Comparison, Finding};
use super::{Reading, Row, Suggestion, REFERENCE};
use crate::results::shown_bits;
use crate::text::listed;
use crate::text::numbers::{bytes, count, significant};

/// The answer, a sentence or two for each question.
pub(super) fn answer(suggestion: &Suggestion) -> Vec<String> {
    let sentences = [
        Some(recommendation(suggestion)),
        against_reference(suggestion),
        predictions(suggestion),
        Some(texts(suggestion)),
        beyond(suggestion),
    ];
    sentences.into_iter().flatten().collect()
}

fn recommendation(suggestion: &Suggestion) -> String {
    let Some(row) = suggestion.recommended.map(|i| &suggestion.rows[i]) else {
        return nothing(suggestion);
    };
    let asked = suggestion.budget.as_ref().map(|budget| {
        format!(
            " It is the best that was found within {} ({} bits).",
            budget.asked,
            bits(budget.bits)
        )
    });
    let why = asked.unwrap_or_else(|| match suggestion.reference {
        Some(reference) if suggestion.recommended == Some(reference) => {
            " No budget was given, and nothing with fewer bits that was measured does as little.".into()
        }
        Some(_) => format!(
            " No budget was given: of what does no more than {REFERENCE} on the chunks that chose, and was not refuted by the \
             others, it has the fewest bits."
        ),
        None => " No budget was given: it does the least.".into(),
    });
    let flags = match row.flags.first() {
        Some(flags) => format!(" For {}: `{}`.", flags.engine, flags.flags),
        None => " No engine that kvgate knows has options for it.".into(),
    };
    let name = suggestion.recommended.map_or_else(String::new, |i| shown(i, row));
    format!("Serve {name}: {}.{why}{flags}", facts(suggestion, row))
}

/// The longest text of a scheme that is written out. Others have numbers, and are listed with them.
const LONGEST_NAME: usize = 28;

/// Whether a row's scheme has a number instead of its text.
pub(super) fn is_numbered(row: &Row) -> bool {
    row.scheme.chars().count() > LONGEST_NAME
}

/// The scheme of a row, or `mixture` and the row's number if its text is long.
pub(super) fn shown(i: usize, row: &Row) -> String {
    if is_numbered(row) {
        format!("mixture {}", i + 1)
    } else {
        row.scheme.clone()
    }
}

fn nothing(suggestion: &Suggestion) -> String {
    match &suggestion.budget {
        Some(budget) => format!(
            "Nothing fits {} ({} bits): the fewest that {} has are {} bits.",
            budget.asked,
            bits(budget.bits),
            suggestion.engine.name(),
            bits(suggestion.fewest_bits)
        ),
        None => format!(
            "No scheme of {} does as little as {REFERENCE} does: choose from the table, or give a budget.",
            suggestion.engine.name()
        ),
    }
}

/// `5.5 bits, KLD 0.0021 (0.0018–0.0025) on 32 chunks that did not choose it`.
fn facts(suggestion: &Suggestion, row: &Row) -> String {
    let (reading, where_) = match &row.verified {
        Some(reading) => {
            (reading, format!("{} that did not choose it", count(suggestion.verifying, "chunk")))
        }
        None => (
            &row.measured,
            format!(
                "the {} that chose it, which flatters it (not verified)",
                count(suggestion.conditions.chunks, "chunk")
            ),
        ),
    };
    let size = bytes(row.bytes as f64);
    let (bits, served) = (bits(row.bits), suggestion.served);
    format!("{bits} bits ({size} for {served} tokens), KLD {} on {where_}", kld(reading))
}

fn against_reference(suggestion: &Suggestion) -> Option<String> {
    let reference = suggestion.rows.get(suggestion.reference?)?;
    let own = |row: &Row| {
        let reading = row.verified.as_ref().unwrap_or(&row.measured);
        format!("{} bits and KLD {}", bits(row.bits), kld(reading))
    };
    let head = format!("{REFERENCE} has {}.", own(reference));
    let Some(rival) = &suggestion.rival else {
        return Some(format!("{head} Nothing that was measured has fewer bits."));
    };
    let row = &suggestion.rows[rival.row];
    let Comparison { finding, verified, measured, .. } = rival;
    let change = verified.as_ref().unwrap_or(measured);
    let chunks = match verified {
        Some(_) => "the same chunks, which did not choose it",
        None => "the chunks that chose it (not verified)",
    };
    let (name, fewer) = (shown(rival.row, row), bits(rival.bits_fewer));
    let is_recommended = suggestion.recommended == Some(rival.row);
    let facts = if is_recommended { String::new() } else { format!(" ({})", own(row)) };
    let differs = difference(change);
    Some(match finding {
        Finding::Surely => format!(
            "{head} {name}{facts} has {fewer} bits fewer and does no more: its KLD differs by {differs} on {chunks}."
        ),
        Finding::ByTheMeans => format!(
            "{head} {name}{facts} has {fewer} bits fewer and by the means does no more, but the chunks do not decide it: its KLD \
             differs by {differs} on {chunks}."
        ),
        Finding::No if measured.finding() == Finding::Surely => format!(
            "{head} Nothing with fewer bits was found that does no more on both sets of chunks. {name}{facts}, with {fewer} \
             bits fewer, did no more on the chunks that chose it, and the others refute that: its KLD differs by {differs} \
             on {chunks}."
        ),
        Finding::No => format!(
            "{head} Nothing with fewer bits was found that does no more. The nearest is {name}{facts}, with {fewer} bits \
             fewer: its KLD differs by {differs} on {chunks}."
        ),
    })
}

/// How well single parts predicted mixtures, or pairs if there are no mixtures.
fn predictions(suggestion: &Suggestion) -> Option<String> {
    let has_mixed = suggestion.rows.iter().any(|row| row.is_mixed);
    let rows = suggestion.rows.iter().filter(|row| row.is_mixed == has_mixed);
    let ratio = |row: &Row| Some(row.on_scouts / row.predicted.filter(|kld| *kld > 0.0)?);
    let mut ratios: Vec<f64> = rows.filter_map(ratio).collect();
    ratios.sort_by(f64::total_cmp);
    let (first, last) = (ratios.first()?, ratios.last()?);
    let what = if has_mixed { "mixed schemes" } else { "pairs" };
    Some(format!(
        "Single parts predicted the {what} that were measured by their sum: on the same {} they do {} to {} × as much.",
        count(suggestion.scouting, "chunk"),
        significant(*first, 2),
        significant(*last, 2)
    ))
}

fn texts(suggestion: &Suggestion) -> String {
    let texts = suggestion.conditions.corpus.iter().map(|file| file.category.clone());
    let (texts, context) = (listed(texts), suggestion.conditions.context);
    let chosen = count(suggestion.conditions.chunks, "chunk");
    match suggestion.verifying {
        0 => format!(
            "Nothing was verified: {chosen} of {context} tokens of {texts} chose, and no others were measured. What was chosen \
             looks better than it is."
        ),
        verifying => format!(
            "{chosen} of {context} tokens of {texts} chose, and {} of the same texts verified.",
            count(verifying, "other chunk")
        ),
    }
}

/// A longer context than the measured one is served.
fn beyond(suggestion: &Suggestion) -> Option<String> {
    let (served, measured) = (suggestion.served, suggestion.conditions.context);
    (served > measured).then(|| {
        format!(
            "Bits are those at {served} tokens. Divergences were measured at {measured} tokens, and may be larger at {served}: \
             measure what you serve with --tokens {served} before you rely on it."
        )
    })
}

/// `0.0021 (0.0018–0.0025)`.
pub(super) fn kld(reading: &Reading) -> String {
    let mean = significant(reading.mean_kld, 2);
    match reading.interval {
        Some([low, high]) => {
            format!("{mean} ({}–{})", significant(low, 2), significant(high, 2))
        }
        None => mean,
    }
}

fn difference(change: &Change) -> String {
    let signed = |value: f64| {
        let sign = if value > 0.0 { "+" } else { "" };
        format!("{sign}{}", significant(value, 2)).replace('-', "−")
    };
    match change.interval {
        Some([low, high]) => {
            format!("{} ({} to {})", signed(change.difference), signed(low), signed(high))
        }
        None => format!("{} (too few chunks for an interval)", signed(change.difference)),
    }
}

pub(super) fn bits(bits: f64) -> f64 {
    shown_bits((bits * 100.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::super::budget::Budget;
    use super::super::fixture::{row, suggestion};
    use super::*;

    fn rows(q5_1: f64) -> Vec<Row> {
        vec![
            row("q4_0", 4.5, 0.3),
            row("q5_1", 6.0, q5_1),
            row(REFERENCE, 6.5, 0.0077),
            row("q8_0", 8.5, 0.001),
        ]
    }

    #[test]
    fn what_beats_the_reference_is_said_with_its_interval() {
        let said = answer(&suggestion(rows(0.004), None)).join("\n");
        for words in [
            "Serve q5_1: 6 bits (5.7 MiB for 512 tokens), KLD 0.0044 (",
            " on 10 chunks that did not choose it. No budget was given: of what does no more than q8_0/q4_0 on the \
             chunks that chose, and was not refuted by the others, it has the fewest bits.",
            "For llama.cpp: `--cache-type-k q5_1 --cache-type-v q5_1`.",
            "q8_0/q4_0 has 6.5 bits and KLD 0.0085 (",
            "q5_1 has 0.5 bits fewer and does no more: its KLD differs by −0.0041 (−0.00",
            "10 chunks of 512 tokens of prose chose, and 10 other chunks of the same texts verified.",
        ] {
            assert!(said.contains(words), "{words}\nin\n{said}");
        }
    }

    #[test]
    fn where_nothing_beats_it_that_is_said() {
        let said = answer(&suggestion(rows(0.02), None)).join("\n");
        assert!(said.contains("Serve q8_0/q4_0: 6.5 bits"), "{said}");
        assert!(
            said.contains("nothing with fewer bits that was measured does as little"),
            "{said}"
        );
        let nearest = "Nothing with fewer bits was found that does no more. The nearest is q5_1 (6 bits and KLD 0.022 (";
        assert!(said.contains(nearest), "{said}");
        assert!(said.contains("differs by +0.014 (+0.01"), "{said}");
    }

    #[test]
    fn a_budget_that_nothing_fits_is_told() {
        let said = answer(&suggestion(rows(0.02), Some(Budget::of_bits(3.0)))).join("\n");
        let words = "Nothing fits 3 bits per element (3 bits): the fewest that any engine has are 4.5 bits.";
        assert!(said.contains(words), "{said}");
        let said = answer(&suggestion(rows(0.02), Some(Budget::of_bits(6.2)))).join("\n");
        assert!(
            said.contains("Serve q5_1") && said.contains("within 6.2 bits per element"),
            "{said}"
        );
    }

    #[test]
    fn what_was_not_verified_does_not_look_so() {
        let mut suggestion = suggestion(rows(0.004), None);
        suggestion.verifying = 0;
        suggestion.rows.iter_mut().for_each(|row| row.verified = None);
        let rival = suggestion.rival.as_mut().unwrap();
        rival.verified = None;
        let said = answer(&suggestion).join("\n");
        assert!(!said.contains("that did not choose"), "{said}");
        for words in
            ["which flatters it (not verified)", "Nothing was verified:", "chose it (not verified)"]
        {
            assert!(said.contains(words), "{words}\nin\n{said}");
        }
    }

    #[test]
    fn a_longer_context_is_a_warning() {
        let mut suggestion = suggestion(rows(0.004), None);
        assert_eq!(beyond(&suggestion), None);
        suggestion.served = 131_072;
        assert!(beyond(&suggestion).unwrap().contains("may be larger at 131072"));
    }
}
