//! Replays against decoding itself.

use super::forward::effective;
use kvgate::measure::generate::{greedy, Generate, Writing};
use kvgate::measure::prompts::PromptSet;
use kvgate::measure::{measure, Request};
use kvgate::model::decoder::Residency;
use kvgate::model::Checkpoint;
use kvgate::policy::Source;

/// Has a model continue prompts with the cache of each scheme, token by token, and holds where its text
/// parts from the baseline's to the first flip of the replay. They may differ where the baseline is
/// undecided: such prompts are printed. Gives the prompts that agree, those that part among them, and all.
pub fn replay_and_decode(
    source: &Source,
    prompts: &str,
    tokens: usize,
    schemes: &[&str],
) -> [usize; 3] {
    let model = source.path.file_name().unwrap().to_str().unwrap();
    let prompts = super::root().join("prompts").join(prompts);
    let checkpoint = Checkpoint::open(source).unwrap();
    let decoder = checkpoint.load(Residency::Resident).unwrap();
    let request = Request {
        model,
        source,
        corpus: &[super::corpus("persuasion.txt")],
        context: 128,
        chunks: 1,
        baseline: "f16".parse().unwrap(),
        schemes: schemes.iter().map(|s| (s.to_string(), s.parse().unwrap())).collect(),
        calibration: None,
        generate: Some(Generate { prompts: &prompts, tokens, kept: None }),
        residency: None,
        mimic: None,
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
        let texts = prompts.iter().map(|p| Writing::after(&p.tokens, &stored)).collect();
        let written = greedy(&decoder, texts, tokens, &checkpoint.ends, &|_, _| {});
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
            let what = format!(
                "{model} {} {}: replay {:?}, decoding {parted:?}",
                scheme.scheme, prompt.prompt, prompt.first_flip
            );
            println!("{what}");
            assert!(baseline.near_ties.contains(&first), "{what}");
        }
    }
    println!("{model}: {equal} of {all} equal, {parting} of them part");
    [equal, parting, all]
}
