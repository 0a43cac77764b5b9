#!/usr/bin/env python3
"""GGUF of each checkpoint by llama.cpp's own converter -> tests/fixtures/checkpoints/<name>/model.gguf

The converter runs unchanged except for the vocabulary. It refuses tokenizers that it does not
know, and wants SentencePiece's for Gemma; this script gives each model the shared byte-level BPE as "gpt2".

--check compares the files with the stored logits. llama.cpp computes with weights that were first written as F32
(beside bfloat16 weights it would round activations to bfloat16), an F32 cache, and no flash
attention. Gemma is also compared with transformers in which llama.cpp's GELU, which rounds to f16, is put in.
"""

import argparse
import json
import logging
import math
import runpy
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/fixtures/checkpoints"
# llama.cpp has experts in every layer of a qwen3moe or in none
SKIPPED = {"qwen3-moe-mixed"}


def prepare(converter, pre):
    """Loads llama.cpp's converter, and gives every model the vocabulary "gpt2" with the pre-tokenizer `pre`."""
    sys.path[:0] = [str(converter), str(converter / "gguf-py")]
    import transformers
    from conversion import base, gemma, glm, phi

    # by config.json's model_type the automatic choice is a class that adds tokens of its own
    transformers.AutoTokenizer = transformers.PreTrainedTokenizerFast

    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    base.TextModel._set_vocab_sentencepiece = gemma.Gemma4Model.set_vocab = lambda self: self._set_vocab_gpt2()
    for kind in (glm.Glm4Model, glm.Glm4MoeModel, phi.Phi3MiniModel):
        kind.set_vocab = lambda self: self._set_vocab_gpt2()


def convert(converter, folder, file, weights, mtp=True):
    # a name that says nothing of the folder's path goes into the metadata
    args = [str(folder), "--outtype", weights, "--outfile", str(file), "--model-name", folder.name]
    # without --no-mtp it looks for the head that predicts a second token in every Qwen3.5
    sys.argv = ["convert_hf_to_gguf.py", *args, *([] if mtp else ["--no-mtp"])]
    runpy.run_path(str(converter / "convert_hf_to_gguf.py"), run_name="__main__")


def round_gelu(model):
    """Puts llama.cpp's GELU of the CPU, which rounds to f16, into a model of transformers."""
    import torch

    class Gelu(torch.nn.Module):
        def forward(self, x):
            y = x.half().float()
            y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * y * (1 + 0.044715 * y * y)))
            return y.half().float().where(x < 10, x).where(x > -10, 0.0)

    for module in model.modules():
        if hasattr(module, "act_fn"):
            module.act_fn = Gelu()


def logits_with_rounded_gelu(name, ids):
    import checkpoints

    checkpoints.hf.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    model = checkpoints.load(name, **checkpoints.GGUF_SETTINGS.get(name, {}))
    round_gelu(model)
    return checkpoints.logits_of(model, ids).double().numpy()


def check(names):
    from check_logits import all_logits, write_f32

    for name in names:
        folder = OUT / name
        path = folder / "logits-gguf.json"
        stored = json.loads((path if path.exists() else folder / "logits.json").read_text())
        positions = [p["position"] for p in stored["positions"]]
        ours = np.array([p["logits"] for p in stored["positions"]])
        with tempfile.TemporaryDirectory() as scratch:
            write_f32(folder / "model.gguf", Path(scratch) / "f32.gguf")
            everywhere = np.array(list(all_logits(Path(scratch) / "f32.gguf", stored["ids"])))
        theirs = everywhere[positions]
        difference = np.abs(ours - theirs).max() / np.abs(ours).max()
        same = int((ours.argmax(1) == theirs.argmax(1)).sum())
        line = f"{name}: llama.cpp {difference:.1e}, arg-max equal at {same} of {len(ours)}"
        if "gemma" in name:
            rounded = logits_with_rounded_gelu(name, stored["ids"])
            by_position = np.abs(rounded - everywhere).max(1) / np.abs(rounded).max()
            line += f"; GELU rounded in both: largest {by_position.max():.1e}, median {np.median(by_position):.1e}"
        print(line, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check what is stored instead of making it anew")
    parser.add_argument("--llama-cpp", type=Path, help="the folder of llama.cpp's source, which has the converter")
    parser.add_argument("names", nargs="*", help="make or check only these checkpoints")
    args = parser.parse_args()
    names = args.names or sorted(p.name for p in OUT.iterdir() if p.name not in SKIPPED)
    if args.check:
        check(names)
    elif args.llama_cpp:
        converter = args.llama_cpp.resolve()
        prepare(converter, "gpt-2")
        for name in names:
            convert(converter, OUT / name, OUT / name / "model.gguf", "bf16", mtp=name != "qwen3_5")
    else:
        parser.error("--llama-cpp is needed")


if __name__ == "__main__":
    main()
