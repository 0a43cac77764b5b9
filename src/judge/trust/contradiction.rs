//! Finds results whose numbers contradict each other.

use super::{is_same_baseline, needles, LEAST_MEAN_KLD};
use crate::golden::GoldenReplay;
use crate::measure::corpus::scored;
use crate::results::measured_by::MeasuredBy;
use crate::results::replay::{Generated, Replay};
use crate::results::shape::{begin, bin, BINS};
use crate::results::statistics::{Part, Statistic, Statistics};
use crate::results::{Conditions, Measurement, Outcome, SchemeResult, Seen, Sides, Storage};
use std::collections::{BTreeMap, BTreeSet};

/// How far a statistic may be from the sums that it is made of, relative to its value.
const ROUNDING: f64 = 1e-6;

/// How a result contradicts itself: its statistics do not follow from its parts, or contradict each other.
pub fn contradiction(
    measurement: &Measurement,
    scheme: &SchemeResult,
    by: MeasuredBy,
) -> Option<String> {
    let Outcome::Measured { statistics, parts, looks } = &scheme.outcome else { return None };
    let own = Seen::all(statistics, parts, looks)
        .enumerate()
        .find_map(|(look, seen)| contradicting_look(measurement, look == 0, &seen, by));
    own.or_else(|| scheme.storage.as_ref().and_then(impossible_storage))
        .or_else(|| {
            let replay = scheme.replay.as_ref()?;
            impossible_replay(replay)
                .or_else(|| of_another_text(replay, measurement.generated.as_ref()))
        })
        .or_else(|| needles::contradiction(measurement, scheme))
}

/// How what was there at a look contradicts itself. The first look is at as many chunks as the conditions say.
fn contradicting_look(
    measurement: &Measurement,
    is_first: bool,
    Seen { statistics, parts }: &Seen,
    by: MeasuredBy,
) -> Option<String> {
    if let Some(no_number) = not_finite(statistics, parts) {
        return Some(no_number);
    }
    let chunks = if is_first { measurement.conditions.chunks } else { parts.len() };
    // logs of another engine have no parts
    let has_parts = by == MeasuredBy::Kvgate || !parts.is_empty();
    let unlike =
        || twice(parts).or_else(|| mismatch_with_parts(measurement, (statistics, chunks), parts));
    let unlike = has_parts.then(unlike).flatten();
    left_out(statistics, by).or(unlike).or_else(|| contradicting_statistics(statistics))
}

/// Finds a chunk that is there twice. It would make a value look surer than it is.
fn twice(parts: &[Part]) -> Option<String> {
    let mut seen = BTreeSet::new();
    let again = parts.iter().find(|part| !seen.insert((&part.category, part.chunk)))?;
    Some(format!("it holds chunk {} of {} twice", again.chunk, again.category))
}

/// How a replay is not that of the text which the measurement holds.
fn of_another_text(replay: &Replay, text: Option<&Generated>) -> Option<String> {
    let Some(text) = text else {
        return Some("it has a replay, and the baseline's text is missing".into());
    };
    let lengths = text.continuations.iter().map(|c| (&c.prompt, c.tokens.len() as u64));
    let (found, sha256) = (&replay.text_sha256, text.sha256());
    if !replay.prompts.iter().map(|prompt| (&prompt.prompt, prompt.positions)).eq(lengths) {
        Some(
            "its replay has other prompts than the baseline's text, or other lengths of them"
                .into(),
        )
    } else if *found != sha256 {
        Some(format!("its replay is of the text {found}, and the baseline's text is {sha256}"))
    } else {
        None
    }
}

/// How schemes of a measurement contradict each other about the baseline that they were compared with, or what is said
/// of the run contradicts all of them. Which one is right cannot be told.
pub fn contradicting_baselines(measurement: &Measurement) -> Option<String> {
    let measured = measurement.schemes.iter().filter_map(|scheme| match &scheme.outcome {
        Outcome::Measured { statistics, parts, looks } => Some((scheme, statistics, parts, looks)),
        Outcome::Failed { .. } => None,
    });
    let measured: Vec<_> = measured.collect();
    let mut known: BTreeMap<(&str, usize), (&str, f64)> = BTreeMap::new();
    for (scheme, _, parts, looks) in &measured {
        for part in parts.iter().chain(looks.iter().flat_map(|look| &look.parts)) {
            let own = (&scheme.scheme[..], part.nll_base);
            let (first, nll) = *known.entry((&part.category, part.chunk)).or_insert(own);
            if !is_same_baseline(nll, part.nll_base) {
                return Some(format!(
                    "`{first}` and `{}` were compared with different baselines: on chunk {} of {}, its negative \
                     log-likelihoods add up to {nll} for one and to {} for the other",
                    scheme.scheme, part.chunk, part.category, part.nll_base
                ));
            }
        }
    }
    let chunks = measurement.conditions.chunks;
    let whole = measured.iter().filter(|(_, _, parts, _)| parts.len() == chunks);
    let mut perplexities = whole.map(|(_, statistics, ..)| statistics.baseline_ppl).peekable();
    let (said, first) = (measurement.run.baseline_ppl, *perplexities.peek()?);
    let is_known = perplexities.any(|perplexity| is_near(said, perplexity, ROUNDING));
    (!is_known).then(|| {
        format!("the run's baseline has a perplexity of {said}, and its schemes were compared with one of {first}")
    })
}

/// Whether two numbers differ by no more than a share of the larger one. None is near one that is not finite.
fn is_near(a: f64, b: f64, share: f64) -> bool {
    let apart = (a - b).abs();
    apart.is_finite() && apart <= share * a.abs().max(b.abs())
}

/// Finds a statistic or a sum of parts that is not finite. Everything would agree with what is computed from it.
fn not_finite(s: &Statistics, parts: &[Part]) -> Option<String> {
    let values = Statistic::ALL.into_iter().flat_map(|statistic| {
        let name = statistic.name();
        let error = s.standard_error(statistic).map(|error| (format!("{name}_se"), error));
        [Some((name.to_owned(), s.get(statistic))), error].into_iter().flatten()
    });
    let total = |of: fn(&Part) -> f64| parts.iter().map(of).sum::<f64>();
    let sums = [
        ("kld", total(|part| part.kld)),
        ("kld2", total(|part| part.kld2)),
        ("nll", total(|part| part.nll)),
        ("nll_base", total(|part| part.nll_base)),
        ("nll2", total(|part| part.nll2)),
        ("nll_base2", total(|part| part.nll_base2)),
        ("nll_cross", total(|part| part.nll_cross)),
        ("dp2", total(|part| part.dp2)),
        ("dp4", total(|part| part.dp4)),
    ];
    let sums = sums.map(|(name, sum)| (format!("sum of {name} over its parts"), sum));
    let mut all = values.chain(sums);
    let (name, value) = all.find(|(_, value)| !value.is_finite())?;
    Some(format!("its {name} is {value}, which is no number"))
}

/// Finds sizes of the cache below 0, and shares outside of 0 to 1.
fn impossible_storage(storage: &Storage) -> Option<String> {
    let sides = |sides: &Sides| [sides.k, sides.v];
    let sizes = [storage.bytes_per_token, storage.ratio_to_f16];
    let bits = [sides(&storage.bits_per_element), sides(&storage.bits_at_context)].concat();
    let is_size = |size: &f64| size.is_finite() && *size >= 0.0;
    let shares = sides(&storage.charged_share).into_iter().chain(storage.clamped_scales);
    if let Some(share) = shares.into_iter().find(|share| !is_share(*share)) {
        return Some(format!(
            "of its cache it has a share of {share}, which is not within 0 and 1"
        ));
    }
    let wrong = bits.iter().chain(&sizes).find(|size| !is_size(size))?;
    Some(format!("its cache has a size of {wrong}, which is not possible"))
}

/// Finds counts on the baseline's text that contradict each other, and values that cannot be a share or a
/// divergence.
fn impossible_replay(replay: &Replay) -> Option<String> {
    let Sides { k, v } = replay.charged_share;
    let kld = replay.mean_kld;
    let what = if ![k, v].into_iter().all(is_share) {
        format!("a share of {k} or {v} is charged, which is not within 0 and 1")
    } else if !(kld >= LEAST_MEAN_KLD && kld.is_finite()) {
        format!("its mean KLD is {kld}")
    } else {
        GoldenReplay::contradiction_of(replay)?
    };
    Some(format!("on the baseline's text, {what}"))
}

/// Whether a value is within 0 and 1. It is a quotient of counts, so its last bit may be rounded up.
fn is_share(share: f64) -> bool {
    (0.0..=1.0 + 1e-9).contains(&share)
}

/// The 90th and the 95th percentile. For one that is unknown, the next higher percentile stands in.
fn upper_quantiles(s: &Statistics) -> [f64; 2] {
    let known = |statistic, value, next| if s.knows(statistic) { value } else { next };
    let p95 = known(Statistic::P95Kld, s.p95_kld, s.p99_kld);
    [known(Statistic::P90Kld, s.p90_kld, p95), p95]
}

/// Finds a statistic that must not be missing and is. Only llama.cpp may leave out two percentiles, because some
/// builds do not report them.
fn left_out(s: &Statistics, by: MeasuredBy) -> Option<String> {
    let may = |s: &&Statistic| {
        by != MeasuredBy::Kvgate && matches!(s, Statistic::P90Kld | Statistic::P95Kld)
    };
    let missing = s.unknown.iter().find(|statistic| !may(statistic))?;
    Some(format!("it leaves out {}, which {} measures", missing.name(), by.name()))
}

/// Finds statistics that contradict each other.
fn contradicting_statistics(s: &Statistics) -> Option<String> {
    let [p90, p95] = upper_quantiles(s);
    let quantiles = [s.median_kld, p90, p95, s.p99_kld, s.p999_kld, s.max_kld];
    let shares = [s.top1_agreement, s.rms_dp];
    // two ways to compute the same number may differ in its last bits
    let is_over = |a: f64, b: f64| a > b + ROUNDING * a.abs().max(b.abs());
    if quantiles.windows(2).any(|pair| is_over(pair[0], pair[1])) {
        Some("its quantiles contradict each other: a higher one is smaller".into())
    } else if is_over(s.mean_kld, s.max_kld) {
        Some(format!("its mean KLD {} is over its largest {}", s.mean_kld, s.max_kld))
    } else if shares.iter().any(|share| !(0.0..=1.0).contains(share)) {
        Some("it has a share that is not within 0 and 1".into())
    } else {
        let (least, most) = possible_means(s);
        let is_so = (least..=most).contains(&s.mean_kld);
        (!is_so).then(|| {
            format!("its mean KLD is {}, and its quantiles leave {least} to {most}", s.mean_kld)
        })
    }
}

/// The least and the largest mean KLD that are possible with these quantiles. A quantile lies between two
/// positions, so one or two positions may be on the other side of it.
fn possible_means(s: &Statistics) -> (f64, f64) {
    let each = 1.0 / s.tokens_scored.max(1) as f64;
    let [p90, p95] = upper_quantiles(s);
    let brackets = [
        (0.5, s.median_kld),
        (0.4, p90),
        (0.05, p95),
        (0.04, s.p99_kld),
        (0.009, s.p999_kld),
        (0.001, s.max_kld),
    ];
    let most: f64 = brackets.iter().map(|(share, quantile)| share * quantile).sum();
    let p90 = if s.knows(Statistic::P90Kld) { p90 } else { s.median_kld };
    let above = [(0.5, s.median_kld), (0.1, p90), (0.01, s.p99_kld), (0.001, s.p999_kld)];
    let least = above.map(|(share, quantile): (f64, f64)| (share - 2.0 * each).max(0.0) * quantile);
    let least = least.into_iter().fold(f64::NEG_INFINITY, f64::max);
    let slack = 1e-5 + 1e-6 * most.abs();
    (least - slack, most + 6.0 * each * s.max_kld.abs() + slack)
}

/// Finds statistics that do not follow from the parts.
fn mismatch_with_parts(
    measurement: &Measurement,
    (s, chunks): (&Statistics, usize),
    parts: &[Part],
) -> Option<String> {
    let each = scored(measurement.conditions.context).len() as u64;
    if parts.len() != chunks || parts.iter().any(|part| part.tokens != each) {
        return Some(format!("its parts are not {chunks} chunks of {each} scored tokens"));
    }
    let tokens = each * parts.len() as u64;
    if let Some(chunk) = impossible_part(measurement, parts) {
        return Some(chunk);
    }
    let made = Statistics::of_parts(parts);
    // no value is near one that is not finite
    let near = |a: f64, b: f64| {
        b.is_finite() && (a - b).abs() <= ROUNDING * a.abs().max(b.abs()) + f64::EPSILON
    };
    let scored = ("tokens_scored", s.tokens_scored as f64, tokens as f64);
    let known = Statistic::ALL.into_iter().filter(|statistic| made.knows(*statistic));
    let values = known.map(|own| (own.name(), s.get(own), made.get(own)));
    let unlike = [scored].into_iter().chain(values).find(|(_, own, made)| !near(*own, *made));
    if let Some((name, value, parts)) = unlike {
        return Some(format!("its {name} is {value}, and its parts make {parts}"));
    }
    let mean = |of: fn(&Part) -> f64| parts.iter().map(of).sum::<f64>() / tokens as f64;
    // no squared divergence is larger than the largest divergence allows, up to rounding
    let squares = (s.max_kld.max(0.0) + 1e-4) * (s.mean_kld.max(0.0) + 1e-4);
    if mean(|part| part.kld2) > squares {
        return Some("its parts have larger squares of KLD than its largest KLD makes".into());
    }
    wrong_error(s, tokens as f64, &mean).or_else(|| wrong_histogram(s, parts))
}

/// The lowest mean KLD of a chunk that counts as rounding, which adds up to less over all chunks.
const LEAST_OF_CHUNK: f64 = 10.0 * LEAST_MEAN_KLD;

/// Finds a chunk that cannot be one: of a category without a text, or with sums that no positions have. Sums of all chunks may
/// look sound with it, and those of its category are wrong.
fn impossible_part(measurement: &Measurement, parts: &[Part]) -> Option<String> {
    let Conditions { corpus, engine, .. } = &measurement.conditions;
    // other engines do not say what they read
    let names_texts = MeasuredBy::of(engine) == MeasuredBy::Kvgate;
    parts.iter().find_map(|part| {
        let Part { category, chunk, tokens, .. } = part;
        let what = if names_texts && !corpus.iter().any(|file| file.category == *category) {
            "is of no text that was measured"
        } else if part.same_top > *tokens {
            "has more equal top tokens than tokens"
        } else if part.kld < LEAST_OF_CHUNK * *tokens as f64 || part.dp2 < 0.0 {
            "has a divergence below 0"
        } else {
            return None;
        };
        Some(format!("its chunk {chunk} of {category} {what}"))
    })
}

/// Finds histograms of chunks that do not hold the chunks' positions, or from which other quantiles follow. Files of
/// format 1 have none.
fn wrong_histogram(s: &Statistics, parts: &[Part]) -> Option<String> {
    if parts.iter().all(|part| part.histogram.is_empty()) {
        return None;
    }
    let count = |part: &Part| part.histogram.iter().try_fold(0u64, |sum, n| sum.checked_add(*n));
    if parts.iter().any(|part| part.histogram.len() != BINS || count(part) != Some(part.tokens)) {
        return Some("a histogram of its parts does not count the part's positions".into());
    }
    let below = |bin: usize| -> u64 { parts.iter().flat_map(|part| &part.histogram[..bin]).sum() };
    let quantiles = [
        ("median", 0.5, s.median_kld),
        ("p90", 0.9, s.p90_kld),
        ("p95", 0.95, s.p95_kld),
        ("p99", 0.99, s.p99_kld),
        ("p999", 0.999, s.p999_kld),
        ("largest", 1.0, s.max_kld),
    ];
    let last = s.tokens_scored.saturating_sub(1) as f64;
    // a quantile lies between the positions before and behind its place
    let is_so = |(_, f, value): &(&str, f64, f64)| {
        let (bin, at) = (bin(*value as f32), f * last);
        let (first, end) = (below(bin) as f64, below(bin + 1) as f64);
        first <= at.ceil() && at.floor() < end
    };
    if let Some((name, _, value)) = quantiles.into_iter().find(|quantile| !is_so(quantile)) {
        return Some(format!(
            "its {name} KLD is {value}, and the histograms of its parts leave no room for it"
        ));
    }
    let Part { category, chunk, .. } =
        parts.iter().find(|part| !sums_fit_histogram(part, s.max_kld))?;
    Some(format!(
        "the sums of KLD of its chunk {chunk} of {category} are none that the chunk's histogram leaves room for"
    ))
}

/// Whether a chunk's sums of KLDs and of their squares are those of positions that stand in the bins of its histogram. Sums
/// that were moved from one chunk to another, and so from one category to another, are not.
fn sums_fit_histogram(part: &Part, largest: f64) -> bool {
    let fits = |sum: f64, of: fn(f64) -> f64| {
        let ends = |bin: usize| {
            let end = if bin + 1 < BINS { begin(bin + 1).min(largest) } else { largest };
            (of(begin(bin)), of(end.max(begin(bin))))
        };
        let bins = part.histogram.iter().enumerate().map(|(bin, count)| (*count as f64, ends(bin)));
        let (least, most) = bins.fold((0.0, 0.0), |(least, most), (count, (low, high))| {
            (least + count * low, most + count * high)
        });
        // the first bin has divergences that rounding made negative
        let slack = -LEAST_OF_CHUNK * part.tokens as f64 + ROUNDING * sum.abs();
        (least - slack..=most + slack).contains(&sum)
    };
    fits(part.kld, |kld| kld) && fits(part.kld2, |kld| kld * kld)
}

/// Finds a standard error that does not follow from the parts.
fn wrong_error(
    s: &Statistics,
    tokens: f64,
    mean: &dyn Fn(fn(&Part) -> f64) -> f64,
) -> Option<String> {
    let standard_error = |squares: f64, mean: f64| {
        ((squares - mean.powi(2)).max(0.0) / (tokens - 1.0).max(1.0)).sqrt()
    };
    let top1 = s.top1_agreement;
    let kld = standard_error(mean(|part| part.kld2), mean(|part| part.kld));
    let errors = [
        ("mean KLD", s.mean_kld_se, kld, 1.0),
        ("top-1 agreement", s.top1_agreement_se, standard_error(top1, top1), 1.0),
        (
            "perplexity",
            s.ppl_se,
            s.ppl * standard_error(mean(|part| part.nll2), mean(|part| part.nll)),
            s.ppl,
        ),
    ];
    // these come from sums of squares, which cancel, so they are only compared from above
    let is_so = |found: f64, made: f64, scale: f64| {
        (0.0..=1.01 * made + CANCELLED * scale.max(1.0)).contains(&found)
    };
    let (name, found, made, _) =
        errors.into_iter().find(|(_, found, made, scale)| !is_so(*found, *made, *scale))?;
    Some(format!("the standard error of its {name} is {found}, and its parts make {made}"))
}

/// How much of a standard error, in nats, the difference of sums of squares may lose.
const CANCELLED: f64 = 1e-7;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Look;
    use crate::testing::fixture;

    #[test]
    fn statistics_follow_from_their_parts() {
        let positions: Vec<_> = (0..62)
            .map(|i| crate::results::statistics::Position {
                kld: i as f32 * 1e-3,
                logp_base: -2.0,
                logp: -2.0 - i as f32 * 1e-2,
                ..Default::default()
            })
            .collect();
        let mut measurement = fixture::results().measurements[0].clone();
        (measurement.conditions.context, measurement.conditions.chunks) = (64, 2);
        let (a, b) = positions.split_at(31);
        let parts = vec![Part::of("prose", 0, a), Part::of("prose", 1, b)];
        let says = |edit: &dyn Fn(&mut Statistics, &mut Vec<Part>)| {
            let (mut statistics, mut parts) = (Statistics::of(&positions), parts.clone());
            edit(&mut statistics, &mut parts);
            let mut scheme = measurement.schemes[0].clone();
            scheme.outcome = Outcome::measured(statistics, parts);
            contradiction(&measurement, &scheme, MeasuredBy::Kvgate).unwrap_or_default()
        };
        assert_eq!(says(&|_, _| ()), "");
        let holds = |said: String, part: &str| assert!(said.contains(part), "{said}");
        holds(says(&|s, _| s.mean_kld *= 1.001), "its mean_kld is 0.03");
        holds(says(&|s, _| s.mean_kld_se *= 2.0), "the standard error of its mean KLD is");
        holds(says(&|s, _| s.mean_kld_se = 1e300), "the standard error of its mean KLD is");
        holds(says(&|s, _| s.top1_agreement = 0.5), "its top1_agreement is 0.5");
        holds(says(&|s, _| s.ppl *= 1.1), "its ppl is");
        holds(says(&|s, _| s.baseline_ppl *= 0.9), "its baseline_ppl is");
        holds(
            says(&|s, _| s.unknown = vec![Statistic::P90Kld]),
            "it leaves out p90_kld, which kvgate measures",
        );
        let without = |p: &mut Vec<Part>| p.iter_mut().for_each(|p| p.histogram.clear());
        let p90: fn(&mut Statistics) = |s| s.p90_kld = 1.0;
        holds(says(&|s, _| p90(s)), "its p90 KLD is 1, and the histograms of its parts leave");
        let plain = |edit: fn(&mut Statistics)| {
            says(&move |s, p| {
                without(p);
                edit(s);
            })
        };
        holds(plain(p90), "its quantiles contradict each other");
        let none: fn(&mut Statistics) = |s| {
            (s.median_kld, s.p90_kld, s.p95_kld, s.p99_kld) = (0.0, 0.0, 0.0, 0.0);
        };
        holds(plain(none), "its mean KLD is 0.030");
        holds(
            plain(|s| (s.median_kld, s.p90_kld, s.p95_kld) = (0.061, 0.061, 0.061)),
            "its quantiles",
        );
        holds(says(&|s, _| s.rms_dp = -0.1), "its rms_dp is -0.1");
        holds(says(&|_, p| drop(p.pop())), "its parts are not 2 chunks of 31 scored tokens");
        holds(says(&|_, p| p[0].tokens = u64::MAX), "its parts are not 2 chunks");
        holds(says(&|_, p| p[1].chunk = 0), "it holds chunk 0 of prose twice");
        holds(says(&|_, p| p[0].kld = f64::NAN), "its sum of kld over its parts is NaN");
        // sums that overflow agree with everything
        holds(
            says(&|s, p| {
                p.iter_mut().for_each(|part| part.nll = 1e15);
                (s.ppl, s.ppl_ratio) = (1.0, 1.0);
            }),
            "its ppl is 1, and its parts make inf",
        );
        let largest = |p: &mut Vec<Part>, of: fn(&mut Part) -> &mut f64| {
            p.iter_mut().for_each(|part| *of(part) = 1e308);
        };
        let no_number = |said: String, sum: &str| {
            holds(said, &format!("its sum of {sum} over its parts is inf, which is no number"));
        };
        no_number(says(&|_, p| largest(p, |part| &mut part.kld)), "kld");
        no_number(says(&|_, p| largest(p, |part| &mut part.kld2)), "kld2");
        no_number(says(&|_, p| largest(p, |part| &mut part.nll_base)), "nll_base");
        no_number(says(&|_, p| largest(p, |part| &mut part.dp4)), "dp4");
        holds(says(&|_, p| p[0].kld2 = 1e300), "larger squares of KLD");
        // what cancels in the sums of all chunks is wrong in those of a category
        let shift = |p: &mut Vec<Part>, of: fn(&mut Part) -> &mut f64, by: f64| {
            *of(&mut p[0]) -= by;
            *of(&mut p[1]) += by;
        };
        let below = "its chunk 0 of prose has a divergence below 0";
        holds(says(&|_, p| shift(p, |part| &mut part.kld, 9.0)), below);
        holds(says(&|_, p| shift(p, |part| &mut part.dp2, 9.0)), below);
        holds(says(&|_, p| (p[0].same_top, p[1].same_top) = (32, 30)), "equal top tokens than");
        holds(says(&|_, p| p[1].category = "tools".into()), "1 of tools is of no text");
        let histogram = "a histogram of its parts does not count the part's positions";
        holds(says(&|_, p| p[0].histogram[3] += 1), histogram);
        holds(says(&|_, p| p[1].histogram.truncate(33)), histogram);
        holds(says(&|_, p| p[0].histogram = vec![u64::MAX; BINS]), histogram);
        let moved = |p: &mut Vec<Part>| {
            p.iter_mut().for_each(|part| part.histogram.rotate_right(2));
        };
        holds(says(&|_, p| moved(p)), "its median KLD is 0.030");
        let room = "the sums of KLD of its chunk 0 of prose are none that the chunk's histogram leaves room for";
        holds(says(&|_, p| shift(p, |part| &mut part.kld, 0.3)), room);
        holds(says(&|_, p| shift(p, |part| &mut part.kld2, 0.02)), room);
        assert_eq!(says(&|_, p| without(p)), "", "format 1 has none");
        holds(says(&|s, _| s.ppl_ratio_se = f64::INFINITY), "its ppl_ratio_se is inf");
        holds(says(&|s, _| s.top1_agreement_se = 1e15), "the standard error of its top-1");
        holds(says(&|s, _| s.ppl_se = 1e15), "the standard error of its perplexity");
    }

    #[test]
    fn what_a_further_look_adds_follows_from_its_parts_too() {
        let position = |i: usize| crate::results::statistics::Position {
            kld: 0.01 + i as f32 * 1e-4,
            logp_base: -2.0,
            logp: -2.1,
            ..Default::default()
        };
        let chunk = |i: usize| (0..31).map(|p| position(31 * i + p)).collect::<Vec<_>>();
        let all = |chunks: usize| (0..chunks).flat_map(chunk).collect::<Vec<_>>();
        let mut measurement = fixture::results().measurements[0].clone();
        (measurement.conditions.context, measurement.conditions.chunks) = (64, 2);
        let says = |edit: &dyn Fn(&mut Look)| {
            let part = |i: usize| Part::of("prose", i, &chunk(i));
            let mut look =
                Look { statistics: Statistics::of(&all(4)), parts: vec![part(2), part(3)] };
            edit(&mut look);
            let (statistics, parts) = (Statistics::of(&all(2)), vec![part(0), part(1)]);
            let mut scheme = measurement.schemes[0].clone();
            scheme.outcome = Outcome::Measured { statistics, parts, looks: vec![look] };
            contradiction(&measurement, &scheme, MeasuredBy::Kvgate).unwrap_or_default()
        };
        assert_eq!(says(&|_| ()), "");
        let holds = |said: String, part: &str| assert!(said.contains(part), "{said}");
        holds(says(&|look| look.statistics.mean_kld = 0.001), "its mean_kld is 0.001, and its");
        holds(says(&|look| look.statistics.p99_kld = 0.001), "its p99 KLD is 0.001, and the");
        holds(says(&|look| look.parts[1].chunk = 0), "it holds chunk 0 of prose twice");
        holds(says(&|look| drop(look.parts.pop())), "its tokens_scored is 124, and its parts");
        holds(says(&|look| look.parts[0].tokens = 30), "its parts are not 4 chunks of 31");
    }

    #[test]
    fn schemes_of_a_measurement_share_its_baseline() {
        let sound = fixture::sound().measurements.remove(0);
        let says = |edit: &dyn Fn(&mut Measurement)| {
            let mut measurement = sound.clone();
            edit(&mut measurement);
            contradicting_baselines(&measurement).unwrap_or_default()
        };
        fn parts(m: &mut Measurement, scheme: usize) -> &mut Vec<Part> {
            match &mut m.schemes[scheme].outcome {
                Outcome::Measured { parts, .. } => parts,
                Outcome::Failed { .. } => panic!("it is measured"),
            }
        }
        assert_eq!(says(&|_| ()), "");
        let starts = |said: String, start: &str| assert!(said.starts_with(start), "{said}");
        let headline =
            "the run's baseline has a perplexity of 22, and its schemes were compared with";
        starts(says(&|m| m.run.baseline_ppl = 22.0), headline);
        starts(says(&|m| m.run.baseline_ppl *= 1.00001), "the run's baseline has a perplexity of");
        assert_eq!(says(&|m| m.run.baseline_ppl *= 1.0000001), "");
        let partly = |m: &mut Measurement| {
            m.run.baseline_ppl = 22.0;
            (0..2).for_each(|scheme| drop(parts(m, scheme).pop()));
        };
        assert_eq!(says(&partly), "", "it is that of the identity control on the first chunks");
        let other = "`q8_0` and `q4_0` were compared with different baselines: on chunk 1 of code,";
        starts(says(&|m| parts(m, 1)[3].nll_base *= 1.01), other);
        starts(says(&|m| parts(m, 1)[3].nll_base = f64::NAN), other);
        let of_another_machine = |m: &mut Measurement| {
            parts(m, 1).iter_mut().for_each(|part| part.nll_base *= 1.00001);
        };
        assert_eq!(says(&of_another_machine), "");
    }

    #[test]
    fn a_replay_is_of_the_text_that_the_measurement_holds() {
        let says = |edit: &dyn Fn(&mut Measurement)| {
            let mut measurement = fixture::edited("prompts");
            edit(&mut measurement);
            let scheme = &measurement.schemes[1];
            contradiction(&measurement, scheme, MeasuredBy::Kvgate).unwrap_or_default()
        };
        fn text(m: &mut Measurement) -> &mut Generated {
            m.generated.as_mut().unwrap()
        }
        assert_eq!(says(&|_| ()), "");
        let missing = "it has a replay, and the baseline's text is missing";
        assert_eq!(says(&|m| m.generated = None), missing);
        let other =
            "its replay has other prompts than the baseline's text, or other lengths of them";
        assert_eq!(says(&|m| text(m).continuations.clear()), other);
        assert_eq!(says(&|m| drop(text(m).continuations.pop())), other);
        assert_eq!(
            says(&|m| {
                text(m).continuations[0].tokens.pop();
            }),
            other
        );
        let sha256 = says(&|m| text(m).continuations[0].tokens[0] = 1);
        assert!(sha256.starts_with("its replay is of the text "), "{sha256}");
        let forged = says(&|m| m.schemes[1].replay.as_mut().unwrap().text_sha256 = "0".into());
        assert!(forged.starts_with("its replay is of the text 0, and the"), "{forged}");
    }

    #[test]
    fn what_no_cache_and_no_replay_can_give_is_told() {
        let mut measurement = fixture::results().measurements[0].clone();
        let mut sound = measurement.schemes.remove(0);
        fixture::make_sound(&mut sound);
        sound.replay = Some(fixture::replay());
        measurement.generated = Some(fixture::generated());
        let says = |edit: &dyn Fn(&mut Storage, &mut Replay)| {
            let mut scheme = sound.clone();
            let (storage, replay) = (scheme.storage.as_mut(), scheme.replay.as_mut());
            edit(storage.unwrap(), replay.unwrap());
            contradiction(&measurement, &scheme, MeasuredBy::Kvgate).unwrap_or_default()
        };
        assert_eq!(says(&|_, _| ()), "");
        let holds = |said: String, part: &str| assert!(said.contains(part), "{said}");
        holds(says(&|s, _| s.charged_share.k = 4294967296.0), "a share of 4294967296");
        holds(says(&|s, _| s.charged_share.v = -0.5), "a share of -0.5");
        holds(says(&|s, _| s.clamped_scales = Some(2.0)), "a share of 2");
        holds(says(&|s, _| s.bits_per_element.k = -4.5), "a size of -4.5");
        holds(says(&|_, r| r.charged_share.k = 1.5), "a share of 1.5 or 1 is charged");
        holds(says(&|_, r| r.mean_kld = f64::INFINITY), "on the baseline's text, its mean KLD is");
        let first = |edit: &'static dyn Fn(&mut crate::results::replay::PromptReplay)| {
            says(&move |_, r| edit(&mut r.prompts[0]))
        };
        let wrong = "on the baseline's text, of the prompt `tides` ";
        let says_of = |said: String, what: &str| {
            assert_eq!(said, format!("{wrong}{what}"));
        };
        let behind = "the first flip stands behind the end of the text";
        says_of(first(&|p| p.first_flip = Some(usize::MAX)), behind);
        says_of(first(&|p| p.first_flip = Some(3)), behind);
        let none = "there is a first flip, and no flip";
        says_of(first(&|p| (p.flips, p.hard_flips) = (0, 0)), none);
        says_of(first(&|p| p.first_flip = None), "there are flips, and no first one");
        says_of(first(&|p| p.hard_flips = 2), "more flips are hard than there are");
        let more = "there are more flips than positions from the first one on";
        says_of(first(&|p| p.flips = 2), more);
        says_of(first(&|p| p.undecided = 4), "more positions are undecided than there are");
        let counted = "there are more flips than positions where they are counted";
        says_of(first(&|p| p.undecided = 3), counted);
        // what goldens are held to
        holds(says(&|_, r| r.texts[0].at = 0), "which is not its first flip");
        holds(says(&|_, r| r.prompts[1].prompt = "tides".into()), "a prompt has two first flips");
    }
}
