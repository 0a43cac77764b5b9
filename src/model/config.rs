//! A checkpoint's configuration, whichever format spells it: GGUF metadata or `config.json`.
//!
//! A [`Key`] names the same fact in both formats, so that a family is written once.

use super::ModelError;
use crate::source::pinned::CONFIG;
use std::path::Path;

/// The name of a fact in each format. It is empty for a format that does not record the fact.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key<'k> {
    /// The metadata key without the architecture's prefix.
    pub gguf: &'k str,
    /// The path of a member of the text model's configuration. Dots step into objects.
    pub hf: &'k str,
}

/// The formats of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Gguf,
    /// config.json and safetensors, as transformers writes them.
    Hf,
}

/// A configuration value in the types that both formats share.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fact {
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Fact>),
    /// An object, or a type that no configuration uses.
    Other,
}

impl Fact {
    /// Whether two facts mean the same, as 8 and 8.0 do.
    pub fn same(&self, other: &Fact) -> bool {
        match (self, other) {
            (Fact::Integer(n), Fact::Float(x)) | (Fact::Float(x), Fact::Integer(n)) => {
                *n as f64 == *x
            }
            _ => self == other,
        }
    }
}

/// Where facts are looked up.
pub(crate) trait Config {
    /// The checkpoint as messages name it.
    fn path(&self) -> &Path;

    fn format(&self) -> Format;

    /// The architecture as the checkpoint names it.
    fn architecture(&self) -> &str;

    /// The value of a key, which is spelled as in this format. A JSON null counts as no value.
    fn lookup(&self, key: &str) -> Option<Fact>;

    /// The key as messages name it.
    fn full_name(&self, key: &str) -> String;

    /// All keys of the file by their full names with their values, `None` for a null. Objects are listed by their
    /// members.
    fn entries(&self) -> Vec<(String, Option<Fact>)>;

    /// Every place of the file that gives a value for a key, by its full name, `None` for a null. The first place
    /// counts.
    fn places(&self, key: &str) -> Vec<(String, Option<Fact>)>;
}

/// The largest integer that is read as a size. No size in a model comes near it.
const LARGEST: i128 = 1 << 40;

impl<'a> dyn Config + 'a {
    fn name<'k>(&self, key: Key<'k>) -> &'k str {
        match self.format() {
            Format::Gguf => key.gguf,
            Format::Hf => key.hf,
        }
    }

    /// The value of a key that may have several types.
    pub fn fact(&self, key: Key) -> Option<Fact> {
        match self.name(key) {
            "" => None,
            name => self.lookup(name),
        }
    }

    pub fn has(&self, key: Key) -> bool {
        self.fact(key).is_some()
    }

    /// What the file itself says. Unlike other lookups, this one does not mark the key as read.
    pub fn fact_unasked(&self, key: Key) -> Option<Fact> {
        match self.name(key) {
            "" => None,
            name => self.places(name).into_iter().next().and_then(|(_, fact)| fact),
        }
    }

    /// Whether the file itself says it, and not only a default.
    pub fn in_file(&self, key: Key) -> bool {
        self.fact_unasked(key).is_some()
    }

    /// An error about a key.
    pub fn bad(&self, key: Key, message: impl Into<String>) -> ModelError {
        self.bad_name(&self.full_name(self.name(key)), message)
    }

    /// An error about a key by its full name.
    pub fn bad_name(&self, name: &str, message: impl Into<String>) -> ModelError {
        match self.format() {
            Format::Gguf => ModelError::bad_key(self.path(), name, message),
            Format::Hf => ModelError::bad_key(&self.path().join(CONFIG), name, message),
        }
    }

    /// An error about something that this version does not support.
    pub fn unsupported(&self, what: impl Into<String>) -> ModelError {
        ModelError::unsupported(self.path(), what)
    }

    fn required<T>(&self, key: Key, found: Option<T>) -> Result<T, ModelError> {
        found.ok_or_else(|| self.bad(key, "is missing"))
    }

    /// An unsigned integer, such as the number of layers.
    pub fn number(&self, key: Key) -> Result<usize, ModelError> {
        let found = self.optional_number(key)?;
        self.required(key, found)
    }

    pub fn optional_number(&self, key: Key) -> Result<Option<usize>, ModelError> {
        self.fact(key).map(|fact| self.unsigned(key, self.same_for_all(&fact))).transpose()
    }

    /// The one number that a GGUF file gives for each layer, if it is the same for all.
    fn same_for_all<'f>(&self, fact: &'f Fact) -> &'f Fact {
        match (fact, self.lookup("block_count"), self.format()) {
            (Fact::List(list), Some(Fact::Integer(layers)), Format::Gguf)
                if list.len() as i128 == layers && list.iter().all(|one| *one == list[0]) =>
            {
                list.first().unwrap_or(fact)
            }
            _ => fact,
        }
    }

    fn unsigned(&self, key: Key, fact: &Fact) -> Result<usize, ModelError> {
        match fact {
            Fact::Integer(n) if (0..=LARGEST).contains(n) => Ok(*n as usize),
            _ => Err(self.bad(key, "must be an unsigned integer")),
        }
    }

    /// An unsigned integer for each of `layers` layers. The file gives a list, or one number for all layers.
    pub fn numbers(&self, key: Key, layers: usize) -> Result<Option<Vec<usize>>, ModelError> {
        match self.fact(key) {
            None => Ok(None),
            Some(Fact::List(list)) => {
                let list: Vec<_> =
                    list.iter().map(|fact| self.unsigned(key, fact)).collect::<Result<_, _>>()?;
                self.one_for_each(key, list, layers).map(Some)
            }
            Some(one) => Ok(Some(vec![self.unsigned(key, &one)?; layers])),
        }
    }

    /// A flag for each layer.
    pub fn flags(&self, key: Key, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
        let Some(list) = self.listed(key)? else { return Ok(None) };
        let flag = |fact: &Fact| match fact {
            Fact::Bool(flag) => Ok(*flag),
            Fact::Integer(n) => Ok(*n != 0),
            _ => Err(self.bad(key, "must be a list of booleans")),
        };
        let list = list.iter().map(flag).collect::<Result<Vec<_>, _>>()?;
        self.one_for_each(key, list, layers).map(Some)
    }

    /// A word for each layer, such as its type.
    pub fn words(&self, key: Key, layers: usize) -> Result<Option<Vec<String>>, ModelError> {
        let Some(list) = self.listed(key)? else { return Ok(None) };
        let word = |fact: Fact| match fact {
            Fact::Text(word) => Ok(word),
            _ => Err(self.bad(key, "must be a list of strings")),
        };
        let list = list.into_iter().map(word).collect::<Result<Vec<_>, _>>()?;
        self.one_for_each(key, list, layers).map(Some)
    }

    fn listed(&self, key: Key) -> Result<Option<Vec<Fact>>, ModelError> {
        match self.fact(key) {
            None => Ok(None),
            Some(Fact::List(list)) => Ok(Some(list)),
            Some(_) => Err(self.bad(key, "must be a list")),
        }
    }

    fn one_for_each<T>(&self, key: Key, list: Vec<T>, layers: usize) -> Result<Vec<T>, ModelError> {
        if list.len() == layers {
            Ok(list)
        } else {
            Err(self.bad(key, format!("has {} entries for {layers} layers", list.len())))
        }
    }

    /// A list of unsigned integers of any length.
    pub fn list(&self, key: Key) -> Result<Vec<usize>, ModelError> {
        match self.fact(key) {
            Some(Fact::List(list)) => list.iter().map(|fact| self.unsigned(key, fact)).collect(),
            None => Ok(Vec::new()),
            Some(_) => Err(self.bad(key, "must be a list")),
        }
    }

    /// A list of finite numbers of any length.
    pub fn floats(&self, key: Key) -> Result<Vec<f64>, ModelError> {
        let float = |fact: &Fact| match fact {
            Fact::Float(x) if x.is_finite() => Ok(*x),
            Fact::Integer(n) => Ok(*n as f64),
            _ => Err(self.bad(key, "must be a list of finite numbers")),
        };
        match self.fact(key) {
            Some(Fact::List(list)) => list.iter().map(float).collect(),
            None => Err(self.bad(key, "is missing")),
            Some(_) => Err(self.bad(key, "must be a list")),
        }
    }

    pub fn float(&self, key: Key) -> Result<f64, ModelError> {
        let found = self.optional_float(key)?;
        self.required(key, found)
    }

    pub fn optional_float(&self, key: Key) -> Result<Option<f64>, ModelError> {
        match self.fact(key) {
            None => Ok(None),
            Some(Fact::Float(v)) if v.is_finite() => Ok(Some(v)),
            Some(Fact::Integer(n)) => Ok(Some(n as f64)),
            Some(_) => Err(self.bad(key, "must be a finite number")),
        }
    }

    /// A number that must be there and above zero.
    pub fn positive(&self, key: Key) -> Result<f64, ModelError> {
        match self.float(key)? {
            value if value > 0.0 => Ok(value),
            _ => Err(self.bad(key, "must be positive")),
        }
    }

    /// A flag that is off if the file does not have it.
    pub fn flag(&self, key: Key) -> Result<bool, ModelError> {
        Ok(self.optional_flag(key)?.unwrap_or(false))
    }

    pub fn optional_flag(&self, key: Key) -> Result<Option<bool>, ModelError> {
        match self.fact(key) {
            None => Ok(None),
            Some(Fact::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.bad(key, "must be true or false")),
        }
    }

    pub fn optional_text(&self, key: Key) -> Result<Option<String>, ModelError> {
        match self.fact(key) {
            None => Ok(None),
            Some(Fact::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.bad(key, "must be a string")),
        }
    }
}
