//! The types of ggml's tensors. All of llama.cpp's types are listed, so that a file's layout can be checked even if
//! its weights cannot be read.

use candle_core::quantized::GgmlDType;

/// A type of a tensor's elements.
#[derive(Debug)]
pub(super) struct GgmlType {
    /// Its number in a file.
    pub code: u32,
    /// Its name as llama.cpp's tools write it.
    pub name: &'static str,
    /// The number of elements in a block, and their size in bytes.
    pub block: u64,
    pub bytes: u64,
    /// candle's type that reads it, if there is one.
    pub reader: Option<GgmlDType>,
}

const fn read(code: u32, name: &'static str, block: u64, bytes: u64, as_: GgmlDType) -> GgmlType {
    GgmlType { code, name, block, bytes, reader: Some(as_) }
}

const fn other(code: u32, name: &'static str, block: u64, bytes: u64) -> GgmlType {
    GgmlType { code, name, block, bytes, reader: None }
}

/// All types that llama.cpp reads.
pub(super) const TYPES: &[GgmlType] = &[
    read(0, "F32", 1, 4, GgmlDType::F32),
    read(1, "F16", 1, 2, GgmlDType::F16),
    read(30, "BF16", 1, 2, GgmlDType::BF16),
    read(2, "Q4_0", 32, 18, GgmlDType::Q4_0),
    read(3, "Q4_1", 32, 20, GgmlDType::Q4_1),
    read(6, "Q5_0", 32, 22, GgmlDType::Q5_0),
    read(7, "Q5_1", 32, 24, GgmlDType::Q5_1),
    read(8, "Q8_0", 32, 34, GgmlDType::Q8_0),
    read(10, "Q2_K", 256, 84, GgmlDType::Q2K),
    read(11, "Q3_K", 256, 110, GgmlDType::Q3K),
    read(12, "Q4_K", 256, 144, GgmlDType::Q4K),
    read(13, "Q5_K", 256, 176, GgmlDType::Q5K),
    read(14, "Q6_K", 256, 210, GgmlDType::Q6K),
    other(9, "Q8_1", 32, 36),
    other(15, "Q8_K", 256, 292),
    other(16, "IQ2_XXS", 256, 66),
    other(17, "IQ2_XS", 256, 74),
    other(18, "IQ3_XXS", 256, 98),
    other(19, "IQ1_S", 256, 50),
    other(20, "IQ4_NL", 32, 18),
    other(21, "IQ3_S", 256, 110),
    other(22, "IQ2_S", 256, 82),
    other(23, "IQ4_XS", 256, 136),
    other(24, "I8", 1, 1),
    other(25, "I16", 1, 2),
    other(26, "I32", 1, 4),
    other(27, "I64", 1, 8),
    other(28, "F64", 1, 8),
    other(29, "IQ1_M", 256, 56),
    other(34, "TQ1_0", 256, 54),
    other(35, "TQ2_0", 256, 66),
    other(39, "MXFP4", 32, 17),
    other(40, "NVFP4", 64, 36),
    other(41, "Q1_0", 128, 18),
    other(42, "Q2_0", 64, 18),
];

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
pub(super) fn by_code(code: u32) -> Result<&'static GgmlType, String> {
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
    let names: Vec<_> = TYPES.iter().filter(|t| t.reader.is_some()).map(|t| t.name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn the_table_is_llama_cpps_and_agrees_with_the_reader() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hostile/gguf.json");
        let oracle: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let oracle = oracle["types"].as_array().unwrap();
        assert_eq!(oracle.len(), TYPES.len());
        for one in oracle {
            let found = by_code(one["code"].as_u64().unwrap() as u32).unwrap();
            assert_eq!(found.name, one["name"]);
            assert_eq!((found.block, found.bytes), (number(one, "block"), number(one, "bytes")));
            if let Some(reader) = found.reader {
                let sizes = (reader.block_size() as u64, reader.type_size() as u64);
                assert_eq!(sizes, (found.block, found.bytes), "{}", found.name);
            }
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
