#!/usr/bin/env python3
"""Chat templates as transformers renders them -> tests/fixtures/chat/

Two templates are taken from the GGUF files of real models. The others (`*.jinja`) were written
by hand, with the features that the templates of Llama 3, Gemma and Qwen use. Each template renders the
conversations of CASES. `rendered.json` has the text, or null if the template raises an exception.
`tokens.json` has the ids of `prompts/default.toml` for the real models: transformers renders the text,
and llama.cpp's tokenizer makes the ids.
"""

import argparse
import datetime
import hashlib
import json
import tomllib
from array import array
from pathlib import Path

from transformers.utils import chat_template_utils

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/fixtures/chat"
PROMPTS = ROOT / "prompts/default.toml"

REAL = {
    "smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "qwen2.5-coder": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
}
GEMMA = "gemma-3-270m-q4_k_m.gguf"

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Finds <b>things</b> & 'others', even ü.",
            "parameters": {
                "type": "object",
                "properties": {"what": {"type": "string"}, "n": {"type": "integer", "enum": [1, 2]}, "x": {}},
                "required": ["what"],
            },
        },
    }
]


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


CASES = {
    "user": {"messages": turns(("user", "Hello?"))},
    "system": {"messages": turns(("system", "  Be brief.\n"), ("user", " What is <2 & 3>? "))},
    "turns": {
        "messages": turns(
            ("system", "S"),
            ("user", "one\n\ntwo"),
            ("assistant", "<think>\nhm\n</think>\n\nAnswer 1"),
            ("user", "三 \"3\""),
            ("assistant", "Answer 2\n"),
            ("user", "last"),
        )
    },
    "tools": {"messages": turns(("user", "Find it.")), "tools": TOOLS},
    "tools and system": {"messages": turns(("system", "S"), ("user", "Find it.")), "tools": TOOLS},
    "answered": {"messages": turns(("user", "a"), ("tool", "{\"b\": 1}"), ("tool", "c"), ("user", "d"))},
    "two users": {"messages": turns(("user", "a"), ("user", "b"))},
    "odd role": {"messages": turns(("narrator", "a"), ("user", "b"))},
}


class Clock(datetime.datetime):
    """The date that kvgate's templates see."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


chat_template_utils.datetime = Clock


def render(template, case, specials=SPECIALS):
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[case["messages"]],
            tools=case.get("tools"),
            chat_template=template,
            add_generation_prompt=True,
            enable_thinking=False,
            **specials,
        )
        return rendered[0]
    except Exception:  # whatever a template raises
        return None


def sentence_ends(text):
    """As docs/generations.md has it."""
    for at, mark in enumerate(text):
        follows = text[at + 1 : at + 2]
        if mark in "。！？" or mark in ".!?" and (not follows or follows.isspace()):
            yield at + 1


def document(spec, model):
    text = (PROMPTS.parent / spec["file"]).read_text()
    text = text[text.index(spec["from"]) :]
    ends = []
    for end in sentence_ends(text):
        if len(model.tokenize(text[:end].encode())) > spec["tokens"]:
            break
        ends.append(end)
    part = text[: ends[-1]]
    # a depth counts bytes, since Rust does
    depth = int(spec["depth"] * len(part.encode()))
    at = max((end for end in ends if len(part[:end].encode()) <= depth), default=0)
    return " ".join([part[:at], spec["needle"], part[at:].lstrip()]).strip()


def prompt_ids(path, template):
    """Of each prompt the number of ids and their SHA-256."""
    from llama_cpp import Model

    with Model(path) as model:
        specials = {"bos_token": model.text(model.bos)} if model.bos is not None else {}
        prompts = {}
        for prompt in tomllib.loads(PROMPTS.read_text())["prompts"]:
            ids = ids_of(prompt, model, template, specials)
            prompts[prompt["id"]] = {"count": len(ids), "sha256": hashlib.sha256(array("I", ids).tobytes()).hexdigest()}
        return {"ends": model.ends(), "prompts": prompts}


def ids_of(prompt, model, template, specials):
    part = document(prompt["document"], model) if "document" in prompt else ""
    messages = [{**m, "content": m["content"].replace("{document}", part)} for m in prompt.get("messages", [])]
    tools = json.loads(prompt["tools"]) if "tools" in prompt else None
    if template and messages:
        text = render(template, {"messages": messages, "tools": tools}, specials)
        return model.tokenize(text.encode(), add_special=False, parse_special=True)
    contents = [m["content"] for m in messages] or [prompt["text"].replace("{document}", part)]
    if tools:
        contents.insert(0, json.dumps(tools, ensure_ascii=False, separators=(",", ":")))
    return model.tokenize("\n\n".join(contents).encode())


def template_of(path):
    from gguf import GGUFReader

    field = GGUFReader(path).fields.get("tokenizer.chat_template")
    return field.contents() if field else None


def rendered(folder):
    return {
        path.stem: {name: render(path.read_text(), case) for name, case in CASES.items()}
        for path in sorted(folder.glob("*.jinja"))
    }


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models/real")
    args = parser.parse_args()

    for name, file in REAL.items():
        (FIXTURES / f"{name}.jinja").write_text(template_of(args.models / file))
    write(FIXTURES / "rendered.json", {"cases": CASES, "rendered": rendered(FIXTURES)})
    paths = [args.models / file for file in [*REAL.values(), GEMMA]]
    write(FIXTURES / "tokens.json", {path.name: prompt_ids(path, template_of(path)) for path in paths})


if __name__ == "__main__":
    main()
