#!/usr/bin/env python3
"""A real Llama in the formats of quantized checkpoints: PPL of each folder and of its dequantized twin.

FOLDER is a plain folder, such as `llama_folder.py` writes. `quantized.py` quantizes its weights with the formats' own
packages, as it does for its random Llama. Each quantized folder gets a twin: the weights that the packages dequantize,
in float32 and without a description. KVGATE measures both, with the arguments behind it, and the rows of a table in
docs/models.md come out.

    quantized-venv/bin/python scripts/oracle/quantized_ppl.py FOLDER WORK target/release/kvgate awq gptq
"""

import argparse
import functools
import json
import shutil
import subprocess
from pathlib import Path

import quantized
import torch
from safetensors.torch import load_file, save_file

MEASURE = ["--context", "512", "--chunks", "2", "--corpus", str(quantized.ROOT / "corpora/persuasion.txt")]
# of the variants of a format that quantized.py makes, those that differ in more than packing
LEFT_OUT = {"ct-int4-zeros", "ct-int8-packed", "ct-fp8-blocks", "gptq-v2", "gptq-8"}
LEFT_OUT |= {"mlx-affine-3", "mlx-affine-6", "mlx-mxfp8-8", "mlx-nvfp4-4"}
PER_LAYER = ("k_scale", "v_scale", "output_scale")


def ppl(args, folder):
    """The perplexity of the baseline, all digits."""
    out = args.work / "measured.json"
    command = [args.kvgate, "measure", folder, *MEASURE, "--schemes", "q8_0", "--device", "cpu", "--json", out]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    [model] = json.loads(out.read_text())["measurements"]
    return model["run"]["baseline_ppl"]


def folder_of(args, name, tensors, config, files, metadata="pt"):
    folder = args.work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(args.folder / file, folder)
    for file, content in (files | {"config.json": config}).items():
        (folder / file).write_text(json.dumps(content))
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, folder / "model.safetensors", {"format": metadata})
    return folder


def compare(args, plain, name, config, stored, dequantized, files=None, metadata="pt", run=True):
    """Stands in for `quantized.write`."""
    if name in LEFT_OUT:
        return
    # quantized.py leaves one module plain, in some formats by the end of its name
    config = json.loads(json.dumps(config).replace('"o_proj"', json.dumps(quantized.PLAIN)))
    # scales of the cache for every layer, not for the first alone
    layers = range(args.config["num_hidden_layers"])
    scales = {k: v for k, v in stored.items() if k.endswith(PER_LAYER)}
    stored = stored | {k.replace(".0.", f".{i}."): v for k, v in scales.items() for i in layers}
    own = folder_of(args, name, stored, args.config | config, files or {}, metadata)
    twin = folder_of(args, f"{name}-twin", plain | dequantized, args.config, {})
    here, there = ppl(args, own), ppl(args, twin)
    print(f"| `{name}` | {here:.3f} | {there:.3f} | {abs(here / there - 1):.0e} |", flush=True)
    shutil.rmtree(own)
    shutil.rmtree(twin)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("kvgate")
    parser.add_argument("makers", nargs="*", help="functions of quantized.py; all if none is named")
    args = parser.parse_args()
    args.config = json.loads((args.folder / "config.json").read_text())
    plain = load_file(args.folder / "model.safetensors")
    quantized.LINEAR[:] = [k.removesuffix(".weight") for k in plain if k.endswith("_proj.weight")]
    quantized.random_model = lambda: dict(plain)
    quantized.write = functools.partial(compare, args, plain)
    args.work.mkdir(parents=True, exist_ok=True)
    if not args.makers:
        print(f"| none | {ppl(args, args.folder):.3f} | – | – |", flush=True)
    for maker in quantized.MAKERS:
        # only gpt-oss has a model in MXFP4
        if maker is not quantized.mxfp4 and (not args.makers or maker.__name__ in args.makers):
            torch.manual_seed(11)
            maker()


if __name__ == "__main__":
    main()
