//! Causal softmax attention, and its loop for the CPU: one pass over blocks of queries, in f32.
//!
//! The loop takes [`QUERIES`] queries of one head at a time. Their scores are kept transposed, (key, query).
//! So the softmax runs along vectors without reductions, and both products use the same register tile:
//! scoresᵀ = K·Qᵀ and out = (scoresᵀ)ᵀ·V. K is packed in panels of [`ROWS`] keys, V in rows that are padded
//! to whole tiles. All blocks of queries and all heads of a group share the packed K and V.

use super::elements::elements;
use super::exact::Exact;
use super::op::{Input, Op};
use super::simd::{exp, exp_excess};
use candle_core::{Result, Shape, Tensor};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// The rows of a register tile: keys in the first product, queries in the second.
const ROWS: usize = 8;
/// The columns of a register tile. A block has as many queries.
const QUERIES: usize = 32;

/// Attention of (B, T, H, D) queries over (B, S, H_kv, D) keys and values. The last T keys are at the
/// queries' own positions: query t sees the keys `j ≤ S-T+t`, and with a window W only those with
/// `j > S-T+t-W`. Gives (B·T, H·D).
///
/// Keys or values may come in two versions, stored and exact. A rule then says which version of each key a query
/// reads. All of them enter one softmax.
#[derive(Debug, Clone)]
pub(crate) struct SoftmaxAttention {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    /// For each lane, whether values have all bits of f32. Otherwise cards round them to f16.
    pub wide_values: Vec<bool>,
    /// If it is c, scores s become c·tanh(s / c) before the causal mask.
    pub softcap: Option<f32>,
    /// A score of each head, (H), that enters the softmax's sum and has no value (gpt-oss's sinks).
    pub own_scores: Option<Tensor>,
    pub window: Option<usize>,
    /// How many queries a sequence has, T.
    pub queries: usize,
    /// How many keys a sequence has, S.
    pub keys: usize,
    /// The position of the first key in its sequence. It is not 0 if older keys fell out of a window.
    pub start: usize,
    pub k: Versions,
    pub v: Versions,
}

/// Keys or values, (B, S, H_kv, D) f32, in one version or two.
#[derive(Debug, Clone)]
pub struct Versions {
    /// decode(encode(x)). Tokens that have not been encoded yet hold numbers that no query reads.
    pub stored: Tensor,
    /// The numbers rounded to f16 only, and the rules that say which version a query reads, one for each lane.
    pub exact: Option<(Tensor, Vec<Exact>)>,
}

/// K and V of one sequence and KV head, laid out for the register tile.
struct PackedHead {
    /// (S/8, D, 8), zeros behind the last key.
    k: Panels,
    /// (S, D padded to whole tiles).
    v: Panels,
}

/// The stored version of K or V, and the exact one if there are two.
struct Panels {
    stored: Vec<f32>,
    exact: Option<Vec<f32>>,
}

impl Op<1> for SoftmaxAttention {
    const NAME: &'static str = "attention";

    fn shape(&self, [q]: [&Shape; 1]) -> Result<Shape> {
        let width = self.heads * self.head_dim;
        let sequences = self.sequences(q.elem_count());
        let kv = sequences * self.keys * self.kv_heads * self.head_dim;
        let versions = [&self.k, &self.v];
        let mut tensors = versions
            .iter()
            .flat_map(|x| std::iter::once(&x.stored).chain(x.exact.as_ref().map(|(x, _)| x)));
        if tensors.any(|x| x.elem_count() != kv) || self.keys < self.queries {
            candle_core::bail!("{q:?} are not the queries of {} keys", self.keys);
        }
        let lanes = self.wide_values.len();
        let mut rules = versions.iter().filter_map(|x| x.exact.as_ref()).map(|(_, rules)| rules);
        if rules.any(|rules| rules.len() != lanes) {
            candle_core::bail!("the rules of exact keys and values are not those of {lanes} lanes");
        }
        Ok(Shape::from((sequences * self.queries, width)))
    }

    fn cpu(&self, [Input { x: q, .. }]: [Input; 1], out: &mut [f32]) -> Result<()> {
        let sequences = self.sequences(q.len());
        let k = self.pack(&self.k, sequences, |op, k, head| op.key_panels(k, head))?;
        let v = self.pack(&self.v, sequences, |op, v, head| op.value_rows(v, head))?;
        let packed: Vec<PackedHead> =
            k.into_iter().zip(v).map(|(k, v)| PackedHead { k, v }).collect();
        let own_scores = self.own_scores.as_ref().map(elements::<f32>).transpose()?;
        let own_scores: Option<&[f32]> = own_scores.as_deref();
        let width = self.heads * self.head_dim;
        let per_sequence = self.queries * width;
        out.par_chunks_mut(per_sequence)
            .zip(q.par_chunks(per_sequence))
            .zip(packed.par_chunks(self.kv_heads))
            .enumerate()
            .for_each(|(sequence, ((out, q), packed))| {
                // the last blocks see the most keys, so they are started first
                let blocks = out.par_chunks_mut(QUERIES * width).zip(q.par_chunks(QUERIES * width));
                blocks.enumerate().rev().for_each_init(
                    Scratch::default,
                    |scratch, (i, (out, q))| {
                        let first = i * QUERIES;
                        let lane = |lanes: usize| sequence * lanes / sequences;
                        let lane = &lane;
                        let block = QueryBlock {
                            op: self,
                            lane,
                            own_scores,
                            q,
                            packed,
                            out,
                            first,
                            scratch,
                        };
                        pulp::Arch::new().dispatch(block);
                    },
                );
            });
        Ok(())
    }
}

impl SoftmaxAttention {
    fn sequences(&self, q: usize) -> usize {
        q / (self.queries * self.heads * self.head_dim)
    }

    /// Lays out each sequence and KV head of K or V with `layout`.
    fn pack(
        &self,
        versions: &Versions,
        sequences: usize,
        layout: fn(&Self, &[f32], usize) -> Vec<f32>,
    ) -> Result<Vec<Panels>> {
        let per_sequence = self.keys * self.kv_heads * self.head_dim;
        let heads = |x: &[f32]| -> Vec<Vec<f32>> {
            let each = (0..sequences * self.kv_heads).into_par_iter();
            each.map(|i| {
                let (sequence, head) = (i / self.kv_heads, i % self.kv_heads);
                layout(self, &x[sequence * per_sequence..][..per_sequence], head)
            })
            .collect()
        };
        let stored = heads(&elements(&versions.stored)?).into_iter();
        Ok(match &versions.exact {
            None => stored.map(|stored| Panels { stored, exact: None }).collect(),
            Some((exact, _)) => {
                let exact = heads(&elements(exact)?).into_iter().map(Some);
                stored.zip(exact).map(|(stored, exact)| Panels { stored, exact }).collect()
            }
        })
    }

    /// The rows of a KV head, one for each token.
    fn rows<'a>(&self, x: &'a [f32], head: usize) -> impl Iterator<Item = &'a [f32]> {
        let d = self.head_dim;
        x.chunks_exact(self.kv_heads * d).map(move |token| &token[head * d..][..d])
    }

    fn key_panels(&self, k: &[f32], head: usize) -> Vec<f32> {
        let mut panels = vec![0.0; self.keys.next_multiple_of(ROWS) * self.head_dim];
        for (s, row) in self.rows(k, head).enumerate() {
            let panel = &mut panels[s / ROWS * ROWS * self.head_dim..][..ROWS * self.head_dim];
            for (column, x) in panel.chunks_exact_mut(ROWS).zip(row) {
                column[s % ROWS] = *x;
            }
        }
        panels
    }

    fn value_rows(&self, v: &[f32], head: usize) -> Vec<f32> {
        let padded = self.head_dim.next_multiple_of(QUERIES);
        let mut rows = vec![0.0; self.keys * padded];
        for (out, row) in rows.chunks_exact_mut(padded).zip(self.rows(v, head)) {
            out[..self.head_dim].copy_from_slice(row);
        }
        rows
    }
}

/// The buffers of one thread.
#[derive(Default)]
struct Scratch {
    /// (D, 32): the block's queries, transposed and scaled.
    q: Vec<f32>,
    /// (keys seen, 32): scores, then weights.
    weights: Vec<f32>,
    /// The weights of exact keys, (keys, 32), for keys that some queries of the block read exactly and some do not.
    exact_weights: Vec<f32>,
}

/// A block of queries in all heads.
struct QueryBlock<'a> {
    op: &'a SoftmaxAttention,
    /// The lane of the block, by the number of lanes.
    lane: &'a dyn Fn(usize) -> usize,
    /// (H)
    own_scores: Option<&'a [f32]>,
    /// (up to 32, H·D)
    q: &'a [f32],
    packed: &'a [PackedHead],
    out: &'a mut [f32],
    /// Index of the block's first query.
    first: usize,
    scratch: &'a mut Scratch,
}

/// Which version of each key the queries of a block read. Keys `0..sink`: exact, for all queries.
/// `sink..mixed.start`: stored, for all. `mixed`: query i reads keys from `first[i]` on exactly and earlier ones
/// stored. `mixed.end..`: exact, for all.
struct Zones {
    sink: usize,
    mixed: Range<usize>,
    first: [usize; QUERIES],
}

impl Zones {
    /// The zones of the queries whose own keys are `own..own + rows`. The rule counts positions in the sequence, and
    /// the first key is at position `start`.
    fn new(rule: &Exact, start: usize, own: usize, rows: usize) -> Self {
        let index = |position: usize| position.saturating_sub(start).min(own + rows);
        let sink = index(rule.sink);
        let first =
            std::array::from_fn(|i| index(rule.first(start + own + i.min(rows - 1))).max(sink));
        Zones { sink, mixed: first[0]..first[rows - 1], first }
    }

    /// Whether query `i` reads the key exactly.
    fn is_exact(&self, key: usize, i: usize) -> bool {
        key < self.sink || key >= self.first[i]
    }

    /// If all queries read all of `keys` in the same version, gives whether that is the exact one.
    fn uniform(&self, keys: Range<usize>) -> Option<bool> {
        if keys.end <= self.sink || keys.start >= self.mixed.end {
            Some(true)
        } else if keys.start >= self.sink && keys.end <= self.mixed.start {
            Some(false)
        } else {
            None
        }
    }
}

impl WithSimd for QueryBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let QueryBlock { op, lane, own_scores, q, packed, out, first, scratch } = self;
        let width = op.heads * op.head_dim;
        let rows = q.len() / width;
        // indices of the key at the first query's own position, and of the one behind the last query's
        let own = op.keys - op.queries + first;
        let end = own + rows;
        let start = op.window.map_or(0, |w| (own + 1).saturating_sub(w)) / ROWS * ROWS;
        let zones = |versions: &Versions| {
            let (_, rules) = versions.exact.as_ref()?;
            Some(Zones::new(&rules[lane(rules.len())], op.start, own, rows))
        };
        let (k_zones, v_zones) = (zones(&op.k), zones(&op.v));
        for head in 0..op.heads {
            let packed = &packed[head / (op.heads / op.kv_heads)];
            op.load_queries(&q[head * op.head_dim..], width, rows, &mut scratch.q);
            let keys = Keys { panels: &packed.k, zones: k_zones.as_ref(), seen: start..end };
            op.scores(simd, &keys, &scratch.q, &mut scratch.weights);
            if let Some(cap) = op.softcap {
                soften(&mut scratch.weights, cap);
            }
            op.mask(&mut scratch.weights, own, start);
            let inverse = softmax(&mut scratch.weights, own_scores.map(|scores| scores[head]));
            let values = Keys { panels: &packed.v, zones: v_zones.as_ref(), seen: start..end };
            let parts = values.parts(&mut scratch.weights, &mut scratch.exact_weights);
            op.weighted_values(simd, &parts, &inverse, &mut out[head * op.head_dim..], rows);
        }
    }
}

/// K or V of one head as a block of queries sees it.
struct Keys<'a> {
    panels: &'a Panels,
    zones: Option<&'a Zones>,
    seen: Range<usize>,
}

/// A range of values that are read in one version, and the weights of its keys.
struct Part<'a> {
    values: &'a [f32],
    keys: Range<usize>,
    weights: &'a [f32],
}

impl<'a> Keys<'a> {
    /// Divides the values into parts that are read in one version. Values that some queries read exactly and some do
    /// not are in two parts, in each of which the weights of the other queries are 0.
    fn parts(&self, weights: &'a mut Vec<f32>, exact_weights: &'a mut Vec<f32>) -> Vec<Part<'a>> {
        let Range { start, end } = self.seen;
        let (Some(zones), Some(exact)) = (self.zones, &self.panels.exact) else {
            let values = &self.panels.stored;
            return vec![Part { values, keys: start..end, weights }];
        };
        let sink = zones.sink.clamp(start, end);
        let mixed = zones.mixed.start.max(sink)..zones.mixed.end.max(sink);
        exact_weights.clear();
        let both = &mut weights[(mixed.start - start) * QUERIES..(mixed.end - start) * QUERIES];
        for (key, line) in mixed.clone().zip(both.chunks_exact_mut(QUERIES)) {
            for (i, w) in line.iter_mut().enumerate() {
                let is_exact = zones.is_exact(key, i);
                exact_weights.push(if is_exact { std::mem::take(w) } else { 0.0 });
            }
        }
        let weights = &*weights;
        let part = |values: &'a [f32], keys: Range<usize>| {
            let weights = &weights[(keys.start - start) * QUERIES..];
            Part { values, keys, weights }
        };
        let parts = [
            part(exact, start..sink),
            part(&self.panels.stored, sink..mixed.end),
            Part { weights: exact_weights, ..part(exact, mixed.clone()) },
            part(exact, mixed.end..end),
        ];
        parts.into_iter().filter(|part| !part.keys.is_empty()).collect()
    }
}

impl SoftmaxAttention {
    #[inline(always)]
    fn load_queries(&self, q: &[f32], stride: usize, rows: usize, out: &mut Vec<f32>) {
        out.clear();
        out.resize(self.head_dim * QUERIES, 0.0);
        for r in 0..rows {
            for (d, x) in q[r * stride..][..self.head_dim].iter().enumerate() {
                out[d * QUERIES + r] = x * self.scale;
            }
        }
    }

    /// K·Qᵀ for the panels that hold the keys that the block sees.
    #[inline(always)]
    fn scores<S: Simd>(&self, simd: S, keys: &Keys, q: &[f32], out: &mut Vec<f32>) {
        let (d, Range { start, end }) = (self.head_dim, keys.seen.clone());
        out.resize((end.next_multiple_of(ROWS) - start) * QUERIES, 0.0);
        for (key, out) in (start..).step_by(ROWS).zip(out.chunks_exact_mut(ROWS * QUERIES)) {
            let b = Columns { x: q, stride: QUERIES };
            let panel = |panels: &'_ [f32]| key * d..panels.len().min((key + ROWS) * d);
            let (stored, exact) = (&keys.panels.stored, keys.panels.exact.as_ref());
            let (version, other) = match (keys.zones, exact) {
                (Some(zones), Some(exact)) => match zones.uniform(key..key + ROWS) {
                    Some(true) => (exact, None),
                    Some(false) => (stored, None),
                    None => (stored, Some((zones, exact))),
                },
                _ => (stored, None),
            };
            let a = Columns { x: &version[panel(version)], stride: ROWS };
            let mut tile = tile_product(simd, a, b, d);
            if let Some((zones, exact)) = other {
                let a = Columns { x: &exact[panel(exact)], stride: ROWS };
                choose(zones, key, &mut tile, &tile_product(simd, a, b, d));
            }
            out.copy_from_slice(tile.as_flattened());
        }
    }

    /// Sets the scores of keys that a query does not see to -∞. What the queries of a block see differs only in the
    /// block's own keys and at the edge of the window.
    #[inline(always)]
    fn mask(&self, scores: &mut [f32], own: usize, start: usize) {
        for (key, scores) in (start..).zip(scores.chunks_exact_mut(QUERIES)) {
            let first_seeing = key.saturating_sub(own);
            for score in scores.iter_mut().take(first_seeing) {
                *score = f32::NEG_INFINITY;
            }
            if let Some(window) = self.window {
                // query i of the block is at key own + i and sees keys above own + i - window
                let beyond = (key + window).saturating_sub(own);
                for score in scores.iter_mut().skip(beyond) {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }

    /// Weightsᵀ·V over all parts. The result of each query is divided by the sum of its weights.
    #[inline(always)]
    fn weighted_values<S: Simd>(
        &self,
        simd: S,
        parts: &[Part],
        inverse: &[f32; QUERIES],
        out: &mut [f32],
        rows: usize,
    ) {
        let (d, padded) = (self.head_dim, self.head_dim.next_multiple_of(QUERIES));
        let stride = self.heads * d;
        for r in (0..rows).step_by(ROWS) {
            for c in (0..d).step_by(QUERIES) {
                let mut sum = [[0.0f32; QUERIES]; ROWS];
                for Part { values, keys, weights } in parts {
                    let a = Columns { x: &weights[r..], stride: QUERIES };
                    let b = Columns { x: &values[keys.start * padded + c..], stride: padded };
                    let tile = tile_product(simd, a, b, keys.len());
                    for (sum, x) in sum.as_flattened_mut().iter_mut().zip(tile.as_flattened()) {
                        *sum += x;
                    }
                }
                for (i, tile) in sum.iter().enumerate().take(rows - r) {
                    let width = QUERIES.min(d - c);
                    let out = &mut out[(r + i) * stride + c..][..width];
                    for (out, x) in out.iter_mut().zip(tile) {
                        *out = x * inverse[r + i];
                    }
                }
            }
        }
    }
}

/// Replaces the scores of keys that a query reads exactly. The tiles begin with the key `key`.
#[inline(always)]
fn choose(zones: &Zones, key: usize, tile: &mut RegisterTile, exact: &RegisterTile) {
    for (key, (line, exact)) in (key..).zip(tile.iter_mut().zip(exact)) {
        for (i, (score, exact)) in line.iter_mut().zip(exact).enumerate() {
            if zones.is_exact(key, i) {
                *score = *exact;
            }
        }
    }
}

/// Turns scores into c·tanh(s / c). The form tanh x = m / (m + 2) with m = e^2x - 1 does not cancel anywhere.
#[inline(always)]
fn soften(scores: &mut [f32], cap: f32) {
    /// From here on tanh is 1 in f32.
    const FAR: f32 = 20.0;
    for s in scores.iter_mut() {
        let x = (*s * (2.0 / cap)).clamp(-FAR, FAR);
        let m = exp_excess(x) + x;
        *s = cap * m / (m + 2.0);
    }
}

/// Turns each column of scores into e^(s - max). Gives 1 divided by the sum of each column. A head's own score is a
/// further score of each column, which only the sum contains.
#[inline(always)]
fn softmax(scores: &mut [f32], own_score: Option<f32>) -> [f32; QUERIES] {
    let mut max = [own_score.unwrap_or(f32::NEG_INFINITY); QUERIES];
    let (lines, _) = scores.as_chunks_mut::<QUERIES>();
    for line in lines.iter() {
        for (max, s) in max.iter_mut().zip(line) {
            *max = if *s > *max { *s } else { *max };
        }
    }
    let mut sum = max.map(|max| own_score.map_or(0.0, |score| exp(score - max)));
    for line in lines.iter_mut() {
        for ((s, max), sum) in line.iter_mut().zip(&max).zip(&mut sum) {
            *s = exp(*s - max);
            *sum += *s;
        }
    }
    sum.map(|s| 1.0 / s)
}

/// A matrix that is stored by columns. Column i begins at `i * stride`.
#[derive(Clone, Copy)]
struct Columns<'a> {
    x: &'a [f32],
    stride: usize,
}

/// A block of a product's result that is kept in registers until it is complete.
type RegisterTile = [[f32; QUERIES]; ROWS];

/// A·Bᵀ over `n` columns, for 8 rows of A and 32 of B.
#[inline(always)]
fn tile_product<S: Simd>(simd: S, a: Columns, b: Columns, n: usize) -> RegisterTile {
    let mut out = [[0.0f32; QUERIES]; ROWS];
    // with 32 vector registers all 8 rows fit beside B, with 16 registers only half of them
    if S::REGISTER_COUNT >= 32 {
        rows::<S, ROWS>(simd, a, b, n, &mut out);
    } else {
        let (low, high) = out.split_at_mut(ROWS / 2);
        rows::<S, { ROWS / 2 }>(simd, a, b, n, low);
        let a = Columns { x: &a.x[ROWS / 2..], ..a };
        rows::<S, { ROWS / 2 }>(simd, a, b, n, high);
    }
    out
}

#[inline(always)]
fn rows<S: Simd, const R: usize>(
    simd: S,
    a: Columns,
    b: Columns,
    n: usize,
    out: &mut [[f32; QUERIES]],
) {
    for c in (0..QUERIES).step_by(2 * S::F32_LANES) {
        let mut sums = [[simd.splat_f32s(0.0); 2]; R];
        for i in 0..n {
            let a = &a.x[i * a.stride..][..R];
            let (b, _) = S::as_simd_f32s(&b.x[i * b.stride + c..][..2 * S::F32_LANES]);
            let (b0, b1) = (b[0], b[1]);
            for r in 0..R {
                let x = simd.splat_f32s(a[r]);
                sums[r][0] = simd.mul_add_f32s(x, b0, sums[r][0]);
                sums[r][1] = simd.mul_add_f32s(x, b1, sums[r][1]);
            }
        }
        for (out, sums) in out.iter_mut().zip(&sums) {
            let (out, _) = S::as_mut_simd_f32s(&mut out[c..][..2 * S::F32_LANES]);
            out.copy_from_slice(sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::exact::Tail;
    use crate::compute::run;
    use crate::compute::textbook::{flat, place, vector};
    use candle_core::DType;

    /// How many sequences a batch has.
    const SEQUENCES: usize = 2;

    fn random(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).max(1);
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (f64::from(state) / f64::from(u32::MAX) * 4.0 - 2.0) as f32
        };
        (0..count).map(next).collect()
    }

    /// K or V in two versions.
    struct TwoVersions {
        stored: Vec<f32>,
        exact: Vec<f32>,
        rule: Option<Exact>,
    }

    impl SoftmaxAttention {
        /// Whether a query sees a key, from the definition.
        fn sees(&self, query: usize, key: usize) -> bool {
            let own = self.keys - self.queries + query;
            key <= own && self.window.is_none_or(|window| own - key < window)
        }

        /// The textbook's attention: one softmax for each query and head, in f64. It reads each key in the version
        /// that the rule says. Gives the heads of one row.
        fn naive(&self, row: usize, q: &[f32], k: &TwoVersions, v: &TwoVersions) -> Vec<f64> {
            let d = self.head_dim;
            let at = |x: &[f32], row: usize, heads: usize, head: usize, i: usize| {
                f64::from(x[(row * heads + head) * d + i])
            };
            let (sequence, query) = (row / self.queries, row % self.queries);
            let seen: Vec<usize> = (0..self.keys).filter(|&j| self.sees(query, j)).collect();
            let mut out = Vec::new();
            for head in 0..self.heads {
                let kv = head / (self.heads / self.kv_heads);
                let of = |x: &TwoVersions, j: usize, i: usize| {
                    let own = self.start + self.keys - self.queries + query;
                    let exact = x.rule.is_some_and(|rule| rule.holds(own, self.start + j));
                    let x = if exact { &x.exact } else { &x.stored };
                    at(x, sequence * self.keys + j, self.kv_heads, kv, i)
                };
                let score = |&j: &usize| -> f64 {
                    let products = (0..d).map(|i| at(q, row, self.heads, head, i) * of(k, j, i));
                    let score = products.sum::<f64>() * f64::from(self.scale);
                    match self.softcap.map(f64::from) {
                        None => score,
                        Some(cap) => cap * (score / cap).tanh(),
                    }
                };
                let scores: Vec<f64> = seen.iter().map(score).collect();
                let own = self.own_scores.as_ref().map(|scores| f64::from(flat(scores)[head]));
                let largest = own.unwrap_or(f64::NEG_INFINITY);
                let max = scores.iter().copied().fold(largest, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum = weights.iter().sum::<f64>() + own.map_or(0.0, |s| (s - max).exp());
                out.extend((0..d).map(|i| {
                    let terms = seen.iter().zip(&weights).map(|(&j, w)| w * of(v, j, i));
                    terms.sum::<f64>() / sum
                }));
            }
            out
        }

        /// The largest error of the kernel on random numbers.
        fn error(&self) -> f64 {
            self.error_with([None, None])
        }

        /// The same with two versions of keys and values that have nothing in common.
        fn error_with(&self, rules: [Option<Exact>; 2]) -> f64 {
            self.error_of(rules, 0..SEQUENCES * self.queries)
        }

        /// The same, of some rows only.
        fn error_of(
            &self,
            [of_k, of_v]: [Option<Exact>; 2],
            rows: impl IntoIterator<Item = usize>,
        ) -> f64 {
            let kv = SEQUENCES * self.keys * self.kv_heads * self.head_dim;
            let q = random(SEQUENCES * self.queries * self.heads * self.head_dim, 1);
            let k = TwoVersions { stored: random(kv, 2), exact: random(kv, 4), rule: of_k };
            let v = TwoVersions { stored: random(kv, 3), exact: random(kv, 5), rule: of_v };
            let tensor = |x: &[f32], rows: usize, heads: usize| {
                let shape = (SEQUENCES, rows, heads, self.head_dim);
                Tensor::from_slice(x, shape, &place()).unwrap()
            };
            let versions = |x: &TwoVersions| Versions {
                stored: tensor(&x.stored, self.keys, self.kv_heads),
                exact: x.rule.map(|rule| (tensor(&x.exact, self.keys, self.kv_heads), vec![rule])),
            };
            let op = SoftmaxAttention { k: versions(&k), v: versions(&v), ..self.clone() };
            let out = run(&op, [&tensor(&q, self.queries, self.heads)]).unwrap();
            let width = self.heads * self.head_dim;
            assert_eq!(out.dims(), [SEQUENCES * self.queries, width], "{self:?}");
            let got: Vec<f32> = out.flatten_all().unwrap().to_vec1().unwrap();
            let errors = rows.into_iter().flat_map(|row| {
                let got = got[row * width..][..width].iter();
                let want = self.naive(row, &q, &k, &v);
                got.zip(want).map(|(got, want)| (f64::from(*got) - want).abs()).collect::<Vec<_>>()
            });
            // whatever is not finite is an error beyond all bounds
            errors.fold(0.0, |worst: f64, error| {
                worst.max(if error.is_nan() { f64::INFINITY } else { error })
            })
        }
    }

    fn attention(
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        queries: usize,
    ) -> SoftmaxAttention {
        let scale = 1.0 / (head_dim as f32).sqrt();
        SoftmaxAttention {
            heads,
            kv_heads,
            head_dim,
            scale,
            wide_values: vec![false],
            softcap: None,
            own_scores: None,
            window: None,
            queries,
            keys: queries,
            start: 0,
            k: none(),
            v: none(),
        }
    }

    /// A placeholder that [`SoftmaxAttention::error`] replaces by random numbers.
    fn none() -> Versions {
        Versions { stored: Tensor::zeros(1, DType::F32, &place()).unwrap(), exact: None }
    }

    /// Values reach 2, so an error up to this is rounding: on the CPU of f32, on a card of V and of the weights to f16.
    fn tolerance() -> f64 {
        if place().is_cpu() {
            2e-6
        } else {
            1e-3
        }
    }

    fn is_exact(attention: SoftmaxAttention) {
        let error = attention.error();
        assert!(error <= tolerance(), "{attention:?}: off by {error:e}");
    }

    #[test]
    fn is_the_textbooks_for_any_length_and_head() {
        for queries in [1, 2, 7, 8, 9, 31, 32, 33, 64, 100] {
            for head_dim in [64, 80, 96, 256] {
                is_exact(attention(2, 1, head_dim, queries));
            }
        }
        for (heads, kv_heads) in [(1, 1), (3, 3), (6, 2), (9, 3), (8, 1)] {
            is_exact(attention(heads, kv_heads, 64, 33));
        }
    }

    #[test]
    fn a_window_hides_what_is_before_it() {
        for window in [1, 2, 7, 8, 9, 31, 32, 33, 40, 99, 100, 1000] {
            for queries in [1, 33, 100] {
                is_exact(SoftmaxAttention { window: Some(window), ..attention(4, 2, 64, queries) });
            }
        }
    }

    /// Such scores far below all others, among them, and so far above them that nothing else is left.
    #[test]
    fn each_head_may_have_a_score_of_its_own_in_its_sum() {
        for score in [-90.0, 0.0, 3.0, 200.0] {
            let own_scores = Some(vector(&[score, 1.0, score, -2.0]));
            for window in [None, Some(20)] {
                let op = SoftmaxAttention {
                    window,
                    own_scores: own_scores.clone(),
                    ..attention(4, 2, 64, 70)
                };
                let error = op.error();
                assert!(error < tolerance(), "{score} {window:?}: {error:e}");
            }
        }
    }

    #[test]
    fn scores_may_be_capped() {
        for cap in [0.5, 5.0, 50.0] {
            let op = SoftmaxAttention { softcap: Some(cap), ..attention(4, 2, 64, 33) };
            is_exact(op.clone());
            is_exact(SoftmaxAttention { window: Some(9), ..op });
        }
    }

    #[test]
    fn queries_may_be_the_last_of_more_keys() {
        for (queries, keys) in [(1, 2), (1, 100), (7, 33), (33, 100), (40, 41)] {
            for window in [None, Some(1), Some(10), Some(64)] {
                is_exact(SoftmaxAttention { window, keys, ..attention(4, 2, 64, queries) });
            }
        }
    }

    #[test]
    fn each_query_reads_each_key_in_its_version() {
        let newest = |sink, tail| Exact { sink, tail: Tail::Newest(tail) };
        let chunk = |sink, size| Exact { sink, tail: Tail::Chunk(size) };
        let rules = [
            newest(0, 0),
            newest(4, 0),
            newest(0, 1),
            newest(4, 33),
            newest(40, 8),
            newest(0, 500),
        ];
        for rule in rules.into_iter().chain([chunk(0, 32), chunk(3, 40), chunk(70, 16)]) {
            for (queries, keys) in [(100, 100), (1, 100), (33, 70), (7, 9)] {
                for (window, start) in [(None, 0), (Some(24), 0), (Some(50), 13), (None, 64)] {
                    let op =
                        SoftmaxAttention { window, keys, start, ..attention(4, 2, 64, queries) };
                    for rules in [[Some(rule), None], [None, Some(rule)], [Some(rule); 2]] {
                        let error = op.error_with(rules);
                        assert!(
                            error <= tolerance(),
                            "{rules:?}, {queries} of {keys}, {window:?}: {error:e}"
                        );
                    }
                    let other = op.error_with([Some(rule), Some(newest(2, 20))]);
                    assert!(other <= tolerance(), "{rule:?}: {other:e}");
                }
            }
        }
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let error = SoftmaxAttention { scale: 40.0, ..attention(2, 1, 64, 65) }.error();
        // the softmax is nearly a choice: f32 scores of some thousands decide it to 1e-3
        assert!(error < 2e-2, "off by {error:e}");
    }

    #[test]
    fn values_with_all_bits_of_f32_lose_none() {
        for wide in [
            attention(4, 2, 64, 75),
            SoftmaxAttention { window: Some(9), ..attention(4, 1, 256, 40) },
        ] {
            let error = SoftmaxAttention { wide_values: vec![true], ..wide }.error();
            // a card takes scores from halves whose sums it truncates
            let most = if place().is_cpu() { 2e-6 } else { 5e-5 };
            assert!(error < most, "{error:e}");
        }
    }

    /// Both sequences of a batch are lanes here.
    #[test]
    fn a_lane_with_values_of_f32_changes_no_bit_of_another() {
        let numbers = |seed| {
            let x = random(SEQUENCES * 75 * 2 * 64, seed);
            Tensor::from_slice(&x, (SEQUENCES, 75, 2, 64), &place()).unwrap()
        };
        let attended = |wide_values: Vec<bool>| -> Vec<f32> {
            let versions = |seed| Versions { stored: numbers(seed), exact: None };
            let (k, v) = (versions(2), versions(3));
            let op = SoftmaxAttention { wide_values, k, v, ..attention(2, 2, 64, 75) };
            run(&op, [&numbers(1)]).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let [short, wide, mixed] =
            [[false; 2], [true; 2], [false, true]].map(|x| attended(x.into()));
        let half = short.len() / 2;
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&mixed[..half]), bits(&short[..half]));
        assert_eq!(bits(&mixed[half..]), bits(&wide[half..]));
    }

    #[test]
    #[ignore = "needs a card, which KVGATE_DEVICE names; the CPU would take minutes"]
    fn a_long_context_is_the_textbooks() {
        let long = attention(16, 2, 256, 32_768);
        let rows = [0, 1, 63, 4_097, 16_384, 32_767, 32_768 + 20_001, 2 * 32_768 - 1];
        let error = long.error_of([None, None], rows);
        println!("largest error of 32,768 keys: {error:.1e}");
        assert!(error < tolerance(), "{error:e}");
    }
}
