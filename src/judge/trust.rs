//! Whether a measurement can be trusted, and is of what the policy asks for: pure functions.
//!
//! A measurement may come from a file that anybody wrote. It is believed where its numbers follow from each
//! other, where its control lanes read as they must, where its schemes were at work, and where it was made the
//! way the policy says. What it says of its own soundness counts for nothing.

use crate::golden::GoldenReplay;
use crate::kv::codec::{self, Exactness};
use crate::kv::effective::codec_names;
use crate::measure::corpus::scored;
use crate::measure::BAD_LANE_KLD;
use crate::policy::{Cell, ModelPolicy};
use crate::results::measured_by::MeasuredBy;
use crate::results::replay::Replay;
use crate::results::statistics::{Part, Statistic, Statistics};
use crate::results::{Control, Measurement, Outcome, SchemeResult, Sides, Storage};
use crate::source::{Source, BOS};
use std::collections::{BTreeMap, BTreeSet};

/// Mean KLD cannot be negative. Rounding may make that of a nearly exact lane so, by less than
/// this where its spread does not say how much.
const LEAST_MEAN_KLD: f64 = -1e-6;

/// The same of llama-perplexity, whose baseline file holds log-probabilities in 16 bits: a mean of -1e-6 was
/// seen where nothing is quantized.
const LEAST_MEAN_KLD_OF_FILE: f64 = -1e-5;

/// The control lanes that every run carries: the baseline against itself, and a deliberately bad cache.
pub const CONTROLS: [&str; 2] = ["identity", "bad lane"];

/// Why nothing of a measurement can be trusted: a control that is missing or does not read as it must.
fn broken_ruler(measurement: &Measurement) -> Option<String> {
    for name in CONTROLS {
        if !measurement.controls.iter().any(|control| control.name == name) {
            return Some(format!("the run carried no control lane `{name}`"));
        }
    }
    let mimics = mimics(measurement);
    let is_broken = |control: &&Control| !(control.ok && (mimics || reads_well(control)));
    let control = measurement.controls.iter().find(is_broken)?;
    Some(format!(
        "the control `{}` ({}) must read a mean KLD of {}, and read {}",
        control.name,
        control.effective,
        control.must,
        control.reading()
    ))
}

/// Whether kvgate took on another engine's habits, whose baseline has no exact zero.
fn mimics(measurement: &Measurement) -> bool {
    measurement.conditions.engine.contains("mimicking")
}

/// Whether a control lane's numbers are what they must be, whatever the file says of them.
fn reads_well(control: &Control) -> bool {
    match &control.name[..] {
        "identity" => control.mean_kld == Some(0.0) && control.top1_agreement == Some(1.0),
        _ => control.mean_kld.is_some_and(|kld| kld >= BAD_LANE_KLD),
    }
}

/// The baseline's own text is a ruler, too: where it is decided, it must write it again.
fn broken_text(measurement: &Measurement) -> Option<String> {
    let generated = measurement.generated.as_ref()?;
    let (flips, ties) = (generated.own_flips, generated.wrong_ties);
    let what = if flips > 0 {
        format!(
            "the baseline would not write its own text again: {flips} flips where it is decided"
        )
    } else if ties > 0 {
        format!("the near ties of its text are not the baseline's: {ties} positions are listed and decided, or undecided and not listed")
    } else {
        return None;
    };
    Some(format!("{what}; remove the golden {}.text.snap, and measure anew", measurement.model))
}

/// Why schemes of a measurement cannot be trusted, by label: they did not engage, the identity is
/// broken, or the ruler is. A control that does not read as it must takes all of them.
pub fn distrust(measurement: &Measurement) -> BTreeMap<String, String> {
    distrust_by(measurement, MeasuredBy::Kvgate)
}

/// The same of a measurement that `asked` has made. Other engines than kvgate's carry no control lanes, nor is
/// their baseline a lane of its own.
///
/// `asked` is what the person or the workflow says, never what the file does: a `results.json` that calls
/// itself another engine's, and so would need no controls, is not trusted where kvgate's are judged.
pub fn distrust_by(measurement: &Measurement, asked: MeasuredBy) -> BTreeMap<String, String> {
    let ruler = match asked {
        _ if MeasuredBy::of(&measurement.conditions.engine) != asked => Some(format!(
            "it calls itself measured by `{}`, and what {} measured is judged here",
            measurement.conditions.engine,
            asked.name()
        )),
        MeasuredBy::Kvgate => broken_ruler(measurement).or_else(|| broken_text(measurement)),
        MeasuredBy::LlamaCpp => None,
    };
    if let Some(reason) = ruler {
        let labels = measurement.schemes.iter().map(|result| result.scheme.clone());
        return labels.map(|label| (label, reason.clone())).collect();
    }
    let baseline = &measurement.conditions.baseline;
    let lanes: Vec<(&SchemeResult, &Statistics)> = measurement
        .schemes
        .iter()
        .filter_map(|result| match &result.outcome {
            Outcome::Measured { statistics, .. } => Some((result, statistics)),
            Outcome::Failed { .. } => None,
        })
        .collect();
    let (faulty, sound): (Vec<_>, Vec<_>) = lanes
        .into_iter()
        .map(|lane| {
            let reason = implausible(baseline, &lane.0.effective, lane.1, asked);
            (lane, reason.or_else(|| idle(baseline, lane.0)))
        })
        .partition(|(_, reason)| reason.is_some());
    let mut reasons: BTreeMap<_, _> = faulty
        .into_iter()
        .filter_map(|((result, _), reason)| Some((result.scheme.clone(), reason?)))
        .collect();
    for ((result, statistics), _) in &sound {
        let twin = sound.iter().find(|((other, of_other), _)| {
            other.effective != result.effective && of_other == statistics
        });
        if let Some(((other, _), _)) = twin {
            reasons.insert(result.scheme.clone(), twins(&result.effective, &other.effective));
        }
    }
    reasons
}

/// What is wrong with a lane on its own.
fn implausible(
    baseline: &str,
    effective: &str,
    statistics: &Statistics,
    engine: MeasuredBy,
) -> Option<String> {
    let Statistics { mean_kld, mean_kld_se, max_kld, .. } = *statistics;
    let is_identical = mean_kld == 0.0 && max_kld == 0.0;
    let floor = match engine {
        MeasuredBy::Kvgate if mean_kld_se > 0.0 => -3.0 * mean_kld_se,
        MeasuredBy::Kvgate => LEAST_MEAN_KLD,
        MeasuredBy::LlamaCpp => LEAST_MEAN_KLD_OF_FILE.min(-3.0 * mean_kld_se),
    };
    if effective == baseline && !is_identical {
        Some(format!(
            "`{effective}` is the baseline, and must read a KLD of exactly 0; it read {mean_kld}, at most \
             {max_kld}"
        ))
    } else if effective != baseline && is_identical {
        Some(format!(
            "`{effective}` reads a KLD of exactly 0 against `{baseline}`: the scheme did not engage"
        ))
    } else if mean_kld < floor {
        Some(format!(
            "the mean KLD of `{effective}` is {mean_kld} ± {mean_kld_se}, below 0 beyond its noise"
        ))
    } else {
        None
    }
}

/// A scheme of which nothing was at work, in the scored positions or where the baseline's text charges it.
fn idle(baseline: &str, result: &SchemeResult) -> Option<String> {
    let effective = &result.effective;
    if effective == baseline {
        return None;
    }
    let charged = |share: &Sides| share.k > 0.0 || share.v > 0.0;
    // halves throughout hide nothing: there is no tail beside them
    let is_half = |name: &&str| codec::find(name).is_some_and(|c| c.exactness() == Exactness::Half);
    let is_exact = codec_names(effective).iter().all(is_half);
    let hidden = |storage: &Storage| !charged(&storage.charged_share) && !is_exact;
    if result.storage.as_ref().is_some_and(hidden) {
        return Some(format!(
            "no scored query reads a quantized key of `{effective}`: its tail hides all of it"
        ));
    }
    let replay = result.replay.as_ref()?;
    (charged(&replay.charged_share) && replay.mean_kld == 0.0).then(|| {
        format!("`{effective}` reads a KLD of exactly 0 on the baseline's text: it did not engage")
    })
}

/// Two effective schemes with one result.
fn twins(one: &str, other: &str) -> String {
    format!("`{one}` and `{other}` have the same statistics to the last bit: one did not engage")
}

/// How far sums may be from the statistics that are made of them.
const ROUNDING: f64 = 1e-6;

/// What a result says that cannot be so: statistics that do not follow from their parts, or from each other.
pub(crate) fn contradiction(
    measurement: &Measurement,
    scheme: &SchemeResult,
    by: MeasuredBy,
) -> Option<String> {
    let Outcome::Measured { statistics, parts } = &scheme.outcome else { return None };
    if let Some(no_number) = not_finite(statistics, parts) {
        return Some(no_number);
    }
    // another engine's log has no parts
    let has_parts = by == MeasuredBy::Kvgate || !parts.is_empty();
    let unlike = has_parts.then(|| mismatch_with_parts(measurement, statistics, parts)).flatten();
    let own = leaves_out(statistics, by).or(unlike).or_else(|| disordered(statistics));
    own.or_else(|| scheme.storage.as_ref().and_then(impossible_storage))
        .or_else(|| scheme.replay.as_ref().and_then(impossible_replay))
}

/// A statistic or a sum of parts that is no number: what is made of it agrees with anything.
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

/// Shares that are none, and sizes below 0.
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
    Some(format!("its cache has a size of {wrong}, which is none"))
}

/// Counts on the baseline's text that do not add up, and what is no share or divergence.
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

/// Within 0 and 1. Shares are counted, and their quotient may differ in its last bit.
fn is_share(share: f64) -> bool {
    (0.0..=1.0 + 1e-9).contains(&share)
}

/// The 90th and the 95th percentile, or for what is unknown the next one, which is no smaller.
fn upper_quantiles(s: &Statistics) -> [f64; 2] {
    let known = |statistic, value, next| if s.knows(statistic) { value } else { next };
    let p95 = known(Statistic::P95Kld, s.p95_kld, s.p99_kld);
    [known(Statistic::P90Kld, s.p90_kld, p95), p95]
}

/// Builds of llama.cpp that leave out two percentiles are all that may leave out something.
fn leaves_out(s: &Statistics, by: MeasuredBy) -> Option<String> {
    let may = |s: &&Statistic| {
        by != MeasuredBy::Kvgate && matches!(s, Statistic::P90Kld | Statistic::P95Kld)
    };
    let missing = s.unknown.iter().find(|statistic| !may(statistic))?;
    Some(format!("it leaves out {}, which {} measures", missing.name(), by.name()))
}

fn disordered(s: &Statistics) -> Option<String> {
    let [p90, p95] = upper_quantiles(s);
    let quantiles = [s.median_kld, p90, p95, s.p99_kld, s.p999_kld, s.max_kld];
    let shares = [s.top1_agreement, s.rms_dp];
    // both sides are computed, and the same number by two ways may differ in its last bit
    let is_over = |a: f64, b: f64| a > b + ROUNDING * a.abs().max(b.abs());
    if quantiles.windows(2).any(|pair| is_over(pair[0], pair[1])) {
        Some("its quantiles contradict each other: a higher one is smaller".into())
    } else if is_over(s.mean_kld, s.max_kld) {
        Some(format!("its mean KLD {} is over its largest {}", s.mean_kld, s.max_kld))
    } else if shares.iter().any(|share| !(0.0..=1.0).contains(share)) {
        Some("it has a share that is not within 0 and 1".into())
    } else {
        let (least, most) = mean_by_quantiles(s);
        let is_so = (least..=most).contains(&s.mean_kld);
        (!is_so).then(|| {
            format!("its mean KLD is {}, and its quantiles leave {least} to {most}", s.mean_kld)
        })
    }
}

/// The least and the largest mean that quantiles of a divergence leave, which is negative by rounding only. A
/// quantile lies between two positions, so one or two may be on its other side.
fn mean_by_quantiles(s: &Statistics) -> (f64, f64) {
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

fn mismatch_with_parts(
    measurement: &Measurement,
    s: &Statistics,
    parts: &[Part],
) -> Option<String> {
    let conditions = &measurement.conditions;
    let each = scored(conditions.context).len() as u64;
    if parts.len() != conditions.chunks || parts.iter().any(|part| part.tokens != each) {
        return Some(format!(
            "its parts are not {} chunks of {each} scored tokens",
            conditions.chunks
        ));
    }
    let tokens = each * parts.len() as u64;
    let mean = |of: fn(&Part) -> f64| parts.iter().map(of).sum::<f64>() / tokens as f64;
    let made = [
        ("tokens_scored", s.tokens_scored as f64, tokens as f64),
        ("mean_kld", s.mean_kld, mean(|part| part.kld)),
        ("top1_agreement", s.top1_agreement, mean(|part| part.same_top as f64)),
        ("rms_dp", s.rms_dp, mean(|part| part.dp2).sqrt()),
        ("ppl", s.ppl, mean(|part| part.nll).exp()),
        ("baseline_ppl", s.baseline_ppl, mean(|part| part.nll_base).exp()),
        ("ppl_ratio", s.ppl_ratio, mean(|part| part.nll - part.nll_base).exp()),
    ];
    // a sum that is no number is not near anything
    let near = |a: f64, b: f64| {
        b.is_finite() && (a - b).abs() <= ROUNDING * a.abs().max(b.abs()) + f64::EPSILON
    };
    let unlike = made.into_iter().find(|(_, value, parts)| !near(*value, *parts));
    if let Some((name, value, parts)) = unlike {
        return Some(format!("its {name} is {value}, and its parts make {parts}"));
    }
    // no square is larger than the largest divergence makes it, but for what rounding does
    let squares = (s.max_kld.max(0.0) + 1e-4) * (s.mean_kld.max(0.0) + 1e-4);
    if mean(|part| part.kld2) > squares {
        return Some("its parts have larger squares of KLD than its largest KLD makes".into());
    }
    wrong_error(s, tokens as f64, &mean)
}

/// A standard error that the parts do not make.
fn wrong_error(
    s: &Statistics,
    tokens: f64,
    mean: &dyn Fn(fn(&Part) -> f64) -> f64,
) -> Option<String> {
    let of = |squares: f64, mean: f64| {
        ((squares - mean.powi(2)).max(0.0) / (tokens - 1.0).max(1.0)).sqrt()
    };
    let top1 = s.top1_agreement;
    let kld = of(mean(|part| part.kld2), mean(|part| part.kld));
    let errors = [
        ("mean KLD", s.mean_kld_se, kld, 1.0),
        ("top-1 agreement", s.top1_agreement_se, of(top1, top1), 1.0),
        ("perplexity", s.ppl_se, s.ppl * of(mean(|part| part.nll2), mean(|part| part.nll)), s.ppl),
    ];
    // from sums of squares, which cancel: only the order of magnitude is certain
    let is_so = |found: f64, made: f64, scale: f64| {
        (0.0..=1.01 * made + CANCELLED * scale.max(1.0)).contains(&found)
    };
    let (name, found, made, _) =
        errors.into_iter().find(|(_, found, made, scale)| !is_so(*found, *made, *scale))?;
    Some(format!("the standard error of its {name} is {found}, and its parts make {made}"))
}

/// Of a standard error, in nats, what the difference of sums of squares may hide.
const CANCELLED: f64 = 1e-7;

/// How a measurement differs from what the policy asks for, whatever it was measured on.
pub(crate) fn mismatch_with_policy(
    model: &ModelPolicy,
    measurement: &Measurement,
    by: MeasuredBy,
) -> Option<String> {
    let conditions = &measurement.conditions;
    if (conditions.context, conditions.chunks) != (model.context, model.chunks) {
        return Some(format!(
            "it was measured at {} × {}, and the policy asks for {} × {}",
            conditions.context, conditions.chunks, model.context, model.chunks
        ));
    }
    if by != MeasuredBy::Kvgate || MeasuredBy::of(&conditions.engine) != by {
        return None; // what logs do not say cannot be compared, and nobody's word for it is distrusted
    }
    let found = &measurement.subject.weights_sha256;
    let pinned = model.source.sha256.as_ref().filter(|pinned| *pinned != found);
    let baseline = model.baseline.default.k.codec.name();
    if mimics(measurement) {
        Some(format!("it was measured with another engine's habits: {}", conditions.engine))
    } else if codec_names(&conditions.baseline) != BTreeSet::from([baseline]) {
        let theirs = &conditions.baseline;
        Some(format!(
            "it was compared with the baseline {theirs}, and the policy asks for {baseline}"
        ))
    } else if let Some(pinned) = pinned {
        Some(format!("it is of weights with SHA-256 {found}, and the policy asks for {pinned}"))
    } else if model.generate.is_some() && measurement.generated.is_none() {
        Some("it was measured without the prompts that the policy asks for".into())
    } else {
        mismatch_with_source(&model.source, &conditions.reading)
    }
}

/// How the checkpoint was read otherwise than the policy asks for.
fn mismatch_with_source(source: &Source, reading: &[String]) -> Option<String> {
    let is_bos = |line: &&String| {
        let word = line.strip_prefix(BOS);
        word.is_some_and(|word| word == "none" || word.parse::<u32>().is_ok())
    };
    let (bos, asked): (Vec<_>, Vec<_>) = reading.iter().partition(is_bos);
    let wanted = source.reading();
    if asked != wanted.iter().collect::<Vec<_>>() {
        let words = |lines: &[&String]| match lines {
            [] => "as it is".to_owned(),
            lines => lines.iter().map(|line| format!("`{line}`")).collect::<Vec<_>>().join(", "),
        };
        return Some(format!(
            "its checkpoint was read {}, and the policy asks for it to be read {}",
            words(&asked),
            words(&wanted.iter().collect::<Vec<_>>())
        ));
    }
    let wanted = source.bos?;
    match bos[..] {
        [line] if line.ends_with(NO_BOS) != wanted => None,
        [line] => {
            Some(format!("it was measured with `{line}`, and the policy says otherwise (`bos`)"))
        }
        _ => Some(
            "it does not say which BOS it was measured with, and the policy does (`bos`)".into(),
        ),
    }
}

/// How a line about BOS ends where none stands before the chunks.
const NO_BOS: &str = " none";

/// How a scheme's result differs from what its cell asks for.
pub(crate) fn mismatch_with_cell(
    model: &ModelPolicy,
    cell: &Cell,
    scheme: &SchemeResult,
    by: MeasuredBy,
) -> Option<String> {
    if by != MeasuredBy::Kvgate || matches!(scheme.outcome, Outcome::Failed { .. }) {
        return None;
    }
    let pairs = cell.scheme.layers.iter().map(|(_, pair)| pair).chain([&cell.scheme.default]);
    let named: BTreeSet<&str> =
        pairs.flat_map(|pair| [pair.k.codec.name(), pair.v.codec.name()]).collect();
    let ran = codec_names(&scheme.effective);
    if let Some(other) = ran.difference(&named).next() {
        return Some(format!(
            "`{}` ran, and `{other}` is no codec of `{}`, which the policy asks for",
            scheme.effective, cell.scheme
        ));
    }
    // a scheme whose every part is not at work in some layer is refused before it is measured
    if let Some(idle) = named.difference(&ran).next() {
        return Some(format!(
            "`{}` ran, and nothing of it is the `{idle}` of `{}`, which the policy asks for",
            scheme.effective, cell.scheme
        ));
    }
    (model.generate.is_some() && scheme.replay.is_none())
        .then(|| "it has no replay of the text that the policy asks for".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{self, Golden};
    use crate::policy::Policy;
    use crate::testing::fixture;
    use std::path::Path;

    /// What really ran under every scheme of this repository's own gate is what its cell names.
    #[test]
    fn the_repository_s_own_goldens_ran_what_they_are_called() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (policy, _) = Policy::load(&root.join("thresholds.toml")).unwrap();
        let mut seen = 0;
        for model in &policy.models {
            for cell in &model.cells {
                let path = golden::path(root, &model.cell_name(cell).file_stem());
                let Some(golden) = Golden::read(&path).unwrap() else { continue };
                let mut ran = fixture::results().measurements[0].schemes[0].clone();
                ran.effective = golden.effective;
                let unpromptly = ModelPolicy { generate: None, ..model.clone() };
                let found = mismatch_with_cell(&unpromptly, cell, &ran, MeasuredBy::Kvgate);
                assert_eq!(found, None, "{}::{}", model.name, cell.label);
                seen += 1;
            }
        }
        assert!(seen >= 28, "{seen} goldens");
    }

    #[test]
    fn what_was_not_asked_for_is_told() {
        let policy = fixture::policy();
        let mut model = policy.models[0].clone();
        let measurement = &fixture::results().measurements[0];
        let cell = model.cells[0].clone();
        let says = |model: &ModelPolicy, edit: &dyn Fn(&mut Measurement)| {
            let mut measurement = measurement.clone();
            edit(&mut measurement);
            let of_cell =
                mismatch_with_cell(model, &cell, &measurement.schemes[0], MeasuredBy::Kvgate);
            mismatch_with_policy(model, &measurement, MeasuredBy::Kvgate)
                .or(of_cell)
                .unwrap_or_default()
        };
        assert_eq!(says(&model, &|_| ()), "");
        let starts = |said: String, start: &str| assert!(said.starts_with(start), "{said}");
        starts(says(&model, &|m| m.conditions.context = 4096), "it was measured at 4096 × 16, and");
        starts(
            says(&model, &|m| m.conditions.baseline = "q4_0/q4_0".into()),
            "it was compared with the baseline q4_0/q4_0, and the policy asks for f16",
        );
        let mimics = |m: &mut Measurement| m.conditions.engine += ", mimicking llama.cpp";
        starts(says(&model, &mimics), "it was measured with another engine's habits");
        starts(
            says(&model, &|m| m.schemes[0].effective = "bf16/bf16".into()),
            "`bf16/bf16` ran, and `bf16` is no codec of `q8_0`",
        );
        let untrained = |m: &mut Measurement| m.conditions.reading = vec!["untrained".into()];
        starts(
            says(&model, &untrained),
            "its checkpoint was read `untrained`, and the policy asks for it to be read as it is",
        );
        model.source.untrained = true;
        assert_eq!(says(&model, &untrained), "");
        starts(
            says(&model, &|_| ()),
            "its checkpoint was read as it is, and the policy asks for it",
        );
        model.source.untrained = false;
        let without_bos = |m: &mut Measurement| m.conditions.reading = vec!["bos none".into()];
        assert_eq!(
            says(&model, &without_bos),
            "",
            "the checkpoint decides where the policy does not"
        );
        model.source.bos = Some(true);
        starts(says(&model, &without_bos), "it was measured with `bos none`, and the policy says");
        starts(says(&model, &|_| ()), "it does not say which BOS it was measured with");
        let with_bos = |m: &mut Measurement| m.conditions.reading = vec!["bos 2".into()];
        assert_eq!(says(&model, &with_bos), "");
        model.source.bos = Some(false);
        starts(says(&model, &with_bos), "it was measured with `bos 2`, and the policy says");
        model.source.bos = None;
        let odd = |m: &mut Measurement| m.conditions.reading = vec!["bos two".into()];
        starts(says(&model, &odd), "its checkpoint was read `bos two`, and the policy");
        model.source.sha256 = Some("00".into());
        starts(says(&model, &|_| ()), "it is of weights with SHA-256 a5fd3b62, and the policy");
        model.source.sha256 = None;
        let file = "prompts.toml".into();
        model.generate = Some(crate::policy::Prompts { file, tokens: 8 });
        starts(says(&model, &|_| ()), "it was measured without the prompts");
        let texts = |m: &mut Measurement| m.generated = Some(fixture::generated());
        starts(says(&model, &texts), "it has no replay of the text");
    }

    /// A control is what it reads, not what is said of it.
    #[test]
    fn controls_are_judged_by_their_numbers() {
        let of = |edit: &dyn Fn(&mut [Control])| {
            let mut measurement = fixture::results().measurements[0].clone();
            edit(&mut measurement.controls);
            distrust(&measurement).contains_key("q8_0")
        };
        assert!(!of(&|_| ()));
        assert!(of(&|controls| controls[0].mean_kld = Some(7.5)));
        assert!(of(&|controls| controls[0].top1_agreement = Some(0.5)));
        assert!(of(&|controls| controls[1].mean_kld = Some(0.0)));
        assert!(of(&|controls| controls[1].mean_kld = None));
    }

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
        let parts = vec![Part::of("x", 0, a), Part::of("x", 1, b)];
        let says = |edit: &dyn Fn(&mut Statistics, &mut Vec<Part>)| {
            let (mut statistics, mut parts) = (Statistics::of(&positions), parts.clone());
            edit(&mut statistics, &mut parts);
            let mut scheme = measurement.schemes[0].clone();
            scheme.outcome = Outcome::Measured { statistics, parts };
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
        holds(says(&|s, _| s.p90_kld = 1.0), "its quantiles contradict each other");
        let none = |s: &mut Statistics| {
            (s.median_kld, s.p90_kld, s.p95_kld, s.p99_kld) = (0.0, 0.0, 0.0, 0.0);
        };
        holds(says(&|s, _| none(s)), "its mean KLD is 0.030");
        holds(
            says(&|s, _| (s.median_kld, s.p90_kld, s.p95_kld) = (0.061, 0.061, 0.061)),
            "its quantiles",
        );
        holds(says(&|s, _| s.rms_dp = -0.1), "its rms_dp is -0.1");
        holds(says(&|_, p| drop(p.pop())), "its parts are not 2 chunks of 31 scored tokens");
        holds(says(&|_, p| p[0].tokens = u64::MAX), "its parts are not 2 chunks");
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
        holds(says(&|s, _| s.ppl_ratio_se = f64::INFINITY), "its ppl_ratio_se is inf");
        holds(says(&|s, _| s.top1_agreement_se = 1e15), "the standard error of its top-1");
        holds(says(&|s, _| s.ppl_se = 1e15), "the standard error of its perplexity");
    }

    #[test]
    fn what_no_cache_and_no_replay_can_give_is_told() {
        let mut measurement = fixture::results().measurements[0].clone();
        let mut sound = measurement.schemes.remove(0);
        fixture::make_sound(&mut sound);
        sound.replay = Some(fixture::replay());
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
