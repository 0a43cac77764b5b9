#!/usr/bin/env python3
"""A model in several GGUF files, as the writer of llama.cpp's converter splits it -> tests/fixtures/gguf-parts

Every tensor and every key is copied from the whole file of the small Llama, which tests compare the parts with.
"""

from pathlib import Path

import gguf

ROOT = Path(__file__).resolve().parents[2]
WHOLE = ROOT / "tests/fixtures/checkpoints/llama/model.gguf"
OUT = ROOT / "tests/fixtures/gguf-parts"


def main():
    reader = gguf.GGUFReader(WHOLE)
    tensors = len(reader.tensors)
    # the writer adds the architecture and the parts' own keys itself
    OUT.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(OUT / "llama.gguf", "llama", split_max_tensors=tensors // 3 + 1)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == gguf.Keys.General.ARCHITECTURE:
            continue
        kind = field.types[0]
        item = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, item)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
