//! `kvgate schemes`: the catalogue.

use super::{say, Stop};
use crate::kv::codec::CODECS;

pub(super) fn run() -> Result<u8, Stop> {
    say(format!("{:<8} {:>8}  {:<9} {:<25} engines", "codec", "bits", "block", "rotated"))?;
    for codec in CODECS {
        let rotated = match codec.is_quantized() {
            true => "where 64 divides the head",
            false => "no",
        };
        let (name, bits, block) = (codec.name(), codec.bits_per_element(), codec.block());
        let row = format!("{name:<8} {bits:>8} {block:>6}    {rotated:<25} {}", codec.engines());
        say(row.trim_end())?;
    }
    say("\nA scheme is a codec for both K and V (q8_0), or one for each (q8_0/q4_0: K first).\n\
         `:norot` after a quantized codec switches the Hadamard rotation off (q4_0:norot).")?;
    Ok(0)
}
