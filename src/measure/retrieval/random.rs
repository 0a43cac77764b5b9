//! Numbers that look random and are the same in every run and on every machine.

use crate::hash;

/// A generator of numbers (SplitMix64), seeded by what must give the same numbers again.
pub struct Random(u64);

impl Random {
    /// The generator of one context: its seed is a hash of the policy's seed, the length and the context's number.
    pub fn new(seed: u64, length: usize, index: usize) -> Self {
        let digits = hash::of_bytes(format!("retrieval {seed} {length} {index}").as_bytes());
        Random(u64::from_str_radix(&digits[..16], 16).expect("a hash has hexadecimal digits"))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which must not be 0.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }

    /// Puts items into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_again_and_another_context_others() {
        let numbers = |seed, length, index| {
            let mut random = Random::new(seed, length, index);
            (0..8).map(|_| random.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(1, 512, 0), numbers(1, 512, 0));
        let others = [numbers(2, 512, 0), numbers(1, 513, 0), numbers(1, 512, 1)];
        assert!(others.iter().all(|other| *other != numbers(1, 512, 0)));
    }

    /// The first numbers of the generator's published reference, from the state 1234567.
    #[test]
    fn it_is_splitmix() {
        let mut random = Random(1_234_567);
        let first = [random.next(), random.next(), random.next()];
        assert_eq!(
            first,
            [6457827717110365317, 3203168211198807973, 9817491932198370423],
            "as Rosetta Code has them"
        );
    }
}
