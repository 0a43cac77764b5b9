//! Which schemes are measured, which are verified, and which one is recommended. What is predicted and the chunks that
//! choose decide, and never those that verify.

use super::frontier::{
    best, fewest_bits, fits, is_fewer, least_harm, spread, within, Point, SAME_BITS,
};
use super::scouting::Candidate;
use super::{Row, REFERENCE};
use crate::golden::ChunkMeans;
use crate::judge::interval;
use serde::Serialize;
use std::collections::HashSet;

/// How many schemes are measured in which all layers are alike, and in which they are not.
pub(super) const UNIFORM: usize = 8;
pub(super) const MIXED: usize = 6;
/// How many schemes are verified.
pub(super) const VERIFIED: usize = 7;

/// A scheme that is beaten by this factor is near enough to be measured, because predictions are not exact.
const NEAR: f64 = 1.25;
/// Schemes with more bits save little, and those with more harm in nats per token serve nobody. They are measured only if
/// there are no others.
const MOST_USEFUL_BITS: f64 = 10.5;
const MOST_USEFUL_HARM: f64 = 0.5;
/// What shares of the reference's predicted harm a scheme with fewer bits is sought for.
const TRIED: [f64; 3] = [1.0, 0.75, 0.5];
/// How many schemes that just fit the budget are measured.
const WITHIN_BUDGET: usize = 4;
/// How many schemes with the next fewer bits than the recommended one are verified.
const BELOW: usize = 2;

/// The candidates that are measured. `limit` is the most bits that fit the budget.
pub(super) fn to_measure(candidates: Vec<Candidate>, limit: Option<f64>) -> Vec<Candidate> {
    let mut names = HashSet::new();
    let is_new = |candidate: &Candidate| names.insert(candidate.scheme.to_string());
    let candidates: Vec<Candidate> = candidates.into_iter().filter(is_new).collect();
    let reference = candidates.iter().find(|c| c.scheme.to_string() == REFERENCE).map(|c| c.point);
    let chosen = [(false, UNIFORM), (true, MIXED)].map(|(is_mixed, most)| {
        let own: Vec<usize> =
            (0..candidates.len()).filter(|&i| candidates[i].is_mixed == is_mixed).collect();
        let points: Vec<Point> = own.iter().map(|&i| candidates[i].point).collect();
        let listed = shortlist(&points, reference, limit, most);
        listed.into_iter().map(|i| own[i]).collect::<Vec<_>>()
    });
    // all others are compared with it
    let reference = candidates.iter().position(|c| c.scheme.to_string() == REFERENCE);
    let chosen: HashSet<usize> = chosen.into_iter().flatten().chain(reference).collect();
    let candidates = candidates.into_iter().enumerate();
    candidates.filter(|(i, _)| chosen.contains(i)).map(|(_, candidate)| candidate).collect()
}

/// The points that are worth measuring, at most so many.
fn shortlist(
    points: &[Point],
    reference: Option<Point>,
    limit: Option<f64>,
    most: usize,
) -> Vec<usize> {
    let near = within(points, NEAR);
    let mut listed = Vec::new();
    let mut list = |i: usize| {
        if listed.len() < most && !listed.contains(&i) {
            listed.push(i);
        }
    };
    if let Some(limit) = limit {
        let mut fit: Vec<usize> =
            near.iter().copied().filter(|&i| fits(points[i].bits, limit)).collect();
        fit.sort_by(|&a, &b| points[a].harm.total_cmp(&points[b].harm));
        fit.into_iter().take(WITHIN_BUDGET).for_each(&mut list);
    }
    if let Some(reference) = reference {
        let cheaper = |i: &usize| is_fewer(points[*i].bits, reference.bits);
        let tried = TRIED.iter().filter_map(|share| fewest_bits(points, share * reference.harm));
        tried.filter(cheaper).for_each(&mut list);
    }
    let serves =
        |i: &usize| points[*i].bits <= MOST_USEFUL_BITS && points[*i].harm <= MOST_USEFUL_HARM;
    let useful: Vec<usize> = near.iter().copied().filter(serves).collect();
    let useful = if useful.is_empty() { near } else { useful };
    // a wider spread if some of it are listed already
    for length in most..=useful.len().max(most) {
        spread(&useful, length).into_iter().for_each(&mut list);
    }
    listed
}

/// Marks the rows that no other row beats on the chunks that chose.
pub(super) fn mark_frontier(rows: &mut [Row]) {
    for i in best(&measured(rows)) {
        rows[i].is_frontier = true;
    }
}

fn measured(rows: &[Row]) -> Vec<Point> {
    rows.iter().map(point).collect()
}

fn point(row: &Row) -> Point {
    Point { bits: row.bits, harm: row.measured.mean_kld }
}

/// By what a scheme is chosen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Goal {
    /// The most bits that fit the budget.
    pub limit: Option<f64>,
    /// The index of [`REFERENCE`].
    pub reference: Option<usize>,
    /// Whether the reference may be served. If not, it was only measured to compare.
    pub serves_reference: bool,
}

/// What is chosen among the rows, by their indices.
#[derive(Debug, PartialEq)]
pub(super) struct Choice {
    pub recommended: Option<Recommended>,
    /// The scheme with fewer bits that comes closest to the reference, or beats it.
    pub rival: Option<usize>,
    pub verified: Vec<usize>,
}

/// A scheme to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Recommended {
    /// Its index.
    pub row: usize,
    pub why: Why,
}

/// Why a scheme is recommended. Where nothing else is said, the chunks that choose say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Of what fits the budget it does the least.
    FitsTheBudget,
    /// Of what has fewer bits than the reference and does surely no more, it has the fewest bits.
    SurelyNoMore,
    /// Of what has fewer bits than the reference it does the least, which is by the means no more than the reference does.
    NoMoreByTheMeans,
    /// The same, but on the other chunks it does more by the means, and they do not decide it. The reference, which would be
    /// served otherwise, is there only to compare.
    NotSurelyMore,
    /// Nothing with fewer bits than the reference does no more. Of all that does no more, it has the fewest bits.
    NoMore,
    /// The first choice was refuted. Of what does surely no more than the reference on both sets of chunks, it has the
    /// fewest bits.
    HoldsOnBoth,
    /// It is the reference, and nothing with fewer bits does no more.
    Reference,
    /// There are no numbers of the reference, and it does the least.
    DoesTheLeast,
}

impl Goal {
    /// Chooses by what was measured on the chunks that choose.
    pub fn choose(&self, rows: &[Row]) -> Choice {
        let rival = self.reference.and_then(|reference| rival(rows, reference));
        let recommended = self.recommended(rows, rival);
        let first = recommended.map(|recommended| recommended.row);
        let verified = to_verify(rows, first, first.into_iter().chain(rival).chain(self.reference));
        Choice { recommended, rival, verified }
    }

    fn recommended(&self, rows: &[Row], rival: Option<usize>) -> Option<Recommended> {
        let points = measured(rows);
        let is_served = |&i: &usize| self.serves_reference || Some(i) != self.reference;
        let served: Vec<usize> = (0..rows.len()).filter(is_served).collect();
        let of_served: Vec<Point> = served.iter().map(|&i| points[i]).collect();
        let chosen = |own: Option<usize>, why| Some(Recommended { row: served[own?], why });
        if let Some(limit) = self.limit {
            return chosen(least_harm(&of_served, limit), Why::FitsTheBudget);
        }
        let Some(reference) = self.reference else {
            return chosen(least_harm(&of_served, f64::INFINITY), Why::DoesTheLeast);
        };
        let harm = points[reference].harm;
        if let Some(row) = rival.filter(|&own| points[own].harm <= harm) {
            let why = match Change::of(&rows[row].measured, &rows[reference].measured).finding() {
                Finding::Surely => Why::SurelyNoMore,
                _ => Why::NoMoreByTheMeans,
            };
            return Some(Recommended { row, why });
        }
        let chosen = chosen(fewest_bits(&of_served, harm), Why::NoMore)?;
        let is_reference = chosen.row == reference;
        Some(if is_reference { Recommended { why: Why::Reference, ..chosen } } else { chosen })
    }

    /// What is recommended, and how the rival stands, after the winners were verified. The chunks that did not choose only
    /// refute: if a scheme was recommended because it does no more than the reference, and does more on these chunks, what
    /// surely holds on both sets of chunks takes its place, or else the reference. Where the reference may not be served,
    /// there is nothing sound to fall back to, so that only a scheme is refuted that surely does more.
    pub fn settle(
        &self,
        choice: &Choice,
        rows: &[Row],
    ) -> (Option<Recommended>, Option<Comparison>) {
        let Some(reference) = self.reference else { return (choice.recommended, None) };
        let rival = choice.rival.map(|own| standing(own, rows, reference));
        let settled = |own: Recommended| {
            let compared = Comparison::of(own.row, rows, reference);
            match compared.is_refuted() {
                false => Some(own),
                true if self.serves_reference || compared.surely_does_more() => {
                    self.instead(rows, reference)
                }
                true => Some(Recommended { why: Why::NotSurelyMore, ..own }),
            }
        };
        let recommended = match self.limit {
            Some(_) => choice.recommended,
            None => choice.recommended.and_then(settled),
        };
        (recommended, rival)
    }

    fn instead(&self, rows: &[Row], reference: usize) -> Option<Recommended> {
        let holds = |&row: &usize| row != reference && Comparison::of(row, rows, reference).holds();
        let others = (0..rows.len()).filter(holds).map(|row| (row, Why::HoldsOnBoth));
        let all = others.chain(self.serves_reference.then_some((reference, Why::Reference)));
        let all: Vec<(usize, Why)> = all.collect();
        let points: Vec<Point> = all.iter().map(|(row, _)| point(&rows[*row])).collect();
        let (row, why) = all[fewest_bits(&points, f64::INFINITY)?];
        Some(Recommended { row, why })
    }
}

/// The rows that are verified: those that must be, the next cheaper ones than the recommended one, and a spread of the
/// frontier.
fn to_verify(
    rows: &[Row],
    recommended: Option<usize>,
    musts: impl Iterator<Item = usize>,
) -> Vec<usize> {
    let mut verified = Vec::new();
    let mut verify = |i: usize| {
        if verified.len() < VERIFIED && !verified.contains(&i) {
            verified.push(i);
        }
    };
    musts.for_each(&mut verify);
    let frontier: Vec<usize> = (0..rows.len()).filter(|&i| rows[i].is_frontier).collect();
    if let Some(recommended) = recommended {
        let below = frontier.iter().rev().filter(|&&i| rows[i].bits < rows[recommended].bits);
        below.take(BELOW).copied().for_each(&mut verify);
    }
    for length in VERIFIED..=frontier.len().max(VERIFIED) {
        spread(&frontier, length).into_iter().for_each(&mut verify);
    }
    verified
}

/// The rival beside the reference, as it stands after the winners were verified. If the other chunks refute it, a scheme
/// with fewer bits than the reference takes its place that does surely no more on both sets of chunks, of these the one with
/// the fewest bits.
fn standing(rival: usize, rows: &[Row], reference: usize) -> Comparison {
    let first = Comparison::of(rival, rows, reference);
    if !first.is_refuted() {
        return first;
    }
    let others = (0..rows.len()).map(|row| Comparison::of(row, rows, reference));
    let holding = others.filter(|own| own.bits_fewer > SAME_BITS && own.holds());
    holding.max_by(|a, b| a.bits_fewer.total_cmp(&b.bits_fewer)).unwrap_or(first)
}

/// The scheme with fewer bits than the reference that does surely no more harm, of these the one with the fewest bits. If
/// there is none, the one with the least harm.
fn rival(rows: &[Row], reference: usize) -> Option<usize> {
    let fewer: Vec<usize> =
        (0..rows.len()).filter(|&i| is_fewer(rows[i].bits, rows[reference].bits)).collect();
    let is_sure = |i: &usize| {
        let change = Change::of(&rows[*i].measured, &rows[reference].measured);
        change.finding() == Finding::Surely
    };
    let by = |key: fn(&Row) -> f64| {
        move |a: &usize, b: &usize| key(&rows[*a]).total_cmp(&key(&rows[*b]))
    };
    let sure = fewer.iter().copied().filter(is_sure).min_by(by(|row| row.bits));
    sure.or_else(|| fewer.iter().copied().min_by(by(|row| row.measured.mean_kld)))
}

/// A scheme with fewer bits than the reference, and what it does more or less.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Its index.
    pub row: usize,
    pub bits_fewer: f64,
    pub measured: Change,
    /// The same on chunks that did not choose.
    pub verified: Option<Change>,
    /// By the chunks that did not choose, if there are any.
    pub finding: Finding,
}

/// By how much one mean KLD is larger than another one, on the same chunks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Change {
    pub difference: f64,
    /// The interval of the difference, made of the differences of chunks. None if there are too few chunks.
    pub interval: Option<[f64; 2]>,
}

/// Whether a scheme does no more harm than another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// The whole interval of the difference says so.
    Surely,
    /// The means say so, and chunks do not decide it.
    ByTheMeans,
    /// The means do not say so.
    No,
}

impl Comparison {
    pub(super) fn of(row: usize, rows: &[Row], reference: usize) -> Self {
        let (own, other) = (&rows[row], &rows[reference]);
        let measured = Change::of(&own.measured, &other.measured);
        let verified = own.verified.as_ref().zip(other.verified.as_ref());
        let verified = verified.map(|(own, other)| Change::of(own, other));
        let finding = verified.unwrap_or(measured).finding();
        Comparison { row, bits_fewer: other.bits - own.bits, measured, verified, finding }
    }

    /// Whether chunks that did not choose it say the contrary.
    fn is_refuted(&self) -> bool {
        self.verified.is_some() && self.finding == Finding::No
    }

    /// Whether the chunks that did not choose it are sure that it does more. If they are too few, the means decide.
    pub(super) fn surely_does_more(&self) -> bool {
        let change = self.verified.unwrap_or(self.measured);
        change.interval.map_or(change.difference, |[low, _]| low) > 0.0
    }

    /// Whether the chunks that choose and those that did not both say that it surely does no more.
    fn holds(&self) -> bool {
        let findings = [self.measured.finding(), self.finding];
        self.verified.is_some() && findings.iter().all(|found| *found == Finding::Surely)
    }
}

impl Change {
    fn of(own: &super::Reading, other: &super::Reading) -> Self {
        Change {
            difference: own.mean_kld - other.mean_kld,
            interval: interval::of_change(&own.parts, &ChunkMeans::of(&other.parts)),
        }
    }

    pub(super) fn finding(&self) -> Finding {
        match self.interval {
            Some([_, high]) if high <= 0.0 => Finding::Surely,
            _ if self.difference <= 0.0 => Finding::ByTheMeans,
            _ => Finding::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{reading, row};
    use super::*;

    #[test]
    fn the_shortlist_has_what_fits_the_budget_and_what_may_beat_the_reference() {
        let points: Vec<Point> = (0..60)
            .map(|i| Point { bits: 3.0 + 0.1 * f64::from(i), harm: 0.3 * 0.9f64.powi(i) })
            .collect();
        let reference = Some(Point { bits: 6.5, harm: 0.0077 });
        let listed = shortlist(&points, reference, Some(5.0), 8);
        assert_eq!(listed.len(), 8);
        assert_eq!(listed[..4], [20, 19, 18, 17], "just within 5 bits");
        let beats = fewest_bits(&points, 0.0077).unwrap();
        assert!(points[beats].bits > 6.4 && !listed.contains(&beats), "it has no fewer bits");
        let high = Some(Point { bits: 6.5, harm: 0.05 });
        let listed = shortlist(&points, high, None, 8);
        for share in TRIED {
            assert!(listed.contains(&fewest_bits(&points, share * 0.05).unwrap()), "{listed:?}");
        }
        assert!(shortlist(&[], reference, None, 8).is_empty());
    }

    fn rows() -> Vec<Row> {
        let mut rows = vec![
            row("q4_0", 4.5, 0.3),
            row("q5_0", 5.5, 0.009),
            row("q5_1", 6.0, 0.006),
            row(REFERENCE, 6.5, 0.0077),
            row("q8_0", 8.5, 0.001),
        ];
        mark_frontier(&mut rows);
        rows
    }

    /// The same mean of chunks that differ the other way round, so that nothing is sure beside one that is not turned.
    fn turned(mut reading: crate::suggest::Reading) -> crate::suggest::Reading {
        reading.parts.reverse();
        reading.parts.iter_mut().enumerate().for_each(|(i, part)| part.chunk = i);
        reading
    }

    fn goal(limit: Option<f64>) -> Goal {
        Goal { limit, reference: Some(3), serves_reference: true }
    }

    fn told(rows: &[Row], recommended: Option<Recommended>) -> Option<(&str, Why)> {
        recommended.map(|own| (rows[own.row].scheme.as_str(), own.why))
    }

    /// What is recommended on the chunks that choose.
    fn first(rows: &[Row], goal: Goal) -> Option<(&str, Why)> {
        told(rows, goal.choose(rows).recommended)
    }

    #[test]
    fn the_recommendation_fits_the_budget_or_beats_the_reference() {
        let rows = rows();
        assert_eq!(first(&rows, goal(None)), Some(("q5_1", Why::SurelyNoMore)));
        assert_eq!(goal(None).choose(&rows).rival, Some(2));
        assert_eq!(first(&rows, goal(Some(5.6))), Some(("q5_0", Why::FitsTheBudget)));
        assert_eq!(first(&rows, goal(Some(9.0))), Some(("q8_0", Why::FitsTheBudget)));
        assert_eq!(first(&rows, goal(Some(4.0))), None);
        let verified = goal(Some(5.6)).choose(&rows).verified;
        assert!([0, 1, 2, 3].iter().all(|i| verified.contains(i)), "{verified:?}");
        let none = Goal { reference: None, ..goal(None) };
        assert_eq!(first(&rows, none), Some(("q8_0", Why::DoesTheLeast)));
        assert_eq!(none.choose(&rows).rival, None);
    }

    #[test]
    fn where_nothing_beats_the_reference_it_is_served_if_it_may_be() {
        let mut rows = rows();
        rows[2] = row("q5_1", 6.0, 0.02);
        mark_frontier(&mut rows);
        assert_eq!(first(&rows, goal(None)), Some((REFERENCE, Why::Reference)));
        assert_eq!(goal(None).choose(&rows).rival, Some(1), "the nearest");
        let compared_only = Goal { serves_reference: false, ..goal(None) };
        assert_eq!(first(&rows, compared_only), Some(("q8_0", Why::NoMore)));
        let compared_only = Goal { limit: Some(7.0), ..compared_only };
        assert_eq!(first(&rows, compared_only), Some(("q5_0", Why::FitsTheBudget)));
    }

    #[test]
    fn a_scheme_that_other_chunks_refute_is_not_recommended() {
        let mut rows = rows();
        let settled = |rows: &[Row], goal: Goal| {
            let (recommended, _) = goal.settle(&goal.choose(rows), rows);
            told(rows, recommended).map(|(name, why)| (name.to_string(), why))
        };
        let sure = Some(("q5_1".into(), Why::SurelyNoMore));
        assert_eq!(settled(&rows, goal(None)), sure, "nothing was verified");
        rows[3].verified = Some(reading(0.008));
        rows[2].verified = Some(reading(0.007));
        assert_eq!(settled(&rows, goal(None)), sure);
        rows[2].verified = Some(reading(0.009));
        assert_eq!(settled(&rows, goal(None)), Some((REFERENCE.into(), Why::Reference)));
        let compared_only = Goal { serves_reference: false, ..goal(None) };
        assert_eq!(settled(&rows, compared_only), None);
        // what has more bits than the reference holds, too
        rows[4].verified = Some(reading(0.001));
        assert_eq!(settled(&rows, compared_only), Some(("q8_0".into(), Why::HoldsOnBoth)));
        rows[4].verified = Some(reading(0.009));
        rows[2].measured = reading(0.0078);
        assert_eq!(first(&rows, compared_only), Some(("q8_0", Why::NoMore)));
        assert_eq!(settled(&rows, compared_only), None, "it was no rival, and is refuted");
        // chunks that differ the other way round, so that nothing is sure
        rows[4].verified = Some(turned(reading(0.00801)));
        assert_eq!(settled(&rows, compared_only), Some(("q8_0".into(), Why::NotSurelyMore)));
        assert_eq!(settled(&rows, goal(None)), Some((REFERENCE.into(), Why::Reference)));
        let within = settled(&rows, goal(Some(6.0)));
        assert_eq!(within, Some(("q5_1".into(), Why::FitsTheBudget)), "a budget compares nothing");
    }

    #[test]
    fn what_holds_on_both_sets_of_chunks_takes_the_place_of_a_rival_that_does_not() {
        let mut rows = rows();
        rows[1] = row("q5_0", 5.5, 0.005);
        let verified = |rows: &mut [Row], of: [f64; 3]| {
            (1..4).zip(of).for_each(|(i, mean)| rows[i].verified = Some(reading(mean)));
        };
        let settled = |rows: &[Row]| {
            let (recommended, rival) = goal(None).settle(&goal(None).choose(rows), rows);
            let (recommended, rival) = (recommended.unwrap(), rival.unwrap());
            (recommended.row, recommended.why, rival.row, rival.finding)
        };
        verified(&mut rows, [0.006, 0.006, 0.008]);
        assert_eq!(settled(&rows), (1, Why::SurelyNoMore, 1, Finding::Surely));
        verified(&mut rows, [0.009, 0.006, 0.008]);
        assert_eq!(settled(&rows), (2, Why::HoldsOnBoth, 2, Finding::Surely), "the next one does");
        verified(&mut rows, [0.009, 0.009, 0.008]);
        assert_eq!(settled(&rows), (3, Why::Reference, 1, Finding::No), "none does");
    }

    #[test]
    fn means_alone_are_not_said_to_be_sure() {
        let mut rows = rows();
        rows[2].measured = turned(reading(0.0077));
        assert_eq!(first(&rows, goal(None)), Some(("q5_1", Why::NoMoreByTheMeans)));
    }

    #[test]
    fn a_rival_is_compared_chunk_by_chunk() {
        let rows = rows();
        let compared = Comparison::of(2, &rows, 3);
        assert_eq!(compared.bits_fewer, 0.5);
        assert!((compared.measured.difference + 0.0017).abs() < 1e-9);
        // chunks of both move together, so that the interval is narrow
        let [low, high] = compared.measured.interval.unwrap();
        assert!(low > -0.004 && high < 0.0, "{low} {high}");
        assert_eq!(compared.finding, Finding::Surely);
        assert_eq!(Comparison::of(1, &rows, 3).finding, Finding::No);
    }
}
