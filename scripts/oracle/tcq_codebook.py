"""Train the codebooks of turbo3_tcq and turbo2_tcq -> src/kv/codec/tcq3.f32 and tcq2.f32 (little-endian f32)

The script runs the generalised Lloyd algorithm on random directions in 128 dimensions: it finds the best path of each
direction through the trellis, sets every entry to the mean of the coordinates that were assigned to it, and repeats.
While paths are searched, entries are displaced at random, by less and less, and not at all in the last third.
Without this the iteration ends in a poor local optimum (2 bits, after 40 steps: 0.0795 instead of 0.0765). The script
prints the mean squared error on directions that training never saw. The lower bound is 4^-(bits + 6/128), which counts
the six bits that begin a stream.

It takes five minutes on one core. The result is the same from run to run. Another numpy or processor may round
differently, and then end with other codebooks.
"""

from pathlib import Path
from statistics import NormalDist

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SEED, TEST_SEED = 1, 2
GROUP, LOW = 128, 64
STEPS, DIRECTIONS = 600, 500
# standard deviation of the first displacements, in standard deviations of a coordinate
DISPLACEMENT = 0.7


def path(bits):
    return ROOT / f"src/kv/codec/tcq{bits}.f32"


def codebook(bits):
    return np.fromfile(path(bits), "<f4")


def directions(rng, count):
    x = rng.standard_normal((count, GROUP))
    return (x / np.sqrt((x * x).sum(1, keepdims=True))).astype(np.float32)


def viterbi(y, book):
    """The best states for each row of y: from any state to any, costs in f32, of equal ones the lowest.

    State s arrives from one of (s mod 64)·2^bits + p, so both are arrays of [.., s div 64, s mod 64] on arrival
    and of [.., s div 2^bits, p] on departure.
    """
    count, branches = len(y), len(book) // LOW
    costs = np.zeros((count, len(book)), np.float32)
    predecessors = np.empty((GROUP, count, LOW), np.uint8)
    for t in range(GROUP):
        leaving = costs.reshape(count, LOW, branches)
        predecessors[t] = leaving.argmin(2)
        error = (y[:, t, None] - book) ** 2
        costs = (leaving.min(2)[:, None] + error.reshape(count, branches, LOW)).reshape(count, -1)
    states = np.empty((count, GROUP), int)
    state = costs.argmin(1)
    for t in reversed(range(GROUP)):
        states[:, t] = state
        low = state % LOW
        state = low * branches + predecessors[t, np.arange(count), low]
    return states


def start(rng, bits):
    """Quantiles of the normal distribution, so that each state can go on to any 2^bits-th part of it."""
    size = LOW << bits
    branch, low = np.divmod(np.arange(size), LOW)
    rank = branch * LOW + rng.permutation(LOW)[low]
    return np.array([NormalDist().inv_cdf((r + 0.5) / size) for r in rank]) / GROUP**0.5


def train(bits):
    rng = np.random.default_rng(SEED)
    book = start(rng, bits)
    for step in range(STEPS):
        y = directions(rng, DIRECTIONS)
        deviation = DISPLACEMENT * max(0, 1 - 1.5 * step / STEPS) / GROUP**0.5
        displaced = book + deviation * rng.standard_normal(len(book))
        states = viterbi(y, displaced.astype(np.float32)).ravel()
        hits = np.bincount(states, minlength=len(book))
        sums = np.bincount(states, y.ravel(), minlength=len(book))
        book = np.where(hits > 0, sums / np.maximum(hits, 1), book)
    return book.astype("<f4")


def distortion(book, count=4000):
    """Mean squared error as it is, and with the length kept."""
    y = directions(np.random.default_rng(TEST_SEED), count)
    c = book[viterbi(y, book)].astype(float)
    kept = c / np.sqrt((c * c).sum(1, keepdims=True))
    return [((v - y) ** 2).sum(1).mean() for v in (c, kept)]


def main():
    for bits in (3, 2):
        book = train(bits)
        book.tofile(path(bits))
        raw, kept = distortion(book)
        print(f"{bits} bits: {raw:.5f}, with the length kept {kept:.5f}; bound {4.0 ** -(bits + 6 / GROUP):.5f}", flush=True)


if __name__ == "__main__":
    main()
