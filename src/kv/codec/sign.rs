//! The control lane's codec: one bit an element and a half scale, the block's mean magnitude. It is
//! not in the catalogue. Every run measures it on its first chunk and must see it do harm.

use super::{block_codec, get_half, put_half, Block};

pub(crate) struct Sign;

impl Block<32, 6> for Sign {
    const NAME: &'static str = "sign1";

    #[inline(always)]
    fn encode_block(x: &[f32; 32], bytes: &mut [u8; 6]) {
        put_half(bytes, 0, x.iter().map(|v| v.abs()).sum::<f32>() / 32.0);
        let bits = x.iter().enumerate().fold(0u32, |bits, (j, v)| bits | u32::from(*v < 0.0) << j);
        bytes[2..].copy_from_slice(&bits.to_le_bytes());
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 6], x: &mut [f32; 32]) {
        let d = get_half(bytes, 0);
        let bits = u32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]);
        for (j, v) in x.iter_mut().enumerate() {
            *v = if bits >> j & 1 == 1 { -d } else { d };
        }
    }
}
block_codec!(Sign, 32, 6);
