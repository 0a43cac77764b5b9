//! Reads what a configuration says about quantization. Every member must be taken: what nobody understands is an
//! error that names it, because it may change the weights.

use crate::model::ModelError;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// An object of a configuration, and those of its members that nobody has taken yet.
pub(super) struct Described {
    path: PathBuf,
    /// The object's place in the file, such as `quantization_config`. Empty if it is the whole file.
    place: String,
    left: Map<String, Value>,
    /// The members that are null.
    nulls: BTreeSet<String>,
}

impl Described {
    pub fn new(path: &Path, place: &str, members: &Map<String, Value>) -> Self {
        // a null says nothing, as in transformers
        let left = members.iter().filter(|(_, value)| !value.is_null());
        let left = left.map(|(key, value)| (key.clone(), value.clone())).collect();
        let nulls = members.iter().filter(|(_, value)| value.is_null());
        let nulls = nulls.map(|(key, _)| key.clone()).collect();
        Described { path: path.into(), place: place.into(), left, nulls }
    }

    /// Whether a member says that there is nothing, and is not only absent.
    pub fn is_null(&self, key: &str) -> bool {
        self.nulls.contains(key)
    }

    /// The place of a member in the file.
    pub fn place(&self, key: &str) -> String {
        if self.place.is_empty() {
            key.into()
        } else {
            format!("{}.{key}", self.place)
        }
    }

    pub fn error(&self, key: &str, message: impl Into<String>) -> ModelError {
        ModelError::bad_key(&self.path, &self.place(key), message)
    }

    pub fn keys(&self) -> Vec<String> {
        self.left.keys().cloned().collect()
    }

    pub fn put_back(&mut self, key: String, value: Value) {
        self.left.insert(key, value);
    }

    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.left.shift_remove(key)
    }

    fn taken<T>(
        &mut self,
        key: &str,
        what: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        read(&value)
            .map(Some)
            .ok_or_else(|| self.error(key, format!("must be {what}, not {value}")))
    }

    pub fn number(&mut self, key: &str) -> Result<Option<usize>, ModelError> {
        self.taken(key, "a whole number", |value| usize::try_from(value.as_u64()?).ok())
    }

    pub fn flag(&mut self, key: &str) -> Result<Option<bool>, ModelError> {
        self.taken(key, "true or false", Value::as_bool)
    }

    /// A text in lower case, in which the programs are not consistent.
    pub fn text(&mut self, key: &str) -> Result<Option<String>, ModelError> {
        self.taken(key, "a text", |value| Some(value.as_str()?.to_ascii_lowercase()))
    }

    pub fn object(&mut self, key: &str) -> Result<Option<Described>, ModelError> {
        let members = self.taken(key, "an object", |value| value.as_object().cloned())?;
        Ok(members.map(|members| self.inner(key, &members)))
    }

    /// An object that was taken.
    pub fn inner(&self, key: &str, members: &Map<String, Value>) -> Described {
        Described::new(&self.path, &self.place(key), members)
    }

    /// The objects in an object.
    pub fn objects(mut self) -> Result<Vec<Described>, ModelError> {
        let keys = self.keys();
        let objects = keys.iter().map(|key| self.object(key));
        Ok(objects.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    /// Names of modules.
    pub fn names(&mut self, key: &str) -> Result<Vec<String>, ModelError> {
        let list = self.taken(key, "a list of names", |value| {
            let names = value.as_array()?.iter();
            names.map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        })?;
        Ok(list.unwrap_or_default())
    }

    /// Takes members that do not matter, whatever they say.
    pub fn pass_over(&mut self, keys: &[&str]) {
        self.left.retain(|key, _| !keys.contains(&key.as_str()));
    }

    /// Takes a member that matters unless it has one of these values.
    pub fn neutral(&mut self, key: &str, values: &[Value]) -> Result<(), ModelError> {
        let Some(value) = self.take(key) else { return Ok(()) };
        let is_empty = match &value {
            Value::Object(members) => members.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        if is_empty || values.contains(&value) {
            return Ok(());
        }
        Err(self.error(key, format!("is {value}, which this version of kvgate does not carry out")))
    }

    /// One of these texts.
    pub fn one_of(&mut self, key: &str, known: &[&str]) -> Result<Option<String>, ModelError> {
        match self.text(key)? {
            Some(text) if !known.contains(&text.as_str()) => {
                let known = known.join("`, `");
                Err(self.error(
                    key,
                    format!("is `{text}`, which this version of kvgate does not read (known: `{known}`)"),
                ))
            }
            text => Ok(text),
        }
    }

    /// Refuses members that nobody has taken.
    pub fn close(self) -> Result<(), ModelError> {
        match self.left.iter().next() {
            None => Ok(()),
            Some((key, value)) => Err(self.error(
                key,
                format!(
                    "says {value} about quantization, and this version of kvgate does not know what that means for \
                     the weights"
                ),
            )),
        }
    }
}
