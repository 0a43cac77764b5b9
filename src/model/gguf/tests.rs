use super::header::Header;
use super::*;
use serde_json::Value as Json;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hostile")
}

fn read(name: &str) -> Result<Header, String> {
    Header::read(&std::fs::read(fixtures().join("gguf").join(name)).unwrap())
}

/// What a complaint about each damaged file says: what is wrong, and where.
const REFUSED: &[(&str, &[&str])] = &[
    ("magic", &["`GGUX`", "`GGUF`"]),
    ("magic-backwards", &["big-endian", "gguf-convert-endian"]),
    ("big-endian", &["big-endian", "gguf-convert-endian"]),
    ("version-0", &["version 0"]),
    ("version-1", &["version 1", "convert the model again"]),
    ("version-4", &["version 4", "newer"]),
    ("key-twice", &["`llama.rope.freq_base` stands twice", "byte 102 ", "byte 252"]),
    ("key-twice-terminated", &["`llama.rope.freq_base` stands twice"]),
    ("key-empty", &["key 6 of 6", "empty"]),
    ("key-no-utf8", &["key 6 of 6", "UTF-8"]),
    ("key-nul", &["key 6 of 6", "NUL"]),
    ("tensor-twice", &["tensor `c.weight` stands twice"]),
    ("tensor-no-utf8", &["tensor 4 of 4", "UTF-8"]),
    ("tensor-nul", &["tensor 4 of 4", "NUL"]),
    ("alignment-0", &["general.alignment is 0", "power of two"]),
    ("alignment-24", &["general.alignment is 24", "power of two"]),
    ("alignment-u8", &["general.alignment must be a U32", "U8"]),
    ("alignment-u64", &["general.alignment must be a U32", "U64"]),
    ("alignment-i32", &["general.alignment must be a U32", "I32"]),
    ("alignment-text", &["general.alignment must be a U32", "String"]),
    ("alignment-larger", &["truncated"]),
    ("alignment-smaller", &["`c.weight`", "another file"]),
    ("overlap", &["`c.weight`", "byte 64", "`b.weight`", "32..100", "overlap"]),
    ("same-place", &["`d.weight`", "byte 128", "`c.weight`", "128..144", "overlap"]),
    ("swapped", &["`c.weight`", "byte 160", "must begin at 128"]),
    ("hole", &["`d.weight`", "byte 192", "must begin at 160", "no tensor"]),
    ("unaligned", &["`b.weight`", "byte 16", "must begin at 32", "alignment is 32"]),
    ("first-not-at-0", &["`a.weight`", "byte 32", "first"]),
    ("offset-overflows", &["`d.weight`", "must begin at 160"]),
    ("truncated", &["`d.weight`", "truncated"]),
    ("truncated-header", &["truncated"]),
    ("truncated-magic", &["truncated"]),
    ("dimensions-overflow", &["`d.weight`", "absurd"]),
    ("dimensions-wrap-to-nothing", &["`d.weight`", "absurd"]),
    ("dimensions-negative", &["`d.weight`", "absurd"]),
    ("dimensions-5", &["`d.weight`", "5 dimensions"]),
    ("rows-no-blocks", &["`b.weight`", "rows of 16", "blocks of 32", "Q8_0"]),
    ("type-99", &["`d.weight`", "type 99"]),
    ("type-removed", &["`b.weight`", "Q4_0_4_4", "convert it again"]),
    ("trailing", &["`d.weight`", "another file"]),
    ("trailing-32", &["`d.weight`", "another file"]),
    ("tensors-fewer", &["`c.weight`", "another file"]),
    ("tensors-more", &["tensor 5 of 5"]),
    ("tensors-absurd", &["tensor"]),
    ("keys-fewer", &["tensor"]),
    ("keys-more", &["tensor 1 of 4", "empty"]),
    ("keys-absurd", &["key"]),
    ("flag-2", &["`general.flag`", "it is 2"]),
    ("value-type-13", &["`general.new`", "type 13"]),
    ("text-absurd", &["`general.name`", "truncated"]),
    ("array-absurd", &["`general.list`", "1152921504606846976 values", "truncated"]),
    ("array-of-texts-absurd", &["`general.list`", "truncated"]),
    ("array-type-13", &["`general.list`", "type 13"]),
    ("arrays-nested-deeply", &["`general.list`", "nested"]),
];

/// Files that are read here and that llama.cpp's reader refuses: arrays in arrays, which GGUF's description
/// allows, and a last tensor without padding, which only llama.cpp's reading of all data at once needs.
const LENIENT: [&str; 2] = ["arrays-nested", "sound-unpadded"];

#[test]
fn a_damaged_file_is_refused_with_its_places_wherever_llama_cpp_refuses_it() {
    let oracle = std::fs::read(fixtures().join("gguf.json")).unwrap();
    let oracle: Json = serde_json::from_slice(&oracle).unwrap();
    let mut refused = 0;
    for (name, verdict) in oracle["files"].as_object().unwrap() {
        let expected = REFUSED.iter().find(|(of, _)| of == name);
        match (read(&format!("{name}.gguf")), expected) {
            (Ok(_), None) => {
                let accepted = verdict["llama_cpp"].as_bool().unwrap();
                assert!(accepted || LENIENT.contains(&&name[..]), "llama.cpp refuses {name}");
            }
            (Err(complaint), Some((_, words))) => {
                refused += 1;
                for word in *words {
                    assert!(complaint.contains(word), "{name}: {complaint} lacks {word}");
                }
            }
            (Err(complaint), None) => panic!("{name}: {complaint}"),
            (Ok(_), Some(_)) => panic!("{name} is read"),
        }
    }
    assert_eq!(refused, REFUSED.len());
}

#[test]
fn values_and_places_are_read_as_they_were_written() {
    for name in ["sound", "sound-v2", "sound-8", "sound-1", "sound-terminated", "sound-unpadded"] {
        let file = std::fs::read(fixtures().join(format!("gguf/{name}.gguf"))).unwrap();
        let header = Header::read(&file).unwrap();
        let text = |key: &str| header.metadata[key].to_string().unwrap().clone();
        assert_eq!(text("general.architecture"), "llama");
        assert_eq!(header.metadata["llama.block_count"].to_u32().unwrap(), 1);
        assert_eq!(header.metadata["llama.rope.freq_base"].to_f32().unwrap(), 10000.0);
        let tokens = header.metadata["tokenizer.ggml.tokens"].to_vec().unwrap();
        let tokens: Vec<_> = tokens.iter().map(|token| token.to_string().unwrap()).collect();
        assert_eq!(tokens, ["a", "b", "ab"]);
        if name == "sound-terminated" {
            assert_eq!(text("general.name"), "x");
        }
        // the script fills each tensor with its number
        for (number, tensor) in (1u8..).zip(["a.weight", "b.weight", "c.weight", "d.weight"]) {
            let bytes = &file[header.tensors[tensor].bytes.clone()];
            assert!(bytes.iter().all(|byte| *byte == number), "{name} {tensor}");
        }
        assert_eq!(header.tensors["b.weight"].shape, [2, 32]);
        assert_eq!(header.tensors["b.weight"].bytes.len(), 68);
    }
}

#[test]
fn a_text_that_is_no_utf8_is_known_by_its_key_and_place() {
    let header = read("token-no-utf8.gguf").unwrap();
    let [(key, at)] = &header.not_utf8[..] else { panic!("{:?}", header.not_utf8) };
    assert_eq!(key, "tokenizer.ggml.merges");
    let file = std::fs::read(fixtures().join("gguf/token-no-utf8.gguf")).unwrap();
    assert_eq!(file[*at..][..10], *b"\x02\0\0\0\0\0\0\0\xff\xfe");
    let error = opened("token-no-utf8.gguf").err().unwrap();
    assert!(error.contains("tokenizer.ggml.merges") && error.contains("UTF-8"), "{error}");
    // nobody reads the path of somebody's importance matrix
    opened("sound-foreign-text.gguf").unwrap();
}

fn opened(name: &str) -> Result<Gguf, String> {
    Gguf::open(&fixtures().join("gguf").join(name)).map_err(|error| error.to_string())
}

#[test]
fn a_type_that_is_not_read_is_named_with_those_that_are() {
    let error = opened("type-unread.gguf").err().unwrap();
    for words in ["type-unread.gguf", "tensor `b.weight` is Q8_K", "IQ4_XS", "BF16", "convert"] {
        assert!(error.contains(words), "{error} lacks {words}");
    }
    assert!(!error.contains("sound checkpoint"), "{error}");
}

#[test]
fn what_is_no_whole_model_in_known_blocks_is_refused() {
    for (name, words) in [
        ("part.gguf", &["one of 3 parts", "by its name a whole model"][..]),
        ("adapter.gguf", &["type `adapter`", "no model"]),
        ("blocks-3.gguf", &["general.quantization_version 3"]),
    ] {
        let error = opened(name).err().unwrap();
        for word in words {
            assert!(error.contains(word), "{error} lacks {word}");
        }
    }
}

#[test]
fn tensors_at_odd_addresses_are_read() {
    for name in ["sound.gguf", "sound-1.gguf"] {
        let file = opened(name).unwrap();
        let read = file.read("a.weight", &HOST).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(read, [f32::from_le_bytes([1; 4]); 4]);
        // blocks of an f16 scale and bytes
        let scale = half::f16::from_le_bytes([2; 2]).to_f32();
        let rows = file.rows("b.weight", &[1, 0]).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(rows, [[scale * 2.0; 32]; 2]);
        assert!(file.rows("b.weight", &[2]).is_err());
        assert!(file.rows("a.weight", &[0]).is_err());
    }
}

#[test]
fn a_vocabulary_of_a_quarter_million_is_read() {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend([0u64.to_le_bytes(), 1u64.to_le_bytes()].concat());
    file.extend(text("tokenizer.ggml.tokens"));
    file.extend([9u32.to_le_bytes(), 8u32.to_le_bytes()].concat());
    file.extend(250_000u64.to_le_bytes());
    (0..250_000).for_each(|token| file.extend(text(&format!("token{token}"))));
    let header = Header::read(&file).unwrap();
    assert_eq!(header.metadata["tokenizer.ggml.tokens"].to_vec().unwrap().len(), 250_000);
}
