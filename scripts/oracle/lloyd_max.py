"""The Lloyd-Max quantizers of N(0, 1): the tables of src/kv/codec/turbo.rs, and what tables lose.

A table is optimal if each value is the mean of the cell of numbers that are nearest to it. The
iteration sets each value to that mean until nothing changes. Integrals are closed forms in erf, in float64.
"""

import math

import numpy as np

GROUP = 128
# beside ours: tables as forks of llama.cpp ship them, for coordinates of N(0, 1/128), positive half
SHIPPED = {
    "turbo2, all forks": [0.039994, 0.133462],
    "turbo3, all forks": [0.021460, 0.065717, 0.117832, 0.190685],
    "turbo4, quantile means": [0.006938, 0.020989, 0.035597, 0.051262, 0.068756, 0.089527, 0.117195, 0.173926],
    "turbo4, beellama.cpp": [0.011353, 0.034311, 0.058069, 0.083317, 0.111065, 0.143047, 0.182907, 0.241556],
}


def cells(table):
    """Probability and mean of each cell of the positive half of N(0, 1)."""
    edges = np.concatenate([[0], (table[1:] + table[:-1]) / 2, [np.inf]])
    density = np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi)
    below = np.array([math.erf(e / math.sqrt(2)) / 2 for e in edges])
    mass = np.diff(below)
    return mass, -np.diff(density) / mass


def lloyd_max(bits):
    """The positive half of the optimal table of 2^bits values."""
    table = np.linspace(0.1, 2.7, 2 ** (bits - 1))
    while True:
        _, means = cells(table)
        if np.abs(means - table).max() < 1e-15:
            return means
        table = means


def distortion(table):
    """Mean squared error of a table on N(0, 1)."""
    mass, means = cells(np.asarray(table))
    return 1 - 2 * (2 * mass * means * table).sum() + (2 * mass * np.square(table)).sum()


def main():
    for bits in (2, 3, 4):
        table = lloyd_max(bits)
        print(f"{bits} bits: distortion {distortion(table):.6f}, {' '.join(f'{c:.6f}' for c in table)}")
        print(f"    / sqrt({GROUP}): {', '.join(str(np.float32(c / math.sqrt(GROUP))) for c in table)}")
    for name, table in SHIPPED.items():
        print(f"{name}: distortion {distortion(np.array(table) * math.sqrt(GROUP)):.6f}")


if __name__ == "__main__":
    main()
