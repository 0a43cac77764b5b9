//! `kvgate schemes` lists the codecs, and shows how schemes are written.

use super::shared::{say, Stop};
use crate::kv::codec::{self, Codec};
use crate::results::shown_bits;

/// The head size that is assumed to describe formats whose block is a whole head.
const HEAD: usize = 128;

pub(super) fn run() -> Result<u8, Stop> {
    say(row(["codec", "bits", "block", "rotated", "variants", "engines"].map(String::from)))?;
    for codec in codec::all().filter(|codec| !codec.name().contains(':')) {
        let rotated = if codec.is_rotated() { "yes" } else { "no" };
        let cells = [codec.name(), &bits(codec), &block(codec), rotated, &variants(codec)];
        let [name, bits, block, rotated, variants] = cells.map(String::from);
        say(row([name, bits, block, rotated, variants, codec.accepted_by().into()]).trim_end())?;
    }
    say(GRAMMAR)?;
    Ok(0)
}

const GRAMMAR: &str = "
Bits are those at heads of 128, scales included; a block is elements of a head × tokens.
A scheme is a codec for both K and V (q8_0), or one for each (q8_0/q4_0: K first), with options:
  :norot            no Hadamard rotation before a codec that is rotated where 64 divides the head
  :VARIANT          a variant of the codec, as listed
  :tail=N :sink=N   the newest and the first N tokens stay exact, in halves (kivi and kvarn have tails
                    of their own: kvarn4 is kvarn4:tail=128:sink=128)
  :center           K less its mean over a calibration text (kvgate calibrate)
  :tensor :head     fp8 with a calibrated scale for each layer, or each of its KV heads
  :checkpoint       fp8_e4m3 with the scales that the checkpoint has
and schemes of their own for some layers: q4_0@first2=q8_0@global=q8_0/q4_0
  @7 @0-2 @firstN @lastN @global @sliding; the last that names a layer counts";

fn row([name, bits, block, rotated, variants, engines]: [String; 6]) -> String {
    format!("{name:<12} {bits:>13} {block:>10}  {rotated:<8} {variants:<22} {engines}")
}

/// Shows a value once if it is the same for K and V, and otherwise both.
fn bits(codec: &dyn Codec) -> String {
    let of = |codec: &dyn Codec| shown_bits(codec.bits_per_element(HEAD)).to_string();
    let (k, v) = (of(codec), of(codec.for_values().unwrap_or(codec)));
    if k == v {
        k
    } else {
        format!("{k} / {v}")
    }
}

fn block(codec: &dyn Codec) -> String {
    let elements = match codec.block(HEAD) {
        HEAD if codec.block(2 * HEAD) > HEAD => "head".to_string(),
        block => block.to_string(),
    };
    match codec.group() {
        1 => elements,
        tokens => format!("{elements} × {tokens}"),
    }
}

fn variants(codec: &dyn Codec) -> String {
    let names = codec::all().filter_map(|c| c.name().strip_prefix(codec.name())?.strip_prefix(':'));
    names.map(|name| format!(":{name}")).collect::<Vec<_>>().join(" ")
}
