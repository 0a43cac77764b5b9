//! `int8_pth` and `fp8_pth`, vLLM's `int8_per_token_head` and `fp8_per_token_head`: one byte per element, then
//! the head's scale s = max(max|x|/m, 1e-6) as an f32 (8 + 32/head bits). Not rotated.
//!
//! In `int8_pth` m is 127, and the code is the signed byte nearest to x·(1/s), ties to even. In `fp8_pth` m is
//! 448, and the code is e4m3(x·(1/s)), rounded to nearest even and saturating. Both read as `code·s`.
//!
//! vLLM's description of `int8_per_token_head` says `round`. Its Triton kernels, as far as they were read,
//! convert without rounding first, which truncates and has four times the error. That is not imitated here.

use super::contract::Codec;
use super::fp8;
use super::numbers::largest;
use super::small_float::E4M3;

pub(super) static ALL: &[&dyn Codec] = &[&INT8, &FP8];

/// One of the two formats, which differ in what a byte holds.
pub(super) struct PerTokenHead {
    name: &'static str,
    accepted_by: &'static str,
    /// What the largest magnitude of a head is scaled to.
    largest: f32,
    encode: fn(f32) -> u8,
    decode: fn(u8) -> f32,
}

pub(super) static INT8: PerTokenHead = PerTokenHead {
    name: "int8_pth",
    accepted_by: "vLLM: --kv-cache-dtype int8_per_token_head",
    largest: 127.0,
    encode: |v| v.round_ties_even() as i8 as u8,
    decode: |b| f32::from(b as i8),
};
pub(super) static FP8: PerTokenHead = PerTokenHead {
    name: "fp8_pth",
    accepted_by: "vLLM: --kv-cache-dtype fp8_per_token_head",
    largest: E4M3.largest(),
    encode: |v| fp8::encode(&E4M3, v),
    decode: |b| fp8::decode(&E4M3, b),
};

/// vLLM's smallest scale.
pub(super) const SMALLEST_SCALE: f32 = 1e-6;

impl Codec for PerTokenHead {
    fn name(&self) -> &str {
        self.name
    }

    fn accepted_by(&self) -> &str {
        self.accepted_by
    }

    fn block(&self, head_dim: usize) -> usize {
        head_dim
    }

    fn block_bytes(&self, head_dim: usize) -> usize {
        head_dim + 4
    }

    fn is_rotated(&self) -> bool {
        false
    }

    fn encode(&self, x: &[f32], bytes: &mut [u8]) {
        let (codes, scale) = split_scale_mut(bytes, x.len());
        let s = (largest(x) / self.largest).max(SMALLEST_SCALE);
        *scale = s.to_le_bytes();
        let inverse = 1.0 / s;
        for (b, v) in codes.iter_mut().zip(x) {
            *b = (self.encode)(v * inverse);
        }
    }

    fn decode(&self, bytes: &[u8], x: &mut [f32]) {
        let (codes, scale) = split_scale(bytes, x.len());
        let s = f32::from_le_bytes(*scale);
        for (v, b) in x.iter_mut().zip(codes) {
            *v = (self.decode)(*b) * s;
        }
    }
}

/// Splits an encoded head into its `len` bytes of codes and the scale behind them.
pub(super) fn split_scale(bytes: &[u8], len: usize) -> (&[u8], &[u8; 4]) {
    let (codes, scale) = bytes.split_last_chunk().expect("a head and its scale");
    assert_eq!(codes.len(), len);
    (codes, scale)
}

/// The same, for writing.
pub(super) fn split_scale_mut(bytes: &mut [u8], len: usize) -> (&mut [u8], &mut [u8; 4]) {
    let (codes, scale) = bytes.split_last_chunk_mut().expect("a head and its scale");
    assert_eq!(codes.len(), len);
    (codes, scale)
}
