//! `q4_1`: 20 bytes for 32 elements (5 bits): half scale d = (max-min)/15, half minimum m, then 16
//! bytes of two codes each as in `q4_0`. Reads as `q·d + m`. Source: ggml `quantize_row_q4_1_ref`.

use super::{block_codec, get_half, inverse, put_half, range, Block};

pub(super) struct Q4_1;

impl Block<32, 20> for Q4_1 {
    const NAME: &'static str = "q4_1";

    #[inline(always)]
    fn encode_block(x: &[f32; 32], bytes: &mut [u8; 20]) {
        let (min, max) = range(x);
        let d = (max - min) / 15.0;
        let id = inverse(d);
        put_half(bytes, 0, d);
        put_half(bytes, 2, min);
        let code = |v: f32| (((v - min) * id + 0.5) as u8).min(15);
        for j in 0..16 {
            bytes[4 + j] = code(x[j]) | code(x[j + 16]) << 4;
        }
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 20], x: &mut [f32; 32]) {
        let (d, min) = (get_half(bytes, 0), get_half(bytes, 2));
        for j in 0..16 {
            x[j] = f32::from(bytes[4 + j] & 15) * d + min;
            x[j + 16] = f32::from(bytes[4 + j] >> 4) * d + min;
        }
    }
}
block_codec!(Q4_1, 32, 20);
