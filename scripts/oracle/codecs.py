#!/usr/bin/env python3
"""Encoded and decoded blocks by independent implementations -> tests/fixtures/codecs.json

The implementations are gguf's numpy quantizers if gguf has the format, and formats.py if not.

Floats are written as the hex of their bits (f32: 8 digits, most significant first), and
encoded blocks as the hex of their bytes. gguf cannot encode iq4_nl. For that format the file has
the decoding direction, and the encoded test vectors of the format's written description. What
formats.py makes of one vector is compared with the blocks that the description gives.

Two kinds of block are left out. One is a block of negative zeros: numpy's arg-max takes the first of them as
the extreme element, and the C reference, whose comparison is strict, takes none. The other is a block of only f32
subnormals, which goes through f16 and bf16 only: in the block formats 1/d overflows, and casting
infinity to an integer is undefined in the reference.
"""

import argparse
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from gguf import quants

from formats import FORMATS, HEADS, KIVI, KVARN, TURBO, WHOLE_HEADS, synthetic_codebook, tcq, turbo
from lloyd_max import SHIPPED

ROOT = Path(__file__).resolve().parents[2]
SEED = 20240611
CODECS = ["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "mxfp4"]

# iq4_nl as llama.cpp's cache write encodes it (one try, weights x^2)
IQ4_NL_ENCODED = {"quadratic": "a023f0521b1554fac1de1fc29ecb1dd2cefd", "constant": "0c9e" + "00" * 16}

# blocks that the written descriptions give
PUBLISHED = {
    ("q6_0", "quadratic"): "7a2b3c84b2a135ceb8ffd08c5a5664a5c4193ccd35cb3319c5a0",
    ("q6_1", "quadratic"): "3d2b80bf3c84b2a135ceb8fff09c6b5775c6e42b3ede47dc3429e7c2",
    ("q3_0", "quadratic"): "80373c791d573bb5aceba4dde1ee",
    ("q3_1", "quadratic"): "123880bf3c7919573ab458eba4dde1ee",
    ("q2_0", "quadratic"): "803b3ce58fcd1df6fcff",
    ("q2_1", "quadratic"): "c03c80bf3c958e891db2aceb",
    ("turbo4", "quadratic head"): "cc4cec7d34573e625b314719976b9b6a68b2786b8da99b85be8a34e2b7c32be985397dd425c6877d99689b9b7d"
    "3988678c56b6c6759c56ad4dd83695794048528a98",
    ("turbo2", "quadratic head"): "134d7f50430725696b8666ab9aabc0c9e229d7d1796aaa275a5bddb5b5e7914646aa",
    ("turbo3 of the forks", "quadratic head"): "df4ceeb5c7490bd3d25cdc422117c597c542aeb6e3c0514ef0b2ba2e6b8a268c98010711"
    "6497f5fba86d89765f33cadc18f1",
    ("turbo3_tcq of a synthetic codebook", "quadratic head"): "a94cd49b121f352fa568fb67ce639e4c48989ecd53a579d048a3"
    "6f4a6a26e0e27c16d45830488ff421f51b9f502e41d61a1e0400",
    ("turbo2_tcq of a synthetic codebook", "quadratic head"): "d14c4cfacb4c803db5bf80066173f3956c6ec78e792caed5aef15260"
    "17687ce6995a0900",
    # the description has two unused bytes behind the scale
    ("turbo4:quantile", "quadratic head"): "f54cfe6f22471f504d20260aa75dad5c58c1795c9ebaad84df8b12f0c7e21df9831a7ee214e5976eaa59"
    "adbc7f1a99579e46d4d574ae35bf3ee914947a2028319ba8",
}

# what the description gives of sha256 of KVarN's records. Two of its digests are left out: kvarn3 and kvarn6
# of K, in which a code changes with the last bit of an exponential
PUBLISHED_RECORDS = {
    ("kvarn8", "k", 128): ["ad28091f0f7a14ec"],
    ("kvarn8", "v", 128): ["a0fdfddf131d32f7"],
    ("kvarn6", "v", 128): ["0e2e0c7737dd118d"],
    ("kvarn5", "k", 128): ["274a7169746614c7"],
    ("kvarn5", "v", 128): ["522d46e1d7343758"],
    ("kvarn4", "k", 128): ["e4098ca56b5eef24"],
    ("kvarn4", "v", 128): ["32d424813f3bd221"],
    ("kvarn4", "k", 256): ["5fc3422533e5e74c", "bef0b15c77b92ae7"],
    ("kvarn4", "v", 256): ["f3129ff3e2db6209", "5de077972c3ba9ef"],
    ("kvarn4:it8", "k", 128): ["272348f34133c766"],
    ("kvarn4:it8", "v", 128): ["d97efa7cf2afd8e1"],
    ("kvarn3", "v", 128): ["da553421ac22d42a"],
    ("kvarn2", "k", 128): ["d8fa63d559a85f99"],
    ("kvarn2", "v", 128): ["55220484cd2060eb"],
}

KIVI_INPUTS = ["quadratic", "zero", "constant", "negative constant", "exact halves", "all negative"]
KIVI_INPUTS += ["subnormals beside normals", "scale is an f16 subnormal", "scale underflows f16"]
KIVI_INPUTS += ["heavy tails 0", "outlier channel", "head of 256"]

# further inputs of some formats
EDGES = {"fp8_e4m3": ["e4m3 edges"], "fp8_e5m2": ["e5m2 edges"], "nvfp4": ["e2m1 edges"]}


def inputs():
    """Named vectors of one or two 32-element blocks, for all codecs."""
    rng = np.random.default_rng(SEED)
    f32 = np.float32
    j = np.arange(32)
    ramp = (j - 15.5) / 15.5
    one_hot = np.where(j == 7, 3.0, 0.0)
    vectors = {
        "quadratic": ((17 * j * j + 5 * j + 3) % 127 - 63) / 32,
        "zero": np.zeros(32),
        "constant": np.full(32, 0.75),
        "negative constant": np.full(32, -1.3),
        "ramp": ramp,
        "plus and minus max": np.where(j % 2 == 0, 1.0, -1.0) * 2.5,
        "minus before plus max": np.where(j % 2 == 0, -1.0, 1.0) * 2.5,
        "one large among zeros": one_hot,
        "one large negative": -one_hot + 0.001 * ramp,
        "exact halves": (j - 16) / 2 + np.where(j == 0, -8.0, 0.0),
        "all positive": 5.0 + ramp,
        "all negative": -5.0 + ramp,
        "subnormals beside normals": rng.normal(size=32) * np.where(j % 3 == 0, 1e-40, 1.0),
        "scale is an f16 subnormal": rng.normal(size=32) * 2e-4,
        "scale underflows f16": rng.normal(size=32) * 1e-8,
        "largest finite scale": ramp * 65504.0,
    }
    for exponent in range(-6, 4):
        vectors[f"normal 1e{exponent}"] = rng.normal(size=32) * 10.0**exponent
    for k in range(4):
        vectors[f"heavy tails {k}"] = rng.standard_t(2, size=32)
    vectors["outlier channel"] = rng.normal(size=64) * np.where(np.arange(64) % 32 == 5, 60.0, 1.0)
    return {name: v.astype(f32) for name, v in vectors.items()}


def float_edges():
    """For f16 and bf16 alone: ties, over- and underflow, subnormals of all three formats."""
    positive = [65504.0, 65519.996, 65520.0, 1e6, 3.4e38, 2**-14, 2**-24, 2**-25, 2**-25 * 1.0001, 2**-26]
    positive += [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-9, 1.1754942e-38, 1e-40, 1.4e-45]
    v = np.array(positive, np.float32)
    return np.concatenate([v, -v])


def small_float_edges():
    """Ties between neighbours, over- and underflow: for the 8-bit floats, and for blocks of 4-bit ones."""
    vectors = {}
    for name, dtype in (("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)):
        codes = torch.arange(128, dtype=torch.uint8).view(dtype).float().numpy()
        codes = codes[np.isfinite(codes)]
        ties = (codes[1:] + codes[:-1]) / 2
        beyond = np.array([codes[-1] * 1.01, 3.4e38, 0.1, 3.3, 500.0, codes[1] / 2.01, 1e-40], np.float32)
        v = np.concatenate([ties, np.nextafter(ties, np.float32(np.inf)), beyond])
        vectors[f"{name} edges"] = np.concatenate([v, -v]).astype(np.float32)
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0], np.float32)
    v = np.tile(np.concatenate([ties, -ties]), 2)
    vectors["e2m1 edges"] = np.concatenate([v, v * np.float32(0.25)])
    return vectors


def heads():
    """For the codecs whose block is a head, or most of one."""
    rng = np.random.default_rng(SEED + 1)
    j = np.arange(128)
    vectors = {"quadratic head": ((7 * j * j + 13 * j + 5) % 101 - 50) / 16}
    for size in (64, 128, 256, 512):
        vectors[f"head of {size}"] = rng.normal(size=size) * rng.lognormal(size=size)
    vectors["positive head"] = 5 + rng.normal(size=128)
    vectors["negative head"] = -vectors["positive head"]
    vectors["zero head"] = np.zeros(128)
    vectors["tiny head"] = rng.normal(size=128) * 1e-7
    return {name: v.astype(np.float32) for name, v in vectors.items()}


def padded_heads():
    """For the codecs that fill a head up to whole groups of 128."""
    rng = np.random.default_rng(SEED + 2)
    return {f"head of {n}": (rng.normal(size=n) * rng.lognormal(size=n)).astype(np.float32) for n in (80, 96, 192)}


def check(codec, name, data):
    """A block that a description gives is what comes of the input."""
    assert PUBLISHED.get((codec, name)) in (None, data.tobytes().hex()), (codec, name)


def hex_f32(v):
    return np.asarray(v, dtype=">f4").tobytes().hex()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def group(head_dim):
    """128 tokens of one head: the vector of KVarN's description, for all sizes of heads."""
    t, d = np.arange(128)[:, None], np.arange(head_dim)
    x = ((7 * t * t + 13 * d * d + 5 * t * d + 3 * t + 11 * d) % 101 - 50) / 16
    return (x * (1 + t % 5 / 4) * (1 + d % 7 / 2)).astype(np.float32)


def group_case(codec, side, head_dim, divisor):
    """A group is too long to write down: digests, and the first token's first numbers."""
    encode, decode = KVARN[codec, side]
    records = encode(group(head_dim) / np.float32(divisor))
    read = decode(records, head_dim)
    if divisor == 1:
        digests = [sha256(record)[:16] for record in records]
        assert PUBLISHED_RECORDS.get((codec, side, head_dim)) in (None, digests), (codec, side, head_dim)
    return {
        "codec": codec,
        "side": side,
        "head_dim": head_dim,
        "divisor": divisor,
        "encoded": sha256(b"".join(records)),
        "decoded": sha256(read.astype("<f4").tobytes()),
        "start": hex_f32(read[0, :4]),
    }


def group_cases():
    """Every codec with the heads that it takes; the limits of scales are met where numbers are small."""
    plan = []
    for codec, side in KVARN:
        plan += [(codec, side, size, 1) for size in (64, 128, 256, 512) if size > 128 or "whole" not in codec]
        plan += [(codec, side, 128, 64)] if ":" not in codec else []
    return [group_case(*case) for case in plan]


def every_code(codec):
    """The decode direction of all finite 8-bit floats."""
    codes = np.arange(256, dtype=np.uint8)
    codes = codes[np.isfinite(FORMATS[codec][1](codes))]
    return {"codec": codec, "encoded": codes.tobytes().hex(), "decoded": hex_f32(FORMATS[codec][1](codes))}


def decoded(data, codec):
    return hex_f32(quants.dequantize(data, T[codec.upper()]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "tests/fixtures/codecs.json")
    args = parser.parse_args()

    vectors = inputs()
    common = list(vectors)
    plan = [(codec, name) for name in vectors for codec in CODECS]
    vectors["float edges"] = float_edges()
    vectors |= small_float_edges()
    whole = heads()
    vectors |= whole
    padded = padded_heads()
    vectors |= padded
    plan += [("mxfp4", "e2m1 edges")]
    plan += [("f16", "float edges"), ("bf16", "float edges")]
    cases = []
    with np.errstate(over="ignore"):  # f16 overflows to infinity, as it should
        for codec, name in plan:
            x = vectors[name]
            encoded = quants.quantize(x, T[codec.upper()])
            cases.append(
                {
                    "codec": codec,
                    "input": name,
                    "encoded": encoded.tobytes().hex(),
                    "decoded": decoded(encoded, codec),
                }
            )
        for codec, (encode, decode) in FORMATS.items():
            names = [*common, *EDGES.get(codec, []), *(whole if codec in HEADS else [])]
            if codec in TURBO:
                names = [*whole, *padded]
            if codec in WHOLE_HEADS:
                names = [*whole]
            for name in names:
                data = encode(vectors[name])
                check(codec, name, data)
                read = decode(data)[: len(vectors[name])]
                cases.append(
                    {"codec": codec, "input": name, "encoded": data.tobytes().hex(), "decoded": hex_f32(read)}
                )
        for (codec, side), (encode, decode) in KIVI.items():
            for name in KIVI_INPUTS:
                data = encode(vectors[name])
                coded = {"encoded": data.tobytes().hex(), "decoded": hex_f32(decode(data))}
                cases.append({"codec": codec, "side": side, "input": name, **coded})
        forks = turbo(3, SHIPPED["turbo3, all forks"])
        check("turbo3 of the forks", "quadratic head", forks[0](whole["quadratic head"]))
        for bits in (2, 3):
            encode, _ = tcq(bits, synthetic_codebook(bits))
            check(f"turbo{bits}_tcq of a synthetic codebook", "quadratic head", encode(whole["quadratic head"]))
        cases += [every_code(codec) for codec in ("fp8_e4m3", "fp8_e5m2")]
    rng = np.random.default_rng(SEED)
    for scale in (0.0, -0.0, 1e-7, 0.0123, -0.5, 1.0, 333.0):
        block = np.concatenate([np.array([scale], "<f2").view(np.uint8), rng.integers(0, 256, 16, dtype=np.uint8)])
        cases.append({"codec": "iq4_nl", "encoded": block.tobytes().hex(), "decoded": decoded(block, "iq4_nl")})
    for name, encoded in IQ4_NL_ENCODED.items():
        block = np.frombuffer(bytes.fromhex(encoded), np.uint8)
        cases.append({"codec": "iq4_nl", "input": name, "encoded": encoded, "decoded": decoded(block, "iq4_nl")})

    lines = [
        "{",
        f'  "source": "gguf {version("gguf")}, numpy {np.__version__}, torch {version("torch")}; iq4_nl encoded, {" ".join(FORMATS)} kivi kvarn: written description",',
        f'  "seed": {SEED},',
        '  "inputs": {',
        ",\n".join(f'    "{n}": "{hex_f32(x)}"' for n, x in vectors.items()),
        "  },",
        '  "cases": [',
        ",\n".join(f"    {json.dumps(c)}" for c in cases),
        "  ],",
        '  "groups": [',
        ",\n".join(f"    {json.dumps(c)}" for c in group_cases()),
        "  ]",
        "}",
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
