//! Numbers of few bits that quantized checkpoints store.

use crate::kv::codec::small_float::{SmallFloat, E2M1, E4M3};
use std::sync::LazyLock;

/// Values of all codes of FP8 (e4m3), sign included. Two of them are NaN.
static E4M3_VALUES: LazyLock<[f32; 256]> = LazyLock::new(|| signed(&E4M3, 7));
/// Values of all codes of FP4 (e2m1).
static E2M1_VALUES: LazyLock<[f32; 16]> = LazyLock::new(|| signed(&E2M1, 3));

fn signed<const N: usize>(format: &SmallFloat, sign_bit: u32) -> [f32; N] {
    std::array::from_fn(|code| {
        let magnitude = format.decode((code & ((1 << sign_bit) - 1)) as u8);
        if code >> sign_bit == 1 {
            -magnitude
        } else {
            magnitude
        }
    })
}

pub(super) fn e4m3(code: u8) -> f32 {
    E4M3_VALUES[usize::from(code)]
}

/// Takes the lower four bits.
pub(super) fn e2m1(code: u8) -> f32 {
    E2M1_VALUES[usize::from(code & 15)]
}

/// A power of two, as the scales of the microscaling formats: 2^(code - 127). The highest code is NaN.
pub(super) fn e8m0(code: u8) -> f32 {
    match code {
        // a subnormal number
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_formats() {
        assert_eq!([0x00, 0x01, 0x38, 0x7e].map(e4m3), [0.0, 0.001953125, 1.0, 448.0]);
        assert_eq!([0x81, 0xfe].map(e4m3), [-0.001953125, -448.0]);
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        assert_eq!([0, 1, 7, 9, 15, 0x17].map(e2m1), [0.0, 0.5, 6.0, -0.5, -6.0, 6.0]);
        assert_eq!([1, 127, 130].map(e8m0), [f32::MIN_POSITIVE, 1.0, 8.0]);
        assert_eq!(e8m0(0), f32::MIN_POSITIVE / 2.0);
        assert!(e8m0(255).is_nan());
    }
}
