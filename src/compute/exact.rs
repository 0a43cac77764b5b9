//! Which keys a query reads exactly, which means in half precision: a scheme may leave a *tail* of the newest tokens
//! and a *sink* of the first ones unquantized.
//!
//! When a model decodes token by token, a key is read as decode(encode(x)) only once it has been encoded. A pass over
//! many positions at once follows the same rule for each of its queries.
#![deny(missing_docs)]

/// The rule for a layer. A query at position p reads exactly the keys below `sink` and those from
/// [`first`](Exact::first)(p) on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exact {
    /// How many of the first tokens stay exact.
    pub sink: usize,
    /// Which of the newest tokens stay exact.
    pub tail: Tail,
}

/// How the exact tail moves with the query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// This many of the newest tokens, including the query's own. A token is encoded when it leaves the tail.
    Newest(usize),
    /// The tokens since the last multiple of this number. They are encoded together when they are complete and the
    /// next token comes, as KIVI does with its residual of K.
    Chunk(usize),
}

impl Exact {
    /// A rule by which no key is exact.
    pub const NEVER: Exact = Exact { sink: 0, tail: Tail::Newest(0) };

    /// The first position of the tail of a query at position `p`.
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

    /// How many tokens are exact at the same time, at most.
    pub fn tokens(&self) -> usize {
        let (Tail::Newest(tail) | Tail::Chunk(tail)) = self.tail;
        self.sink + tail
    }

    /// The rule in a layer with a sliding window. A window that moves on has no sink.
    pub(crate) fn within(self, window: Option<usize>) -> Self {
        Exact { sink: if window.is_some() { 0 } else { self.sink }, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule by its definition: the newest N are the keys k > p - N, including the query's own; of chunks of R the
    /// keys from R·⌊p/R⌋ on are exact; and the first S always are.
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
