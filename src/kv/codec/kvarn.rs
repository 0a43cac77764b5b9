//! `kvarn8` to `kvarn2`: KVarN. 128 tokens of a head form a tile, which is balanced before it is rounded: it is
//! divided by a scale for each row and one for each column, so that all rows and columns have about the same
//! spread. A number costs b bits for its code and 0.375 bits for scales; in heads of 64, scales cost 0.5 bits
//! in K and 0.625 bits in V.
//!
//! A head is first rotated by the Hadamard matrix H over its whole length, rounded to half precision (the
//! engine stages it so), and cut into slices of 128 channels. A slice is a tile t. Its rows are channels in K
//! and tokens in V. [`balance`] gives the scales r of its rows and c of its columns. In each row of t/(c·r)
//! let lo be the smallest and hi the largest number. Then s = max((hi - lo)/(2^b - 1), 1e-10), and the code of
//! a number is round((t/(c·r) - lo)/s) within 0 to 2^b - 1, ties away from zero. Codes q read as
//! H·((q·half(r·s) + half(r·lo))·half(c)).
//!
//! A slice is stored as a record: its codes, row after row, as one stream of bits from the low end of the
//! first byte on; then r·s of all rows, r·lo of all rows, and c of all columns.
//!
//! Source: beellama.cpp, whose CPU reference adds in f64, as is done here. Its CUDA kernels add in f32, so
//! that a code may differ near a tie, and a scale in its last bit. Exponentials and logarithms are rounded
//! correctly. The sizes of heads are those that beellama.cpp takes: 64, 128, 256 and 512.
//!
//! Options: `:it8` does 8 iterations instead of 16; `:whole` makes a head above 128 one tile. Together they
//! are what vLLM's pull request does, except that it rounds ties to even and divides t first by c, then by r.

use super::contract::Codec;
use super::numbers::{get_half, put_half, range};
use crate::compute::simd::vectorized;
use crate::kv::exact::{Exact, Tail};
use crate::kv::hadamard::{butterflies, scaled_hadamard};
use half::f16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfFloatVecExt;

const TOKENS: usize = 128;
const SLICE: usize = 128;
const HEADS: [usize; 4] = [64, 128, 256, 512];

/// The largest head that the kernel of a card takes. A tile of 128 tokens of a larger one does not fit into the shared
/// memory of a block.
const LARGEST_ON_CARD: usize = 256;

/// How many tokens stay exact by default: as many at the start of the sequence as newest ones.
const EXACT: usize = 128;

/// How many codes fill whole bytes, whatever their number of bits.
const PACKED: usize = 8;

const LEAST_DEVIATION: f32 = 1e-3;
const LARGEST_DEVIATION: f32 = 1e3;

/// The least logarithm of a scale; [`LARGEST_LOG`] is the largest. A scale is therefore never below
/// e^-0.3 = 0.74, and a tile whose numbers lie closer together than about 0.3 is hardly balanced at all.
const LEAST_LOG: f32 = -0.3;
const LARGEST_LOG: f32 = 10.0;

const SMALLEST_STEP: f32 = 1e-10;

/// How many partial sums of a row run side by side. The number of columns is a multiple of it.
const LANES: usize = 8;

/// The format of K or of V, for one variant and one number of bits.
#[derive(Clone, Copy)]
pub(super) struct Kvarn {
    name: &'static str,
    accepted_by: &'static str,
    bits: usize,
    iterations: usize,
    /// Whether a head of more than [`SLICE`] channels is one tile.
    whole: bool,
    /// The format of V. `None` if this one is V's.
    values: Option<&'static Kvarn>,
}

/// Defines K's formats for one number of bits: the plain one, `:it8`, `:it8:whole` and `:whole`.
macro_rules! variants {
    ($id:ident, $bits:literal, $name:literal, $vllm:literal) => {
        pub(super) static $id: [Kvarn; 4] = {
            const PLAIN: Kvarn = Kvarn {
                name: $name,
                accepted_by: concat!("beellama.cpp: -ctk ", $name, " -ctv ", $name),
                bits: $bits,
                iterations: 16,
                whole: false,
                values: None,
            };
            const IT8: Kvarn =
                Kvarn { name: concat!($name, ":it8"), accepted_by: "", iterations: 8, ..PLAIN };
            const WHOLE: Kvarn =
                Kvarn { name: concat!($name, ":whole"), accepted_by: "", whole: true, ..PLAIN };
            const BOTH: Kvarn = Kvarn {
                name: concat!($name, ":it8:whole"),
                accepted_by: $vllm,
                whole: true,
                ..IT8
            };
            static VALUES: [Kvarn; 4] = [PLAIN, IT8, BOTH, WHOLE];
            [
                Kvarn { values: Some(&VALUES[0]), ..PLAIN },
                Kvarn { values: Some(&VALUES[1]), ..IT8 },
                Kvarn { values: Some(&VALUES[2]), ..BOTH },
                Kvarn { values: Some(&VALUES[3]), ..WHOLE },
            ]
        };
    };
}

variants!(KVARN8, 8, "kvarn8", "");
variants!(KVARN6, 6, "kvarn6", "");
variants!(KVARN5, 5, "kvarn5", "");
variants!(KVARN4, 4, "kvarn4", "vLLM with pull request 46812: --kv-cache-dtype kvarn_k4v4_g128");
variants!(KVARN3, 3, "kvarn3", "");
variants!(KVARN2, 2, "kvarn2", "vLLM with pull request 46812, V: --kv-cache-dtype kvarn_k4v2_g128");

/// Lists the four variants of each number of bits.
macro_rules! every_variant_of {
    ($($id:ident),*) => {
        &[$(&$id[0], &$id[1], &$id[2], &$id[3]),*]
    };
}

pub(super) static ALL: &[&dyn Codec] =
    every_variant_of!(KVARN8, KVARN6, KVARN5, KVARN4, KVARN3, KVARN2);

impl Codec for Kvarn {
    fn name(&self) -> &str {
        self.name
    }

    fn accepted_by(&self) -> &str {
        self.accepted_by
    }

    fn kernel_name(&self) -> &str {
        match self.values {
            Some(_) => "kvarn",
            None => "kvarn/values",
        }
    }

    fn kernel_variant(&self) -> u32 {
        self.bits as u32 | (self.iterations as u32) << 8 | u32::from(self.whole) << 16
    }

    fn kernel_takes(&self, head_dim: usize) -> bool {
        head_dim <= LARGEST_ON_CARD
    }

    fn block(&self, head_dim: usize) -> usize {
        if !HEADS.contains(&head_dim) {
            // the head does not fit: this size does not divide it, and it is the next one that could be rotated
            return (head_dim + 1).next_power_of_two().max(HEADS[0]);
        }
        if self.whole {
            head_dim
        } else {
            head_dim.min(SLICE)
        }
    }

    fn block_bytes(&self, head_dim: usize) -> usize {
        let (rows, columns) = self.shape(self.block(head_dim));
        rows * columns * self.bits / 8 + 2 * (2 * rows + columns)
    }

    fn is_rotated(&self) -> bool {
        false
    }

    fn group(&self) -> usize {
        TOKENS
    }

    fn for_values(&self) -> Option<&'static dyn Codec> {
        self.values.map(|values| values as &dyn Codec)
    }

    fn exact(&self, tail: Option<usize>, sink: Option<usize>) -> Exact {
        Exact { sink: sink.unwrap_or(EXACT), tail: Tail::Newest(tail.unwrap_or(EXACT)) }
    }

    fn encode(&self, x: &[f32], bytes: &mut [u8]) {
        let head_dim = self.checked_head_dim(x, bytes);
        let records = bytes.chunks_exact_mut(self.block_bytes(head_dim));
        for (tile, record) in self.tiles(x, head_dim).zip(records) {
            self.write(&tile, &balance(&tile, self.iterations), record);
        }
    }

    fn decode(&self, bytes: &[u8], x: &mut [f32]) {
        let head_dim = self.checked_head_dim(x, bytes);
        let block = self.block(head_dim);
        for (i, record) in bytes.chunks_exact(self.block_bytes(head_dim)).enumerate() {
            let tile = self.read(record, block);
            for (token, head) in x.chunks_exact_mut(head_dim).enumerate() {
                for (channel, v) in head[i * block..][..block].iter_mut().enumerate() {
                    *v = tile.values[self.place(token, channel, block)];
                }
            }
        }
        rotate(x, head_dim);
    }

    fn clamped(&self, x: &[f32]) -> Option<[u64; 2]> {
        let mut counts = [0; 2];
        for tile in self.tiles(x, x.len() / TOKENS) {
            let best = balance(&tile, self.iterations);
            for log in best.rows.iter().chain(&best.columns) {
                counts[0] += u64::from(*log == LEAST_LOG);
                counts[1] += 1;
            }
        }
        Some(counts)
    }
}

/// A tile of a head, row after row.
#[derive(Clone)]
struct Tile {
    columns: usize,
    values: Vec<f32>,
}

impl Tile {
    fn rows(&self) -> usize {
        self.values.len() / self.columns
    }
}

/// A number for every row and every column of a tile.
#[derive(Clone)]
struct Scales {
    rows: Vec<f32>,
    columns: Vec<f32>,
}

impl Scales {
    fn exp(&self) -> Scales {
        let exp = |logs: &[f32]| logs.iter().map(|&log| f64::from(log).exp() as f32).collect();
        Scales { rows: exp(&self.rows), columns: exp(&self.columns) }
    }
}

impl Kvarn {
    fn checked_head_dim(&self, x: &[f32], bytes: &[u8]) -> usize {
        let head_dim = x.len() / TOKENS;
        assert!(x.len().is_multiple_of(TOKENS) && head_dim.is_multiple_of(self.block(head_dim)));
        assert!(bytes.len() == self.encoded_bytes(head_dim));
        head_dim
    }

    /// Rows and columns of a tile of so many channels.
    fn shape(&self, channels: usize) -> (usize, usize) {
        match self.values {
            Some(_) => (channels, TOKENS),
            None => (TOKENS, channels),
        }
    }

    /// Where a number stands in a tile of so many channels.
    fn place(&self, token: usize, channel: usize, channels: usize) -> usize {
        match self.values {
            Some(_) => channel * TOKENS + token,
            None => token * channels + channel,
        }
    }

    /// The tiles of a head: rotated and rounded to half precision.
    fn tiles<'a>(&'a self, x: &[f32], head_dim: usize) -> impl Iterator<Item = Tile> + 'a {
        let mut rotated = x.to_vec();
        rotate(&mut rotated, head_dim);
        let staged = Vec::<f16>::from_f32_slice(&rotated).to_f32_vec();
        let block = self.block(head_dim);
        (0..head_dim).step_by(block).map(move |from| {
            let mut values = vec![0.0; TOKENS * block];
            for (token, head) in staged.chunks_exact(head_dim).enumerate() {
                for (channel, v) in head[from..][..block].iter().enumerate() {
                    values[self.place(token, channel, block)] = *v;
                }
            }
            Tile { columns: self.shape(block).1, values }
        })
    }

    /// Rounds a tile and writes its record. `logs` are the logarithms of its scales.
    fn write(&self, tile: &Tile, logs: &Scales, record: &mut [u8]) {
        let scales = logs.exp();
        let mut balanced = tile.clone();
        divide(tile, &scales, &mut balanced.values);
        let row_bytes = tile.columns * self.bits / 8;
        let (codes, halves) = record.split_at_mut(scales.rows.len() * row_bytes);
        let (steps, halves) = halves.split_at_mut(2 * scales.rows.len());
        let (lows, columns) = halves.split_at_mut(2 * scales.rows.len());
        let rows = balanced.values.chunks_exact_mut(tile.columns).zip(&scales.rows);
        for (i, (row, scale)) in rows.enumerate() {
            let (low, step) = quantize(row, self.top());
            pack(row, self.bits, &mut codes[i * row_bytes..][..row_bytes]);
            put_half(steps, 2 * i, scale * step);
            put_half(lows, 2 * i, scale * low);
        }
        for (i, scale) in scales.columns.iter().enumerate() {
            put_half(columns, 2 * i, *scale);
        }
    }

    fn read(&self, record: &[u8], channels: usize) -> Tile {
        let (rows, columns) = self.shape(channels);
        let (codes, halves) = record.split_at(rows * columns * self.bits / 8);
        let halves: Vec<f32> = (0..halves.len()).step_by(2).map(|i| get_half(halves, i)).collect();
        let (steps, halves) = halves.split_at(rows);
        let (lows, scales) = halves.split_at(rows);
        let mut values = vec![0.0; rows * columns];
        unpack(codes, self.bits, &mut values);
        for (i, row) in values.chunks_exact_mut(columns).enumerate() {
            for (v, scale) in row.iter_mut().zip(scales) {
                *v = (*v * steps[i] + lows[i]) * scale;
            }
        }
        Tile { columns, values }
    }

    /// The largest code.
    fn top(&self) -> f32 {
        ((1 << self.bits) - 1) as f32
    }
}

/// Multiplies each head by the orthonormal Hadamard matrix: first within its slices, then across them. As in
/// beellama.cpp, the factors come last.
fn rotate(x: &mut [f32], head_dim: usize) {
    let slice = head_dim.min(SLICE);
    scaled_hadamard(x, slice, 1.0);
    shrink(x, slice);
    if head_dim > slice {
        butterflies(x, slice, head_dim);
        shrink(x, head_dim / slice);
    }
}

/// Divides by √n.
fn shrink(x: &mut [f32], n: usize) {
    let factor = (1.0 / (n as f64).sqrt()) as f32;
    for v in x {
        *v *= factor;
    }
}

/// Finds the scales that make the tile's rows and columns most alike, and returns their logarithms.
///
/// Each iteration divides by the standard deviations of the columns, then by those of the rows. As scales have
/// limits, an iteration may make things worse. The best scales of all iterations are returned; if several are
/// equally good, the last ones.
fn balance(tile: &Tile, iterations: usize) -> Scales {
    let mut logs = Scales { rows: vec![0.0; tile.rows()], columns: vec![0.0; tile.columns] };
    let mut best = logs.clone();
    let mut balanced = tile.clone();
    let mut columns = column_deviations(&balanced);
    let mut least = spread(&columns) + spread(&row_deviations(&balanced));
    for _ in 0..iterations {
        grow(&mut logs.columns, &columns);
        divide(tile, &logs.exp(), &mut balanced.values);
        grow(&mut logs.rows, &row_deviations(&balanced));
        divide(tile, &logs.exp(), &mut balanced.values);
        columns = column_deviations(&balanced);
        let imbalance = spread(&columns) + spread(&row_deviations(&balanced));
        if imbalance <= least {
            least = imbalance;
            best.clone_from(&logs);
        }
    }
    best
}

/// Adds the logarithms of the deviations, within the limits of scales.
fn grow(logs: &mut [f32], deviations: &[f32]) {
    for (log, deviation) in logs.iter_mut().zip(deviations) {
        let step = f64::from(deviation.clamp(LEAST_DEVIATION, LARGEST_DEVIATION)).ln();
        *log = (*log + step as f32).clamp(LEAST_LOG, LARGEST_LOG);
    }
}

/// The largest deviation divided by the smallest one.
fn spread(deviations: &[f32]) -> f32 {
    let (min, max) = range(deviations);
    max / min.max(1e-8)
}

vectorized!(fn divide['a](tile: &'a Tile, scales: &'a Scales, quotients: &'a mut [f32]) {
    let rows = tile.values.chunks_exact(tile.columns).zip(quotients.chunks_exact_mut(tile.columns));
    for ((row, quotients), row_scale) in rows.zip(&scales.rows) {
        for ((v, quotient), scale) in row.iter().zip(quotients).zip(&scales.columns) {
            *quotient = v / (scale * row_scale);
        }
    }
});

vectorized!(fn column_deviations['a](tile: &'a Tile) -> Vec<f32> {
    let (mut sums, mut squares) = (vec![0.0f64; tile.columns], vec![0.0f64; tile.columns]);
    for row in tile.values.chunks_exact(tile.columns) {
        for ((v, sum), square) in row.iter().zip(&mut sums).zip(&mut squares) {
            let v = f64::from(*v);
            *sum += v;
            *square += v * v;
        }
    }
    sums.iter().zip(&squares).map(|(sum, square)| deviation(*sum, *square, tile.rows())).collect()
});

vectorized!(fn row_deviations['a](tile: &'a Tile) -> Vec<f32> {
    let rows = tile.values.chunks_exact(tile.columns).map(|row| {
        let (mut sums, mut squares) = ([0.0f64; LANES], [0.0f64; LANES]);
        for lane in row.as_chunks::<LANES>().0 {
            for ((v, sum), square) in lane.iter().zip(&mut sums).zip(&mut squares) {
                let v = f64::from(*v);
                *sum += v;
                *square += v * v;
            }
        }
        deviation(sums.iter().sum(), squares.iter().sum(), tile.columns)
    });
    rows.collect()
});

/// The sample standard deviation of `count` numbers, from their sum and the sum of their squares.
#[inline(always)]
fn deviation(sum: f64, squares: f64, count: usize) -> f32 {
    let n = count as f64;
    let mean = sum / n;
    ((squares - n * mean * mean) / (n - 1.0)).max(0.0).sqrt() as f32
}

/// Replaces the numbers of a row by their codes from 0 to `top`. Returns what code 0 stands for, and the step.
fn quantize(row: &mut [f32], top: f32) -> (f32, f32) {
    let (low, high) = range(row);
    let step = ((high - low) / top).max(SMALLEST_STEP);
    round_steps(row, low, step, top);
    (low, step)
}

vectorized!(fn round_steps['a](row: &'a mut [f32], low: f32, step: f32, top: f32) {
    for v in row {
        *v = ((*v - low) / step).round().clamp(0.0, top);
    }
});

fn pack(codes: &[f32], bits: usize, bytes: &mut [u8]) {
    for (bytes, codes) in bytes.chunks_exact_mut(bits).zip(codes.chunks_exact(PACKED)) {
        let word = codes.iter().rev().fold(0u64, |word, code| word << bits | *code as u64);
        bytes.copy_from_slice(&word.to_le_bytes()[..bits]);
    }
}

fn unpack(bytes: &[u8], bits: usize, codes: &mut [f32]) {
    for (bytes, codes) in bytes.chunks_exact(bits).zip(codes.chunks_exact_mut(PACKED)) {
        let mut word = [0; 8];
        word[..bits].copy_from_slice(bytes);
        let word = u64::from_le_bytes(word);
        for (i, code) in codes.iter_mut().enumerate() {
            *code = (word >> (i * bits) & ((1 << bits) - 1)) as f32;
        }
    }
}
