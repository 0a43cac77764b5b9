"""Print what each codec loses on Gaussian data: the NMSE column of docs/schemes.md.

The quantizers are gguf's and those of formats.py; tests/engine/codecs.rs shows that kvgate's are the same
bit for bit. gguf cannot encode iq4_nl, so this script encodes it as ggml's cache does.
"""

import numpy as np
from gguf import GGMLQuantizationType, quants

from formats import FORMATS, HEADS, KIVI, KVARN

BLOCKS = 61 * 512  # groups of 128 tokens, heads of 128
CODEBOOK = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def iq4_nl(x):
    extreme = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
    midpoints = (CODEBOOK[:-1] + CODEBOOK[1:]) / 2
    code = CODEBOOK[((x / (extreme / -127))[..., None] >= midpoints).sum(-1)]
    scale = (x**2 * code * x).sum(1) / (x**2 * code**2).sum(1)
    return code * scale.astype(np.float16).astype(np.float32)[:, None]


def ggml(name):
    kind = GGMLQuantizationType[name]
    return lambda x: quants.dequantize(quants.quantize(x, kind), kind)


def written(encode, decode, size):
    def round_trip(x):
        return np.concatenate([decode(encode(row)) for row in x.reshape(-1, size)]).reshape(x.shape)

    return round_trip


x = np.random.default_rng(1).standard_normal((BLOCKS, 32)).astype(np.float32)
exact = x.astype(np.float64)
codecs = {name.lower(): ggml(name) for name in ("F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "MXFP4")}
codecs["iq4_nl"] = iq4_nl
for name, (encode, decode) in FORMATS.items():
    # heads of 128, or all blocks at once
    codecs[name] = written(encode, decode, 128 if name in HEADS else x.size)
for (name, side), (encode, decode) in KIVI.items():
    codecs[f"{name} {side}"] = written(encode, decode, 32 * 128)
for (name, side), (encode, decode) in KVARN.items():
    if "whole" not in name:  # nothing at heads of 128
        codecs[f"{name} {side}"] = written(encode, lambda records, d=decode: d(records, 128).ravel(), 128 * 128)
for name, round_trip in codecs.items():
    print(f"{name:17} {((exact - round_trip(x)) ** 2).sum() / (exact**2).sum():.2e}")
