//! The engine on tiny random models: identity, repeatability, independence of lanes, and what is said
//! of numbers that are not finite.

use crate::support;
use crate::support::forward::effective;
use crate::support::tiny::{Damage, Repository};
use candle_core::{Device, Tensor};
use kvgate::internals::kv::cache::KvCache;
use kvgate::internals::kv::calibration::{Calibration, Ranges};
use kvgate::internals::kv::effective::Effective;
use kvgate::internals::kv::layout::LayerKv;
use kvgate::internals::kv::measuring::MeasuringCache;
use kvgate::internals::kv::Scheme;
use kvgate::internals::measure::corpus::{self, scored, Chunk};
use kvgate::internals::measure::engine::{self, Lane, LaneResult};
use kvgate::internals::measure::{measure, Measured, Request};
use kvgate::internals::model::decoder::{Decoder, Residency, Rows};
use kvgate::internals::model::Checkpoint;
use kvgate::internals::results::statistics::Position;
use kvgate::internals::results::{Outcome, SchemeResult};
use kvgate::internals::source::Source;
use std::sync::Arc;

fn source(repository: &Repository) -> Source {
    let path = repository.path("tiny.gguf");
    Source::at(path)
}

/// A model, ready to run, and chunks of text.
struct Bench {
    decoder: Decoder,
    chunks: Vec<Chunk>,
}

impl Bench {
    fn new(damage: &[Damage], context: usize, chunks: usize) -> Self {
        let repository = Repository::new();
        repository.write_model(damage);
        repository.put("corpus.txt", &support::tiny::corpus(3, 2 * context * chunks));
        let checkpoint = Checkpoint::open(&source(&repository)).unwrap();
        let text = corpus::read(&repository.path("corpus.txt")).unwrap();
        let chunks = corpus::chunks(&[text], &checkpoint.tokenizer, context, chunks).unwrap();
        Bench { decoder: checkpoint.load(Residency::Resident).unwrap(), chunks }
    }

    fn run(&self, baseline: &str, schemes: &[&str]) -> Vec<LaneResult> {
        let lanes: Vec<Lane> = schemes
            .iter()
            .map(|s| Lane { scheme: effective(&self.decoder.spec, s), chunks: self.chunks.len() })
            .collect();
        let baseline = effective(&self.decoder.spec, baseline);
        engine::run(&self.decoder, &self.chunks, &baseline, &lanes, None, &|_, _| {})
    }

    /// Lanes that all have numbers.
    fn positions(&self, baseline: &str, schemes: &[&str]) -> Vec<Vec<Position>> {
        self.run(baseline, schemes).into_iter().map(Result::unwrap).collect()
    }
}

/// Every bit of positions, for people to read when they differ.
fn bits(positions: &[Position]) -> Vec<String> {
    let number = |x: f32| format!("{x}={:08x}", x.to_bits());
    let numbers = |p: &Position| [p.kld, p.logp_base, p.logp, p.margin].map(number).join(" ");
    let ids = |p: &Position| format!("{} {} {}", p.target, p.top_base, p.top);
    positions.iter().map(|p| format!("{} {}", ids(p), numbers(p))).collect()
}

fn mean_kld(positions: &[Position]) -> f64 {
    positions.iter().map(|p| f64::from(p.kld)).sum::<f64>() / positions.len() as f64
}

/// Exactly 0, nowhere nearly.
#[track_caller]
fn is_identity(positions: &[Position], scored: usize) {
    assert_eq!(positions.len(), scored);
    for (i, p) in positions.iter().enumerate() {
        assert_eq!((p.kld.to_bits(), p.top), (0, p.top_base), "position {i}: {p:?}");
        assert_eq!(p.logp.to_bits(), p.logp_base.to_bits(), "position {i}: {p:?}");
    }
}

#[test]
fn the_baseline_against_itself_is_exactly_zero_alone_and_in_company() {
    let bench = Bench::new(&[], 64, 3);
    for scheme in ["f16", "f32", "q8_0"] {
        is_identity(&bench.positions(scheme, &[scheme])[0], 3 * 31);
        let lanes = bench.positions(scheme, &["q4_0", scheme, "q4_1", "q5_0"]);
        is_identity(&lanes[1], 3 * 31);
        assert!(mean_kld(&lanes[0]) > 1e-3 && mean_kld(&lanes[2]) > 1e-3, "the others are lossy");
    }
}

#[test]
fn fewer_bits_do_more_harm() {
    let lanes = Bench::new(&[], 64, 4).positions("f32", &["f16", "q8_0", "q5_0", "q4_0"]);
    let means: Vec<f64> = lanes.iter().map(|lane| mean_kld(lane)).collect();
    assert!(means[0] > 0.0, "f16 is not f32: {means:?}");
    assert!(means.windows(2).all(|pair| 3.0 * pair[0] < pair[1]), "{means:?}");
}

#[test]
fn a_repeated_run_is_equal_to_the_last_bit() {
    let bench = Bench::new(&[], 65, 5);
    let schemes = ["f16", "q8_0", "q4_0", "q8_0/q4_0", "q4_0:norot", "iq4_nl"];
    let first = bench.positions("f16", &schemes);
    for _ in 0..3 {
        for (again, first) in bench.positions("f16", &schemes).iter().zip(&first) {
            assert_eq!(bits(again), bits(first));
        }
    }
}

#[test]
fn a_lane_does_not_depend_on_its_company() {
    let bench = Bench::new(&[], 64, 3);
    let orders: [&[&str]; 5] = [
        &["q4_0"],
        &["q4_0", "q8_0"],
        &["q8_0", "q4_0"],
        &["q8_0", "f16", "q5_1", "q4_0", "bf16"],
        &["bf16", "q4_0", "q5_1", "f16", "q8_0"],
    ];
    let runs = orders.map(|schemes| {
        let own = schemes.iter().position(|scheme| *scheme == "q4_0").unwrap();
        bits(&bench.positions("f16", schemes)[own])
    });
    for (schemes, run) in orders.iter().zip(&runs) {
        assert_eq!(run, &runs[0], "{schemes:?}");
    }
}

#[test]
fn schemes_that_differ_give_numbers_that_differ() {
    let schemes = ["q4_0", "q4_0:norot", "f16/q4_0", "q4_0/f16", "q4_1", "iq4_nl", "q5_0", "q5_1"];
    let lanes = Bench::new(&[], 64, 1).positions("f16", &schemes);
    for (i, lane) in lanes.iter().enumerate() {
        for (j, other) in lanes[..i].iter().enumerate() {
            assert_ne!(bits(lane), bits(other), "{} and {}", schemes[i], schemes[j]);
        }
    }
}

/// A chunk longer than a tile is a tile of its own. A model is causal: what a position reads does not
/// depend on how long its chunk is.
#[test]
fn a_context_longer_than_a_tile_reads_what_a_shorter_one_reads() {
    let long = Bench::new(&[], 1100, 2);
    let tokens = long.chunks[0].tokens[..700].to_vec();
    let scored = scored(tokens.len());
    let chunks = vec![Chunk { tokens, scored, ..long.chunks[0].clone() }];
    let short = Bench { decoder: Bench::new(&[], 64, 1).decoder, chunks };
    let lanes = long.positions("f16", &["f16", "q4_0"]);
    is_identity(&lanes[0], 2 * 549);
    let short = short.positions("f16", &["q4_0"]);
    // both score the positions 550 to 698
    let pairs: Vec<_> = short[0][200..].iter().zip(&lanes[1]).collect();
    assert_eq!(pairs.len(), 149);
    for (short, long) in &pairs {
        assert_eq!(short.target, long.target);
        assert!((short.logp_base - long.logp_base).abs() < 2e-4, "{short:?}, {long:?}");
    }
    let mean = |of: &dyn Fn(&(&Position, &Position)) -> f32| {
        pairs.iter().map(|pair| f64::from(of(pair))).sum::<f64>() / pairs.len() as f64
    };
    let (short, long) = (mean(&|pair| pair.0.kld), mean(&|pair| pair.1.kld));
    assert!((short / long - 1.0).abs() < 0.1, "mean KLD {short} and {long}");
}

#[test]
fn chunks_that_share_a_tile_do_not_read_each_other() {
    let together = Bench::new(&[], 64, 6);
    let lanes = together.positions("f16", &["q4_0"]);
    let alone =
        Bench { decoder: Bench::new(&[], 64, 1).decoder, chunks: vec![together.chunks[4].clone()] };
    let alone = alone.positions("f16", &["q4_0"]);
    for (alone, together) in alone[0].iter().zip(&lanes[0][4 * 31..]) {
        assert_eq!(alone.target, together.target);
        assert!((alone.logp_base - together.logp_base).abs() < 2e-4, "{alone:?}, {together:?}");
    }
}

/// Rows beyond 1,024 go through the products in blocks.
#[test]
fn rows_of_a_second_block_are_their_own() {
    let Bench { decoder, chunks } = Bench::new(&[], 64, 17);
    let hidden = |chunks: &[Chunk]| -> Vec<Vec<f32>> {
        let ids: Vec<u32> = chunks.iter().flat_map(|chunk| chunk.tokens.clone()).collect();
        let mut x = decoder.embed(&ids).unwrap().x;
        let ropes = decoder.ropes(64).unwrap();
        let at = Rows::of_lane(64);
        for index in 0..decoder.spec.layers.len() {
            let mut cache = MeasuringCache::new(effective(&decoder.spec, "f32"));
            x = decoder.ready(index, &ropes).unwrap().run(&x, None, at, &mut cache).unwrap();
        }
        x.to_vec2().unwrap()
    };
    let together = hidden(&chunks);
    let alone = hidden(&chunks[16..]);
    for (together, alone) in together[16 * 64..].iter().flatten().zip(alone.iter().flatten()) {
        assert!((together - alone).abs() < 1e-4, "{together} and {alone}");
    }
    assert_eq!(alone.len(), 64);
}

/// What overflows the halves of f16, and neither bf16 nor f32.
const LARGE_K: Damage = Damage::Scaled("blk.1.attn_k.weight", 1e5);

#[test]
fn a_lane_that_overflows_leaves_the_others_their_numbers() {
    let bench = Bench::new(&[LARGE_K], 64, 3);
    let lanes = bench.run("f32", &["bf16", "f16", "f32/f16"]);
    let error = lanes[1].as_ref().unwrap_err().to_string();
    assert_eq!(error, "layer 1: K is not finite once it is stored: the codec's range is exceeded");
    let without = bench.positions("f32", &["bf16", "f32/f16"]);
    assert_eq!(bits(lanes[0].as_ref().unwrap()), bits(&without[0]));
    assert_eq!(bits(lanes[2].as_ref().unwrap()), bits(&without[1]));
}

fn measured(damage: &[Damage], baseline: &str, schemes: &[&str]) -> Result<Measured, String> {
    measured_with(None, damage, baseline, schemes)
}

fn measured_with(
    residency: Option<Residency>,
    damage: &[Damage],
    baseline: &str,
    schemes: &[&str],
) -> Result<Measured, String> {
    let repository = Repository::new();
    repository.write_model(damage);
    let source = Source { untrained: true, ..source(&repository) };
    let corpus = [repository.path("corpus.txt")];
    let request = Request {
        model: "tiny",
        baseline: baseline.parse().unwrap(),
        residency,
        is_gated: false,
        ..support::request(&source, &corpus, schemes)
    };
    measure(&request, &|_, _, _| {}).map_err(|error| error.to_string())
}

#[test]
fn streamed_weights_give_the_same_numbers() {
    let run = |residency| measured_with(Some(residency), &[], "f16", &["q8_0", "q4_0"]).unwrap();
    let (resident, streamed) = (run(Residency::Resident), run(Residency::Streamed));
    for ((label, resident), (_, streamed)) in resident.positions.iter().zip(&streamed.positions) {
        assert_eq!(bits(resident), bits(streamed), "{label}");
    }
    assert_eq!(resident.positions.len(), 2);
}

/// What is read late is checked late, and still named.
#[test]
fn a_streamed_weight_that_is_not_finite_names_its_tensor() {
    let damage = [Damage::Nan("blk.1.ffn_up.weight")];
    let error = measured_with(Some(Residency::Streamed), &damage, "f16", &["q8_0"]).err().unwrap();
    assert!(error.contains("tensor `blk.1.ffn_up.weight` holds NaN at element 7"), "{error}");
}

#[test]
fn a_scheme_that_fails_is_named_with_its_layer() {
    let measured = measured(&[LARGE_K], "f32", &["f16", "bf16"]).unwrap();
    let outcome = |scheme: &SchemeResult| match &scheme.outcome {
        Outcome::Measured { statistics, .. } => Ok(statistics.tokens_scored),
        Outcome::Failed { error } => Err(error.clone()),
    };
    let outcomes: Vec<_> = measured.measurement.schemes.iter().map(outcome).collect();
    let error = outcomes[0].as_ref().unwrap_err();
    assert!(error.starts_with("f16: layer 1: K is not finite once it is stored"), "{error}");
    assert_eq!(outcomes[1], Ok(62));
}

#[test]
fn a_baseline_without_numbers_fails_the_model() {
    for (damage, words) in [
        (LARGE_K, "layer 1: K is not finite once it is stored"),
        (Damage::Scaled("blk.0.attn_v.weight", 1e38), "layer 0: V is not finite"),
        (Damage::Scaled("blk.0.ffn_down.weight", 3e38), "layer 0: the hidden state is not finite"),
        (Damage::Scaled("output.weight", 1e38), "chunk 0, head: the logits of the baseline"),
    ] {
        let error = measured(&[damage], "f16", &["q8_0", "bf16"]).err().unwrap();
        assert!(error.starts_with("tiny: the baseline f16/f16 cannot be measured: "), "{error}");
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_weight_that_is_not_finite_names_its_tensor() {
    for tensor in
        ["token_embd.weight", "blk.1.attn_norm.weight", "blk.0.ffn_up.weight", "output.weight"]
    {
        let error = measured(&[Damage::Nan(tensor)], "f16", &["q8_0"]).err().unwrap();
        assert!(error.contains(&format!("tensor `{tensor}` holds NaN at element 7")), "{error}");
    }
}

#[test]
fn heads_that_blocks_do_not_divide_are_refused_by_scheme() {
    let kv = LayerKv { heads: 2, head_dim: 80, ..LayerKv::default() };
    let of =
        |scheme: &str| Effective::new(&scheme.parse::<Scheme>().unwrap(), &[None, Some(kv)], None);
    let error = of("q8_0").err().unwrap().to_string();
    assert!(error.contains("q8_0 stores blocks of 32 elements") && error.contains("80"), "{error}");
    assert_eq!(of("bf16").unwrap().to_string(), "bf16/bf16");
    assert_eq!(of("int8_pth").unwrap().to_string(), "int8_pth/int8_pth");
    assert_eq!(of("turbo3").unwrap().to_string(), "turbo3/turbo3");
    let error = of("int4_pth").err().unwrap().to_string();
    assert!(error.contains("stores blocks of 128 elements"), "{error}");
}

/// What no query reads encoded leaves no trace, whatever the codec; what some query does read does.
#[test]
fn a_scheme_that_is_exact_throughout_is_f16_to_the_last_bit() {
    let bench = Bench::new(&[], 64, 3);
    let schemes =
        ["q4_0:tail=64", "q4_0:sink=64", "kivi2", "kvarn2", "turbo2:tail=40:sink=24", "q4_0/kivi2"];
    let lanes = bench.positions("f16", &schemes);
    for (scheme, lane) in schemes[..5].iter().zip(&lanes) {
        let charged = effective(&bench.decoder.spec, scheme).charged_share(scored(64));
        assert_eq!(charged, [0.0, 0.0], "{scheme}");
        match *scheme {
            // values of the sink and of the tail are added up apart
            "turbo2:tail=40:sink=24" => assert!(mean_kld(lane) < 1e-9),
            _ => is_identity(lane, 3 * 31),
        }
    }
    assert!(mean_kld(&lanes[5]) > 1e-3, "K of q4_0 is read");
}

#[test]
fn a_longer_tail_does_less_harm() {
    let bench = Bench::new(&[], 64, 4);
    let lanes = bench.positions("f16", &["q4_0", "q4_0:tail=8", "q4_0:tail=32", "f16"]);
    let means: Vec<f64> = lanes.iter().map(|lane| mean_kld(lane)).collect();
    assert!(means.windows(2).all(|pair| 0.9 * pair[0] > pair[1]), "{means:?}");
}

#[test]
fn a_scheme_may_treat_layers_differently() {
    let bench = Bench::new(&[], 64, 3);
    let spec = &bench.decoder.spec;
    let schemes = ["f16", "q4_0@1=f16", "f16@first1=q4_0", "q4_0@0=f16", "q4_0"];
    let lanes = bench.positions("f16", &schemes);
    is_identity(&lanes[0], 3 * 31);
    assert_eq!(bits(&lanes[1]), bits(&lanes[2]), "one scheme in two spellings");
    for other in [&lanes[3], &lanes[4]] {
        assert_ne!(bits(&lanes[1]), bits(other));
    }
    let shown = |scheme| effective(spec, scheme).to_string();
    let first = "q4_0·H64/q4_0·H64 in 0 + f16/f16 in 1";
    assert_eq!([shown("q4_0@1=f16"), shown("f16@first1=q4_0")], [first, first]);
    assert_eq!(shown("q4_0@0=f16/q8_0"), "f16/q8_0·H64 in 0 + q4_0·H64/q4_0·H64 in 1");
    let layout = spec.kv_layout();
    for layers in ["2", "2-9", "sliding", "first0"] {
        let scheme: Scheme = format!("q4_0@{layers}=q8_0").parse().unwrap();
        let error = Effective::new(&scheme, &layout, None).err().unwrap().to_string();
        assert!(error.starts_with(&format!("`@{layers}` names no layer of the model")), "{error}");
        assert!(error.ends_with("those are 0-1"), "{error}");
    }
}

/// What a scheme makes of K and V of one layer, (1, T, 2, 64) both, beside a calibration.
struct Stored {
    k: Vec<f32>,
    v: Vec<f32>,
    /// Of K, where the scheme keeps some tokens exact.
    exact: Option<Vec<f32>>,
}

const TOKENS: usize = 16;

fn stored(scheme: &str, layer: usize, x: &[f32], calibration: Option<&Calibration>) -> Stored {
    let kv = LayerKv { heads: 2, head_dim: 64, ..LayerKv::default() };
    let scheme = Effective::new(&scheme.parse().unwrap(), &[Some(kv); 2], calibration).unwrap();
    let x = || Tensor::from_vec(x.to_vec(), (1, TOKENS, 2, 64), &Device::Cpu).unwrap();
    let view = MeasuringCache::new(scheme).append(layer, x(), x()).unwrap();
    let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1().unwrap();
    let exact = view.k.exact.map(|(exact, _)| flat(&exact));
    Stored { k: flat(&view.k.stored), v: flat(&view.v.stored), exact }
}

/// Numbers by token, head and element.
fn numbers(mut of: impl FnMut(usize, f32) -> f32) -> Vec<f32> {
    let mut random = support::tiny::Random(7);
    (0..TOKENS * 128).map(|i| of(i % 128, random.normal())).collect()
}

#[test]
fn a_layer_of_a_mixed_scheme_reads_what_its_own_scheme_gives() {
    let x = numbers(|_, x| x);
    let read = |scheme: &str, layer| {
        let Stored { k, v, .. } = stored(scheme, layer, &x, None);
        (k, v)
    };
    for (layer, own) in [(0, "q8_0/f16"), (1, "q4_0")] {
        assert!(read("q4_0@first1=q8_0/f16", layer) == read(own, layer), "layer {layer}");
    }
    assert!(read("q4_0@first1=q8_0/f16", 0) != read("q4_0", 0));
}

/// A calibration on these very numbers.
fn calibration(x: &[f32]) -> Calibration {
    let over = |of: &dyn Fn(&mut dyn Iterator<Item = f32>) -> f32| -> Arc<[f32]> {
        (0..128).map(|i| of(&mut x.iter().skip(i).step_by(128).copied())).collect()
    };
    let ranges = Ranges {
        mean: over(&|x| x.sum::<f32>() / TOKENS as f32),
        min: over(&|x| x.fold(f32::INFINITY, f32::min)),
        max: over(&|x| x.fold(f32::NEG_INFINITY, f32::max)),
    };
    Calibration {
        weights_sha256: String::new(),
        corpus: Vec::new(),
        tokens: TOKENS,
        layers: [0, 1].map(|layer| (layer, [ranges.clone(), ranges.clone()])).into(),
    }
}

/// Error over size of one of the two heads.
fn error(x: &[f32], read: &[f32], head: usize) -> f64 {
    let own = |i: &usize| i % 128 / 64 == head;
    let square = |x: f32| f64::from(x) * f64::from(x);
    let errors: f64 = (0..x.len()).filter(own).map(|i| square(x[i] - read[i])).sum();
    let size: f64 = (0..x.len()).filter(own).map(|i| square(x[i])).sum();
    (errors / size).sqrt()
}

#[test]
fn a_mean_that_is_taken_out_of_k_is_not_quantized() {
    // channels far from zero, that vary little
    let x = numbers(|i, x| 10.0 * ((i * 37 % 64) as f32 / 32.0 - 1.0) + 0.1 * x);
    let calibration = calibration(&x);
    let read = |scheme| stored(scheme, 1, &x, Some(&calibration));
    for (plain, centered) in [("q4_0", "q4_0:center"), ("turbo3", "turbo3:center")] {
        let (plain, centered) = (read(plain), read(centered));
        for head in 0..2 {
            let [plain, centered] = [&plain.k, &centered.k].map(|k| error(&x, k, head));
            assert!(20.0 * centered < plain, "head {head}: {plain} and {centered}");
        }
        assert_eq!(plain.v, centered.v, "V's mean does not fall out of anything");
    }
    let exact = read("q4_0:center:tail=4").exact.unwrap();
    let halves: Vec<f32> = x.iter().map(|&x| half::f16::from_f32(x).to_f32()).collect();
    assert_eq!(exact, halves, "exact tokens are beside the others, means and all");
}

#[test]
fn a_calibrated_scale_fits_what_shares_it() {
    // one head beyond what e4m3 can hold, one that a scale for both leaves nothing of
    let x = numbers(|i, x| if i < 64 { 1000.0 * x } else { 1e-4 * x });
    let calibration = calibration(&x);
    let errors = |scheme| {
        let read = stored(scheme, 0, &x, Some(&calibration));
        assert_eq!(read.k, read.v);
        [0, 1].map(|head| error(&x, &read.k, head))
    };
    let rounding = 0.04;
    let [large, small] = errors("fp8_e4m3");
    assert!(large > 0.3 && small > 0.3, "{large} and {small}");
    let [large, small] = errors("fp8_e4m3:tensor");
    assert!(large < rounding && small > 0.3, "{large} and {small}");
    let [large, small] = errors("fp8_e4m3:head");
    assert!(large < rounding && small < rounding, "{large} and {small}");
}

/// Bits are those of all elements of a token, so a wide layer counts for more.
#[test]
fn bits_of_a_mixed_scheme_are_the_mean_over_elements() {
    let kv =
        |heads, head_dim, window| Some(LayerKv { heads, head_dim, window, ..LayerKv::default() });
    // 512, 128 and 64 elements
    let layout = [kv(4, 128, Some(9)), None, kv(2, 64, None), kv(1, 64, None)];
    let of = |scheme: &str| Effective::new(&scheme.parse().unwrap(), &layout, None).unwrap();
    let mixed = of("q4_0@global=q8_0/f16@3=q5_0");
    assert_eq!(
        mixed.to_string(),
        "q4_0·H128/q4_0·H64 in 0 + q8_0·H64/f16 in 2 + q5_0·H64/q5_0·H64 in 3"
    );
    let mean = |bits: [f64; 3]| (512.0 * bits[0] + 128.0 * bits[1] + 64.0 * bits[2]) / 704.0;
    let [k, v] = mixed.bits_per_element();
    assert!((k - mean([4.5, 8.5, 5.5])).abs() < 1e-12, "{k}");
    assert!((v - mean([4.5, 16.0, 5.5])).abs() < 1e-12, "{v}");
    // 512 and 128 and 64 elements of K, and of V
    assert_eq!(mixed.bytes_per_token(), (288 + 136 + 44 + 288 + 256 + 44) as f64);
    // a window of 9 keeps 8 of 100 tokens
    let elements = [8.0 * 512.0, 100.0 * 128.0, 100.0 * 64.0];
    let bytes: f64 = elements.iter().zip([9.0, 24.5, 11.0]).map(|(n, bits)| n * bits / 8.0).sum();
    assert_eq!(mixed.bytes_at(100) as f64, bytes);
}

/// Thirty equal shares of halves add up to 15.999999999999998 bits; what is counted in integers does not.
#[test]
fn bits_are_counted_in_integers() {
    for layers in [1, 3, 7, 18, 24, 28, 30, 33, 61, 80] {
        for (heads, head_dim) in [(1, 256), (3, 64), (5, 96), (8, 80), (7, 576)] {
            let kv = LayerKv { heads, head_dim, ..LayerKv::default() };
            let layout = vec![Some(kv); layers];
            let of = |scheme: &str| Effective::new(&scheme.parse().unwrap(), &layout, None);
            for (scheme, bits) in [("f16", 16.0), ("f32", 32.0), ("bf16", 16.0), ("q8_0", 8.5)] {
                let Ok(effective) = of(scheme) else { continue };
                assert_eq!(effective.bits_per_element(), [bits; 2], "{scheme} {layers} {heads}");
                assert_eq!(effective.bits_at(513), [bits; 2], "{scheme} {layers} {heads}");
                let bytes = 2 * layers * heads * head_dim * (bits * 2.0) as usize / 16;
                assert_eq!(effective.bytes_per_token(), bytes as f64, "{scheme} {layers}");
            }
            // groups of 32 tokens of K, single tokens of V: 5 bits each
            if let Ok(kivi) = of("kivi4") {
                assert_eq!(kivi.bits_per_element(), [5.0; 2], "{layers} {heads} {head_dim}");
            }
        }
    }
}

/// Under every name some layer does what each of its parts says.
#[test]
fn a_part_of_a_scheme_that_no_layer_carries_out_is_refused() {
    let kv = |window| Some(LayerKv { heads: 1, head_dim: 64, window, ..LayerKv::default() });
    let layout = [kv(Some(9)), kv(None), None, kv(Some(9)), kv(None)];
    let of = |scheme: &str| Effective::new(&scheme.parse().unwrap(), &layout, None);
    let error = |scheme: &str| of(scheme).err().unwrap().to_string();
    for (scheme, why, mend) in [
        ("q4_0@first99=f32", "no layer of the model is left to `q4_0`", "`f32`"),
        ("q4_0@0-99=q8_0", "no layer of the model is left to `q4_0`", "`q8_0`"),
        ("q4_0@global=q8_0@sliding=q5_1", "is left to `q4_0`", "`q5_1@global=q8_0`"),
        ("q4_0@first1=q8_0@0-1=f16", "`@first1=q8_0` changes nothing", "`q4_0@0-1=f16`"),
        (
            "f16@0-1=q4_0@first1=q8_0@1=q5_1",
            "`@0-1=q4_0` changes nothing",
            "`f16@first1=q8_0@1=q5_1`",
        ),
    ] {
        let error = error(scheme);
        assert!(error.contains(why) && error.contains(mend), "{scheme}: {error}");
    }
    for sound in ["q4_0@0-1=q8_0@1=f16", "q4_0@first3=q8_0", "q4_0@global=q8_0", "q4_0@3-99=f16"] {
        assert!(of(sound).is_ok(), "{sound}");
    }
}
