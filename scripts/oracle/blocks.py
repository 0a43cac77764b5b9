#!/usr/bin/env python3
"""Blocks of each of ggml's types, and their numbers by gguf's numpy -> tests/fixtures/blocks.json

usage: blocks.py [--check]

The blocks are random bytes whose scales in half precision are finite, every fourth of them zero, subnormal or as large as
possible. `blocks` is hex. `digests` has, for every 256 numbers, the first 16 digits of the SHA-256 of these numbers as
little-endian f32. Q1_0 and Q2_0 are dequantized by llama.cpp, because gguf does not have them. llama.cpp must agree about
all other types, too: to the last bit, or, in types whose numbers are a difference or a sum, as far as a fused
multiply-add explains, which a compiler may use there.

The script also writes src/compute/blocks/*.grid, the grids of the i-quants as gguf packs them.

With --check nothing is written, and the files must equal those that are there.
"""

import ctypes as C
import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

import llama_cpp

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests/fixtures/blocks.json"
GRIDS = ROOT / "src/compute/blocks"
SEED = 20261130
# numbers to a digest, and digests to a type
CHUNK, CHUNKS = 256, 24
EDGES = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x3C00, 0x7BFF, 0xFBFF]

# where the scales in half precision stand in a block
HALVES = {
    "F16": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ2_XXS": [0],
    "IQ2_XS": [0],
    "IQ2_S": [0],
    "IQ3_XXS": [0],
    "IQ3_S": [0],
    "IQ1_S": [0],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "TQ1_0": [52],
    "TQ2_0": [64],
    "Q1_0": [0],
    "Q2_0": [0],
}
# types without such scales, or with a scale that is scattered
OTHERS = ["F32", "BF16", "IQ1_M", "MXFP4", "NVFP4"]
# types of which llama.cpp's numbers may be fused
FUSED = {"Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"}
# those that gguf lacks: code, elements, bytes
ONLY_LLAMA_CPP = {"Q1_0": (41, 128, 18), "Q2_0": (42, 64, 18)}


class Traits(C.Structure):
    _fields_ = [
        ("name", C.c_char_p),
        ("elements", C.c_int64),
        ("interleaved", C.c_int64),
        ("bytes", C.c_size_t),
        ("is_quantized", C.c_bool),
        ("to_float", C.CFUNCTYPE(None, C.c_void_p, C.c_void_p, C.c_int64)),
    ]


traits = llama_cpp.declare("ggml_get_type_traits", C.POINTER(Traits), C.c_int)


def facts(name):
    if name in ONLY_LLAMA_CPP:
        return ONLY_LLAMA_CPP[name]
    kind = GGMLQuantizationType[name]
    return (int(kind), *GGML_QUANT_SIZES[kind])


def finite_halves(random, count):
    halves = random.integers(0, 0x7C00, count) | random.integers(0, 2, count) << 15
    edges = random.choice(EDGES, count)
    return np.where(random.integers(0, 4, count) == 0, edges, halves).astype("<u2")


def blocks(random, name, elements, size):
    """Random blocks as an array of bytes, (count, size)."""
    count = CHUNK * CHUNKS // elements
    made = random.integers(0, 256, (count, size), dtype=np.uint8)
    for place in HALVES.get(name, []):
        made[:, place : place + 2] = finite_halves(random, count).view(np.uint8).reshape(count, 2)
    if name == "IQ1_M":
        # a quarter of the scale in the high bits of each of four words
        words = made[:, 48:56].copy().view("<u2")
        halves = finite_halves(random, count)
        for word in range(4):
            words[:, word] = words[:, word] & 0x0FFF | (halves >> (4 * word) & 15) << 12
        made[:, 48:56] = words.view(np.uint8)
    if name in ("F32", "BF16"):
        # the largest exponent, that of infinities and NaN, loses a bit
        made[:, -1] &= np.where((made[:, -1] & 0x7F == 0x7F) & (made[:, -2] >= 0x80), 0xBF, 0xFF).astype(np.uint8)
    return made


def by_llama_cpp(code, made, elements):
    out = np.zeros(len(made) * elements, dtype="<f4")
    data = np.ascontiguousarray(made)
    kind = traits(code).contents
    assert (kind.elements, kind.bytes) == (elements, made.shape[1])
    kind.to_float(data.ctypes.data, out.ctypes.data, out.size)
    return out


def numbers(name, code, made, elements):
    if name == "F32":
        return made.view("<f4").ravel()
    theirs = by_llama_cpp(code, made, elements)
    if name in ONLY_LLAMA_CPP:
        return theirs
    with np.errstate(over="ignore"):
        ours = quants.dequantize(made, GGMLQuantizationType[name]).astype("<f4", copy=False).ravel()
    if name in FUSED:
        # a fused multiply-add rounds once where two operations round twice
        largest = np.abs(ours).reshape(-1, elements).max(1, keepdims=True)
        off = np.abs(ours.astype("f8") - theirs).reshape(-1, elements)
        assert (off <= 2e-7 * np.maximum(largest, 1e-30)).all(), name
    else:
        assert (ours.view("<u4") == theirs.view("<u4")).all(), name
    return ours


def main():
    random = np.random.default_rng(SEED)
    types = {}
    for name in [*HALVES, *OTHERS]:
        code, elements, size = facts(name)
        made = blocks(random, name, elements, size)
        found = numbers(name, code, made, elements)
        assert not np.isnan(found).any(), name
        chunks = found.reshape(CHUNKS, CHUNK)
        digests = [hashlib.sha256(chunk.tobytes()).hexdigest()[:16] for chunk in chunks]
        types[name] = {"code": code, "halves": HALVES.get(name, []), "blocks": made.tobytes().hex(), "digests": digests}
    source = f"gguf {version('gguf')}, numpy {np.__version__}; Q1_0, Q2_0: {llama_cpp.SOURCE}"
    text = json.dumps({"source": source, "seed": SEED, "types": types}, indent=1) + "\n"
    written = {FIXTURE: text.encode()}
    for kind in (quants.IQ1_S, quants.IQ2_XXS, quants.IQ2_XS, quants.IQ2_S, quants.IQ3_XXS, quants.IQ3_S):
        written[GRIDS / f"{kind.__name__.lower()}.grid"] = bytes.fromhex(kind.grid_hex.decode())
    for path, content in written.items():
        if "--check" in sys.argv:
            assert path.read_bytes() == content, path
        else:
            path.write_bytes(content)
    print(len(types), "types")


main()
