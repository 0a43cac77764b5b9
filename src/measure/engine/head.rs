//! The streaming head: logits of all lanes, a tile of the vocabulary at a time, and what they say of each position.
//! No lane's logits are ever kept for the whole vocabulary.

use crate::compute::divergence::{TileSums, KNOWN, NUMBERS};
use crate::compute::elements::read;
use crate::compute::finite::{all_finite, FiniteFlag};
use crate::compute::run;
use crate::measure::corpus::Chunk;
use crate::measure::divergence::Divergence;
use crate::measure::mimic::{Comparison, Mimic, QuantizedRow};
use crate::model::decoder::Decoder;
use crate::results::statistics::Position;
use candle_core::{Result as TensorResult, Tensor};
use rayon::prelude::*;
use tracing::trace_span;

/// The positions of each lane in a chunk. `rows` holds the scored rows, (n, H), of the baseline and then of each lane.
pub(in crate::measure) fn positions(
    decoder: &Decoder,
    chunk: &Chunk,
    rows: &[Tensor],
    mimic: Option<Mimic>,
) -> TensorResult<Vec<Vec<Position>>> {
    let targets = &chunk.tokens[chunk.scored.start + 1..chunk.scored.end + 1];
    let block = decoder.device().head_positions(rows.len());
    let mut positions = vec![Vec::with_capacity(targets.len()); rows.len() - 1];
    for (i, targets) in targets.chunks(block).enumerate() {
        let rows = rows
            .iter()
            .map(|rows| rows.narrow(0, i * block, targets.len()))
            .collect::<TensorResult<Vec<_>>>()?;
        let head =
            HeadBlock { decoder, rows: Tensor::cat(&rows, 0)?, lanes: rows.len() - 1, targets };
        let found = if mimic.is_some() { head.compare_as_llama_cpp()? } else { head.compare()? };
        for position in found {
            for (lane, position) in positions.iter_mut().zip(position) {
                lane.push(position);
            }
        }
    }
    Ok(positions)
}

/// A block of positions at the head. Row `l·n + i` is lane l at position i, where lane 0 is the baseline.
struct HeadBlock<'a> {
    decoder: &'a Decoder,
    rows: Tensor,
    lanes: usize,
    targets: &'a [u32],
}

impl HeadBlock<'_> {
    /// For each position, what each lane makes of it.
    fn compare(&self) -> TensorResult<Vec<Vec<Position>>> {
        let lanes = self.lanes;
        let mut states: Vec<_> = self.targets.iter().map(|&t| Divergence::new(t, lanes)).collect();
        let device = self.rows.device();
        let targets = Tensor::new(self.targets, device)?;
        let finite = FiniteFlag::default();
        self.for_each_tile(&self.rows, lanes + 1, |start, logits| {
            let op = TileSums { lanes: lanes + 1, start, targets: &targets, finite: &finite };
            let known: Vec<f32> = states.iter().flat_map(Divergence::known).collect();
            let known = Tensor::from_vec(known, (states.len(), KNOWN + lanes), device)?;
            let sums = run(&op, [logits, &known])?;
            read(&sums, |sums: &[f64]| {
                let sums = sums.par_chunks_exact((lanes + 1) * NUMBERS);
                states.par_iter_mut().zip(sums).for_each(|(state, sums)| state.add(sums));
            })?;
            Ok(finite.by_lane(lanes + 1)?[0])
        })?;
        Ok(states.iter().map(|state| state.finish().collect()).collect())
    }

    /// The same as llama-perplexity computes it. The vocabulary is walked once for the baseline alone, because the
    /// range of its logits decides how they are stored, and once more for all lanes.
    fn compare_as_llama_cpp(&self) -> TensorResult<Vec<Vec<Position>>> {
        let lanes = self.lanes;
        let mut baselines: Vec<_> = self.targets.iter().map(|_| QuantizedRow::new()).collect();
        let baseline = self.rows.narrow(0, 0, self.targets.len())?;
        self.for_each_tile_on_host(&baseline, 1, |tile| {
            let baselines = baselines.par_iter_mut().enumerate();
            baselines.for_each(|(i, baseline)| baseline.add(tile.row(0, i)));
        })?;
        let mut states: Vec<_> = baselines
            .into_iter()
            .zip(self.targets)
            .map(|(baseline, &target)| Comparison::new(baseline, target, lanes))
            .collect();
        self.for_each_tile_on_host(&self.rows, lanes + 1, |tile| {
            states.par_iter_mut().enumerate().for_each(|(i, state)| {
                state.add(tile.start, tile.row(0, i), (1..=lanes).map(|l| tile.row(l, i)));
            });
        })?;
        Ok(states.iter().map(|state| state.finish().collect()).collect())
    }

    /// Computes the logits of the rows of some lanes in tiles of the vocabulary. `f` is given the first entry of a tile and its
    /// logits, and says whether those of the baseline are finite.
    fn for_each_tile(
        &self,
        rows: &Tensor,
        lanes: usize,
        mut f: impl FnMut(u32, &Tensor) -> TensorResult<bool>,
    ) -> TensorResult<()> {
        let vocab = self.decoder.spec.vocab;
        let width = self.decoder.device().head_width(rows.dim(0)?).min(vocab);
        for start in (0..vocab).step_by(width) {
            let width = width.min(vocab - start);
            let logits = self.decoder.logits(rows, lanes, start, width)?;
            let _span = trace_span!("divergence").entered();
            // logits of a lane that are not finite show in its own numbers, but those of the baseline would be
            // blamed on all lanes
            if !f(start as u32, &logits)? {
                candle_core::bail!("head: the logits of the baseline are not finite");
            }
        }
        Ok(())
    }

    /// The same for logits that are read on the host.
    fn for_each_tile_on_host(
        &self,
        rows: &Tensor,
        lanes: usize,
        mut f: impl FnMut(VocabTile),
    ) -> TensorResult<()> {
        let positions = self.targets.len();
        self.for_each_tile(rows, lanes, |start, logits| {
            let width = logits.dim(1)?;
            read(logits, |logits: &[f32]| {
                f(VocabTile { start, logits, positions, width });
                all_finite(&logits[..positions * width])
            })
        })
    }
}

/// The logits of a block's rows for some entries of the vocabulary.
#[derive(Clone, Copy)]
struct VocabTile<'a> {
    /// The first entry.
    start: u32,
    logits: &'a [f32],
    positions: usize,
    width: usize,
}

impl<'a> VocabTile<'a> {
    /// The logits of one lane at one position. Lane 0 is the baseline.
    fn row(self, lane: usize, position: usize) -> &'a [f32] {
        &self.logits[(lane * self.positions + position) * self.width..][..self.width]
    }
}
