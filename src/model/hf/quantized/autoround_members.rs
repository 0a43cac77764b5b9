//! Members that AutoRound writes into every description, also into those of the formats in which it exports.

use super::described::Described;
use crate::model::ModelError;
use serde_json::json;

/// Members about how the weights were found.
const MAKING: &[&str] = &[
    "autoround_version",
    "provider",
    "amp",
    "batch_size",
    "dataset",
    "enable_minmax_tuning",
    "enable_norm_bias_tuning",
    "enable_quanted_input",
    "enable_torch_compile",
    "gradient_accumulate_steps",
    "iters",
    "low_cpu_mem_usage",
    "low_gpu_mem_usage",
    "lr",
    "minmax_lr",
    "nsamples",
    "not_use_best_mse",
    "scale_dtype",
    "seqlen",
    "static_kv_granularity",
    "static_attention_granularity",
];

/// Takes the members that AutoRound writes beside those of the formats in which it exports.
pub(super) fn members_of_autoround(described: &mut Described) -> Result<(), ModelError> {
    described.one_of("data_type", &["int"])?;
    described.neutral("act_bits", &[json!(16), json!(32)])?;
    // what would have to be carried out
    for key in ["super_bits", "super_group_size", "rotation_config", "rotation_configs"] {
        described.neutral(key, &[])?;
    }
    for key in ["static_kv_dtype", "static_attention_dtype", "regex_config"] {
        described.neutral(key, &[])?;
    }
    // they say something of activations that are rounded, and none are
    described.pass_over(&["act_data_type", "act_dynamic", "act_group_size", "act_sym"]);
    described.pass_over(MAKING);
    Ok(())
}
