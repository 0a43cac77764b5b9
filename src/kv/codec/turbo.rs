//! `turbo4`, `turbo3` and `turbo2`: 66, 50 and 34 bytes for 128 elements (4.125, 3.125 and 2.125 bits). This is
//! the TurboQuant family in the form that llama.cpp's forks have: a half scale, then codes of rotated
//! coordinates.
//!
//! A group x has the length n = ‖x‖ and the coordinates y = D₂·H·D₁·x/n. H is the orthonormal Hadamard
//! matrix, D₁ and D₂ are fixed signs. Whatever x is, the coordinates are nearly normal with variance 1/128.
//! Each gets the number of the table's nearest value c as its code; half-way between two values it is the
//! upper one. The stored scale is half(n/‖c‖), so that what is read back has the length of x. It reads as
//! D₁·H·D₂·(c·scale).
//!
//! A head that 128 does not divide is filled up with zeros, as in llama-cpp-turboquant. All coordinates of its
//! last group are coded, so that a head of 64 takes as many bytes as a head of 128.
//!
//! With four bits, byte i holds code 2i in its low and 2i+1 in its high nibble. With three, 32 bytes hold the
//! low two bits of four codes each, from the low end, and 16 bytes behind them the third bits of eight codes
//! each. With two bits there are only the 32 bytes.
//!
//! Source: beellama.cpp before 0.4. Its `turbo4` has these 66 bytes; that of llama-cpp-turboquant has two
//! unused bytes more. The tables differ: here they are the exact Lloyd-Max quantizers of N(0, 1/128)
//! (`scripts/oracle/lloyd_max.py`), which the forks have in rounded form. The forks leave the cache rotated
//! and rotate queries; here what is read is rotated back, which is the same up to rounding.
//!
//! Options: `turbo4:quantile` has the table that llama-cpp-turboquant shipped, the means of sixteen equally
//! probable cells, with twice the error. `:unbiased` stores half(n/⟨c, y⟩), so that ⟨read, x⟩ = ‖x‖², whereas
//! the ordinary scale shrinks the logits that a key gives. No engine has that option.

use super::contract::Codec;
use super::numbers::{get_half, put_half};
use crate::kv::hadamard::{change_signs, hadamard};

pub(super) static ALL: &[&dyn Codec] = &[
    &TURBO4,
    &TURBO4_QUANTILE,
    &TURBO4_UNBIASED,
    &TURBO3,
    &TURBO3_UNBIASED,
    &TURBO2,
    &TURBO2_UNBIASED,
];

pub(super) const GROUP: usize = 128;

/// A member of the family: how coordinates become codes, and the rule for the scale.
pub(super) struct Turbo<Q> {
    pub(super) name: &'static str,
    pub(super) accepted_by: &'static str,
    pub(super) quantizer: Q,
    pub(super) scale: Scale,
}

/// How the coordinates of a group become codes.
pub(super) trait Quantizer: Send + Sync {
    /// How many bytes the codes of a group take.
    fn bytes(&self) -> usize;

    /// Writes the codes of `y`.
    fn encode(&self, y: &[f32; GROUP], codes: &mut [u8]);

    /// The values that codes stand for.
    fn decode(&self, codes: &[u8]) -> [f32; GROUP];
}

/// Takes the nearest value of a symmetric table. This is the positive half of the table, in ascending order.
#[derive(Clone, Copy)]
pub(super) struct Table(&'static [f32]);

#[derive(Clone, Copy)]
pub(super) enum Scale {
    /// What is read back has the length of what was stored.
    Length,
    /// The inner product of what is read back and what was stored is the square of that length.
    Product,
}

// Their distortions on N(0, 1) are 0.009501, 0.034548 and 0.117482; that of the quantile means is 0.020273.
const LLOYD_MAX_4: [f32; 8] = [
    0.011348625,
    0.03429895,
    0.058049854,
    0.08329192,
    0.1110362,
    0.14301644,
    0.18287702,
    0.24152908,
];
const LLOYD_MAX_3: [f32; 4] = [0.02166347, 0.06682206, 0.11878592, 0.19020693];
const LLOYD_MAX_2: [f32; 2] = [0.04002048, 0.13350332];
const QUANTILE_MEANS_4: [f32; 8] =
    [0.006938, 0.020989, 0.035597, 0.051262, 0.068756, 0.089527, 0.117195, 0.173926];

pub(super) static TURBO4: Turbo<Table> = Turbo {
    name: "turbo4",
    accepted_by: "beellama.cpp before 0.4: -ctk turbo4 -ctv turbo4",
    quantizer: Table(&LLOYD_MAX_4),
    scale: Scale::Length,
};
pub(super) static TURBO4_QUANTILE: Turbo<Table> = Turbo {
    name: "turbo4:quantile",
    accepted_by: "llama-cpp-turboquant: -ctk turbo4 -ctv turbo4",
    quantizer: Table(&QUANTILE_MEANS_4),
    ..TURBO4
};
pub(super) static TURBO4_UNBIASED: Turbo<Table> =
    Turbo { name: "turbo4:unbiased", accepted_by: "", scale: Scale::Product, ..TURBO4 };
pub(super) static TURBO3: Turbo<Table> = Turbo {
    name: "turbo3",
    accepted_by: "beellama.cpp before 0.4, llama-cpp-turboquant: -ctk turbo3 -ctv turbo3",
    quantizer: Table(&LLOYD_MAX_3),
    scale: Scale::Length,
};
pub(super) static TURBO3_UNBIASED: Turbo<Table> =
    Turbo { name: "turbo3:unbiased", accepted_by: "", scale: Scale::Product, ..TURBO3 };
pub(super) static TURBO2: Turbo<Table> = Turbo {
    name: "turbo2",
    accepted_by: "beellama.cpp before 0.4, llama-cpp-turboquant: -ctk turbo2 -ctv turbo2",
    quantizer: Table(&LLOYD_MAX_2),
    scale: Scale::Length,
};
pub(super) static TURBO2_UNBIASED: Turbo<Table> =
    Turbo { name: "turbo2:unbiased", accepted_by: "", scale: Scale::Product, ..TURBO2 };

/// The forks' signs of D₁ and D₂: bit i%8 of byte i/8 is set if element i changes its sign. numpy's
/// `default_rng(42)` chose them, twice 128 times from -1 and 1.
const FIRST_SIGNS: [u8; GROUP / 8] = [
    0x59, 0x03, 0x6a, 0xe4, 0x49, 0x59, 0xf8, 0x42, 0xbb, 0x3b, 0xc6, 0xa4, 0xa9, 0x50, 0xf2, 0x49,
];
const SECOND_SIGNS: [u8; GROUP / 8] = [
    0x90, 0xee, 0xac, 0x16, 0xdc, 0x8f, 0x62, 0x3f, 0x7a, 0x35, 0xa5, 0xb7, 0x62, 0x65, 0xa5, 0xbe,
];

/// Lengths up to this one count as zero.
const NO_LENGTH: f32 = 1e-10;

impl<Q: Quantizer> Codec for Turbo<Q> {
    fn name(&self) -> &str {
        self.name
    }

    fn accepted_by(&self) -> &str {
        self.accepted_by
    }

    fn block(&self, head_dim: usize) -> usize {
        if head_dim.is_multiple_of(GROUP) {
            GROUP
        } else {
            head_dim
        }
    }

    fn block_bytes(&self, head_dim: usize) -> usize {
        self.block(head_dim).div_ceil(GROUP) * self.group_bytes()
    }

    fn is_rotated(&self) -> bool {
        false
    }

    fn encode(&self, x: &[f32], bytes: &mut [u8]) {
        assert!(bytes.len() == self.encoded_bytes(x.len()));
        for (x, bytes) in x.chunks(GROUP).zip(bytes.chunks_exact_mut(self.group_bytes())) {
            let mut y = [0.0; GROUP];
            y[..x.len()].copy_from_slice(x);
            let length = to_coordinates(&mut y);
            self.quantizer.encode(&y, &mut bytes[2..]);
            let c = self.quantizer.decode(&bytes[2..]);
            let divisor = match self.scale {
                Scale::Length => product(&c, &c).sqrt(),
                Scale::Product => product(&c, &y),
            };
            put_half(bytes, 0, if divisor > NO_LENGTH { length / divisor } else { length });
        }
    }

    fn decode(&self, bytes: &[u8], x: &mut [f32]) {
        assert!(bytes.len() == self.encoded_bytes(x.len()));
        for (bytes, x) in bytes.chunks_exact(self.group_bytes()).zip(x.chunks_mut(GROUP)) {
            let scale = get_half(bytes, 0);
            let mut y = self.quantizer.decode(&bytes[2..]).map(|c| c * scale);
            from_coordinates(&mut y);
            x.copy_from_slice(&y[..x.len()]);
        }
    }
}

impl<Q: Quantizer> Turbo<Q> {
    fn group_bytes(&self) -> usize {
        2 + self.quantizer.bytes()
    }
}

/// Replaces a group by its coordinates and returns its length.
fn to_coordinates(x: &mut [f32; GROUP]) -> f32 {
    let length = product(x, x).sqrt();
    *x = x.map(|v| if length > NO_LENGTH { v / length } else { 0.0 });
    change_signs(x, &FIRST_SIGNS);
    hadamard(x, GROUP);
    change_signs(x, &SECOND_SIGNS);
    length
}

/// Rotates coordinates back.
fn from_coordinates(y: &mut [f32; GROUP]) {
    change_signs(y, &SECOND_SIGNS);
    hadamard(y, GROUP);
    change_signs(y, &FIRST_SIGNS);
}

fn product(a: &[f32; GROUP], b: &[f32; GROUP]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Quantizer for Table {
    fn bytes(&self) -> usize {
        GROUP * self.bits() / 8
    }

    fn encode(&self, y: &[f32; GROUP], codes: &mut [u8]) {
        pack(&y.map(|v| self.nearest(v)), self.bits(), codes);
    }

    fn decode(&self, codes: &[u8]) -> [f32; GROUP] {
        unpack(codes, self.bits()).map(|q| self.value(q))
    }
}

impl Table {
    fn bits(&self) -> usize {
        1 + self.0.len().ilog2() as usize
    }

    /// The value of a code. Codes ascend from the most negative value to the largest one.
    fn value(&self, code: u8) -> f32 {
        let (code, half) = (usize::from(code), self.0.len());
        if code < half {
            -self.0[half - 1 - code]
        } else {
            self.0[code - half]
        }
    }

    /// The code of the nearest value.
    fn nearest(&self, y: f32) -> u8 {
        let midpoint = |code: u8| 0.5 * (self.value(code) + self.value(code + 1));
        let last = 2 * self.0.len() as u8 - 1;
        (0..last).map(|code| u8::from(y >= midpoint(code))).sum()
    }
}

fn pack(codes: &[u8; GROUP], bits: usize, bytes: &mut [u8]) {
    if bits == 4 {
        for (byte, q) in bytes.iter_mut().zip(codes.as_chunks::<2>().0) {
            *byte = q[0] | q[1] << 4;
        }
        return;
    }
    let (low, high) = bytes.split_at_mut(GROUP / 4);
    for (byte, q) in low.iter_mut().zip(codes.as_chunks::<4>().0) {
        *byte = (0..4).map(|k| (q[k] & 3) << (2 * k)).sum();
    }
    for (byte, q) in high.iter_mut().zip(codes.as_chunks::<8>().0) {
        *byte = (0..8).map(|k| (q[k] >> 2) << k).sum();
    }
}

fn unpack(bytes: &[u8], bits: usize) -> [u8; GROUP] {
    let field = |from: usize, width: usize, i: usize| {
        let bit = i * width;
        bytes[from + bit / 8] >> (bit % 8) & ((1 << width) - 1) as u8
    };
    std::array::from_fn(|i| match bits {
        4 => field(0, 4, i),
        3 => field(0, 2, i) | field(GROUP / 4, 1, i) << 2,
        _ => field(0, 2, i),
    })
}
