//! Keys that several families read, by their names in GGUF and in `config.json`.

use crate::model::config::Key;

pub(super) const LAYERS: Key<'static> = Key { gguf: "block_count", hf: "num_hidden_layers" };
pub(super) const HIDDEN: Key<'static> = Key { gguf: "embedding_length", hf: "hidden_size" };
pub(super) const VOCAB: Key<'static> = Key { gguf: "", hf: "vocab_size" };
pub(super) const CONTEXT: Key<'static> =
    Key { gguf: "context_length", hf: "max_position_embeddings" };
pub(super) const NORM_EPS: Key<'static> =
    Key { gguf: "attention.layer_norm_rms_epsilon", hf: "rms_norm_eps" };
/// If the key is absent, transformers' class decides. GGUF has no such key, but leaves the head out if it is tied.
pub(super) const TIED: Key<'static> = Key { gguf: "", hf: "tie_word_embeddings" };
pub(super) const HEADS: Key<'static> =
    Key { gguf: "attention.head_count", hf: "num_attention_heads" };
pub(super) const KV_HEADS: Key<'static> =
    Key { gguf: "attention.head_count_kv", hf: "num_key_value_heads" };
pub(super) const HEAD_DIM: Key<'static> = Key { gguf: "attention.key_length", hf: "head_dim" };
pub(super) const VALUE_DIM: Key<'static> = Key { gguf: "attention.value_length", hf: "" };
pub(super) const MLP: Key<'static> = Key { gguf: "feed_forward_length", hf: "intermediate_size" };
pub(super) const WINDOW: Key<'static> =
    Key { gguf: "attention.sliding_window", hf: "sliding_window" };
pub(super) const LAYER_TYPES: Key<'static> = Key { gguf: "", hf: "layer_types" };
pub(super) const EXPERTS: Key<'static> = Key { gguf: "expert_count", hf: "num_experts" };
pub(super) const EXPERTS_USED: Key<'static> =
    Key { gguf: "expert_used_count", hf: "num_experts_per_tok" };
pub(super) const EXPERT_MLP: Key<'static> =
    Key { gguf: "expert_feed_forward_length", hf: "moe_intermediate_size" };
pub(super) const ATTENTION_BIAS: Key<'static> = Key { gguf: "", hf: "attention_bias" };
pub(super) const MLP_BIAS: Key<'static> = Key { gguf: "", hf: "mlp_bias" };
pub(super) const ATTENTION_SCALAR: Key<'static> = Key { gguf: "", hf: "query_pre_attn_scalar" };
pub(super) const ATTENTION_SOFTCAP: Key<'static> =
    Key { gguf: "attn_logit_softcapping", hf: "attn_logit_softcapping" };
pub(super) const FINAL_SOFTCAP: Key<'static> =
    Key { gguf: "final_logit_softcapping", hf: "final_logit_softcapping" };
pub(super) const ACTIVATION: Key<'static> = Key { gguf: "", hf: "hidden_act" };
pub(super) const GEMMA_ACTIVATION: Key<'static> = Key { gguf: "", hf: "hidden_activation" };
