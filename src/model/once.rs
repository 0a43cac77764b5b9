//! JSON whose objects say everything once. serde_json keeps the last of two members of one name without a
//! word, and which of the two the writer meant is not for a reader to guess.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// Parses JSON.
///
/// # Errors
/// What is no JSON, and a member that stands twice in an object: each with line and column.
pub(super) fn parse(json: &[u8]) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = Once.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

struct Once;

impl<'de> DeserializeSeed<'de> for Once {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Value, E> {
        Ok(flag.into())
    }

    fn visit_u64<E: Error>(self, n: u64) -> Result<Value, E> {
        Ok(n.into())
    }

    fn visit_i64<E: Error>(self, n: i64) -> Result<Value, E> {
        Ok(n.into())
    }

    fn visit_f64<E: Error>(self, x: f64) -> Result<Value, E> {
        Ok(Number::from_f64(x).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(Once)? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = object.next_key::<String>()? {
            if members.contains_key(&name) {
                return Err(A::Error::custom(format!("the key `{name}` stands twice")));
            }
            members.insert(name, object.next_value_seed(Once)?);
        }
        Ok(members.into())
    }
}

#[cfg(test)]
mod tests {
    use super::parse;
    use serde_json::{json, Value};

    #[test]
    fn json_is_what_serde_json_makes_of_it() {
        let text = r#"{"a": [1, -2, 0.1, 1e400000, true, null, "é\n"], "b": {"a": {}}, "c": 18446744073709551615}"#;
        let text = text.replace("1e400000, ", "");
        let other: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(parse(text.as_bytes()).unwrap(), other);
        assert_eq!(parse(b"[0.1]").unwrap(), json!([0.1]));
        for wrong in ["", "{", "[1,]", "{} x", "NaN", "[1e400]"] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(parse(deep.as_bytes()).unwrap_err().to_string().contains("recursion limit"));
    }

    #[test]
    fn a_member_that_stands_twice_is_told_with_its_place() {
        let error = |text: &str| parse(text.as_bytes()).unwrap_err().to_string();
        let twice = error("{\"rope_theta\": 1,\n \"b\": 2,\n \"rope_theta\": 1}");
        assert!(twice.contains("the key `rope_theta` stands twice at line 3 column"), "{twice}");
        let nested = error("{\"a\": [{\"b\": 1, \"b\": 2}]}");
        assert!(nested.contains("`b` stands twice at line 1 column"), "{nested}");
        assert!(parse(b"{\"a\": {\"b\": 1}, \"c\": {\"b\": 2}}").is_ok());
    }
}
