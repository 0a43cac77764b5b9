//! `nvfp4`: 9 bytes for 16 elements (4.5 bits): 8 bytes of two E2M1 codes each, element 2j in the low and
//! 2j+1 in the high nibble of byte j, then one E4M3 scale s = max|x|/6. Codes and scale are rounded to nearest
//! even and saturate. Codes read as `code·s`; with a scale of 0 the block reads as zeros. Not rotated.
//!
//! This is the cache format of vLLM, SGLang and FlashInfer with its global scale at 1. They keep scales in an
//! array of their own, in a swizzled order; here a block's scale follows its codes. ggml's weight type of the
//! same name packs and rounds otherwise.

use super::block::{block_codec, Block};
use super::contract::Codec;
use super::numbers::largest;
use super::small_float::{E2M1, E4M3};

pub(super) static ALL: &[&dyn Codec] = &[&Nvfp4];

pub(super) struct Nvfp4;

impl Block<16, 9> for Nvfp4 {
    const NAME: &'static str = "nvfp4";
    const ACCEPTED_BY: &'static str = "vLLM, SGLang: --kv-cache-dtype nvfp4";
    const ROTATED: bool = false;

    #[inline(always)]
    fn encode_block(x: &[f32; 16], bytes: &mut [u8; 9]) {
        bytes[8] = E4M3.encode(largest(x) / 6.0);
        let scale = E4M3.decode(bytes[8]);
        let code = |v: f32| {
            let quotient = if scale == 0.0 { 0.0 } else { v / scale };
            E2M1.encode(quotient) | u8::from(quotient.is_sign_negative()) << 3
        };
        for j in 0..8 {
            bytes[j] = code(x[2 * j]) | code(x[2 * j + 1]) << 4;
        }
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 9], x: &mut [f32; 16]) {
        let scale = E4M3.decode(bytes[8]);
        for (j, v) in x.iter_mut().enumerate() {
            *v = super::mxfp4::value(bytes[j / 2] >> (4 * (j % 2)) & 15) * scale;
        }
    }
}
block_codec!(Nvfp4, 16, 9);
