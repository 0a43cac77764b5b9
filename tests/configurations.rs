//! Configurations that spell the same model otherwise, and those that no model can have.

mod support;

use kvgate::model::decoder::Residency;
use kvgate::model::Checkpoint;
use kvgate::policy::Source;
use serde_json::{json, Value};
use std::path::Path;
use support::forward::logits;
use support::root;

/// A copy of a small checkpoint with its configuration edited.
fn edited(name: &str, edit: impl Fn(&mut Value)) -> tempfile::TempDir {
    let from = root().join("tests/fixtures/checkpoints").join(name);
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join("config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    folder
}

fn open(folder: &Path) -> Result<Checkpoint, String> {
    Checkpoint::open(&Source::at(folder.into())).map_err(|error| error.to_string())
}

fn some_logits(folder: &Path) -> Vec<f32> {
    let decoder = open(folder).unwrap().load(Residency::Resident).unwrap();
    let ids: Vec<u32> = (0..90).map(|i| (i * 37 + 11) % 300).collect();
    logits(&decoder, &ids).flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn means_the_same(name: &str, edit: impl Fn(&mut Value)) {
    let (as_is, other) = (edited(name, |_| {}), edited(name, edit));
    assert!(some_logits(as_is.path()) == some_logits(other.path()), "{name}");
}

#[track_caller]
fn is_refused(name: &str, edit: impl Fn(&mut Value), words: &[&str]) {
    let folder = edited(name, edit);
    let error = open(folder.path()).err().unwrap();
    for word in words {
        assert!(error.contains(word), "`{word}` was not said: {error}");
    }
}

fn remove(config: &mut Value, key: &str) -> Value {
    config.as_object_mut().unwrap().remove(key).unwrap()
}

/// transformers 4 wrote θ at the top and the scaling beside it, its kind under one of two names.
#[test]
fn rope_of_older_files() {
    for kind in ["rope_type", "type"] {
        for name in ["llama3-rope", "llama-yarn", "llama-linear", "qwen3"] {
            means_the_same(name, |config| {
                let mut rope = remove(config, "rope_parameters");
                config["rope_theta"] = remove(&mut rope, "rope_theta");
                let scaling = remove(&mut rope, "rope_type");
                if scaling != "default" {
                    rope[kind] = scaling;
                    config["rope_scaling"] = rope;
                }
            });
        }
    }
}

/// θ may stand beside the object, and `rope_scaling` wins over `rope_parameters`.
#[test]
fn rope_in_both_layouts_at_once() {
    for name in ["llama3-rope", "llama-yarn", "llama-linear"] {
        means_the_same(name, |config| {
            config["rope_theta"] = remove(&mut config["rope_parameters"], "rope_theta");
        });
        means_the_same(name, |config| {
            config["rope_scaling"] = config["rope_parameters"].clone();
            config["rope_parameters"]["rope_type"] = json!("default");
        });
    }
}

/// transformers leaves out what equals its classes' defaults.
#[test]
fn gemma_4_has_a_rope_of_its_own_where_the_file_says_nothing() {
    means_the_same("gemma4-31b", |config| drop(remove(config, "rope_parameters")));
}

#[test]
fn gemma_3_of_older_files() {
    means_the_same("gemma3", |config| {
        let mut rope = remove(config, "rope_parameters");
        config["rope_theta"] = rope["full_attention"]["rope_theta"].clone();
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"].clone();
        remove(&mut rope["full_attention"], "rope_theta");
        config["rope_scaling"] = rope["full_attention"].clone();
        remove(config, "layer_types");
        config["sliding_window_pattern"] = json!(6);
    });
}

#[test]
fn gemma_2_has_every_other_layer_slide() {
    means_the_same("gemma2", |config| drop(remove(config, "layer_types")));
}

#[test]
fn gemma_4_spells_its_larger_heads_in_two_ways() {
    means_the_same("gemma4-31b", |config| {
        let layers = remove(config, "per_layer_config");
        let full = layers.as_object().unwrap().values().next().unwrap();
        config["global_head_dim"] = full["head_dim"].clone();
        config["num_global_key_value_heads"] = full["num_key_value_heads"].clone();
    });
}

#[test]
fn experts_are_counted_under_two_names() {
    means_the_same("qwen3-moe", |config| {
        config["num_experts"] = remove(config, "num_local_experts");
    });
}

#[test]
fn what_no_model_can_have_is_refused_by_name() {
    type Edit = fn(&mut Value);
    let cases: [(&str, Edit, &[&str]); 24] = [
        (
            "llama",
            |c| c["model_type"] = json!("mamba"),
            &["unknown architecture `mamba`", "qwen3_5"],
        ),
        ("llama", |c| drop(remove(c, "hidden_size")), &["config.json", "`hidden_size` is missing"]),
        ("llama", |c| c["hidden_size"] = json!(-3), &["`hidden_size` must be an unsigned integer"]),
        ("llama", |c| c["hidden_size"] = json!(49), &["[300, 48]", "[300, 49]"]),
        ("llama", |c| c["num_hidden_layers"] = json!(3), &["layers.2.input_layernorm.weight"]),
        ("llama", |c| c["num_hidden_layers"] = json!(0), &["a model without layers"]),
        ("llama", |c| c["num_key_value_heads"] = json!(2), &["2 KV heads for 3 heads (layer 0)"]),
        ("llama", |c| c["hidden_act"] = json!("relu"), &["the activation `relu`"]),
        ("llama", |c| c["rope_parameters"]["rope_type"] = json!("longrope"), &["`longrope`"]),
        ("llama-yarn", |c| c["rope_parameters"]["factor"] = json!("4"), &["factor", "number"]),
        ("qwen3-moe", |c| c["num_experts_per_tok"] = json!(7), &["7 of 6 experts a token"]),
        ("gemma2", |c| c["sliding_window"] = json!(0), &["an absurd window of 0"]),
        (
            "gemma4-e2b",
            |c| c["text_config"]["num_kv_shared_layers"] = json!(6),
            &["num_kv_shared_layers"],
        ),
        ("llama", |c| c["head_dim"] = json!(1u64 << 40), &["absurd head size"]),
        ("llama", |c| c["num_hidden_layers"] = json!(1u64 << 33), &["layers in"]),
        ("llama", |c| c["rope_parameters"] = json!("yarn"), &["rope_parameters", "an object"]),
        ("llama-yarn", |c| c["rope_parameters"]["rope_theta"] = json!(-1.0), &["above 1"]),
        ("gemma2", |c| c["query_pre_attn_scalar"] = json!(0), &["must be positive"]),
        ("gemma3", |c| c["use_bidirectional_attention"] = json!(true), &["both directions"]),
        ("gemma4-31b", |c| c["use_bidirectional_attention"] = json!("all"), &["`all`"]),
        ("gemma4-31b", |c| c["rope_parameters"] = Value::Null, &["rope_parameters", "is missing"]),
        ("qwen3", |c| c["layer_types"] = json!("full_attention"), &["layer_types", "a list"]),
        ("qwen3_5", |c| c["linear_conv_kernel_dim"] = json!(1), &["convolution"]),
        ("qwen3_5", |c| c["layer_types"][0] = json!("mamba"), &["layer_types", "`mamba`"]),
    ];
    for (name, edit, words) in cases {
        is_refused(name, edit, words);
    }
}
