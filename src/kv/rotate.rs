//! llama.cpp's automatic Hadamard rotation of quantized caches: when it takes place and in which size
//! (pull request 21038, rules as of b11434).
//!
//! A rotation spreads an outlier over its whole block before the codec sees it. An orthogonal transform of
//! both Q and K leaves Q·K unchanged, and one of V is undone after the sum over V. llama.cpp rotates Q and
//! the result; here the cache rotates what it stores and rotates back what it serves, which gives the same
//! numbers up to rounding and concerns nobody else.

use super::codec::Codec;

/// V is always rotated in blocks of this size. K is rotated in the largest block of 2^t times this size
/// that divides the head. Heads that this size does not divide are not rotated.
const UNIT: usize = 64;

/// The size of K's rotation for heads of `head_dim` elements under `codec`. `None` if there is no rotation.
pub fn k_size(codec: &dyn Codec, head_dim: usize) -> Option<usize> {
    v_size(codec, head_dim)?;
    let mut size = UNIT;
    while head_dim.is_multiple_of(2 * size) {
        size *= 2;
    }
    Some(size)
}

/// The size of V's rotation. `None` if there is no rotation.
pub fn v_size(codec: &dyn Codec, head_dim: usize) -> Option<usize> {
    (codec.is_rotated() && head_dim > 0 && head_dim.is_multiple_of(UNIT)).then_some(UNIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::codec;

    #[test]
    fn sizes_follow_the_rule() {
        let (q4, f16) = (codec::find("q4_0").unwrap(), codec::find("f16").unwrap());
        let sizes = |d| (k_size(q4, d), v_size(q4, d));
        assert_eq!(sizes(64), (Some(64), Some(64)));
        assert_eq!(sizes(128), (Some(128), Some(64)));
        assert_eq!(sizes(192), (Some(64), Some(64)));
        assert_eq!(sizes(256), (Some(256), Some(64)));
        assert_eq!(sizes(320), (Some(64), Some(64)));
        assert_eq!(sizes(96), (None, None));
        assert_eq!((k_size(f16, 64), v_size(f16, 64)), (None, None));
    }
}
