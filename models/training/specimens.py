"""The configurations of the two models: the real architectures, with every mechanism present, at toy size."""

import torch
from transformers import Gemma4ForCausalLM, Gemma4TextConfig, Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

VOCAB = 2048
CONTEXT = 512  # tokens of a training sequence
SPECIALS = {
    "gemma4-e2b-mini": ["<pad>", "<eos>", "<bos>"],
    "qwen3.6-moe-mini": ["<|endoftext|>"],
}
EOS = {"gemma4-e2b-mini": "<eos>", "qwen3.6-moe-mini": "<|endoftext|>"}
BOS = {"gemma4-e2b-mini": "<bos>", "qwen3.6-moe-mini": None}


def gemma_config():
    layers = 10
    return Gemma4TextConfig(
        vocab_size=VOCAB,
        vocab_size_per_layer_input=VOCAB,
        hidden_size=128,
        hidden_size_per_layer_input=16,
        intermediate_size=160,
        use_double_wide_mlp=True,
        num_hidden_layers=layers,
        num_kv_shared_layers=5,
        layer_types=["full_attention" if i % 5 == 4 else "sliding_attention" for i in range(layers)],
        sliding_window=128,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        global_head_dim=128,
        final_logit_softcapping=30.0,
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )


def qwen_config():
    return Qwen3_5MoeTextConfig(
        vocab_size=VOCAB,
        hidden_size=128,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        linear_conv_kernel_dim=4,
        num_experts=12,
        num_experts_per_tok=3,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=64,
        router_aux_loss_coef=0.01,
        tie_word_embeddings=False,
        max_position_embeddings=2048,
        eos_token_id=0,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
            "mrope_interleaved": True,
            "mrope_section": [3, 3, 2],
        },
    )


def build(name):
    """A fresh model; the seed is the caller's."""
    if name == "qwen3.6-moe-mini":
        return Qwen3_5MoeForCausalLM(qwen_config())
    model = Gemma4ForCausalLM(gemma_config())
    with torch.no_grad():
        for i, layer in enumerate(model.model.layers):
            attention = layer.self_attn
            # Gemma4 does not scale q.k by 1/sqrt(d): its norms' weights carry the scale
            attention.q_norm.weight.fill_(attention.head_dim**-0.25)
            if not attention.is_kv_shared_layer:
                attention.k_norm.weight.fill_(attention.head_dim**-0.25)
            # a buffer, not trained; real checkpoints have values other than 1, so have these
            layer.layer_scalar.fill_((1.0, 0.875, 0.9375, 0.75, 0.8125)[i % 5])
    return model


def dense_experts(self, hidden, top_k_index, top_k_weights):
    """All experts on all tokens with the router's weights, zero where not chosen: the sum that
    transformers' own loop computes, in two matrix products. For training on a GPU."""
    weights = torch.zeros(*hidden.shape[:-1], self.num_experts, dtype=hidden.dtype, device=hidden.device)
    weights = weights.scatter(-1, top_k_index, top_k_weights.to(hidden.dtype))
    gate, up = (hidden @ self.gate_up_proj.flatten(0, 1).T).unflatten(-1, (self.num_experts, 2, -1)).unbind(-2)
    inner = self.act_fn(gate) * up * weights.unsqueeze(-1)
    return inner.flatten(-2) @ self.down_proj.transpose(1, 2).flatten(0, 1)


ALL_EXPERTS_FUNCTIONS.register("dense", dense_experts)
