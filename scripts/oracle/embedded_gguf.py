#!/usr/bin/env python3
"""GGUF of each embedded model by llama.cpp's own converter -> FOLDER/<name>.gguf

With these files llama.cpp computes the models that the gate always runs, so that its KLD can be compared with
kvgate's. The weights are bf16 in models/ and F32 in the files, because llama.cpp would round activations to bf16
beside bf16 weights. Only Qwen's norms, to which the converter adds 1, and the decay of its delta rule, of which it
takes the exponential, are rounded to F32. The converter runs unchanged except for the vocabulary. It knows
tokenizers by what they make of one text, and ours were trained for these models.

--check compares the files with models/: the ids of corpora/persuasion.txt with those of the Python package
tokenizers, and the logits of its first ids with transformers' (float32, eager attention). llama.cpp computes with an
F32 cache and no flash attention. Gemma is also compared with transformers in which llama.cpp's GELU, which rounds to
f16, is put in.

    venv/bin/python scripts/oracle/embedded_gguf.py --llama-cpp xllamacpp-*/thirdparty/llama.cpp FOLDER
    venv/bin/python scripts/oracle/embedded_gguf.py --check FOLDER
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np

from gguf_files import convert, prepare, round_gelu

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["gemma4-e2b-mini", "qwen3.6-moe-mini"]
TEXT = ROOT / "corpora/persuasion.txt"
COUNT = 512
# the pre-tokenizer's name in llama.cpp, and the pattern that it has there
PRE = "qwen2"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make(converter, folder):
    prepare(converter, PRE)
    for name in NAMES:
        model = ROOT / "models" / name
        split, _ = json.loads((model / "tokenizer.json").read_text())["pre_tokenizer"]["pretokenizers"]
        assert split["pattern"]["Regex"] == PATTERN, f"{name} has another pre-tokenizer than {PRE}"
        convert(converter, model, folder / f"{name}.gguf", "f32", mtp=not name.startswith("qwen"))


def logits_of(model, ids):
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().numpy()


def difference(ours, theirs):
    by_position = np.abs(ours - theirs).max(1)
    return f"largest difference {by_position.max():.1e}, median over positions {np.median(by_position):.1e}"


def check(folder):
    import torch
    import transformers
    from check_logits import all_logits
    from llama_cpp import SOURCE, Vocabulary
    from tokenizers import Tokenizer

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    print(f"{SOURCE}; tokenizers {version('tokenizers')}, transformers {version('transformers')}")
    text = TEXT.read_bytes()
    for name in NAMES:
        folder_of_model, file = ROOT / "models" / name, folder / f"{name}.gguf"
        ids = Tokenizer.from_file(str(folder_of_model / "tokenizer.json")).encode(text.decode()).ids
        with Vocabulary(file) as vocabulary:
            same, bos = vocabulary.tokenize(text) == ids, vocabulary.bos
        assert same, f"{name}: llama.cpp makes other ids of {TEXT.name}"
        print(f"{name}: {len(ids)} ids equal, BOS {bos}")
        settings = {"dtype": torch.float32, "attn_implementation": "eager"}
        model = transformers.AutoModelForCausalLM.from_pretrained(folder_of_model, **settings).eval()
        ids = ids[:COUNT]
        ours, theirs = logits_of(model, ids), np.array(list(all_logits(file, ids)))
        print(f"  logits of {COUNT} ids, {ours.min():.1f} to {ours.max():.1f}: {difference(ours, theirs)}", flush=True)
        if "gemma" in name:
            round_gelu(model)
            print(f"  GELU rounded in both: {difference(logits_of(model, ids), theirs)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the files that are there instead of making them")
    parser.add_argument("--llama-cpp", type=Path, help="the folder of llama.cpp's source, which has the converter")
    parser.add_argument("folder", type=Path, help="the folder of the files")
    args = parser.parse_args()
    if args.check:
        check(args.folder)
    elif args.llama_cpp:
        args.folder.mkdir(parents=True, exist_ok=True)
        make(args.llama_cpp.resolve(), args.folder)
    else:
        parser.error("--llama-cpp is needed")


if __name__ == "__main__":
    main()
