//! Accounts for every key of a checkpoint: which ones were read, and what happens to the others.
//!
//! A tensor that no layer reads is an error. An unread key is not always one, because files carry vendors' keys and
//! new releases bring new ones. If an unread key could have changed the numbers, it is an error. If it is known to be
//! harmless, it is passed over. All other unread keys are listed in a note.

use super::idle::{self, Idle, Standing};
use crate::model::config::{Config, Fact, Format};
use crate::model::tensors::{Origin, Tensors};
use crate::model::ModelError;
use candle_core::{Device, Tensor};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// A checkpoint that records which keys are looked up in it.
pub(super) struct Accounts<'a> {
    file: &'a dyn Tensors,
    asked: Mutex<BTreeSet<String>>,
}

/// Words in a key's name that suggest that the key changes the numbers.
const TELLING: [&str; 15] = [
    "rope",
    "rotary",
    "theta",
    "yarn",
    "scale",
    "scaling",
    "multiplier",
    "cap",
    "capping",
    "clamp",
    "norm",
    "window",
    "bias",
    "head",
    "expert",
];

/// A file with more unread keys than this is refused. No vendor adds so many.
const MOST: usize = 1000;

impl<'a> Accounts<'a> {
    pub fn new(file: &'a dyn Tensors) -> Self {
        Accounts { file, asked: Mutex::default() }
    }

    /// If the error says that a key is missing, adds the name of a key in the file that may be a misspelling of it.
    pub fn explained(&self, error: ModelError) -> ModelError {
        let ModelError::Metadata { path, key, message } = error else { return error };
        if message != "is missing" {
            return ModelError::Metadata { path, key, message };
        }
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |name: &String| asked.iter().any(|own| self.file.full_name(own) == *name);
        let entries = self.file.entries().into_iter().map(|(name, _)| name);
        let meant = entries.filter(|name| !read(name)).find(|name| alike(name, &key, 2));
        let message =
            meant.map_or(message, |name| format!("is missing, and `{name}` resembles it"));
        ModelError::Metadata { path, key, message }
    }

    /// Judges all keys that are still unread after the family has read what it needs. Returns notes for people.
    pub fn close(
        self,
        family: &'static [Idle],
        ignored: &[String],
    ) -> Result<Vec<String>, ModelError> {
        let asked = self.asked.into_inner().unwrap_or_else(PoisonError::into_inner);
        let read = agreeing(self.file, &asked)?;
        let entries = self.file.entries();
        let mut notes = Vec::new();
        let known = Known::new(self.file, family, &asked);
        for name in ignored {
            let is_read = read.contains(name) || known.is_read_elsewhere(name);
            may_be_ignored(self.file, name, &entries, is_read)?;
        }
        if !ignored.is_empty() {
            let names = ignored.join(", ");
            notes.push(format!("keys that the policy's `ignore_keys` lets pass unread: {names}"));
        }
        let left = entries.iter().filter(|(name, _)| !read.contains(name));
        let (mut strange, mut refused) = (Vec::new(), Vec::new());
        for (name, fact) in left.filter(|(name, _)| !ignored.contains(name)) {
            match known.verdict(name, fact.as_ref()) {
                Verdict::Idle => {}
                Verdict::Strange => strange.push(name.as_str()),
                Verdict::Refused(why) => refused.push((name.as_str(), why)),
            }
            if strange.len() + refused.len() > MOST {
                let message = format!("is one of more than {MOST} that nothing reads");
                return Err((self.file as &dyn Config).bad_name(name, message));
            }
        }
        if let Some((name, why)) = refused.first() {
            let names = refused.iter().map(|(name, _)| format!("\"{name}\""));
            let mend = format!("ignore_keys = [{}]", listed(names.collect()));
            let message =
                format!("{why}; if it may be passed over, the policy says so with `{mend}`");
            return Err((self.file as &dyn Config).bad_name(name, message));
        }
        if !strange.is_empty() {
            notes.push(format!("keys that nothing reads: {}", listed(strange)));
        }
        Ok(notes)
    }
}

/// The first names of a list, and how many more there are.
fn listed<S: AsRef<str>>(names: Vec<S>) -> String {
    const FIRST: usize = 20;
    let mut first: Vec<_> = names.iter().take(FIRST).map(|name| name.as_ref().to_owned()).collect();
    if names.len() > FIRST {
        first.push(format!("and {} more", names.len() - FIRST));
    }
    first.join(", ")
}

/// The full names of the keys that were read. If a file has a key in two places, both must have the same value.
fn agreeing(file: &dyn Tensors, asked: &BTreeSet<String>) -> Result<BTreeSet<String>, ModelError> {
    let mut read = BTreeSet::new();
    for key in asked {
        let places = file.places(key);
        if let [(name, fact), (other, another)] = &places[..] {
            let same = match (fact, another) {
                (Some(fact), Some(another)) => fact.same(another),
                (fact, another) => fact == another,
            };
            if !same {
                let say = |fact: &Option<Fact>| fact.as_ref().map_or("null".into(), shown);
                let message = format!("says {}, and `{other}` says {}", say(fact), say(another));
                return Err((file as &dyn Config).bad_name(name, message));
            }
        }
        read.extend(places.into_iter().map(|(name, _)| name));
    }
    Ok(read)
}

/// A key in `ignore_keys` must be in the file, and nothing may read it. Otherwise the policy would claim to ignore
/// something that it does not.
fn may_be_ignored(
    file: &dyn Tensors,
    name: &str,
    entries: &[(String, Option<Fact>)],
    is_read: bool,
) -> Result<(), ModelError> {
    if is_read {
        return Err((file as &dyn Config)
            .bad_name(name, "is read: the policy's `ignore_keys` cannot pass it over"));
    }
    if entries.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    let message = "is named by the policy's `ignore_keys`, but the file does not have it";
    Err((file as &dyn Config).bad_name(name, message))
}

/// What happens to a key that nothing read.
enum Verdict {
    Idle,
    Strange,
    Refused(String),
}

/// What is known about the keys of a checkpoint.
struct Known {
    format: Format,
    /// The prefix that full names of the text model's keys have.
    prefix: String,
    family: &'static [Idle],
    /// The keys that change the numbers, without the prefix.
    active: BTreeSet<String>,
}

impl Known {
    fn new(file: &dyn Tensors, family: &'static [Idle], asked: &BTreeSet<String>) -> Self {
        let format = file.format();
        let limited = idle::rows(format, family).filter(|row| row.standing.limits());
        let active = limited.map(|row| row.name(format).to_owned()).chain(asked.iter().cloned());
        let prefix = file.full_name("");
        Known { format, prefix, family, active: active.collect() }
    }

    /// The row about a key, given without the prefix. If `exact`, the row must name the whole key, else the beginning
    /// of it.
    fn row(&self, own: &str, exact: bool) -> Option<&'static Idle> {
        let mut rows = idle::rows(self.format, self.family);
        rows.find(|row| row.stands_for(self.format, own, exact))
    }

    /// Whether a key is read by a part of the program other than the family.
    fn is_read_elsewhere(&self, name: &str) -> bool {
        let own = name.strip_prefix(&self.prefix).unwrap_or(name);
        let row = self.row(own, true).or_else(|| self.row(own, false));
        row.is_some_and(|row| row.standing == Standing::Elsewhere)
    }

    /// What happens to an unread key. A key that is null is harmless, unless it looks like a misspelling of another.
    fn verdict(&self, name: &str, fact: Option<&Fact>) -> Verdict {
        let own = name.strip_prefix(&self.prefix).unwrap_or(name);
        let row = |exact: bool| self.row(own, exact);
        // an object of config.json that a row names is not about the text model, whatever its members are called
        let object = row(false).filter(|_| self.format == Format::Hf);
        if let Some(row) = row(true).or(object) {
            return passed(row, fact);
        }
        if let Some(meant) = self.resembled(name, own) {
            let meant = self.full(meant);
            return Verdict::Refused(format!("is read by nothing, and resembles `{meant}`"));
        }
        match (row(false), fact) {
            (Some(row), fact) => passed(row, fact),
            (None, None) => Verdict::Idle,
            (None, Some(_)) => self.by_name(own),
        }
    }

    /// Judges an unknown key by its name, with the names of the objects that it is in if nothing of them is read.
    fn by_name(&self, own: &str) -> Verdict {
        let object = own.split_once('.').filter(|_| self.format == Format::Hf);
        if let Some((object, _)) = object {
            let inside = format!("{object}.");
            if self.active.iter().any(|known| known.starts_with(&inside)) {
                let why = format!("is read by nothing, and stands in `{object}`, which is read");
                return Verdict::Refused(why);
            }
        }
        match own.split(|c: char| !c.is_alphanumeric()).find(|word| telling(word)) {
            None => Verdict::Strange,
            Some(word) => {
                let near = self.nearest(own);
                let near =
                    near.map_or(String::new(), |near| format!(" (nearest known key: `{near}`)"));
                Verdict::Refused(format!(
                    "is read by nothing, and its name speaks of `{word}`, which could change the \
                     numbers{near}"
                ))
            }
        }
    }

    /// The key that a name may be a misspelling of: one that changes the numbers, or one that is read elsewhere.
    fn resembled(&self, name: &str, own: &str) -> Option<&str> {
        // the key of an architecture may stand under another prefix
        let behind = own.split_once('.').filter(|_| self.format == Format::Gguf && name == own);
        let behind = behind.map(|(_, behind)| behind);
        let near = |known: &&String| {
            alike(own, known, 2) || behind.is_some_and(|behind| alike(behind, known, 2))
        };
        let elsewhere = idle::rows(self.format, self.family)
            .filter(|row| row.standing == Standing::Elsewhere)
            .map(|row| row.name(self.format));
        let active = self.active.iter().find(near).map(String::as_str);
        // names with a common beginning differ only in their last part, which must be long enough to tell them apart
        let most = |known: &str| if last_part_is_long(known) { 2 } else { 0 };
        active.or_else(|| elsewhere.into_iter().find(|known| alike(own, known, most(known))))
    }

    fn nearest(&self, own: &str) -> Option<String> {
        // a hostile name can be very long
        let start: String = own.chars().take(100).collect();
        let distance = |known: &&String| strsim::damerau_levenshtein(&start, known);
        self.active.iter().min_by_key(distance).map(|known| self.full(known))
    }

    fn full(&self, own: &str) -> String {
        if idle::has_prefix_of_its_own(self.format, own) {
            own.into()
        } else {
            format!("{}{own}", self.prefix)
        }
    }
}

/// Whether an unread key may have its value.
fn passed(row: &Idle, fact: Option<&Fact>) -> Verdict {
    match fact.filter(|fact| !row.standing.admits(fact)) {
        None => Verdict::Idle,
        Some(fact) => Verdict::Refused(format!(
            "is {}, which this version does not compute ({})",
            shown(fact),
            row.why
        )),
    }
}

/// Whether a word suggests that a key changes the numbers: `head` and `heads`, `softcap` and `softcapping`, but not
/// `header`.
fn telling(word: &str) -> bool {
    let word = word.to_ascii_lowercase();
    let stems = [Some(word.as_str()), word.strip_suffix('s'), word.strip_suffix("es")];
    let ends = |part: &&str| stems.iter().flatten().any(|stem| stem.ends_with(part));
    TELLING.iter().any(ends) || ["scal", "norm"].iter().any(|s| word.starts_with(s))
}

/// Shorter names are too similar to each other: they count as misspelled only if a single letter is missing or added.
const LONG: usize = 8;

fn last_part_is_long(name: &str) -> bool {
    let last = name.trim_end_matches(".*").rsplit('.').next().unwrap_or(name);
    last.chars().filter(|c| c.is_alphanumeric()).count() >= LONG
}

/// Whether one name may be a misspelling of the other: they differ only in separators and capitals, or by one missing
/// or added letter, or, if they are long, by at most `most` edits.
fn alike(name: &str, known: &str, most: usize) -> bool {
    const LONGEST: usize = 256;
    if name.len() > LONGEST {
        return false;
    }
    let letters = |name: &str| -> String {
        name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    };
    let (name, known) = (letters(name), letters(known));
    if name.len().abs_diff(known.len()) > most.max(1) {
        return false;
    }
    let distance = strsim::damerau_levenshtein(&name, &known);
    let letter = distance == 1 && name.len() != known.len();
    distance == 0 || letter || (known.len() >= LONG && distance <= most)
}

/// A value, as messages show it.
pub(super) fn shown(fact: &Fact) -> String {
    match fact {
        Fact::Bool(flag) => flag.to_string(),
        Fact::Integer(n) => n.to_string(),
        Fact::Float(x) => x.to_string(),
        Fact::Text(text) => format!("`{}`", text.chars().take(40).collect::<String>()),
        Fact::List(list) => format!("a list of {}", list.len()),
        Fact::Other => "an object".into(),
    }
}

impl Config for Accounts<'_> {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn format(&self) -> Format {
        self.file.format()
    }

    fn architecture(&self) -> &str {
        self.file.architecture()
    }

    fn lookup(&self, key: &str) -> Option<Fact> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(key.into());
        self.file.lookup(key)
    }

    fn full_name(&self, key: &str) -> String {
        self.file.full_name(key)
    }

    fn entries(&self) -> Vec<(String, Option<Fact>)> {
        self.file.entries()
    }

    fn places(&self, key: &str) -> Vec<(String, Option<Fact>)> {
        self.file.places(key)
    }
}

impl Tensors for Accounts<'_> {
    fn origin(&self, name: &str) -> Origin {
        self.file.origin(name)
    }

    fn shape(&self, own: &str) -> Option<Vec<usize>> {
        self.file.shape(own)
    }

    fn names(&self) -> Vec<String> {
        self.file.names()
    }

    fn read(&self, own: &str, at: &Device) -> Result<Tensor, ModelError> {
        self.file.read(own, at)
    }

    fn companions(&self, own: &str) -> Vec<String> {
        self.file.companions(own)
    }

    fn rows(&self, own: &str, ids: &[u32]) -> Result<Tensor, ModelError> {
        self.file.rows(own, ids)
    }
}
