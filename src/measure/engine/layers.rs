//! All layers over a group of chunks.

use super::{chunks_per_tile, Lane, LaneError, Pass};
use crate::kv::measuring::MeasuringCache;
use crate::measure::corpus::Chunk;
use crate::model::decoder::{Fault, ReadyLayer, Rows};
use candle_core::{Result as TensorResult, Tensor};
use std::ops::Range;

/// A few chunks of one lane, or of all lanes if the device has them travel together, on their way through the layers:
/// as many chunks as fit into a tile of the device.
pub(super) struct ChunkTile {
    /// The lanes, each with a block of rows. Where several travel together, the baseline is the first.
    lanes: Vec<usize>,
    /// Which chunks of the group these are.
    chunks: Range<usize>,
    /// Hidden states, (lanes·rows, H).
    x: Tensor,
    /// Each layer's own inputs, (rows, L·P), if the model has such inputs.
    per_layer: Option<Tensor>,
    cache: MeasuringCache,
}

/// The tiles of a group of chunks, lane by lane, or set by set where lanes travel together.
pub(super) struct ChunkTiles(Vec<ChunkTile>);

impl Pass<'_> {
    /// Runs all layers over a group of chunks, of which lane i takes the first `counts[i]`. In a lane that failed the
    /// hidden states mean nothing.
    ///
    /// # Errors
    /// What concerns all lanes. If the device has no memory, this is [`LaneError::Memory`] and no lane has failed for it.
    pub(super) fn run_layers(
        &mut self,
        chunks: &[Chunk],
        lanes: &[Lane],
        counts: &[usize],
    ) -> Result<ChunkTiles, LaneError> {
        let ropes = self.decoder.ropes(self.context)?;
        let mut tiles = self.embed(chunks, &lanes[0])?;
        let first_kv_layer = self.decoder.spec.layers_before_kv();
        for index in 0..=self.decoder.spec.layers.len() {
            if index == first_kv_layer {
                tiles = self.spread(tiles, lanes, counts)?;
                self.advance(first_kv_layer * counts[1..].iter().sum::<usize>());
            }
            if index == self.decoder.spec.layers.len() {
                break;
            }
            let layer = self.decoder.ready(index, &ropes)?;
            for tile in &mut tiles {
                self.run_layer(&layer, index, tile)?;
                if self.lanes[0].is_err() {
                    return Ok(ChunkTiles(tiles));
                }
                self.advance(tile.lanes.iter().map(|&l| tile.share(counts[l])).sum());
            }
            self.decoder.device().note_memory();
        }
        Ok(ChunkTiles(tiles))
    }

    /// Runs one layer of a tile, unless all its lanes have failed.
    fn run_layer(
        &mut self,
        layer: &ReadyLayer,
        index: usize,
        tile: &mut ChunkTile,
    ) -> Result<(), LaneError> {
        if tile.lanes.iter().all(|&l| self.lanes[l].is_err()) {
            return Ok(());
        }
        match tile.step(layer, index, self.context) {
            Ok(faults) => {
                for (&lane, fault) in tile.lanes.iter().zip(faults) {
                    if let Some(fault) = fault {
                        self.fail(lane, fault);
                    }
                }
            }
            Err(LaneError::Memory) => return Err(LaneError::Memory),
            Err(error) if tile.lanes.len() == 1 => self.fail(tile.lanes[0], error),
            // where lanes travel together, an op that fails fails for all of them
            Err(error) => {
                let why = format!("in a step that it shares with all schemes: {}", error.brief());
                self.fail_all(&why);
            }
        }
        Ok(())
    }

    /// Notes why a lane has failed. Without the baseline no lane has numbers.
    fn fail(&mut self, lane: usize, error: LaneError) {
        if lane == 0 {
            self.fail_all(&error.brief());
        } else if self.lanes[lane].is_ok() {
            self.lanes[lane] = Err(error);
        }
    }

    /// The tiles of the baseline below the first layer.
    fn embed(&self, chunks: &[Chunk], baseline: &Lane) -> Result<Vec<ChunkTile>, LaneError> {
        let per_tile = chunks_per_tile(self.decoder.device(), self.context);
        let tiles = chunks.chunks(per_tile).enumerate().map(|(i, chunks)| {
            let ids: Vec<u32> = chunks.iter().flat_map(|c| &c.tokens).copied().collect();
            let embedded = self.decoder.embed(&ids)?;
            Ok(ChunkTile {
                lanes: vec![0],
                chunks: i * per_tile..i * per_tile + chunks.len(),
                x: embedded.x,
                per_layer: embedded.per_layer,
                cache: MeasuringCache::new(baseline.scheme.clone()),
            })
        });
        tiles.collect()
    }

    /// Hands the states of the baseline to all lanes. Below the first layer with a KV cache the lanes do not differ,
    /// so the baseline has run these layers for all.
    fn spread(
        &self,
        bottom: Vec<ChunkTile>,
        lanes: &[Lane],
        counts: &[usize],
    ) -> TensorResult<Vec<ChunkTile>> {
        let mut tiles = Vec::new();
        for set in self.decoder.device().lane_sets(lanes.len()) {
            for common in &bottom {
                let present = |&l: &usize| counts[l] > common.chunks.start;
                let present: Vec<usize> = set.clone().filter(present).collect();
                if !present.is_empty() {
                    tiles.push(common.of_lanes(present, lanes, counts)?);
                }
            }
        }
        Ok(tiles)
    }
}

impl ChunkTiles {
    /// The rows of a chunk in a lane, from the row `first` on.
    pub(super) fn rows(
        &self,
        lane: usize,
        chunk: usize,
        scored: Range<usize>,
    ) -> TensorResult<Tensor> {
        let tile =
            self.0.iter().find(|tile| tile.chunks.contains(&chunk) && tile.lanes.contains(&lane));
        let tile = tile.expect("every lane that is asked for has a tile with the chunk");
        tile.rows(lane, chunk, scored)
    }
}

impl ChunkTile {
    /// The same chunks for other lanes. A lane that travels alone takes only those chunks that it is measured on.
    /// Where several travel together, all take all chunks of the tile, so that each is a block of as many rows as
    /// the baseline.
    fn of_lanes(
        &self,
        present: Vec<usize>,
        lanes: &[Lane],
        counts: &[usize],
    ) -> TensorResult<Self> {
        let end = match present[..] {
            [lane] => self.chunks.end.min(counts[lane]),
            _ => self.chunks.end,
        };
        let rows = self.x.dim(0)? / self.chunks.len() * (end - self.chunks.start);
        let x = self.x.narrow(0, 0, rows)?;
        let per_layer = self.per_layer.as_ref().map(|inputs| inputs.narrow(0, 0, rows));
        Ok(ChunkTile {
            chunks: self.chunks.start..end,
            x: if present.len() == 1 { x } else { x.repeat((present.len(), 1))? },
            per_layer: per_layer.transpose()?,
            cache: MeasuringCache::of_lanes(
                present.iter().map(|&l| lanes[l].scheme.clone()).collect(),
            ),
            lanes: present,
        })
    }

    /// How many of its chunks are among the first `count`.
    fn share(&self, count: usize) -> usize {
        count.clamp(self.chunks.start, self.chunks.end) - self.chunks.start
    }

    /// Runs one layer. Gives what went wrong in each lane.
    fn step(
        &mut self,
        layer: &ReadyLayer,
        index: usize,
        context: usize,
    ) -> Result<Vec<Option<LaneError>>, LaneError> {
        let rows = Rows { lanes: self.lanes.len(), ..Rows::of_lane(context) };
        let (x, watch) = layer
            .watched(&self.x, self.per_layer.as_ref(), rows, &mut self.cache)
            .map_err(|error| LaneError::at(index, error))?;
        self.x = x;
        self.cache.forget_states();
        let error = |fault| match fault {
            Fault::Stored(error) => LaneError::at(index, error),
            Fault::Hidden => LaneError::Hidden { layer: index },
        };
        let faults = watch.faults()?;
        Ok(faults.into_iter().map(|fault| fault.map(error)).collect())
    }

    fn rows(&self, lane: usize, chunk: usize, scored: Range<usize>) -> TensorResult<Tensor> {
        let block = self.lanes.iter().position(|&l| l == lane).expect("the lane is in the tile");
        let chunks = self.chunks.len();
        let context = self.x.dim(0)? / (self.lanes.len() * chunks);
        let first = (block * chunks + chunk - self.chunks.start) * context + scored.start;
        self.x.narrow(0, first, scored.len())
    }
}
