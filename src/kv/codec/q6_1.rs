//! `q6_1`: 28 bytes for 32 elements (7 bits): a half-precision scale d = (max-min)/63, a half-precision
//! minimum m, then six-bit codes laid out as in `q6_0`. A code q reads as `q·d + m`. Source: beellama.cpp;
//! not a type of llama.cpp.

use super::block::{block_codec, Block};
use super::contract::Codec;
use super::numbers::{get_half, inverse, put_half, range};
use super::pack;

pub(super) static ALL: &[&dyn Codec] = &[&Q6_1];

pub(super) struct Q6_1;

impl Block<32, 28> for Q6_1 {
    const NAME: &'static str = "q6_1";
    const ACCEPTED_BY: &'static str = "beellama.cpp: -ctk q6_1 -ctv q6_1";

    #[inline(always)]
    fn encode_block(x: &[f32; 32], bytes: &mut [u8; 28]) {
        let (min, max) = range(x);
        let d = (max - min) / 63.0;
        let id = inverse(d);
        put_half(bytes, 0, d);
        put_half(bytes, 2, min);
        pack::put_6(&x.map(|v| (((v - min) * id + 0.5) as u8).min(63)), &mut bytes[4..]);
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 28], x: &mut [f32; 32]) {
        let (d, min) = (get_half(bytes, 0), get_half(bytes, 2));
        *x = pack::get_6(&bytes[4..]).map(|q| f32::from(q) * d + min);
    }
}
block_codec!(Q6_1, 32, 28);
