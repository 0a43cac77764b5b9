//! `turbo3_tcq` and `turbo2_tcq`: 52 and 36 bytes for 128 elements (3.25 and 2.25 bits). The coordinates are
//! those of [`turbo`](super::turbo), but they are not rounded one by one: it is trellis-coded quantization.
//!
//! The codes of a group are one stream of bits, from the low end of each byte. Coordinate t reads as the
//! codebook entry whose number is the `bits + 6` bits from bit `bits·t` on. Neighbours share six bits, so each
//! coordinate costs only `bits`, although the codebook has 64 times as many entries. In the terms of a trellis,
//! the entry's number is the state that step t arrives at, and its upper bits are what the step adds. The
//! Viterbi algorithm finds the stream with the least squared error. Zeros fill up the last byte behind the
//! 6 + 128·bits bits, and another zero byte follows. The scale is turbo's.
//!
//! Source: buun-llama-cpp, and beellama.cpp before 0.4. The codebooks are our own
//! (`scripts/oracle/tcq_codebook.py`), so the bytes differ from theirs. Both forks also multiply V by a factor
//! that depends on the length of the context when they read it; that is not done here.

use super::contract::Codec;
use super::turbo::{Quantizer, Scale, Turbo, GROUP};
use crate::compute::simd::vectorized;

pub(super) static ALL: &[&dyn Codec] = &[&TURBO3_TCQ, &TURBO2_TCQ];

pub(super) static TURBO3_TCQ: Turbo<Trellis<8>> = Turbo {
    name: "turbo3_tcq",
    accepted_by: "beellama.cpp before 0.4, buun-llama-cpp: -ctk turbo3_tcq -ctv turbo3_tcq",
    quantizer: Trellis { codebook: &CODEBOOK_3 },
    scale: Scale::Length,
};
pub(super) static TURBO2_TCQ: Turbo<Trellis<4>> = Turbo {
    name: "turbo2_tcq",
    accepted_by: "beellama.cpp before 0.4, buun-llama-cpp: -ctk turbo2_tcq -ctv turbo2_tcq",
    quantizer: Trellis { codebook: &CODEBOOK_2 },
    scale: Scale::Length,
};

// Trained from seed 1. On random directions their distortions are 0.01871 and 0.07231; those of the forks'
// codebooks are published as 0.0216 and 0.0794. No code can be below the rate-distortion bound
// 4^-(bits + 6/128), which is 0.01464 and 0.05857.
static CODEBOOK_3: [[f32; LOW]; 8] = entries(include_bytes!("tcq3.f32"));
static CODEBOOK_2: [[f32; LOW]; 4] = entries(include_bytes!("tcq2.f32"));

/// How many states each branch may arrive at. A state is `branch * LOW + low`.
const LOW: usize = 64;

const fn entries<const BRANCHES: usize>(bytes: &[u8]) -> [[f32; LOW]; BRANCHES] {
    let (words, rest) = bytes.as_chunks();
    assert!(rest.is_empty() && words.len() == BRANCHES * LOW);
    let mut codebook = [[0.0; LOW]; BRANCHES];
    let mut state = 0;
    while state < words.len() {
        codebook[state / LOW][state % LOW] = f32::from_le_bytes(words[state]);
        state += 1;
    }
    codebook
}

/// A trellis of `LOW * BRANCHES` states with 2^bits branches from each, and a value for each state.
pub(super) struct Trellis<const BRANCHES: usize> {
    codebook: &'static [[f32; LOW]; BRANCHES],
}

impl<const BRANCHES: usize> Quantizer for Trellis<BRANCHES> {
    fn bytes(&self) -> usize {
        GROUP * Self::BITS / 8 + 2
    }

    fn encode(&self, y: &[f32; GROUP], codes: &mut [u8]) {
        codes.fill(0);
        for (t, state) in best_path(y, self.codebook).into_iter().enumerate() {
            let (byte, shift) = Self::place(t);
            let [low, high] = (state << shift).to_le_bytes();
            codes[byte] |= low;
            codes[byte + 1] |= high;
        }
    }

    fn decode(&self, codes: &[u8]) -> [f32; GROUP] {
        let states = LOW * BRANCHES;
        std::array::from_fn(|t| {
            let (byte, shift) = Self::place(t);
            let bits = u16::from_le_bytes([codes[byte], codes[byte + 1]]) >> shift;
            self.codebook.as_flattened()[usize::from(bits) % states]
        })
    }
}

impl<const BRANCHES: usize> Trellis<BRANCHES> {
    const BITS: usize = BRANCHES.ilog2() as usize;

    /// The byte, and the bit in it, where the state of step `t` begins.
    fn place(t: usize) -> (usize, usize) {
        (t * Self::BITS / 8, t * Self::BITS % 8)
    }
}

// The states on the path with the least squared error, from any state to any other. If several predecessors
// cost the same, the lowest one wins, and so does the lowest state at the end. State `branch * LOW + low` comes
// from some state `low * BRANCHES + p`, whatever its branch. A step therefore looks for LOW least costs, not for
// one for each state.
vectorized!(fn best_path['a, const BRANCHES: usize](
    y: &'a [f32; GROUP],
    codebook: &'a [[f32; LOW]; BRANCHES]
) -> [u16; GROUP] {
    let mut costs = [[0.0f32; LOW]; BRANCHES];
    let mut predecessors = [[0u8; LOW]; GROUP];
    for (&y, predecessors) in y.iter().zip(&mut predecessors) {
        let mut least = [0.0f32; LOW];
        let mut from = [0u32; LOW];
        let leaving = costs.as_flattened().as_chunks::<BRANCHES>().0;
        for ((least, from), costs) in least.iter_mut().zip(&mut from).zip(leaving) {
            *least = costs[0];
            for (p, &cost) in costs.iter().enumerate().skip(1) {
                *from = if cost < *least { p as u32 } else { *from };
                *least = if cost < *least { cost } else { *least };
            }
        }
        *predecessors = from.map(|p| p as u8);
        for (costs, entries) in costs.iter_mut().zip(codebook) {
            for ((cost, entry), least) in costs.iter_mut().zip(entries).zip(&least) {
                *cost = least + (y - entry) * (y - entry);
            }
        }
    }
    let costs = costs.as_flattened();
    let mut state = (1..costs.len()).fold(0, |a, b| if costs[b] < costs[a] { b } else { a });
    let mut path = [0; GROUP];
    for (step, predecessors) in path.iter_mut().zip(&predecessors).rev() {
        *step = state as u16;
        let low = state % LOW;
        state = low * BRANCHES + usize::from(predecessors[low]);
    }
    path
});

#[cfg(test)]
mod tests {
    use super::*;

    /// The codebooks with which the published groups were encoded.
    fn synthetic<const BRANCHES: usize>(scale: f32) -> Turbo<Trellis<BRANCHES>> {
        let states = LOW * BRANCHES;
        let entry = |s: usize| ((73 * s % states) as f32 - (states as f32 - 1.0) / 2.0) / scale;
        let codebook = std::array::from_fn(|b| std::array::from_fn(|low| entry(b * LOW + low)));
        let quantizer = Trellis { codebook: Box::leak(Box::new(codebook)) };
        Turbo { name: "synthetic", accepted_by: "", quantizer, scale: Scale::Length }
    }

    fn stored(codec: &dyn Codec) -> String {
        let x: [f32; GROUP] =
            std::array::from_fn(|j| ((7 * j * j + 13 * j + 5) % 101) as f32 / 16.0 - 50.0 / 16.0);
        let mut bytes = vec![0; codec.encoded_bytes(GROUP)];
        codec.encode(&x, &mut bytes);
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn published_groups_are_met() {
        assert_eq!(
            stored(&synthetic::<8>(1024.0)),
            "a94cd49b121f352fa568fb67ce639e4c48989ecd53a579d048a36f4a6a26e0e27c16d45830488ff421f5\
             1b9f502e41d61a1e0400"
        );
        assert_eq!(
            stored(&synthetic::<4>(512.0)),
            "d14c4cfacb4c803db5bf80066173f3956c6ec78e792caed5aef1526017687ce6995a0900"
        );
    }

    /// The same path by its definition: every state tries all its predecessors.
    fn plain_path(y: &[f32], codebook: &[f32], bits: usize) -> Vec<u16> {
        let states = codebook.len();
        let mut costs = vec![0.0f32; states];
        let mut back = Vec::new();
        for y in y {
            let (mut next, mut from) = (vec![f32::INFINITY; states], vec![0; states]);
            for s in 0..states {
                for p in 0..1 << bits {
                    let before = ((s & 63) << bits) | p;
                    let cost = costs[before] + (y - codebook[s]).powi(2);
                    if cost < next[s] {
                        (next[s], from[s]) = (cost, before);
                    }
                }
            }
            costs = next;
            back.push(from);
        }
        let mut s = 0;
        for other in 1..states {
            if costs[other] < costs[s] {
                s = other;
            }
        }
        let mut path = Vec::new();
        for from in back.iter().rev() {
            path.push(s as u16);
            s = from[s];
        }
        path.reverse();
        path
    }

    fn meets_the_definition<const BRANCHES: usize>(trellis: &Trellis<BRANCHES>) {
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        for _ in 0..40 {
            // twelve uniform numbers are nearly normal; some are as large as no entry is
            let y: [f32; GROUP] =
                std::array::from_fn(|_| (0..12).map(|_| uniform()).sum::<f32>() / 9.0);
            let want = plain_path(&y, trellis.codebook.as_flattened(), Trellis::<BRANCHES>::BITS);
            assert_eq!(best_path(&y, trellis.codebook)[..], want);
        }
    }

    #[test]
    fn the_path_is_the_definitions() {
        meets_the_definition(&TURBO3_TCQ.quantizer);
        meets_the_definition(&TURBO2_TCQ.quantizer);
        // many ties
        meets_the_definition(&Trellis { codebook: &[[0.0625; LOW]; 8] });
    }
}
