//! `q3_1`: 16 bytes for 32 elements (4 bits): a half-precision scale d = (max-min)/7, a half-precision
//! minimum m, then three-bit codes laid out as in `q3_0`. A code q reads as `q·d + m`.
//!
//! Source: beellama.cpp, whose order of the fields was not read; not a type of llama.cpp.

use super::block::{block_codec, Block};
use super::contract::Codec;
use super::numbers::{get_half, inverse, put_half, range};
use super::pack;

pub(super) static ALL: &[&dyn Codec] = &[&Q3_1];

pub(super) struct Q3_1;

impl Block<32, 16> for Q3_1 {
    const NAME: &'static str = "q3_1";
    const ACCEPTED_BY: &'static str = "beellama.cpp: -ctk q3_1 -ctv q3_1";

    #[inline(always)]
    fn encode_block(x: &[f32; 32], bytes: &mut [u8; 16]) {
        let (min, max) = range(x);
        let d = (max - min) / 7.0;
        let id = inverse(d);
        put_half(bytes, 0, d);
        put_half(bytes, 2, min);
        pack::put_3(&x.map(|v| (((v - min) * id + 0.5) as u8).min(7)), &mut bytes[4..]);
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 16], x: &mut [f32; 32]) {
        let (d, min) = (get_half(bytes, 0), get_half(bytes, 2));
        *x = pack::get_3(&bytes[4..]).map(|q| f32::from(q) * d + min);
    }
}
block_codec!(Q3_1, 32, 16);
