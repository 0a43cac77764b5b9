//! What a folder with safetensors says of itself: whose convention its tensors are in, their exact names and
//! shapes, and what makes it another model than its tensors alone (fixtures: `scripts/oracle/checkpoints.py`,
//! `scripts/oracle/mlx_twins.py`).

use crate::support::folder::{copied, edit_config, edit_weights, open, File, WEIGHTS};
use crate::support::forward::{logits, relative};
use crate::support::{self, fixture, ids, root, tolerance};
use kvgate::internals::model::decoder::Decoder;
use serde_json::{json, Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const INDEX: &str = "model.safetensors.index.json";

fn checkpoint(name: &str) -> PathBuf {
    root().join("tests/fixtures/checkpoints").join(name)
}

/// A small checkpoint with its weights edited.
fn edited(name: &str, edit: impl Fn(&mut File)) -> TempDir {
    let folder = copied(&checkpoint(name));
    edit_weights(&folder, edit);
    folder
}

/// A small checkpoint with its configuration edited.
fn configured(name: &str, edit: impl Fn(&mut Value)) -> TempDir {
    let folder = copied(&checkpoint(name));
    edit_config(&folder, edit);
    folder
}

/// MLX's conversion of a small checkpoint, with the tokenizer of the original.
fn mlx(name: &str) -> TempDir {
    let folder = copied(&root().join("tests/fixtures/mlx").join(name));
    let tokenizer = "tokenizer.json";
    std::fs::copy(checkpoint(name).join(tokenizer), folder.path().join(tokenizer)).unwrap();
    folder
}

fn load(folder: &Path) -> Decoder {
    support::load(&open(folder).unwrap_or_else(|error| panic!("{error}")))
}

fn some_logits(folder: &Path) -> Vec<f32> {
    let ids: Vec<u32> = (0..90).map(|i| (i * 37 + 11) % 300).collect();
    logits(&load(folder), &ids).flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn is_refused(folder: &TempDir, words: &[&str]) {
    let error = open(folder.path()).err().expect("it was accepted");
    for word in words {
        assert!(error.contains(word), "`{word}` was not said: {error}");
    }
}

/// Largest difference from an oracle's logits, relative to each position's largest one.
fn distance(folder: &Path, oracle: &Value) -> f64 {
    let logits = logits(&load(folder), &ids(&oracle["ids"]));
    let positions = oracle["positions"].as_array().unwrap().iter().map(|want| {
        let row = want["position"].as_u64().unwrap() as usize;
        let got: Vec<f32> = logits.get(row).unwrap().to_vec1().unwrap();
        relative(&got, want["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()))
    });
    positions.fold(0.0, f64::max)
}

const MLX: [&str; 11] = [
    "llama",
    "qwen3-moe",
    "qwen3_5",
    "qwen3_5-moe",
    "gemma2",
    "gemma3",
    "gemma4-26b",
    "gemma4-e2b",
    "gpt-oss-mxfp4",
    "granite-hybrid",
    "granite-hybrid-moe",
];

/// What MLX's converter wrote is the model that it was made from. Where it adds 1 to norms in bfloat16 the sums
/// are rounded, and the oracle is mlx-lm on what it stored.
#[test]
fn files_of_mlx_have_the_logits_of_the_original() {
    for name in MLX {
        let rounded = name == "qwen3_5-moe";
        let made_by = if rounded { "mlx" } else { "checkpoints" };
        let folder = mlx(name);
        let notes = open(folder.path()).unwrap().notes;
        let note = notes.iter().find(|note| note.contains("MLX")).unwrap();
        assert_eq!(note.contains("1 + w"), name.starts_with("qwen3_5"), "{notes:?}");
        let distance = distance(folder.path(), &fixture(&format!("{made_by}/{name}/logits.json")));
        assert!(distance <= tolerance(1e-4), "{name}: {distance:.1e}");
        if !name.starts_with("qwen3_5") {
            assert!(some_logits(folder.path()) == some_logits(&checkpoint(name)), "{name}");
        }
    }
}

#[test]
fn a_file_in_a_convention_that_its_metadata_does_not_name_is_refused() {
    let with_format = |folder: TempDir, format: Option<&str>| {
        let path = folder.path().join(WEIGHTS);
        let mut file = File::read(&path);
        file.metadata.remove("format");
        file.metadata.extend(format.map(|format| ("format".into(), format.into())));
        file.write(&path);
        folder
    };
    for format in [None, Some("pt")] {
        for (name, word) in [
            ("qwen3_5", "linear_attn.conv1d.weight` [96, 4, 1]"),
            ("qwen3-moe", "switch_mlp"),
            ("gemma4-26b", "switch_glu"),
            ("gpt-oss-mxfp4", "experts.gate_proj"),
        ] {
            is_refused(&with_format(mlx(name), format), &[word, "MLX", "format: mlx", "convert"]);
        }
        // nothing differs in Llama but the metadata
        let folder = with_format(mlx("llama"), format);
        assert!(some_logits(folder.path()) == some_logits(&checkpoint("llama")));
    }
    let as_mlx = |name| with_format(copied(&checkpoint(name)), Some("mlx"));
    is_refused(&as_mlx("qwen3_5"), &["conv1d.weight", "[96, 1, 4]", "[96, 4, 1]"]);
    is_refused(&as_mlx("qwen3-moe"), &["switch_mlp.gate_proj.weight` is missing"]);
    for (format, words) in [
        ("tf", &["`format: tf`", "TensorFlow", "save_pretrained"][..]),
        ("flax", &["`format: flax`", "save_pretrained"]),
        ("np", &["`format: np`", "known: pt, mlx", "save_pretrained"]),
        ("", &["`format: `"]),
    ] {
        is_refused(&with_format(copied(&checkpoint("llama")), Some(format)), words);
    }
}

#[test]
fn files_of_two_conventions_are_no_checkpoint() {
    let folder = copied(&checkpoint("llama3-rope"));
    let second = folder.path().join("model-00002-of-00002.safetensors");
    let mut file = File::read(&second);
    file.metadata.insert("format".into(), "mlx".into());
    file.write(&second);
    is_refused(&folder, &["00002-of-00002", "MLX's convention", "transformers'", "mixed"]);
}

/// A tensor's name with its numbers made alike, so that one layer stands for all.
fn kind(name: &str) -> String {
    name.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// The same bytes under another shape: a dimension of 1 more or less, or two that are exchanged.
fn bent(shape: &[usize]) -> Vec<Vec<usize>> {
    let mut bent = vec![[&[1], shape].concat(), [shape, &[1]].concat()];
    if let Some(at) = shape.iter().position(|&n| n == 1) {
        bent.push([&shape[..at], &shape[at + 1..]].concat());
    }
    if let [first, second, rest @ ..] = shape {
        bent.push([&[*second, *first], rest].concat());
    }
    bent.retain(|bent| bent != shape);
    bent
}

#[test]
fn every_tensor_has_exactly_the_shape_that_its_format_gives_it() {
    let read = |name: &&String| {
        let others = ["visual", "vision", "mtp."];
        !others.iter().any(|other| name.contains(other))
    };
    let families = ["llama-linear", "qwen2", "qwen3-moe", "qwen3_5", "qwen3_5-moe"];
    let families = families.iter().chain(&["gemma2", "gemma3", "gemma4-e2b", "gemma4-26b"]);
    let mut refusals = 0;
    for name in families {
        let folder = copied(&checkpoint(name));
        let path = folder.path().join(WEIGHTS);
        let mut file = File::read(&path);
        let mut seen = BTreeSet::new();
        let names: Vec<String> = file.tensors.keys().filter(read).cloned().collect();
        for tensor in names.into_iter().filter(|tensor| seen.insert(kind(tensor))) {
            let shape = file.tensors[&tensor].shape.clone();
            for bent in bent(&shape) {
                file.tensors.get_mut(&tensor).unwrap().shape = bent.clone();
                file.write(&path);
                let error =
                    open(folder.path()).err().unwrap_or_else(|| panic!("{tensor} {bent:?}"));
                let said = error.contains(&tensor) && error.contains(&format!("{bent:?}"));
                let wanted = error.contains(&format!("{shape:?}")) || error.contains("format: mlx");
                assert!(said && wanted, "{tensor} {bent:?}: {error}");
                refusals += 1;
            }
            file.tensors.get_mut(&tensor).unwrap().shape = shape;
        }
    }
    assert!(refusals > 300, "only {refusals}");
}

/// GGUF counts four dimensions in every tensor, but exchanged ones are others.
#[test]
fn tensors_of_gguf_that_are_turned_are_refused() {
    for (name, tensor, found, expected) in [
        ("qwen3_5", "blk.0.ssm_conv1d.weight", "[4, 96]", "[96, 4]"),
        ("qwen3_5-moe", "blk.0.ffn_gate_inp_shexp.weight", "[32, 1]", "[1, 32]"),
        ("llama", "blk.0.ffn_down.weight", "[80, 48]", "[48, 80]"),
    ] {
        let mut bytes = std::fs::read(checkpoint(name).join("model.gguf")).unwrap();
        let at = bytes.windows(tensor.len()).position(|window| window == tensor.as_bytes());
        // the number of dimensions, and the first two
        let dims = at.unwrap() + tensor.len() + 4;
        let (first, second) = bytes[dims..dims + 16].split_at_mut(8);
        first.swap_with_slice(second);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        let error = open(&path).err().unwrap_or_else(|| panic!("{tensor}"));
        for word in [tensor, found, expected] {
            assert!(error.contains(word), "{error}");
        }
    }
}

#[test]
fn names_begin_as_transformers_and_mlx_write_them_and_not_otherwise() {
    let whole = some_logits(&checkpoint("qwen3"));
    for prefix in ["", "model.language_model.", "language_model.model.", "language_model."] {
        for head in ["lm_head.weight", "language_model.lm_head.weight"] {
            let folder = edited("qwen3", |file| {
                file.renamed(|name| match name.strip_prefix("model.") {
                    Some(own) => format!("{prefix}{own}"),
                    None => head.into(),
                });
            });
            assert!(some_logits(folder.path()) == whole, "{prefix} {head}");
        }
    }
    for prefix in ["base_model.model.model.", "_orig_mod.model.", "transformer.", "xmodel."] {
        let folder = edited("qwen3", |file| {
            file.renamed(|name| name.replacen("model.", prefix, 1));
        });
        let name = format!("{prefix}embed_tokens.weight");
        is_refused(&folder, &[&name, "`model.embed_tokens.weight`", "save_pretrained"]);
    }
    let twice = |own: &str, other: &str| {
        edited("qwen3", |file| {
            let stored = file.tensors[own].clone();
            file.tensors.insert(other.into(), stored);
        })
    };
    let other = "language_model.model.embed_tokens.weight";
    is_refused(&twice("model.embed_tokens.weight", other), &[other, "two text models"]);
    let other = "language_model.lm_head.weight";
    is_refused(&twice("lm_head.weight", other), &[other, "`lm_head.weight`", "two text models"]);
    is_refused(&twice("lm_head.weight", "score.lm_head.weight"), &["score.lm_head.weight"]);
    let headless = edited("qwen3", |file| drop(file.tensors.remove("lm_head.weight")));
    is_refused(&headless, &["`lm_head.weight` is missing"]);
}

/// Methods that are not carried out. Those that are have tests of their own (`quantized.rs`).
#[test]
fn unknown_methods_of_quantization_are_refused_by_their_name() {
    for (described, words) in [
        (json!({"quant_method": "torchao", "quant_type": {}}), &["`torchao`"][..]),
        (json!({"quant_method": "quark", "export": {}}), &["`quark`"]),
        (json!({"quant_method": "aqlm"}), &["`aqlm`"]),
        (json!({"quant_method": "hqq"}), &["`hqq`"]),
        (json!({"quant_method": "spinquant", "online_rotation": true}), &["`spinquant`"]),
        (json!({"quant_method": "a-new-one"}), &["`a-new-one`"]),
        (json!({"bits": 2}), &["a method that is not named", "2 bits"]),
        (json!("fp8"), &["not described by an object"]),
        (json!([4]), &["not described by an object"]),
    ] {
        let folder = configured("llama", |c| c["quantization_config"] = described.clone());
        let place = ["config.json", "`quantization_config`", "was made from"];
        is_refused(&folder, &[&place, words].concat());
    }
    for (key, described, word) in [
        ("compression_config", &json!({"quant_method": "sparseml"}), "`sparseml`"),
        ("transform_config", &json!({"config_groups": {"R1": {}}}), "not named"),
        ("transform_config", &json!({"group_size": 4}), "affine"),
    ] {
        let folder = configured("llama", |c| c[key] = described.clone());
        is_refused(&folder, &[&format!("`{key}`"), word]);
        let nested = configured("qwen3_5-moe", |c| c["text_config"][key] = described.clone());
        is_refused(&nested, &[&format!("`{key}`"), word]);
    }
}

/// A description is another checkpoint's if no tensor is quantized.
#[test]
fn a_description_of_weights_that_are_not_quantized_is_refused() {
    for described in [
        json!({"quant_method": "gptq", "bits": 4, "group_size": 128}),
        json!({"quant_method": "awq", "bits": 4, "version": "gemm"}),
        json!({"quant_method": "fp8", "weight_block_size": [128, 128]}),
        json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
        json!({"load_in_8bit": true, "load_in_4bit": false}),
        json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}),
        json!({"quant_method": "mxfp4"}),
        json!({"quantization": {}, "quant_method": "gptq", "bits": 4}),
        json!({"group_size": 64, "bits": 4}),
        json!({"group_size": 32, "bits": 4, "mode": "mxfp4"}),
    ] {
        for key in ["quantization_config", "quantization"] {
            let folder = configured("llama", |c| c[key] = described.clone());
            is_refused(&folder, &["no tensor is", &format!("`{key}`")]);
        }
    }
    for (file, described) in [
        ("quantize_config.json", json!({"bits": 4, "group_size": 128, "desc_act": false})),
        ("quant_config.json", json!({"w_bit": 4, "q_group_size": 128})),
        (
            "hf_quant_config.json",
            json!({"producer": {}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}),
        ),
    ] {
        let folder = copied(&checkpoint("llama"));
        std::fs::write(folder.path().join(file), described.to_string()).unwrap();
        is_refused(&folder, &[file, "no tensor is"]);
    }
}

#[test]
fn a_description_that_quantizes_nothing_is_none() {
    let whole = some_logits(&checkpoint("llama"));
    for described in [Value::Null, json!({})] {
        for key in [
            "quantization_config",
            "quantization",
            "compression_config",
            "quantize_config",
            "quant_config",
            "transform_config",
        ] {
            let folder = configured("llama", |c| c[key] = described.clone());
            assert!(some_logits(folder.path()) == whole, "{key} {described}");
            let nested = configured("gemma4-e2b", |c| c["text_config"][key] = described.clone());
            open(nested.path()).unwrap_or_else(|error| panic!("{key} {described}: {error}"));
        }
    }
    let folder = copied(&checkpoint("llama"));
    let described = r#"{"quantization": {"quant_algo": null, "kv_cache_quant_algo": null}}"#;
    std::fs::write(folder.path().join("hf_quant_config.json"), described).unwrap();
    assert!(some_logits(folder.path()) == whole);
}

/// As when somebody took the description out.
#[test]
fn tensors_of_quantizers_and_types_that_are_not_read_are_named() {
    let layer = "model.layers.0.self_attn.v_proj";
    for (end, who) in [
        ("qweight", "GPTQ"),
        ("weight_packed", "compressed-tensors"),
        ("weight_scale", "FP8"),
        ("weight_scale_inv", "FP8 in blocks"),
        ("weight.absmax", "bitsandbytes"),
        ("weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("scales", "MLX"),
        ("k_zero_point", "KV cache"),
    ] {
        let name = format!("{layer}.{end}");
        let folder = edited("llama", |file| file.add(&name, "F32", &[1], 4));
        is_refused(&folder, &[&name, who, "was made from"]);
    }
    for (dtype, width) in [("F8_E4M3", 1), ("I8", 1), ("U8", 1), ("U32", 4), ("F64", 8)] {
        let name = format!("{layer}.weight");
        let folder = edited("llama", |file| {
            let shape = file.tensors[&name].shape.clone();
            file.add(&name, dtype, &shape, width);
        });
        is_refused(&folder, &[&name, &format!("is {dtype}, which"), "F32, F16, BF16", "convert"]);
    }
    let folder = edited("llama", |file| {
        file.metadata.insert("_quantization_metadata".into(), "{}".into());
    });
    is_refused(&folder, &[WEIGHTS, "`_quantization_metadata`"]);
    // nobody reads the tower
    let tower = "model.visual.blocks.0.attn.proj";
    let folder = edited("qwen3_5-moe", |file| {
        file.add(&format!("{tower}.weight_scale"), "F8_E4M3", &[1], 1);
    });
    open(folder.path()).unwrap();
}

#[test]
fn what_makes_a_folder_another_model_is_refused() {
    let adapted = copied(&checkpoint("llama"));
    std::fs::write(adapted.path().join("adapter_config.json"), "{}").unwrap();
    is_refused(&adapted, &["adapter_config.json", "merge_and_unload"]);
    for class in ["LlamaForSequenceClassification", "Qwen3Model", "LlamaForCausalLMEagle3"] {
        let folder = configured("llama", |c| c["architectures"] = json!([class]));
        is_refused(&folder, &["config.json", class, "no language model"]);
    }
    let own = json!({"AutoConfig": "c.C", "AutoModelForCausalLM": "modeling_x.XForCausalLM"});
    let folder = configured("llama", |c| {
        c["auto_map"] = own.clone();
        c["model_type"] = json!("llama_x");
    });
    is_refused(&folder, &["auto_map", "AutoModelForCausalLM", "modeling_x.XForCausalLM"]);
    for (key, value) in [
        ("auto_map", json!({"AutoConfig": "c.C", "AutoTokenizer": ["t.T", null]})),
        ("architectures", Value::Null),
        ("architectures", json!(["LlamaForCausalLM"])),
        ("text_config", Value::Null),
    ] {
        let folder = configured("llama", |c| c[key] = value.clone());
        open(folder.path()).unwrap_or_else(|error| panic!("{key}: {error}"));
    }
    let nested = |kind: &str| {
        configured("llama", |c| {
            c["text_config"] = c.clone();
            c["model_type"] = json!(kind);
        })
    };
    open(nested("llava").path()).unwrap();
    is_refused(&nested("paligemma"), &["config.json", "a part of a `paligemma`", "known: gemma3"]);
    let folder = configured("llama", |c| c["model_file"] = json!("own.py"));
    is_refused(&folder, &["`model_file`", "own.py"]);
    let folder = configured("llama", |c| c["text_config"] = json!("llama"));
    is_refused(&folder, &["`text_config` must be an object"]);
}

/// transformers 5.24 ties a head only to an embedding that equals it.
#[test]
fn a_head_in_the_file_is_the_head() {
    let tied = configured("qwen3", |c| c["tie_word_embeddings"] = json!(true));
    let notes = open(tied.path()).unwrap().notes;
    assert!(notes[0].contains("`lm_head.weight` differs from the embedding"), "{notes:?}");
    let same = configured("llama", |_| {});
    let path = same.path().join(WEIGHTS);
    let mut file = File::read(&path);
    file.tensors.insert("lm_head.weight".into(), file.tensors["model.embed_tokens.weight"].clone());
    file.write(&path);
    let notes = open(same.path()).unwrap().notes;
    assert!(!notes.iter().any(|note| note.contains("lm_head")), "{notes:?}");
    assert!(some_logits(same.path()) == some_logits(&checkpoint("llama")));
    assert!(some_logits(tied.path()) == some_logits(&checkpoint("qwen3")));
}

/// LLaVA-NeXT and OneVision end each row of an image with it.
#[test]
fn the_end_of_an_images_row_is_no_part_of_the_text_model() {
    for name in ["image_newline", "model.image_newline"] {
        let folder = edited("llama", |file| file.add(name, "F16", &[48], 2));
        assert!(some_logits(folder.path()) == some_logits(&checkpoint("llama")), "{name}");
    }
}

#[test]
fn a_tied_head_stands_for_an_embedding_that_is_left_out() {
    let alone = |name: &str, prefix: &str| {
        let embedding = "model.embed_tokens.weight";
        edited(name, |file| {
            let table = file.tensors.remove(embedding).unwrap();
            file.tensors.insert("lm_head.weight".into(), table);
            file.renamed(|name| name.replacen("model.", prefix, 1));
        })
    };
    for prefix in ["model.", "model.language_model.", ""] {
        let folder = alone("llama", prefix);
        let notes = open(folder.path()).unwrap().notes;
        assert!(notes[0].contains("`lm_head.weight` is read as the embedding"), "{notes:?}");
        assert!(some_logits(folder.path()) == some_logits(&checkpoint("llama")), "{prefix}");
    }
    let untied = alone("llama", "model.");
    let config = untied.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let says = |tied: bool| format!("\"tie_word_embeddings\": {tied}");
    assert!(text.contains(&says(true)));
    std::fs::write(&config, text.replace(&says(true), &says(false))).unwrap();
    is_refused(&untied, &["`model.embed_tokens.weight` is missing"]);
}

#[test]
fn what_is_no_file_of_a_checkpoint_is_told_with_the_mend() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 987654321\n";
    for (file, content, words) in [
        (WEIGHTS, &pointer[..], &[WEIGHTS, "git lfs pull"][..]),
        (WEIGHTS, b"<!DOCTYPE html><html></html>", &[WEIGHTS, "web page"]),
        ("config.json", pointer, &["config.json", "git lfs pull"]),
        ("config.json", b"\xef\xbb\xbf{}", &["config.json", "byte-order mark", "line 1, column 1"]),
        ("config.json", b"{\"a\": 1,\n \"b\": NaN}", &["`NaN`", "line 2, column 7"]),
        ("config.json", b"{\"a\": 1, \"a\": 1}", &["`a` stands twice", "line 1, column 12"]),
        ("config.json", b"[]", &["config.json", "must be an object"]),
        ("generation_config.json", b"{\"a\": 1,}", &["generation_config.json", "trailing comma"]),
    ] {
        let folder = copied(&checkpoint("llama"));
        std::fs::write(folder.path().join(file), content).unwrap();
        is_refused(&folder, words);
    }
}

#[test]
fn texts_without_end_are_not_read() {
    let folder = copied(&checkpoint("llama"));
    let file = std::fs::File::create(folder.path().join("config.json")).unwrap();
    file.set_len(1 << 40).unwrap();
    is_refused(&folder, &["config.json", "1099511627776 bytes"]);
}

#[test]
fn folders_that_lack_something_say_what_is_there_instead() {
    let without = |gone: &str, there: &str| {
        let folder = copied(&checkpoint("llama"));
        std::fs::remove_file(folder.path().join(gone)).unwrap();
        std::fs::write(folder.path().join(there), "{}").unwrap();
        folder
    };
    for (gone, there, words) in [
        ("config.json", "a.txt", &["config.json is missing"][..]),
        ("config.json", "model-Q8_0.gguf", &["config.json", "name the file, `model-Q8_0.gguf`"]),
        ("config.json", "adapter_config.json", &["adapter", "merge_and_unload"]),
        ("config.json", "params.json", &["params.json", "convert"]),
        (WEIGHTS, "a.txt", &["model.safetensors is missing"]),
        (WEIGHTS, "pytorch_model.bin", &["`pytorch_model.bin`", "save_pretrained"]),
        (WEIGHTS, "model-00001-of-00002.safetensors", &[INDEX, "`model-00001-of-00002"]),
    ] {
        is_refused(&without(gone, there), words);
    }
}

#[test]
fn an_index_and_its_files_must_agree() {
    let second = "model-00002-of-00002.safetensors";
    let folder = copied(&checkpoint("llama3-rope"));
    let index: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join(INDEX)).unwrap()).unwrap();
    let indexed = |edit: &dyn Fn(&mut Map<String, Value>)| {
        let folder = copied(&checkpoint("llama3-rope"));
        let mut index = index.clone();
        edit(index["weight_map"].as_object_mut().unwrap());
        std::fs::write(folder.path().join(INDEX), index.to_string()).unwrap();
        folder
    };
    open(indexed(&|_| {}).path()).unwrap();
    let norm = "model.norm.weight";
    is_refused(&indexed(&|map| drop(map.remove(norm))), &[norm, "does not name", "versions"]);
    let other = "model-00001-of-00002.safetensors";
    let moved = indexed(&|map| {
        let file = if map[norm] == second { other } else { second };
        map.insert(norm.into(), file.into());
    });
    is_refused(&moved, &[norm, "is not in", "versions"]);
    is_refused(&indexed(&|map| drop(map.insert("x".into(), second.into()))), &["`x`", second]);

    std::fs::remove_file(folder.path().join(second)).unwrap();
    is_refused(&folder, &["1 of the 2 files", second, "fetch"]);

    let more = copied(&checkpoint("llama"));
    std::fs::write(more.path().join("model-00001-of-00002.safetensors"), "").unwrap();
    let notes = open(more.path()).unwrap().notes;
    assert!(notes[0].contains("`model-00001-of-00002.safetensors`"), "{notes:?}");

    let both = copied(&checkpoint("llama3-rope"));
    std::fs::copy(checkpoint("llama").join(WEIGHTS), both.path().join(WEIGHTS)).unwrap();
    is_refused(&both, &["two checkpoints", WEIGHTS, INDEX]);
}
