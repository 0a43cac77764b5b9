//! Reading the small files of a checkpoint's folder, of which some may be missing.

use super::json;
use crate::model::ModelError;
use crate::source::pinned::LONGEST_TEXT;
use serde_json::Value;
use std::io::ErrorKind;
use std::path::Path;

/// Reads a file. One that is longer than any configuration is an error, so that its size alone uses up no memory.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    let bytes = std::fs::metadata(path).map_err(|error| io(path, error))?.len();
    if bytes > LONGEST_TEXT {
        let what =
            format!("it has {bytes} bytes, and no configuration has more than {LONGEST_TEXT}");
        return Err(ModelError::malformed(path, what));
    }
    std::fs::read(path).map_err(|error| io(path, error))
}

/// Reads a file that a checkpoint may lack.
pub(in crate::model) fn optional(path: &Path) -> Result<Option<Vec<u8>>, ModelError> {
    match read(path) {
        Err(ModelError::Missing { .. }) => Ok(None),
        read => read.map(Some),
    }
}

/// Reads a JSON object from a file that a checkpoint may lack. A file that is missing reads as null.
pub(in crate::model) fn optional_json(path: &Path) -> Result<Value, ModelError> {
    optional(path)?.map_or(Ok(Value::Null), |bytes| json::object(path, &bytes))
}

pub(in crate::model) fn utf8(path: &Path, bytes: Vec<u8>) -> Result<String, ModelError> {
    String::from_utf8(bytes).map_err(|error| ModelError::malformed(path, error.to_string()))
}

pub(super) fn io(path: &Path, error: std::io::Error) -> ModelError {
    match error.kind() {
        ErrorKind::NotFound => ModelError::Missing { path: path.into(), fetch: None },
        _ => ModelError::Io { path: path.into(), error },
    }
}
