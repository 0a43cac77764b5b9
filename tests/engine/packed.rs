//! The packed cache on real weights, against the lanes that measure and against decoding itself:
//! `cargo test --test engine packed:: -- --ignored --nocapture` prints what docs/generations.md quotes.
//! All of it is computed on the CPU, as the packed cache is a host's.

use crate::support;
use crate::support::forward::{effective, in_parts_by_layer, logits_in_parts, run_part};
use crate::support::generation::replay_and_decode;
use crate::support::{open, source, MODELS};
use kvgate::internals::kv::measuring::MeasuringCache;
use kvgate::internals::kv::packed::PackedCache;
use kvgate::internals::model::decoder::Residency;
use kvgate::internals::model::Checkpoint;

fn tokens(checkpoint: &Checkpoint, count: usize) -> Vec<u32> {
    let text = std::fs::read_to_string(support::corpus("persuasion.txt")).unwrap();
    checkpoint.tokenizer.encode(&text[..8 * count]).unwrap()[..count].to_vec()
}

/// Layer by layer on the same inputs; the largest value of a layer's output is 1.
#[test]
#[ignore = "real weights: scripts/fetch-models"]
fn decoding_is_the_lane_layer_by_layer() {
    for file in MODELS {
        let checkpoint = open(file);
        let decoder = checkpoint.load(Residency::Resident).unwrap();
        let ids = tokens(&checkpoint, 300);
        for scheme in ["q8_0", "q4_0", "q4_0:tail=32:sink=4", "kivi2", "kvarn4", "turbo3_tcq"] {
            let worst = in_parts_by_layer(&decoder, &ids, scheme);
            println!("{file} {scheme}: {worst:.1e}");
            assert!(worst <= 1e-5, "{file} {scheme}: {worst:.1e}");
        }
    }
}

/// Mean KLD of the second half's positions.
fn mean_kld(base: &[Vec<f32>], lane: &[Vec<f32>]) -> f64 {
    let log_softmax = |x: &[f32]| -> Vec<f64> {
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = x.iter().map(|v| f64::from(v - max).exp()).sum();
        x.iter().map(|v| f64::from(v - max) - sum.ln()).collect()
    };
    let half = base.len() / 2;
    let klds = base[half..].iter().zip(&lane[half..]).map(|(base, lane)| {
        let (p, q) = (log_softmax(base), log_softmax(lane));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    });
    klds.sum::<f64>() / (base.len() - half) as f64
}

/// Token by token, where a difference of 1e-7 flips a code and a layer above amplifies it: means agree.
#[test]
#[ignore = "real weights: scripts/fetch-models"]
fn token_by_token_the_mean_divergence_is_the_lanes() {
    const TOKENS: usize = 256;
    for file in MODELS {
        let checkpoint = open(file);
        let decoder = checkpoint.load(Residency::Resident).unwrap();
        let ids = tokens(&checkpoint, TOKENS);
        let rows = |scheme: &str, singly: bool| -> Vec<Vec<f32>> {
            let scheme = effective(&decoder.spec, scheme);
            let logits = match singly {
                true => logits_in_parts(&decoder, &ids, &[1; TOKENS], PackedCache::new(scheme)),
                false => run_part(&decoder, &ids, 0, &mut MeasuringCache::new(scheme)),
            };
            logits.to_vec2().unwrap()
        };
        let base = [false, true].map(|singly| rows("f16", singly));
        for scheme in ["q8_0", "q4_0", "q4_0:tail=32:sink=4"] {
            let [lane, packed] = [false, true]
                .map(|singly| mean_kld(&base[usize::from(singly)], &rows(scheme, singly)));
            println!("{file} {scheme}: lanes {lane:.6}, packed {packed:.6}, {:.3}", packed / lane);
            assert!((packed / lane - 1.0).abs() < 0.25, "{file} {scheme}: {lane} and {packed}");
        }
    }
}

/// A first flip is where greedy decoding parts, wherever the baseline is decided.
#[test]
#[ignore = "real weights: scripts/fetch-models"]
fn the_first_flip_is_where_greedy_decoding_parts() {
    for file in MODELS {
        let schemes = ["q8_0", "q4_0", "q4_0:tail=32:sink=4"];
        let [equal, _, all] = replay_and_decode(&source(file), "default.toml", 32, &schemes, 0.15);
        assert!(10 * equal >= 9 * all, "{file}: {equal} of {all}");
    }
}
