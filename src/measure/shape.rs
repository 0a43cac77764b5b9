//! How a scheme's divergence is spread over the scored positions. People look at it; no verdict rests on it.

use super::corpus::Chunk;
use crate::results::shape::{histogram, Run, Shape, WorstToken};
use crate::results::statistics::Position;

/// How many runs the scored positions of a chunk are cut into.
const RUNS: usize = 16;
/// How many positions are kept with their text.
const WORST: usize = 8;
/// How many tokens of text are kept before such a position.
const CONTEXT: usize = 24;

/// The shape of a lane's positions, which are the scored positions of `chunks` in order. `decode` turns tokens into
/// text.
pub(super) fn shape(
    positions: &[Position],
    chunks: &[Chunk],
    decode: &dyn Fn(&[u32]) -> String,
) -> Shape {
    Shape {
        histogram: histogram(positions.iter().map(|position| position.kld)),
        by_position: by_position(positions, chunks),
        worst: worst(positions, chunks, decode),
    }
}

fn by_position(positions: &[Position], chunks: &[Chunk]) -> Vec<Run> {
    let Some(scored) = chunks.first().map(|chunk| chunk.scored.clone()) else { return Vec::new() };
    let runs = RUNS.min(scored.len());
    let bounds = |run: usize| run * scored.len() / runs..(run + 1) * scored.len() / runs;
    let run = |run| {
        let sum_in = |chunk: &[Position]| -> f64 {
            chunk[bounds(run)].iter().map(|position| f64::from(position.kld)).sum()
        };
        let sum: f64 = positions.chunks_exact(scored.len()).map(sum_in).sum();
        let count = (bounds(run).len() * chunks.len()) as f64;
        Run { from: scored.start + bounds(run).start, mean_kld: sum / count }
    };
    (0..runs).map(run).collect()
}

fn worst(
    positions: &[Position],
    chunks: &[Chunk],
    decode: &dyn Fn(&[u32]) -> String,
) -> Vec<WorstToken> {
    let places = chunks.iter().flat_map(|chunk| chunk.scored.clone().map(move |at| (chunk, at)));
    let mut places: Vec<_> = places.zip(positions).collect();
    let worst = WORST.min(places.len());
    if worst == 0 {
        return Vec::new();
    }
    places.select_nth_unstable_by(worst - 1, |(_, a), (_, b)| b.kld.total_cmp(&a.kld));
    places.truncate(worst);
    places.sort_by(|(_, a), (_, b)| b.kld.total_cmp(&a.kld));
    let token = |((chunk, at), position): ((&Chunk, usize), &Position)| WorstToken {
        category: chunk.category.clone(),
        chunk: chunk.index,
        position: at,
        kld: position.kld.into(),
        context: decode(&chunk.tokens[(at + 1).saturating_sub(CONTEXT)..=at]),
        target: decode(&[position.target]),
        baseline: decode(&[position.top_base]),
        scheme: decode(&[position.top]),
        p: [position.logp_base, position.logp].map(|logp| f64::from(logp).exp()),
    };
    places.into_iter().map(token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::shape::bin;

    fn decode(ids: &[u32]) -> String {
        ids.iter().map(|id| format!("{id} ")).collect()
    }

    fn chunk(index: usize) -> Chunk {
        let tokens = (0..64).map(|i| i + 100 * index as u32).collect();
        Chunk { category: "prose".into(), index, tokens, scored: 32..63 }
    }

    #[test]
    fn bins_are_quarters_of_decades() {
        for (kld, expected) in [
            (-1e-9, 0),
            (0.0, 0),
            (9e-8, 0),
            (1.01e-7, 1),
            (1.01, 29),
            (9.9, 32),
            (11.0, 33),
            (1e9, 33),
        ] {
            assert_eq!(bin(kld), expected, "{kld}");
        }
    }

    #[test]
    fn runs_and_words_are_of_their_places() {
        let chunks = [chunk(0), chunk(1)];
        let mut positions = vec![Position::default(); 62];
        // the last scored position of the second chunk
        positions[61] = Position { kld: 3.1, target: 7, top_base: 7, top: 9, ..positions[61] };
        positions[0].kld = 1.0;
        let shape = shape(&positions, &chunks, &decode);
        assert_eq!(shape.histogram.iter().sum::<u64>(), 62);
        assert_eq!(shape.by_position.len(), 16);
        assert_eq!(shape.by_position[0], Run { from: 32, mean_kld: 0.5 });
        assert_eq!(shape.by_position[15].from, 61);
        assert!((shape.by_position[15].mean_kld - 3.1 / 4.0).abs() < 1e-6);
        let [first, second] = &shape.worst[..2] else { panic!() };
        assert_eq!((first.chunk, first.position), (1, 62));
        assert!(first.context.starts_with("139 ") && first.context.ends_with("161 162 "));
        assert_eq!([&first.target, &first.baseline, &first.scheme], ["7 ", "7 ", "9 "]);
        assert_eq!(first.p, [1.0, 1.0]);
        assert_eq!((second.chunk, second.position), (0, 32));
        assert_eq!(shape.worst.len(), 8);
    }

    #[test]
    fn nothing_scored_has_no_shape() {
        let shape = shape(&[], &[], &decode);
        assert!(shape.by_position.is_empty() && shape.worst.is_empty());
    }
}
