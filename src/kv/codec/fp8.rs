//! `fp8_e4m3` and `fp8_e5m2`: OCP's 8-bit floats at scale 1, one byte per element (8 bits). Numbers are
//! rounded to nearest even. They saturate: beyond ±448 (±57344 in e5m2), infinities included, the largest
//! finite number is stored. NaN is stored as `7f`. Not rotated.
//!
//! vLLM stores fp8(x / scale) and multiplies by the scale when it reads; its default scale is 1. The options
//! `:tensor` and `:head` use a calibrated scale instead, one for each layer's K and V or one for each of
//! their heads: the largest magnitude divided by the format's largest number, as in llm-compressor's min-max
//! observer. The format with a scale for each token and head is `fp8_pth`.

use super::block::{block_codec, Block};
use super::contract::Codec;
use super::small_float::{SmallFloat, E4M3, E5M2};

pub(super) static ALL: &[&dyn Codec] = &[&E4m3, &E5m2];

pub(super) struct E4m3;
pub(super) struct E5m2;

impl Block<1, 1> for E4m3 {
    const NAME: &'static str = "fp8_e4m3";
    const ACCEPTED_BY: &'static str = "vLLM, SGLang: --kv-cache-dtype fp8_e4m3";
    const LARGEST: Option<f32> = Some(E4M3.largest());
    #[inline(always)]
    fn encode_block(x: &[f32; 1], bytes: &mut [u8; 1]) {
        bytes[0] = encode(&E4M3, x[0]);
    }
    #[inline(always)]
    fn decode_block(bytes: &[u8; 1], x: &mut [f32; 1]) {
        x[0] = decode(&E4M3, bytes[0]);
    }
}
block_codec!(E4m3, 1, 1);

impl Block<1, 1> for E5m2 {
    const NAME: &'static str = "fp8_e5m2";
    const ACCEPTED_BY: &'static str = "vLLM, SGLang: --kv-cache-dtype fp8_e5m2";
    const LARGEST: Option<f32> = Some(E5M2.largest());
    #[inline(always)]
    fn encode_block(x: &[f32; 1], bytes: &mut [u8; 1]) {
        bytes[0] = encode(&E5M2, x[0]);
    }
    #[inline(always)]
    fn decode_block(bytes: &[u8; 1], x: &mut [f32; 1]) {
        x[0] = decode(&E5M2, bytes[0]);
    }
}
block_codec!(E5m2, 1, 1);

const SIGN: u8 = 0x80;
const NAN: u8 = 0x7f;

#[inline(always)]
pub(super) fn encode(format: &SmallFloat, x: f32) -> u8 {
    let magnitude = if x.is_nan() { NAN } else { format.encode(x) };
    magnitude | if x.is_sign_negative() { SIGN } else { 0 }
}

#[inline(always)]
pub(super) fn decode(format: &SmallFloat, code: u8) -> f32 {
    let magnitude = format.decode(code & !SIGN);
    if code & SIGN == 0 {
        magnitude
    } else {
        -magnitude
    }
}
