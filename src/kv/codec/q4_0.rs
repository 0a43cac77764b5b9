//! `q4_0`: 18 bytes for 32 elements (4.5 bits): a half-precision scale d = m/-8, where m is the element of
//! largest magnitude with its sign, then 16 bytes of two codes each: byte j holds element j in its low and
//! element j+16 in its high nibble. A code q reads as `(q-8)·d`. Source: ggml `quantize_row_q4_0_ref`.

use super::block::{block_codec, Block};
use super::contract::Codec;
use super::numbers::{extreme, get_half, inverse, put_half};
use super::pack;

pub(super) static ALL: &[&dyn Codec] = &[&Q4_0];

pub(super) struct Q4_0;

impl Block<32, 18> for Q4_0 {
    const NAME: &'static str = "q4_0";
    const ACCEPTED_BY: &'static str = "llama.cpp: -ctk q4_0 -ctv q4_0";

    #[inline(always)]
    fn encode_block(x: &[f32; 32], bytes: &mut [u8; 18]) {
        let d = extreme(x) / -8.0;
        let id = inverse(d);
        put_half(bytes, 0, d);
        pack::put_4(&x.map(|v| ((v * id + 8.5) as u8).min(15)), &mut bytes[2..]);
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 18], x: &mut [f32; 32]) {
        let d = get_half(bytes, 0);
        *x = pack::get_4(&bytes[2..]).map(|q| (f32::from(q) - 8.0) * d);
    }
}
block_codec!(Q4_0, 32, 18);
