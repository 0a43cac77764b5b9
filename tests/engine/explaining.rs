//! `kvgate explain` on the embedded models, of which it is known why a scheme harms them.

use crate::support;
use crate::support::root;
use kvgate::internals::explain::{explain, Explanation, Options};
use kvgate::internals::kv::layout::KvSide;
use kvgate::internals::measure::{measure, Request};
use kvgate::internals::results::Outcome;
use kvgate::internals::source::Source;
use std::collections::BTreeSet;

fn with_request<R>(model: &str, scheme: &str, f: impl FnOnce(&Request) -> R) -> R {
    let source = Source::at(root().join("models").join(model));
    let corpus = [support::corpus("persuasion.txt")];
    f(&Request { model, context: 256, ..support::request(&source, &corpus, &[scheme]) })
}

fn explained(model: &str, scheme: &str, by_head: bool) -> Explanation {
    let options = Options { channels: 4, by_head };
    with_request(model, scheme, |request| {
        explain(request, options, &|_, _, _| {}).unwrap_or_else(|error| panic!("{error}"))
    })
}

fn of_whole(explanation: &Explanation, experiment: &str) -> f64 {
    let mut found = explanation.experiments.iter().filter(|e| e.experiment == experiment);
    found.next().unwrap_or_else(|| panic!("no {experiment}")).of_whole
}

/// The pairs that `models/training/harden.py` chose, as the model's README lists them.
const HARDENED: [[usize; 2]; 5] = [[11, 12], [12, 13], [11, 13], [13, 14], [16, 53]];

#[test]
fn the_hardened_pairs_of_the_embedded_gemma_are_found() {
    let explanation = explained("gemma4-e2b-mini", "q4_0", false);
    for line in &explanation.answer {
        println!("{line}");
    }
    // five layers own a cache, which five others share
    assert_eq!(explanation.sites.len(), 10);
    let keys = explanation.heads.iter().filter(|head| head.side == KvSide::K);
    for head in keys {
        let pairs: BTreeSet<usize> =
            head.outliers().iter().map(|outlier| outlier.pair.unwrap().index).collect();
        let hardened = BTreeSet::from(HARDENED[head.layer]);
        assert_eq!(pairs, hardened, "layer {}: {:?}", head.layer, &head.channels[..6]);
    }
    let values = explanation.heads.iter().filter(|head| head.side == KvSide::V);
    assert!(values.clone().all(|head| head.outliers().is_empty()), "V was not hardened");
    assert!(explanation.culprits.sites.iter().all(|site| site.side == KvSide::K));
    let answer = explanation.answer.join(" ");
    assert!(answer.contains("nearly all of it comes from K"), "{answer}");
    let worst = explanation.culprits.sites[0].layer;
    let [first, second] = HARDENED[worst];
    assert!(answer.contains(&format!("(RoPE pairs {first} and {second})")), "{answer}");
    // the hardening put harm into these channels only
    let without = of_whole(&explanation, "worst_channels_exact");
    assert!(without < 0.2, "{without}");
    assert!(of_whole(&explanation, "culprits_exact") < 1.0);
    assert!(of_whole(&explanation, "not_rotated") > 1.0);
}

#[test]
fn the_whole_is_what_measure_reads_and_shares_are_of_the_sum() {
    for model in ["gemma4-e2b-mini", "qwen3.6-moe-mini"] {
        let explanation = explained(model, "q5_1", false);
        let measured = with_request(model, "q5_1", |request| {
            measure(request, &|_, _, _| {}).unwrap().measurement
        });
        let Outcome::Measured { statistics, .. } = &measured.schemes[0].outcome else {
            panic!("{model} was not measured")
        };
        let (whole, alone) = (explanation.whole.mean_kld, statistics.mean_kld);
        assert!((whole / alone - 1.0).abs() < 1e-5, "{model}: {whole} and {alone}");
        assert_eq!(explanation.controls[0].mean_kld, Some(0.0));
        let shares: f64 = explanation.sites.iter().map(|site| site.share).sum();
        assert!((shares - 1.0).abs() < 1e-9, "{shares}");
        let sum: f64 = explanation.sites.iter().map(|site| site.reading.mean_kld).sum();
        assert_eq!(sum, explanation.additivity.sum);
        assert!(explanation.sites.iter().all(|site| site.reading.mean_kld > 0.0));
    }
}

/// The heads of a slot together are the slot, and each does a part of the harm.
#[test]
fn heads_are_sites_of_their_own() {
    let (slots, heads) =
        (explained("qwen3.6-moe-mini", "q4_0", false), explained("qwen3.6-moe-mini", "q4_0", true));
    let count = |explanation: &Explanation| explanation.sites.len();
    assert_eq!(count(&heads), heads.heads.len());
    assert!(count(&heads) > count(&slots), "{} and {}", count(&heads), count(&slots));
    for slot in &slots.sites {
        let own = heads.sites.iter().filter(|h| h.site.slot() == slot.site.slot());
        let sum: f64 = own.map(|head| head.reading.mean_kld).sum();
        let ratio = sum / slot.reading.mean_kld;
        assert!((0.5..2.0).contains(&ratio), "{:?}: {ratio}", slot.site);
    }
}
