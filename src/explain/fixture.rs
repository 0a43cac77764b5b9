//! An explanation for tests: a model of two layers, whose K of layer 1 has outliers.

use super::findings::{additivity, culprits, shares};
use super::lanes::{Experiment, Site, Skipped};
use super::rope::Pair;
use super::statistics::{ChannelStatistics, CodecError, HeadStatistics};
use super::{words, Explanation, Reading, Trial};
use crate::kv::layout::KvSide;
use crate::testing::fixture;

pub fn reading(mean_kld: f64) -> Reading {
    Reading { mean_kld, mean_kld_se: mean_kld / 20.0, top1_agreement: 0.9 }
}

fn channel(channel: usize, ratio: f64) -> ChannelStatistics {
    ChannelStatistics {
        channel,
        rms: ratio,
        absmax: 2.0 * ratio,
        mean: 0.0,
        of_median: Some(ratio),
        energy: ratio / 100.0,
        pair: Some(Pair { index: channel % 32, partner: (channel + 32) % 64, turns: true }),
    }
}

fn head(layer: usize, side: KvSide, channels: Vec<ChannelStatistics>) -> HeadStatistics {
    let error = |head| Some(CodecError { head, median_channel: 3.0 * head });
    HeadStatistics {
        layer,
        side,
        head: 0,
        rms: 1.5,
        absmax: 40.0,
        kurtosis: 30.0,
        mean_share: 0.125,
        mean_share_before_rope: (side == KvSide::K).then_some(0.75),
        error: error(0.06),
        error_rotated: error(0.06),
        error_unrotated: error(0.1),
        median_channel_rms: 1.0,
        channels,
    }
}

/// Rules are applied again to whatever a test changes, by [`told`].
pub fn explanation(klds: [[f64; 2]; 2], whole: f64) -> Explanation {
    let measurement = fixture::report().results.measurements.remove(0);
    let whole = reading(whole);
    let sites = klds.into_iter().enumerate().flat_map(|(layer, klds)| {
        KvSide::BOTH
            .into_iter()
            .zip(klds)
            .map(move |(side, kld)| (Site { layer, side, head: None }, reading(kld)))
    });
    let sites = shares(sites.collect());
    let culprits = culprits(&sites);
    let trials = [
        (Experiment::Only(KvSide::K), 0.95),
        (Experiment::Only(KvSide::V), 0.05),
        (Experiment::Centred, 0.9),
        (Experiment::WithoutChannels(4), 0.025),
        (Experiment::WithoutLast(1), 0.5),
        (Experiment::Rotation(false), 4.5),
        (Experiment::WithoutCulprits(words::sites(&culprits.sites)), 0.1),
    ];
    let trials = trials.map(|(experiment, share)| {
        Trial::new(&experiment, reading(share * whole.mean_kld), &whole)
    });
    let heads = (0..2).flat_map(|layer| {
        let outliers = if layer == 1 { vec![channel(43, 24.0), channel(11, 20.0)] } else { vec![] };
        let of_k = [outliers, vec![channel(3, 1.5)]].concat();
        [head(layer, KvSide::K, of_k), head(layer, KvSide::V, vec![channel(5, 1.25)])]
    });
    told(Explanation {
        format: super::FORMAT,
        model: "tiny".into(),
        scheme: "q4_0".into(),
        effective: "q4_0·H64/q4_0·H64".into(),
        subject: measurement.subject,
        conditions: measurement.conditions,
        controls: measurement.controls,
        baseline_ppl: 21.1,
        device: "Some CPU".into(),
        arithmetic: "f32".into(),
        seconds: 12.34,
        notes: vec!["BOS 2 before each chunk".into()],
        additivity: additivity(&sites, &whole),
        whole,
        sites,
        culprits,
        experiments: trials.into(),
        skipped: vec![Skipped { experiment: "first_layers_exact", why: "there are too few" }],
        heads: heads.collect(),
        answer: Vec::new(),
    })
}

pub fn told(mut explanation: Explanation) -> Explanation {
    explanation.answer = words::answer(&explanation);
    explanation
}
