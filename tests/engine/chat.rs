//! Chat templates against transformers, and prompts' tokens against llama.cpp's tokenizer (fixtures:
//! `scripts/oracle/chat.py`).

use crate::support::tiny::{self, Damage};
use crate::support::{fixture, ids, open, root, GEMMA, MODELS, QWEN, SMOLLM2};
use candle_core::quantized::gguf_file::Value as GgufValue;
use kvgate::internals::measure::prompts::{PromptSet, Prompts};
use kvgate::internals::model::chat::{ChatTemplate, Message};
use kvgate::internals::model::Checkpoint;
use kvgate::internals::source::Source;
use serde_json::{json, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

fn default_set() -> PromptSet {
    PromptSet::read(&root().join("prompts/default.toml")).unwrap_or_else(|e| panic!("{e}"))
}

fn embedded(model: &str) -> Checkpoint {
    Checkpoint::open(&Source::at(root().join("models").join(model))).unwrap()
}

/// Renders every case of a fixture by the templates of a folder; gives what differs.
fn differences(folder: &Path, fixture: &Value) -> Vec<String> {
    let specials = BTreeMap::from([
        ("bos_token".to_owned(), "<s>".to_owned()),
        ("eos_token".to_owned(), "</s>".to_owned()),
    ]);
    let mut differences = Vec::new();
    for (name, wanted) in fixture["rendered"].as_object().unwrap() {
        let text = std::fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap();
        let template = ChatTemplate::new(Path::new("model"), name, text, specials.clone());
        for (case, want) in wanted.as_object().unwrap() {
            let given = &fixture["cases"][case];
            let messages: Vec<Message> = serde_json::from_value(given["messages"].clone()).unwrap();
            let got = template.render(&messages, given.get("tools"));
            // null where transformers raises
            if got.as_ref().ok().map(String::as_str) != want.as_str() {
                differences.push(format!("{name}, {case}: got {got:?}, want {want:?}"));
            }
        }
    }
    differences
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let fixture = fixture("chat/rendered.json");
    assert!(fixture["rendered"].as_object().unwrap().len() >= 6);
    let differences = differences(&root().join("tests/fixtures/chat"), &fixture);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
#[ignore = "real weights: scripts/fetch-models"]
fn prompts_have_the_tokens_of_transformers_text_and_llama_cpps_tokenizer() {
    let oracle = fixture("chat/tokens.json");
    for file in MODELS {
        let checkpoint = open(file);
        let prompts = default_set().tokens(&checkpoint).unwrap().prompts;
        let wanted = oracle[file]["prompts"].as_object().unwrap();
        assert_eq!(prompts.len(), wanted.len(), "{file}");
        for prompt in prompts {
            let bytes: Vec<u8> = prompt.tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
            let sha256: String =
                Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
            let got = json!({ "count": prompt.tokens.len(), "sha256": sha256 });
            assert_eq!(got, wanted[&prompt.id], "{file}: {}", prompt.id);
        }
        assert_eq!(checkpoint.end_tokens, ids(&oracle[file]["ends"]), "{file}");
    }
}

#[test]
#[ignore = "real weights: scripts/fetch-models"]
fn real_models_name_their_template_and_what_ends_an_answer() {
    let sha256 = |name: &str| {
        let template = std::fs::read(root().join("tests/fixtures/chat").join(name)).unwrap();
        Sha256::digest(template).iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    for (file, template, ends) in [
        (SMOLLM2, sha256("smollm2.jinja"), vec![0, 2, 4]),
        (GEMMA, "none".into(), vec![1, 106, 212]),
        (QWEN, sha256("qwen2.5-coder.jinja"), vec![128247, 151643, 151645, 151662, 151663, 151664]),
    ] {
        let checkpoint = open(file);
        assert_eq!(default_set().tokens(&checkpoint).unwrap().template_sha256, template, "{file}");
        assert_eq!(checkpoint.end_tokens, ends, "{file}");
    }
}

#[test]
#[ignore = "real weights: scripts/fetch-models"]
fn decoding_gives_the_text_back() {
    for file in MODELS {
        let tokenizer = open(file).tokenizer;
        for text in ["  two spaces\n\ttab", "老钟表匠 für naïve 👩‍👩‍👧", "a<b>&'c'", "مرحبا"]
        {
            let ids = tokenizer.encode_rendered(text).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{file}");
        }
        let ids = tokenizer.encode_rendered("🝛").unwrap();
        assert!(
            ids.len() > 1 && tokenizer.decode(&ids[..1]).unwrap().contains('\u{fffd}'),
            "{file}"
        );
    }
}

#[test]
fn models_without_a_template_read_plain_text() {
    for (model, ends) in [("gemma4-e2b-mini", &[1u32][..]), ("qwen3.6-moe-mini", &[0])] {
        let checkpoint = embedded(model);
        assert!(checkpoint.template.is_none());
        assert_eq!(checkpoint.end_tokens, ends, "{model}");
        let Prompts { prompts, template_sha256, thinking, sha256, remarks } =
            default_set().tokens(&checkpoint).unwrap();
        assert_eq!((template_sha256.as_str(), thinking, sha256.len()), ("none", false, 64));
        assert!(remarks.is_empty(), "{remarks:?}");
        assert!(prompts.len() >= 16);
        for prompt in &prompts {
            assert!(prompt.tokens.len() <= 700, "{model}: {} {}", prompt.id, prompt.tokens.len());
        }
        let dialogue = prompts.iter().find(|p| p.id == "follow-up").unwrap();
        let text = "Which is heavier, a litre of ice or a litre of water?\n\n\
                    A litre of water. Ice takes up about nine percent more room than the water it \
                    froze from, so a litre of it holds less.\n\n\
                    Then what happens to a lake in winter, and why do the fish survive?";
        assert_eq!(dialogue.tokens, checkpoint.tokenizer.encode(text).unwrap());
    }
}

#[test]
fn the_needle_stands_between_two_sentences_of_its_document() {
    let checkpoint = embedded("gemma4-e2b-mini");
    let prompts = default_set().tokens(&checkpoint).unwrap().prompts;
    let ferry = prompts.iter().find(|p| p.id == "needle-ferry").unwrap();
    let text = checkpoint.tokenizer.decode(&ferry.tokens).unwrap();
    let needle =
        "The spare key of the boathouse hangs behind the barometer, on the nail marked 47.";
    let (before, after) = text.split_once(needle).unwrap();
    assert!(before.contains("For eleven months of the year") && before.ends_with(". "), "{text}");
    assert!(
        after.contains(".\n\nWhere does the spare key") && !after.contains("{document}"),
        "{text}"
    );
}

#[test]
fn a_ggufs_template_and_what_ends_an_answer_are_in_its_metadata() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let text = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}";
    let metadata = [
        Damage::Metadata("tokenizer.chat_template", GgufValue::String(text.into())),
        Damage::Metadata("tokenizer.ggml.bos_token_id", GgufValue::U32(65)),
        Damage::Metadata("tokenizer.ggml.eos_token_id", GgufValue::U32(70)),
        Damage::Metadata("tokenizer.ggml.eot_token_id", GgufValue::U32(66)),
    ];
    tiny::write(&path, 1, &metadata);
    let checkpoint = Checkpoint::open(&Source::at(path)).unwrap();
    let text = |id| checkpoint.tokenizer.decode(&[id]).unwrap();
    let messages = [Message { role: "user".into(), content: " hi ".into() }];
    let rendered = checkpoint.template.as_ref().unwrap().render(&messages, None).unwrap();
    assert_eq!(rendered, format!("{} hi {}", text(65), text(70)));
    assert_eq!(checkpoint.end_tokens, [66, 70]);
}

/// A copy of an embedded model's small files and links to the large ones.
fn copy_of(model: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(root().join("models").join(model)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

#[test]
fn a_folders_template_is_its_own_file_or_the_default_of_its_tokenizer_configuration() {
    let folder = copy_of("qwen3.6-moe-mini");
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    let prompt = || {
        let checkpoint = Checkpoint::open(&Source::at(folder.path().into())).unwrap();
        let messages = [Message { role: "user".into(), content: "a".into() }];
        checkpoint.template.unwrap().render(&messages, None).unwrap()
    };
    write(
        "tokenizer_config.json",
        json!({ "chat_template": "one {{ bos_token }}", "bos_token": "<a>" }).to_string(),
    );
    assert_eq!(prompt(), "one <a>");
    let list = json!([{ "name": "tool_use", "template": "x" }, { "name": "default", "template": "two {{ bos_token }}" }]);
    write(
        "tokenizer_config.json",
        json!({ "chat_template": list, "bos_token": { "content": "<b>" } }).to_string(),
    );
    assert_eq!(prompt(), "two <b>");
    write("chat_template.jinja", "three {{ bos_token }}".into());
    assert_eq!(prompt(), "three <b>");
    write("generation_config.json", json!({ "eos_token_id": [5, 3] }).to_string());
    assert_eq!(Checkpoint::open(&Source::at(folder.path().into())).unwrap().end_tokens, [3, 5]);
}

#[test]
fn the_ends_of_a_turn_that_a_template_writes_end_an_answer() {
    let folder = copy_of("qwen3.6-moe-mini");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let ends = || {
        let checkpoint = Checkpoint::open(&Source::at(folder.path().into())).unwrap();
        (checkpoint.end_tokens, checkpoint.notes.join("\n"))
    };
    write("generation_config.json", r#"{ "eos_token_id": 5 }"#);
    assert_eq!(ends().0, [5]);
    write("chat_template.jinja", "{{ messages[0].content }}<|endoftext|>");
    assert_eq!(ends().0, [0, 5]);
    write("chat_template.jinja", "{{ messages[0].content }}{{ eos_token }}");
    assert_eq!(ends().0, [0, 5]);
    // marks that the vocabulary does not have are said
    write("chat_template.jinja", "<|im_start|>{{ messages[0].content }}<|im_end|>");
    let (ends, said) = ends();
    assert_eq!(ends, [5]);
    let words = "does not have as a mark: `<|im_start|>`, which is no token; `<|im_end|>`, which is no token";
    assert!(said.contains(words), "{said}");
}

#[test]
fn a_template_that_refuses_a_prompt_is_named_with_its_line() {
    let folder = copy_of("qwen3.6-moe-mini");
    let template = "{{ bos_token }}\n{{ raise_exception('One at a time.') if messages[1] }}";
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let checkpoint = Checkpoint::open(&Source::at(folder.path().into())).unwrap();
    let error = default_set().tokens(&checkpoint).unwrap_err().to_string();
    for part in [
        "prompt `follow-up`",
        &*folder.path().to_string_lossy(),
        "chat_template.jinja, line 2",
        "One at a time.",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn specials_are_tokens_in_rendered_text_and_text_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    tiny::write(&path, 1, &[]);
    let tokenizer = Checkpoint::open(&Source::at(path)).unwrap().tokenizer;
    let plain = tokenizer.encode("the").unwrap();
    assert_eq!(tokenizer.decode(&plain).unwrap(), "the");
    for model in ["gemma4-e2b-mini", "qwen3.6-moe-mini"] {
        let tokenizer = embedded(model).tokenizer;
        let (special, text) = ("<|endoftext|>", "<|endoftext|>a");
        if model.starts_with("qwen") {
            assert_eq!(tokenizer.encode_rendered(text).unwrap()[0], 0);
            assert_ne!(tokenizer.encode(text).unwrap()[0], 0);
            assert_eq!(tokenizer.decode(&[0]).unwrap(), special);
        }
        // a template writes its BOS itself
        let bos = tokenizer.bos.into_iter().collect::<Vec<_>>();
        let rendered = tokenizer.encode_rendered("a").unwrap();
        assert_eq!(tokenizer.encode("a").unwrap(), [bos, rendered].concat());
    }
}

#[test]
fn a_file_of_prompts_is_refused_with_line_and_reason() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("d.txt"), "One two. Three four.").unwrap();
    let path = folder.path().join("p.toml");
    let head = "version = 1\n[[prompts]]\nid = \"a\"\ncategory = \"c\"\n";
    let document = |rest: &str| format!("{head}text = \"x {{document}}\"\ndocument = {{ {rest} }}");
    for (text, parts) in [
        (
            format!("{head}text = \"x\"\ntekst = 1"),
            vec!["line 6", "unknown field `tekst`", "`text`"],
        ),
        ("version = 2\nnew = []".into(), vec!["format 2", "reads 1"]),
        ("version = 1\nprompts = []".into(), vec!["has no prompts"]),
        (head.into(), vec!["p.toml:3", "prompt `a`", "either `messages` or `text`"]),
        (
            format!("{head}text = \"x\"\n[[prompts]]\nid = \"a\"\ncategory = \"c\"\ntext = \"y\""),
            vec!["p.toml:7", "also in line 3"],
        ),
        (format!("{head}text = \"x\"\ntools = \"[]\""), vec!["use `messages`"]),
        (format!("{head}text = \"x\"\ntools = \"[\""), vec!["line 6", "EOF"]),
        (format!("{head}text = \"x {{document}}\""), vec!["no `document`"]),
        (document("file = \"no.txt\", from = \"One\", tokens = 9"), vec!["no.txt"]),
        (document("file = \"d.txt\", from = \"Five\", tokens = 9"), vec!["\"Five\"", "not in"]),
        (
            document("file = \"d.txt\", from = \"One\", tokens = 9, needle = \"four\""),
            vec!["already says"],
        ),
        (
            document("file = \"d.txt\", from = \"One\", tokens = 9, needle = \"x\", depth = 2.0"),
            vec!["depth 2"],
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = PromptSet::read(&path).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}

/// What git or an editor made of a file of prompts or of a document is read as tokens, or it is not; then it is said.
#[test]
fn prompts_that_would_be_read_with_more_than_their_text_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    tiny::write(&folder.path().join("m.gguf"), 1, &[]);
    let checkpoint = Checkpoint::open(&Source::at(folder.path().join("m.gguf"))).unwrap();
    let read = |text: &str| {
        put("prompts.toml", text);
        PromptSet::read(&folder.path().join("prompts.toml")).unwrap().tokens(&checkpoint).unwrap()
    };
    put("doc.txt", "One sentence. And another.\n");
    let text = "version = 1\n\n[[prompts]]\nid = \"p\"\ncategory = \"prose\"\ntext = \"\"\"\none\ntwo {document}\"\"\"\n\
                document = { file = \"doc.txt\", from = \"One\", tokens = 99 }\n";
    let sound = read(text);
    assert!(sound.remarks.is_empty(), "{:?}", sound.remarks);
    for other in [text.replace('\n', "\r\n"), format!("\u{feff}{text}")] {
        let other = read(&other);
        let is_told = !other.remarks.is_empty();
        assert!(other.prompts == sound.prompts || is_told, "{:?}", other.prompts);
    }
    let escaped = read(&text.replace("one\ntwo", "one\\r\\ntwo"));
    assert!(escaped.remarks[0].contains("prompt `p` of "), "{:?}", escaped.remarks);
    put("doc.txt", "One sentence.\r\nAnd another.\r\n");
    let remarks = read(text).remarks;
    assert!(remarks.len() == 1 && remarks[0].contains("doc.txt has 2 lines"), "{remarks:?}");
}
