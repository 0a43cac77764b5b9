#!/usr/bin/env python3
"""BOS, ends of an answer and kinds of tokens -> tests/fixtures/vocabulary.json

`gguf` has the small `llama` checkpoint with other metadata, as llama.cpp reads it: which id llama.cpp puts before a
text, after which ids it generates nothing, and the ids of texts with marks in them, as plain text and as what a chat
template wrote. `folder` has its tokenizer.json with another template and another tokenizer_config.json, as
llama.cpp's converter (`gguf.SpecialVocab`) reads them: whether BOS is added (null if neither file says so), and
its id. `sentencepiece/` has a small model, with the pieces that SentencePiece's own library reads from it.
(transformers 5.24 ignores `add_bos_token` if there is a tokenizer.json; earlier versions obey it.)
"""

import argparse
import io
import json
import shutil
import tempfile
from pathlib import Path

import gguf
import sentencepiece

from llama_cpp import SOURCE, Model

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "tests/fixtures/checkpoints/llama"

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
ADD_BOS, PRE = "tokenizer.ggml.add_bos_token", "tokenizer.ggml.pre"
TOKENS, TYPES, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"

# the last tokens are what the last merges make: where they get another text, those merges go
LAST = 8

GGUF = {
    "as it is": {},
    "BOS by the key": {"metadata": {ADD_BOS: True}},
    "another BOS": {"metadata": {ADD_BOS: True, "tokenizer.ggml.bos_token_id": 5}},
    "no BOS by the key": {"metadata": {ADD_BOS: False}},
    "BOS by the pre-tokenizer llama-bpe": {"metadata": {PRE: "llama-bpe"}, "named": True},
    "no BOS by the key, against llama-bpe": {"metadata": {PRE: "llama-bpe", ADD_BOS: False}, "named": True},
    "BOS by the pre-tokenizer tekken": {"metadata": {PRE: "tekken"}, "named": True},
    "Gemma 4 against the key": {"metadata": {PRE: "gemma4", ADD_BOS: False}, "named": True},
    "no BOS by the pre-tokenizer qwen2": {"metadata": {PRE: "qwen2"}},
    "ends by keys": {"metadata": {"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 9}},
    "marks typed as text": {"tokens": [["<|im_end|>", NORMAL], ["<end_of_turn>", NORMAL], ["<|eot_id|>", NORMAL]]},
    "marks that are always one token": {
        "tokens": [["<|im_end|>", USER_DEFINED], ["<turn|>", USER_DEFINED], ["<|im_start|>", USER_DEFINED], ["<i>", USER_DEFINED]]
    },
    "marks as they should be": {"tokens": [["<|im_end|>", CONTROL], ["<|im_start|>", CONTROL], ["<|no_mark|>", CONTROL]]},
    "HTML": {"tokens": [["</s>", USER_DEFINED]]},
    "HTML of Gemma 4": {"tokens": [["</s>", NORMAL], ["<|tool_response>", CONTROL]]},
    "infilling": {
        "tokens": [["<|fim_pad|>", NORMAL], ["<|fim_middle|>", USER_DEFINED], ["<reponame>", CONTROL], ["<|file_sep|>", NORMAL]]
    },
    "infilling by a key": {"metadata": {"tokenizer.ggml.fim_pad_token_id": 8}, "tokens": [["<|fim_pad|>", CONTROL]]},
    "harmony": {"tokens": [["<|return|>", CONTROL], ["<|call|>", CONTROL], ["<|end|>", CONTROL]]},
    "no harmony": {"tokens": [["<|return|>", CONTROL], ["<|end|>", CONTROL]]},
    "marks of harmony": {
        "tokens": [["<|channel|>", CONTROL], ["<|message|>", NORMAL], ["<|start|>", CONTROL], ["<|constrain|>", USER_DEFINED]]
    },
    "a mark of harmony that ends an answer": {
        "metadata": {"tokenizer.ggml.eos_token_id": 292}, "tokens": [["<|message|>", CONTROL]]
    },
    "harmony with calls": {"tokens": [["<|return|>", CONTROL], ["<|calls|>", CONTROL], ["<|end|>", CONTROL]]},
    "a flush and a call": {"tokens": [["<|flush|>", CONTROL], ["<|call|>", CONTROL], ["<|end|>", CONTROL]]},
    "a flush and calls": {"tokens": [["<|flush|>", NORMAL], ["<|calls|>", NORMAL], ["<|end|>", NORMAL]]},
    "a flush without a call": {"tokens": [["<|flush|>", CONTROL], ["<|return|>", CONTROL], ["<|end|>", CONTROL]]},
    "HTML of PLaMo": {
        "metadata": {"tokenizer.ggml.eos_token_id": 293}, "tokens": [["</s>", CONTROL], ["<|plamo:eos|>", CONTROL]]
    },
    "no HTML of PLaMo": {"tokens": [["</s>", CONTROL], ["<|plamo:eos|>", CONTROL]]},
    "infilling by older keys": {
        "metadata": {f"tokenizer.ggml.{name}_token_id": 8 for name in ("prefix", "suffix", "middle")},
        "tokens": [["<|fim_prefix|>", NORMAL], ["<|fim_suffix|>", NORMAL], ["<|fim_middle|>", NORMAL]],
    },
    "an older key without a token": {
        "metadata": {"tokenizer.ggml.prefix_token_id": 300, "tokenizer.ggml.suffix_token_id": 300, "tokenizer.ggml.fim_suf_token_id": 8},
        "tokens": [["<|fim_prefix|>", NORMAL], ["<|fim_suffix|>", NORMAL]],
    },
}

TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
}
BOS, EOS = {"bos_token": "<bos>"}, {"eos_token": "<eos>"}

FOLDER = [
    {"template": template, "config": {"tokenizer_class": "TokenizersBackend", **config}}
    for template in (True, False)
    for config in (
        BOS,
        {**BOS, "add_bos_token": True},
        {**BOS, "add_bos_token": False},
        {"add_bos_token": True},
        {"bos_token": "<eos>", "add_bos_token": True},
        {"bos_token": {"content": "<bos>", "__type": "AddedToken"}, "add_bos_token": True},
        {**BOS, **EOS, "add_bos_token": False, "add_eos_token": True},
    )
]


def texts(case):
    marks = [text for text, _ in case.get("tokens", [])] or ["<bos>", "<|im_end|>", "<unk>"]
    return ["", "the end"] + [f"a {mark}{mark} the" for mark in marks] + ["".join(marks)]


def write(case, path):
    """The base with the case's metadata and tokens."""
    reader = gguf.GGUFReader(BASE / "model.gguf")
    values = {name: (field.contents(), field.types) for name, field in reader.fields.items()}
    new = case.get("tokens", [])
    if new:
        tokens, types = values[TOKENS][0], values[TYPES][0]
        for at, (text, kind) in enumerate(new):
            tokens[len(tokens) - LAST + at], types[len(types) - LAST + at] = text, kind
        for at in range(len(new), LAST):
            tokens[len(tokens) - LAST + at] = f"[UNUSED{at}]"
        values[MERGES] = (values[MERGES][0][:-LAST], values[MERGES][1])
    writer = gguf.GGUFWriter(path, "llama")
    for name, (value, types) in values.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in case.get("metadata", {}):
            continue
        if types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_key_value(name, value, gguf.GGUFValueType.ARRAY, types[1])
        else:
            writer.add_key_value(name, value, types[0])
    for name, value in case.get("metadata", {}).items():
        kind = {bool: gguf.GGUFValueType.BOOL, str: gguf.GGUFValueType.STRING, int: gguf.GGUFValueType.UINT32}[type(value)]
        writer.add_key_value(name, value, kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def of_gguf(case, folder):
    path = folder / "model.gguf"
    write(case, path)
    with Model(path) as model:
        return {
            **case,
            "bos": model.bos,
            "ends": model.ends(),
            "plain": [[text, model.tokenize(text.encode(), add_special=False)] for text in texts(case)],
            "rendered": [
                [text, model.tokenize(text.encode(), add_special=False, parse_special=True)] for text in texts(case)
            ],
        }


def of_folder(case, folder):
    tokenizer = json.loads((BASE / "tokenizer.json").read_text())
    if case["template"]:
        tokenizer["post_processor"] = TEMPLATE
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(case["config"]))
    shutil.copy(BASE / "config.json", folder)
    read = gguf.SpecialVocab(folder)
    return {**case, "adds": read.add_special_token.get("bos"), "id": read.special_token_ids.get("bos")}


def sentence_pieces(folder):
    """A model with the kinds of pieces that there are, and what its library reads from it."""
    text = (ROOT / "corpora/prose.txt").read_text().splitlines()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        user_defined_symbols=["<table>"],
        control_symbols=["<turn>"],
        minloglevel=2,
        num_threads=1,
    )
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    read = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [[read.id_to_piece(id), read.is_control(id)] for id in range(read.get_piece_size())]
    (folder / "pieces.json").write_text(json.dumps(pieces, ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "tests/fixtures/vocabulary.json")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    cases = {
        "source": SOURCE,
        "last": LAST,
        "template": TEMPLATE,
        "gguf": {name: of_gguf(case, folder) for name, case in GGUF.items()},
        "folder": [of_folder(case, folder) for case in FOLDER],
    }
    shutil.rmtree(folder)
    sentence_pieces(args.out.parent / "sentencepiece")
    lines = [f' "{key}": {json.dumps(value)}' for key, value in cases.items() if key not in ("gguf", "folder")]
    gguf_lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(case, ensure_ascii=False)}" for name, case in cases["gguf"].items())
    folder_lines = ",\n".join(f"  {json.dumps(case)}" for case in cases["folder"])
    lines += [f' "gguf": {{\n{gguf_lines}\n }}', f' "folder": [\n{folder_lines}\n ]']
    args.out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
