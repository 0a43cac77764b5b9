//! The shape of what a layer keeps in the cache.

use serde::Serialize;
use std::fmt;

/// One of the two things that a layer keeps in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum KvSide {
    /// Keys.
    K,
    /// Values.
    V,
}

impl KvSide {
    /// Both, K first.
    pub const BOTH: [KvSide; 2] = [KvSide::K, KvSide::V];
}

impl fmt::Display for KvSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KvSide::K => "K",
            KvSide::V => "V",
        })
    }
}

/// K or V of one layer: the smallest part of a cache that a scheme stores in a way of its own. Only layers that own
/// a cache have slots, so a cache that several layers read is one layer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Index of the layer in the checkpoint.
    pub layer: usize,
    /// Which of the two.
    pub side: KvSide,
}

/// What a layer keeps in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LayerKv {
    /// Heads of K, and of V.
    pub heads: usize,
    /// Elements in a head of K, and of V.
    pub head_dim: usize,
    /// The window W of the layer: a query sees W keys, its own included. `None` if it sees all.
    pub window: Option<usize>,
    /// Whether layers above read this layer's cache.
    pub shared: bool,
    /// Whether adding a constant to all attention scores changes the result: they are capped before the softmax, or
    /// share it with a score of the head's own. Then the option `:center` would not be exact.
    pub absolute_scores: bool,
    /// The scales of an FP8 cache that the checkpoint has for K and for V.
    pub stored_scales: Option<[f32; 2]>,
}

impl LayerKv {
    /// Elements of K, and of V, of one token.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// How many tokens of a sequence of `tokens` are kept. A layer with a window W keeps the W - 1 that the
    /// next query will see.
    pub fn kept_tokens(&self, tokens: usize) -> usize {
        self.window.map_or(tokens, |window| tokens.min(window - 1))
    }
}
