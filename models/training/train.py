#!/usr/bin/env python3
"""Makes the two embedded models. See README.md beside this file.

prepare     fetch the texts, train the tokenizers, write the id streams
train       train one model and save it by save_pretrained
evaluate    perplexity of a saved model and of a 4-gram on the held-out slice and on Persuasion
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specimens import CONTEXT, SPECIALS, build

SEED = 1816


def batch_of(stream, bos, size, generator):
    """Random stretches of the stream, BOS in front where the model has one."""
    text = CONTEXT - (bos is not None)
    starts = torch.randint(len(stream) - text, (size,), generator=generator)
    rows = stream[starts[:, None] + torch.arange(text)]
    if bos is not None:
        rows = torch.cat([torch.full((size, 1), bos), rows], 1)
    return rows


def optimizer_of(model, lr):
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-10, fused=torch.cuda.is_available())


def learning_rate(step, steps, peak, warmup=200):
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def save(model, tokenizer, folder):
    """In bf16, by way of a folder beside it, so that a reader never meets half a checkpoint."""
    fresh = folder.with_name(folder.name + ".new")
    state = {k: v.detach().to("cpu", torch.bfloat16) for k, v in model.state_dict().items()}
    copy = type(model)(model.config).to(torch.bfloat16)
    copy.load_state_dict(state)
    copy.save_pretrained(fresh, save_original_format=False)  # experts fused, as the released checkpoints have them
    tokenizer.save_pretrained(fresh)
    folder.mkdir(parents=True, exist_ok=True)
    for file in fresh.iterdir():
        file.replace(folder / file.name)
    fresh.rmdir()


def train(name, data, out, steps, batch, lr, device, save_every, log_every, limit):
    torch.manual_seed(SEED)
    torch.backends.cuda.matmul.allow_tf32 = True
    meta = json.loads((data / name / "meta.json").read_text())
    stream = torch.from_numpy(np.load(data / name / "train.npy").astype(np.int64))
    held = torch.from_numpy(np.load(data / name / "held-out.npy").astype(np.int64))
    tokenizer = AutoTokenizer.from_pretrained(data / name)
    model = build(name)
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    moe = hasattr(model.config, "num_experts") and model.config.num_experts
    if moe:
        model.config._experts_implementation = "dense"
    model.to(device).train()
    extra = {"output_router_logits": True} if moe else {}
    optimizer = optimizer_of(model, lr)
    generator = torch.Generator().manual_seed(SEED)
    check = batch_of(held, meta["bos"], 32, torch.Generator().manual_seed(1)).to(device)
    start, log = time.time(), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr)
        ids = batch_of(stream, meta["bos"], batch, generator).to(device, non_blocking=True)
        loss = model(input_ids=ids, labels=ids, use_cache=False, **extra).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        last = step + 1 == steps or (limit and time.time() - start > limit)
        if step % log_every == 0 or last:
            model.eval()
            with torch.no_grad():
                probe = torch.stack([model(input_ids=c, labels=c, use_cache=False).loss for c in check.split(8)]).mean()
            model.train()
            log.append((step, round(loss.item(), 4), round(probe.item(), 4), round(time.time() - start, 1)))
            print(name, "step %d loss %.4f held-out %.4f after %.1f s" % log[-1], flush=True)
            if not math.isfinite(log[-1][1]):
                raise SystemExit("the loss is not finite")
        if (step + 1) % save_every == 0 or last:
            save(model, tokenizer, out / name)
            record = {
                "steps": step + 1, "planned": steps, "batch": batch, "lr": lr, "seed": SEED, "log": log,
                "tokens": (step + 1) * batch * CONTEXT, "seconds": round(time.time() - start, 1),
                "device": torch.cuda.get_device_name() if device == "cuda" else "CPU", "torch": torch.__version__,
            }
            (out / f"{name}.train.json").write_text(json.dumps(record))
        if last:
            break


def load(folder):
    """The checkpoint as committed, bf16 weights widened to f32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def windows(ids, bos):
    """Windows of 512 that advance by 256: the second half of each is scored, with at least 255 tokens before it.
    BOS stands in place of a window's first token, as llama.cpp does it."""
    half = CONTEXT // 2
    for start in range(0, len(ids) - CONTEXT + 1, half):
        window = ids[start : start + CONTEXT].astype(np.int64)
        if bos is not None:
            window[0] = bos
        yield start + half, torch.from_numpy(window)


def nll_of_model(model, ids, bos):
    """(positions scored, their negative log likelihoods in nats)"""
    spans = list(windows(ids, bos))
    half, nll = CONTEXT // 2, []
    with torch.no_grad():
        for i in range(0, len(spans), 4):
            rows = torch.stack([row for _, row in spans[i : i + 4]])
            logits = model(input_ids=rows, use_cache=False).logits[:, half - 1 : -1].log_softmax(-1)
            nll.append(-logits.gather(-1, rows[:, half:, None]).flatten())
    positions = np.concatenate([np.arange(at, at + half) for at, _ in spans])
    return positions, torch.cat(nll).numpy().astype(np.float64)


def evaluate(name, data, folder):
    from ngram import KneserNey

    meta = json.loads((data / name / "meta.json").read_text())
    model = load(folder)
    grams = {n: KneserNey(np.load(data / name / "train.npy"), n) for n in (3, 4)}
    for part in ("held-out", "persuasion"):
        ids = np.load(data / name / f"{part}.npy")
        positions, nll = nll_of_model(model, ids, meta["bos"])
        per_byte = len(ids) / meta["bytes"][part] / math.log(2)
        rows = {"model": nll} | {f"{n}-gram": gram.nll(ids)[positions] for n, gram in grams.items()}
        for who, values in rows.items():
            print(
                f"{name}: {part}: {who}: perplexity {math.exp(values.mean()):.2f} per token, "
                f"{values.mean() * per_byte:.3f} bits per byte ({len(values):,} tokens)",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "train", "evaluate"])
    parser.add_argument("name", nargs="?", choices=list(SPECIALS))
    parser.add_argument("--downloads", type=Path, default=Path("downloads"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--limit", type=float, help="the number of seconds after which training stops and saves")
    args = parser.parse_args()
    if args.what == "prepare":
        from text import prepare

        prepare(args.downloads, args.data)
    elif args.name is None:
        parser.error("name a model")
    elif args.what == "train":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        train(
            args.name, args.data, args.out, args.steps, args.batch, args.lr, device,
            args.save_every, args.log_every, args.limit,
        )
    else:
        evaluate(args.name, args.data, args.out / args.name)


if __name__ == "__main__":
    main()
