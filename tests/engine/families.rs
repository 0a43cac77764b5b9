//! Every family on small random checkpoints: logits against HF transformers in float32 through
//! safetensors and through GGUF, whole and in parts, and every codec in parts (fixtures:
//! `scripts/oracle/checkpoints.py`).

use crate::support::folder::{copied, edit_config};
use crate::support::forward::{
    difference, effective, in_parts_by_layer, logits, logits_in_parts, portions, relative, run_part,
};
use crate::support::metadata::{Entry, Metadata};
use crate::support::{self, ids, root, tolerance};
use candle_core::quantized::gguf_file::{self, Content};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use kvgate::internals::kv::effective::Effective;
use kvgate::internals::kv::packed::PackedCache;
use kvgate::internals::model::decoder::Decoder;
use kvgate::internals::model::Checkpoint;
use kvgate::internals::source::Source;
use serde_json::Value;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Largest difference of a logit on the CPU, relative to the position's largest one.
const TOLERANCE: f64 = 1e-4;

/// The checkpoints' folders.
fn folders() -> Vec<PathBuf> {
    let folder = root().join("tests/fixtures/checkpoints");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    assert!(folders.len() >= 15, "{folders:?}");
    folders
}

fn name(folder: &Path) -> &str {
    folder.file_name().unwrap().to_str().unwrap()
}

fn load(path: PathBuf) -> Decoder {
    support::load(&Checkpoint::open(&Source::at(path)).unwrap_or_else(|error| panic!("{error}")))
}

fn oracle(folder: &Path) -> Value {
    read_json(&folder.join("logits.json"))
}

/// Logits of the GGUF file, which are others where GGUF does not record a part of the configuration.
fn gguf_oracle(folder: &Path) -> Value {
    let own = folder.join("logits-gguf.json");
    if own.exists() {
        read_json(&own)
    } else {
        oracle(folder)
    }
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Largest difference over positions, each relative to its largest logit.
fn distance(logits: &Tensor, oracle: &Value) -> f64 {
    let positions = oracle["positions"].as_array().unwrap().iter().map(|want| {
        let row = want["position"].as_u64().unwrap() as usize;
        let got: Vec<f32> = logits.get(row).unwrap().to_vec1().unwrap();
        let want = want["logits"].as_array().unwrap();
        assert_eq!(got.len(), want.len());
        relative(&got, want.iter().map(|x| x.as_f64().unwrap()))
    });
    positions.fold(0.0, f64::max)
}

/// `cargo test --test engine families:: -- --nocapture` prints the table of docs/models.md.
#[test]
fn logits_are_those_of_transformers_in_both_formats() {
    let mut failed = Vec::new();
    for folder in folders() {
        let (hf, gguf) = (oracle(&folder), gguf_oracle(&folder));
        let ids = ids(&hf["ids"]);
        let mut formats = vec![(folder.clone(), hf)];
        // llama.cpp knows no Qwen3-MoE with dense layers
        if name(&folder) != "qwen3-moe-mixed" {
            formats.push((folder.join("model.gguf"), gguf));
        }
        let mut row = format!("| `{}` | {} |", name(&folder), ids.len());
        for (path, oracle) in formats {
            let decoder = load(path);
            let whole = distance(&logits(&decoder, &ids), &oracle);
            let cache = PackedCache::new(effective(&decoder.spec, "f32"));
            let parts = logits_in_parts(&decoder, &ids, &portions(ids.len()), cache);
            let parts = distance(&parts, &oracle);
            row += &format!(" {whole:.1e} | {parts:.1e} |");
            if whole.max(parts) > tolerance(TOLERANCE) {
                failed.push(name(&folder).to_owned());
            }
        }
        println!("{row}");
    }
    assert!(failed.is_empty(), "{failed:?}");
}

/// Recurrent states cannot be truncated: a clone of the cache is what to go back to.
#[test]
fn a_snapshot_brings_back_a_sequence() {
    for folder in folders() {
        let ids = ids(&oracle(&folder)["ids"]);
        let decoder = load(folder.clone());
        let (first, second) = ids.split_at(40);
        let mut cache = PackedCache::new(effective(&decoder.spec, "f32"));
        run_part(&decoder, first, 0, &mut cache);
        let mut snapshot = cache.clone();
        let other: Vec<u32> = second.iter().rev().copied().collect();
        run_part(&decoder, &other, 40, &mut cache);
        let resumed = run_part(&decoder, second, 40, &mut snapshot);
        let whole = logits(&decoder, &ids).narrow(0, 40, second.len()).unwrap();
        let distance = difference(&resumed, &whole);
        assert!(distance <= tolerance(TOLERANCE), "{}: {distance:.1e}", name(&folder));
    }
}

/// Layer by layer on the same inputs: end to end, a difference of 1e-7 in K flips codes.
#[test]
fn every_codec_in_parts_is_the_codec_at_once() {
    let mut with_blocks = 0;
    for folder in folders() {
        let ids = ids(&oracle(&folder)["ids"]);
        let decoder = load(folder.clone());
        // blocks of 32 do not fit the smallest heads
        let mut heads = decoder.spec.kv_layout().into_iter().flatten();
        let blocks = heads.all(|kv| kv.head_dim.is_multiple_of(32));
        with_blocks += usize::from(blocks);
        let schemes: &[&str] = match blocks {
            true => &["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"],
            false => &["f16", "bf16"],
        };
        for scheme in schemes {
            let worst = in_parts_by_layer(&decoder, &ids, scheme);
            assert!(worst <= tolerance(2e-5), "{} {scheme}: {worst:.1e}", name(&folder));
        }
    }
    assert!(with_blocks >= 6, "only {with_blocks}");
}

/// Scores of the heads' own take weight from all keys. A cache of f32 costs nothing, one of 8 bits little, and one of 4
/// bits more.
#[test]
fn a_cache_of_gpt_oss_costs_what_its_bits_cost() {
    let folder = root().join("tests/fixtures/checkpoints/gpt-oss");
    let ids = ids(&oracle(&folder)["ids"]);
    let decoder = load(folder);
    let logits = |scheme: &str| -> Vec<Vec<f32>> {
        let cache = PackedCache::new(effective(&decoder.spec, scheme));
        logits_in_parts(&decoder, &ids, &[ids.len()], cache).to_vec2().unwrap()
    };
    let base = logits("f32");
    let cost = |scheme: &str| {
        let rows = base.iter().zip(logits(scheme)).map(|(p, q)| divergence(p, &q));
        rows.sum::<f64>() / base.len() as f64
    };
    let [same, eight, four] = ["f32", "q8_0", "q4_0"].map(cost);
    println!("{same:e} {eight:e} {four:e}");
    assert_eq!(same, 0.0);
    assert!(eight > 1e-7 && 20.0 * eight < four && four < 0.3, "{eight:e} {four:e}");
}

/// The KL divergence of two softmaxes, in f64.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let logs = |x: &[f32]| -> Vec<f64> {
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = x.iter().map(|x| f64::from(x - max).exp()).sum();
        x.iter().map(|x| f64::from(x - max) - sum.ln()).collect()
    };
    logs(p).iter().zip(logs(q)).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// A constant falls out of a softmax, not out of tanh: a mean of K may not be taken from capped scores.
#[test]
fn a_mean_of_k_is_refused_where_scores_are_capped() {
    let refused = folders().into_iter().filter(|folder| {
        let layout = load(folder.clone()).spec.kv_layout();
        let centered = "int8_pth:center".parse().unwrap();
        let error = Effective::new(&centered, &layout, None).err().unwrap().to_string();
        let capped = error.contains("its scores are capped (tanh)");
        assert!(capped || error.contains("needs a calibration"), "{}: {error}", name(folder));
        capped
    });
    assert_eq!(
        refused.map(|folder| name(&folder).to_owned()).collect::<Vec<_>>(),
        ["gemma2", "gpt-oss", "gpt-oss-mxfp4"]
    );
}

/// llama.cpp takes each bias by itself: a Llama with biases of Q, K and V alone is one whose other bias is zero.
#[test]
fn biases_of_attention_need_none_of_its_output() {
    let from = root().join("tests/fixtures/checkpoints/llama-linear/model.gguf");
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, zero: bool| {
        let mut file = File::open(&from).unwrap();
        let content = Content::read(&mut file).unwrap();
        let is_output = |name: &str| name.ends_with("attn_output.bias");
        let read = |name: &String| {
            let tensor =
                content.tensor(&mut File::open(&from).unwrap(), name, &Device::Cpu).unwrap();
            let zeros = || {
                let zeros = tensor.dequantize(&Device::Cpu).unwrap().zeros_like().unwrap();
                QTensor::quantize(&zeros, GgmlDType::F32).unwrap()
            };
            (name.clone(), if is_output(name) { zeros() } else { tensor })
        };
        let names = content.tensor_infos.keys().filter(|name| zero || !is_output(name));
        let tensors: Vec<_> = names.map(read).collect();
        let tensors: Vec<_> =
            tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let metadata: Vec<_> = content.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let path = folder.path().join(name);
        gguf_file::write(&mut File::create(&path).unwrap(), &metadata, &tensors).unwrap();
        logits(&load(path), &[5, 7, 11, 13]).flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(run("without.gguf", false), run("zero.gguf", true));
}

/// The released files of Qwen3-VL's mixtures store experts as (in, out), and transformers 5 saves them as (out, in).
#[test]
fn experts_of_qwen3_vl_are_read_in_both_orders() {
    let from = root().join("tests/fixtures/checkpoints/qwen3-vl-moe");
    let folder = rewritten("qwen3-vl-moe", |tensors| {
        let stacks = tensors.iter_mut().filter(|(name, _)| name.contains(".experts."));
        let turned = stacks.map(|(_, stack)| {
            *stack = stack.transpose(1, 2).unwrap().contiguous().unwrap();
        });
        assert_eq!(turned.count(), 4);
    });
    let run = |path: PathBuf| -> Vec<Vec<f32>> {
        logits(&load(path), &[5, 7, 11, 13]).to_vec2().unwrap()
    };
    assert_eq!(run(folder.path().into()), run(from));
}

/// A copy of a GGUF whose Q, K and V are joined in every layer, as some converters write them.
fn joined(from: &Path, to: &Path) {
    let mut file = File::open(from).unwrap();
    let content = Content::read(&mut file).unwrap();
    let read = |name: &str| {
        content
            .tensor(&mut File::open(from).unwrap(), name, &Device::Cpu)
            .unwrap()
            .dequantize(&Device::Cpu)
            .unwrap()
    };
    let mut tensors = Vec::new();
    for name in content.tensor_infos.keys() {
        let part = ["attn_q.", "attn_k.", "attn_v."].iter().find(|part| name.contains(**part));
        let whole = match part {
            None => read(name),
            Some(&"attn_q.") => {
                let all = ["attn_q.", "attn_k.", "attn_v."]
                    .map(|other| read(&name.replace("attn_q.", other)));
                Tensor::cat(&all, 0).unwrap()
            }
            Some(_) => continue,
        };
        let stored = QTensor::quantize(&whole, GgmlDType::F32).unwrap();
        tensors.push((name.replace("attn_q.", "attn_qkv."), stored));
    }
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let metadata: Vec<_> = content.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    gguf_file::write(&mut File::create(to).unwrap(), &metadata, &tensors).unwrap();
}

/// llama.cpp reads joined matrices of Q, K and V, and joined biases, in every family.
#[test]
fn joined_matrices_of_attention_are_those_of_each() {
    for name in ["llama", "qwen2", "llama-linear"] {
        let from = root().join("tests/fixtures/checkpoints").join(name).join("model.gguf");
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("joined.gguf");
        joined(&from, &to);
        let run = |path: PathBuf| -> Vec<f32> {
            logits(&load(path), &[5, 7, 11, 13]).flatten_all().unwrap().to_vec1().unwrap()
        };
        assert_eq!(run(to), run(from), "{name}");
    }
}

/// llama.cpp leaves pairs unturned that no section of multimodal RoPE takes. transformers' classes have no such pairs.
#[test]
fn pairs_of_qwen3_vl_that_no_section_takes_do_not_turn_in_gguf() {
    for name in ["qwen3-vl", "qwen3-vl-moe"] {
        let folder = root().join("tests/fixtures/checkpoints").join(name);
        let unturned = |path: PathBuf| -> Vec<usize> {
            let spec = Checkpoint::open(&Source::at(path)).unwrap().spec;
            let rope = &spec.layers[0].attention().unwrap().rope;
            (0..rope.frequencies.len()).filter(|pair| rope.frequencies[*pair] == 0.0).collect()
        };
        // the sections are 4, 2 and 2 of 8 pairs
        assert_eq!(unturned(folder.join("model.gguf")), [7], "{name}");
        assert_eq!(unturned(folder), [0; 0], "{name}");
    }
}

/// A copy of a small checkpoint with its weights edited.
fn rewritten(name: &str, edit: impl Fn(&mut HashMap<String, Tensor>)) -> tempfile::TempDir {
    let from = root().join("tests/fixtures/checkpoints").join(name);
    let weights = "model.safetensors";
    let folder = copied(&from);
    let mut tensors = candle_core::safetensors::load(from.join(weights), &Device::Cpu).unwrap();
    edit(&mut tensors);
    candle_core::safetensors::save(&tensors, folder.path().join(weights)).unwrap();
    folder
}

/// Of so many rows of the joined gate and up, those that are gate's, and those that are up's.
type Halves = fn(usize) -> [Vec<u32>; 2];

/// Takes the stacks of experts apart into linear maps of single experts, as tools that quantize do.
fn unroll(tensors: &mut HashMap<String, Tensor>, halves: Halves) -> usize {
    let is_stack = |name: &&String| name.contains(".experts.");
    let stacks: Vec<String> = tensors.keys().filter(is_stack).cloned().collect();
    for own in &stacks {
        let stack = tensors.remove(own).unwrap();
        let (all, end) = match own.strip_suffix("_bias") {
            Some(all) => (all, "bias"),
            None => (own.as_str(), "weight"),
        };
        let (block, part) = all.rsplit_once('.').unwrap();
        for e in 0..stack.dim(0).unwrap() {
            let expert = stack.get(e).unwrap();
            let expert = if end == "weight" { expert.t().unwrap() } else { expert };
            let mut put = |part: &str, tensor: Tensor| {
                let name = format!("{block}.{e}.{part}.{end}");
                tensors.insert(name, tensor.contiguous().unwrap());
            };
            if part == "down_proj" {
                put(part, expert);
                continue;
            }
            for (part, rows) in ["gate_proj", "up_proj"].iter().zip(halves(expert.dim(0).unwrap()))
            {
                let rows = Tensor::new(rows, &Device::Cpu).unwrap();
                put(part, expert.contiguous().unwrap().index_select(&rows, 0).unwrap());
            }
        }
    }
    stacks.len()
}

/// Single experts are linear maps, (out, in), also in families that store their stacks in another order.
#[test]
fn single_experts_are_read_whatever_the_order_of_their_stacks() {
    let apart = |n: usize| [(0..n as u32 / 2).collect(), (n as u32 / 2..n as u32).collect()];
    let alternating = |n: usize| [0, 1].map(|first| (first..n as u32).step_by(2).collect());
    let cases: [(&str, usize, Halves); 2] =
        [("qwen3-vl-moe", 4, apart), ("gpt-oss", 8, alternating)];
    for (name, stacks, halves) in cases {
        let folder = rewritten(name, |tensors| assert_eq!(unroll(tensors, halves), stacks));
        let run = |path: PathBuf| -> Vec<Vec<f32>> {
            logits(&load(path), &[5, 7, 11, 13]).to_vec2().unwrap()
        };
        let whole = run(root().join("tests/fixtures/checkpoints").join(name));
        assert!(run(folder.path().into()) == whole, "{name}");
        // older versions of llm-compressor kept them in a list of the same name
        let listed = rewritten(name, |tensors| {
            unroll(tensors, halves);
            let all = std::mem::take(tensors).into_iter();
            tensors
                .extend(all.map(|(name, x)| (name.replace(".experts.", ".experts.experts."), x)));
        });
        assert!(run(listed.path().into()) == whole, "{name}");
    }
}

/// llama.cpp's converter writes into a GGUF of Granite whether there is RoPE, where config.json says it by another key.
#[test]
fn granite_without_rope_is_the_same_in_both_formats() {
    let from = root().join("tests/fixtures/checkpoints/granite-hybrid");
    let key = "granite.rope.scaling.finetuned";
    let gguf = Metadata::of(&std::fs::read(from.join("model.gguf")).unwrap()).edited(|entries| {
        entries.retain(|entry| entry.key != key);
        entries.push(Entry::flag(key, false));
    });
    let folder = copied(&from);
    edit_config(&folder, |config| config["position_embedding_type"] = Value::Null);
    let path = folder.path().join("still.gguf");
    std::fs::write(&path, gguf).unwrap();
    let ids = ids(&oracle(&from)["ids"]);
    let [one, other, turned] =
        [path, folder.path().into(), from].map(|path| logits(&load(path), &ids));
    assert!(difference(&one, &other) <= tolerance(TOLERANCE));
    assert!(difference(&turned, &other) > 0.01);
}

/// A copy of a GGUF with one tensor more.
fn with_tensor(from: &Path, to: &Path, name: &str, values: &[f32]) {
    let content = Content::read(&mut File::open(from).unwrap()).unwrap();
    let read = |name: &String| {
        let tensor = content.tensor(&mut File::open(from).unwrap(), name, &Device::Cpu).unwrap();
        (name.clone(), tensor)
    };
    let mut tensors: Vec<_> = content.tensor_infos.keys().map(read).collect();
    let more = Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
    tensors.push((name.into(), QTensor::quantize(&more, GgmlDType::F32).unwrap()));
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let metadata: Vec<_> = content.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    gguf_file::write(&mut File::create(to).unwrap(), &metadata, &tensors).unwrap();
}

/// llama.cpp reads divisors of frequencies for some architectures and refuses the file of another one. Ollama's files
/// hold the tower of a vision model beside the text model.
#[test]
fn divisors_that_llama_cpp_does_not_read_are_refused_and_towers_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("more.gguf");
    let open = |checkpoint: &str, tensor: &str, values: &[f32]| {
        let from = root().join("tests/fixtures/checkpoints").join(checkpoint).join("model.gguf");
        with_tensor(&from, &to, tensor, values);
        Checkpoint::open(&Source::at(to.clone())).map_err(|error| error.to_string())
    };
    for name in ["qwen3", "gemma3", "smollm3", "olmo2"] {
        for divisors in ["rope_freqs.weight", "rope_factors_short.weight"] {
            let error = open(name, divisors, &[2.0; 8]).err().unwrap();
            assert!(error.contains(divisors) && error.contains("does not read"), "{name}: {error}");
        }
    }
    assert!(open("llama", "rope_freqs.weight", &[2.0; 8]).is_ok());
    for tower in ["v.blk.0.attn_k.weight", "mm.mm_input_projection.weight"] {
        let text = open("qwen3-vl", tower, &[1.0; 8]).unwrap();
        let alone = root().join("tests/fixtures/checkpoints/qwen3-vl/model.gguf");
        let alone = Checkpoint::open(&Source::at(alone)).unwrap();
        assert_eq!(format!("{:?}", text.spec), format!("{:?}", alone.spec), "{tower}");
        assert!(open("qwen3-vl", &format!("un{tower}"), &[1.0; 8]).is_err());
    }
}
