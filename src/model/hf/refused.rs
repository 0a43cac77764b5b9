//! Refuses folders whose tensors alone are not the model: with quantization that is part of the model, adapters, code
//! of their own, or classes that are no language models. To read only the tensors would be to measure another model.

use crate::model::{family, ModelError};
use crate::source::pinned::{ADAPTER, CONFIG};
use serde_json::Value;
use std::path::Path;

/// Endings of the names of tensors that quantizers add, and the quantizers.
const QUANTIZERS: &[(&str, &str)] = &[
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".g_idx", "GPTQ"),
    (".weight_packed", "compressed-tensors"),
    (".weight_shape", "compressed-tensors"),
    (".weight_zero_point", "compressed-tensors"),
    (".weight_scale_2", "ModelOpt"),
    (".weight_scale_inv", "FP8 in blocks"),
    (".weight_scale", "FP8, compressed-tensors or ModelOpt"),
    (".input_scale", "FP8, compressed-tensors or ModelOpt"),
    (".k_zero_point", "a KV cache with zero points of its own"),
    (".v_zero_point", "a KV cache with zero points of its own"),
    (".SCB", "bitsandbytes"),
    (".absmax", "bitsandbytes"),
    (".quant_map", "bitsandbytes"),
    (".codebooks", "AQLM"),
    ("_blocks", "MXFP4"),
    (".biases", "MLX's quantization"),
    (".scales", "MLX's quantization, GPTQ or AWQ"),
];

const INSTEAD: &str = "measure the checkpoint that it was made from, or a GGUF";

/// Checks config.json and the files beside it. Returns a note if the folder brings code that nobody needs.
pub(super) fn check(folder: &Path, whole: &Value) -> Result<Option<String>, ModelError> {
    let config = folder.join(CONFIG);
    no_adapter(folder)?;
    known_wrapper(&config, whole)?;
    let note = own_code(&config, whole)?;
    language_model(&config, whole)?;
    Ok(note)
}

/// An error about a description at a place in a file, or, if that is empty, of the whole file.
pub(super) fn quantized(path: &Path, place: &str, method: &str) -> ModelError {
    let place = if place.is_empty() { "it".into() } else { format!("`{place}`") };
    ModelError::refused(
        path,
        format!(
            "{place} says that the model is quantized by {method}, which this version of kvgate does not carry out; \
             {INSTEAD}"
        ),
    )
}

/// The name of the method that a description gives. `None` if the description says that nothing is quantized.
pub(super) fn method(described: &Value) -> Option<String> {
    let described = match described {
        Value::Null => return None,
        Value::Object(members) if members.is_empty() => return None,
        Value::Object(members) => members,
        _ => return Some("a method that is not described by an object".into()),
    };
    // ModelOpt nests what the others have at the top, beside words on who wrote it
    if let Some(nested @ Value::Object(members)) = described.get("quantization") {
        let algorithms = ["quant_algo", "kv_cache_quant_algo"];
        let says_none = algorithms.iter().all(|key| members.get(*key).is_none_or(Value::is_null));
        if !says_none {
            return method(nested);
        }
        if described.keys().all(|key| ["quantization", "producer"].contains(&key.as_str())) {
            return None;
        }
    }
    let texts = ["quant_method", "quant_algo", "kv_cache_quant_algo", "format", "mode"];
    let mut words: Vec<_> = texts
        .iter()
        .filter_map(|key| Some(format!("`{}`", described.get(*key)?.as_str()?)))
        .collect();
    let is_on = |key: &str| described.get(key).and_then(Value::as_bool).unwrap_or(false);
    if words.is_empty() && (is_on("load_in_4bit") || is_on("load_in_8bit")) {
        words.push("`bitsandbytes`".into());
    }
    if words.is_empty() && described.contains_key("w_bit") {
        words.push("`awq`".into());
    }
    if words.is_empty() && described.contains_key("group_size") {
        // what AutoGPTQ's own file and MLX's member have in common; the latter has nothing else
        let own = if described.contains_key("desc_act") { "`gptq`" } else { "MLX's affine groups" };
        words.push(own.into());
    }
    if words.is_empty() {
        words.push("a method that is not named".into());
    }
    let bits = ["bits", "w_bit"].iter().find_map(|key| described.get(*key)?.as_u64());
    let bits = bits.map(|bits| format!(" in {bits} bits")).unwrap_or_default();
    Some(format!("{}{bits}", words.join(", ")))
}

/// Refuses tensors that a quantizer added although the configuration says nothing of it.
pub(super) fn check_names<'n>(
    folder: &Path,
    names: impl Iterator<Item = &'n String> + Clone,
) -> Result<(), ModelError> {
    let state = |name: &&String| name.contains(".quant_state.");
    let known = QUANTIZERS.iter().find_map(|(end, who)| {
        let name = names.clone().find(|name| name.ends_with(end))?;
        Some((name, *who))
    });
    match known.or_else(|| Some((names.clone().find(state)?, "bitsandbytes"))) {
        None => Ok(()),
        Some((name, who)) => Err(ModelError::refused(
            folder,
            format!("tensor `{name}` is there for quantized weights or caches ({who}), which this version of kvgate does not read; {INSTEAD}"),
        )),
    }
}

/// Refuses an adapter beside the model: transformers would apply it if the package `peft` is installed.
fn no_adapter(folder: &Path) -> Result<(), ModelError> {
    let path = folder.join(ADAPTER);
    if !path.exists() {
        return Ok(());
    }
    let message = "an adapter (LoRA) lies beside the model, which transformers applies to it and kvgate does not: \
                   merge it into the weights (peft's `merge_and_unload`), or take this file away";
    Err(ModelError::refused(&path, message))
}

/// Refuses members of safetensors' metadata that describe quantization, as torchao's and Comfy's do.
pub(super) fn check_metadata<'m>(
    path: &Path,
    mut members: impl Iterator<Item = &'m String>,
) -> Result<(), ModelError> {
    match members.find(|member| member.to_ascii_lowercase().contains("quant")) {
        None => Ok(()),
        Some(member) => Err(ModelError::refused(
            path,
            format!("its metadata describes quantized weights (`{member}`), which this version of kvgate does not read; {INSTEAD}"),
        )),
    }
}

/// Models with towers (in transformers 5.24) whose text model treats plain text like the model without towers. In
/// others it does not: PaliGemma attends to the whole prompt in both directions.
const WRAPPERS: [&str; 13] = [
    "gemma3",
    "gemma4",
    "gemma4_unified",
    "internvl",
    "llava",
    "llava_next",
    "llava_onevision",
    "mistral3",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_vl",
    "qwen3_vl_moe",
    "vipllava",
];

fn known_wrapper(config: &Path, whole: &Value) -> Result<(), ModelError> {
    let nested = whole.get("text_config").is_some_and(Value::is_object);
    match whole.get("model_type").and_then(Value::as_str) {
        Some(kind) if nested && !WRAPPERS.contains(&kind) => Err(ModelError::refused(
            config,
            format!(
                "its text model is a part of a `{kind}`, of which kvgate does not know what it does with text (known: {})",
                WRAPPERS.join(", ")
            ),
        )),
        _ => Ok(()),
    }
}

/// Refuses a folder that brings its own model class, because the families here follow transformers' classes. If
/// transformers has a class for the `model_type`, it takes that one unless it is told to trust the folder's code, so
/// the folder's is passed over with a note. A folder may bring its own classes of configuration and tokenizer.
fn own_code(config: &Path, whole: &Value) -> Result<Option<String>, ModelError> {
    if let Some(Value::String(file)) = whole.get("model_file") {
        let what = format!(
            "`model_file` names MLX code of the model's own ({file}), which kvgate does not run"
        );
        return Err(ModelError::refused(config, what));
    }
    let Some(Value::Object(own)) = whole.get("auto_map") else { return Ok(None) };
    let harmless = |class: &str| {
        ["AutoConfig", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor"].contains(&class)
    };
    let Some((class, code)) = own.iter().find(|(class, _)| !harmless(class)) else {
        return Ok(None);
    };
    let kind = whole.get("model_type").and_then(Value::as_str);
    match kind.filter(|kind| family::has_model_type(kind) || WRAPPERS.contains(kind)) {
        Some(kind) => Ok(Some(format!(
            "the folder brings its own code for {class} (`auto_map`: {code}), which kvgate does not run: the model is \
             read as transformers' class for `{kind}`, as transformers does without `trust_remote_code`"
        ))),
        None => Err(ModelError::refused(
            config,
            format!(
                "`auto_map` names code of the model's own for {class} ({code}), which kvgate does not run, and its \
                 `model_type` is none of those whose classes in transformers kvgate follows"
            ),
        )),
    }
}

/// Refuses classes that are no language models: a classifier, a reranker or an embedding model has a language model's
/// tensors, but another head.
fn language_model(config: &Path, whole: &Value) -> Result<(), ModelError> {
    let Some(Value::Array(classes)) = whole.get("architectures") else { return Ok(()) };
    let writes = |class: &&Value| {
        let ends = ["ForCausalLM", "ForConditionalGeneration", "LMHeadModel"];
        class.as_str().is_some_and(|class| ends.iter().any(|end| class.ends_with(end)))
    };
    match classes.iter().find(|class| !writes(class)) {
        None => Ok(()),
        Some(class) => Err(ModelError::refused(
            config,
            format!(
                "`architectures` names {class}, which is no language model: kvgate measures what predicts the next \
                 token (…ForCausalLM, …ForConditionalGeneration)"
            ),
        )),
    }
}
