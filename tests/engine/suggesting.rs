//! `kvgate suggest` on an embedded model.

use crate::support;
use crate::support::root;
use kvgate::internals::measure::prepare::Prepared;
use kvgate::internals::measure::{measure, Request};
use kvgate::internals::results::Outcome;
use kvgate::internals::source::Source;
use kvgate::internals::suggest::engines::Engine;
use kvgate::internals::suggest::{Options, Search, SuggestError, Suggestion, REFERENCE};

fn with_request<R>(schemes: &[&str], chunks: usize, f: impl FnOnce(&Request) -> R) -> R {
    let source = Source::at(root().join("models/gemma4-e2b-mini"));
    let corpus = [support::corpus("persuasion.txt")];
    f(&Request { context: 128, chunks, ..support::request(&source, &corpus, schemes) })
}

fn suggested(
    engine: Engine,
    codecs: &[&str],
    verifying: usize,
) -> Result<Suggestion, SuggestError> {
    let options = Options {
        engine,
        codecs: codecs.iter().map(|codec| codec.to_string()).collect(),
        mixed: 2,
        scouting: 1,
        verifying,
        served: 4096,
        budget: None,
    };
    with_request(&[], 2, |request| {
        let prepared = Prepared::open(request, &|_, _, _| {}).unwrap();
        Search::new(&prepared, options)?.run(&|_, _, _| {})
    })
}

#[test]
fn mixtures_are_predicted_measured_and_verified_on_other_chunks() {
    let found = suggested(Engine::Any, &["q8_0", "q5_1", "q4_0"], 2).unwrap();
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
    let verified = found.rows[found.recommended.unwrap()].verified.as_ref().unwrap();
    assert_eq!(verified.parts.len(), 2);
    assert!(reference.verified.as_ref().unwrap().mean_kld != reference.measured.mean_kld);
    assert!(found.rival.unwrap().verified.is_some());
}

#[test]
fn llama_cpp_gets_pairs_and_what_is_not_verified_is_said() {
    let found = suggested(Engine::LlamaCpp, &["q8_0", "q4_0"], 0).unwrap();
    assert!(found.rows.iter().all(|row| !row.is_mixed && row.verified.is_none()));
    assert!(found.rows.iter().all(|row| row.flags[0].engine == "llama.cpp"));
    assert!(found.answer.iter().any(|line| line.starts_with("Nothing was verified")));
    let error = suggested(Engine::LlamaCpp, &["q8_0"], 1 << 20).unwrap_err();
    assert!(matches!(error, SuggestError::NoOtherChunks { .. }), "{error}");
}
