//! `q6_0`: 26 bytes for 32 elements (6.5 bits): a half-precision scale d, 8 bytes of upper bits, 16 bytes
//! of low nibbles ([`pack::put_6`]). Codes are those of d = m/-32, where m is the element of largest
//! magnitude with its sign; the stored scale is then refitted with weights x². A code q reads as
//! `(q-32)·d`.
//!
//! Source: ik_llama.cpp and beellama.cpp, their CPU reference (the CUDA cache write of ik_llama.cpp keeps d
//! = m/-32). Not a type of llama.cpp.

use super::block::{block_codec, Block};
use super::contract::Codec;
use super::numbers::{extreme, get_half, inverse, put_half, refitted};
use super::pack;

pub(super) static ALL: &[&dyn Codec] = &[&Q6_0];

pub(super) struct Q6_0;

impl Block<32, 26> for Q6_0 {
    const NAME: &'static str = "q6_0";
    const ACCEPTED_BY: &'static str = "ik_llama.cpp, beellama.cpp: -ctk q6_0 -ctv q6_0";

    #[inline(always)]
    fn encode_block(x: &[f32; 32], bytes: &mut [u8; 26]) {
        let d = extreme(x) / -32.0;
        let id = inverse(d);
        let codes = x.map(|v| ((v * id + 32.5) as u8).min(63));
        put_half(bytes, 0, refitted(x, &codes.map(level)).unwrap_or(d));
        pack::put_6(&codes, &mut bytes[2..]);
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 26], x: &mut [f32; 32]) {
        let d = get_half(bytes, 0);
        *x = pack::get_6(&bytes[2..]).map(|q| level(q) * d);
    }
}
block_codec!(Q6_0, 32, 26);

#[inline(always)]
fn level(code: u8) -> f32 {
    f32::from(code) - 32.0
}
