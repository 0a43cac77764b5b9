//! Intervals of what is retrieved.

use super::chunks::{Chunks, Unseen};
use super::{Interval, NoInterval, LEAST_CHUNKS};
use crate::results::retrieval::Answers;
use crate::results::statistics::Part;
use statrs::distribution::{Beta, ContinuousCDF};

/// The exact interval of a share, by Clopper and Pearson: of all shares that would give so few or so many counts in more
/// than (1 - `confidence`)/2 of all samples. It treats counts as independent.
pub fn of_share(count: u64, of: u64, confidence: f64) -> Interval {
    let (k, n, miss) = (count as f64, of as f64, (1.0 - confidence) / 2.0);
    let quantile = |a: f64, b: f64, p: f64, edge: f64| {
        Beta::new(a, b).map_or(edge, |beta| beta.inverse_cdf(p))
    };
    Interval {
        low: if count == 0 { 0.0 } else { quantile(k, n - k + 1.0, miss, 0.0) },
        high: if count >= of { 1.0 } else { quantile(k + 1.0, n - k, 1.0 - miss, 1.0) },
    }
}

/// The interval of how much the negative log-likelihood of answers is above the baseline's, in nats per token. Contexts are
/// the sample.
///
/// # Errors
/// If there are too few of them.
pub fn of_answers(contexts: &[Answers], confidence: f64) -> Result<Interval, NoInterval> {
    if contexts.len() < LEAST_CHUNKS {
        return Err(NoInterval::FewContexts(contexts.len()));
    }
    let part = |of: &Answers| Part {
        tokens: of.tokens,
        nll: of.nll,
        nll_base: of.nll_base,
        ..Part::default()
    };
    let parts: Vec<Part> = contexts.iter().map(part).collect();
    let more = |part: &Part| (part.nll - part.nll_base) / part.tokens as f64;
    let value = contexts.iter().fold(Answers::default(), |all, part| all.and(part)).answer_nll();
    let chunks = Chunks::of_differences(&parts, Unseen::SQUARE, &more);
    Ok(chunks.mean_of_differences(confidence).around(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values found by halving intervals of the binomial tails' own sums.
    #[test]
    fn shares_have_the_exact_interval() {
        for (count, of, low, high) in [
            (0, 59, 0.0, 0.060_608_9),
            (1, 20, 0.001_265_1, 0.248_732_8),
            (5, 50, 0.033_275_1, 0.218_135_4),
            (10, 10, 0.691_502_9, 1.0),
        ] {
            let found = of_share(count, of, 0.95);
            assert!((found.low - low).abs() < 1e-6, "{count} of {of}: {found:?}");
            assert!((found.high - high).abs() < 1e-6, "{count} of {of}: {found:?}");
        }
        // one-sided at 95 %: no loss in 59 needles leaves less than 5 %, in 58 it does not
        let bound = |of| of_share(0, of, 0.9).high;
        assert!(bound(59) < 0.05 && bound(58) > 0.05, "{} {}", bound(59), bound(58));
    }

    #[test]
    fn answers_are_as_sure_as_contexts_agree() {
        let context = |more: f64| Answers {
            needles: 4,
            tokens: 10,
            nll: 3.0 + more,
            nll_base: 3.0,
            ..Answers::default()
        };
        let of = |more: &[f64]| {
            let contexts: Vec<Answers> = more.iter().map(|more| context(*more)).collect();
            of_answers(&contexts, 0.95)
        };
        assert_eq!(of(&[0.0; 8]).unwrap(), Interval { low: 0.0, high: 0.0 });
        assert!(matches!(of(&[0.0; 7]), Err(NoInterval::FewContexts(7))));
        let near = of(&[0.10, 0.11, 0.09, 0.10, 0.12, 0.08, 0.10, 0.10]).unwrap();
        let far = of(&[0.0, 0.2, 0.0, 0.2, 0.0, 0.2, 0.0, 0.2]).unwrap();
        assert!(near.low > 0.0 && near.low < 0.01 && near.high > 0.01, "{near:?}");
        assert!(far.low < near.low && far.high > near.high, "{far:?}");
    }
}
