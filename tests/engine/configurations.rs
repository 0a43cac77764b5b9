//! Configurations that spell the same model otherwise, and those that no model can have.

use crate::support;
use crate::support::folder::{copied, edit_config, open};
use crate::support::forward::logits;
use crate::support::root;
use kvgate::internals::model::Checkpoint;
use kvgate::internals::source::Source;
use serde_json::{json, Value};
use std::path::Path;

/// A copy of a small checkpoint with its configuration edited.
fn edited(name: &str, edit: impl Fn(&mut Value)) -> tempfile::TempDir {
    let folder = copied(&root().join("tests/fixtures/checkpoints").join(name));
    edit_config(&folder, edit);
    folder
}

fn some_logits(folder: &Path) -> Vec<f32> {
    let decoder = support::load(&open(folder).unwrap());
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

/// θ may stand beside the object, and both layouts may stand side by side where they agree.
#[test]
fn rope_in_both_layouts_at_once() {
    for name in ["llama3-rope", "llama-yarn", "llama-linear"] {
        means_the_same(name, |config| {
            config["rope_theta"] = remove(&mut config["rope_parameters"], "rope_theta");
        });
        means_the_same(name, |config| {
            config["rope_theta"] = config["rope_parameters"]["rope_theta"].clone();
            config["rope_scaling"] = config["rope_parameters"].clone();
            let kind = remove(&mut config["rope_scaling"], "rope_type");
            config["rope_scaling"]["type"] = kind;
            remove(&mut config["rope_scaling"], "rope_theta");
        });
    }
}

/// Of two descriptions of one fact one is believed, and which of them depends on the reader.
#[test]
fn two_descriptions_of_one_fact_must_agree() {
    type Edit = fn(&mut Value);
    let cases: [(&str, Edit, &[&str]); 16] = [
        (
            "llama-yarn",
            |c| {
                c["rope_scaling"] = c["rope_parameters"].clone();
                c["rope_parameters"]["rope_type"] = json!("default");
            },
            &["rope_scaling.rope_type", "disagrees with `rope_parameters`"],
        ),
        (
            "llama-yarn",
            |c| {
                c["rope_scaling"] = c["rope_parameters"].clone();
                c["rope_scaling"]["factor"] = json!(2);
            },
            &["rope_scaling.factor", "disagrees"],
        ),
        // transformers would take 10,000, for θ stands in the object that it passes over
        (
            "llama-yarn",
            |c| {
                c["rope_parameters"]["rope_theta"] = json!(5e5);
                c["rope_scaling"] = c["rope_parameters"].clone();
                remove(&mut c["rope_scaling"], "rope_theta");
            },
            &["rope_scaling.rope_theta", "disagrees"],
        ),
        (
            "gemma3",
            |c| c["rope_scaling"] = json!({"rope_type": "linear", "factor": 4.0}),
            &["rope_scaling.factor", "disagrees with `rope_parameters.full_attention`"],
        ),
        (
            "llama",
            |c| c["rope_theta"] = json!(5e5),
            &["rope_parameters.rope_theta", "says 10000", "`rope_theta` says 500000"],
        ),
        (
            "llama-yarn",
            |c| c["rope_parameters"]["type"] = json!("linear"),
            &["rope_type", "says `yarn`", "`linear`"],
        ),
        (
            "llama-yarn",
            |c| c["original_max_position_embeddings"] = json!(128),
            &["rope_parameters.original_max_position_embeddings", "says 64", "says 128"],
        ),
        (
            "gemma4-e2b",
            |c| c["hidden_size"] = json!(64),
            &["text_config.hidden_size", "says 32, and `hidden_size` says 64"],
        ),
        (
            "gemma4-e2b",
            |c| c["tie_word_embeddings"] = json!(false),
            &["tie_word_embeddings", "says false, and `text_config.tie_word_embeddings` says true"],
        ),
        (
            "qwen3-moe",
            |c| c["num_experts"] = json!(7),
            &["num_local_experts", "says 6, and `num_experts` says 7"],
        ),
        (
            "glm4-moe",
            |c| c["num_local_experts"] = json!(3),
            &["num_local_experts", "says 3, and `n_routed_experts` says"],
        ),
        (
            "smollm3",
            |c| c["no_rope_layer_interval"] = json!(2),
            &["no_rope_layer_interval", "contradicts `no_rope_layers`"],
        ),
        (
            "qwen2-window",
            |c| c["max_window_layers"] = json!(0),
            &["max_window_layers", "contradicts `layer_types`"],
        ),
        (
            "gemma3",
            |c| c["sliding_window_pattern"] = json!(5),
            &["sliding_window_pattern", "contradicts `layer_types`"],
        ),
        (
            "qwen3_5",
            |c| c["full_attention_interval"] = json!(2),
            &["full_attention_interval", "contradicts the list of layers"],
        ),
        (
            "gemma4-e4b",
            |c| c["global_head_dim"] = json!(32),
            &["global_head_dim", "contradicts `per_layer_config` (layer 3)"],
        ),
    ];
    for (name, edit, words) in cases {
        is_refused(name, edit, words);
    }
    for (name, edit) in [
        ("llama", (|c| c["rope_theta"] = json!(10000)) as Edit),
        ("gemma4-e2b", |c| c["hidden_size"] = json!(32)),
        ("qwen3-moe", |c| c["num_experts"] = json!(6)),
        ("gemma3", |c| c["sliding_window_pattern"] = json!(6)),
        ("qwen3_5", |c| c["full_attention_interval"] = json!(4)),
        ("llama-yarn", |c| c["original_max_position_embeddings"] = json!(64)),
    ] {
        means_the_same(name, edit);
    }
}

#[test]
fn a_key_that_stands_twice_is_told_with_its_line() {
    let folder = edited("llama", |_| {});
    let path = folder.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen('{', "{\"rms_norm_eps\": 1e-6,\n", 1)).unwrap();
    let error = open(folder.path()).err().unwrap();
    assert!(
        error.contains("key `rms_norm_eps` stands twice: remove one (line 2, column"),
        "{error}"
    );
}

/// What transformers does not look at for a class is not obeyed here.
#[test]
fn what_the_class_passes_over_is_not_obeyed() {
    type Edit = fn(&mut Value);
    let cases: [(&str, Edit); 9] = [
        ("qwen2", |c| c["sliding_window"] = json!(8)),
        ("qwen2", |c| c["attention_bias"] = json!(false)),
        // it slides from layer 28 on
        ("qwen3", |c| {
            c["use_sliding_window"] = json!(true);
            c["sliding_window"] = json!(8);
        }),
        ("qwen3-moe", |c| {
            c["max_window_layers"] = json!(0);
            c["sliding_window"] = json!(8);
        }),
        ("qwen3_5-moe", |c| c["text_config"]["attn_output_gate"] = json!(true)),
        ("gemma2", |c| c["hidden_act"] = json!("gelu")),
        ("gemma2", |c| c["sliding_window_size"] = json!(24)),
        ("gemma4-e2b", |c| c["text_config"]["num_global_key_value_heads"] = json!(2)),
        ("llama", |c| c["rope_parameters"]["partial_rotary_factor"] = json!(1.0)),
    ];
    for (name, edit) in cases {
        means_the_same(name, edit);
    }
}

fn opened(folder: &Path, ignore_keys: &[&str]) -> Result<Checkpoint, String> {
    let ignore_keys = ignore_keys.iter().map(|key| key.to_string()).collect();
    let source = Source { ignore_keys, ..Source::at(folder.into()) };
    Checkpoint::open(&source).map_err(|error| error.to_string())
}

#[test]
fn keys_that_nothing_reads_are_refused_noted_or_passed_over() {
    type Edit = fn(&mut Value);
    let refused: [(&str, Edit, &[&str]); 16] = [
        ("llama", |c| c["attn_config"] = json!({"rope_theta": 5e5}), &["attn_config.rope_theta"]),
        ("llama", |c| c["vendor"] = json!({"a": {"softcap": 5}}), &["vendor.a.softcap"]),
        (
            "llama",
            |c| c["per_layer_config"] = json!({"0": {"intermediate_size": 8}}),
            &["per_layer_config.0.intermediate_size", "does not compute"],
        ),
        (
            "granite-hybrid",
            |c| c["layers_block_type"] = json!(["mamba"]),
            &["layers_block_type", "does not compute"],
        ),
        (
            "llama",
            |c| c["ropeTheta"] = json!(5e5),
            &[
                "`ropeTheta` is read by nothing, and resembles `rope_theta`",
                "ignore_keys = [\"ropeTheta\"]",
            ],
        ),
        ("llama", |c| c["rope_freq_base"] = json!(5e5), &["speaks of `rope`", "nearest known key"]),
        ("llama", |c| c["rope_parameters"]["theta"] = json!(5e5), &["`rope_parameters.theta`"]),
        ("llama", |c| c["rope_parameters"]["factor"] = json!(4), &["`rope_parameters.factor`"]),
        ("llama", |c| c["partial_rotary_factor"] = json!(0.5), &["is 0.5", "turns whole heads"]),
        ("qwen3", |c| c["logits_scaling"] = json!(8), &["logits_scaling", "is 8"]),
        ("qwen3", |c| c["final_logit_softcapping"] = json!(30), &["softcapping"]),
        ("gemma3", |c| c["attention_bias"] = json!(true), &["attention_bias", "is true"]),
        ("gemma4-31b", |c| c["rope_theta"] = json!(1e6), &["rope_theta", "read by nothing"]),
        (
            "gemma4-e2b",
            |c| c["rms_norm_eps"] = json!(1e-3),
            &["text_config.rms_norm_eps", "says 0.001"],
        ),
        (
            "gemma4-31b",
            |c| c["per_layer_config"]["3"]["intermediate_size"] = json!(9),
            &["per_layer_config.3.intermediate_size"],
        ),
        ("llama-yarn", |c| c["rope_parameters"]["attn_factor"] = json!(0.9), &["attn_factor"]),
    ];
    for (name, edit, words) in refused {
        is_refused(name, edit, words);
    }
    // a null says that there is no cap, and the class has one of 30
    is_refused(
        "gemma2",
        |c| {
            remove(c, "final_logit_softcapping");
            c["final_logit_softcaping"] = Value::Null;
        },
        &["`final_logit_softcaping`", "resembles `final_logit_softcapping`"],
    );
    let vendors = edited("llama", |c| {
        c["vendor_build"] = json!(7);
        c["vendor"] = json!({"a": {"b": "c"}, "empty": {}});
        c["use_cache"] = json!(true);
    });
    let checkpoint = open(vendors.path()).unwrap();
    let notes = support::notes_on_keys(&checkpoint);
    assert_eq!(notes, ["keys that nothing reads: vendor_build, vendor.a.b"]);
}

#[test]
fn the_policy_lets_keys_pass_that_are_there_and_unread() {
    let folder = edited("llama", |c| c["rope_freq_base"] = json!(5e5));
    let checkpoint = opened(folder.path(), &["rope_freq_base"]).unwrap();
    assert_eq!(
        support::notes_on_keys(&checkpoint),
        ["keys that the policy's `ignore_keys` lets pass unread: rope_freq_base"]
    );
    assert_eq!(checkpoint.reading, ["ignored key rope_freq_base"]);
    let error = |keys: &[&str]| opened(folder.path(), keys).err().unwrap();
    // one note, however many keys there are
    let two = edited("llama", |c| {
        c["rope_freq_base"] = json!(5e5);
        c["vendor_norm"] = json!(1);
    });
    let checkpoint = opened(two.path(), &["rope_freq_base", "vendor_norm"]).unwrap();
    let said = "keys that the policy's `ignore_keys` lets pass unread: rope_freq_base, vendor_norm";
    assert_eq!(support::notes_on_keys(&checkpoint), [said]);
    let absent = error(&["rope_freq_base", "rope_base"]);
    assert!(absent.contains("`rope_base` is named by the policy's `ignore_keys`"), "{absent}");
    let read = error(&["rope_freq_base", "rms_norm_eps"]);
    assert!(read.contains("`rms_norm_eps` is read"), "{read}");
    let quantized = edited("llama", |c| c["quantization_config"] = Value::Null);
    let elsewhere = opened(quantized.path(), &["quantization_config"]).err().unwrap();
    assert!(elsewhere.contains("`quantization_config` is read"), "{elsewhere}");
}

#[test]
fn a_share_of_the_head_is_transformers_share() {
    // 0.3 of 32 is 9.6, of which transformers turns the first ten by powers of 9
    let folder = edited("qwen3_5", |c| c["rope_parameters"]["partial_rotary_factor"] = json!(0.3));
    let spec = open(folder.path()).unwrap().spec;
    let rope = &spec.layers[3].attention().unwrap().rope;
    assert_eq!(rope.frequencies.len(), 5);
    let second = rope.base.powf(-2.0 / 9.0) as f32;
    assert_eq!(rope.frequencies[1], second);
    for share in [0.0, 0.01, -0.5, 1.5] {
        let edit = |c: &mut Value| c["rope_parameters"]["partial_rotary_factor"] = json!(share);
        is_refused("qwen3_5", edit, &[]);
    }
}

/// Longer contexts have other frequencies, by LongRoPE and by dynamic scaling.
#[test]
fn contexts_are_refused_beyond_which_frequencies_change() {
    let dynamic = |c: &mut Value| {
        c["rope_parameters"] = json!({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4});
    };
    for (folder, longest) in
        [(edited("phi-longrope", |_| {}), 256), (edited("llama", dynamic), 512)]
    {
        let decoder = support::load(&open(folder.path()).unwrap());
        assert!(decoder.ropes(longest).is_ok());
        let error = decoder.ropes(longest + 1).err().unwrap().to_string();
        assert!(error.contains(&format!("a context of {longest} or less")), "{error}");
    }
    means_the_same("llama", dynamic);
}

#[test]
fn what_a_new_family_does_not_compute_is_refused() {
    type Edit = fn(&mut Value);
    let cases: [(&str, Edit, &[&str]); 19] = [
        (
            "mistral",
            |c| c["layer_types"] = json!(["full_attention", "sliding_attention"]),
            &["by `sliding_window` all are"],
        ),
        (
            "ministral3",
            |c| drop(remove_at(c, "rope_parameters", "llama_4_scaling_beta")),
            &["is missing"],
        ),
        ("gpt-oss", |c| c["swiglu_limit"] = json!(6.0), &["swiglu_limit", "is 6"]),
        ("gpt-oss", |c| c["swiglu_alpha"] = json!(1.5), &["swiglu_alpha", "is 1.5"]),
        ("gpt-oss", |c| c["experts_per_token"] = json!(4), &["experts_per_token", "is not the 2"]),
        (
            "phi-longrope",
            |c| c["rope_parameters"]["short_factor"] = json!([1.0, 2.0]),
            &["short_factor", "must be 6 positive numbers"],
        ),
        (
            "phi-longrope",
            |c| c["rope_parameters"]["long_factor"] = json!([0, 1, 1, 1, 1, 1]),
            &["long_factor", "must be 6 positive numbers"],
        ),
        (
            "smollm3",
            |c| {
                c["layer_types"] = json!([
                    "full_attention",
                    "sliding_attention",
                    "full_attention",
                    "full_attention",
                    "full_attention"
                ])
            },
            &["layer_types"],
        ),
        ("olmo2", |c| c["attention_bias"] = json!(true), &["biases in attention"]),
        ("granite", |c| c["head_dim"] = json!(8), &["head_dim", "2 heads in 32"]),
        ("granite", |c| c["residual_multiplier"] = json!(0.0), &["must not be 0"]),
        (
            "granite-hybrid",
            |c| c["layer_types"] = json!(["attention", "mamba"]),
            &["a layer of Mamba", "`mamba` of layer 1"],
        ),
        (
            "granite-hybrid",
            |c| c["layer_types"] = json!(["linear_attention", "attention"]),
            &["a layer of Mamba", "`linear_attention` of layer 0"],
        ),
        ("granite-hybrid", |c| c["layer_types"] = json!(null), &["layer_types` is missing"]),
        (
            "granite-hybrid",
            |c| c["position_embedding_type"] = json!("learned"),
            &["position_embedding_type", "is `learned`"],
        ),
        ("glm4-moe", |c| c["n_group"] = json!(2), &["n_group", "is 2"]),
        ("qwen3", |c| c["attention_bias"] = json!(true), &["self_attn.q_proj.bias` is missing"]),
        ("qwen2-window", |c| c["use_sliding_window"] = json!(false), &["give none"]),
        (
            "qwen3-vl",
            |c| c["text_config"]["rope_parameters"]["mrope_sections"] = json!([1]),
            &["mrope_section"],
        ),
    ];
    for (name, edit, words) in cases {
        is_refused(name, edit, words);
    }
}

fn remove_at(config: &mut Value, object: &str, key: &str) -> Value {
    remove(&mut config[object], key)
}

/// Configurations as transformers' classes with vision towers save them.
#[test]
fn wrappers_of_llava_are_read() {
    let llava = json!({
        "image_token_index": 32000, "image_seq_length": 576, "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": "default", "vision_feature_layer": [-2, -5],
        "multimodal_projector_bias": true, "ignore_index": -100
    });
    let pinpoints = json!({
        "image_grid_pinpoints": [[336, 672]], "use_image_newline_parameter": true,
        "vision_aspect_ratio": "anyres_max_9", "video_token_index": 151647
    });
    for (kind, own) in [
        ("llava", json!({})),
        ("llava_next", pinpoints.clone()),
        ("llava_onevision", pinpoints),
        ("vipllava", json!({ "projector_layernorm_eps": 1e-5 })),
        ("internvl", json!({ "downsample_ratio": 0.5 })),
    ] {
        means_the_same("llama", |config| {
            let mut whole = llava.clone();
            whole.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
            whole["model_type"] = json!(kind);
            whole["tie_word_embeddings"] = config["tie_word_embeddings"].clone();
            whole["vision_config"] = json!({ "model_type": "clip_vision_model" });
            whole["text_config"] = config.take();
            *config = whole;
        });
    }
}

/// transformers' Gemma3Attention has no cap, and its class with a vision tower none of logits.
#[test]
fn caps_of_gemma_3_are_those_that_transformers_applies() {
    let wrap = |config: &mut Value| {
        let text = config.take();
        *config = json!({ "model_type": "gemma3", "text_config": text });
    };
    means_the_same("gemma3", wrap);
    let said = "is 5, which this version does not compute";
    is_refused("gemma3", |c| c["attn_logit_softcapping"] = json!(5), &["attn_logit", said]);
    let capped = |c: &mut Value| c["final_logit_softcapping"] = json!(5);
    is_refused(
        "gemma3",
        |config| {
            capped(config);
            wrap(config);
        },
        &["text_config.final_logit_softcapping", said],
    );
    let alone = edited("gemma3", capped);
    assert_eq!(open(alone.path()).unwrap().spec.final_softcap, Some(5.0));
}

/// transformers divides by a cap.
#[test]
fn a_cap_of_zero_is_no_absent_cap() {
    for name in ["gemma2", "gemma3", "gemma4-31b"] {
        let edit = |c: &mut Value| c["final_logit_softcapping"] = json!(0.0);
        is_refused(name, edit, &["final_logit_softcapping", "is 0", "null means none"]);
    }
    is_refused("gemma2", |c| c["attn_logit_softcapping"] = json!(0), &["null means none"]);
    let none = edited("gemma2", |c| c["final_logit_softcapping"] = Value::Null);
    assert_eq!(open(none.path()).unwrap().spec.final_softcap, None);
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
        ("llama", |c| c["rope_parameters"]["rope_type"] = json!("longrope"), &["short_factor"]),
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

/// Microsoft's own Phi folders bring code, which transformers does not run unless it is told to, and keys of theirs.
#[test]
fn code_of_a_folder_is_passed_over_if_transformers_has_the_class() {
    let microsofts = |config: &mut Value| {
        config["auto_map"] = json!({
            "AutoConfig": "configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
            "AutoTokenizer": "Xenova/gpt-4o",
        });
        for (key, value) in [
            ("attention_bias", json!(false)),
            ("full_attn_mod", json!(1)),
            ("interpolate_factor", json!(1)),
            ("lm_head_bias", json!(false)),
            ("mlp_bias", json!(false)),
        ] {
            config[key] = value;
        }
    };
    means_the_same("phi-longrope", microsofts);
    let notes = open(edited("phi-longrope", microsofts).path()).unwrap().notes;
    let note = notes.iter().find(|note| note.contains("own code")).unwrap();
    for word in ["modeling_phi3.Phi3ForCausalLM", "does not run", "class for `phi3`"] {
        assert!(note.contains(word), "`{word}` was not said: {note}");
    }
    let unknown = |config: &mut Value| {
        microsofts(config);
        config["model_type"] = json!("phi3small");
    };
    let code = ["`auto_map`", "modeling_phi3.Phi3ForCausalLM", "`model_type`"];
    is_refused("phi-longrope", unknown, &code);
    let biased = |config: &mut Value| config["lm_head_bias"] = json!(true);
    is_refused("phi-longrope", biased, &["lm_head_bias"]);
}
