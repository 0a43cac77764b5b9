//! Floats of eight and of four bits, as OCP defines them: sign, exponent and mantissa, with subnormals.

/// A format, without its sign bit.
pub(crate) struct SmallFloat {
    /// Bits of the mantissa.
    mantissa: u32,
    /// Exponent of the smallest normal number.
    lowest: i32,
    /// The code of the largest finite number, and its value.
    largest: (u8, f32),
}

/// 1-4-3, bias 7, no infinity, one NaN: 448 at most.
pub(crate) const E4M3: SmallFloat = SmallFloat { mantissa: 3, lowest: -6, largest: (0x7e, 448.0) };
/// 1-5-2, bias 15: 57344 at most.
pub(crate) const E5M2: SmallFloat =
    SmallFloat { mantissa: 2, lowest: -14, largest: (0x7b, 57344.0) };
/// 1-2-1, bias 1: 0, ½, 1, 1½, 2, 3, 4, 6.
pub(crate) const E2M1: SmallFloat = SmallFloat { mantissa: 1, lowest: 0, largest: (7, 6.0) };

impl SmallFloat {
    /// The largest finite number.
    pub(super) const fn largest(&self) -> f32 {
        self.largest.1
    }

    /// The code of |x|, rounded to nearest even. Numbers that are too large, infinity included, become the
    /// largest finite one.
    #[inline(always)]
    pub(super) fn encode(&self, x: f32) -> u8 {
        let x = x.abs().min(self.largest.1);
        let exponent = ((x.to_bits() >> 23) as i32 - 127).max(self.lowest);
        let steps_per_one = power_of_two(self.mantissa as i32 - exponent);
        // if rounding up reaches the next power of two, the sum carries into the exponent
        let steps = (x * steps_per_one).round_ties_even() as i32;
        (((exponent - self.lowest) << self.mantissa) + steps) as u8
    }

    /// The value of a code without its sign. Codes above that of the largest number are NaN.
    #[inline(always)]
    pub(crate) fn decode(&self, code: u8) -> f32 {
        if code > self.largest.0 {
            return f32::NAN;
        }
        // these are the fields of an f32 whose exponent is too small by a constant
        f32::from_bits(u32::from(code) << (23 - self.mantissa)) * power_of_two(126 + self.lowest)
    }
}

#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}
