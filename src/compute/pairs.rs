//! The pairs of a row and an expert that works for it.

use super::elements::read;
use super::experts::WeightedScatter;
use super::{change, cuda};
use candle_core::{Device, Result, Tensor};

/// The pairs of a row and an expert that works for it, as [`ExpertChoice`](super::experts::ExpertChoice) has chosen. They
/// are ordered by expert.
pub(crate) struct Pairs(pub(super) Sorted);

/// The pairs where the choice was made: on the host or on a card.
pub(super) enum Sorted {
    Host(HostPairs),
    Card(cuda::Pairs),
}

/// The rows of each expert.
pub(super) struct HostPairs {
    rows: usize,
    shares: Vec<Share>,
}

/// The rows that an expert computes, and the weights of what it gives.
#[derive(Clone, Default)]
pub(super) struct Share {
    pub rows: Vec<u32>,
    pub weights: Vec<f32>,
}

impl Pairs {
    /// Makes them of what was chosen, (rows, 2·used), for the rows of some lanes, the first of which is the baseline.
    pub fn new(choice: Tensor, experts: usize, lanes: usize) -> Result<Self> {
        Ok(Pairs(match choice.device() {
            Device::Cuda(_) => Sorted::Card(cuda::Pairs::new(choice, experts, lanes)?),
            _ => Sorted::Host(HostPairs::new(&choice, experts)?),
        }))
    }

    /// Adds to each row of y, which are those of the pairs, the bias of the pair's expert: biases are (experts, out).
    pub fn biased(&self, y: &Tensor, biases: &Tensor) -> Result<Tensor> {
        let owners = match &self.0 {
            Sorted::Host(pairs) => pairs.owners(y.device())?,
            Sorted::Card(pairs) => pairs.owners().clone(),
        };
        y + biases.index_select(&owners, 0)?
    }

    /// Each row's sum of weight · y over its experts, in ascending order of the experts. y are the rows of the pairs.
    pub fn weighted_sum(&self, y: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Sorted::Host(pairs) => pairs.weighted_sum(y),
            Sorted::Card(pairs) => pairs.weighted_sum(y),
        }
    }
}

impl HostPairs {
    fn new(choice: &Tensor, experts: usize) -> Result<Self> {
        let (rows, width) = choice.dims2()?;
        let mut shares = vec![Share::default(); experts];
        read(choice, |choice: &[f32]| {
            for (row, choice) in choice.chunks_exact(width).enumerate() {
                let (experts, weights) = choice.split_at(width / 2);
                for (expert, weight) in experts.iter().zip(weights) {
                    let share = &mut shares[*expert as usize];
                    share.rows.push(row as u32);
                    share.weights.push(*weight);
                }
            }
        })?;
        Ok(HostPairs { rows, shares })
    }

    /// The experts that have rows, and where the rows of each begin.
    pub(super) fn shares(&self) -> impl Iterator<Item = (usize, usize, &Share)> {
        let mut start = 0;
        self.shares.iter().enumerate().filter_map(move |(expert, share)| {
            let own = start;
            start += share.rows.len();
            (!share.rows.is_empty()).then_some((expert, own, share))
        })
    }

    /// The expert of each pair.
    fn owners(&self, at: &Device) -> Result<Tensor> {
        let of_share = |(expert, _, share): (usize, _, &Share)| {
            std::iter::repeat_n(expert as u32, share.rows.len())
        };
        Tensor::new(self.shares().flat_map(of_share).collect::<Vec<_>>(), at)
    }

    fn weighted_sum(&self, y: &Tensor) -> Result<Tensor> {
        let out = Tensor::zeros((self.rows, y.dim(1)?), y.dtype(), y.device())?;
        for (_, start, share) in self.shares() {
            let (rows, weights) = (&share.rows[..], &share.weights[..]);
            let [rows, weights] =
                [Tensor::new(rows, y.device())?, Tensor::new(weights, y.device())?];
            let y = y.narrow(0, start, share.rows.len())?;
            change(&WeightedScatter { rows: Some(&rows), weights: &weights, y: &y }, &out)?;
        }
        Ok(out)
    }
}
