#!/usr/bin/env python3
"""A small Llama in the formats of quantized checkpoints -> tests/fixtures/quantized/<format>/{config,oracle}.json, …

Each format's own package quantizes random weights and gives the dequantized ones: compressed-tensors, ModelOpt,
AutoAWQ, GPTQModel, AutoRound, bitsandbytes and MLX. FP8 of transformers, and of AutoFP8 before it, is a product of
two numbers, which PyTorch computes. The packages dequantize to the type of the scales; here scales are widened to float32 before,
so that nothing is rounded that the format does not round.

`oracle.json` has the SHA-256 of every dequantized weight in float32 (little-endian), and logits that transformers
computes in float32 from these weights.

Packages: torch, transformers, compressed-tensors, nvidia-modelopt, autoawq, gptqmodel, auto-round, bitsandbytes, mlx
(their versions are in the README).
"""

import argparse
import functools
import hashlib
import json
import shutil
from pathlib import Path
from unittest import mock

import numpy
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/fixtures/quantized"
POSITIONS = [0, 17, 39]

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "vocab_size": 300,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}
LINEAR = [
    f"model.layers.0.{name}_proj"
    for name in ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"]
]
# this one stays plain where a format has a list of such modules
PLAIN = "model.layers.0.self_attn.o_proj"
EMBEDDING = "model.embed_tokens"
# the numbers of FP4's codes
E2M1 = torch.tensor([sign * x for sign in (1.0, -1.0) for x in (0, 0.5, 1, 1.5, 2, 3, 4, 6)])


def e2m1(codes):
    """The numbers of packed FP4 codes, the first of two in a byte's lower half."""
    both = torch.stack([codes & 15, codes >> 4], -1)
    return E2M1[both.flatten(-2).long()]



@functools.cache
def random_weights():
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(1 + 0.2 * torch.randn_like(weight) if "norm" in name else 0.2 * torch.randn_like(weight))
    state = {name: weight.detach().to(torch.bfloat16) for name, weight in model.named_parameters()}
    # a channel of its own in every matrix, so that scales differ
    for module in LINEAR:
        state[f"{module}.weight"][:, 3] *= 4
        state[f"{module}.weight"][5, :] *= 0.1
    return state


def random_model():
    """Weights of a model, bfloat16, as a dictionary."""
    return {name: weight.clone() for name, weight in random_weights().items()}


def logits(state):
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).float()
    missing = model.load_state_dict({name: weight.float() for name, weight in state.items()}, strict=False)
    assert missing.missing_keys in ([], ["lm_head.weight"]) and not missing.unexpected_keys, missing
    ids = [(37 * i + 11) % CONFIG["vocab_size"] for i in range(40)]
    with torch.no_grad():
        rows = model(torch.tensor([ids])).logits[0]
    return ids, [{"position": at, "logits": [float(f"{v:.8g}") for v in rows[at].tolist()]} for at in POSITIONS]


def sha(weight):
    return hashlib.sha256(weight.detach().float().contiguous().numpy().astype("<f4").tobytes()).hexdigest()


def write(name, config, stored, dequantized, files=None, metadata="pt", run=True):
    """`dequantized` has the weights that are not stored as they are."""
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config, indent=1) + "\n")
    for file, content in (files or {}).items():
        (folder / file).write_text(json.dumps(content, indent=1) + "\n")
    stored = {key: value.contiguous().clone() for key, value in stored.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": metadata})
    oracle = {"weights": {key: sha(value) for key, value in sorted(dequantized.items())}}
    if run:
        names = random_model().keys()
        own = {key: value for key, value in stored.items() if key in names}
        ids, positions = logits(own | dequantized)
        oracle |= {"ids": ids, "positions": positions}
    (folder / "oracle.json").write_text(json.dumps(oracle) + "\n")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {len(dequantized)} weights, {size} bytes", flush=True)


def each(state, quantize, but=(), names=LINEAR):
    """Replaces weights by what `quantize` stores of them, and collects the dequantized ones."""
    stored, dequantized = dict(state), {}
    for module in names:
        if module in but:
            continue
        parts, weight = quantize(module, stored.pop(f"{module}.weight"))
        stored |= {f"{module}.{end}": part for end, part in parts.items()}
        dequantized[f"{module}.weight"] = weight
    return stored, dequantized


# FP8 -----------------------------------------------------------------------------------------------------------------


def e4m3(weight, scale):
    return (weight.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)


def expanded(scale, shape, block):
    return scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[: shape[0], : shape[1]]


def block_scales(weight, block):
    rows, columns = [-(-n // b) for n, b in zip(weight.shape, block)]
    scale = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            part = weight[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            scale[i, j] = part.float().abs().max() / 448
    return scale


def fp8_blocks():
    block = [64, 48]

    def quantize(_, weight):
        scale = block_scales(weight, block)
        whole = expanded(scale, weight.shape, block)
        codes = e4m3(weight, whole)
        return {"weight": codes, "weight_scale_inv": scale}, codes.float() * whole

    stored, dequantized = each(random_model(), quantize, but=[PLAIN])
    described = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": block,
        "modules_to_not_convert": ["lm_head", PLAIN],
    }
    write("fp8-blocks", {"quantization_config": described}, stored, dequantized)


def fp8_tensor():
    """As AutoFP8 wrote it, with scales of the cache."""

    def quantize(_, weight):
        scale = weight.float().abs().max() / 448
        codes = e4m3(weight, scale)
        parts = {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(0.02)}
        return parts, codes.float() * scale

    stored, dequantized = each(random_model(), quantize)
    stored["model.layers.0.self_attn.k_scale"] = torch.tensor(0.0125)
    stored["model.layers.0.self_attn.v_scale"] = torch.tensor(0.003)
    described = {
        "quant_method": "fp8",
        "activation_scheme": "static",
        "ignored_layers": ["lm_head"],
        "kv_cache_scheme": "static",
    }
    write("fp8-tensor", {"quantization_config": described}, stored, dequantized)


def fp8_rows():
    """As FBGEMM's."""

    def quantize(_, weight):
        scale = weight.float().abs().amax(1, keepdim=True) / 448
        codes = e4m3(weight, scale)
        return {"weight": codes, "weight_scale": scale}, codes.float() * scale

    stored, dequantized = each(random_model(), quantize, but=[PLAIN])
    described = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["o_proj"]}
    write("fp8-rows", {"quantization_config": described}, stored, dequantized)


# compressed-tensors --------------------------------------------------------------------------------------------------


def compressed(name, form, weights, inputs=None, order=False, extra=None, kv=None):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    # the package reads orders of older versions no more
    args = QuantizationArgs(**{key: value for key, value in weights.items() if key != "actorder"})
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(form)
    group = weights.get("group_size")

    def scales(weight):
        if weights["strategy"] == "tensor":
            low, high = weight.min().view(1), weight.max().view(1)
        elif weights["strategy"] == "channel":
            low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        elif weights["strategy"] == "block":
            scale = block_scales(weight, weights["block_structure"]) * 448
            low, high = -scale, scale
        else:
            parts = weight.view(weight.shape[0], -1, group)
            low, high = parts.amin(2), parts.amax(2)
        return low.float(), high.float()

    def quantize(_, weight):
        g_idx = None
        if order:
            g_idx = torch.randperm(weight.shape[1]) // group
            by_group = torch.argsort(g_idx, stable=True)
            weight = weight[:, by_group]
        low, high = scales(weight)
        more = {}
        if args.num_bits == 4 and args.type == "float":
            peak = torch.maximum(low.abs(), high.abs())
            if form.startswith("nvfp4"):
                more["weight_global_scale"] = (6 * 448 / weight.float().abs().max()).view(1)
                scale = (more["weight_global_scale"] * peak / 6).to(torch.float8_e4m3fn).float()
            else:
                scale = torch.exp2(torch.floor(torch.log2(peak)) - 2)
            zero = torch.zeros_like(scale)
        else:
            scale, zero = calculate_qparams(low, high, args)
            if form == "pack-quantized":
                scale = scale.to(torch.bfloat16)
        zero = zero if args.type == "float" else zero.to(torch.int8)
        given = {"weight": weight.float(), "weight_scale": scale.float(), "weight_zero_point": zero, **more}
        parts = compressor.compress(given, scheme)
        whole = compressor.decompress(parts, scheme)["weight"].float()
        if form.startswith("nvfp4"):
            # the package rounds what it gives to bf16, which is no part of the format
            scale_32 = parts["weight_scale"].float() / more["weight_global_scale"]
            exact = e2m1(parts["weight_packed"]) * scale_32.repeat_interleave(group, 1)
            assert torch.equal(exact.bfloat16().float(), whole)
            whole = exact
        parts.pop("weight_zero_point") if args.symmetric and "weight_zero_point" in parts else None
        if form == "pack-quantized":
            parts["weight_scale"] = parts["weight_scale"].to(torch.bfloat16)
        if order:
            back = torch.argsort(by_group)
            from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

            codes = unpack_from_int32(parts["weight_packed"], args.num_bits, torch.Size(weight.shape))[:, back]
            parts["weight_packed"] = pack_to_int32(codes.contiguous(), args.num_bits)
            parts["weight_g_idx"] = g_idx.to(torch.int32)
            whole = whole[:, back]
        if inputs is not None and not inputs.get("dynamic", False):
            parts["input_global_scale" if form.startswith("nvfp4") else "input_scale"] = torch.tensor([0.02])
        return parts, whole

    stored, dequantized = each(random_model(), quantize, but=[PLAIN])
    described = {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": ["lm_head", PLAIN],
        "kv_cache_scheme": kv,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"observer": "minmax", "observer_kwargs": {}, "dynamic": False} | weights,
                "input_activations": inputs,
                "output_activations": None,
            }
        },
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.20.1",
    }
    write(name, {"quantization_config": described}, stored | (extra or {}), dequantized)


def compressed_tensors():
    ints = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    fp8 = {"num_bits": 8, "type": "float", "symmetric": True}
    dynamic = fp8 | {"strategy": "token", "dynamic": True}
    scales = {
        "model.layers.0.self_attn.k_proj.output_scale": torch.tensor([0.0125], dtype=torch.bfloat16),
        "model.layers.0.self_attn.v_proj.output_scale": torch.tensor([0.003], dtype=torch.bfloat16),
    }
    compressed("ct-int4", "pack-quantized", ints)
    compressed("ct-int4-zeros", "pack-quantized", ints | {"symmetric": False})
    compressed("ct-int4-order", "pack-quantized", ints | {"symmetric": False, "actorder": "group"}, order=True)
    compressed("ct-int8-packed", "pack-quantized", ints | {"num_bits": 8, "strategy": "channel", "group_size": None})
    compressed("ct-int8", "int-quantized", ints | {"num_bits": 8, "strategy": "channel", "group_size": None}, dynamic)
    kv = fp8 | {"strategy": "tensor", "dynamic": False, "group_size": None, "observer": "minmax", "observer_kwargs": {}}
    static = fp8 | {"strategy": "tensor", "dynamic": False}
    compressed("ct-fp8", "float-quantized", fp8 | {"strategy": "tensor"}, static, extra=scales, kv=kv)
    compressed("ct-fp8-blocks", "float-quantized", fp8 | {"strategy": "block", "block_structure": [64, 48]}, dynamic)
    fp4 = {"num_bits": 4, "type": "float", "symmetric": True, "group_size": 16}
    compressed("ct-nvfp4", "nvfp4-pack-quantized", fp4 | {"strategy": "tensor_group"}, fp4 | {"dynamic": "local", "strategy": "tensor_group"})
    compressed("ct-mxfp4", "mxfp4-pack-quantized", fp4 | {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"})


# ModelOpt ------------------------------------------------------------------------------------------------------------


def modelopt():
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    def nvfp4(_, weight):
        tensor, scale, scale_2 = NVFP4QTensor.quantize(weight.float(), 16)
        whole = tensor.dequantize(dtype=torch.float32, scale=scale, double_scale=scale_2, block_sizes={-1: 16})
        exact = e2m1(tensor._quantized_data) * (scale.float() * scale_2).repeat_interleave(16, 1)
        # the package's table has 0 for the code of -0
        assert torch.equal(exact, whole)
        whole = exact
        parts = {"weight": tensor._quantized_data, "weight_scale": scale, "weight_scale_2": scale_2}
        return parts | {"input_scale": torch.tensor(0.02)}, whole

    def fp8(_, weight):
        scale = weight.float().abs().max() / 448
        codes = e4m3(weight, scale)
        return {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(0.02)}, codes.float() * scale

    producer = {"name": "modelopt", "version": "0.47.0"}
    for name, algorithm, quantize, group in [("modelopt-fp8", "FP8", fp8, None), ("modelopt-nvfp4", "NVFP4", nvfp4, 16)]:
        stored, dequantized = each(random_model(), quantize, but=[PLAIN])
        stored["model.layers.0.self_attn.k_proj.k_scale"] = torch.tensor(0.0125)
        stored["model.layers.0.self_attn.v_proj.v_scale"] = torch.tensor(0.003)
        own = {"quant_algo": algorithm, "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head", PLAIN]}
        own |= {"group_size": group} if group else {}
        bits = {"num_bits": 4 if group else 8, "type": "float", "dynamic": False} | ({"group_size": group} if group else {})
        config = {
            "quant_method": "modelopt",
            "quant_algo": algorithm,
            "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
            "config_groups": {"group_0": {"input_activations": bits, "weights": bits, "targets": ["Linear"]}},
            "ignore": ["lm_head", PLAIN],
            "producer": producer,
        }
        files = {"hf_quant_config.json": {"producer": producer, "quantization": own}}
        write(name, {"quantization_config": config}, stored, dequantized, files)


# AWQ and GPTQ --------------------------------------------------------------------------------------------------------


def affine(weight, group, bits=4, order=None):
    """Scales and zero points of groups of columns, (groups, out), and the group of each column."""
    order = torch.arange(weight.shape[1]) // group if order is None else order
    scales, zeros = [], []
    for g in range(int(order.max()) + 1):
        part = weight[:, order == g].float()
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        scale = ((high - low) / (2**bits - 1)).half()
        scales.append(scale)
        zeros.append(torch.round(-low / scale.float()).clamp(0, 2**bits - 1))
    return torch.stack(scales), torch.stack(zeros), order


def awq():
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    def quantize(_, weight):
        scales, zeros, _ = affine(weight, 32)
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = scales_fit(weight, scales, zeros)
        layer = WQLinear_GEMM.from_linear(linear, 4, 32, scales=scales, zeros=zeros)
        whole = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales.float(), 4, 32).t()
        return {"qweight": layer.qweight, "qzeros": layer.qzeros, "scales": layer.scales}, whole

    def scales_fit(weight, scales, zeros):
        """Moves weights into the range that the codes have, because the package does not limit them."""
        s, z = scales.float().repeat_interleave(32, 0).t(), zeros.repeat_interleave(32, 0).t()
        return ((weight.float() / s + z).round().clamp(0, 15) - z) * s

    stored, dequantized = each(random_model(), quantize, but=[PLAIN])
    described = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 32,
        "version": "gemm",
        "zero_point": True,
        "modules_to_not_convert": ["o_proj"],
    }
    own = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    write("awq", {"quantization_config": described}, stored, dequantized, {"quant_config.json": own})


def gptq():
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    for name, bits, act, version in [
        ("gptq", 4, False, "gptq"),
        ("gptq-order", 4, True, "gptq"),
        ("gptq-v2", 4, True, "gptq_v2"),
        ("gptq-8", 8, False, "gptq"),
    ]:

        def quantize(_, weight):
            order = torch.randperm(weight.shape[1]) // 32 if act else None
            scales, zeros, order = affine(weight, 32, bits, order)
            s, z = scales.float()[order].t(), zeros[order].t()
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight.data = ((weight.float() / s + z).round().clamp(0, 2**bits - 1) - z) * s
            layer = TorchLinear(bits, 32, False, act, weight.shape[1], weight.shape[0], register_buffers=True)
            layer.pack(linear, scales.t().contiguous(), zeros.t().contiguous(), order.to(torch.int32))
            # compiles nothing
            layer.optimized = True
            layer.post_init()
            layer.eval()
            parts = {"qweight": layer.qweight, "qzeros": layer.qzeros, "scales": layer.scales, "g_idx": layer.g_idx}
            parts = {end: part.clone() for end, part in parts.items()}
            layer.scales = layer.scales.float()
            whole = layer.dequantize_weight().t().float()
            assert torch.allclose(whole, linear.weight.data, atol=1e-6)
            if version == "gptq":
                # the first version stores zero points less one, modulo the range
                parts["qzeros"] = less_one(parts["qzeros"], bits)
            return parts, whole

        stored, dequantized = each(random_model(), quantize, but=[PLAIN])
        described = {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": 32,
            "desc_act": act,
            "sym": False,
            "lm_head": False,
            "true_sequential": True,
            "damp_percent": 0.01,
            "checkpoint_format": version,
            "pack_dtype": "int32",
            "meta": {"quantizer": ["gptqmodel:7.7.0"]},
        }
        files = {"quantize_config.json": {k: v for k, v in described.items() if k != "quant_method"}}
        write(name, {"quantization_config": described}, stored, dequantized, files)


def less_one(words, bits):
    words = words.numpy().view(numpy.uint32)
    mask = numpy.uint32(2**bits - 1)
    out = numpy.zeros_like(words)
    for i in range(32 // bits):
        shift = numpy.uint32(i * bits)
        out |= ((((words >> shift) & mask) - numpy.uint32(1)) & mask) << shift
    return torch.from_numpy(out.view(numpy.int32))


# AutoRound -----------------------------------------------------------------------------------------------------------


def autoround():
    from auto_round.export.export_to_awq.utils import WQLinear_GEMM, dequantize_gemm
    from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp

    def full_range(weight):
        """Scales by which the largest number of a group has the code 0, so that some are below 0: (out, groups)."""
        parts = weight.float().view(weight.shape[0], -1, 32)
        peaks = parts.gather(2, parts.abs().argmax(2, keepdim=True)).squeeze(2)
        return (peaks / -8).half()

    def gptq(kind, symmetric):
        def quantize(_, weight):
            if symmetric:
                scales, zeros = full_range(weight), 8
            else:
                scales, zeros, _ = affine(weight, 32)
                scales, zeros = scales.t().contiguous(), zeros.t().contiguous()
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight.data = weight.float()
            layer = kind(4, 32, weight.shape[1], weight.shape[0], False)
            layer.device = "cpu"
            layer.pack(linear, scales.float(), zeros, device="cpu")
            parts = {"qweight": layer.qweight, "qzeros": layer.qzeros, "scales": layer.scales.clone()}
            layer.scales = layer.scales.float()
            # what it multiplies with; a product with the identity would lose the sign of zeros
            with mock.patch("torch.matmul") as product:
                layer(torch.eye(weight.shape[1]))
            return parts, product.call_args.args[1].t()

        return quantize

    def awq_packing(_, weight):
        scales, zeros, _ = affine(weight, 32)
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight.float()
        layer = WQLinear_GEMM.from_linear(linear, 4, 32, scales=scales.float(), zeros=zeros, device="cpu")
        whole = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales.float(), 4, 32).t()
        return {"qweight": layer.qweight, "qzeros": layer.qzeros, "scales": layer.scales}, whole

    for name, packing, symmetric, quantize in [
        ("autoround", "auto_round:auto_gptq", True, gptq(qlinear_torch_zp.QuantLinear, True)),
        ("autoround-zeros", "auto_round", False, gptq(qlinear_torch.QuantLinear, False)),
        ("autoround-awq", "auto_round:auto_awq", False, awq_packing),
    ]:
        stored, dequantized = each(random_model(), quantize, but=[PLAIN])
        described = {
            "quant_method": "auto-round",
            "packing_format": packing,
            "bits": 4,
            "group_size": 32,
            "sym": symmetric,
            "data_type": "int",
            "iters": 0,
            "autoround_version": "0.16.1",
            "block_name_to_quantize": "model.layers",
            "extra_config": {PLAIN: {"bits": 16, "data_type": "float"}},
        }
        write(name, {"quantization_config": described}, stored, dequantized)


# bitsandbytes --------------------------------------------------------------------------------------------------------


def bitsandbytes():
    import bitsandbytes.functional as F

    for name, kind, double in [("bnb-nf4", "nf4", True), ("bnb-fp4", "fp4", False)]:

        def quantize(_, weight):
            codes, state = F.quantize_4bit(weight.float(), blocksize=64, quant_type=kind, compress_statistics=double)
            # the package's loop for CPUs gives -0 where the table that it writes into the file has 0
            whole = F.dequantize_4bit(codes, state) + 0.0
            packed = state.as_dict(packed=True)
            return {"weight": codes} | {f"weight.{end}": part for end, part in packed.items()}, whole

        stored, dequantized = each(random_model(), quantize, but=[PLAIN])
        described = {
            "quant_method": "bitsandbytes",
            "_load_in_4bit": True,
            "_load_in_8bit": False,
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": kind,
            "bnb_4bit_use_double_quant": double,
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": ["lm_head", "o_proj"],
            "llm_int8_threshold": 6.0,
        }
        write(name, {"quantization_config": described}, stored, dequantized)

    def eight(_, weight):
        codes, largest, _ = F.int8_vectorwise_quant(weight.half())
        whole = F.int8_vectorwise_dequant(codes, largest)
        return {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}, whole

    stored, dequantized = each(random_model(), eight, but=[PLAIN])
    described = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False, "llm_int8_threshold": 6.0}
    described |= {"llm_int8_skip_modules": ["o_proj"], "llm_int8_has_fp16_weight": False}
    write("bnb-int8", {"quantization_config": described}, stored, dequantized)


# MLX -----------------------------------------------------------------------------------------------------------------


def mlx():
    import mlx.core as mx

    def from_mlx(array):
        if array.dtype == mx.bfloat16:
            return torch.from_numpy(numpy.array(array.astype(mx.float32))).to(torch.bfloat16)
        return torch.from_numpy(numpy.array(array))

    for mode, group, bits in [
        ("affine", 32, 4),
        ("affine", 32, 8),
        ("affine", 32, 3),
        ("affine", 32, 6),
        ("mxfp4", 32, 4),
        ("mxfp8", 32, 8),
        ("nvfp4", 16, 4),
    ]:
        own = {"group_size": 32, "bits": 8} if mode == "affine" and bits == 4 else None

        def quantize(module, weight):
            here = own if own and module.endswith("down_proj") else {"group_size": group, "bits": bits}
            weight = mx.array(weight.float().numpy()).astype(mx.bfloat16)
            parts = mx.quantize(weight, mode=mode, **here)
            wide = [parts[0]] + [p.astype(mx.float32) if mode == "affine" else p for p in parts[1:]]
            more = {} if mode == "affine" else {"dtype": mx.float32}
            whole = mx.dequantize(*wide, mode=mode, **here, **more)
            named = dict(zip(["weight", "scales", "biases"], map(from_mlx, parts)))
            return named, from_mlx(whole)

        stored, dequantized = each(random_model(), quantize, but=[PLAIN], names=[*LINEAR, EMBEDDING])
        described = {"group_size": group, "bits": bits, "mode": mode, PLAIN: False}
        if own:
            described |= {module: own for module in LINEAR if module.endswith("down_proj")}
        config = {"quantization": described, "quantization_config": described}
        write(f"mlx-{mode}-{bits}", config, stored, dequantized, metadata="mlx")


# gpt-oss -------------------------------------------------------------------------------------------------------------


def mxfp4():
    """Experts alone: there is no model of this shape but gpt-oss."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    stored, dequantized = dict(random_model()), {}
    for name, shape in [("gate_up_proj", (2, 24, 3, 16)), ("down_proj", (2, 8, 2, 16))]:
        full = f"model.layers.0.mlp.experts.{name}"
        blocks = torch.randint(0, 256, shape, dtype=torch.uint8)
        scales = torch.randint(100, 140, shape[:-1], dtype=torch.uint8)
        stored |= {f"{full}_blocks": blocks, f"{full}_scales": scales}
        dequantized[full] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    stored = {key: value for key, value in stored.items() if "experts" in key or "norm" in key}
    described = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    write("mxfp4", {"quantization_config": described}, stored, dequantized, run=False)


MAKERS = [fp8_blocks, fp8_tensor, fp8_rows, compressed_tensors, modelopt, awq, gptq, autoround, bitsandbytes, mlx, mxfp4]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("makers", nargs="*", help=", ".join(maker.__name__ for maker in MAKERS))
    args = parser.parse_args()
    for maker in MAKERS:
        if not args.makers or maker.__name__ in args.makers:
            # whether others were made before or not
            random_weights()
            torch.manual_seed(11)
            maker()


if __name__ == "__main__":
    main()
