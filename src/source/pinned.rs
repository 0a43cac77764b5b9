//! A checkpoint on the Hugging Face hub, pinned to a commit, and its place in the hub's cache.

use crate::files::gguf_parts::PartName;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The beginning of a MODEL argument that names a checkpoint of the hub.
pub const PREFIX: &str = "hf:";

/// Names of the files of a checkpoint in safetensors: required ones, optional ones, and the weights, which are one
/// file, or several with an index.
pub(crate) const CONFIG: &str = "config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(crate) const CHAT_TEMPLATE: &str = "chat_template.jinja";
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The largest text file of a checkpoint that is read, in bytes. The index of a model with a hundred thousand tensors
/// has a tenth of it.
pub(crate) const LONGEST_TEXT: u64 = 128 << 20;

/// Files that show that the tensors alone are not the model: descriptions of how it was quantized (by AutoGPTQ,
/// AutoAWQ, ModelOpt and AutoRound), and an adapter.
pub(crate) const QUANTIZATION_FILES: [&str; 4] = [
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "quantization_config.json",
];
pub(crate) const ADAPTER: &str = "adapter_config.json";

/// Files that a commit need not have, and on which prompts and their ends depend.
pub(super) const OPTIONAL: [&str; 3] = [TOKENIZER_CONFIG, CHAT_TEMPLATE, GENERATION_CONFIG];

/// The folder in which the hub's programs note, as empty files, that a commit does not have a file.
pub(super) const ABSENT: &str = ".no_exist";

/// A checkpoint of the hub, pinned to a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// `org/name`.
    pub repository: String,
    /// The commit, in 40 hexadecimal digits.
    pub revision: String,
    /// A GGUF file of the repository, or the first of the parts of one. `None` means the repository's checkpoint in safetensors.
    pub file: Option<String>,
}

/// Why a checkpoint of the hub cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Files are missing from the cache, and this process must not or cannot fetch them.
    #[error("{pinned}: {} not in the cache ({}), {why}; get it where there is a network: `{}`", missing.join(", "), cache().display(), pinned.command())]
    NotFetched {
        pinned: Box<Pinned>,
        missing: Vec<String>,
        /// Why they are not fetched.
        why: &'static str,
    },
    /// The hub does not answer.
    #[error("{pinned}: cannot reach the hub: {why}; without a network, fetch it elsewhere (`{}`), bring {} here and set HF_HUB_OFFLINE=1, or name a file with `path`", pinned.command(), pinned.home().display())]
    Unreachable { pinned: Box<Pinned>, why: String },
    /// The hub refuses access.
    #[error("{pinned}: the hub refuses access ({answer}); if the model is gated, accept its licence on {page}, and {token}; a private or mistyped repository is refused alike")]
    Refused {
        pinned: Box<Pinned>,
        /// The HTTP status, and the hub's own code.
        answer: String,
        page: String,
        /// What to do about the token.
        token: &'static str,
    },
    /// The hub says that something does not exist.
    #[error("{pinned}: the hub has no {what} ({answer}); repository `{}`, revision `{}`: check both", pinned.repository, pinned.revision)]
    NotFound {
        pinned: Box<Pinned>,
        what: String,
        /// The HTTP status, and the hub's own code.
        answer: String,
    },
    /// The commit does not have the file.
    #[error("repository `{}` has no file `{file}` at revision `{}`{has}", pinned.repository, pinned.revision)]
    NoFile {
        pinned: Box<Pinned>,
        file: String,
        /// The files that it has instead, in words.
        has: String,
    },
    /// A transfer broke off, and resuming it brought nothing.
    #[error(
        "{pinned}: fetching `{file}` broke off: {why}; what arrived is kept, run again to go on"
    )]
    Interrupted { pinned: Box<Pinned>, file: String, why: String },
    /// The hub's answer is not understood.
    #[error("{pinned}: the hub at {endpoint} does not answer as a hub does: {why}; run again later, or fetch it with `{}`", pinned.command())]
    Answer { pinned: Box<Pinned>, endpoint: String, why: String },
    /// A file in the cache is not the one that the hub has.
    #[error("{} is damaged: {why}; remove it and what it links to, and run again", path.display())]
    Damaged { path: PathBuf, why: String },
    /// The cache cannot be read or written.
    #[error("cannot use {}: {error}; HF_HOME names another folder for the hub's cache", path.display())]
    Cache { path: PathBuf, error: std::io::Error },
}

/// What is wrong, and the mend.
pub(crate) type Fault = (String, String);

/// What is wrong with a text that should be `org/name`.
pub(crate) fn repository_fault(text: &str) -> Option<Fault> {
    let is_word = |word: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        !word.is_empty() && word.chars().all(allowed) && !word.contains("..")
    };
    match text.split('/').collect::<Vec<_>>().as_slice() {
        [org, name] if is_word(org) && is_word(name) => None,
        words => {
            // the text may be the address of a page, which ends with both names
            let meant = match words {
                [.., org, name] if is_word(org) && is_word(name) => format!("{org}/{name}"),
                _ => "org/name".into(),
            };
            Some((format!("`{text}` is no repository of the hub"), format!("write `{meant}`")))
        }
    }
}

/// What is wrong with a text that should be a commit.
pub(crate) fn revision_fault(text: &str) -> Option<Fault> {
    let message = if text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        match text.len() {
            40 => return None,
            n => format!("`{text}` is no whole commit: {n} digits, not 40"),
        }
    } else {
        format!("`{text}` is no commit: branches and tags move, and what moves cannot gate")
    };
    let help = "pin the commit by its 40 hexadecimal digits; the model's page lists commits under \
                \"Files and versions\", `git ls-remote` prints those of branches and tags";
    Some((message, help.into()))
}

/// What is wrong with a text that should be a GGUF file of a repository.
pub(crate) fn file_fault(text: &str) -> Option<Fault> {
    if is_inside(text) && text.ends_with(".gguf") {
        let later = PartName::read(text).filter(|part| part.number > 1)?;
        let message = format!("`{text}` is not the first part of a model");
        return Some((
            message,
            format!("name that, `{}`: the others are read as well", later.of(1)),
        ));
    }
    let help = "give its path in the repository, as in `model-Q4_K_M.gguf`; a checkpoint in \
                safetensors needs no `file`";
    Some((format!("`{text}` is no GGUF file of a repository"), help.into()))
}

/// Whether a path stays in the folder that it is relative to. Indexes are fetched, so they cannot be trusted to.
fn is_inside(path: &str) -> bool {
    let plain = |word: &str| !word.is_empty() && word != "." && word != "..";
    path.split('/').all(plain) && !path.contains(['\\', ':'])
}

pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The files that an index names. `None` if it cannot be read or names anything but files below its folder.
pub(super) fn shards(index: &Path) -> Option<BTreeSet<String>> {
    if std::fs::metadata(index).ok()?.len() > LONGEST_TEXT {
        return None;
    }
    shards_of(&serde_json::from_slice(&std::fs::read(index).ok()?).ok()?)
}

/// The same for an index that has been read.
pub(crate) fn shards_of(index: &Value) -> Option<BTreeSet<String>> {
    let files = index.get("weight_map")?.as_object()?.values();
    let files: Option<BTreeSet<String>> =
        files.map(|file| file.as_str().map(String::from)).collect();
    files.filter(|files| !files.is_empty() && files.iter().all(|file| is_inside(file)))
}

/// The cache that programs of the hub share.
pub(super) fn cache() -> PathBuf {
    variable("HF_HUB_CACHE").map_or_else(|| home().join("hub"), PathBuf::from)
}

/// The hub's folder of this user.
pub(super) fn home() -> PathBuf {
    let caches = || match variable("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => std::env::home_dir().unwrap_or_default().join(".cache"),
    };
    variable("HF_HOME").map_or_else(|| caches().join("huggingface"), PathBuf::from)
}

/// An environment variable. An empty one counts as missing.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Pinned {
    /// Its place in the cache, whether it is there or not: that of the GGUF file, or the commit's folder.
    pub fn place(&self) -> PathBuf {
        match &self.file {
            Some(file) => self.cached(file),
            None => self.snapshot(),
        }
    }

    /// Its files that are missing from the cache. If the index itself is missing, this is not known completely.
    pub fn missing(&self, own_tokenizer: bool) -> Vec<String> {
        let needed = match &self.file {
            Some(_) => Vec::new(),
            None if own_tokenizer => vec![CONFIG.to_owned(), TOKENIZER.to_owned()],
            None => vec![CONFIG.to_owned()],
        };
        let needed = needed.into_iter().chain(self.weights());
        needed.filter(|file| !self.cached(file).exists()).collect()
    }

    /// Files that the commit may have, but of which the cache has neither the file nor a note that there is none.
    pub(crate) fn unasked(&self) -> Vec<&'static str> {
        if self.file.is_some() {
            return Vec::new();
        }
        let is_open = |file: &&str| !self.cached(file).exists() && !self.absent(file).exists();
        OPTIONAL.into_iter().filter(is_open).collect()
    }

    /// The place of a note that the commit does not have a file.
    pub(super) fn absent(&self, file: &str) -> PathBuf {
        self.home().join(ABSENT).join(&self.revision).join(file)
    }

    /// The command that fetches it into the same cache.
    pub fn command(&self) -> String {
        let files = self.file.as_ref().map(|_| self.weights().join(" "));
        let files = files.map_or(String::new(), |files| format!(" {files}"));
        format!("hf download {}{files} --revision {}", self.repository, self.revision)
    }

    /// The files that hold its weights, as far as the cache knows them.
    pub(super) fn weights(&self) -> Vec<String> {
        if let Some(file) = &self.file {
            let part = PartName::read(file);
            return part.map_or_else(|| vec![file.clone()], |part| part.all());
        }
        match shards(&self.cached(INDEX)) {
            Some(shards) if !self.cached(WEIGHTS).exists() => shards.into_iter().collect(),
            _ => vec![WEIGHTS.to_owned()],
        }
    }

    /// The folder of the repository in the cache.
    pub(super) fn home(&self) -> PathBuf {
        cache().join(self.folder_name())
    }

    pub(super) fn folder_name(&self) -> String {
        format!("models--{}", self.repository.replace('/', "--"))
    }

    pub(super) fn snapshot(&self) -> PathBuf {
        self.home().join("snapshots").join(&self.revision)
    }

    pub(super) fn cached(&self, file: &str) -> PathBuf {
        self.snapshot().join(file)
    }
}

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}@{}", self.repository, self.revision)?;
        self.file.iter().try_for_each(|file| write!(f, "/{file}"))
    }
}

impl FromStr for Pinned {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix(PREFIX).unwrap_or(text);
        let (repository, rest) = rest.split_once('@').ok_or_else(|| {
            format!("`{text}` has no commit: write {PREFIX}ORG/NAME@COMMIT or {PREFIX}ORG/NAME@COMMIT/FILE.gguf")
        })?;
        let (revision, file) = match rest.split_once('/') {
            Some((revision, file)) => (revision, Some(file)),
            None => (rest, None),
        };
        let fault = repository_fault(repository)
            .or_else(|| revision_fault(revision))
            .or_else(|| file.and_then(file_fault));
        match fault {
            Some((message, help)) => Err(format!("{message}; {help}")),
            None => Ok(Pinned {
                repository: repository.into(),
                revision: revision.to_ascii_lowercase(),
                file: file.map(String::from),
            }),
        }
    }
}
