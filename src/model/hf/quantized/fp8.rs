//! FP8 (e4m3) as transformers' `fp8` and `fbgemm_fp8`, AutoFP8 and DeepSeek store it: a weight times the scale of the
//! tensor, of the row, or of its block. The scale of blocks is called `weight_scale_inv` although it multiplies, too.

use super::described::Described;
use super::raw::{Raw, SCALES};
use super::scaled::{grid, not_negative, Scaled};
use super::{kv_scheme, Known, Method};
use crate::model::ModelError;
use safetensors::Dtype;
use serde_json::json;

pub(super) const FP8: Known = Known { names: &["fp8", "fbgemm_fp8"], read };

/// The blocks that transformers takes if a configuration does not say.
const USUAL_BLOCK: [usize; 2] = [128, 128];

#[derive(Debug)]
struct Fp8 {
    block: Option<[usize; 2]>,
    plain: Vec<String>,
}

fn read(mut described: Described) -> Result<Box<dyn Method>, ModelError> {
    described.neutral("fmt", &[json!("e4m3"), json!("float8_e4m3fn")])?;
    described.neutral("scale_fmt", &[json!("ue8m0"), json!("float")])?;
    described.one_of("activation_scheme", &["dynamic", "static"])?;
    described.neutral("expert_dtype", &[json!("fp8")])?;
    described.pass_over(&["activation_scale_ub", "dequantize", "modules_to_convert"]);
    let block = block(&mut described, "weight_block_size")?;
    let mut plain = described.names("modules_to_not_convert")?;
    plain.extend(described.names("ignored_layers")?);
    kv_scheme::take(&mut described)?;
    described.close()?;
    Ok(Box::new(Fp8 { block, plain }))
}

/// Rows and columns of a block.
pub(super) fn block(
    described: &mut Described,
    key: &str,
) -> Result<Option<[usize; 2]>, ModelError> {
    let Some(value) = described.take(key) else { return Ok(None) };
    let numbers: Option<Vec<usize>> = value.as_array().and_then(|list| {
        list.iter().map(|n| usize::try_from(n.as_u64()?).ok().filter(|&n| n > 0)).collect()
    });
    match numbers.as_deref() {
        Some(&[rows, columns]) => Ok(Some([rows, columns])),
        _ => Err(described.error(key, format!("must be two whole numbers, not {value}"))),
    }
}

impl Method for Fp8 {
    fn plain(&self) -> &[String] {
        &self.plain
    }

    fn quantizes_activations(&self) -> bool {
        true
    }

    fn scales(&self) -> &'static [&'static str] {
        &["weight_scale_inv", "weight_scale"]
    }

    fn claim(&self, raw: &mut Raw) -> Result<(), ModelError> {
        for end in ["_scale_inv", "_scale"] {
            for stem in raw.stems(end) {
                if raw.dtype(&stem) == Some(Dtype::F8_E4M3) {
                    self.weight(raw, stem, end)?;
                }
            }
        }
        Ok(())
    }
}

impl Fp8 {
    fn weight(&self, raw: &mut Raw, name: String, end: &str) -> Result<(), ModelError> {
        let codes = raw.need(&name, &[Dtype::F8_E4M3])?;
        let known = [&SCALES[..], &[Dtype::F8_E8M0]].concat();
        let scales = raw.need(&format!("{name}{end}"), &known)?;
        let whole = codes.shape().to_vec();
        let usual = || grid(&whole, &scales, Some(USUAL_BLOCK)).filter(|_| self.block.is_none());
        let grid = grid(&whole, &scales, self.block).or_else(usual);
        let grid = grid.ok_or_else(|| raw.misfit(&scales, &whole))?;
        not_negative(raw, &scales)?;
        if let Some(module) = name.strip_suffix("weight") {
            raw.drop(&format!("{module}input_scale"));
            // as transformers' class names the scale of a linear layer's activations
            raw.drop(&format!("{module}activation_scale"));
        }
        raw.drop(&format!("{name}_activation_scale"));
        raw.put(name, whole, "F8_E4M3", vec![codes, scales], Scaled { grid })
    }
}
