//! `kvgate suggest` on an embedded model.

use crate::support;
use crate::support::root;
use kvgate::internals::measure::prepare::Prepared;
use kvgate::internals::measure::{measure, Request};
use kvgate::internals::results::Outcome;
use kvgate::internals::source::Source;
use kvgate::internals::suggest::budget::Budget;
use kvgate::internals::suggest::engines::Engine;
use kvgate::internals::suggest::{Options, Search, SuggestError, Suggestion, REFERENCE};

fn with_request<R>(schemes: &[&str], chunks: usize, f: impl FnOnce(&Request) -> R) -> R {
    let source = Source::at(root().join("models/gemma4-e2b-mini"));
    let corpus = [support::corpus("persuasion.txt")];
    f(&Request { context: 128, chunks, ..support::request(&source, &corpus, schemes) })
}

/// A search that verifies nothing.
fn options(engine: Engine, codecs: &[&str]) -> Options {
    Options {
        engine,
        codecs: codecs.iter().map(|codec| codec.to_string()).collect(),
        mixed: 2,
        scouting: 1,
        verifying: 0,
        served: 4096,
        budget: None,
    }
}

fn suggested(options: Options) -> Result<Suggestion, SuggestError> {
    with_request(&[], 2, |request| {
        let prepared = Prepared::open(request, &|_, _, _| {}).unwrap();
        Search::new(&prepared, options)?.run(&|_, _, _| {})
    })
}

#[test]
fn mixtures_are_predicted_measured_and_verified_on_other_chunks() {
    let options = options(Engine::Any, &["q8_0", "q5_1", "q4_0"]);
    let found = suggested(Options { verifying: 2, ..options }).unwrap();
    for line in &found.answer {
        println!("{line}");
    }
    assert!(
        found.rows.iter().any(|row| row.is_mixed) && found.rows.iter().any(|row| !row.is_mixed)
    );
    assert!(found.rows.is_sorted_by(|a, b| a.bits <= b.bits));
    for row in &found.rows {
        let predicted = row.predicted.expect("all parts were measured alone");
        let ratio = row.on_scouts / predicted;
        println!("{} {:.3} {:.5} {ratio:.2}", row.scheme, row.bits, row.measured.mean_kld);
        assert!((0.4..2.5).contains(&ratio), "{}: {predicted} became {ratio} of it", row.scheme);
    }
    // a mixture is what its text says
    let mixture = found.rows.iter().find(|row| row.is_mixed).unwrap();
    let measured = with_request(&[&mixture.scheme, REFERENCE], 2, |request| {
        measure(request, &|_, _, _| {}).unwrap().measurement
    });
    let reference = &found.rows[found.reference.unwrap()];
    for (row, result) in [mixture, reference].into_iter().zip(&measured.schemes) {
        let Outcome::Measured { statistics, .. } = &result.outcome else { panic!() };
        assert_eq!(row.effective, result.effective);
        let (own, alone) = (row.measured.mean_kld, statistics.mean_kld);
        assert!((own / alone - 1.0).abs() < 1e-5, "{}: {own} and {alone}", row.scheme);
    }
    let verified = found.rows[found.recommended.unwrap().row].verified.as_ref().unwrap();
    assert_eq!(verified.parts.len(), 2);
    assert!(reference.verified.as_ref().unwrap().mean_kld != reference.measured.mean_kld);
    assert!(found.rival.unwrap().verified.is_some());
}

#[test]
fn llama_cpp_gets_pairs_and_what_is_not_verified_is_said() {
    let found = suggested(options(Engine::LlamaCpp, &["q8_0", "q4_0"])).unwrap();
    assert!(found.rows.iter().all(|row| !row.is_mixed && row.verified.is_none()));
    assert!(found.rows.iter().all(|row| row.flags[0].engine == "llama.cpp"));
    assert!(found.answer.iter().any(|line| line.starts_with("Nothing was verified")));
    let many = Options { verifying: 1 << 20, ..options(Engine::LlamaCpp, &["q8_0"]) };
    let error = suggested(many).unwrap_err();
    assert!(matches!(error, SuggestError::NoOtherChunks { .. }), "{error}");
}

/// Layers 5 to 8 read the cache of layer 3, and layer 9 that of layer 4.
#[test]
fn vllm_is_told_of_the_layers_that_read_a_skipped_cache() {
    let found = suggested(options(Engine::Vllm, &["fp8_e4m3"])).unwrap();
    let skipping = found.rows.iter().find(|row| row.is_mixed).unwrap();
    assert_eq!(skipping.scheme, "fp8_e4m3@3=f16");
    assert_eq!(
        skipping.flags[0].flags,
        "--kv-cache-dtype fp8_e4m3 --kv-cache-dtype-skip-layers 3 5 6 7 8"
    );
    assert!(skipping.predicted.is_some());
    let uniform = found.rows.iter().find(|row| row.scheme == "fp8_e4m3").unwrap();
    assert_eq!(uniform.predicted, None, "nothing is added up");
}

/// Codecs that do so much harm are not mixed, but the budget leaves nothing else.
#[test]
fn what_just_fits_the_budget_is_measured_whatever_harm_it_does() {
    let within = |bits| {
        let options = options(Engine::Any, &["q2_0", "turbo2"]);
        suggested(Options { budget: Some(Budget::of_bits(bits)), ..options })
    };
    let error = within(2.0).unwrap_err().to_string();
    let (_, bits) = error.split_once("(--bits ").unwrap();
    let bits: f64 = bits.split_once(')').unwrap().0.parse().unwrap();
    assert!(error.contains("by `q2_0@4=turbo2`") && bits < 2.5, "{error}");
    let found = within(bits).unwrap();
    assert_eq!(found.rows[found.recommended.unwrap().row].scheme, "q2_0@4=turbo2");
}
