//! What RoPE has done to K: which channels it has turned together, and how to turn them back.

use crate::model::spec::{Pairs, Rope};
use serde::Serialize;

/// A RoPE pair: two channels that turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// The pair's index in its head, from the fastest to the slowest.
    pub index: usize,
    /// The other channel.
    pub partner: usize,
    /// Whether RoPE turns it. Gemma 4's full layers leave most of their pairs as they are.
    pub turns: bool,
}

/// The pair of a channel. None if the channel is in no pair.
pub fn pair_of(rope: &Rope, channel: usize) -> Option<Pair> {
    let pairs = rope.frequencies.len();
    if channel >= 2 * pairs {
        return None;
    }
    let (index, partner) = match rope.pairs {
        Pairs::Adjacent => (channel / 2, channel ^ 1),
        Pairs::Halves if channel < pairs => (channel, channel + pairs),
        Pairs::Halves => (channel - pairs, channel - pairs),
    };
    Some(Pair { index, partner, turns: rope.frequencies[index] != 0.0 })
}

/// The cos and sin of a RoPE, to turn K back.
pub struct Turned {
    pairs: Pairs,
    width: usize,
    magnitude: f32,
    /// (positions, pairs)
    cos_sin: Vec<[f32; 2]>,
}

impl Turned {
    /// For the first `positions` positions. None if nothing turns.
    pub fn new(rope: &Rope, positions: usize) -> Option<Self> {
        let width = rope.frequencies.len();
        if width == 0 {
            return None;
        }
        let angles = (0..positions)
            .flat_map(|p| rope.frequencies.iter().map(move |f| f64::from(p as f32 * f)));
        let cos_sin = angles.map(|a| [a.cos() as f32, a.sin() as f32]).collect();
        Some(Turned { pairs: rope.pairs, width, magnitude: rope.magnitude, cos_sin })
    }

    /// Turns a head back that has been turned at a position. Channels behind the last pair stay as they are.
    pub fn undo(&self, x: &mut [f32], position: usize) {
        let table = &self.cos_sin[position * self.width..][..self.width];
        for (i, [cos, sin]) in table.iter().enumerate() {
            let (a, b) = match self.pairs {
                Pairs::Adjacent => (2 * i, 2 * i + 1),
                Pairs::Halves => (i, i + self.width),
            };
            (x[a], x[b]) = (x[a] * cos + x[b] * sin, x[b] * cos - x[a] * sin);
            x[a] /= self.magnitude;
            x[b] /= self.magnitude;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(pairs: Pairs) -> Rope {
        Rope { pairs, frequencies: [1.0, 0.3, 0.0].into(), magnitude: 1.25, ..Rope::none() }
    }

    #[test]
    fn partners_are_those_of_the_layout_and_some_channels_have_none() {
        let partners = |pairs| {
            let pair = |channel| pair_of(&rope(pairs), channel);
            (0..8).map(|c| pair(c).map(|pair| (pair.index, pair.partner))).collect::<Vec<_>>()
        };
        let halves = [(0, 3), (1, 4), (2, 5), (0, 0), (1, 1), (2, 2)].map(Some);
        assert_eq!(partners(Pairs::Halves), [&halves[..], &[None; 2]].concat());
        let adjacent = [(0, 1), (0, 0), (1, 3), (1, 2), (2, 5), (2, 4)].map(Some);
        assert_eq!(partners(Pairs::Adjacent), [&adjacent[..], &[None; 2]].concat());
        let turns = |channel| pair_of(&rope(Pairs::Halves), channel).unwrap().turns;
        assert!(turns(0) && turns(4) && !turns(5));
    }

    /// The forward turn is written here once more, from the definition.
    #[test]
    fn what_was_turned_is_turned_back() {
        for pairs in [Pairs::Halves, Pairs::Adjacent] {
            let turned = Turned::new(&rope(pairs), 9).unwrap();
            let x: Vec<f32> = (0..8).map(|i| i as f32 - 2.5).collect();
            for position in [0, 1, 8] {
                let mut y = x.clone();
                for (i, frequency) in [1.0f32, 0.3, 0.0].into_iter().enumerate() {
                    let (sin, cos) = (position as f32 * frequency).sin_cos();
                    let (a, b) =
                        if pairs == Pairs::Halves { (i, i + 3) } else { (2 * i, 2 * i + 1) };
                    (y[a], y[b]) =
                        (1.25 * (x[a] * cos - x[b] * sin), 1.25 * (x[a] * sin + x[b] * cos));
                }
                turned.undo(&mut y, position);
                assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1e-5), "{x:?} {y:?}");
            }
        }
    }
}
