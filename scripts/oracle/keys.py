#!/usr/bin/env python3
"""Logits of checkpoints that lack a key for which the reference takes a default -> tests/fixtures/keys.json

The cases are the lines of tests/fixtures/keys.txt that say `default`. For each, the key is removed from
config.json for transformers, and from the GGUF's metadata for llama.cpp (with weights written as F32 first).
"""

import json
import logging
import re
import shutil
import tempfile
from pathlib import Path

import checkpoints
from check_logits import all_logits, write_f32
from llama_cpp import SOURCE

ROOT = Path(__file__).resolve().parents[2]
LIST = ROOT / "tests/fixtures/keys.txt"
FIXTURE = ROOT / "tests/fixtures/keys.json"


def cases():
    """Name, format and key of every default."""
    name = kind = defaults = None
    for line in LIST.read_text().splitlines():
        if heading := re.fullmatch(r"# (\S+) (gguf|config\.json) (.*)", line):
            name, kind, edit = heading.groups()
        elif line.startswith("    "):
            if defaults and edit == "without":
                yield from ((name, kind, key) for key in line.split())
        else:
            defaults = line.startswith("default")


def by_transformers(folder, key, ids):
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / folder.name
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.gguf"))
        config = json.loads((copy / "config.json").read_text())
        *path, last = key.split(".")
        place = config
        for member in path:
            place = place[member]
        del place[last]
        (copy / "config.json").write_text(json.dumps(config))
        checkpoints.OUT, kept = copy.parent, checkpoints.OUT
        try:
            return checkpoints.logits_of(checkpoints.load(folder.name), ids).double().tolist()
        finally:
            checkpoints.OUT = kept


def by_llama_cpp(folder, key, ids):
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "f32.gguf"
        write_f32(folder / "model.gguf", path, without=key)
        return [row.tolist() for row in all_logits(path, ids)]


def main():
    checkpoints.hf.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    lines = []
    for name, kind, key in cases():
        folder = checkpoints.OUT / name
        stored = json.loads((folder / "logits.json").read_text())
        reference = by_transformers if kind == "config.json" else by_llama_cpp
        logits = reference(folder, key, stored["ids"])
        # the first position and the last one; what a window or RoPE changes is in the last
        rows = {p: [float(f"{v:.7g}") for v in logits[p]] for p in (0, len(logits) - 1)}
        rows = ", ".join(f'{{"position": {p}, "logits": {json.dumps(row)}}}' for p, row in rows.items())
        lines.append(f'    {{"name": "{name}", "format": "{kind}", "key": "{key}", "positions": [{rows}]}}')
        print(name, kind, key, flush=True)
    source = f"transformers {checkpoints.version('transformers')}, torch {checkpoints.version('torch')}; {SOURCE}"
    FIXTURE.write_text(f'{{\n  "source": "{source}",\n  "cases": [\n' + ",\n".join(lines) + "\n  ]\n}\n")


if __name__ == "__main__":
    main()
