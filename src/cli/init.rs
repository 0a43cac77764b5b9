//! `kvgate init` writes what a model's repository needs to start with into the current folder.

use super::shared::{
    measurable, name, say, say_coloured, schemes, On, Reading, Stop, NOT_MEASURED, USAGE,
};
use crate::files::staged;
use crate::init::policy::{is_skeleton, Draft, SCHEMES};
use crate::init::{File, Starter, CODEOWNERS_PLACES, TEXTS};
use crate::judge::trust;
use crate::kv::Scheme;
use crate::measure::corpus::{CorpusError, Uneven};
use crate::measure::{measure, Draw, MeasureError, Request};
use crate::policy::DEFAULT_PATH as POLICY;
use crate::progress::Bar;
use crate::repo;
use crate::report::{terminal, Columns, Report};
use crate::results::statistics::LEAST_CHUNKS;
use crate::results::{Measurement, Outcome, Results};
use crate::text::numbers::count;
use std::io;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Measure this model and propose its limits: a GGUF file, a folder with config.json and safetensors files,
    /// or a checkpoint of the Hugging Face hub: hf:ORG/NAME@COMMIT, or hf:ORG/NAME@COMMIT/FILE.gguf for one of
    /// its GGUF files
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// The model's name in cases and reports [default: the name of its file or repository]
    #[arg(long, value_name = "NAME", requires = "model")]
    name: Option<String>,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    on: On,
    /// Text to measure on; if there are several files, chunks are taken from them in turn [default: three short
    /// texts, which are written into corpora/]
    #[arg(long, value_delimiter = ',', value_name = "FILE")]
    corpus: Vec<PathBuf>,
    /// The schemes to measure and to propose limits for
    #[arg(long, value_delimiter = ',', value_name = "SCHEME", default_values_t = SCHEMES.map(String::from))]
    schemes: Vec<String>,
    /// How many tokens a chunk has; only the second half of each chunk is scored
    #[arg(long, default_value_t = 512, value_name = "N")]
    context: usize,
    /// How many chunks to measure
    #[arg(long, default_value_t = 12, value_name = "N")]
    chunks: usize,
    /// The team or person that CODEOWNERS makes approve changes of limits, goldens and workflows
    #[arg(long, value_name = "@TEAM")]
    owner: Option<String>,
    /// The GitHub repository from which the workflows and Cargo.toml take kvgate
    #[arg(long, value_name = "OWNER/NAME")]
    kvgate: Option<String>,
    /// Also write kvgate-gpu.yml, the workflow for a machine of your own
    #[arg(long)]
    gpu: bool,
    /// Replace files that exist already
    #[arg(long)]
    force: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    let starter = starter(arguments)?;
    let corpus = named(&arguments.corpus)?;
    let texts: &[(&'static str, &str)] = if corpus.is_empty() { &TEXTS } else { &[] };
    let own = texts.iter().map(|(path, _)| (*path).to_owned());
    let own = own.filter(|path| path.ends_with(".txt"));
    let corpus: Vec<String> = corpus.into_iter().chain(own).collect();
    let draft = Draft { corpus: &corpus, context: arguments.context, chunks: arguments.chunks };

    // measuring takes minutes, so first make sure that this folder can be written to
    tempfile::tempfile_in(".").map_err(|error| {
        Stop::new(NOT_MEASURED, format!("cannot write into this folder: {error}"))
    })?;
    let policy = match &arguments.model {
        None => Some(draft.skeleton()),
        // the policy would not be written, so nothing is measured
        Some(_) if is_kept() && !arguments.force => None,
        Some(model) => Some(proposed(arguments, model, &draft)?),
    };
    let is_new = policy.is_some();
    let texts = texts.iter().map(|(path, text)| plain(path, *text));
    let policy = plain(POLICY, policy.unwrap_or_default());
    // the policy comes last, so that if it exists, all other files do, too
    let files: Vec<File> = starter.files().into_iter().chain(texts).chain([policy]).collect();
    let replace = |file: &File| match file.path {
        // a policy is never replaced by one without a model
        POLICY => arguments.model.is_some() && is_new,
        _ => arguments.force,
    };
    write(&files, &replace)?;
    say_next(arguments, &starter, is_new)?;
    Ok(0)
}

fn plain(path: &'static str, text: impl Into<String>) -> File {
    File { path, text: text.into(), lines: String::new() }
}

fn starter(arguments: &Arguments) -> Result<Starter, Stop> {
    let standard = Starter::default();
    let starter = Starter {
        kvgate: arguments.kvgate.clone().unwrap_or(standard.kvgate),
        owner: arguments.owner.clone().unwrap_or(standard.owner),
        gpu: arguments.gpu,
    };
    let is_word = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let is_repository =
        starter.kvgate.split_once('/').is_some_and(|(owner, name)| is_word(owner) && is_word(name));
    if !is_repository {
        return Err(Stop::new(USAGE, format!("--kvgate: `{}` is not OWNER/NAME", starter.kvgate)));
    }
    let is_owner = starter.owner.strip_prefix('@').is_some_and(|o| o.split('/').all(is_word));
    if !is_owner {
        return Err(Stop::new(
            USAGE,
            format!("--owner: `{}` is neither @USER nor @ORG/TEAM", starter.owner),
        ));
    }
    Ok(starter)
}

/// Gives the names of files as they are written into a policy.
fn named(files: &[PathBuf]) -> Result<Vec<String>, Stop> {
    let named = |file: &PathBuf| {
        if !file.is_file() {
            return Err(Stop::new(USAGE, format!("--corpus: there is no file {}", file.display())));
        }
        match within(file).to_str() {
            Some(name) => Ok(name.to_owned()),
            None => Err(Stop::new(USAGE, format!("{} is no UTF-8: rename it", file.display()))),
        }
    };
    files.iter().map(named).collect()
}

/// A path relative to the current folder, if it is inside of it.
fn within(path: &Path) -> PathBuf {
    let here = std::env::current_dir().ok();
    let inner = here.and_then(|here| path.strip_prefix(here).ok().map(Path::to_owned));
    let path = inner.unwrap_or_else(|| path.to_owned());
    path.strip_prefix(".").map(Path::to_owned).unwrap_or(path)
}

/// Whether there is a policy that must not be overwritten. A policy that `init` wrote without a model may be
/// overwritten.
fn is_kept() -> bool {
    match std::fs::read_to_string(POLICY) {
        Ok(text) => !is_skeleton(&text),
        Err(_) => is_there(Path::new(POLICY)),
    }
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Measures the model, shows what was found, and makes a policy of it.
fn proposed(arguments: &Arguments, model: &Path, draft: &Draft) -> Result<String, Stop> {
    measurable("--context", arguments.context, arguments.chunks)?;
    let source = arguments.reading.source(&within(model))?;
    let name = arguments.name.clone().unwrap_or_else(|| case_name(&name(&source)));
    if name.is_empty() || name != case_name(&name) {
        return Err(Stop::new(
            USAGE,
            format!("`{name}` cannot name a model: letters, digits, dots, `_` and `-` do; `--name NAME`"),
        ));
    }
    // nothing is written here before everything is measured, so texts that do not exist yet are measured from a
    // temporary folder
    let folder = tempfile::tempdir().map_err(unwritten)?;
    let corpus = if arguments.corpus.is_empty() {
        lent(folder.path(), arguments.force).map_err(unwritten)?
    } else {
        arguments.corpus.clone()
    };
    let request = Request {
        model: &name,
        source: &source,
        corpus: &corpus,
        context: arguments.context,
        chunks: arguments.chunks,
        draw: Draw::First,
        baseline: Scheme::f16(),
        schemes: schemes(&arguments.schemes)?,
        calibration: None,
        generate: None,
        retrieval: None,
        device: arguments.on.device()?,
        residency: None,
        mimic: None,
        is_gated: true,
    };
    let measurement = {
        let bar = Bar::new(&name);
        let measured = measure(&request, &|what, done, all| bar.update(what, done, all));
        measured
            .map_err(|error| Stop::new(NOT_MEASURED, unmeasured(&error, arguments)))?
            .measurement
    };
    trusted(&measurement)?;
    let text = draft.of_model(&source, &measurement);
    show(measurement)?;
    Ok(text)
}

/// Why the model could not be measured. Nobody has heard of the folder from which the texts of `init` are measured.
fn unmeasured(error: &MeasureError, arguments: &Arguments) -> String {
    match error {
        MeasureError::Corpus(CorpusError::TooShort { found, wanted, context, .. })
            if arguments.corpus.is_empty() =>
        {
            let found = count(*found, "chunk");
            format!(
                "the texts in corpora/ that init measures on have {found} of {context} tokens, {wanted} were asked for; \
                 ask for fewer with `--chunks N`, or name longer texts with `--corpus FILE,…`"
            )
        }
        MeasureError::Corpus(CorpusError::Uneven(Uneven { even, texts, .. }))
            if arguments.corpus.is_empty() && even < texts =>
        {
            format!(
                "the texts in corpora/ that init measures on are too short for chunks of {} tokens; take a shorter \
                 `--context N`, or name longer texts with `--corpus FILE,…`",
                arguments.context
            )
        }
        MeasureError::Corpus(CorpusError::Uneven(Uneven { even, .. }))
            if arguments.corpus.is_empty() =>
        {
            format!(
                "the texts in corpora/ that init measures on have equal shares of {even} chunks at most; ask for fewer with \
                 `--chunks {even}`, or name longer texts with `--corpus FILE,…`"
            )
        }
        error => error.to_string(),
    }
}

/// Makes a name fit for cases and goldens.
fn case_name(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    name.chars().map(allowed).collect()
}

fn unwritten(error: io::Error) -> Stop {
    Stop::new(NOT_MEASURED, format!("cannot write: {error}"))
}

/// Writes the texts that `init` brings into a folder. If a file with the name of one exists in the repository,
/// that file is used instead.
fn lent(folder: &Path, force: bool) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for (name, text) in TEXTS.iter().filter(|(name, _)| name.ends_with(".txt")) {
        let own = Path::new(name);
        if is_there(own) && !force {
            paths.push(own.to_owned());
            continue;
        }
        let path = folder.join(own.file_name().unwrap_or_default());
        std::fs::write(&path, text)?;
        paths.push(path);
    }
    Ok(paths)
}

/// Refuses to propose limits from a measurement that the gate would not trust.
fn trusted(measurement: &Measurement) -> Result<(), Stop> {
    if let Some((scheme, reason)) = trust::distrust(measurement).into_iter().next() {
        return Err(Stop::new(NOT_MEASURED, format!("{scheme}: {reason}; nothing was written")));
    }
    let is_measured = |outcome: &Outcome| matches!(outcome, Outcome::Measured { .. });
    if !measurement.schemes.iter().any(|scheme| is_measured(&scheme.outcome)) {
        return Err(Stop::new(NOT_MEASURED, "no scheme could be measured; nothing was written"));
    }
    Ok(())
}

fn show(measurement: Measurement) -> Result<(), Stop> {
    let report = Report::from(Results {
        head: repo::head(Path::new(".")),
        ..Results::new(vec![measurement], Vec::new())
    });
    say_coloured(terminal::render(&report.view(), Columns::Deciding).trim_end())
}

/// Writes the files that do not exist yet. All are written under temporary names before the first is put in place.
fn write(files: &[File], replace: &dyn Fn(&File) -> bool) -> Result<(), Stop> {
    let failed = |path: &str, error: io::Error| {
        Stop::new(NOT_MEASURED, format!("cannot write {path}: {error}"))
    };
    let mut ready = Vec::new();
    let mut left = Vec::new();
    for file in files {
        match there(file.path).filter(|_| !replace(file)) {
            Some(path) => left.push((path, file)),
            None => {
                let staged = staged(Path::new(file.path), &file.text);
                ready.push((file, staged.map_err(|error| failed(file.path, error))?));
            }
        }
    }
    for (file, staged) in ready {
        let placed = if replace(file) {
            staged.persist(file.path)
        } else {
            // somebody may have created the file in the meantime
            staged.persist_noclobber(file.path)
        };
        placed.map_err(|error| failed(file.path, error.error))?;
        say(format!("written  {}", file.path))?;
    }
    for (path, file) in left {
        left_alone(path, file)?;
    }
    Ok(())
}

/// The existing file that serves the same purpose, if there is one.
fn there(path: &'static str) -> Option<&'static str> {
    let places: &[&'static str] = match path {
        ".github/CODEOWNERS" => &CODEOWNERS_PLACES,
        _ => std::slice::from_ref(&path),
    };
    places.iter().find(|place| is_there(Path::new(place))).copied()
}

/// Says that an existing file is left as it is, and which lines it lacks.
fn left_alone(path: &str, file: &File) -> Result<(), Stop> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    if text == file.text {
        return say(format!("as it is {path}"));
    }
    let lacking: Vec<_> =
        file.lines.lines().filter(|line| !text.lines().any(|own| own.trim() == *line)).collect();
    if lacking.is_empty() {
        say(format!("left     {path}"))
    } else {
        say(format!("left     {path}, which lacks:"))?;
        lacking.iter().try_for_each(|line| say(format!("         {line}").trim_end()))
    }
}

/// What to do if the current folder is not the root of a git repository, so that GitHub would not find the files.
#[cfg(feature = "git")]
fn away_from_root() -> Option<String> {
    let here = Path::new(".");
    match repo::Repository::discover(here).map(|repository| repository.relative(here)) {
        Err(_) => Some("this is no git repository yet: `git init`".into()),
        Ok(within) => within.filter(|within| within.iter().next().is_some()).map(|within| {
            let within = within.display();
            format!(
                "GitHub reads .github/ at the repository's root only: move it there, put {within}/ before the \
                 places in CODEOWNERS, and `working-directory: {within}` into the workflows"
            )
        }),
    }
}

#[cfg(not(feature = "git"))]
fn away_from_root() -> Option<String> {
    None
}

/// Says what people have to do next.
fn say_next(arguments: &Arguments, starter: &Starter, is_new: bool) -> Result<(), Stop> {
    let model = arguments.model.iter().map(|model| within(model));
    for path in arguments.corpus.iter().map(|file| within(file)).chain(model) {
        if path.is_absolute() {
            let path = path.display();
            say(format!("note     {path} is not in this folder: every machine needs it there"))?;
        }
    }
    if let Some(note) = away_from_root() {
        say(format!("note     {note}"))?;
    }
    for placeholder in starter.placeholders() {
        say(format!("fill in  {placeholder}"))?;
    }
    if arguments.corpus.is_empty() {
        say("note     the texts in corpora/ are a start: a release is judged on text of its own use")?;
    }
    if is_new && arguments.model.is_some() && arguments.chunks < LEAST_CHUNKS {
        let chunks = count(arguments.chunks, "chunk");
        say(format!(
            "note     values of {chunks} have no intervals, so the policy asks for no confidence: `--chunks \
             {LEAST_CHUNKS}` at least"
        ))?;
    }
    match (&arguments.model, is_new) {
        (None, _) => say("next     kvgate init --model MODEL, which measures it and proposes limits"),
        (Some(_), false) => say(format!(
            "note     {POLICY} is there, so nothing was measured: --force measures and replaces all of these \
             files; `kvgate measure` only measures"
        )),
        (Some(_), true) => say(format!(
            "next     look at every line of {POLICY}, then `kvgate run`, which is red for want of goldens, then\n         \
             kvgate accept kvgate-results/results.json"
        )),
    }
}
