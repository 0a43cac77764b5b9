//! How much travels at a time: all lanes over a group of chunks, and less than that where the memory of the device turns
//! out to be too small.

use std::ops::Range;

/// The device has no memory for a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoMemory;

/// How many chunks and how many lanes travel together.
///
/// A lane's numbers depend neither on other lanes nor on other chunks, as long as chunks travel in whole tiles: the last
/// bits of a product may depend on how many rows it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// How many chunks.
    pub chunks: usize,
    /// How many lanes beside the baseline, which accompanies all of them.
    pub lanes: usize,
    /// How many chunks a tile has.
    pub tile: usize,
}

impl Share {
    /// Runs every lane over every chunk once, and the chunks of a lane in their order. `run` is given chunks and lanes,
    /// and leaves nothing behind if the device has no memory for them. They are run in smaller shares then, and so is
    /// everything that comes later.
    ///
    /// # Errors
    /// If there is no memory for the smallest share: one lane over one tile.
    pub fn run_all(
        &mut self,
        chunks: Range<usize>,
        lanes: Range<usize>,
        run: &mut dyn FnMut(Range<usize>, Range<usize>) -> Result<(), NoMemory>,
    ) -> Result<(), NoMemory> {
        for chunks in parts(chunks, self.chunks) {
            for lanes in parts(lanes.clone(), self.lanes) {
                // an earlier part may have shown that less fits than when these parts were cut
                if chunks.len() <= self.chunks && lanes.len() <= self.lanes {
                    if run(chunks.clone(), lanes.clone()).is_ok() {
                        continue;
                    }
                    *self = self.smaller(chunks.len(), lanes.len()).ok_or(NoMemory)?;
                }
                self.run_all(chunks.clone(), lanes, run)?;
            }
        }
        Ok(())
    }

    /// What to try if there is no memory for so many chunks and lanes: half of the tiles, and if there is one tile, half
    /// of the lanes.
    fn smaller(self, chunks: usize, lanes: usize) -> Option<Self> {
        if chunks > self.tile {
            let half = (chunks / self.tile / 2).max(1) * self.tile;
            Some(Share { chunks: half, ..self })
        } else if lanes > 1 {
            Some(Share { lanes: lanes / 2, ..self })
        } else {
            None
        }
    }
}

/// Cuts a range into parts of a size. An empty range is one part, because the baseline also runs without lanes.
fn parts(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let starts = (range.start..range.end.max(range.start + 1)).step_by(size.max(1));
    starts.map(move |start| start..(start + size).min(range.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Run = (Range<usize>, Range<usize>);

    /// What was run, where there is room for so many chunks of lanes, the baseline included.
    fn runs(
        share: &mut Share,
        chunks: usize,
        lanes: usize,
        room: usize,
    ) -> Result<Vec<Run>, NoMemory> {
        let mut runs = Vec::new();
        share.run_all(0..chunks, 1..lanes + 1, &mut |chunks, lanes| {
            if chunks.len() * (lanes.len() + 1) > room {
                return Err(NoMemory);
            }
            runs.push((chunks, lanes));
            Ok(())
        })?;
        Ok(runs)
    }

    #[test]
    fn whatever_fits_every_lane_takes_every_chunk_once_in_order_and_in_whole_tiles() {
        for (chunks, lanes, tile) in [(12, 5, 2), (13, 7, 3), (5, 1, 1), (1, 9, 4), (7, 0, 2)] {
            for room in 1..=chunks * (lanes + 1) {
                let mut share = Share { chunks: 4 * tile, lanes, tile };
                let Ok(runs) = runs(&mut share, chunks, lanes, room) else {
                    let smallest = tile.min(chunks) * (lanes.min(1) + 1);
                    assert!(room < smallest, "{chunks} chunks, {lanes} lanes, room for {room}");
                    continue;
                };
                for lane in 1..lanes + 1 {
                    let own = runs.iter().filter(|(_, lanes)| lanes.contains(&lane));
                    let taken: Vec<usize> = own.flat_map(|(chunks, _)| chunks.clone()).collect();
                    assert_eq!(taken, (0..chunks).collect::<Vec<_>>(), "lane {lane}, {runs:?}");
                }
                for (part, _) in &runs {
                    assert!(part.start.is_multiple_of(tile), "{runs:?}");
                    assert!(part.end.is_multiple_of(tile) || part.end == chunks, "{runs:?}");
                }
            }
        }
    }

    #[test]
    fn tiles_are_halved_first_and_lanes_if_there_is_one_tile() {
        let mut share = Share { chunks: 8, lanes: 4, tile: 2 };
        assert_eq!(runs(&mut share, 8, 4, 20).unwrap(), [(0..4, 1..5), (4..8, 1..5)]);
        assert_eq!(share, Share { chunks: 4, lanes: 4, tile: 2 });
        let narrow = runs(&mut share, 4, 4, 7).unwrap();
        assert_eq!(narrow, [(0..2, 1..3), (0..2, 3..5), (2..4, 1..3), (2..4, 3..5)]);
        assert_eq!(share, Share { chunks: 2, lanes: 2, tile: 2 });
        assert_eq!(runs(&mut share, 4, 4, 3), Err(NoMemory));
    }

    #[test]
    fn a_share_that_was_too_large_is_not_tried_again() {
        let mut share = Share { chunks: 8, lanes: 2, tile: 2 };
        let mut refused = 0;
        let run = share.run_all(0..32, 1..3, &mut |chunks, _| {
            refused += usize::from(chunks.len() > 4);
            if chunks.len() > 4 {
                return Err(NoMemory);
            }
            Ok(())
        });
        assert_eq!((run, refused), (Ok(()), 1));
    }
}
