//! GPTQ as AutoGPTQ and GPTQModel write it, in both versions of the format: version 1 stores zero points less one.

use super::autoround_members::members_of_autoround;
use super::columns::{groups_are_even, off_middle, ByColumns, Columns};
use super::described::Described;
use super::raw::{Raw, Taken, SCALES};
use super::weight::Part;
use super::{Known, Method, Setting};
use crate::model::ModelError;
use safetensors::Dtype;
use serde_json::json;

pub(super) const GPTQ: Known = Known { names: &["gptq"], read };

/// Members about how the weights were found, and about which kernels run them.
pub(super) const MAKING: &[&str] = &[
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
pub(super) struct Gptq {
    pub bits: usize,
    pub group: Option<usize>,
    /// What is added to stored zero points.
    pub more: i32,
    /// Whether the largest stored zero point stands for 0 where `more` is 1. If not, it is refused.
    pub wraps: bool,
    /// Whether each weight must say to which group an input belongs.
    pub is_ordered: bool,
    /// Whether inputs were ordered, and whether their groups were chosen before that.
    pub desc_act: Option<bool>,
    pub static_groups: Option<bool>,
    /// Whether all zero points are in the middle of the range.
    pub symmetric: Option<bool>,
    pub plain: Vec<String>,
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
    let (desc_act, static_groups) = (described.flag("desc_act")?, described.flag("static_groups")?);
    let is_ordered = desc_act == Some(true) && static_groups != Some(true);
    let symmetric = described.flag("sym")?;
    members_of_autoround(&mut described)?;
    described.pass_over(MAKING);
    described.close()?;
    let more = i32::from(format.as_deref() != Some("gptq_v2"));
    Ok(Box::new(Gptq {
        bits,
        group,
        more,
        wraps: true,
        is_ordered,
        desc_act,
        static_groups,
        symmetric,
        plain: Vec::new(),
    }))
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
        &self.plain
    }

    fn settings(&self) -> Vec<Setting> {
        let said = |flag: Option<bool>| flag.map(|flag| flag.to_string());
        vec![
            ("`bits`", Some(self.bits.to_string())),
            ("`group_size`", Some(format!("{:?}", self.group))),
            ("`checkpoint_format` (`format`)", Some(self.more.to_string())),
            ("`desc_act`", said(self.desc_act.or(Some(self.is_ordered)))),
            ("`static_groups`", said(self.static_groups)),
            ("`sym`", said(self.symmetric)),
        ]
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
                if order.shape() != [inputs] {
                    return Err(raw.misfit(order, &whole));
                }
                if !groups_are_even(&order.part(), groups, group) {
                    return Err(raw.uneven(order, groups, group));
                }
                self.is_as_described(raw, order, group)?;
            }
            let (bits, more) = (self.bits, self.more);
            let columns = Packed { bits, outputs, across: outputs.div_ceil(in_word), more };
            self.zeros_are_as_described(raw, &zeros, &columns, groups)?;
            let parts =
                [Some(words), Some(zeros), Some(scales), order].into_iter().flatten().collect();
            let label = format!("INT{bits} (GPTQ)");
            raw.put(name, whole, label, parts, ByColumns { columns, outputs, group })?;
            raw.zero_bias(&stem, outputs);
        }
        Ok(())
    }
}

impl Gptq {
    /// Refuses an order of inputs that the description denies: kernels for weights without one do not look at it.
    fn is_as_described(&self, raw: &Raw, order: &Taken, group: usize) -> Result<(), ModelError> {
        let part = order.part();
        let in_order = |i| part.whole(i) == Some((i / group) as i64);
        if self.desc_act != Some(false) || (0..part.count()).all(in_order) {
            return Ok(());
        }
        Err(raw.refuse(
            &order.name,
            "has inputs in an order of their own, and the description says `desc_act: false`: nothing says which is \
             right",
        ))
    }

    /// Refuses zero points that the description denies, and one that programs take for different numbers.
    fn zeros_are_as_described(
        &self,
        raw: &Raw,
        zeros: &Taken,
        columns: &Packed,
        groups: usize,
    ) -> Result<(), ModelError> {
        let (part, shape) = (zeros.part(), [groups, columns.outputs]);
        if self.symmetric == Some(true) {
            if let Some(point) = off_middle(columns, &part, shape, self.bits) {
                let middle = 1 << (self.bits - 1);
                let message = format!(
                    "has a zero point of {point}, and the description says `sym: true`, by which all are {middle}: \
                     nothing says which is right"
                );
                return Err(raw.refuse(&zeros.name, message));
            }
        }
        let mut outputs = (0..groups).flat_map(|g| (0..columns.outputs).map(move |o| (g, o)));
        let is_wrapped = |(group, output)| columns.zero(&part, group, output) == 0;
        if self.more == 1 && !self.wraps && outputs.any(is_wrapped) {
            let (largest, next) = (columns.mask(), columns.mask() + 1);
            let message = format!(
                "stores a zero point of {largest}, less one, which AutoRound's kernels take for {next} and others for 0"
            );
            return Err(raw.refuse(&zeros.name, message));
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
