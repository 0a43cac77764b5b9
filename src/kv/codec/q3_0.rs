//! `q3_0`: 14 bytes for 32 elements (3.5 bits): a half-precision scale d = m/-4, where m is the element of
//! largest magnitude with its sign, then 8 bytes of low bits and 4 of third bits ([`pack::put_3`]). A code
//! q reads as `(q-4)·d`.
//!
//! Source: beellama.cpp, whose order of the fields was not read; not a type of llama.cpp.

use super::block::{block_codec, Block};
use super::contract::Codec;
use super::numbers::{extreme, get_half, inverse, put_half};
use super::pack;

pub(super) static ALL: &[&dyn Codec] = &[&Q3_0];

pub(super) struct Q3_0;

impl Block<32, 14> for Q3_0 {
    const NAME: &'static str = "q3_0";
    const ACCEPTED_BY: &'static str = "beellama.cpp: -ctk q3_0 -ctv q3_0";

    #[inline(always)]
    fn encode_block(x: &[f32; 32], bytes: &mut [u8; 14]) {
        let d = extreme(x) / -4.0;
        let id = inverse(d);
        let codes = x.map(|v| ((v * id + 4.5) as u8).min(7));
        put_half(bytes, 0, d);
        pack::put_3(&codes, &mut bytes[2..]);
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 14], x: &mut [f32; 32]) {
        let d = get_half(bytes, 0);
        *x = pack::get_3(&bytes[2..]).map(|q| (f32::from(q) - 4.0) * d);
    }
}
block_codec!(Q3_0, 32, 14);
