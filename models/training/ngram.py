"""Interpolated Kneser-Ney over token ids: the n-gram model that a language model must beat."""

import numpy as np

BITS = 11  # ids are below 2048, so five of them fit in 64 bits


def keys_of(ids, n):
    """The n-gram that ends at each position from n - 1 on, as one integer."""
    keys = np.zeros(len(ids) - n + 1, dtype=np.int64)
    for k in range(n):
        keys = (keys << BITS) | ids[k : len(ids) - n + 1 + k]
    return keys


class KneserNey:
    def __init__(self, ids, order):
        ids = ids.astype(np.int64)
        self.order = order
        self.levels = []  # per length 1..order: grams, counts, contexts, their totals and numbers of followers
        grams, counts = np.unique(keys_of(ids, order), return_counts=True)
        for n in range(order, 0, -1):
            contexts, first, follow = np.unique(grams >> BITS, return_index=True, return_counts=True)
            totals = np.add.reduceat(counts, first)
            ones, twos = (counts == 1).sum(), (counts == 2).sum()
            discount = ones / (ones + 2 * twos)
            self.levels.insert(0, (grams, counts, contexts, totals, follow, discount))
            # below: how many different tokens stand before the gram
            grams, counts = np.unique(grams & ((1 << BITS * (n - 1)) - 1), return_counts=True)

    def nll(self, ids):
        """Negative log likelihood of every token given those before it, in nats."""
        ids = ids.astype(np.int64)
        p = np.full(len(ids), 1.0 / (1 << BITS))
        for n, (grams, counts, contexts, totals, follow, discount) in enumerate(self.levels, 1):
            keys = keys_of(ids, n)
            count = look_up(grams, counts, keys)
            total = look_up(contexts, totals, keys >> BITS)
            branches = look_up(contexts, follow, keys >> BITS)
            lower, seen = p[n - 1 :], total > 0
            total = np.maximum(total, 1)
            mixed = np.maximum(count - discount, 0) / total + discount * branches / total * lower
            p[n - 1 :] = np.where(seen, mixed, lower)
        return -np.log(p)


def look_up(keys, values, wanted):
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
