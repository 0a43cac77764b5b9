//! AWQ in the packing of its GEMM kernels.

use super::autoround_members::members_of_autoround;
use super::columns::{off_middle, ByColumns, Columns};
use super::described::Described;
use super::gptq::{group, MAKING};
use super::raw::{Raw, SCALES};
use super::weight::Part;
use super::{Known, Method, Setting};
use crate::model::ModelError;
use safetensors::Dtype;
use serde_json::json;

pub(super) const AWQ: Known = Known { names: &["awq"], read };

pub(super) const BITS: usize = 4;
/// Names of kernels for this packing, in transformers. Others read another packing.
const KERNELS: [&str; 11] = [
    "autoawq",
    "auto",
    "auto_trainable",
    "machete",
    "marlin",
    "exllama_v1",
    "exllama_v2",
    "gemm",
    "gemm_triton",
    "torch_awq",
    "torch_fused_awq",
];
const IN_WORD: usize = 8;
/// The place in a word of each of eight neighbouring outputs.
const PLACES: [usize; IN_WORD] = [0, 4, 1, 5, 2, 6, 3, 7];

#[derive(Debug)]
pub(super) struct Awq {
    /// Inputs that share a scale. `None` if all do.
    pub group: Option<usize>,
    /// Whether zero points differ. `Some(false)` if all are in the middle of the range.
    pub zero_point: Option<bool>,
    pub plain: Vec<String>,
}

fn read(mut described: Described) -> Result<Box<dyn Method>, ModelError> {
    // the package's own file has other names
    described.neutral("bits", &[json!(BITS)])?;
    described.neutral("w_bit", &[json!(BITS)])?;
    described.one_of("version", &["gemm"])?;
    described.one_of("format", &["gemm"])?;
    described.one_of("backend", &KERNELS)?;
    let zero_point = described.flag("zero_point")?;
    // a member of GPTQ's: AWQ's inputs have no order
    described.neutral("desc_act", &[json!(false)])?;
    members_of_autoround(&mut described)?;
    let sizes = [described.take("group_size"), described.take("q_group_size")];
    if let [Some(one), Some(other)] = &sizes {
        if one != other {
            let message =
                format!("is {other}, and `group_size` is {one}: nothing says which is right");
            return Err(described.error("q_group_size", message));
        }
    }
    let group = match sizes.into_iter().flatten().next() {
        Some(size) => group(&described, &size)?,
        None => Some(128),
    };
    let plain = described.names("modules_to_not_convert")?;
    // transformers writes its members for GPTQ here, too
    described.pass_over(MAKING);
    described.pass_over(&["do_fuse", "fuse_max_seq_len", "modules_to_fuse"]);
    described.close()?;
    Ok(Box::new(Awq { group, zero_point, plain }))
}

impl Method for Awq {
    fn plain(&self) -> &[String] {
        &self.plain
    }

    /// `quant_config.json` does not have the list.
    fn settings(&self) -> Vec<Setting> {
        let zero_point = self.zero_point.map(|flag| flag.to_string());
        vec![
            ("`group_size` (`q_group_size`)", Some(format!("{:?}", self.group))),
            ("`zero_point`", zero_point),
        ]
    }

    fn claim(&self, raw: &mut Raw) -> Result<(), ModelError> {
        for stem in raw.stems(".qweight") {
            let name = format!("{stem}.weight");
            let words = raw.need(&format!("{stem}.qweight"), &[Dtype::I32])?;
            let zeros = raw.need(&format!("{stem}.qzeros"), &[Dtype::I32])?;
            let scales = raw.need(&format!("{stem}.scales"), &SCALES)?;
            let [inputs, across] = *words.shape() else {
                return Err(raw.misfit(&words, &[]));
            };
            let outputs = across.saturating_mul(IN_WORD);
            let whole = vec![outputs, inputs];
            let group = self.group.unwrap_or(inputs).max(1);
            let groups = inputs.div_ceil(group);
            for (part, expected) in [(&zeros, across), (&scales, outputs)] {
                if part.shape() != [groups, expected] || !inputs.is_multiple_of(group) {
                    return Err(raw.misfit(part, &whole));
                }
            }
            let columns = Gemm { across };
            if self.zero_point == Some(false) {
                if let Some(point) = off_middle(&columns, &zeros.part(), [groups, outputs], BITS) {
                    let message = format!("has a zero point of {point}, and the description says that all are 8 (no zero points)");
                    return Err(raw.refuse(&zeros.name, message));
                }
            }
            let how = ByColumns { columns, outputs, group };
            raw.put(name, whole, "INT4 (AWQ)", vec![words, zeros, scales], how)?;
            raw.zero_bias(&stem, outputs);
        }
        Ok(())
    }
}

/// Eight neighbouring outputs share a word.
struct Gemm {
    /// Words in a row.
    across: usize,
}

impl Gemm {
    fn number(&self, words: &Part, row: usize, output: usize) -> i32 {
        let word = words.word(row * self.across + output / IN_WORD);
        ((word >> (BITS * PLACES[output % IN_WORD])) & 15) as i32
    }
}

impl Columns for Gemm {
    fn code(&self, words: &Part, input: usize, output: usize) -> i32 {
        self.number(words, input, output)
    }

    fn zero(&self, zeros: &Part, group: usize, output: usize) -> i32 {
        self.number(zeros, group, output)
    }
}
