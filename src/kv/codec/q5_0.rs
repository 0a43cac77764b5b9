//! `q5_0`: 22 bytes for 32 elements (5.5 bits): half scale d = m/-16, where m is the signed element
//! of largest magnitude, a little-endian u32 with the fifth bit of element j at bit j, then 16 bytes
//! of low nibbles as in `q4_0`. Reads as `(q-16)·d`. Source: ggml `quantize_row_q5_0_ref`.

use super::{block_codec, extreme, get_half, inverse, put_half, Block};

pub(super) struct Q5_0;

impl Block<32, 22> for Q5_0 {
    const NAME: &'static str = "q5_0";

    #[inline(always)]
    fn encode_block(x: &[f32; 32], bytes: &mut [u8; 22]) {
        let d = extreme(x) / -16.0;
        let id = inverse(d);
        put_half(bytes, 0, d);
        put_codes(x.map(|v| ((v * id + 16.5) as u8).min(31)), &mut bytes[2..]);
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 22], x: &mut [f32; 32]) {
        let d = get_half(bytes, 0);
        *x = get_codes(&bytes[2..]).map(|q| (f32::from(q) - 16.0) * d);
    }
}
block_codec!(Q5_0, 32, 22);

/// Writes 32 five-bit codes: 4 bytes of fifth bits, then 16 bytes of low nibbles.
#[inline(always)]
pub(super) fn put_codes(codes: [u8; 32], bytes: &mut [u8]) {
    let mut high = 0u32;
    for (j, q) in codes.iter().enumerate() {
        high |= u32::from(q >> 4) << j;
    }
    bytes[..4].copy_from_slice(&high.to_le_bytes());
    for j in 0..16 {
        bytes[4 + j] = codes[j] & 15 | (codes[j + 16] & 15) << 4;
    }
}

/// Reads what [`put_codes`] wrote.
#[inline(always)]
pub(super) fn get_codes(bytes: &[u8]) -> [u8; 32] {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    std::array::from_fn(|j| {
        let low = bytes[4 + j % 16] >> (4 * (j / 16)) & 15;
        low | ((high >> j & 1) as u8) << 4
    })
}
