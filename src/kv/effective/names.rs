//! Reads back what an effective scheme writes about its codecs.

use std::collections::BTreeSet;

/// The names of the codecs in a text that [`Effective`](super::Effective) writes. For example
/// `q8_0·H64/q4_0·H64:tail=32 in 0-2 + f16/f16 in 3` names `f16`, `q4_0` and `q8_0`.
pub fn codec_names(written: &str) -> BTreeSet<&str> {
    let until = |text: &'_ str, end: &[char]| text.find(end).unwrap_or(text.len());
    // ways are joined by ` + `, and each may end in ` in ` and its layers
    let ways = written.split(" + ").map(|way| &way[..until(way, &[' '])]);
    let sides = ways.flat_map(|way| way.split('/'));
    sides.map(|side| &side[..until(side, &['·', ':', '@'])]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codecs_of_every_way_and_side_are_named() {
        let names = |written| codec_names(written).into_iter().collect::<Vec<_>>().join(" ");
        assert_eq!(names("f16/f16"), "f16");
        assert_eq!(
            names("q8_0·H64/q4_0·H64:tail=32:sink=4 in 0-2 + f16/f16 in 3"),
            "f16 q4_0 q8_0"
        );
        assert_eq!(names("turbo3:unbiased/turbo3"), "turbo3");
        assert_eq!(names(""), "");
    }
}
