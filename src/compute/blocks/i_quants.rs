//! The i-quants. Those of up to 3 bits look up several neighbouring numbers at once in a *grid*, a table of the
//! combinations that the type can store; those of 4 bits look up each number in a table of unevenly spaced ones.
//!
//! Grids are stored as the Python package `gguf` packs them: as indices of 2 or 4 bits into the few values that occur.

use super::{half, half_at, nibbles, taken};

/// A grid of rows of `WIDTH` values, of which indices of `8 / PER_BYTE` bits are stored.
const fn grid<const BYTES: usize, const ROWS: usize, const WIDTH: usize, const VALUES: usize>(
    packed: &[u8; BYTES],
    values: [u8; VALUES],
) -> [[u8; WIDTH]; ROWS] {
    let per_byte = ROWS * WIDTH / BYTES;
    let bits = 8 / per_byte;
    let mut grid = [[0; WIDTH]; ROWS];
    let mut at = 0;
    while at < ROWS * WIDTH {
        let index = packed[at / per_byte] >> (at % per_byte * bits) & ((1 << bits) - 1);
        grid[at / WIDTH][at % WIDTH] = values[index as usize];
        at += 1;
    }
    grid
}

const OF_2_BITS: [u8; 3] = [0x08, 0x19, 0x2b];
static IQ2_XXS: [[u8; 8]; 256] = grid(include_bytes!("iq2_xxs.grid"), OF_2_BITS);
static IQ2_XS: [[u8; 8]; 512] = grid(include_bytes!("iq2_xs.grid"), OF_2_BITS);
static IQ2_S: [[u8; 8]; 1024] = grid(include_bytes!("iq2_s.grid"), OF_2_BITS);
static IQ3_XXS: [[u8; 4]; 256] =
    grid(include_bytes!("iq3_xxs.grid"), [0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3e]);
static IQ3_S: [[u8; 4]; 512] = grid(include_bytes!("iq3_s.grid"), [1, 3, 5, 7, 9, 11, 13, 15]);
/// One more than the values, which are -1, 0 and 1.
static IQ1: [[u8; 8]; 2048] = grid(include_bytes!("iq1_s.grid"), [0, 1, 2]);

/// The rows of a type's grid, for the kernels of cards.
pub(super) fn grid_of(name: &str) -> Option<&'static [u8]> {
    Some(match name {
        "IQ1_S" | "IQ1_M" => IQ1.as_flattened(),
        "IQ2_XXS" => IQ2_XXS.as_flattened(),
        "IQ2_XS" => IQ2_XS.as_flattened(),
        "IQ2_S" => IQ2_S.as_flattened(),
        "IQ3_XXS" => IQ3_XXS.as_flattened(),
        "IQ3_S" => IQ3_S.as_flattened(),
        _ => return None,
    })
}

/// The numbers of IQ4_NL and IQ4_XS.
const IQ4: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

// -------------------------------------------------------------------------------------------------------- 2 and 3 bits

/// The signs of eight numbers, of which seven are stored: the eighth makes the count of negative ones even.
#[inline(always)]
fn signs(seven: u32) -> u8 {
    let seven = seven as u8 & 127;
    seven | ((seven.count_ones() & 1) as u8) << 7
}

/// Eight magnitudes times a scale, negative where a bit is set.
#[inline(always)]
fn signed(out: &mut [f32; 8], d: f32, magnitudes: [u8; 8], signs: u8) {
    for (i, (out, magnitude)) in out.iter_mut().zip(magnitudes).enumerate() {
        let number = d * f32::from(magnitude);
        *out = f32::from_bits(number.to_bits() ^ u32::from(signs >> i & 1) << 31);
    }
}

/// Two rows of a grid of four values, one after the other.
#[inline(always)]
fn both(first: [u8; 4], second: [u8; 4]) -> [u8; 8] {
    std::array::from_fn(|i| if i < 4 { first[i] } else { second[i - 4] })
}

/// The parts of a block of 256 that have a scale, 32 numbers each, as four times eight.
#[inline(always)]
fn parts(out: &mut [f32; 256]) -> &mut [[[f32; 8]; 4]] {
    out.as_chunks_mut::<8>().0.as_chunks_mut::<4>().0
}

#[inline(always)]
fn word(bytes: &[u8], index: usize) -> u16 {
    u16::from_le_bytes(*taken(bytes, 2 * index))
}

#[inline(always)]
fn long_word(bytes: &[u8], index: usize) -> u32 {
    u32::from_le_bytes(*taken(bytes, 4 * index))
}

#[inline(always)]
pub(super) fn iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for (part, out) in parts(out).iter_mut().enumerate() {
        let rows: &[u8; 4] = taken(block, 2 + 8 * part);
        let rest = long_word(&block[2..], 2 * part + 1);
        let d = d * (0.5 + (rest >> 28) as f32) * 0.25;
        for (i, (out, row)) in out.iter_mut().zip(rows).enumerate() {
            signed(out, d, IQ2_XXS[usize::from(*row)], signs(rest >> (7 * i)));
        }
    }
}

#[inline(always)]
pub(super) fn iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for (part, out) in parts(out).iter_mut().enumerate() {
        let scales = quarter_scales(d, block[66 + part]);
        for (i, out) in out.iter_mut().enumerate() {
            let code = word(&block[2..66], 4 * part + i);
            let row = IQ2_XS[usize::from(code & 511)];
            signed(out, scales[i / 2], row, signs(u32::from(code >> 9)));
        }
    }
}

#[inline(always)]
pub(super) fn iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let (rows, all_signs): (&[u8; 32], &[u8; 32]) = (taken(block, 2), taken(block, 34));
    for (part, out) in parts(out).iter_mut().enumerate() {
        let scales = quarter_scales(d, block[74 + part]);
        let high = usize::from(block[66 + part]);
        for (i, out) in out.iter_mut().enumerate() {
            let at = 4 * part + i;
            let row = usize::from(rows[at]) | (high >> (2 * i) & 3) << 8;
            signed(out, scales[i / 2], IQ2_S[row], all_signs[at]);
        }
    }
}

/// The scales of two groups of 16 numbers, of four bits each.
#[inline(always)]
fn quarter_scales(d: f32, both: u8) -> [f32; 2] {
    [both & 15, both >> 4].map(|scale| d * (0.5 + f32::from(scale)) * 0.25)
}

#[inline(always)]
pub(super) fn iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for (part, out) in parts(out).iter_mut().enumerate() {
        let rows: &[u8; 8] = taken(block, 2 + 8 * part);
        let rest = long_word(&block[66..], part);
        let d = d * (0.5 + (rest >> 28) as f32) * 0.5;
        for (i, out) in out.iter_mut().enumerate() {
            let row = |at: usize| IQ3_XXS[usize::from(rows[at])];
            signed(out, d, both(row(2 * i), row(2 * i + 1)), signs(rest >> (7 * i)));
        }
    }
}

#[inline(always)]
pub(super) fn iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for (part, out) in parts(out).iter_mut().enumerate() {
        let rows: &[u8; 8] = taken(block, 2 + 8 * part);
        let high = usize::from(block[66 + part]);
        let scale = block[106 + part / 2] >> (4 * (part % 2)) & 15;
        let d = d * f32::from(1 + 2 * scale);
        for (i, out) in out.iter_mut().enumerate() {
            let row = |at: usize| IQ3_S[usize::from(rows[at]) | (high >> at & 1) << 8];
            signed(out, d, both(row(2 * i), row(2 * i + 1)), block[74 + 4 * part + i]);
        }
    }
}

// --------------------------------------------------------------------------------------------------------------- 1 bit

/// What is added to the values of a grid, or taken off them.
const DELTA: f32 = 0.125;

/// Eight values of a grid, shifted and scaled.
#[inline(always)]
fn shifted(out: &mut [f32; 8], d: f32, row: usize, is_lower: bool) {
    let delta = if is_lower { -1.0 - DELTA } else { -1.0 + DELTA };
    for (out, value) in out.iter_mut().zip(IQ1[row]) {
        *out = d * (f32::from(value) + delta);
    }
}

#[inline(always)]
pub(super) fn iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for (part, out) in parts(out).iter_mut().enumerate() {
        let rows: &[u8; 4] = taken(block, 2 + 4 * part);
        let rest = word(&block[34..], part);
        let d = d * f32::from(2 * (rest >> 12 & 7) + 1);
        for (i, (out, row)) in out.iter_mut().zip(rows).enumerate() {
            let row = usize::from(*row) | usize::from(rest >> (3 * i) & 7) << 8;
            shifted(out, d, row, rest >> 15 == 1);
        }
    }
}

#[inline(always)]
pub(super) fn iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let scales: [u16; 4] = std::array::from_fn(|i| word(&block[48..], i));
    // a quarter of the block's own scale stands in the high bits of each word
    let bits = scales.iter().rev().fold(0, |bits, word| bits << 4 | word >> 12);
    let d = half(bits.to_le_bytes());
    for (part, out) in parts(out).iter_mut().enumerate() {
        let rows: &[u8; 4] = taken(block, 4 * part);
        for (i, (out, row)) in out.iter_mut().zip(rows).enumerate() {
            let (at, group) = (4 * part + i, 2 * part + i / 2);
            let rest = block[32 + at / 2] >> (4 * (at % 2));
            let scale = scales[group / 4] >> (3 * (group % 4)) & 7;
            let row = usize::from(*row) | usize::from(rest & 7) << 8;
            shifted(out, d * f32::from(2 * scale + 1), row, rest >> 3 & 1 == 1);
        }
    }
}

// -------------------------------------------------------------------------------------------------------------- 4 bits

#[inline(always)]
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    nibbles(taken(block, 2), out, |q, _| d * IQ4[usize::from(q)]);
}

#[inline(always)]
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let (d, high) = (half_at(block, 0), word(&block[2..], 0));
    for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = block[4 + part / 2] >> (4 * (part % 2)) & 15;
        let scale = low | ((high >> (2 * part) & 3) as u8) << 4;
        let d = d * (f32::from(scale) - 32.0);
        nibbles(taken(block, 8 + 16 * part), out, |q, _| d * IQ4[usize::from(q)]);
    }
}
