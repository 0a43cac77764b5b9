//! How the codes of a ggml block of 32 elements share bytes: a pair of functions for each width.

/// Four bits, 16 bytes: byte j holds code j in its low and code j+16 in its high nibble.
#[inline(always)]
pub(super) fn put_4(codes: &[u8; 32], bytes: &mut [u8]) {
    for j in 0..16 {
        bytes[j] = codes[j] & 15 | (codes[j + 16] & 15) << 4;
    }
}

/// Reads what [`put_4`] wrote.
#[inline(always)]
pub(super) fn get_4(bytes: &[u8]) -> [u8; 32] {
    std::array::from_fn(|j| bytes[j % 16] >> (4 * (j / 16)) & 15)
}

/// Five bits, 20 bytes: a little-endian u32 with the fifth bit of code j at bit j, then the low four bits as
/// in [`put_4`].
#[inline(always)]
pub(super) fn put_5(codes: &[u8; 32], bytes: &mut [u8]) {
    put_plane(codes, 4, bytes);
    put_4(codes, &mut bytes[4..]);
}

/// Reads what [`put_5`] wrote.
#[inline(always)]
pub(super) fn get_5(bytes: &[u8]) -> [u8; 32] {
    joined(get_4(&bytes[4..]), get_plane(bytes), 4)
}

/// Six bits, 24 bytes: first 8 bytes of upper bits, then the low four bits as in [`put_4`]. Byte j of the
/// upper bits holds two of codes j, j+16, j+8 and j+24 each, from its low end.
#[inline(always)]
pub(super) fn put_6(codes: &[u8; 32], bytes: &mut [u8]) {
    put_pairs(&codes.map(|q| q >> 4), [0, 16, 8, 24], bytes);
    put_4(codes, &mut bytes[8..]);
}

/// Reads what [`put_6`] wrote.
#[inline(always)]
pub(super) fn get_6(bytes: &[u8]) -> [u8; 32] {
    joined(get_4(&bytes[8..]), get_pairs(bytes, [0, 2, 1, 3]), 4)
}

/// Two bits, 8 bytes: byte j holds codes j, j+8, j+16 and j+24 from its low end.
#[inline(always)]
pub(super) fn put_2(codes: &[u8; 32], bytes: &mut [u8]) {
    put_pairs(codes, [0, 8, 16, 24], bytes);
}

/// Reads what [`put_2`] wrote.
#[inline(always)]
pub(super) fn get_2(bytes: &[u8]) -> [u8; 32] {
    get_pairs(bytes, [0, 1, 2, 3])
}

/// Three bits, 12 bytes: the low two bits as in [`put_2`], then a little-endian u32 with the third bit of
/// code j at bit j.
#[inline(always)]
pub(super) fn put_3(codes: &[u8; 32], bytes: &mut [u8]) {
    put_2(codes, bytes);
    put_plane(codes, 2, &mut bytes[8..]);
}

/// Reads what [`put_3`] wrote.
#[inline(always)]
pub(super) fn get_3(bytes: &[u8]) -> [u8; 32] {
    joined(get_2(bytes), get_plane(&bytes[8..]), 2)
}

/// Puts the high bits of each code above its low ones.
#[inline(always)]
fn joined(low: [u8; 32], high: [u8; 32], shift: u32) -> [u8; 32] {
    std::array::from_fn(|j| low[j] | high[j] << shift)
}

/// Writes bit number `bit` of each code into a little-endian u32: that of code j at bit j.
#[inline(always)]
fn put_plane(codes: &[u8; 32], bit: u32, bytes: &mut [u8]) {
    let mut plane = 0u32;
    for (j, q) in codes.iter().enumerate() {
        plane |= u32::from(q >> bit & 1) << j;
    }
    bytes[..4].copy_from_slice(&plane.to_le_bytes());
}

/// Reads what [`put_plane`] wrote, as bit 0 of each code.
#[inline(always)]
fn get_plane(bytes: &[u8]) -> [u8; 32] {
    let plane = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    std::array::from_fn(|j| (plane >> j & 1) as u8)
}

/// Writes the low two bits of each code: byte j holds those of code j + `from[k]` at bit 2k.
#[inline(always)]
fn put_pairs(codes: &[u8; 32], from: [usize; 4], bytes: &mut [u8]) {
    for j in 0..8 {
        let pair = |k: usize| (codes[j + from[k]] & 3) << (2 * k);
        bytes[j] = pair(0) | pair(1) | pair(2) | pair(3);
    }
}

/// Reads what [`put_pairs`] wrote. Codes 8i to 8i+7 stand at bit `2·place[i]` of the eight bytes.
#[inline(always)]
fn get_pairs(bytes: &[u8], place: [u32; 4]) -> [u8; 32] {
    std::array::from_fn(|j| bytes[j % 8] >> (2 * place[j / 8]) & 3)
}
