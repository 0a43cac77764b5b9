//! Retrieval from long contexts: what is built, and what lanes make of it.

use crate::support;
use crate::support::root;
use kvgate::internals::judge::trust;
use kvgate::internals::measure::retrieval::{build, Haystacks, RetrievalError};
use kvgate::internals::measure::{corpus, measure, Draw, Request};
use kvgate::internals::model::Checkpoint;
use kvgate::internals::results::retrieval::{Plan, Retrieved, DEPTHS};
use kvgate::internals::results::Measurement;
use kvgate::internals::source::Source;
use std::path::PathBuf;

const MODELS: [&str; 2] = ["gemma4-e2b-mini", "qwen3.6-moe-mini"];

fn plan(length: usize, contexts: usize, needles: usize, seed: u64) -> Plan {
    Plan { lengths: vec![length], contexts, needles, seed }
}

fn checkpoint(model: &str) -> Checkpoint {
    let source = Source::at(root().join("models").join(model));
    Checkpoint::open(&source).unwrap_or_else(|error| panic!("{error}"))
}

fn built(checkpoint: &Checkpoint, plan: &Plan) -> Result<Haystacks, RetrievalError> {
    let text = corpus::read(&support::corpus("persuasion.txt")).unwrap();
    let corpus = corpus::tokenized(&[text], &checkpoint.tokenizer, 64, (Draw::First, 1)).unwrap();
    let trained = checkpoint.spec.trained_context;
    build(plan, &corpus.tokens, &checkpoint.tokenizer, trained).map(|mut all| all.remove(0))
}

#[test]
fn contexts_are_as_long_as_they_must_be_and_ask_for_what_they_hide() {
    for model in MODELS {
        let checkpoint = checkpoint(model);
        let decode = |ids: &[u32]| checkpoint.tokenizer.decode(ids).unwrap();
        let haystacks = built(&checkpoint, &plan(1024, 6, 4, 3)).unwrap();
        assert_eq!(haystacks.all.len(), 6);
        let mut beginnings = Vec::new();
        for haystack in &haystacks.all {
            let tokens = &haystack.chunk.tokens;
            assert_eq!((tokens.len(), haystack.chunk.scored.clone()), (1024, 0..1023));
            assert!(haystack.questions >= 512, "{}", haystack.questions);
            let text = decode(&tokens[..haystack.questions]);
            let asked = decode(&tokens[haystack.questions..]);
            assert_eq!(asked.matches("Question: What is the ").count(), 4, "{asked}");
            assert!(asked.trim_start().starts_with("Question: "), "{asked}");
            assert_eq!(haystack.answers.len(), 4);
            for answer in &haystack.answers {
                let value = decode(&tokens[answer.clone()]);
                let value = value.trim();
                // once in the haystack, and once as the answer
                let sentence = format!(" is {value}.");
                assert_eq!(text.matches(&sentence).count(), 1, "{sentence}");
                assert_eq!(asked.matches(&sentence).count(), 1, "{sentence}");
                let depth = text.find(&sentence).unwrap() as f64 / text.len() as f64;
                assert!((0.02..0.98).contains(&depth), "{depth}");
            }
            beginnings.push(tokens[1..9].to_vec());
        }
        beginnings.sort();
        beginnings.dedup();
        assert_eq!(beginnings.len(), 6, "haystacks begin anywhere in the text");
    }
}

#[test]
fn a_seed_decides_every_token() {
    let checkpoint = checkpoint(MODELS[0]);
    let sha256 = |seed| built(&checkpoint, &plan(512, 2, 2, seed)).unwrap().sha256();
    assert_eq!(sha256(1), sha256(1));
    assert_ne!(sha256(1), sha256(2));
}

#[test]
fn what_does_not_fit_is_told_before_anything_runs() {
    let checkpoint = checkpoint(MODELS[0]);
    let error = |plan| built(&checkpoint, &plan).err().unwrap().to_string();
    let beyond = error(plan(4096, 1, 2, 0));
    assert!(
        beyond.contains("4096 tokens is beyond the 2048 that the model was trained"),
        "{beyond}"
    );
    let many = error(plan(512, 1, 16, 0));
    assert!(many.contains("lower `needles`"), "{many}");
    let tokens = [vec![7; 300]];
    let short = build(&plan(512, 1, 2, 0), &tokens, &checkpoint.tokenizer, 2048);
    let short = short.err().unwrap().to_string();
    assert!(short.contains("longest text of the corpus has 300"), "{short}");
}

fn measured(model: PathBuf, schemes: &[&str], plan: &Plan) -> Measurement {
    let (source, corpus) = (Source::at(model), [support::corpus("persuasion.txt")]);
    let request = Request { retrieval: Some(plan), ..support::request(&source, &corpus, schemes) };
    measure(&request, &|_, _, _| {}).unwrap_or_else(|error| panic!("{error}")).measurement
}

fn retrieved<'m>(measurement: &'m Measurement, scheme: &str) -> &'m Retrieved {
    let mut schemes = measurement.schemes.iter();
    &schemes.find(|result| result.scheme == scheme).unwrap().retrieved[0]
}

/// The baseline against itself: no needle lost or gained, and not a bit of any likelihood moved.
fn is_identity(retrieved: &Retrieved) {
    for part in &retrieved.parts {
        assert_eq!((part.lost, part.gained, part.kld), (0, 0, 0.0), "{part:?}");
        assert_eq!(part.nll.to_bits(), part.nll_base.to_bits(), "{part:?}");
    }
    assert_eq!(retrieved.answer_nll(), 0.0);
    assert_eq!(retrieved.by_depth, [0.0; DEPTHS]);
}

#[test]
fn the_baseline_answers_as_itself_and_a_coarse_cache_does_not() {
    for model in MODELS {
        let plan = plan(512, 2, 2, 0);
        let measurement = measured(root().join("models").join(model), &["f16", "q4_0"], &plan);
        is_identity(retrieved(&measurement, "f16"));
        let coarse = retrieved(&measurement, "q4_0");
        assert!(
            coarse.all().kld > 0.0 && coarse.by_depth.iter().all(|kld| *kld > 0.0),
            "{coarse:?}"
        );
        let haystacks = measurement.haystacks.as_ref().unwrap();
        assert_eq!((haystacks.sha256.len(), haystacks.controls.len()), (1, 2));
        let bad = &haystacks.controls[1];
        assert_eq!(bad.name, "bad lane");
        assert!(bad.answers.mean_kld() > 0.1, "{model}: {bad:?}");
        assert!(trust::distrust(&measurement).is_empty(), "{:?}", trust::distrust(&measurement));
    }
}

/// A model that retrieves: the deliberately bad cache loses what the baseline finds.
#[test]
#[ignore = "needs real weights: scripts/fetch-models"]
fn a_bad_cache_loses_what_the_baseline_finds() {
    let plan = plan(512, 1, 4, 0);
    let model = root().join("models/real").join(support::QWEN);
    let measurement = measured(model, &["f16"], &plan);
    let same = retrieved(&measurement, "f16");
    is_identity(same);
    assert!(same.all().is_measured(), "{same:?}");
    let controls = &measurement.haystacks.as_ref().unwrap().controls;
    let bad = controls.iter().find(|control| control.name == "bad lane").unwrap();
    assert!(bad.answers.lost > 0 && bad.answers.retrieved_base > 0, "{bad:?}");
    assert!(trust::distrust(&measurement).is_empty(), "{:?}", trust::distrust(&measurement));
}
