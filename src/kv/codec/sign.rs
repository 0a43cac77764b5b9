//! The codec of the control lane. It keeps the sign of each element and reads it as ±1. Every run measures it
//! on its first chunks and must see that it does harm. It is not in the catalogue, so that no scheme can name
//! it, and it fits heads of any size.

use super::block::{block_codec, Block};

pub(crate) struct Sign;

impl Block<1, 1> for Sign {
    const NAME: &'static str = "sign";
    const ACCEPTED_BY: &'static str = "";

    #[inline(always)]
    fn encode_block(x: &[f32; 1], bytes: &mut [u8; 1]) {
        bytes[0] = u8::from(x[0] < 0.0);
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 1], x: &mut [f32; 1]) {
        x[0] = if bytes[0] == 1 { -1.0 } else { 1.0 };
    }
}
block_codec!(Sign, 1, 1);
