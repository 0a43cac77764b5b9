//! What a description says about the KV cache. kvgate's schemes decide how a cache is stored; here it is only checked
//! that the checkpoint asks for a storage that kvgate has: FP8 with one scale for K and one for V of each layer.

use super::described::Described;
use crate::model::ModelError;
use serde_json::{json, Value};

const KEY: &str = "kv_cache_scheme";

/// Whether a description says that the cache is not quantized.
pub(super) fn is_denied(described: &Described) -> bool {
    described.is_null(KEY)
}

/// Takes the description of the cache. Returns whether there is one.
pub(super) fn take(described: &mut Described) -> Result<bool, ModelError> {
    match described.take(KEY) {
        None => Ok(false),
        // AutoFP8's word for scales that the checkpoint has
        Some(Value::String(word)) if word == "static" => Ok(true),
        Some(Value::Object(members)) => {
            let mut scheme = described.inner(KEY, &members);
            scheme.neutral("num_bits", &[json!(8)])?;
            scheme.neutral("type", &[json!("float")])?;
            scheme.neutral("symmetric", &[json!(true)])?;
            scheme.neutral("strategy", &[json!("tensor")])?;
            scheme.neutral("dynamic", &[json!(false)])?;
            for key in ["group_size", "block_structure", "actorder"] {
                scheme.neutral(key, &[])?;
            }
            scheme.pass_over(&["observer", "observer_kwargs", "scale_dtype", "zp_dtype"]);
            scheme.close()?;
            Ok(true)
        }
        Some(other) => Err(described.error(
            KEY,
            format!(
                "is {other}, a way to store the cache that this version of kvgate does not know"
            ),
        )),
    }
}
