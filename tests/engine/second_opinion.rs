//! The decoder against candle-transformers' own models where those are right: `llama` and `qwen3`,
//! on the small checkpoints of the families' tests. Neither side has seen the other's code.

use crate::support::forward::logits;
use crate::support::{self, ids, root, tolerance};
use candle_core::{safetensors, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, qwen3};
use kvgate::internals::model::Checkpoint;
use kvgate::internals::source::Source;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Largest difference of a logit on the CPU, relative to the position's largest one: rounding.
const TOLERANCE: f64 = 1e-5;

fn checkpoint(name: &str) -> PathBuf {
    root().join("tests/fixtures/checkpoints").join(name)
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn weights(folder: &Path) -> VarBuilder<'static> {
    let tensors = safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let wide = |(name, tensor): (String, Tensor)| (name, tensor.to_dtype(DType::F32).unwrap());
    VarBuilder::from_tensors(tensors.into_iter().map(wide).collect(), DType::F32, &Device::Cpu)
}

/// Compares the last logits of prefixes, which is what candle's models give.
fn agrees(name: &str, peer: impl Fn(&Path, &Value, &Tensor) -> Tensor) {
    let folder = checkpoint(name);
    let config = json(folder.join("config.json"));
    let ids = ids(&json(folder.join("logits.json"))["ids"]);
    let opened = Checkpoint::open(&Source::at(folder.clone())).unwrap();
    let ours = logits(&support::load(&opened), &ids);
    for len in [1, 2, 17, 64, 65, ids.len()] {
        let input = Tensor::new(&ids[..len], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let theirs = peer(&folder, &config, &input).flatten_all().unwrap();
        let theirs: Vec<f32> = theirs.to_vec1().unwrap();
        let ours: Vec<f32> = ours.get(len - 1).unwrap().to_vec1().unwrap();
        assert_eq!(ours.len(), theirs.len());
        let largest = theirs.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let error = f64::from((ours - theirs).abs() / largest);
            assert!(error <= tolerance(TOLERANCE), "{name}, {len} tokens: {ours} and {theirs}");
        }
    }
}

fn number(config: &Value, key: &str) -> usize {
    config[key].as_u64().unwrap() as usize
}

#[test]
fn llama() {
    agrees("llama", |folder, config, input| {
        let config = llama::Config {
            hidden_size: number(config, "hidden_size"),
            intermediate_size: number(config, "intermediate_size"),
            vocab_size: number(config, "vocab_size"),
            num_hidden_layers: number(config, "num_hidden_layers"),
            num_attention_heads: number(config, "num_attention_heads"),
            num_key_value_heads: number(config, "num_key_value_heads"),
            use_flash_attn: false,
            rms_norm_eps: config["rms_norm_eps"].as_f64().unwrap(),
            rope_theta: config["rope_parameters"]["rope_theta"].as_f64().unwrap() as f32,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: number(config, "max_position_embeddings"),
            tie_word_embeddings: config["tie_word_embeddings"].as_bool().unwrap(),
        };
        let model = llama::Llama::load(weights(folder), &config).unwrap();
        let cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu);
        model.forward(input, 0, &mut cache.unwrap()).unwrap()
    });
}

#[test]
fn qwen3() {
    agrees("qwen3", |folder, config, input| {
        // candle reads the older layout of the configuration
        let mut config = config.clone();
        config["rope_theta"] = config["rope_parameters"]["rope_theta"].clone();
        let config: qwen3::Config = serde_json::from_value(config).unwrap();
        let mut model = qwen3::ModelForCausalLM::new(&config, weights(folder)).unwrap();
        model.forward(input, 0).unwrap()
    });
}
