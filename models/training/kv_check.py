#!/usr/bin/env python3
"""What a quantized KV cache does to the embedded models: mean KL divergence, in PyTorch.

The script replaces the update of the cache. K (after norm and RoPE) and V go through llama.cpp's codec and
Hadamard rotation (docs/schemes.md) and come back in f32. So every token reads quantized K
and V, including its own; layers that share KV read their owner's. In chunks of 512 tokens, the next-token
distributions of the second halves are compared with those of the exact cache.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, DynamicCache

from specimens import CONTEXT, SPECIALS
from train import load

ROOT = Path(__file__).resolve().parents[2]
SCHEMES = ["f16", "q8_0", "q8_0/q4_0", "q5_1", "q4_0", "q4_0/q8_0", "q4_0:norot"]
GATE = ["prose", "dialogue", "code", "tools", "argument", "scripts"]  # the models have never seen the scripts of the last
BLOCK = 32


def half(x):
    return x.half().float()


def inverse(d):
    return torch.where(d == 0, torch.zeros_like(d), 1 / d)


def q8_0(x):
    d = x.abs().amax(-1, keepdim=True) / 127
    scaled = x * inverse(d)
    return torch.sign(scaled) * torch.floor(scaled.abs() + 0.5) * half(d)


def q4_0(x):
    extreme = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    d = extreme / -8
    return (torch.clamp(torch.trunc(x * inverse(d) + 8.5), max=15) - 8) * half(d)


def q5_1(x):
    low = x.amin(-1, keepdim=True)
    d = (x.amax(-1, keepdim=True) - low) / 31
    return torch.trunc((x - low) * inverse(d) + 0.5) * half(d) + half(low)


def rotate(x, size):
    """Hadamard in natural order, orthonormal: its own inverse."""
    shape, x = x.shape, x.reshape(-1, size) / size**0.5
    step = 1
    while step < size:
        a, b = x.reshape(-1, size // (2 * step), 2, step).unbind(2)
        x = torch.stack([a + b, a - b], 2).reshape(-1, size)
        step *= 2
    return x.reshape(shape)


def rotation_of(head, is_key):
    if head % 64:
        return None
    size = 64
    while is_key and head % (2 * size) == 0:
        size *= 2
    return size


def through(side, x, is_key):
    codec, _, option = side.partition(":")
    if codec == "f16":
        return half(x)
    size = None if option == "norot" else rotation_of(x.shape[-1], is_key)
    x = rotate(x, size) if size else x
    x = {"q8_0": q8_0, "q5_1": q5_1, "q4_0": q4_0}[codec](x.unflatten(-1, (-1, BLOCK))).flatten(-2)
    return rotate(x, size) if size else x


class LossyCache(DynamicCache):
    def __init__(self, config, scheme):
        super().__init__(config=config)
        self.key_side, _, value_side = scheme.partition("/")
        self.value_side = value_side or self.key_side

    def update(self, keys, values, *args, **kwargs):
        keys, values = through(self.key_side, keys, True), through(self.value_side, values, False)
        return super().update(keys, values, *args, **kwargs)


def chunks_of(tokenizer, paths, count):
    """`count` chunks, shared out evenly over the texts, from their starts; BOS stands in place of a
    chunk's first token."""
    rows = []
    for i, path in enumerate(paths):
        ids = tokenizer(path.read_text(), add_special_tokens=False, verbose=False)["input_ids"]
        wanted = count // len(paths) + (i < count % len(paths))
        rows += [ids[k * CONTEXT : (k + 1) * CONTEXT] for k in range(min(wanted, len(ids) // CONTEXT))]
    rows = torch.tensor(rows)
    if tokenizer.bos_token_id is not None:
        rows[:, 0] = tokenizer.bos_token_id
    return rows


def log_probabilities(model, rows, scheme=None):
    for row in rows.split(4):
        cache = LossyCache(model.config, scheme) if scheme else DynamicCache(config=model.config)
        with torch.no_grad():
            logits = model(input_ids=row, cache=cache, use_cache=True).logits[:, CONTEXT // 2 : -1]
        yield logits.double().log_softmax(-1)


def divergence(exact, model, rows, scheme):
    kld, same = [], []
    for p, q in zip(exact, log_probabilities(model, rows, scheme)):
        kld.append((p.exp() * (p - q)).sum(-1).flatten())
        same.append((p.argmax(-1) == q.argmax(-1)).double().flatten())
    kld = torch.cat(kld)
    return kld.mean().item(), kld.quantile(0.99).item(), torch.cat(same).mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--chunks", type=int, default=12, help="the number of chunks of each table")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--each", action="store_true", help="also measure each of the gate's texts by itself")
    parser.add_argument("names", nargs="*", default=list(SPECIALS))
    args = parser.parse_args()
    gate = [ROOT / f"corpora/{c}.txt" for c in GATE]
    texts = {"persuasion": [ROOT / "corpora/persuasion.txt"], "gate without scripts": gate[:-1], "gate": gate}
    if args.each:
        texts |= {path.stem: [path] for path in gate}
    for name in args.names:
        model, tokenizer = load(args.models / name), AutoTokenizer.from_pretrained(args.models / name)
        for text, paths in texts.items():
            rows = chunks_of(tokenizer, paths, args.chunks)
            exact = list(log_probabilities(model, rows))
            truth = rows[:, CONTEXT // 2 + 1 :, None]
            nll = [-p.gather(-1, t) for p, t in zip(exact, truth.split(4))]
            print(f"{name}, {text}, {len(rows)} chunks, perplexity {torch.cat(nll).mean().exp():.2f}", flush=True)
            print("| scheme | mean KLD | p99 KLD | same top 1 |\n|---|---:|---:|---:|")
            for scheme in args.schemes:
                mean, p99, same = divergence(exact, model, rows, scheme)
                print(f"| `{scheme}` | {mean:.5f} | {p99:.4f} | {100 * same:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
