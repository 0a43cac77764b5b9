//! Replays against decoding itself.

use super::forward::{effective, run_part};
use kvgate::internals::kv::effective::Effective;
use kvgate::internals::kv::measuring::MeasuringCache;
use kvgate::internals::measure::generate::{greedy, Writing};
use kvgate::internals::measure::prompts::{Prompt, PromptSet};
use kvgate::internals::measure::{measure, Generate, Request};
use kvgate::internals::model::decoder::Residency;
use kvgate::internals::model::Checkpoint;
use kvgate::internals::source::Source;

/// Has a model continue prompts with the cache of each scheme, token by token, and holds where its text
/// parts from the baseline's to the first flip of the replay. Rounding is chaotic, and more so where it is
/// coarse: where they differ, the scheme or the baseline must be undecided by less than `spread`, and both
/// margins are printed. Gives the prompts that agree, those that part among them, and all.
///
/// Both are computed on the CPU. A card rounds the difference that a scheme makes, which single tokens do not have.
pub fn replay_and_decode(
    source: &Source,
    prompts: &str,
    tokens: usize,
    schemes: &[&str],
    spread: f32,
) -> [usize; 3] {
    let model = source.path.file_name().unwrap().to_str().unwrap();
    let prompts = super::root().join("prompts").join(prompts);
    let checkpoint = Checkpoint::open(source).unwrap();
    let decoder = checkpoint.load(Residency::Resident).unwrap();
    let corpus = [super::corpus("persuasion.txt")];
    let request = Request {
        context: 128,
        chunks: 1,
        generate: Some(Generate { prompts: &prompts, tokens, kept: None }),
        ..super::request(source, &corpus, schemes)
    };
    let measurement = measure(&request, &|_, _, _| {}).unwrap().measurement;
    let generated = measurement.generated.unwrap();
    assert_eq!(generated.own_flips, 0, "{model}");
    let prompts = PromptSet::read(&prompts).unwrap().tokens(&checkpoint).unwrap().prompts;
    let [mut equal, mut parting, mut all] = [0; 3];
    for scheme in &measurement.schemes {
        let stored = effective(&decoder.spec, &scheme.scheme);
        let replay = scheme.replay.as_ref().unwrap();
        assert!(replay.charged_share.k > 0.0, "{}: nothing of it is at work", scheme.scheme);
        let text = |prompt: &Prompt| Writing::after(&prompt.tokens, &stored, decoder.device());
        let texts = prompts.iter().map(text).collect();
        let written = greedy(&decoder, texts, tokens, &checkpoint.end_tokens, &|_, _| {});
        let written = written.unwrap_or_else(|(i, error)| panic!("{i}: {error}"));
        for (i, prompt) in replay.prompts.iter().enumerate() {
            let baseline = &generated.continuations[i];
            let (own, theirs) = (&written[i], &baseline.tokens);
            let parted = (0..theirs.len()).find(|&t| own.get(t) != Some(&theirs[t]));
            all += 1;
            if parted == prompt.first_flip {
                equal += 1;
                parting += usize::from(parted.is_some());
                continue;
            }
            let first = parted.into_iter().chain(prompt.first_flip).min().unwrap();
            let common = [&prompts[i].tokens, &theirs[..first]].concat();
            let margin = |stored: Effective| {
                let logits = run_part(&decoder, &common, 0, &mut MeasuringCache::new(stored));
                margin(&logits.get(common.len() - 1).unwrap().to_vec1().unwrap())
            };
            let (own, base) = (margin(stored.clone()), margin(effective(&decoder.spec, "f16")));
            let what = format!(
                "{model} {} {}: replay {:?}, decoding {parted:?}; margin {own:.4}, baseline's {base:.4}",
                scheme.scheme, prompt.prompt, prompt.first_flip
            );
            println!("{what}");
            assert!(own.min(base) < spread, "{what}");
        }
    }
    println!("{model}: {equal} of {all} equal, {parting} of them part");
    [equal, parting, all]
}

/// Probability of the first token less that of the second.
fn margin(logits: &[f32]) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut weights: Vec<f32> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.sort_by(|a, b| b.total_cmp(a));
    (weights[0] - weights[1]) / sum
}
