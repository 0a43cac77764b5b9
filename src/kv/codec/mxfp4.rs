//! `mxfp4`: 17 bytes for 32 elements (4.25 bits): a byte e, then 16 bytes of two E2M1 codes each, as in
//! `q4_0`. The byte stands for the scale s = 2^(e-127), where e - 127 = ⌊log2 max|x|⌋ - 2. Codes read as
//! `code·s`. Elements above 6s saturate. Ties go to the smaller magnitude, and zero is always +0.
//!
//! Source: ggml `quantize_row_mxfp4_ref`, a type of weights. No engine takes it for its cache (SGLang's
//! `fp4_e2m1` has blocks of 16). ggml takes the logarithm in f32, which may round it up just below a power
//! of two; here it is exact. A block that is not finite gets OCP's NaN, e = 255, and reads as NaN.

use super::block::{block_codec, Block};
use super::contract::Codec;
use super::numbers::largest;
use super::pack;
use super::small_float::E2M1;

pub(super) static ALL: &[&dyn Codec] = &[&Mxfp4];

pub(super) struct Mxfp4;

impl Block<32, 17> for Mxfp4 {
    const NAME: &'static str = "mxfp4";
    const ACCEPTED_BY: &'static str = "";

    #[inline(always)]
    fn encode_block(x: &[f32; 32], bytes: &mut [u8; 17]) {
        let extreme = largest(x);
        let e = if extreme.is_finite() { (extreme.to_bits() >> 23).saturating_sub(2) } else { 255 };
        bytes[0] = e as u8;
        let inverse = f32::from_bits(254u32.saturating_sub(e) << 23);
        pack::put_4(&x.map(|v| nearest(v * inverse)), &mut bytes[1..]);
    }

    #[inline(always)]
    fn decode_block(bytes: &[u8; 17], x: &mut [f32; 32]) {
        let scale = match bytes[0] {
            0 => f32::from_bits(1 << 22), // 2⁻¹²⁷ is subnormal
            255 => f32::NAN,
            e => f32::from_bits(u32::from(e) << 23),
        };
        *x = pack::get_4(&bytes[1..]).map(|q| value(q) * scale);
    }
}
block_codec!(Mxfp4, 32, 17);

/// The value of an E2M1 code with its sign.
#[inline(always)]
pub(super) fn value(code: u8) -> f32 {
    let magnitude = E2M1.decode(code & 7);
    if code & 8 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

#[inline(always)]
fn nearest(v: f32) -> u8 {
    let midpoints = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
    let magnitude: u8 = midpoints.iter().map(|&m| u8::from(v.abs() > m)).sum();
    magnitude | u8::from(v < 0.0 && magnitude > 0) << 3
}
