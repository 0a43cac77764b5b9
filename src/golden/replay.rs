//! The part of a golden about the baseline's text: what the scheme makes of it.
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
use super::{GoldenError, Lines, Row, Tolerance, SIGNIFICANT_DIGITS};
use crate::results::replay::Replay;
use crate::text::numbers::significant;
use std::collections::BTreeSet;
use std::fmt;

/// The names of the numbers, in the order of their lines.
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

/// The place of the mean KLD among them.
const KLD_AT: usize = 4;

/// The lowest mean KLD that counts as rounding.
const LEAST_KLD: f64 = -1e-6;

/// The largest error that writing a rate with four digits makes, as a share of the rate.
const DIGITS: f64 = 6e-4;

/// Tolerance of the mean KLD, relative. It is wider than on a corpus, because there are fewer and more varied
/// positions.
const KLD: f64 = 0.35;

/// The part of a replay that a golden holds.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenReplay {
    /// SHA-256 of the baseline's text.
    pub(super) text: String,
    /// The numbers in the order of [`NAMES`].
    values: [f64; NAMES.len()],
    /// The prompts, each with the position of its first flip.
    first_flips: Vec<(String, Option<usize>)>,
    texts: Vec<Texts>,
}

/// How the baseline's text and the scheme's own go on from the first flip of a prompt.
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

    /// How a replay contradicts itself, in itself or in the golden that it would become.
    pub(crate) fn contradiction_of(replay: &Replay) -> Option<String> {
        let of_prompts = replay.contradiction();
        of_prompts.or_else(|| GoldenReplay::of(replay).contradiction())
    }

    pub(super) fn is_finite(&self) -> bool {
        self.values.iter().all(|value| value.is_finite())
    }

    /// How the numbers contradict each other: counts that do not add up, or positions behind the text's end.
    ///
    /// Rates have four digits, so what follows from them is compared with that precision.
    fn contradiction(&self) -> Option<String> {
        let [generated, decided, charged_k, charged_v, _, flips, hard, ..] = self.values;
        let count = |rate: f64| rate * decided / 1e3;
        let is_whole = |x: f64| (x - x.round()).abs() <= DIGITS * x + 1e-6;
        let prompts = self.first_flips.len() as f64;
        let wrong = [
            (generated.fract() != 0.0 || decided.fract() != 0.0, "positions are whole numbers"),
            (decided > generated, "more positions are `decided` than `generated`"),
            (generated < prompts, "every prompt has a position at least"),
            (charged_k > 1.0 || charged_v > 1.0, "a share is 1 at most"),
            (
                !is_whole(count(flips)) || !is_whole(count(hard)),
                "flips per 1,000 of the `decided` positions are no whole number of flips",
            ),
            (hard > flips * (1.0 + DIGITS), "more flips are hard than there are"),
            (count(flips) > decided + 0.5, "there are more flips than positions"),
        ];
        first_true(wrong)
            .or_else(|| self.wrong_first_flips(count(flips)))
            .or_else(|| self.wrong_texts())
    }

    /// How the list of first flips contradicts the numbers.
    fn wrong_first_flips(&self, flips: f64) -> Option<String> {
        let [generated, decided, .., hazard, exact_prompts] = self.values;
        let names: BTreeSet<&str> = self.first_flips.iter().map(|(name, _)| &name[..]).collect();
        let diverged: Vec<f64> =
            self.first_flips.iter().filter_map(|(_, at)| Some((*at)? as f64)).collect();
        let [all, count] = [self.first_flips.len(), diverged.len()].map(|n| n as f64);
        let exact = all - count;
        // without prompts the share is NaN, which agrees with nothing
        let is_share = (exact / all - exact_prompts).abs() < 1e-3;
        // positions up to the first flips, and at least one of each text without one
        let least = diverged.iter().map(|at| at + 1.0).sum::<f64>() + exact;
        let exposure = if count > 0.0 { 1e3 * count / hazard } else { generated };
        let slack = DIGITS * exposure + 1e-6;
        let follows = exposure.is_finite()
            && (least - slack..=generated + slack).contains(&exposure)
            && (count > 0.0 || hazard == 0.0);
        first_true([
            (!is_share, "`exact_prompts` is not the share of prompts without a first flip"),
            (names.len() < self.first_flips.len(), "a prompt has two first flips"),
            (least > generated, "first flips stand behind the end of the text"),
            (!follows, "`hazard_per_1k` does not follow from the first flips"),
            (
                count > flips + (generated - decided) + 0.5,
                "more prompts part than there are flips and positions at which none are counted",
            ),
            (
                // no flip of a text comes before its first one
                flips > generated - exposure + count + slack + 0.5,
                "there are flips before the first flips",
            ),
        ])
    }

    /// Texts that do not begin at the first flip of their prompt.
    fn wrong_texts(&self) -> Option<String> {
        let is_one = |text: &&Texts| {
            self.first_flips.iter().any(|(name, at)| *name == text.prompt && *at == Some(text.at))
        };
        let wrong = self.texts.iter().find(|text| !is_one(text))?;
        Some(format!(
            "the texts of `{}` begin at {}, which is not its first flip",
            wrong.prompt, wrong.at
        ))
    }

    /// Compares the numbers with those of a new replay. Flips are counts, so they may move by three standard
    /// deviations of a count and one flip more.
    pub(super) fn rows(&self, new: &GoldenReplay) -> Vec<Row> {
        let per_1k = 1e3 / self.values[1].max(1.0);
        let counted = |rate: f64| {
            // the golden's rate is rounded to four digits, which must not make an allowed difference fail
            let flips = (rate / per_1k).round();
            Tolerance::Absolute(per_1k * (3.0 * flips.sqrt() + 1.0) + DIGITS * rate)
        };
        // the rate of first flips is one of the prompts that diverge, over the positions up to their first flips
        let [.., hazard, _] = self.values;
        let diverged = self.first_flips.iter().filter(|(_, at)| at.is_some()).count() as f64;
        let per_first_flip =
            if diverged > 0.0 { hazard / diverged } else { 1e3 / self.values[0].max(1.0) };
        let first_flips = per_first_flip * (3.0 * diverged.sqrt() + 1.0) + DIGITS * hazard;
        let tolerance = |i: usize| match i {
            0 | 1 => Tolerance::Absolute(0.0),
            2 | 3 => Tolerance::Absolute(1e-3),
            4 => Tolerance::Relative { share: KLD, floor: 1e-6 },
            5 | 6 => counted(self.values[i]),
            7 => Tolerance::Absolute(first_flips),
            // this follows from the first flips and the length of the texts
            _ => Tolerance::Shown,
        };
        let row = |i: usize| Row {
            name: NAMES[i],
            old: self.values[i],
            new: new.values[i],
            text: [self, new].map(|replay| shown(i, replay.values[i])),
            tolerance: tolerance(i),
        };
        (0..NAMES.len()).map(row).chain([self.moved_first_flips(new)]).collect()
    }

    /// How many first flips have moved, which is for people. In a deep model another order of additions moves most of
    /// them, because it makes the rounding errors of K and V other ones of the same size. How often a text diverges is
    /// compared by the hazard.
    fn moved_first_flips(&self, new: &GoldenReplay) -> Row {
        let prompts = self.first_flips.len();
        let moved = self.first_flips.iter().filter(|own| !new.first_flips.contains(own)).count();
        Row {
            name: "first_flips",
            old: 0.0,
            new: moved as f64,
            text: [format!("of {prompts}"), format!("{moved} moved")],
            tolerance: Tolerance::Shown,
        }
    }

    /// Parses what [`fmt::Display`] writes, if it comes next.
    pub(super) fn parse(lines: &mut Lines) -> Result<Option<Self>, GoldenError> {
        if !lines.is_next("text") {
            return Ok(None);
        }
        let text = lines.field("text")?;
        let mut values = [0f64; NAMES.len()];
        for (value, name) in values.iter_mut().zip(NAMES) {
            *value = lines.number(name)?;
            // rounding may make the mean divergence of a nearly exact scheme negative
            let least = if name == NAMES[KLD_AT] { LEAST_KLD } else { 0.0 };
            if !value.is_finite() || *value < least {
                return Err(lines.error(format!("`{name}` must be a number, and not below 0")));
            }
        }
        lines.title("first_flips")?;
        let mut first_flips = Vec::new();
        while !["texts", "subject"].iter().any(|title| lines.is_title(title)) {
            let (prompt, at) = lines.prompt_and_position()?;
            first_flips.push((prompt, at));
        }
        let mut texts = Vec::new();
        if lines.is_title("texts") {
            lines.title("texts")?;
            while !lines.is_title("subject") {
                let (prompt, at) = lines.prompt_and_position()?;
                let at = at.ok_or_else(|| lines.error("a text begins at a position"))?;
                let (baseline, scheme) = (lines.text("baseline")?, lines.text("scheme")?);
                texts.push(Texts { prompt, at, baseline, scheme });
            }
        }
        let replay = GoldenReplay { text, values, first_flips, texts };
        match replay.contradiction() {
            None => Ok(Some(replay)),
            Some(why) => Err(lines.error(why)),
        }
    }
}

/// The first of some statements that is true.
fn first_true<const N: usize>(statements: [(bool, &str); N]) -> Option<String> {
    statements.into_iter().find(|(is_so, _)| *is_so).map(|(_, what)| what.into())
}

/// A number as goldens write it. Counts have no decimals, and shares have four.
fn shown(index: usize, value: f64) -> String {
    match index {
        0 | 1 => format!("{value:.0}"),
        2 | 3 => format!("{value:.4}"),
        _ => significant(value, SIGNIFICANT_DIGITS),
    }
}

impl Lines<'_> {
    /// A prompt, and a position or `none`.
    fn prompt_and_position(&mut self) -> Result<(String, Option<usize>), GoldenError> {
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
    use super::super::{compare, ChunkMeans, Comparison, Golden};
    use super::*;
    use crate::results::replay::{PromptReplay, Replay};
    use crate::results::SchemeResult;
    use crate::testing::fixture;

    fn golden(replay: Replay) -> Golden {
        let mut measurement = fixture::results().measurements.remove(0);
        measurement.conditions.prompts = Some(fixture::generated().conditions());
        let scheme = SchemeResult { replay: Some(replay), ..measurement.schemes[1].clone() };
        let chunk_means = ChunkMeans::default();
        Golden { chunk_means, ..Golden::of(&measurement, &scheme).unwrap() }
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
        let nearly_exact = golden.snapshot().replace("0.01230", "-9.000e-7");
        assert_eq!(Golden::parse(&nearly_exact, "g.snap").unwrap().snapshot(), nearly_exact);
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
            replay.prompts[0].prompt = name.into();
            replay.texts[0].prompt = name.into();
            let golden = golden(replay);
            assert_eq!(Golden::parse(&golden.snapshot(), "g.snap").unwrap(), golden, "{name}");
        }
    }

    /// Edited goldens: each number for itself could be.
    #[test]
    fn counts_that_do_not_add_up_are_refused() {
        let golden = golden(fixture::replay()).snapshot();
        let error = |edits: &[(&str, &str)]| {
            let edited = edits.iter().fold(golden.clone(), |text, (old, new)| {
                assert!(text.contains(old), "{old}: {text}");
                text.replace(old, new)
            });
            Golden::parse(&edited, "g.snap").unwrap_err().to_string()
        };
        for (edits, why) in [
            (&[("generated       4", "generated       4.5")][..], "positions are whole numbers"),
            (&[("decided         4", "decided         5")], "more positions are `decided`"),
            (
                &[
                    ("generated       4", "generated       1"),
                    ("decided         4", "decided         1"),
                ],
                "a position at least",
            ),
            (&[("charged_k       1.0000", "charged_k       1.0100")], "a share is 1 at most"),
            (&[("flips_per_1k    250.0", "flips_per_1k    300.0")], "no whole number of flips"),
            (&[("hard_per_1k     250.0", "hard_per_1k     500.0")], "more flips are hard"),
            (&[("flips_per_1k    250.0", "flips_per_1k    1250")], "more flips than positions"),
            (
                &[("  tides           2\n  list", "  tides           3\n  list")],
                "behind the end of the text",
            ),
            (&[("  tides           2\n  list", "  tides           0\n  list")], "begin at 2"),
            (&[("hazard_per_1k   250.0", "hazard_per_1k   900.0")], "does not follow"),
            (&[("hazard_per_1k   250.0", "hazard_per_1k   0")], "does not follow"),
            (
                &[
                    ("flips_per_1k    250.0", "flips_per_1k    0"),
                    ("hard_per_1k     250.0", "hard_per_1k     0"),
                ],
                "more prompts part",
            ),
            (&[("flips_per_1k    250.0", "flips_per_1k    1000")], "flips before the first flips"),
            (&[("  list            none", "  tides           none")], "two first flips"),
        ] {
            let error = error(edits);
            assert!(error.contains(why), "{edits:?}: {error}");
        }
    }

    #[test]
    fn another_text_is_a_change() {
        let of = |text: &str| golden(Replay { text_sha256: text.into(), ..fixture::replay() });
        assert!(compare(Some(&of("aa")), &of("aa")).matches());
        assert!(matches!(compare(Some(&of("aa")), &of("bb")), Comparison::Changed { .. }));
    }

    /// First flips may move, but not come much earlier or later.
    #[test]
    fn the_hazard_has_the_tolerance_of_a_count() {
        let of = |at: &dyn Fn(usize) -> usize| {
            let mut replay = fixture::replay();
            let prompt = replay.prompts[0].clone();
            let named = |i| PromptReplay {
                prompt: format!("p{i}"),
                positions: 64,
                first_flip: Some(at(i)),
                ..prompt.clone()
            };
            replay.prompts = (0..24).map(named).collect();
            replay.texts.clear();
            golden(replay)
        };
        let all_moved = of(&|i| 23 - i);
        assert!(compare(Some(&of(&|i| i)), &all_moved).matches());
        let Comparison::Changed { rows, .. } = compare(Some(&of(&|i| 10 + i)), &of(&|i| i / 4))
        else {
            panic!()
        };
        let out: Vec<_> = rows.iter().filter(|row| !row.holds()).map(|row| row.name).collect();
        assert_eq!(out, ["hazard_per_1k"]);
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
