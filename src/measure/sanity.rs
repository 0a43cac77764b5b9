//! Whether a baseline can be a sound model: a bound on its perplexity, which catches faults that nobody has foreseen.
//!
//! With a wrong tokenizer, or with weights that are damaged or in another convention, a model still runs and agrees
//! with itself. Its perplexity gives it away. A model that gives every token the same probability has a perplexity of
//! the size of its vocabulary, and one that knows only how often each token occurs has that of a unigram model.

use crate::results::statistics::Position;
use std::fmt;

/// How many tokens a corpus must have for a unigram model to be fitted on it. That model is scored on the text that it
/// was fitted on. On few tokens it would overfit so much that it could beat a sound language model.
pub const LEAST_TOKENS: usize = 20_000;

/// By what share of itself rounding may change a perplexity, whose log-probabilities are kept as f32.
const ROUNDING: f64 = 1e-5;

/// Why a baseline may have a perplexity that no sound model has.
pub(super) const SUSPICION: &str =
    "the tokenizer may be another model's, the weights may be in another program's \
                                    convention, or they are damaged";

/// A unigram model of a corpus: how often each token occurs, with one added to each count. A token that occurs n times
/// among N tokens has the probability (n + 1) / (N + V), where V is the size of the vocabulary.
pub struct Unigram {
    counts: Vec<u64>,
    tokens: u64,
}

/// A bound that a baseline's perplexity exceeds, and by how much.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Doubt {
    /// The size of the vocabulary, which a model without any knowledge has.
    Vocabulary { ppl: f64, vocab: usize },
    /// The perplexity of a unigram model of the corpus on the same positions.
    Unigram { ppl: f64, unigram: f64 },
}

impl Unigram {
    /// Fits the model on all tokens of a corpus. Gives none if there are too few of them.
    pub fn fitted(texts: &[Vec<u32>], vocab: usize) -> Option<Self> {
        let tokens: usize = texts.iter().map(Vec::len).sum();
        if tokens < LEAST_TOKENS {
            return None;
        }
        let mut counts = vec![1; vocab];
        for &token in texts.iter().flatten() {
            *counts.get_mut(token as usize)? += 1;
        }
        Some(Unigram { counts, tokens: tokens as u64 })
    }

    /// The model's perplexity on the tokens that the scored positions predict.
    pub fn ppl(&self, positions: &[Position]) -> f64 {
        let all = (self.tokens + self.counts.len() as u64) as f64;
        let nll = |p: &Position| (all / self.counts[p.target as usize] as f64).ln();
        (positions.iter().map(nll).sum::<f64>() / positions.len() as f64).exp()
    }
}

impl Doubt {
    /// Says which bound a baseline's perplexity exceeds, if it exceeds one. `positions` are the scored positions that
    /// the perplexity was computed from.
    pub fn about(
        ppl: f64,
        vocab: usize,
        unigram: Option<&Unigram>,
        positions: &[Position],
    ) -> Option<Self> {
        // a model without any knowledge has this perplexity, apart from rounding
        if ppl > vocab as f64 * (1.0 + ROUNDING) {
            return Some(Doubt::Vocabulary { ppl, vocab });
        }
        let unigram = unigram?.ppl(positions);
        (ppl > unigram * (1.0 + ROUNDING)).then_some(Doubt::Unigram { ppl, unigram })
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Doubt::Vocabulary { ppl, vocab } => write!(
                f,
                "the baseline's perplexity is {ppl:.1}, and a model that knows nothing has that of its \
                 vocabulary, {vocab}"
            ),
            Doubt::Unigram { ppl, unigram } => write!(
                f,
                "the baseline's perplexity is {ppl:.1}, and a model that knows only how often each token occurs in \
                 this corpus has {unigram:.1}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(targets: &[u32]) -> Vec<Position> {
        targets.iter().map(|&target| Position { target, ..Position::default() }).collect()
    }

    /// Worked out by hand. Of 20,000 tokens 15,000 are 0 and 5,000 are 1, and two of the vocabulary's four tokens never
    /// occur. So the probabilities are 15,001, 5,001, 1 and 1 of 20,004.
    #[test]
    fn every_token_is_counted_once_more_than_it_occurs() {
        let texts = [vec![0; 15_000], vec![1; 5_000]];
        let unigram = Unigram::fitted(&texts, 4).unwrap();
        for (targets, p) in [(&[0][..], 15_001.0), (&[1], 5_001.0), (&[2], 1.0), (&[3], 1.0)] {
            let ppl = unigram.ppl(&positions(targets));
            assert!((ppl / (20_004.0 / p) - 1.0).abs() < 1e-12, "{targets:?}: {ppl}");
        }
        let both = unigram.ppl(&positions(&[0, 1]));
        assert!((both / (20_004.0 / f64::sqrt(15_001.0 * 5_001.0)) - 1.0).abs() < 1e-12, "{both}");
    }

    #[test]
    fn few_tokens_are_not_judged() {
        assert!(Unigram::fitted(&[vec![0; LEAST_TOKENS - 1]], 4).is_none());
        assert!(Unigram::fitted(&[vec![0; LEAST_TOKENS - 1], vec![0]], 4).is_some());
        assert!(Unigram::fitted(&[vec![4; LEAST_TOKENS]], 4).is_none(), "another tokenizer's ids");
    }

    #[test]
    fn a_perplexity_is_doubted_above_each_bound() {
        let unigram = Unigram::fitted(&[vec![0; 15_000], vec![1; 5_000]], 64);
        let positions = positions(&[1, 1, 0]);
        let doubt = |ppl, unigram: Option<&Unigram>| Doubt::about(ppl, 64, unigram, &positions);
        let bound = unigram.as_ref().unwrap().ppl(&positions);
        assert!(bound > 2.0 && bound < 4.0, "{bound}");
        assert_eq!(doubt(bound, unigram.as_ref()), None);
        let over = 1.01 * bound;
        assert_eq!(
            doubt(over, unigram.as_ref()),
            Some(Doubt::Unigram { ppl: over, unigram: bound })
        );
        assert_eq!(doubt(over, None), None);
        assert_eq!(doubt(64.0001, None), None, "that of no knowledge, rounded");
        assert_eq!(doubt(64.1, None), Some(Doubt::Vocabulary { ppl: 64.1, vocab: 64 }));
    }
}
