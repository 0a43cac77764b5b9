//! `iq4_nl`: 18 bytes for 32 elements (4.5 bits): a half scale d, then 16 bytes that hold two codebook
//! indices each, as in `q4_0`. It reads as `CODEBOOK[q]·d`.
//!
//! The encoder is the one with which ggml writes a KV cache (`quantize_row_iq4_nl_ref`, one try). The element
//! of largest magnitude maps to the codebook's -127 and the others to their nearest entry; then the scale is
//! refitted with weights x². Weight files of this type use a slower search, which gives other bytes.

use super::block::{block_codec, Block};
use super::contract::Codec;
use super::numbers::{extreme, get_half, put_half, refitted};
use super::pack;

pub(super) static ALL: &[&dyn Codec] = &[&Iq4Nl];

const CODEBOOK: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// ggml treats a block as zero if no magnitude reaches this.
const ZERO_BLOCK: f32 = 1e-15;

pub(super) struct Iq4Nl;

impl Block<32, 18> for Iq4Nl {
    const NAME: &'static str = "iq4_nl";
    const ACCEPTED_BY: &'static str = "llama.cpp: -ctk iq4_nl -ctv iq4_nl";

    #[inline(always)]
    fn encode_block(x: &[f32; 32], bytes: &mut [u8; 18]) {
        bytes.fill(0);
        let m = extreme(x);
        if m.abs() < ZERO_BLOCK {
            return;
        }
        let id = 1.0 / (m / f32::from(CODEBOOK[0]));
        let codes = x.map(|v| nearest(v * id));
        put_half(bytes, 0, refitted(x, &codes.map(entry)).unwrap_or(0.0));
        pack::put_4(&codes, &mut bytes[2..]);
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 18], x: &mut [f32; 32]) {
        let d = get_half(bytes, 0);
        *x = pack::get_4(&bytes[2..]).map(|q| entry(q) * d);
    }
}
block_codec!(Iq4Nl, 32, 18);

#[inline(always)]
fn entry(code: u8) -> f32 {
    f32::from(CODEBOOK[usize::from(code)])
}

/// The index of the nearest codebook entry. Half-way between two entries it is the upper one.
#[inline(always)]
fn nearest(v: f32) -> u8 {
    let midpoint = |i: usize| 0.5 * (f32::from(CODEBOOK[i]) + f32::from(CODEBOOK[i + 1]));
    (0..15).map(|i| u8::from(v >= midpoint(i))).sum()
}
