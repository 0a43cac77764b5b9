//! What a golden says of a scheme on the baseline's text.
//!
//! ```text
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
const NAMES: [&str; 6] =
    ["generated", "generated_kld", "flips_per_1k", "hard_per_1k", "hazard_per_1k", "exact_prompts"];

/// Mean KLD on fewer and less alike positions than a corpus has, relative.
const KLD: f64 = 0.35;

/// What is kept of a replay.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenReplay {
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
            values: [
                replay.positions() as f64,
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
        let per_1k = 1e3 / self.values[0].max(1.0);
        let counted =
            |rate: f64| Tolerance::Absolute(per_1k * (3.0 * (rate / per_1k).sqrt() + 1.0));
        let tolerance = |i: usize| match i {
            0 => Tolerance::Absolute(0.0),
            1 => Tolerance::Relative { share: KLD, floor: 1e-6 },
            2 | 3 => counted(self.values[i]),
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
        if !lines.is_next(NAMES[0]) {
            return Ok(None);
        }
        let mut values = [0.0; NAMES.len()];
        for (value, name) in values.iter_mut().zip(NAMES) {
            *value = lines.number(name)?;
        }
        lines.title("first_flips")?;
        let mut first_flips = Vec::new();
        while !["texts", "subject"].iter().any(|title| lines.is_next(title)) {
            let (prompt, at) = lines.pair()?;
            first_flips.push((prompt, at));
        }
        let mut texts = Vec::new();
        if lines.is_next("texts") {
            lines.title("texts")?;
            while !lines.is_next("subject") {
                let (prompt, at) = lines.pair()?;
                let at = at.ok_or_else(|| lines.error("a text begins at a position"))?;
                let (baseline, scheme) = (lines.text("baseline")?, lines.text("scheme")?);
                texts.push(Texts { prompt, at, baseline, scheme });
            }
        }
        Ok(Some(GoldenReplay { values, first_flips, texts }))
    }
}

/// A number as goldens hold it; the first is a count.
fn shown(index: usize, value: f64) -> String {
    match index {
        0 => format!("{value:.0}"),
        _ => significant(value),
    }
}

impl Lines<'_> {
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
        for (i, (name, value)) in NAMES.iter().zip(self.values).enumerate() {
            writeln!(f, "{name:<16}{}", shown(i, value))?;
        }
        writeln!(f, "\nfirst_flips")?;
        for (prompt, at) in &self.first_flips {
            let at = at.map_or("none".to_string(), |at| at.to_string());
            writeln!(f, "  {prompt:<16}{at}")?;
        }
        if !self.texts.is_empty() {
            writeln!(f, "\ntexts")?;
        }
        for Texts { prompt, at, baseline, scheme } in &self.texts {
            writeln!(f, "  {prompt:<16}{at}")?;
            writeln!(f, "    {:<14}{}", "baseline", quoted(baseline))?;
            writeln!(f, "    {:<14}{}", "scheme", quoted(scheme))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Golden;
    use super::*;
    use crate::measure::replay::Replay;
    use crate::report::fixture;
    use crate::results::SchemeResult;

    fn golden(replay: Replay) -> Golden {
        let measurement = &fixture::results().measurements[0];
        let scheme = SchemeResult { replay: Some(replay), ..measurement.schemes[1].clone() };
        Golden::of(measurement, &scheme).unwrap()
    }

    #[test]
    fn reads_back_what_it_writes() {
        let golden = golden(fixture::replay());
        assert_eq!(Golden::parse(&golden.snapshot(), "g.snap").unwrap(), golden);
        let wrong = golden.snapshot().replace("tides           2", "tides           soon");
        let error = Golden::parse(&wrong, "g.snap").unwrap_err().to_string();
        assert!(error.contains("expected a prompt and a position"), "{error}");
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
