//! Verdicts with a confidence: what intervals make of limits.

use crate::judge::interval::{self, Interval, NoInterval, SHOWN};
use crate::policy::Expectation;
use crate::results::statistics::{Direction, Part, Statistic, Statistics};
use crate::results::verdict::{Decision, JudgedLimit, Verdict};
use crate::text::numbers::{rounded, significant, Rounded};

/// The interval of a value that a limit is judged by.
///
/// # Errors
/// Why the value has none and decides as it is. A kvgate that wrote no histograms is no such reason where the policy asks
/// for a confidence: the value may then be anything.
pub(super) fn interval(
    statistic: Statistic,
    (statistics, parts): (&Statistics, &[Part]),
    confidence: Option<f64>,
) -> Result<Interval, NoInterval> {
    match interval::of(statistic, statistics, parts, confidence.unwrap_or(SHOWN)) {
        Err(NoInterval::NoHistograms) if confidence.is_some() => {
            Ok(Interval { low: statistic.range().0, high: f64::INFINITY })
        }
        found => found,
    }
}

/// What results say of a value's interval: its ends, of which the upper one is left out if nothing bounds the value from
/// above, or why there is none although the policy asks for a confidence.
pub(super) fn told(
    interval: Result<Interval, NoInterval>,
    confidence: Option<f64>,
) -> (Option<f64>, Option<f64>, Option<String>) {
    match interval {
        Ok(Interval { low, high }) => (Some(low), Some(high).filter(|high| high.is_finite()), None),
        Err(why) => (None, None, confidence.map(|_| why.to_string())),
    }
}

/// The verdict that limits make together. A scheme passes if all are kept and regressed if one is broken; whatever must
/// fail fails if one is broken. If neither is known, the verdict is inconclusive.
pub(super) fn verdict(expect: Expectation, limits: &[JudgedLimit]) -> Verdict {
    let is = |decision| move |limit: &&JudgedLimit| limit.decision() == decision;
    let mut broken = limits.iter().filter(is(Decision::Broken)).peekable();
    let is_undecided = limits.iter().any(|limit| limit.decision() == Decision::Undecided);
    match (expect, broken.peek().is_some(), is_undecided) {
        (Expectation::Report, _, _) => Verdict::Reported,
        (Expectation::Pass, true, _) => Verdict::Regressed,
        (Expectation::Pass, false, false) => Verdict::Pass,
        // a limit on the baseline is about the model, and a damaged model does not show that a scheme fails as required
        (Expectation::Fail, true, _)
            if broken.any(|limit| limit.statistic == Statistic::BaselinePpl) =>
        {
            Verdict::Regressed
        }
        (Expectation::Fail, true, _) => Verdict::FailsAsRequired,
        (Expectation::Fail, false, false) => Verdict::UnexpectedPass,
        (_, false, true) => Verdict::Inconclusive,
    }
}

/// What to say of a limit beside its value: the interval if it matters, what would decide, or why there is none. `chunks`
/// are those that the limit is judged by, and all.
pub(super) fn remarks(limit: &JudgedLimit, chunks: (usize, usize)) -> Vec<String> {
    let mut remarks = Vec::new();
    if let Some((low, high)) = limit.interval().filter(|_| limit.borderline) {
        let confidence = (limit.confidence_of_interval().unwrap_or(SHOWN) * 1000.0).round() / 10.0;
        remarks.push(format!("{confidence} % interval: {}", shown(low, high)));
    }
    if limit.decision() == Decision::Undecided {
        remarks.push(what_would_decide(limit, chunks));
    }
    match &limit.no_interval {
        Some(why) if limit.statistic != Statistic::BaselinePpl => {
            remarks.push(format!("the value decides as it is: {why}"));
        }
        _ => (),
    }
    remarks
}

fn shown(low: f64, high: f64) -> String {
    match high.is_finite() {
        true => format!("{} to {}", significant(low, 4), significant(high, 4)),
        false => format!("{} and more", significant(low, 4)),
    }
}

/// How many chunks would probably decide an undecided limit, and how far the limit would have to move.
fn what_would_decide(limit: &JudgedLimit, (own, all): (usize, usize)) -> String {
    let (low, high) = limit.interval().unwrap_or((limit.value, limit.value));
    let [kept, broken] = match limit.statistic.direction() {
        Direction::AtMost => [high, low],
        Direction::AtLeast => [low, high],
    };
    if !kept.is_finite() {
        return "nothing bounds the value from above: measure more chunks, or measure again with a kvgate that writes \
                histograms of chunks"
            .into();
    }
    let (looser, tighter) = match limit.statistic.direction() {
        Direction::AtMost => (Rounded::Up, Rounded::Down),
        Direction::AtLeast => (Rounded::Down, Rounded::Up),
    };
    let mut move_to = format!("a limit of {} would be kept", rounded(kept, 3, looser));
    // no limit is beyond what the value can be
    let (least, most) = limit.statistic.range();
    if least < broken && broken < most {
        move_to += &format!(", and one of {} broken", rounded(broken, 3, tighter));
    }
    match chunks_that_decide(limit, (low, high), own) {
        Some(needed) => {
            let of = limit.category.as_ref().map(|category| {
                let in_all = (needed * all).div_ceil(own.max(1)); // texts take turns
                format!(" of {category}, {in_all} of all texts,")
            });
            let of = of.unwrap_or_default();
            format!("about {needed} chunks{of} would decide if the value stays; {move_to}")
        }
        None => format!("the value is too near the limit for more chunks to decide; {move_to}"),
    }
}

/// An interval shrinks with the root of the number of chunks. None if more than a hundred times as many are needed.
fn chunks_that_decide(
    limit: &JudgedLimit,
    (low, high): (f64, f64),
    chunks: usize,
) -> Option<usize> {
    let harm = |x: f64| match limit.statistic.direction() {
        Direction::AtMost => x,
        Direction::AtLeast => 1.0 - x,
    };
    let (value, bound) = (harm(limit.value), harm(limit.bound));
    let ends = [harm(low), harm(high)];
    let end = if value <= bound { ends[0].max(ends[1]) } else { ends[0].min(ends[1]) };
    let times = match value > 0.0 {
        true => ((end / value).ln() / (bound / value).ln()).powi(2),
        // the upper end of what was not seen once shrinks with the number of chunks
        false => end / bound,
    };
    (times.is_finite() && times < 100.0).then(|| (chunks as f64 * times).ceil() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fixture;

    /// No flip was seen, and more chunks without one would be enough.
    #[test]
    fn what_was_not_seen_once_needs_more_chunks() {
        let own = fixture::report().results.cases[2].limits[0].clone();
        let of = |bound| JudgedLimit {
            statistic: Statistic::Top1Agreement,
            value: 1.0,
            bound,
            low: Some(0.985),
            high: Some(1.0),
            ..own.clone()
        };
        assert_eq!(chunks_that_decide(&of(0.99), (0.985, 1.0), 8), Some(12));
        assert_eq!(chunks_that_decide(&of(1.0), (0.985, 1.0), 8), None);
    }
}
