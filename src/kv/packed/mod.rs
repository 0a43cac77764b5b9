//! The cache for generating text. It keeps the encoded bytes that a serving engine would keep, and the exact
//! tail and sink in half precision.

use super::cache::{CacheError, KvCache, Versions, View, BEFORE, HALVED, STORED};
use super::effective::{Effective, Held, LayerScheme, SideScheme};
use super::layout::LayerKv;
use super::recurrent::Recurrent;
use super::shared::Shared;
use crate::compute::elements::read;
use crate::compute::finite::all_finite;
use crate::compute::round_trip::{gather, scatter};
use candle_core::{Device, Tensor};
use half::f16;
use std::collections::{BTreeMap, VecDeque};

/// The cache of one sequence, to which any number of tokens can be appended at a time. A clone is a snapshot
/// to go back to.
#[derive(Clone)]
pub struct PackedCache {
    scheme: Effective,
    layers: BTreeMap<usize, Layer>,
    shared: Shared,
}

/// K and V of one layer.
#[derive(Clone)]
struct Layer {
    k: PackedSide,
    v: PackedSide,
}

/// K or V of one layer.
#[derive(Clone, Default)]
struct PackedSide {
    /// How many tokens the sequence has.
    tokens: usize,
    /// The encoded groups that are still held, the oldest first. A group has all its heads one after the
    /// other.
    groups: VecDeque<Box<[u8]>>,
    /// Index of the next group to encode.
    next_group: usize,
    /// The exact tokens of the sink, (H_kv, D) each.
    sink: Vec<Box<[f16]>>,
    /// The newest tokens, exactly: those of the tail, and those whose group has not been encoded yet.
    tail: VecDeque<Box<[f16]>>,
}

impl PackedCache {
    /// A cache without tokens.
    pub fn new(scheme: Effective) -> Self {
        PackedCache { scheme, layers: BTreeMap::new(), shared: Shared::default() }
    }

    /// How many tokens the sequence has.
    pub fn tokens(&self) -> usize {
        self.layers.values().map(|layer| layer.k.tokens).max().unwrap_or(0)
    }

    /// Bytes that K and V take. Recurrent states are not counted.
    pub fn bytes(&self) -> usize {
        self.layers.values().map(|layer| layer.k.bytes() + layer.v.bytes()).sum()
    }

    /// Cuts the sequence back to its first `tokens`.
    ///
    /// # Errors
    /// If a layer no longer has what the next query would see: an earlier recurrent state, tokens that have
    /// left the window, or exact tokens that have been encoded. The cache is then unchanged.
    pub fn truncate(&mut self, tokens: usize) -> Result<(), CacheError> {
        let refused = |layer, why| CacheError::Truncate { layer, tokens, why };
        if let Some(layer) = self.shared.layer_with_state() {
            return Err(refused(layer, "its state is of all tokens so far"));
        }
        for (&index, layer) in &self.layers {
            let LayerScheme { kv, k, v, .. } = self.scheme.layer(index);
            layer.k.check_truncate(k, kv, tokens).map_err(|why| refused(index, why))?;
            layer.v.check_truncate(v, kv, tokens).map_err(|why| refused(index, why))?;
        }
        self.shared.forget_views();
        for (&index, layer) in &mut self.layers {
            let LayerScheme { kv, k, v, .. } = self.scheme.layer(index);
            layer.k.truncate(k, kv, tokens);
            layer.v.truncate(v, kv, tokens);
        }
        Ok(())
    }
}

impl KvCache for PackedCache {
    fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<View, CacheError> {
        let LayerScheme { kv, k: k_scheme, v: v_scheme, queries } = self.scheme.layer(layer);
        let own = self
            .layers
            .entry(layer)
            .or_insert_with(|| Layer { k: PackedSide::default(), v: PackedSide::default() });
        let sides = [("K", k, k_scheme, &mut own.k), ("V", v, v_scheme, &mut own.v)];
        let start = first_seen(kv, sides[0].3.tokens);
        let [k, v] = sides.map(|(side, x, scheme, store)| {
            finite(layer, side, &x, BEFORE)?;
            kept_finite(layer, side, store.append(&x, scheme, kv)?)
        });
        let (queries, checks) = (queries.clone(), Vec::new());
        let wide_values = vec![v_scheme.keeps_f32()];
        let view = View { k: k?, v: v?, start, wide_values, queries, checks };
        Ok(self.shared.share(layer, kv, view))
    }

    fn shared(&mut self, owner: usize) -> Result<View, CacheError> {
        self.shared.view(owner)
    }

    fn recurrent(&mut self, layer: usize) -> &mut Option<Recurrent> {
        self.shared.state(layer)
    }
}

/// Checks K or V of a layer.
fn finite(
    layer: usize,
    side: &'static str,
    x: &Tensor,
    when: &'static str,
) -> Result<(), CacheError> {
    if read(x, all_finite)? {
        return Ok(());
    }
    Err(CacheError::NotFinite { layer, side, when })
}

/// Checks what the cache gives back.
fn kept_finite(
    layer: usize,
    side: &'static str,
    versions: Versions,
) -> Result<Versions, CacheError> {
    finite(layer, side, &versions.stored, STORED)?;
    if let Some((exact, _)) = &versions.exact {
        finite(layer, side, exact, HALVED)?;
    }
    Ok(versions)
}

/// The first token that the next query sees if the sequence has `tokens` tokens.
fn first_seen(kv: &LayerKv, tokens: usize) -> usize {
    tokens - kv.kept_tokens(tokens)
}

impl PackedSide {
    fn bytes(&self) -> usize {
        let groups: usize = self.groups.iter().map(|group| group.len()).sum();
        let exact = self.sink.iter().chain(&self.tail).map(|token| size_of_val(&**token));
        groups + exact.sum::<usize>()
    }

    fn first_group(&self) -> usize {
        self.next_group - self.groups.len()
    }

    fn tail_start(&self) -> usize {
        self.tokens - self.tail.len()
    }

    /// Appends new tokens, (1, T, H, D). Returns everything from the first token that was still seen.
    ///
    /// The first of the new queries may read a token exactly that the last one reads encoded. Both versions
    /// are therefore made before anything is dropped.
    fn append(
        &mut self,
        x: &Tensor,
        scheme: &SideScheme,
        kv: &LayerKv,
    ) -> candle_core::Result<Versions> {
        if x.dim(0)? != 1 {
            candle_core::bail!("a packed cache is of one sequence, not of {}", x.dim(0)?);
        }
        let before = self.tokens;
        let seen = first_seen(kv, before);
        self.tokens += x.dim(1)?;
        read(x, |x| {
            if scheme.keeps_exact() {
                self.keep_exactly(x, before, scheme, kv);
            }
            self.encode(x, before, scheme, kv);
        })?;
        let versions = self.versions(seen, scheme, kv, x.device())?;
        self.drop_unread(&scheme.held(kv, self.tokens));
        Ok(versions)
    }

    /// Keeps new tokens in half precision.
    fn keep_exactly(&mut self, x: &[f32], before: usize, scheme: &SideScheme, kv: &LayerKv) {
        for (position, token) in (before..).zip(x.chunks_exact(kv.width())) {
            let token = token.iter().map(|&v| f16::from_f32(v)).collect();
            if position < scheme.exact.sink {
                self.sink.push(token);
            } else {
                self.tail.push_back(token);
            }
        }
    }

    /// Encodes the groups that some query up to the newest one reads encoded.
    fn encode(&mut self, x: &[f32], before: usize, scheme: &SideScheme, kv: &LayerKv) {
        let size = scheme.codec.group();
        let end = scheme.encoded_by(self.tokens).div_ceil(size);
        let unseen = first_seen(kv, before).max(scheme.exact.sink) / size;
        if unseen > self.next_group {
            self.groups.clear();
            self.next_group = unseen;
        }
        while self.next_group < end {
            let first = self.next_group * size;
            let tokens: Vec<f32> = (first..first + size)
                .flat_map(|position| self.token(position, x, before, kv))
                .collect();
            let bytes = scheme.codec.encoded_bytes(kv.head_dim);
            let mut group = vec![0; kv.heads * bytes].into_boxed_slice();
            for (head, bytes) in group.chunks_exact_mut(bytes).enumerate() {
                let mut own = gather(&tokens, head, kv.heads, kv.head_dim);
                scheme.encode(head, &mut own, bytes);
            }
            self.groups.push_back(group);
            self.next_group += 1;
        }
    }

    /// A token in half precision if it is kept exactly, otherwise as it came in `x`.
    fn token(&self, position: usize, x: &[f32], before: usize, kv: &LayerKv) -> Vec<f32> {
        let kept = self
            .sink
            .get(position)
            .or_else(|| self.tail.get(position.checked_sub(self.tail_start())?));
        match kept {
            Some(token) => token.iter().map(|v| v.to_f32()).collect(),
            None => x[(position - before) * kv.width()..][..kv.width()].to_vec(),
        }
    }

    /// Both versions of everything from the token `start` on.
    fn versions(
        &self,
        start: usize,
        scheme: &SideScheme,
        kv: &LayerKv,
        device: &Device,
    ) -> candle_core::Result<Versions> {
        let shape = (1, self.tokens - start, kv.heads, kv.head_dim);
        let tensor = |x: Vec<f32>| Tensor::from_vec(x, shape, device);
        let exact = if scheme.keeps_exact() {
            Some((tensor(self.exact(start, kv))?, vec![scheme.exact]))
        } else {
            None
        };
        Ok(Versions { stored: tensor(self.decoded(start, scheme, kv))?, exact })
    }

    /// What the encoded groups read as, from the token `start` on; zeros where nothing is encoded.
    fn decoded(&self, start: usize, scheme: &SideScheme, kv: &LayerKv) -> Vec<f32> {
        let (size, width) = (scheme.codec.group(), kv.width());
        let bytes = scheme.codec.encoded_bytes(kv.head_dim);
        let mut all = vec![0.0; (self.tokens - start) * width];
        for (index, group) in (self.first_group()..).zip(&self.groups) {
            let mut tokens = vec![0.0; size * width];
            for (head, bytes) in group.chunks_exact(bytes).enumerate() {
                let mut own = vec![0.0; size * kv.head_dim];
                scheme.decode(head, bytes, &mut own);
                scatter(&own, &mut tokens, head, kv.heads, kv.head_dim);
            }
            for (position, token) in (index * size..).zip(tokens.chunks_exact(width)) {
                if let Some(at) = position.checked_sub(start) {
                    all[at * width..][..width].copy_from_slice(token);
                }
            }
        }
        all
    }

    /// The exact tokens from the token `start` on; zeros where none is kept.
    fn exact(&self, start: usize, kv: &LayerKv) -> Vec<f32> {
        let width = kv.width();
        let mut all = vec![0.0; (self.tokens - start) * width];
        let kept = (0..).zip(&self.sink).chain((self.tail_start()..).zip(&self.tail));
        for (position, token) in kept.filter(|(position, _)| *position >= start) {
            let all = &mut all[(position - start) * width..][..width];
            all.iter_mut().zip(token).for_each(|(x, half)| *x = half.to_f32());
        }
        all
    }

    /// Drops what no later query reads.
    fn drop_unread(&mut self, held: &Held) {
        let unread = if held.groups.is_empty() {
            self.groups.len()
        } else {
            held.groups.start.saturating_sub(self.first_group())
        };
        self.groups.drain(..unread);
        let left = held.tail.start.saturating_sub(self.tail_start());
        self.tail.drain(..left.min(self.tail.len()));
    }

    /// Checks that the side can be cut back to `tokens` tokens. The error says why it cannot.
    fn check_truncate(
        &self,
        scheme: &SideScheme,
        kv: &LayerKv,
        tokens: usize,
    ) -> Result<(), &'static str> {
        let held = scheme.held(kv, tokens);
        if tokens > self.tokens {
            Err("it has fewer")
        } else if !held.groups.is_empty() && held.groups.start < self.first_group() {
            Err("tokens that its window would show have been let go")
        } else if !held.tail.is_empty() && held.tail.start < self.tail_start() {
            Err("tokens that would be exact again have been encoded")
        } else {
            Ok(())
        }
    }

    fn truncate(&mut self, scheme: &SideScheme, kv: &LayerKv, tokens: usize) {
        let first_group = self.first_group();
        let tail_start = self.tail_start();
        self.next_group = self.next_group.min(scheme.held(kv, tokens).groups.end).max(first_group);
        self.groups.truncate(self.next_group - first_group);
        self.sink.truncate(tokens);
        self.tail.truncate(tokens.saturating_sub(tail_start));
        self.tokens = tokens;
    }
}

#[cfg(test)]
mod tests;
