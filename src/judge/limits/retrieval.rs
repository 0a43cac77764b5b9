//! Limits on what schemes retrieve from long contexts, which are judged with a scheme's other limits.

use super::confidence::told;
use crate::judge::interval::{self, Interval, SHOWN};
use crate::policy::{Cell, Expectation, ModelPolicy, RetrievalLimit};
use crate::results::retrieval::{JudgedRetrieval, Measure, Retrieved};
use crate::results::verdict::{Decision, Verdict};
use crate::text::numbers::{rounded, significant, Rounded};

/// Judges each limit at each length. A scheme that is only reported is not judged.
///
/// # Errors
/// If something was not measured that a limit asks for.
pub(super) fn judged(
    model: &ModelPolicy,
    cell: &Cell,
    retrieved: &[Retrieved],
) -> Result<Vec<JudgedRetrieval>, String> {
    let limits = model.retrieval.as_ref().map_or(&[][..], |retrieval| &retrieval.limits);
    if limits.is_empty() || cell.expect == Expectation::Report {
        return Ok(Vec::new());
    }
    let origins: Vec<_> = limits.iter().map(|limit| limit.origin.as_str()).collect();
    if retrieved.is_empty() {
        return Err(format!(
            "retrieval was not measured, and the policy limits it ({}); kvgate's own engine measures it",
            origins.join(", ")
        ));
    }
    let mut judged = Vec::new();
    for retrieved in retrieved {
        let all = retrieved.all();
        if !all.is_measured() {
            return Err(format!(
                "retrieval at {} is not measured: the baseline itself retrieves {} of {} needles, and a scheme can \
                 only be judged if it retrieves 90 %; use shorter `lengths`, or drop the limits ({})",
                retrieved.length,
                all.retrieved_base,
                all.needles,
                origins.join(", ")
            ));
        }
        judged.extend(limits.iter().map(|limit| judge_limit(limit, retrieved, model.confidence)));
    }
    Ok(judged)
}

fn judge_limit(
    limit: &RetrievalLimit,
    retrieved: &Retrieved,
    confidence: Option<f64>,
) -> JudgedRetrieval {
    let all = retrieved.all();
    let shown = confidence.unwrap_or(SHOWN);
    let (value, interval) = match limit.measure {
        Measure::Loss => (
            all.lost as f64 / all.retrieved_base as f64,
            Ok(interval::of_share(all.lost, all.retrieved_base, shown)),
        ),
        Measure::AnswerNll => (all.answer_nll(), interval::of_answers(&retrieved.parts, shown)),
    };
    let bound = limit.bound;
    let decision = match (confidence, interval) {
        (None, _) => Decision::of((value, value), bound),
        (Some(_), Ok(Interval { low, high })) => Decision::of((low, high), bound),
        // the policy asks for contexts enough, so a value without an interval has lost some of them
        (Some(_), Err(_)) => Decision::Undecided,
    };
    let (low, high, no_interval) = told(interval, confidence);
    JudgedRetrieval {
        measure: limit.measure,
        length: retrieved.length,
        value,
        bound,
        origin: limit.origin.clone(),
        confidence,
        low,
        high,
        no_interval,
        decision,
    }
}

/// The verdict of all limits together, of which the others have one already.
pub(super) fn verdict(
    expect: Expectation,
    others: Verdict,
    retrieval: &[JudgedRetrieval],
) -> Verdict {
    let any = |decision| retrieval.iter().any(|limit| limit.decision == decision);
    let (broken, undecided) = (any(Decision::Broken), any(Decision::Undecided));
    match (expect, others) {
        // a limit that is broken decides, whichever it is; for a scheme that must fail, this is the baseline's
        (_, Verdict::Regressed) => Verdict::Regressed,
        (Expectation::Pass, _) if broken => Verdict::Regressed,
        (Expectation::Fail, _) if broken => Verdict::FailsAsRequired,
        (Expectation::Pass, Verdict::Pass) | (Expectation::Fail, Verdict::UnexpectedPass)
            if undecided =>
        {
            Verdict::Inconclusive
        }
        _ => others,
    }
}

/// How many contexts would probably decide an undecided limit, and how far the limit would have to move. An interval shrinks
/// with the root of their number.
fn what_would_decide(limit: &JudgedRetrieval, contexts: usize) -> String {
    let JudgedRetrieval { value, bound, .. } = *limit;
    let (Some(low), Some(high)) = (limit.low, limit.high) else {
        return "nothing bounds the value from above: measure more `contexts`".into();
    };
    let end = if value <= bound { high } else { low };
    let times = match value == 0.0 {
        // the upper end of what was not lost once shrinks with the number of contexts
        true => end / bound,
        false => ((end - value) / (bound - value)).powi(2),
    };
    let needed = (times < MOST_TIMES).then(|| (contexts as f64 * times).ceil());
    let needed = needed.map_or_else(
        || "the value is too near the limit for more contexts to decide".into(),
        |needed| format!("about {needed} contexts would decide if the value stays"),
    );
    format!("{needed}; a limit of {} would be kept", rounded(high, 3, Rounded::Up))
}

/// Nobody measures more times as many contexts to decide a limit.
const MOST_TIMES: f64 = 100.0;

/// The line of a limit at a length, and what would decide it or why it is undecided.
pub(super) fn lines(limit: &JudgedRetrieval, retrieved: &[Retrieved]) -> String {
    let JudgedRetrieval { measure, length, value, bound, origin, .. } = limit;
    let name = format!("{} at {length}", measure.name());
    let own = retrieved.iter().find(|retrieved| retrieved.length == *length);
    let counts = own.map(Retrieved::all).filter(|_| *measure == Measure::Loss);
    let counts = counts
        .map(|all| format!(" ({} of {} needles)", all.lost, all.retrieved_base))
        .unwrap_or_default();
    let interval = limit.low.zip(limit.high).map(|(low, high)| {
        format!(", interval {} to {}", significant(low, 3), significant(high, 3))
    });
    let undecided = (limit.decision == Decision::Undecided).then(|| {
        let contexts = own.map_or(0, |own| own.parts.len());
        let why = limit.no_interval.clone();
        format!("\n    undecided: {}", why.unwrap_or_else(|| what_would_decide(limit, contexts)))
    });
    format!(
        "{} {name:<18} {}{counts} limit: at most {bound} ({origin}){}{}",
        limit.decision.mark(),
        significant(*value, 4),
        interval.unwrap_or_default(),
        undecided.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::limits::{judge_with_retrieval, Judgement};
    use crate::policy::{Policy, Retrieval};
    use crate::results::retrieval::{Answers, Plan, DEPTHS};
    use crate::testing::fixture;

    /// A scheme that lost needles of those that the baseline retrieved, of 80 in each context, and the measure of which
    /// the policy allows 5 %.
    struct Measured {
        measure: Measure,
        contexts: usize,
        retrieved_base: u64,
        lost: u64,
    }

    impl Default for Measured {
        fn default() -> Self {
            Measured { measure: Measure::Loss, contexts: 1, retrieved_base: 80, lost: 0 }
        }
    }

    impl Measured {
        /// The policy, in which the model also has a limit of 0.05 on its mean KLD, and what was retrieved.
        fn parts(&self, expect: Expectation, confidence: Option<f64>) -> (Policy, Vec<Retrieved>) {
            let Measured { measure, contexts, retrieved_base, lost } = *self;
            let mut policy = fixture::limited_policy();
            let model = &mut policy.models[0];
            model.confidence = confidence;
            let plan = Plan { lengths: vec![512], contexts, needles: 80, seed: 0 };
            let limit = RetrievalLimit { measure, bound: 0.05, origin: "thresholds.toml:7".into() };
            model.retrieval = Some(Retrieval { plan, limits: vec![limit] });
            model.cells.iter_mut().for_each(|cell| cell.expect = expect);
            let part =
                Answers { needles: 80, retrieved_base, lost, tokens: 400, ..Answers::default() };
            let (by_depth, parts) = (vec![0.0; DEPTHS], vec![part; contexts]);
            (policy, vec![Retrieved { length: 512, by_depth, parts }])
        }

        /// What is known of the limit.
        fn limits(&self, confidence: Option<f64>) -> Vec<JudgedRetrieval> {
            let (policy, retrieved) = self.parts(Expectation::Pass, confidence);
            let model = &policy.models[0];
            super::judged(model, &model.cells[0], &retrieved).unwrap()
        }

        /// What becomes of `q8_0`, which keeps the limit on its mean KLD, or of `q4_0`, which breaks it.
        fn judged(&self, label: &str, expect: Expectation) -> Judgement {
            let (policy, retrieved) = self.parts(expect, None);
            let model = &policy.models[0];
            let at = model.cells.iter().position(|cell| cell.label == label).unwrap();
            let outcome = &fixture::sound().measurements[0].schemes[at].outcome;
            let found = (outcome, &retrieved[..]);
            judge_with_retrieval(model, &model.cells[at], found, None, None)
        }
    }

    fn lost(lost: u64) -> Measured {
        Measured { lost, ..Measured::default() }
    }

    #[test]
    fn a_broken_limit_is_red_and_meets_the_expectation_to_fail() {
        use Expectation::{Fail, Pass};
        for (expect, others, counted, expected) in [
            (Pass, Verdict::Pass, 4, Verdict::Pass),
            (Pass, Verdict::Pass, 5, Verdict::Regressed),
            (Pass, Verdict::Regressed, 0, Verdict::Regressed),
            (Pass, Verdict::Inconclusive, 5, Verdict::Regressed),
            (Pass, Verdict::Inconclusive, 0, Verdict::Inconclusive),
            (Fail, Verdict::UnexpectedPass, 5, Verdict::FailsAsRequired),
            (Fail, Verdict::UnexpectedPass, 0, Verdict::UnexpectedPass),
            (Fail, Verdict::FailsAsRequired, 0, Verdict::FailsAsRequired),
            // a damaged model does not fail as required
            (Fail, Verdict::Regressed, 5, Verdict::Regressed),
        ] {
            let found = verdict(expect, others, &lost(counted).limits(None));
            assert_eq!(found, expected, "{expect:?} {others:?} {counted}");
        }
        let reported = lost(5).judged("q8_0", Expectation::Report);
        assert_eq!((reported.verdict, reported.retrieval), (Verdict::Reported, Vec::new()));
    }

    /// All limits of a case have one headline, and only one verdict.
    #[test]
    fn a_message_opens_with_the_verdict_of_all_limits() {
        use Expectation::{Fail, Pass};
        for (label, expect, counted, headline) in [
            ("q8_0", Pass, 5, "regressed, 1 of 2 limits broken"),
            ("q4_0", Pass, 5, "regressed, 2 of 2 limits broken"),
            ("q4_0", Pass, 0, "regressed, 1 of 2 limits broken"),
            ("q8_0", Fail, 5, "fails as required, 1 of 2 limits broken"),
            ("q8_0", Fail, 0, "unexpected pass, 0 of 2 limits broken"),
        ] {
            let message = lost(counted).judged(label, expect).message;
            let headline = format!("gemma-3-270m::{label}::kld: {headline}\n");
            assert!(message.starts_with(&headline), "{headline}{message}");
            assert_eq!(message.matches("::kld: ").count(), 1, "{message}");
            let is_unexpected = message.contains("the policy expects a broken limit");
            assert_eq!(is_unexpected, headline.contains("unexpected"), "{message}");
        }
        let message = lost(5).judged("q8_0", Pass).message;
        let line =
            "✗ loss at 512        0.06250 (5 of 80 needles) limit: at most 0.05 (thresholds.toml:7)";
        assert!(message.contains(line), "{message}");
        assert_eq!(lost(0).judged("q8_0", Pass).message, "");
    }

    #[test]
    fn what_the_baseline_does_not_retrieve_is_not_measured_and_red() {
        let base = |retrieved_base| Measured { retrieved_base, ..Measured::default() };
        for expect in [Expectation::Pass, Expectation::Fail] {
            let found = base(71).judged("q8_0", expect);
            assert_eq!(found.verdict, Verdict::Error);
            let message = found.message;
            assert!(message.contains("the baseline itself retrieves 71 of 80"), "{message}");
        }
        assert_eq!(base(72).judged("q8_0", Expectation::Pass).verdict, Verdict::Pass);
        let (policy, _) = base(80).parts(Expectation::Pass, None);
        let model = &policy.models[0];
        let missing = super::judged(model, &model.cells[0], &[]).unwrap_err();
        assert!(missing.contains("was not measured, and the policy limits it"), "{missing}");
    }

    /// Without an interval nothing is known with confidence, however low the value is.
    #[test]
    fn answers_of_few_contexts_are_undecided() {
        let answers = |contexts: usize, confidence| {
            let measure = Measure::AnswerNll;
            let limits = Measured { contexts, measure, ..Measured::default() }.limits(confidence);
            (limits[0].decision, lines(&limits[0], &[]))
        };
        assert_eq!(answers(1, None).0, Decision::Kept);
        assert_eq!(answers(8, Some(0.95)).0, Decision::Kept);
        let (decision, lines) = answers(7, Some(0.95));
        assert_eq!(decision, Decision::Undecided);
        assert!(lines.starts_with("? answer_nll at 512"), "{lines}");
        assert!(lines.contains("\n    undecided: 7 contexts are too few"), "{lines}");
    }

    /// Of 80 needles in 10 contexts one was lost: 0.0125, at most 0.0677.
    #[test]
    fn an_undecided_limit_says_what_would_decide_it() {
        let said = |lost| {
            let measured =
                Measured { contexts: 10, retrieved_base: 8, lost, ..Measured::default() };
            let (policy, mut retrieved) = measured.parts(Expectation::Pass, Some(0.95));
            let parts = &mut retrieved[0].parts;
            parts.iter_mut().for_each(|part| (part.needles, part.lost) = (8, 0));
            parts[0].lost = lost;
            let model = &policy.models[0];
            let judged = super::judged(model, &model.cells[0], &retrieved).unwrap();
            lines(&judged[0], &retrieved)
        };
        let one = "\n    undecided: about 22 contexts would decide if the value stays; a limit of 0.0677 would be kept";
        assert!(said(1).ends_with(one), "{}", said(1));
        let at_it = "\n    undecided: the value is too near the limit for more contexts to decide; a limit of 0.124 would be kept";
        assert!(said(4).ends_with(at_it), "{}", said(4));
        // above the limit, the lower end counts
        assert!(said(6).contains("contexts would decide if the value stays"), "{}", said(6));
        assert!(!said(0).contains("undecided"), "{}", said(0));
        let mut case = fixture::results().cases.remove(2);
        fixture::with_broken_loss(&mut case);
        let none = JudgedRetrieval {
            value: 0.0,
            bound: 0.01,
            low: Some(0.0),
            high: Some(0.045),
            ..case.retrieval[0].clone()
        };
        assert!(what_would_decide(&none, 10).starts_with("about 45 contexts would decide"));
    }

    /// No loss in 80 needles leaves up to 4.5 %, and one loss leaves more than 5 %.
    #[test]
    fn with_a_confidence_the_whole_interval_must_keep_the_limit() {
        let found =
            |expect, others, counted| verdict(expect, others, &lost(counted).limits(Some(0.95)));
        let pass = |counted| found(Expectation::Pass, Verdict::Pass, counted);
        assert_eq!(pass(0), Verdict::Pass);
        assert_eq!(pass(1), Verdict::Inconclusive);
        assert_eq!(pass(20), Verdict::Regressed);
        let fail = found(Expectation::Fail, Verdict::UnexpectedPass, 1);
        assert_eq!(fail, Verdict::Inconclusive);
    }
}
