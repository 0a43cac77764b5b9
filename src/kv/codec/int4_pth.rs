//! `int4_pth`, vLLM's `int4_per_token_head`: half a byte per element, then the head's scale as an f32, in
//! whose low four bits the zero point is put (4 + 32/head bits).
//!
//! The codec itself rotates the head: y = H·D·x, where H is the Hadamard matrix of ±1 over the whole head and
//! D are vLLM's fixed random signs. Then s = max((max y - min y)/15, 1e-6), z = round(-min y/s) and the code is
//! round(y·(1/s) + z), both within 0 to 15, halves away from zero. Byte j holds element 2j in its low and
//! 2j+1 in its high nibble. It reads as D·H·((code - z)·s)/head, where the low four bits of s are cleared.
//!
//! The size of a head must be a power of two and at least 16. A head of more than 512 is stored in parts of
//! 512. vLLM rounds y to the model's bf16 or f16 before it quantizes; here y stays f32.

use super::contract::Codec;
use super::numbers::range;
use super::pth::{split_scale, split_scale_mut, SMALLEST_SCALE};
use crate::kv::hadamard::{change_signs, scaled_hadamard};

pub(super) static ALL: &[&dyn Codec] = &[&Int4PerTokenHead];

pub(super) struct Int4PerTokenHead;

const LARGEST_HEAD: usize = 512;
const ZERO_POINT: u32 = 15;

/// The signs of D: bit i%8 of byte i/8 is set if element i changes its sign. They are
/// `2·bernoulli(½) - 1` of torch's CPU generator with the seed 0x9E3779B9 (`scripts/oracle/formats.py`).
const SIGNS: [u8; LARGEST_HEAD / 8] = [
    0xf2, 0xa6, 0x8c, 0x9a, 0x4e, 0xca, 0x7f, 0x7f, 0x93, 0xc2, 0xbb, 0x59, 0xc7, 0xab, 0x80, 0x94,
    0x7e, 0x74, 0x5b, 0xb5, 0xbe, 0x3b, 0x50, 0x54, 0xb7, 0x67, 0xf4, 0xcd, 0x5f, 0xbc, 0xdf, 0x05,
    0xcc, 0xe3, 0x91, 0xb2, 0x34, 0x38, 0x56, 0x57, 0x25, 0xe2, 0x6a, 0xe4, 0xa6, 0x4c, 0xfc, 0x67,
    0x91, 0x86, 0xc7, 0xcf, 0xf1, 0xdf, 0xd9, 0x32, 0x89, 0xdb, 0x5f, 0x36, 0x46, 0x53, 0x62, 0x75,
];

impl Codec for Int4PerTokenHead {
    fn name(&self) -> &str {
        "int4_pth"
    }

    fn accepted_by(&self) -> &str {
        "vLLM: --kv-cache-dtype int4_per_token_head"
    }

    fn block(&self, head_dim: usize) -> usize {
        head_dim.next_power_of_two().clamp(16, LARGEST_HEAD)
    }

    fn block_bytes(&self, head_dim: usize) -> usize {
        self.block(head_dim) / 2 + 4
    }

    fn is_rotated(&self) -> bool {
        false
    }

    fn encode(&self, x: &[f32], bytes: &mut [u8]) {
        let block = self.block(x.len());
        let blocks = bytes.chunks_exact_mut(self.block_bytes(x.len()));
        for (x, bytes) in x.chunks_exact(block).zip(blocks) {
            let mut y = [0.0; LARGEST_HEAD];
            let y = &mut y[..block];
            y.copy_from_slice(x);
            change_signs(y, &SIGNS);
            scaled_hadamard(y, block, 1.0);
            let (min, max) = range(y);
            let s = ((max - min) / 15.0).max(SMALLEST_SCALE);
            let z = (-min / s).round().clamp(0.0, 15.0);
            let (codes, scale) = split_scale_mut(bytes, block / 2);
            *scale = (s.to_bits() & !ZERO_POINT | z as u32).to_le_bytes();
            let inverse = 1.0 / s;
            let code = |v: f32| (v * inverse + z).round().clamp(0.0, 15.0) as u8;
            for (b, pair) in codes.iter_mut().zip(y.as_chunks::<2>().0) {
                *b = code(pair[0]) | code(pair[1]) << 4;
            }
        }
    }

    fn decode(&self, bytes: &[u8], x: &mut [f32]) {
        let block = self.block(x.len());
        let blocks = bytes.chunks_exact(self.block_bytes(x.len()));
        for (bytes, x) in blocks.zip(x.chunks_exact_mut(block)) {
            let (codes, scale) = split_scale(bytes, block / 2);
            let bits = u32::from_le_bytes(*scale);
            let (s, z) = (f32::from_bits(bits & !ZERO_POINT), (bits & ZERO_POINT) as f32);
            for (pair, b) in x.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                *pair = [b & 15, b >> 4].map(|q| (f32::from(q) - z) * s);
            }
            scaled_hadamard(x, block, 1.0);
            change_signs(x, &SIGNS);
            for v in x {
                *v /= block as f32;
            }
        }
    }
}
