#!/usr/bin/env python3
"""Thirty kinds of GGUF files that people download, made small -> FOLDER (nothing of it is a fixture)

A kind is a family, a tokenizer, a mix of types, and whether the file is split. Each file is made as the real ones are:
a checkpoint of the family with random weights (checkpoints.py, but so wide that k-quants fit), llama.cpp's converter
(gguf_files.py), a real vocabulary where there is one, and llama.cpp's own choice of types (src/llama-quant.cpp, which
is compiled here and linked with the wheel's library, because the wheel leaves it out). Split files are those of gguf's
writer. Three kinds are released files of models/real.

Each file is opened by llama.cpp, and with --kvgate PROGRAM also by that program (`inspect`); several may be named.
With --measure, llama.cpp also dequantizes every weight to F32, and computes the perplexity of two chunks of 256 tokens
of corpora/persuasion.txt with the F32 file and an F32 cache (from quantized weights it would round the activations,
too), and each program measures the quantized file on the same tokens.

--twins FILE takes one file, dequantizes it, quantizes it to each type, and prints kvgate's perplexity of each file and of
its dequantized twin, which are the same if kvgate and gguf-py dequantize alike.
"""

import argparse
import ctypes as C
import dataclasses
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf_parts import split

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / "models/real"
CORPUS = ROOT / "corpora/persuasion.txt"
CONTEXT, CHUNKS = 256, 2

# llama_ftype of include/llama.h
MIXES = dict(F32=0, F16=1, Q4_0=2, Q4_1=3, Q8_0=7, Q5_0=8, Q5_1=9, Q2_K=10, Q3_K_M=12, Q4_K_S=14, Q4_K_M=15, Q5_K_M=17)
MIXES |= dict(Q6_K=18, IQ2_XXS=19, IQ2_XS=20, IQ3_XXS=23, IQ1_S=24, IQ4_NL=25, IQ3_S=26, IQ2_S=28, IQ4_XS=30, IQ1_M=31)
MIXES |= dict(BF16=32, TQ1_0=36, TQ2_0=37, MXFP4=38)

NARROW = dict(hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2, head_dim=64)
LINEAR = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=64, linear_value_head_dim=64)


def rope(**kw):
    return dict(rope_parameters={"rope_type": "default"} | kw)


# the checkpoints of checkpoints.py, with rows of whole blocks of 256
WIDE = {
    "llama": NARROW,
    "llama3-rope": NARROW,
    "mistral": NARROW | dict(tie_word_embeddings=False),
    "qwen2": {k: v for k, v in NARROW.items() if k != "head_dim"} | dict(vocab_size=300),
    "qwen3": NARROW,
    "qwen3-moe": NARROW | dict(moe_intermediate_size=256),
    "qwen3_5": NARROW
    | LINEAR
    | rope(rope_theta=1e7, partial_rotary_factor=0.25, mrope_section=[3, 3, 2], mrope_interleaved=True),
    "qwen3_5-moe": NARROW
    | LINEAR
    | dict(moe_intermediate_size=256, shared_expert_intermediate_size=256)
    | rope(rope_theta=1e7, partial_rotary_factor=0.25, mrope_section=[3, 3, 2], mrope_interleaved=True),
    "gemma2": NARROW,
    "gemma4-e4b": NARROW | dict(global_head_dim=128, hidden_size_per_layer_input=256),
    "gemma4-26b": NARROW | dict(global_head_dim=128, moe_intermediate_size=256),
    "gpt-oss": NARROW | dict(intermediate_size=256),
    "ministral3": NARROW,
    "phi-longrope": {k: v for k, v in NARROW.items() if k != "head_dim"}
    | rope(rope_theta=1e4, partial_rotary_factor=1.0)
    | dict(original_max_position_embeddings=1024),
    "smollm3": {k: v for k, v in NARROW.items() if k != "head_dim"},
    "olmo2": {k: v for k, v in NARROW.items() if k != "head_dim"},
    "granite": {k: v for k, v in NARROW.items() if k != "head_dim"},
    "glm4": NARROW,
    "glm4-moe": NARROW | dict(moe_intermediate_size=256),
}


@dataclasses.dataclass
class Kind:
    title: str
    types: str
    base: str  # of WIDE, or a file of models/real
    vocabulary: str = ""  # what Sources.vocabulary reads
    keys: dict = dataclasses.field(default_factory=dict)  # of the tokenizer, put over the vocabulary's; None takes away
    tokens: int | None = 16_384  # how many tokens of a byte-level vocabulary are kept, beside its marks; None: all
    parts: int = 1
    mixed: dict = dataclasses.field(default_factory=dict)  # tensors that get another type than the mix gives them

    @property
    def stem(self):
        return f"{self.title} {self.types}".replace(" ", "-")


def pre(name):
    return {"tokenizer.ggml.pre": name}


DYNAMIC = {"ffn_down": "Q5_K", "attn_v": "Q8_0", "attn_k": "Q6_K", "ffn_gate": "IQ4_XS"}
KINDS = [
    Kind("Llama 3.1 8B", "Q4_K_M", "llama3-rope", "llama-bpe", tokens=None),
    Kind("Llama 3.3 70B", "IQ2_XXS", "llama3-rope", "llama-bpe"),
    Kind("DeepSeek-R1-Distill-Llama 8B", "Q5_K_M", "llama3-rope", "llama-bpe"),
    Kind("DeepSeek-R1-Distill-Qwen 7B", "Q4_K_M", "qwen2", "qwen2", pre("deepseek-r1-qwen"), tokens=None),
    Kind("Qwen2.5-Coder 0.5B", "Q4_K_M", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
    Kind("Qwen3 0.6B", "BF16", "qwen3", "qwen2"),
    Kind("Qwen3 8B", "Q4_K_M", "qwen3", "qwen2"),
    Kind("Qwen3 8B", "UD-Q4_K_XL", "qwen3", "qwen2", mixed=DYNAMIC),
    Kind("Qwen3 8B", "NVFP4", "qwen3", "qwen2", mixed={"attn_|ffn_": "NVFP4"}),
    Kind("Qwen3-30B-A3B", "IQ4_XS", "qwen3-moe", "qwen2"),
    Kind("Qwen3.6-27B", "Q6_K", "qwen3_5", "qwen35"),
    Kind("Qwen3.6-35B-A3B", "Q4_K_M", "qwen3_5-moe", "qwen35", parts=3),
    Kind("Gemma 2 9B", "Q4_K_M", "gemma2", "llama-spm", {"tokenizer.ggml.add_space_prefix": False}),
    Kind("Gemma 3 270M", "Q4_K_M", "gemma-3-270m-q4_k_m.gguf"),
    Kind("Gemma 4 E4B", "Q4_K_M", "gemma4-e4b", "trained characters", {"tokenizer.ggml.model": "gemma4"}),
    Kind("Gemma 4 26B-A4B", "Q4_K_M", "gemma4-26b", "gemma-4", pre("gemma4")),
    Kind("gpt-oss-20b", "MXFP4", "gpt-oss", "trained bytes", pre("gpt-4o")),
    Kind("Mistral 7B v0.3", "Q4_K_M", "mistral", "mistral_instruct_tokenizer_240323.model.v3"),
    Kind("Ministral 3 8B", "Q4_K_M", "ministral3", "tekken_240911.json"),
    Kind("Llama 2 7B", "Q2_K", "llama", "llama-spm"),
    Kind("TinyLlama 1.1B", "Q4_0", "llama", "llama-spm"),
    Kind("Phi-3 mini", "IQ3_XXS", "phi-longrope", "phi-3"),
    Kind("Phi-4", "Q4_K_M", "phi-longrope", "trained bytes", pre("dbrx")),
    Kind("Falcon3 7B 1.58bit", "TQ2_0", "llama", "trained bytes", pre("falcon3")),
    Kind("SmolLM2 135M", "Q4_1", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    Kind("SmolLM3 3B", "Q8_0", "smollm3", "llama-bpe", pre("smaug-bpe")),
    Kind("OLMo 2 7B", "Q4_K_M", "olmo2", "trained bytes", pre("dbrx")),
    Kind("Granite 3.3 2B", "F16", "granite", "refact"),
    Kind("GLM-4 9B", "IQ4_NL", "glm4", "trained bytes", pre("chatglm-bpe")),
    Kind("GLM-4.5 Air", "Q3_K_M", "glm4-moe", "trained bytes", pre("glm4"), parts=2),
]


def make_wide(folder, converter, names):
    """The checkpoints, and each as the converter writes it in BF16."""
    folder = folder.resolve()
    names = [name for name in names if not (folder / name / "model.gguf").exists()]
    if not names:
        return
    import checkpoints

    checkpoints.OUT = folder
    checkpoints.torch.set_num_threads(1)
    tokenizer = checkpoints.tokenizer_of()
    for name in names:
        kind, settings, length = checkpoints.CHECKPOINTS[name]
        text = settings.get("text_config", settings)
        text = {k: v for k, v in text.items() if k != "rope_parameters" or k not in WIDE[name]} | WIDE[name]
        settings = settings | {"text_config": text} if "text_config" in settings else text
        checkpoints.CHECKPOINTS[name] = (kind, settings, length)
        checkpoints.GGUF_SETTINGS.pop(name, None)
        checkpoints.make(name, tokenizer)
    # in a process of its own, because the converter brings its own gguf
    code = f"import gguf_files, pathlib; gguf_files.OUT = pathlib.Path({str(folder)!r}); "
    code += f"gguf_files.convert(pathlib.Path({str(converter)!r}), {names})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL)


class Sources:
    """Vocabularies: of llama.cpp's sources, of the package mistral-common, and two trained ones."""

    def __init__(self, folder, vocabularies, mistral):
        self.folder, self.vocabularies, self.mistral, self.trained = folder, vocabularies, mistral, None

    def vocabulary(self, name):
        """Key -> type and value as a file has them."""
        if name.startswith("trained"):
            return self.of_trained(name)
        if name.startswith(("tekken", "mistral")):
            import pre_tokenizers

            path = self.folder / f"{name}.gguf"
            pre_tokenizers.mistral(self.mistral / name, path)
        else:
            path = self.vocabularies / f"ggml-vocab-{name}.gguf"
        own = {key: value for key, value in Raw(path).values.items() if key.startswith("tokenizer.")}
        if name.startswith(("tekken", "mistral")):
            del own["tokenizer.ggml.add_bos_token"]
            for key, id in (("bos", 1), ("eos", 2), ("unknown", 0)):
                own[f"tokenizer.ggml.{key}_token_id"] = struct.pack("<II", 4, id)
        return own

    def of_trained(self, name):
        import pre_tokenizers as made

        if self.trained is None:
            text = CORPUS.read_text()[:20_000] + made.random_text(3, 20_000)
            self.trained = made.Vocabularies(text, 1200)
        value = self.trained.text if name.endswith("characters") else self.trained.bytes
        tokens, types, merges = list(value["tokens"]), list(value["types"]), value["merges"]
        if name.endswith("characters"):
            bos, eos = 1, 2
        else:
            bos = eos = len(tokens)
            tokens.append("<|endoftext|>")
            types.append(made.CONTROL)
        head = "tokenizer.ggml."
        return {
            head + "model": as_text("gpt2"),
            head + "tokens": as_texts(tokens),
            head + "token_type": as_integers(types),
            head + "merges": as_texts(merges),
            head + "bos_token_id": struct.pack("<II", 4, bos),
            head + "eos_token_id": struct.pack("<II", 4, eos),
        }


class Raw:
    """A GGUF file whose values stay bytes: vocabularies of a hundred thousand tokens are copied and not decoded."""

    SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    TEXT, ARRAY = 8, 9

    def __init__(self, path):
        self.data = memoryview(np.memmap(path, np.uint8, "r"))
        self.at, self.values, self.tensors = 8, {}, []
        tensors, values = self.number("<Q"), self.number("<Q")
        for _ in range(values):
            key, begin = self.string(), self.at
            self.skip(self.number("<I"))
            self.values[key] = bytes(self.data[begin : self.at])
        for _ in range(tensors):
            name = self.string()
            shape = [self.number("<Q") for _ in range(self.number("<I"))]
            self.tensors.append((name, shape, gguf.GGMLQuantizationType(self.number("<I")), self.number("<Q")))
        self.begin = -(-self.at // 32) * 32

    def number(self, form):
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def string(self):
        length = self.number("<Q")
        self.at += length
        return bytes(self.data[self.at - length : self.at]).decode()

    def skip(self, kind):
        if kind == self.TEXT:
            length = self.number("<Q")
            self.at += length
        elif kind == self.ARRAY:
            inner, count = self.number("<I"), self.number("<Q")
            if inner == self.TEXT:
                for _ in range(count):
                    self.at += 8 + int.from_bytes(self.data[self.at : self.at + 8], "little")
            else:
                self.at += self.SIZES[inner] * count
        else:
            self.at += self.SIZES[kind]

    def text(self, key):
        return self.values[key][12:].decode() if key in self.values else "none"

    def bytes_of(self, tensor):
        _, shape, kind, offset = tensor
        block, size = gguf.GGML_QUANT_SIZES[kind]
        return self.data[self.begin + offset :][: math.prod(shape) // block * size]


def as_value(value):
    return as_text(value) if isinstance(value, str) else struct.pack("<IB", 7, value)


def as_texts(texts):
    return struct.pack("<IIQ", Raw.ARRAY, Raw.TEXT, len(texts)) + b"".join(as_text(text)[4:] for text in texts)


def as_integers(integers):
    return struct.pack(f"<IIQ{len(integers)}i", Raw.ARRAY, 5, len(integers), *integers)


def texts_of(value):
    (count,) = struct.unpack_from("<Q", value, 8)
    at, texts = 16, []
    for _ in range(count):
        length = int.from_bytes(value[at : at + 8], "little")
        texts.append(value[at + 8 : at + 8 + length].decode())
        at += 8 + length
    return texts


def cut(vocabulary, count):
    """The first tokens of a byte-level vocabulary, with its marks and the merges that make what is left."""
    head = "tokenizer.ggml."
    tokens = texts_of(vocabulary[head + "tokens"])
    types = struct.unpack_from(f"<{len(tokens)}i", vocabulary[head + "token_type"], 16)
    kept = [id for id, type in enumerate(types) if id < count or type != 1]
    new = {id: at for at, id in enumerate(kept)}
    known = {tokens[id] for id in kept}
    merges = [merge for merge in texts_of(vocabulary[head + "merges"]) if {*merge.split(" "), merge.replace(" ", "")} <= known]
    less = {key: value for key, value in vocabulary.items() if key != head + "scores"}
    less[head + "tokens"] = as_texts([tokens[id] for id in kept])
    less[head + "token_type"] = as_integers([types[id] for id in kept])
    less[head + "merges"] = as_texts(merges)
    for key, value in vocabulary.items():
        if key.endswith("_token_id"):
            less[key] = value[:4] + struct.pack("<I", new[struct.unpack_from("<I", value, 4)[0]])
    return less


def as_text(value):
    return struct.pack("<IQ", Raw.TEXT, len(value.encode())) + value.encode()


def write_raw(path, values, tensors):
    """`tensors`: name, shape as the file has it, type, bytes."""
    head, body = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(values))], []
    name_of = lambda name: struct.pack("<Q", len(name.encode())) + name.encode()
    for key, value in values.items():
        head += [name_of(key), value]
    offset = 0
    for name, shape, kind, data in tensors:
        head += [name_of(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)]
        filling = -len(data) % 32
        body += [data, bytes(filling)]
        offset += len(data) + filling
    head = b"".join(head)
    with open(path, "wb") as file:
        file.writelines([head, bytes(-len(head) % 32), *body])


def fit(source, target, kind, vocabulary):
    """The converted checkpoint under another vocabulary: rows for its tokens are drawn as the old ones were."""
    raw = Raw(source)
    if kind.tokens and vocabulary["tokenizer.ggml.model"] == as_text("gpt2"):
        vocabulary = cut(vocabulary, kind.tokens)
    (count,) = struct.unpack_from("<Q", vocabulary["tokenizer.ggml.tokens"], 8)
    values = {key: value for key, value in raw.values.items() if not key.startswith("tokenizer.")}
    values["general.name"] = as_text(kind.title)
    for key in values:
        if key.endswith(".vocab_size"):
            values[key] = struct.pack("<II", 4, count)
    values |= vocabulary | {key: as_value(value) for key, value in kind.keys.items()}
    dice = np.random.default_rng(7)
    tensors = []
    for tensor in raw.tensors:
        name, shape, type, _ = tensor
        data = raw.bytes_of(tensor)
        if name in ("token_embd.weight", "output.weight", "per_layer_token_embd.weight"):
            spread = gguf.quants.dequantize(np.frombuffer(data, np.uint8).reshape(shape[1], -1), type).std()
            new = dice.standard_normal((count, shape[0]), dtype=np.float32) * spread
            shape, type, data = [shape[0], count], gguf.GGMLQuantizationType.F16, new.astype(np.float16).tobytes()
        tensors.append((name, shape, type, data))
    write_raw(target, values, tensors)


class Quantizer:
    """llama_model_quantize, from the one source file that the wheel's library lacks."""

    def __init__(self, source, folder):
        import llama_cpp

        self.params = llama_cpp.Params
        library = folder / "quantize.so"
        if not library.exists():
            include = [f"-I{source / part}" for part in ("include", "src", "ggml/include")]
            flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-D_GLIBCXX_USE_CXX11_ABI=0"]
            code = source / "src/llama-quant.cpp"
            subprocess.run(["c++", *flags, *include, code, "-o", library], check=True)
        # the library's symbols must be there before this one's are looked up
        C.CDLL(llama_cpp.LIB._name, mode=C.RTLD_GLOBAL)
        self.lib = C.CDLL(str(library))
        self.default = self.lib.llama_model_quantize_default_params
        self.default.restype = llama_cpp.Params
        self.run = self.lib.llama_model_quantize
        self.run.restype, self.run.argtypes = C.c_uint32, [C.c_char_p, C.c_char_p, C.POINTER(llama_cpp.Params)]

    def quantize(self, source, target, types, mixed=None, importance=None):
        params = self.default()
        words = np.ctypeslib.as_array(params.blob).view("<i4")
        pointers = np.ctypeslib.as_array(params.blob).view("<u8")
        if words[1] != MIXES["Q8_0"] or params.blob[17] != 1:
            raise SystemExit("llama_model_quantize_params is laid out otherwise in this build")
        words[0], words[1] = 2, MIXES[types]
        params.blob[16] = 1  # BF16 and F16 may be the source
        if importance if importance is not None else types.startswith("I"):
            matrix, self.held = importance_of(source)
            pointers[3] = C.addressof(matrix)
        if mixed:
            chosen = [(name.encode(), int(gguf.GGMLQuantizationType[kind])) for name, kind in mixed.items()]
            overrides = (Override * (len(chosen) + 1))(*chosen, (None, 0))
            pointers[5] = C.addressof(overrides)
        if self.run(str(source).encode(), str(target).encode(), C.byref(params)) != 0:
            raise SystemExit(f"llama.cpp cannot quantize {source} to {types}")


class Override(C.Structure):
    _fields_ = [("pattern", C.c_char_p), ("type", C.c_int)]


class Importance(C.Structure):
    _fields_ = [("name", C.c_char_p), ("data", C.c_void_p), ("size", C.c_size_t)]


def importance_of(source):
    """An importance matrix as llama-imatrix would write it, of random numbers."""
    dice = np.random.default_rng(8)
    entries, held = [], []
    for name, shape, _, _ in Raw(source).tensors:
        if len(shape) > 1:
            held.append(dice.uniform(0.5, 2.0, math.prod(shape[:1] + shape[2:])).astype(np.float32))
            entries.append((name.encode(), held[-1].ctypes.data, held[-1].size))
    matrix = (Importance * (len(entries) + 1))(*entries, (None, None, 0))
    return matrix, held + [matrix]


def opened(path, twin=None):
    """What llama.cpp says of a file, with the perplexity of its numbers in F32."""
    from check_logits import all_logits
    from llama_cpp import Model

    with Model(path) as model:
        text = CORPUS.read_bytes()[:20_000]
        ids, bos = model.tokenize(text), model.bos
    if twin is None:
        print(json.dumps({"tokens": len(ids), "bos": bos}))
        return
    losses = []
    for chunk in range(CHUNKS):
        part = ids[chunk * CONTEXT : (chunk + 1) * CONTEXT]
        if bos is not None:
            part[0] = bos
        for at, row in enumerate(all_logits(twin, part)):
            if CONTEXT // 2 <= at < CONTEXT - 1:
                losses.append(row.max() + math.log(np.exp(row - row.max()).sum()) - row[part[at + 1]])
    print(json.dumps({"ppl": math.exp(np.mean(losses)), "bos": bos}))


def says(command):
    """The last line of the output, or of the error."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})
    lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().splitlines()
    return done.returncode == 0, lines


def measured(program, path, context=CONTEXT, chunks=CHUNKS):
    """The baseline's perplexity, or why there is none."""
    report = Path(f"{path}.json")
    sizes = ["--context", context, "--chunks", chunks]
    command = [program, "measure", path, "--corpus", CORPUS, "--schemes", "q8_0", *sizes, "--untrained"]
    good, lines = says(command + ["--baseline", "f32", "--json", report])
    if not good:
        return None, " ".join(lines)
    found = find(json.loads(report.read_text()), "baseline_ppl")
    return found, ""


def find(value, key):
    if isinstance(value, dict):
        if key in value:
            return value[key]["value"] if isinstance(value[key], dict) else value[key]
        value = list(value.values())
    if isinstance(value, list):
        return next((found for item in value if (found := find(item, key)) is not None), None)


def types_of(path):
    """The types of the matrices, the most frequent first."""
    counts = {}
    for _, shape, kind, _ in Raw(path).tensors:
        if len(shape) > 1:
            counts[kind.name] = counts.get(kind.name, 0) + 1
    return ", ".join(f"{name} × {n}" for name, n in sorted(counts.items(), key=lambda item: -item[1]))


def make(kind, folder, sources, quantizer):
    """The first part of the file, and the whole of it."""
    whole = folder / f"{kind.stem}.gguf"
    if kind.base.endswith(".gguf"):
        return REAL / kind.base, REAL / kind.base
    if not whole.exists():
        plain = folder / f"{kind.stem}.plain.gguf"
        fit(folder / "wide" / kind.base / "model.gguf", plain, kind, sources.vocabulary(kind.vocabulary))
        # there is no mix by these names; what is not in `mixed` is as in the other
        mix = {"UD-Q4_K_XL": "Q4_K_M", "NVFP4": "Q8_0"}.get(kind.types, kind.types)
        quantizer.quantize(plain, whole, mix, kind.mixed)
        plain.unlink()
    parts = sorted(folder.glob(f"{kind.stem}-0*-of-0*.gguf"))
    if kind.parts > 1 and not parts:
        parts = [split(whole, whole, kind.parts)]
    return (parts or [whole])[0], whole


def kinds(args):
    wanted = [kind for kind in KINDS if not args.names or any(name in kind.stem for name in args.names)]
    bases = [kind.base for kind in wanted if kind.base in WIDE]
    make_wide(args.folder / "wide", args.llama_cpp, list(dict.fromkeys(bases)))
    sources = Sources(args.folder, args.vocabularies, args.mistral)
    quantizer = Quantizer(args.llama_cpp, args.folder)
    for kind in wanted:
        first, whole = make(kind, args.folder, sources, quantizer)
        raw = Raw(whole)
        row = {"title": kind.title, "types": kind.types, "of": types_of(whole), "parts": kind.parts}
        row |= {key: raw.text(key) for key in ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")}
        row["vocabulary"] = kind.vocabulary or "its own"
        twin = args.folder / f"{kind.stem}.twin.gguf"
        if args.measure:
            quantizer.quantize(whole, twin, "F32")
        # in a process of its own, because llama.cpp ends the process on some faults
        good, lines = says([sys.executable, __file__, args.folder, "--open", first, *[twin] * args.measure])
        twin.unlink(missing_ok=True)
        row["llama.cpp"] = json.loads(lines[-1]) if good else " ".join(lines[-3:])
        for program in args.kvgate:
            opens, lines = says([program, "inspect", first])
            ppl, why = measured(program, first) if opens and args.measure else (None, "")
            row[program.name] = {"opens": opens, "ppl": ppl, "says": why if opens else " ".join(lines)}
        print(json.dumps(row, ensure_ascii=False), flush=True)


def twins(args):
    """The perplexities that kvgate prints for a file of each type and for the same numbers in F32."""
    from check_logits import write_f32

    plain, quantized, twin = (args.folder / f"{name}.gguf" for name in ("plain-f32", "quantized", "quantized-f32"))
    write_f32(args.twins, plain)
    quantizer = Quantizer(args.llama_cpp, args.folder)
    for types in args.names or MIXES:
        quantizer.quantize(plain, quantized, types)
        write_f32(quantized, twin)
        both = [measured(args.kvgate[0], path, 512) for path in (quantized, twin)]
        print(json.dumps({"types": types, "of": types_of(quantized), "quantized": both[0], "twin": both[1]}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llama-cpp", type=Path, help="the folder of llama.cpp's source")
    parser.add_argument("--vocabularies", type=Path, help="models/ of llama.cpp's sources")
    parser.add_argument("--mistral", type=Path, help="mistral_common/data")
    parser.add_argument("--kvgate", type=Path, action="append", default=[])
    parser.add_argument("--measure", action="store_true", help="compute perplexities, too")
    parser.add_argument("--twins", type=Path, help="the file whose quantized forms are compared with their twins")
    parser.add_argument("--open", type=Path, nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", help="only the kinds whose name has one of these in it; with --twins, only these types")
    args = parser.parse_intermixed_args()
    if args.open:
        opened(*args.open)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    twins(args) if args.twins else kinds(args)


if __name__ == "__main__":
    main()
