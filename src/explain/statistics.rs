//! Statistics of the K and V that a model hands to its cache, head by head and channel by channel.

use super::rope::{Pair, Turned};
use crate::kv::layout::KvSide;
use serde::Serialize;

/// The statistics of one KV head over all tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeadStatistics {
    /// Index of the layer in the checkpoint.
    pub layer: usize,
    pub side: KvSide,
    pub head: usize,
    /// Root mean square of all numbers.
    pub rms: f64,
    /// The largest magnitude.
    pub absmax: f64,
    /// E\[x⁴\] / E\[x²\]² over all numbers: 3 for a normal distribution around zero, and more with outliers.
    pub kurtosis: f64,
    /// The share of the energy Σx² that the channels' means over tokens have. So much `:center` takes out.
    pub mean_share: f64,
    /// The same share of K before RoPE, which turns a constant into a wave. None for V and without RoPE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_share_before_rope: Option<f64>,
    /// What the codec does, as the scheme has it. None if the scheme keeps the head exact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<CodecError>,
    /// The same with a Hadamard rotation before the codec. None if the codec is never rotated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_rotated: Option<CodecError>,
    /// The same without a rotation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_unrotated: Option<CodecError>,
    /// The rms of the median channel, by which outliers are told.
    pub median_channel_rms: f64,
    /// The channels with the largest rms, the largest first.
    pub channels: Vec<ChannelStatistics>,
}

/// The relative error ‖x − Q(x)‖ / ‖x‖ of a codec.
///
/// In a head with outliers the two numbers are far apart: the whole head's error is measured by the outliers, and the
/// noise that they bring about covers the other channels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CodecError {
    /// Of all numbers of the head.
    pub head: f64,
    /// The median over channels, each by itself.
    pub median_channel: f64,
}

/// The statistics of one channel, an element of a head, over all tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChannelStatistics {
    pub channel: usize,
    pub rms: f64,
    pub absmax: f64,
    pub mean: f64,
    /// The rms as a multiple of the median channel's. None if that is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_median: Option<f64>,
    /// The share of the head's energy.
    pub energy: f64,
    /// The RoPE pair that the channel belongs to. None for V, and for channels that are in no pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pair: Option<Pair>,
}

/// How many channels of a head are kept that are no outliers.
const KEPT: usize = 16;

/// From this multiple of the median channel's rms on, a channel is an outlier.
pub const OUTLIER: f64 = 6.0;

impl HeadStatistics {
    /// The channels that are outliers, the worst first.
    pub fn outliers(&self) -> &[ChannelStatistics] {
        let is_outlier = |c: &ChannelStatistics| match c.of_median {
            Some(ratio) => ratio >= OUTLIER,
            None => c.rms > 0.0,
        };
        let count = self.channels.iter().take_while(|channel| is_outlier(channel)).count();
        &self.channels[..count]
    }

    /// Forgets channels that are neither outliers nor among the largest. Models have thousands of them.
    pub fn shorten(&mut self) {
        self.channels.truncate(self.outliers().len().max(KEPT));
    }
}

/// Sums over the tokens of one head.
pub struct HeadSums {
    tokens: u64,
    channels: Vec<ChannelSums>,
    fourth: f64,
    /// Those of K before RoPE.
    unturned: Option<Vec<ChannelSums>>,
    /// What a codec changes in each channel: without a rotation, and with one.
    changed: [Option<Vec<Change>>; 2],
}

#[derive(Debug, Clone, Copy, Default)]
struct ChannelSums {
    sum: f64,
    square: f64,
    absmax: f32,
}

/// How much a codec changes numbers.
#[derive(Debug, Clone, Copy, Default)]
struct Change {
    error: f64,
    energy: f64,
}

impl ChannelSums {
    fn add(&mut self, x: f32) {
        self.sum += f64::from(x);
        self.square += f64::from(x) * f64::from(x);
        self.absmax = self.absmax.max(x.abs());
    }
}

impl Change {
    fn relative(self) -> f64 {
        share(self.error, self.energy).sqrt()
    }

    fn add(self, other: Change) -> Change {
        Change { error: self.error + other.error, energy: self.energy + other.energy }
    }
}

impl CodecError {
    fn of(channels: &[Change]) -> Self {
        let all = channels.iter().copied().fold(Change::default(), Change::add);
        let by_channel = channels.iter().map(|change| change.relative()).collect();
        CodecError { head: all.relative(), median_channel: median(by_channel) }
    }
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 {
        part / whole
    } else {
        0.0
    }
}

/// The share of the energy that the means have.
fn mean_share(channels: &[ChannelSums], tokens: f64) -> f64 {
    let of_means: f64 = channels.iter().map(|c| c.sum * c.sum / tokens).sum();
    share(of_means, channels.iter().map(|c| c.square).sum())
}

impl HeadSums {
    pub fn new(head_dim: usize) -> Self {
        HeadSums {
            tokens: 0,
            channels: vec![ChannelSums::default(); head_dim],
            fourth: 0.0,
            unturned: None,
            changed: [None, None],
        }
    }

    /// Adds the head's numbers of one token. `turned` says how RoPE has turned them, and at which position.
    pub fn add(&mut self, x: &[f32], turned: Option<(&Turned, usize)>) {
        self.tokens += 1;
        for (sums, &x) in self.channels.iter_mut().zip(x) {
            sums.add(x);
            self.fourth += f64::from(x).powi(4);
        }
        if let Some((turned, position)) = turned {
            let mut before = x.to_vec();
            turned.undo(&mut before, position);
            let none = || vec![ChannelSums::default(); x.len()];
            let sums = self.unturned.get_or_insert_with(none);
            sums.iter_mut().zip(before).for_each(|(sums, x)| sums.add(x));
        }
    }

    /// Adds what a codec makes of the head's numbers of one token.
    pub fn add_change(&mut self, x: &[f32], stored: &[f32], is_rotated: bool) {
        let none = || vec![Change::default(); x.len()];
        let changes = self.changed[usize::from(is_rotated)].get_or_insert_with(none);
        for ((change, &x), &stored) in changes.iter_mut().zip(x).zip(stored) {
            let error = (f64::from(x) - f64::from(stored)).powi(2);
            *change = change.add(Change { error, energy: f64::from(x).powi(2) });
        }
    }

    /// The mean of each channel.
    pub fn means(&self) -> impl Iterator<Item = f32> + '_ {
        self.channels.iter().map(|c| (c.sum / self.tokens.max(1) as f64) as f32)
    }

    /// The statistics. `is_rotated` says which of the errors is the scheme's; `pair` gives a channel's RoPE pair.
    pub fn statistics(
        &self,
        (layer, side, head): (usize, KvSide, usize),
        is_rotated: bool,
        pair: impl Fn(usize) -> Option<Pair>,
    ) -> HeadStatistics {
        let tokens = self.tokens.max(1) as f64;
        let energy: f64 = self.channels.iter().map(|c| c.square).sum();
        let numbers = tokens * self.channels.len() as f64;
        let rms = |sums: &ChannelSums| (sums.square / tokens).sqrt();
        let median = median(self.channels.iter().map(rms).collect());
        let channel = |(channel, sums): (usize, &ChannelSums)| ChannelStatistics {
            channel,
            rms: rms(sums),
            absmax: sums.absmax.into(),
            mean: sums.sum / tokens,
            of_median: (median > 0.0).then(|| rms(sums) / median),
            energy: share(sums.square, energy),
            pair: pair(channel),
        };
        let mut channels: Vec<_> = self.channels.iter().enumerate().map(channel).collect();
        channels.sort_by(|a, b| b.rms.total_cmp(&a.rms));
        let error = |changes: &Option<Vec<Change>>| changes.as_deref().map(CodecError::of);
        let [unrotated, rotated] = self.changed.each_ref().map(error);
        HeadStatistics {
            layer,
            side,
            head,
            rms: (energy / numbers).sqrt(),
            absmax: channels.iter().map(|c| c.absmax).fold(0.0, f64::max),
            kurtosis: share(self.fourth / numbers, (energy / numbers).powi(2)),
            mean_share: mean_share(&self.channels, tokens),
            mean_share_before_rope: self.unturned.as_ref().map(|sums| mean_share(sums, tokens)),
            error: if is_rotated { rotated } else { unrotated },
            error_rotated: rotated,
            error_unrotated: unrotated,
            median_channel_rms: median,
            channels,
        }
    }
}

/// The median; of an even number of values, the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::{Pairs, Rope};

    fn statistics(sums: &HeadSums) -> HeadStatistics {
        sums.statistics((3, KvSide::K, 1), false, |_| None)
    }

    /// Worked out by hand. Two tokens of four channels; the energy is 4 + 4 + 18 + 200 + … of which the mean has some.
    #[test]
    fn numbers_are_those_of_a_tensor_made_by_hand() {
        let mut sums = HeadSums::new(4);
        sums.add(&[1.0, -1.0, 10.0, 0.0], None);
        sums.add(&[1.0, 1.0, 10.0, 2.0], None);
        let found = statistics(&sums);
        // squares by channel: 2, 2, 200, 4
        assert_eq!(found.rms, (208.0f64 / 8.0).sqrt());
        assert_eq!(found.absmax, 10.0);
        // fourth powers: 2, 2, 20000, 16
        assert_eq!(found.kurtosis, (20020.0 / 8.0) / 26.0f64.powi(2));
        // means 1, 0, 10, 1, whose squares count once for each token
        assert_eq!(found.mean_share, 204.0 / 208.0);
        let order: Vec<usize> = found.channels.iter().map(|c| c.channel).collect();
        assert_eq!(order, [2, 3, 0, 1]);
        let worst = &found.channels[0];
        assert_eq!((worst.rms, worst.mean, worst.energy), (10.0, 10.0, 200.0 / 208.0));
        // rms 1, 1, 10, √2
        let median = (1.0 + 2.0f64.sqrt()) / 2.0;
        assert_eq!(found.median_channel_rms, median);
        assert_eq!(worst.of_median, Some(10.0 / median));
        assert_eq!(found.outliers().iter().map(|c| c.channel).collect::<Vec<_>>(), [2]);
        assert_eq!((found.layer, found.side, found.head), (3, KvSide::K, 1));
        assert_eq!((found.error, found.mean_share_before_rope), (None, None));
        assert_eq!(sums.means().collect::<Vec<_>>(), [1.0, 0.0, 10.0, 1.0]);
    }

    #[test]
    fn a_head_of_dead_channels_has_the_live_one_as_its_outlier() {
        let mut sums = HeadSums::new(3);
        sums.add(&[0.0, 4.0, 0.0], None);
        let found = statistics(&sums);
        assert_eq!(found.channels[0].of_median, None);
        assert_eq!(found.outliers().len(), 1);
        let zero = statistics(&HeadSums::new(3));
        assert_eq!((zero.rms, zero.kurtosis, zero.outliers().len()), (0.0, 0.0, 0));
    }

    #[test]
    fn the_codecs_error_is_relative_and_of_the_way_that_the_scheme_takes() {
        let mut sums = HeadSums::new(2);
        sums.add_change(&[3.0, 4.0], &[3.0, 3.0], false);
        sums.add_change(&[3.0, 4.0], &[3.0, 3.5], true);
        sums.add_change(&[0.0, 0.0], &[0.0, 0.0], true);
        let found = |is_rotated| sums.statistics((0, KvSide::V, 0), is_rotated, |_| None);
        // of the channels, one has no error and one 1 / 4
        let unrotated = CodecError { head: 0.2, median_channel: 0.125 };
        let rotated = CodecError { head: 0.1, median_channel: 0.0625 };
        assert_eq!(found(false).error, Some(unrotated));
        assert_eq!(found(true).error, Some(rotated));
        let both = (found(true).error_rotated, found(true).error_unrotated);
        assert_eq!(both, (Some(rotated), Some(unrotated)));
    }

    #[test]
    fn outliers_are_never_forgotten() {
        let mut sums = HeadSums::new(64);
        let x: Vec<f32> = (0..64).map(|i| if i < 20 { 9.0 } else { 1.0 }).collect();
        sums.add(&x, None);
        let mut found = statistics(&sums);
        found.shorten();
        assert_eq!(found.channels.len(), 20);
        let mut even = HeadSums::new(64);
        even.add(&[1.0; 64], None);
        let mut found = statistics(&even);
        found.shorten();
        assert_eq!(found.channels.len(), KEPT);
    }

    /// A constant that RoPE turns by half a turn a token has no mean afterwards, and is all mean before.
    #[test]
    fn a_constant_before_rope_is_found_behind_it() {
        let rope = Rope {
            frequencies: [std::f32::consts::PI, 0.0].into(),
            pairs: Pairs::Adjacent,
            ..Rope::none()
        };
        let turned = Turned::new(&rope, 4).unwrap();
        let mut sums = HeadSums::new(4);
        for position in 0..4 {
            let sign = if position % 2 == 0 { 1.0 } else { -1.0 };
            sums.add(&[3.0 * sign, 0.0, 1.0, 0.0], Some((&turned, position)));
        }
        let found = statistics(&sums);
        assert!((found.mean_share - 0.1).abs() < 1e-9, "{}", found.mean_share);
        let before = found.mean_share_before_rope.unwrap();
        assert!((before - 1.0).abs() < 1e-9, "{before}");
    }
}
