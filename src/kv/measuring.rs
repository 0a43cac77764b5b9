//! The cache for measuring: a layer reads decode(encode(x)) of its K and V, and nothing is kept.

use super::cache::{CacheError, KvCache, StorageCheck, Versions, View, BEFORE, HALVED, STORED};
use super::effective::{Effective, LayerScheme, SideScheme};
use super::recurrent::Recurrent;
use super::shared::Shared;
use crate::compute::change;
use crate::compute::finite::FiniteFlag;
use crate::compute::round_trip::{Counters, OnCard, RoundTrip, Storing};
use candle_core::Tensor;

/// The cache of a batch of sequences that run with teacher forcing, in one lane or in several that travel together.
///
/// Chunks are appended whole and layers run one after the other. Nothing needs to be kept, therefore, except
/// what layers above share and recurrent states.
///
/// Each query of a chunk reads what it would read if the chunk were decoded token by token: groups of tokens
/// are encoded as if they had just been completed, and exact tails and sinks stand beside them, with the rule
/// which queries read them.
#[derive(Clone)]
pub struct MeasuringCache {
    /// The scheme of each lane.
    lanes: Vec<Effective>,
    shared: Shared,
}

impl MeasuringCache {
    /// A cache of one lane without tokens.
    pub fn new(scheme: Effective) -> Self {
        Self::of_lanes(vec![scheme])
    }

    /// A cache without tokens for lanes that travel together.
    pub(crate) fn of_lanes(lanes: Vec<Effective>) -> Self {
        MeasuringCache { lanes, shared: Shared::default() }
    }

    /// Forgets recurrent states, so that the next chunks start without a history.
    pub(crate) fn forget_states(&mut self) {
        self.shared.forget_states();
    }

    /// The versions of K or V that queries read, and the checks of them. `side` picks K or V of a layer's scheme.
    ///
    /// If a lane has an exact tail, it holds half precision, so that is also what the codec encodes once a
    /// token leaves the tail.
    fn versions(
        &self,
        name: &'static str,
        layer: usize,
        side: fn(&LayerScheme) -> &SideScheme,
        x: Tensor,
    ) -> candle_core::Result<(Versions, Vec<StorageCheck>)> {
        let lanes: Vec<_> = self.lanes.iter().map(|lane| side(lane.layer(layer))).collect();
        let sequences = x.dim(0)? / lanes.len();
        let checks = |lane| {
            [BEFORE, STORED, HALVED].map(|when| {
                let finite = FiniteFlag::default();
                StorageCheck { lane, side: name, when, finite }
            })
        };
        let own = |x: &Tensor, lane: usize| x.narrow(0, lane * sequences, sequences);
        let checks: Vec<_> = (0..lanes.len()).map(checks).collect();
        let keeps_exact = lanes.iter().any(|scheme| scheme.keeps_exact());
        for (lane, (scheme, [before, _, halved])) in lanes.iter().zip(&checks).enumerate() {
            if scheme.keeps_exact() {
                halve(&own(&x, lane)?, &before.finite, &halved.finite)?;
            }
        }
        let rules = || lanes.iter().map(|scheme| scheme.exact).collect();
        let exact = if keeps_exact { Some((x.copy()?, rules())) } else { None };
        let mut all = Vec::new();
        for (lane, (scheme, [before, stored, halved])) in lanes.iter().zip(checks).enumerate() {
            let storing = &CountedStorage { scheme, clamped: self.lanes[lane].clamped() };
            let first = if scheme.keeps_exact() { &halved } else { &before };
            let op = RoundTrip { storing, before: &first.finite, after: &stored.finite };
            change(&op, &own(&x, lane)?)?;
            all.extend([before, stored]);
            all.extend(scheme.keeps_exact().then_some(halved));
        }
        Ok((Versions { stored: x, exact }, all))
    }
}

impl KvCache for MeasuringCache {
    fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<View, CacheError> {
        let (k, of_k) = self.versions("K", layer, |scheme| &scheme.k, k)?;
        let (v, of_v) = self.versions("V", layer, |scheme| &scheme.v, v)?;
        let checks = [of_k, of_v].concat();
        // another engine is mimicked in one lane at a time
        let LayerScheme { kv, queries, .. } = self.lanes[0].layer(layer);
        let wide_values = self.lanes.iter().map(|lane| lane.layer(layer).v.keeps_f32()).collect();
        let view = View { k, v, start: 0, wide_values, queries: queries.clone(), checks };
        Ok(self.shared.share(layer, kv, view))
    }

    fn shared(&mut self, owner: usize) -> Result<View, CacheError> {
        self.shared.view(owner)
    }

    fn recurrent(&mut self, layer: usize) -> &mut Option<Recurrent> {
        self.shared.state(layer)
    }
}

impl SideScheme {
    /// Rounds (B, T, H, D) in place to what a cache would give back.
    pub(crate) fn round(&self, x: &Tensor) -> candle_core::Result<()> {
        let storing = &CountedStorage { scheme: self, clamped: &Counters::default() };
        let (before, after) = (&FiniteFlag::default(), &FiniteFlag::default());
        change(&RoundTrip { storing, before, after }, x)
    }
}

/// Rounds (B, T, H, D) in place to half precision, which is what "exact" means.
fn halve(x: &Tensor, before: &FiniteFlag, after: &FiniteFlag) -> candle_core::Result<()> {
    let half = SideScheme::half();
    let storing = &CountedStorage { scheme: &half, clamped: &Counters::default() };
    change(&RoundTrip { storing, before, after }, x)
}

/// How one side of a layer is stored, and where clamped scales are counted.
struct CountedStorage<'a> {
    scheme: &'a SideScheme,
    clamped: &'a Counters,
}

impl Storing for CountedStorage<'_> {
    fn group(&self) -> usize {
        self.scheme.codec.group()
    }

    fn round_trip(&self, head: usize, x: &mut [f32]) {
        self.scheme.round_trip(head, x, self.clamped);
    }

    fn on_card(&self, head_dim: usize) -> OnCard<'_> {
        self.scheme.on_card(head_dim, self.clamped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::device::HOST;
    use crate::compute::textbook::{flat, place, random};
    use crate::kv::codec;
    use crate::kv::rotate;
    use candle_core::{Device, Shape};

    /// K or V of two sequences with numbers of all sizes.
    fn values(shape: (usize, usize, usize, usize)) -> Vec<f32> {
        let count = shape.0 * shape.1 * shape.2 * shape.3;
        let mut x = random(count);
        for (i, x) in x.iter_mut().enumerate() {
            match i / shape.3 % 7 {
                0 => *x *= 1e-6,
                1 => *x *= 1e3,
                2 if i % 5 == 0 => *x *= 50.0,
                3 => *x = (*x * 4.0).round() / 4.0,
                4 if i % 3 == 0 => *x = -0.0,
                5 if (i / shape.3).is_multiple_of(2) => *x = 0.0,
                6 if i % 11 == 0 => *x = 1e-40,
                _ => {}
            }
        }
        x
    }

    /// What a cache gives back of `x`, and the share of scales at their limit.
    fn rounded(
        scheme: &SideScheme,
        x: &[f32],
        shape: Shape,
        at: &Device,
    ) -> (Vec<f32>, Option<f64>) {
        let x = Tensor::from_slice(x, shape, at).unwrap();
        let clamped = Counters::default();
        let storing = &CountedStorage { scheme, clamped: &clamped };
        let (before, after) = (&FiniteFlag::default(), &FiniteFlag::default());
        change(&RoundTrip { storing, before, after }, &x).unwrap();
        (flat(&x), clamped.share())
    }

    /// Fails unless a codec gives the same bits on the card as on the host.
    fn gives_the_same_bits(
        codec: &'static dyn codec::Codec,
        rotation: Option<usize>,
        head_dim: usize,
    ) {
        has_the_same_bits(&SideScheme::plain(codec, rotation), head_dim);
    }

    /// Fails unless a scheme gives the same bits on the card as on the host.
    fn has_the_same_bits(scheme: &SideScheme, head_dim: usize) {
        let (codec, shape) = (scheme.codec, (2, 300, 3, head_dim));
        let x = values(shape);
        let [(on_host, share), (there, share_there)] =
            [&HOST, &place()].map(|at| rounded(scheme, &x, shape.into(), at));
        let counted = (codec.name(), head_dim, share_there);
        assert_eq!(counted, (codec.name(), head_dim, share), "scales at their limit");
        let differs = on_host.iter().zip(&there).position(|(a, b)| a.to_bits() != b.to_bits());
        if let Some(i) = differs {
            let (name, head) = (codec.name(), i / head_dim * head_dim);
            panic!(
                "{name}, {head_dim}, element {i}: {:?} became {:?} and not {:?}; head {:?}",
                x[i],
                there[i],
                on_host[i],
                &x[head..head + head_dim]
            );
        }
    }

    /// Heads of 512 go the host's way if a codec's kernel does not take them.
    #[test]
    #[ignore = "needs a card, which KVGATE_DEVICE names; on the CPU it would compare the CPU with itself"]
    fn every_codec_gives_the_same_bits_on_every_device() {
        assert!(!place().is_cpu(), "KVGATE_DEVICE names no card");
        for codec in codec::built_in() {
            let of_v = codec.for_values().unwrap_or(*codec);
            let sizes =
                |head_dim| [rotate::k_size(*codec, head_dim), rotate::v_size(of_v, head_dim)];
            for head_dim in [64, 80, 96, 128, 192, 256, 512] {
                for (codec, rotation) in [*codec, of_v].into_iter().zip(sizes(head_dim)) {
                    if head_dim.is_multiple_of(codec.block(head_dim)) {
                        gives_the_same_bits(codec, rotation, head_dim);
                    }
                }
            }
        }
    }

    #[test]
    #[ignore = "needs a card, which KVGATE_DEVICE names; on the CPU it would compare the CPU with itself"]
    fn a_mean_and_scales_give_the_same_bits_on_every_device() {
        assert!(!place().is_cpu(), "KVGATE_DEVICE names no card");
        // not so small that a group becomes NaN, whose sign differs between devices
        let scales = [0.5f32, 1.5, 0.31];
        for name in ["q4_0", "q8_0", "fp8_e4m3", "kivi4"] {
            for head_dim in [64usize, 80, 96, 128] {
                let codec = codec::find(name).unwrap();
                if !head_dim.is_multiple_of(codec.block(head_dim)) {
                    continue;
                }
                let mean: Vec<f32> =
                    values((1, 1, 3, head_dim)).iter().map(|x| x.clamp(-2.0, 2.0) * 0.1).collect();
                for (m, s) in [(true, false), (false, true), (true, true)] {
                    let (mean, scales) = (m.then_some(&mean[..]), s.then_some(&scales[..]));
                    let plain = SideScheme::plain(codec, None);
                    has_the_same_bits(&plain.calibrated(mean, scales), head_dim);
                }
            }
        }
    }

    /// A number that is not finite is noticed in each codec, before it is stored and, if it stays, after that.
    #[test]
    #[ignore = "needs a card, which KVGATE_DEVICE names; on the CPU it would compare the CPU with itself"]
    fn what_is_not_finite_breaks_a_flag_on_every_device() {
        assert!(!place().is_cpu(), "KVGATE_DEVICE names no card");
        let shape = (2, 300, 3, 64);
        for codec in codec::built_in() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = values(shape);
                x[64 * 3 * 450 + 7] = bad;
                let x = Tensor::from_slice(&x, shape, &place()).unwrap();
                let scheme = &SideScheme::plain(*codec, rotate::k_size(*codec, 64));
                let storing = &CountedStorage { scheme, clamped: &Counters::default() };
                let (before, after) = (&FiniteFlag::default(), &FiniteFlag::default());
                change(&RoundTrip { storing, before, after }, &x).unwrap();
                assert!(!before.is_finite().unwrap(), "{}: {bad}", codec.name());
            }
        }
    }

    /// A codec of another crate, which does what `q4_0` does and brings its kernel as a text.
    struct Foreign(&'static str);

    impl codec::Codec for Foreign {
        fn name(&self) -> &str {
            "foreign4"
        }

        fn version(&self) -> &str {
            "1"
        }

        fn accepted_by(&self) -> &str {
            ""
        }

        fn block(&self, head_dim: usize) -> usize {
            own("q4_0").block(head_dim)
        }

        fn block_bytes(&self, head_dim: usize) -> usize {
            own("q4_0").block_bytes(head_dim)
        }

        fn is_rotated(&self) -> bool {
            true
        }

        fn encode(&self, x: &[f32], bytes: &mut [u8]) {
            own("q4_0").encode(x, bytes);
        }

        fn decode(&self, bytes: &[u8], x: &mut [f32]) {
            own("q4_0").decode(bytes, x);
        }

        fn kernel(&self) -> Option<&'static str> {
            Some(self.0)
        }
    }

    fn own(name: &str) -> &'static dyn codec::Codec {
        codec::find(name).unwrap()
    }

    /// The text of another codec is noticed when it runs for the first time.
    #[test]
    #[ignore = "needs a card, which KVGATE_DEVICE names; on the CPU no kernel is compiled"]
    fn a_text_that_is_not_the_codecs_is_an_error() {
        assert!(!place().is_cpu(), "KVGATE_DEVICE names no card");
        let wrong = SideScheme::plain(&Foreign(include_str!("codec/q5_0.cu")), Some(64));
        let x = Tensor::from_slice(&values((1, 40, 2, 64)), (1, 40, 2, 64), &place()).unwrap();
        let error = wrong.round(&x).unwrap_err().to_string();
        assert!(error.contains("the kernel of the codec `foreign4` gives"), "{error}");
    }

    #[test]
    #[ignore = "needs a card, which KVGATE_DEVICE names; on the CPU no kernel is compiled"]
    fn the_kernel_of_a_codec_from_outside_is_compiled_when_it_runs() {
        assert!(!place().is_cpu(), "KVGATE_DEVICE names no card");
        for head_dim in [64, 256] {
            gives_the_same_bits(&Foreign(include_str!("codec/q4_0.cu")), Some(64), head_dim);
        }
    }
}
