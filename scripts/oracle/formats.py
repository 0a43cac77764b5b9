"""The codecs that no package has, written out in numpy from their description.

`FORMATS[name]` is a pair (encode, decode): f32 of whole blocks -> bytes, a row a block, and back.
Written for reading, not for speed, and without a look at src/: codes are bit strings here, sums are
float64, and the only arithmetic in float32 is what the formats prescribe.
"""

import numpy as np

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


FORMATS = {
    "q6_1": asymmetric(6),
    "q6_0": symmetric(6, refit=True),
    "q3_1": asymmetric(3),
    "q3_0": symmetric(3),
    "q2_1": asymmetric(2),
    "q2_0": symmetric(2),
}
