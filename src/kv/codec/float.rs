//! The float formats `f32`, `f16` and `bf16`, with one element per block. Rounding is to nearest even.
//! `f16` overflows to infinity above 65504, which the engine reports as a cache that is not finite.

use super::block::{block_codec, Block};
use super::contract::{Codec, Exactness};
use half::{bf16, f16};

pub(super) static ALL: &[&dyn Codec] = &[&F32, &F16, &Bf16];

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Block<1, 4> for F32 {
    const NAME: &'static str = "f32";
    const ACCEPTED_BY: &'static str = "llama.cpp: -ctk f32 -ctv f32";
    const EXACTNESS: Exactness = Exactness::Exact;
    #[inline(always)]
    fn encode_block(x: &[f32; 1], bytes: &mut [u8; 4]) {
        *bytes = x[0].to_le_bytes();
    }
    #[inline(always)]
    fn decode_block(bytes: &[u8; 4], x: &mut [f32; 1]) {
        x[0] = f32::from_le_bytes(*bytes);
    }
}
block_codec!(F32, 1, 4);

impl Block<1, 2> for F16 {
    const NAME: &'static str = "f16";
    const ACCEPTED_BY: &'static str = "llama.cpp: -ctk f16 -ctv f16";
    const EXACTNESS: Exactness = Exactness::Half;
    #[inline(always)]
    fn encode_block(x: &[f32; 1], bytes: &mut [u8; 2]) {
        *bytes = f16::from_f32(x[0]).to_le_bytes();
    }
    #[inline(always)]
    fn decode_block(bytes: &[u8; 2], x: &mut [f32; 1]) {
        x[0] = f16::from_le_bytes(*bytes).to_f32();
    }
}
block_codec!(F16, 1, 2);

impl Block<1, 2> for Bf16 {
    const NAME: &'static str = "bf16";
    const ACCEPTED_BY: &'static str = "llama.cpp: -ctk bf16 -ctv bf16";
    const EXACTNESS: Exactness = Exactness::ShortFloat;
    #[inline(always)]
    fn encode_block(x: &[f32; 1], bytes: &mut [u8; 2]) {
        *bytes = bf16::from_f32(x[0]).to_le_bytes();
    }
    #[inline(always)]
    fn decode_block(bytes: &[u8; 2], x: &mut [f32; 1]) {
        x[0] = bf16::from_le_bytes(*bytes).to_f32();
    }
}
block_codec!(Bf16, 1, 2);
