use super::*;
use crate::results::statistics::Position;

/// Chunks of 50 positions, each with its own factor of KLD.
fn parts(factors: &[(&str, f64)]) -> (Statistics, Vec<Part>) {
    let chunk = |factor: f64| -> Vec<Position> {
        let one = |i: usize| Position {
            kld: (factor * (1 + i * 7 % 50) as f64 / 1000.0) as f32,
            logp_base: -2.0,
            logp: (-2.0 - factor * (i % 5) as f64 / 100.0) as f32,
            top: u32::from(factor * (i % 10) as f64 > 8.5),
            ..Position::default()
        };
        (0..50).map(one).collect()
    };
    let chunks: Vec<_> = factors.iter().map(|(_, factor)| chunk(*factor)).collect();
    let part = |(i, (category, _)): (usize, &(&str, f64))| Part::of(category, i, &chunks[i]);
    let parts = factors.iter().enumerate().map(part).collect();
    (Statistics::of(&chunks.concat()), parts)
}

fn interval(statistic: Statistic, factors: &[(&str, f64)]) -> Interval {
    let (statistics, parts) = parts(factors);
    let interval = of(statistic, &statistics, &parts, 0.95).unwrap();
    assert!((interval.low..=interval.high).contains(&statistics.get(statistic)), "{interval:?}");
    interval
}

const ALIKE: [(&str, f64); 8] = [
    ("a", 1.0),
    ("a", 1.1),
    ("a", 0.9),
    ("a", 1.0),
    ("b", 3.0),
    ("b", 3.3),
    ("b", 2.7),
    ("b", 3.0),
];

/// By hand: residuals ±0.1·√(4/3) of four chunks, 0 of the others; t of 6 degrees of freedom is 2.4469.
#[test]
fn the_lower_end_by_hand() {
    let (statistics, _) = parts(&ALIKE);
    let error = (4.0 * 0.01 * 4.0 / 3.0f64).sqrt() / 8.0;
    let weight = ((4.0 + 36.0) / 8.0f64).sqrt() / 2.0;
    let low = statistics.mean_kld * (-2.446_912 * error * weight).exp();
    assert!((interval(Statistic::MeanKld, &ALIKE).low / low - 1.0).abs() < 1e-6);
}

/// By hand: differences of 0.75 times the mean on two chunks of the category that holds most, and 0 elsewhere. Relative to
/// the means of categories, the even one would make the other look even.
#[test]
fn a_category_that_spreads_more_than_the_others_is_not_evened_out() {
    let mut wild = ALIKE;
    for (i, factor) in [1.0, 1.0, 1.0, 1.0, 3.0, 4.5, 1.5, 3.0].into_iter().enumerate() {
        wild[i].1 = factor;
    }
    let (statistics, _) = parts(&wild);
    let error = (2.0 * 0.75f64.powi(2) * 4.0 / 3.0).sqrt() / 8.0;
    let low = statistics.mean_kld * (-2.446_912 * error).exp();
    let found = interval(Statistic::MeanKld, &wild);
    assert!((found.low / low - 1.0).abs() < 1e-6, "{found:?}");
}

#[test]
fn categories_do_not_count_as_spread() {
    let told = interval(Statistic::MeanKld, &ALIKE);
    let one_category = ALIKE.map(|(_, factor)| ("a", factor));
    let mixed = interval(Statistic::MeanKld, &one_category);
    assert!(mixed.low < 0.8 * told.low && mixed.high > 1.2 * told.high, "{told:?} {mixed:?}");
}

/// A sample with one chunk that holds most of the divergence leaves much more above it than below.
#[test]
fn a_far_chunk_raises_the_upper_end() {
    let mut far = ALIKE;
    far[7].1 = 9.0;
    let [near, far] = [ALIKE, far].map(|factors| interval(Statistic::MeanKld, &factors));
    assert!(far.high > 3.0 * near.high, "{near:?} {far:?}");
    assert!(near.high / near.low < 2.0, "{near:?}");
}

#[test]
fn more_confidence_is_a_wider_interval() {
    let (statistics, parts) = parts(&ALIKE);
    for statistic in Statistic::ALL {
        let Ok(wide) = of(statistic, &statistics, &parts, 0.99) else { continue };
        let narrow = of(statistic, &statistics, &parts, 0.8).unwrap();
        assert!(wide.low <= narrow.low && narrow.high <= wide.high, "{statistic:?}");
        // ends of quantiles are edges of bins
        if [Statistic::MeanKld, Statistic::RmsDp, Statistic::PplRatio].contains(&statistic) {
            assert!(wide.low < narrow.low && narrow.high < wide.high, "{statistic:?}");
        }
    }
}

/// The quantile of the chunks together lies in its interval, and the interval is no wider than the chunks are apart.
#[test]
fn quantiles_lie_between_those_of_chunks() {
    for (statistic, f) in [(Statistic::MedianKld, 0.5), (Statistic::P90Kld, 0.9)] {
        let found = interval(statistic, &ALIKE);
        assert!(found.low > 0.5 * f * 0.9 * 0.05 && found.high < 3.3 * 0.06, "{found:?}");
    }
}

#[test]
fn a_lossless_scheme_is_known_to_be_so() {
    let none = ALIKE.map(|(category, _)| (category, 0.0));
    assert_eq!(interval(Statistic::MeanKld, &none), Interval { low: 0.0, high: 0.0 });
    assert_eq!(interval(Statistic::Top1Agreement, &none), Interval { low: 1.0, high: 1.0 });
    // no flip was seen of a scheme that changes something, which does not exclude rare ones
    let few = ALIKE.map(|(category, _)| (category, 0.1));
    let top1 = interval(Statistic::Top1Agreement, &few);
    assert!(top1.high == 1.0 && top1.low < 1.0 && top1.low > 0.95, "{top1:?}");
}

/// Nothing can be divided by the mean of a category in which no top token changed.
#[test]
fn a_category_without_flips_is_taken_with_the_others() {
    let mut half = ALIKE;
    half[..4].iter_mut().for_each(|(_, factor)| *factor = 0.1);
    let (statistics, _) = parts(&half);
    let (top1, found) = (statistics.top1_agreement, interval(Statistic::Top1Agreement, &half));
    assert!(found.low < top1 && top1 < found.high, "{top1}: {found:?}");
}

#[test]
fn what_has_no_interval_says_why() {
    let (statistics, parts) = parts(&ALIKE);
    let why = |statistic, parts: &[Part]| of(statistic, &statistics, parts, 0.95).unwrap_err();
    assert_eq!(why(Statistic::MeanKld, &parts[..7]), NoInterval::FewChunks(7));
    assert_eq!(why(Statistic::MeanKld, &[]), NoInterval::NoParts);
    assert_eq!(why(Statistic::MaxKld, &parts), NoInterval::FewPositions);
    assert_eq!(why(Statistic::BaselinePpl, &parts), NoInterval::OfTheModel);
    for statistic in Statistic::ALL {
        let found = of(statistic, &statistics, &parts, 0.95);
        assert_eq!(found.is_ok(), may_have_one(statistic), "{statistic:?}: {found:?}");
    }
    let old: Vec<_> =
        parts.iter().map(|part| Part { histogram: Vec::new(), ..part.clone() }).collect();
    assert_eq!(why(Statistic::P99Kld, &old), NoInterval::NoHistograms);
    assert!(of(Statistic::MeanKld, &statistics, &old, 0.95).is_ok());
}
