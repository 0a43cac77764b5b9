//! Token ids against llama.cpp's own tokenizer (fixture: `scripts/oracle/tokenizer.py`).

use crate::support::{corpus, fixture, ids, open, MODELS};
use sha2::{Digest, Sha256};

#[test]
#[ignore = "real weights: scripts/fetch-models"]
fn token_ids_are_llama_cpps_on_whole_corpora_and_on_tricky_strings() {
    let oracle = fixture("tokens.json");
    for file in MODELS {
        let tokenizer = open(file).tokenizer;
        let model = &oracle["models"][file];
        assert_eq!(tokenizer.bos.map(u64::from), model["bos_added"].as_u64(), "{file}: BOS");
        let corpora = model["corpora"].as_object().unwrap();
        assert!(corpora.len() >= 7, "{file}: the oracle covers every corpus");
        for (name, want) in corpora {
            let text = std::fs::read_to_string(corpus(name)).unwrap();
            let got = tokenizer.encode(text.strip_suffix('\n').unwrap_or(&text)).unwrap();
            let bytes: Vec<u8> = got.iter().flat_map(|id| id.to_le_bytes()).collect();
            assert_eq!(got[..32], ids(&want["first"]), "{file}: first ids of {name}");
            assert_eq!(got.len() as u64, want["count"].as_u64().unwrap(), "{file}: ids of {name}");
            let sha256: String =
                Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(sha256, want["sha256"].as_str().unwrap(), "{file}: ids of {name}");
        }
        for case in model["strings"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), ids(&case["ids"]), "{file}: {text:?}");
        }
    }
}

/// A `tokenizer.json` with all that must not change token ids: truncation, padding, a special token in
/// the text; and a template that adds a BOS.
const TOKENIZER_JSON: &str = r#"{
  "version": "1.0",
  "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
  "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
              "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
  "added_tokens": [{"id": 1, "content": "<s>", "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true}],
  "normalizer": null,
  "pre_tokenizer": {"type": "Whitespace"},
  "post_processor": {"type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
  "decoder": null,
  "model": {"type": "WordLevel", "unk_token": "<unk>",
            "vocab": {"<unk>": 0, "<s>": 1, "a": 2, "b": 3, "s": 4, "<": 5, ">": 6}}
}"#;

#[test]
#[ignore = "real weights: scripts/fetch-models"]
fn a_tokenizer_file_gives_plain_text_and_its_bos() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, TOKENIZER_JSON).unwrap();
    let tokenizer = kvgate::internals::model::tokenizer::Tokenizer::from_file(&path).unwrap();
    assert_eq!(tokenizer.bos, Some(1));
    assert_eq!(tokenizer.encode("a b a b").unwrap(), [1, 2, 3, 2, 3]);
    // read as text, not as the special token
    assert_eq!(tokenizer.encode("a < s > b").unwrap(), [1, 2, 5, 4, 6, 3]);
    assert_eq!(tokenizer.encode("<s>").unwrap(), [1, 5, 4, 6]);
}
