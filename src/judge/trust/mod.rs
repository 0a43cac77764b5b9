//! Decides whether a measurement can be trusted.
//!
//! A measurement may come from a file that anybody wrote. It is trusted if its control lanes read as they must, if its
//! schemes really quantized something, if its numbers follow from each other, and if it was made in the way that the
//! policy asks for. What it says about its own soundness counts for nothing.

mod contradiction;
mod drawn;
mod mismatch;
mod needles;

use contradiction::contradicting_baselines;
pub(super) use contradiction::contradiction;
pub(super) use mismatch::{mismatch_with_cell, mismatch_with_policy};

use crate::kv::codec::{self, Exactness};
use crate::kv::effective::codec_names;
use crate::measure::{floor, BAD_LANE_KLD};
use crate::results::measured_by::MeasuredBy;
use crate::results::statistics::Statistics;
use crate::results::{
    Conditions, Control, Floor, Measurement, Outcome, SchemeResult, Sides, Storage, CONTROLS,
    IDENTITY,
};
use std::collections::BTreeMap;

/// A mean KLD cannot be negative, but rounding may make that of a nearly exact scheme so. This is the lowest value that
/// counts as rounding if the standard error does not say how much rounding there is.
const LEAST_MEAN_KLD: f64 = -1e-6;

/// The lowest such value for llama-perplexity, whose baseline file holds log-probabilities in 16 bits. It was seen to
/// report a mean of -1e-6 when nothing is quantized.
const LEAST_MEAN_KLD_OF_FILE: f64 = -1e-5;

/// How far the sums of one baseline may be apart, relative to their values, or in nats if they are small. The lanes of a
/// run are compared with the very same numbers. Shards of a run may come from machines that add in different orders,
/// which moves a sum by far less than another text or another model does.
const SAME_BASELINE: f64 = 1e-3;

/// Whether two sums of negative log-likelihoods of the same tokens can be those of one baseline.
pub(super) fn is_same_baseline(a: f64, b: f64) -> bool {
    let apart = (a - b).abs();
    apart.is_finite() && apart <= SAME_BASELINE * a.abs().max(b.abs()).max(1.0)
}

/// Why nothing of a measurement can be trusted: a control lane is missing or does not read as it must.
fn broken_control(measurement: &Measurement) -> Option<String> {
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

/// Whether nothing of a measurement can be trusted because of its control lanes. Other engines than kvgate carry none.
pub fn has_broken_control(measurement: &Measurement) -> bool {
    let by = MeasuredBy::of(&measurement.conditions.engine);
    by == MeasuredBy::Kvgate && broken_control(measurement).is_some()
}

/// Whether kvgate imitated another engine's numerics, in which the baseline is not exactly 0.
fn mimics(measurement: &Measurement) -> bool {
    measurement.conditions.engine.contains("mimicking")
}

/// Whether a control lane reads what it must by its own numbers, whatever the file says about it.
fn reads_well(control: &Control) -> bool {
    match &control.name[..] {
        IDENTITY => control.mean_kld == Some(0.0) && control.top1_agreement == Some(1.0),
        _ => control.mean_kld.is_some_and(|kld| kld >= BAD_LANE_KLD),
    }
}

/// The largest floor that rounding makes. A quarter of what a limit usually allows a scheme of 8 bits is far above what
/// any arithmetic was seen to make.
const LARGEST_FLOOR: f64 = 0.005;

/// Why the floor shows that nothing can be trusted: it is none that a run measures, or the baseline is not itself if it is
/// computed in other batches.
fn impossible_floor(measurement: &Measurement) -> Option<String> {
    let Floor { mean_kld: kld, tokens_scored, batch } = measurement.floor?;
    let Conditions { chunks, context, .. } = measurement.conditions;
    let scored = floor::tokens_scored(chunks, context);
    if tokens_scored != scored as u64 {
        return Some(format!(
            "its floor is the mean of {tokens_scored} positions, and a run measures it on {scored}: measure again"
        ));
    }
    if !(1..context).contains(&batch) {
        return Some(format!(
            "its floor was measured in batches of {batch} tokens, which are none of a context of {context}: measure again"
        ));
    }
    let is_rounding = (LEAST_MEAN_KLD..=LARGEST_FLOOR).contains(&kld);
    (!is_rounding).then(|| {
        format!(
            "the baseline reads a mean KLD of {kld} against itself if it is computed in other batches, and rounding alone \
             makes {LARGEST_FLOOR} at most; measure again, and on another machine if it stays so"
        )
    })
}

/// Says why the baseline's text cannot be trusted. It must be of the model and the prompts that were measured. When the
/// baseline is fed its own text, it must predict it again, except at near ties.
fn broken_text(measurement: &Measurement) -> Option<String> {
    let generated = measurement.generated.as_ref()?;
    let (flips, ties) = (generated.own_flips, generated.wrong_ties);
    let conditions = &measurement.conditions;
    let differs = [
        ("other weights", generated.weights_sha256 != measurement.subject.weights_sha256),
        ("another baseline", generated.baseline != conditions.baseline),
        ("other prompts", Some(generated.conditions()) != conditions.prompts),
    ];
    if let Some((what, _)) = differs.into_iter().find(|(_, differs)| *differs) {
        return Some(format!("the baseline's text is of {what} than the measurement"));
    }
    let what = if flips > 0 {
        format!(
            "the baseline would not write its own text again: {flips} flips at positions that are no near ties"
        )
    } else if ties > 0 {
        format!(
            "the near ties of its text are not the baseline's: {ties} positions are wrong: either listed as near ties \
             although the baseline is sure, or near ties that are not listed"
        )
    } else {
        return None;
    };
    Some(format!("{what}; remove the golden {}.text.snap, and measure anew", measurement.model))
}

/// Why schemes of a measurement that kvgate made cannot be trusted, by their labels: see [`distrust_by`].
pub fn distrust(measurement: &Measurement) -> BTreeMap<String, String> {
    distrust_by(measurement, MeasuredBy::Kvgate)
}

/// Why schemes of a measurement cannot be trusted, by their labels. A scheme is not trusted if its numbers
/// are implausible or if it quantized nothing. No scheme is trusted if a control lane does not read as it
/// must, or if schemes were compared with different baselines.
///
/// `asked` is the engine that a person or a workflow asked for, never the one that a file names: a `results.json` that
/// calls itself another engine's, and so would need no control lanes, is not trusted where kvgate's results are judged.
/// Other engines carry no control lanes, nor do they measure the baseline as a scheme.
pub fn distrust_by(measurement: &Measurement, asked: MeasuredBy) -> BTreeMap<String, String> {
    let for_all = match asked {
        _ if MeasuredBy::of(&measurement.conditions.engine) != asked => Some(format!(
            "it calls itself measured by `{}`, and what {} measured is judged here",
            measurement.conditions.engine,
            asked.name()
        )),
        MeasuredBy::Kvgate => broken_control(measurement)
            .or_else(|| broken_text(measurement))
            .or_else(|| needles::broken_needles(measurement))
            .or_else(|| contradicting_baselines(measurement))
            .or_else(|| drawn::other_chunks(measurement))
            .or_else(|| impossible_floor(measurement)),
        MeasuredBy::LlamaCpp => None,
    };
    if let Some(reason) = for_all {
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
            (lane, reason.or_else(|| quantized_nothing(baseline, lane.0)))
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
            reasons.insert(
                result.scheme.clone(),
                same_statistics(&result.effective, &other.effective),
            );
        }
    }
    reasons
}

/// Why the numbers of a scheme are implausible, compared with no other scheme.
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

/// Why a scheme quantized nothing that was scored, or nothing on the baseline's text.
fn quantized_nothing(baseline: &str, result: &SchemeResult) -> Option<String> {
    let effective = &result.effective;
    if effective == baseline {
        return None;
    }
    let is_charged = |share: &Sides| share.k > 0.0 || share.v > 0.0;
    // a scheme of half-precision codecs quantizes nothing, so it has no tail that could hide a quantized key
    let is_half = |name: &&str| codec::find(name).is_some_and(|c| c.exactness() == Exactness::Half);
    let is_all_half = codec_names(effective).iter().all(is_half);
    let hidden = |storage: &Storage| !is_charged(&storage.charged_share) && !is_all_half;
    if result.storage.as_ref().is_some_and(hidden) {
        return Some(format!(
            "no scored query reads a quantized key of `{effective}`: its tail hides all of it"
        ));
    }
    let replay = result.replay.as_ref()?;
    (is_charged(&replay.charged_share) && replay.mean_kld == 0.0).then(|| {
        format!("`{effective}` reads a KLD of exactly 0 on the baseline's text: it did not engage")
    })
}

/// The message about two different schemes that have the same result.
fn same_statistics(one: &str, other: &str) -> String {
    format!("`{one}` and `{other}` have the same statistics to the last bit: one did not engage")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fixture;

    #[test]
    fn a_text_is_of_what_was_measured() {
        let says = |edit: &dyn Fn(&mut Measurement)| {
            let mut measurement = fixture::edited("prompts");
            edit(&mut measurement);
            broken_text(&measurement).unwrap_or_default()
        };
        assert_eq!(says(&|_| ()), "");
        let weights = "the baseline's text is of other weights than the measurement";
        assert_eq!(says(&|m| m.subject.weights_sha256 = "b5".repeat(32)), weights);
        let prompts = "the baseline's text is of other prompts than the measurement";
        assert_eq!(says(&|m| m.conditions.prompts = None), prompts);
        assert_eq!(says(&|m| m.generated.as_mut().unwrap().tokens = 65), prompts);
        let baseline = "the baseline's text is of another baseline than the measurement";
        assert_eq!(says(&|m| m.conditions.baseline = "f32".into()), baseline);
    }

    /// A floor in batches as long as the context compares the baseline with itself, and is always 0.
    #[test]
    fn a_floor_is_of_the_first_chunks_in_shorter_batches() {
        let says = |mean_kld, tokens_scored, batch| {
            let mut measurement = fixture::results().measurements[0].clone();
            measurement.floor = Some(Floor { mean_kld, tokens_scored, batch });
            distrust(&measurement).remove("q8_0").unwrap_or_default()
        };
        for batch in [171, 256] {
            assert_eq!(says(1e-4, 510, batch), "");
        }
        let of_others = "its floor is the mean of 255 positions, and a run measures it on 510: ";
        assert!(says(1e-4, 255, 171).starts_with(of_others));
        for batch in [0, 512, usize::MAX] {
            let whole = format!("its floor was measured in batches of {batch} tokens, which are ");
            assert!(says(0.0, 510, batch).starts_with(&whole));
        }
        assert!(says(0.1, 510, 171).contains("rounding alone makes 0.005 at most"));
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
}
