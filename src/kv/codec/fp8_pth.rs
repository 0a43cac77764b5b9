//! `fp8_pth`, vLLM's `fp8_per_token_head`: an e4m3 byte an element, then the head's scale
//! s = max(max|x|/448, 1e-6) as an f32 (8 + 32/head bits). The code is e4m3(x·(1/s)), rounded to nearest even
//! and saturating at ±448. Reads as `e4m3·s`. Not rotated.

use super::fp8::{decode, encode};
use super::int8_pth::{split_scale, split_scale_mut, SMALLEST_SCALE};
use super::small_float::E4M3;
use super::{largest, Codec};

pub(super) struct Fp8PerTokenHead;

impl Codec for Fp8PerTokenHead {
    fn name(&self) -> &str {
        "fp8_pth"
    }

    fn engines(&self) -> &str {
        "vLLM: --kv-cache-dtype fp8_per_token_head"
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
        let s = (largest(x) / E4M3.largest()).max(SMALLEST_SCALE);
        *scale = s.to_le_bytes();
        let inverse = 1.0 / s;
        for (b, v) in codes.iter_mut().zip(x) {
            *b = encode(&E4M3, v * inverse);
        }
    }

    fn decode(&self, bytes: &[u8], x: &mut [f32]) {
        let (codes, scale) = split_scale(bytes, x.len());
        let s = f32::from_le_bytes(*scale);
        for (v, b) in x.iter_mut().zip(codes) {
            *v = decode(&E4M3, *b) * s;
        }
    }
}
