//! `iq4_nl`: 18 bytes for 32 elements (4.5 bits): half scale, then 16 bytes of two codebook indices
//! each as in `q4_0`. Reads as `CODEBOOK[q]·d`.
//!
//! The encoder is the one that ggml's KV write path uses (`quantize_row_iq4_nl_ref`, one try): the
//! extreme element maps to the codebook's -127, the others to their nearest entry, then the scale is
//! refitted with weights x². Weight files use a slower search, which gives other bytes.

use super::{block_codec, extreme, get_half, put_half, Block};

const CODEBOOK: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Below this magnitude ggml treats a block as zero.
const ZERO_BLOCK: f32 = 1e-15;

pub(super) struct Iq4Nl;

impl Block<32, 18> for Iq4Nl {
    const NAME: &'static str = "iq4_nl";

    #[inline(always)]
    fn encode_block(x: &[f32; 32], bytes: &mut [u8; 18]) {
        bytes.fill(0);
        let m = extreme(x);
        if m.abs() < ZERO_BLOCK {
            return;
        }
        let id = 1.0 / (m / f32::from(CODEBOOK[0]));
        let codes = x.map(|v| nearest(v * id));
        let (mut num, mut den) = (0.0f32, 0.0f32);
        for (&v, &q) in x.iter().zip(&codes) {
            let (c, w) = (f32::from(CODEBOOK[q as usize]), v * v);
            num += w * c * v;
            den += w * c * c;
        }
        put_half(bytes, 0, if den > 0.0 { num / den } else { 0.0 });
        for j in 0..16 {
            bytes[2 + j] = codes[j] | codes[j + 16] << 4;
        }
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 18], x: &mut [f32; 32]) {
        let d = get_half(bytes, 0);
        for j in 0..16 {
            x[j] = f32::from(CODEBOOK[usize::from(bytes[2 + j] & 15)]) * d;
            x[j + 16] = f32::from(CODEBOOK[usize::from(bytes[2 + j] >> 4)]) * d;
        }
    }
}
block_codec!(Iq4Nl, 32, 18);

/// Index of the nearest codebook entry; a value half-way between two takes the upper one.
#[inline(always)]
fn nearest(v: f32) -> u8 {
    let midpoint = |i: usize| 0.5 * (f32::from(CODEBOOK[i]) + f32::from(CODEBOOK[i + 1]));
    (0..15).map(|i| u8::from(v >= midpoint(i))).sum()
}
