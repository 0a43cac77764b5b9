//! The control lane's codec: the sign of each element and nothing else, whatever the head's size. It is
//! not in the catalogue. Every run measures it on its first chunks and must see it do harm.

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
