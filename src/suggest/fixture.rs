//! Rows and a suggestion for tests.

use super::budget::Budget;
use super::choice::{self, Goal};
use super::engines::Engine;
use super::{Flags, Reading, Row, Suggestion, REFERENCE};
use crate::results::statistics::{Part, Statistics};
use crate::results::{Conditions, CorpusFile};

/// A reading of ten chunks, which differ by some percent.
pub(super) fn reading(mean: f64) -> Reading {
    let tokens = 1000;
    let flips = 0.5 * mean.sqrt();
    let part = |chunk: usize| {
        let kld = mean * tokens as f64 * (1.0 + 0.02 * (chunk as f64 - 4.5));
        let mut histogram = vec![0; crate::results::shape::BINS];
        histogram[10] = tokens;
        Part {
            category: "prose".into(),
            chunk,
            tokens,
            kld,
            same_top: (1000.0 * (1.0 - flips)).round() as u64,
            histogram,
            ..Part::default()
        }
    };
    let statistics = Statistics {
        tokens_scored: 10 * tokens,
        mean_kld: mean,
        p99_kld: 10.0 * mean,
        top1_agreement: 1.0 - flips,
        ..Statistics::default()
    };
    Reading::of(statistics, (0..10).map(part).collect())
}

pub(super) fn row(scheme: &str, bits: f64, mean: f64) -> Row {
    let (k, v) = scheme.split_once('/').unwrap_or((scheme, scheme));
    let flags = format!("--cache-type-k {k} --cache-type-v {v}");
    let llama_cpp = Flags { engine: "llama.cpp".into(), flags };
    Row {
        scheme: scheme.into(),
        effective: scheme.into(),
        bits,
        bytes: (bits * 1e6) as usize,
        is_mixed: scheme.contains('@'),
        predicted: Some(0.9 * mean),
        on_scouts: mean,
        measured: reading(mean),
        verified: None,
        is_frontier: false,
        flags: if scheme.contains('@') { Vec::new() } else { vec![llama_cpp] },
    }
}

/// A suggestion of these rows, which are verified with a tenth more harm.
pub(super) fn suggestion(mut rows: Vec<Row>, budget: Option<Budget>) -> Suggestion {
    choice::mark_frontier(&mut rows);
    let reference = rows.iter().position(|row| row.scheme == REFERENCE);
    let limit = budget.as_ref().map(|budget| budget.bits);
    let goal = Goal { limit, reference, serves_reference: true };
    let chosen = goal.choose(&rows);
    for i in &chosen.verified {
        rows[*i].verified = Some(reading(1.1 * rows[*i].measured.mean_kld));
    }
    let (recommended, rival) = goal.settle(&chosen, &rows);
    let measurement = crate::testing::fixture::results().measurements.remove(0);
    let corpus = vec![CorpusFile { category: "prose".into(), sha256: "0".repeat(64) }];
    Suggestion {
        format: 1,
        model: "tiny".into(),
        engine: Engine::Any,
        codecs: Vec::new(),
        subject: measurement.subject,
        conditions: Conditions { corpus, context: 512, chunks: 10, ..measurement.conditions },
        scouting: 2,
        verifying: 10,
        served: 512,
        budget,
        controls: measurement.controls,
        baseline_ppl: 21.1,
        device: "Some CPU".into(),
        arithmetic: "f32".into(),
        lane_chunks: 120,
        seconds: 12.34,
        notes: vec!["BOS 2 before each chunk".into()],
        unfit: Vec::new(),
        recommended,
        reference,
        serves_reference: true,
        rival,
        rows,
        answer: Vec::new(),
    }
}
