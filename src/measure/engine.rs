//! The engine: all lanes over all chunks, one layer after the other, then the streaming head.
//!
//! Layer-major: a layer's weights serve every lane and chunk before the next layer is touched. Lanes
//! share one hidden state until the first layer that owns a cache. Chunks travel in groups, as many
//! as the memory for hidden states allows.

use super::corpus::Chunk;
use super::divergence::Divergence;
use super::mimic::{self, Mimic};
use crate::compute::divergence::{TileSums, KNOWN, NUMBERS};
use crate::compute::elements::read;
use crate::compute::finite::{all_finite, FiniteFlag};
use crate::compute::{run as run_op, Device};
use crate::kv::cache::CacheError;
use crate::kv::effective::Effective;
use crate::kv::measuring::MeasuringCache;
use crate::model::decoder::{self, At, Decoder, Embedded, ReadyLayer};
use crate::model::spec::Spec;
use crate::model::ModelError;
use crate::results::statistics::Position;
use candle_core::{Result as TensorResult, Tensor};
use rayon::prelude::*;
use tracing::trace_span;

/// Bytes that the hidden states of a group of chunks may take.
const GROUP_BYTES: usize = 2 << 30;

/// Rows of the head's products: positions × lanes.
pub const HEAD_ROWS: usize = 2560;

/// Logits of a tile of the vocabulary, which then lie in the caches.
pub const HEAD_LOGITS: usize = 4 << 20;

/// A scheme that travels beside the baseline.
#[derive(Clone)]
pub struct Lane {
    /// How it stores K and V.
    pub scheme: Effective,
    /// It is measured on the first so many chunks.
    pub chunks: usize,
}

/// Why a lane has no numbers.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// The cache refused K or V, or a tensor operation failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Weights that are read as they are needed could not be.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor operation failed, or a router's logits are not finite.
    #[error("layer {layer}: {why}")]
    Layer {
        /// Index of the layer.
        layer: usize,
        /// What candle says.
        why: String,
    },
    /// The residual stream became NaN or infinite.
    #[error("layer {layer}: the hidden state is not finite")]
    Hidden {
        /// Index of the layer that made it so.
        layer: usize,
    },
    /// Logits of the lane are NaN or infinite.
    #[error("head: the logits at position {position} of chunk {chunk} are not finite")]
    Logits {
        /// Position in the chunk.
        position: usize,
        /// Index of the chunk.
        chunk: usize,
    },
    /// The baseline has no numbers, so no lane can have any.
    #[error("the baseline failed: {0}")]
    Baseline(String),
}

impl LaneError {
    /// What went wrong, without the backtrace that candle appends to its errors.
    pub(super) fn brief(&self) -> String {
        self.to_string().lines().next().unwrap_or_default().into()
    }
}

impl LaneError {
    /// An error of a layer; those of its cache name it already.
    pub(super) fn at(layer: usize, error: CacheError) -> Self {
        match error {
            CacheError::Tensor(error) => {
                let why = error.to_string().lines().next().unwrap_or_default().into();
                LaneError::Layer { layer, why }
            }
            named => LaneError::Cache(named),
        }
    }
}

impl From<candle_core::Error> for LaneError {
    fn from(error: candle_core::Error) -> Self {
        LaneError::Cache(error.into())
    }
}

/// What a lane gave: a position for each scored position of its chunks, in order.
pub type LaneResult = Result<Vec<Position>, LaneError>;

/// Runs the baseline and the lanes over the chunks, which are all of one length. `progress` is told
/// work done and work in all.
///
/// # Errors
/// None of its own: each lane carries its own, and a failed baseline fails them all.
pub fn run(
    decoder: &Decoder,
    chunks: &[Chunk],
    baseline: &Effective,
    lanes: &[Lane],
    mimic: Option<Mimic>,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Vec<LaneResult> {
    let context = chunks.first().map_or(0, |chunk| chunk.tokens.len());
    let mut all = vec![Lane { scheme: baseline.clone(), chunks: chunks.len() }];
    all.extend_from_slice(lanes);
    let per_token = all.len() * (decoder.spec.hidden + shared_width(&decoder.spec))
        + per_layer_width(&decoder.spec);
    let per_chunk = context * per_token * size_of::<f32>();
    // whole tiles: with experts a product's rows, and with them its last bits, depend on the tile
    let tile = chunks_per_tile(decoder.device(), context);
    let group = (GROUP_BYTES / per_chunk.max(1)).max(1).next_multiple_of(tile);
    in_groups(group, decoder, chunks, &all, mimic, progress)
}

/// Chunks of one lane that travel together: as many as fit into a tile, at least one. A lane on fewer chunks takes whole tiles, so that each of its tiles is the
/// baseline's.
pub fn chunks_per_tile(device: &Device, context: usize) -> usize {
    (device.tile_rows() / context.max(1)).max(1)
}

/// Numbers of a token's own inputs for the layers, which all lanes share.
fn per_layer_width(spec: &Spec) -> usize {
    spec.per_layer_inputs.as_ref().map_or(0, |inputs| inputs.width * spec.layers.len())
}

/// Numbers that a token leaves in a lane's caches until the layers above have read them.
fn shared_width(spec: &Spec) -> usize {
    let layers = spec.layers.iter().zip(spec.kv_layout());
    let shared = layers.filter(|(_, kv)| kv.is_some_and(|kv| kv.shared));
    shared.filter_map(|(layer, _)| layer.attention()).map(|a| 2 * a.kv_width()).sum()
}

/// The same for `all` lanes, the baseline first, with so many chunks at a time.
fn in_groups(
    group: usize,
    decoder: &Decoder,
    chunks: &[Chunk],
    all: &[Lane],
    mimic: Option<Mimic>,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Vec<LaneResult> {
    let mut run = Run {
        decoder,
        context: chunks.first().map_or(0, |chunk| chunk.tokens.len()),
        mimic,
        lanes: all.iter().map(|_| Ok(Vec::new())).collect(),
        done: 0,
        work: work(decoder, chunks.len(), all),
        progress,
    };
    progress(0, run.work);
    for (i, chunks) in chunks.chunks(group).enumerate() {
        let before = i * group;
        let counts = all.iter().map(|l| l.chunks.saturating_sub(before).min(chunks.len()));
        run.group(before, chunks, all, &counts.collect::<Vec<_>>());
    }
    run.lanes.into_iter().skip(1).collect()
}

/// Units of work: a layer of a chunk of a lane is one, its head as many as it has products.
fn work(decoder: &Decoder, chunks: usize, lanes: &[Lane]) -> u64 {
    let lane_chunks: usize = lanes.iter().map(|lane| lane.chunks.min(chunks)).sum();
    (lane_chunks * (decoder.spec.layers.len() + head_units(decoder))) as u64
}

/// The head of a chunk, measured in layers by its parameters; half of the positions are scored.
fn head_units(decoder: &Decoder) -> usize {
    let spec = &decoder.spec;
    let table = (spec.vocab * spec.hidden) as u64;
    let tables = if spec.tied_head { 1 } else { 2 };
    let layer = (decoder::parameters(spec) - tables * table) / spec.layers.len() as u64;
    (table / 2).div_ceil(layer.max(1)) as usize
}

struct Run<'a> {
    decoder: &'a Decoder,
    context: usize,
    mimic: Option<Mimic>,
    /// The baseline first, whose list of positions stays empty.
    lanes: Vec<LaneResult>,
    done: u64,
    work: u64,
    progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// Some chunks of one lane on their way through the layers.
struct Tile {
    /// Hidden states, (rows, H).
    x: Tensor,
    /// Each layer's own inputs where the model has them.
    per_layer: Option<Tensor>,
    cache: MeasuringCache,
}

/// The tiles of one lane, in the order of chunks.
type Tiles = Vec<Tile>;

impl Run<'_> {
    /// One group of chunks, of which lane i takes the first `counts[i]`.
    fn group(&mut self, before: usize, chunks: &[Chunk], lanes: &[Lane], counts: &[usize]) {
        match self.layers(chunks, lanes, counts) {
            Err(error) => self.fail_all(&error.brief()),
            Ok(hidden) => {
                for (i, chunk) in chunks.iter().enumerate() {
                    if self.lanes[0].is_err() {
                        return;
                    }
                    let present: Vec<usize> = (0..lanes.len())
                        .filter(|&l| i < counts[l] && self.lanes[l].is_ok())
                        .collect();
                    let rows = present.iter().map(|&l| self.chunk_rows(&hidden[l], i, chunk));
                    let scored = rows
                        .collect::<TensorResult<Vec<_>>>()
                        .and_then(|rows| self.head(chunk, &rows));
                    match scored {
                        Ok(positions) => self.take(before + i, chunk, &present, positions),
                        Err(error) => {
                            let error = LaneError::from(error).brief();
                            self.fail_all(&format!("chunk {}, {error}", before + i));
                        }
                    }
                    self.advance(present.len() * head_units(self.decoder));
                }
            }
        }
    }

    fn advance(&mut self, units: usize) {
        self.done += units as u64;
        (self.progress)(self.done, self.work);
    }

    fn fail_all(&mut self, why: &str) {
        for lane in self.lanes.iter_mut().filter(|lane| lane.is_ok()) {
            *lane = Err(LaneError::Baseline(why.into()));
        }
    }

    /// Runs all layers; gives the tiles of each lane, whose states are of no use in those that failed.
    fn layers(
        &mut self,
        chunks: &[Chunk],
        lanes: &[Lane],
        counts: &[usize],
    ) -> Result<Vec<Tiles>, LaneError> {
        let ropes = self.decoder.ropes(self.context)?;
        let embedded = self.embed(chunks)?;
        let tiles = lanes.iter().zip(counts).map(|(lane, &n)| self.tiles(&embedded, lane, n));
        let mut tiles = tiles.collect::<TensorResult<Vec<_>>>()?;
        let forks = self.decoder.spec.layers_before_kv();
        for index in 0..self.decoder.spec.layers.len() {
            let layer = self.decoder.ready(index, &ropes)?;
            let computed = if index < forks { 1 } else { lanes.len() };
            for l in 0..computed {
                self.layer(&layer, index, l, &mut tiles[l]);
                if self.lanes[0].is_err() {
                    return Ok(tiles);
                }
                self.advance(counts[l]);
            }
            if index + 1 == forks {
                fork(&mut tiles)?;
                self.advance(forks * counts[1..].iter().sum::<usize>());
            }
        }
        Ok(tiles)
    }

    /// One layer of one lane.
    fn layer(&mut self, layer: &ReadyLayer, index: usize, lane: usize, tiles: &mut Tiles) {
        if self.lanes[lane].is_err() {
            return;
        }
        let done = tiles.iter_mut().try_for_each(|tile| step(layer, index, tile, self.context));
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

    /// The tiles of a lane's first so many chunks; they share the embeddings' tensors.
    fn tiles(&self, embedded: &[Embedded], lane: &Lane, chunks: usize) -> TensorResult<Tiles> {
        let mut left = chunks * self.context;
        let mut tiles = Tiles::new();
        for Embedded { x, per_layer } in embedded {
            let rows = left.min(x.dim(0)?);
            left -= rows;
            if rows == 0 {
                break;
            }
            tiles.push(Tile {
                x: x.narrow(0, 0, rows)?,
                per_layer: per_layer
                    .as_ref()
                    .map(|inputs| inputs.narrow(0, 0, rows))
                    .transpose()?,
                cache: MeasuringCache::new(lane.scheme.clone()),
            });
        }
        Ok(tiles)
    }

    /// The scored rows of a chunk, normed.
    fn chunk_rows(&self, tiles: &Tiles, index: usize, chunk: &Chunk) -> TensorResult<Tensor> {
        let per_tile = chunks_per_tile(self.decoder.device(), self.context);
        let first = index % per_tile * self.context + chunk.scored.start;
        self.decoder.normed(&tiles[index / per_tile].x.narrow(0, first, chunk.scored.len())?)
    }

    /// Files the positions of a chunk, lane by lane, or the lane's error.
    fn take(&mut self, index: usize, chunk: &Chunk, present: &[usize], lanes: Vec<Vec<Position>>) {
        for (&l, positions) in present[1..].iter().zip(lanes) {
            let wrong = positions.iter().position(|p| !(p.kld.is_finite() && p.logp.is_finite()));
            match (wrong, &mut self.lanes[l]) {
                (None, Ok(all)) => all.extend(positions),
                (Some(i), lane) => {
                    let position = chunk.scored.start + i;
                    *lane = Err(LaneError::Logits { position, chunk: index });
                }
                (None, Err(_)) => {}
            }
        }
    }
}

/// Lanes part from the first one, which walked the layers below any KV cache for them all.
fn fork(tiles: &mut [Tiles]) -> TensorResult<()> {
    let Some((first, others)) = tiles.split_first_mut() else { return Ok(()) };
    for tiles in others {
        for (tile, walked) in tiles.iter_mut().zip(first.iter()) {
            tile.x = walked.x.narrow(0, 0, tile.x.dim(0)?)?;
        }
    }
    Ok(())
}

/// One layer of one tile.
fn step(
    layer: &ReadyLayer,
    index: usize,
    tile: &mut Tile,
    context: usize,
) -> Result<(), LaneError> {
    let at = At { start: 0, tokens: context };
    let inputs = tile.per_layer.as_ref();
    let (x, finite) = layer
        .watched(&tile.x, inputs, at, &mut tile.cache)
        .map_err(|error| LaneError::at(index, error))?;
    tile.x = x;
    tile.cache.forget_states();
    if finite.is_finite() {
        Ok(())
    } else {
        Err(LaneError::Hidden { layer: index })
    }
}

impl Run<'_> {
    /// The streaming head over the scored rows of a chunk, (n, H) for the baseline and each lane:
    /// the positions of each lane.
    fn head(&self, chunk: &Chunk, rows: &[Tensor]) -> TensorResult<Vec<Vec<Position>>> {
        let targets = &chunk.tokens[chunk.scored.start + 1..chunk.scored.end + 1];
        let block = (HEAD_ROWS / rows.len()).max(1);
        let mut positions = vec![Vec::with_capacity(targets.len()); rows.len() - 1];
        for (i, targets) in targets.chunks(block).enumerate() {
            let rows = rows
                .iter()
                .map(|rows| rows.narrow(0, i * block, targets.len()))
                .collect::<TensorResult<Vec<_>>>()?;
            let head = HeadBlock {
                decoder: self.decoder,
                rows: Tensor::cat(&rows, 0)?,
                lanes: rows.len() - 1,
                targets,
            };
            let found = match self.mimic {
                None => head.divergences()?,
                Some(_) => head.as_llama_cpp()?,
            };
            for position in found {
                for (lane, position) in positions.iter_mut().zip(position) {
                    lane.push(position);
                }
            }
        }
        Ok(positions)
    }
}

/// A block of positions at the head; row `l·n + i` is lane l at position i.
struct HeadBlock<'a> {
    decoder: &'a Decoder,
    rows: Tensor,
    lanes: usize,
    targets: &'a [u32],
}

impl HeadBlock<'_> {
    /// Each position's lanes.
    fn divergences(&self) -> TensorResult<Vec<Vec<Position>>> {
        let lanes = self.lanes;
        let mut states: Vec<_> = self.targets.iter().map(|&t| Divergence::new(t, lanes)).collect();
        let device = self.rows.device();
        let targets = Tensor::new(self.targets, device)?;
        let finite = FiniteFlag::default();
        self.walk(&self.rows, |start, logits| {
            let op = TileSums { lanes: lanes + 1, start, targets: &targets, finite: &finite };
            let known: Vec<f32> = states.iter().flat_map(Divergence::known).collect();
            let known = Tensor::from_vec(known, (states.len(), KNOWN + lanes), device)?;
            let sums = run_op(&op, [logits, &known])?;
            read(&sums, |sums: &[f64]| {
                let sums = sums.par_chunks_exact((lanes + 1) * NUMBERS);
                states.par_iter_mut().zip(sums).for_each(|(state, sums)| state.add(sums));
            })?;
            Ok(finite.is_finite())
        })?;
        Ok(states.iter().map(|state| state.finish().collect()).collect())
    }

    /// The same as llama-perplexity computes it: the baseline is walked once more, and first.
    fn as_llama_cpp(&self) -> TensorResult<Vec<Vec<Position>>> {
        let lanes = self.lanes;
        let mut stored: Vec<_> = self.targets.iter().map(|_| mimic::Stored::new()).collect();
        self.walk_on_host(&self.rows.narrow(0, 0, self.targets.len())?, |tile| {
            stored.par_iter_mut().enumerate().for_each(|(i, stored)| stored.add(tile.row(0, i)));
        })?;
        let mut states: Vec<_> = stored
            .into_iter()
            .zip(self.targets)
            .map(|(stored, &target)| mimic::Comparison::new(stored, target, lanes))
            .collect();
        self.walk_on_host(&self.rows, |tile| {
            states.par_iter_mut().enumerate().for_each(|(i, state)| {
                state.add(tile.start, tile.row(0, i), (1..=lanes).map(|l| tile.row(l, i)));
            });
        })?;
        Ok(states.iter().map(|state| state.finish().collect()).collect())
    }

    /// Walks the vocabulary in tiles. `f` is given the first entry of each and the logits, and says whether those
    /// of the baseline are finite.
    fn walk(
        &self,
        rows: &Tensor,
        mut f: impl FnMut(u32, &Tensor) -> TensorResult<bool>,
    ) -> TensorResult<()> {
        let vocab = self.decoder.spec.vocab;
        let width = (HEAD_LOGITS / rows.dim(0)?).clamp(1, vocab);
        for start in (0..vocab).step_by(width) {
            let width = width.min(vocab - start);
            let logits = self.decoder.logits(rows, start, width)?;
            let _span = trace_span!("divergence").entered();
            // a lane's own are seen in its numbers; the baseline's would be blamed on the lanes
            if !f(start as u32, &logits)? {
                candle_core::bail!("head: the logits of the baseline are not finite");
            }
        }
        Ok(())
    }
}

impl HeadBlock<'_> {
    /// The same with logits that are read on the host.
    fn walk_on_host(&self, rows: &Tensor, mut f: impl FnMut(VocabTile)) -> TensorResult<()> {
        let positions = self.targets.len();
        self.walk(rows, |start, logits| {
            let width = logits.dim(1)?;
            read(logits, |logits: &[f32]| {
                f(VocabTile { start, logits, positions, width });
                all_finite(&logits[..positions * width])
            })
        })
    }
}

/// Logits of some vocabulary entries for a block's rows.
#[derive(Clone, Copy)]
struct VocabTile<'a> {
    /// The first entry.
    start: u32,
    logits: &'a [f32],
    positions: usize,
    width: usize,
}

impl<'a> VocabTile<'a> {
    /// Of one lane, the baseline being 0, at one position.
    fn row(self, lane: usize, position: usize) -> &'a [f32] {
        &self.logits[(lane * self.positions + position) * self.width..][..self.width]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::Scheme;
    use crate::measure::corpus::scored;
    use crate::model::decoder::Residency;
    use crate::model::Checkpoint;
    use crate::source::Source;
    use crate::testing::tiny;

    fn decoder() -> Decoder {
        let file = tempfile::NamedTempFile::new().unwrap();
        tiny::write(file.path(), 1, &[]);
        let source = Source::at(file.path().into());
        Checkpoint::open(&source).unwrap().load(Residency::Resident).unwrap()
    }

    fn lane(scheme: &str, chunks: usize) -> Lane {
        let scheme = scheme.parse::<Scheme>().unwrap();
        let layout = decoder().spec.kv_layout();
        Lane { scheme: Effective::new(&scheme, &layout, None).unwrap(), chunks }
    }

    fn chunk(index: usize) -> Chunk {
        let tokens: Vec<u32> =
            (0..48).map(|i| (i * i * 7 + i * 13 + index as u32 * 31) % 256).collect();
        let scored = scored(tokens.len());
        Chunk { category: "text".into(), index, tokens, scored }
    }

    /// Of each lane, in every bit.
    fn bits(lanes: &[LaneResult]) -> Vec<Vec<String>> {
        let positions = lanes.iter().map(|lane| lane.as_ref().unwrap());
        positions.map(|lane| lane.iter().map(|p| format!("{p:?}")).collect()).collect()
    }

    #[test]
    fn groups_of_chunks_change_no_bit() {
        let (decoder, chunks) = (decoder(), (0..5).map(chunk).collect::<Vec<_>>());
        let lanes = [lane("f16", 5), lane("q8_0", 5), lane("q4_0", 3), lane("q5_1", 1)];
        let [whole, split] =
            [5, 2].map(|group| in_groups(group, &decoder, &chunks, &lanes, None, &|_, _| {}));
        assert_eq!(split[1].as_ref().unwrap().len(), 3 * chunks[0].scored.len());
        assert_eq!(bits(&split), bits(&whole));
    }

    #[test]
    fn progress_ends_where_it_said() {
        let (decoder, chunks) = (decoder(), (0..3).map(chunk).collect::<Vec<_>>());
        let lanes = [lane("f16", 3), lane("q8_0", 3), lane("q4_0", 1)];
        let told = std::sync::Mutex::new(Vec::new());
        in_groups(2, &decoder, &chunks, &lanes, None, &|done, all| {
            told.lock().unwrap().push((done, all));
        });
        let told = told.into_inner().unwrap();
        assert!(told.is_sorted(), "{told:?}");
        assert!(told.last().is_some_and(|(done, all)| done == all), "{told:?}");
    }
}
