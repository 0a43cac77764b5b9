use super::*;
use crate::compute::textbook::{flat, place};
use crate::hash;
use serde_json::Value;

/// The numbers of one digest of the fixture.
const CHUNK: usize = 256;

fn named(name: &str) -> &'static BlockType {
    TYPES.iter().find(|of| of.name == name).unwrap()
}

/// The types of the fixture with their blocks and the digests of their numbers.
fn fixture() -> Vec<(&'static BlockType, Vec<u8>, Vec<String>)> {
    // where the tests run, which may be another machine than that which has built them
    let path =
        format!("{}/tests/fixtures/blocks.json", std::env::var("CARGO_MANIFEST_DIR").unwrap());
    let fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let types = fixture["types"].as_object().unwrap().iter().map(|(name, one)| {
        let hex = one["blocks"].as_str().unwrap();
        let bytes = (0..hex.len()).step_by(2);
        let blocks = bytes.map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        let digests = one["digests"].as_array().unwrap().iter();
        (named(name), blocks, digests.map(|digest| digest.as_str().unwrap().into()).collect())
    });
    types.collect()
}

fn digests(numbers: &[f32]) -> Vec<String> {
    let chunks = numbers.chunks(CHUNK).map(|chunk| {
        let bytes: Vec<u8> = chunk.iter().flat_map(|number| number.to_le_bytes()).collect();
        hash::of_bytes(&bytes)[..16].into()
    });
    chunks.collect()
}

/// On the device that `KVGATE_DEVICE` names.
#[test]
fn numbers_are_those_of_ggmls_reference_bit_for_bit() {
    let mut compared = Vec::new();
    for (of, blocks, expected) in fixture() {
        if of.is_read() {
            let shape = [expected.len(), CHUNK];
            let numbers = flat(&of.dequantized(&blocks, &shape, &place()).unwrap());
            assert_eq!(digests(&numbers), expected, "{}", of.name);
            compared.push(of.name);
        }
    }
    let read = TYPES.iter().filter(|of| of.is_read()).map(|of| of.name);
    for name in read {
        assert!(compared.contains(&name), "scripts/oracle/blocks.py has no {name}");
    }
}

/// More than one task, and an incomplete last one.
#[test]
fn a_large_tensor_is_its_rows_one_after_the_other() {
    for (of, blocks, expected) in fixture().into_iter().filter(|(of, ..)| of.is_read()) {
        let times = 3 * TASK / (CHUNK * expected.len()) + 1;
        let shape = [times, expected.len(), CHUNK];
        let numbers = of.dequantized(&blocks.repeat(times), &shape, &place()).unwrap();
        assert_eq!(numbers.dims(), shape);
        let one = flat(&of.dequantized(&blocks, &shape[1..], &place()).unwrap());
        for (row, numbers) in flat(&numbers).chunks(one.len()).enumerate() {
            assert_eq!(digests(numbers), digests(&one), "{} {row}", of.name);
        }
    }
}

#[test]
fn blocks_that_do_not_fit_the_shape_are_an_error() {
    for of in TYPES.iter().filter(|of| of.is_read()) {
        let (row, blocks) = (2 * of.elements, vec![0u8; 6 * of.bytes]);
        assert!(of.dequantized(&blocks, &[3, row], &place()).is_ok(), "{}", of.name);
        let shapes: [&[usize]; 8] = [
            &[2, row],
            &[4, row],
            &[3, row + 1],
            &[row],
            &[0, row],
            &[3, 0],
            &[usize::MAX, 3, row],
            &[3, usize::MAX / of.elements * of.elements],
        ];
        for shape in shapes {
            let error = of.dequantized(&blocks, shape, &place()).unwrap_err().to_string();
            assert!(error.contains(of.name), "{error}");
        }
        assert!(of.dequantized(&blocks[1..], &[3, row], &place()).is_err(), "{}", of.name);
        assert_eq!(of.dequantized(&[], &[0, row], &place()).unwrap().elem_count(), 0);
    }
    let unread = named("I8");
    assert!(unread.dequantized(&[1], &[1], &place()).unwrap_err().to_string().contains("I8"));
}

#[test]
fn all_halves_become_the_numbers_that_they_are() {
    for bits in 0..=u16::MAX {
        let (ours, theirs) = (half(bits.to_le_bytes()), ::half::f16::from_bits(bits).to_f32());
        assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:x}");
    }
}
