//! What can be wrong with a checkpoint: what, where, and the mend.

use std::path::{Path, PathBuf};

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file is not there.
    #[error("model file {} is missing{}", path.display(), fetch.as_ref().map(|f| format!("; get it with: {f}")).unwrap_or_default())]
    Missing { path: PathBuf, fetch: Option<String> },
    #[error("cannot read {}: {error}", path.display())]
    Io { path: PathBuf, error: std::io::Error },
    /// The file is no sound checkpoint.
    #[error("{} is not a sound checkpoint: {message}", path.display())]
    Malformed { path: PathBuf, message: String },
    /// A file that must hold a JSON object does not.
    #[error("{}: {message} (line {line}, column {column})", path.display())]
    Json {
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in bytes, from 1.
        column: usize,
        message: String,
    },
    /// The checkpoint is sound, but measuring it would measure something other than the model it is.
    #[error("{}: {message}", path.display())]
    Refused { path: PathBuf, message: String },
    /// A configuration key is missing or of another type.
    #[error("{}: key `{key}` {message}", path.display())]
    Metadata { path: PathBuf, key: String, message: String },
    /// No family file knows this architecture.
    #[error("{}: unknown architecture `{architecture}`; kvgate knows: {known}", path.display())]
    UnknownArchitecture { path: PathBuf, architecture: String, known: String },
    /// The architecture is known, but the checkpoint asks for a variant that is not.
    #[error("{}: {what} is not supported by this version of kvgate", path.display())]
    Unsupported { path: PathBuf, what: String },
    /// A tensor is stored in a type that kvgate does not read.
    #[error("{}: tensor `{tensor}` is {found}, which this version of kvgate does not read (it reads: {known}); publish the model in one of them or convert it", path.display())]
    WeightType {
        path: PathBuf,
        /// The first tensor of that type.
        tensor: String,
        /// The type by its format's name.
        found: String,
        known: Box<str>,
    },
    /// A tensor that the architecture needs is not in the file.
    #[error("{}: tensor `{tensor}` is missing", path.display())]
    MissingTensor { path: PathBuf, tensor: String },
    /// A tensor has another shape than the configuration says.
    #[error("{}: tensor `{tensor}` has shape {found:?}, the configuration says {expected:?}", path.display())]
    Shape {
        path: PathBuf,
        tensor: String,
        /// What the configuration says, outermost dimension first.
        expected: Vec<usize>,
        found: Vec<usize>,
    },
    /// A weight is NaN or infinite.
    #[error("{}: tensor `{tensor}` holds {value} at element {index}: the weights are damaged", path.display())]
    NotFinite {
        path: PathBuf,
        tensor: String,
        /// Flat index of the first such element.
        index: usize,
        value: f32,
    },
    /// The tokenizer cannot be used, or not rebuilt faithfully.
    #[error("{}: {message}; name a tokenizer.json with `tokenizer = \"…\"` in the policy", path.display())]
    Tokenizer { path: PathBuf, message: String },
    /// The chat template cannot be rendered.
    #[error("{}: its chat template ({place}) cannot be rendered: {message}; if it needs more than Jinja as transformers runs it, a prompt's `text` does without a template", path.display())]
    Template {
        path: PathBuf,
        /// The key or file that holds the template, and the line where it failed.
        place: String,
        message: String,
    },
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The errors that several parts of this folder make.
impl ModelError {
    pub(crate) fn malformed(path: &Path, message: impl Into<String>) -> Self {
        ModelError::Malformed { path: path.into(), message: message.into() }
    }

    pub(crate) fn refused(path: &Path, message: impl Into<String>) -> Self {
        ModelError::Refused { path: path.into(), message: message.into() }
    }

    pub(crate) fn unsupported(path: &Path, what: impl Into<String>) -> Self {
        ModelError::Unsupported { path: path.into(), what: what.into() }
    }

    pub(crate) fn bad_key(path: &Path, key: &str, message: impl Into<String>) -> Self {
        ModelError::Metadata { path: path.into(), key: key.into(), message: message.into() }
    }

    pub(crate) fn tokenizer(path: &Path, message: impl Into<String>) -> Self {
        ModelError::Tokenizer { path: path.into(), message: message.into() }
    }

    pub(crate) fn missing_tensor(path: &Path, tensor: &str) -> Self {
        ModelError::MissingTensor { path: path.into(), tensor: tensor.into() }
    }
}
