"""Turns text into tokens: splits it, trains the tokenizers, and writes streams of ids."""

import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sources import fetch
from specimens import BOS, CONTEXT, EOS, SPECIALS, VOCAB

ROOT = Path(__file__).resolve().parents[2]
# Qwen2's pattern: contractions, words with one leading character, single digits, punctuation, newlines
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PARTS, HELD_OUT = 50, 25  # of every source's 50 equal parts, the one in the middle is held out
OVERLAP = 12  # words


def split(documents):
    """(training documents, held-out text); cut at line ends where there are any."""
    total = sum(map(len, documents))
    low, high = total * HELD_OUT // PARTS, total * (HELD_OUT + 1) // PARTS
    train, held, at = [], [], 0
    for document in documents:
        a, b = (max(0, min(len(document), edge - at)) for edge in (low, high))
        a, b = ((document.find("\n", edge) + 1) or edge if 0 < edge < len(document) else edge for edge in (a, b))
        train += [piece for piece in (document[:a], document[b:]) if piece]
        held += [document[a:b]] if b > a else []
        at += len(document)
    return train, held


def words(text):
    return "".join(c.lower() if c.isalnum() else " " for c in text).split()


def shingles(text):
    w = words(text)
    return {hash(tuple(w[i : i + OVERLAP])) for i in range(len(w) - OVERLAP + 1)}


def check_overlap(train):
    """Nothing of corpora/ may be in the training text: runs of 12 words that both have."""
    seen = shingles("\n".join(train))
    report = {}
    for path in sorted((ROOT / "corpora").glob("*.txt")):
        mine = shingles(path.read_text())
        report[path.name] = len(mine & seen)
        print(f"  {path.name}: {report[path.name]} of {len(mine)} runs of {OVERLAP} words are in the training text")
        if report[path.name] > len(mine) / 1000:
            raise SystemExit(f"{path.name} is in the training text")


def train_tokenizer(train, name):
    specials = SPECIALS[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[AddedToken(s, special=True, normalized=False) for s in specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(train, trainer)
    assert tokenizer.get_vocab_size() == VOCAB
    bos = BOS[name]
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    named = {"eos_token": EOS[name], "pad_token": specials[0]} | ({"bos_token": bos} if bos else {})
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        add_bos_token=bool(bos),
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
        **named,
    )


def ids_of(tokenizer, documents):
    """One stream of ids, an end-of-text token after each document, no BOS."""
    end = [tokenizer.eos_token_id]
    encoded = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
    return np.concatenate([np.array(ids + end, dtype=np.uint16) for ids in encoded])


def prepare(downloads, out):
    """Tokenizers and id streams of both models under `out`."""
    train, held = [], []
    for source, documents in fetch(downloads):
        t, h = split(documents)
        print(f"{source.name}: {sum(map(len, t)):,} characters to train on, {sum(map(len, h)):,} held out")
        train += t
        held += h
    check_overlap(train)
    for name in SPECIALS:
        folder = out / name
        tokenizer = train_tokenizer(train, name)
        tokenizer.save_pretrained(folder)
        persuasion = (ROOT / "corpora/persuasion.txt").read_text()
        meta = {"bos": tokenizer.bos_token_id, "bytes": {}}
        for part, documents in {"train": train, "held-out": held, "persuasion": [persuasion]}.items():
            ids = ids_of(tokenizer, documents)
            np.save(folder / f"{part}.npy", ids)
            meta["bytes"][part] = sum(len(d.encode()) for d in documents)
            print(f"{name}: {part}: {len(ids):,} tokens, {meta['bytes'][part]:,} bytes")
        (folder / "meta.json").write_text(json.dumps(meta, indent=1))
