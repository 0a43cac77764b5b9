//! GPTQ as AutoGPTQ and GPTQModel write it, in both versions of the format: version 1 stores zero points less one.

use super::columns::{ByColumns, Columns};
use super::described::Described;
use super::raw::{Raw, SCALES};
use super::weight::Part;
use super::{Known, Method};
use crate::model::ModelError;
use safetensors::Dtype;
use serde_json::json;

pub(super) const GPTQ: Known = Known { names: &["gptq"], read };

/// Members about how the weights were found, and about which kernels run them.
pub(super) const MAKING: &[&str] = &[
    "desc_act",
    "sym",
    "damp_percent",
    "damp_auto_increment",
    "static_groups",
    "true_sequential",
    "act_group_aware",
    "mse",
    "meta",
    "model_name_or_path",
    "model_file_base_name",
    "tokenizer",
    "dataset",
    "batch_size",
    "use_cuda_fp16",
    "model_seqlen",
    "module_name_preceding_first_block",
    "block_name_to_quantize",
    "modules_in_block_to_quantize",
    "pad_token_id",
    "disable_exllama",
    "use_exllama",
    "exllama_config",
    "max_input_length",
    "cache_block_outputs",
    "backend",
    "lm_head",
    "hyb_act",
    "offload_to_disk",
    "offload_to_disk_path",
    "parallel_packing",
];

#[derive(Debug)]
struct Gptq {
    bits: usize,
    group: Option<usize>,
    /// What is added to stored zero points.
    more: i32,
    /// Whether each weight must say to which group an input belongs.
    is_ordered: bool,
}

fn read(mut described: Described) -> Result<Box<dyn Method>, ModelError> {
    let bits = described.number("bits")?;
    let bits = match bits {
        Some(bits @ (2 | 4 | 8)) => bits,
        other => {
            let found = other.map_or("missing".into(), |bits| bits.to_string());
            return Err(described
                .error("bits", format!("is {found}, and kvgate reads GPTQ in 2, 4 or 8 bits")));
        }
    };
    let group = match described.take("group_size") {
        Some(size) => group(&described, &size)?,
        None => Some(128),
    };
    let formats = ["gptq", "gptq_v2"];
    let old = described.one_of("format", &formats)?;
    let format = described.one_of("checkpoint_format", &formats)?;
    if old.is_some() && format.is_some() && old != format {
        return Err(described.error("checkpoint_format", "is another format than `format` says"));
    }
    let format = format.or(old);
    described.neutral("method", &[json!("gptq")])?;
    described.neutral("quant_type", &[json!("int"), json!("gptq")])?;
    described.neutral("is_marlin_format", &[json!(false)])?;
    described.neutral("pack_dtype", &[json!("int32")])?;
    // settings for single modules, rotations and adapters, which would have to be carried out
    for key in ["dynamic", "rotation", "adapter", "activation", "quantization"] {
        described.neutral(key, &[])?;
    }
    let acts = described.flag("desc_act")?.unwrap_or(false);
    let is_ordered = acts && !described.flag("static_groups")?.unwrap_or(false);
    described.pass_over(MAKING);
    described.close()?;
    let more = i32::from(format.as_deref() != Some("gptq_v2"));
    Ok(Box::new(Gptq { bits, group, more, is_ordered }))
}

/// The size of a group. -1 stands for all inputs.
pub(super) fn group(
    described: &Described,
    size: &serde_json::Value,
) -> Result<Option<usize>, ModelError> {
    match (size.as_i64(), size.as_u64()) {
        (Some(-1), _) => Ok(None),
        (_, Some(size)) if size > 0 => Ok(usize::try_from(size).ok()),
        _ => Err(described.error("group_size", format!("is {size}, no size of a group"))),
    }
}

impl Method for Gptq {
    fn plain(&self) -> &[String] {
        &[]
    }

    fn claim(&self, raw: &mut Raw) -> Result<(), ModelError> {
        let in_word = 32 / self.bits;
        for stem in raw.stems(".qweight") {
            let name = format!("{stem}.weight");
            let words = raw.need(&format!("{stem}.qweight"), &[Dtype::I32])?;
            let zeros = raw.need(&format!("{stem}.qzeros"), &[Dtype::I32])?;
            let scales = raw.need(&format!("{stem}.scales"), &SCALES)?;
            let order = format!("{stem}.g_idx");
            let order = match self.is_ordered {
                true => Some(raw.need(&order, &[Dtype::I32])?),
                false => raw.may(&order, &[Dtype::I32])?,
            };
            let [down, outputs] = *words.shape() else {
                return Err(raw.misfit(&words, &[]));
            };
            let inputs = down.saturating_mul(in_word);
            let whole = vec![outputs, inputs];
            let group = self.group.unwrap_or(inputs).max(1);
            let groups = inputs.div_ceil(group);
            for (part, expected) in [(&zeros, outputs.div_ceil(in_word)), (&scales, outputs)] {
                if part.shape() != [groups, expected] || !inputs.is_multiple_of(group) {
                    return Err(raw.misfit(part, &whole));
                }
            }
            if let Some(order) = &order {
                let is_group =
                    |i| matches!(order.part().whole(i), Some(g) if (0..groups as i64).contains(&g));
                if order.shape() != [inputs] || !(0..inputs).all(is_group) {
                    return Err(raw.misfit(order, &whole));
                }
            }
            let (bits, more) = (self.bits, self.more);
            let columns = Packed { bits, outputs, across: outputs.div_ceil(in_word), more };
            let parts =
                [Some(words), Some(zeros), Some(scales), order].into_iter().flatten().collect();
            let label = format!("INT{bits} (GPTQ)");
            raw.put(name, whole, label, parts, ByColumns { columns, outputs, group })?;
            raw.zero_bias(&stem, outputs);
        }
        Ok(())
    }
}

/// Neighbouring inputs share a word of weights; neighbouring outputs share a word of zero points.
struct Packed {
    bits: usize,
    outputs: usize,
    /// Words in a row of zero points.
    across: usize,
    more: i32,
}

impl Packed {
    /// The number at an index, of which this is the word.
    fn number(&self, word: u32, index: usize) -> i32 {
        ((word >> (self.bits * index % 32)) & self.mask()) as i32
    }

    fn mask(&self) -> u32 {
        (1 << self.bits) - 1
    }
}

impl Columns for Packed {
    fn code(&self, words: &Part, input: usize, output: usize) -> i32 {
        self.number(words.word(input * self.bits / 32 * self.outputs + output), input)
    }

    fn zero(&self, zeros: &Part, group: usize, output: usize) -> i32 {
        let word = zeros.word(group * self.across + output * self.bits / 32);
        let stored = self.number(word, output);
        // a zero point of 0 is stored as -1, that is as the largest number
        (stored + self.more) & self.mask() as i32
    }
}
