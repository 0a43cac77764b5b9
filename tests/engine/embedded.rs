//! The models that ship with the repository: their logits against HF transformers in float32 (fixture:
//! `scripts/oracle/embedded_logits.py`), and every codec in parts. The gate measures them in `tests/gate.rs`.

use crate::support;
use crate::support::forward::{effective, in_parts_by_layer, logits, logits_in_parts, portions};
use crate::support::generation::replay_and_decode;
use crate::support::{fixture, ids, root, tolerance};
use candle_core::{safetensors, Device};
use kvgate::internals::kv::packed::PackedCache;
use kvgate::internals::measure::sanity::Unigram;
use kvgate::internals::measure::{corpus, measure, Draw, Request};
use kvgate::internals::model::decoder::{Decoder, Residency};
use kvgate::internals::model::Checkpoint;
use kvgate::internals::results::statistics::Position;
use kvgate::internals::source::Source;

const MODELS: [&str; 2] = ["gemma4-e2b-mini", "qwen3.6-moe-mini"];

/// Largest difference of a logit on the CPU, relative to the position's largest logit.
const TOLERANCE: f64 = 1e-4;

fn load(model: &str) -> Decoder {
    let source = Source::at(root().join("models").join(model));
    support::load(&Checkpoint::open(&source).unwrap_or_else(|error| panic!("{error}")))
}

#[test]
fn logits_are_those_of_transformers() {
    let oracle = fixture("embedded-logits.json");
    for model in MODELS {
        let want = &oracle["models"][model];
        let ids = ids(&want["ids"]);
        let decoder = load(model);
        let whole = logits(&decoder, &ids);
        let cache = PackedCache::new(effective(&decoder.spec, "f32"));
        let parts = logits_in_parts(&decoder, &ids, &portions(ids.len()), cache);
        for (what, logits) in [("whole", whole), ("in parts", parts)] {
            let worst = support::worst_logit(&logits, want);
            println!("{model}, {what}: largest relative error {worst:.1e}");
            assert!(worst <= tolerance(TOLERANCE), "{model}, {what}: {worst:.1e}");
        }
    }
}

/// With experts the rows of a product depend on what else is in the tile. Whatever the chunks, a lane that
/// is the baseline reads exactly 0, and so does the control.
#[test]
fn identity_is_exact_for_any_number_of_chunks() {
    for model in MODELS {
        for (context, chunks) in [(64, 17), (256, 5), (300, 4), (512, 3)] {
            let source = Source::at(root().join("models").join(model));
            let corpus = [support::corpus("persuasion.txt")];
            let request = Request {
                context,
                chunks,
                device: support::device(),
                ..support::request(&source, &corpus, &["f16"])
            };
            let measured = measure(&request, &|_, _, _| {}).unwrap_or_else(|e| panic!("{e}"));
            for control in &measured.measurement.controls {
                assert!(control.ok, "{model}, {context} × {chunks}: {control:?}");
            }
            let floor = measured.measurement.floor.expect("it is measured").mean_kld;
            println!("{model}, {context} × {chunks}: floor {floor:e}");
            assert!((-1e-12..1e-6).contains(&floor), "{model}, {context} × {chunks}: {floor}");
            let (_, positions) = &measured.positions[0];
            assert!(positions.iter().all(|p| p.kld == 0.0), "{model}, {context} × {chunks}");
        }
    }
}

/// A number that runs away inside of a layer is told with the layer.
#[test]
fn a_router_without_numbers_names_its_layer() {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(root().join("models").join(MODELS[1])).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join("model.safetensors");
    let mut tensors = safetensors::load(&path, &Device::Cpu).unwrap();
    let router = tensors.get_mut("model.layers.2.mlp.gate.weight").unwrap();
    *router = (router.ones_like().unwrap() * 3e38).unwrap();
    safetensors::save(&tensors, &path).unwrap();
    let source = Source::at(folder.path().into());
    let corpus = [support::corpus("persuasion.txt")];
    let request = Request { device: support::device(), ..support::request(&source, &corpus, &[]) };
    let error = measure(&request, &|_, _, _| {}).err().unwrap().to_string();
    assert!(error.contains("layer 2: "), "{error}");
}

/// What a baseline is held against, by a script of its own (`scripts/oracle/unigram.py`).
#[test]
fn a_unigram_model_has_the_perplexity_that_an_independent_script_gives_it() {
    for (model, expected) in [(MODELS[0], 481.135345), (MODELS[1], 480.579852)] {
        let checkpoint = Checkpoint::open(&Source::at(root().join("models").join(model))).unwrap();
        let text = corpus::read(&support::corpus("persuasion.txt")).unwrap();
        assert!(text.remarks().is_empty());
        let corpus =
            corpus::tokenized(&[text], &checkpoint.tokenizer, 512, (Draw::First, 12)).unwrap();
        assert_eq!(corpus::repeated(&corpus.chunks), None);
        let targets = corpus.chunks.iter().flat_map(|chunk| {
            let scored = chunk.scored.clone();
            chunk.tokens[scored.start + 1..scored.end + 1].iter()
        });
        let positions: Vec<Position> =
            targets.map(|&target| Position { target, ..Position::default() }).collect();
        let unigram = Unigram::fitted(&corpus.tokens, checkpoint.spec.vocab).unwrap();
        let ppl = unigram.ppl(&positions);
        assert!((ppl / expected - 1.0).abs() < 1e-8, "{model}: {ppl}");
    }
}

/// A sound model on a text of words that chance has drawn: it knows less of it than how often each token occurs.
#[test]
fn a_baseline_worse_than_a_unigram_model_is_judged_by_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("words.txt");
    let run = |bytes: usize, untrained: bool, is_gated: bool| {
        std::fs::write(&text, support::tiny::corpus(3, bytes)).unwrap();
        let source = Source { untrained, ..Source::at(root().join("models").join(MODELS[1])) };
        let corpus = std::slice::from_ref(&text);
        let request =
            Request { chunks: 1, is_gated, ..support::request(&source, corpus, &["q8_0"]) };
        let measured = measure(&request, &|_, _, _| {});
        measured.map(|m| m.measurement.run.notes.join("\n")).map_err(|error| error.to_string())
    };
    let words = "knows only how often each token occurs in this corpus has";
    let error = run(120_000, false, true).unwrap_err();
    assert!(error.contains(words) && error.contains("damaged"), "{error}");
    let note = run(120_000, false, false).unwrap();
    assert!(note.contains(words) && note.contains("a gate would not judge by it"), "{note}");
    let said = run(120_000, true, true).unwrap();
    assert!(said.contains(words) && said.contains("the weights are untrained"), "{said}");
    // too few tokens to fit a model on
    let silent = run(10_000, false, true).unwrap();
    assert!(!silent.contains("perplexity"), "{silent}");
}

/// The replay's claim, on models small enough to decode every text with every cache.
#[test]
fn the_first_flip_is_where_greedy_decoding_parts() {
    let schemes = ["q8_0", "q4_0", "turbo3", "kivi2:tail=32", "q4_0:tail=8:sink=4"];
    for model in MODELS {
        let source = Source::at(root().join("models").join(model));
        let [equal, parting, all] = replay_and_decode(&source, "english.toml", 40, &schemes, 0.01);
        assert!(10 * equal >= 9 * all, "{model}: {equal} of {all}");
        assert!(parting >= 10, "{model}: only {parting} part, the others have nothing to show");
    }
}

#[test]
fn streamed_layers_are_the_resident_ones() {
    let ids = ids(&fixture("embedded-logits.json")["models"][MODELS[1]]["ids"]);
    for model in MODELS {
        let checkpoint = Checkpoint::open(&Source::at(root().join("models").join(model))).unwrap();
        let bits = |residency| -> Vec<f32> {
            let decoder = checkpoint.load_on(&support::device(), residency).unwrap();
            logits(&decoder, &ids).flatten_all().unwrap().to_vec1().unwrap()
        };
        assert!(bits(Residency::Resident) == bits(Residency::Streamed), "{model}");
    }
}

#[test]
fn every_codec_in_parts_is_the_codec_at_once() {
    let oracle = fixture("embedded-logits.json");
    for model in MODELS {
        let ids = ids(&oracle["models"][model]["ids"]);
        let decoder = load(model);
        for codec in kvgate::internals::kv::codec::built_in() {
            let heads = decoder.spec.kv_layout().into_iter().flatten().map(|kv| kv.head_dim);
            if heads.clone().any(|head| !head.is_multiple_of(codec.block(head))) {
                continue;
            }
            let worst = in_parts_by_layer(&decoder, &ids, codec.name());
            assert!(worst <= tolerance(2e-5), "{model} {}: {worst:.1e}", codec.name());
        }
    }
}
