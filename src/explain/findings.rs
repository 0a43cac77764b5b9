//! The rules by which measurements become findings.

use super::lanes::Site;
use super::statistics::{ChannelStatistics, HeadStatistics};
use super::{Explanation, Reading};
use crate::kv::layout::{KvSide, Slot};
use serde::Serialize;

/// The share of the harm that the culprits must hold.
pub const MOST: f64 = 0.8;
/// The range of sum / whole in which single sites are said to add up.
pub const ADDS_UP: std::ops::RangeInclusive<f64> = 0.7..=1.4;
/// At this share of the whole scheme's KLD and below, an experiment is said to help.
pub const HELPS: f64 = 0.8;
/// At this share and above, it is said to make things worse.
pub const HARMS: f64 = 1.25;

/// The KLD with one site quantized and all else exact.
#[derive(Debug, Clone, Serialize)]
pub struct SiteReading {
    #[serde(flatten)]
    pub site: Site,
    #[serde(flatten)]
    pub reading: Reading,
    /// The share of the sum over all sites.
    pub share: f64,
}

/// What the sites sum up to, against the whole scheme.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Additivity {
    pub sum: f64,
    pub whole: f64,
    pub ratio: f64,
}

impl Additivity {
    /// Whether the sum is about the whole.
    pub fn holds(&self) -> bool {
        ADDS_UP.contains(&self.ratio)
    }
}

/// The fewest sites that hold [`MOST`] of the sum, the worst first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Culprits {
    pub sites: Vec<Site>,
    /// The share of the sum that they hold.
    pub share: f64,
    /// Whether they are so many that the harm has no place: more than half of all sites.
    pub are_spread: bool,
}

/// Turns the means of the lanes into shares of their sum.
pub fn shares(readings: Vec<(Site, Reading)>) -> Vec<SiteReading> {
    let sum: f64 = readings.iter().map(|(_, reading)| reading.mean_kld).sum();
    let share = |kld: f64| if sum > 0.0 { kld / sum } else { 0.0 };
    let reading = |(site, reading): (Site, Reading)| {
        let share = share(reading.mean_kld);
        SiteReading { site, reading, share }
    };
    readings.into_iter().map(reading).collect()
}

pub fn additivity(sites: &[SiteReading], whole: &Reading) -> Additivity {
    let sum = sites.iter().map(|site| site.reading.mean_kld).sum();
    Additivity { sum, whole: whole.mean_kld, ratio: sum / whole.mean_kld }
}

pub fn culprits(sites: &[SiteReading]) -> Culprits {
    let mut sorted: Vec<&SiteReading> = sites.iter().collect();
    sorted.sort_by(|a, b| b.share.total_cmp(&a.share));
    let (mut chosen, mut share) = (Vec::new(), 0.0);
    for site in sorted {
        // shares are rounded, and so is their sum
        if share >= MOST - 1e-9 {
            break;
        }
        chosen.push(site.site);
        share += site.share;
    }
    let are_spread = 2 * chosen.len() > sites.len();
    Culprits { sites: chosen, share, are_spread }
}

/// What the culprits have in common.
pub struct Suspects<'a> {
    /// The heads of the culprits that have outlier channels, the worst culprit first, and within it the worst head.
    pub outliers: Vec<(&'a HeadStatistics, &'a [ChannelStatistics])>,
    /// The head of the culprits with the largest channel, as a multiple of its median channel.
    pub largest: Option<(&'a HeadStatistics, f64)>,
    /// The least and the most of the energy of a culprit's head of K that is its mean, if K is a culprit.
    pub mean_share: Option<[f64; 2]>,
    /// The same before RoPE.
    pub mean_share_before_rope: Option<[f64; 2]>,
}

impl<'a> Suspects<'a> {
    pub fn of(explanation: &'a Explanation) -> Self {
        let heads = culprit_heads(explanation);
        let with_outliers = heads.iter().map(|head| (*head, head.outliers()));
        let ratio = |head: &&'a HeadStatistics| Some((*head, head.channels.first()?.of_median?));
        let range = |share: &dyn Fn(&HeadStatistics) -> Option<f64>| {
            let of_k = heads.iter().filter(|head| head.side == KvSide::K);
            let shares: Vec<f64> = of_k.filter_map(|head| share(head)).collect();
            let [least, most] = [f64::min, f64::max].map(|f| shares.iter().copied().reduce(f));
            Some([least?, most?])
        };
        Suspects {
            outliers: with_outliers.filter(|(_, outliers)| !outliers.is_empty()).collect(),
            largest: heads.iter().filter_map(ratio).max_by(|a, b| a.1.total_cmp(&b.1)),
            mean_share: range(&|head| Some(head.mean_share)),
            mean_share_before_rope: range(&|head| head.mean_share_before_rope),
        }
    }
}

/// The heads of the culprits, in the order of the culprits.
pub fn culprit_heads(explanation: &Explanation) -> Vec<&HeadStatistics> {
    let mut found = Vec::new();
    for site in &explanation.culprits.sites {
        let is_own = |head: &&HeadStatistics| {
            let slot = Slot { layer: head.layer, side: head.side };
            slot == site.slot() && site.head.is_none_or(|own| own == head.head)
        };
        let mut own: Vec<_> = explanation.heads.iter().filter(is_own).collect();
        let largest = |head: &HeadStatistics| head.channels.first().map_or(0.0, |c| c.rms);
        own.sort_by(|a, b| largest(b).total_cmp(&largest(a)));
        found.extend(own);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(klds: &[f64]) -> Vec<SiteReading> {
        let site = |(layer, kld): (usize, &f64)| {
            let site = Site { layer, side: KvSide::K, head: None };
            (site, Reading { mean_kld: *kld, ..Reading::default() })
        };
        shares(klds.iter().enumerate().map(site).collect())
    }

    fn layers(culprits: &Culprits) -> Vec<usize> {
        culprits.sites.iter().map(|site| site.layer).collect()
    }

    #[test]
    fn culprits_are_the_fewest_that_hold_most() {
        let few = culprits(&readings(&[0.1, 5.0, 0.2, 4.0, 0.3, 0.4]));
        assert_eq!((layers(&few), few.are_spread), (vec![1, 3], false));
        assert!((few.share - 0.9).abs() < 1e-12);
        // exactly the share is enough
        assert_eq!(layers(&culprits(&readings(&[8.0, 1.0, 1.0]))), [0]);
        let spread = culprits(&readings(&[1.0; 10]));
        assert_eq!((spread.sites.len(), spread.are_spread), (8, true));
        let nothing = culprits(&readings(&[0.0, 0.0]));
        assert_eq!((nothing.sites.len(), nothing.share), (2, 0.0));
    }

    #[test]
    fn a_sum_near_the_whole_adds_up() {
        let ratio = |whole: f64| {
            let whole = Reading { mean_kld: whole, ..Reading::default() };
            let additivity = additivity(&readings(&[0.5, 0.5]), &whole);
            (additivity.ratio, additivity.holds())
        };
        assert_eq!(ratio(1.0), (1.0, true));
        assert_eq!(ratio(2.0), (0.5, false));
        assert_eq!(ratio(0.5), (2.0, false));
    }
}
