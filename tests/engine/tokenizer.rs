//! Token ids against llama.cpp's own tokenizer (fixtures: `scripts/oracle/tokenizer.py`,
//! `scripts/oracle/pre_tokenizers.py`).

use crate::support::{corpus, fixture, ids, open, root, MODELS};
use candle_core::quantized::gguf_file;
use kvgate::internals::model::tokenizer::Tokenizer;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::path::{Path, PathBuf};

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
            assert_eq!(got[..32], ids(&want["first"]), "{file}: first ids of {name}");
            assert_eq!(got.len() as u64, want["count"].as_u64().unwrap(), "{file}: ids of {name}");
            assert_eq!(sha256(&got), want["sha256"].as_str().unwrap(), "{file}: ids of {name}");
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
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    assert_eq!(tokenizer.bos, Some(1));
    assert_eq!(tokenizer.encode("a b a b").unwrap(), [1, 2, 3, 2, 3]);
    // read as text, not as the special token
    assert_eq!(tokenizer.encode("a < s > b").unwrap(), [1, 2, 5, 4, 6, 3]);
    assert_eq!(tokenizer.encode("<s>").unwrap(), [1, 5, 4, 6]);
}

/// The small vocabularies of `scripts/oracle/pre_tokenizers.py`.
fn small(name: &str) -> PathBuf {
    root().join("tests/fixtures/pre-tokenizers").join(name)
}

/// One of them under other metadata.
fn written(case: &Value, to: &Path) {
    let vocabulary = format!("{}.gguf", case["vocabulary"].as_str().unwrap());
    let mut file = File::open(small(&vocabulary)).unwrap();
    let mut metadata = gguf_file::Content::read(&mut file).unwrap().metadata;
    for (key, value) in case["metadata"].as_object().unwrap() {
        let value = match value {
            Value::Bool(flag) => gguf_file::Value::Bool(*flag),
            text => gguf_file::Value::String(text.as_str().unwrap().into()),
        };
        metadata.insert(key.clone(), value);
    }
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    gguf_file::write(&mut File::create(to).unwrap(), &metadata, &[]).unwrap();
}

fn sha256(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn every_pre_tokenizer_gives_llama_cpps_ids() {
    let oracle = fixture("pre-tokenizers/cases.json");
    let text = std::fs::read_to_string(small("text.txt")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("case.gguf");
    let cases = oracle["cases"].as_object().unwrap();
    assert!(cases.len() > 75);
    let mut wrong = Vec::new();
    for (name, case) in cases {
        written(case, &path);
        let tokenizer = Tokenizer::from_vocabulary(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        let is_rendered = case["rendered"] == true;
        let ids =
            if is_rendered { tokenizer.encode_rendered(&text) } else { tokenizer.encode(&text) };
        let ids = ids.unwrap();
        if sha256(&ids) != case["sha256"].as_str().unwrap() {
            wrong.push(format!("{name}: {} ids instead of {}", ids.len(), case["count"]));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Compares with what `scripts/oracle/pre_tokenizers.py --large FOLDER` wrote into the folder, and prints the table of
/// `docs/models.md`.
#[test]
#[ignore = "a folder of the script in KVGATE_TOKENIZERS"]
fn large_texts_are_read_as_llama_cpp_reads_them() {
    let folder = PathBuf::from(std::env::var_os("KVGATE_TOKENIZERS").unwrap());
    let read = |name: &Value| std::fs::read(folder.join(name.as_str().unwrap())).unwrap();
    let cases: Value = serde_json::from_slice(&read(&"cases.json".into())).unwrap();
    let mut differing = 0;
    for case in cases.as_array().unwrap() {
        let text = String::from_utf8(read(&case["text"])).unwrap();
        let wanted = read(&case["ids"]);
        let wanted: Vec<_> =
            wanted.chunks_exact(4).map(|id| u32::from_le_bytes(id.try_into().unwrap())).collect();
        let path = folder.join(case["file"].as_str().unwrap());
        let title = case["title"].as_str().unwrap();
        let tokenizer = match Tokenizer::from_vocabulary(&path) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                println!("| {title} | {error} |");
                continue;
            }
        };
        let got = match case["rendered"] == true {
            true => tokenizer.encode_rendered(&text),
            false => tokenizer.encode(&text),
        };
        let got = got.unwrap();
        let at = got.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
        let is_same = got == wanted;
        println!("| {title} | {} | {} | {} |", text.len(), wanted.len(), u8::from(!is_same));
        if !is_same {
            differing += 1;
            let shown = |ids: &[u32]| {
                let from = at.saturating_sub(3).min(ids.len());
                let ids = &ids[from..(at + 8).min(ids.len())];
                ids.iter().map(|id| tokenizer.decode(&[*id]).unwrap()).collect::<Vec<_>>()
            };
            println!("  behind {at} ids:\n  {:?}\n  {:?}", shown(&got), shown(&wanted));
        }
    }
    assert_eq!(differing, 0, "cases that differ");
}
