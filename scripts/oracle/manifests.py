#!/usr/bin/env python3
"""Names and shapes of the real checkpoints -> tests/fixtures/real/<name>/{config.json, tensors.txt}

transformers' classes are built with the real configurations on torch's meta device, so nothing is
downloaded and no weight exists. A line of tensors.txt is `name d0,d1,...` (for a scalar nothing follows
the blank). `{a..b}` in a name stands for every number from a to b; it is used only for experts and for
the vision and audio towers. ` optional` at the end marks tensors that some of the published files
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
}
# what the totals must come to, exactly or in rounded billions
EXPECTED = {
    "Qwen3.6-35B-A3B": 34_660_610_688,
    "Gemma4-E2B": 4_628_569_379,
    "Gemma4-E4B": "7.46",
    "Gemma4-26B-A4B": "25.23",
    "Gemma4-31B": "30.697",
    "Qwen3-30B-A3B": "30.53",
}


def hub_form(config, settings, architecture):
    """config.json as the hub has it: Gemma's wide heads by global_head_dim, not layer by layer."""
    out = config.to_dict() | {"architectures": [architecture], "dtype": "bfloat16"}
    text = out.get("text_config", out)
    if text.pop("per_layer_config", None):
        text |= {k: settings["text_config"][k] for k in ("global_head_dim", "num_global_key_value_heads")}
    return out


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
    if name.startswith("Qwen3-"):
        state = revert_weight_conversion(model, state)  # one tensor for each expert
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    text = {k: v for k, v in shapes.items() if is_text(k)}
    total = sum(torch.Size(v).numel() for v in text.values())
    expected = EXPECTED[name]
    assert total == expected or f"{total / 1e9:.{len(expected.split('.')[1])}f}" == expected, (name, total)

    decoder = config.get_text_config()
    if getattr(decoder, "mtp_num_hidden_layers", 0):
        shapes |= dict(mtp(shapes, decoder))
    optional = dict(redundant(decoder)) if getattr(decoder, "num_kv_shared_layers", 0) else {}
    assert not optional.keys() & shapes.keys()
    lines = [f"{k} {','.join(map(str, v))}" for k, v in fold(shapes)]
    lines += [f"{k} {','.join(map(str, v))} optional" for k, v in optional.items()]
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tensors.txt").write_text("\n".join(sorted(lines)) + "\n")
    form = hub_form(config, settings, architecture.__name__)
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
