//! What the cache may cost: bits per element, or the memory of all sequences.

use serde::Serialize;

/// A budget.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Budget {
    /// The most bits per element of the whole cache at the served context.
    pub bits: f64,
    /// How it was asked for, in words.
    pub asked: String,
}

/// Why memory is no budget.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no size: write a number and a unit, such as 4GiB, 512MiB or 24GB")]
pub struct SizeError(String);

/// Units of bytes.
const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// Reads a number of bytes, `4GiB`.
///
/// # Errors
/// If it is not a number of bytes above zero with its unit.
pub fn size(text: &str) -> Result<u64, SizeError> {
    let wrong = || SizeError(text.into());
    let trimmed = text.trim();
    let split = UNITS.iter().find_map(|(name, unit)| Some((trimmed.strip_suffix(name)?, *unit)));
    let (number, unit) = split.ok_or_else(wrong)?;
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    let bytes = (number * unit as f64).floor();
    (1.0..1e18).contains(&bytes).then_some(bytes as u64).ok_or_else(wrong)
}

impl Budget {
    pub fn of_bits(bits: f64) -> Self {
        Budget { bits, asked: format!("{bits} bits per element") }
    }

    /// The budget of so much memory for the caches of `sequences` sequences, which take `f16` bytes each in half precision,
    /// and `states` bytes each for what no scheme changes.
    pub fn of_memory(
        memory: u64,
        sequences: u64,
        f16: usize,
        states: usize,
        asked: String,
    ) -> Self {
        let each = memory as f64 / sequences as f64 - states as f64;
        Budget { bits: 16.0 * each.max(0.0) / f16 as f64, asked }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("4GiB", 4 << 30),
            ("1.5 MiB", 3 << 19),
            ("24GB", 24_000_000_000),
            ("512B", 512),
            (" 2KiB ", 2048),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["4", "GiB", "-1GiB", "0B", "4 gib", "4Gi", "nanGB", "infTB", ""] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory_is_shared_by_sequences_after_their_states() {
        let asked = String::new;
        // 16 bits take 100 bytes, of which each of 4 sequences may have 50
        assert_eq!(Budget::of_memory(200, 4, 100, 0, asked()).bits, 8.0);
        assert_eq!(Budget::of_memory(200, 4, 100, 25, asked()).bits, 4.0);
        assert_eq!(Budget::of_memory(200, 4, 100, 60, asked()).bits, 0.0);
    }
}
