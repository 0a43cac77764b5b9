//! The cache for generation: what is kept is the encoded bytes that a serving engine would keep, and the
//! exact tail and sink in halves.

use super::cache::{CacheError, KvCache, LayerKv, Versions, View, BEFORE, HALVED, STORED};
use super::effective::{Effective, Held, Stored, StoredLayer};
use super::recurrent::Recurrent;
use crate::compute::elements::read;
use crate::compute::finite::all_finite;
use crate::compute::round_trip::{gather, scatter};
use candle_core::{Device, Tensor};
use half::f16;
use std::collections::{BTreeMap, VecDeque};

/// The cache of one sequence, which grows by any number of tokens. A clone is a snapshot to go back to.
#[derive(Clone)]
pub struct PackedCache {
    scheme: Effective,
    layers: BTreeMap<usize, Layer>,
    /// What layers above read in this pass.
    shared: BTreeMap<usize, View>,
    states: BTreeMap<usize, Option<Recurrent>>,
}

/// K and V of a layer.
#[derive(Clone)]
struct Layer {
    k: Store,
    v: Store,
}

/// One side of a layer.
#[derive(Clone, Default)]
struct Store {
    /// Tokens so far.
    tokens: usize,
    /// Encoded groups still held, the oldest first: all heads of a group, one after the other.
    groups: VecDeque<Box<[u8]>>,
    /// Index of the group that is encoded next.
    next_group: usize,
    /// Exact tokens of the sink, (H_kv, D) each.
    sink: Vec<Box<[f16]>>,
    /// Exact tokens up to the newest that have not left the tail, or whose group has not been encoded.
    tail: VecDeque<Box<[f16]>>,
}

impl PackedCache {
    /// A cache without tokens.
    pub fn new(scheme: Effective) -> Self {
        PackedCache {
            scheme,
            layers: BTreeMap::new(),
            shared: BTreeMap::new(),
            states: BTreeMap::new(),
        }
    }

    /// Tokens in the cache.
    pub fn tokens(&self) -> usize {
        self.layers.values().map(|layer| layer.k.tokens).max().unwrap_or(0)
    }

    /// Bytes of K and V that are held. States of recurrent layers are not counted.
    pub fn bytes(&self) -> usize {
        self.layers.values().map(|layer| layer.k.bytes() + layer.v.bytes()).sum()
    }

    /// Cuts the sequence back to its first `tokens`.
    ///
    /// # Errors
    /// A layer that no longer has what the next query would see then: a recurrent state, tokens that left
    /// the window, exact tokens that were encoded. Nothing is changed then.
    pub fn truncate(&mut self, tokens: usize) -> Result<(), CacheError> {
        let refused = |layer, why| CacheError::Truncate { layer, tokens, why };
        if let Some((&layer, _)) = self.states.iter().find(|(_, state)| state.is_some()) {
            return Err(refused(layer, "its state is of all tokens so far"));
        }
        for (&index, layer) in &self.layers {
            let StoredLayer { kv, k, v, .. } = self.scheme.layer(index);
            layer.k.may_truncate(k, kv, tokens).map_err(|why| refused(index, why))?;
            layer.v.may_truncate(v, kv, tokens).map_err(|why| refused(index, why))?;
        }
        self.shared.clear();
        for (&index, layer) in &mut self.layers {
            let StoredLayer { kv, k, v, .. } = self.scheme.layer(index);
            layer.k.truncate(k, kv, tokens);
            layer.v.truncate(v, kv, tokens);
        }
        Ok(())
    }
}

impl KvCache for PackedCache {
    fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<View, CacheError> {
        let StoredLayer { kv, k: stored_k, v: stored_v, queries } = self.scheme.layer(layer);
        let own = self
            .layers
            .entry(layer)
            .or_insert_with(|| Layer { k: Store::default(), v: Store::default() });
        let sides = [("K", k, stored_k, &mut own.k), ("V", v, stored_v, &mut own.v)];
        let start = first_seen(kv, sides[0].3.tokens);
        let [k, v] = sides.map(|(side, x, stored, store)| {
            finite(layer, side, &x, BEFORE)?;
            kept_finite(layer, side, store.append(&x, stored, kv)?)
        });
        let (queries, checks) = (queries.clone(), Vec::new());
        let view = View { k: k?, v: v?, start, queries, checks };
        if kv.shared {
            self.shared.insert(layer, view.clone());
        }
        Ok(view)
    }

    fn shared(&mut self, owner: usize) -> Result<View, CacheError> {
        self.shared.get(&owner).cloned().ok_or(CacheError::NoOwner { owner })
    }

    fn recurrent(&mut self, layer: usize) -> &mut Option<Recurrent> {
        self.states.entry(layer).or_default()
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

/// The first token that is still seen after so many.
fn first_seen(kv: &LayerKv, tokens: usize) -> usize {
    tokens - kv.kept(tokens)
}

impl Store {
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

    /// Takes new tokens, (1, T, H, D), and gives everything from the first token that was still seen.
    ///
    /// What the first of the new queries reads exactly is still needed, and so is what the last one reads
    /// encoded: both versions are made before anything is let go.
    fn append(
        &mut self,
        x: &Tensor,
        stored: &Stored,
        kv: &LayerKv,
    ) -> candle_core::Result<Versions> {
        if x.dim(0)? != 1 {
            candle_core::bail!("a packed cache is of one sequence, not of {}", x.dim(0)?);
        }
        let before = self.tokens;
        let seen = first_seen(kv, before);
        self.tokens += x.dim(1)?;
        read(x, |x| {
            if stored.keeps_exact() {
                self.keep(x, before, stored, kv);
            }
            self.encode(x, before, stored, kv);
        })?;
        let versions = self.versions(seen, stored, kv, x.device())?;
        self.let_go(&stored.held(kv, self.tokens));
        Ok(versions)
    }

    /// Keeps new tokens exactly.
    fn keep(&mut self, x: &[f32], before: usize, stored: &Stored, kv: &LayerKv) {
        for (position, token) in (before..).zip(x.chunks_exact(kv.width())) {
            let token = token.iter().map(|&v| f16::from_f32(v)).collect();
            match position < stored.exact.sink {
                true => self.sink.push(token),
                false => self.tail.push_back(token),
            }
        }
    }

    /// Encodes the groups that the newest query, or one before it, reads encoded.
    fn encode(&mut self, x: &[f32], before: usize, stored: &Stored, kv: &LayerKv) {
        let size = stored.codec.group();
        let end = stored.encoded_by(self.tokens).div_ceil(size);
        let unseen = first_seen(kv, before).max(stored.exact.sink) / size;
        if unseen > self.next_group {
            self.groups.clear();
            self.next_group = unseen;
        }
        while self.next_group < end {
            let first = self.next_group * size;
            let tokens: Vec<f32> = (first..first + size)
                .flat_map(|position| self.token(position, x, before, kv))
                .collect();
            let bytes = stored.codec.encoded_bytes(kv.head_dim);
            let mut group = vec![0; kv.heads * bytes].into_boxed_slice();
            for (head, bytes) in group.chunks_exact_mut(bytes).enumerate() {
                let mut own = gather(&tokens, head, kv.heads, kv.head_dim);
                stored.encode(head, &mut own, bytes);
            }
            self.groups.push_back(group);
            self.next_group += 1;
        }
    }

    /// A token as it came or, where exact ones are kept, as it is kept.
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

    /// Everything from the token `start` on.
    fn versions(
        &self,
        start: usize,
        stored: &Stored,
        kv: &LayerKv,
        device: &Device,
    ) -> candle_core::Result<Versions> {
        let shape = (1, self.tokens - start, kv.heads, kv.head_dim);
        let tensor = |x: Vec<f32>| Tensor::from_vec(x, shape, device);
        let exact = match stored.keeps_exact() {
            false => None,
            true => Some((tensor(self.exact(start, kv))?, stored.exact)),
        };
        Ok(Versions { stored: tensor(self.decoded(start, stored, kv))?, exact })
    }

    fn decoded(&self, start: usize, stored: &Stored, kv: &LayerKv) -> Vec<f32> {
        let (size, width) = (stored.codec.group(), kv.width());
        let bytes = stored.codec.encoded_bytes(kv.head_dim);
        let mut all = vec![0.0; (self.tokens - start) * width];
        for (index, group) in (self.first_group()..).zip(&self.groups) {
            let mut tokens = vec![0.0; size * width];
            for (head, bytes) in group.chunks_exact(bytes).enumerate() {
                let mut own = vec![0.0; size * kv.head_dim];
                stored.decode(head, bytes, &mut own);
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

    /// Lets go of what no later query reads.
    fn let_go(&mut self, held: &Held) {
        let unread = match held.groups.is_empty() {
            true => self.groups.len(),
            false => held.groups.start.saturating_sub(self.first_group()),
        };
        self.groups.drain(..unread);
        let left = held.tail.start.saturating_sub(self.tail_start());
        self.tail.drain(..left.min(self.tail.len()));
    }

    fn may_truncate(
        &self,
        stored: &Stored,
        kv: &LayerKv,
        tokens: usize,
    ) -> Result<(), &'static str> {
        let held = stored.held(kv, tokens);
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

    fn truncate(&mut self, stored: &Stored, kv: &LayerKv, tokens: usize) {
        let first_group = self.first_group();
        let tail_start = self.tail_start();
        self.next_group = self.next_group.min(stored.held(kv, tokens).groups.end).max(first_group);
        self.groups.truncate(self.next_group - first_group);
        self.sink.truncate(tokens);
        self.tail.truncate(tokens.saturating_sub(tail_start));
        self.tokens = tokens;
    }
}

#[cfg(test)]
mod tests;
