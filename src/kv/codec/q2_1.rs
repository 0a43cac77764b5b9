//! `q2_1`: 12 bytes for 32 elements (3 bits): a half-precision scale d = (max-min)/3, a half-precision
//! minimum m, then two-bit codes laid out as in `q2_0`. A code q reads as `q·d + m`. Source: beellama.cpp;
//! not a type of llama.cpp.

use super::block::{block_codec, Block};
use super::contract::Codec;
use super::numbers::{get_half, inverse, put_half, range};
use super::pack;

pub(super) static ALL: &[&dyn Codec] = &[&Q2_1];

pub(super) struct Q2_1;

impl Block<32, 12> for Q2_1 {
    const NAME: &'static str = "q2_1";
    const ACCEPTED_BY: &'static str = "beellama.cpp: -ctk q2_1 -ctv q2_1";

    #[inline(always)]
    fn encode_block(x: &[f32; 32], bytes: &mut [u8; 12]) {
        let (min, max) = range(x);
        let d = (max - min) / 3.0;
        let id = inverse(d);
        put_half(bytes, 0, d);
        put_half(bytes, 2, min);
        pack::put_2(&x.map(|v| (((v - min) * id + 0.5) as u8).min(3)), &mut bytes[4..]);
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 12], x: &mut [f32; 32]) {
        let (d, min) = (get_half(bytes, 0), get_half(bytes, 2));
        *x = pack::get_2(&bytes[4..]).map(|q| f32::from(q) * d + min);
    }
}
block_codec!(Q2_1, 32, 12);
