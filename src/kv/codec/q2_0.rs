//! `q2_0`: 10 bytes for 32 elements (2.5 bits): a half-precision scale d = m/-2, where m is the element of
//! largest magnitude with its sign, then 8 bytes of four codes each ([`pack::put_2`]). A code q reads as
//! `(q-2)·d`.
//!
//! Source: beellama.cpp, which calls it `Q2_0S` inside; llama.cpp's weight type `Q2_0` is another format.

use super::block::{block_codec, Block};
use super::contract::Codec;
use super::numbers::{extreme, get_half, inverse, put_half};
use super::pack;

pub(super) static ALL: &[&dyn Codec] = &[&Q2_0];

pub(super) struct Q2_0;

impl Block<32, 10> for Q2_0 {
    const NAME: &'static str = "q2_0";
    const ACCEPTED_BY: &'static str = "beellama.cpp: -ctk q2_0 -ctv q2_0";

    #[inline(always)]
    fn encode_block(x: &[f32; 32], bytes: &mut [u8; 10]) {
        let d = extreme(x) / -2.0;
        let id = inverse(d);
        let codes = x.map(|v| ((v * id + 2.5) as u8).min(3));
        put_half(bytes, 0, d);
        pack::put_2(&codes, &mut bytes[2..]);
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 10], x: &mut [f32; 32]) {
        let d = get_half(bytes, 0);
        *x = pack::get_2(&bytes[2..]).map(|q| (f32::from(q) - 2.0) * d);
    }
}
block_codec!(Q2_0, 32, 10);
