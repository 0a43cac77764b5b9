//! `int8_pth`, vLLM's `int8_per_token_head`: a signed byte an element, then the head's scale
//! s = max(max|x|/127, 1e-6) as an f32 (8 + 32/head bits). The code is x·(1/s) to the nearest, halves to
//! even, within -128 to 127. Reads as `code·s`. Not rotated.
//!
//! vLLM's description says `round`; its Triton kernels, as far as they were read, convert without a
//! rounding step, which truncates and costs four times the error. That is not imitated here.

use super::{largest, Codec};

pub(super) struct Int8PerTokenHead;

/// vLLM's smallest scale.
pub(super) const SMALLEST_SCALE: f32 = 1e-6;

impl Codec for Int8PerTokenHead {
    fn name(&self) -> &str {
        "int8_pth"
    }

    fn engines(&self) -> &str {
        "vLLM: --kv-cache-dtype int8_per_token_head"
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
        let s = (largest(x) / 127.0).max(SMALLEST_SCALE);
        *scale = s.to_le_bytes();
        let inverse = 1.0 / s;
        for (b, v) in codes.iter_mut().zip(x) {
            *b = (v * inverse).round_ties_even() as i8 as u8;
        }
    }

    fn decode(&self, bytes: &[u8], x: &mut [f32]) {
        let (codes, scale) = split_scale(bytes, x.len());
        let s = f32::from_le_bytes(*scale);
        for (v, b) in x.iter_mut().zip(codes) {
            *v = f32::from(*b as i8) * s;
        }
    }
}

/// The codes of a head, `len` bytes, and its scale behind them.
pub(super) fn split_scale(bytes: &[u8], len: usize) -> (&[u8], &[u8; 4]) {
    let (codes, scale) = bytes.split_last_chunk().expect("a head and its scale");
    assert_eq!(codes.len(), len);
    (codes, scale)
}

/// The same to write to.
pub(super) fn split_scale_mut(bytes: &mut [u8], len: usize) -> (&mut [u8], &mut [u8; 4]) {
    let (codes, scale) = bytes.split_last_chunk_mut().expect("a head and its scale");
    assert_eq!(codes.len(), len);
    (codes, scale)
}
