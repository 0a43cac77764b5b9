//! `q5_0`: 22 bytes for 32 elements (5.5 bits): a half-precision scale d = m/-16, where m is the element of
//! largest magnitude with its sign, a little-endian u32 with the fifth bit of element j at bit j, then 16
//! bytes of low nibbles as in `q4_0`. A code q reads as `(q-16)·d`. Source: ggml `quantize_row_q5_0_ref`.

use super::block::{block_codec, Block};
use super::contract::Codec;
use super::numbers::{extreme, get_half, inverse, put_half};
use super::pack;

pub(super) static ALL: &[&dyn Codec] = &[&Q5_0];

pub(super) struct Q5_0;

impl Block<32, 22> for Q5_0 {
    const NAME: &'static str = "q5_0";
    const ACCEPTED_BY: &'static str = "llama.cpp: -ctk q5_0 -ctv q5_0";

    #[inline(always)]
    fn encode_block(x: &[f32; 32], bytes: &mut [u8; 22]) {
        let d = extreme(x) / -16.0;
        let id = inverse(d);
        put_half(bytes, 0, d);
        pack::put_5(&x.map(|v| ((v * id + 16.5) as u8).min(31)), &mut bytes[2..]);
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 22], x: &mut [f32; 32]) {
        let d = get_half(bytes, 0);
        *x = pack::get_5(&bytes[2..]).map(|q| (f32::from(q) - 16.0) * d);
    }
}
block_codec!(Q5_0, 32, 22);
