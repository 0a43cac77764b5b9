//! `kivi4` and `kivi2`: 20 and 12 bytes for 32 elements (5 and 3 bits): codes, then a half scale and a half
//! minimum. In K the 32 elements are one channel of 32 tokens, in V they are 32 channels of one token.
//!
//! s = (max - min)/(2^b - 1). The code is round((x - min)/s) within 0 to 2^b - 1, ties to even. Codes are
//! packed from the low end of the first byte on, along tokens in K and along channels in V. A code reads as
//! q·s + min.
//!
//! Source: KIVI (`quant/new_pack.py`, groups of 32) for a model in half precision: x and the result of every
//! operation are rounded to half until the code is taken. What is read is f32, as in the kernels that
//! multiply with it. The original keeps codes, scales and minima in three arrays, in the order in which they
//! stand here. It does not guard against 0/0 if s is zero; here the code is 0 then, and such a group reads as
//! its minimum in any case.

use super::contract::Codec;
use super::numbers::{get_half, put_half, range};
use crate::kv::exact::{Exact, Tail};
use half::f16;

pub(super) static ALL: &[&dyn Codec] = &[&KIVI4, &KIVI2];

const GROUP: usize = 32;

/// How many tokens stay exact by default: KIVI's residual length.
const RESIDUAL: usize = 128;

/// The format of K or of V, for one number of bits.
pub(super) struct Kivi {
    name: &'static str,
    bits: usize,
    /// The format of V. `None` if this one is V's.
    values: Option<&'static Kivi>,
}

static VALUES_4: Kivi = Kivi { name: "kivi4", bits: 4, values: None };
static VALUES_2: Kivi = Kivi { name: "kivi2", bits: 2, values: None };
pub(super) static KIVI4: Kivi = Kivi { values: Some(&VALUES_4), ..VALUES_4 };
pub(super) static KIVI2: Kivi = Kivi { values: Some(&VALUES_2), ..VALUES_2 };

impl Codec for Kivi {
    fn name(&self) -> &str {
        self.name
    }

    fn accepted_by(&self) -> &str {
        ""
    }

    fn kernel_name(&self) -> &str {
        match (self.bits, self.values.is_some()) {
            (_, true) => self.name,
            (4, false) => "kivi4/values",
            (_, false) => "kivi2/values",
        }
    }

    fn block(&self, _: usize) -> usize {
        GROUP / self.group()
    }

    fn block_bytes(&self, _: usize) -> usize {
        GROUP * self.bits / 8 + 4
    }

    fn is_rotated(&self) -> bool {
        false
    }

    fn group(&self) -> usize {
        match self.values {
            Some(_) => GROUP,
            None => 1,
        }
    }

    fn for_values(&self) -> Option<&'static dyn Codec> {
        self.values.map(|values| values as &dyn Codec)
    }

    fn exact(&self, tail: Option<usize>, sink: Option<usize>) -> Exact {
        let tail = tail.unwrap_or(RESIDUAL);
        let tail = match self.values {
            // K waits until the residual is full and encodes all of it at once. V encodes one token with every
            // new one; as the new token joins the residual only after its own query, one more is exact then
            Some(_) => Tail::Chunk(tail),
            None => Tail::Newest(tail + 1),
        };
        Exact { sink: sink.unwrap_or(0), tail }
    }

    fn encode(&self, x: &[f32], bytes: &mut [u8]) {
        self.check(x, bytes);
        for (i, record) in bytes.chunks_exact_mut(self.block_bytes(1)).enumerate() {
            self.encode_group(std::array::from_fn(|k| x[self.place(i, k, x.len())]), record);
        }
    }

    fn decode(&self, bytes: &[u8], x: &mut [f32]) {
        self.check(x, bytes);
        let len = x.len();
        for (i, record) in bytes.chunks_exact(self.block_bytes(1)).enumerate() {
            for (k, v) in self.decode_group(record).into_iter().enumerate() {
                x[self.place(i, k, len)] = v;
            }
        }
    }
}

impl Kivi {
    fn check(&self, x: &[f32], bytes: &[u8]) {
        assert!(x.len().is_multiple_of(GROUP));
        assert!(bytes.len() == x.len() / GROUP * self.block_bytes(1));
    }

    /// Where element k of record i stands among the `len` numbers of one head of the group's tokens.
    fn place(&self, i: usize, k: usize, len: usize) -> usize {
        match self.values {
            Some(_) => k * (len / GROUP) + i,
            None => i * GROUP + k,
        }
    }

    fn encode_group(&self, x: [f32; GROUP], record: &mut [u8]) {
        let top = ((1 << self.bits) - 1) as f32;
        let x = x.map(in_half);
        let (min, max) = range(&x);
        let scale = in_half(in_half(max - min) / top);
        // casting makes 0 of a NaN
        let code = |v| in_half(in_half(v - min) / scale).clamp(0.0, top).round_ties_even() as u8;
        let (codes, constants) = record.split_at_mut(GROUP * self.bits / 8);
        for (byte, x) in codes.iter_mut().zip(x.chunks_exact(8 / self.bits)) {
            *byte = x.iter().rev().fold(0, |byte, v| byte << self.bits | code(*v));
        }
        put_half(constants, 0, scale);
        put_half(constants, 2, min);
    }

    fn decode_group(&self, record: &[u8]) -> [f32; GROUP] {
        let (codes, constants) = record.split_at(GROUP * self.bits / 8);
        let (scale, min) = (get_half(constants, 0), get_half(constants, 2));
        std::array::from_fn(|k| {
            let bit = k * self.bits;
            let code = codes[bit / 8] >> (bit % 8) & ((1 << self.bits) - 1);
            f32::from(code) * scale + min
        })
    }
}

/// Rounds to half precision.
fn in_half(v: f32) -> f32 {
    f16::from_f32(v).to_f32()
}
