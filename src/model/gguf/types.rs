//! The types of ggml's tensors by their numbers in files.

use crate::compute::blocks::{BlockType, TYPES};

/// Types that llama.cpp once had and no longer reads.
const REMOVED: &[(u32, &str)] = &[
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
];

/// A type by its number in a file, or what is wrong with the number.
pub(super) fn by_code(code: u32) -> Result<&'static BlockType, String> {
    if let Some(found) = TYPES.iter().find(|known| known.code == code) {
        return Ok(found);
    }
    let removed = REMOVED.iter().find(|(removed, _)| *removed == code);
    Err(removed.map_or_else(
        || format!("has type {code}, which is none of ggml's"),
        |(_, name)| format!("is {name}, which llama.cpp itself no longer reads: convert it again"),
    ))
}

/// The names of the types that are read.
pub(super) fn known() -> String {
    let names: Vec<_> = TYPES.iter().filter(|t| t.is_read()).map(|t| t.name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn the_table_is_llama_cpps() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hostile/gguf.json");
        let oracle: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let oracle = oracle["types"].as_array().unwrap();
        assert_eq!(oracle.len(), TYPES.len());
        for one in oracle {
            let found = by_code(one["code"].as_u64().unwrap() as u32).unwrap();
            assert_eq!(found.name, one["name"]);
            let sizes = (found.elements as u64, found.bytes as u64);
            assert_eq!(sizes, (number(one, "block"), number(one, "bytes")), "{}", found.name);
        }
    }

    fn number(value: &Value, member: &str) -> u64 {
        value[member].as_u64().unwrap()
    }

    #[test]
    fn numbers_of_no_type_are_told_from_removed_ones() {
        assert!(by_code(31).unwrap_err().contains("Q4_0_4_4"));
        assert!(by_code(250).unwrap_err().contains("type 250"));
    }
}
