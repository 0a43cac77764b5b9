//! Numbers as people read them.

/// So many of something: `2 cases`, `1 case`.
pub(crate) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A number of bytes in binary units, with one decimal below 100 of a unit: `3 B`, `1.5 GiB`, `250 MiB`.
///
/// It may be a fraction, because a token's share of a quantized cache need not be a whole number of bytes.
pub(crate) fn bytes(n: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (n.max(1.0).log2() / 10.0) as usize;
    let unit = unit.min(UNITS.len() - 1);
    let amount = n / 1024f64.powi(unit as i32);
    let shown = if amount < 1000.0 { (amount * 10.0).round() / 10.0 } else { amount.round() };
    format!("{shown} {}", UNITS[unit])
}

/// A value in so many significant digits, without an exponent as long as it stays readable.
///
/// Goldens hold values in this form and are compared as text, so a change of the rounding makes all of them stale.
pub(crate) fn significant(value: f64, digits: u8) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let last = i32::from(digits) - 1;
    // the exponent is that of the rounded value: 9.9996 in four digits is 10.00
    let exponential = format!("{value:.*e}", last as usize);
    let exponent: i32 = exponential.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    if (-4..=last).contains(&exponent) {
        format!("{value:.*}", (last - exponent) as usize)
    } else if (last..=8).contains(&exponent) {
        format!("{value:.0}")
    } else {
        exponential
    }
}

/// Which side of a value its digits are on.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Rounded {
    Up,
    Down,
}

/// As [`significant`], but never on the wrong side of the value, for bounds that people are to set.
pub(crate) fn rounded(value: f64, digits: u8, to: Rounded) -> String {
    let nearest = significant(value, digits);
    if value == 0.0 || !value.is_finite() {
        return nearest; // it has no digits
    }
    let shown: f64 = nearest.parse().unwrap_or(value);
    let unit = 10f64.powi(value.abs().log10().floor() as i32 + 1 - i32::from(digits));
    match to {
        Rounded::Up if shown < value => significant(value + unit, digits),
        Rounded::Down if shown > value => significant(value - unit, digits),
        _ => nearest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_on_the_side_that_they_must_be_on() {
        for (value, up, down) in [
            (0.001233, "0.0013", "0.0012"),
            (0.00127, "0.0013", "0.0012"),
            (0.003, "0.0030", "0.0030"),
            (0.994, "1.0", "0.99"),
            (9.96, "10", "9.9"),
            (0.0, "0", "0"),
            (-0.00123, "-0.0012", "-0.0013"),
            (f64::INFINITY, "inf", "inf"),
        ] {
            let found = [Rounded::Up, Rounded::Down].map(|to| rounded(value, 2, to));
            assert_eq!(found, [up, down], "{value}");
        }
    }

    #[test]
    fn bytes_have_the_unit_that_keeps_them_short() {
        for (n, text) in [
            (0.0, "0 B"),
            (3.0, "3 B"),
            (4.5, "4.5 B"),
            (1023.0, "1023 B"),
            (1024.0, "1 KiB"),
            (250.0 * 1048576.0, "250 MiB"),
            (1.6e9, "1.5 GiB"),
            (1e18, "909495 TiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn digits_are_those_of_the_rounded_value() {
        for (value, digits, text) in [
            (0.0, 4, "0"),
            (9.9996, 4, "10.00"),
            (0.04, 5, "0.040000"),
            (0.001, 2, "0.0010"),
            (-21.10123, 4, "-21.10"),
            (123456.0, 3, "123456"),
            (0.00001234, 3, "1.23e-5"),
            (1e9, 2, "1.0e9"),
            (f64::NAN, 3, "NaN"),
        ] {
            assert_eq!(significant(value, digits), text);
        }
    }
}
