//! Turns a measurement into a policy with proposed limits and expectations.
//!
//! No proposed case is near its limit. Every scheme has limits to start from. A scheme that is well within them gets
//! those limits. One that is far beyond them is proposed with `expect = "fail"`. One that is near them gets limits of
//! its own.

use crate::judge::interval;
use crate::policy::FLIPS_PER_ROOT_KLD;
use crate::results::statistics::{Direction, Part, Statistic, Statistics};
use crate::results::ENGINE;
use crate::results::{Measurement, Outcome, SchemeResult};
use crate::source::Source;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// A value that is nearer to its limit than this share of the limit is too near: on another machine, rounding alone
/// moves means by 2 to 5 % (docs/metrics.md).
const MARGIN: f64 = 0.25;
/// A value without an interval must also be at least this many standard errors away from its limit.
const ERRORS: f64 = 2.0;
/// A scheme's own limit is this many times the measured value.
const HEADROOM: f64 = 1.5;
/// It is also this many times the upper end of the value's interval, so that another machine's rounding leaves it kept.
const HEADROOM_OF_INTERVAL: f64 = 1.1;
/// The confidence that is proposed.
const CONFIDENCE: f64 = interval::SHOWN;
/// The range of flips over the root of mean KLD that proposed limits keep. It is narrower than
/// [`FLIPS_PER_ROOT_KLD`], outside of which the policy refuses a limit that never binds: people who round or edit
/// one of the two limits by a little still have a policy that is accepted.
const FLIPS: (f64, f64) = (0.25, 0.75);
const _: () = assert!(FLIPS.0 > FLIPS_PER_ROOT_KLD.0 && FLIPS.1 < FLIPS_PER_ROOT_KLD.1);

/// Limits to start from.
#[derive(Clone, Copy, PartialEq)]
struct Start {
    mean_kld: f64,
    p99_kld: f64,
    top1_agreement: f64,
}

/// The start for any scheme.
const ANY: Start = Start { mean_kld: 0.05, p99_kld: 0.5, top1_agreement: 0.87 };
/// The start for a scheme that stores K with at least eight bits.
const KEYS_IN_EIGHT: Start = Start { mean_kld: 0.03, p99_kld: 0.5, top1_agreement: 0.90 };
/// The start for a scheme that stores K and V with at least eight bits.
const EIGHT: Start = Start { mean_kld: 0.02, p99_kld: 0.5, top1_agreement: 0.915 };

impl Start {
    /// The start for a scheme, by its bits per element.
    fn for_scheme(result: &SchemeResult) -> Self {
        match result.storage.map(|storage| storage.bits_per_element) {
            Some(bits) if bits.k >= 8.0 && bits.v >= 8.0 => EIGHT,
            Some(bits) if bits.k >= 8.0 => KEYS_IN_EIGHT,
            _ => ANY,
        }
    }

    fn bounds(&self) -> [(Statistic, f64); 3] {
        [
            (Statistic::MeanKld, self.mean_kld),
            (Statistic::P99Kld, self.p99_kld),
            (Statistic::Top1Agreement, self.top1_agreement),
        ]
    }
}

/// What is proposed for a scheme.
#[derive(Debug, PartialEq)]
enum Proposal {
    /// The limits to start from.
    Start,
    /// Limits of its own. None drops a limit to start from, because nothing bounds the value from above.
    Own(Vec<(Statistic, Option<f64>)>),
    /// `expect = "fail"`, since it breaks the limits to start from.
    Fail,
}

/// Turns a value into a measure of harm, which is better if lower for every statistic.
fn harm(statistic: Statistic, value: f64) -> f64 {
    match statistic.direction() {
        Direction::AtMost => value,
        Direction::AtLeast => 1.0 - value,
    }
}

/// What is proposed for a scheme: no verdict that its own measurement leaves open, at the confidence that the policy gets.
fn propose(found: &Statistics, parts: &[Part], start: &Start, judged_by: JudgedBy) -> Proposal {
    let judged = start.bounds().map(|(statistic, bound)| {
        let (value, bound) = (harm(statistic, found.get(statistic)), harm(statistic, bound));
        let (least, most) = ends(statistic, found, parts);
        let own = with_headroom(value, most).max(bound);
        let margin = MARGIN * bound;
        let is_over = value >= bound + margin && least > bound;
        (statistic, is_over, value <= bound - margin && most <= bound, own)
    });
    if judged.iter().any(|(_, is_over, ..)| *is_over) {
        return Proposal::Fail;
    }
    if judged.iter().all(|(_, _, is_within, _)| *is_within) {
        return Proposal::Start;
    }
    let [(.., kld), (_, _, has_thin_tail, tail), (.., flips)] = judged;
    let seen = harm(Statistic::Top1Agreement, found.top1_agreement);
    let mut own = means(kld, flips, seen, judged_by).to_vec();
    if !has_thin_tail {
        own.push((Statistic::P99Kld, bounded(tail)));
    }
    Proposal::Own(own)
}

/// What limits are judged by.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum JudgedBy {
    /// The values as they are.
    Values,
    /// The intervals of values, because the policy asks for a confidence.
    Intervals,
}

/// A limit of a scheme's own on a harm, from its value and the most that it may stand for.
fn with_headroom(value: f64, most: f64) -> f64 {
    (HEADROOM * value).max(HEADROOM_OF_INTERVAL * most)
}

/// Limits on the mean KLD and on the share of flips, of which `seen` was seen. If values are judged, both limits make a
/// difference: flips grow with the root of mean KLD, so one of the two could be so wide that the other is broken first in
/// any case. Then that on flips is tightened, or dropped where this would leave it no margin. With intervals, either may be
/// the one that is open.
fn means(kld: f64, flips: f64, seen: f64, judged_by: JudgedBy) -> [(Statistic, Option<f64>); 2] {
    let kld = bounded(kld);
    let flips = bounded(flips);
    let flips = match (kld, flips, judged_by) {
        (Some(kld), Some(flips), JudgedBy::Values) => {
            let [least, most] = [FLIPS.0, FLIPS.1].map(|constant| constant * kld.sqrt());
            let flips = flips.max(rounded_up(least)).min(rounded_down(most));
            Some(flips).filter(|flips| seen <= (1.0 - MARGIN) * flips)
        }
        _ => flips,
    };
    [(Statistic::MeanKld, kld), (Statistic::Top1Agreement, flips.map(|flips| 1.0 - flips))]
}

/// A limit on a harm. None drops the limit, because nothing bounds the value from above.
fn bounded(harm: f64) -> Option<f64> {
    Some(harm).filter(|harm| harm.is_finite()).map(rounded_up)
}

/// Limits of a scheme's own that all of these readings of it keep with the same margins, wherever the limits stand that a
/// policy has for any scheme.
pub(crate) fn own_limits(
    readings: &[(&Statistics, &[Part])],
    judged_by: JudgedBy,
) -> Vec<(Statistic, Option<f64>)> {
    let worst = |of: &dyn Fn(&Statistics, &[Part]) -> f64| {
        // what is no number stays none
        let larger = |a: f64, b: f64| if b.is_nan() { b } else { b.max(a) };
        readings.iter().map(|(found, parts)| of(found, parts)).fold(0.0, larger)
    };
    let wide = |statistic| {
        worst(&|found, parts| {
            let (_, most) = ends(statistic, found, parts);
            with_headroom(harm(statistic, found.get(statistic)), most)
        })
    };
    let seen = worst(&|found, _| harm(Statistic::Top1Agreement, found.top1_agreement));
    let [kld, flips] = [Statistic::MeanKld, Statistic::Top1Agreement].map(wide);
    let mut limits = means(kld, flips, seen, judged_by).to_vec();
    limits.push((Statistic::P99Kld, bounded(wide(Statistic::P99Kld))));
    limits
}

/// The least and the largest harm that a statistic may stand for.
fn ends(statistic: Statistic, found: &Statistics, parts: &[Part]) -> (f64, f64) {
    match interval::of(statistic, found, parts, CONFIDENCE) {
        Ok(interval) => {
            let ends = [interval.low, interval.high].map(|end| harm(statistic, end));
            (ends[0].min(ends[1]), ends[0].max(ends[1]))
        }
        Err(_) => {
            let value = harm(statistic, found.get(statistic));
            let error = ERRORS * found.standard_error(statistic).unwrap_or(0.0);
            (value - error, value + error)
        }
    }
}

/// Rounds up to two digits.
fn rounded_up(value: f64) -> f64 {
    // a product that should be 30 may come out slightly above it, and must not become 31
    rounded(value, |digits| (digits - 1e-9).ceil())
}

/// Rounds down to two digits.
fn rounded_down(value: f64) -> f64 {
    rounded(value, |digits| (digits + 1e-9).floor())
}

fn rounded(value: f64, round: fn(f64) -> f64) -> f64 {
    if value == 0.0 {
        return value; // it has no digits
    }
    let digits = (1 - value.log10().floor() as i32).max(0);
    let scale = 10f64.powi(digits);
    round(value * scale) / scale
}

const NO_MODEL: &str = "No model has been measured yet.";

/// Whether a policy is the skeleton that `init` writes without a model and that nobody has edited.
pub(crate) fn is_skeleton(text: &str) -> bool {
    text.lines().nth(1) == Some(&format!("# {NO_MODEL}"))
        && !text.lines().any(|line| line.starts_with("[models"))
}

/// Writes the policy of a repository, with or without a measured model.
pub(crate) struct Draft<'a> {
    /// Texts, as the policy names them.
    pub corpus: &'a [String],
    /// Tokens in a chunk.
    pub context: usize,
    /// Chunks to measure.
    pub chunks: usize,
}

impl Draft<'_> {
    /// The policy without a model. It gates nothing, and `kvgate check` says what to do.
    pub fn skeleton(&self) -> String {
        let mut text = self.head(NO_MODEL);
        text += "\n\
            # `kvgate init --model MODEL` measures one and writes this file with what it found. By hand:\n\
            #\n\
            # [models.my-model]\n\
            # path = \"models/my-model.gguf\"\n\
            # # A broken model agrees with itself, so its KLD is low all the same. This limit on its own perplexity catches it.\n\
            # limits = { baseline_ppl = 40.0 }\n\
            #\n\
            # [models.my-model.schemes]\n\
            # q8_0 = {}\n";
        text
    }

    /// The policy with a model, by its measurement.
    pub fn of_model(&self, source: &Source, found: &Measurement) -> String {
        let day = day(SystemTime::now());
        let ppl = found.run.baseline_ppl;
        let mut text = self.head(&format!(
            "Proposed by {ENGINE} on {day} from the numbers beside each scheme. Look at every line before you commit it."
        ));
        let measured: Vec<_> = found.schemes.iter().filter_map(numbers).collect();
        let own = measured.iter().filter(|(result, _)| Start::for_scheme(result) != ANY);
        let own: Vec<_> = own.map(|(result, _)| *result).collect();
        if !own.is_empty() {
            text += "\n[defaults.schemes]\n";
        }
        for result in own {
            let Start { mean_kld, top1_agreement, .. } = Start::for_scheme(result);
            let limits = [
                (Statistic::MeanKld, Some(mean_kld)),
                (Statistic::Top1Agreement, Some(top1_agreement)),
            ];
            let _ = writeln!(text, "{} = {{ {} }}", key(&result.scheme), limits_of(&limits));
        }
        let name = key(&found.model);
        let _ = write!(text, "\n[models.{name}]\n{}", place(source));
        let _ = writeln!(text, "sha256 = {}", quoted(&found.subject.weights_sha256));
        if let Some(tokenizer) = &source.tokenizer {
            let _ = writeln!(text, "tokenizer = {}", quoted(&tokenizer.to_string_lossy()));
        }
        if let Some(bos) = source.bos {
            let _ = writeln!(text, "bos = {bos}");
        }
        if !source.ignore_keys.is_empty() {
            let keys: Vec<_> = source.ignore_keys.iter().map(|key| quoted(key)).collect();
            let _ = writeln!(text, "ignore_keys = [{}]", keys.join(", "));
        }
        if source.untrained {
            text += "untrained = true\n";
        }
        let limit = rounded_up(HEADROOM * ppl);
        let _ = writeln!(
            text,
            "# The perplexity with the unquantized cache was {ppl:.2}. A broken model agrees with itself, so its KLD is low\n\
             # all the same. This limit catches it.\n\
             limits = {{ baseline_ppl = {limit:?} }}\n\n[models.{name}.schemes]"
        );
        for result in &found.schemes {
            text += &scheme(result, self.judged_by());
        }
        text
    }

    /// Fewer chunks have no intervals, and then a confidence changes nothing.
    fn judged_by(&self) -> JudgedBy {
        if self.chunks >= interval::LEAST_CHUNKS {
            JudgedBy::Intervals
        } else {
            JudgedBy::Values
        }
    }

    fn head(&self, said: &str) -> String {
        let corpus: Vec<_> = self.corpus.iter().map(|file| quoted(file)).collect();
        let Start { mean_kld, p99_kld, top1_agreement } = ANY;
        let confidence = match self.judged_by() {
            JudgedBy::Intervals => format!(
                "confidence = {CONFIDENCE} # that a limit is kept or broken, by the spread of chunks; without it the values decide\n"
            ),
            JudgedBy::Values => String::new(),
        };
        format!(
            "# What a quantized KV cache may do to these models. `kvgate check` checks this file.\n\
             # {said}\n\n\
             [defaults]\n\
             corpus = [{}]\n\
             context = {} # tokens in a chunk: use the context that the model is served with\n\
             chunks = {}\n\
             {confidence}\n\
             # Limits to start from. top1_agreement is derived from mean_kld: changes of the top token grow with its square root.\n\
             [defaults.limits]\n\
             mean_kld = {mean_kld} # nats per token, at most\n\
             p99_kld = {p99_kld}\n\
             top1_agreement = {top1_agreement} # at least\n",
            corpus.join(", "),
            self.context,
            self.chunks,
        )
    }
}

/// The statistics of a scheme, if it could be measured.
fn numbers(result: &SchemeResult) -> Option<(&SchemeResult, &Statistics)> {
    match &result.outcome {
        Outcome::Measured { statistics, .. } => Some((result, statistics)),
        Outcome::Failed { .. } => None,
    }
}

fn place(source: &Source) -> String {
    let Some(pinned) = &source.hub else {
        return format!("path = {}\n", quoted(&source.path.to_string_lossy()));
    };
    let file = pinned.file.iter().map(|file| format!("file = {}\n", quoted(file)));
    let (repository, revision) = (quoted(&pinned.repository), quoted(&pinned.revision));
    format!("hf = {repository}\nrevision = {revision}\n") + &file.collect::<String>()
}

/// The lines of a scheme, with the numbers that they are based on.
fn scheme(result: &SchemeResult, judged_by: JudgedBy) -> String {
    let label = key(&result.scheme);
    let (found, parts) = match &result.outcome {
        Outcome::Measured { statistics, parts, .. } => (statistics, parts),
        Outcome::Failed { error } => {
            let why = error.lines().next().unwrap_or_default();
            return format!("# {label} cannot be measured: {why}\n");
        }
    };
    let said = format!(
        "mean KLD {}, p99 {}, top-1 {:.2} %",
        short(found.mean_kld),
        short(found.p99_kld),
        100.0 * found.top1_agreement
    );
    match propose(found, parts, &Start::for_scheme(result), judged_by) {
        Proposal::Start => format!("{label} = {{}} # {said}\n"),
        Proposal::Own(limits) => format!(
            "# Close to the limits above, so it has limits of its own: at least {HEADROOM} times what was measured{}.\n\
             {label} = {{ {} }} # {said}\n",
            if limits.contains(&(Statistic::Top1Agreement, None)) {
                ",\n# without one on top1_agreement, which beside that on mean_kld would never bind"
            } else {
                ""
            },
            limits_of(&limits)
        ),
        Proposal::Fail => {
            let reason = format!("{said} when the policy was proposed: too much to recommend it unseen");
            format!("{label} = {{ expect = \"fail\", reason = {} }}\n", quoted(&reason))
        }
    }
}

pub(crate) fn limits_of(limits: &[(Statistic, Option<f64>)]) -> String {
    let limit = |(statistic, bound): &(Statistic, Option<f64>)| {
        // 1 - 0.15 is not exactly 0.85
        let bound = bound.map(|bound| format!("{:?}", (bound * 1e9).round() / 1e9));
        format!("{} = {}", statistic.name(), bound.unwrap_or("false".into()))
    };
    let limits: Vec<_> = limits.iter().map(limit).collect();
    format!("limits = {{ {} }}", limits.join(", "))
}

/// Rounds to three digits, for people.
fn short(value: f64) -> String {
    let digits = (2 - value.abs().max(1e-9).log10().floor() as i32).clamp(0, 7);
    format!("{value:.*}", digits as usize)
}

/// A key, quoted where it must be.
fn key(name: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if name.chars().all(is_bare) && !name.is_empty() {
        name.into()
    } else {
        quoted(name)
    }
}

pub(crate) fn quoted(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}

/// The schemes that are measured if no others are named: the types that llama.cpp has for its cache, those with the
/// most bits first.
pub(crate) const SCHEMES: [&str; 7] =
    ["q8_0", "q8_0/q4_0", "q5_1", "q5_0", "iq4_nl", "q4_1", "q4_0"];

/// The date in UTC, such as 2026-11-28.
fn day(now: SystemTime) -> String {
    let days = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 86_400;
    // converts days to a date, in eras of 400 years that begin in March
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{date:02}", era * 400 + year + next)
}

#[cfg(test)]
mod tests;
