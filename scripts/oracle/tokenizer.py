#!/usr/bin/env python3
"""Token ids by llama.cpp's own tokenizer -> tests/fixtures/tokens.json

For each model the fixture has every text of corpora/ (count, SHA-256 of the ids as little-endian u32,
first and last 32 ids) and a list of awkward strings (all ids). Special tokens are added
as the model asks for (BOS), but are not recognised in the text. Exactly one
trailing line end of a file is removed, as in llama-perplexity; nothing else is changed.
"""

import argparse
import hashlib
import json
from array import array
from pathlib import Path

from llama_cpp import SOURCE, Model

ROOT = Path(__file__).resolve().parents[2]

MODELS = [
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma-3-270m-q4_k_m.gguf",
    "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
]

AWKWARD = [
    "",
    " ",
    "  ",
    "     ",
    "\n",
    "\n\n",
    "\n\n\n\n\n\n\n",
    "\t",
    "\t\t\tif x:\n\t\t\t\treturn",
    " \n \n",
    "a\r\nb\r\n\r\nc",
    "Hello",
    " Hello",
    "   Hello   world",
    "Hello world ",
    "trailing newline\n",
    "1234567",
    "1 12 123 1234 12345",
    "3.14159 -2e10 0x1F 1,000,000",
    "I'm you've he'd they'll it's WE'RE don'T",
    "l'été naïve façade",
    "cafe\u0301 e\u0301\u0302 a\u0308",
    "ÀÉÎõü ßẞ ﬁ ǅ İı",
    "老钟表匠的铺子",
    "日本語、カタカナ。ひらがな",
    "한국어 텍스트",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "Привет, мир! Γειά σου",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𠀀",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 ❤️",
    "zero\u200bwidth\u00a0space\u3000ideographic\ufeffbom",
    "\u0001\u001b[31m\u007f",
    "<|im_start|>user\nhi<|im_end|>",
    "<|endoftext|>",
    "<start_of_turn>user<end_of_turn>",
    "<bos><eos><pad><unk>",
    "<table><tr><td>x</td></tr></table>",
    "<s>struck</s><reponame>a<|fim_pad|>b<|file_sep|>",
    "<unused0>[multimodal]<h1></h1>",
    "▁low▁line <0x0A>",
    "!!! ??? ... --- ___ ***",
    "foo_bar.baz(qux[0])->quux;//comment",
    "https://example.org/a/b?c=d&e=%20f#g",
    "CamelCaseWordHTTPServer2Go",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "                                word",
]


def corpus(model, path):
    text = path.read_bytes()
    ids = model.tokenize(text[:-1] if text.endswith(b"\n") else text)
    packed = array("I", ids)
    assert packed.itemsize == 4 and array("H", [1]).tobytes() == b"\x01\x00"
    return {
        "count": len(ids),
        "sha256": hashlib.sha256(packed.tobytes()).hexdigest(),
        "first": ids[:32],
        "last": ids[-32:],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models/real")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/fixtures/tokens.json")
    args = parser.parse_args()

    models = {}
    for name in MODELS:
        with Model(args.models / name) as model:
            models[name] = {
                "bos_added": model.bos,
                "corpora": {t.name: corpus(model, t) for t in sorted((ROOT / "corpora").glob("*.txt"))},
                "strings": [{"text": s, "ids": model.tokenize(s.encode())} for s in AWKWARD],
            }
    head = {
        "source": SOURCE,
        "rules": "add_special = true, parse_special = false; one trailing \\n of a file removed; "
        "sha256 is over the ids as little-endian u32; bos_added is the id put before every text",
    }
    # one line per text and per string, so that a change of the fixture can be read
    lines = [f'  "{k}": {json.dumps(v)},' for k, v in head.items()]
    lines.append('  "models": {')
    for name, m in models.items():
        lines += [f'    "{name}": {{', f'      "bos_added": {json.dumps(m["bos_added"])},', '      "corpora": {']
        lines.append(",\n".join(f'        "{k}": {json.dumps(v)}' for k, v in m["corpora"].items()))
        lines += ["      },", '      "strings": [']
        lines.append(",\n".join(f"        {json.dumps(s)}" for s in m["strings"]))
        lines += ["      ]", "    },"]
    lines[-1] = "    }"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("{\n" + "\n".join(lines) + "\n  }\n}\n")


if __name__ == "__main__":
    main()
