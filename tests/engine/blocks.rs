//! Whole files whose weights are blocks of each of ggml's types, against files with the same numbers as F32.

use crate::support::forward::logits;
use crate::support::metadata::{Entry, Metadata, Stored};
use crate::support::tiny::{self, Damage, Random};
use crate::support::{fixture, load, root};
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::Device;
use kvgate::internals::compute::blocks::{BlockType, TYPES};
use kvgate::internals::model::Checkpoint;
use kvgate::internals::source::Source;
use std::fs::File;
use std::path::PathBuf;

const HIDDEN: usize = 256;
/// The vocabulary, the heads and the layers of the tiny checkpoint.
const VOCAB: usize = 262;
const KV_WIDTH: usize = 128;
const LAYERS: usize = 2;

/// The root mean square of weights.
const SPREAD: f32 = 0.1;

const IDS: [u32; 12] = [5, 7, 11, 13, 200, 261, 0, 1, 64, 65, 66, 67];

/// A folder with files of one architecture, whose rows are whole blocks of all types.
struct Files {
    folder: tempfile::TempDir,
    metadata: Metadata,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        let size = |key| Damage::Metadata(key, Value::U32(HIDDEN as u32));
        let damage = ["llama.embedding_length", "llama.feed_forward_length"].map(size);
        tiny::write(&path, 1, &damage);
        let metadata = Metadata::of(&std::fs::read(&path).unwrap());
        Files { folder, metadata }
    }

    fn write(&self, name: &str, tensors: &[Stored]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, self.metadata.with_tensors(tensors)).unwrap();
        path
    }

    fn logits(&self, tensors: &[Stored]) -> Vec<f32> {
        let path = self.write("model.gguf", tensors);
        let checkpoint = opened(path).unwrap();
        logits(&load(&checkpoint), &IDS).flatten_all().unwrap().to_vec1().unwrap()
    }
}

fn opened(path: PathBuf) -> Result<Checkpoint, String> {
    Checkpoint::open(&Source::at(path)).map_err(|error| error.to_string())
}

/// The names and shapes of a model's matrices, outermost dimension first.
fn matrices() -> Vec<(String, Vec<usize>)> {
    let parts = [
        ("attn_q", HIDDEN),
        ("attn_k", KV_WIDTH),
        ("attn_v", KV_WIDTH),
        ("attn_output", HIDDEN),
        ("ffn_gate", HIDDEN),
        ("ffn_up", HIDDEN),
        ("ffn_down", HIDDEN),
    ];
    let in_layers = (0..LAYERS).flat_map(|layer| {
        parts.map(|(part, rows)| (format!("blk.{layer}.{part}.weight"), vec![rows, HIDDEN]))
    });
    let outside = ["token_embd", "output"].map(|n| (format!("{n}.weight"), vec![VOCAB, HIDDEN]));
    in_layers.chain(outside).collect()
}

fn of_f32(name: String, shape: Vec<usize>, numbers: &[f32]) -> Stored {
    let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    Stored { name, code: 0, shape, bytes }
}

fn norms() -> impl Iterator<Item = Stored> {
    let in_layers = (0..LAYERS).flat_map(|layer| {
        ["attn_norm", "ffn_norm"].map(|part| format!("blk.{layer}.{part}.weight"))
    });
    let names = in_layers.chain(["output_norm.weight".into()]);
    let mut random = Random(9);
    names.map(move |name| {
        let numbers: Vec<_> = (0..HIDDEN).map(|_| 1.0 + 0.1 * random.normal()).collect();
        of_f32(name, vec![HIDDEN], &numbers)
    })
}

fn numbers(of: &BlockType, blocks: &[u8]) -> Vec<f32> {
    let elements = blocks.len() / of.bytes * of.elements;
    of.dequantized(blocks, &[elements], &Device::Cpu).unwrap().to_vec1().unwrap()
}

/// The blocks of the fixture, with scales that make weights of them. `None` for types without blocks.
fn blocks(of: &BlockType) -> Option<Vec<u8>> {
    let fixture = &fixture("blocks.json")["types"][of.name];
    let hex = fixture["blocks"].as_str().unwrap();
    let bytes =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
    let mut blocks: Vec<u8> = bytes.collect();
    let halves = fixture["halves"].as_array().unwrap().iter();
    let halves: Vec<_> = halves.map(|at| at.as_u64().unwrap() as usize).collect();
    let mut rescale = |scale: f32| {
        let bits = half::f16::from_f32(scale).to_bits();
        for block in blocks.chunks_mut(of.bytes) {
            match of.name {
                // powers of two around a 256th
                "MXFP4" => block[0] = 118 + block[0] % 5,
                "NVFP4" => block[..4].iter_mut().for_each(|scale| *scale &= 0x1f),
                // a quarter of the scale stands in the high bits of each word
                "IQ1_M" => (0..4).for_each(|word| {
                    let high = &mut block[49 + 2 * word];
                    *high = *high & 15 | ((bits >> (4 * word)) as u8 & 15) << 4;
                }),
                _ => halves.iter().for_each(|at| {
                    block[*at..at + 2].copy_from_slice(&bits.to_le_bytes());
                }),
            }
        }
        blocks.clone()
    };
    let with_one = numbers(of, &rescale(1.0));
    let squares: f32 = with_one.iter().map(|x| x * x).sum();
    let rescaled = rescale(SPREAD / (squares / with_one.len() as f32).sqrt());
    (of.elements > 1).then_some(rescaled)
}

/// The matrices of a model as blocks of a type: those of the fixture, from another one on in each matrix.
fn model(of: &BlockType, blocks: &[u8]) -> Vec<Stored> {
    let count = blocks.len() / of.bytes;
    let matrices = matrices().into_iter().enumerate().map(|(number, (name, shape))| {
        let needed = shape.iter().product::<usize>() / of.elements;
        let bytes = (0..needed).flat_map(|block| {
            let at = (block + 5 * number) % count;
            blocks[at * of.bytes..(at + 1) * of.bytes].iter().copied()
        });
        Stored { name, code: of.code, bytes: bytes.collect(), shape }
    });
    matrices.chain(norms()).collect()
}

/// The same numbers as F32, each tensor times a scale.
fn twin(model: &[Stored], scale: impl Fn(&str) -> f32) -> Vec<Stored> {
    let twins = model.iter().map(|tensor| {
        let of = TYPES.iter().find(|of| of.code == tensor.code).unwrap();
        let scale = scale(&tensor.name);
        let numbers: Vec<_> = numbers(of, &tensor.bytes).iter().map(|x| x * scale).collect();
        of_f32(tensor.name.clone(), tensor.shape.clone(), &numbers)
    });
    twins.collect()
}

fn named(name: &str) -> &'static BlockType {
    TYPES.iter().find(|of| of.name == name).unwrap()
}

#[test]
fn a_file_of_each_type_is_the_model_with_these_numbers() {
    let files = Files::new();
    let mut seen = Vec::new();
    for of in TYPES.iter().filter(|of| of.is_read()) {
        let Some(blocks) = blocks(of) else { continue };
        let model = model(of, &blocks);
        let found = files.logits(&model);
        assert!(found.iter().all(|x| x.is_finite()), "{}", of.name);
        assert!(found == files.logits(&twin(&model, |_| 1.0)), "{}", of.name);
        assert!(!seen.contains(&found), "{}: another model's logits", of.name);
        seen.push(found);
    }
    assert_eq!(seen.len(), TYPES.iter().filter(|of| of.is_read() && of.elements > 1).count());
}

/// NVFP4 as llama.cpp's converter writes it.
#[test]
fn scales_beside_nvfp4_are_multiplied_into_its_weights() {
    let files = Files::new();
    let model = || model(named("NVFP4"), &blocks(named("NVFP4")).unwrap());
    let scale = |name: String, scale: &[f32]| of_f32(name, vec![scale.len()], scale);
    let with = |tensors: Vec<Stored>| model().into_iter().chain(tensors).collect::<Vec<_>>();
    let scaled = with(vec![
        scale("blk.0.attn_q.scale".into(), &[0.7]),
        scale("blk.1.ffn_down.scale".into(), &[1.3]),
        scale("output.scale".into(), &[0.9]),
        scale("blk.1.ffn_down.input_scale".into(), &[0.01]),
    ]);
    let expected = twin(&model(), |name| match name {
        "blk.0.attn_q.weight" => 0.7,
        "blk.1.ffn_down.weight" => 1.3,
        "output.weight" => 0.9,
        _ => 1.0,
    });
    let found = files.logits(&scaled);
    assert!(found == files.logits(&expected));
    assert!(found != files.logits(&model()));
    for (tensor, words) in [
        // one scale too many, another type, and scales that no engine reads
        (scale("blk.0.attn_q.scale".into(), &[1.0; 2]), "must hold 1 numbers"),
        (Stored { code: 1, bytes: vec![0; 2], ..scale("output.scale".into(), &[1.0]) }, "is F16"),
        (scale("blk.0.attn_q.scale".into(), &[-0.7]), "holds -0.7"),
        (scale("output.scale".into(), &[f32::NAN]), "must be finite and above 0"),
        (scale("token_embd.scale".into(), &[2.0]), "token_embd.scale"),
        (scale("blk.0.attn_norm.scale".into(), &[2.0]), "attn_norm.scale"),
    ] {
        let error = opened(files.write("refused.gguf", &with(vec![tensor]))).err().unwrap();
        assert!(error.contains(words), "{error}");
    }
    let q8_0 = named("Q8_0");
    let mut other = self::model(q8_0, &blocks(q8_0).unwrap());
    other.push(scale("blk.0.attn_q.scale".into(), &[0.7]));
    let error = opened(files.write("refused.gguf", &other)).err().unwrap();
    assert!(error.contains("blk.0.attn_q.scale"), "{error}");
}

/// A small Gemma 4 with experts whose matrices down are NVFP4, and wide enough for its blocks.
fn gemma_4() -> (Metadata, Vec<Stored>) {
    let path = root().join("tests/fixtures/checkpoints/gemma4-26b/model.gguf");
    let mut file = File::open(&path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let (of, mut random) = (named("NVFP4"), Random(11));
    let blocks = blocks(of).unwrap();
    let mut tensors = Vec::new();
    for (name, info) in &content.tensor_infos {
        let mut shape = info.shape.dims().to_vec();
        if name.ends_with("ffn_down_exps.weight") {
            shape[2] = of.elements;
            let needed = shape[0] * shape[1] * of.bytes;
            let bytes = blocks.iter().copied().cycle().take(needed).collect();
            tensors.push(Stored { name: name.clone(), code: of.code, shape, bytes });
        } else if name.ends_with("_exps.weight") {
            shape[1] = 2 * of.elements;
            let count = shape.iter().product();
            let numbers: Vec<_> = (0..count).map(|_| SPREAD * random.normal()).collect();
            tensors.push(of_f32(name.clone(), shape, &numbers));
        } else {
            let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap();
            let numbers = tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
            tensors.push(of_f32(name.clone(), shape, &numbers.to_vec1().unwrap()));
        }
    }
    let width = Entry::number("gemma4.expert_feed_forward_length", of.elements as u32);
    let metadata = Metadata::of(&std::fs::read(path).unwrap()).edited(|entries| {
        entries.retain(|entry| entry.key != width.key);
        entries.push(width);
    });
    (Metadata::of(&metadata), tensors)
}

/// `ffn_down_exps.scale` of Gemma 4 has the factors of its experts, and the scales of NVFP4 are multiplied into them.
#[test]
fn a_scale_of_gemma_4s_experts_counts_once_beside_nvfp4() {
    let (metadata, tensors) = gemma_4();
    let files = Files { folder: tempfile::tempdir().unwrap(), metadata };
    let found = files.logits(&tensors);
    assert!(found == files.logits(&twin(&tensors, |_| 1.0)));
    let other = |name: &str| if name.ends_with("ffn_down_exps.scale") { 3.0 } else { 1.0 };
    assert!(found != files.logits(&twin(&tensors, other)));
}
