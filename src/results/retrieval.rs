//! What schemes retrieve from long contexts.
//!
//! A context is a part of the corpus, the *haystack*, into which sentences are put that nobody can guess, the *needles*.
//! A question about each needle follows, and its right answer, which all lanes are fed (teacher forcing). A needle is
//! *retrieved* if every token of its value is a lane's most likely one. Needles that the baseline does not retrieve say
//! nothing about a scheme.

use super::control::IDENTITY;
use super::decision::{excess, ratio, Decision};
use serde::{Deserialize, Serialize};

/// How many parts of a context have a KLD of their own.
pub const DEPTHS: usize = 8;

/// Which contexts are built. Together with the corpus and the tokenizer this decides every token of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The lengths of contexts, in tokens, questions and answers included.
    pub lengths: Vec<usize>,
    /// How many contexts of each length are built.
    pub contexts: usize,
    /// How many needles each context has.
    pub needles: usize,
    /// What chance is drawn from, together with the length and the number of a context.
    pub seed: u64,
}

/// The contexts of a measurement, and what its control lanes made of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Haystacks {
    /// Which contexts were built.
    pub plan: Plan,
    /// SHA-256 of the tokens of all contexts of each length.
    pub sha256: Vec<String>,
    /// The control lanes at each length.
    pub controls: Vec<NeedleControl>,
}

/// A control lane on the first contexts of a length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NeedleControl {
    /// One of [`CONTROLS`](super::CONTROLS).
    pub name: String,
    /// The length of the contexts.
    pub length: usize,
    /// What the lane made of the needles.
    pub answers: Answers,
}

/// What a scheme makes of the contexts of one length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Retrieved {
    /// The length of the contexts.
    pub length: usize,
    /// The mean KLD in nats in each of [`DEPTHS`] equal parts of the text before the questions, the first part first.
    pub by_depth: Vec<f64>,
    /// The sums of each context.
    pub parts: Vec<Answers>,
}

/// Sums over the needles of one context. Needles of a context share its text and its cache, so a context is one sample.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    /// The number of needles.
    pub needles: u64,
    /// Needles that the baseline retrieves.
    pub retrieved_base: u64,
    /// Needles that the baseline retrieves and the scheme does not.
    pub lost: u64,
    /// Needles that the scheme retrieves and the baseline does not.
    pub gained: u64,
    /// Tokens of all values.
    pub tokens: u64,
    /// Sum of KLD at these tokens.
    pub kld: f64,
    /// Sum of the scheme's negative log-likelihood of them.
    pub nll: f64,
    /// Sum of the baseline's negative log-likelihood of them.
    pub nll_base: f64,
}

/// What a policy can bound. It is a value of each length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// [`Retrieved::loss`]
    Loss,
    /// [`Retrieved::answer_nll`]
    AnswerNll,
}

impl Plan {
    /// Tokens of all contexts. Numbers may be a stranger's, so they saturate.
    #[must_use]
    pub fn tokens(&self) -> usize {
        let each = self.lengths.iter().copied().fold(0, usize::saturating_add);
        each.saturating_mul(self.contexts)
    }
}

impl Measure {
    /// Both, in the order of reports.
    pub const ALL: [Measure; 2] = [Measure::Loss, Measure::AnswerNll];

    /// Its key among the limits of retrieval in `thresholds.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Measure::Loss => "loss",
            Measure::AnswerNll => "answer_nll",
        }
    }
}

/// A limit on what a scheme retrieves, and what the contexts of one length make of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JudgedRetrieval {
    /// What is bounded.
    pub measure: Measure,
    /// The length of the contexts.
    pub length: usize,
    /// The value that was measured.
    pub value: f64,
    /// The largest value that passes.
    pub bound: f64,
    /// Where the policy states the limit: `thresholds.toml:12`.
    pub origin: String,
    /// The confidence with which the bound must be kept. None if the value decides as it is, because the policy says none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// The lower end of the value's interval, if it has one. Its confidence is 0.95 if the policy says none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// The upper end of the value's interval, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    /// Why nothing is known of the limit with the policy's confidence, if the value has no interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_interval: Option<String>,
    /// What is known of the limit.
    pub decision: Decision,
}

impl JudgedRetrieval {
    /// The value divided by its bound, which is infinite if the limit allows no harm and there is some.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        ratio(self.value, self.bound)
    }

    /// By how much the limit is broken: `loss at 4096 is 2.40 × its limit`.
    #[must_use]
    pub fn words(&self) -> String {
        let (name, length) = (self.measure.name(), self.length);
        match self.decision {
            Decision::Undecided => format!("{name} at {length} undecided"),
            _ => format!("{name} at {length} {}", excess(self.value, self.bound)),
        }
    }
}

impl Answers {
    /// Adds the sums of another context. Counts may be a stranger's, so they saturate.
    #[must_use]
    pub fn and(self, other: &Answers) -> Self {
        Answers {
            needles: self.needles.saturating_add(other.needles),
            retrieved_base: self.retrieved_base.saturating_add(other.retrieved_base),
            lost: self.lost.saturating_add(other.lost),
            gained: self.gained.saturating_add(other.gained),
            tokens: self.tokens.saturating_add(other.tokens),
            kld: self.kld + other.kld,
            nll: self.nll + other.nll,
            nll_base: self.nll_base + other.nll_base,
        }
    }

    /// Whether the baseline retrieves so many of the needles, 90 %, that losses say something about a scheme.
    #[must_use]
    pub fn is_measured(&self) -> bool {
        self.needles > 0 && 10 * u128::from(self.retrieved_base) >= 9 * u128::from(self.needles)
    }

    /// How much the scheme's negative log-likelihood of the values is above the baseline's, in nats per token.
    #[must_use]
    pub fn answer_nll(&self) -> f64 {
        (self.nll - self.nll_base) / self.tokens as f64
    }

    /// The mean KLD at the tokens of the values, in nats.
    #[must_use]
    pub fn mean_kld(&self) -> f64 {
        self.kld / self.tokens as f64
    }

    /// How the sums contradict each other.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        let sums = [self.kld, self.nll, self.nll_base];
        let failed_base = self.needles.checked_sub(self.retrieved_base);
        let rounding = -1e-4 * self.tokens as f64;
        let wrong = [
            (self.needles == 0, "there is no needle"),
            (failed_base.is_none(), "the baseline retrieves more needles than there are"),
            (self.lost > self.retrieved_base, "more needles are lost than the baseline retrieves"),
            (Some(self.gained) > failed_base, "more needles are gained than the baseline misses"),
            (self.tokens < self.needles, "there are fewer tokens of values than values"),
            (!sums.iter().all(|sum| sum.is_finite()), "a sum is no number"),
            (sums.iter().any(|sum| *sum < rounding), "a sum is below 0"),
        ];
        wrong.into_iter().find(|(is_so, _)| *is_so).map(|(_, what)| what)
    }
}

impl Retrieved {
    /// The sums of all contexts.
    #[must_use]
    pub fn all(&self) -> Answers {
        self.parts.iter().fold(Answers::default(), Answers::and)
    }

    /// The share of the needles which the baseline retrieves that the scheme loses. None if the baseline retrieves fewer
    /// than 90 % of the needles: this length is then not measured.
    #[must_use]
    pub fn loss(&self) -> Option<f64> {
        let all = self.all();
        all.is_measured().then(|| all.lost as f64 / all.retrieved_base as f64)
    }

    /// [`Answers::answer_nll`] of all contexts.
    #[must_use]
    pub fn answer_nll(&self) -> f64 {
        self.all().answer_nll()
    }
}

impl NeedleControl {
    /// What is wrong with the lane, if something is: the identity must give the baseline's own numbers, and the damaged
    /// cache must do harm, and lose needles where the baseline retrieves them.
    pub(crate) fn fault(&self, least_kld: f64) -> Option<String> {
        let Answers { lost, gained, kld, nll, nll_base, .. } = self.answers;
        let is_sound = match &self.name[..] {
            IDENTITY => kld == 0.0 && nll == nll_base && (lost, gained) == (0, 0),
            _ => self.answers.mean_kld() >= least_kld && (lost > 0 || !self.answers.is_measured()),
        };
        (!is_sound).then(|| {
            format!(
                "on contexts of {} tokens the control `{}` read a mean KLD of {:.4} at the answers and lost {lost} of \
                 {} needles",
                self.length,
                self.name,
                self.answers.mean_kld(),
                self.answers.retrieved_base
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(needles: u64, retrieved_base: u64, lost: u64, gained: u64) -> Answers {
        let (tokens, kld, nll, nll_base) = (needles * 4, 0.5, 3.0, 2.0);
        Answers { needles, retrieved_base, lost, gained, tokens, kld, nll, nll_base }
    }

    #[test]
    fn a_length_counts_from_nine_of_ten_needles_on() {
        let of = |parts: &[Answers]| Retrieved {
            length: 512,
            by_depth: vec![0.0; DEPTHS],
            parts: parts.to_vec(),
        };
        assert_eq!(of(&[answers(10, 9, 3, 1)]).loss(), Some(3.0 / 9.0));
        assert_eq!(of(&[answers(10, 8, 3, 1)]).loss(), None);
        // all contexts together, and gains are never subtracted
        let two = of(&[answers(10, 10, 1, 0), answers(10, 8, 0, 2)]);
        assert_eq!(two.loss(), Some(1.0 / 18.0));
        assert_eq!(two.answer_nll(), 2.0 / 80.0);
        assert_eq!(of(&[]).loss(), None);
    }

    #[test]
    fn sums_that_contradict_each_other_are_found() {
        assert_eq!(answers(10, 9, 3, 1).contradiction(), None);
        for wrong in [
            answers(0, 0, 0, 0),
            answers(10, 11, 0, 0),
            answers(10, 9, 10, 0),
            answers(10, 9, 0, 2),
            Answers { tokens: 9, ..answers(10, 9, 0, 0) },
            Answers { nll: f64::NAN, ..answers(10, 9, 0, 0) },
            Answers { kld: -1.0, ..answers(10, 9, 0, 0) },
        ] {
            assert!(wrong.contradiction().is_some(), "{wrong:?}");
        }
    }

    #[test]
    fn the_controls_are_exact_and_harmful() {
        let control =
            |name: &str, answers| NeedleControl { name: name.into(), length: 512, answers };
        let same = Answers { kld: 0.0, nll: 2.0, lost: 0, gained: 0, ..answers(10, 10, 0, 0) };
        assert_eq!(control("identity", same).fault(0.1), None);
        for wrong in [
            Answers { nll: 2.0000001, ..same },
            Answers { lost: 1, ..same },
            Answers { kld: 1e-9, ..same },
        ] {
            assert!(control("identity", wrong).fault(0.1).is_some(), "{wrong:?}");
        }
        let bad = Answers { kld: 40.0, ..answers(10, 10, 9, 0) };
        assert_eq!(control("bad lane", bad).fault(0.1), None);
        assert!(control("bad lane", Answers { lost: 0, ..bad }).fault(0.1).is_some());
        assert!(control("bad lane", Answers { kld: 0.4, ..bad }).fault(0.1).is_some());
        // where the baseline retrieves little, there is nothing to lose
        let little = Answers { retrieved_base: 3, lost: 0, ..bad };
        assert_eq!(control("bad lane", little).fault(0.1), None);
    }
}
