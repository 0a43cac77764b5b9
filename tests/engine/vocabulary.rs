//! BOS, marks, and a tokenizer that a policy names beside a checkpoint's own (fixture:
//! `scripts/oracle/vocabulary.py`).

use crate::support;
use crate::support::program::{accepted, kvgate};
use crate::support::tiny::Repository;
use crate::support::{fixture, ids, root};
use candle_core::quantized::gguf_file::{self, Content, Value as Gguf};
use candle_core::Device;
use kvgate::internals::model::tokenizer::Tokenizer;
use kvgate::internals::model::Checkpoint;
use kvgate::internals::source::Source;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

fn base() -> PathBuf {
    root().join("tests/fixtures/checkpoints/llama")
}

fn base_json() -> Value {
    read_json(&base().join("tokenizer.json"))
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A GGUF file with other metadata.
fn rewritten(from: &Path, to: &Path, change: impl FnOnce(&mut BTreeMap<String, Gguf>)) {
    let mut file = File::open(from).unwrap();
    let content = Content::read(&mut file).unwrap();
    let tensors: Vec<_> = content
        .tensor_infos
        .keys()
        .map(|name| (name.clone(), content.tensor(&mut file, name, &Device::Cpu).unwrap()))
        .collect();
    let mut metadata: BTreeMap<_, _> = content.metadata.into_iter().collect();
    change(&mut metadata);
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut File::create(to).unwrap(), &metadata, &tensors).unwrap();
}

fn list<'a>(metadata: &'a mut BTreeMap<String, Gguf>, key: &str) -> &'a mut Vec<Gguf> {
    match metadata.get_mut(key) {
        Some(Gguf::Array(list)) => list,
        _ => panic!("{key} is no list"),
    }
}

/// The base with a case's metadata and tokens, as the script has it.
fn write_case(case: &Value, last: usize, path: &Path) {
    rewritten(&base().join("model.gguf"), path, |metadata| {
        if let Some(new) = case["tokens"].as_array() {
            let first = list(metadata, TOKENS).len() - last;
            for at in 0..last {
                let text =
                    new.get(at).map_or(format!("[UNUSED{at}]"), |t| t[0].as_str().unwrap().into());
                list(metadata, TOKENS)[first + at] = Gguf::String(text);
                if let Some(token) = new.get(at) {
                    list(metadata, TYPES)[first + at] =
                        Gguf::I32(token[1].as_i64().unwrap() as i32);
                }
            }
            let merges = list(metadata, MERGES);
            merges.truncate(merges.len() - last);
        }
        for (key, value) in case["metadata"].as_object().into_iter().flatten() {
            let value = match value {
                Value::Bool(flag) => Gguf::Bool(*flag),
                Value::String(text) => Gguf::String(text.clone()),
                number => Gguf::U32(number.as_u64().unwrap() as u32),
            };
            metadata.insert(key.clone(), value);
        }
    });
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().map(|id| id as u32)
}

fn open(source: &Source) -> Result<Checkpoint, String> {
    Checkpoint::open(source).map_err(|error| error.to_string())
}

/// What `open` refuses; checkpoints cannot be shown.
#[track_caller]
fn refused(source: &Source) -> String {
    match open(source) {
        Ok(_) => panic!("it is not refused"),
        Err(error) => error,
    }
}

fn with_tokenizer(path: PathBuf, tokenizer: &Path) -> Source {
    Source { tokenizer: Some(tokenizer.into()), ..Source::at(path) }
}

#[test]
fn gguf_files_are_read_as_llama_cpp_reads_them() {
    let oracle = fixture("vocabulary.json");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let last = oracle["last"].as_u64().unwrap() as usize;
    let cases = oracle["gguf"].as_object().unwrap();
    assert!(cases.len() >= 29);
    for (name, case) in cases {
        write_case(case, last, &path);
        let is_named = case["named"] == true;
        let mut source = Source::at(path.clone());
        source.tokenizer = is_named.then(|| base().join("tokenizer.json"));
        let checkpoint = open(&source).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(checkpoint.tokenizer.bos, id(&case["bos"]), "{name}: BOS");
        assert_eq!(checkpoint.end_tokens, ids(&case["ends"]), "{name}: ends");
        if is_named {
            continue;
        }
        let bos = usize::from(checkpoint.tokenizer.bos.is_some());
        for pair in case["plain"].as_array().unwrap() {
            let text = pair[0].as_str().unwrap();
            let got = checkpoint.tokenizer.encode(text).unwrap();
            assert_eq!(got[bos..], ids(&pair[1]), "{name}: {text:?} as text");
        }
        for pair in case["rendered"].as_array().unwrap() {
            let text = pair[0].as_str().unwrap();
            let got = checkpoint.tokenizer.encode_rendered(text).unwrap();
            assert_eq!(got, ids(&pair[1]), "{name}: {text:?} as a template's");
        }
    }
}

#[test]
fn marks_that_are_typed_as_text_are_said() {
    let oracle = fixture("vocabulary.json");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let notes = |tokens: Value| {
        write_case(&json!({ "tokens": tokens }), oracle["last"].as_u64().unwrap() as usize, &path);
        open(&Source::at(path.clone())).unwrap()
    };
    let checkpoint = notes(json!([["<|im_end|>", 1], ["<|im_start|>", 1]]));
    let said = checkpoint.notes.join("\n");
    assert!(said.contains("as control tokens, as llama.cpp does: 292 `<|im_end|>`"), "{said}");
    assert!(said.contains("as marks in what a chat template wrote, and as text"), "{said}");
    assert!(said.contains("elsewhere: 293 `<|im_start|>`"), "{said}");
    // llama.cpp would split the beginning of a turn; a template means the mark
    let rendered = checkpoint.tokenizer.encode_rendered("<|im_start|>a<|im_end|>").unwrap();
    assert_eq!((rendered[0], rendered[rendered.len() - 1], rendered.len()), (293, 292, 3));
    assert!(checkpoint.tokenizer.encode("<|im_start|>").unwrap().len() > 1, "plain text is text");
    let said = notes(json!([["<|im_end|>", 3], ["<|im_start|>", 3]])).notes.join("\n");
    assert!(!said.contains("marks"), "{said}");
}

/// The folder of the base with other small files.
fn folder_with(files: &[(&str, Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(base()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    for (name, value) in files {
        std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    }
    folder
}

#[test]
fn folders_have_the_bos_that_llama_cpps_converter_finds() {
    let oracle = fixture("vocabulary.json");
    let cases = oracle["folder"].as_array().unwrap();
    assert!(cases.len() >= 14);
    for case in cases {
        let mut tokenizer = base_json();
        if case["template"] == true {
            tokenizer["post_processor"] = oracle["template"].clone();
        }
        let files =
            [("tokenizer.json", tokenizer), ("tokenizer_config.json", case["config"].clone())];
        let folder = folder_with(&files);
        let checkpoint = open(&Source::at(folder.path().into())).unwrap();
        let wanted = (case["adds"] == true).then(|| id(&case["id"]).unwrap());
        assert_eq!(checkpoint.tokenizer.bos, wanted, "{case}");
        // 0.1.0 knew the template alone
        let before = (case["template"] == true).then_some(2);
        let word = wanted.map_or("bos none".into(), |id| format!("bos {id}"));
        let reading = if wanted == before { vec![] } else { vec![word] };
        assert_eq!(checkpoint.reading, reading, "{case}");
        let said = checkpoint.notes.join("\n");
        let note = match wanted {
            Some(2) => "BOS 2 <bos> before each chunk, by ",
            Some(_) => "BOS 1 <eos> before each chunk, by ",
            None => "no BOS, by ",
        };
        assert!(said.contains(note), "{case}: {said}");
    }
}

#[test]
fn gemma_4_has_a_bos_unless_the_policy_says_otherwise() {
    let path = root().join("tests/fixtures/checkpoints/gemma4-e2b");
    for path in [path.clone(), path.join("model.gguf")] {
        let mut source = Source::at(path);
        let checkpoint = open(&source).unwrap();
        assert_eq!(checkpoint.tokenizer.bos, Some(2));
        assert_eq!(checkpoint.reading, ["bos 2"]);
        assert!(checkpoint.notes.join("\n").contains("by llama.cpp's rule for Gemma 4"));
        source.bos = Some(false);
        let checkpoint = open(&source).unwrap();
        // the policy's word is a condition, also where the outcome is that of 0.1.0
        assert_eq!(
            (checkpoint.tokenizer.bos, &checkpoint.reading[..]),
            (None, &["bos none".into()][..])
        );
        let said = checkpoint.notes.join("\n");
        assert!(
            said.contains("no BOS, by `bos` in the policy") && said.contains("warning: a Gemma"),
            "{said}"
        );
    }
}

#[test]
fn a_checkpoints_word_counts_beside_a_named_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    rewritten(&base().join("model.gguf"), &path, |metadata| {
        metadata.insert("tokenizer.ggml.add_bos_token".into(), Gguf::Bool(true));
    });
    let named = folder.path().join("tokenizer.json");
    std::fs::copy(base().join("tokenizer.json"), &named).unwrap();
    let bos = |path: &Path| {
        let checkpoint = open(&with_tokenizer(path.into(), &named)).unwrap();
        (checkpoint.tokenizer.bos, checkpoint.notes.join("\n"))
    };
    let (token, said) = bos(&path);
    assert_eq!(token, Some(2));
    assert!(said.contains("by tokenizer.ggml.add_bos_token"), "{said}");
    // a checkpoint without a word, and one beside the tokenizer
    std::fs::write(
        folder.path().join("tokenizer_config.json"),
        json!({ "add_bos_token": true, "bos_token": "<eos>" }).to_string(),
    )
    .unwrap();
    let (token, said) = bos(&base().join("model.gguf"));
    assert_eq!(token, Some(1));
    assert!(said.contains("tokenizer_config.json beside the named tokenizer"), "{said}");
    assert_eq!(bos(&path).0, Some(2), "the checkpoint comes first");
}

#[test]
fn a_bos_that_is_no_token_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    rewritten(&base().join("model.gguf"), &path, |metadata| {
        metadata.insert("tokenizer.ggml.bos_token_id".into(), Gguf::U32(300));
    });
    let error = refused(&Source::at(path));
    assert!(
        error.contains("bos_token_id") && error.contains("token 300 of a vocabulary of 300"),
        "{error}"
    );
    let config = json!({ "add_bos_token": true, "bos_token": "<s>" });
    let folder = folder_with(&[("tokenizer_config.json", config)]);
    let error = refused(&Source::at(folder.path().into()));
    assert!(error.contains("`<s>`, which the tokenizer does not have"), "{error}");
}

const TEXT: &str = "The three others there: the thing in the end, then another.";

/// The base's tokenizer with a change.
fn changed(folder: &Path, change: impl FnOnce(&mut Value)) -> PathBuf {
    let mut tokenizer = base_json();
    change(&mut tokenizer);
    let path = folder.join("other.json");
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    path
}

fn swap(tokenizer: &mut Value, a: &str, b: &str) {
    let vocab = &mut tokenizer["model"]["vocab"];
    let (first, second) = (vocab[a].clone(), vocab[b].clone());
    vocab[a] = second;
    vocab[b] = first;
}

#[test]
fn another_models_tokenizer_is_refused_at_the_first_difference() {
    let folder = tempfile::tempdir().unwrap();
    for path in [base(), base().join("model.gguf")] {
        let encoded = |tokenizer: &Path| {
            open(&with_tokenizer(path.clone(), tokenizer)).map(|c| c.tokenizer.encode(TEXT))
        };
        let own = open(&Source::at(path.clone())).unwrap().tokenizer.encode(TEXT).unwrap();
        // the same vocabulary from another place
        let same = changed(folder.path(), |_| ());
        assert_eq!(encoded(&same).unwrap().unwrap(), own);
        // pieces under other ids
        let swapped = changed(folder.path(), |tokenizer| swap(tokenizer, "e", "Ġ"));
        let error = encoded(&swapped).unwrap().unwrap_err();
        for part in ["token ", "`e`", "`Ġ`", "other.json", "llama", "another model's"] {
            assert!(error.contains(part), "{error}");
        }
        // what the text does not use may differ
        let unused = changed(folder.path(), |tokenizer| swap(tokenizer, "Ā", "ā"));
        assert_eq!(encoded(&unused).unwrap().unwrap(), own);
        // the same pieces, merged in another order
        let merged = changed(folder.path(), |tokenizer| {
            tokenizer["model"]["merges"].as_array_mut().unwrap().reverse();
        });
        let error = encoded(&merged).unwrap().unwrap_err();
        for part in ["reads it otherwise", "behind", "instead of", "leave `tokenizer` out"] {
            assert!(error.contains(part), "{error}");
        }
        // special tokens, whether they are used or not
        let special = changed(folder.path(), |tokenizer| {
            tokenizer["added_tokens"][1]["content"] = "<end>".into();
            let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
            let id = vocab.remove("<eos>").unwrap();
            vocab.insert("<end>".into(), id);
        });
        let error = encoded(&special).unwrap_err();
        for part in ["token 1 is `<eos>`", "`<end>`", "another model's"] {
            assert!(error.contains(part), "{error}");
        }
        // a pad token of another name
        let renamed = changed(folder.path(), |tokenizer| {
            tokenizer["added_tokens"][0]["content"] = "<|finetune_pad|>".into();
            let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
            let id = vocab.remove("<pad>").unwrap();
            vocab.insert("<|finetune_pad|>".into(), id);
        });
        assert_eq!(encoded(&renamed).unwrap().unwrap(), own);
    }
}

#[test]
fn merges_tell_where_the_checkpoints_own_tokenizer_cannot_be_rebuilt() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    rewritten(&base().join("model.gguf"), &path, |metadata| {
        metadata.insert("tokenizer.ggml.pre".into(), Gguf::String("mine".into()));
    });
    let same = changed(folder.path(), |_| ());
    let checkpoint = open(&with_tokenizer(path.clone(), &same)).unwrap();
    let said = checkpoint.notes.join("\n");
    assert!(said.contains("pieces and merges, not how text is split"), "{said}");
    let merged = changed(folder.path(), |tokenizer| {
        tokenizer["model"]["merges"].as_array_mut().unwrap().swap(3, 4);
    });
    let error = refused(&with_tokenizer(path.clone(), &merged));
    assert!(error.contains("merge 3 is") && error.contains("m.gguf"), "{error}");
    let swapped = changed(folder.path(), |tokenizer| swap(tokenizer, "e", "Ġ"));
    let checkpoint = open(&with_tokenizer(path, &swapped)).unwrap();
    assert!(checkpoint.tokenizer.encode(TEXT).unwrap_err().contains("another model's"));
}

#[test]
fn older_files_of_a_folder_tell_as_well() {
    let fixture = root().join("tests/fixtures/sentencepiece/tokenizer.model");
    let vocab = base_json()["model"]["vocab"].clone();
    let named = base().join("tokenizer.json");
    let other = tempfile::tempdir().unwrap();
    let swapped = changed(other.path(), |tokenizer| swap(tokenizer, "e", "Ġ"));
    let folder = folder_with(&[("vocab.json", vocab)]);
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let read = |tokenizer: &Path| {
        open(&with_tokenizer(folder.path().into(), tokenizer)).map(|c| c.tokenizer.encode(TEXT))
    };
    assert!(read(&named).unwrap().is_ok());
    assert!(read(&swapped).unwrap().unwrap_err().contains("vocab.json"));
    std::fs::remove_file(folder.path().join("vocab.json")).unwrap();
    std::fs::copy(fixture, folder.path().join("tokenizer.model")).unwrap();
    let error = read(&named).unwrap_err();
    assert!(error.contains("tokenizer.model") && error.contains("another model's"), "{error}");
    // nothing to compare with: that is said
    std::fs::remove_file(folder.path().join("tokenizer.model")).unwrap();
    let checkpoint = open(&with_tokenizer(folder.path().into(), &named)).unwrap();
    assert!(checkpoint
        .notes
        .join("\n")
        .contains("no tokenizer.json of its own, and no other vocabulary"));
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    std::fs::write(folder.path().join("tokenizer.json"), pointer).unwrap();
    let checkpoint = open(&with_tokenizer(folder.path().into(), &named)).unwrap();
    let notes = checkpoint.notes.join("\n");
    assert!(notes.contains("own tokenizer.json cannot be used"), "{notes}");
}

#[test]
fn types_and_flags_of_another_kind_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let with = |key: &str, value: Gguf| {
        rewritten(&base().join("model.gguf"), &path, |metadata| {
            metadata.insert(key.into(), value);
        });
        refused(&Source::at(path.clone()))
    };
    let error = with(TYPES, Gguf::String("normal".into()));
    assert!(error.contains(TYPES) && error.contains("I32 or U32"), "{error}");
    let error = with(TYPES, Gguf::Array(vec![Gguf::F32(1.0); 300]));
    assert!(error.contains(TYPES) && error.contains("I32 or U32"), "{error}");
}

#[test]
fn a_folders_own_tokenizer_must_have_the_tokens_that_its_configuration_names() {
    let mut config = read_json(&base().join("config.json"));
    config["eos_token_id"] = json!([70, 71]);
    let folder = folder_with(&[("config.json", config)]);
    let error = refused(&Source::at(folder.path().into()));
    for part in
        ["`eos_token_id` of config.json is 70", "`eos_token` of tokenizer_config.json is `<eos>`"]
    {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model_is_refused_where_it_uses_them() {
    let folder = tempfile::tempdir().unwrap();
    let larger = changed(folder.path(), |tokenizer| {
        let token = json!({"id": 300, "content": "the", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": false});
        tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
    });
    let folder = folder_with(&[("tokenizer.json", read_json(&larger))]);
    let tokenizer = open(&Source::at(folder.path().into())).unwrap().tokenizer;
    assert!(tokenizer.encode("aba").is_ok());
    let error = tokenizer.encode(TEXT).unwrap_err();
    assert!(error.contains("token 300 (`the`), the model has 300"), "{error}");
}

/// Files that make the library panic, or worse; each with words of its error.
fn hostile() -> Vec<(Value, &'static str)> {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut tokenizer = base_json();
        change(&mut tokenizer);
        tokenizer
    };
    let template = |single: Value, declared: Value| {
        with(&|tokenizer| {
            tokenizer["post_processor"] = json!({ "type": "TemplateProcessing", "single": single,
                "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
                "special_tokens": declared });
        })
    };
    let special = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
    let a = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let b = json!({ "Sequence": { "id": "B", "type_id": 0 } });
    let declared = |id: u32| json!({ "<s>": { "id": "<s>", "ids": [id], "tokens": ["<bos>"] } });
    let nested = with(&|tokenizer| {
        let inner = template(json!([special, a]), json!({}))["post_processor"].clone();
        tokenizer["post_processor"] = json!({ "type": "Sequence", "processors": [inner] });
    });
    let laugh = json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "aaaaaaaaaa" });
    vec![
        (template(json!([special, a]), json!({})), "names `<s>`, which it does not declare"),
        (nested, "names `<s>`, which it does not declare"),
        (template(json!([special, b]), declared(2)), "has a sequence `B`"),
        (
            template(json!([special, a]), declared(7)),
            "writes `<bos>` as token 7, its vocabulary has it as 2",
        ),
        (with(&|t| t["model"]["dropout"] = json!(0.1)), "draws tokens by lot"),
        (
            with(&|t| {
                t["normalizer"] = json!({ "type": "Sequence", "normalizers": vec![&laugh; 12] })
            }),
            "a thousand times longer",
        ),
        (json!({}), "missing field `model`"),
        (json!({ "model": 3 }), "invalid type: integer `3`"),
        (with(&|t| t["model"]["vocab"] = json!({})), "cannot use this tokenizer"),
        (with(&|t| t["model"]["vocab"] = json!({ "a": 1u64 << 40 })), "cannot use this tokenizer"),
        (with(&|t| t["model"]["merges"] = json!(["never seen"])), "cannot use this tokenizer"),
        (
            with(&|t| t["model"]["continuing_subword_prefix"] = json!("üü")),
            "cannot use this tokenizer",
        ),
        (with(&|t| t["added_tokens"][0]["id"] = json!(1u64 << 40)), "cannot use this tokenizer"),
        (
            with(&|t| {
                t["pre_tokenizer"] = json!({ "type": "Split", "pattern": { "Regex": "(a" },
                "behavior": "Isolated", "invert": false })
            }),
            "cannot use this tokenizer",
        ),
        (
            json!({ "model": { "type": "WordLevel", "vocab": { "b": 0 }, "unk_token": "?" } }),
            "cannot use this tokenizer",
        ),
        (
            json!({ "model": { "type": "Unigram", "vocab": [], "unk_id": 3, "byte_fallback": false } }),
            "cannot use this tokenizer",
        ),
        (
            with(&|t| {
                t["truncation"] = json!({ "max_length": 1, "strategy": "LongestFirst", "stride": 9,
                "direction": "Right" })
            }),
            "",
        ),
    ]
}

#[test]
fn hostile_tokenizers_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    for (tokenizer, words) in hostile() {
        std::fs::write(&path, tokenizer.to_string()).unwrap();
        let read = Tokenizer::from_file(&path).map(|tokenizer| tokenizer.encode(TEXT));
        let shown = tokenizer["post_processor"].to_string();
        match read {
            Ok(_) => assert_eq!(words, "", "{shown} is accepted"),
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains(words) && error.contains("tokenizer.json"), "{error}");
                assert!(error.len() < 1000, "{} bytes", error.len());
            }
        }
    }
}

#[test]
fn a_pattern_without_an_end_is_told_in_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let slow = changed(folder.path(), |tokenizer| {
        let pattern = r"(?:(a|aa|b)+)+\1c|.";
        tokenizer["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false } ] });
    });
    let tokenizer = Tokenizer::from_file(&slow).unwrap();
    let began = std::time::Instant::now();
    let _ = tokenizer.encode(&"aab".repeat(40_000));
    assert!(began.elapsed().as_secs() < 120, "{:?}", began.elapsed());
}

/// A `tokenizer.json` of the little model's vocabulary.
fn of_tiny(repository: &Repository) -> Value {
    let mut file = File::open(repository.path("tiny.gguf")).unwrap();
    let mut metadata: BTreeMap<_, _> =
        Content::read(&mut file).unwrap().metadata.into_iter().collect();
    let texts = |list: &Vec<Gguf>| -> Vec<String> {
        list.iter().map(|text| text.to_string().unwrap().clone()).collect()
    };
    let vocab: serde_json::Map<_, _> =
        texts(list(&mut metadata, TOKENS)).into_iter().zip((0..).map(Value::from)).collect();
    let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": { "type": "BPE", "vocab": vocab, "merges": texts(list(&mut metadata, MERGES)) } })
}

#[test]
fn a_run_and_a_check_refuse_another_models_tokenizer() {
    let repository = accepted();
    let mut tokenizer = of_tiny(&repository);
    repository.edit(
        "thresholds.toml",
        "path = \"tiny.gguf\"",
        "path = \"tiny.gguf\"\ntokenizer = \"own.json\"",
    );
    repository.put("own.json", &tokenizer.to_string());
    let measured = || {
        let results = read_json(&repository.path("kvgate-results/results.json"));
        results["measurements"][0]["schemes"].clone()
    };
    let before = measured();
    assert!(before.as_array().is_some_and(|schemes| schemes.len() >= 3));
    // the right one gives the same numbers to the last digit
    kvgate(&repository, &["run", "::kld"]).exits(0).says("✗ (expected)");
    assert_eq!(measured(), before);
    kvgate(&repository, &["check"]).says("note     no BOS, by default");
    swap(&mut tokenizer, "e", "Ġ");
    repository.put("own.json", &tokenizer.to_string());
    for command in ["run", "check"] {
        kvgate(&repository, &[command])
            .exits(4)
            .says("corpus.txt")
            .says("own.json")
            .says("it is another model's");
    }
}

/// llama.cpp keeps the first place of a merge that stands twice, so that the same merges again change nothing.
#[test]
fn merges_that_stand_twice_have_their_first_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    rewritten(&base().join("model.gguf"), &path, |metadata| {
        let merges = list(metadata, MERGES);
        merges.extend(merges[..3].to_vec());
    });
    let ids = |path: PathBuf| open(&Source::at(path)).unwrap().tokenizer.encode(TEXT).unwrap();
    assert_eq!(ids(path), ids(base().join("model.gguf")));
}

/// Older writers say so that there is none.
#[test]
fn a_token_of_minus_one_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for none in [Gguf::I32(-1), Gguf::U32(u32::MAX)] {
        rewritten(&base().join("model.gguf"), &path, |metadata| {
            metadata.insert("tokenizer.ggml.bos_token_id".into(), none);
        });
        assert_eq!(open(&Source::at(path.clone())).unwrap().tokenizer.bos, None);
    }
}

/// The base's folder, whose last token is the added token `dog` of tokenizer.json, or no token, and files beside it.
fn folder_with_dog(own: Option<Value>, config: Value, older: Option<Value>) -> tempfile::TempDir {
    let mut tokenizer = base_json();
    let last = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let (piece, _) = last.iter().find(|(_, id)| **id == 299).unwrap();
    let piece = piece.clone();
    last.remove(&piece);
    let merges = tokenizer["model"]["merges"].as_array_mut().unwrap();
    merges.pop();
    tokenizer["added_tokens"].as_array_mut().unwrap().extend(own);
    let mut files = vec![("tokenizer.json", tokenizer), ("tokenizer_config.json", config)];
    files.extend(older.map(|older| ("added_tokens.json", older)));
    folder_with(&files)
}

fn dog(edit: impl FnOnce(&mut Value)) -> Value {
    let mut token = json!({ "content": "dog", "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": false });
    edit(&mut token);
    token
}

fn own_dog(edit: impl FnOnce(&mut Value)) -> Option<Value> {
    let mut token = dog(edit);
    token["id"] = json!(299);
    Some(token)
}

/// transformers reads these folders otherwise than by tokenizer.json alone.
#[test]
fn a_token_that_the_files_know_as_two_is_refused_where_a_text_has_it() {
    let special = |token: &mut Value| token["special"] = json!(true);
    let decoder = |token: Value| json!({ "added_tokens_decoder": { "299": token } });
    let as_is = |_: &mut Value| {};
    let missing =
        "is no added token in tokenizer.json and token 299 (no flags) in `added_tokens_decoder`";
    let cases = [
        (None, decoder(dog(as_is)), None, missing),
        (
            None,
            json!({}),
            Some(json!({ "dog": 299 })),
            "and token 299 (no flags) in added_tokens.json",
        ),
        (
            own_dog(as_is),
            decoder(dog(special)),
            None,
            "(no flags) in tokenizer.json and token 299 (special)",
        ),
        (
            own_dog(special),
            decoder(dog(as_is)),
            None,
            "(special) in tokenizer.json and token 299 (no flags)",
        ),
        (own_dog(as_is), decoder(dog(|t| t["lstrip"] = json!(true))), None, "token 299 (lstrip)"),
        (own_dog(as_is), decoder(dog(|t| t["rstrip"] = json!(true))), None, "token 299 (rstrip)"),
        (own_dog(as_is), decoder(dog(|t| t["single_word"] = json!(true))), None, "(single_word)"),
        (
            own_dog(as_is),
            json!({ "added_tokens_decoder": { "298": dog(as_is) } }),
            None,
            "token 298",
        ),
    ];
    for (own, config, older, words) in cases {
        let folder = folder_with_dog(own, config, older);
        let checkpoint = open(&Source::at(folder.path().into())).unwrap();
        let said = checkpoint.notes.join("\n");
        assert!(
            said.contains(words) && said.contains("save the tokenizer again"),
            "{words}: {said}"
        );
        let error = checkpoint.tokenizer.encode("a dog ran").unwrap_err();
        assert!(error.contains(words) && error.contains("save the tokenizer again"), "{error}");
        checkpoint.tokenizer.encode("a cat ran").unwrap();
    }
}

#[test]
fn a_token_that_no_text_can_show_is_no_error() {
    let special = |token: &mut Value| token["special"] = json!(true);
    // special tokens are text in a text, whatever their flags are, and marks in what a template wrote
    for own in [
        None,
        own_dog(|t| {
            special(t);
            t["rstrip"] = json!(true);
        }),
    ] {
        let config = json!({ "added_tokens_decoder": { "299": dog(special) } });
        let folder = folder_with_dog(own, config, None);
        let tokenizer = open(&Source::at(folder.path().into())).unwrap().tokenizer;
        tokenizer.encode("a dog ran").unwrap();
        assert!(tokenizer.encode_rendered("a dog ran").unwrap_err().contains("`dog`"));
    }
    let same = json!({ "added_tokens_decoder": { "299": dog(|_| {}) } });
    let older = Some(json!({ "dog": 299, "cat": 298 }));
    for (own, config, older) in [
        (own_dog(|_| {}), same.clone(), None),
        // without a normalizer there is nothing to normalize
        (own_dog(|t| t["normalized"] = json!(true)), same.clone(), None),
        // the newer file is asked first, and tokenizer.json's ids before the older one
        (own_dog(|_| {}), same, older),
        (own_dog(special), json!({}), Some(json!({ "dog": 299 }))),
    ] {
        let folder = folder_with_dog(own, config, older);
        let checkpoint = open(&Source::at(folder.path().into())).unwrap();
        let said = checkpoint.notes.join("\n");
        assert!(!said.contains("a text with one of these tokens"), "{said}");
        checkpoint.tokenizer.encode_rendered("a dog ran with a cat").unwrap();
    }
    for (config, older, words) in [
        (json!({ "added_tokens_decoder": [] }), None, "added_tokens_decoder"),
        (json!({ "added_tokens_decoder": { "x": dog(|_| {}) } }), None, "added_tokens_decoder.x"),
        (json!({}), Some(json!({ "dog": "299" })), "must be the id of a token"),
    ] {
        let folder = folder_with_dog(None, config, older);
        let error = refused(&Source::at(folder.path().into()));
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_prefix_space_that_the_files_contradict_is_told() {
    for (config, own, is_told) in [(true, false, true), (false, true, true), (true, true, false)] {
        let mut tokenizer = base_json();
        tokenizer["pre_tokenizer"]["add_prefix_space"] = json!(own);
        let sequence = json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Digits", "individual_digits": true }, tokenizer["pre_tokenizer"] ] });
        tokenizer["pre_tokenizer"] = sequence;
        let config = json!({ "add_prefix_space": config });
        let folder =
            folder_with(&[("tokenizer.json", tokenizer), ("tokenizer_config.json", config)]);
        let said = open(&Source::at(folder.path().into())).unwrap().notes.join("\n");
        let words = format!("the pre-tokenizer of tokenizer.json has it as {own}");
        assert_eq!(said.contains(&words), is_told, "{said}");
    }
}

#[test]
fn warnings_stand_before_other_notes() {
    let mut config = read_json(&base().join("config.json"));
    config["vendor_build"] = json!(7);
    let files =
        [("config.json", config), ("tokenizer_config.json", json!({ "add_prefix_space": true }))];
    let folder = folder_with(&files);
    let notes = open(&Source::at(folder.path().into())).unwrap().notes;
    assert!(notes[0].starts_with("warning: `add_prefix_space`"), "{notes:?}");
    assert!(notes[1].contains("vendor_build"), "{notes:?}");
}

#[test]
fn what_a_template_puts_before_a_text_beside_bos_is_told() {
    let mut tokenizer = base_json();
    let special = |name: &str| json!({ "SpecialToken": { "id": name, "type_id": 0 } });
    let declared = |name: &str, id: u32| json!({ "id": name, "ids": [id], "tokens": [name] });
    let template = |before: &[&str]| {
        let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
        let single: Vec<_> =
            before.iter().map(|name| special(name)).chain([text, special("<pad>")]).collect();
        json!({ "type": "TemplateProcessing", "single": single, "pair": [],
            "special_tokens": { "<bos>": declared("<bos>", 2), "<eos>": declared("<eos>", 1), "<pad>": declared("<pad>", 0) } })
    };
    for (before, words) in [
        (&["<bos>", "<eos>", "<bos>"][..], Some("puts 3 tokens before a text, and only one can be BOS; left out are: 1 `<eos>`, 2 `<bos>`")),
        (&["<bos>", "<eos>"], Some("left out are: 1 `<eos>`")),
        (&["<bos>"], None),
    ] {
        tokenizer["post_processor"] = template(before);
        let folder = folder_with(&[("tokenizer.json", tokenizer.clone())]);
        let checkpoint = open(&Source::at(folder.path().into())).unwrap();
        assert_eq!(checkpoint.tokenizer.bos, Some(2));
        let said = checkpoint.notes.join("\n");
        assert!(words.map_or(!said.contains("left out"), |words| said.contains(words)), "{said}");
    }
}

/// Ollama's converter writes the lists that generation_config.json has.
#[test]
fn ends_that_a_file_lists_end_answers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let with = |ids: Vec<Gguf>| {
        rewritten(&base().join("model.gguf"), &path, |metadata| {
            metadata.insert("tokenizer.ggml.eos_token_ids".into(), Gguf::Array(ids));
            let kinds = ["bos", "cls", "mask", "unknown", "seperator", "padding"];
            for kind in kinds {
                let list = Gguf::Array(vec![Gguf::I32(0)]);
                metadata.insert(format!("tokenizer.ggml.{kind}_token_ids"), list);
                metadata.insert(format!("tokenizer.ggml.add_{kind}_token"), Gguf::Bool(false));
            }
        });
        Source::at(path.clone())
    };
    let before = open(&Source::at(base().join("model.gguf"))).unwrap().end_tokens;
    assert!(!before.contains(&290) && !before.contains(&17));
    let checkpoint = open(&with(vec![Gguf::I32(290), Gguf::I32(17)])).unwrap();
    let mut wanted = [before, vec![290, 17]].concat();
    wanted.sort_unstable();
    assert_eq!(checkpoint.end_tokens, wanted);
    assert_eq!(support::notes_on_keys(&checkpoint), [""; 0]);
    let error = refused(&with(vec![Gguf::I32(300)]));
    assert!(error.contains("eos_token_ids` names token 300 of a vocabulary of 300"), "{error}");
    let error = refused(&with(vec![Gguf::I32(-1)]));
    assert!(error.contains("must be a list of I32 or U32"), "{error}");
}

/// A vocabulary as SentencePiece's, with these pieces, their types and scores before 256 bytes' and what is spare.
fn sentence_piece(path: &Path, pieces: &[(&str, i32, f32)]) {
    rewritten(&base().join("model.gguf"), path, |metadata| {
        let size = list(metadata, TOKENS).len();
        let special = ["<unk>", "<s>", "</s>"].map(|text| (text.to_owned(), 3, 0.0));
        let pieces = pieces.iter().map(|(text, kind, score)| ((*text).to_owned(), *kind, *score));
        let bytes = (0..256).map(|byte| (format!("<0x{byte:02X}>"), 6, 0.0));
        let spare = (0..).map(|n| (format!("[PAD{n}]"), 5, 0.0));
        let tokens = special.into_iter().chain(pieces).chain(bytes).chain(spare).take(size);
        let tokens: Vec<(String, i32, f32)> = tokens.collect();
        let texts = tokens.iter().map(|token| Gguf::String(token.0.clone()));
        metadata.insert(TOKENS.into(), Gguf::Array(texts.collect()));
        let types = tokens.iter().map(|token| Gguf::I32(token.1));
        metadata.insert(TYPES.into(), Gguf::Array(types.collect()));
        let scores = tokens.iter().map(|token| Gguf::F32(token.2));
        metadata.insert("tokenizer.ggml.scores".into(), Gguf::Array(scores.collect()));
        metadata.insert("tokenizer.ggml.model".into(), Gguf::String("llama".into()));
        metadata.insert("tokenizer.ggml.add_space_prefix".into(), Gguf::Bool(false));
        metadata.insert("tokenizer.ggml.add_bos_token".into(), Gguf::Bool(false));
        metadata.insert("tokenizer.ggml.bos_token_id".into(), Gguf::U32(1));
        metadata.insert("tokenizer.ggml.eos_token_id".into(), Gguf::U32(2));
        metadata.insert("tokenizer.ggml.unknown_token_id".into(), Gguf::U32(0));
    });
}

const LETTERS: [(&str, i32, f32); 3] = [("t", 1, -10.0), ("h", 1, -11.0), ("e", 1, -12.0)];

/// llama.cpp merges the pair further left where two have one score, which no ranks of merges can say.
#[test]
fn pieces_with_one_score_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let pieces = |scores: [f32; 2]| [("th", 1, scores[0]), ("he", 1, scores[1])];
    sentence_piece(&path, &[&LETTERS[..], &pieces([-1.0, -2.0])].concat());
    assert_eq!(open(&Source::at(path.clone())).unwrap().tokenizer.encode("the").unwrap(), [6, 5]);
    sentence_piece(&path, &[&LETTERS[..], &pieces([-2.0, -1.0])].concat());
    assert_eq!(open(&Source::at(path.clone())).unwrap().tokenizer.encode("the").unwrap(), [3, 7]);
    sentence_piece(&path, &[&LETTERS[..], &pieces([-1.0, -1.0])].concat());
    let error = refused(&Source::at(path));
    assert!(error.contains("`th` and `he` have one score"), "{error}");
}

/// llama.cpp merges these from the left. Ranks can express it for the runs of spaces of Llama 2 and Mistral 7B.
#[test]
fn runs_of_one_character_may_have_one_score() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let runs = |runs: &[(&str, f32)]| {
        let runs: Vec<_> = runs.iter().map(|(run, score)| (*run, 1, *score)).collect();
        sentence_piece(&path, &[&LETTERS[..], &runs].concat());
        open(&Source::at(path.clone()))
    };
    // pieces 6, 7 and 8
    let three = [("tttt", -1.0), ("tt", -1.0), ("ttt", -1.0)];
    let encode = |text: &str| runs(&three).unwrap().tokenizer.encode(text).unwrap();
    assert_eq!(encode("ttttttt"), [6, 8]);
    assert_eq!(encode("ttttthtt"), [6, 3, 4, 7]);
    // a run of five is four and one, also if three is no piece
    let two = runs(&[("tttt", -1.0), ("tt", -1.0)]).unwrap();
    assert_eq!(two.tokenizer.encode("ttttt").unwrap(), [6, 3]);
    let error = runs(&[("tttt", -1.0), ("tt", -1.0), ("ttt", -2.0)]).map(|_| ()).unwrap_err();
    assert!(error.contains("have one score"), "{error}");
}

/// llama.cpp joins pieces by the text that they make, also if one of them is a character without a piece.
#[test]
fn a_piece_of_characters_without_pieces_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    sentence_piece(&path, &[&LETTERS[..], &[("tx", 1, -1.0)]].concat());
    let error = refused(&Source::at(path));
    assert!(error.contains("`tx` has a character that is no piece"), "{error}");
}

#[test]
fn a_file_without_a_pre_tokenizer_is_read_by_llama_cpps_default_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    rewritten(&base().join("model.gguf"), &path, |metadata| {
        metadata.remove("tokenizer.ggml.pre");
    });
    let checkpoint = open(&Source::at(path)).unwrap();
    assert_eq!(checkpoint.tokenizer.kind, "BPE, default, from the GGUF");
    assert!(checkpoint.notes[0].starts_with("warning: the file does not say how text is split"));
}

/// llama.cpp asks for a piece's score where it merges, and never for its type.
#[test]
fn pieces_of_any_type_are_made_by_merging() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for kind in [1, 2, 3, 5, 6] {
        sentence_piece(&path, &[&LETTERS[..], &[("th", kind, -1.0), ("the", 1, -2.0)]].concat());
        let checkpoint = open(&Source::at(path.clone())).unwrap_or_else(|e| panic!("{kind}: {e}"));
        assert_eq!(checkpoint.tokenizer.encode("the").unwrap(), [7], "type {kind}");
    }
}
