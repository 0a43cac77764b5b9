#!/usr/bin/env python3
"""Writes the weights of a Llama's GGUF as a folder FOLDER in safetensors, by HF transformers.

The converter to GGUF permutes the rows of Q and K, and transformers undoes that when it
reads a GGUF file. So the folder holds the same function with K in another order, and block
codecs see the difference. docs/metrics.md has the numbers that were measured with it.

    venv/bin/pip install accelerate
    venv/bin/python scripts/oracle/llama_folder.py models/real/SmolLM2-135M-Instruct.Q4_1.gguf smollm2
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

gguf, folder = map(Path, sys.argv[1:])
where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
folder.mkdir(parents=True, exist_ok=True)
# save_pretrained refuses a model that was read from GGUF, though its weights are plain numbers by now
tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
config = model.config.to_dict()
config.pop("quantization_config", None)
config["architectures"] = [type(model).__name__]
(folder / "config.json").write_text(json.dumps(config, indent=2))
AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
