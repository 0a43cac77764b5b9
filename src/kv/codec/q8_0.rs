//! `q8_0`: 34 bytes for 32 elements (8.5 bits): a half-precision scale d = max|x|/127, then 32 signed
//! bytes. A code q reads as `q·d`. Source: ggml `quantize_row_q8_0_ref`.

use super::block::{block_codec, Block};
use super::contract::Codec;
use super::numbers::{get_half, inverse, largest, put_half};

pub(super) static ALL: &[&dyn Codec] = &[&Q8_0];

pub(super) struct Q8_0;

impl Block<32, 34> for Q8_0 {
    const NAME: &'static str = "q8_0";
    const ACCEPTED_BY: &'static str = "llama.cpp: -ctk q8_0 -ctv q8_0";

    #[inline(always)]
    fn encode_block(x: &[f32; 32], bytes: &mut [u8; 34]) {
        let d = largest(x) / 127.0;
        let id = inverse(d);
        put_half(bytes, 0, d);
        for (b, v) in bytes[2..].iter_mut().zip(x) {
            // half away from zero, as C's roundf
            *b = (v * id).round() as i8 as u8;
        }
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 34], x: &mut [f32; 32]) {
        let d = get_half(bytes, 0);
        for (v, b) in x.iter_mut().zip(&bytes[2..]) {
            *v = f32::from(*b as i8) * d;
        }
    }
}
block_codec!(Q8_0, 32, 34);
