//! Spells a mixture in the grammar of schemes: the pair that most layers have is the default, and all other layers get
//! clauses.

use crate::kv::layout::KvSide;
use crate::kv::scheme::{Layers, Pair, Scheme, Side};
use std::collections::BTreeMap;

/// The scheme of a model whose layers, given by their index, store K and V in these ways.
pub(super) fn spelled(sides: &BTreeMap<(usize, KvSide), Side>) -> Option<Scheme> {
    let mut pairs: Vec<(usize, Pair)> = Vec::new();
    for ((layer, side), k) in sides.iter().filter(|((_, side), _)| *side == KvSide::K) {
        debug_assert_eq!(*side, KvSide::K);
        pairs.push((*layer, Pair { k: *k, v: *sides.get(&(*layer, KvSide::V))? }));
    }
    let default = most_common(&pairs)?;
    let mut clauses: Vec<(std::ops::RangeInclusive<usize>, Pair)> = Vec::new();
    for (layer, pair) in pairs.into_iter().filter(|(_, pair)| *pair != default) {
        match clauses.last_mut() {
            Some((layers, last)) if *layers.end() + 1 == layer && *last == pair => {
                *layers = *layers.start()..=layer;
            }
            _ => clauses.push((layer..=layer, pair)),
        }
    }
    let layers = clauses.into_iter().map(|(layers, pair)| (Layers::Index(layers), pair));
    Some(Scheme { default, layers: layers.collect() })
}

/// The pair of the most layers. Of equally many, the pair of the lowest layer.
fn most_common(pairs: &[(usize, Pair)]) -> Option<Pair> {
    let count = |pair: &Pair| pairs.iter().filter(|(_, other)| other == pair).count();
    let pairs = pairs.iter().map(|(_, pair)| *pair).rev();
    pairs.max_by_key(|pair| count(pair))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::effective::Effective;
    use crate::kv::layout::LayerKv;

    fn sides(pairs: &[(usize, &str)]) -> BTreeMap<(usize, KvSide), Side> {
        let mut sides = BTreeMap::new();
        for (layer, pair) in pairs {
            let pair: Pair = pair.parse().unwrap();
            sides.insert((*layer, KvSide::K), pair.k);
            sides.insert((*layer, KvSide::V), pair.v);
        }
        sides
    }

    #[test]
    fn the_text_means_the_mixture() {
        let mixture =
            [(0, "f16/q4_0"), (2, "q5_0/q4_0"), (3, "q5_0/q4_0"), (4, "q8_0"), (5, "q8_0")];
        let scheme = spelled(&sides(&mixture)).unwrap();
        assert_eq!(scheme.to_string(), "q5_0/q4_0@0=f16/q4_0@4-5=q8_0");
        // layer 1 reads the cache of another one
        let kv = LayerKv { heads: 2, head_dim: 64, ..LayerKv::default() };
        let layout = [Some(kv), None, Some(kv), Some(kv), Some(kv), Some(kv)];
        let effective = Effective::new(&scheme, &layout, None).unwrap();
        assert_eq!(
            effective.to_string(),
            "f16/q4_0·H64 in 0 + q5_0·H64/q4_0·H64 in 2-3 + q8_0·H64/q8_0·H64 in 4-5"
        );
        assert_eq!(scheme.to_string().parse::<Scheme>().unwrap(), scheme);
    }

    #[test]
    fn layers_that_are_not_neighbours_have_clauses_of_their_own() {
        let mixture = [(0, "q8_0"), (1, "q4_0"), (3, "q4_0"), (5, "q8_0"), (7, "q8_0")];
        let scheme = spelled(&sides(&mixture)).unwrap();
        assert_eq!(scheme.to_string(), "q8_0@1=q4_0@3=q4_0");
        let alike = spelled(&sides(&[(0, "q8_0/q4_0"), (1, "q8_0/q4_0")])).unwrap();
        assert_eq!(alike.to_string(), "q8_0/q4_0");
        assert!(spelled(&sides(&[])).is_none());
    }
}
