#!/usr/bin/env python3
"""Moves scale from Q to K without changing what the model computes, so that K becomes hard for a quantizer.

In every layer that owns a KV cache, `k_norm` is multiplied by a power of two at a few RoPE pairs
(i, i + d/2). In every layer that reads that cache, also in those that share it, `q_norm` is divided by
the same power there. Both members of a pair get the same factor, so the scaling commutes with the rotation,
and every single product in q.k stays what it was. The pairs are those where K is largest.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def readers(config):
    """{owner layer: the layers that read its cache}"""
    first_shared = config.num_hidden_layers - config.num_kv_shared_layers
    owners = {i: [i] for i in range(first_shared)}
    for i in range(first_shared, config.num_hidden_layers):
        owner = max(j for j in owners if config.layer_types[j] == config.layer_types[i])
        owners[owner].append(i)
    return owners


def harden(model, scale, count):
    layers = model.model.layers
    chosen = {}
    with torch.no_grad():
        for owner, reading in readers(model.config).items():
            k_norm = layers[owner].self_attn.k_norm.weight
            energy = k_norm.float().square().unflatten(0, (2, -1)).sum(0)
            pairs = energy.argsort(descending=True)[:count]
            both = torch.cat([pairs, pairs + len(energy)])
            k_norm[both] *= scale
            for layer in reading:
                layers[layer].self_attn.q_norm.weight[both] /= scale
            chosen[owner] = sorted(pairs.tolist())
    return chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--scale", type=int, default=8, help="the factor; it must be a power of two, so that bf16 weights stay exact")
    parser.add_argument("--pairs", type=int, default=1, help="the number of RoPE pairs in each layer")
    args = parser.parse_args()
    if args.scale < 1 or args.scale & (args.scale - 1):
        parser.error("--scale must be a power of two")

    model = AutoModelForCausalLM.from_pretrained(args.source, dtype=torch.bfloat16)
    before = AutoModelForCausalLM.from_pretrained(args.source, dtype=torch.float32, attn_implementation="eager")
    for owner, pairs in harden(model, args.scale, args.pairs).items():
        print(f"layer {owner}: K times {args.scale} at pairs {pairs}")
    model.save_pretrained(args.target)
    after = AutoModelForCausalLM.from_pretrained(args.target, dtype=torch.float32, attn_implementation="eager")
    ids = torch.randint(3, model.config.vocab_size, (4, 512), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = before(input_ids=ids).logits, after(input_ids=ids).logits
    print(f"largest difference of a logit, relative to the largest logit: {((a - b).abs().max() / a.abs().max()):.2e}")


if __name__ == "__main__":
    main()
