//! Reads what llama.cpp's `llama-perplexity --kl-divergence` prints. Each log is the run of one scheme.
//!
//! ```text
//! (llama-perplexity --version
//!  llama-perplexity -m MODEL.gguf --kl-divergence --kl-divergence-base BASE -c 512 \
//!      -ctk q8_0 -ctv q4_0 -fa on -lv 4) > q8_0-q4_0.log 2>&1
//! ```
//!
//! The log itself says what ran, never the options or the file's name. The types and the rotation of K and V are
//! those that the cache reports (with `-lv 4` in newer builds, by default in older ones), and the program reports its
//! build. No log says what the baseline file was made of.

mod error;
mod judged;

pub use error::LogError;
pub use judged::measurement;

use crate::kv::codec;
use crate::results::measured_by::MeasuredBy;
use crate::results::statistics::{Statistic, Statistics};
use crate::results::Sides;
use crate::text;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

/// The longest log that is read. The log of a run with all debug messages has some megabytes.
pub const MAX_BYTES: u64 = 64 << 20;

/// The longest piece of a log that a message quotes.
const QUOTED: usize = 200;

/// What is shown as the baseline's scheme, which no log names.
pub const BASELINE: &str = "llama-perplexity's --kl-divergence-base";

/// How many tokens llama-perplexity must have scored before it prints statistics.
const LEAST_TOKENS: u64 = 100;

/// A log of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// The file, for messages.
    pub path: String,
    /// The engine that measured.
    pub engine: MeasuredBy,
    /// The program's build.
    pub build: Build,
    /// The file name of the checkpoint, without folders.
    pub model_file: String,
    /// Its architecture, as llama.cpp names it.
    pub architecture: String,
    /// How its weights are stored: `Q4_1`.
    pub weights: String,
    /// `cpu`, or the first device that layers were given to: `cuda`.
    pub device: String,
    /// How K is stored.
    pub k: LoggedSide,
    /// How V is stored.
    pub v: LoggedSide,
    /// The caches of the context. There are several if some layers have a window.
    pub caches: Vec<Cache>,
    /// Tokens in a chunk, as the baseline file says.
    pub context: usize,
    /// Chunks in the baseline file.
    pub chunks: usize,
    /// What was measured.
    pub statistics: Statistics,
    /// Wall time, if the log ends with it.
    pub seconds: Option<f64>,
}

/// A build of llama.cpp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// The number of commits up to it. A build from a shallow clone has 1, and then only the hash identifies it.
    pub number: u64,
    /// The commit's abbreviated hash.
    pub commit: String,
}

/// How K or V is stored, as the cache reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedSide {
    /// ggml's name of the type: `q8_0`.
    pub kind: String,
    /// Whether a Hadamard rotation is applied before it is stored.
    pub rotated: bool,
}

/// A cache of the context.
#[derive(Debug, Clone, PartialEq)]
pub struct Cache {
    /// Tokens that it has room for.
    pub cells: usize,
    /// Mebibytes of K and of V, in two decimals.
    pub mib: Sides,
    /// Elements of a head of K and of V, or 0 if layers differ. `None` if the log does not say.
    pub head_dim: [Option<usize>; 2],
    kinds: [String; 2],
    rotated: [bool; 2],
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            0 | 1 => f.write_str(&self.commit),
            number => write!(f, "b{number}"),
        }
    }
}

/// Written as in schemes: `q4_0`, or `q4_0:norot` if the type could be rotated but is not.
impl fmt::Display for LoggedSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let could = codec::find(&self.kind).is_some_and(|codec| codec.is_rotated());
        write!(f, "{}{}", self.kind, if could && !self.rotated { ":norot" } else { "" })
    }
}

/// Reads a log.
///
/// # Errors
/// If the log lacks something, contradicts itself or ends early. See [`LogError`].
pub fn read(path: &Path) -> Result<Log, LogError> {
    let name = path.display().to_string();
    let failed = |source| LogError::Read { path: name.clone(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(LogError::TooLong { path: name });
    }
    parse(&bytes, &name)
}

/// Reads a log from its bytes. `path` is only for messages.
///
/// # Errors
/// As [`read()`].
pub fn parse(bytes: &[u8], path: &str) -> Result<Log, LogError> {
    let text = anstream::adapter::strip_str(&decoded(bytes)).to_string();
    let lines = Lines { path, lines: text.lines().map(|line| bare(line.trim())).collect() };
    lines.log()
}

/// Decodes the text of a log. PowerShell's `>` writes UTF-16 with a byte-order mark, or without one if it appends.
fn decoded(bytes: &[u8]) -> String {
    let utf16 = |unit: fn([u8; 2]) -> u16| -> String {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        String::from_utf16_lossy(&units)
    };
    let zeros = |from: usize| bytes.iter().take(200).skip(from).step_by(2).filter(|b| **b == 0);
    let text = match bytes {
        [0xff, 0xfe, ..] => utf16(u16::from_le_bytes),
        [0xfe, 0xff, ..] => utf16(u16::from_be_bytes),
        _ if zeros(1).count() > 50 => utf16(u16::from_le_bytes),
        _ if zeros(0).count() > 50 => utf16(u16::from_be_bytes),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    };
    // concatenated files have byte-order marks in the middle
    text.replace('\u{feff}', "")
}

/// A line without the prefix that llama.cpp's logger writes: `0.00.123.456 I `, or only `I `.
fn bare(line: &str) -> &str {
    let stamp = |word: &str| {
        let parts: Vec<_> = word.split('.').collect();
        parts.len() == 4 && parts.iter().all(|p| p.bytes().all(|b| b.is_ascii_digit()))
    };
    let line = match line.split_once(' ') {
        Some((word, rest)) if stamp(word) => rest.trim_start(),
        _ => line,
    };
    match line.split_once(' ') {
        Some(("I" | "W" | "E" | "D", rest)) => rest.trim(),
        _ => line,
    }
}

/// The text between two others.
fn between<'a>(line: &'a str, from: &str, to: &str) -> Option<&'a str> {
    Some(line.split_once(from)?.1.split_once(to)?.0.trim())
}

/// The number that a text begins with.
fn leading<N: std::str::FromStr>(text: &str) -> Option<N> {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text[..end].parse().ok()
}

/// A piece of a log, shortened for a message.
fn quoted(line: &str) -> String {
    // it is not escaped here but where it is shown
    text::clipped(line, QUOTED)
}

/// The title of builds until the spring of 2024.
const OLD_KLD_TITLE: &str = "===== KL-divergence statistics";

/// The titles that precede statistics.
const KLD_TITLE: &str = "====== KL divergence statistics ======";

/// The labels of the lines with statistics, without regard to blanks, and whether the values are percentages.
const PRINTED: [(&str, &str, bool); 12] = [
    ("ppl", "Mean PPL(Q)", false),
    ("baseline_ppl", "Mean PPL(base)", false),
    ("ppl_ratio", "Mean PPL(Q)/PPL(base)", false),
    ("mean_kld", "Mean KLD", false),
    ("max_kld", "Maximum KLD", false),
    ("p999_kld", "99.9% KLD", false),
    ("p99_kld", "99.0% KLD", false),
    ("p95_kld", "95.0% KLD", false),
    ("p90_kld", "90.0% KLD", false),
    ("median_kld", "Median KLD", false),
    ("rms_dp", "RMS p", true),
    ("top1_agreement", "Same top p", true),
];

/// The lines of a log, without prefixes.
struct Lines<'a> {
    path: &'a str,
    lines: Vec<&'a str>,
}

impl Lines<'_> {
    fn log(&self) -> Result<Log, LogError> {
        self.foreign()?;
        self.reported()?;
        self.altered()?;
        self.one_run()?;
        let (context, chunks) = self.chunks()?;
        let tokens = scored(context, chunks);
        if !self.lines.contains(&KLD_TITLE) {
            return Err(self.ends_early(Some(tokens)));
        }
        let caches = self.caches()?;
        let cache = &caches[0];
        let stored = |side: usize| LoggedSide {
            kind: cache.kinds[side].clone(),
            rotated: cache.rotated[side],
        };
        Ok(Log {
            path: self.path.into(),
            engine: MeasuredBy::LlamaCpp,
            build: self.build()?,
            model_file: self.model_file()?,
            architecture: self.info("arch")?,
            weights: self.info("file type")?,
            device: self.device(),
            k: stored(0),
            v: stored(1),
            context,
            chunks,
            statistics: self.statistics(tokens)?,
            seconds: self.seconds(),
            caches,
        })
    }

    /// The result for the first line from which `read` gets one.
    fn find<T>(&self, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        self.lines.iter().find_map(|line| read(line))
    }

    /// The result for all lines from which `read` gets one. They must agree. One run may say the same several times,
    /// because llama.cpp tries to load the model until it fits into memory.
    ///
    /// # Errors
    /// If a line says something else, so that it belongs to another run.
    fn agreed<T: PartialEq>(
        &self,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, LogError> {
        let said = self.lines.iter().enumerate();
        let mut said = said.filter_map(|(i, line)| Some((i + 1, read(line)?)));
        let Some((_, first)) = said.next() else { return Ok(None) };
        match said.find(|(_, other)| *other != first) {
            None => Ok(Some(first)),
            Some((line, _)) => Err(LogError::TwoRuns { path: self.path.into(), line }),
        }
    }

    fn missing(&self, what: &str, mend: &'static str) -> LogError {
        // Windows PowerShell formats standard error and breaks its lines
        let is_broken = self.lines.iter().any(|line| line.contains("NativeCommandError"));
        let mend = if is_broken { NO_POWERSHELL } else { mend };
        LogError::Missing { path: self.path.into(), what: what.into(), mend }
    }

    fn ends_early(&self, tokens: Option<u64>) -> LogError {
        let last = self.lines.iter().rfind(|line| !line.is_empty()).copied().unwrap_or_default();
        LogError::EndsEarly { path: self.path.into(), last: quoted(last), tokens }
    }

    /// Refuses logs of another program, or of a build whose log says too little.
    fn foreign(&self) -> Result<(), LogError> {
        let line = |is: &dyn Fn(&str) -> bool| self.lines.iter().position(|line| is(line));
        let path = || self.path.to_owned();
        if let Some(i) = line(&|line| line.contains(": mla_attn") && line.contains('=')) {
            return Err(LogError::Fork { path: path(), line: i + 1 });
        }
        match line(&|line| line == OLD_KLD_TITLE) {
            Some(i) => Err(LogError::TooOld { path: path(), line: i + 1 }),
            None => Ok(()),
        }
    }

    /// Refuses errors after which llama-perplexity goes on.
    fn reported(&self) -> Result<(), LogError> {
        let fatal = |line: &str| {
            line.contains("kl_divergence: inconsistent vocabulary")
                || (line.contains("has been computed with") && line.contains("the current context"))
        };
        match self.lines.iter().position(|line| fatal(line)) {
            None => Ok(()),
            Some(i) => Err(LogError::Reported {
                path: self.path.into(),
                line: i + 1,
                message: quoted(self.lines[i]),
            }),
        }
    }

    /// Refuses runs that altered the checkpoint.
    fn altered(&self) -> Result<(), LogError> {
        let alters = |line: &str| {
            // values of the checkpoint's metadata may contain any text
            let is_metadata = line.contains(": - kv ");
            let lower = line.to_ascii_lowercase();
            let words = ["lora adapter from", "using metadata override", "control vector"];
            !is_metadata && words.iter().any(|words| lower.contains(words))
        };
        match self.lines.iter().position(|line| alters(line)) {
            None => Ok(()),
            Some(i) => Err(LogError::Altered {
                path: self.path.into(),
                line: i + 1,
                message: quoted(self.lines[i]),
            }),
        }
    }

    fn one_run(&self) -> Result<(), LogError> {
        let begins = |line: &&str| {
            line.contains("kl_divergence: computing over")
                || line.contains("perplexity: calculating perplexity over")
        };
        let second = |is: &dyn Fn(&&str) -> bool| {
            self.lines.iter().enumerate().filter(|(_, line)| is(line)).nth(1).map(|(i, _)| i + 1)
        };
        match second(&begins).or_else(|| second(&|line| *line == KLD_TITLE)) {
            None => Ok(()),
            Some(line) => Err(LogError::TwoRuns { path: self.path.into(), line }),
        }
    }

    /// Tokens in a chunk, and chunks.
    fn chunks(&self) -> Result<(usize, usize), LogError> {
        let found = self.find(|line| {
            let rest = line.split_once("kl_divergence: computing over")?.1;
            Some((leading(rest.split_once("n_ctx=")?.1)?, leading(rest)?))
        });
        match found {
            // no run has larger numbers, and their product must not overflow
            Some((context, chunks)) if context <= 1 << 30 && chunks <= 1 << 30 => {
                Ok((context, chunks))
            }
            Some(_) => {
                Err(self.missing("a context and chunks that can be", "is it the whole log?"))
            }
            None if self.lines.contains(&KLD_TITLE) => self.counted(),
            None => Err(self.ends_early(None)),
        }
    }

    /// The same for a build from before 2026, whose log says neither. The number of chunks is that of the table's
    /// rows, and the context is that of the cache. The standard error of a share, which depends on the number of
    /// tokens, shows whether the baseline file agrees.
    fn counted(&self) -> Result<(usize, usize), LogError> {
        let unsaid = || {
            self.missing(
                "how many chunks of what context were measured (`kl_divergence: computing over …`, or the rows of \
                 the chunks and `n_ctx = …`)",
                "keep standard error, too: `> FILE 2>&1`",
            )
        };
        let rows = self.lines.iter().filter_map(|line| chunk_row(line));
        let chunks = rows.enumerate().try_fold(0, |_, (i, row)| (row == i + 1).then_some(row));
        let chunks = chunks.filter(|chunks| *chunks > 0).ok_or_else(unsaid)?;
        let context = self.context_of_cache().filter(|n| *n <= 1 << 30).ok_or_else(unsaid)?;
        let share = self.lines.iter().enumerate().find_map(|(i, line)| {
            let (name, value) = line.split_once(':')?;
            (plain(name) == "Same top p").then(|| self.numbers(i, "top1_agreement", value))
        });
        let [share, error] = share.ok_or_else(unsaid)??.map(|percent| percent / 100.0);
        let tokens = scored(context, chunks) as f64;
        let expected = (share * (1.0 - share) / (tokens - 1.0).max(1.0)).sqrt();
        // the error is printed as a percentage with three decimals
        if error > 0.0 && (expected - error).abs() <= 1.1e-5 {
            return Ok((context, chunks));
        }
        Err(self.missing(
            &format!(
                "what context the baseline file has, and the error of `Same top p` is not that of {chunks} chunks \
                 of {context} tokens, which the cache has room for"
            ),
            "give the run the `-c` of the baseline file, or a build that says so (`kl_divergence: computing over …`)",
        ))
    }

    /// The number of tokens for which the context has room.
    fn context_of_cache(&self) -> Option<usize> {
        self.find(|line| leading(line.split_once(": n_ctx")?.1.trim_start().strip_prefix('=')?))
    }

    fn build(&self) -> Result<Build, LogError> {
        let of = |number: &str, commit: &str| {
            let commit = commit.trim();
            let plain = !commit.is_empty() && commit.len() <= 40;
            let plain = plain && commit.bytes().all(|b| b.is_ascii_alphanumeric());
            Some(Build { number: number.trim().parse().ok()?, commit: commit.into() })
                .filter(|build| plain && (build.number > 1 || commit != "unknown"))
        };
        let found = self.find(|line| {
            if let Some(rest) = line.strip_prefix("version: ") {
                // `11434 (0c1e570)`, and since 0.1 `0.5.0 (build 11434, commit 0c1e570)`
                let (number, rest) = rest.split_once(" (")?;
                let rest = rest.strip_suffix(')')?;
                return match rest.strip_prefix("build ") {
                    None => of(number, rest),
                    Some(rest) => {
                        let (number, commit) = rest.split_once(", commit ")?;
                        of(number, commit)
                    }
                };
            }
            if let Some((_, rest)) = line.split_once(": build = ") {
                // `main: build = 3651 (8f1d81a0)`, in 2024
                let (number, commit) = rest.split_once(" (")?;
                return of(number, commit.strip_suffix(')')?);
            }
            let rest =
                line.strip_prefix("build: ").or_else(|| Some(line.split_once(": build ")?.1));
            let (number, rest) = rest?.split_once(" (")?;
            of(number, rest.split_once(") with ")?.0)
        });
        found.ok_or_else(|| {
            self.missing(
                "which build of llama.cpp ran (`build: …` or `version: …`)",
                "newer builds say so when asked: put the output of `llama-perplexity --version` before the run's; \
                 one that was built without git is told by -DLLAMA_BUILD_NUMBER=N",
            )
        })
    }

    fn model_file(&self) -> Result<String, LogError> {
        let path = self.agreed(|line| {
            let line = line.split_once("loaded meta data with")?.1;
            Some(line.split_once(" tensors from ")?.1.rsplit_once(" (version ")?.0)
                .map(|path| path.rsplit(['/', '\\']).next().unwrap_or(path).to_owned())
        })?;
        let plain = path.filter(|name| !name.is_empty() && name.len() <= 255);
        plain.ok_or_else(|| self.missing("which checkpoint was loaded", VERBOSE))
    }

    /// A value of `print_info`.
    fn info(&self, key: &str) -> Result<String, LogError> {
        let value = self.agreed(|line| {
            // until 2025 it had another name
            let line =
                line.strip_prefix("print_info:").or(line.strip_prefix("llm_load_print_meta:"))?;
            let (name, value) = line.split_once('=')?;
            let name = name.trim();
            let is_it = name == key || (name == "model ftype" && key == "file type");
            is_it.then(|| quoted(value.trim()))
        })?;
        let what = format!("the model's {key} (`print_info: {key} = …`)");
        value.filter(|value| !value.is_empty()).ok_or_else(|| self.missing(&what, VERBOSE))
    }

    /// The first device that layers were given to.
    fn device(&self) -> String {
        let offloaded = self.find(|line| {
            leading::<usize>(line.split_once(": offloaded ")?.1).filter(|layers| *layers > 0)
        });
        let device = self.find(|line| between(line, ": using device ", " ").map(str::to_owned));
        let name = offloaded.and(device).unwrap_or_else(|| "cpu".into());
        name.trim_end_matches(|c: char| c.is_ascii_digit()).to_ascii_lowercase()
    }

    /// The caches, each once, as they report themselves.
    fn caches(&self) -> Result<Vec<Cache>, LogError> {
        let mut caches: Vec<Cache> = Vec::new();
        for line in self.lines.iter().filter(|line| line.contains("kv_cache") || is_old(line)) {
            let cells = || self.find(kv_size).or_else(|| self.context_of_cache());
            if let Some(cache) = cache(line, &cells) {
                caches.push(cache);
            } else if let (Some((side, rotated, head_dim)), Some(cache)) =
                (rotation(line), caches.last_mut())
            {
                cache.rotated[side] = rotated;
                cache.head_dim[side] = head_dim;
            }
        }
        // when llama.cpp fits a model into memory it makes caches that it throws away
        let mut each: Vec<Cache> = Vec::new();
        for cache in caches {
            if !each.contains(&cache) {
                each.push(cache);
            }
        }
        let Some(first) = each.first() else {
            let what =
                "how K and V are stored (`llama_kv_cache: size = … K (q8_0): … V (q4_0): …`)";
            return Err(self.missing(what, VERBOSE));
        };
        let way = |cache: &Cache| format!("{:?} rotated {:?}", cache.kinds, cache.rotated);
        match each.iter().find(|cache| way(cache) != way(first)) {
            None => Ok(each),
            Some(other) => Err(LogError::MixedCaches {
                path: self.path.into(),
                one: way(first),
                other: way(other),
            }),
        }
    }

    fn seconds(&self) -> Option<f64> {
        let ms: f64 = self.find(|line| leading(between(line, "total time =", "ms")?))?;
        Some(ms / 1e3).filter(|seconds| seconds.is_finite())
    }

    fn statistics(&self, tokens: u64) -> Result<Statistics, LogError> {
        let mut found: BTreeMap<&str, [f64; 2]> = BTreeMap::new();
        for (i, line) in self.lines.iter().enumerate() {
            let Some((name, value)) = line.split_once(':') else { continue };
            let name = plain(name);
            let Some((statistic, _, percent)) = PRINTED.iter().find(|printed| printed.1 == name)
            else {
                continue;
            };
            let scale = if *percent { 100.0 } else { 1.0 };
            found.insert(statistic, self.numbers(i, statistic, value)?.map(|n| n / scale));
        }
        let both = |statistic: &str| {
            found.get(statistic).copied().ok_or_else(|| {
                let what = format!(
                    "the statistic {statistic}, and the last line is `{}`",
                    quoted(self.lines.iter().rfind(|line| !line.is_empty()).unwrap_or(&""))
                );
                self.missing(&what, "copy the whole log, or run llama-perplexity again")
            })
        };
        // builds until the autumn of 2025 print the 99th percentile twice instead
        let percentiles = [("p90_kld", Statistic::P90Kld), ("p95_kld", Statistic::P95Kld)];
        let is_old = percentiles.iter().all(|(name, _)| !found.contains_key(name));
        let unknown = if is_old { percentiles.map(|(_, s)| s).into() } else { Vec::new() };
        let percentile = |name| if is_old { Ok(0.0) } else { both(name).map(|[value, _]| value) };
        let value = |statistic: &str| both(statistic).map(|[value, _]| value);
        let error = |statistic: &str| both(statistic).map(|[_, error]| error);
        Ok(Statistics {
            tokens_scored: tokens,
            mean_kld: value("mean_kld")?,
            mean_kld_se: error("mean_kld")?,
            median_kld: value("median_kld")?,
            p90_kld: percentile("p90_kld")?,
            p95_kld: percentile("p95_kld")?,
            p99_kld: value("p99_kld")?,
            p999_kld: value("p999_kld")?,
            max_kld: value("max_kld")?,
            top1_agreement: value("top1_agreement")?,
            top1_agreement_se: error("top1_agreement")?,
            rms_dp: value("rms_dp")?,
            rms_dp_se: error("rms_dp")?,
            ppl: value("ppl")?,
            ppl_se: error("ppl")?,
            ppl_ratio: value("ppl_ratio")?,
            ppl_ratio_se: error("ppl_ratio")?,
            baseline_ppl: value("baseline_ppl")?,
            unknown,
        })
    }

    /// Reads a value and its standard error: `0.123 ± 0.004 %`. The error is 0 if none is printed.
    fn numbers(&self, i: usize, statistic: &'static str, text: &str) -> Result<[f64; 2], LogError> {
        let number = |word: Option<&str>| {
            let word = word.unwrap_or_default();
            let parsed = word.parse().ok().filter(|n: &f64| n.is_finite());
            // rounding may leave a negative zero
            parsed.map(|n| n + 0.0).ok_or_else(|| LogError::NotANumber {
                path: self.path.into(),
                line: i + 1,
                statistic,
                value: quoted(text.trim()),
            })
        };
        let mut words = text.split_whitespace().filter(|word| *word != "%");
        let value = number(words.next().map(|word| word.trim_end_matches('%')))?;
        // another encoding may have damaged or removed the sign ± between them
        match words.next() {
            None => Ok([value, 0.0]),
            Some(word) if word.parse::<f64>().is_ok() => Ok([value, number(Some(word))?]),
            Some(_) => Ok([value, number(words.next())?]),
        }
    }
}

/// What to do if PowerShell has formatted standard error.
const NO_POWERSHELL: &str = "Windows PowerShell has broken the lines of standard error: let \
    `cmd /c \"llama-perplexity … > FILE 2>&1\"` write the log";

/// How to make llama.cpp report what its loader and its cache do.
const VERBOSE: &str =
    "run llama-perplexity with `-lv 4`, and keep standard error, too: `> FILE 2>&1`";

/// The name of a statistic with single blanks and without Δ, which another encoding may have damaged and which some
/// consoles write as `?` or `_`.
fn plain(name: &str) -> String {
    let name: String = name.chars().filter(char::is_ascii).collect();
    match name.split_whitespace().collect::<Vec<_>>()[..] {
        ["RMS", word] if word.ends_with('p') && word.len() <= 4 => "RMS p".into(),
        ref words => words.join(" "),
    }
}

/// The number of a chunk, if a line is its row: `1  15.4685 ±  0.2900  0.16302 ±  0.00940 …`.
fn chunk_row(line: &str) -> Option<usize> {
    let mut words = line.split_whitespace();
    let chunk = words.next()?.parse().ok()?;
    let numbers = words.filter(|word| word.parse::<f64>().is_ok()).count();
    // a row has five statistics, each with its error
    (numbers == 10).then_some(chunk)
}

/// Whether a line describes a cache as builds until 2025 did.
fn is_old(line: &str) -> bool {
    line.contains("KV self size")
}

/// `kv_size = 512, offload = 1, type_k = 'f16', …`
fn kv_size(line: &str) -> Option<usize> {
    leading(line.split_once("kv_size = ")?.1)
}

/// The number of positions that llama-perplexity scores: the second half of each chunk without its last token.
fn scored(context: usize, chunks: usize) -> u64 {
    chunks as u64 * (context as u64).saturating_sub(1 + context as u64 / 2)
}

/// `size = 3.19 MiB ( 512 cells, 30 layers, 1/1 seqs), K (q8_0): 2.09 MiB, V (q4_0): 1.10 MiB`, or until 2025
/// `KV self size  = 3.19 MiB, K (q8_0): …`, where another line has the cells.
fn cache(line: &str, old_cells: &dyn Fn() -> Option<usize>) -> Option<Cache> {
    let cells =
        if is_old(line) { old_cells()? } else { leading(between(line, "MiB (", "cells")?)? };
    let side = |name: &str| {
        let rest = line.split_once(&format!(", {name} ("))?.1;
        let (kind, size) = rest.split_once("): ")?;
        let known =
            kind.len() <= 32 && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        Some((kind.to_owned(), leading::<f64>(size)?)).filter(|_| known)
    };
    let ((k_kind, k), (v_kind, v)) = (side("K")?, side("V")?);
    Some(Cache {
        cells,
        mib: Sides { k, v },
        head_dim: [None; 2],
        kinds: [k_kind, v_kind],
        rotated: [false; 2],
    })
}

/// `attn_rot_k = 1, n_embd_head_k_all = 64`: the side, whether it is rotated, elements of a head, which the
/// first builds that rotate do not say.
fn rotation(line: &str) -> Option<(usize, bool, Option<usize>)> {
    let (side, rest) = match (line.split_once("attn_rot_k ="), line.split_once("attn_rot_v =")) {
        (Some((_, rest)), _) => (0, rest),
        (_, Some((_, rest))) => (1, rest),
        _ => return None,
    };
    // llama.cpp prints -1 if layers differ
    let head_dim = rest.split_once("_all =").map(|(_, rest)| leading(rest).unwrap_or(0));
    Some((side, leading::<u8>(rest)? == 1, head_dim))
}

impl Log {
    /// As written in [`Conditions::engine`](crate::results::Conditions::engine): `llama.cpp b11434`.
    pub fn engine_name(&self) -> String {
        format!("{} {}", self.engine.name(), self.build)
    }

    /// What ran, written as a scheme: `q8_0/q4_0`.
    pub fn scheme(&self) -> String {
        if self.k == self.v {
            self.k.to_string()
        } else {
            format!("{}/{}", self.k, self.v)
        }
    }

    /// What ran, as reports show it: `q8_0·H64/q4_0·H64`. If the head sizes of caches differ, each variant is listed
    /// once.
    pub fn effective(&self) -> String {
        let mut ways: Vec<String> = Vec::new();
        for cache in &self.caches {
            let side = |i: usize| {
                let size = match (cache.rotated[i], i) {
                    (false, _) => return cache.kinds[i].clone(),
                    (true, 0) => match cache.head_dim[0] {
                        Some(head_dim) => power_of_two(head_dim),
                        None => return format!("{}·H", cache.kinds[i]),
                    },
                    // llama.cpp rotates V in blocks of 64 whatever the size of its heads
                    (true, _) => 64,
                };
                format!("{}·H{size}", cache.kinds[i])
            };
            let way = format!("{}/{}", side(0), side(1));
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
        ways.join(" + ")
    }
}

/// The largest power of two from 64 on that divides a head.
fn power_of_two(head_dim: usize) -> usize {
    match head_dim / 64 {
        0 => 64,
        blocks => 64 << blocks.trailing_zeros(),
    }
}

#[cfg(test)]
mod tests;
