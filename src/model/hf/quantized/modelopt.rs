//! What NVIDIA's ModelOpt exports: FP8 with a scale of the tensor, and NVFP4.
//!
//! The configuration stands in `hf_quant_config.json`, and in newer exports in `config.json`, too, in other words.

use super::described::Described;
use super::fp4::{Blocks, Whole};
use super::raw::Raw;
use super::scaled::{not_negative, one_above_zero, Scaled};
use super::weight::Grid;
use super::{kv_scheme, Known, Method, Setting};
use crate::model::ModelError;
use safetensors::Dtype;
use serde_json::json;

pub(super) const MODELOPT: Known = Known { names: &["modelopt", "modelopt_fp4"], read };

const KV_ALGORITHM: &str = "kv_cache_quant_algo";

/// Elements that share a scale in NVFP4.
const GROUP: usize = 16;

#[derive(Debug)]
struct ModelOpt {
    algorithm: Option<Algorithm>,
    /// Whether the cache is FP8, if the description says so or denies it.
    cache: Option<bool>,
    plain: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Fp8,
    Nvfp4,
}

fn read(mut described: Described) -> Result<Box<dyn Method>, ModelError> {
    described.pass_over(&["producer"]);
    // the file nests what config.json has at the top
    let mut inner = match described.object("quantization")? {
        Some(inner) => {
            described.close()?;
            inner
        }
        None => described,
    };
    let algorithm = match inner.one_of("quant_algo", &["fp8", "nvfp4"])?.as_deref() {
        Some("fp8") => Some(Algorithm::Fp8),
        Some(_) => Some(Algorithm::Nvfp4),
        None => None,
    };
    let is_denied = inner.is_null(KV_ALGORITHM) || kv_scheme::is_denied(&inner);
    let denied = is_denied.then_some(false);
    let named = inner.one_of(KV_ALGORITHM, &["fp8"])?.is_some();
    let cache = if kv_scheme::take(&mut inner)? || named { Some(true) } else { denied };
    inner.neutral("group_size", &[json!(GROUP)])?;
    inner.neutral("has_zero_point", &[json!(false)])?;
    inner.neutral("pre_quant_scale", &[json!(false)])?;
    if let (Some(groups), Some(algorithm)) = (inner.object("config_groups")?, algorithm) {
        groups.objects()?.into_iter().try_for_each(|group| in_other_words(group, algorithm))?;
    }
    inner.pass_over(&["quant_method"]);
    let mut plain = inner.names("ignore")?;
    plain.extend(inner.names("exclude_modules")?);
    // of the two files only one says whom it leaves out in full
    plain.sort();
    inner.close()?;
    Ok(Box::new(ModelOpt { algorithm, cache, plain }))
}

/// Checks what a group says of the algorithm in the words of compressed-tensors.
fn in_other_words(mut group: Described, algorithm: Algorithm) -> Result<(), ModelError> {
    let Some(mut weights) = group.object("weights")? else { return Ok(()) };
    let (name, bits) = match algorithm {
        Algorithm::Fp8 => ("FP8", 8),
        Algorithm::Nvfp4 => ("NVFP4", 4),
    };
    let known = [("num_bits", json!(bits)), ("type", json!("float")), ("group_size", json!(GROUP))];
    for (key, expected) in known {
        if let Some(said) = weights.take(key).filter(|said| *said != expected) {
            let message = format!("is {said}, and `quant_algo` says {name}");
            return Err(weights.error(key, message));
        }
    }
    Ok(())
}

impl Method for ModelOpt {
    fn plain(&self) -> &[String] {
        &self.plain
    }

    fn has_weights(&self) -> bool {
        self.algorithm.is_some()
    }

    fn quantizes_activations(&self) -> bool {
        self.algorithm.is_some()
    }

    fn settings(&self) -> Vec<Setting> {
        let cache = self.cache.map(|cache| cache.to_string());
        vec![
            ("`quant_algo`", Some(format!("{:?}", self.algorithm))),
            ("the cache (`kv_cache_quant_algo`, `kv_cache_scheme`)", cache),
        ]
    }

    fn scales(&self) -> &'static [&'static str] {
        &["weight_scale"]
    }

    fn claim(&self, raw: &mut Raw) -> Result<(), ModelError> {
        for stem in raw.stems(".weight_scale") {
            let name = format!("{stem}.weight");
            match (self.algorithm, raw.dtype(&name)) {
                (Some(Algorithm::Fp8), Some(Dtype::F8_E4M3)) => fp8(raw, name)?,
                (Some(Algorithm::Nvfp4), Some(Dtype::U8)) => nvfp4(raw, name)?,
                _ => continue,
            }
            raw.drop(&format!("{stem}.input_scale"));
        }
        Ok(())
    }
}

fn fp8(raw: &mut Raw, name: String) -> Result<(), ModelError> {
    let codes = raw.need(&name, &[Dtype::F8_E4M3])?;
    let scale = raw.need(&format!("{name}_scale"), &[Dtype::F32])?;
    let whole = codes.shape().to_vec();
    let grid = Grid::one(&whole, scale.shape()).ok_or_else(|| raw.misfit(&scale, &whole))?;
    not_negative(raw, &scale)?;
    raw.put(name, whole, "F8_E4M3", vec![codes, scale], Scaled { grid })
}

fn nvfp4(raw: &mut Raw, name: String) -> Result<(), ModelError> {
    let codes = raw.need(&name, &[Dtype::U8])?;
    let scales = raw.need(&format!("{name}_scale"), &[Dtype::F8_E4M3])?;
    let global = raw.need(&format!("{name}_scale_2"), &[Dtype::F32])?;
    let mut whole = codes.shape().to_vec();
    if let Some(columns) = whole.last_mut() {
        *columns = columns.saturating_mul(2);
    }
    let grid = Grid::of_groups(&whole, scales.shape(), GROUP);
    let grid = grid.ok_or_else(|| raw.misfit(&scales, &whole))?;
    not_negative(raw, &scales)?;
    one_above_zero(raw, &global, &whole)?;
    raw.put(name, whole, "NVFP4", vec![codes, scales, global], Blocks { grid, whole: Whole::Times })
}
