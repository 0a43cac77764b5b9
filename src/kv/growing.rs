//! The cache for generating text on a card. K and V stay on the card, rounded to what a scheme gives back.

use super::cache::{CacheError, KvCache, Versions, View};
use super::effective::Effective;
use super::measuring::MeasuringCache;
use super::recurrent::Recurrent;
use candle_core::{Result, Tensor};
use std::collections::BTreeMap;

/// The cache of one sequence, to which any number of tokens can be appended at a time.
///
/// It is for schemes that encode each token by itself and keep none exactly
/// ([`Effective::encodes_tokens_alone`]): what such a scheme gives back of a token never changes, so nothing but that is
/// kept. It takes four bytes for each number, whatever the scheme would take, and room for at most as many more.
pub struct GrowingCache {
    /// Rounds new tokens, and has the states of recurrent layers.
    rounding: MeasuringCache,
    /// K and V of each layer so far.
    layers: BTreeMap<usize, [Tokens; 2]>,
}

/// K or V of a layer, in memory that has room for more tokens, so that a step writes only its own.
struct Tokens {
    /// (1, room, H_kv, D), of which the first `count` tokens have been written.
    memory: Tensor,
    count: usize,
}

/// The least number of tokens for which there is room.
const LEAST_ROOM: usize = 64;

impl Tokens {
    /// Some tokens, (1, T, H_kv, D).
    fn new(tokens: &Tensor) -> Result<Self> {
        let (batch, count, heads, head_dim) = tokens.dims4()?;
        let room = (2 * count).max(LEAST_ROOM);
        let memory =
            Tensor::zeros((batch, room, heads, head_dim), tokens.dtype(), tokens.device())?;
        memory.slice_set(&tokens.contiguous()?, 1, 0)?;
        Ok(Tokens { memory, count })
    }

    /// All tokens, (1, T, H_kv, D).
    fn all(&self) -> Result<Tensor> {
        self.memory.narrow(1, 0, self.count)
    }

    /// Appends some tokens. If there is no room for them, memory is doubled, so that each token is copied about once more.
    fn append(&mut self, tokens: &Tensor) -> Result<()> {
        let count = tokens.dim(1)?;
        if self.count + count > self.memory.dim(1)? {
            *self = Self::new(&Tensor::cat(&[&self.all()?, tokens], 1)?)?;
        } else {
            self.memory.slice_set(&tokens.contiguous()?, 1, self.count)?;
            self.count += count;
        }
        Ok(())
    }
}

impl GrowingCache {
    /// A cache without tokens.
    pub fn new(scheme: Effective) -> Self {
        let rounding = MeasuringCache::new(scheme.counted_anew());
        GrowingCache { rounding, layers: BTreeMap::new() }
    }

    /// A view of all tokens of a layer instead of the new ones.
    fn grown(&self, layer: usize, view: View) -> std::result::Result<View, CacheError> {
        let [k, v] = self.layers.get(&layer).ok_or(CacheError::NoOwner { owner: layer })?;
        let all = |tokens: &Tokens| -> Result<Versions> {
            Ok(Versions { stored: tokens.all()?, exact: None })
        };
        Ok(View { k: all(k)?, v: all(v)?, ..view })
    }
}

impl KvCache for GrowingCache {
    fn append(
        &mut self,
        layer: usize,
        k: Tensor,
        v: Tensor,
    ) -> std::result::Result<View, CacheError> {
        let view = self.rounding.append(layer, k, v)?;
        let (new_k, new_v) = (&view.k.stored, &view.v.stored);
        match self.layers.get_mut(&layer) {
            Some([k, v]) => {
                k.append(new_k)?;
                v.append(new_v)?;
            }
            None => {
                self.layers.insert(layer, [Tokens::new(new_k)?, Tokens::new(new_v)?]);
            }
        }
        self.grown(layer, view)
    }

    fn shared(&mut self, owner: usize) -> std::result::Result<View, CacheError> {
        let view = self.rounding.shared(owner)?;
        self.grown(owner, view)
    }

    fn recurrent(&mut self, layer: usize) -> &mut Option<Recurrent> {
        self.rounding.recurrent(layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::textbook::{flat, place, random};
    use crate::kv::layout::LayerKv;
    use crate::kv::packed::PackedCache;
    use crate::kv::Scheme;

    /// The packed cache gives back what an engine's cache would, so the same must come from here.
    #[test]
    fn what_it_gives_back_is_what_the_packed_cache_does() {
        let (heads, head_dim) = (2, 64);
        let kv = LayerKv { heads, head_dim, window: None, shared: true, ..LayerKv::default() };
        for scheme in ["f16", "bf16", "f32", "q8_0", "q4_0/q8_0"] {
            let scheme = scheme.parse::<Scheme>().unwrap();
            let effective = Effective::new(&scheme, &[Some(kv)], None).unwrap();
            assert!(effective.encodes_tokens_alone());
            let mut packed = PackedCache::new(effective.clone());
            let mut growing = GrowingCache::new(effective);
            for (i, tokens) in [7, 1, 1, 40, 1, 60, 1].into_iter().enumerate() {
                let tensor = |offset: usize| {
                    let numbers = random(1000 * i + offset + tokens * heads * head_dim);
                    let shape = (1, tokens, heads, head_dim);
                    Tensor::from_slice(&numbers[1000 * i + offset..], shape, &place()).unwrap()
                };
                let append = |cache: &mut dyn KvCache| {
                    let view = cache.append(0, tensor(0), tensor(500)).unwrap();
                    let again = cache.shared(0).unwrap();
                    let both = [view, again].map(|view| {
                        assert_eq!(view.start, 0);
                        [flat(&view.k.stored), flat(&view.v.stored)]
                    });
                    assert_eq!(both[0], both[1]);
                    both
                };
                assert_eq!(append(&mut growing), append(&mut packed), "{scheme}");
            }
        }
    }

    #[test]
    fn schemes_that_encode_tokens_together_or_keep_some_exactly_are_not_for_it() {
        let kv = LayerKv { heads: 1, head_dim: 128, ..LayerKv::default() };
        for scheme in ["kivi4", "q4_0:tail=8", "f16/q4_0:tail=8"] {
            let scheme = scheme.parse::<Scheme>().unwrap();
            let effective = Effective::new(&scheme, &[Some(kv)], None).unwrap();
            assert!(!effective.encodes_tokens_alone(), "{scheme}");
        }
    }
}
