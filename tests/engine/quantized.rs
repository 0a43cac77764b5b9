//! Quantized checkpoints against what the formats' own packages make of them, and against transformers on the
//! dequantized weights (fixtures: `scripts/oracle/quantized.py`).

use crate::support::folder::{copied, edit_config, edit_weights, open, File};
use crate::support::forward::{effective, logits, relative};
use crate::support::{self, fixture, ids, root, tolerance};
use kvgate::internals::hash;
use kvgate::internals::model::Checkpoint;
use serde_json::{json, Value};
use std::path::PathBuf;
use tempfile::TempDir;

const FOLDERS: [&str; 32] = [
    "autoround",
    "autoround-awq",
    "autoround-zeros",
    "awq",
    "bnb-fp4",
    "bnb-int8",
    "bnb-nf4",
    "ct-fp8",
    "ct-fp8-blocks",
    "ct-int4",
    "ct-int4-order",
    "ct-int4-zeros",
    "ct-int8",
    "ct-int8-packed",
    "ct-mxfp4",
    "ct-nvfp4",
    "fp8-blocks",
    "fp8-rows",
    "fp8-tensor",
    "gptq",
    "gptq-8",
    "gptq-order",
    "gptq-v2",
    "mlx-affine-3",
    "mlx-affine-4",
    "mlx-affine-6",
    "mlx-affine-8",
    "mlx-mxfp4-4",
    "mlx-mxfp8-8",
    "mlx-nvfp4-4",
    "modelopt-fp8",
    "modelopt-nvfp4",
];

fn stored(name: &str) -> PathBuf {
    root().join("tests/fixtures/quantized").join(name)
}

/// A copy of a fixture with a tokenizer.
fn folder(name: &str) -> TempDir {
    let folder = copied(&stored(name));
    let tokenizer = root().join("tests/fixtures/checkpoints/llama/tokenizer.json");
    std::fs::copy(tokenizer, folder.path().join("tokenizer.json")).unwrap();
    folder
}

/// A copy with its description edited.
fn described(name: &str, edit: impl Fn(&mut Value)) -> TempDir {
    let folder = folder(name);
    edit_config(&folder, edit);
    folder
}

/// A copy with its weights edited.
fn edited(name: &str, edit: impl Fn(&mut File)) -> TempDir {
    let folder = folder(name);
    edit_weights(&folder, edit);
    folder
}

fn sha256(checkpoint: &Checkpoint, name: &str) -> String {
    let tensor = checkpoint.tensor(name).unwrap();
    let numbers: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    hash::of_file(file.path()).unwrap()
}

/// Every weight has the bits that the format's package computes in f32, and the model transformers' logits.
#[test]
fn weights_are_those_of_the_formats_own_packages() {
    for name in FOLDERS {
        let folder = folder(name);
        let checkpoint = open(folder.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let oracle = fixture(&format!("quantized/{name}/oracle.json"));
        let weights = oracle["weights"].as_object().unwrap();
        for (weight, want) in weights {
            assert_eq!(sha256(&checkpoint, weight), want.as_str().unwrap(), "{name}: {weight}");
        }
        let note = checkpoint.notes.iter().find(|note| note.contains("weights are quantized"));
        let count = weights.len().to_string();
        assert!(
            note.is_some_and(|note| note.starts_with(&count)),
            "{name}: {:?}",
            checkpoint.notes
        );
        let logits = logits(&support::load(&checkpoint), &ids(&oracle["ids"]));
        for want in oracle["positions"].as_array().unwrap() {
            let row = logits.get(want["position"].as_u64().unwrap() as usize).unwrap();
            let got: Vec<f32> = row.to_vec1().unwrap();
            let distance = relative(
                &got,
                want["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()),
            );
            assert!(distance <= tolerance(1e-4), "{name}: {distance:.1e}");
        }
    }
}

/// What a description says and nobody understands is an error that names it.
#[test]
fn descriptions_are_read_to_their_last_member() {
    for (name, key, value, words) in [
        ("fp8-blocks", "fmt", json!("e5m2"), &["quantization_config.fmt", "e5m2"][..]),
        ("fp8-blocks", "surprise", json!(1), &["quantization_config.surprise", "does not know"]),
        ("fp8-blocks", "weight_block_size", json!([32, 32]), &["weight_scale_inv", "does not fit"]),
        (
            "fp8-blocks",
            "modules_to_not_convert",
            json!(["q_proj"]),
            &["q_proj", "leaves `q_proj` out"],
        ),
        (
            "fp8-tensor",
            "kv_cache_scheme",
            json!({"num_bits": 4}),
            &["kv_cache_scheme.num_bits", "4"],
        ),
        ("fp8-tensor", "kv_cache_scheme", json!("dynamic"), &["kv_cache_scheme", "dynamic"]),
        ("ct-int4", "format", json!("marlin-24"), &["quantization_config.format", "marlin-24"]),
        ("ct-int4", "transform_config", json!({"R1": {}}), &["transform_config", "R1"]),
        (
            "ct-int4",
            "quantization_status",
            json!("calibration"),
            &["quantization_status", "calibration"],
        ),
        (
            "ct-nvfp4",
            "kv_cache_scheme",
            json!({"strategy": "attn_head"}),
            &["strategy", "attn_head"],
        ),
        ("modelopt-nvfp4", "quant_algo", json!("W4A8_AWQ"), &["quant_algo", "w4a8_awq"]),
        ("modelopt-nvfp4", "quant_algo", json!("FP8"), &["num_bits` is 4", "says FP8"]),
        ("awq", "version", json!("gemv"), &["quantization_config.version", "gemv"]),
        ("awq", "bits", json!(8), &["quantization_config.bits", "8"]),
        ("awq", "q_group_size", json!(64), &["q_group_size", "is 64, and `group_size` is"]),
        ("gptq", "bits", json!(3), &["quantization_config.bits", "3"]),
        ("gptq", "dynamic", json!({"-:.*": {}}), &["quantization_config.dynamic"]),
        ("gptq", "checkpoint_format", json!("marlin"), &["checkpoint_format", "marlin"]),
        ("gptq", "group_size", json!(64), &["`group_size`", "quantize_config.json"]),
        ("awq", "backend", json!("llm-awq"), &["quantization_config.backend", "llm-awq"]),
        ("awq", "desc_act", json!(true), &["quantization_config.desc_act", "true"]),
        ("gptq", "data_type", json!("mx_fp"), &["quantization_config.data_type", "mx_fp"]),
        ("bnb-nf4", "bnb_4bit_quant_type", json!("nf3"), &["bnb_4bit_quant_type", "nf3"]),
        ("bnb-nf4", "load_in_8bit", json!(true), &["load_in_4bit"]),
        ("mlx-affine-4", "mode", json!("mxfp4"), &["different ways"]),
    ] {
        let folder = described(name, |config| config["quantization_config"][key] = value.clone());
        let error = open(folder.path()).err().unwrap_or_else(|| panic!("{name} {key} {value}"));
        for word in words {
            assert!(error.contains(word), "{name} {key}: `{word}` was not said: {error}");
        }
    }
    let other = described("gptq", |config| {
        config["quantization_config"] =
            json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"});
    });
    let error = open(other.path()).err().unwrap();
    assert!(error.contains("different ways"), "{error}");
}

/// Groups of the configuration describe each layer of compressed-tensors.
#[test]
fn a_layer_that_no_group_describes_is_refused() {
    for (name, key, value) in [
        ("ct-int4", "num_bits", json!(8)),
        ("ct-int4", "group_size", json!(16)),
        ("ct-int4", "type", json!("float")),
        ("ct-int8", "strategy", json!("tensor")),
        // its codes need more
        ("ct-int8", "num_bits", json!(4)),
        ("ct-fp8-blocks", "block_structure", json!([32, 32])),
        ("ct-nvfp4", "group_size", json!(32)),
    ] {
        let folder = described(name, |config| {
            config["quantization_config"]["config_groups"]["group_0"]["weights"][key] =
                value.clone();
        });
        let error = open(folder.path()).err().unwrap_or_else(|| panic!("{name} {key} {value}"));
        assert!(error.contains("no group of the configuration describes"), "{name} {key}: {error}");
    }
}

#[test]
fn a_description_without_quantized_weights_is_refused() {
    let folder = described("fp8-blocks", |config| {
        config["quantization_config"] = json!({"quant_method": "mxfp4"});
    });
    let error = open(folder.path()).err().unwrap();
    assert!(error.contains("is F8_E4M3, which is not what") && error.contains("mxfp4"), "{error}");
    let plain = copied(&root().join("tests/fixtures/checkpoints/llama"));
    edit_config(&plain, |config| {
        config["quantization_config"] = json!({"quant_method": "mxfp4"});
    });
    let error = open(plain.path()).err().unwrap();
    assert!(error.contains("no tensor is"), "{error}");
}

/// A copy with the description in config.json edited, and the one in another file in the same way or in another.
fn both(name: &str, beside: &str, own: impl Fn(&mut Value), other: impl Fn(&mut Value)) -> TempDir {
    let folder = described(name, |config| own(&mut config["quantization_config"]));
    let path = folder.path().join(beside);
    let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let nested = file.get("quantization").is_some();
    other(if nested { &mut file["quantization"] } else { &mut file });
    std::fs::write(path, file.to_string()).unwrap();
    folder
}

/// What two files say in different ways is an error even where the numbers would be the same.
#[test]
fn descriptions_in_two_files_must_agree() {
    for (name, beside, key, value, word) in [
        ("gptq", "quantize_config.json", "sym", json!(true), "`sym`"),
        ("gptq", "quantize_config.json", "desc_act", json!(true), "`desc_act`"),
        ("gptq", "quantize_config.json", "bits", json!(8), "`bits`"),
        ("gptq", "quantize_config.json", "checkpoint_format", json!("gptq_v2"), "`format`"),
        ("awq", "quant_config.json", "q_group_size", json!(64), "`group_size`"),
        ("modelopt-nvfp4", "hf_quant_config.json", "quant_algo", json!("FP8"), "`quant_algo`"),
        (
            "modelopt-nvfp4",
            "hf_quant_config.json",
            "kv_cache_quant_algo",
            Value::Null,
            "the cache (`kv_cache_quant_algo`",
        ),
    ] {
        let folder = both(name, beside, |_| {}, |other| other[key] = value.clone());
        let error = open(folder.path()).err().unwrap_or_else(|| panic!("{name} {key}"));
        for word in ["config.json", beside, "different ways", word] {
            assert!(error.contains(word), "{name} {key}: `{word}` was not said: {error}");
        }
    }
    let cache = both(
        "modelopt-nvfp4",
        "hf_quant_config.json",
        |own| own["kv_cache_scheme"] = Value::Null,
        |_| {},
    );
    assert!(open(cache.path()).err().unwrap().contains("differ in the cache"));
    let twice = both("awq", "quant_config.json", |own| own["zero_point"] = json!(false), |_| {});
    let error = open(twice.path()).err().unwrap();
    assert!(error.contains("differ in `zero_point`"), "{error}");
}

/// Kernels take zero points and orders from the description, and do not look at what is stored.
#[test]
fn a_description_that_the_tensors_contradict_is_refused() {
    for (name, beside, key, value, word) in [
        ("gptq", "quantize_config.json", "sym", json!(true), "`sym: true`, by which all are 8"),
        ("gptq-8", "quantize_config.json", "sym", json!(true), "by which all are 128"),
        ("gptq-order", "quantize_config.json", "desc_act", json!(false), "`desc_act: false`"),
        ("awq", "quant_config.json", "zero_point", json!(false), "all are 8"),
    ] {
        let edit = |described: &mut Value| described[key] = value.clone();
        let error = open(both(name, beside, edit, edit).path()).err();
        let error = error.unwrap_or_else(|| panic!("{name} {key}"));
        assert!(error.contains(word), "{name} {key}: {error}");
    }
    let format = |name: &str, format: &str, own: Value| {
        let folder = described(name, |config| {
            config["quantization_config"]["format"] = format.into();
            config["quantization_config"]["config_groups"]["group_0"]["format"] = own.clone();
        });
        open(folder.path()).map(drop)
    };
    for (name, said, own) in [
        ("ct-int4", "float-quantized", Value::Null),
        ("ct-int4", "pack-quantized", json!("int-quantized")),
        ("ct-int4", "dense", Value::Null),
        ("ct-fp8", "pack-quantized", Value::Null),
        ("ct-int8", "float-quantized", Value::Null),
        ("ct-nvfp4", "mxfp4-pack-quantized", Value::Null),
        ("ct-mxfp4", "mixed-precision", json!("nvfp4-pack-quantized")),
    ] {
        let error = format(name, said, own).err().unwrap_or_else(|| panic!("{name} {said}"));
        assert!(error.contains("is there for a weight that is stored as"), "{name}: {error}");
    }
    assert_eq!(format("ct-int8", "naive-quantized", Value::Null), Ok(()));
    assert_eq!(format("ct-int4", "mixed-precision", json!("pack-quantized")), Ok(()));
}

/// What only the file beside config.json says is held against the tensors, too.
#[test]
fn every_description_is_compared_with_the_tensors() {
    for (name, beside, key, value, word) in [
        ("gptq", "quantize_config.json", "sym", json!(true), "`sym: true`"),
        ("gptq-order", "quantize_config.json", "desc_act", json!(false), "`desc_act: false`"),
        ("awq", "quant_config.json", "zero_point", json!(false), "all are 8"),
        (
            "modelopt-nvfp4",
            "hf_quant_config.json",
            "exclude_modules",
            json!(["self_attn.q_proj"]),
            "leaves `self_attn.q_proj` out",
        ),
    ] {
        let own = |own: &mut Value| drop(own.as_object_mut().unwrap().remove(key));
        let folder = both(name, beside, own, |other| other[key] = value.clone());
        let error = open(folder.path()).err().unwrap_or_else(|| panic!("{name} {key}"));
        assert!(error.contains(word), "{name} {key}: {error}");
    }
    // the file that AutoRound writes in every format
    let folder = folder("autoround");
    let own = fixture("quantized/autoround/config.json")["quantization_config"].clone();
    let path = folder.path().join("quantization_config.json");
    std::fs::write(&path, own.to_string()).unwrap();
    open(folder.path()).unwrap();
    let mut other = own;
    other["group_size"] = json!(64);
    std::fs::write(&path, other.to_string()).unwrap();
    let error = open(folder.path()).err().unwrap();
    assert!(error.contains("differ in `group_size`"), "{error}");
}

/// A list may name modules by any parts of their names, or by patterns.
#[test]
fn modules_that_are_left_out_are_not_quantized() {
    let with = |name: &str, key: &str, list: Value| {
        described(name, |config| config["quantization_config"][key] = list.clone())
    };
    for (name, key, entry) in [
        ("awq", "modules_to_not_convert", "self_attn"),
        ("awq", "modules_to_not_convert", "model.layers.0."),
        ("fp8-tensor", "modules_to_not_convert", "mlp"),
        ("modelopt-fp8", "ignore", "model.layers.0.self_attn*"),
        ("ct-int4", "ignore", "re:.*q_proj"),
    ] {
        let folder = with(name, key, json!([entry]));
        let error = open(folder.path()).err().unwrap_or_else(|| panic!("{name} {entry}"));
        assert!(error.contains(&format!("leaves `{entry}` out")), "{name} {entry}: {error}");
    }
    let (compared, plain) = ("are not compared", "does not leave them out");
    for (name, key, list, said) in [
        ("ct-int4", "ignore", json!([r"re:.*\.\d\..*", "lm_head"]), Some(compared)),
        ("ct-int4", "ignore", json!(["lm_head"]), Some(plain)),
        ("ct-int4", "ignore", json!(["lm_head", "re:.*o_proj"]), None),
        ("awq", "modules_to_not_convert", json!([]), Some(plain)),
        ("awq", "modules_to_not_convert", json!(["o_proj"]), None),
        ("awq", "modules_to_not_convert", json!(["model.layers.*.self_attn.o_*"]), None),
    ] {
        let notes = open(with(name, key, list.clone()).path()).unwrap().notes;
        for word in [compared, plain] {
            let is_said = notes.iter().any(|note| note.contains(word));
            assert_eq!(is_said, said == Some(word), "{name} {list}: {notes:?}");
        }
    }
}

/// Numbers that no program writes, and kernels take for others.
#[test]
fn damaged_orders_and_scales_are_refused() {
    let set = |name: &str, tensor: &str, bytes: &[u8]| {
        let folder = edited(name, |file| {
            let found = file.tensors.iter_mut().find(|(name, _)| name.ends_with(tensor));
            let data = &mut found.unwrap().1.bytes;
            data.iter_mut().zip(bytes.iter().cycle()).for_each(|(to, from)| *to = *from);
        });
        open(folder.path()).err().unwrap_or_else(|| panic!("{name} {tensor}"))
    };
    let (minus_one, not_a_number) = ((-1f32).to_le_bytes(), f32::NAN.to_le_bytes());
    for (name, tensor, bytes, word) in [
        ("gptq-order", "q_proj.g_idx", &[0; 4][..], "the order is damaged"),
        ("ct-int4-order", "q_proj.weight_g_idx", &[0; 4], "the order is damaged"),
        ("ct-int4-order", "q_proj.weight_g_idx", &[255; 4], "the order is damaged"),
        ("ct-nvfp4", "q_proj.weight_scale", &[0xb8], "below 0"),
        ("ct-nvfp4", "q_proj.weight_global_scale", &minus_one, "is -1"),
        ("modelopt-nvfp4", "q_proj.weight_scale", &[0xb8], "below 0"),
        ("modelopt-nvfp4", "q_proj.weight_scale_2", &minus_one, "is -1"),
        ("modelopt-nvfp4", "q_proj.weight_scale_2", &[0; 4], "is 0"),
        ("modelopt-nvfp4", "q_proj.weight_scale", &[0x7f], "not finite"),
        ("ct-nvfp4", "q_proj.weight_global_scale", &not_a_number, "not finite"),
        ("mlx-nvfp4-4", "q_proj.scales", &[0xb8], "below 0"),
        ("mlx-nvfp4-4", "q_proj.scales", &[0x7f], "not finite"),
    ] {
        let error = set(name, tensor, bytes);
        assert!(error.contains(word), "{name} {tensor}: {error}");
    }
    let folder = edited("bnb-nf4", |file| {
        for (name, stored) in &mut file.tensors {
            if name.contains("quant_state") {
                let data = &mut stored.bytes;
                let at = data.windows(3).position(|word| word == b"nf4").unwrap();
                data[at..at + 3].copy_from_slice(b"fp4");
            }
        }
    });
    let error = open(folder.path()).err().unwrap();
    assert!(error.contains("names another kind"), "{error}");
}

/// AutoRound in packings and with settings that are not read, and its export as plain GPTQ.
#[test]
fn autoround_is_read_by_the_name_of_its_packing() {
    let said = |name: &str, key: &str, value: Value| {
        let folder = described(name, |config| config["quantization_config"][key] = value.clone());
        open(folder.path())
            .map(|checkpoint| sha256(&checkpoint, "model.layers.0.self_attn.q_proj.weight"))
    };
    for (name, key, value, word) in [
        ("autoround", "packing_format", json!("auto_round:llm_compressor"), "llm_compressor"),
        ("autoround", "packing_format", json!("auto_round:exllamav2"), "exllamav2"),
        ("autoround", "packing_format", json!("auto_round"), "`sym: true`, by which all are 8"),
        ("autoround", "bits", json!(3), "is 3"),
        ("autoround", "data_type", json!("mx_fp"), "mx_fp"),
        ("autoround", "act_bits", json!(8), "act_bits"),
        ("autoround", "rotation_config", json!({"R1": true}), "rotation_config"),
        ("autoround", "extra_config", json!({"model.layers.0.mlp": {"bits": 8}}), "another way"),
        ("autoround", "extra_config", json!({"q_proj": {"bits": 16}}), "leaves `q_proj` out"),
        ("autoround-zeros", "sym", json!(true), "by which all are 8"),
        ("autoround-awq", "sym", json!(true), "all are 8"),
        ("autoround-awq", "bits", json!(8), "is 8"),
    ] {
        let error = said(name, key, value).err().unwrap_or_else(|| panic!("{name} {key}"));
        assert!(error.contains(word), "{name} {key}: `{word}` was not said: {error}");
    }
    // transformers takes this packing if none is named
    let own = said("autoround", "iters", json!(200));
    assert_eq!(said("autoround", "packing_format", Value::Null), own);
    for (name, packing) in [
        ("autoround", "auto_round:gptq"),
        ("autoround-zeros", "auto_round:gptqmodel"),
        ("autoround-awq", "auto_round:awq"),
    ] {
        let as_it_is = said(name, "iters", json!(200)).unwrap();
        assert_eq!(said(name, "packing_format", json!(packing)).unwrap(), as_it_is, "{name}");
    }
    // old versions named the packing by another member, and its zero points would be read as others
    let old = described("autoround-zeros", |config| {
        let described = config["quantization_config"].as_object_mut().unwrap();
        described.remove("packing_format");
        described.insert("backend".into(), json!("auto_round:exllamav2"));
    });
    let error = open(old.path()).err().unwrap();
    assert!(error.contains("is missing beside a `backend` of"), "{error}");
    let plain = described("autoround", |config| {
        let described = config["quantization_config"].as_object_mut().unwrap();
        described.remove("packing_format");
        described.remove("extra_config");
        described.insert("quant_method".into(), "gptq".into());
        described.insert("provider".into(), "auto-round".into());
    });
    let plain = open(plain.path()).unwrap();
    assert_eq!(Ok(sha256(&plain, "model.layers.0.self_attn.q_proj.weight")), own);
    // a symmetric export in AWQ's packing has the middle of the range as each zero point
    let symmetric = edited("autoround-awq", |file| {
        let zeros = file.tensors.iter_mut().filter(|(name, _)| name.ends_with(".qzeros"));
        zeros.for_each(|(_, zeros)| zeros.bytes.fill(0x88));
    });
    edit_config(&symmetric, |config| {
        config["quantization_config"]["quant_method"] = "awq".into();
        config["quantization_config"]["version"] = "gemm".into();
        config["quantization_config"]["zero_point"] = false.into();
        let described = config["quantization_config"].as_object_mut().unwrap();
        described.remove("packing_format");
        described.remove("extra_config");
    });
    open(symmetric.path()).unwrap();
    let wrapped = edited("autoround", |file| {
        let zeros = file.tensors.iter_mut().filter(|(name, _)| name.ends_with(".qzeros"));
        zeros.for_each(|(_, zeros)| zeros.bytes.fill(0xff));
    });
    edit_config(&wrapped, |config| config["quantization_config"]["sym"] = false.into());
    let error = open(wrapped.path()).err().unwrap();
    assert!(error.contains("a zero point of 15, less one"), "{error}");
}

/// No program writes scales of FP8 below 0, and engines take the largest of several.
#[test]
fn scales_of_fp8_below_0_are_refused() {
    for name in ["fp8-tensor", "fp8-blocks", "fp8-rows", "ct-fp8", "ct-fp8-blocks", "modelopt-fp8"]
    {
        let below = edited(name, |file| {
            let is_scale = |name: &str| name.contains("q_proj.weight_scale");
            let mut scales = file.tensors.iter_mut().filter(|(name, _)| is_scale(name));
            let (_, scale) = scales.next().unwrap();
            *scale.bytes.last_mut().unwrap() ^= 0x80;
        });
        let error = open(below.path()).err().unwrap_or_else(|| panic!("{name}"));
        assert!(error.contains("q_proj.weight_scale") && error.contains("below 0"), "{error}");
    }
}

/// A weight whose codes have no scale is named with the scale that is missing.
#[test]
fn a_missing_scale_is_named() {
    for (name, scale) in [
        ("fp8-tensor", "q_proj.weight_scale"),
        ("fp8-blocks", "q_proj.weight_scale_inv"),
        ("ct-fp8", "q_proj.weight_scale"),
        ("ct-int4", "q_proj.weight_scale"),
        ("modelopt-fp8", "q_proj.weight_scale"),
        ("modelopt-nvfp4", "q_proj.weight_scale"),
        ("mlx-affine-4", "q_proj.scales"),
        ("bnb-int8", "q_proj.SCB"),
        ("gptq", "q_proj.scales"),
    ] {
        let without = edited(name, |file| file.tensors.retain(|name, _| !name.ends_with(scale)));
        let error = open(without.path()).err().unwrap_or_else(|| panic!("{name}"));
        assert!(error.contains(scale) && error.contains("missing"), "{name}: {error}");
    }
}

/// `x` rounded to e4m3 by counting steps, as a check of the cache's codec.
fn e4m3(x: f32) -> f32 {
    let exponent = x.abs().log2().floor().max(-6.0);
    let step = (exponent - 3.0).exp2();
    ((x / step).round_ties_even() * step).clamp(-448.0, 448.0)
}

#[test]
fn scales_of_the_cache_are_those_that_the_checkpoint_has() {
    for name in ["fp8-tensor", "ct-fp8", "modelopt-nvfp4"] {
        let folder = folder(name);
        let checkpoint = open(folder.path()).unwrap();
        let scales = checkpoint.spec.kv_layout()[0].unwrap().stored_scales.unwrap();
        // ct-fp8 stores them in bfloat16
        for (scale, want) in scales.into_iter().zip([0.0125f32, 0.003]) {
            assert!((scale / want - 1.0).abs() < 4e-3, "{name}: {scales:?}");
        }
        let note = checkpoint.notes.iter().find(|note| note.contains("`fp8_e4m3:checkpoint`"));
        assert!(note.is_some(), "{name}: {:?}", checkpoint.notes);
        let written = effective(&checkpoint.spec, "fp8_e4m3:checkpoint").to_string();
        assert_eq!(written, "fp8_e4m3:checkpoint/fp8_e4m3:checkpoint");
    }
    let folder = folder("gptq");
    let spec = open(folder.path()).unwrap().spec;
    let without = kvgate::internals::kv::effective::Effective::new(
        &"fp8_e4m3:checkpoint".parse().unwrap(),
        &spec.kv_layout(),
        None,
    );
    let error = without.err().unwrap().to_string();
    assert!(error.contains("has none") && error.contains("scale 1"), "{error}");
}

/// What the cache gives back of K and V is e4m3 of their quotient, times the scale.
#[test]
fn a_cache_with_the_checkpoints_scales_rounds_as_engines_do() {
    use candle_core::{Device, Tensor};
    use kvgate::internals::kv::cache::KvCache;
    use kvgate::internals::kv::measuring::MeasuringCache;
    let folder = folder("fp8-tensor");
    let spec = open(folder.path()).unwrap().spec;
    let mut cache = MeasuringCache::new(effective(&spec, "fp8_e4m3:checkpoint"));
    let numbers: Vec<f32> = (0..64).map(|i| (i as f32 - 31.5) * 0.071).collect();
    // two tokens of two heads
    let x = || Tensor::from_vec(numbers.clone(), (1, 2, 2, 16), &Device::Cpu).unwrap();
    let view = cache.append(0, x(), x()).unwrap();
    for (stored, scale) in [(&view.k.stored, 0.0125f32), (&view.v.stored, 0.003)] {
        let got: Vec<f32> = stored.flatten_all().unwrap().to_vec1().unwrap();
        let want: Vec<f32> = numbers.iter().map(|x| e4m3(x / scale) * scale).collect();
        assert_eq!(got, want);
    }
}

/// A wrong size of groups or a lost order of them would give plausible weights.
#[test]
fn groups_are_those_that_the_description_says() {
    let says = |key: &str, value: Value, why: &str| {
        let folder = described("ct-int4", |config| {
            config["quantization_config"]["config_groups"]["group_0"]["weights"][key] =
                value.clone();
        });
        let error = open(folder.path()).err().unwrap_or_else(|| panic!("{key} = {value}"));
        assert!(error.contains(why), "{error}");
    };
    says("group_size", 33.into(), "as no group of the configuration describes");
    says("group_size", 40.into(), "as no group of the configuration describes");
    says("actorder", "group".into(), "weight_g_idx");
    says("actorder", "mine".into(), "no known order");
    for order in [Value::Null, "weight".into()] {
        let folder = described("ct-int4-order", |config| {
            config["quantization_config"]["config_groups"]["group_0"]["weights"]["actorder"] =
                order.clone();
        });
        let error = open(folder.path()).err().unwrap_or_else(|| panic!("actorder {order}"));
        assert!(error.contains("does not say so"), "{error}");
    }
}

/// Orders and sizes of groups that AWQ and GPTQ need, and a table that bitsandbytes does not read.
#[test]
fn what_would_be_computed_otherwise_than_by_the_package_is_refused() {
    let refused = |folder: &TempDir, why: &str| {
        let error = open(folder.path()).err().unwrap_or_else(|| panic!("opened, and not: {why}"));
        assert!(error.contains(why), "{error}");
    };
    refused(
        &edited("gptq-order", |file| file.tensors.retain(|name, _| !name.ends_with("g_idx"))),
        ".g_idx",
    );
    let ct =
        edited("ct-int4-order", |file| file.tensors.retain(|name, _| !name.ends_with("g_idx")));
    refused(&ct, "weight_g_idx");
    for (name, beside) in [("awq", "quant_config.json"), ("gptq", "quantize_config.json")] {
        let other = edited(name, |file| file.tensors.retain(|name, _| !name.ends_with("g_idx")));
        edit_config(&other, |config| config["quantization_config"]["group_size"] = 40.into());
        std::fs::remove_file(other.path().join(beside)).unwrap();
        refused(&other, "as the configuration describes it");
    }
    let turned = edited("bnb-nf4", |file| {
        let maps = file.tensors.iter_mut().filter(|(name, _)| name.ends_with("weight.quant_map"));
        maps.for_each(|(_, map)| map.bytes[3] ^= 0x80);
    });
    refused(&turned, "quant_map");
    let below = edited("ct-nvfp4", |file| {
        let scales = file.tensors.iter_mut().filter(|(name, _)| name.ends_with("global_scale"));
        scales.for_each(|(_, scale)| scale.bytes[3] ^= 0x80);
    });
    refused(&below, "is not above 0");
}

/// Scales of a cache that the model does not have are damage, and one for both sides is said.
#[test]
fn scales_of_the_cache_belong_to_layers() {
    let key = |file: &File, end: &str| {
        file.tensors.keys().find(|name| name.ends_with(end)).unwrap().clone()
    };
    for (layer, why) in [("7", "layer 7"), ("00", "no layer")] {
        let far = edited("ct-fp8", |file| {
            for end in ["k_proj.output_scale", "v_proj.output_scale"] {
                let scale = file.tensors[&key(file, end)].clone();
                file.tensors.insert(format!("model.layers.{layer}.self_attn.{end}"), scale);
            }
        });
        let error = open(far.path()).err().unwrap_or_else(|| panic!("layer {layer}"));
        assert!(error.contains(why), "{error}");
    }
    let one = edited("ct-fp8", |file| {
        file.tensors.remove(&key(file, "v_proj.output_scale"));
    });
    let notes = open(one.path()).unwrap().notes;
    assert!(notes.iter().any(|note| note.contains("no scale for V")), "{notes:?}");
}

/// Scales of activations are not used, under whatever name, and trained-out models of compressed-tensors are `frozen`.
#[test]
fn what_people_publish_beside_the_weights_is_passed_over() {
    let still = edited("fp8-tensor", |file| {
        let of_weights =
            |name: &&String| name.ends_with("weight_scale_inv") || name.ends_with("weight_scale");
        let scales: Vec<_> = file.tensors.keys().filter(of_weights).cloned().collect();
        for name in scales {
            let module = name.rsplit_once("weight_").unwrap().0;
            let scale = file.tensors[&name].clone();
            file.tensors.insert(format!("{module}activation_scale"), scale);
        }
    });
    let frozen = described("ct-fp8", |config| {
        config["quantization_config"]["quantization_status"] = "frozen".into();
    });
    for (name, other) in [("fp8-tensor", &still), ("ct-fp8", &frozen)] {
        let one = folder(name);
        let (one, other) = (open(one.path()).unwrap(), open(other.path()).unwrap());
        let weight = "model.layers.0.self_attn.q_proj.weight";
        assert_eq!(sha256(&one, weight), sha256(&other, weight), "{name}");
    }
}

/// Old AutoGPTQ wrote a bias for every layer, of zeros where the model has none.
#[test]
fn biases_of_zeros_are_passed_over_and_others_are_refused() {
    for (name, in_word) in [("gptq", 1), ("awq", 8)] {
        let biased = |last: u8| {
            edited(name, move |file| {
                let words = file.tensors.iter().filter_map(|(name, words)| {
                    Some((name.strip_suffix("qweight")?.to_owned(), words.shape[1] * in_word))
                });
                let words: Vec<_> = words.collect();
                assert!(!words.is_empty());
                for (stem, outputs) in words {
                    file.add(&format!("{stem}bias"), "F16", &[outputs], 2);
                    *file
                        .tensors
                        .get_mut(&format!("{stem}bias"))
                        .unwrap()
                        .bytes
                        .last_mut()
                        .unwrap() = last;
                }
            })
        };
        let run = |folder: &TempDir| -> Vec<f32> {
            let decoder = support::load(&open(folder.path()).unwrap());
            logits(&decoder, &[5, 7, 11, 13]).flatten_all().unwrap().to_vec1().unwrap()
        };
        let zeros = biased(0);
        assert!(run(&zeros) == run(&folder(name)), "{name}");
        let notes = open(zeros.path()).unwrap().notes;
        assert!(notes.iter().any(|note| note.contains("are all zeros")), "{notes:?}");
        let error = open(biased(0x3c).path()).err().unwrap();
        assert!(error.contains("_proj.bias"), "{name}: {error}");
    }
}

#[test]
fn numbers_of_another_kind_than_the_configuration_says_are_refused() {
    for (name, kind) in [("bnb-nf4", "fp4"), ("bnb-fp4", "nf4")] {
        let other = described(name, |config| {
            config["quantization_config"]["bnb_4bit_quant_type"] = kind.into();
        });
        let error = open(other.path()).err().unwrap_or_else(|| panic!("{name}"));
        assert!(error.contains("is stored as") && error.contains(kind), "{error}");
    }
}
