//! What the cache may cost: bits per element, or the memory of all sequences.

use crate::results::shown_bits;
use crate::text::numbers::count;
use serde::Serialize;

/// A budget.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Budget {
    /// The most bits per element of the whole cache at the served context.
    pub bits: f64,
    /// How it was asked for, in words, which also say how many bits this is.
    pub asked: String,
    /// What shares the memory, if memory was asked for.
    #[serde(skip)]
    served: Option<Served>,
}

/// The sequences that share a memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Served {
    pub sequences: u32,
    /// How many tokens each has.
    pub tokens: usize,
    /// Bytes of the cache of one sequence in half precision.
    pub f16: usize,
    /// Bytes of what no scheme changes in one sequence: the states of recurrent layers.
    pub states: usize,
}

/// Why memory is no budget.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no size: write a number and a unit, such as 4GiB, 512MiB or 24GB")]
pub struct SizeError(String);

/// Bits per element in half precision.
const F16_BITS: f64 = 16.0;

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

/// A size as [`size`] reads it, which is at least so many bytes.
fn size_of_at_least(bytes: f64) -> String {
    // from 10 KiB on, it is at most a tenth too much
    let is_fine = |unit: &&(&str, u64)| unit.0.ends_with("iB") && bytes >= 10.0 * unit.1 as f64;
    let (name, unit) = UNITS.iter().rev().find(is_fine).unwrap_or(&UNITS[0]);
    format!("{}{name}", (bytes / *unit as f64).ceil())
}

/// Bits as people may type them: rounded up to hundredths, so that they are enough.
pub(super) fn enough(bits: f64) -> f64 {
    // what is a hundredth but for the rounding of quotients is not rounded up
    shown_bits((bits * 100.0 - 1e-6).ceil() / 100.0)
}

impl Budget {
    pub fn of_bits(bits: f64) -> Self {
        Budget { bits, asked: format!("{bits} bits per element"), served: None }
    }

    /// The budget of so much memory, which somebody wrote as `text`.
    pub fn of_memory(memory: u64, text: &str, served: Served) -> Self {
        let Served { sequences, tokens, f16, states } = served;
        let each = memory as f64 / f64::from(sequences) - states as f64;
        let bits = F16_BITS * each.max(0.0) / f16 as f64;
        let of = if sequences == 1 {
            "a sequence".into()
        } else {
            count(sequences as usize, "sequence")
        };
        let are = if bits >= F16_BITS {
            format!("which is {F16_BITS} bits per element or more")
        } else if each > 0.0 {
            // rounded down, so that it does not promise too much
            format!("which is {} bits per element", shown_bits((bits * 100.0).floor() / 100.0))
        } else {
            "which the states of recurrent layers take".into()
        };
        Budget {
            bits,
            asked: format!("{text} for {of} of {tokens} tokens, {are}"),
            served: Some(served),
        }
    }

    /// Whether the unquantized cache fits, which does nothing.
    pub(super) fn fits_half_precision(&self) -> bool {
        self.bits >= F16_BITS
    }

    /// What to change so that a scheme fits that has so many bits, and takes so many bytes for a sequence.
    pub(super) fn allowing(&self, bits: f64, bytes: usize) -> String {
        let Some(Served { sequences, states, .. }) = self.served else {
            return format!("allow as many (--bits {})", enough(bits));
        };
        let memory = size_of_at_least(f64::from(sequences) * (bytes + states) as f64);
        let fewer = if sequences > 1 { ", serve fewer --sequences" } else { "" };
        format!("allow --memory {memory}{fewer}, or serve a shorter --context")
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

    /// 16 bits take 100 bytes, of which each of 4 sequences may have 50.
    fn shared(states: usize) -> Budget {
        Budget::of_memory(200, "200B", Served { sequences: 4, tokens: 8, f16: 100, states })
    }

    #[test]
    fn memory_is_shared_by_sequences_after_their_states() {
        assert_eq!([0, 25, 60].map(|states| shared(states).bits), [8.0, 4.0, 0.0]);
        let asked = "200B for 4 sequences of 8 tokens, which ";
        assert_eq!(shared(25).asked, format!("{asked}is 4 bits per element"));
        assert_eq!(shared(1).asked, format!("{asked}is 7.84 bits per element"));
        let much = Served { sequences: 1, tokens: 8, f16: 100, states: 0 };
        let asked_much = Budget::of_memory(1 << 40, "1TiB", much).asked;
        assert_eq!(
            asked_much,
            "1TiB for a sequence of 8 tokens, which is 16 bits per element or more"
        );
        assert_eq!(shared(50).asked, format!("{asked}the states of recurrent layers take"));
    }

    #[test]
    fn what_is_said_to_be_enough_is_enough() {
        for (bits, shown) in
            [(4.5, 4.5), (4.0625, 4.07), (8.0 * 18.0 / 32.0, 4.5), (4.33 / 3.0, 1.45)]
        {
            assert_eq!(enough(bits), shown);
        }
        for bytes in [10_240.0, 10_241.0, 3e6, 7.7e9, 1e15] {
            let text = size_of_at_least(bytes);
            let again = size(&text).unwrap() as f64;
            assert!(again >= bytes && again <= 1.1 * bytes, "{bytes} became {text}");
        }
        assert_eq!(Budget::of_bits(3.0).allowing(4.0625, 9), "allow as many (--bits 4.07)");
        let of_memory = shared(25).allowing(8.0, 50);
        assert_eq!(
            of_memory,
            "allow --memory 1KiB, serve fewer --sequences, or serve a shorter --context"
        );
    }
}
