//! Floats of eight and of four bits: sign, exponent and mantissa with subnormals, as OCP defines them.

/// A format, without its sign bit.
pub(super) struct SmallFloat {
    /// Bits of the mantissa.
    mantissa: u32,
    /// Exponent of the smallest normal number.
    lowest: i32,
    /// Code of the largest finite number, and its value.
    largest: (u8, f32),
}

/// 1-4-3, bias 7, no infinity, one NaN: 448 at most.
pub(super) const E4M3: SmallFloat = SmallFloat { mantissa: 3, lowest: -6, largest: (0x7e, 448.0) };
/// 1-5-2, bias 15: 57344 at most.
pub(super) const E5M2: SmallFloat =
    SmallFloat { mantissa: 2, lowest: -14, largest: (0x7b, 57344.0) };
/// 1-2-1, bias 1: 0, ½, 1, 1½, 2, 3, 4, 6.
pub(super) const E2M1: SmallFloat = SmallFloat { mantissa: 1, lowest: 0, largest: (7, 6.0) };

impl SmallFloat {
    /// The largest finite number.
    pub(super) const fn largest(&self) -> f32 {
        self.largest.1
    }

    /// Code of |x|, rounded to nearest even; what is too large, infinity included, becomes the largest.
    #[inline(always)]
    pub(super) fn encode(&self, x: f32) -> u8 {
        let x = x.abs().min(self.largest.1);
        let exponent = ((x.to_bits() >> 23) as i32 - 127).max(self.lowest);
        let steps_per_one = power_of_two(self.mantissa as i32 - exponent);
        // at 2^mantissa steps the exponent moves on, and so does the code
        let steps = (x * steps_per_one).round_ties_even() as i32;
        (((exponent - self.lowest) << self.mantissa) + steps) as u8
    }

    /// Value of a code without its sign; NaN above the largest.
    #[inline(always)]
    pub(super) fn decode(&self, code: u8) -> f32 {
        if code > self.largest.0 {
            return f32::NAN;
        }
        // the fields of an f32 whose exponent is too small by a constant
        f32::from_bits(u32::from(code) << (23 - self.mantissa)) * power_of_two(126 + self.lowest)
    }
}

#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}
