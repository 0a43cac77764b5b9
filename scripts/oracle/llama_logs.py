#!/usr/bin/env python3
"""Logs of llama-perplexity in the forms of other builds and consoles, made from genuine logs.

The numbers are those of the genuine logs in the fixtures' folder. The lines around them are written as the sources of
the builds print them (see tests/fixtures/llama-perplexity/README.md). The script needs only Python.
"""

from pathlib import Path

FOLDER = Path(__file__).parents[2] / "tests/fixtures/llama-perplexity"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


def genuine(name):
    return (FOLDER / f"{name}.log").read_text(encoding="utf-8")


def statistics(name, old):
    """The table and the statistics; builds until the autumn of 2025 print the 99th percentile twice and end at 1 %."""
    lines = genuine(name).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("chunk "))
    end = next(i for i, line in enumerate(lines) if line.startswith("Same top p"))
    out = []
    for line in lines[start : end + 1]:
        if old and line.startswith(("95.0%   KLD", " 0.1%   KLD")):
            continue
        if old and line.startswith("90.0%   KLD"):
            line = next(line for line in lines if line.startswith("99.0%   KLD"))
        out.append(line)
    return out


def log(name, head, old=True):
    loaded = f"llama_model_loader: loaded meta data with 35 key-value pairs and 272 tensors from {MODEL} (version GGUF V3 (latest))"
    ends = ["", "{}: prompt eval time =    4000.00 ms /  2048 tokens", "{}: total time =    5000.00 ms /  2049 tokens"]
    printer = head.pop("printer")
    lines = [*head["build"], loaded, *head["info"], *head["cache"], "", *head.get("run", []), *statistics(name, old)]
    return "\n".join([*lines, *(line.format(printer) for line in ends)]) + "\n"


SELF = "KV self size  =    3.16 MiB, K (q4_0):    1.58 MiB, V (q4_0):    1.58 MiB"
SIZE = "size =    3.16 MiB (   512 cells,  30 layers,  1/1 seqs), K (q4_0):    1.58 MiB, V (q4_0):    1.58 MiB"
INFO = ["print_info: file type   = Q4_1", "print_info: arch             = llama"]

FORMS = {
    "form-2024": log("q4_0-norot", {
        "build": ["main: build = 3620 (0c1e5709)", "main: built with cc (Debian 12.2.0-14) 12.2.0 for x86_64-linux-gnu"],
        "info": ["llm_load_print_meta: arch             = llama", "llm_load_print_meta: model ftype      = Q4_1"],
        "cache": ["llama_new_context_with_model: n_ctx      = 512", "llama_kv_cache_init:        CPU KV buffer size =     3.16 MiB",
                  f"llama_new_context_with_model: {SELF}"],
        "run": ["kl_divergence: 1.20 seconds per pass - ETA 0.07 minutes", ""],
        "printer": "llama_print_timings",
    }),
    "form-2025-01": log("q4_0-norot", {
        "build": ["build: 4550 (0c1e5709) with cc (Debian 12.2.0-14) 12.2.0 for x86_64-linux-gnu"],
        "info": INFO,
        "cache": ["llama_init_from_model: n_seq_max     = 1", "llama_init_from_model: n_ctx         = 512",
                  "llama_init_from_model: n_ctx_per_seq = 512",
                  "llama_kv_cache_init: kv_size = 512, offload = 1, type_k = 'q4_0', type_v = 'q4_0', n_layer = 30, can_shift = 1",
                  f"llama_init_from_model: {SELF}"],
        "run": ["kl_divergence: 1.20 seconds per pass - ETA 0.07 minutes"],
        "printer": "llama_perf_context_print",
    }),
    "form-2025-08": log("q4_0-norot", {
        "build": ["build: 6100 (0c1e5709) with cc (Debian 12.2.0-14) 12.2.0 for x86_64-linux-gnu"],
        "info": INFO,
        "cache": ["llama_context: n_ctx         = 512", f"llama_kv_cache_unified: {SIZE}"],
        "run": ["kl_divergence: 1.20 seconds per pass - ETA 0.07 minutes"],
        "printer": "llama_perf_context_print",
    }),
    "form-2026-04": log("q4_0", {
        "build": ["version: 8600 (0c1e5709)"],
        "info": INFO,
        "cache": ["llama_context: n_ctx                 = 512", f"llama_kv_cache: {SIZE}",
                  "llama_kv_cache: attn_rot_k = 1", "llama_kv_cache: attn_rot_v = 1"],
        "run": ["kl_divergence: computing over 4 chunks, n_ctx=512, batch_size=512, n_seq=1"],
        "printer": "llama_perf_context_print",
    }, old=False),
    "form-ik": log("q4_0", {
        "build": ["main: build = 3900 (0c1e5709)", "main: built with cc (Debian 12.2.0-14) 12.2.0 for x86_64-linux-gnu"],
        "info": ["llm_load_print_meta: arch             = llama", "llm_load_print_meta: model ftype      = Q4_1"],
        "cache": ["llama_new_context_with_model: n_ctx      = 512", "llama_new_context_with_model: flash_attn = 1",
                  "llama_new_context_with_model: mla_attn   = 0", "llama_new_context_with_model: attn_max_b = 0",
                  "llama_new_context_with_model: fused_moe  = 0", "llama_new_context_with_model: ser        = -1, 0",
                  f"llama_new_context_with_model: {SELF}"],
        "printer": "llama_print_timings",
    }, old=False),
}

for name, text in FORMS.items():
    (FOLDER / f"{name}.log").write_text(text, encoding="utf-8")

# a console that has no Δ and no ±
underscores = genuine("q4_0").replace("Δ", "_").replace("±", "_")
(FOLDER / "console-underscores.log").write_text(underscores, encoding="utf-8")
questions = genuine("q4_0").replace("Δ", "?").replace("±", "?")
(FOLDER / "console-questions.log").write_text(questions, encoding="utf-8")
# Windows PowerShell reads what a program prints as the console's code page, and writes UTF-16
for page in ["cp437", "cp1252"]:
    garbled = genuine("q4_0").encode("utf-8").decode(page, errors="replace").replace("\n", "\r\n")
    (FOLDER / f"powershell-{page}.log").write_bytes(b"\xff\xfe" + garbled.encode("utf-16-le"))
