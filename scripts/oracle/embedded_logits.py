#!/usr/bin/env python3
"""Logits of the embedded models by HF transformers in float32 -> tests/fixtures/embedded-logits.json

transformers loads models/NAME by its own from_pretrained, with the bf16 weights widened to float32. It
runs the first 300 ids of corpora/persuasion.txt (with BOS first if the model's tokenizer puts one) in
one pass with eager attention. For some positions the log-sum-exp, the arg-max, the top 8 and 64
evenly spaced logits are stored. `ppl` is over all predictions of the sequence.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
COUNT = 300
# name, positions beside the spread: the edge of gemma's window of 128, of the delta rule's chunk of 64
MODELS = [("gemma4-e2b-mini", [127, 128, 129]), ("qwen3.6-moe-mini", [63, 64])]


def record(folder, extra):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer((ROOT / "corpora/persuasion.txt").read_text(), verbose=False)["input_ids"][:COUNT]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        rows = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
    wide = rows.astype(np.float64)
    lse = wide.max(-1) + np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1))
    nll = lse[:-1] - wide[np.arange(COUNT - 1), ids[1:]]
    positions = []
    for p in sorted({round(p) for p in np.linspace(0, COUNT - 1, 10)} | set(extra)):
        top = np.argsort(-rows[p], kind="stable")[:8]
        sample = np.linspace(0, rows.shape[1] - 1, 64).astype(int)
        positions.append(
            {
                "position": p,
                "lse": float(lse[p]),
                "argmax": int(top[0]),
                "top": [[int(i), float(rows[p, i])] for i in top],
                "sample": [[int(i), float(rows[p, i])] for i in sample],
            }
        )
    return {"ppl": float(np.exp(nll.mean())), "ids": ids, "positions": positions}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/fixtures/embedded-logits.json")
    args = parser.parse_args()
    torch.set_num_threads(1)

    source = f"transformers {version('transformers')}, torch {version('torch')} (CPU, float32, eager attention)"
    lines = ["{", f'  "source": "{source}",', '  "models": {']
    for name, extra in MODELS:
        m = record(args.models / name, extra)
        print(f"{name}: PPL {m['ppl']:.4f} over {COUNT} tokens", flush=True)
        lines += [f'    "{name}": {{', f'      "ppl": {m["ppl"]},', f'      "ids": {json.dumps(m["ids"])},']
        lines += ['      "positions": [', ",\n".join(f"        {json.dumps(p)}" for p in m["positions"]), "      ]", "    },"]
    lines[-1] = "    }"
    args.out.write_text("\n".join(lines) + "\n  }\n}\n")


if __name__ == "__main__":
    main()
