//! What a golden says of a scheme on the baseline's text.
//!
//! ```text
//! text            3959e6…
//! generated       1012
//! generated_kld   0.01234
//! …
//!
//! first_flips
//!   tides         12
//!   bicycle       none
//!
//! texts
//!   tides         12
//!     baseline    "…"
//!     scheme      "…"
//! ```

use super::text::quoted;
use super::{significant, GoldenError, Lines, Row, Tolerance};
use crate::measure::replay::Replay;
use std::fmt;

/// The numbers, in the order of their lines.
const NAMES: [&str; 9] = [
    "generated",
    "decided",
    "charged_k",
    "charged_v",
    "generated_kld",
    "flips_per_1k",
    "hard_per_1k",
    "hazard_per_1k",
    "exact_prompts",
];

/// Mean KLD on fewer and less alike positions than a corpus has, relative.
const KLD: f64 = 0.35;

/// What is kept of a replay.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenReplay {
    /// SHA-256 of the baseline's text.
    pub(super) text: String,
    /// As [`NAMES`] has them.
    values: [f64; NAMES.len()],
    /// Prompt, and the position of its first flip.
    first_flips: Vec<(String, Option<usize>)>,
    texts: Vec<Texts>,
}

#[derive(Debug, Clone, PartialEq)]
struct Texts {
    prompt: String,
    at: usize,
    baseline: String,
    scheme: String,
}

impl GoldenReplay {
    pub(super) fn of(replay: &Replay) -> Self {
        let texts = replay.texts.iter().map(|text| Texts {
            prompt: text.prompt.clone(),
            at: text.at,
            baseline: text.baseline.clone(),
            scheme: text.scheme.clone(),
        });
        GoldenReplay {
            text: replay.text_sha256.clone(),
            values: [
                replay.positions() as f64,
                replay.decided() as f64,
                replay.charged_share.k,
                replay.charged_share.v,
                replay.mean_kld,
                replay.flips_per_1k(),
                replay.hard_flips_per_1k(),
                replay.hazard_per_1k(),
                replay.exact_prompts(),
            ],
            first_flips: replay.prompts.iter().map(|p| (p.prompt.clone(), p.first_flip)).collect(),
            texts: texts.collect(),
        }
    }

    pub(super) fn is_finite(&self) -> bool {
        self.values.iter().all(|value| value.is_finite())
    }

    /// Number by number. Flips are counted: three standard deviations of a count, and one.
    pub(super) fn rows(&self, new: &GoldenReplay) -> Vec<Row> {
        let per_1k = 1e3 / self.values[1].max(1.0);
        let counted =
            |rate: f64| Tolerance::Absolute(per_1k * (3.0 * (rate / per_1k).sqrt() + 1.0));
        let tolerance = |i: usize| match i {
            0 | 1 => Tolerance::Absolute(0.0),
            2 | 3 => Tolerance::Absolute(1e-3),
            4 => Tolerance::Relative { share: KLD, floor: 1e-6 },
            5 | 6 => counted(self.values[i]),
            // they go with the flips
            _ => Tolerance::Shown,
        };
        let row = |i: usize| Row {
            name: NAMES[i],
            old: self.values[i],
            new: new.values[i],
            text: [self, new].map(|replay| shown(i, replay.values[i])),
            tolerance: tolerance(i),
        };
        (0..NAMES.len()).map(row).collect()
    }

    /// Reads what [`fmt::Display`] writes, if it comes next.
    pub(super) fn parse(lines: &mut Lines) -> Result<Option<Self>, GoldenError> {
        if !lines.is_next("text") {
            return Ok(None);
        }
        let text = lines.field("text")?;
        let mut values = [0f64; NAMES.len()];
        for (value, name) in values.iter_mut().zip(NAMES) {
            *value = lines.number(name)?;
            if !value.is_finite() || *value < 0.0 {
                return Err(lines.error(format!("`{name}` must be a number, and not below 0")));
            }
        }
        lines.title("first_flips")?;
        let mut first_flips = Vec::new();
        while !["texts", "subject"].iter().any(|title| lines.is_title(title)) {
            let (prompt, at) = lines.pair()?;
            first_flips.push((prompt, at));
        }
        let exact = first_flips.iter().filter(|(_, at)| at.is_none()).count();
        let exact = exact as f64 / first_flips.len() as f64;
        // without prompts it is no number, and agrees with nothing
        let agrees = (exact - values[NAMES.len() - 1]).abs() < 1e-3;
        if !agrees {
            return Err(
                lines.error("`exact_prompts` is not the share of prompts without a first flip")
            );
        }
        let mut texts = Vec::new();
        if lines.is_title("texts") {
            lines.title("texts")?;
            while !lines.is_title("subject") {
                let (prompt, at) = lines.pair()?;
                let at = at.ok_or_else(|| lines.error("a text begins at a position"))?;
                let (baseline, scheme) = (lines.text("baseline")?, lines.text("scheme")?);
                texts.push(Texts { prompt, at, baseline, scheme });
            }
        }
        Ok(Some(GoldenReplay { text, values, first_flips, texts }))
    }
}

/// A number as goldens hold it: counts, shares, others.
fn shown(index: usize, value: f64) -> String {
    match index {
        0 | 1 => format!("{value:.0}"),
        2 | 3 => format!("{value:.4}"),
        _ => significant(value),
    }
}

impl Lines<'_> {
    /// Whether the next line is this title.
    fn is_title(&self, title: &str) -> bool {
        let mut ahead = self.lines.clone().map(|(_, line)| line.trim_end());
        ahead.find(|line| !line.is_empty()) == Some(title)
    }

    /// A prompt and a position, or `none`.
    fn pair(&mut self) -> Result<(String, Option<usize>), GoldenError> {
        let line = self.expect("first_flips")?;
        let wrong = || self.error(format!("expected a prompt and a position, found `{line}`"));
        let (prompt, at) = line.split_once(char::is_whitespace).ok_or_else(wrong)?;
        let at = match at.trim() {
            "none" => None,
            at => Some(at.parse().map_err(|_| wrong())?),
        };
        Ok((prompt.into(), at))
    }
}

impl fmt::Display for GoldenReplay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<16}{}", "text", self.text)?;
        for (i, (name, value)) in NAMES.iter().zip(self.values).enumerate() {
            writeln!(f, "{name:<16}{}", shown(i, value))?;
        }
        writeln!(f, "\nfirst_flips")?;
        for (prompt, at) in &self.first_flips {
            let at = at.map_or("none".to_string(), |at| at.to_string());
            writeln!(f, "  {prompt:<15} {at}")?;
        }
        if !self.texts.is_empty() {
            writeln!(f, "\ntexts")?;
        }
        for Texts { prompt, at, baseline, scheme } in &self.texts {
            writeln!(f, "  {prompt:<15} {at}")?;
            writeln!(f, "    {:<14}{}", "baseline", quoted(baseline))?;
            writeln!(f, "    {:<14}{}", "scheme", quoted(scheme))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{compare, Comparison, Golden};
    use super::*;
    use crate::measure::replay::Replay;
    use crate::report::fixture;
    use crate::results::SchemeResult;

    fn golden(replay: Replay) -> Golden {
        let mut measurement = fixture::results().measurements.remove(0);
        measurement.conditions.prompts = Some(fixture::generated().conditions());
        let scheme = SchemeResult { replay: Some(replay), ..measurement.schemes[1].clone() };
        Golden::of(&measurement, &scheme).unwrap()
    }

    #[test]
    fn reads_back_what_it_writes() {
        let golden = golden(fixture::replay());
        assert_eq!(Golden::parse(&golden.snapshot(), "g.snap").unwrap(), golden);
        let lost = golden.snapshot();
        let (start, end) = (lost.find("text  ").unwrap(), lost.find("subject").unwrap());
        let error =
            Golden::parse(&(lost[..start].to_string() + &lost[end..]), "g.snap").unwrap_err();
        assert!(error.to_string().contains("prompts without what was made of them"), "{error}");
        let infinite = golden.snapshot().replace("generated_kld   0.01230", "generated_kld   inf");
        let error = Golden::parse(&infinite, "g.snap").unwrap_err().to_string();
        assert!(error.contains("`generated_kld` must be a number"), "{error}");
        let cut = golden.snapshot().replace("  tides           2\n  list", "  list");
        let error = Golden::parse(&cut, "g.snap").unwrap_err().to_string();
        assert!(error.contains("`exact_prompts` is not the share"), "{error}");
        let wrong = golden.snapshot().replace("tides           2", "tides           soon");
        let error = Golden::parse(&wrong, "g.snap").unwrap_err().to_string();
        assert!(error.contains("expected a prompt and a position"), "{error}");
    }

    /// Long names, and those of the blocks.
    #[test]
    fn any_prompt_may_be_named() {
        for name in ["texts", "subject", "first_flips", "a-name-of-more-than-sixteen-characters"] {
            let mut replay = fixture::replay();
            for prompt in &mut replay.prompts {
                prompt.prompt = name.into();
            }
            let golden = golden(replay);
            assert_eq!(Golden::parse(&golden.snapshot(), "g.snap").unwrap(), golden, "{name}");
        }
    }

    #[test]
    fn another_text_is_a_change() {
        let of = |text: &str| golden(Replay { text_sha256: text.into(), ..fixture::replay() });
        assert!(compare(Some(&of("aa")), &of("aa")).matches());
        assert!(matches!(compare(Some(&of("aa")), &of("bb")), Comparison::Changed { .. }));
    }

    #[test]
    fn flips_have_the_tolerance_of_a_count() {
        let replay = |flips| {
            let mut replay = fixture::replay();
            replay.prompts[0].positions = 999;
            replay.prompts[0].flips = flips;
            golden(replay).replay.unwrap()
        };
        let holds = |old, new| replay(old).rows(&replay(new)).iter().all(Row::holds);
        assert!(holds(9, 18) && holds(9, 0) && holds(100, 131));
        assert!(!holds(9, 20) && !holds(100, 132) && !holds(0, 2));
    }
}
