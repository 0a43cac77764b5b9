//! The decoder run whole or in parts, as a serving engine would.

use candle_core::Tensor;
use kvgate::kv::cache::{Effective, LaneCache};
use kvgate::kv::Scheme;
use kvgate::model::decoder::{At, Decoder};
use kvgate::model::spec::Spec;

/// A scheme as a model's cache carries it out.
pub fn effective(spec: &Spec, scheme: &str) -> Effective {
    Effective::new(&scheme.parse::<Scheme>().unwrap(), &spec.kv_layout()).unwrap()
}

/// Logits of all positions, (T, V), with an exact cache and all tokens in one pass.
pub fn logits(decoder: &Decoder, ids: &[u32]) -> Tensor {
    logits_in_parts(decoder, ids, &[ids.len()], LaneCache::new(effective(&decoder.spec, "f32")))
}

/// The same with so many tokens in each pass, through a cache that they grow in.
pub fn logits_in_parts(
    decoder: &Decoder,
    ids: &[u32],
    parts: &[usize],
    mut cache: LaneCache,
) -> Tensor {
    let mut start = 0;
    let mut logits = Vec::new();
    for &tokens in parts {
        logits.push(run_part(decoder, &ids[start..start + tokens], start, &mut cache));
        start += tokens;
    }
    Tensor::cat(&logits, 0).unwrap()
}

/// Logits of some tokens that follow on the `start` ones in the cache.
pub fn run_part(decoder: &Decoder, ids: &[u32], start: usize, cache: &mut LaneCache) -> Tensor {
    let ropes = decoder.ropes(start + ids.len());
    let embedded = decoder.embed(ids).unwrap();
    let mut x = embedded.x;
    for index in 0..decoder.spec.layers.len() {
        let layer = decoder.ready(index, &ropes).unwrap();
        let at = At { start, tokens: ids.len() };
        x = layer.run(&x, embedded.per_layer.as_ref(), at, cache).unwrap();
    }
    decoder.logits(&decoder.normed(&x).unwrap(), 0, decoder.spec.vocab).unwrap()
}
