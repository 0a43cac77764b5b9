//! All layers over a group of chunks.

use super::{chunks_per_tile, Lane, LaneError, Pass};
use crate::kv::measuring::MeasuringCache;
use crate::measure::corpus::Chunk;
use crate::model::decoder::{At, Embedded, ReadyLayer};
use candle_core::{Result as TensorResult, Tensor};

/// A few chunks of one lane on their way through the layers: as many as fit into a tile of the device.
pub(super) struct ChunkTile {
    /// Hidden states, (rows, H).
    pub x: Tensor,
    /// Each layer's own inputs, if the model has such inputs.
    per_layer: Option<Tensor>,
    cache: MeasuringCache,
}

/// The tiles of one lane, in the order of its chunks.
pub(super) type ChunkTiles = Vec<ChunkTile>;

impl Pass<'_> {
    /// Runs all layers over a group of chunks, of which lane i takes the first `counts[i]`. Gives the tiles of each
    /// lane. In a lane that failed they mean nothing.
    pub(super) fn run_layers(
        &mut self,
        chunks: &[Chunk],
        lanes: &[Lane],
        counts: &[usize],
    ) -> Result<Vec<ChunkTiles>, LaneError> {
        let ropes = self.decoder.ropes(self.context)?;
        let embedded = self.embed(chunks)?;
        let tiles = lanes.iter().zip(counts).map(|(lane, &n)| self.tiles(&embedded, lane, n));
        let mut tiles = tiles.collect::<TensorResult<Vec<_>>>()?;
        let first_kv_layer = self.decoder.spec.layers_before_kv();
        for index in 0..self.decoder.spec.layers.len() {
            let layer = self.decoder.ready(index, &ropes)?;
            let computed = if index < first_kv_layer { 1 } else { lanes.len() };
            for l in 0..computed {
                self.run_layer(&layer, index, l, &mut tiles[l]);
                if self.lanes[0].is_err() {
                    return Ok(tiles);
                }
                self.advance(counts[l]);
            }
            if index + 1 == first_kv_layer {
                fork(&mut tiles)?;
                self.advance(first_kv_layer * counts[1..].iter().sum::<usize>());
            }
        }
        Ok(tiles)
    }

    /// Runs one layer of one lane, unless the lane has failed.
    fn run_layer(&mut self, layer: &ReadyLayer, index: usize, lane: usize, tiles: &mut ChunkTiles) {
        if self.lanes[lane].is_err() {
            return;
        }
        let done = tiles.iter_mut().try_for_each(|tile| tile.step(layer, index, self.context));
        match done {
            Ok(()) => {}
            Err(error) if lane == 0 => self.fail_all(&error.brief()),
            Err(error) => self.lanes[lane] = Err(error),
        }
    }

    fn embed(&self, chunks: &[Chunk]) -> Result<Vec<Embedded>, LaneError> {
        chunks
            .chunks(chunks_per_tile(self.decoder.device(), self.context))
            .map(|chunks| {
                let ids: Vec<u32> = chunks.iter().flat_map(|c| &c.tokens).copied().collect();
                Ok(self.decoder.embed(&ids)?)
            })
            .collect()
    }

    /// The tiles of the first `chunks` chunks of a lane. They share the tensors of the embeddings.
    fn tiles(&self, embedded: &[Embedded], lane: &Lane, chunks: usize) -> TensorResult<ChunkTiles> {
        let mut left = chunks * self.context;
        let mut tiles = ChunkTiles::new();
        for Embedded { x, per_layer } in embedded {
            let rows = left.min(x.dim(0)?);
            left -= rows;
            if rows == 0 {
                break;
            }
            let per_layer = per_layer.as_ref().map(|inputs| inputs.narrow(0, 0, rows));
            tiles.push(ChunkTile {
                x: x.narrow(0, 0, rows)?,
                per_layer: per_layer.transpose()?,
                cache: MeasuringCache::new(lane.scheme.clone()),
            });
        }
        Ok(tiles)
    }
}

impl ChunkTile {
    /// Runs one layer.
    fn step(&mut self, layer: &ReadyLayer, index: usize, context: usize) -> Result<(), LaneError> {
        let at = At { start: 0, tokens: context };
        let (x, finite) = layer
            .watched(&self.x, self.per_layer.as_ref(), at, &mut self.cache)
            .map_err(|error| LaneError::at(index, error))?;
        self.x = x;
        self.cache.forget_states();
        if finite.is_finite() {
            Ok(())
        } else {
            Err(LaneError::Hidden { layer: index })
        }
    }
}

/// Hands the states of the first lane to all others. Below the first layer with a KV cache the lanes do not differ,
/// so that one of them has run these layers for all.
fn fork(tiles: &mut [ChunkTiles]) -> TensorResult<()> {
    let Some((first, others)) = tiles.split_first_mut() else { return Ok(()) };
    for tiles in others {
        for (tile, common) in tiles.iter_mut().zip(first.iter()) {
            tile.x = common.x.narrow(0, 0, tile.x.dim(0)?)?;
        }
    }
    Ok(())
}
