//! The engine: all lanes over all chunks, one layer after the other, and then the streaming head.
//!
//! The order is layer-major: a layer's weights serve every lane and every chunk before the next layer is touched.
//! Below the first layer that owns a cache the lanes do not differ, so they share one hidden state there. Chunks
//! travel in groups, as many at a time as the memory for hidden states allows. If a card's memory is too small all the
//! same, what did not fit is run again in smaller groups, and then with fewer lanes at a time.

mod head;
mod lane;
mod layers;
mod share;

pub(super) use head::positions;
pub use lane::{Lane, LaneError, LaneResult};

use super::corpus::Chunk;
use super::mimic::Mimic;
use crate::compute::Device;
use crate::kv::effective::Effective;
use crate::model::decoder::{self, Decoder};
use crate::model::spec::Spec;
use crate::results::statistics::Position;
use candle_core::{Result as TensorResult, Tensor};
use layers::ChunkTiles;
use share::{NoMemory, Share};
use std::ops::Range;

/// Runs the baseline and the lanes over the chunks, which are all of one length. `progress` is told how much work is
/// done and how much there is.
///
/// The call itself never fails: each lane carries its own error, and if the baseline fails, every lane does.
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
    let group = Group::of(&decoder.spec, decoder.device(), context, all.len());
    let tile = chunks_per_tile(decoder.device(), context);
    let most = decoder.device().most_lanes().saturating_sub(1).max(1);
    let mut share = Share { chunks: group.chunks, lanes: lanes.len().min(most), tile };
    in_shares(&mut share, decoder, chunks, &all, mimic, progress)
}

/// The chunks that travel through the layers at a time: as many as the memory for hidden states allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    pub chunks: usize,
    /// Bytes of the hidden states of one chunk, in all lanes.
    pub chunk_bytes: usize,
}

impl Group {
    /// The groups of a model on a device. The baseline is one of the lanes.
    pub fn of(spec: &Spec, device: &Device, context: usize, lanes: usize) -> Self {
        let per_token = lanes * (spec.hidden + shared_width(spec)) + per_layer_width(spec);
        let chunk_bytes = context * per_token * size_of::<f32>();
        let tile = chunks_per_tile(device, context);
        let fit = (device.group_bytes() / chunk_bytes.max(1)).max(1);
        Group { chunks: fit.next_multiple_of(tile), chunk_bytes }
    }
}

/// How many chunks of one lane travel together: as many as fit into a tile of the device, and at least one. A lane
/// that is measured on fewer chunks than the baseline must take whole tiles, so that its products have as many rows
/// as the baseline's.
pub fn chunks_per_tile(device: &Device, context: usize) -> usize {
    (device.tile_rows() / context.max(1)).max(1)
}

/// How many numbers a token has as inputs of its own for the layers. All lanes share them.
fn per_layer_width(spec: &Spec) -> usize {
    spec.per_layer_inputs.as_ref().map_or(0, |inputs| inputs.width * spec.layers.len())
}

/// How many numbers of a token a lane's caches must keep because layers further up read them.
fn shared_width(spec: &Spec) -> usize {
    let layers = spec.layers.iter().zip(spec.kv_layout());
    let shared = layers.filter(|(_, kv)| kv.is_some_and(|kv| kv.shared));
    shared.filter_map(|(layer, _)| layer.attention()).map(|a| 2 * a.kv_width()).sum()
}

/// Runs `all` lanes, of which the baseline is the first, a share of them over a share of the chunks at a time. Afterwards
/// `share` is what has fitted into the device's memory.
fn in_shares(
    share: &mut Share,
    decoder: &Decoder,
    chunks: &[Chunk],
    all: &[Lane],
    mimic: Option<Mimic>,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Vec<LaneResult> {
    let mut pass = Pass::new(decoder, chunks, all, mimic, progress);
    let ran = share
        .run_all(0..chunks.len(), 1..all.len(), &mut |chunks, lanes| pass.run_share(chunks, lanes));
    if let Err(NoMemory) = ran {
        pass.fail_all(&LaneError::Memory.brief());
    }
    pass.results()
}

/// All work in units of progress: a unit is one layer of one chunk of one lane.
fn work(decoder: &Decoder, chunks: usize, lanes: &[Lane]) -> u64 {
    let lane_chunks: usize = lanes.iter().map(|lane| lane.chunks.min(chunks)).sum();
    (lane_chunks * (decoder.spec.layers.len() + head_units(decoder))) as u64
}

/// How many units of work the head of a chunk is: its parameters divided by those of a layer, and half of that
/// because only half of the positions are scored.
fn head_units(decoder: &Decoder) -> usize {
    let spec = &decoder.spec;
    let table = (spec.vocab * spec.hidden) as u64;
    let tables = if spec.tied_head { 1 } else { 2 };
    let layer = (decoder::parameters(spec) - tables * table) / spec.layers.len() as u64;
    (table / 2).div_ceil(layer.max(1)) as usize
}

/// One pass of all lanes over all chunks.
struct Pass<'a> {
    decoder: &'a Decoder,
    chunks: &'a [Chunk],
    context: usize,
    mimic: Option<Mimic>,
    /// What travels. The baseline is the first.
    travelling: &'a [Lane],
    /// What has become of each lane. The baseline's list of positions stays empty.
    lanes: Vec<LaneResult>,
    done: u64,
    work: u64,
    progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// How far lanes were before they ran over a share of the chunks.
struct Mark {
    lanes: Range<usize>,
    /// How many positions each of them had, and what its codecs had counted.
    counts: Vec<(usize, [u64; 2])>,
    done: u64,
    work: u64,
}

impl<'a> Pass<'a> {
    fn new(
        decoder: &'a Decoder,
        chunks: &'a [Chunk],
        travelling: &'a [Lane],
        mimic: Option<Mimic>,
        progress: &'a (dyn Fn(u64, u64) + Sync),
    ) -> Self {
        let work = work(decoder, chunks.len(), travelling);
        progress(0, work);
        Pass {
            decoder,
            chunks,
            context: chunks.first().map_or(0, |chunk| chunk.tokens.len()),
            mimic,
            travelling,
            lanes: travelling.iter().map(|_| Ok(Vec::new())).collect(),
            done: 0,
            work,
            progress,
        }
    }

    /// What has become of the lanes beside the baseline.
    fn results(self) -> Vec<LaneResult> {
        self.lanes.into_iter().skip(1).collect()
    }
}

impl Pass<'_> {
    /// Runs some lanes over some chunks, and the baseline beside them.
    ///
    /// # Errors
    /// If the device has no memory for that. Everything is then as if nothing had been run, except that a lane that failed
    /// stays failed, because it would fail again.
    fn run_share(&mut self, chunks: Range<usize>, lanes: Range<usize>) -> Result<(), NoMemory> {
        let mark = self.mark(lanes.clone());
        let ran = self.run_group(chunks, lanes);
        if ran.is_err() {
            self.set_back(mark);
        }
        ran
    }

    fn mark(&self, lanes: Range<usize>) -> Mark {
        let count = |l: usize| {
            let positions = self.lanes[l].as_ref().map_or(0, Vec::len);
            (positions, self.travelling[l].scheme.clamped().counts())
        };
        let counts = lanes.clone().map(count).collect();
        Mark { lanes, counts, done: self.done, work: self.work }
    }

    /// Forgets what was found since the mark. What was done in vain is now a part of all work, so that progress never
    /// goes back.
    fn set_back(&mut self, mark: Mark) {
        for (l, (positions, counts)) in mark.lanes.zip(mark.counts) {
            if let Ok(lane) = &mut self.lanes[l] {
                lane.truncate(positions);
            }
            self.travelling[l].scheme.clamped().set_back(counts);
        }
        self.work = mark.work + (self.done - mark.done);
    }

    /// Runs a group of chunks through some lanes and the baseline.
    fn run_group(&mut self, group: Range<usize>, lanes: Range<usize>) -> Result<(), NoMemory> {
        let (before, travelling) = (group.start, self.travelling);
        let chunks = self.chunks;
        let chunks = &chunks[group];
        let count = |(l, lane): (usize, &Lane)| {
            let own = lane.chunks.saturating_sub(before).min(chunks.len());
            if l == 0 || lanes.contains(&l) {
                own
            } else {
                0
            }
        };
        let counts: Vec<usize> = travelling.iter().enumerate().map(count).collect();
        if lanes.start > 1 {
            // the baseline has been counted with the lanes before these
            self.work += work(self.decoder, chunks.len(), &travelling[..1]);
        }
        let hidden = match self.run_layers(chunks, travelling, &counts) {
            Ok(hidden) => hidden,
            Err(LaneError::Memory) => return Err(NoMemory),
            Err(error) => {
                self.fail_all(&error.brief());
                return Ok(());
            }
        };
        for (i, chunk) in chunks.iter().enumerate() {
            if self.lanes[0].is_err() {
                break;
            }
            let present: Vec<usize> =
                (0..counts.len()).filter(|&l| i < counts[l] && self.lanes[l].is_ok()).collect();
            let rows = present.iter().map(|&l| self.scored_rows(&hidden, l, i, chunk));
            let rows = rows.collect::<TensorResult<Vec<_>>>();
            let scored = rows.and_then(|rows| positions(self.decoder, chunk, &rows, self.mimic));
            match scored.map_err(LaneError::from) {
                Ok(positions) => self.add_positions(before + i, chunk, &present, positions),
                Err(LaneError::Memory) => return Err(NoMemory),
                Err(error) => self.fail_all(&format!("chunk {}, {}", before + i, error.brief())),
            }
            self.advance(present.len() * head_units(self.decoder));
        }
        Ok(())
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

    /// The scored rows of a chunk in a lane, after the final norm.
    fn scored_rows(
        &self,
        tiles: &ChunkTiles,
        lane: usize,
        index: usize,
        chunk: &Chunk,
    ) -> TensorResult<Tensor> {
        self.decoder.normed(&tiles.rows(lane, index, chunk.scored.clone())?)
    }

    /// Appends the positions of a chunk to the lanes that were present. A lane with a number that is not finite
    /// fails instead.
    fn add_positions(
        &mut self,
        index: usize,
        chunk: &Chunk,
        present: &[usize],
        lanes: Vec<Vec<Position>>,
    ) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::{is_out_of_memory, textbook, Device};
    use crate::kv::Scheme;
    use crate::measure::corpus::scored;
    use crate::model::decoder::Residency;
    use crate::model::Checkpoint;
    use crate::source::Source;
    use crate::testing::tiny;
    use candle_core::DType;

    /// A tiny model on the device that tests run on.
    fn decoder() -> Decoder {
        decoder_on(&textbook::device())
    }

    fn decoder_on(device: &Device) -> Decoder {
        let file = tempfile::NamedTempFile::new().unwrap();
        tiny::write(file.path(), 1, &[]);
        let source = Source::at(file.path().into());
        Checkpoint::open(&source).unwrap().load_on(device, Residency::Resident).unwrap()
    }

    fn lane(scheme: &str, chunks: usize) -> Lane {
        let scheme = scheme.parse::<Scheme>().unwrap();
        let layout = decoder().spec.kv_layout();
        Lane { scheme: Effective::new(&scheme, &layout, None).unwrap(), chunks }
    }

    fn chunk(index: usize) -> Chunk {
        chunk_of(48, index)
    }

    /// A context of which a tile of a card holds few, and how many of them a run has.
    const LONG: usize = 2048;
    const LONG_RUN: usize = 14;

    fn chunk_of(tokens: usize, index: usize) -> Chunk {
        let token = |i: u32| (i * i * 7 + i * 13 + index as u32 * 31) % 256;
        let tokens: Vec<u32> = (0..tokens as u32).map(token).collect();
        let scored = scored(tokens.len());
        Chunk { category: "text".into(), index, tokens, scored }
    }

    /// The positions of each lane, written so that every bit shows.
    fn bits(lanes: &[LaneResult]) -> Vec<Vec<String>> {
        let positions = lanes.iter().map(|lane| lane.as_ref().unwrap());
        positions.map(|lane| lane.iter().map(|p| format!("{p:?}")).collect()).collect()
    }

    /// All lanes over so many chunks at a time.
    fn in_groups(
        group: usize,
        decoder: &Decoder,
        chunks: &[Chunk],
        all: &[Lane],
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Vec<LaneResult> {
        let mut share = Share { chunks: group, lanes: all.len() - 1, tile: 1 };
        in_shares(&mut share, decoder, chunks, all, None, progress)
    }

    #[test]
    fn groups_of_chunks_change_no_bit() {
        // on a card, groups are of whole tiles, which have more chunks than these
        let decoder = decoder_on(&Device::cpu());
        let chunks = (0..5).map(chunk).collect::<Vec<_>>();
        let lanes = [lane("f16", 5), lane("q8_0", 5), lane("q4_0", 3), lane("q5_1", 1)];
        let [whole, split] =
            [5, 2].map(|group| in_groups(group, &decoder, &chunks, &lanes, &|_, _| {}));
        assert_eq!(split[1].as_ref().unwrap().len(), 3 * chunks[0].scored.len());
        assert_eq!(bits(&split), bits(&whole));
    }

    #[test]
    fn a_lane_does_not_depend_on_the_others_and_the_baseline_is_itself() {
        let (decoder, chunks) = (decoder(), (0..5).map(chunk).collect::<Vec<_>>());
        let baseline = lane("f16", 5).scheme;
        let run =
            |lanes: &[Lane]| super::run(&decoder, &chunks, &baseline, lanes, None, &|_, _| {});
        let many = [lane("f16", 5), lane("q8_0", 5), lane("q4_0", 5), lane("q4_0:tail=8", 5)];
        let all = run(&many);
        for (i, lane) in many.iter().enumerate() {
            let alone = run(std::slice::from_ref(lane));
            assert_eq!(bits(&alone)[0], bits(&all)[i], "lane {i}");
        }
        assert_eq!(bits(&run(&many)), bits(&all), "two runs");
        let klds = |lane: usize| all[lane].as_ref().unwrap().iter().map(|p| p.kld);
        assert!(klds(0).all(|kld| kld == 0.0));
        assert!((1..4).all(|lane| klds(lane).any(|kld| kld > 1e-6)));
    }

    /// What is measured on a card is what is measured on the CPU, but for rounding. The weights are random, so that
    /// they round to f16, too.
    #[test]
    #[ignore = "needs a card, which KVGATE_DEVICE names; on the CPU it would compare the CPU with itself"]
    fn a_device_measures_what_the_cpu_measures() {
        assert!(!textbook::place().is_cpu(), "KVGATE_DEVICE names no card");
        let chunks: Vec<_> = (0..5).map(chunk).collect();
        let lanes = [lane("q8_0", 5), lane("q4_0", 5), lane("q4_0:tail=8", 5), lane("mxfp4", 5)];
        let baseline = lane("f16", 5).scheme;
        let means = |decoder: &Decoder| -> Vec<[f64; 2]> {
            let found = super::run(decoder, &chunks, &baseline, &lanes, None, &|_, _| {});
            let mean = |lane: &LaneResult| {
                let positions = lane.as_ref().unwrap();
                let mean = |f: fn(&Position) -> f32| {
                    positions.iter().map(|p| f64::from(f(p))).sum::<f64>() / positions.len() as f64
                };
                [mean(|p| p.kld), mean(|p| p.logp)]
            };
            found.iter().map(mean).collect()
        };
        let [cpu, device] = [decoder_on(&Device::cpu()), decoder()].map(|decoder| means(&decoder));
        for ([kld, logp], [kld_there, logp_there]) in cpu.into_iter().zip(device) {
            assert!((kld_there / kld - 1.0).abs() < 0.05, "{kld_there} for {kld}");
            assert!((logp_there - logp).abs() < 1e-3 * logp.abs(), "{logp_there} for {logp}");
        }
    }

    /// A run that is refused although it has been done measures nothing twice and loses nothing, whether it was refused
    /// for its chunks or for its lanes.
    #[test]
    fn what_did_not_fit_leaves_nothing_behind() {
        let (decoder, chunks) =
            (decoder_on(&Device::cpu()), (0..5).map(|i| chunk_of(300, i)).collect::<Vec<_>>());
        let lanes = || ["f16", "f16", "q4_0", "kvarn2:tail=128:sink=0", "q8_0"].map(|s| lane(s, 5));
        let (whole, split) = (lanes(), lanes());
        let want = in_groups(5, &decoder, &chunks, &whole, &|_, _| {});
        for (most_chunks, most_lanes) in [(2, 4), (1, 2), (1, 1)] {
            let told = std::sync::Mutex::new(Vec::new());
            let progress = |done, all| told.lock().unwrap().push((done, all));
            let mut pass = Pass::new(&decoder, &chunks, &split, None, &progress);
            let mut share = Share { chunks: 5, lanes: 4, tile: 1 };
            let ran = share.run_all(0..5, 1..5, &mut |chunks, lanes| {
                if chunks.len() > most_chunks || lanes.len() > most_lanes {
                    let mark = pass.mark(lanes.clone());
                    pass.run_group(chunks, lanes)?;
                    pass.set_back(mark);
                    return Err(NoMemory);
                }
                pass.run_share(chunks, lanes)
            });
            assert_eq!((ran, share.chunks, share.lanes), (Ok(()), most_chunks, most_lanes));
            assert_eq!(
                bits(&pass.results()),
                bits(&want),
                "{most_chunks} chunks, {most_lanes} lanes"
            );
            let told = told.into_inner().unwrap();
            assert!(told.is_sorted_by_key(|(done, _)| *done), "{told:?}");
            assert!(told.last().is_some_and(|(done, all)| done == all), "{told:?}");
        }
        let shares =
            |lanes: &[Lane]| lanes.iter().map(|l| l.scheme.clamped_share()).collect::<Vec<_>>();
        assert!(whole[3].scheme.clamped().counts()[1] > 0);
        let counts = |lanes: &[Lane]| lanes[3].scheme.clamped().counts();
        assert_eq!(
            counts(&split),
            counts(&whole).map(|count| 3 * count),
            "the scales of three runs"
        );
        assert_eq!(shares(&split), shares(&whole));
    }

    /// On a card a lane's tile has 8192 rows, so that long chunks are few in a tile and several tiles in a group.
    #[test]
    #[ignore = "needs a card, which KVGATE_DEVICE names; on the CPU tiles and groups are others"]
    fn a_group_of_one_tile_gives_the_bits_of_all_chunks() {
        assert!(!textbook::place().is_cpu(), "KVGATE_DEVICE names no card");
        let decoder = decoder();
        let chunks: Vec<_> = (0..LONG_RUN).map(|i| chunk_of(LONG, i)).collect();
        let lanes = ["f16", "f16", "q8_0", "q4_0:tail=8", "kvarn4"].map(|s| lane(s, LONG_RUN));
        let tile = chunks_per_tile(decoder.device(), LONG);
        assert!(2 * tile < LONG_RUN, "{tile} chunks in a tile");
        let [whole, split] =
            [LONG_RUN, tile].map(|group| in_groups(group, &decoder, &chunks, &lanes, &|_, _| {}));
        assert_eq!(bits(&split), bits(&whole));
    }

    /// The whole card but for so many bytes, which are in one piece.
    fn filled(device: &Device, room: usize) -> Vec<Tensor> {
        let take = |bytes: usize| Tensor::zeros(bytes, DType::U8, device.at());
        let hole = take(room).unwrap();
        let mut all = Vec::new();
        for bytes in [1 << 30, 64 << 20, 4 << 20] {
            loop {
                match take(bytes) {
                    Ok(block) => all.push(block),
                    Err(error) if is_out_of_memory(&error) => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        drop(hole);
        all
    }

    /// With less and less room, a run ends in the same bits or in an error that says what helps.
    #[test]
    #[ignore = "needs a card that nothing else uses, which KVGATE_DEVICE names; it fills the card's memory"]
    fn a_card_that_is_nearly_full_measures_the_same() {
        assert!(!textbook::place().is_cpu(), "KVGATE_DEVICE names no card");
        let decoder = decoder();
        let chunks: Vec<_> = (0..LONG_RUN).map(|i| chunk_of(LONG, i)).collect();
        let lanes = ["f16", "f16", "q8_0", "q4_0:tail=8", "kvarn4"].map(|s| lane(s, LONG_RUN));
        let all =
            Share { chunks: LONG_RUN, lanes: 4, tile: chunks_per_tile(decoder.device(), LONG) };
        let run = |share: &mut Share| in_shares(share, &decoder, &chunks, &lanes, None, &|_, _| {});
        let want = bits(&run(&mut all.clone()));
        let (mut refused, mut reduced) = (0, 0);
        for room in (1..64).map(|i| i * (16 << 20)) {
            let filler = filled(decoder.device(), room);
            let mut share = all;
            let found = run(&mut share);
            drop(filler);
            println!(
                "{} MiB: {share:?}, {}",
                room >> 20,
                if found[0].is_ok() { "ok" } else { "no" }
            );
            match &found[0] {
                Ok(_) => assert_eq!(bits(&found), want, "{} MiB", room >> 20),
                Err(error) => assert!(error.to_string().contains("use fewer tokens"), "{error}"),
            }
            refused += usize::from(found[0].is_err());
            reduced += usize::from(found[0].is_ok() && share != all);
            if found[0].is_ok() && share == all {
                break;
            }
        }
        assert!(reduced > 0, "no run was divided; {refused} were refused");
    }

    #[test]
    fn progress_ends_where_it_said() {
        let (decoder, chunks) = (decoder(), (0..3).map(chunk).collect::<Vec<_>>());
        let lanes = [lane("f16", 3), lane("q8_0", 3), lane("q4_0", 1)];
        let told = std::sync::Mutex::new(Vec::new());
        in_groups(2, &decoder, &chunks, &lanes, &|done, all| {
            told.lock().unwrap().push((done, all));
        });
        let told = told.into_inner().unwrap();
        assert!(told.is_sorted(), "{told:?}");
        assert!(told.last().is_some_and(|(done, all)| done == all), "{told:?}");
    }
}
