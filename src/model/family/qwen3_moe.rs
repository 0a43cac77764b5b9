//! `qwen3_moe`: Qwen3 whose MLPs are experts, in all layers or in some.

use super::common::{activation, common, layer_count, llama_layer, mlp, plain_experts, Family};
use super::idle::{gguf, hf, Any, DENSE, ON};
use super::keys::{ACTIVATION, EXPERTS, EXPERTS_USED, EXPERT_MLP, WINDOW};
use super::names;
use super::qwen2::USE_WINDOW;
use super::qwen3::qk_normed;
use crate::model::config::{Config, Key};
use crate::model::spec::{Experts, FeedForward, Mixer, Spec};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["qwen3moe"],
    hf: &["qwen3_moe"],
    gguf_names: names::GGUF,
    hf_names: names::HF,
    // Qwen3MoeConfig; it has no `head_dim` of its own
    hf_defaults: r#"{
    "tie_word_embeddings": false, "num_key_value_heads": 4, "norm_topk_prob": false,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "use_sliding_window": false
}"#,
    idle: &[
        hf("intermediate_size", Any, DENSE),
        gguf("feed_forward_length", Any, DENSE),
        hf("max_window_layers", Any, "Qwen3MoeModel has a window in all layers or in none"),
        hf("sliding_window", Any, "Qwen3MoeConfig drops it without use_sliding_window"),
        hf("use_qk_norm", ON, "Qwen3MoeAttention has norms of Q and K, whatever it says"),
        hf("layer_types", Any, "Qwen3MoeModel has a window in all layers or in none"),
    ],
    spec,
};

const DENSE_LAYERS: Key = Key { gguf: "", hf: "mlp_only_layers" };
const STEP: Key = Key { gguf: "", hf: "decoder_sparse_step" };
/// Whether expert weights are normalised. GGUF does not record it, and all released models normalise.
const NORMALISED: Key = Key { gguf: "", hf: "norm_topk_prob" };

/// transformers 5 saves the number of experts under this name.
const LOCAL_EXPERTS: Key = Key { gguf: "", hf: "num_local_experts" };

/// The number of experts, for which classes have this name beside their own.
pub(super) fn expert_count(config: &dyn Config, own: Key) -> Result<usize, ModelError> {
    match (config.optional_number(LOCAL_EXPERTS)?, config.optional_number(own)?) {
        (Some(local), Some(count)) if local != count => {
            let message = format!("says {local}, and `{}` says {count}", own.hf);
            Err(config.bad(LOCAL_EXPERTS, message))
        }
        (Some(count), _) => Ok(count),
        (None, _) => config.number(own),
    }
}

pub(super) fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, ACTIVATION, "silu")?;
    if config.flag(USE_WINDOW)? && config.has(Key { gguf: "", ..WINDOW }) {
        return Err(config.unsupported("a sliding window (use_sliding_window)"));
    }
    let attention = qk_normed(file, spec.hidden)?;
    let (count, used) = (expert_count(config, EXPERTS)?, config.number(EXPERTS_USED)?);
    let experts = Experts {
        normalised: config.optional_flag(NORMALISED)?.unwrap_or(true),
        ..plain_experts(count, used, config.number(EXPERT_MLP)?)
    };
    let dense = config.list(DENSE_LAYERS)?;
    let step = config.optional_number(STEP)?.unwrap_or(1).max(1);
    let layer = |i: usize| {
        let sparse = !dense.contains(&i) && (i + 1).is_multiple_of(step);
        Ok(llama_layer(
            Mixer::Attention(attention.clone()),
            if sparse {
                FeedForward::Experts(experts.clone())
            } else {
                FeedForward::Dense(mlp(config)?)
            },
        ))
    };
    let layers = (0..layer_count(file)?).map(layer).collect::<Result<_, ModelError>>()?;
    Ok(Spec { layers, ..spec })
}
