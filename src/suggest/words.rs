//! What a search found, in words, by fixed rules.

use super::choice::{Change, Comparison, Finding, Recommended, Why};
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
    let Some(recommended) = suggestion.recommended else { return nothing(suggestion) };
    let row = &suggestion.rows[recommended.row];
    let flags = match row.flags.first() {
        Some(flags) => format!("For {}: `{}`.", flags.engine, flags.flags),
        None => "Neither llama.cpp nor vLLM has options for it (`kvgate schemes` says which engines have its codecs).".into(),
    };
    let (own, name) = (shown(recommended.row, row), named(suggestion, recommended.row));
    let too = if name == own { String::new() } else { format!(" (kvgate's {own})") };
    let facts = facts(suggestion, row);
    format!("Serve {name}{too}: {facts}. {} {flags}", why(suggestion, recommended))
}

/// Why a scheme is recommended.
fn why(suggestion: &Suggestion, recommended: Recommended) -> String {
    let reference = suggestion.reference.map(|i| &suggestion.rows[i]);
    let compared = [Some(&suggestion.rows[recommended.row]), reference];
    let is_verified = compared.into_iter().flatten().all(|row| row.verified.is_some());
    let upheld = if is_verified { ", and the other chunks do not refute that" } else { "" };
    let both = if is_verified { " on both sets of chunks" } else { "" };
    let because = match recommended.why {
        Why::FitsTheBudget => return within_budget(suggestion),
        Why::SurelyNoMore => format!(
            "of what has fewer bits than {REFERENCE} and surely does no more on the chunks that chose, it has the fewest \
             bits{upheld}"
        ),
        Why::NoMoreByTheMeans => format!(
            "of what has fewer bits than {REFERENCE} it does the least, by the means no more than {REFERENCE} on the chunks \
             that chose{upheld}"
        ),
        Why::NotSurelyMore => format!(
            "it does no more than {REFERENCE} on the chunks that chose, and by the means more on the other chunks, which do \
             not decide it"
        ),
        Why::NoMore => format!(
            "of what does no more than {REFERENCE} on the chunks that chose, it has the fewest bits{upheld}"
        ),
        Why::HoldsOnBoth => format!(
            "the first choice was refuted by the chunks that did not choose it, and of what surely does no more than \
             {REFERENCE} on both sets of chunks, this has the fewest bits"
        ),
        Why::Reference => format!("nothing with fewer bits was found that does no more{both}"),
        Why::DoesTheLeast => format!(
            "there are no numbers of {REFERENCE} to compare with, and of what was measured it does the least"
        ),
    };
    format!("No budget was given: {because}.")
}

fn within_budget(suggestion: &Suggestion) -> String {
    let budget = suggestion.budget.as_ref().expect("it was chosen by a budget");
    let exact = match budget.fits_half_precision() {
        true => " Half precision fits, too, and does nothing.",
        false => "",
    };
    format!(
        "Of what was measured and fits {}, it does the least on the chunks that chose.{exact}",
        budget.asked
    )
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

/// The scheme of a row as the users of the engine call it, if they have one name for it.
fn named(suggestion: &Suggestion, i: usize) -> String {
    let row = &suggestion.rows[i];
    let of_engine = suggestion.engine.name_of(row.flags.iter().map(|flags| &flags.flags[..]));
    of_engine.map_or_else(|| shown(i, row), Into::into)
}

fn nothing(suggestion: &Suggestion) -> String {
    if let Some(budget) = &suggestion.budget {
        return format!("Nothing that was measured fits {}.", budget.asked);
    }
    let (among, more) = match &suggestion.codecs[..] {
        [] => (format!("that {} can serve", suggestion.engine.name()), ""),
        _ => ("among the codecs of --codecs".into(), ", name other --codecs"),
    };
    let both = if suggestion.verifying > 0 { " on both sets of chunks" } else { "" };
    format!(
        "Nothing was found {among} that does as little as {REFERENCE}{both}: choose from the table{more}, or give a budget."
    )
}

/// Whether the engine has the codecs of the reference, whichever were asked for.
fn has_reference(suggestion: &Suggestion) -> bool {
    let codecs: Vec<String> = REFERENCE.split('/').map(Into::into).collect();
    suggestion.engine.unknown(&codecs).is_none()
}

/// Says why the reference is among the rows, if it may not be served.
fn only_compared(suggestion: &Suggestion) -> String {
    let why = match suggestion.serves_reference {
        true => return String::new(),
        false if has_reference(suggestion) => "--codecs does not name it".into(),
        false => format!("{} does not have it", suggestion.engine.name()),
    };
    format!("{REFERENCE} was measured only to compare: {why}. ")
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
    let head = format!("{}{REFERENCE} has {}.", only_compared(suggestion), own(reference));
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
    let (name, fewer) = (named(suggestion, rival.row), bits(rival.bits_fewer));
    let facts = if suggestion.is_recommended(rival.row) {
        String::new()
    } else {
        format!(" ({})", own(row))
    };
    let differs = difference(change);
    let others = match rival.surely_does_more() {
        true => "the others refute that",
        false => "more by the means on the others, which do not decide it",
    };
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
             bits fewer, did no more on the chunks that chose it, and {others}: its KLD differs by {differs} on {chunks}."
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
    let [first, last] = [ratios.first()?, ratios.last()?].map(|ratio| significant(*ratio, 2));
    let times = if first == last { first } else { format!("{first} to {last}") };
    let what = if has_mixed { "mixed schemes" } else { "pairs" };
    Some(format!(
        "Single parts predicted the {what} that were measured by their sum: on the same {} they do {times} × as much.",
        count(suggestion.scouting, "chunk"),
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
    use super::super::budget::{Budget, Served};
    use super::super::engines::Engine;
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
            " on 10 chunks that did not choose it. No budget was given: of what has fewer bits than q8_0/q4_0 and surely \
             does no more on the chunks that chose, it has the fewest bits, and the other chunks do not refute that.",
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
        let nothing = "nothing with fewer bits was found that does no more on both sets of chunks.";
        assert!(said.contains(nothing), "{said}");
        let nearest = "Nothing with fewer bits was found that does no more. The nearest is q5_1 (6 bits and KLD 0.022 (";
        assert!(said.contains(nearest), "{said}");
        assert!(said.contains("differs by +0.014 (+0.01"), "{said}");
    }

    #[test]
    fn what_fits_a_budget_is_told() {
        let within = |bits| answer(&suggestion(rows(0.02), Some(Budget::of_bits(bits)))).join("\n");
        // what fits may have no numbers
        let said = within(3.0);
        assert!(said.contains("Nothing that was measured fits 3 bits per element."), "{said}");
        let said = within(6.2);
        let fits = "Of what was measured and fits 6.2 bits per element, it does the least on the chunks that chose. For";
        assert!(said.contains("Serve q5_1") && said.contains(fits), "{said}");
        assert!(within(16.0).contains("Half precision fits, too, and does nothing."));
    }

    /// The budget says how many bits the memory is, and a sentence that half precision fits.
    #[test]
    fn that_half_precision_fits_is_told_once() {
        let served = Served { sequences: 1, tokens: 512, f16: 100, states: 0 };
        let memory = Budget::of_memory(200, "200B", served);
        let said = answer(&suggestion(rows(0.02), Some(memory))).join("\n");
        let fits = "fits 200B for a sequence of 512 tokens, which is 16 bits per element or more, it does the least on the \
                    chunks that chose. Half precision fits, too, and does nothing. ";
        assert!(said.contains(fits), "{said}");
    }

    /// vLLM's users know none of kvgate's names.
    #[test]
    fn a_type_of_vllm_is_named_as_vllm_names_it() {
        let said = |flags: &str| {
            let mut own = suggestion(rows(0.004), None);
            own.engine = Engine::Vllm;
            for row in &mut own.rows {
                row.flags[0].engine = "vLLM".into();
                row.flags[0].flags = flags.into();
            }
            answer(&own).join("\n")
        };
        let whole = said("--kv-cache-dtype int4_per_token_head");
        for words in [
            "Serve int4_per_token_head (kvgate's q5_1): 6 bits",
            " int4_per_token_head has 0.5 bits fewer and does no more",
        ] {
            assert!(whole.contains(words), "{words}\nin\n{whole}");
        }
        assert!(said("--kv-cache-dtype q5_1").contains("Serve q5_1: 6 bits"));
        let skipping = said("--kv-cache-dtype fp8 --kv-cache-dtype-skip-layers 1");
        assert!(skipping.contains("Serve q5_1: 6 bits"), "{skipping}");
    }

    #[test]
    fn a_reference_that_may_not_be_served_is_said_to_be_there_to_compare() {
        let mut own = suggestion(rows(0.02), None);
        (own.engine, own.serves_reference, own.recommended) = (Engine::Vllm, false, None);
        let said = answer(&own).join("\n");
        for words in [
            "Nothing was found that vLLM can serve that does as little as q8_0/q4_0 on both sets of chunks: choose from the \
             table, or give a budget.",
            "q8_0/q4_0 was measured only to compare: vLLM does not have it. q8_0/q4_0 has 6.5 bits",
        ] {
            assert!(said.contains(words), "{words}\nin\n{said}");
        }
        (own.engine, own.codecs) = (Engine::LlamaCpp, vec!["q5_1".into()]);
        let said = answer(&own).join("\n");
        for words in [
            "Nothing was found among the codecs of --codecs that does",
            "choose from the table, name other --codecs, or give a budget.",
            "q8_0/q4_0 was measured only to compare: --codecs does not name it. q8_0/q4_0 has 6.5 bits",
        ] {
            assert!(said.contains(words), "{words}\nin\n{said}");
        }
    }

    /// Where nothing else could be served, a scheme is kept that the other chunks do not surely refute, and both sentences
    /// about it say so.
    #[test]
    fn what_other_chunks_do_not_decide_is_said_in_both_sentences() {
        let mut own = suggestion(rows(0.004), None);
        own.serves_reference = false;
        let row = own.recommended.unwrap().row;
        own.recommended = Some(Recommended { row, why: Why::NotSurelyMore });
        let rival = own.rival.as_mut().unwrap();
        rival.finding = Finding::No;
        rival.verified = Some(Change { difference: 1e-5, interval: Some([-1e-4, 2e-4]) });
        let said = answer(&own).join("\n");
        for words in [
            "it does no more than q8_0/q4_0 on the chunks that chose, and by the means more on the other chunks, which do \
             not decide it.",
            "did no more on the chunks that chose it, and more by the means on the others, which do not decide it: its KLD",
        ] {
            assert!(said.contains(words), "{words}\nin\n{said}");
        }
        assert!(!said.contains("refute"), "{said}");
        own.rival.as_mut().unwrap().verified =
            Some(Change { difference: 1e-3, interval: Some([1e-4, 2e-3]) });
        assert!(answer(&own).join("\n").contains("and the others refute that"));
    }

    #[test]
    fn other_chunks_are_not_mentioned_if_there_are_none() {
        let mut own = suggestion(rows(0.004), None);
        let all = [
            Why::SurelyNoMore,
            Why::NoMoreByTheMeans,
            Why::NoMore,
            Why::Reference,
            Why::DoesTheLeast,
        ];
        let mentions = |own: &Suggestion, why: Why| {
            let said = super::why(own, Recommended { row: 0, why });
            said.contains("other chunks") || said.contains("both sets")
        };
        assert!(all[..4].iter().all(|why| mentions(&own, *why)));
        // a lane may fail on the other chunks alone
        own.rows[0].verified = None;
        assert!(!all.iter().any(|why| mentions(&own, *why)));
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
