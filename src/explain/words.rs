//! The answer in words, by fixed rules.

use super::findings::{culprit_heads, Suspects, HARMS, HELPS, MOST};
use super::lanes::{Experiment, Site};
use super::statistics::{ChannelStatistics, CodecError, HeadStatistics, OUTLIER};
use super::{Explanation, Trial};
use crate::kv::effective::spans;
use crate::kv::layout::KvSide;
use crate::text::listed;
use crate::text::numbers::{count, significant};
use std::collections::{BTreeMap, BTreeSet};

/// For how many heads the outlier channels are named, and how many channels of each.
const NAMED_HEADS: usize = 3;
const NAMED_CHANNELS: usize = 8;

/// The answer, a sentence or two for each question.
pub fn answer(explanation: &Explanation) -> Vec<String> {
    let suspects = Suspects::of(explanation);
    let sentences = [
        Some(cost(explanation)),
        sides(explanation),
        Some(place(explanation)),
        Some(additivity(explanation)),
        channels(explanation, &suspects),
        mean(&suspects),
        error(explanation),
        Some(experiments(explanation)),
    ];
    sentences.into_iter().flatten().collect()
}

/// Names sites: `K of layers 0-3, 5 and V of layer 1`, or `head 1 of K in layer 3`.
pub fn sites(sites: &[Site]) -> String {
    let mut groups: BTreeMap<(KvSide, Option<usize>), Vec<usize>> = BTreeMap::new();
    for site in sites {
        groups.entry((site.side, site.head)).or_default().push(site.layer);
    }
    let named = groups.into_iter().map(|((side, head), mut layers)| {
        layers.sort_unstable();
        let layers = format!(
            "{} {}",
            if layers.len() == 1 { "layer" } else { "layers" },
            spans(&layers).replace(',', ", ")
        );
        match head {
            None => format!("{side} of {layers}"),
            Some(head) => format!("head {head} of {side} in {layers}"),
        }
    });
    listed(named)
}

fn cost(explanation: &Explanation) -> String {
    let Explanation { model, scheme, whole, conditions, .. } = explanation;
    let texts = listed(conditions.corpus.iter().map(|file| file.category.clone()));
    format!(
        "{scheme} costs {model} a mean KLD of {} ± {} nats per token ({} × {} of {texts}).",
        kld(whole.mean_kld),
        kld(whole.mean_kld_se),
        conditions.context,
        conditions.chunks,
    )
}

fn sides(explanation: &Explanation) -> Option<String> {
    let only = |side| trial(explanation, Experiment::Only(side).name());
    let [k, v] = KvSide::BOTH.map(only);
    let (k, v) = (k?.reading.mean_kld, v?.reading.mean_kld);
    let judged = |more: f64, less: f64, side: KvSide| {
        if more >= 9.0 * less {
            format!("nearly all of it comes from {side}")
        } else if more >= 2.0 * less {
            format!("most of it comes from {side}")
        } else {
            "K and V both have a part in it".into()
        }
    };
    let judged = if k >= v { judged(k, v, KvSide::K) } else { judged(v, k, KvSide::V) };
    Some(format!("With only K quantized it is {}, with only V {}: {judged}.", kld(k), kld(v)))
}

fn place(explanation: &Explanation) -> String {
    if explanation.additivity.sum <= 0.0 {
        return format!(
            "The harm has no single place: each of {} reads 0 by itself, and only together they do harm.",
            parts(explanation)
        );
    }
    let culprits = &explanation.culprits;
    let named = sites(&culprits.sites);
    let check = trial(explanation, "culprits_exact").map_or(String::new(), |check| {
        let reading = kld(check.reading.mean_kld);
        format!(" With {} exact, {reading} remains.", it(&culprits.sites))
    });
    if culprits.are_spread {
        return format!(
            "The harm has no single place: of {}, it takes {} to hold {:.0} % of what they add up to ({named}).{check}",
            parts(explanation),
            culprits.sites.len(),
            100.0 * MOST,
        );
    }
    format!(
        "{named} {} {:.0} % of what all {} add up to.{check}",
        if culprits.sites.len() == 1 { "is" } else { "are" },
        100.0 * culprits.share,
        parts(explanation),
    )
}

/// How many sites there are, and what a site is.
fn parts(explanation: &Explanation) -> String {
    let sites = &explanation.sites;
    let of_what = match sites.first().and_then(|site| site.site.head) {
        None => "K or V of a layer",
        Some(_) => "a head of K or V",
    };
    format!("{} (each {of_what})", count(sites.len(), "part"))
}

/// The word for some sites that were just named.
fn it(sites: &[Site]) -> &'static str {
    if sites.len() == 1 {
        "it"
    } else {
        "these"
    }
}

fn additivity(explanation: &Explanation) -> String {
    let additivity = &explanation.additivity;
    let sum = format!(
        "One by one, the parts add up to {}, which is {} × the whole",
        kld(additivity.sum),
        significant(additivity.ratio, 2)
    );
    if additivity.holds() {
        return format!("{sum}.");
    }
    let why = if additivity.ratio < 1.0 {
        "together they do more harm than each by itself, so the shares only rank the parts"
    } else {
        "together they do less harm than each by itself, because a model that is already wrong cannot become much \
         more wrong, or because errors cancel each other; so the shares only rank the parts"
    };
    format!("{sum}: {why}.")
}

fn channels(explanation: &Explanation, suspects: &Suspects) -> Option<String> {
    if suspects.outliers.is_empty() {
        let (head, largest) = suspects.largest?;
        return Some(format!(
            "No channel there has {OUTLIER} × the rms of its head's median channel; the largest has {} × ({}).",
            significant(largest, 2),
            head_words(explanation, head)
        ));
    }
    let named = suspects.outliers.iter().take(NAMED_HEADS);
    let named: Vec<String> = named
        .map(|(head, outliers)| outlier_words(&head_words(explanation, head), outliers))
        .collect();
    let more = suspects.outliers.len().saturating_sub(NAMED_HEADS);
    let more = if more > 0 {
        format!("; and there are outliers in {} more", count(more, "head"))
    } else {
        String::new()
    };
    Some(format!("Outlier channels there: {}{more}.", named.join("; ")))
}

fn outlier_words(head: &str, outliers: &[ChannelStatistics]) -> String {
    let mut shown: Vec<usize> =
        outliers.iter().take(NAMED_CHANNELS).map(|outlier| outlier.channel).collect();
    shown.sort_unstable();
    let more = outliers.len().saturating_sub(NAMED_CHANNELS);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let pairs: BTreeSet<usize> = outliers
        .iter()
        .take(NAMED_CHANNELS)
        .filter_map(|outlier| Some(outlier.pair?.index))
        .collect();
    let pairs = if pairs.is_empty() {
        String::new()
    } else {
        let word = if pairs.len() == 1 { "RoPE pair" } else { "RoPE pairs" };
        format!(" ({word} {})", listed(pairs.iter().map(usize::to_string)))
    };
    let ratio = outliers[0].of_median.map_or("all other channels are nearly 0".into(), |ratio| {
        format!("up to {} × the rms of the median channel", significant(ratio, 2))
    });
    let energy: f64 = outliers.iter().map(|outlier| outlier.energy).sum();
    format!(
        "{}{more} of {head}{pairs}, {ratio}, {:.0} % of the energy",
        listed(shown.iter().map(usize::to_string)),
        100.0 * energy
    )
}

/// Names a head: `K of layer 3`, or `head 1 of K in layer 3` if there are several.
fn head_words(explanation: &Explanation, head: &HeadStatistics) -> String {
    let HeadStatistics { layer, side, head, .. } = *head;
    let is_sibling =
        |other: &HeadStatistics| (other.layer, other.side) == (layer, side) && other.head != head;
    let is_one_of_several = explanation.heads.iter().any(is_sibling);
    sites(&[Site { layer, side, head: is_one_of_several.then_some(head) }])
}

/// Told if the mean has at least half of the energy in some head.
fn mean(suspects: &Suspects) -> Option<String> {
    let [least, most] = suspects.mean_share?;
    let [_, most_before] = suspects.mean_share_before_rope.unwrap_or_default();
    if most.max(most_before) < 0.5 {
        return None;
    }
    let range = |[least, most]: [f64; 2]| {
        if (most - least) < 0.01 {
            format!("{:.0} %", 100.0 * most)
        } else {
            format!("{:.0} to {:.0} %", 100.0 * least, 100.0 * most)
        }
    };
    let before = suspects.mean_share_before_rope.map_or(String::new(), |before| {
        format!(" (before RoPE, which makes waves of constants, {})", range(before))
    });
    Some(format!(
        "K's mean holds {} of the energy of its heads there{before}.",
        range([least, most])
    ))
}

/// The codec's error in the head of the worst culprit.
fn error(explanation: &Explanation) -> Option<String> {
    let head = *culprit_heads(explanation).first()?;
    let percent = |error: f64| format!("{} %", significant(100.0 * error, 2));
    let both = |error: CodecError| {
        let [head, median] = [error.head, error.median_channel].map(percent);
        format!("{head} of the whole and {median} in its median channel")
    };
    let other = match (head.error_rotated, head.error_unrotated) {
        (Some(rotated), Some(unrotated)) => {
            format!("{} with rotation, {} without", both(rotated), both(unrotated))
        }
        _ => both(head.error?),
    };
    Some(format!("The codec's relative error in {} is {other}.", head_words(explanation, head)))
}

fn experiments(explanation: &Explanation) -> String {
    let tried: Vec<&Trial> = explanation.experiments.iter().filter(|t| is_remedy(t)).collect();
    let mut sorted = tried.clone();
    sorted.sort_by(|a, b| a.of_whole.total_cmp(&b.of_whole));
    let helps = |trial: &&&Trial| trial.of_whole <= HELPS;
    let told = |trial: &&Trial| {
        format!("{} ({}, {})", trial.words, kld(trial.reading.mean_kld), times(trial.of_whole))
    };
    let helpful: Vec<String> = sorted.iter().filter(helps).map(told).collect();
    let harmful = sorted.iter().filter(|trial| trial.of_whole >= HARMS);
    let harmful: Vec<String> = harmful.map(told).collect();
    let idle = sorted.iter().filter(|trial| trial.of_whole > HELPS && trial.of_whole < HARMS);
    let idle: Vec<String> = idle.map(|trial| trial.words.clone()).collect();
    let mut sentences = Vec::new();
    sentences.push(match helpful.len() {
        0 => "Of the experiments, none helps.".to_string(),
        _ => format!("Of the experiments, these help: {}.", listed(helpful.into_iter())),
    });
    if !idle.is_empty() {
        sentences.push(format!("These change little: {}.", listed(idle.into_iter())));
    }
    if !harmful.is_empty() {
        sentences.push(format!("These make it worse: {}.", listed(harmful.into_iter())));
    }
    sentences.join(" ")
}

/// Whether an experiment is told among those that help or not. The others are told elsewhere.
fn is_remedy(trial: &Trial) -> bool {
    !["only_k", "only_v", "culprits_exact"].contains(&trial.experiment)
}

/// A share of the whole as a factor.
fn times(of_whole: f64) -> String {
    if of_whole < 1.0 && of_whole > 0.0 {
        format!("÷ {}", significant(1.0 / of_whole, 2))
    } else {
        format!("× {}", significant(of_whole, 2))
    }
}

fn trial<'a>(explanation: &'a Explanation, name: &str) -> Option<&'a Trial> {
    explanation.experiments.iter().find(|trial| trial.experiment == name)
}

/// A KLD as people read it.
pub fn kld(value: f64) -> String {
    significant(value, 3)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{explanation, reading, told};
    use super::*;

    fn answer_of(klds: [[f64; 2]; 2], whole: f64) -> String {
        explanation(klds, whole).answer.join("\n")
    }

    #[test]
    fn the_whole_answer() {
        insta::assert_snapshot!(answer_of([[0.05, 0.01], [0.5, 0.02]], 0.6), @r"
        q4_0 costs tiny a mean KLD of 0.600 ± 0.0300 nats per token (512 × 16 of prose and code).
        With only K quantized it is 0.570, with only V 0.0300: nearly all of it comes from K.
        K of layer 1 is 86 % of what all 4 parts (each K or V of a layer) add up to. With it exact, 0.0600 remains.
        One by one, the parts add up to 0.580, which is 0.97 × the whole.
        Outlier channels there: 11 and 43 of K of layer 1 (RoPE pair 11), up to 24 × the rms of the median channel, 44 % of the energy.
        K's mean holds 12 % of the energy of its heads there (before RoPE, which makes waves of constants, 75 %).
        The codec's relative error in K of layer 1 is 6.0 % of the whole and 18 % in its median channel with rotation, 10 % of the whole and 30 % in its median channel without.
        Of the experiments, these help: the 4 worst channels of each head exact (0.0150, ÷ 40) and the last layer exact (0.300, ÷ 2.0). These change little: K's mean taken out. These make it worse: without rotation (2.70, × 4.5).
        ");
    }

    #[test]
    fn harm_without_a_place_is_said_to_have_none() {
        let answer = answer_of([[0.1, 0.1], [0.1, 0.1]], 0.4);
        let spread = "The harm has no single place: of 4 parts (each K or V of a layer), it takes 4 to hold 80 %";
        assert!(answer.contains(spread), "{answer}");
        assert!(
            answer.contains("(K of layers 0-1 and V of layers 0-1). With these exact,"),
            "{answer}"
        );
    }

    /// No number of parts holds a share of nothing.
    #[test]
    fn parts_that_do_nothing_by_themselves_hold_no_share() {
        let answer = answer_of([[0.0, 0.0], [0.0, 0.0]], 0.4);
        let place = "The harm has no single place: each of 4 parts (each K or V of a layer) reads 0 by itself, and only";
        assert!(answer.contains(place), "{answer}");
        assert!(!answer.contains("80 %") && !answer.contains("remains"), "{answer}");
    }

    #[test]
    fn a_sum_that_is_not_the_whole_is_told() {
        let klds = [[0.05, 0.01], [0.5, 0.02]];
        let below = answer_of(klds, 1.2);
        assert!(below.contains("0.48 × the whole: together they do more harm"), "{below}");
        let above = answer_of(klds, 0.3);
        assert!(above.contains("1.9 × the whole: together they do less harm"), "{above}");
        assert!(answer_of(klds, 0.6).contains("which is 0.97 × the whole.\n"));
    }

    #[test]
    fn sides_are_weighed() {
        let judged = |k: f64, v: f64| {
            let mut explanation = explanation([[0.05, 0.01], [0.5, 0.02]], 0.6);
            explanation.experiments[0].reading = reading(k);
            explanation.experiments[1].reading = reading(v);
            let told = told(explanation).answer.remove(1);
            told.split(": ").nth(1).unwrap().to_string()
        };
        assert_eq!(judged(0.9, 0.1), "nearly all of it comes from K.");
        assert_eq!(judged(0.3, 0.1), "most of it comes from K.");
        assert_eq!(judged(0.15, 0.1), "K and V both have a part in it.");
        assert_eq!(judged(0.1, 0.9), "nearly all of it comes from V.");
    }

    #[test]
    fn without_outliers_the_largest_channel_is_named() {
        let mut explanation = explanation([[0.5, 0.01], [0.05, 0.02]], 0.6);
        let of = |e: &Explanation| told(e.clone()).answer.join("\n");
        // the culprit is K of layer 0, and layer 1 has the outliers
        let answer = of(&explanation);
        let largest = "No channel there has 6 × the rms of its head's median channel; the largest has 1.5 × (K of layer 0).";
        assert!(answer.contains(largest), "{answer}");
        // a mean that has little of the energy is not worth a sentence
        assert!(answer.contains("K's mean holds 12 %"), "{answer}");
        explanation.heads.iter_mut().for_each(|head| head.mean_share_before_rope = Some(0.2));
        assert!(!of(&explanation).contains("K's mean holds"));
    }

    #[test]
    fn experiments_are_sorted_by_what_they_do() {
        let mut explanation = explanation([[0.05, 0.01], [0.5, 0.02]], 0.6);
        for trial in &mut explanation.experiments {
            trial.of_whole = 1.0;
        }
        let answer = told(explanation).answer.pop().unwrap();
        assert!(
            answer.starts_with("Of the experiments, none helps. These change little:"),
            "{answer}"
        );
    }

    #[test]
    fn sites_are_grouped() {
        let site = |layer, side, head| Site { layer, side, head };
        let (k, v) = (KvSide::K, KvSide::V);
        let named = |list: &[Site]| sites(list);
        assert_eq!(named(&[site(3, k, None)]), "K of layer 3");
        let several = [site(5, k, None), site(1, v, None), site(0, k, None), site(1, k, None)];
        assert_eq!(named(&several), "K of layers 0-1, 5 and V of layer 1");
        let heads = [site(3, k, Some(1)), site(4, k, Some(1)), site(4, k, Some(0))];
        assert_eq!(named(&heads), "head 0 of K in layer 4 and head 1 of K in layers 3-4");
    }
}
