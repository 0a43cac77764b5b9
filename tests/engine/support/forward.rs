//! The decoder run whole or in parts, as a serving engine would.

use candle_core::Tensor;
use kvgate::internals::kv::cache::{CacheError, KvCache, View};
use kvgate::internals::kv::effective::Effective;
use kvgate::internals::kv::measuring::MeasuringCache;
use kvgate::internals::kv::packed::PackedCache;
use kvgate::internals::kv::recurrent::Recurrent;
use kvgate::internals::kv::Scheme;
use kvgate::internals::model::decoder::{Decoder, Rows};
use kvgate::internals::model::spec::Spec;
use std::collections::BTreeMap;

/// A scheme as a model's cache carries it out.
pub fn effective(spec: &Spec, scheme: &str) -> Effective {
    Effective::new(&scheme.parse::<Scheme>().unwrap(), &spec.kv_layout(), None).unwrap()
}

/// Logits of all positions, (T, V), with an exact cache and all tokens in one pass.
pub fn logits(decoder: &Decoder, ids: &[u32]) -> Tensor {
    run_part(decoder, ids, 0, &mut MeasuringCache::new(effective(&decoder.spec, "f32")))
}

/// The same with so many tokens in each pass, through a cache that they grow in.
pub fn logits_in_parts(
    decoder: &Decoder,
    ids: &[u32],
    parts: &[usize],
    mut cache: PackedCache,
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
pub fn run_part(decoder: &Decoder, ids: &[u32], start: usize, cache: &mut dyn KvCache) -> Tensor {
    let ropes = decoder.ropes(start + ids.len()).unwrap();
    let embedded = decoder.embed(ids).unwrap();
    let mut x = embedded.x;
    for index in 0..decoder.spec.layers.len() {
        let layer = decoder.ready(index, &ropes).unwrap();
        let at = Rows { start, ..Rows::of_lane(ids.len()) };
        x = layer.run(&x, embedded.per_layer.as_ref(), at, cache).unwrap();
    }
    decoder.logits(&decoder.normed(&x).unwrap(), 1, 0, decoder.spec.vocab).unwrap()
}

/// The largest error, relative to the largest value.
pub fn relative(got: &[f32], want: impl Iterator<Item = f64> + Clone) -> f64 {
    assert!(got.iter().all(|x| x.is_finite()), "numbers that are not finite");
    let largest = want.clone().fold(0.0, |m: f64, x| m.max(x.abs()));
    let errors = got.iter().zip(want).map(|(got, want)| (f64::from(*got) - want).abs() / largest);
    errors.fold(0.0, |worst, e| if e <= worst { worst } else { e })
}

/// The same between two tensors.
pub fn difference(a: &Tensor, b: &Tensor) -> f64 {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(a.dims(), b.dims());
    let b = flat(b);
    relative(&flat(a), b.iter().map(|x| f64::from(*x)))
}

/// Odd portions: single tokens, a few, and more than a window or a chunk of the delta rule.
pub fn portions(tokens: usize) -> Vec<usize> {
    let mut portions = vec![1, 1, 7, 70, 1, 3];
    while portions.iter().sum::<usize>() > tokens {
        portions.remove(portions.len() - 3);
    }
    portions.push(tokens - portions.iter().sum::<usize>());
    portions.retain(|&n| n > 0);
    portions
}

/// The largest difference of any layer's output between one pass and portions, each layer being given
/// the one pass's inputs, and each cache its K and V: a difference of 1e-7 there flips a code.
pub fn in_parts_by_layer(decoder: &Decoder, ids: &[u32], scheme: &str) -> f64 {
    let scheme = effective(&decoder.spec, scheme);
    let ropes = decoder.ropes(ids.len()).unwrap();
    let layers: Vec<_> =
        (0..decoder.spec.layers.len()).map(|i| decoder.ready(i, &ropes).unwrap()).collect();
    let embedded = decoder.embed(ids).unwrap();
    let at = Rows::of_lane(ids.len());
    let mut recorder =
        Recorder { inner: MeasuringCache::new(scheme.clone()), appended: BTreeMap::new() };
    let mut inputs = vec![embedded.x];
    for layer in &layers {
        let own = embedded.per_layer.as_ref();
        inputs.push(layer.run(&inputs[inputs.len() - 1], own, at, &mut recorder).unwrap());
    }
    let appended = recorder.appended;
    let mut player = Player { inner: PackedCache::new(scheme), appended, start: 0 };
    let mut parts = vec![Vec::new(); layers.len()];
    for tokens in portions(ids.len()) {
        let start = player.start;
        let rows = |t: &Tensor| t.narrow(0, start, tokens).unwrap();
        let own = embedded.per_layer.as_ref().map(rows);
        for (i, layer) in layers.iter().enumerate() {
            let at = Rows { start, ..Rows::of_lane(tokens) };
            parts[i].push(layer.run(&rows(&inputs[i]), own.as_ref(), at, &mut player).unwrap());
        }
        player.start += tokens;
    }
    let outputs = parts.iter().map(|parts| Tensor::cat(parts, 0).unwrap());
    outputs.zip(&inputs[1..]).map(|(parts, whole)| difference(&parts, whole)).fold(0.0, f64::max)
}

/// K and V of each layer, as they came.
type Appended = BTreeMap<usize, [Tensor; 2]>;

/// Keeps a copy of what is appended.
struct Recorder {
    inner: MeasuringCache,
    appended: Appended,
}

impl KvCache for Recorder {
    fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<View, CacheError> {
        self.appended.insert(layer, [k.copy()?, v.copy()?]);
        self.inner.append(layer, k, v)
    }

    fn shared(&mut self, owner: usize) -> Result<View, CacheError> {
        self.inner.shared(owner)
    }

    fn recurrent(&mut self, layer: usize) -> &mut Option<Recurrent> {
        self.inner.recurrent(layer)
    }
}

/// Appends what was recorded instead of what comes.
struct Player {
    inner: PackedCache,
    appended: Appended,
    start: usize,
}

impl KvCache for Player {
    fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<View, CacheError> {
        let part = |recorded: &Tensor, came: &Tensor| -> candle_core::Result<Tensor> {
            let part = recorded.narrow(1, self.start, came.dim(1)?)?.force_contiguous()?;
            assert!(difference(came, &part) < 1e-4, "layer {layer} appends something else");
            Ok(part)
        };
        let [recorded_k, recorded_v] = &self.appended[&layer];
        let (k, v) = (part(recorded_k, &k)?, part(recorded_v, &v)?);
        self.inner.append(layer, k, v)
    }

    fn shared(&mut self, owner: usize) -> Result<View, CacheError> {
        self.inner.shared(owner)
    }

    fn recurrent(&mut self, layer: usize) -> &mut Option<Recurrent> {
        self.inner.recurrent(layer)
    }
}
