//! What several commands share: their common options, how they end, and how they print.

use crate::compute::device::Choice;
use crate::compute::{Device, Precision};
use crate::gate::device::Asked;
use crate::gate::plan::Place;
use crate::gate::Project;
use crate::kv::Scheme;
use crate::policy::{Diagnostic, DEFAULT_PATH, LEAST_CONTEXT};
use crate::report::Columns;
use crate::results::{json, Results};
use crate::source::pinned;
use crate::source::pinned::Pinned;
use crate::source::Source;
use crate::text::out;
use clap::builder::{PathBufValueParser, TypedValueParser};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Exit code for usage and policy errors.
pub(super) const USAGE: u8 = 2;
/// Exit code if nothing is selected.
pub(super) const NOTHING_SELECTED: u8 = 3;
/// Exit code if something could not be measured or written.
pub(super) const NOT_MEASURED: u8 = 4;

/// The option that names the policy.
#[derive(clap::Args)]
pub(super) struct Config {
    /// The policy to use
    #[arg(long, default_value = DEFAULT_PATH, value_name = "FILE")]
    pub config: PathBuf,
}

impl Config {
    /// Opens the project whose policy the option names, and prints the policy's warnings.
    pub fn project(&self) -> Result<Project, Stop> {
        let (project, warnings) =
            Project::open(&self.config).map_err(|error| Stop::new(USAGE, error.to_string()))?;
        warn(&warnings);
        Ok(project)
    }
}

/// The option that shows everything that was measured.
#[derive(clap::Args)]
pub(super) struct Wide {
    /// Show all columns of the tables, and what each scheme does to each category of text
    #[arg(long)]
    wide: bool,
}

impl Wide {
    /// The columns to show.
    pub fn columns(&self) -> Columns {
        if self.wide {
            Columns::All
        } else {
            Columns::Deciding
        }
    }
}

/// The options that name the device, and what it computes in.
#[derive(clap::Args)]
pub(super) struct On {
    /// The device that models run on: auto, cpu or cuda:N; auto is the first CUDA card if this build can use one and
    /// its driver answers, otherwise the CPU, and a build that can use cards says which [default: KVGATE_DEVICE, or
    /// else auto]
    #[arg(long, value_name = "DEVICE")]
    device: Option<Choice>,
    /// In which precision a card computes schemes: differences (from the baseline, in f16) or whole (as the baseline
    /// itself, which is slower); the CPU computes everything whole [default: KVGATE_PRECISION, or else differences]
    #[arg(long, value_name = "PRECISION")]
    precision: Option<Precision>,
}

impl On {
    /// Whether somebody named the device, by the option or by the environment.
    pub fn is_named(&self) -> bool {
        self.asked().names_a_device()
    }

    fn asked(&self) -> Asked {
        Asked { device: self.device, precision: self.precision }
    }

    /// The device to plan for. A card that is named is not opened, because the machine that plans need not have one.
    pub fn place(&self) -> Result<Place, Stop> {
        let asked = self.asked().or_environment().map_err(|message| Stop::new(USAGE, message))?;
        match asked.device {
            Some(card @ Choice::Cuda(_)) => {
                Ok(Place::Card(card, asked.precision.unwrap_or_default()))
            }
            _ => self.device().map(Place::Here),
        }
    }

    /// Opens the device.
    pub fn device(&self) -> Result<Device, Stop> {
        self.asked().open().map_err(|message| Stop::new(USAGE, message))
    }
}

/// The option that names results of earlier runs, for commands that say what the next run costs.
#[derive(clap::Args)]
pub(super) struct Earlier {
    /// Results of earlier runs, to estimate what each model costs; only those that were measured on the same device
    /// count, and if several files have a model, the last one does
    #[arg(long, value_name = "RESULTS.json", num_args = 1)]
    costs: Vec<PathBuf>,
}

impl Earlier {
    /// Reads the files.
    pub fn results(&self) -> Result<Vec<Results>, Stop> {
        let results = self.costs.iter().map(|path| json::read(path));
        results.collect::<Result<_, _>>().map_err(|error| Stop::new(USAGE, error.to_string()))
    }
}

/// Why a command ends early: the message to print, and the exit code.
pub(super) struct Stop {
    pub code: u8,
    pub message: String,
}

impl Stop {
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Stop { code, message: message.into() }
    }
}

/// Prints lines for people.
pub(super) fn say(lines: impl fmt::Display) -> Result<(), Stop> {
    out::print(lines).map_err(not_printed)
}

/// Prints a report that has colours.
pub(super) fn say_coloured(report: impl fmt::Display) -> Result<(), Stop> {
    out::print_coloured(report).map_err(not_printed)
}

/// Prints a document for other programs.
pub(super) fn say_whole(document: impl fmt::Display) -> Result<(), Stop> {
    out::print_document(document).map_err(not_printed)
}

fn not_printed(error: io::Error) -> Stop {
    Stop::new(NOT_MEASURED, format!("cannot write to standard output: {error}"))
}

fn warn(warnings: &[Diagnostic]) {
    for warning in warnings {
        out::eprint_coloured(warning.styled());
    }
}

/// The options of commands that take a MODEL. They say how to read its checkpoint, and mean the same as the keys
/// of these names in a policy.
#[derive(clap::Args)]
pub(super) struct Reading {
    /// Use this tokenizer.json instead of the model's own tokenizer
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Whether every chunk begins with the BOS token [default: as the checkpoint says]
    #[arg(long, value_name = "BOOL")]
    bos: Option<bool>,
    /// Ignore this configuration key, although kvgate does not know it and would refuse the model; may be repeated
    #[arg(long = "ignore-key", value_name = "KEY")]
    ignore_keys: Vec<String>,
    /// Accept untrained weights, for which the baseline's perplexity has no upper bound
    #[arg(long)]
    untrained: bool,
}

impl Reading {
    /// Whether any of these options was given.
    pub fn is_given(&self) -> bool {
        let Reading { tokenizer, bos, ignore_keys, untrained } = self;
        tokenizer.is_some() || bos.is_some() || !ignore_keys.is_empty() || *untrained
    }

    /// The checkpoint that a MODEL argument names, with these options.
    pub fn source(&self, model: &Path) -> Result<Source, Stop> {
        Ok(Source {
            tokenizer: self.tokenizer.clone(),
            bos: self.bos,
            ignore_keys: self.ignore_keys.clone(),
            untrained: self.untrained,
            ..source(model)?
        })
    }
}

/// Whether a MODEL argument names a checkpoint of the hub.
pub(super) fn is_of_hub(model: &Path) -> bool {
    model.to_str().is_some_and(|text| text.starts_with(pinned::PREFIX))
}

/// The checkpoint that a MODEL argument names: one on disk, or one on the hub.
fn source(model: &Path) -> Result<Source, Stop> {
    match model.to_str().filter(|_| is_of_hub(model)) {
        Some(text) => {
            text.parse().map(Source::of_hub).map_err(|message: String| Stop::new(USAGE, message))
        }
        None => Ok(Source::at(model.into())),
    }
}

/// The path of a file that is written. Many programs take `-` for standard output, which no option here writes to, so that is
/// no path. (Whoever has a file of this name writes `./-`.)
pub(super) fn file_to_write() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.to_str() {
        Some("-") => Err("no option writes to standard output: name a file, or `./-`"),
        _ => Ok(path),
    })
}

/// Parses schemes. Each keeps its text as its label.
pub(super) fn schemes(texts: &[String]) -> Result<Vec<(String, Scheme)>, Stop> {
    let mut schemes: Vec<(String, Scheme)> = Vec::new();
    for text in texts {
        let parsed = scheme(text)?;
        match schemes.iter().find(|(_, known)| *known == parsed) {
            Some((label, _)) => {
                let message = format!("`{label}` and `{text}` are the same scheme");
                return Err(Stop::new(USAGE, message));
            }
            None => schemes.push((text.trim().to_string(), parsed)),
        }
    }
    Ok(schemes)
}

pub(super) fn scheme(text: &str) -> Result<Scheme, Stop> {
    text.parse().map_err(|error| Stop::new(USAGE, format!("scheme `{text}`: {error}")))
}

/// Checks that chunks of so many tokens can be measured, and so many of them. `option` is the one that says how many tokens.
pub(super) fn measurable(option: &str, tokens: usize, chunks: usize) -> Result<(), Stop> {
    if tokens < LEAST_CONTEXT || chunks == 0 {
        let message = format!("{option} must be at least {LEAST_CONTEXT}, --chunks at least 1");
        return Err(Stop::new(USAGE, message));
    }
    Ok(())
}

/// The model's name for people: the stem of its file, or the name of its repository without the owner.
pub(super) fn name(source: &Source) -> String {
    match &source.hub {
        Some(Pinned { file: None, repository, .. }) => {
            repository.rsplit('/').next().unwrap_or_default().to_owned()
        }
        _ => {
            // a folder's name may hold dots: `qwen3.6-mini`
            let gguf = source.path.extension().is_some_and(|extension| extension == "gguf");
            let name = if gguf { source.path.file_stem() } else { source.path.file_name() };
            name.unwrap_or_default().to_string_lossy().into_owned()
        }
    }
}
