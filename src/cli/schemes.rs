//! `kvgate schemes`: the catalogue.

use super::{say, Stop};
use crate::kv::codec::CODECS;

/// Heads for which formats are described whose block is the head.
const HEAD: usize = 128;

pub(super) fn run() -> Result<u8, Stop> {
    say(format!("{:<16} {:>8}  {:<9} {:<25} engines", "codec", "bits", "block", "rotated"))?;
    for codec in CODECS {
        let rotated = match codec.is_rotated() {
            true => "where 64 divides the head",
            false => "no",
        };
        let (name, bits) = (codec.name(), codec.bits_per_element(HEAD));
        let block = match codec.block(HEAD) {
            HEAD if codec.block(2 * HEAD) > HEAD => "head".to_string(),
            block => block.to_string(),
        };
        let row = format!("{name:<16} {bits:>8} {block:>6}    {rotated:<25} {}", codec.engines());
        say(row.trim_end())?;
    }
    say("\nA scheme is a codec for both K and V (q8_0), or one for each (q8_0/q4_0: K first).\n\
         `:norot` after a codec that is rotated switches the Hadamard rotation off (q4_0:norot).\n\
         Bits are those at heads of 128 where the block is the head.")?;
    Ok(0)
}
