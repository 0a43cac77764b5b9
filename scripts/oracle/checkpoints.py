#!/usr/bin/env python3
"""Small random checkpoints of every family, made by HF transformers' own classes
-> tests/fixtures/checkpoints/<name>/{config,tokenizer,tokenizer_config,logits}.json, *.safetensors

All weights are drawn anew from a seed, because transformers' own initialisation gives some mechanisms no
effect: norms are one, biases are zero, and scores and router logits are near zero. The weights are rounded to
bfloat16, as they are stored. The logits are computed on the rounded weights in float32, with
eager attention, in one pass over the whole sequence. If the choice of experts for a token is nearly a
tie (probabilities 2e-3 apart or less), the token is replaced by another.

--check loads what is stored. For each checkpoint it prints how far transformers is from the fixture
in float32 and in float64 (everything in float64, also softmax and norms), and how much every single
tensor and setting changes the logits, so that none of them is without effect.
"""

import argparse
import copy
import itertools
import json
import logging
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.overrides import TorchFunctionMode
from transformers.integrations.mxfp4 import FP4_VALUES, convert_moe_packed_tensors

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/fixtures/checkpoints"
VOCAB = 300
TOKENS = dict(pad_token_id=0, eos_token_id=1, bos_token_id=2)
TEXT = dict(vocab_size=VOCAB, max_position_embeddings=512, use_cache=False) | TOKENS

S, F, L = "sliding_attention", "full_attention", "linear_attention"
GEMMA4_ROPE = {
    S: {"rope_type": "default", "rope_theta": 10_000.0},
    F: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
# a vision tower of one narrow layer: the text model's tensors then have the names of the real files
QWEN_VISION = dict(
    depth=1, hidden_size=8, intermediate_size=8, num_heads=1, patch_size=2, temporal_patch_size=1, out_hidden_size=32
) | dict(num_position_embeddings=4, spatial_merge_size=1, deepstack_visual_indexes=[])
PIXTRAL_VISION = dict(
    model_type="pixtral", hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=8
) | dict(image_size=4, patch_size=2)
GEMMA_VISION = dict(
    hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=8
) | dict(patch_size=2, position_embedding_size=4)


def gemma4(**kw):
    return TEXT | dict(rope_parameters=GEMMA4_ROPE, final_logit_softcapping=5.0, hidden_size_per_layer_input=0) | kw


def wrapped(vision, text, **kw):
    return dict(text_config=text, vision_config=vision, tie_word_embeddings=text["tie_word_embeddings"]) | kw


# name: (configuration class, its arguments, length of the sequence)
CHECKPOINTS = {
    "llama": (
        hf.LlamaConfig,
        TEXT
        | dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1)
        | dict(rms_norm_eps=1e-5, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
        75,
    ),
    # 16 frequencies: 2 below the first wavelength bound (64/4), 3 between, 11 above the second (64/1)
    "llama3-rope": (
        hf.LlamaConfig,
        TEXT
        | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
        | dict(head_dim=32, rms_norm_eps=1e-5, tie_word_embeddings=False)
        | dict(
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        ),
        101,
    ),
    "llama-yarn": (
        hf.LlamaConfig,
        TEXT
        | dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
        | dict(head_dim=32, rms_norm_eps=1e-5, tie_word_embeddings=True, max_position_embeddings=256)
        | dict(
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        ),
        127,
    ),
    "llama-linear": (
        hf.LlamaConfig,
        TEXT
        | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2)
        | dict(rms_norm_eps=1e-5, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)
        | dict(rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}),
        69,
    ),
    # four more embeddings than the tokenizer has tokens, as in the real files
    "qwen2": (
        hf.Qwen2Config,
        TEXT
        | dict(hidden_size=48, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3)
        | dict(vocab_size=VOCAB + 4, tie_word_embeddings=True)
        | dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        83,
    ),
    "qwen3": (
        hf.Qwen3Config,
        TEXT
        | dict(hidden_size=40, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
        | dict(head_dim=16, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        89,
    ),
    "qwen3-moe": (
        hf.Qwen3MoeConfig,
        TEXT
        | dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1)
        | dict(head_dim=16, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=16, norm_topk_prob=True)
        | dict(tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        93,
    ),
    # both kinds of layers: 0 is dense by mlp_only_layers, 2 by decoder_sparse_step; llama.cpp has no such thing
    "qwen3-moe-mixed": (
        hf.Qwen3MoeConfig,
        TEXT
        | dict(hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1)
        | dict(head_dim=32, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=False)
        | dict(mlp_only_layers=[0], decoder_sparse_step=2, tie_word_embeddings=True)
        | dict(rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
        67,
    ),
    "qwen3_5": (
        hf.Qwen3_5TextConfig,
        TEXT
        | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2)
        | dict(num_key_value_heads=1, head_dim=32, tie_word_embeddings=True)
        | dict(linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=16, linear_value_head_dim=16)
        | dict(
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.25,
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
            }
        ),
        97,
    ),
    "qwen3_5-moe": (
        hf.Qwen3_5MoeConfig,
        wrapped(
            QWEN_VISION,
            TEXT
            | dict(hidden_size=32, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
            | dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16)
            | dict(num_experts=6, num_experts_per_tok=3, moe_intermediate_size=8, shared_expert_intermediate_size=16)
            | dict(layer_types=[L, L, L, F, L], tie_word_embeddings=False, mtp_num_hidden_layers=1)
            | dict(
                rope_parameters={
                    "rope_type": "default",
                    "rope_theta": 1e7,
                    "partial_rotary_factor": 0.5,
                    "mrope_section": [2, 1, 1],
                    "mrope_interleaved": True,
                }
            ),
        ),
        131,
    ),
    "gemma2": (
        hf.Gemma2Config,
        TEXT
        | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)
        | dict(head_dim=16, query_pre_attn_scalar=9, sliding_window=24, attn_logit_softcapping=5.0)
        | dict(final_logit_softcapping=4.0, rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
        81,
    ),
    "gemma3": (
        hf.Gemma3TextConfig,
        TEXT
        | dict(hidden_size=32, intermediate_size=24, num_hidden_layers=7, num_attention_heads=2, num_key_value_heads=1)
        | dict(head_dim=32, query_pre_attn_scalar=20, sliding_window=21, layer_types=[S] * 5 + [F, S])
        | dict(
            rope_parameters={
                S: {"rope_type": "default", "rope_theta": 10_000.0},
                F: {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
            }
        ),
        95,
    ),
    "gemma4-e2b": (
        hf.Gemma4Config,
        wrapped(
            GEMMA_VISION,
            gemma4(
                **dict(hidden_size=32, intermediate_size=16, num_hidden_layers=6, num_attention_heads=2),
                **dict(num_key_value_heads=1, head_dim=32, global_head_dim=64, sliding_window=23),
                **dict(layer_types=[S, F, S, F, S, F], num_kv_shared_layers=2, use_double_wide_mlp=True),
                **dict(hidden_size_per_layer_input=6, vocab_size_per_layer_input=VOCAB, tie_word_embeddings=True),
            ),
            audio_config=None,
        ),
        99,
    ),
    "gemma4-e4b": (
        hf.Gemma4TextConfig,
        gemma4(
            **dict(hidden_size=32, intermediate_size=40, num_hidden_layers=6, num_attention_heads=4),
            **dict(num_key_value_heads=2, head_dim=8, global_head_dim=16, sliding_window=16),
            **dict(layer_types=[S, S, S, F, S, F], num_kv_shared_layers=2),
            **dict(hidden_size_per_layer_input=4, vocab_size_per_layer_input=VOCAB),
        ),
        85,
    ),
    "gemma4-26b": (
        hf.Gemma4TextConfig,
        gemma4(
            **dict(hidden_size=32, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4),
            **dict(num_key_value_heads=2, head_dim=16, global_head_dim=32, sliding_window=32),
            **dict(layer_types=[S, S, F], attention_k_eq_v=True, num_global_key_value_heads=1),
            **dict(enable_moe_block=True, num_experts=8, top_k_experts=3, moe_intermediate_size=8),
        ),
        79,
    ),
    "gemma4-31b": (
        hf.Gemma4TextConfig,
        gemma4(
            **dict(hidden_size=40, intermediate_size=32, num_hidden_layers=4, num_attention_heads=6),
            **dict(num_key_value_heads=3, head_dim=8, global_head_dim=16, sliding_window=25),
            **dict(layer_types=[S, S, S, F], attention_k_eq_v=True, num_global_key_value_heads=2),
        ),
        103,
    ),
    # the window is shorter than the sequence; llama.cpp's `llama` has none
    "mistral": (
        hf.MistralConfig,
        TEXT
        | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
        | dict(sliding_window=26, rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
        84,
    ),
    # the factor of Q is 1 up to position 31, and grows twice behind it
    "ministral3": (
        hf.Ministral3Config,
        TEXT
        | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
        | dict(head_dim=32, tie_word_embeddings=True, max_position_embeddings=128)
        | dict(
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "max_position_embeddings": 128,
                "beta_fast": 4.0,
                "beta_slow": 0.5,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.3,
            }
        ),
        91,
    ),
    # of four heads one has a sink far above the scores, and two have one among them
    "gpt-oss": (
        hf.GptOssConfig,
        TEXT
        | dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1)
        | dict(head_dim=32, sliding_window=22, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256)
        | dict(
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 150_000.0,
                "factor": 8.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 128,
            }
        ),
        87,
    ),
    # not named phi3: llama.cpp looks for tokens of that model by the name in the file
    "phi-longrope": (
        hf.Phi3Config,
        TEXT
        | dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
        | dict(max_position_embeddings=1024, original_max_position_embeddings=256, sliding_window=None)
        | dict(
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.2, 1.4, 1.7, 2.0],
                "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
            }
        ),
        77,
    ),
    "smollm3": (
        hf.SmolLM3Config,
        TEXT
        | dict(hidden_size=32, intermediate_size=40, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2)
        | dict(tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 2e6}),
        73,
    ),
    "olmo2": (
        hf.Olmo2Config,
        TEXT
        | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
        | dict(tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
        71,
    ),
    "olmo3": (
        hf.Olmo3Config,
        TEXT
        | dict(hidden_size=32, intermediate_size=40, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1)
        | dict(sliding_window=19, max_position_embeddings=256, tie_word_embeddings=False)
        | dict(
            rope_parameters={
                S: {"rope_type": "default", "rope_theta": 5e5},
                F: {
                    "rope_type": "yarn",
                    "rope_theta": 5e5,
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                },
            }
        ),
        86,
    ),
    "granite": (
        hf.GraniteConfig,
        TEXT
        | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
        | dict(embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.7, logits_scaling=2.5)
        | dict(tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
        74,
    ),
    "granite-moe": (
        hf.GraniteMoeSharedConfig,
        TEXT
        | dict(hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
        | dict(embedding_multiplier=2.0, attention_multiplier=0.3, residual_multiplier=0.8, logits_scaling=1.5)
        | dict(num_local_experts=6, num_experts_per_tok=3, shared_intermediate_size=24, tie_word_embeddings=True)
        | dict(rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
        72,
    ),
    "glm4": (
        hf.Glm4Config,
        TEXT
        | dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
        | dict(head_dim=16, attention_bias=True, tie_word_embeddings=False)
        | dict(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        78,
    ),
    "glm4-moe": (
        hf.Glm4MoeConfig,
        TEXT
        | dict(hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
        | dict(head_dim=16, attention_bias=True, use_qk_norm=True, first_k_dense_replace=1, routed_scaling_factor=1.5)
        | dict(n_routed_experts=6, num_experts_per_tok=3, moe_intermediate_size=16, n_shared_experts=1)
        | dict(num_nextn_predict_layers=0, tie_word_embeddings=False)
        | dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}),
        88,
    ),
    "qwen3-vl": (
        hf.Qwen3VLConfig,
        wrapped(
            QWEN_VISION,
            TEXT
            | dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4)
            | dict(num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)
            | dict(
                rope_parameters={
                    "rope_type": "default",
                    "rope_theta": 5e6,
                    "mrope_section": [4, 2, 2],
                    "mrope_interleaved": True,
                }
            ),
        ),
        82,
    ),
    # Qwen2 with a window from the second layer on; llama.cpp's `qwen2` has none
    "qwen2-window": (
        hf.Qwen2Config,
        TEXT
        | dict(hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
        | dict(use_sliding_window=True, sliding_window=18, max_window_layers=1, tie_word_embeddings=True)
        | dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        70,
    ),
    "qwen3-vl-moe": (
        hf.Qwen3VLMoeConfig,
        wrapped(
            QWEN_VISION,
            TEXT
            | dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4)
            | dict(num_key_value_heads=2, head_dim=16, tie_word_embeddings=False)
            | dict(num_experts=6, num_experts_per_tok=3, moe_intermediate_size=24)
            | dict(
                rope_parameters={
                    "rope_type": "default",
                    "rope_theta": 5e6,
                    "mrope_section": [4, 2, 2],
                    "mrope_interleaved": True,
                }
            ),
        ),
        80,
    ),
    # the text model of Mistral Small 3.1: heads that are not hidden / heads wide, no window
    "mistral3": (
        hf.Mistral3Config,
        wrapped(
            PIXTRAL_VISION,
            TEXT
            | dict(model_type="mistral", hidden_size=32, intermediate_size=48, num_hidden_layers=2)
            | dict(num_attention_heads=4, num_key_value_heads=2, head_dim=16, sliding_window=None)
            | dict(rms_norm_eps=1e-5, tie_word_embeddings=False)
            | dict(rope_parameters={"rope_type": "default", "rope_theta": 1e9}),
            image_token_index=3,
        ),
        76,
    ),
}
CHECKPOINTS["gpt-oss-mxfp4"] = (
    hf.GptOssConfig,
    CHECKPOINTS["gpt-oss"][1] | dict(hidden_size=64, intermediate_size=32, num_local_experts=3),
    73,
)
# Granite 4 without Mamba: what would be the shared expert is the MLP
CHECKPOINTS["granite-hybrid"] = (
    hf.GraniteMoeHybridConfig,
    CHECKPOINTS["granite"][1]
    | dict(num_local_experts=0, num_experts_per_tok=0, shared_intermediate_size=48, mamba_n_heads=4)
    | dict(layer_types=[F] * 2, position_embedding_type="rope"),
    68,
)
# the same with experts, and without RoPE
CHECKPOINTS["granite-hybrid-moe"] = (
    hf.GraniteMoeHybridConfig,
    CHECKPOINTS["granite-moe"][1]
    | dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=8, shared_intermediate_size=12)
    | dict(mamba_n_heads=4, layer_types=[F] * 2, position_embedding_type="nope"),
    66,
)
# layers as the released files call them
LAYERS = {"granite-hybrid": ["attention"] * 2, "granite-hybrid-moe": ["attention"] * 2}
# experts in blocks of FP4, as the released files have them
MXFP4 = {"gpt-oss-mxfp4"}
SHARDED = {"llama3-rope": "60KB"}
# experts as one tensor, as Qwen3.5's files have them; transformers saves one tensor for each expert by itself
FUSED = {"qwen3_5-moe", "qwen3-moe-mixed"}
# the configuration as the released files have it; transformers writes per_layer_config instead
GLOBAL_HEADS = {"gemma4-e2b", "gemma4-26b"}
# kept in float32, unrounded, as files with mixed types have them
FLOAT32 = {"qwen3_5-moe": ("A_log", "linear_attn.norm.weight")}
# GGUF does not record query_pre_attn_scalar; llama.cpp takes head_dim
GGUF_SETTINGS = {
    "gemma2": dict(query_pre_attn_scalar=16),
    "gemma3": dict(query_pre_attn_scalar=32),
    # nor the window of `llama` and `qwen2`
    "mistral": dict(sliding_window=None),
    "qwen2-window": dict(use_sliding_window=False, layer_types=None),
    # nor that there is no RoPE, if no layer is of Mamba
    "granite-hybrid-moe": dict(position_embedding_type="rope"),
    # nor that YaRN's bounds are not whole; llama.cpp rounds them
    **dict.fromkeys(
        ("gpt-oss", "gpt-oss-mxfp4"),
        dict(rope_parameters=CHECKPOINTS["gpt-oss"][1]["rope_parameters"] | {"truncate": True}),
    ),
}


def model_of(config):
    whole = {
        hf.Qwen3_5MoeConfig: hf.Qwen3_5MoeForConditionalGeneration,
        hf.Gemma4Config: hf.Gemma4ForConditionalGeneration,
        hf.Qwen3VLConfig: hf.Qwen3VLForConditionalGeneration,
        hf.Qwen3VLMoeConfig: hf.Qwen3VLMoeForConditionalGeneration,
        hf.Mistral3Config: hf.Mistral3ForConditionalGeneration,
    }
    kind = whole.get(type(config)) or hf.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return kind._from_config(config, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32)


def draw(model, name, seed):
    """All weights anew, each rounded to the type that it is stored in."""
    generator = torch.Generator().manual_seed(seed)
    gemma = "gemma" in name
    width = model.config.get_text_config().hidden_size

    def normal(shape, std, mean=0.0):
        return torch.randn(shape, generator=generator) * std + mean

    def uniform(shape, low, high):
        return torch.rand(shape, generator=generator) * (high - low) + low

    for key, old in itertools.chain(model.named_parameters(), model.named_buffers()):
        shape, leaf = old.shape, key.rsplit(".", 1)[-1]
        if key not in model.state_dict():  # rope tables
            continue
        if leaf == "sinks":
            new = torch.tensor([6.0, 1.5, -2.0, 0.5]) + normal(shape, 0.3)
        elif leaf == "e_score_correction_bias":
            new = normal(shape, 0.2)
        elif leaf == "A_log":
            new = uniform(shape, 0.5, 8.0).log()
        elif leaf == "dt_bias":
            new = uniform(shape, -6.0, -2.0)
        elif leaf in ("layer_scalar", "per_expert_scale"):
            new = uniform(shape, 0.5, 1.5)
        elif leaf == "bias" or leaf.endswith("_proj_bias"):
            new = normal(shape, 0.3)
        elif old.ndim == 1:  # norms, router.scale; with ones or zeros by transformers
            new = normal(shape, 0.3, old.float().mean())
            if "gemma4" in name and re.search("[qk]_norm", key):
                new *= 0.7  # its scores are not divided by sqrt(head_dim)
        elif "embed_tokens_per_layer" in key:
            new = normal(shape, (old.shape[1] // model.config.get_text_config().num_hidden_layers) ** -0.5)
        elif "embed_tokens" in key:  # gemma's are multiplied by sqrt(width)
            new = normal(shape, 2 * width**-0.5 if gemma else 4 * width**-0.5)
        elif "router.proj" in key:  # gemma4's input has a norm of one
            new = normal(shape, 3.0)
        elif key.endswith(("mlp.gate.weight", "mlp.router.weight", "moe.router.weight")):
            new = normal(shape, 3 * shape[-1] ** -0.5)
        else:
            new = normal(shape, 1.3 * old[0].numel() ** -0.5 if old.ndim != 3 or "conv" in key else 1.3 * shape[-1] ** -0.5)
        if name.startswith("gpt-oss") and key.endswith("gate_up_proj"):
            new *= 4  # some gates and ups go beyond the limit
        if not key.endswith(FLOAT32.get(name, ("/",))):
            new = new.bfloat16().float()
        with torch.no_grad():
            old.copy_(new)
    return generator


class Doubles(TorchFunctionMode):
    """float32 asked for is float64 given: norms, softmax, rope, the delta rule."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def wide(x):
            return torch.float64 if x is torch.float32 else x

        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*map(wide, args), **{k: wide(v) for k, v in (kwargs or {}).items()})


def logits_of(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def double_logits_of(model, ids):
    with Doubles():
        return logits_of(model.double(), ids)


def gaps_of(model, ids):
    """For each token the smallest gap, over layers, between the last expert taken and the first left out."""
    gaps = torch.full((len(ids),), torch.inf)

    def hook(module, _, out):
        k = getattr(module, "top_k", None) or module.config.top_k_experts
        correction = getattr(module, "e_score_correction_bias", None)
        if correction is not None:
            probabilities = out[0].sigmoid() + correction
        else:
            probabilities = out[0] if "Gemma4" in type(module).__name__ else out[0].softmax(-1)
        best = probabilities.topk(k + 1).values
        torch.minimum(gaps, best[:, k - 1] - best[:, k], out=gaps)

    hooks = [m.register_forward_hook(hook) for m in model.modules() if type(m).__name__.endswith("Router")]
    logits_of(model, ids)
    for h in hooks:
        h.remove()
    return gaps


def positions_of(config, length):
    window = getattr(config, "sliding_window", None)
    wanted = [0, window - 1, window, 2 * window + 1] if window else [0, 1, 31, 63]
    return sorted({*wanted, 64, length - 1})


def tokenizer_of():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<pad>", "<eos>", "<bos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train([str(ROOT / "corpora/persuasion.txt")], trainer)
    assert tokenizer.get_vocab_size() == VOCAB
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )


def relative(a, b):
    """Largest difference by the largest logit."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def write_logits(path, ids, logits, positions):
    rows = [
        f'    {{"position": {p}, "logits": [{", ".join(f"{v:.8g}" for v in logits[p].tolist())}]}}' for p in positions
    ]
    source = f"transformers {version('transformers')}, torch {version('torch')} (CPU, float32, eager attention)"
    lines = ["{", f'  "source": "{source}",', f'  "ids": {json.dumps(ids)},', '  "positions": [', ",\n".join(rows)]
    path.write_text("\n".join(lines) + "\n  ]\n}\n")


def edit(folder, change):
    """Rewrites the folder's only safetensors file with its tensors changed."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


# pairs of a head that no section of multimodal RoPE takes: llama.cpp does not turn them in a text
UNTURNED = {"qwen3-vl": [7], "qwen3-vl-moe": [7]}


def unturned(model, name):
    other = copy.deepcopy(model)
    other.model.language_model.rotary_emb.inv_freq[UNTURNED[name]] = 0
    return other


def make(name, tokenizer):
    kind, settings, length = CHECKPOINTS[name]
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    model = model_of(kind(**settings)).eval()
    text = model.config.get_text_config()
    positions = positions_of(text, length)
    generator = draw(model, name, list(CHECKPOINTS).index(name))
    blocks = in_blocks(model) if name in MXFP4 else {}

    def token():
        return int(torch.randint(text.vocab_size, (), generator=generator))

    ids = [token() for _ in range(length)]
    while (close := gaps_of(model, ids) < 2e-3).any():
        ids[int(close.nonzero()[0])] = token()  # earlier tokens do not see it
    logits = logits_of(model, ids)
    folder.mkdir(parents=True)
    write_logits(folder / "logits.json", ids, logits, positions)

    if name in GGUF_SETTINGS:
        other = model_of(kind(**settings | GGUF_SETTINGS[name])).eval()
        other.load_state_dict(model.state_dict())
        write_logits(folder / "logits-gguf.json", ids, logits_of(other, ids), positions)
    if name in UNTURNED:
        write_logits(folder / "logits-gguf.json", ids, logits_of(unturned(model, name), ids), positions)

    gap = float(gaps_of(model, ids).min())
    wide = {k: v.clone() for k, v in model.named_parameters() if k.endswith(FLOAT32.get(name, ("/",)))}
    model.bfloat16()
    for key, value in wide.items():
        model.get_parameter(key).data = value
    for config in (model.config, text, getattr(model.config, "vision_config", text)):
        config.dtype = "bfloat16"
    model.save_pretrained(
        folder, max_shard_size=SHARDED.get(name, "50GB"), save_original_format=name not in FUSED
    )
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    compact = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(compact, ensure_ascii=False, separators=(",", ":")) + "\n")
    if name in GLOBAL_HEADS:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        asked = settings.get("text_config", settings)
        part = config.get("text_config", config)
        del part["per_layer_config"]
        part["global_head_dim"] = asked["global_head_dim"]
        part["num_global_key_value_heads"] = asked.get("num_global_key_value_heads")
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if name in LAYERS:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | {"layer_types": LAYERS[name]}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if blocks:
        edit(folder, lambda tensors: put_blocks(tensors, blocks))
        path = folder / "config.json"
        config = json.loads(path.read_text()) | {"quantization_config": DESCRIBED}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if name in RELEASED:
        edit(folder, lambda tensors: RELEASED[name](tensors, text, generator))
    choices = f", smallest gap {gap:.1e}" if gap < 1 else ""
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, {size} bytes{choices}", flush=True)


# as in the released files
DESCRIBED = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
}


def in_blocks(model):
    """Rounds the experts to MXFP4: their blocks and scales, by name. The model has transformers' numbers of them."""
    blocks = {}
    for key, weight in model.named_parameters():
        if weight.ndim != 3:
            continue
        # (experts, in, out); blocks lie along the inputs
        parts = weight.detach().transpose(1, 2).unflatten(-1, (-1, 32))
        exponent = parts.abs().amax(-1, keepdim=True).log2().floor() - 2
        numbers = torch.tensor(FP4_VALUES)
        codes = (parts * torch.exp2(-exponent))[..., None].sub(numbers).abs().argmin(-1).to(torch.uint8)
        packed = codes[..., 0::2] | codes[..., 1::2] << 4
        scales = (exponent.squeeze(-1) + 127).to(torch.uint8)
        with torch.no_grad():
            weight.copy_(convert_moe_packed_tensors(packed, scales, dtype=torch.float32))
        blocks |= {f"{key}_blocks": packed, f"{key}_scales": scales}
    return blocks


def put_blocks(tensors, blocks):
    for key in blocks:
        tensors.pop(key.removesuffix("_blocks"), None)
    tensors |= blocks


def add_redundant(tensors, text, generator):
    """k_proj, v_proj and k_norm of the layers that share another's: the released files have them."""
    for i in range(text.num_hidden_layers - text.num_kv_shared_layers, text.num_hidden_layers):
        like = text.layer_types.index(text.layer_types[i])
        for part in ("k_proj", "v_proj", "k_norm"):
            key = f"model.language_model.layers.{{}}.self_attn.{part}.weight"
            shape = tensors[key.format(like)].shape
            tensors[key.format(i)] = torch.randn(shape, generator=generator).bfloat16()


def add_mtp(tensors, text, generator):
    """The head that predicts a second token: a full-attention layer and what joins it to the trunk."""
    like = f"model.language_model.layers.{text.layer_types.index(F)}."
    shapes = {"layers.0." + k.removeprefix(like): v.shape for k, v in tensors.items() if k.startswith(like)}
    width = text.hidden_size
    shapes |= {f"{k}.weight": (width,) for k in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    for key, shape in (shapes | {"fc.weight": (width, 2 * width)}).items():
        tensors["mtp." + key] = torch.randn(shape, generator=generator).bfloat16()


def turn_experts(tensors, text, generator):
    """(in, out), as the released files have them. transformers saves (out, in), and reads both by their shapes."""
    for key in tensors:
        if ".experts." in key:
            tensors[key] = tensors[key].transpose(1, 2).contiguous()


# what released files have and saved ones have not
RELEASED = {"gemma4-e2b": add_redundant, "qwen3_5-moe": add_mtp, "qwen3-vl-moe": turn_experts}


def load(name, **settings):
    folder = OUT / name
    config = hf.AutoConfig.from_pretrained(folder)
    kind = getattr(hf, config.architectures[0])
    for key, value in settings.items():
        setattr(config.get_text_config(), key, value)
    return kind.from_pretrained(
        folder, config=config, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
    ).eval()


# settings that must matter, with another value
SETTINGS = {
    "gemma2": dict(sliding_window=25, attn_logit_softcapping=6.0, final_logit_softcapping=5.0, query_pre_attn_scalar=16),
    "gemma3": dict(sliding_window=22, query_pre_attn_scalar=32),
    "gemma4-e2b": dict(sliding_window=24, final_logit_softcapping=6.0),
    "gemma4-e4b": dict(sliding_window=17, final_logit_softcapping=6.0),
    "gemma4-26b": dict(sliding_window=33, final_logit_softcapping=6.0, top_k_experts=2),
    "gemma4-31b": dict(sliding_window=26, final_logit_softcapping=6.0),
    "qwen3-moe": dict(norm_topk_prob=False, num_experts_per_tok=2),
    "qwen3-moe-mixed": dict(norm_topk_prob=True, num_experts_per_tok=1),
    "qwen3_5-moe": dict(num_experts_per_tok=2),
    "mistral": dict(sliding_window=27),
    "gpt-oss": dict(sliding_window=23, num_experts_per_tok=2, swiglu_limit=7.5, swiglu_alpha=1.6),
    "olmo3": dict(sliding_window=20),
    "granite": dict(residual_multiplier=0.6, attention_multiplier=0.25, logits_scaling=2.0, embedding_multiplier=2.5),
    "granite-moe": dict(num_experts_per_tok=2, residual_multiplier=0.7),
    "granite-hybrid": dict(position_embedding_type=None, logits_scaling=2.0),
    "granite-hybrid-moe": dict(position_embedding_type="rope", num_experts_per_tok=1),
    "glm4-moe": dict(num_experts_per_tok=2, routed_scaling_factor=1.0, norm_topk_prob=False),
    "qwen2-window": dict(sliding_window=19),
    "qwen3-vl-moe": dict(num_experts_per_tok=2),
    "gpt-oss-mxfp4": dict(sliding_window=23, num_experts_per_tok=1),
}


def check(name):
    stored = json.loads((OUT / name / "logits.json").read_text())
    ids, positions = stored["ids"], [p["position"] for p in stored["positions"]]
    fixture = torch.tensor([p["logits"] for p in stored["positions"]], dtype=torch.float64)
    model = load(name)
    here = logits_of(model, ids)
    single = relative(here[positions], fixture)

    # each tensor turned back to front; a lone scalar made half as large again
    effects = {}
    with torch.no_grad():
        for key in model.state_dict():
            if re.search("visual|vision|multi_modal", key) or key == "lm_head.weight" and model.config.tie_word_embeddings:
                continue
            tensor = model.get_parameter_or_buffer(key)
            old = tensor.clone()
            tensor.copy_(old * 1.5 if old.numel() == 1 else old.flatten().flip(0).view(old.shape))
            effects[key] = relative(logits_of(model, ids), here)
            tensor.copy_(old)
        # each rope frequency a tenth higher
        for key, tensor in model.named_buffers():
            if "inv_freq" in key and "original" not in key and "vis" not in key:
                for i in range(len(tensor)):
                    old = tensor[i].clone()
                    tensor[i] *= 1.1
                    effects[f"{key}[{i}]"] = relative(logits_of(model, ids), here)
                    tensor[i] = old
    for key, value in SETTINGS.get(name, {}).items():
        effects[key] = relative(logits_of(load(name, **{key: value}), ids), here)
    double = relative(fixture, double_logits_of(model, ids)[positions])
    turns = {k for k in effects if "inv_freq" in k}
    settings = SETTINGS.get(name, {})
    least = min((k for k in effects if k not in turns and k not in settings), key=effects.get)
    print(
        f"{name}: float32 {single:.1e}, float64 {double:.1e}, logits' deviation {fixture.std():.2f}; "
        f"least of {len(effects) - len(turns) - len(settings)} tensors {least} {effects[least]:.1e}; "
        f"{sum(effects[k] > 1e-4 for k in turns)} of {len(turns)} rope frequencies above 1e-4; "
        + ", ".join(f"{k} {effects[k]:.1e}" for k in settings),
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check what is stored instead of making it anew")
    parser.add_argument("names", nargs="*", help="make or check only these checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    tokenizer = None if args.check else tokenizer_of()
    for name in args.names or CHECKPOINTS:
        check(name) if args.check else make(name, tokenizer)


if __name__ == "__main__":
    main()
