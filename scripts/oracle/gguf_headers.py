"""GGUF files that are sound or damaged in one place, with what llama.cpp and gguf say of each.

usage: gguf_headers.py [--check]

The script writes tests/fixtures/hostile/gguf/*.gguf and tests/fixtures/hostile/gguf.json. In the latter `types` is the
table of llama.cpp's types, and `files` says of each file whether llama.cpp's reader and that of the Python package
`gguf` accept it. With --check nothing is written, and the files must equal those that are there.
"""

import ctypes as C
import json
import os
import resource
import signal
import struct
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import gguf
from gguf import GGMLQuantizationType, GGUFReader
from gguf.constants import GGML_QUANT_SIZES

import llama_cpp

FIXTURES = Path(__file__).parents[2] / "tests/fixtures/hostile"
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
PACKED = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}


def text(value, order="<"):
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack(order + "Q", len(value)) + value


def encoded(kind, value, order="<"):
    """A value without its type. Those of arrays are (type, entries) or (type, entries, count)."""
    if kind == STRING:
        return text(value, order)
    if kind == ARRAY:
        of, entries, *count = value
        head = struct.pack(order + "IQ", of, count[0] if count else len(entries))
        return head + b"".join(encoded(of, entry, order) for entry in entries)
    return struct.pack(order + PACKED.get(kind, "I"), value)


def padded(size, alignment):
    return -(-size // alignment) * alignment


KEYS = [
    ("general.architecture", STRING, "llama"),
    ("llama.block_count", U32, 1),
    ("llama.rope.freq_base", F32, 10000.0),
    ("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "b", "ab"])),
    ("tokenizer.ggml.add_bos_token", BOOL, 0),
]
# name, dimensions from the innermost on, type, bytes
TENSORS = [
    ("a.weight", [4], 0, 16),
    ("b.weight", [32, 2], 8, 68),
    ("c.weight", [8], 1, 16),
    ("d.weight", [8], 1, 16),
]


def file(
    keys=KEYS, tensors=TENSORS, alignment=32, magic=b"GGUF", version=3, offsets=None, order="<", counts=(0, 0), pad=True, cut=0
):
    """A file. `offsets` maps numbers of tensors to offsets that are written instead of theirs, `counts` is added
    to the numbers of tensors and keys."""
    head = magic + struct.pack(order + "IQQ", version, len(tensors) + counts[0], len(keys) + counts[1])
    for key, kind, value in keys:
        head += text(key, order) + struct.pack(order + "I", kind) + encoded(kind, value, order)
    offset, data = 0, b""
    for number, (name, shape, kind, size) in enumerate(tensors):
        written = (offsets or {}).get(number, offset)
        head += text(name, order) + struct.pack(f"{order}I{len(shape)}QIQ", len(shape), *shape, kind, written)
        size = min(size, 4096)
        data += bytes([number + 1]) * size
        if pad or number + 1 < len(tensors):
            data += bytes(padded(size, alignment) - size)
        offset = len(data)
    whole = head + bytes(padded(len(head), alignment) - len(head)) + data
    return whole[: len(whole) - cut] if cut >= 0 else whole + bytes(-cut)


def with_key(key, kind, value):
    return KEYS + [(key, kind, value)]


def with_tensor(number, *tensor):
    return [tensor if at == number else old for at, old in enumerate(TENSORS)]


ALIGNMENT = "general.alignment"
WIDE = [("a.weight", [16], 0, 64), ("b.weight", [32, 8], 0, 1024), ("c.weight", [32], 1, 64)]
NESTED = (ARRAY, [(ARRAY, [(ARRAY, [(ARRAY, [(U8, [1])])])])])

FILES = {
    "sound": file(),
    "sound-v2": file(version=2),
    "sound-unpadded": file(pad=False),
    "sound-8": file(with_key(ALIGNMENT, U32, 8), alignment=8),
    "sound-1": file(with_key(ALIGNMENT, U32, 1), alignment=1),
    "sound-no-tensors": file(tensors=[]),
    "sound-terminated": file(with_key("general.name", STRING, "x\0")),
    "sound-foreign-text": file(with_key("quantize.imatrix.file", STRING, b"C:\\Jos\xe9\\x.dat")),
    "sound-alignment-64": file(with_key(ALIGNMENT, U32, 64), WIDE, alignment=64),
    "magic": file(magic=b"GGUX"),
    "magic-backwards": file(magic=b"FUGG"),
    "big-endian": file(order=">"),
    "version-0": file(version=0),
    "version-1": file(version=1),
    "version-4": file(version=4),
    "key-twice": file(with_key("llama.rope.freq_base", F32, 500000.0)),
    "key-twice-terminated": file(with_key("llama.rope.freq_base\0", F32, 500000.0)),
    "key-empty": file(with_key("", U32, 1)),
    "key-no-utf8": file(with_key(b"llama.\xff", U32, 1)),
    "key-nul": file(with_key("llama.rope.freq_base\0x", F32, 500000.0)),
    "tensor-twice": file(tensors=with_tensor(3, "c.weight", [8], 1, 16)),
    "tensor-no-utf8": file(tensors=with_tensor(3, b"\xff.weight", [8], 1, 16)),
    "tensor-nul": file(tensors=with_tensor(3, "c.weight\0x", [8], 1, 16)),
    "alignment-0": file(with_key(ALIGNMENT, U32, 0)),
    "alignment-24": file(with_key(ALIGNMENT, U32, 24), alignment=24),
    "alignment-u8": file(with_key(ALIGNMENT, U8, 32)),
    "alignment-u64": file(with_key(ALIGNMENT, U64, 64), alignment=64),
    "alignment-i32": file(with_key(ALIGNMENT, I32, 32)),
    "alignment-text": file(with_key(ALIGNMENT, STRING, "32")),
    # an alignment that is not the one that the data was laid out with: all offsets are multiples of both
    "alignment-larger": file(with_key(ALIGNMENT, U32, 64), WIDE, alignment=32),
    "alignment-smaller": file(with_key(ALIGNMENT, U32, 32), WIDE, alignment=64),
    "overlap": file(offsets={2: 64}),
    "same-place": file(offsets={3: 128}),
    "swapped": file(offsets={2: 160, 3: 128}),
    "hole": file(offsets={3: 192}) + bytes(32),
    "unaligned": file(offsets={1: 16}),
    "first-not-at-0": file(offsets={0: 32, 1: 64, 2: 160, 3: 192}) + bytes(32),
    "offset-overflows": file(offsets={3: 2**64 - 16}),
    "truncated": file(cut=40),
    "truncated-header": file()[:300],
    "truncated-magic": b"GGUF\x03",
    "dimensions-overflow": file(tensors=with_tensor(3, "d.weight", [2**32, 2**32, 2], 1, 16)),
    "dimensions-wrap-to-nothing": file(tensors=with_tensor(3, "d.weight", [4, 2**30 - 1, 2**30 + 1], 0, 16)),
    "dimensions-negative": file(tensors=with_tensor(3, "d.weight", [2**63 + 8], 1, 16)),
    "dimensions-5": file(tensors=with_tensor(3, "d.weight", [8, 1, 1, 1, 1], 1, 16)),
    "dimensions-none": file(tensors=with_tensor(3, "d.weight", [], 0, 4)),
    "rows-no-blocks": file(tensors=with_tensor(1, "b.weight", [16, 4], 8, 68)),
    "type-99": file(tensors=with_tensor(3, "d.weight", [8], 99, 16)),
    "type-removed": file(tensors=with_tensor(1, "b.weight", [32, 2], 31, 36)),
    "type-unread": file(tensors=with_tensor(1, "b.weight", [256], 15, 292)),
    "part": file(with_key("split.count", U16, 3)),
    "adapter": file(with_key("general.type", STRING, "adapter")),
    "blocks-3": file(with_key("general.quantization_version", U32, 3)),
    "trailing": file(cut=-1),
    "trailing-32": file(cut=-32),
    "tensors-fewer": file(counts=(-1, 0)),
    "tensors-more": file(counts=(1, 0)),
    "tensors-absurd": file(counts=(2**62, 0)),
    "keys-fewer": file(counts=(0, -1)),
    "keys-more": file(counts=(0, 1)),
    "keys-absurd": file(counts=(0, 2**62)),
    "token-no-utf8": file(with_key("tokenizer.ggml.merges", ARRAY, (STRING, ["a", b"\xff\xfe"]))),
    "flag-2": file(with_key("general.flag", BOOL, 2)),
    "value-type-13": file(with_key("general.new", 13, 1)),
    "text-absurd": file(with_key("general.name", STRING, "x")).replace(text("x"), struct.pack("<Q", 2**40) + b"x"),
    "array-absurd": file(with_key("general.list", ARRAY, (U8, [1], 2**60))),
    "array-of-texts-absurd": file(with_key("general.list", ARRAY, (STRING, ["x"], 2**61))),
    "array-type-13": file(with_key("general.list", ARRAY, (13, [1]))),
    "arrays-nested": file(with_key("general.list", ARRAY, (ARRAY, [(U8, [1])]))),
    "arrays-nested-deeply": file(with_key("general.list", ARRAY, NESTED)),
}


class Params(C.Structure):
    _fields_ = [("no_alloc", C.c_bool), ("ctx", C.POINTER(C.c_void_p))]


def in_a_child(accepts, path):
    """Whether a reader accepts a file. It may run into an assertion, all memory or the end of days."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(5)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            os._exit(0 if accepts(path) else 1)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def llama_cpp_accepts(path):
    """llama.cpp, with the data read as well."""
    context = C.c_void_p()
    read = llama_cpp.declare("gguf_init_from_file", C.c_void_p, C.c_char_p, Params)
    return bool(read(str(path).encode(), Params(False, C.pointer(context))))


def gguf_accepts(path):
    for field in GGUFReader(path).fields.values():
        field.contents()
    return True


def types():
    name = llama_cpp.declare("ggml_type_name", C.c_char_p, C.c_int)
    block = llama_cpp.declare("ggml_blck_size", C.c_int64, C.c_int)
    size = llama_cpp.declare("ggml_type_size", C.c_size_t, C.c_int)
    found = []
    for code in range(64):
        # the table ends with the last type of this build; what lies behind it is not read
        if code > 42 or not block(code):
            continue
        found.append({"code": code, "name": name(code).decode().upper(), "block": block(code), "bytes": size(code)})
    # Q8_1, which no file holds, has two floats in gguf's table and two halves in llama.cpp
    theirs = {(int(t), *GGML_QUANT_SIZES[t]) for t in GGMLQuantizationType if t.name != "Q8_1"}
    assert theirs <= {(t["code"], t["block"], t["bytes"]) for t in found}
    names = {int(t): t.name for t in GGMLQuantizationType}
    for one in found:
        one["name"] = names.get(one["code"], one["name"])
    return found


def main():
    # else the two alignments of these have the same beginning of the data
    heads = [len(file(with_key(ALIGNMENT, U32, 32), WIDE, alignment=alignment)) for alignment in (32, 64)]
    assert heads[0] != heads[1]
    check = "--check" in sys.argv
    verdicts = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, content in FILES.items():
            path = Path(folder) / "x.gguf"
            path.write_bytes(content)
            verdicts[name] = {"llama_cpp": in_a_child(llama_cpp_accepts, path), "gguf": in_a_child(gguf_accepts, path)}
    oracle = {
        "source": f"{llama_cpp.SOURCE}; gguf {version('gguf')}",
        "types": types(),
        "files": verdicts,
    }
    lines = json.dumps(oracle, indent=1) + "\n"
    written = {FIXTURES / f"gguf/{name}.gguf": content for name, content in FILES.items()}
    written[FIXTURES / "gguf.json"] = lines.encode()
    for path, content in written.items():
        if check:
            assert path.read_bytes() == content, path
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    print(len(FILES), "files")


main()
