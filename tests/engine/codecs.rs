//! Codecs against independent implementations, bit for bit (fixture: `scripts/oracle/codecs.py`), what they
//! make of degenerate blocks, and what they lose on Gaussian data.

use crate::support;
use kvgate::internals::kv::codec::{self, Codec};
use kvgate::internals::kv::exact::{Exact, Tail};
use kvgate::internals::kv::scheme::Scheme;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::HashSet;

/// Formats of K and V: the catalogue's, and those of V where they differ.
fn formats() -> impl Iterator<Item = &'static dyn Codec> {
    codec::built_in().iter().flat_map(|k| std::iter::once(*k).chain(k.for_values()))
}

/// The format of a fixture's case, whose `side` is `v` where it is V's own.
fn format(case: &Value) -> &'static dyn Codec {
    let codec = codec::find(case["codec"].as_str().unwrap()).unwrap();
    match case["side"].as_str() {
        Some("v") => codec.for_values().unwrap(),
        _ => codec,
    }
}

/// Name and side of a format, for messages.
fn label(codec: &dyn Codec) -> String {
    match codec.for_values() {
        Some(_) => format!("{} of K", codec.name()),
        None => codec.name().to_string(),
    }
}

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap();
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn floats(hex: &Value) -> Vec<f32> {
    let bytes = bytes(hex);
    bytes.chunks_exact(4).map(|b| f32::from_be_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn encode(codec: &dyn Codec, x: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; codec.encoded_bytes(x.len() / codec.group())];
    codec.encode(x, &mut bytes);
    bytes
}

fn decode(codec: &dyn Codec, bytes: &[u8], elements: usize) -> Vec<f32> {
    let mut x = vec![0.0; elements];
    codec.decode(bytes, &mut x);
    x
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// A kernel has its file's name, or those that stand in the first lines of the file.
#[test]
fn every_format_has_a_kernel_of_its_own() {
    let folder = std::fs::read_dir(support::root().join("src/kv/codec")).unwrap();
    let files = folder.map(|file| file.unwrap().path());
    let mut known = HashSet::new();
    for file in files.filter(|file| file.extension().is_some_and(|extension| extension == "cu")) {
        let text = std::fs::read_to_string(&file).unwrap();
        let lines =
            text.lines().filter_map(|line| line.strip_prefix("// codec ")?.split_once(": "));
        let names: Vec<_> = lines.map(|(name, _)| name.to_owned()).collect();
        match names.is_empty() {
            true => known.extend([file.file_stem().unwrap().to_str().unwrap().to_owned()]),
            false => known.extend(names),
        }
    }
    let mut names = HashSet::new();
    for codec in formats() {
        assert!(known.contains(codec.kernel_name()), "{}: {}", label(codec), codec.kernel_name());
        let own = (codec.kernel_name(), codec.kernel_variant());
        assert!(names.insert(own), "{}: {own:?}", label(codec));
    }
}

#[test]
fn the_kernel_of_kvarn_takes_heads_that_fit_into_shared_memory() {
    let kvarn = formats().filter(|codec| codec.name().starts_with("kvarn"));
    for codec in kvarn {
        let taken = [64, 128, 256, 512].map(|head_dim| codec.kernel_takes(head_dim));
        assert_eq!(taken, [true, true, true, false], "{}", label(codec));
    }
}

#[test]
fn bytes_and_values_are_the_oracles() {
    let oracle = support::fixture("codecs.json");
    let mut covered = HashSet::new();
    for case in oracle["cases"].as_array().unwrap() {
        let codec = format(case);
        let what = format!("{} of {}", label(codec), case["input"]);
        let stored = bytes(&case["encoded"]);
        if let Some(input) = case["input"].as_str().and_then(|i| oracle["inputs"].get(i)) {
            assert_eq!(encode(codec, &floats(input)), stored, "{what}");
            covered.insert((label(codec), "encode"));
        }
        if let Some(decoded) = case.get("decoded").filter(|d| d.is_string()) {
            let want = floats(decoded);
            assert_eq!(bits(&decode(codec, &stored, want.len())), bits(&want), "{what}");
            covered.insert((label(codec), "decode"));
        }
    }
    for case in oracle["groups"].as_array().unwrap() {
        let codec = format(case);
        check_group(codec, case);
        covered.extend(["encode", "decode"].map(|direction| (label(codec), direction)));
    }
    for codec in formats().filter(|c| c.name() != "f32") {
        for direction in ["encode", "decode"] {
            let key = (label(codec), direction);
            assert!(covered.contains(&key), "no fixture for {key:?}");
        }
    }
}

/// Options are joined in the order in which the catalogue writes them.
#[test]
fn every_name_is_a_scheme() {
    for codec in codec::built_in() {
        let scheme: Scheme = codec.name().parse().unwrap();
        assert_eq!(scheme.to_string(), codec.name());
        assert!(codec.for_values().is_none_or(|v| v.name() == codec.name()));
    }
}

/// Compares the digests of a group's bytes and values.
fn check_group(codec: &dyn Codec, case: &Value) {
    let sha256 = |bytes: &[u8]| -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let head_dim = case["head_dim"].as_u64().unwrap() as usize;
    let x = published_group(head_dim).map(|v| v / case["divisor"].as_f64().unwrap() as f32);
    let stored = encode(codec, &x.collect::<Vec<_>>());
    let read = decode(codec, &stored, codec.group() * head_dim);
    let what = format!("{}, {case}", label(codec));
    assert_eq!(sha256(&stored), case["encoded"], "{what}");
    assert_eq!(bits(&read[..4]), bits(&floats(&case["start"])), "{what}");
    let read: Vec<u8> = read.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(sha256(&read), case["decoded"], "{what}");
}

/// 128 tokens of a head, the vector of KVarN's description: all numbers are exact, tokens and channels
/// differ in scale.
fn published_group(head_dim: usize) -> impl Iterator<Item = f32> {
    let x = move |t: usize, d: usize| {
        let residue = (7 * t * t + 13 * d * d + 5 * t * d + 3 * t + 11 * d) % 101;
        let (token, channel) = (1.0 + (t % 5) as f32 / 4.0, 1.0 + (d % 7) as f32 / 2.0);
        (residue as f32 - 50.0) / 16.0 * token * channel
    };
    (0..128).flat_map(move |t| (0..head_dim).map(move |d| x(t, d)))
}

#[test]
fn round_trip_is_decode_of_encode() {
    for head_dim in [64, 80, 96, 128, 192, 256, 512] {
        for codec in formats().filter(|c| head_dim % c.block(head_dim) == 0) {
            let elements = codec.group() * head_dim;
            let x: Vec<f32> =
                (0..elements).map(|i| ((i * 7919 % 1009) as f32 - 500.0) * 0.013).collect();
            let mut got = x.clone();
            codec.round_trip(&mut got);
            let stored = encode(codec, &x);
            let what = format!("{}, {head_dim}", label(codec));
            assert_eq!(bits(&got), bits(&decode(codec, &stored, elements)), "{what}");
            let cost = codec.bits_per_element(head_dim);
            assert_eq!(stored.len() as f64 * 8.0 / elements as f64, cost, "{what}");
        }
    }
}

/// Formats whose rule is to store what is too large as their largest number.
const SATURATING: [&str; 3] = ["fp8_e4m3", "fp8_e5m2", "nvfp4"];

/// Formats whose scale reaches as far as f32 does.
const FAR: [&str; 5] = ["f32", "bf16", "mxfp4", "int8_pth", "fp8_pth"];

/// A block that holds an infinity does not come back finite: the engine sees it before it is stored, and
/// a codec that does not saturate hides neither an infinity nor an overflow of its scale.
#[test]
fn infinities_and_overflows_do_not_come_back_finite() {
    for codec in formats() {
        for bad in [f32::INFINITY, f32::NEG_INFINITY, 1e38] {
            let mut x = vec![0.25f32; 128 * codec.group()];
            x[5] = bad;
            codec.round_trip(&mut x);
            let name = codec.name();
            let finite = SATURATING.contains(&name) || bad == 1e38 && FAR.contains(&name);
            assert_eq!(x.iter().all(|v| v.is_finite()), finite, "{} of {bad}", label(codec));
        }
    }
}

/// Formats that keep the size of tiny numbers.
const FLOATING_SCALE: [&str; 3] = ["f32", "bf16", "mxfp4"];

#[test]
fn zero_blocks_stay_zero_and_tiny_ones_vanish() {
    for codec in formats() {
        let elements = 128 * codec.group();
        let mut x = vec![0.0f32; elements];
        codec.round_trip(&mut x);
        assert!(x.iter().all(|v| *v == 0.0), "{}", label(codec));
        if !FLOATING_SCALE.contains(&codec.name()) {
            // the half scale underflows to zero: the block reads back as zeros, as in ggml
            let mut x: Vec<f32> =
                (0..elements).map(|i| ((i % 128) as f32 - 64.0) * 1e-11).collect();
            codec.round_trip(&mut x);
            assert!(x.iter().all(|v| *v == 0.0), "{}", label(codec));
        }
    }
}

/// Groups of 128 numbers of N(0, 1), from a fixed sequence.
fn normal_groups() -> Vec<[f32; 128]> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let mut normal = || {
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
        (radius * angle.cos()) as f32
    };
    (0..2000).map(|_| std::array::from_fn(|_| normal())).collect()
}

/// Error and gain ⟨read, x⟩/‖x‖² of the turbo family on Gaussian data, as published (160 vectors, ±2 %).
/// What is not published follows: the gain g of a read of equal length is 1 - error/2, and the error of the
/// unbiased one 1/g² - 1.
#[test]
fn turbo_loses_what_its_table_does() {
    const WITHIN: f64 = 0.03;
    let cases = [
        ("turbo4", 0.0091, 0.9955),
        ("turbo4:quantile", 0.0179, 0.991),
        ("turbo3", 0.0335, 0.983),
        ("turbo2", 0.1187, 0.941),
        ("turbo4:unbiased", 0.0091, 1.0),
        ("turbo3:unbiased", 0.0349, 1.0),
        ("turbo2:unbiased", 0.1293, 1.0),
    ];
    for (name, error, gain) in cases {
        let (got_error, got_gain) = loss(name, 128);
        assert!((got_error / error - 1.0).abs() < WITHIN, "{name}: error {got_error}, not {error}");
        assert!((got_gain - gain).abs() < 1e-3, "{name}: gain {got_gain}, not {gain}");
    }
}

/// Error ‖read - x‖²/‖x‖² and gain ⟨read, x⟩/‖x‖² over heads of Gaussian data.
fn loss(name: &str, head_dim: usize) -> (f64, f64) {
    let codec = codec::find(name).unwrap();
    let (mut errors, mut products, mut squares) = (0.0, 0.0, 0.0);
    for x in normal_groups().as_flattened().chunks_exact(head_dim) {
        let mut read = x.to_vec();
        codec.round_trip(&mut read);
        for (x, read) in x.iter().zip(read).map(|(x, r)| (f64::from(*x), f64::from(r))) {
            errors += (x - read).powi(2);
            products += x * read;
            squares += x * x;
        }
    }
    (errors / squares, products / squares)
}

#[test]
fn turbo_pads_heads_that_128_does_not_divide_with_zeros() {
    let family = codec::built_in().iter().filter(|c| c.name().starts_with("turbo"));
    for (codec, head_dim) in family.flat_map(|c| [32, 64, 80, 96, 192, 320].map(|d| (*c, d))) {
        let what = format!("{} at {head_dim}", codec.name());
        let head: Vec<f32> =
            normal_groups().as_flattened()[..head_dim].iter().map(|v| 3.0 * v).collect();
        let mut padded = head.clone();
        padded.resize(head_dim.next_multiple_of(128), 0.0);
        assert_eq!(head_dim % codec.block(head_dim), 0, "{what}");
        let stored = encode(codec, &head);
        assert_eq!(stored, encode(codec, &padded), "{what}");
        let read = decode(codec, &stored, padded.len());
        assert_eq!(bits(&decode(codec, &stored, head_dim)), bits(&read[..head_dim]), "{what}");
    }
    let cost = |d| codec::find("turbo4").unwrap().bits_per_element(d);
    assert_eq!([64, 128, 192].map(cost), [8.25, 4.125, 5.5]);
}

/// With zeros for its upper half, the upper 64 coordinates of a group are the lower ones with other signs: a
/// symmetric table makes the same errors twice, and the doubled cost of a head of 64 buys nothing.
#[test]
fn padding_a_head_of_64_gains_nothing() {
    let ((padded, padded_gain), (whole, gain)) = (loss("turbo3", 64), loss("turbo3", 128));
    assert!((padded / whole - 1.0).abs() < 0.05, "{padded}, {whole}");
    assert!((padded_gain - gain).abs() < 1e-3, "{padded_gain}, {gain}");
}

/// What is lost with the length kept, as `scripts/oracle/tcq_codebook.py` measures it. A table, one coordinate at
/// a time, loses 0.0335 and 0.1187; no code of b bits loses less than 4^-b, here of b + 6/128: 0.0146 and 0.0586.
#[test]
fn tcq_loses_what_its_codebook_does() {
    const WITHIN: f64 = 0.02;
    for (name, error) in [("turbo3_tcq", 0.01862), ("turbo2_tcq", 0.07309)] {
        let (got, gain) = loss(name, 128);
        assert!((got / error - 1.0).abs() < WITHIN, "{name}: error {got}, not {error}");
        assert!((gain - (1.0 - error / 2.0)).abs() < 1e-3, "{name}: gain {gain}");
        // unlike a table's, the errors on the halves of a padded head differ, and half of them is not read
        let (padded, _) = loss(name, 64);
        assert!((padded / error - 0.5).abs() < WITHIN, "{name}: {padded} in heads of 64");
    }
}

/// Errors on Gaussian data, as published to three digits.
#[test]
fn groups_lose_what_their_grid_does() {
    const WITHIN: f64 = 0.03;
    let cases = [
        ("kvarn8", 3.5e-5),
        ("kvarn6", 5.6e-4),
        ("kvarn5", 2.3e-3),
        ("kvarn4", 9.9e-3),
        ("kvarn3", 0.0454),
        ("kvarn2", 0.248),
        ("kivi4", 0.0061),
        ("kivi2", 0.154),
    ];
    let x = normal_groups().concat();
    for (name, error) in cases {
        let k = codec::find(name).unwrap();
        for codec in [k, k.for_values().unwrap()] {
            let (mut errors, mut squares) = (0.0, 0.0);
            for x in x.chunks_exact(128 * codec.group()) {
                let mut read = x.to_vec();
                codec.round_trip(&mut read);
                for (x, read) in x.iter().zip(read).map(|(x, r)| (f64::from(*x), f64::from(r))) {
                    errors += (x - read).powi(2);
                    squares += x * x;
                }
            }
            let got = errors / squares;
            assert!((got / error - 1.0).abs() < WITHIN, "{}: {got}, not {error}", label(codec));
        }
    }
}

/// What the description gives: b + 0.375 bits from heads of 128 on, more for those of 64; one tile saves
/// scales, of tokens in K's columns, of tokens in V's rows.
#[test]
fn kvarn_costs_what_is_published() {
    let cost = |name: &str, head_dim| {
        let k = codec::find(name).unwrap();
        [k, k.for_values().unwrap()].map(|codec| codec.bits_per_element(head_dim))
    };
    assert_eq!(cost("kvarn4", 64), [4.5, 4.625]);
    for head_dim in [128, 256, 512] {
        assert_eq!(cost("kvarn2", head_dim), [2.375, 2.375]);
    }
    assert_eq!(cost("kvarn4:whole", 256), [4.3125, 4.25]);
    assert_eq!(cost("kvarn4:it8:whole", 128), [4.375, 4.375]);
}

#[test]
fn kvarn_takes_the_heads_that_its_engines_do() {
    for codec in formats().filter(|codec| codec.name().starts_with("kvarn")) {
        let taken: Vec<_> = (1..2000).filter(|size| size % codec.block(*size) == 0).collect();
        assert_eq!(taken, [64, 128, 256, 512], "{}", label(codec));
    }
}

/// Scales cannot fall below 0.74: where numbers lie close together all stand there.
#[test]
fn kvarn_counts_scales_at_their_limit() {
    let clamped = |name: &str, factor: f32| {
        let x: Vec<f32> = published_group(128).map(|v| v * factor).collect();
        codec::find(name).unwrap().clamped(&x)
    };
    assert_eq!(clamped("kvarn4", 0.0), Some([256, 256]));
    assert_eq!(clamped("kvarn4", 0.01), Some([256, 256]));
    assert_eq!(clamped("kvarn4", 100.0), Some([0, 256]));
    assert_eq!(clamped("q4_0", 0.0), None);
}

#[test]
fn groups_leave_exact_what_their_engines_do() {
    let sides = |name, tail, sink| {
        let k = codec::find(name).unwrap();
        [k, k.for_values().unwrap()].map(|codec| codec.exact(tail, sink))
    };
    let newest = |tail, sink| Exact { sink, tail: Tail::Newest(tail) };
    assert_eq!(sides("kvarn4", None, None), [newest(128, 128); 2]);
    assert_eq!(sides("kvarn4", Some(256), Some(0)), [newest(256, 0); 2]);
    let residual = |size| [Exact { sink: 0, tail: Tail::Chunk(size) }, newest(size + 1, 0)];
    assert_eq!(sides("kivi2", None, None), residual(128));
    assert_eq!(sides("kivi2", Some(32), None), residual(32));
}
