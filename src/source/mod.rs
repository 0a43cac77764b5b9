//! Says where checkpoints are: on disk, or on the Hugging Face hub, pinned to a commit and used from the hub's own
//! cache.
//!
//! The files of a commit never change. Those that are in the cache are used without asking the network, whoever put
//! them there. `client` fetches the rest, if the feature `hub` is on.
//!
//! Files that a commit need not have, such as a chat template, may be missing from the cache because another program
//! did not fetch them. The hub is asked for them once. If the commit does not have a file, that is noted in the
//! cache, as the hub's own programs do.

#[cfg(feature = "hub")]
mod client;
pub mod pinned;

use crate::hash;
use crate::progress::Progress;
use pinned::{is_hex, variable, HubError, Pinned, TOKENIZER};
use std::fmt;
use std::path::{Path, PathBuf};

/// How long kvgate waits for files that a commit need not have.
#[cfg(feature = "hub")]
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// A checkpoint, and its place on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The weights: a file, or the folder of a checkpoint in safetensors. The path is resolved against the policy's
    /// folder. For a checkpoint of the hub it is the place in the cache where it is or will be.
    pub path: PathBuf,
    /// Where on the hub it comes from, if it does.
    pub hub: Option<Pinned>,
    /// SHA-256 that the file must have.
    pub sha256: Option<String>,
    /// A `tokenizer.json` that is used instead of the checkpoint's own tokenizer.
    pub tokenizer: Option<PathBuf>,
    /// The command that gets the file, shown when it is missing.
    pub fetch: Option<String>,
    /// Whether BOS stands before every chunk, if the policy says so. Otherwise the checkpoint decides.
    pub bos: Option<bool>,
    /// Full names of configuration keys that nothing reads and that the policy tells kvgate to ignore.
    pub ignore_keys: Vec<String>,
    /// Whether the weights are known to be untrained, so that no bound on the baseline's perplexity can hold.
    pub untrained: bool,
}

impl Source {
    /// A checkpoint on disk that is used as it is.
    pub fn at(path: PathBuf) -> Self {
        Source {
            path,
            hub: None,
            sha256: None,
            tokenizer: None,
            fetch: None,
            bos: None,
            ignore_keys: Vec::new(),
            untrained: false,
        }
    }

    /// The options by which `kvgate measure` reads a checkpoint in the same way, as separate words.
    pub fn options(&self) -> Vec<String> {
        let option = |name: &str, value: String| vec![name.to_owned(), value];
        let tokenizer = self.tokenizer.iter().map(|file| file.display().to_string());
        let mut words: Vec<String> =
            tokenizer.flat_map(|file| option("--tokenizer", file)).collect();
        words.extend(self.bos.iter().flat_map(|bos| option("--bos", bos.to_string())));
        words.extend(self.ignore_keys.iter().flat_map(|key| option("--ignore-key", key.clone())));
        words.extend(self.untrained.then(|| "--untrained".to_owned()));
        words
    }

    /// The lines of a measurement's [`Conditions::reading`](crate::results::Conditions::reading) that come from the
    /// policy, in the order in which they are written there.
    pub fn reading(&self) -> Vec<String> {
        let untrained = self.untrained.then(|| UNTRAINED.to_owned());
        let ignored = self.ignore_keys.iter().map(|key| format!("{IGNORED_KEY}{key}"));
        untrained.into_iter().chain(ignored).collect()
    }

    /// A checkpoint of the hub, in its place in the cache.
    pub fn of_hub(pinned: Pinned) -> Self {
        Source { hub: Some(pinned.clone()), ..Source::at(pinned.place()) }
    }
}

/// The line of [`Source::reading`] for weights that are known to be untrained.
pub(crate) const UNTRAINED: &str = "untrained";

/// The beginning of a line of [`Source::reading`] about an ignored configuration key, which follows.
pub(crate) const IGNORED_KEY: &str = "ignored key ";

/// The beginning of a line about BOS in [`Conditions::reading`](crate::results::Conditions::reading), such as `bos 2`
/// or `bos none`.
pub(crate) const BOS: &str = "bos ";

/// Written as in a MODEL argument of the program.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hub {
            Some(pinned) => pinned.fmt(f),
            None => self.path.display().fmt(f),
        }
    }
}

/// Makes sure that a checkpoint of the hub is on disk and undamaged. For any other checkpoint it does nothing.
///
/// # Errors
/// If something is missing or damaged. The error says how to mend it.
pub fn fetch(source: &Source, progress: Progress) -> Result<(), HubError> {
    let Some(pinned) = &source.hub else { return Ok(()) };
    let own_tokenizer = source.tokenizer.is_none();
    let missing = pinned.missing(own_tokenizer);
    if !missing.is_empty() {
        get(pinned, own_tokenizer, missing, progress)?;
    } else if !pinned.unasked().is_empty() {
        ask(pinned, progress);
    }
    progress("hashing", 0, 0);
    verify(source)
}

/// Fetches what is missing, unless the environment or the build forbids it.
fn get(
    pinned: &Pinned,
    own_tokenizer: bool,
    missing: Vec<String>,
    progress: Progress,
) -> Result<(), HubError> {
    let not = |why| HubError::NotFetched { pinned: Box::new(pinned.clone()), missing, why };
    if is_on("HF_HUB_OFFLINE") {
        return Err(not("and HF_HUB_OFFLINE forbids to fetch"));
    }
    #[cfg(feature = "hub")]
    return client::fetch(pinned, own_tokenizer, progress);
    #[cfg(not(feature = "hub"))]
    {
        let _ = (own_tokenizer, progress);
        Err(not("and kvgate was built without its feature `hub`, which fetches (`path` names a file on disk)"))
    }
}

/// Asks the hub for files that a commit need not have, such as a chat template. Measuring can go on without them, so
/// it is no error if the hub does not answer soon. Whatever needs a missing file reports that itself.
fn ask(pinned: &Pinned, progress: Progress) {
    #[cfg(feature = "hub")]
    if !is_on("HF_HUB_OFFLINE") {
        progress("asking the hub", 0, 0);
        let (pinned, (tell, told)) = (pinned.clone(), std::sync::mpsc::channel());
        std::thread::spawn(move || tell.send(client::fetch_optional(&pinned).is_ok()));
        let _ = told.recv_timeout(PATIENCE);
    }
    #[cfg(not(feature = "hub"))]
    let _ = (pinned, progress);
}

/// Checks the large files of a checkpoint of the hub against the SHA-256 that their blobs are named after. Small
/// files have other names and cannot be checked so.
///
/// # Errors
/// If a file has another hash.
pub fn verify(source: &Source) -> Result<(), HubError> {
    let Some(pinned) = &source.hub else { return Ok(()) };
    let tokenizer = pinned.file.is_none().then(|| TOKENIZER.to_owned());
    for path in pinned.weights().into_iter().chain(tokenizer).map(|file| pinned.cached(&file)) {
        let Some(expected) = std::fs::read_link(&path).ok().and_then(|blob| sha256_name(&blob))
        else {
            continue;
        };
        let found =
            hash::of_file(&path).map_err(|error| HubError::Cache { path: path.clone(), error })?;
        if found != expected {
            let why = format!("its SHA-256 is {found}, not {expected}");
            return Err(HubError::Damaged { path, why });
        }
    }
    Ok(())
}

/// The hash that a blob is named after.
fn sha256_name(blob: &Path) -> Option<String> {
    let name = blob.file_name()?.to_str()?;
    is_hex(name, 64).then(|| name.to_ascii_lowercase())
}

/// Whether an environment variable switches something on, by the rules of the hub's own programs.
fn is_on(name: &str) -> bool {
    let value = variable(name).unwrap_or_default().to_ascii_uppercase();
    ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
}

#[cfg(test)]
mod tests {
    use super::pinned::{shards, INDEX};
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn arguments_are_read_as_they_are_shown() {
        for text in [
            format!("hf:org/name@{COMMIT}"),
            format!("hf:org/name-2.5@{COMMIT}/model.gguf"),
            format!("hf:org/name@{COMMIT}/deep/model.gguf"),
        ] {
            assert_eq!(text.parse::<Pinned>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn arguments_that_mean_nothing_say_what_to_write() {
        for (text, mend) in [
            ("hf:org/name".into(), "hf:ORG/NAME@COMMIT"),
            (format!("hf:name@{COMMIT}"), "write `org/name`"),
            (format!("hf:https://hub.example/org/name@{COMMIT}"), "write `org/name`"),
            (format!("hf:org/..@{COMMIT}"), "is no repository"),
            ("hf:org/name@main".into(), "what moves cannot gate"),
            ("hf:org/name@0123abc".into(), "7 digits, not 40"),
            (format!("hf:org/name@{COMMIT}/../x.gguf"), "no GGUF file of a repository"),
            (format!("hf:org/name@{COMMIT}/model.bin"), "no GGUF file of a repository"),
        ] {
            let error = text.parse::<Pinned>().unwrap_err();
            assert!(error.contains(mend), "{text}: {error}");
        }
    }

    #[test]
    fn an_index_that_leads_out_of_the_folder_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join(INDEX);
        let names = |file: &str| {
            std::fs::write(&index, format!(r#"{{"weight_map": {{"a": "{file}"}}}}"#)).unwrap();
            shards(&index)
        };
        assert_eq!(names("a-00001.safetensors").unwrap().len(), 1);
        for file in ["../a", "/a", "a/../../b", "", "c:/a", "a//b"] {
            assert_eq!(names(file), None, "{file}");
        }
    }

    #[cfg(not(feature = "hub"))]
    #[test]
    fn without_the_feature_the_error_names_it() {
        let pinned = format!("hf:no-such-org/name@{COMMIT}/m.gguf").parse().unwrap();
        let error = fetch(&Source::of_hub(pinned), &|_, _, _| {}).unwrap_err().to_string();
        for word in ["m.gguf", "feature `hub`", "`path`", "hf download no-such-org/name m.gguf"] {
            assert!(error.contains(word), "{error}");
        }
    }
}
