//! Token ids against llama.cpp's own tokenizer (fixture: `scripts/oracle/tokenizer.py`).

mod support;

use sha2::{Digest, Sha256};
use support::{corpus, fixture, ids, open, MODELS};

#[test]
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
