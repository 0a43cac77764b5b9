//! `qwen3_moe`: Qwen3 whose MLPs are experts, in all layers or in some.

use super::qwen3::qk_normed;
use super::{activation, common, expert_count, layer_count, llama_layer, mlp, names, Family};
use super::{ACTIVATION, EXPERTS_USED, EXPERT_MLP};
use crate::model::config::{Config, Key};
use crate::model::spec::{Experts, FeedForward, Mixer, Spec};
use crate::model::tensors::Tensors;
use crate::model::ModelError;

pub(super) const FAMILY: Family = Family {
    gguf: &["qwen3moe"],
    hf: &["qwen3_moe"],
    gguf_names: names::GGUF,
    hf_names: names::HF,
    hf_defaults: r#"{"norm_topk_prob": false}"#,
    spec,
};

const DENSE_LAYERS: Key = Key { gguf: "", hf: "mlp_only_layers" };
const STEP: Key = Key { gguf: "", hf: "decoder_sparse_step" };
/// GGUF does not record it; all released models normalise.
const NORMALISED: Key = Key { gguf: "", hf: "norm_topk_prob" };

fn spec(file: &dyn Tensors) -> Result<Spec, ModelError> {
    let config: &dyn Config = file;
    let spec = common(file)?;
    activation(config, ACTIVATION, "silu")?;
    let attention = qk_normed(file, spec.hidden)?;
    let experts = Experts {
        count: expert_count(config)?,
        used: config.number(EXPERTS_USED)?,
        width: config.number(EXPERT_MLP)?,
        normalised: config.optional_flag(NORMALISED)?.unwrap_or(true),
        shared: None,
        scaled_router: false,
    };
    let dense = config.list(DENSE_LAYERS)?;
    let step = config.optional_number(STEP)?.unwrap_or(1).max(1);
    let layer = |i: usize| {
        let sparse = !dense.contains(&i) && (i + 1).is_multiple_of(step);
        Ok(llama_layer(
            Mixer::Attention(attention.clone()),
            match sparse {
                true => FeedForward::Experts(experts.clone()),
                false => FeedForward::Dense(mlp(config)?),
            },
        ))
    };
    let layers = (0..layer_count(file)?).map(layer).collect::<Result<_, ModelError>>()?;
    Ok(Spec { layers, ..spec })
}
