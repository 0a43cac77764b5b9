use super::*;
use crate::compute::attention::SoftmaxAttention;
use crate::compute::device::HOST;
use crate::compute::run;
use crate::kv::codec;
use crate::kv::measuring::MeasuringCache;
use crate::kv::Scheme;

const HEADS: usize = 2;

/// Schemes with exact tails and sinks. Every codec of the catalogue is tried as well.
const WINDOWED: [&str; 6] = [
    "q4_0:tail=32:sink=4",
    "q8_0:tail=1",
    "q4_0:sink=7",
    "q8_0/q4_0:tail=50",
    "turbo3:tail=64:sink=2/f16",
    "q5_1:tail=1000",
];

fn schemes() -> Vec<String> {
    codec::all().map(|c| c.name().into()).chain(WINDOWED.map(String::from)).collect()
}

fn kv(head_dim: usize, window: Option<usize>) -> LayerKv {
    LayerKv { heads: HEADS, head_dim, window, ..LayerKv::default() }
}

/// The scheme in a model of one layer. `None` if its blocks do not fit.
fn effective(scheme: &str, kv: LayerKv) -> Option<Effective> {
    Effective::new(&scheme.parse::<Scheme>().unwrap(), &[Some(kv)], None).ok()
}

/// (1, T, heads, D): channels differ in scale, as those of real keys do.
fn random(tokens: usize, heads: usize, head_dim: usize, seed: u64) -> Tensor {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 2.0
    };
    let count = tokens * heads * head_dim;
    let x: Vec<f32> = (0..count).map(|i| next() * (1.0 + (i % 7) as f32 / 3.0)).collect();
    Tensor::from_vec(x, (1, tokens, heads, head_dim), &HOST).unwrap()
}

fn attend(q: &Tensor, kv: &LayerKv, view: View) -> Vec<f32> {
    let op = SoftmaxAttention {
        heads: 2 * HEADS,
        kv_heads: HEADS,
        head_dim: kv.head_dim,
        scale: 1.0 / (kv.head_dim as f32).sqrt(),
        wide_values: view.wide_values,
        softcap: None,
        own_scores: None,
        window: kv.window,
        queries: q.dim(1).unwrap(),
        keys: view.k.stored.dim(1).unwrap(),
        start: view.start,
        k: view.k,
        v: view.v,
    };
    let q = q.force_contiguous().unwrap();
    let out = run(&op, [&q]).unwrap();
    out.flatten_all().unwrap().to_vec1().unwrap()
}

/// The outputs of attention when tokens are decoded portion by portion, and when they are measured in one pass.
fn outputs(scheme: &Effective, kv: LayerKv, portions: &[usize]) -> [Vec<f32>; 2] {
    let tokens = portions.iter().sum();
    let [k, v] = [1, 2].map(|seed| random(tokens, HEADS, kv.head_dim, seed));
    let q = random(tokens, 2 * HEADS, kv.head_dim, 3);
    let copy = |x: &Tensor| x.copy().unwrap();
    let view = MeasuringCache::new(scheme.clone()).append(0, copy(&k), copy(&v)).unwrap();
    let at_once = attend(&q, &kv, view);
    let mut cache = PackedCache::new(scheme.clone());
    let mut decoded = Vec::new();
    for &portion in portions {
        let start = cache.tokens();
        let part = |x: &Tensor| x.narrow(1, start, portion).unwrap().force_contiguous().unwrap();
        let view = cache.append(0, part(&k), part(&v)).unwrap();
        decoded.extend(attend(&part(&q), &kv, view));
        let tokens = start + portion;
        assert_eq!(cache.bytes(), scheme.bytes_at(tokens), "{scheme} at {tokens}");
    }
    [decoded, at_once]
}

/// Measuring in one pass reads what decoding token by token reads, exact tails included, and the cache takes
/// as many bytes as the scheme says at every step.
#[test]
fn decoding_reads_what_measuring_reads_in_one_pass() {
    let singly = vec![1; 300];
    let portions = vec![1, 30, 1, 1, 97, 3, 128, 1, 38];
    for scheme in schemes() {
        let mut fits = 0;
        for head_dim in [64, 128, 256] {
            for window in [None, Some(40), Some(150)] {
                let kv = kv(head_dim, window);
                let Some(effective) = effective(&scheme, kv) else { continue };
                fits += 1;
                let portions: &[Vec<usize>] = match head_dim {
                    64 => &[singly.clone(), portions.clone()],
                    _ => std::slice::from_ref(&portions),
                };
                for portions in portions {
                    let [decoded, at_once] = outputs(&effective, kv, portions);
                    let errors = decoded.iter().zip(&at_once).map(|(a, b)| (a - b).abs());
                    let worst = errors.fold(0.0, |worst: f32, error| {
                        worst.max(if error.is_nan() { f32::INFINITY } else { error })
                    });
                    assert!(worst <= 1e-5, "{effective}, {kv:?}: {worst:e}");
                }
            }
        }
        assert!(fits > 0, "{scheme}");
    }
}

/// The bytes of a plain scheme, of one in a window, and of an exact tail with a sink, computed by hand.
#[test]
fn memory_is_the_formula() {
    let bytes = |scheme, head_dim, window, tokens| {
        effective(scheme, kv(head_dim, window)).unwrap().bytes_at(tokens)
    };
    assert_eq!(bytes("f16", 64, None, 100), 2 * 100 * HEADS * 128);
    assert_eq!(bytes("q8_0/q4_0", 64, None, 100), 100 * HEADS * (2 * 34 + 2 * 18));
    assert_eq!(bytes("q4_0", 64, Some(40), 100), 2 * 39 * HEADS * 2 * 18);
    assert_eq!(bytes("q4_0", 64, Some(40), 10), 2 * 10 * HEADS * 2 * 18);
    let both = |exact: usize, encoded: usize| 2 * HEADS * (exact * 128 + encoded * 2 * 18);
    assert_eq!(bytes("q4_0:tail=32:sink=4", 64, None, 100), both(36, 64));
    assert_eq!(bytes("q4_0:tail=32:sink=4", 64, None, 36), both(36, 0));
    assert_eq!(bytes("q4_0:tail=32:sink=4", 64, None, 3), both(3, 0));
    // in a window there is no sink
    assert_eq!(bytes("q4_0:tail=32:sink=4", 64, Some(50), 100), both(32, 17));
    assert_eq!(bytes("turbo4", 128, None, 7), 2 * HEADS * 7 * 66);
}

#[test]
fn a_sequence_is_cut_back_where_that_is_possible() {
    let kv = kv(64, None);
    let [k, v] = [1, 2].map(|seed| random(200, HEADS, 64, seed));
    let part =
        |x: &Tensor, from, to| x.narrow(1, from, to - from).unwrap().force_contiguous().unwrap();
    let fill = |cache: &mut PackedCache, from, to| {
        cache.append(0, part(&k, from, to), part(&v, from, to)).unwrap()
    };
    let read = |view: View| attend(&random(1, 2 * HEADS, 64, 3), &kv, view);
    for scheme in ["q4_0", "q4_0:sink=9", "q8_0:tail=64:sink=2"] {
        let effective = effective(scheme, kv).unwrap();
        let mut cache = PackedCache::new(effective.clone());
        fill(&mut cache, 0, 60);
        cache.truncate(40).unwrap();
        assert_eq!((cache.tokens(), cache.bytes()), (40, effective.bytes_at(40)), "{scheme}");
        let again = fill(&mut cache, 40, 120);
        let mut straight = PackedCache::new(effective);
        fill(&mut straight, 0, 40);
        assert_eq!(read(again), read(fill(&mut straight, 40, 120)), "{scheme}");
    }
    let refused = |scheme: &str, window, to| {
        let mut cache = PackedCache::new(effective(scheme, super::tests::kv(64, window)).unwrap());
        fill(&mut cache, 0, 120);
        let error = cache.truncate(to).unwrap_err().to_string();
        assert_eq!(cache.tokens(), 120, "{scheme}");
        error
    };
    assert!(refused("q4_0:tail=64", None, 100).contains("have been encoded"));
    assert!(refused("q4_0", Some(40), 100).contains("have been let go"));
    assert!(refused("q4_0", None, 121).contains("it has fewer"));
    let mut cache = PackedCache::new(effective("q4_0", kv).unwrap());
    *cache.recurrent(3) = Some(Recurrent::zero(1, 4, 4, &HOST).unwrap());
    assert!(cache.truncate(0).unwrap_err().to_string().contains("its state is of all tokens"));
}

#[test]
fn what_is_not_finite_is_named() {
    let kv = kv(64, None);
    let mut cache = PackedCache::new(effective("q4_0", kv).unwrap());
    let nan = (random(3, HEADS, 64, 1) * f64::NAN).unwrap();
    let error = cache.append(0, random(3, HEADS, 64, 1), nan).err().unwrap().to_string();
    assert_eq!(error, "layer 0: V is not finite before it is stored");
}
