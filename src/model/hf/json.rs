//! Reads a checkpoint's JSON strictly, with errors that say line, column and remedy.

use crate::files::foreign;
use crate::model::ModelError;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;
use std::path::Path;

/// Reads an object.
///
/// # Errors
/// If the text is no JSON or no object, or has a key twice.
pub(in crate::model) fn object(path: &Path, bytes: &[u8]) -> Result<Value, ModelError> {
    if let Some(message) = foreign::complaint(bytes) {
        return Err(ModelError::malformed(path, message));
    }
    let at = |line, column, message| ModelError::Json { path: path.into(), line, column, message };
    if let Some(message) = encoding(bytes) {
        return Err(at(1, 1, message.into()));
    }
    match serde_json::from_slice(bytes) {
        Ok(Strict(value @ Value::Object(_))) => Ok(value),
        Ok(Strict(other)) => {
            Err(at(1, 1, format!("it must be an object in braces, and is {}", kind(&other))))
        }
        Err(error) => Err(at(error.line(), error.column(), explained(bytes, &error))),
    }
}

/// What is wrong with the encoding of a text, as its first bytes show.
fn encoding(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xef, 0xbb, 0xbf, ..] => Some(
            "it begins with a byte-order mark, which JSON must not: save it as UTF-8 without BOM",
        ),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            Some("it is UTF-16, and JSON is UTF-8: save it as UTF-8 without BOM")
        }
        _ => None,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// What the parser says, and how to mend it.
fn explained(bytes: &[u8], error: &serde_json::Error) -> String {
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = error.to_string();
    let message = text.strip_suffix(&place).unwrap_or(&text);
    if error.is_eof() {
        let mend = "it was cut off when it was fetched or written, so fetch it again";
        return format!("{message}: {mend}");
    }
    match word_at(bytes, error.line(), error.column()).and_then(mend) {
        Some(mend) => format!("{message}: {mend}"),
        None if message == "trailing comma" => format!("{message}: remove it"),
        None => message.into(),
    }
}

/// The text at which the parser stopped. At a minus sign it stops one byte later.
fn word_at(bytes: &[u8], line: usize, column: usize) -> Option<&[u8]> {
    let line = bytes.split(|&byte| byte == b'\n').nth(line.checked_sub(1)?)?;
    let at = column.checked_sub(1)?;
    match at.checked_sub(1).and_then(|before| line.get(before..)) {
        Some(signed) if signed.starts_with(b"-I") => Some(signed),
        _ => line.get(at..),
    }
}

fn mend(word: &[u8]) -> Option<String> {
    const WORDS: [&str; 6] = ["NaN", "Infinity", "-Infinity", "True", "False", "None"];
    if let Some(word) = WORDS.iter().find(|known| word.starts_with(known.as_bytes())) {
        return Some(format!(
            "`{word}` is Python's and no JSON: write a number, `true`, `false` or `null`"
        ));
    }
    match word.first()? {
        b'/' | b'#' => Some("JSON has no comments: remove it".into()),
        b'\'' => Some("JSON has strings in double quotes only".into()),
        _ => None,
    }
}

/// A value whose objects have no key twice. Readers differ in which of two values they take.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Bool(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        let number = Number::from_f64(number);
        number.map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(key) = object.next_key::<String>()? {
            if members.contains_key(&key) {
                return Err(A::Error::custom(format!("key `{key}` stands twice: remove one")));
            }
            let Strict(value) = object.next_value()?;
            members.insert(key, value);
        }
        Ok(members.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_json_is_told_with_line_column_and_mend() {
        for (text, place, words) in [
            (&b"\xef\xbb\xbf{}"[..], (1, 1), &["byte-order mark", "without BOM"][..]),
            (b"\xff\xfe{\0}\0", (1, 1), &["UTF-16", "UTF-8"]),
            (b"{\n  \"a\": NaN\n}", (2, 8), &["`NaN`", "`null`"]),
            (b"{\n  \"a\": [1, Infinity]\n}", (2, 12), &["`Infinity`"]),
            (b"{\"a\": -Infinity}", (1, 8), &["`-Infinity`"]),
            (b"{\"a\": True}", (1, 7), &["`True`", "`true`"]),
            (b"{\n // what\n \"a\": 1}", (2, 2), &["comments"]),
            (b"{\"a\": 1, # what\n}", (1, 10), &["comments"]),
            (b"{\"a\": 1,\n}", (2, 1), &["trailing comma", "remove it"]),
            (b"{'a': 1}", (1, 2), &["double quotes"]),
            (b"{\"a\": {\"b\": 1", (1, 13), &["cut off", "fetch it again"]),
            (b"{\"a\": {\"b\": 1, \"c\": 2, \"b\": 1}}", (1, 26), &["`b` stands twice"]),
            (b"[1]", (1, 1), &["object", "a list"]),
            (b"3", (1, 1), &["object", "a number"]),
            (b"{\"a\": 1e999}", (1, 11), &["number out of range"]),
        ] {
            let error = object(Path::new("x/config.json"), text).unwrap_err().to_string();
            let (line, column) = place;
            assert!(error.contains(&format!("line {line}, column {column}")), "{error}");
            for word in words.iter().chain(&["x/config.json"]) {
                assert!(error.contains(word), "{error} lacks {word}");
            }
        }
    }

    #[test]
    fn what_is_an_object_is_read_as_it_is() {
        let text =
            r#"{"a": [1, -2, 0.5, true, null, "NaN"], "b": {"a": {}}, "c": 18446744073709551615}"#;
        let read = object(Path::new("config.json"), text.as_bytes()).unwrap();
        assert_eq!(read, serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn what_stands_in_the_place_of_a_file_is_named() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
        for (bytes, word) in [
            (&pointer[..], "git lfs pull"),
            (b"<!DOCTYPE html><html></html>", "web page"),
            (b"{\"error\": \"Repository not found\"}", "server's error"),
            (b"", "empty"),
        ] {
            let error = object(Path::new("config.json"), bytes).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn nesting_without_end_is_an_error() {
        let deep = "{\"a\":".repeat(100_000);
        let error = object(Path::new("config.json"), deep.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("recursion limit"), "{error}");
    }
}
