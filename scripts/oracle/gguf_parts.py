#!/usr/bin/env python3
"""A model in several GGUF files, as the writer of llama.cpp's converter splits it -> tests/fixtures/gguf-parts

Every tensor and every key is copied from the whole file of the small Llama, which tests compare the parts with.
"""

from pathlib import Path

import gguf

ROOT = Path(__file__).resolve().parents[2]
WHOLE = ROOT / "tests/fixtures/checkpoints/llama/model.gguf"
OUT = ROOT / "tests/fixtures/gguf-parts"


def split(source, target, parts):
    """Splits a GGUF file, and gives the path of the first part."""
    reader = gguf.GGUFReader(source)
    # the writer adds the architecture and the parts' own keys itself
    name = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(target, name, split_max_tensors=-(-len(reader.tensors) // parts))
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
    whole = sorted(target.parent.glob(f"{target.stem}-0*-of-0*.gguf"))
    assert len(whole) == parts, whole
    return whole[0]


def main():
    OUT.mkdir(exist_ok=True)
    split(WHOLE, OUT / "llama.gguf", 3)


if __name__ == "__main__":
    main()
