"""The codecs that no package has, written out in numpy from their descriptions.

`FORMATS[name]` is a pair (encode, decode). encode turns f32 into bytes, one block a row; decode turns them
back. A block is a whole head if the format says so. The 8-bit floats and the random signs are torch's.
The code was written to be read and not to be fast, and without looking at src/. Codes are bit strings, sums are
float64, and the only arithmetic in float32 is what the formats prescribe.
"""

import numpy as np
import torch

from lloyd_max import SHIPPED, lloyd_max
from tcq_codebook import codebook, viterbi

f32 = np.float32


def half(v):
    return v.astype(np.float16)


def to_bytes(v):
    """One number a row -> its little-endian bytes."""
    return np.ascontiguousarray(v).view(np.uint8).reshape(len(v), -1)


def inverse(d):
    with np.errstate(divide="ignore"):
        return np.where(d == 0, f32(0), f32(1) / d)


def bits_of(codes, places, size):
    """Scatter code bits: places[bit][j] is the bit number in the block's `size` bytes of that bit of code j."""
    stream = np.zeros((len(codes), 8 * size), np.uint8)
    for bit, place in enumerate(places):
        stream[:, place] = codes >> bit & 1
    return np.packbits(stream, axis=1, bitorder="little")


def codes_of(data, places):
    stream = np.unpackbits(data, axis=1, bitorder="little")
    return sum(stream[:, place].astype(np.uint8) << bit for bit, place in enumerate(places))


def ggml_places(bits):
    """Bit numbers of the codes of 32 elements, and the bytes that they take."""
    j = np.arange(32)
    if bits in (2, 3):  # qs: elements j, j+8, j+16, j+24 in byte j; then a plane of third bits
        low = 8 * (j % 8) + 2 * (j // 8)
        return [low, low + 1] + [64 + j] * (bits == 3), 8 + 4 * (bits == 3)
    # qh: h = upper bits of j and, above them, of j+16; h at bit 4 (j div 8) of byte j mod 8; then nibbles
    k = j % 16
    high = 8 * (k % 8) + 4 * (k // 8) + 2 * (j // 16)
    low = 64 + 8 * k + 4 * (j // 16)
    return [low, low + 1, low + 2, low + 3, high, high + 1], 24


def symmetric(bits, refit=False):
    """Scale from the signed extreme element, which gets code 0."""
    places, size = ggml_places(bits)
    middle, top = 2 ** (bits - 1), 2**bits - 1

    def encode(x):
        x = x.reshape(-1, 32)
        d = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1) / f32(-middle)
        codes = np.minimum(top, np.trunc(x * inverse(d) + f32(middle + 0.5))).astype(np.uint8)
        if refit:
            level, w = codes.astype(float) - middle, x.astype(float) ** 2
            above, below = (w * level * x).sum(1, keepdims=True), (w * level**2).sum(1, keepdims=True)
            d = np.where(below > 0, above / np.where(below > 0, below, 1), d)
        return np.hstack([to_bytes(half(d)), bits_of(codes, places, size)])

    def decode(data):
        d = data[:, :2].copy().view(np.float16).astype(f32)
        return ((codes_of(data[:, 2:], places).astype(f32) - middle) * d).ravel()

    return encode, decode


def asymmetric(bits):
    """Scale from smallest to largest element."""
    places, size = ggml_places(bits)
    top = 2**bits - 1

    def encode(x):
        x = x.reshape(-1, 32)
        low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
        d = (high - low) / f32(top)
        codes = np.minimum(top, np.trunc((x - low) * inverse(d) + f32(0.5))).astype(np.uint8)
        return np.hstack([to_bytes(half(d)), to_bytes(half(low)), bits_of(codes, places, size)])

    def decode(data):
        d, low = (data[:, i : i + 2].copy().view(np.float16).astype(f32) for i in (0, 2))
        return (codes_of(data[:, 4:], places).astype(f32) * d + low).ravel()

    return encode, decode


def torch_fp8(dtype):
    """torch's own conversion, after the saturation that caches ask for."""
    limit = torch.finfo(dtype).max

    def encode(x):
        return torch.from_numpy(x).clamp(-limit, limit).to(dtype).view(torch.uint8).numpy()[:, None]

    def decode(data):
        return torch.from_numpy(data.ravel().copy()).view(dtype).float().numpy()

    return encode, decode


E4M3 = torch_fp8(torch.float8_e4m3fn)
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], f32)


def adjacent(codes):
    return codes[:, ::2] | codes[:, 1::2] << 4


def separate(data):
    return np.stack([data & 15, data >> 4], -1).reshape(len(data), -1)


def nvfp4():
    def encode(x):
        x = x.reshape(-1, 16)
        scale = E4M3[0](np.abs(x).max(1) / f32(6))
        with np.errstate(divide="ignore", invalid="ignore"):
            y = np.where(E4M3[1](scale)[:, None] == 0, f32(0), x / E4M3[1](scale)[:, None])
        # the nearest of the eight values, of two that are as near the one whose code is even
        distance = np.abs(np.minimum(np.abs(y), 6).astype(float)[..., None] - FP4)
        code = np.argmin(distance + 1e-12 * (np.arange(8) % 2), -1).astype(np.uint8)
        return np.hstack([adjacent(code | np.signbit(y).astype(np.uint8) << 3), scale])

    def decode(data):
        codes = separate(data[:, :8])
        value = np.where(codes & 8, -FP4[codes & 7], FP4[codes & 7])
        return (value * E4M3[1](data[:, 8])[:, None]).astype(f32).ravel()

    return encode, decode


# formats whose block is the head: a row is one head


def int8_pth():
    def encode(x):
        x = x.reshape(1, -1)
        scale = np.maximum(np.abs(x).max(1, keepdims=True) / f32(127), f32(1e-6))
        codes = np.clip(np.rint(x * (f32(1) / scale)), -128, 127).astype(np.int8)
        return np.hstack([codes.view(np.uint8), to_bytes(scale)])

    def decode(data):
        return (data[:, :-4].view(np.int8).astype(f32) * data[:, -4:].copy().view(f32)).ravel()

    return encode, decode


def fp8_pth():
    def encode(x):
        scale = np.maximum(np.abs(x).max(keepdims=True) / f32(448), f32(1e-6))
        return np.hstack([E4M3[0](x * (f32(1) / scale)).reshape(1, -1), to_bytes(scale)])

    def decode(data):
        return E4M3[1](data[:, :-4]) * data[:, -4:].copy().view(f32).ravel()

    return encode, decode


def mlx(bits):
    """MLX's affine groups of 64: f32 arithmetic, scale and bias kept as halves, numbers above the largest
    taken from 0 as its maximum starts there."""
    last = f32(2**bits - 1)

    def away(v):
        return np.copysign(np.floor(np.abs(v) + f32(0.5)), v)

    def encode(x):
        x = x.reshape(-1, 64)
        lo, hi = x.min(1), np.maximum(x.max(1), f32(0))
        scale = np.maximum((hi - lo) / last, f32(1e-7))
        side = np.abs(lo) > np.abs(hi)
        scale, edge = np.where(side, scale, -scale), np.where(side, lo, hi)
        steps = away(edge / scale)
        at_zero = steps == 0
        scale = np.where(at_zero, scale, edge / np.where(at_zero, f32(1), steps)).astype(f32)
        bias = np.where(at_zero, f32(0), edge).astype(f32)
        codes = np.clip(away((x - bias[:, None]) / scale[:, None]), 0, last).astype(np.uint8)
        return np.hstack([codes if bits == 8 else adjacent(codes), *map(to_bytes, (half(scale), half(bias)))])

    def decode(data):
        codes = data[:, :-4] if bits == 8 else separate(data[:, :-4])
        scale, bias = data[:, -4:].copy().view(np.float16).astype(f32).T
        return (codes.astype(f32) * scale[:, None] + bias[:, None]).ravel()

    return encode, decode


def random_signs(size):
    generator = torch.Generator(device="cpu")
    generator.manual_seed(0x9E3779B9)
    return (2 * torch.bernoulli(torch.full((size,), 0.5), generator=generator) - 1).numpy()


def butterflies(x):
    """Times the Hadamard matrix of +1 and -1, neighbours first."""
    size, step = x.shape[-1], 1
    while step < size:
        pairs = x.reshape(-1, size // (2 * step), 2, step)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        x = np.stack([a + b, a - b], 2).reshape(x.shape)
        step *= 2
    return x


def away(v):
    """To the nearest integer, halves away from zero."""
    return np.trunc(v + np.copysign(f32(0.5), v))


def int4_pth():
    def encode(x):
        x = x.reshape(1, -1)
        y = butterflies(x * random_signs(x.shape[1]))
        low, high = y.min(1, keepdims=True), y.max(1, keepdims=True)
        scale = np.maximum((high - low) / f32(15), f32(1e-6))
        zero = np.clip(away(-low / scale), 0, 15)
        codes = np.clip(away(y * (f32(1) / scale) + zero), 0, 15).astype(np.uint8)
        word = scale.view(np.uint32) & ~np.uint32(15) | zero.astype(np.uint32)
        return np.hstack([adjacent(codes), to_bytes(word)])

    def decode(data):
        word = data[:, -4:].copy().view(np.uint32)
        scale, zero = (word & ~np.uint32(15)).view(f32), (word & 15).astype(f32)
        y = butterflies((separate(data[:, :-4]).astype(f32) - zero) * scale)
        return (y * random_signs(y.shape[1]) / f32(y.shape[1])).ravel()

    return encode, decode


# groups of 128 coordinates


def signs_42():
    rng = np.random.default_rng(42)
    return [rng.choice([-1, 1], 128).astype(f32) for _ in range(2)]


FIRST, SECOND = signs_42()


def directions(x):
    """Lengths and rotated directions of the groups of a head, zeros behind it where it ends within one."""
    x = np.pad(x.astype(float), (0, -len(x) % 128)).reshape(-1, 128)
    length = np.sqrt((x * x).sum(1, keepdims=True))
    unit = np.where(length > 1e-10, x / np.where(length > 1e-10, length, 1), 0)
    return length, butterflies(unit * FIRST) / 128**0.5 * SECOND


def rotated_back(y):
    return (butterflies(y * SECOND * f32(1 / 128**0.5)) * FIRST).ravel()


def turbo_scale(length, divisor):
    return to_bytes(half(np.where(divisor > 1e-10, length / np.where(divisor > 1e-10, divisor, 1), length)))


def turbo(bits, table=None, unbiased=False):
    positive = lloyd_max(bits) / 128**0.5 if table is None else np.array(table)
    table = np.concatenate([-positive[::-1], positive]).astype(f32)
    j = np.arange(128)
    if bits == 4:
        places, size = [4 * j + b for b in range(4)], 64
    else:
        places, size = [2 * j, 2 * j + 1] + [256 + j] * (bits == 3), 32 + 16 * (bits == 3)

    def encode(x):
        length, y = directions(x)
        codes = sum(y >= (a + b) / 2 for a, b in zip(table[:-1], table[1:], strict=True)).astype(np.uint8)
        c = table[codes].astype(float)
        divisor = (c * y).sum(1, keepdims=True) if unbiased else np.sqrt((c * c).sum(1, keepdims=True))
        return np.hstack([turbo_scale(length, divisor), bits_of(codes, places, size)])

    def decode(data):
        scale = data[:, :2].copy().view(np.float16).astype(f32)
        return rotated_back(table[codes_of(data[:, 2:], places)] * scale)

    return encode, decode


def tcq(bits, book=None):
    """Each value's number is bits + 6 bits of the stream, so the streams of neighbours overlap."""
    size = (6 + 128 * bits + 7) // 8 + 1
    places = [bits * np.arange(128) + b for b in range(bits + 6)]
    book = codebook(bits) if book is None else book

    def encode(x):
        length, y = directions(x)
        states = viterbi(y.astype(f32), book)
        c = book[states].astype(float)
        return np.hstack([turbo_scale(length, np.sqrt((c * c).sum(1, keepdims=True))), bits_of(states, places, size)])

    def decode(data):
        stream = np.unpackbits(data[:, 2:], axis=1, bitorder="little").astype(int)
        states = sum(stream[:, place] << bit for bit, place in enumerate(places))
        return rotated_back(book[states] * data[:, :2].copy().view(np.float16).astype(f32))

    return encode, decode


def synthetic_codebook(bits):
    """The codebook of the groups that the description of the trellis gives."""
    size = 64 << bits
    return ((73 * np.arange(size) % size - (size - 1) / 2) / (2 * size)).astype(f32)


# groups of tokens: x is the tokens of one head in order, K and V are laid out differently


def kivi(bits, side):
    top = np.float16(2**bits - 1)
    j = np.arange(32)
    places = [bits * j + b for b in range(bits)]

    def encode(x):
        """K: 32 tokens; V: one. All arithmetic in half, as of a model in half."""
        x = half(x.reshape(32, -1).T if side == "k" else x.reshape(-1, 32))
        low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
        scale = (high - low) / top
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = np.rint(np.clip((x - low) / scale, 0, top))
        codes = np.where(np.isnan(codes), 0, codes).astype(np.uint8)
        return np.hstack([bits_of(codes, places, 4 * bits), to_bytes(scale), to_bytes(low)])

    def decode(data):
        scale, low = (data[:, i : i + 2].copy().view(np.float16).astype(f32) for i in (4 * bits, 4 * bits + 2))
        x = codes_of(data[:, : 4 * bits], places).astype(f32) * scale + low
        return (x.T if side == "k" else x).ravel()

    return encode, decode


def orthonormal(x):
    return butterflies(x) * f32(x.shape[-1] ** -0.5)


def rotate(heads):
    """Slices of at most 128 first, then across them."""
    slices = orthonormal(heads.reshape(len(heads), -1, min(heads.shape[1], 128)))
    return orthonormal(slices.swapaxes(1, 2)).swapaxes(1, 2).reshape(heads.shape)


def deviations(x, axis):
    return x.std(axis, ddof=1, dtype=float, keepdims=True).astype(f32)


def exp(v):
    return np.exp(v.astype(float)).astype(f32)


def log(v):
    return np.log(v.astype(float)).astype(f32)


def imbalance(x):
    both = [deviations(x, axis) for axis in (0, 1)]
    return sum(d.max() / max(d.min(), f32(1e-8)) for d in both)


def balance(tile, iterations):
    """Factors of columns and rows whose division leaves the deviations most alike."""
    logs = [np.zeros((1, tile.shape[1]), f32), np.zeros((tile.shape[0], 1), f32)]
    best, least, now = [exp(v) for v in logs], imbalance(tile), tile
    for _ in range(iterations):
        for axis in (0, 1):
            step = log(np.clip(deviations(now, axis), f32(1e-3), f32(1e3)))
            logs[axis] = np.clip(logs[axis] + step, f32(-0.3), f32(10))
            now = tile / (exp(logs[0]) * exp(logs[1]))
        if imbalance(now) <= least:
            best, least = [exp(v) for v in logs], imbalance(now)
    return best


def kvarn(bits, side, iterations=16, widest=128):
    """128 tokens of a head of any of the sizes; slices of at most `widest` channels are records of their own."""
    top = f32(2**bits - 1)

    def record(tile):
        column, row = balance(tile, iterations)
        balanced = tile / (column * row)
        low, high = balanced.min(1, keepdims=True), balanced.max(1, keepdims=True)
        scale = np.maximum((high - low) / top, f32(1e-10))
        codes = np.clip(away((balanced - low) / scale), 0, top).astype(np.uint8)
        stream = np.unpackbits(codes.ravel()[:, None], axis=1, bitorder="little")[:, :bits]
        fields = [np.packbits(stream, bitorder="little"), half(row * scale), half(row * low), half(column)]
        return b"".join(field.tobytes() for field in fields)

    def encode(x):
        staged = half(rotate(x.reshape(128, -1))).astype(f32)
        slices = [staged[:, i : i + widest] for i in range(0, staged.shape[1], widest)]
        return [record(t.T if side == "k" else t) for t in slices]

    def tile(data, channels):
        rows, columns = (channels, 128) if side == "k" else (128, channels)
        payload, halves = data[: bits * rows * columns // 8], data[bits * rows * columns // 8 :]
        stream = np.unpackbits(np.frombuffer(payload, np.uint8), bitorder="little").reshape(-1, bits)
        codes = np.packbits(stream, axis=1, bitorder="little").reshape(rows, columns).astype(f32)
        scale, low, column = np.split(np.frombuffer(halves, "<f2").astype(f32), [rows, 2 * rows])
        t = (codes * scale[:, None] + low[:, None]) * column
        return t.T if side == "k" else t

    def decode(records, head_dim):
        return rotate(np.hstack([tile(data, min(head_dim, widest)) for data in records]))

    return encode, decode


FORMATS = {
    "mlx8": mlx(8),
    "mlx4": mlx(4),
    "int8_pth": int8_pth(),
    "fp8_e4m3": E4M3,
    "fp8_e5m2": torch_fp8(torch.float8_e5m2),
    "nvfp4": nvfp4(),
    "int4_pth": int4_pth(),
    "turbo4": turbo(4),
    "turbo4:quantile": turbo(4, SHIPPED["turbo4, quantile means"]),
    "turbo4:unbiased": turbo(4, unbiased=True),
    "turbo3": turbo(3),
    "turbo3:unbiased": turbo(3, unbiased=True),
    "turbo2": turbo(2),
    "turbo2:unbiased": turbo(2, unbiased=True),
    "q6_1": asymmetric(6),
    "q6_0": symmetric(6, refit=True),
    "q3_1": asymmetric(3),
    "q3_0": symmetric(3),
    "q2_1": asymmetric(2),
    "q2_0": symmetric(2),
    "fp8_pth": fp8_pth(),
    "turbo3_tcq": tcq(3),
    "turbo2_tcq": tcq(2),
}
# pairs for K and V: KIVI's of rows of 32, KVarN's of (128, head) and records
KIVI = {(f"kivi{bits}", side): kivi(bits, side) for bits in (4, 2) for side in "kv"}
KVARN = {
    (f"kvarn{bits}{options}", side): kvarn(bits, side, 8 if "it8" in options else 16, 512 if "whole" in options else 128)
    for bits in (8, 6, 5, 4, 3, 2)
    for options in ("", ":it8", ":it8:whole", ":whole")
    for side in "kv"
}
# those whose block is a head, and those of 128 elements
HEADS = ["int8_pth", "int4_pth", "fp8_pth"]
WHOLE_HEADS = ["mlx8", "mlx4"]
TURBO = [name for name in FORMATS if name.startswith("turbo")]
