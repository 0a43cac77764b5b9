//! The knapsack of mixtures: each part of a cache is stored in one of several ways, each way has a cost and a harm, and
//! costs and harms add up.

/// A way to store a part of the cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Way {
    /// Bytes.
    pub cost: u64,
    /// Predicted divergence, in nats per token. It is finite.
    pub harm: f64,
}

/// A way for each part.
#[derive(Debug, Clone, PartialEq)]
pub struct Pick {
    pub cost: u64,
    pub harm: f64,
    /// The index of the way of each part.
    pub ways: Vec<usize>,
}

/// How many partial picks are kept after each part. If there are more, only some of those with nearly the same cost are,
/// and the result may miss the best pick by a little. Caches of equal layers have fewer, because their costs are
/// multiples of few numbers.
const MOST_STATES: usize = 1 << 14;

/// A pick of the parts so far.
#[derive(Clone, Copy)]
struct State {
    cost: u64,
    harm: f64,
    /// The way of the newest part, and the place of the pick of the parts before it.
    way: usize,
    before: usize,
}

/// The picks that are worth their cost: for none of them is there another pick that costs no more and harms no more. The
/// cheapest comes first.
pub fn frontier(parts: &[Vec<Way>]) -> Vec<Pick> {
    let mut stages = vec![vec![State { cost: 0, harm: 0.0, way: 0, before: 0 }]];
    for ways in parts {
        let states = stages.last().expect("there is a first stage");
        stages.push(thinned(worthwhile(extended(states, ways)), MOST_STATES));
    }
    let last = stages.last().map_or(0, Vec::len);
    (0..last).map(|place| traced(&stages, place)).collect()
}

fn extended(states: &[State], ways: &[Way]) -> Vec<State> {
    let of_state = |(before, state): (usize, &State)| {
        let State { cost, harm, .. } = *state;
        let add = move |(way, next): (usize, &Way)| State {
            cost: cost + next.cost,
            harm: harm + next.harm,
            way,
            before,
        };
        ways.iter().enumerate().map(add).collect::<Vec<_>>()
    };
    states.iter().enumerate().flat_map(of_state).collect()
}

/// Drops each state that another one beats, and sorts the rest by cost.
fn worthwhile(mut states: Vec<State>) -> Vec<State> {
    states.sort_by(|a, b| a.cost.cmp(&b.cost).then(a.harm.total_cmp(&b.harm)));
    let mut least = f64::INFINITY;
    states.retain(|state| {
        let is_better = state.harm < least;
        least = least.min(state.harm);
        is_better
    });
    states
}

/// Keeps the cheapest state, and of each of so many spans of equal cost the state with the least harm.
fn thinned(states: Vec<State>, most: usize) -> Vec<State> {
    let (Some(first), Some(last)) = (states.first().copied(), states.last().copied()) else {
        return states;
    };
    if states.len() <= most {
        return states;
    }
    let width = (last.cost - first.cost).div_ceil(most as u64 - 1).max(1);
    let mut kept = vec![first];
    let mut span = 0;
    for state in &states[1..] {
        let own = 1 + (state.cost - first.cost) / width;
        if own == span {
            kept.pop();
        }
        span = own;
        kept.push(*state);
    }
    kept
}

fn traced(stages: &[Vec<State>], place: usize) -> Pick {
    let (mut ways, mut at) = (Vec::new(), place);
    for stage in stages[1..].iter().rev() {
        ways.push(stage[at].way);
        at = stage[at].before;
    }
    ways.reverse();
    let State { cost, harm, .. } = stages[stages.len() - 1][place];
    Pick { cost, harm, ways }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random, the same in each run.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) % n
        }

        fn parts(&mut self, count: usize) -> Vec<Vec<Way>> {
            let mut way = || Way { cost: self.below(40), harm: self.below(1000) as f64 / 64.0 };
            (0..count).map(|part| (0..2 + part % 3).map(|_| way()).collect()).collect()
        }
    }

    fn all(parts: &[Vec<Way>]) -> Vec<(u64, f64)> {
        parts.iter().fold(vec![(0, 0.0)], |picks, ways| {
            let add = |(cost, harm): &(u64, f64)| {
                ways.iter().map(|w| (cost + w.cost, harm + w.harm)).collect::<Vec<_>>()
            };
            picks.iter().flat_map(add).collect()
        })
    }

    #[test]
    fn no_pick_of_all_is_better() {
        let mut numbers = Numbers(7);
        for count in [1, 2, 5, 8].into_iter().cycle().take(40) {
            let parts = numbers.parts(count);
            let (found, all) = (frontier(&parts), all(&parts));
            for budget in 0..=40 * count as u64 {
                let harms = all.iter().filter(|(cost, _)| *cost <= budget).map(|(_, harm)| *harm);
                let best = harms.fold(f64::INFINITY, f64::min);
                let own = found.iter().filter(|pick| pick.cost <= budget).map(|pick| pick.harm);
                assert_eq!(own.fold(f64::INFINITY, f64::min), best, "{parts:?} within {budget}");
            }
        }
    }

    #[test]
    fn a_pick_is_what_its_ways_add_up_to() {
        let parts = Numbers(3).parts(9);
        let found = frontier(&parts);
        for pick in &found {
            let ways = parts.iter().zip(&pick.ways).map(|(ways, way)| ways[*way]);
            let (cost, harm) = ways.fold((0, 0.0), |(c, h), way| (c + way.cost, h + way.harm));
            assert_eq!((cost, harm), (pick.cost, pick.harm));
        }
        let rising =
            found.windows(2).all(|two| two[0].cost < two[1].cost && two[0].harm > two[1].harm);
        assert!(rising, "{found:?}");
        assert_eq!(frontier(&[]).len(), 1, "nothing is one pick of nothing");
        assert!(frontier(&[vec![]]).is_empty(), "a part without ways");
    }

    #[test]
    fn thinning_keeps_the_ends_and_the_least_harm_of_a_span() {
        let state = |cost: u64| State { cost, harm: 1000.0 - cost as f64, way: 0, before: 0 };
        let kept = thinned((0..1000).map(state).collect(), 11);
        assert!(kept.len() <= 12, "{}", kept.len());
        assert_eq!((kept[0].cost, kept[1].cost, kept[kept.len() - 1].cost), (0, 99, 999));
        assert_eq!(thinned((0..9).map(state).collect(), 9).len(), 9);
    }
}
