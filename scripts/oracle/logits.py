#!/usr/bin/env python3
"""Logits by HF transformers in float32 on dequantized weights -> tests/fixtures/logits.json

The script builds configuration and state dict from the GGUF's metadata and tensors (dequantized by
gguf's numpy code), and does not use transformers' own GGUF loader, so that nothing is guessed. The
q and k rows of llama are put back in half-split order, the 1 that gemma's converter adds
to norm weights is subtracted, and the file's own head is used if it has one.

The ids are the first ones of corpora/persuasion.txt by llama.cpp's tokenizer. For some positions the
log-sum-exp, the arg-max, the top 8 and 64 evenly spaced logits are stored. `ppl` is over
all predictions of the sequence.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen2Config

from llama_cpp import SOURCE, Model

ROOT = Path(__file__).resolve().parents[2]

# file, number of tokens (gemma's must cross its window of 512), positions beside the spread
MODELS = [
    ("SmolLM2-135M-Instruct.Q4_1.gguf", 600, []),
    ("gemma-3-270m-q4_k_m.gguf", 700, [510, 511, 512, 513]),
    ("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", 600, []),
]

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORM_NAMES = {
    "gemma3": {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    "llama": {"ffn_norm": "post_attention_layernorm"},
    "qwen2": {"ffn_norm": "post_attention_layernorm"},
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def config_of(arch, field, tensors):
    common = dict(
        vocab_size=int(tensors["token_embd.weight"].shape[-1]),  # ggml order: columns first
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        max_position_embeddings=field("context_length"),
        tie_word_embeddings="output.weight" not in tensors,
    )
    theta = {"rope_type": "default", "rope_theta": field("rope.freq_base")}
    if arch == "llama":
        return LlamaConfig(rope_parameters=theta, **common)
    if arch == "qwen2":
        return Qwen2Config(rope_parameters=theta, use_sliding_window=False, **common)
    return Gemma3TextConfig(
        head_dim=field("attention.key_length"),
        query_pre_attn_scalar=field("attention.key_length"),
        sliding_window=field("attention.sliding_window"),
        layer_types=[
            "full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(common["num_hidden_layers"])
        ],
        rope_parameters={
            "full_attention": theta,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        **common,
    )


def half_split(weight, heads):
    """Rows of each head from adjacent pairs (GGUF's llama) to half-split (transformers)."""
    rows = weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1)
    return rows.swapaxes(1, 2).reshape(weight.shape)


def state_dict(arch, config, tensors):
    state = {}
    for name, tensor in tensors.items():
        stem, kind = name.rsplit(".", 1)
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            target = f"model.layers.{layer}.{(LAYER_NAMES | NORM_NAMES[arch])[part]}.{kind}"
        else:
            part, target = stem, f"{TOP_NAMES[stem]}.{kind}"
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if arch == "llama" and part in ("attn_q", "attn_k"):
            weight = half_split(weight, config.num_attention_heads if part == "attn_q" else config.num_key_value_heads)
        if arch == "gemma3" and part.endswith("norm"):
            weight = weight - np.float32(1)
        state[target] = torch.from_numpy(np.ascontiguousarray(weight))
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state


def load(path):
    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    tensors = {t.name: t for t in reader.tensors}
    config = config_of(arch, lambda key: reader.fields[f"{arch}.{key}"].contents(), tensors)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    model.load_state_dict(state_dict(arch, config, tensors), strict=True)
    return model.eval()


def logits_of(model, ids):
    """All logits, row by row in blocks, so that only a block is ever held."""
    hidden = model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    for start in range(0, len(ids), 50):
        yield from model.lm_head(hidden[start : start + 50]).numpy()


def record(path, count, extra):
    with Model(path) as tokenizer:
        ids = tokenizer.tokenize((ROOT / "corpora/persuasion.txt").read_bytes())[:count]
    spread = {round(p) for p in np.linspace(0, count - 1, 12)} | set(extra)
    positions, nll = [], []
    with torch.no_grad():
        for p, row in enumerate(logits_of(load(path), ids)):
            wide = row.astype(np.float64)
            lse = float(wide.max() + np.log(np.exp(wide - wide.max()).sum()))
            if p + 1 < count:
                nll.append(lse - wide[ids[p + 1]])
            if p in spread:
                top = np.argsort(-row, kind="stable")[:8]
                sample = np.linspace(0, len(row) - 1, 64).astype(int)
                positions.append(
                    {
                        "position": p,
                        "lse": lse,
                        "argmax": int(top[0]),
                        "top": [[int(i), float(row[i])] for i in top],
                        "sample": [[int(i), float(row[i])] for i in sample],
                    }
                )
    return {"ppl": float(np.exp(np.mean(nll))), "ids": ids, "positions": positions}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models/real")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/fixtures/logits.json")
    args = parser.parse_args()
    torch.set_num_threads(1)

    source = f"transformers {version('transformers')}, torch {version('torch')} (CPU, float32, eager attention), "
    source += f"gguf {version('gguf')}; ids: {SOURCE}"
    lines = ["{", f'  "source": "{source}",', '  "models": {']
    for name, count, extra in MODELS:
        m = record(args.models / name, count, extra)
        print(f"{name}: PPL {m['ppl']:.4f} over {count} tokens", flush=True)
        lines += [f'    "{name}": {{', f'      "ppl": {m["ppl"]},', f'      "ids": {json.dumps(m["ids"])},']
        lines += ['      "positions": [', ",\n".join(f"        {json.dumps(p)}" for p in m["positions"]), "      ]", "    },"]
    lines[-1] = "    }"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n  }\n}\n")


if __name__ == "__main__":
    main()
