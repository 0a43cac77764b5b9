//! Which keys a query reads exactly, in half precision: the tail of newest tokens and the sink of first
//! ones that a scheme leaves unquantized.
//!
//! The rule is the one that token-by-token decoding follows, for every query of a pass: a key is read as
//! decode(encode(x)) only by queries that come after it has been encoded.

/// The exact keys of a query at position p: those below `sink`, and those from [`first`](Exact::first)(p) on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exact {
    /// First tokens of the sequence that stay exact.
    pub sink: usize,
    /// Newest tokens that stay exact.
    pub tail: Tail,
}

/// How the exact tail moves with the query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// The newest so many tokens, the query's own included: each is encoded when it leaves.
    Newest(usize),
    /// The tokens since the last multiple of this: they are encoded together once the next one comes
    /// (KIVI's residual of K).
    Chunk(usize),
}

impl Exact {
    /// Nothing is exact.
    pub const NEVER: Exact = Exact { sink: 0, tail: Tail::Newest(0) };

    /// The first position of the tail that a query at position `p` reads exactly.
    pub fn first(&self, p: usize) -> usize {
        match self.tail {
            Tail::Newest(count) => (p + 1).saturating_sub(count),
            Tail::Chunk(size) => p / size * size,
        }
    }

    /// Whether a query at position `p` reads the key at `key` exactly.
    pub fn holds(&self, p: usize, key: usize) -> bool {
        key < self.sink || key >= self.first(p)
    }

    /// The most tokens that are exact at once.
    pub fn tokens(&self) -> usize {
        let (Tail::Newest(tail) | Tail::Chunk(tail)) = self.tail;
        self.sink + tail
    }

    /// The rule in a layer whose queries see so many keys: there is no sink in a window that moves on.
    pub(crate) fn within(self, window: Option<usize>) -> Self {
        Exact { sink: if window.is_some() { 0 } else { self.sink }, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Word for word: the newest N are k > p - N, the query's own included; a chunk of R is read exactly
    /// from R·⌊p/R⌋ on; the first S are always.
    #[test]
    fn the_rule_is_the_definition() {
        for p in 0..40i64 {
            for k in 0..=p {
                let holds = |sink: i64, tail| {
                    let rule = Exact { sink: sink as usize, tail };
                    rule.holds(p as usize, k as usize)
                };
                for n in [0, 1, 8, 33] {
                    assert_eq!(holds(0, Tail::Newest(n as usize)), k > p - n, "{p} {k} {n}");
                    assert_eq!(holds(3, Tail::Newest(n as usize)), k < 3 || k > p - n);
                }
                for r in [1, 4, 32] {
                    assert_eq!(holds(0, Tail::Chunk(r as usize)), k >= r * (p / r), "{p} {k} {r}");
                }
                assert!(!Exact::NEVER.holds(p as usize, k as usize));
            }
        }
    }
}
