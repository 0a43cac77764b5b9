//! Finds chunks that no run draws.
//!
//! A run takes the first chunks of its texts in turn, and further ones in an order that the hash of each text decides.
//! Whoever judges may have neither the texts nor the tokenizer, and then does not know how many chunks a text has. But a
//! chunk that is named is there, and so are all before it. So the draw from texts that end with the last chunk that is
//! named must begin with the chunks that were measured.

use crate::measure::corpus::{further_places, in_turn};
use crate::results::statistics::Part;
use crate::results::{Conditions, CorpusFile, Measurement, Outcome, SchemeResult};
use std::collections::BTreeMap;

/// No corpus that people measure on has more chunks. A stranger may name any chunk, and each one before it takes time here.
const MOST_CHUNKS: usize = 1 << 20;

/// A chunk by its category and its number.
type Named<'m> = (&'m str, usize);

/// The first chunks that a scheme was measured on, and the further ones of all looks.
struct Own<'m> {
    scheme: &'m str,
    chunks: [Vec<Named<'m>>; 2],
}

/// Why nothing of a measurement can be trusted: its chunks are not those that a run draws.
pub fn other_chunks(measurement: &Measurement) -> Option<String> {
    let Conditions { corpus, chunks, .. } = &measurement.conditions;
    let schemes: Vec<Own> = measurement.schemes.iter().filter_map(Own::of).collect();
    let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
    for (category, chunk) in schemes.iter().flat_map(|own| own.chunks.iter().flatten()) {
        let end = ends.entry(category).or_default();
        *end = chunk.saturating_add(1).max(*end);
    }
    let length = |text: &CorpusFile| ends.get(&text.category[..]).copied().unwrap_or_default();
    let lengths: Vec<usize> = corpus.iter().map(length).collect();
    let all = lengths.iter().copied().fold(0, usize::saturating_add);
    if all > MOST_CHUNKS {
        return Some(format!(
            "the chunks that it names are of texts with {all} chunks at least, which is more than anybody measures: measure again"
        ));
    }
    let drawn = drawn(corpus, &lengths, *chunks);
    schemes.iter().find_map(|own| {
        let mut both = own.chunks.iter().zip(&drawn);
        if let Some((more, drawn)) = both.find(|(own, drawn)| own.len() > drawn.len()) {
            let (found, at) = more[drawn.len()];
            return Some(format!(
                "`{}` was measured on chunk {at} of {found} where a run draws none, because it is the turn of a text that \
                 has no more: measure again",
                own.scheme
            ));
        }
        let pairs = own.chunks.iter().zip(&drawn).flat_map(|(own, drawn)| own.iter().zip(drawn));
        let ((found, at), (category, chunk)) = pairs.into_iter().find(|(own, drawn)| own != drawn)?;
        Some(format!(
            "`{}` was measured on chunk {at} of {found} where a run draws chunk {chunk} of {category}: measure again",
            own.scheme
        ))
    })
}

/// Why no policy is judged by a measurement: a text had fewer of the first chunks than its share, and the others supplied
/// the rest, so that means are those of another mixture of texts.
pub fn other_mixture(measurement: &Measurement) -> Option<String> {
    measurement.schemes.iter().filter_map(Own::of).find_map(|own| {
        let mut turns = own.chunks[0].iter().zip(measurement.conditions.corpus.iter().cycle());
        let ((found, at), text) = turns.find(|((found, _), text)| *found != text.category)?;
        Some(format!(
            "`{}` was measured on chunk {at} of {found} where it is the turn of {}, which is too short for its share of the \
             chunks: add text to it, or ask for fewer `chunks`",
            own.scheme, text.category
        ))
    })
}

impl<'m> Own<'m> {
    fn of(result: &'m SchemeResult) -> Option<Self> {
        let Outcome::Measured { parts, looks, .. } = &result.outcome else { return None };
        let named = |part: &'m Part| (&part.category[..], part.chunk);
        let further = looks.iter().flat_map(|look| &look.parts);
        let chunks = [parts.iter().map(named).collect(), further.map(named).collect()];
        Some(Own { scheme: &result.scheme, chunks })
    }
}

/// The first chunks that a run draws from texts of these lengths, and the further ones.
fn drawn<'m>(corpus: &'m [CorpusFile], lengths: &[usize], chunks: usize) -> [Vec<Named<'m>>; 2] {
    let seeds: Vec<&str> = corpus.iter().map(|text| &text.sha256[..]).collect();
    let named = |(text, chunk): (usize, usize)| (&corpus[text].category[..], chunk);
    let first = in_turn(lengths).into_iter().take(chunks);
    let further = further_places(lengths, &seeds, chunks).into_iter();
    [first.map(named).collect(), further.map(named).collect()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::trust::distrust;
    use crate::results::statistics::Statistics;
    use crate::results::Look;
    use crate::testing::fixture;

    /// Two schemes on the first four of 9 chunks of prose and 9 of code, the first of them with two further looks. Their
    /// order is that of the hashes as another program has them.
    fn looked_twice() -> Measurement {
        let mut measurement = fixture::results().measurements.remove(0);
        let text = |category: &str| CorpusFile { category: category.into(), sha256: "11aa".into() };
        measurement.conditions.corpus = vec![text("prose"), text("code")];
        measurement.conditions.chunks = 4;
        let parts = |chunks: [Named; 4]| -> Vec<Part> {
            let part = |(category, chunk): Named| Part {
                category: category.into(),
                chunk,
                ..Part::default()
            };
            chunks.map(part).into()
        };
        let look = |chunks| Look { statistics: Statistics::default(), parts: parts(chunks) };
        let looks = vec![
            look([("prose", 2), ("code", 2), ("prose", 5), ("code", 5)]),
            look([("prose", 8), ("code", 8), ("prose", 6), ("code", 6)]),
        ];
        measurement.schemes.truncate(2);
        for (scheme, looks) in measurement.schemes.iter_mut().zip([looks, Vec::new()]) {
            let statistics = Statistics::default();
            let parts = parts([("prose", 0), ("code", 0), ("prose", 1), ("code", 1)]);
            scheme.outcome = Outcome::Measured { statistics, parts, looks };
        }
        measurement
    }

    fn chunks(m: &mut Measurement, scheme: usize) -> (&mut Vec<Part>, &mut Vec<Look>) {
        match &mut m.schemes[scheme].outcome {
            Outcome::Measured { parts, looks, .. } => (parts, looks),
            Outcome::Failed { .. } => panic!("it is measured"),
        }
    }

    #[test]
    fn chunks_that_a_run_does_not_draw_are_found() {
        let says = |edit: &dyn Fn(&mut Measurement)| {
            let mut measurement = looked_twice();
            edit(&mut measurement);
            other_chunks(&measurement).unwrap_or_default()
        };
        assert_eq!(says(&|_| ()), "");
        let look = |edit: &dyn Fn(&mut Vec<Part>)| says(&|m| edit(&mut chunks(m, 0).1[0].parts));
        for (said, expected) in [
            (look(&|parts| parts.swap(2, 3)), "chunk 5 of code where a run draws chunk 5 of prose"),
            (look(&|parts| parts.swap(1, 2)), "chunk 5 of prose where a run draws chunk 2 of code"),
            (look(&|parts| drop(parts.remove(2))), "chunk 5 of code where a run draws chunk 5 of"),
            (
                look(&|parts| parts[0].chunk = 1),
                "chunk 1 of prose where a run draws chunk 2 of prose",
            ),
            (look(&|parts| parts[1].category = "x".into()), "chunk 2 of x where a run draws chunk"),
            (says(&|m| chunks(m, 0).0.swap(0, 1)), "chunk 0 of code where a run draws chunk 0 of"),
            (says(&|m| chunks(m, 1).0[2].chunk = 7), "`q4_0` was measured on chunk 7 of prose"),
            (says(&|m| m.conditions.corpus[0].sha256 = "22bb".into()), "where a run draws chunk"),
        ] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
        // a scheme that was looked at again has the further chunks of the other one
        let other = says(&|m| {
            let look = Look {
                parts: vec![chunks(m, 0).1[0].parts[2].clone()],
                ..chunks(m, 0).1[0].clone()
            };
            chunks(m, 1).1.push(look);
        });
        let expected = "`q4_0` was measured on chunk 5 of prose where a run draws chunk 2 of prose: measure again";
        assert_eq!(other, expected);
        for huge in [MOST_CHUNKS, usize::MAX] {
            let said = look(&|parts| parts[3].chunk = huge);
            assert!(said.contains("more than anybody measures"), "{said}");
        }
        // a text that stands there often is as long each time
        let often = says(&|m| {
            chunks(m, 0).1[0].parts[2].chunk = MOST_CHUNKS / 2;
            m.conditions.corpus = vec![m.conditions.corpus[0].clone(); 2];
        });
        assert!(often.contains("more than anybody measures"), "{often}");
        // where a text ends is not known without it
        let shorter = says(&|m| {
            let (_, looks) = chunks(m, 0);
            drop(looks[1].parts.remove(3));
        });
        assert_eq!(shorter, "");
        // more of one text than of another, where that has no more
        let more = says(&|m| {
            let (_, looks) = chunks(m, 0);
            looks.truncate(1);
            looks[0].parts.truncate(3);
            let more = Part { chunk: 8, ..looks[0].parts[2].clone() };
            looks[0].parts.push(more);
        });
        assert!(more.contains("chunk 8 of prose where a run draws none, because it is"), "{more}");
    }

    /// It may be measured, and no policy is judged by it.
    #[test]
    fn texts_without_equal_shares_are_another_mixture() {
        let mut measurement = looked_twice();
        assert_eq!(other_mixture(&measurement), None);
        for scheme in 0..2 {
            let (parts, looks) = chunks(&mut measurement, scheme);
            looks.clear();
            parts[3] = Part { chunk: 2, ..parts[2].clone() };
        }
        assert_eq!(other_chunks(&measurement), None, "code has one chunk");
        let said = other_mixture(&measurement).unwrap();
        let words = "`q8_0` was measured on chunk 2 of prose where it is the turn of code, which is too short";
        assert!(said.starts_with(words), "{said}");
    }

    #[test]
    fn no_scheme_is_trusted_if_one_has_other_chunks() {
        let mut measurement = fixture::sound().measurements.remove(0);
        assert!(distrust(&measurement).is_empty());
        chunks(&mut measurement, 1).0[15].chunk = 20;
        let reasons = distrust(&measurement);
        let expected =
            "`q4_0` was measured on chunk 20 of code where a run draws chunk 7 of code: measure again";
        assert!(
            reasons.len() == 3 && reasons.values().all(|reason| reason == expected),
            "{reasons:?}"
        );
    }
}
