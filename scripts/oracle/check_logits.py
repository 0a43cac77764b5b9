#!/usr/bin/env python3
"""Compare tests/fixtures/logits.json with llama.cpp's own logits.

The weights are first written as an F32 GGUF, because llama.cpp rounds activations to int8
if weights are quantized. The cache is F32, and flash attention is off, because it would round to f16.
"""

import argparse
import ctypes as C
import json
import tempfile
from pathlib import Path

import gguf
import numpy as np

from llama_cpp import Model, Params, declare

ROOT = Path(__file__).resolve().parents[2]


class Batch(C.Structure):
    _fields_ = [
        ("n", C.c_int32),
        ("token", C.POINTER(C.c_int32)),
        ("embd", C.c_void_p),
        ("pos", C.POINTER(C.c_int32)),
        ("n_seq", C.POINTER(C.c_int32)),
        ("seq", C.POINTER(C.POINTER(C.c_int32))),
        ("logits", C.POINTER(C.c_int8)),
    ]


default_params = declare("llama_context_default_params", Params)
init = declare("llama_init_from_model", C.c_void_p, C.c_void_p, Params)
free = declare("llama_free", None, C.c_void_p)
batch_init = declare("llama_batch_init", Batch, C.c_int32, C.c_int32, C.c_int32)
decode = declare("llama_decode", C.c_int32, C.c_void_p, Batch)
logits_ith = declare("llama_get_logits_ith", C.POINTER(C.c_float), C.c_void_p, C.c_int32)
n_tokens = declare("llama_vocab_n_tokens", C.c_int32, C.c_void_p)


def write_f32(source, target, without=None):
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "general.file_type", without):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(weight.astype(np.float32)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def context_params(n):
    """The build's defaults with the fields at these word offsets changed (xllamacpp 2026.10)."""
    params = default_params()
    words = np.ctypeslib.as_array(params.blob).view("<i4")
    found = words[[0, 1, 2, 7, 8, 13, 26, 27]].tolist()
    if found != [512, 2048, 512, 4, 4, -1, 1, 1]:
        raise SystemExit(f"llama_context_params is laid out otherwise in this build: {found}")
    words[[0, 1, 2]] = n  # context, batch, micro-batch
    words[[7, 8]] = 1  # threads
    words[13] = 0  # flash attention off
    words[[26, 27]] = 0  # K and V as F32
    return params


def all_logits(path, ids):
    with Model(path) as model:
        # no longer than needed, because LongRoPE depends on it
        context = init(model.handle, context_params(256 if len(ids) <= 256 else 1024))
        batch = batch_init(len(ids), 0, 1)
        batch.n = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq[i], batch.logits[i] = token, i, 1, 1
            batch.seq[i][0] = 0
        if decode(context, batch) != 0:
            raise SystemExit(f"llama.cpp cannot decode with {path}")
        size = n_tokens(model.vocab)
        for i in range(len(ids)):
            yield np.ctypeslib.as_array(logits_ith(context, i), (size,)).astype(np.float64)
        free(context)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models/real")
    parser.add_argument("--fixture", type=Path, default=ROOT / "tests/fixtures/logits.json")
    args = parser.parse_args()

    for name, ours in json.loads(args.fixture.read_text())["models"].items():
        ids, stored = ours["ids"], {p["position"]: p for p in ours["positions"]}
        nll, worst, same = [], 0.0, 0
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            write_f32(args.models / name, path)
            for i, row in enumerate(all_logits(path, ids)):
                if i + 1 < len(ids):
                    nll.append(row.max() + np.log(np.exp(row - row.max()).sum()) - row[ids[i + 1]])
                if i in stored:
                    here = stored[i]
                    worst = max([worst] + [abs(row[j] - v) for j, v in here["sample"] + here["top"]])
                    same += int(row.argmax()) == here["argmax"]
        print(
            f"{name}: PPL {ours['ppl']:.5f}, llama.cpp {np.exp(np.mean(nll)):.5f}; "
            f"largest difference {worst:.1e}; arg-max equal at {same} of {len(stored)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
