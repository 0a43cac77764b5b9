#!/usr/bin/env python3
"""The small checkpoints as MLX's converter writes them -> tests/fixtures/mlx/<name>/{config,logits}.json, *.safetensors

mlx-lm itself loads each folder of tests/fixtures/checkpoints and saves it. What it saves has other names, experts in
stacks by projection, Qwen3.5's norms as 1 + w and its convolution as (C, K, 1), no head if the head is tied, and
no `mtp.*`. gpt-oss's experts keep their codes of MXFP4, as words of MLX's own quantization.

`qwen3_5` is converted to float32, so that 1 + w loses nothing and transformers' logits of the original remain valid.
`qwen3_5-moe` is in bfloat16, as such files are. There 1 + w was rounded, so it has logits of its own, which mlx-lm
computed in float32 on the weights as it stored them. The others hold exactly the weights of the original.

The script prints how far mlx-lm is from what transformers makes of the original, relative to the largest logit. The
distance is large for Gemma 2 and 3, because mlx-lm leaves out windows and the scaling of RoPE for them, and for
gpt-oss, because it does not read the scaling of RoPE from `rope_parameters`.
"""

import argparse
import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy
from mlx.utils import tree_map
from mlx_lm.utils import load_model, save_config, save_model

ROOT = Path(__file__).resolve().parents[2]
FROM = ROOT / "tests/fixtures/checkpoints"
OUT = ROOT / "tests/fixtures/mlx"

NAMES = [
    *["llama", "qwen3-moe", "qwen3_5", "qwen3_5-moe", "gemma2", "gemma3", "gemma4-26b", "gemma4-e2b"],
    *["gpt-oss-mxfp4", "granite-hybrid", "granite-hybrid-moe"],
]
# mlx-lm finds a class by `model_type`: it has none for the text model of Qwen3.5 by itself
SETTINGS = {"qwen3_5": {"model_type": "qwen3_5"}}
# what mlx-lm makes of the description of OpenAI's files
QUANTIZATION = {"gpt-oss-mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}
FLOAT32 = {"qwen3_5"}
ROUNDED = {"qwen3_5-moe"}


def read(name):
    """The configuration, and as older transformers wrote it, which mlx-lm wants of some families."""
    config = json.loads((FROM / name / "config.json").read_text()) | SETTINGS.get(name, {})
    text = config.get("text_config", config)
    older = {"tie_word_embeddings": True, "rope_theta": config.get("rope_parameters", {}).get("rope_theta")} | config
    older["num_experts"] = config.get("num_local_experts", config.get("num_experts"))
    older["vocab_size"] = text["vocab_size"]
    return config, {key: value for key, value in older.items() if value is not None}


def load(name, folder):
    return load_model(folder, model_config=read(name)[1])[0]


def wide_copy(name, folder):
    """The original in float32. mlx-lm adds 1 in the type that it reads, before it converts to another."""
    weights = mx.load(str(FROM / name / "model.safetensors"))
    weights = {key: value.astype(mx.float32) for key, value in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    shutil.copy(FROM / name / "config.json", folder)
    return folder


def widen(model):
    """Widens floats. Codes and their scales are whole numbers and stay as they are."""

    def wide(v):
        return v.astype(mx.float32) if mx.issubdtype(v.dtype, mx.floating) else v

    model.update(tree_map(wide, model.parameters()))


def make(name):
    shutil.rmtree(OUT / name, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        model = load(name, wide_copy(name, Path(folder)) if name in FLOAT32 else FROM / name)
        save_model(OUT / name, model)
    config = read(name)[0]
    if name in QUANTIZATION:
        config |= {"quantization": QUANTIZATION[name], "quantization_config": QUANTIZATION[name]}
    save_config(config, OUT / name / "config.json")

    oracle = json.loads((FROM / name / "logits.json").read_text())
    model = load(name, OUT / name)
    widen(model)
    logits = numpy.array(model(mx.array([oracle["ids"]]))[0])
    rows, worst = [], 0.0
    for row in oracle["positions"]:
        at, before = row["position"], numpy.array(row["logits"])
        worst = max(worst, float(abs(logits[at] - before).max() / abs(before).max()))
        rows.append(f'    {{"position": {at}, "logits": [{", ".join(f"{v:.8g}" for v in logits[at].tolist())}]}}')
    print(f"{name}: {worst:.1e}", flush=True)
    if name in ROUNDED:
        source = f"mlx-lm {version('mlx-lm')}, mlx {version('mlx')} (CPU, float32)"
        lines = ["{", f'  "source": "{source}",', f'  "ids": {json.dumps(oracle["ids"])},', '  "positions": [']
        (OUT / name / "logits.json").write_text("\n".join([*lines, ",\n".join(rows)]) + "\n  ]\n}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="make only these checkpoints")
    args = parser.parse_args()
    mx.set_default_device(mx.cpu)
    for name in args.names or NAMES:
        make(name)


if __name__ == "__main__":
    main()
