//! Arithmetic for loops on the CPU, written so that the compiler vectorizes it inside of `pulp`'s run-time dispatch.

/// Defines a function whose body is compiled for the widest vectors of the processor that it runs on:
/// `vectorized!(fn name['a](x: &'a [f32]) -> f32 { … })`, or `['a, const N: usize]`.
///
/// Everything that the body calls must be `#[inline(always)]`, because what is not inlined into the dispatch is
/// compiled for the oldest processor. For the same reason this is a macro and not a function that takes a closure: no
/// attribute can force a closure to be inlined.
macro_rules! vectorized {
    ($vis:vis fn $name:ident[$life:lifetime $(, const $n:ident: usize)?]($($arg:ident: $type:ty),*) $(-> $ret:ty)? $body:block) => {
        $vis fn $name<$life $(, const $n: usize)?>($($arg: $type),*) $(-> $ret)? {
            struct Kernel<$life $(, const $n: usize)?> {
                $($arg: $type),*
            }
            impl<$life $(, const $n: usize)?> pulp::NullaryFnOnce for Kernel<$life $(, $n)?> {
                #[allow(unused_parens)]
                type Output = ($($ret)?);
                #[inline(always)]
                fn call(self) -> Self::Output {
                    let Kernel { $($arg),* } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Kernel { $($arg),* })
        }
    };
}
pub(crate) use vectorized;

/// e^x to about 1 ulp in f32. It is 0 below the normal range, infinite above it, and NaN for NaN.
///
/// With x = n·ln 2 + r and |r| ≤ ln 2 / 2, a polynomial gives e^r. Its coefficients are those of Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.376_26;
    // adding 1.5·2²³ rounds to an integer, which then stands in the low bits
    const ROUND: f32 = 12_582_912.0;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4f32;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(r, c);
    }
    let e_r = p.mul_add(r * r, r) + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let e_x = e_r * f32::from_bits(exponent << 23);
    if x < LOWEST {
        0.0
    } else if x > HIGHEST {
        f32::INFINITY
    } else {
        e_x
    }
}

/// e^x - 1 - x without cancellation near 0, in f32.
#[inline(always)]
pub(crate) fn exp_excess(x: f32) -> f32 {
    // Taylor: x²/2 + x³/6 + … to x⁹, whose remainder is below 1e-9 of the value for |x| ≤ 1/2
    const SMALL: f32 = 0.5;
    let mut p = 2.755_731_9e-6f32;
    for c in [2.480_158_7e-5, 1.984_127e-4, 1.388_888_9e-3, 8.333_333e-3, 4.166_666_7e-2] {
        p = p.mul_add(x, c);
    }
    let p = p.mul_add(x, 1.666_666_7e-1).mul_add(x, 0.5);
    let small = p * x * x;
    let large = exp(x) - 1.0 - x;
    if x.abs() <= SMALL {
        small
    } else {
        large
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_accurate() {
        let mut x = -87.0f32;
        while x < 88.0 {
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 2.5e-7, "exp({x}) = {got}, not {want}");
            x += 0.013;
        }
        let mut x = -20.0f64;
        while x < 20.0 {
            for x in [x, x * 1e-2, x * 1e-4] {
                let x32 = x as f32;
                let x = f64::from(x32);
                let want = if x.abs() < 1e-2 {
                    x * x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0 * (1.0 + x / 5.0)))
                } else {
                    x.exp() - 1.0 - x
                };
                let got = f64::from(exp_excess(x32));
                assert!((got - want).abs() <= 2e-6 * want.abs(), "excess({x}) = {got}, not {want}");
            }
            x += 0.0173;
        }
    }

    #[test]
    fn exponentials_at_the_edges() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan() && exp_excess(f32::NAN).is_nan());
        assert_eq!(exp_excess(0.0), 0.0);
    }
}
