//! A small run for tests: a model with one scheme that passes, one that regressed and one that
//! failed, and cases of a model that has no numbers.

use crate::kv::Scheme;
use crate::policy::{Cell, Expectation, Limit, ModelPolicy, Policy};
use crate::report::Report;
use crate::results::replay::{Continuation, Divergence, Generated, PromptReplay, Replay};
use crate::results::retrieval::{
    Answers, Haystacks, JudgedRetrieval, Measure, NeedleControl, Plan, Retrieved, DEPTHS,
};
use crate::results::statistics::{Part, Position, Statistic, Statistics};
use crate::results::verdict::{Decision, JudgedLimit, Verdict};
use crate::results::*;
use crate::source::Source;

/// The policy of the run. Its corpus files do not exist.
pub(crate) fn policy() -> Policy {
    let cell = |label: &str| Cell {
        label: label.into(),
        scheme: label.parse().unwrap(),
        expect: Expectation::Pass,
        reason: None,
        limits: Vec::new(),
        ignored: false,
    };
    let source = Source::at("m.gguf".into());
    let model = ModelPolicy {
        places: Default::default(),
        name: "gemma-3-270m".into(),
        source,
        calibration: None,
        generate: None,
        retrieval: None,
        corpus: vec!["prose.txt".into(), "code.txt".into()],
        context: 512,
        chunks: 16,
        confidence: None,
        max_chunks: None,
        baseline: "f16".parse::<Scheme>().unwrap(),
        cells: ["q8_0", "q4_0", "q8_0/q4_0"].map(cell).into(),
        limits: Vec::new(),
    };
    let path = "thresholds.toml".into();
    Policy { path, sha256: "9f".into(), models: vec![model], limits: Vec::new() }
}

pub(crate) fn results() -> Results {
    Results {
        format: FORMAT,
        engine: "kvgate 0.1.0".into(),
        head: Some("abc123".into()),
        policy: Some(PolicyFile { path: "thresholds.toml".into(), sha256: "9f".into() }),
        measurements: vec![measurement()],
        cases: cases(),
        not_needed: Vec::new(),
        findings: Vec::new(),
    }
}

/// The results of the run with numbers that follow from each other, so that they are trusted.
pub(crate) fn sound() -> Results {
    let mut results = results();
    results.measurements[0].schemes.iter_mut().for_each(make_sound);
    results
}

/// The policy of the run with a limit for each cell, which `q8_0` keeps and `q4_0` does not.
pub(crate) fn limited_policy() -> Policy {
    let mut policy = policy();
    for cell in &mut policy.models[0].cells {
        let origin = "thresholds.toml:9".into();
        cell.limits = vec![Limit { quantity: Statistic::MeanKld.into(), bound: 0.05, origin }];
    }
    policy
}

/// Changes a measurement.
pub(crate) type Edit = fn(&mut Measurement);

/// What may be special about a measurement, by a name. Each of them concerns `q4_0`, the second scheme.
pub(crate) const EDITS: [(&str, Edit); 7] = [
    ("nothing", |_| ()),
    ("a failed scheme", |m| m.schemes[1].outcome = m.schemes[2].outcome.clone()),
    ("a number that is none", |m| {
        let Outcome::Measured { statistics, .. } = &mut m.schemes[1].outcome else { return };
        statistics.mean_kld = f64::NAN;
    }),
    ("a failed control", |m| m.controls[0].mean_kld = Some(0.1)),
    ("no result", |m| drop(m.schemes.remove(1))),
    ("two results", |m| m.schemes.push(m.schemes[1].clone())),
    ("prompts", |m| {
        m.subject.weights_sha256 = generated().weights_sha256;
        m.conditions.prompts = Some(generated().conditions());
        m.generated = Some(Generated { accepted: true, ..generated() });
        m.schemes.iter_mut().for_each(|scheme| scheme.replay = Some(replay()));
    }),
];

/// The sound measurement of the run with one of [`EDITS`].
pub(crate) fn edited(name: &str) -> Measurement {
    let (_, edit) = EDITS.iter().find(|(own, _)| *own == name).expect("an edit has this name");
    let mut measurement = sound().measurements.remove(0);
    edit(&mut measurement);
    measurement
}

/// The report of the run.
pub(crate) fn report() -> Report {
    results().into()
}

/// The report of the run with two chunks of each of two categories under `q4_0`, and a limit on one of them, which is
/// broken.
pub(crate) fn by_category() -> Report {
    let mut report = report();
    let position = |kld| Position { kld, ..Position::default() };
    let part = |(category, chunk, kld): (&str, usize, f32)| {
        Part::of(category, chunk, &[position(kld); 100])
    };
    let chunks = [("tools", 0, 0.1), ("prose", 0, 0.01), ("tools", 1, 0.2), ("prose", 1, 0.03)];
    let Outcome::Measured { parts, .. } = &mut report.results.measurements[0].schemes[1].outcome
    else {
        unreachable!("q4_0 is measured")
    };
    *parts = chunks.map(part).into();
    let limits = &mut report.results.cases[2].limits;
    let of_tools = JudgedLimit { category: Some("tools".into()), value: 0.15, ..limits[0].clone() };
    limits.push(JudgedLimit { bound: 0.1, ..of_tools });
    report
}

/// The finding that a limit was raised.
pub(crate) fn weakened() -> Finding {
    Finding {
        name: "policy::weakened".into(),
        place: Some("thresholds.toml:9".into()),
        message: "mean_kld of gemma-3-270m::q4_0 was at most 0.02, and is at most 0.05".into(),
        is_red: true,
    }
}

fn measurement() -> Measurement {
    Measurement {
        model: "gemma-3-270m".into(),
        subject: Subject {
            weights_sha256: "a5fd3b62".into(),
            tokenizer_sha256: None,
            architecture: "gemma3".into(),
        },
        conditions: Conditions {
            corpus: [("prose", "11aa"), ("code", "22bb")]
                .map(|(category, sha256)| CorpusFile {
                    category: category.into(),
                    sha256: sha256.into(),
                })
                .into(),
            context: 512,
            chunks: 16,
            baseline: "f16".into(),
            engine: "kvgate 0.1.0".into(),
            device: "cpu".into(),
            weights: "f32".into(),
            reading: Vec::new(),
            prompts: None,
            needs: Vec::new(),
        },
        run: RunInfo {
            baseline_ppl: 21.1,
            device: "Some CPU".into(),
            dtype: "f32".into(),
            arithmetic: None,
            card: None,
            seconds: 61.34,
            peak_bytes: 1_600_000_000,
            notes: vec!["code: 37 tokens of the tail dropped".into()],
        },
        controls: vec![
            control("identity", "f16", 0.0, "exactly 0"),
            control("bad lane", "q4_0:norot", 2.5, "at least 0.5"),
        ],
        schemes: vec![
            scheme("q8_0", [8.5, 8.5], measured(good())),
            scheme("q4_0", [4.5, 4.5], measured(bad())),
            scheme("q8_0/q4_0", [8.5, 4.5], Outcome::Failed { error: "layer 3: K is NaN".into() }),
        ],
        floor: None,
        generated: None,
        haystacks: None,
    }
}

/// Lets a measurement have been made on contexts with needles, of which `q4_0` lost some.
pub(crate) fn with_needles(measurement: &mut Measurement) {
    let plan = Plan { lengths: vec![512], contexts: 2, needles: 5, seed: 7 };
    let answers = |lost: u64, kld: f64| Answers {
        needles: 5,
        retrieved_base: 5,
        lost,
        gained: 0,
        tokens: 20,
        kld,
        nll: 2.0 + kld,
        nll_base: 2.0,
    };
    let control = |name: &str, lost, kld| NeedleControl {
        name: name.into(),
        length: 512,
        answers: answers(lost, kld),
    };
    let controls = vec![control("identity", 0, 0.0), control("bad lane", 5, 60.0)];
    measurement.haystacks = Some(Haystacks { plan, sha256: vec!["5e".repeat(32)], controls });
    let lost = [[0, 0], [2, 1]];
    for (scheme, lost) in measurement.schemes.iter_mut().zip(lost) {
        let kld = 0.01 + lost[0] as f64;
        scheme.retrieved = vec![Retrieved {
            length: 512,
            by_depth: (1..=DEPTHS).map(|depth| kld * depth as f64 / 1e3).collect(),
            parts: lost.map(|lost| answers(lost, kld)).into(),
        }];
    }
}

/// Adds a limit on the loss of needles to a case, of which it has twice as much as is allowed.
pub(crate) fn with_broken_loss(case: &mut CaseResult) {
    case.retrieval.push(JudgedRetrieval {
        measure: Measure::Loss,
        length: 512,
        value: 0.1,
        bound: 0.05,
        origin: "thresholds.toml:12".into(),
        confidence: None,
        low: Some(0.0),
        high: Some(0.3),
        no_interval: None,
        decision: Decision::Broken,
    });
}

/// Lets a measurement have been made on a card.
pub(crate) fn on_a_card(measurement: &mut Measurement) {
    measurement.conditions.device = "cuda".into();
    measurement.conditions.weights = "f16".into();
    let run = &mut measurement.run;
    run.device = "Some Card, 139 GiB, driver for CUDA 13.0".into();
    run.arithmetic = Some("f16 weights, sums in f32".into());
    let (name, driver) = ("Some Card".into(), "13.0".into());
    let peak_bytes = Some(25 << 29);
    run.card = Some(Card { name, driver, memory_bytes: 139 << 30, peak_bytes });
}

/// The texts that the baseline wrote for two prompts.
pub(crate) fn generated() -> Generated {
    let continuation = |prompt: &str, tokens: &[u32], near_ties: &[usize]| Continuation {
        prompt: prompt.into(),
        tokens: tokens.into(),
        near_ties: near_ties.into(),
        text: format!("The \"{prompt}\"\nof | two"),
    };
    Generated {
        weights_sha256: "a5".repeat(32),
        prompts_sha256: "77".repeat(32),
        template_sha256: "none".into(),
        thinking: false,
        tokens: 64,
        baseline: "f16".into(),
        continuations: vec![
            continuation("tides", &[5, 6, 7], &[1]),
            continuation("list", &[9], &[]),
        ],
        accepted: false,
        own_flips: 0,
        wrong_ties: 0,
    }
}

/// What a scheme did on those texts: it chose another token once.
pub(crate) fn replay() -> Replay {
    let prompt = |prompt: &str, positions, flips, first_flip| PromptReplay {
        prompt: prompt.into(),
        category: "prose".into(),
        positions,
        undecided: 0,
        flips,
        hard_flips: flips,
        first_flip,
    };
    Replay {
        text_sha256: generated().sha256(),
        mean_kld: 0.0123,
        charged_share: Sides { k: 1.0, v: 1.0 },
        prompts: vec![prompt("tides", 3, 1, Some(2)), prompt("list", 1, 0, None)],
        texts: vec![Divergence {
            prompt: "tides".into(),
            at: 2,
            margin: 0.4,
            baseline: "sea".into(),
            scheme: "moon \"and\" stars".into(),
        }],
    }
}

fn control(name: &str, effective: &str, mean_kld: f64, must: &str) -> Control {
    Control {
        name: name.into(),
        effective: effective.into(),
        mean_kld: Some(mean_kld),
        top1_agreement: Some(1.0),
        must: must.into(),
        ok: true,
    }
}

fn scheme(label: &str, [k, v]: [f64; 2], outcome: Outcome) -> SchemeResult {
    SchemeResult {
        scheme: label.into(),
        effective: label.into(),
        needs: Vec::new(),
        replay: None,
        retrieved: Vec::new(),
        shape: None,
        storage: Some(Storage {
            bits_per_element: Sides { k, v },
            bits_at_context: Sides { k, v },
            bytes_per_token: (k + v) * 16.0,
            ratio_to_f16: (k + v) / 32.0,
            charged_share: Sides { k: 1.0, v: 1.0 },
            clamped_scales: None,
        }),
        outcome,
    }
}

fn measured(statistics: Statistics) -> Outcome {
    let part = Part { category: "prose".into(), tokens: 256, ..Part::default() };
    Outcome::measured(statistics, vec![part])
}

/// Makes the statistics of a scheme agree with its parts, without which results are not trusted.
pub(crate) fn make_sound(scheme: &mut SchemeResult) {
    let Outcome::Measured { statistics: s, parts, .. } = &mut scheme.outcome else { return };
    let (chunks, each): (u32, u32) = (16, 255);
    let same_top = (s.top1_agreement * f64::from(each)).round();
    let tokens = f64::from(chunks * each);
    s.tokens_scored = u64::from(chunks * each);
    s.top1_agreement = same_top / f64::from(each);
    // all schemes are compared with one baseline
    s.ppl = s.baseline_ppl * s.ppl_ratio;
    (s.top1_agreement_se, s.rms_dp_se, s.ppl_se, s.ppl_ratio_se) = (0.0, 0.0, 0.0, 0.0);
    let of = |mean: f64| mean * f64::from(each);
    let part = |chunk: usize| Part {
        category: ["prose", "code"][chunk % 2].into(), // texts take turns
        chunk: chunk / 2,
        tokens: u64::from(each),
        kld: of(s.mean_kld),
        kld2: of(s.mean_kld.powi(2) + s.mean_kld_se.powi(2) * (tokens - 1.0)),
        nll: of(s.ppl.ln()),
        nll_base: of(s.baseline_ppl.ln()),
        dp2: of(s.rms_dp.powi(2)),
        same_top: same_top as u64,
        ..Part::default()
    };
    *parts = (0..chunks as usize).map(part).collect();
}

fn good() -> Statistics {
    Statistics {
        tokens_scored: 4096,
        mean_kld: 0.00051,
        mean_kld_se: 0.00002,
        median_kld: 0.0002,
        p90_kld: 0.0012,
        p95_kld: 0.002,
        p99_kld: 0.0058,
        p999_kld: 0.012,
        max_kld: 0.03,
        top1_agreement: 0.9902,
        ppl: 21.11,
        ppl_ratio: 1.0003,
        baseline_ppl: 21.1,
        ..Statistics::default()
    }
}

fn bad() -> Statistics {
    Statistics {
        tokens_scored: 4096,
        mean_kld: 0.0612,
        mean_kld_se: 0.0015,
        median_kld: 0.02,
        p90_kld: 0.15,
        p95_kld: 0.25,
        p99_kld: 0.7,
        p999_kld: 1.5,
        max_kld: 2.25,
        top1_agreement: 0.8612,
        top1_agreement_se: 0.0054,
        rms_dp: 0.081,
        rms_dp_se: 0.002,
        ppl: 22.03,
        ppl_se: 0.5,
        ppl_ratio: 1.0442,
        ppl_ratio_se: 0.004,
        baseline_ppl: 21.1,
        unknown: Vec::new(),
    }
}

fn cases() -> Vec<CaseResult> {
    let case = |case: &str, verdict, message: &str| CaseResult::new(case, verdict, message);
    let regressed = "mean_kld 0.0612 is over its limit 0.05 (thresholds.toml:9)\n\
                     run `kvgate run gemma-3-270m::q4_0`";
    let changed = "golden changed: 1 statistic left its tolerance";
    let mut cases = vec![
        case("gemma-3-270m::q8_0::kld", Verdict::Pass, ""),
        case("gemma-3-270m::q8_0::golden", Verdict::Pass, ""),
        case("gemma-3-270m::q4_0::kld", Verdict::Regressed, regressed),
        case("gemma-3-270m::q4_0::golden", Verdict::GoldenChanged, changed),
        case("gemma-3-270m::q8_0/q4_0::kld", Verdict::Error, "layer 3: K is NaN"),
        case("tiny::q4_0::kld", Verdict::FailsAsRequired, ""),
        case("tiny::q4_0::golden", Verdict::Ignored, ""),
    ];
    let limit = |value, holds| JudgedLimit {
        statistic: Statistic::MeanKld,
        category: None,
        value,
        bound: 0.05,
        origin: "thresholds.toml:9".into(),
        holds,
        borderline: false,
        confidence: None,
        looks: None,
        low: None,
        high: None,
        no_interval: None,
    };
    let change =
        |golden, now, within| Moved { name: "mean_kld".into(), golden, now, within, change: None };
    cases[0].limits = vec![limit(0.00051, true)];
    cases[1].changes = vec![change(0.0005, 0.00051, true)];
    cases[2].limits = vec![limit(0.0612, false)];
    cases[3].changes = vec![change(0.02, 0.0612, false)];
    cases
}
