#!/usr/bin/env python3
"""Names and shapes of the real checkpoints -> tests/fixtures/real/<name>/{config.json, tensors.txt}

transformers' classes are built with the real configurations on torch's meta device, so nothing is
downloaded and no weight exists. A line of tensors.txt is `name d0,d1,...` (for a scalar nothing follows
the blank). `{a..b}` in a name stands for every number from a to b; it is used only for experts and for
the vision and audio towers. ` U8` behind the shape marks bytes; all else is bfloat16. ` optional` at the end marks tensors that some of the published files
have and others do not. totals.json has the number of parameters and of tensors of the text model,
without the optional ones.
"""

import argparse
import json
import logging
import re
from pathlib import Path

import torch
import transformers as hf
from checkpoints import DESCRIBED
from transformers.core_model_loading import revert_weight_conversion

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/fixtures/real"
S, F, L = "sliding_attention", "full_attention", "linear_attention"

QWEN36 = dict(
    text_config=dict(
        max_position_embeddings=262144,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000_000,
            "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10],
            "mrope_interleaved": True,
        },
        layer_types=[F if (i + 1) % 4 == 0 else L for i in range(40)],
        bos_token_id=248044,
        eos_token_id=248044,
        dtype="bfloat16",
        # written in the real file, not read by transformers
        attn_output_gate=True,
        full_attention_interval=4,
        mamba_ssm_dtype="float32",
        mtp_num_hidden_layers=1,
        mtp_use_dedicated_embeddings=False,
        partial_rotary_factor=0.25,
    ),
    vision_config=dict(out_hidden_size=2048, deepstack_visual_indexes=[]),
)


def gemma4(layers, period, vision, audio, **text):
    text = dict(
        num_hidden_layers=layers,
        layer_types=[F if (i + 1) % period == 0 else S for i in range(layers)],
        final_logit_softcapping=30.0,
        dtype="bfloat16",
        global_head_dim=512,
        num_global_key_value_heads=None,
    ) | text
    return dict(text_config=text, vision_config=vision, audio_config=audio)


# from memory, and of no matter to the text model
BIG_VISION = dict(
    hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, num_key_value_heads=16
) | dict(head_dim=72, standardize=True)
SMALL_VISION = dict(use_clipped_linears=True)

GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 150_000.0,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
OLMO3_ROPE = {
    S: {"rope_type": "default", "rope_theta": 500_000.0},
    F: {
        "rope_type": "yarn",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    },
}
GRANITE = dict(
    max_position_embeddings=131072,
    rms_norm_eps=1e-5,
    embedding_multiplier=12.0,
    residual_multiplier=0.22,
    tie_word_embeddings=True,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000_000.0},
)


def granite4(layers, **sizes):
    """Granite 4 without Mamba."""
    kind = dict(vocab_size=100352, num_hidden_layers=layers, layer_types=[F] * layers, position_embedding_type="rope")
    none = dict(num_local_experts=0, num_experts_per_tok=0)
    return GRANITE | kind | none | dict(intermediate_size=sizes["shared_intermediate_size"]) | sizes


MODELS = {
    "Qwen3.6-35B-A3B": (hf.Qwen3_5MoeForConditionalGeneration, hf.Qwen3_5MoeConfig, QWEN36),
    "Gemma4-E2B": (
        hf.Gemma4ForConditionalGeneration,
        hf.Gemma4Config,
        gemma4(
            35, 5, SMALL_VISION, {},
            **dict(hidden_size=1536, intermediate_size=6144, num_key_value_heads=1),
            **dict(num_kv_shared_layers=20, use_double_wide_mlp=True),
        ),
    ),
    "Gemma4-E4B": (
        hf.Gemma4ForConditionalGeneration,
        hf.Gemma4Config,
        gemma4(
            42, 6, SMALL_VISION, {},
            **dict(hidden_size=2560, intermediate_size=10240, num_key_value_heads=2),
            num_kv_shared_layers=18,
        ),
    ),
    "Gemma4-26B-A4B": (
        hf.Gemma4ForConditionalGeneration,
        hf.Gemma4Config,
        gemma4(
            30, 6, BIG_VISION, None,
            **dict(hidden_size=2816, intermediate_size=2112, num_attention_heads=16, num_key_value_heads=8),
            **dict(num_global_key_value_heads=2, attention_k_eq_v=True),
            **dict(sliding_window=1024, hidden_size_per_layer_input=0, max_position_embeddings=262144),
            **dict(enable_moe_block=True, num_experts=128, top_k_experts=8, moe_intermediate_size=704),
        ),
    ),
    "Gemma4-31B": (
        hf.Gemma4ForConditionalGeneration,
        hf.Gemma4Config,
        gemma4(
            60, 6, BIG_VISION, None,
            **dict(hidden_size=5376, intermediate_size=21504, num_attention_heads=32, num_key_value_heads=16),
            **dict(num_global_key_value_heads=4, attention_k_eq_v=True),
            **dict(sliding_window=1024, hidden_size_per_layer_input=0, max_position_embeddings=262144),
        ),
    ),
    "Qwen3-30B-A3B": (
        hf.Qwen3MoeForCausalLM,
        hf.Qwen3MoeConfig,
        dict(
            num_hidden_layers=48,
            head_dim=128,
            norm_topk_prob=True,
            max_position_embeddings=40960,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            bos_token_id=151643,
            eos_token_id=151645,
            dtype="bfloat16",
        ),
    ),
    "Mistral-7B-v0.3": (
        hf.MistralForCausalLM,
        hf.MistralConfig,
        dict(
            vocab_size=32768,
            max_position_embeddings=32768,
            rms_norm_eps=1e-5,
            sliding_window=None,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        ),
    ),
    # the class's defaults are its sizes
    "Ministral-3-8B": (hf.Ministral3ForCausalLM, hf.Ministral3Config, {}),
    "gpt-oss-20b": (
        hf.GptOssForCausalLM,
        hf.GptOssConfig,
        dict(num_hidden_layers=24, num_local_experts=32, rope_parameters=GPT_OSS_ROPE),
    ),
    "gpt-oss-120b": (hf.GptOssForCausalLM, hf.GptOssConfig, dict(rope_parameters=GPT_OSS_ROPE)),
    "Phi-4": (
        hf.Phi3ForCausalLM,
        hf.Phi3Config,
        dict(
            vocab_size=100352,
            hidden_size=5120,
            intermediate_size=17920,
            num_hidden_layers=40,
            num_attention_heads=40,
            num_key_value_heads=10,
            max_position_embeddings=16384,
            original_max_position_embeddings=16384,
            rope_parameters={"rope_type": "default", "rope_theta": 250_000.0},
        )
        | dict(bos_token_id=100257, eos_token_id=100265, pad_token_id=100349),
    ),
    "SmolLM3-3B": (
        hf.SmolLM3ForCausalLM,
        hf.SmolLM3Config,
        dict(max_position_embeddings=65536, rope_parameters={"rope_type": "default", "rope_theta": 5_000_000.0}),
    ),
    "OLMo-2-7B": (
        hf.Olmo2ForCausalLM,
        hf.Olmo2Config,
        dict(
            vocab_size=100352,
            max_position_embeddings=4096,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        ),
    ),
    "Olmo-3-7B": (
        hf.Olmo3ForCausalLM,
        hf.Olmo3Config,
        dict(vocab_size=100278, max_position_embeddings=65536, rms_norm_eps=1e-6, rope_parameters=OLMO3_ROPE),
    ),
    "Granite-3.3-2B": (
        hf.GraniteForCausalLM,
        hf.GraniteConfig,
        GRANITE
        | dict(vocab_size=49159, hidden_size=2048, intermediate_size=8192, num_hidden_layers=40)
        | dict(num_attention_heads=32, num_key_value_heads=8, attention_multiplier=0.015625, logits_scaling=8.0),
    ),
    "Granite-3.1-3B-A800M": (
        hf.GraniteMoeForCausalLM,
        hf.GraniteMoeConfig,
        GRANITE
        | dict(vocab_size=49155, hidden_size=1536, intermediate_size=512, num_hidden_layers=32, num_local_experts=40)
        | dict(num_experts_per_tok=8, num_attention_heads=24, num_key_value_heads=8)
        | dict(attention_multiplier=0.015625, logits_scaling=6.0),
    ),
    "Granite-4.0-Micro": (
        hf.GraniteMoeHybridForCausalLM,
        hf.GraniteMoeHybridConfig,
        granite4(40, hidden_size=2560, num_attention_heads=40, num_key_value_heads=8, shared_intermediate_size=8192)
        | dict(attention_multiplier=0.015625, logits_scaling=10.0, mamba_n_heads=80, mamba_d_head=64),
    ),
    "Granite-4.0-350M": (
        hf.GraniteMoeHybridForCausalLM,
        hf.GraniteMoeHybridConfig,
        granite4(28, hidden_size=1024, num_attention_heads=16, num_key_value_heads=4, shared_intermediate_size=2048)
        | dict(attention_multiplier=0.015625, logits_scaling=4.0, mamba_n_heads=32, mamba_d_head=64),
    ),
    "GLM-4-9B": (
        hf.Glm4ForCausalLM,
        hf.Glm4Config,
        dict(
            max_position_embeddings=32768,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
        ),
    ),
    "GLM-4.5-Air": (
        hf.Glm4MoeForCausalLM,
        hf.Glm4MoeConfig,
        dict(
            head_dim=128,
            attention_bias=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.5},
        ),
    ),
    "Qwen3-VL-8B": (
        hf.Qwen3VLForConditionalGeneration,
        hf.Qwen3VLConfig,
        dict(
            text_config=dict(
                hidden_size=4096,
                intermediate_size=12288,
                num_hidden_layers=36,
                num_attention_heads=32,
                num_key_value_heads=8,
                max_position_embeddings=262144,
                rope_parameters={
                    "rope_type": "default",
                    "rope_theta": 5_000_000,
                    "mrope_section": [24, 20, 20],
                    "mrope_interleaved": True,
                },
            ),
            vision_config=dict(out_hidden_size=4096),
        ),
    ),
}
# what the totals must come to, exactly or in rounded billions
EXPECTED = {
    "Qwen3.6-35B-A3B": 34_660_610_688,
    "Gemma4-E2B": 4_628_569_379,
    "Gemma4-E4B": "7.46",
    "Gemma4-26B-A4B": "25.23",
    "Gemma4-31B": "30.697",
    "Qwen3-30B-A3B": "30.53",
    "Mistral-7B-v0.3": 7_248_023_552,
    "Ministral-3-8B": "8.49",
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "Phi-4": 14_659_507_200,
    "SmolLM3-3B": 3_075_098_624,
    "OLMo-2-7B": "7.30",
    "Olmo-3-7B": 7_298_011_136,
    "Granite-3.3-2B": "2.53",
    "Granite-3.1-3B-A800M": "3.30",
    "Granite-4.0-Micro": "3.40",
    "Granite-4.0-350M": "0.35",
    "GLM-4-9B": 9_400_279_040,
    "GLM-4.5-Air": "106.85",
    "Qwen3-VL-8B": 8_190_735_360,
}
# the files have a tensor for each expert, or other names than transformers' classes
CONVERTED = {"Qwen3-30B-A3B", "Granite-3.1-3B-A800M", "GLM-4.5-Air"}
# the files have experts in blocks of FP4
MXFP4 = {"gpt-oss-20b", "gpt-oss-120b"}


def hub_form(config, settings, architecture):
    """config.json as the hub has it: Gemma's wide heads by global_head_dim, and Granite's layers by their older names."""
    out = config.to_dict() | {"architectures": [architecture], "dtype": "bfloat16"}
    text = out.get("text_config", out)
    if config.model_type == "granitemoehybrid":
        out["layer_types"] = ["attention"] * config.num_hidden_layers
        del out["time_step_limit"]
    if text.pop("per_layer_config", None):
        text |= {k: settings["text_config"][k] for k in ("global_head_dim", "num_global_key_value_heads")}
    return out


def in_mxfp4(shapes):
    """Blocks and scales in place of experts, which the class has as (experts, in, out)."""
    for name, shape in shapes.items():
        if len(shape) == 3:
            experts, inputs, outputs = shape
            yield f"{name}_blocks", (experts, outputs, inputs // 32, 16)
            yield f"{name}_scales", (experts, outputs, inputs // 32)
        else:
            yield name, shape


def line(name, shape):
    bytes_ = " U8" if name.endswith(("_blocks", "_scales")) else ""
    return f"{name} {','.join(map(str, shape))}{bytes_}"


def is_text(name):
    return name.startswith(("model.language_model.", "lm_head.", "model.layers.", "model.embed_tokens.", "model.norm."))


def redundant(text):
    """Key and value weights of layers that use another's: Google's files have them, saved ones have not."""
    for i in range(text.num_hidden_layers - text.num_kv_shared_layers, text.num_hidden_layers):
        layer = text.per_layer_config[i]
        width = layer.num_key_value_heads * layer.head_dim
        prefix = f"model.language_model.layers.{i}.self_attn."
        yield prefix + "k_norm.weight", (layer.head_dim,)
        for part in ("k_proj", "v_proj"):
            yield f"{prefix}{part}.weight", (width, text.hidden_size)


def mtp(shapes, text):
    """Qwen's head for a second token: what joins it to the trunk, and one full-attention layer."""
    like = f"model.language_model.layers.{text.layer_types.index(F)}."
    yield from (("mtp.layers.0." + k.removeprefix(like), v) for k, v in shapes.items() if k.startswith(like))
    yield "mtp.fc.weight", (text.hidden_size, 2 * text.hidden_size)
    for part in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        yield f"mtp.{part}.weight", (text.hidden_size,)


def glm_mtp(shapes, text):
    """The layer behind the last one of GLM-4.5's files, which predicts a second token."""
    last, further = (f"model.layers.{text.num_hidden_layers - back}." for back in (1, 0))
    yield from ((further + k.removeprefix(last), v) for k, v in shapes.items() if k.startswith(last))
    yield further + "eh_proj.weight", (text.hidden_size, 2 * text.hidden_size)
    for part in ("enorm", "hnorm", "shared_head.norm"):
        yield f"{further}{part}.weight", (text.hidden_size,)
    for part in ("embed_tokens", "shared_head.head"):
        yield f"{further}{part}.weight", (text.vocab_size, text.hidden_size)


def fold(shapes):
    """Runs of a number in names that are otherwise equal, and of equal shape, in one line."""
    runs = {}
    for name, shape in shapes.items():
        pattern = r"experts\.(\d+)\." if is_text(name) else r"(?:layers|blocks)\.(\d+)\."
        match = None if name.startswith("mtp.") else re.search(pattern, name)
        if match:
            stem = name[: match.start(1)] + "{}" + name[match.end(1) :]
            runs.setdefault((stem, shape), []).append(int(match[1]))
        else:
            yield name, shape
    for (stem, shape), numbers in runs.items():
        assert numbers and sorted(numbers) == list(range(min(numbers), max(numbers) + 1)), stem
        yield stem.replace("{}", f"{{{min(numbers)}..{max(numbers)}}}"), shape


def write(name):
    architecture, kind, settings = MODELS[name]
    config = kind(**json.loads(json.dumps(settings)))  # it takes what it is given apart
    with torch.device("meta"):
        model = architecture(config)
    state = model.state_dict()
    if name in CONVERTED:
        state = revert_weight_conversion(model, state)  # one tensor for each expert
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    text = {k: v for k, v in shapes.items() if is_text(k)}
    total = sum(torch.Size(v).numel() for v in text.values())
    expected = EXPECTED[name]
    assert total == expected or f"{total / 1e9:.{len(expected.split('.')[1])}f}" == expected, (name, total)

    if name in MXFP4:
        text = shapes = dict(in_mxfp4(shapes))
    decoder = config.get_text_config()
    if getattr(decoder, "mtp_num_hidden_layers", 0):
        shapes |= dict(mtp(shapes, decoder))
    if name == "GLM-4.5-Air":
        shapes |= dict(glm_mtp(shapes, decoder))
    optional = dict(redundant(decoder)) if getattr(decoder, "num_kv_shared_layers", 0) else {}
    assert not optional.keys() & shapes.keys()
    lines = [line(k, v) for k, v in fold(shapes)]
    lines += [f"{line(k, v)} optional" for k, v in optional.items()]
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tensors.txt").write_text("\n".join(sorted(lines)) + "\n")
    form = hub_form(config, settings, architecture.__name__)
    if name in MXFP4:
        form["quantization_config"] = DESCRIBED
    (folder / "config.json").write_text(json.dumps(form, indent=2, sort_keys=True) + "\n")
    # what was written must give the same model when it is read
    again = kind(**json.loads((folder / "config.json").read_text()))
    with torch.device("meta"):
        assert {k: v.shape for k, v in architecture(again).state_dict().items()} == {
            k: v.shape for k, v in model.state_dict().items()
        }
    result = {
        "text_parameters": total,
        "text_tensors": len(text),
        "optional_parameters": sum(torch.Size(v).numel() for v in optional.values()),
        "optional_tensors": len(optional),
        "other_tensors": len(shapes) - len(text),
    }
    print(name, result, len(lines), "lines", flush=True)
    return result


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    logging.disable(logging.WARNING)
    totals = {name: write(name) for name in MODELS}
    (OUT / "totals.json").write_text(json.dumps(totals, indent=2) + "\n")


if __name__ == "__main__":
    main()
