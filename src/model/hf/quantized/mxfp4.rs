//! gpt-oss's own MXFP4: experts in `_blocks` and `_scales`.

use super::described::Described;
use super::fp4::{Blocks, Whole};
use super::raw::Raw;
use super::weight::{Dequantize, Grid, Part, Rows};
use super::{Known, Method};
use crate::model::ModelError;
use safetensors::Dtype;

pub(super) const MXFP4: Known = Known { names: &["mxfp4"], read };

/// Elements that share a scale.
const GROUP: usize = 32;

#[derive(Debug)]
struct Mxfp4 {
    plain: Vec<String>,
}

fn read(mut described: Described) -> Result<Box<dyn Method>, ModelError> {
    let plain = described.names("modules_to_not_convert")?;
    described.pass_over(&["dequantize"]);
    described.close()?;
    Ok(Box::new(Mxfp4 { plain }))
}

impl Method for Mxfp4 {
    fn plain(&self) -> &[String] {
        &self.plain
    }

    fn claim(&self, raw: &mut Raw) -> Result<(), ModelError> {
        for name in raw.stems("_blocks") {
            let blocks = raw.need(&format!("{name}_blocks"), &[Dtype::U8])?;
            let scales = raw.need(&format!("{name}_scales"), &[Dtype::U8])?;
            let [experts, outputs, groups, 16] = *blocks.shape() else {
                return Err(raw.misfit(&blocks, &[]));
            };
            let inputs = groups.saturating_mul(GROUP);
            let stored = [experts, outputs, inputs];
            let grid = Grid::of_groups(&stored, scales.shape(), GROUP);
            let grid = grid.ok_or_else(|| raw.misfit(&scales, &stored))?;
            // transformers' class has (experts, in, out)
            let how = Turned { blocks: Blocks { grid, whole: Whole::Nothing }, inputs, outputs };
            raw.put(name, vec![experts, inputs, outputs], "MXFP4", vec![blocks, scales], how)?;
        }
        Ok(())
    }
}

/// A stack of matrices whose rows are stored as columns.
struct Turned {
    blocks: Blocks,
    inputs: usize,
    outputs: usize,
}

impl Dequantize for Turned {
    fn rows(&self, parts: &[Part], rows: Rows, out: &mut [f32]) {
        let count = out.len() / rows.width.max(1);
        let mut column = [0f32; GROUP];
        let mut done = 0;
        // rows of an expert, a block of a column at a time
        while done < count {
            let input = rows.first + done;
            let (expert, within) = (input / self.inputs, input % self.inputs);
            let (group, skipped) = (within / GROUP, within % GROUP);
            let taken = (GROUP - skipped).min(count - done);
            for output in 0..self.outputs {
                let row = expert * self.outputs + output;
                self.blocks.group(parts, row, self.inputs, group, &mut column);
                for (at, x) in column[skipped..][..taken].iter().enumerate() {
                    out[(done + at) * rows.width + output] = *x;
                }
            }
            done += taken;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::compute::device::HOST;
    use crate::hash;
    use crate::model::hf::HfCheckpoint;
    use crate::model::tensors::Tensors;
    use serde_json::Value;
    use std::path::Path;

    /// The fixture has only experts, so that no decoder can be built of it (`scripts/oracle/quantized.py`).
    #[test]
    fn experts_are_those_of_transformers() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantized/mxfp4");
        let checkpoint = HfCheckpoint::open(&folder).unwrap();
        let oracle = std::fs::read(folder.join("oracle.json")).unwrap();
        let oracle: Value = serde_json::from_slice(&oracle).unwrap();
        let weights = oracle["weights"].as_object().unwrap();
        assert_eq!(weights.len(), 2);
        for (name, want) in weights {
            let numbers: Vec<f32> =
                checkpoint.read(name, &HOST).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(hash::of_bytes(&bytes), want.as_str().unwrap(), "{name}");
        }
    }
}
