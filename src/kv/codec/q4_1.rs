//! `q4_1`: 20 bytes for 32 elements (5 bits): a half-precision scale d = (max-min)/15, a half-precision
//! minimum m, then 16 bytes of two codes each as in `q4_0`. A code q reads as `q·d + m`. Source: ggml
//! `quantize_row_q4_1_ref`.

use super::block::{block_codec, Block};
use super::contract::Codec;
use super::numbers::{get_half, inverse, put_half, range};
use super::pack;

pub(super) static ALL: &[&dyn Codec] = &[&Q4_1];

pub(super) struct Q4_1;

impl Block<32, 20> for Q4_1 {
    const NAME: &'static str = "q4_1";
    const ACCEPTED_BY: &'static str = "llama.cpp: -ctk q4_1 -ctv q4_1";

    #[inline(always)]
    fn encode_block(x: &[f32; 32], bytes: &mut [u8; 20]) {
        let (min, max) = range(x);
        let d = (max - min) / 15.0;
        let id = inverse(d);
        put_half(bytes, 0, d);
        put_half(bytes, 2, min);
        pack::put_4(&x.map(|v| (((v - min) * id + 0.5) as u8).min(15)), &mut bytes[4..]);
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 20], x: &mut [f32; 32]) {
        let (d, min) = (get_half(bytes, 0), get_half(bytes, 2));
        *x = pack::get_4(&bytes[4..]).map(|q| f32::from(q) * d + min);
    }
}
block_codec!(Q4_1, 32, 20);
