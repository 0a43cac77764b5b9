//! `q5_1`: 24 bytes for 32 elements (6 bits): a half-precision scale d = (max-min)/31, a half-precision
//! minimum m, then five-bit codes laid out as in `q5_0`. A code q reads as `q·d + m`. Source: ggml
//! `quantize_row_q5_1_ref`.

use super::block::{block_codec, Block};
use super::contract::Codec;
use super::numbers::{get_half, inverse, put_half, range};
use super::pack;

pub(super) static ALL: &[&dyn Codec] = &[&Q5_1];

pub(super) struct Q5_1;

impl Block<32, 24> for Q5_1 {
    const NAME: &'static str = "q5_1";
    const ACCEPTED_BY: &'static str = "llama.cpp: -ctk q5_1 -ctv q5_1";

    #[inline(always)]
    fn encode_block(x: &[f32; 32], bytes: &mut [u8; 24]) {
        let (min, max) = range(x);
        let d = (max - min) / 31.0;
        let id = inverse(d);
        put_half(bytes, 0, d);
        put_half(bytes, 2, min);
        pack::put_5(&x.map(|v| ((v - min) * id + 0.5) as u8), &mut bytes[4..]);
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 24], x: &mut [f32; 32]) {
        let (d, min) = (get_half(bytes, 0), get_half(bytes, 2));
        *x = pack::get_5(&bytes[4..]).map(|q| f32::from(q) * d + min);
    }
}
block_codec!(Q5_1, 32, 24);
