#!/usr/bin/env python3
"""Texts read by every kind of tokenizer that a GGUF file can name.

Two outcomes, both by llama.cpp's own tokenizer:

- `tests/fixtures/pre-tokenizers/` (without arguments): a small byte-level vocabulary, a small one of SentencePiece
  pieces, a text of some ten kilobytes, and for each name the count and the SHA-256 of its token ids.
- `--large FOLDER --vocabularies MODELS --mistral DATA`: half a million bytes, read with each name over a larger
  vocabulary, with each real vocabulary of MODELS (`models/ggml-vocab-*.gguf` of llama.cpp's sources), and with those of
  DATA (`mistral_common/data` of the package `mistral-common`). `KVGATE_TOKENIZERS=FOLDER cargo test --test engine --
  --ignored --nocapture large_texts` compares and prints a table. Mistral's vocabularies are also read by SentencePiece's
  library and by tiktoken; what these read otherwise than llama.cpp is printed here.

The small vocabularies are trained here without any pre-tokenizer, so that their merges reach across every boundary
that a pre-tokenizer may draw. The texts are made from a seed. They mix scripts, code, digits of all kinds, white
space of all kinds, control characters, emoji with joiners, and combining marks.
"""

import argparse
import base64
import hashlib
import heapq
import json
import random
import re
import unicodedata
from array import array
from collections import Counter
from pathlib import Path

import gguf
import sentencepiece
import tiktoken

from llama_cpp import SOURCE, Vocabulary

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "tests/fixtures/pre-tokenizers"
TABLE = ROOT / "src/model/tokenizer/pre.rs"

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
SPACE = "\u2581"

SPACES = [" "] * 12 + ["\n"] * 5 + list("\t\r\v\f\x85\xa0\u1680\u2000\u2003\u200a\u2028\u2029\u202f\u205f\u3000")
CONTROLS = [chr(c) for c in range(1, 32)] + ["\x7f", "\x80", "\x9f", "\xad", "\u200b", "\u200d", "\u2060", "\ufeff", "\ufffd", "\ue000"]
RANGES = [
    (0x20, 0x7E), (0x20, 0x7E), (0x20, 0x7E), (0xA1, 0xFF), (0x100, 0x24F), (0x250, 0x2AF), (0x300, 0x36F), (0x370, 0x3FF),
    (0x400, 0x52F), (0x531, 0x58F), (0x591, 0x5F4), (0x600, 0x6FF), (0x900, 0x97F), (0x980, 0x9FE), (0xE01, 0xE5B),
    (0x0E80, 0x0EDF), (0x1000, 0x109F), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x13A0, 0x13FD), (0x1780, 0x17F9), (0x1C90, 0x1CBF),
    (0x1D00, 0x1DBF), (0x1E00, 0x1FFE), (0x2010, 0x205E), (0x2070, 0x209C), (0x20A0, 0x20C0), (0x20D0, 0x20F0), (0x2100, 0x218B),
    (0x2190, 0x22FF), (0x2460, 0x24FF), (0x2500, 0x27BF), (0x2C00, 0x2DFF), (0x2E80, 0x2FD5), (0x3001, 0x303F), (0x3041, 0x30FF),
    (0x3105, 0x312F), (0x3131, 0x318E), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0x4E00, 0x9FFF), (0xA000, 0xA48C), (0xA640, 0xA7CA),
    (0xA960, 0xA97C), (0xA9E0, 0xA9FE), (0xAA60, 0xAA7F), (0xAB30, 0xABBF), (0xAC00, 0xD7A3), (0xF900, 0xFAD9), (0xFB00, 0xFB17),
    (0xFE00, 0xFE4F), (0xFF01, 0xFFEE), (0x10400, 0x1044F), (0x104B0, 0x104FB), (0x10C80, 0x10CF2), (0x118A0, 0x118DF),
    (0x1D400, 0x1D7FF), (0x1E900, 0x1E943), (0x1F300, 0x1F64F), (0x1F900, 0x1F9FF), (0x20000, 0x2A6DF), (0x2F800, 0x2FA1D), (0xE0100, 0xE01EF),
]
DIGITS = ["0123456789", "٠١٢٣٤٥٦٧٨٩", "०१२३", "²³¹⁴½¾Ⅷↂ", "０１２", "𝟘𝟙𝟚", "一二三"]
PIECES = (
    "'s 't 're 've 'm 'll 'd 'S 'T 'RE 'Ve 'LL 'D 'ſ ’s don't I'M we'LL 'x don''t O'Neill l'été it's/ <sentinel:12> IMGIMGABCZ IMGIMGABCDEFGZ "
    "== != <= -> => ++ // /* */ # $x `a` ^~| {} [0] ((a)) ... !!! ?! ——  «a» “q” ‘q’ ! ？ 。 、 … £5 €9.99 50% x=1;\n  y_2 camelCaseHTTPServer SCREAMING_CASE "
    "McDonald iPhone ÉCOLE École éCOLE ÄÖÜß ǅ ﬁ İı Ω Ωμέγα ПРИВЕТ Привет \u0301e e\u0301 क्षि กำ ก็ न्‍न 👩‍👩‍👧‍👦 👍🏽 🇩🇪 ❤️ 1️⃣ "
    "<|user|> <|user|>\u3000x <|endoftext|> def\tf(x):\n\t\treturn\tx\r\n    if\u00a0a: 0x1F 1e-9 1,234,567 3.14 12:30 2026-11-30 v1.2.3 a1b22c333d4444 ７８９ Ⅷ ² ▁a ▁▁ <0x0A> </s> <s> <unk>"
).split(" ")


def assigned(c):
    return unicodedata.category(c) not in ("Cn", "Cs") and unicodedata.unidata_version


def random_text(seed, size):
    """A mixed text of about so many bytes."""
    dice = random.Random(seed)
    parts, length = [], 0

    def space():
        return "".join(dice.choice(SPACES) for _ in range(dice.choice([1, 1, 1, 2, 3, 5])))

    def word():
        low, high = dice.choice(RANGES)
        chars = [chr(dice.randint(low, high)) for _ in range(dice.randint(1, 7))]
        return "".join(c for c in chars if assigned(c))

    def latin():
        text = "".join(dice.choice("etaoinshrdlucmfwypvbgkqjxz") for _ in range(dice.randint(1, 10)))
        return dice.choice([text, text, text.title(), text.upper(), text[:3].upper() + text[3:]])

    kinds = [
        (lambda: latin() + dice.choice(["", "", "'s", "'T", "'ll", ",", ".", "!)", ";\n", "/"]), 10),
        (word, 8),
        (lambda: "".join(dice.choice(dice.choice(DIGITS)) for _ in range(dice.randint(1, 11))), 4),
        (lambda: "".join(dice.choice("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") for _ in range(dice.randint(1, 4))), 4),
        (lambda: dice.choice(PIECES), 8),
        (lambda: dice.choice(CONTROLS), 1),
        (lambda: dice.choice(["\n", " ", "\t", "\r\n", "-", "=", "."]) * dice.randint(1, 40), 1),
        (lambda: dice.choice(["e", "x", "\u4e00", "ا"]) + chr(dice.randint(0x300, 0x36F)) * dice.randint(1, 3), 1),
        (lambda: "", 2),
    ]
    makers, weights = zip(*kinds)
    while length < size:
        part = dice.choices(makers, weights)[0]() + dice.choice(["", "", "", space()]) * dice.choice([0, 1, 1, 1])
        parts.append(part)
        length += len(part.encode())
    return "".join(parts)


def every_character():
    """Every assigned character in front of, behind and between letters, digits and spaces; some of the Han and Hangul."""
    parts = []
    for code in range(1, 0x30000):
        c = chr(code)
        if not 0xD800 <= code < 0xE000 and assigned(c) and not (0x4E10 < code < 0x9F00 or 0xAC10 < code < 0xD700 or code > 0x20010):
            parts.append(f"a{c}b {c}1{c}{c}")
    return "".join(parts)


def alphabet():
    """GPT-2's characters of the bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(0x100 + i) for i, b in enumerate(others)}


def byte_pairs(text, count):
    """The tokens and merges of a BPE of bytes over whole lines, so that no rule of words shapes it."""
    letters = alphabet()
    words = Counter()
    for line in re.findall(r"[^\n]*\n+|[^\n]+", text):
        for at in range(0, len(line), 60):
            words[tuple(letters[b] for b in line[at : at + 60].encode())] += 1
    return learn(words, list(letters.values()), count)


def character_pairs(text, count):
    """The same over characters, with spaces as SentencePiece writes them, and a piece for each byte."""
    words = Counter()
    for line in re.findall(r"[^\n]+|\n+", text.replace(" ", SPACE)):
        for at in range(0, len(line), 60):
            words[tuple(line[at : at + 60])] += 1
    common = Counter(c for word, n in words.items() for c in word * n)
    chars = sorted(c for c, n in common.items() if n > 3)
    known = set(chars)
    kept = Counter()
    for word, n in words.items():
        kept[tuple(c for c in word if c in known)] += n
    return learn(kept, chars, count)


def learn(words, alphabet, count):
    """BPE: merges the most frequent pair, again and again."""
    words = [[list(word), n] for word, n in words.items()]
    where, pairs = {}, Counter()
    for index, (word, n) in enumerate(words):
        for pair in zip(word, word[1:]):
            pairs[pair] += n
            where.setdefault(pair, set()).add(index)
    tokens, merges, known = list(alphabet), [], set(alphabet)
    queue = [(-n, pair) for pair, n in pairs.items()]
    heapq.heapify(queue)
    while queue and len(merges) < count:
        least, pair = heapq.heappop(queue)
        if pairs[pair] != -least:
            if pairs[pair] > 1:
                heapq.heappush(queue, (-pairs[pair], pair))
            continue
        merges.append(pair)
        if "".join(pair) not in known:
            known.add("".join(pair))
            tokens.append("".join(pair))
        for index in where.pop(pair):
            word, n = words[index]
            for old in zip(word, word[1:]):
                pairs[old] -= n
            at, new = 0, []
            while at < len(word):
                joined = tuple(word[at : at + 2]) == pair
                new.append("".join(pair) if joined else word[at])
                at += 2 if joined else 1
            words[index][0] = new
            for fresh in zip(new, new[1:]):
                pairs[fresh] += n
                where.setdefault(fresh, set()).add(index)
                heapq.heappush(queue, (-pairs[fresh], fresh))
        del pairs[pair]
    return tokens, [" ".join(pair) for pair in merges]


def names():
    """The names of the table, and of those the ones whose pieces are spelled as text."""
    table = TABLE.read_text()
    rows = re.findall(r'^    Pre::new\("?([\w.\-]+)"?, .*$', table, re.M)
    lines = re.findall(r'^    Pre::new\(.*$', table, re.M)
    constants = dict(re.findall(r'const (\w+): &str = "([\w.\-]+)";', table))
    assert len(rows) == len(lines), "a row has another form than this script reads"
    names = [constants.get(name, name) for name in rows]
    return names, {name for name, line in zip(names, lines) if ".as_text()" in line}


def bytes_as_pieces():
    return [f"<0x{b:02X}>" for b in range(256)]


def write(path, metadata, tokens, types, merges=None, scores=None):
    """A GGUF file with nothing but a vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        kind = {bool: gguf.GGUFValueType.BOOL, str: gguf.GGUFValueType.STRING, int: gguf.GGUFValueType.UINT32}[type(value)]
        writer.add_key_value(key, value, kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if merges is not None:
        writer.add_token_merges(merges)
    if scores is not None:
        writer.add_token_scores(scores)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


MODEL, PRE, PREFIX = "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.add_space_prefix"
ADD_BOS = "tokenizer.ggml.add_bos_token"


class Vocabularies:
    """The small ones, under all names."""

    def __init__(self, text, count):
        tokens, merges = byte_pairs(text, count)
        # pieces that no merge makes show whether a word that is a piece as a whole is merged
        merges = [merge for at, merge in enumerate(merges) if at % 9 != 8]
        self.bytes = {"tokens": tokens, "types": [NORMAL] * len(tokens), "merges": merges}
        used = set("".join(merges))
        gaps = [f"[gap {at}]" if at < 256 and token not in used else token for at, token in enumerate(tokens)]
        self.gaps = {**self.bytes, "tokens": gaps}
        tokens, merges = character_pairs(text, count)
        special = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", *bytes_as_pieces()]
        tokens = special + [token for token in tokens if token not in special]
        own = [UNKNOWN, CONTROL, CONTROL, CONTROL, USER_DEFINED] + [BYTE] * 256
        types = own + [NORMAL] * (len(tokens) - len(own))
        self.text = {"tokens": tokens, "types": types, "merges": merges}
        runs = [SPACE * n for n in range(2, 17)]
        pieces = [t for t in tokens if len(t) < 2 or set(t) != {SPACE}] + runs
        types = own + [NORMAL] * (len(pieces) - len(own))
        # as in Llama 2: the runs of spaces share the lowest score
        ranked = len(pieces) - len(own) - len(runs)
        scores = [-float(n) for n in range(len(own) + ranked)] + [-1e9] * len(runs)
        self.pieces = {"tokens": pieces, "types": types, "scores": scores}

    def cases(self):
        """Name, metadata, which of the vocabularies, and whether marks in the text count."""
        all_names, as_text = names()
        for name in all_names:
            kind = {MODEL: name, PREFIX: False} if name == "gemma4" else {MODEL: "gpt2", PRE: name}
            yield name, {**kind, ADD_BOS: False}, "text" if name in as_text else "bytes", False
        yield "gpt-2, no pieces of some bytes", {MODEL: "gpt2", PRE: "gpt-2", ADD_BOS: False}, "gaps", False
        pieces = {MODEL: "llama", ADD_BOS: False}
        for prefix in (True, False):
            name = "SentencePiece" + ("" if prefix else ", no space prefix")
            yield name, {**pieces, PREFIX: prefix}, "pieces", False
            yield f"{name}, marks", {**pieces, PREFIX: prefix}, "pieces", True
        # llama.cpp drops white space behind marks by this name
        yield "Phi-3, marks", {**pieces, "general.name": "Phi-3 mini"}, "pieces", True

    def write(self, path, metadata, which):
        write(path, metadata, **getattr(self, which))


def packed(ids):
    assert array("I").itemsize == 4 and array("H", [1]).tobytes() == b"\x01\x00"
    return array("I", ids).tobytes()


def read(path, text, parse_special=False):
    with Vocabulary(path) as vocabulary:
        return vocabulary.tokenize(text.encode(), add_special=False, parse_special=parse_special)


def small():
    FIXTURE.mkdir(parents=True, exist_ok=True)
    text = "".join((ROOT / f"corpora/{name}").read_text()[:6000] for name in ("code.txt", "prose.txt")) + random_text(1, 30_000)
    vocabularies = Vocabularies(text, 1200)
    (FIXTURE / "text.txt").write_bytes(text.encode())
    path = FIXTURE / "case.gguf"
    cases = {}
    for name, metadata, which, has_marks in vocabularies.cases():
        vocabularies.write(path, metadata, which)
        ids = read(path, text, has_marks)
        digest = hashlib.sha256(packed(ids)).hexdigest()
        cases[name] = {"metadata": metadata, "vocabulary": which, "rendered": has_marks, "count": len(ids), "sha256": digest}
        print(name, len(ids))
    path.unlink()
    for which in ("bytes", "gaps", "text", "pieces"):
        vocabularies.write(FIXTURE / f"{which}.gguf", {MODEL: "gpt2"}, which)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items())
    (FIXTURE / "cases.json").write_text(f'{{\n "source": {json.dumps(SOURCE)},\n "cases": {{\n{lines}\n }}\n}}\n')


def real(path, to):
    """A real vocabulary without what kvgate does not need; the architecture is one that kvgate knows."""
    fields = gguf.GGUFReader(path).fields
    value = lambda key: fields[key].contents() if key in fields else None
    metadata = {key: value(key) for key in (MODEL, PRE, PREFIX) if key in fields}
    # llama.cpp drops white space behind marks by this name
    metadata["general.name"] = value("general.name") or ""
    metadata[ADD_BOS] = False
    unknown = value("tokenizer.ggml.unknown_token_id")
    if unknown is not None:
        metadata["tokenizer.ggml.unknown_token_id"] = int(unknown)
    prefix = "tokenizer.ggml."
    write(to, metadata, value(prefix + "tokens"), value(prefix + "token_type"), value(prefix + "merges"), value(prefix + "scores"))
    return value(prefix + "tokens"), value(prefix + "token_type")


def mistral(path, to):
    """Mistral's released vocabularies as llama.cpp's converter writes them. Gives what the releases' own libraries read."""
    if path.suffix != ".json":
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        count = range(processor.get_piece_size())
        kinds = ((processor.is_unknown, UNKNOWN), (processor.is_control, CONTROL), (processor.is_byte, BYTE))
        types = [next((kind for test, kind in kinds if test(id)), NORMAL) for id in count]
        scores = [processor.get_score(id) for id in count]
        write(to, {MODEL: "llama", ADD_BOS: False}, [processor.id_to_piece(id) for id in count], types, scores=scores)
        return processor.encode
    tekken = json.loads(path.read_text())
    config, letters = tekken["config"], alphabet()
    special = config["default_num_special_tokens"]
    words = [base64.b64decode(word["token_bytes"]) for word in tekken["vocab"]][: config["default_vocab_size"] - special]
    ranks = {word: rank for rank, word in enumerate(words)}
    spelled = lambda word: "".join(letters[b] for b in word)
    merges = []
    for word in words:
        parts = [(word[:at], word[at:]) for at in range(1, len(word))]
        parts = [pair for pair in parts if pair[0] in ranks and pair[1] in ranks]
        merges += sorted(parts, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    tokens = [f"<SPECIAL_{at}>" for at in range(special)] + [spelled(word) for word in words]
    types = [CONTROL] * special + [NORMAL] * len(words)
    merges = [" ".join(map(spelled, pair)) for pair in merges]
    write(to, {MODEL: "gpt2", PRE: "tekken", ADD_BOS: False}, tokens, types, merges)
    released = tiktoken.Encoding("tekken", pat_str=config["pattern"], mergeable_ranks=ranks, special_tokens={})
    return lambda text: [special + id for id in released.encode(text, disallowed_special=())]


def large(folder, models, released):
    folder.mkdir(parents=True, exist_ok=True)
    text = random_text(2, 500_000)
    characters = every_character()
    cases = []

    def case(title, path, text, rendered=False):
        ids = read(path, text, rendered)
        number = len(cases)
        (folder / f"{number}.txt").write_bytes(text.encode())
        (folder / f"{number}.ids").write_bytes(packed(ids))
        cases.append({"title": title, "file": path.name, "text": f"{number}.txt", "ids": f"{number}.ids", "rendered": rendered})
        print(title, len(ids), flush=True)

    vocabularies = Vocabularies(random_text(3, 200_000), 3000)
    for name, metadata, which, has_marks in vocabularies.cases():
        path = folder / f"{name}.gguf"
        vocabularies.write(path, metadata, which)
        case(f"{name}: trained", path, text, has_marks)
        case(f"{name}: every character", path, characters, has_marks)
    for model in sorted(models.glob("ggml-vocab-*.gguf")) if models else []:
        if "bert" in model.name:
            continue
        path = folder / model.name
        tokens, types = real(model, path)
        case(f"{path.stem}: real", path, text)
        case(f"{path.stem}: real, every character", path, characters)
        dice = random.Random(4)
        marks = [token for token, kind in zip(tokens, types) if kind in (CONTROL, USER_DEFINED)] or ["<s>"]
        marked = "".join(part + dice.choice(marks) + dice.choice(["", " ", "\n", "\u3000", " \t\n x"]) for part in re.findall(r"(?s).{1,40}", text[:60_000]))
        case(f"{path.stem}: real, marks as text", path, marked)
        case(f"{path.stem}: real, marks", path, marked, rendered=True)
    for path in sorted(path for path in released.iterdir() if "tok" in path.name or "tek" in path.name) if released else []:
        to = folder / f"{path.name}.gguf"
        own = mistral(path, to)
        for title, read_text in (("real", text), ("real, every character", characters)):
            case(f"{path.name}: {title}", to, read_text)
            ids, theirs = read(to, read_text), own(read_text)
            print("  the released tokenizer gives", "the same" if ids == theirs else f"{len(theirs)} other ids")
    (folder / "cases.json").write_text(json.dumps(cases))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", type=Path)
    parser.add_argument("--vocabularies", type=Path)
    parser.add_argument("--mistral", type=Path)
    args = parser.parse_args()
    if args.large:
        large(args.large, args.vocabularies, args.mistral)
    else:
        small()


if __name__ == "__main__":
    main()
