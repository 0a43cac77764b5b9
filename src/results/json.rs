//! Reads and writes `results.json`. A number that is missing or not finite is an error in both directions.

use crate::files::write_atomically;
use crate::results::measured_by::MeasuredBy;
use crate::results::statistics::{Part, Statistics};
use crate::results::{Measurement, Outcome, Results, FORMAT, OLDEST_FORMAT};
use crate::text;
use serde::Deserialize;
use serde_json::Value;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Why `results.json` could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The folder is missing and cannot be made, is not writable, or the disk is full.
    #[error("{path}: {source}; is the folder writable, and the disk not full? Another folder can be named")]
    Write {
        /// The file.
        path: String,
        /// The reason.
        source: io::Error,
    },
    /// The file is missing or cannot be read.
    #[error("{path}: {source}; `kvgate run` writes it")]
    Read {
        /// The file.
        path: String,
        /// The reason.
        source: io::Error,
    },
    /// The file ends too early.
    #[error("{path}: truncated at line {line}; run again, or copy the whole file")]
    Truncated {
        /// The file.
        path: String,
        /// The last line of the file.
        line: usize,
    },
    /// The file has the format of another version.
    #[error("{path}: format {found}, and this kvgate reads formats {OLDEST_FORMAT} to {FORMAT}; use the version that wrote it, or run again")]
    Format {
        /// The file.
        path: String,
        /// The format that the file names.
        found: String,
    },
    /// A number is `null`, which is how JSON writes NaN and infinity. A gate must not read over it.
    #[error(
        "{path}: {place} is not a number (NaN or infinite): the measurement cannot be trusted"
    )]
    NotANumber {
        /// The file.
        path: String,
        /// The number's place: `measurements[0].schemes[1].mean_kld`.
        place: String,
    },
    /// A value that no measurement gives.
    #[error("{path}: {place} {why}; no run writes that: measure again")]
    Impossible {
        /// The file.
        path: String,
        /// The value's place.
        place: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A field that is no part of results, or that holds something else. What it says would be dropped without a word.
    #[error("{path}: {place} is no field that this kvgate reads; use the version that wrote it, or run again")]
    Unknown {
        /// The file.
        path: String,
        /// The field's place.
        place: String,
    },
    /// The file is not what kvgate writes.
    #[error("{path}: {source}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
}

/// The name of the file in a folder of results.
pub const FILE: &str = "results.json";

/// Writes `results.json` into a folder, which is created if it is missing. Returns the file's path.
pub(crate) fn write(folder: &Path, results: &Results) -> Result<PathBuf, JsonError> {
    let path = folder.join(FILE);
    write_to(&path, results)?;
    Ok(path)
}

/// The text that the file would have.
pub(crate) fn text(results: &Results) -> Result<String, JsonError> {
    text_of(results, FILE)
}

/// The text that a file would have; `name` is for messages.
fn text_of(results: &Results, name: &str) -> Result<String, JsonError> {
    let value = checked(results, name)?;
    let text = serde_json::to_string_pretty(&value)
        .map_err(|source| JsonError::Malformed { path: name.into(), source })?;
    Ok(text::json(&text).into_owned())
}

/// Results as JSON, in which every number is finite.
fn checked(results: &Results, name: &str) -> Result<Value, JsonError> {
    let value = serde_json::to_value(results)
        .map_err(|source| JsonError::Malformed { path: name.into(), source })?;
    no_null(&value, name)?;
    Ok(value)
}

/// Writes results to a file of any name.
pub(crate) fn write_to(path: &Path, results: &Results) -> Result<(), JsonError> {
    let name = path.display().to_string();
    let text = text_of(results, &name)?;
    write_atomically(path, |w| {
        w.write_all(text.as_bytes())?;
        w.write_all(b"\n")
    })
    .map_err(|source| JsonError::Write { path: name, source })
}

/// Reads a file of results.
///
/// # Errors
/// The file cannot be read, has another format, or holds a number that is not finite.
pub fn read(path: &Path) -> Result<Results, JsonError> {
    let name = path.display().to_string();
    let read = || {
        let length = std::fs::metadata(path)?.len();
        if length > LARGEST {
            return Err(io::Error::other(format!("{length} bytes are more than any run writes")));
        }
        std::fs::read_to_string(path)
    };
    let text = read().map_err(|source| JsonError::Read { path: name.clone(), source })?;
    parse(&text, name)
}

/// Reads a file that a stranger may have written. Every text in it is shortened to a bound, and characters
/// that a terminal obeys are escaped.
///
/// # Errors
/// As for [`read`], and too many entries.
pub fn read_untrusted(path: &Path) -> Result<Results, JsonError> {
    let results = read(path)?;
    let name = path.display().to_string();
    let schemes: usize = results.measurements.iter().map(|measured| measured.schemes.len()).sum();
    let entries = schemes.max(results.cases.len()).max(results.measurements.len());
    if entries > MOST_ENTRIES {
        let source = io::Error::other(format!("{entries} entries are more than any run writes"));
        return Err(JsonError::Read { path: name, source });
    }
    let malformed = |source| JsonError::Malformed { path: name.clone(), source };
    let mut value = serde_json::to_value(results).map_err(malformed)?;
    defuse("", &mut value);
    serde_json::from_value(value).map_err(malformed)
}

/// The keys of texts that may have several lines.
const LINES: [&str; 3] = ["message", "error", "text"];

/// Bounds and escapes every text of a value. Names lose their line breaks as well.
fn defuse(key: &str, value: &mut Value) {
    match value {
        Value::String(text) if LINES.contains(&key) => *text = text::message(text),
        Value::String(text) => *text = text::message(text).replace('\n', " "),
        Value::Array(values) => values.iter_mut().for_each(|value| defuse(key, value)),
        Value::Object(fields) => fields.iter_mut().for_each(|(key, value)| defuse(key, value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// How many schemes or cases a stranger's file may have. They are looked up by their names, which takes time.
const MOST_ENTRIES: usize = 5_000;

/// A larger file is refused. A thousand schemes take a tenth of it.
const LARGEST: u64 = 64 << 20;

fn parse(text: &str, name: String) -> Result<Results, JsonError> {
    let malformed = |source: serde_json::Error| {
        let (path, line) = (name.clone(), source.line());
        if source.is_eof() {
            JsonError::Truncated { path, line }
        } else {
            JsonError::Malformed { path, source }
        }
    };
    let value: Value = serde_json::from_str(text).map_err(malformed)?;
    // checked first, as another format may have other fields
    let found = &value["format"];
    if !(OLDEST_FORMAT..=FORMAT).any(|format| *found == format) {
        return Err(JsonError::Format { path: name.clone(), found: found.to_string() });
    }
    no_null(&value, &name)?;
    if let Some(place) = text_in(&value, "", &looks_like_another) {
        return Err(JsonError::Impossible {
            path: name,
            place,
            why: "has a character that nobody sees",
        });
    }
    // parsed from the text and not from the value, so that errors name line and column
    let results: Results = serde_json::from_str(text).map_err(|source| {
        let damaged = damaged_outcome(&value);
        damaged.map_or_else(
            || malformed(source),
            |(place, why)| JsonError::Impossible { path: name.clone(), place, why },
        )
    })?;
    for (i, measurement) in results.measurements.iter().enumerate() {
        if let Err((place, why)) = possible(measurement, &value["measurements"][i]) {
            let place = format!("measurements[{i}].{place}");
            return Err(JsonError::Impossible { path: name, place, why });
        }
    }
    let known = serde_json::to_value(&results).map_err(malformed)?;
    match unknown_in(&value, &known, "") {
        Some(place) => Err(JsonError::Unknown { path: name, place }),
        // whatever is made of it is written in the newest format
        None => Ok(Results { format: FORMAT, ..results }),
    }
}

/// The place of what makes a scheme's outcome unreadable, and what is wrong with it. serde only says that it is neither of
/// the two outcomes.
fn damaged_outcome(value: &Value) -> Option<(String, &'static str)> {
    let measurements = value["measurements"].as_array()?.iter().enumerate();
    let mut schemes = measurements.flat_map(|(i, measurement)| {
        let schemes = measurement["schemes"].as_array().into_iter().flatten().enumerate();
        schemes.map(move |(j, scheme)| (format!("measurements[{i}].schemes[{j}]"), scheme))
    });
    let (place, scheme) = schemes.find(|(_, scheme)| Outcome::deserialize(*scheme).is_err())?;
    let results = fields_of_results();
    if !results.iter().any(|key| scheme.get(key).is_some()) {
        let why = match scheme.get("error") {
            None => "has neither results nor an `error`",
            Some(_) => "has an `error` that is no text",
        };
        return Some((place, why));
    }
    let missing = results.iter().find(|key| scheme.get(key).is_none());
    Some(match missing {
        Some(key) => (format!("{place}.{key}"), "is missing among its results"),
        None => wrong_result(scheme, &place),
    })
}

/// The place of a result of a scheme that is of another kind than it must be.
fn wrong_result(scheme: &Value, place: &str) -> (String, &'static str) {
    let is_chunk = |part: &Value| Part::deserialize(part).is_ok();
    let mut results = fields_of_results().into_iter().filter(|key| key != PARTS);
    if let Some(key) = results.find(|key| !scheme[key].is_number()) {
        return (format!("{place}.{key}"), "is no number");
    }
    match scheme[PARTS].as_array() {
        None => (format!("{place}.{PARTS}"), "is no list of chunks"),
        Some(parts) => match parts.iter().position(|part| !is_chunk(part)) {
            Some(at) => (format!("{place}.{PARTS}[{at}]"), "is not what is kept of a chunk"),
            None => (place.into(), "has a result of another kind"),
        },
    }
}

/// The key of what is kept of each chunk.
const PARTS: &str = "parts";

/// The fields that are left out of a file where they say nothing. Other programs may write them all the same.
const LEFT_OUT: [&str; 12] = [
    "changes",
    "findings",
    "histogram",
    "limits",
    "needs",
    "not_needed",
    "notes",
    "reading",
    "retrieval",
    "retrieved",
    "unknown",
    "wrong_ties",
];

/// The place of the first field in a value that the results which were read from it do not have. serde refuses no
/// unknown field beside one that it flattens, and takes a flattened part that it cannot read for a missing one.
fn unknown_in(value: &Value, known: &Value, place: &str) -> Option<String> {
    let says_nothing = |key: &str, value: &Value| {
        LEFT_OUT.contains(&key) && (*value == 0 || value.as_array().is_some_and(Vec::is_empty))
    };
    match value {
        Value::Array(values) => {
            let mut all = values.iter().enumerate();
            all.find_map(|(i, value)| unknown_in(value, &known[i], &format!("{place}[{i}]")))
        }
        Value::Object(fields) => fields.iter().find_map(|(key, value)| {
            let place = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
            match known.get(key) {
                Some(known) => unknown_in(value, known, &place),
                None => (!says_nothing(key, value)).then_some(place),
            }
        }),
        _ => None,
    }
}

/// Whether a measurement's values can come from a run: those that goldens take over as lines of text, and those that
/// several places of the file tell. `value` is the same measurement.
fn possible(measurement: &Measurement, value: &Value) -> Result<(), (String, &'static str)> {
    for part in ["subject", "conditions"] {
        if let Some(place) = text_in(&value[part], part, &is_unprintable) {
            return Err((place, "has a character that is not printed"));
        }
    }
    let results = fields_of_results();
    for (i, scheme) in value["schemes"].as_array().into_iter().flatten().enumerate() {
        // one of both would be dropped, and nobody knows which one is true
        if scheme.get("error").is_some() && results.iter().any(|key| scheme.get(key).is_some()) {
            return Err((
                format!("schemes[{i}]"),
                "must have either `error` or its results, not both",
            ));
        }
    }
    let (conditions, run) = (&measurement.conditions, &measurement.run);
    let is_own = MeasuredBy::of(&conditions.engine) == MeasuredBy::Kvgate;
    if is_own && !DEVICES.contains(&&conditions.device[..]) {
        return Err(("conditions.device".into(), "is none of `cpu`, `cuda` and `metal`"));
    }
    for (name, word) in [("device", &conditions.device), ("weights", &conditions.weights)] {
        if word.is_empty() || word.trim() != word {
            return Err((format!("conditions.{name}"), "is no word"));
        }
    }
    if !(0.0..=LONGEST).contains(&run.seconds) {
        return Err(("run.seconds".into(), "is no time that a run takes"));
    }
    let of_device = KINDS_OF_WEIGHTS.iter().find(|(device, _)| *device == conditions.device);
    if is_own && of_device.is_some_and(|(_, weights)| *weights != conditions.weights) {
        return Err(("conditions.weights".into(), "is not what products on this device read"));
    }
    if is_own && conditions.device == "cpu" && run.card.is_some() {
        return Err(("run.card".into(), "is there, although `conditions.device` is `cpu`"));
    }
    if run.card.as_ref().is_some_and(|card| card.peak_bytes > Some(card.memory_bytes)) {
        return Err(("run.card.peak_bytes".into(), "is more than the card's memory"));
    }
    Ok(())
}

/// The number type of weights in products, on each kind of device.
const KINDS_OF_WEIGHTS: [(&str, &str); 2] = [("cpu", "f32"), ("cuda", "f16")];

/// The kinds of devices that kvgate measures on. Other engines have others.
const DEVICES: [&str; 3] = ["cpu", "cuda", "metal"];

/// The fields that a scheme has if it was measured.
fn fields_of_results() -> Vec<String> {
    let statistics = serde_json::to_value(Statistics::default()).unwrap_or_default();
    let names = statistics.as_object().into_iter().flat_map(|fields| fields.keys().cloned());
    names.chain([PARTS.to_owned()]).collect()
}

/// No run takes longer, in seconds: a century.
pub(crate) const LONGEST: f64 = 3.2e9;

/// The place of the first text in a value that is not as it must be. `is_wrong` is asked with each text and its place.
fn text_in(value: &Value, place: &str, is_wrong: &dyn Fn(&str, &str) -> bool) -> Option<String> {
    match value {
        Value::String(text) => is_wrong(text, place).then(|| place.to_owned()),
        Value::Array(values) => {
            let mut all = values.iter().enumerate();
            all.find_map(|(i, value)| text_in(value, &format!("{place}[{i}]"), is_wrong))
        }
        Value::Object(fields) => fields.iter().find_map(|(key, value)| {
            let dot = if place.is_empty() { "" } else { "." };
            text_in(value, &format!("{place}{dot}{key}"), is_wrong)
        }),
        _ => None,
    }
}

/// Whether a text has a character that is not printed. What becomes a line of a golden has none.
fn is_unprintable(text: &str, _: &str) -> bool {
    text.contains(|c: char| c.is_control() || text::is_invisible(c))
}

/// Whether a text has a character by which it looks like another. What is quoted may have any, and is escaped wherever
/// it is shown.
fn looks_like_another(text: &str, place: &str) -> bool {
    let mut keys = place.split(['.', '[']);
    text.contains(text::is_invisible) && !keys.any(|key| QUOTATIONS.contains(&key))
}

/// The keys of what quotes something: a corpus, prompts, what a model wrote, a path, or an error.
const QUOTATIONS: [&str; 10] = [
    "category",
    "continuations",
    "error",
    "message",
    "notes",
    "origin",
    "path",
    "place",
    "texts",
    "worst",
];

/// The only keys that may be null: there may be no repository and no policy.
const OPTIONAL: [&str; 2] = ["head", "policy"];

fn no_null(value: &Value, path: &str) -> Result<(), JsonError> {
    let fields = value.as_object().into_iter().flatten();
    let found = fields
        .filter(|(key, _)| !OPTIONAL.contains(&key.as_str()))
        .find_map(|(key, value)| null_in(value, key.clone()));
    let Some(place) = found else { return Ok(()) };
    let path = path.to_owned();
    if NO_NUMBERS.iter().any(|key| place.ends_with(&format!(".{key}"))) {
        let why = "is null, and a field without a value is left out";
        return Err(JsonError::Impossible { path, place, why });
    }
    Err(JsonError::NotANumber { path, place })
}

/// The fields that are left out where there is nothing, and are no numbers, so that `null` stands for no NaN there.
const NO_NUMBERS: [&str; 10] = [
    "arithmetic",
    "card",
    "floor",
    "generated",
    "haystacks",
    "place",
    "prompts",
    "replay",
    "shape",
    "tokenizer_sha256",
];

/// The place of the first `null` in a value.
fn null_in(value: &Value, place: String) -> Option<String> {
    match value {
        Value::Null => Some(place),
        Value::Array(values) => {
            values.iter().enumerate().find_map(|(i, v)| null_in(v, format!("{place}[{i}]")))
        }
        Value::Object(fields) => {
            fields.iter().find_map(|(key, v)| null_in(v, format!("{place}.{key}")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fixture;

    #[test]
    fn reads_back_what_it_writes() {
        let folder = tempfile::tempdir().unwrap();
        let results = fixture::results();
        let path = write(&folder.path().join("new/folder"), &results).unwrap();
        let read = read(&path).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), serde_json::to_value(results).unwrap());
    }

    /// What is said of a card is left out where there is none, as in the files of earlier states of kvgate.
    #[test]
    fn the_card_and_the_arithmetic_may_be_missing() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = fixture::results();
        let text = |results: &Results| {
            let path = write(folder.path(), results).unwrap();
            let read = read(&path).unwrap();
            let run = read.measurements[0].run.clone();
            (run.card, run.arithmetic, std::fs::read_to_string(path).unwrap())
        };
        let (card, arithmetic, without) = text(&results);
        assert_eq!((card, arithmetic), (None, None));
        assert!(!without.contains("\"card\"") && !without.contains("\"arithmetic\""), "{without}");
        fixture::on_a_card(&mut results.measurements[0]);
        let (card, arithmetic, _) = text(&results);
        assert_eq!(card.unwrap().peak_bytes, Some(25 << 29));
        assert_eq!(arithmetic.as_deref(), Some("f16 weights, sums in f32"));
    }

    #[test]
    fn every_damage_has_its_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), &fixture::results()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let says = |text: &str, what: &str| {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        says(&text[..text.len() / 2], "truncated at line ");
        says("", "truncated at line 1");
        says(
            &text.replace("\"format\": 2", "\"format\": 3"),
            "format 3, and this kvgate reads formats 1 to 2",
        );
        says("{}", "format null");
        says("[]", "format null");
        says(
            &text.replace("\"mean_kld\": 0.0612", "\"mean_kld\": null"),
            "measurements[0].schemes[1].mean_kld is not a number",
        );
        says(&text.replace("\"mean_kld\": 0.0612", "\"mean_kld\": NaN"), "expected value at line ");
        says(&text.replace("\"engine\"", "\"motor\""), "motor");
        let null = "measurements[0].run.card is null, and a field without a value is left out";
        says(&text.replace("\"dtype\": \"f32\"", "\"dtype\": \"f32\", \"card\": null"), null);
        let floor = |value: &str| {
            text.replace("\"controls\"", &format!("\"floor\": {value}, \"controls\""))
        };
        says(&floor("null"), "measurements[0].floor is null, and a field without a value is left");
        let of_null = r#"{"mean_kld": null, "tokens_scored": 510, "batch": 171}"#;
        says(&floor(of_null), "measurements[0].floor.mean_kld is not a number");
        says(&floor(&of_null.replace("null", "\"0\"")), "invalid type: string \"0\", expected f64");
        says(&floor("{}"), "missing field `mean_kld`");
        let changed = |edit: &dyn Fn(&mut Measurement)| {
            let mut results = fixture::results();
            fixture::on_a_card(&mut results.measurements[0]);
            edit(&mut results.measurements[0]);
            text_of(&results, "results").unwrap()
        };
        let weights = changed(&|m| m.conditions.weights = String::new());
        says(&weights, "measurements[0].conditions.weights is no word");
        let device = changed(&|m| m.conditions.device = "cpu\n  weights f32".into());
        says(&device, "measurements[0].conditions.device has a character that is not printed");
        let device = changed(&|m| m.conditions.device = "gpu".into());
        says(&device, "measurements[0].conditions.device is none of `cpu`, `cuda` and `metal`");
        for mark in ['\u{200b}', '\u{200f}', '\u{202a}', '\u{2066}', '\u{feff}', '\u{2028}'] {
            let marked = format!("a{mark}b");
            let model = changed(&|m| m.model = marked.clone());
            says(&model, "measurements[0].model has a character that nobody sees");
            let needs = changed(&|m| m.schemes[1].needs = vec![marked.clone()]);
            says(&needs, "measurements[0].schemes[1].needs[0] has a character that nobody sees");
            let scheme = changed(&|m| m.schemes[1].scheme = marked.clone());
            says(&scheme, "measurements[0].schemes[1].scheme has a character that nobody sees");
            let weights = changed(&|m| m.subject.architecture = marked.clone());
            says(&weights, "measurements[0].subject.architecture has a character that");
        }
        let seconds = changed(&|m| m.run.seconds = -5.0);
        says(&seconds, "measurements[0].run.seconds is no time");
        let weights = changed(&|m| m.conditions.weights = "f32".into());
        says(&weights, "measurements[0].conditions.weights is not what products on this device");
        let device = changed(&|m| {
            m.conditions.device = "cpu".into();
            m.conditions.weights = "f32".into();
        });
        says(&device, "measurements[0].run.card is there, although");
        let peak = changed(&|m| m.run.card.as_mut().unwrap().peak_bytes = Some(u64::MAX));
        says(&peak, "measurements[0].run.card.peak_bytes is more than the card's memory");
        assert!(read(&folder.path().join("no.json"))
            .unwrap_err()
            .to_string()
            .contains("no.json: "));
    }

    /// Whatever is read is believed, so nothing of a file may be dropped on the way.
    #[test]
    fn what_would_be_dropped_is_refused_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let read_edited = |edit: &dyn Fn(&mut Value)| {
            let mut results = fixture::results();
            results.measurements[0].schemes[0].replay = Some(fixture::replay());
            let mut value = serde_json::to_value(results).unwrap();
            edit(&mut value);
            std::fs::write(&path, value.to_string()).unwrap();
            read(&path).map_err(|error| error.to_string())
        };
        let says = |edit: &dyn Fn(&mut Value), what: &str| {
            let error = read_edited(edit).unwrap_err();
            assert!(error.contains(what), "{error}");
        };
        fn scheme(value: &mut Value, i: usize) -> &mut Value {
            &mut value["measurements"][0]["schemes"][i]
        }
        let both = "measurements[0].schemes[1] must have either `error` or its results";
        says(&|v| scheme(v, 1)["error"] = "layer 3: K is NaN".into(), both);
        let without_a_mean = |v: &mut Value| {
            let scheme = scheme(v, 1).as_object_mut().unwrap();
            scheme.remove("mean_kld");
            scheme.insert("error".into(), "layer 3: K is NaN".into());
        };
        says(&without_a_mean, both);
        for place in [
            "measurements[0].extra",
            "measurements[0].subject.extra",
            "measurements[0].conditions.extra",
            "measurements[0].run.extra",
            "measurements[0].controls[1].extra",
            "measurements[0].schemes[1].extra",
            "measurements[0].schemes[1].bits_per_element.extra",
            "measurements[0].schemes[1].parts[0].extra",
            "measurements[0].schemes[2].extra",
            "measurements[0].schemes[0].replay.prompts[1].extra",
            "cases[2].extra",
            "cases[2].limits[0].extra",
            "policy.extra",
        ] {
            let pointer =
                format!("/{}", place.replace('[', "/").replace(']', "").replace('.', "/"));
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            says(
                &|v| v.pointer_mut(parent).unwrap()[key] = 1.into(),
                &format!("{place} is no field"),
            );
        }
        // a flattened part that cannot be read is not a missing one
        let bits = "measurements[0].schemes[1].bits_per_element is no field";
        says(&|v| scheme(v, 1)["bits_per_element"]["k"] = "4.5".into(), bits);
        let empty = |v: &mut Value| {
            scheme(v, 1)["needs"] = Value::Array(Vec::new());
            v["measurements"][0]["conditions"]["reading"] = Value::Array(Vec::new());
        };
        read_edited(&empty).unwrap();
    }

    /// A scheme has results or an error, and a reader of JSON says only that it found neither.
    #[test]
    fn a_damaged_outcome_is_told_by_its_place() {
        let says = |edit: &dyn Fn(&mut serde_json::Map<String, Value>), what: &str| {
            let mut value = serde_json::to_value(fixture::results()).unwrap();
            edit(value["measurements"][0]["schemes"][1].as_object_mut().unwrap());
            let error = parse(&value.to_string(), FILE.into()).unwrap_err().to_string();
            let expected =
                format!("{FILE}: measurements[0].schemes[1]{what}; no run writes that: ");
            assert!(error.starts_with(&expected), "{error}");
        };
        let none = |scheme: &mut serde_json::Map<String, Value>| {
            let results = fields_of_results();
            scheme.retain(|key, _| !results.contains(key));
        };
        says(&none, " has neither results nor an `error`");
        let no_text = |scheme: &mut serde_json::Map<String, Value>| {
            none(scheme);
            scheme.insert("error".into(), 5.into());
        };
        says(&no_text, " has an `error` that is no text");
        says(&|scheme| drop(scheme.remove("p99_kld")), ".p99_kld is missing among its results");
        says(&|scheme| drop(scheme.remove("parts")), ".parts is missing among its results");
        says(&|scheme| scheme["ppl"] = "22".into(), ".ppl is no number");
        says(&|scheme| scheme["parts"] = 1.into(), ".parts is no list of chunks");
        says(
            &|scheme| scheme["parts"][0]["kld"] = "0".into(),
            ".parts[0] is not what is kept of a chunk",
        );
        says(&|scheme| scheme["tokens_scored"] = (-1).into(), " has a result of another kind");
    }

    #[test]
    fn other_engines_have_other_devices_and_quotations_have_any_character() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = fixture::results();
        let measurement = &mut results.measurements[0];
        measurement.conditions.engine = "llama.cpp b11434".into();
        measurement.conditions.device = "vulkan".into();
        let mut text = fixture::generated();
        // two emojis of one person each, joined
        text.continuations[0].text = "\u{1f469}\u{200d}\u{1f680}".into();
        let mut replay = fixture::replay();
        replay.texts[0].baseline = "\u{200f}a".into();
        replay.texts[0].scheme = "b\u{200b}".into();
        measurement.schemes[0].replay = Some(replay);
        measurement.generated = Some(text);
        read(&write(folder.path(), &results).unwrap()).unwrap();
    }

    #[test]
    fn a_stranger_commands_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = fixture::results();
        results.cases[2].message = format!("\u{1b}[2J\u{202e}{}", "x".repeat(10_000_000));
        results.measurements[0].run.notes = vec!["a\u{7}b\n::c".into()];
        let path = write(folder.path(), &results).unwrap();
        let read = read_untrusted(&path).unwrap();
        assert!(read.cases[2].message.starts_with(r"\u{1b}[2J\u{202e}xxx"));
        assert!(read.cases[2].message.chars().count() < 4_020);
        assert_eq!(read.measurements[0].run.notes, [r"a\u{7}b ::c"]);
        results.cases = vec![results.cases[0].clone(); MOST_ENTRIES + 1];
        write(folder.path(), &results).unwrap();
        let error = read_untrusted(&path).unwrap_err().to_string();
        assert!(error.contains("5001 entries are more than any run writes"), "{error}");
        let huge = std::fs::File::create(&path).unwrap();
        huge.set_len(LARGEST + 1).unwrap();
        let error = read_untrusted(&path).unwrap_err().to_string();
        assert!(error.contains("67108865 bytes are more than any run writes"), "{error}");
    }

    #[test]
    fn a_nan_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = fixture::results();
        let outcome = &mut results.measurements[0].schemes[0].outcome;
        let Outcome::Measured { statistics, .. } = outcome else { panic!() };
        statistics.p99_kld = f64::NAN;
        let error = write(folder.path(), &results).unwrap_err().to_string();
        assert!(error.contains("results.json: measurements[0].schemes[0].p99_kld is not a numb"));
        assert!(!folder.path().join("results.json").exists());
    }
}
