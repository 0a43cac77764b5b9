//! Points of bits and harm, and which of them are worth a look.

/// What a scheme costs and does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Bits per element.
    pub bits: f64,
    /// Divergence, in nats per token.
    pub harm: f64,
}

/// Bits are equal if they differ by less than this: they are quotients of bytes.
pub const SAME_BITS: f64 = 1e-6;

/// Whether so many bits are within a limit.
pub fn fits(bits: f64, limit: f64) -> bool {
    bits <= limit + SAME_BITS
}

/// Whether so many bits are fewer than others.
pub fn is_fewer(bits: f64, others: f64) -> bool {
    bits < others - SAME_BITS
}

/// The points that no other point beats: none has no more bits and no more harm. They are given by their indices, those
/// with the fewest bits first. Of equal points the first one counts.
pub fn best(points: &[Point]) -> Vec<usize> {
    near(points, 1.0, true)
}

/// The points that are beaten by at most this factor: whose harm is within it of the least harm of the points with no more
/// bits.
pub fn within(points: &[Point], factor: f64) -> Vec<usize> {
    near(points, factor, false)
}

fn near(points: &[Point], factor: f64, is_strict: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|&a, &b| points[a].bits.total_cmp(&points[b].bits));
    // being nearly equal is no order to sort by, so those with equal bits are sorted among themselves
    let are_same = |&a: &usize, &b: &usize| !is_fewer(points[a].bits, points[b].bits);
    for same in order.chunk_by_mut(are_same) {
        same.sort_by(|&a, &b| points[a].harm.total_cmp(&points[b].harm));
    }
    let mut least = f64::INFINITY;
    order.retain(|&i| {
        let harm = points[i].harm;
        let is_near = harm < least || !is_strict && harm <= factor * least;
        least = least.min(harm);
        is_near
    });
    order
}

/// The point with the least harm among those with at most so many bits.
pub fn least_harm(points: &[Point], bits: f64) -> Option<usize> {
    let fit = (0..points.len()).filter(|&i| fits(points[i].bits, bits));
    fit.min_by(|&a, &b| {
        let (a, b) = (points[a], points[b]);
        a.harm.total_cmp(&b.harm).then(a.bits.total_cmp(&b.bits))
    })
}

/// The point with the fewest bits among those with at most so much harm.
pub fn fewest_bits(points: &[Point], harm: f64) -> Option<usize> {
    let fit = (0..points.len()).filter(|&i| points[i].harm <= harm);
    fit.min_by(|&a, &b| {
        let (a, b) = (points[a], points[b]);
        a.bits.total_cmp(&b.bits).then(a.harm.total_cmp(&b.harm))
    })
}

/// At most so many of a list, evenly spread, with its ends.
pub fn spread<T: Copy>(list: &[T], most: usize) -> Vec<T> {
    if list.len() <= most {
        return list.to_vec();
    }
    match most {
        0 => Vec::new(),
        1 => vec![list[0]],
        _ => (0..most).map(|i| list[i * (list.len() - 1) / (most - 1)]).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points() -> Vec<Point> {
        let pairs = [(8.5, 0.01), (4.5, 0.5), (6.5, 0.02), (6.0, 0.3), (6.5, 0.025), (5.0, 0.6)];
        pairs.map(|(bits, harm)| Point { bits, harm }).to_vec()
    }

    #[test]
    fn beaten_points_are_left_out() {
        assert_eq!(best(&points()), [1, 3, 2, 0]);
        assert_eq!(within(&points(), 1.25), [1, 5, 3, 2, 4, 0]);
        assert_eq!(within(&points(), 1.1), [1, 3, 2, 0]);
        let twice = vec![points()[0]; 2];
        assert_eq!(best(&twice), [0], "of equal points one is enough");
        assert!(best(&[]).is_empty());
    }

    /// Quotients of bytes differ in their last bits, and each may nearly equal the next one without equalling the one after.
    #[test]
    fn nearly_equal_bits_are_equal_and_no_order() {
        let step = 0.6 * SAME_BITS;
        let point = |i: usize| Point { bits: 6.0 + step * i as f64, harm: (i * 37 % 64) as f64 };
        let chain: Vec<Point> = (0..64).rev().map(point).collect();
        assert_eq!(best(&chain).len(), 1);
        assert_eq!(chain[best(&chain)[0]].harm, 0.0);
        let apart = [(6.0 + step, 0.1), (6.0, 0.2), (6.0 + 10.0 * step, 0.05)];
        assert_eq!(best(&apart.map(|(bits, harm)| Point { bits, harm })), [0, 2]);
    }

    #[test]
    fn the_best_within_a_budget() {
        assert_eq!(least_harm(&points(), 6.2), Some(3));
        assert_eq!(least_harm(&points(), 6.5), Some(2));
        assert_eq!(least_harm(&points(), 4.0), None);
        assert_eq!(fewest_bits(&points(), 0.03), Some(2));
        assert_eq!(fewest_bits(&points(), 0.001), None);
    }

    #[test]
    fn a_spread_keeps_the_ends() {
        let list: Vec<usize> = (0..10).collect();
        assert_eq!(spread(&list, 4), [0, 3, 6, 9]);
        assert_eq!(spread(&list, 1), [0]);
        assert_eq!(spread(&list, 20), list);
        assert!(spread(&list, 0).is_empty());
    }
}
