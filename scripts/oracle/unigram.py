#!/usr/bin/env python3
"""The perplexity of an add-one unigram model of a corpus, for docs/metrics.md and tests/engine/embedded.rs.

The model is fitted on all tokens of corpora/persuasion.txt, with the tokenizer of each model in models/. It is
scored on the tokens that the second half of each of the first 12 chunks of 512 predicts.
"""

import json
import math
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
CONTEXT, CHUNKS = 512, 12

for model in ["gemma4-e2b-mini", "qwen3.6-moe-mini"]:
    folder = ROOT / "models" / model
    config = json.loads((folder / "config.json").read_text())
    vocab = config.get("text_config", config)["vocab_size"]
    text = (ROOT / "corpora/persuasion.txt").read_text().removesuffix("\n")
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    counts, total = Counter(ids), len(ids) + vocab
    chunks = [ids[i * CONTEXT : (i + 1) * CONTEXT] for i in range(CHUNKS)]
    targets = [t for chunk in chunks for t in chunk[CONTEXT // 2 + 1 :]]
    nll = math.fsum(math.log(total / (counts[t] + 1)) for t in targets) / len(targets)
    print(f"{model}: {len(ids)} tokens, vocabulary {vocab}, {len(targets)} scored, PPL {math.exp(nll):.6f}")
