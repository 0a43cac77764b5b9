//! Limits on what schemes retrieve from long contexts, which are judged with a scheme's other limits.

use super::Judgement;
use crate::judge::interval::{self, SHOWN};
use crate::policy::{Cell, Expectation, ModelPolicy, RetrievalLimit};
use crate::results::case::CaseKind;
use crate::results::retrieval::{JudgedRetrieval, Measure, Retrieved};
use crate::results::verdict::{Decision, Verdict};
use crate::results::SchemeResult;
use crate::text::numbers::significant;

/// Adds to a judgement what the limits on retrieval make of a scheme. An error stays one, and a scheme that is only
/// reported is not judged.
pub fn with_retrieval(
    judged: Judgement,
    model: &ModelPolicy,
    cell: &Cell,
    scheme: Option<&SchemeResult>,
) -> Judgement {
    let limits = model.retrieval.as_ref().map_or(&[][..], |retrieval| &retrieval.limits);
    let is_idle = limits.is_empty() || matches!(judged.verdict, Verdict::Error | Verdict::Reported);
    let Some(scheme) = scheme.filter(|_| !is_idle) else { return judged };
    let case = model.case(cell, CaseKind::Kld);
    let retrieval = match judge(model, limits, scheme) {
        Ok(retrieval) => retrieval,
        Err(why) => {
            let message = format!("{case}: {why}\n{}", judged.message);
            let limits = Vec::new();
            return Judgement { verdict: Verdict::Error, message, limits, ..judged };
        }
    };
    let verdict = verdict(cell.expect, judged.verdict, &retrieval);
    let is_plain = verdict == Verdict::Pass && judged.message.is_empty();
    let message = if is_plain {
        String::new()
    } else {
        message(&case.to_string(), verdict, &retrieval, scheme)
    };
    Judgement { verdict, message: message + &judged.message, retrieval, ..judged }
}

/// Judges each limit at each length.
///
/// # Errors
/// If something was not measured that a limit asks for.
fn judge(
    model: &ModelPolicy,
    limits: &[RetrievalLimit],
    scheme: &SchemeResult,
) -> Result<Vec<JudgedRetrieval>, String> {
    let origins: Vec<_> = limits.iter().map(|limit| limit.origin.as_str()).collect();
    if scheme.retrieved.is_empty() {
        return Err(format!(
            "retrieval was not measured, and the policy limits it ({}); kvgate's own engine measures it",
            origins.join(", ")
        ));
    }
    let mut judged = Vec::new();
    for retrieved in &scheme.retrieved {
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
        (None, _) if value <= bound => Decision::Kept,
        (None, _) => Decision::Broken,
        (Some(_), Ok(interval)) if interval.high <= bound => Decision::Kept,
        (Some(_), Ok(interval)) if interval.low > bound => Decision::Broken,
        // the policy asks for contexts enough, so a value without an interval has lost some of them
        (Some(_), _) => Decision::Undecided,
    };
    let ends = interval.ok();
    JudgedRetrieval {
        measure: limit.measure,
        length: retrieved.length,
        value,
        bound,
        origin: limit.origin.clone(),
        confidence,
        low: ends.map(|interval| interval.low),
        high: ends.map(|interval| interval.high),
        no_interval: confidence.and(interval.err()).map(|why| why.to_string()),
        decision,
    }
}

/// The verdict of all limits together, of which the others have one already.
fn verdict(expect: Expectation, others: Verdict, retrieval: &[JudgedRetrieval]) -> Verdict {
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

/// A line for the verdict, and one for each limit at each length.
fn message(
    case: &str,
    verdict: Verdict,
    retrieval: &[JudgedRetrieval],
    scheme: &SchemeResult,
) -> String {
    let broken = retrieval.iter().filter(|limit| limit.decision == Decision::Broken).count();
    let of = retrieval.len();
    let mut lines =
        format!("{case}: {}, {broken} of {of} limits on retrieval broken\n", verdict.label());
    for limit in retrieval {
        let mark = limit.decision.mark();
        let name = format!("{} at {}", limit.measure.name(), limit.length);
        let own = scheme.retrieved.iter().find(|retrieved| retrieved.length == limit.length);
        let counts = own.map(Retrieved::all).filter(|_| limit.measure == Measure::Loss);
        let counts = counts
            .map(|all| format!(" ({} of {} needles)", all.lost, all.retrieved_base))
            .unwrap_or_default();
        let interval = limit.low.zip(limit.high).map(|(low, high)| {
            format!(", interval {} to {}", significant(low, 3), significant(high, 3))
        });
        lines += &format!(
            "{mark} {name:<18} {}{counts} limit: at most {} ({}){}\n",
            significant(limit.value, 4),
            limit.bound,
            limit.origin,
            interval.unwrap_or_default()
        );
        if let Some(why) = &limit.no_interval {
            lines += &format!("    undecided: {why}\n");
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::retrieval::{Answers, Plan, DEPTHS};
    use crate::testing::fixture;

    fn judgement(verdict: Verdict) -> Judgement {
        Judgement {
            verdict,
            limits: Vec::new(),
            retrieval: Vec::new(),
            chunks: None,
            message: String::new(),
        }
    }

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
        fn judged(
            self,
            expect: Expectation,
            others: Verdict,
            confidence: Option<f64>,
        ) -> Judgement {
            let Measured { measure, contexts, retrieved_base, lost } = self;
            let mut model = fixture::policy().models.remove(0);
            model.confidence = confidence;
            let plan = Plan { lengths: vec![512], contexts, needles: 80, seed: 0 };
            let limit = RetrievalLimit { measure, bound: 0.05, origin: "thresholds.toml:7".into() };
            model.retrieval = Some(crate::policy::Retrieval { plan, limits: vec![limit] });
            let cell = Cell { expect, ..model.cells[0].clone() };
            let part =
                Answers { needles: 80, retrieved_base, lost, tokens: 400, ..Answers::default() };
            let mut scheme = fixture::results().measurements[0].schemes[0].clone();
            let (by_depth, parts) = (vec![0.0; DEPTHS], vec![part; contexts]);
            scheme.retrieved = vec![Retrieved { length: 512, by_depth, parts }];
            with_retrieval(judgement(others), &model, &cell, Some(&scheme))
        }
    }

    /// What a limit of 5 % makes of a loss.
    fn judged(
        expect: Expectation,
        others: Verdict,
        confidence: Option<f64>,
        (retrieved_base, lost): (u64, u64),
    ) -> Judgement {
        let measured = Measured { retrieved_base, lost, ..Measured::default() };
        measured.judged(expect, others, confidence)
    }

    #[test]
    fn a_broken_limit_is_red_and_meets_the_expectation_to_fail() {
        use Expectation::{Fail, Pass};
        for (expect, others, counts, verdict) in [
            (Pass, Verdict::Pass, (80, 4), Verdict::Pass),
            (Pass, Verdict::Pass, (80, 5), Verdict::Regressed),
            (Pass, Verdict::Regressed, (80, 0), Verdict::Regressed),
            (Pass, Verdict::Inconclusive, (80, 5), Verdict::Regressed),
            (Pass, Verdict::Inconclusive, (80, 0), Verdict::Inconclusive),
            (Fail, Verdict::UnexpectedPass, (80, 5), Verdict::FailsAsRequired),
            (Fail, Verdict::UnexpectedPass, (80, 0), Verdict::UnexpectedPass),
            (Fail, Verdict::FailsAsRequired, (80, 0), Verdict::FailsAsRequired),
            // a damaged model does not fail as required
            (Fail, Verdict::Regressed, (80, 5), Verdict::Regressed),
            (Expectation::Report, Verdict::Reported, (80, 5), Verdict::Reported),
            (Pass, Verdict::Error, (80, 5), Verdict::Error),
        ] {
            let found = judged(expect, others, None, counts);
            assert_eq!(found.verdict, verdict, "{expect:?} {others:?} {counts:?}");
        }
        let message = judged(Pass, Verdict::Pass, None, (80, 5)).message;
        assert!(message.contains("regressed, 1 of 1 limits on retrieval broken"), "{message}");
        assert!(
            message.contains("(5 of 80 needles) limit: at most 0.05 (thresholds.toml:7)"),
            "{message}"
        );
    }

    #[test]
    fn what_the_baseline_does_not_retrieve_is_not_measured_and_red() {
        for expect in [Expectation::Pass, Expectation::Fail] {
            let found = judged(expect, Verdict::Pass, None, (71, 0));
            assert_eq!(found.verdict, Verdict::Error);
            assert!(
                found.message.contains("the baseline itself retrieves 71 of 80"),
                "{}",
                found.message
            );
        }
        assert_eq!(judged(Expectation::Pass, Verdict::Pass, None, (72, 0)).verdict, Verdict::Pass);
        let mut model = fixture::policy().models.remove(0);
        let plan = Plan { lengths: vec![512], contexts: 1, needles: 8, seed: 0 };
        let limit =
            RetrievalLimit { measure: Measure::AnswerNll, bound: 1.0, origin: "t:1".into() };
        model.retrieval = Some(crate::policy::Retrieval { plan, limits: vec![limit] });
        let scheme = &fixture::results().measurements[0].schemes[0];
        let found = with_retrieval(judgement(Verdict::Pass), &model, &model.cells[0], Some(scheme));
        assert_eq!(found.verdict, Verdict::Error, "{}", found.message);
    }

    /// Without an interval nothing is known with confidence, however low the value is.
    #[test]
    fn answers_of_few_contexts_are_undecided() {
        let answers = |contexts: usize, confidence| {
            let measured =
                Measured { contexts, measure: Measure::AnswerNll, ..Measured::default() };
            let found = measured.judged(Expectation::Pass, Verdict::Pass, confidence);
            (found.verdict, found.message)
        };
        assert_eq!(answers(1, None).0, Verdict::Pass);
        assert_eq!(answers(8, Some(0.95)).0, Verdict::Pass);
        let (verdict, message) = answers(7, Some(0.95));
        assert_eq!(verdict, Verdict::Inconclusive);
        assert!(message.contains("? answer_nll at 512"), "{message}");
        assert!(message.contains("    undecided: 7 contexts are too few"), "{message}");
    }

    /// No loss in 80 needles leaves up to 4.5 %, and one loss leaves more than 5 %.
    #[test]
    fn with_a_confidence_the_whole_interval_must_keep_the_limit() {
        let found = |lost| judged(Expectation::Pass, Verdict::Pass, Some(0.95), (80, lost)).verdict;
        assert_eq!(found(0), Verdict::Pass);
        assert_eq!(found(1), Verdict::Inconclusive);
        assert_eq!(found(20), Verdict::Regressed);
        let fail = judged(Expectation::Fail, Verdict::UnexpectedPass, Some(0.95), (80, 1)).verdict;
        assert_eq!(fail, Verdict::Inconclusive);
    }
}
