//! Goldens: the accepted statistics of a cell, as insta snapshots. A golden detects change; a limit judges harm.
//!
//! ```text
//! effective       q4_0·H256/q4_0·H64
//!
//! tokens_scored   4096
//! mean_kld        0.01234
//! …
//! subject
//!   weights       a5fd3b62…
//! conditions
//!   context       512
//!   …
//! ```
//!
//! Provenance is part of the content, so that a review shows it in the diff. Limits, timings and paths are not in it.

mod chunks;
mod compare;
mod lines;
mod replay;
pub mod review;
pub(crate) mod text;
mod verdict;

pub use chunks::ChunkMeans;
pub use compare::{
    compare, conditions_differ, provenance_differs, tolerance, Compared, Comparison, Difference,
    Row, Tolerance,
};
pub use replay::GoldenReplay;
pub use review::{prepare_insta, Review};
pub(crate) use text::parse as parse_text;
pub use text::{read_text, text_path, text_stem};
pub use verdict::GoldenVerdict;

use lines::Lines;

use crate::results::measured_by::MeasuredBy;
use crate::results::statistics::Statistic;
use crate::results::{Conditions, CorpusFile, Measurement, Outcome, SchemeResult, Subject};
use crate::text::numbers::significant;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The folder of goldens in the policy's folder.
pub const FOLDER: &str = "goldens";

/// The header of a `.snap` file. insta would name the source file of its assertion here, which is a path of
/// one machine, so goldens name the tool instead.
const HEADER: &str = "---\nsource: kvgate\n---\n";

/// The content of a golden.
#[derive(Debug, Clone, PartialEq)]
pub struct Golden {
    /// The scheme that really ran.
    pub effective: String,
    pub tokens_scored: u64,
    /// The statistics in the order of [`Statistic::ALL`]. NaN stands for a statistic that another engine does
    /// not report.
    pub values: [f64; Statistic::ALL.len()],
    /// How the scheme does on the baseline's text, if the policy names prompts.
    pub replay: Option<GoldenReplay>,
    pub chunk_means: ChunkMeans,
    pub subject: Subject,
    pub conditions: Conditions,
}

/// Why a golden could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// The file's content is not what kvgate writes.
    #[error(
        "{path}:{line}: {problem}; take the file from version control again, or accept it anew"
    )]
    Parse {
        path: String,
        /// Counted from 1.
        line: usize,
        problem: String,
    },
    /// The file exists but cannot be read.
    #[error("{path}: {source}")]
    Read { path: String, source: std::io::Error },
    /// The scheme was not measured, so there are no numbers to compare or to accept.
    #[error("not measured: {0}")]
    NotMeasured(String),
    /// A number is not finite. No golden may hold it.
    #[error("{statistic} is {value}: the measurement cannot be trusted")]
    NotFinite { statistic: &'static str, value: f64 },
}

impl GoldenError {
    /// What is wrong, for a golden that is no file yet.
    fn problem(self) -> String {
        match self {
            GoldenError::Parse { problem, .. } => problem,
            other => other.to_string(),
        }
    }
}

/// The file of a golden of kvgate's own measurements. `root` is the policy's folder.
pub fn path(root: &Path, stem: &str) -> PathBuf {
    path_by(root, MeasuredBy::Kvgate, stem)
}

/// The file of a golden of an engine's measurements, such as `goldens/llama.cpp/…`. Numbers of different
/// engines are never compared.
pub fn path_by(root: &Path, engine: MeasuredBy, stem: &str) -> PathBuf {
    folder(root, engine).join(format!("{stem}.snap"))
}

/// The folder of an engine's goldens.
fn folder(root: &Path, engine: MeasuredBy) -> PathBuf {
    let goldens = root.join(FOLDER);
    match engine.folder() {
        None => goldens,
        Some(folder) => goldens.join(folder),
    }
}

/// Reads the text of a golden's file. `Ok(None)` means that there is no such file.
pub(crate) fn read_file(path: &Path) -> Result<Option<String>, GoldenError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(GoldenError::Read { path: path.display().to_string(), source }),
    }
}

/// The engine that a measurement names, in whose folder its golden lies.
pub(crate) fn engine(measurement: &Measurement) -> MeasuredBy {
    MeasuredBy::of(&measurement.conditions.engine)
}

impl Golden {
    /// The golden that a measurement would be accepted as. Its values are not rounded yet.
    pub fn of(measurement: &Measurement, scheme: &SchemeResult) -> Result<Self, GoldenError> {
        let (statistics, parts) = match &scheme.outcome {
            Outcome::Measured { statistics, parts, .. } => (statistics, parts),
            Outcome::Failed { error } => return Err(GoldenError::NotMeasured(error.clone())),
        };
        let values = Statistic::ALL.map(|s| statistics.get(s));
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            let statistic = Statistic::ALL[i].name();
            return Err(GoldenError::NotFinite { statistic, value: values[i] });
        }
        let known = |s| if statistics.knows(s) { statistics.get(s) } else { f64::NAN };
        let values = Statistic::ALL.map(known);
        let replay = scheme.replay.as_ref().map(GoldenReplay::of);
        if replay.as_ref().is_some_and(|replay| !replay.is_finite()) {
            return Err(GoldenError::NotFinite { statistic: "generated_kld", value: f64::NAN });
        }
        let chunk_means = ChunkMeans::of(parts);
        if !chunk_means.is_finite() {
            return Err(GoldenError::NotFinite {
                statistic: "a chunk's mean_kld",
                value: f64::NAN,
            });
        }
        Ok(Self {
            effective: scheme.effective.clone(),
            tokens_scored: statistics.tokens_scored,
            values,
            replay,
            chunk_means,
            subject: measurement.subject.clone(),
            conditions: Conditions {
                needs: scheme.needs.clone(),
                ..measurement.conditions.clone()
            },
        })
    }

    /// Reads an accepted golden. There may be none yet.
    pub fn read(path: &Path) -> Result<Option<Self>, GoldenError> {
        let text = read_file(path)?;
        text.map(|text| Self::parse(&text, &path.display().to_string())).transpose()
    }

    /// Parses the text of a snapshot file. `path` is for messages.
    pub fn parse(text: &str, path: &str) -> Result<Self, GoldenError> {
        let mut lines = Lines::of(text, path);
        lines.header()?;
        let effective = lines.field("effective")?;
        let tokens_scored = lines.number("tokens_scored")?;
        let mut values = [0f64; Statistic::ALL.len()];
        for (i, statistic) in Statistic::ALL.into_iter().enumerate() {
            values[i] = lines.statistic(statistic)?;
            if let Some(above) = above(&values[..i], values[i], statistic) {
                let (name, above) = (statistic.name(), above.name());
                return Err(lines.error(format!("`{name}` is below `{above}`, which cannot be")));
            }
        }
        let golden = Self {
            effective,
            tokens_scored,
            values,
            chunk_means: ChunkMeans::parse(&mut lines)?,
            replay: GoldenReplay::parse(&mut lines)?,
            subject: lines.subject()?,
            conditions: lines.conditions()?,
        };
        if golden.replay.is_some() != golden.conditions.prompts.is_some() {
            return Err(lines.error("it has prompts without what was made of them, or the reverse"));
        }
        let (mean, chunks) = (golden.values[0], golden.conditions.chunks);
        if let Some(problem) = golden.chunk_means.contradiction(mean, chunks) {
            return Err(lines.error(problem));
        }
        match lines.next() {
            None => Ok(golden),
            Some(line) => Err(lines.error(format!("unexpected line `{line}`"))),
        }
    }

    /// The accepted values by statistic, without those that the engine does not report.
    pub fn statistics(&self) -> BTreeMap<Statistic, f64> {
        let known = |(_, value): &(Statistic, f64)| !value.is_nan();
        Statistic::ALL.into_iter().zip(self.values).filter(known).collect()
    }

    /// SHA-256 of the baseline's text that the golden was made on, if there are prompts.
    pub(crate) fn text_sha256(&self) -> Option<&str> {
        self.replay.as_ref().map(|replay| replay.text.as_str())
    }

    /// The text of the whole file, as insta would write it.
    pub(crate) fn snapshot(&self) -> String {
        format!("{HEADER}{self}")
    }

    /// The text of the whole file, if it is read as the same golden again. What a file of results has for a word may be
    /// none in a golden.
    ///
    /// # Errors
    /// Why the file would not be read, or would be read as another golden.
    pub(crate) fn readable_snapshot(&self) -> Result<String, String> {
        let text = self.snapshot();
        let read = Self::parse(&text, FOLDER).map_err(GoldenError::problem)?;
        if compare(Some(&read), self).matches() {
            Ok(text)
        } else {
            Err("it would be read as another golden than was written".into())
        }
    }
}

/// A divergence among those before this one that must not be larger, but is: a lower quantile, or the mean if
/// this is the largest divergence. Both have four digits and may have been computed in two ways, so small
/// differences do not count.
fn above(before: &[f64], value: f64, statistic: Statistic) -> Option<Statistic> {
    // these are the first lines; a statistic that the engine does not report is NaN, which is never larger
    let divergences = &Statistic::ALL[..7];
    let is_over = |a: f64| a > value + 1.1e-3 * a.abs().max(value.abs());
    let may =
        |earlier: &Statistic| statistic == Statistic::MaxKld || *earlier != Statistic::MeanKld;
    let is_divergence = divergences.contains(&statistic);
    let mut earlier = divergences.iter().zip(before).filter(|(earlier, _)| may(earlier));
    earlier.find(|(_, a)| is_divergence && is_over(**a)).map(|(earlier, _)| *earlier)
}

/// The subject as lines of a name and a value.
fn subject_lines(subject: &Subject) -> Vec<(&'static str, String)> {
    let mut lines = vec![("weights", subject.weights_sha256.clone())];
    lines.extend(subject.tokenizer_sha256.clone().map(|sha256| ("tokenizer", sha256)));
    lines.push(("architecture", subject.architecture.clone()));
    lines
}

/// The conditions as lines of a name and a value.
fn condition_lines(conditions: &Conditions) -> Vec<(&'static str, String)> {
    let file = |f: &CorpusFile| ("corpus", format!("{} {}", f.category, f.sha256));
    let mut lines: Vec<_> = conditions.corpus.iter().map(file).collect();
    lines.extend([
        ("context", conditions.context.to_string()),
        ("chunks", conditions.chunks.to_string()),
        ("baseline", conditions.baseline.clone()),
        ("engine", conditions.engine.clone()),
        ("device", conditions.device.clone()),
        ("weights", conditions.weights.clone()),
    ]);
    lines.extend(conditions.reading.iter().map(|line| ("reading", line.clone())));
    lines.extend(conditions.prompts.clone().map(|prompts| ("prompts", prompts)));
    lines.extend(conditions.needs.iter().map(|needed| ("needs", needed.clone())));
    lines
}

/// Stands for the value of a statistic that the engine does not report.
const UNKNOWN: &str = "unknown";

/// A value as goldens hold it: with four significant digits, or with four decimals for statistics near 1.
fn rounded(statistic: Statistic, value: f64) -> String {
    match statistic {
        _ if value.is_nan() => UNKNOWN.into(),
        Statistic::Top1Agreement | Statistic::PplRatio => format!("{value:.4}"),
        _ => significant(value, SIGNIFICANT_DIGITS),
    }
}

/// Significant digits of a value in a golden.
pub(crate) const SIGNIFICANT_DIGITS: u8 = 4;

impl fmt::Display for Golden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<16}{}\n", "effective", self.effective)?;
        writeln!(f, "{:<16}{}", "tokens_scored", self.tokens_scored)?;
        for (statistic, value) in Statistic::ALL.into_iter().zip(self.values) {
            writeln!(f, "{:<16}{}", statistic.name(), rounded(statistic, value))?;
        }
        write!(f, "{}", self.chunk_means)?;
        if let Some(replay) = &self.replay {
            write!(f, "\n{replay}")?;
        }
        let blocks = [
            ("subject", subject_lines(&self.subject)),
            ("conditions", condition_lines(&self.conditions)),
        ];
        for (title, lines) in blocks {
            writeln!(f, "\n{title}")?;
            for (name, value) in lines {
                writeln!(f, "  {name:<14}{value}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::statistics::Part;
    use crate::testing::fixture;

    fn golden() -> Golden {
        let results = fixture::sound();
        Golden::of(&results.measurements[0], &results.measurements[0].schemes[1]).unwrap()
    }

    #[test]
    fn text_is_for_people() {
        assert_eq!(
            golden().snapshot(),
            "\
---
source: kvgate
---
effective       q4_0

tokens_scored   4080
mean_kld        0.06120
median_kld      0.02000
p90_kld         0.1500
p95_kld         0.2500
p99_kld         0.7000
p999_kld        1.500
max_kld         2.250
top1_agreement  0.8627
rms_dp          0.08100
ppl             22.03
ppl_ratio       1.0442
baseline_ppl    21.10

chunk means
  prose: 0.06120 0.06120 0.06120 0.06120 0.06120 0.06120 0.06120 0.06120
  code: 0.06120 0.06120 0.06120 0.06120 0.06120 0.06120 0.06120 0.06120

subject
  weights       a5fd3b62
  architecture  gemma3

conditions
  corpus        prose 11aa
  corpus        code 22bb
  context       512
  chunks        16
  baseline      f16
  engine        kvgate 0.1.0
  device        cpu
  weights       f32
"
        );
    }

    #[test]
    fn reads_back_what_it_writes() {
        // its values have no more digits than are written
        let mut golden = Golden::parse(&golden().snapshot(), "g.snap").unwrap();
        golden.subject.tokenizer_sha256 = Some("77cc".into());
        golden.conditions.corpus[0].category = "long prose".into();
        golden.conditions.reading = vec!["untrained".into(), "ignored key llama.foo".into()];
        (golden.values[0], golden.values[1], golden.conditions.chunks) = (0.2917, 1.234e-7, 3);
        let part = |category: &str, kld| Part {
            category: category.into(),
            tokens: 1,
            kld,
            ..Part::default()
        };
        let parts = [part("long: prose", 0.25), part("text", 0.5), part("long: prose", 0.125)];
        golden.chunk_means = ChunkMeans::of(&parts);
        assert_eq!(golden.chunk_means.get(&Part { chunk: 1, ..parts[0].clone() }), Some(0.125));
        assert_eq!(Golden::parse(&golden.snapshot(), "g.snap").unwrap(), golden);
        // those of earlier states have no chunk means
        let (head, tail) = golden
            .snapshot()
            .split_once("\nchunk means\n")
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .unwrap();
        let old = format!("{head}{}", &tail[tail.find("\nsubject").unwrap()..]);
        let without = Golden { chunk_means: ChunkMeans::default(), ..golden.clone() };
        assert_eq!(Golden::parse(&old, "g.snap").unwrap(), without);
        // a checkout with CRLF and insta's richer header are the same golden
        let other = golden.snapshot().replace("kvgate\n-", "a.rs\nassertion_line: 3\n-");
        let other = other.replace('\n', "\r\n");
        assert_eq!(Golden::parse(&other, "g.snap").unwrap(), golden);
    }

    #[test]
    fn four_significant_digits() {
        for (value, text) in [
            (0.0, "0"),
            (1.2344e-7, "1.234e-7"),
            (0.000123456, "0.0001235"),
            (0.99999, "1.000"),
            (9.99996, "10.00"),
            (1234.56, "1235"),
            (1234567.0, "1234567"),
            (-0.01234, "-0.01234"),
        ] {
            assert_eq!(significant(value, SIGNIFICANT_DIGITS), text);
        }
    }

    #[test]
    fn damage_is_named_with_its_line() {
        let text = golden().snapshot();
        let error = |text: &str| Golden::parse(text, "g.snap").unwrap_err().to_string();
        let starts = |text: &str, start: &str| {
            let error = error(text);
            assert!(error.starts_with(start), "{error}");
        };
        starts("", "g.snap:1: the file ends where `---` must stand");
        starts("hello", "g.snap:1: a snapshot starts with `---`");
        starts(&text.replace("mean_kld  ", "<<<<<<< HEAD\n"), "g.snap:7: a merge left its markers");
        starts(&text.replace("0.06120", "lots"), "g.snap:7: `mean_kld` must be a number, not `lot");
        starts(&text.replace("0.06120", "NaN"), "g.snap:7: `mean_kld` must be a number");
        starts(
            &text.replace("p90_kld", "p91_kld"),
            "g.snap:9: expected `p90_kld` and a value, fou",
        );
        starts(&text.replace("0.06120", ""), "g.snap:7: expected `mean_kld` and a value");
        starts(text.split("p99_").next().unwrap(), "g.snap:11: the file ends where `p99_kld` must");
        starts(text.split("  device").next().unwrap(), "g.snap:35: the file ends where `device` m");
        let expected = "g.snap:21: expected a category and its chunk means, found `prose: ";
        starts(&text.replace("prose: 0", "prose: x"), expected);
        starts(&text.replace("prose: 0", "prose: inf"), expected);
        starts(&format!("{text}more\n"), "g.snap:37: unexpected line `more`");
    }

    /// Edited by hand, or accepted from a file that was.
    #[test]
    fn divergences_that_are_out_of_order_are_named_with_their_line() {
        let text = golden().snapshot();
        let parse = |from: &str, to: &str| {
            assert!(text.contains(from), "{from}: {text}");
            Golden::parse(&text.replace(from, to), "g.snap").map_err(|error| error.to_string())
        };
        let starts = |parsed: Result<Golden, String>, start: &str| {
            let error = parsed.unwrap_err();
            assert!(error.starts_with(start), "{error}");
        };
        let p99 = parse("0.7000", "0.0000001");
        starts(p99, "g.snap:11: `p99_kld` is below `median_kld`, which cannot be; take the file");
        starts(parse("0.1500", "0.01000"), "g.snap:9: `p90_kld` is below `median_kld`");
        starts(parse("2.250", "1.400"), "g.snap:13: `max_kld` is below `p999_kld`");
        starts(parse("0.06120", "2.300"), "g.snap:13: `max_kld` is below `mean_kld`");
        // a mean may be over every quantile but the last, and the fourth digit may be one off
        assert!(parse("0.06120", "2.251").is_ok());
        assert!(parse("0.2500", "0.1499").is_ok());
    }

    /// Edited by hand, so that a change of the mean looks like chance.
    #[test]
    fn chunk_means_that_are_not_of_its_chunks_are_refused() {
        let text = golden().snapshot();
        let (head, rest) = text.split_once("  prose: ").unwrap();
        let (_, tail) = rest.split_once("\n\n").unwrap();
        let error = |values: &str| {
            let edited = format!("{head}  prose: {values}\n\n{tail}");
            Golden::parse(&edited, "g.snap").err().map(|error| error.to_string())
        };
        let of = |value: &str| vec![value; 16].join(" ");
        // each printed number may be half a unit off, and so may the mean
        assert_eq!(error(&of("0.06124")), None);
        let why = "its `chunk means` average 0.06130, and its `mean_kld` is 0.06120; take the file";
        assert!(error(&of("0.06130")).is_some_and(|error| error.contains(why)));
        let why = "it has `chunk means` of 15 chunks, and its `chunks` are 16; take the file";
        assert!(error(&vec!["0.06120"; 15].join(" ")).is_some_and(|error| error.contains(why)));
    }

    #[test]
    fn a_failed_or_nan_measurement_is_no_golden() {
        let mut results = fixture::results();
        let measurement = &mut results.measurements[0];
        let failed = measurement.schemes[2].clone();
        assert!(matches!(Golden::of(measurement, &failed), Err(GoldenError::NotMeasured(_))));
        let mut nan = measurement.schemes[0].clone();
        let Outcome::Measured { statistics, .. } = &mut nan.outcome else { unreachable!() };
        statistics.ppl = f64::NAN;
        let error = Golden::of(measurement, &nan).unwrap_err().to_string();
        assert_eq!(error, "ppl is NaN: the measurement cannot be trusted");
    }
}
