//! What `llm-compressor` writes by the package `compressed-tensors`.
//!
//! A layer's tensors say how it is quantized, and the configuration has groups of layers. A layer that is quantized as
//! no group describes is an error, and so is one that is stored in another format than the description says.

use super::columns::groups_are_even;
use super::described::Described;
use super::fp4::{Blocks, Whole};
use super::raw::{Raw, Taken, SCALES};
use super::scaled::{not_negative, one_above_zero, Scaled};
use super::weight::{Dequantize, Grid, Part, Rows};
use super::{kv_scheme, Known, Method};
use crate::model::ModelError;
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::json;

pub(super) const COMPRESSED: Known = Known { names: &["compressed-tensors"], read };

const FORMATS: [&str; 8] = [
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "dense",
    MIXED,
];
/// Each group has a format of its own.
const MIXED: &str = "mixed-precision";

#[derive(Debug)]
struct Compressed {
    /// The format of groups that do not have their own, unless groups differ.
    format: Option<String>,
    groups: Vec<Weights>,
    activations: bool,
    plain: Vec<String>,
}

/// How a group's weights are quantized.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Weights {
    /// The group's own format.
    format: Option<String>,
    bits: usize,
    is_float: bool,
    symmetric: bool,
    strategy: Strategy,
    /// Whether each weight must say to which group an input belongs.
    is_ordered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strategy {
    Tensor,
    Channel,
    Group(usize),
    Block([usize; 2]),
}

fn read(mut described: Described) -> Result<Box<dyn Method>, ModelError> {
    let format = described.one_of("format", &FORMATS)?.filter(|format| format != MIXED);
    // in both states the tensors are packed; the package writes the second one for models whose training is over
    described.one_of("quantization_status", &["compressed", "frozen"])?;
    described.pass_over(&["version", "global_compression_ratio"]);
    described.neutral("transform_config", &[])?;
    described.neutral("moe_sparsity_config", &[])?;
    if let Some(mut sparsity) = described.object("sparsity_config")? {
        sparsity.neutral("format", &[json!("dense")])?;
        sparsity.pass_over(&[
            "registry_requires_subclass",
            "ignore",
            "targets",
            "global_sparsity",
            "sparsity_structure",
        ]);
        sparsity.close()?;
    }
    let plain = described.names("ignore")?;
    kv_scheme::take(&mut described)?;
    let groups = match described.object("config_groups")? {
        Some(groups) => groups.objects()?,
        None => Vec::new(),
    };
    described.close()?;
    let mut method = Compressed { format, groups: Vec::new(), activations: false, plain };
    for mut group in groups {
        group.pass_over(&["targets"]);
        let format = group.one_of("format", &FORMATS)?;
        for key in ["input_activations", "output_activations"] {
            method.activations |= group.take(key).is_some();
        }
        let weights = group.object("weights")?.map(weights).transpose()?;
        method.groups.extend(weights.map(|weights| Weights { format, ..weights }));
        group.close()?;
    }
    Ok(Box::new(method))
}

fn weights(mut described: Described) -> Result<Weights, ModelError> {
    let bits = described.number("num_bits")?.unwrap_or(8);
    let is_float = described.one_of("type", &["int", "float"])?.as_deref() == Some("float");
    // versions of the package pack other sizes in different ways
    let known: &[usize] = if is_float { &[4, 8] } else { &[2, 4, 8] };
    if !known.contains(&bits) {
        return Err(described.error("num_bits", format!("is {bits}, which kvgate does not read")));
    }
    let symmetric = described.flag("symmetric")?.unwrap_or(true);
    described.neutral("dynamic", &[json!(false)])?;
    let is_ordered = match described.take("actorder") {
        None => false,
        Some(order)
            if [json!(null), json!(false), json!("weight"), json!("static")].contains(&order) =>
        {
            false
        }
        Some(order) if [json!(true), json!("group"), json!("dynamic")].contains(&order) => true,
        Some(order) => {
            return Err(described.error("actorder", format!("is {order}, no known order")))
        }
    };
    described.pass_over(&["observer", "observer_kwargs", "scale_dtype", "zp_dtype"]);
    let group = match described.take("group_size") {
        None => None,
        Some(value) if value.as_i64() == Some(-1) => None,
        Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(size) if size > 0 => Some(size),
            _ => {
                return Err(described.error("group_size", format!("is {value}, no size of a group")))
            }
        },
    };
    let block = super::fp8::block(&mut described, "block_structure")?;
    let known = ["tensor", "channel", "group", "tensor_group", "block"];
    let strategy = match (described.one_of("strategy", &known)?.as_deref(), group, block) {
        (Some("tensor") | None, None, None) => Strategy::Tensor,
        (Some("channel"), None, None) => Strategy::Channel,
        (Some("group" | "tensor_group") | None, Some(size), None) => Strategy::Group(size),
        (Some("block") | None, None, Some(block)) => Strategy::Block(block),
        (strategy, ..) => {
            let message = format!(
                "is {strategy:?}, which does not go with `group_size` and `block_structure`"
            );
            return Err(described.error("strategy", message));
        }
    };
    described.close()?;
    Ok(Weights { format: None, bits, is_float, symmetric, strategy, is_ordered })
}

impl Method for Compressed {
    fn plain(&self) -> &[String] {
        &self.plain
    }

    fn has_weights(&self) -> bool {
        !self.groups.is_empty()
    }

    fn quantizes_activations(&self) -> bool {
        self.activations
    }

    fn scales(&self) -> &'static [&'static str] {
        &["weight_scale"]
    }

    fn claim(&self, raw: &mut Raw) -> Result<(), ModelError> {
        for stem in raw.stems(".weight_packed") {
            match raw.dtype(&format!("{stem}.weight_packed")) {
                Some(Dtype::I32) => self.packed(raw, &stem)?,
                _ => self.fp4(raw, &stem)?,
            }
            drop_activations(raw, &stem);
        }
        for stem in raw.stems(".weight_scale") {
            let dtype = raw.dtype(&format!("{stem}.weight"));
            if matches!(dtype, Some(Dtype::F8_E4M3 | Dtype::I8)) {
                self.scaled(raw, &stem)?;
                drop_activations(raw, &stem);
            }
        }
        Ok(())
    }
}

/// Whether all codes of eight bits are in the range of fewer.
fn are_narrow(codes: &Taken, bits: usize) -> bool {
    let end = 1i8 << (bits - 1);
    codes.part().bytes.par_iter().all(|&code| (-end..end).contains(&(code as i8)))
}

fn drop_activations(raw: &mut Raw, stem: &str) {
    for end in ["input_scale", "input_zero_point", "input_global_scale"] {
        raw.drop(&format!("{stem}.{end}"));
    }
}

/// The grid of a strategy's scales.
fn grid(strategy: Strategy, whole: &[usize], scales: &[usize]) -> Option<Grid> {
    match strategy {
        Strategy::Tensor => Grid::one(whole, scales),
        Strategy::Channel => Grid::of_rows(whole, scales),
        Strategy::Group(size) => Grid::of_groups(whole, scales, size),
        Strategy::Block(block) => Grid::new(whole, scales, block),
    }
}

impl Compressed {
    /// The group that describes a layer, which is stored in one of these formats, and the grid of its scales.
    fn group(
        &self,
        raw: &Raw,
        whole: &[usize],
        (scales, formats): (&Taken, &[&str]),
        fits: impl Fn(&Weights) -> bool,
    ) -> Result<(&Weights, Grid), ModelError> {
        let groups = self.groups.iter().filter(|group| fits(group));
        let found =
            groups.filter_map(|group| Some((group, grid(group.strategy, whole, scales.shape())?)));
        let found: Vec<_> = found.collect();
        let format = |group: &Weights| group.format.clone().or(self.format.clone());
        let is_stored_so = |(group, _): &&(&Weights, Grid)| {
            format(group).is_none_or(|format| formats.contains(&format.as_str()))
        };
        if let Some(found) = found.iter().find(is_stored_so) {
            return Ok(*found);
        }
        if let Some(said) = found.first().and_then(|(group, _)| format(group)) {
            let formats = formats.join("` or `");
            let message = format!(
                "is there for a weight that is stored as `{formats}`, and the configuration says `format: {said}`: \
                 nothing says which is right"
            );
            return Err(raw.refuse(&scales.name, message));
        }
        Err({
            raw.refuse(
                &scales.name,
                format!(
                    "of shape {:?} belongs to a weight of shape {whole:?} that is quantized as no group of the \
                     configuration describes",
                    scales.shape()
                ),
            )
        })
    }

    /// FP8 and INT8.
    fn scaled(&self, raw: &mut Raw, stem: &str) -> Result<(), ModelError> {
        let name = format!("{stem}.weight");
        let codes = raw.need(&name, &[Dtype::F8_E4M3, Dtype::I8])?;
        let scales = raw.need(&format!("{name}_scale"), &SCALES)?;
        let zeros = raw.may(&format!("{name}_zero_point"), &[Dtype::I8, Dtype::F8_E4M3])?;
        let whole = codes.shape().to_vec();
        let is_float = codes.dtype() == Dtype::F8_E4M3;
        let formats =
            [if is_float { "float-quantized" } else { "int-quantized" }, "naive-quantized"];
        let (group, grid) = self.group(raw, &whole, (&scales, &formats), |group| {
            group.is_float == is_float
                && (group.bits == 8 || !is_float && are_narrow(&codes, group.bits))
        })?;
        if is_float {
            not_negative(raw, &scales)?;
        }
        let mut parts = vec![codes, scales];
        if group.symmetric {
            // FP8 has none, and symmetric weights have zeros there
            if let Some(zeros) = zeros.filter(|zeros| zeros.part().bytes.iter().any(|&z| z != 0)) {
                return Err(
                    raw.refuse(&zeros.name, "moves weights that the configuration calls symmetric")
                );
            }
        } else {
            let zeros = zeros.ok_or_else(|| raw.absent(&format!("{name}_zero_point")))?;
            if is_float || zeros.dtype() != Dtype::I8 || zeros.shape() != parts[1].shape() {
                return Err(raw.misfit(&zeros, &whole));
            }
            parts.push(zeros);
        }
        let label = if is_float { "F8_E4M3" } else { "I8" };
        raw.put(name, whole, label, parts, Scaled { grid })
    }

    /// Whole numbers of few bits, packed into words.
    fn packed(&self, raw: &mut Raw, stem: &str) -> Result<(), ModelError> {
        let name = format!("{stem}.weight");
        let words = raw.need(&format!("{name}_packed"), &[Dtype::I32])?;
        let scales = raw.need(&format!("{name}_scale"), &SCALES)?;
        let zeros = raw.may(&format!("{name}_zero_point"), &[Dtype::I32, Dtype::I8])?;
        let order = raw.may(&format!("{name}_g_idx"), &[Dtype::I32, Dtype::I64])?;
        let shape = raw.need(&format!("{name}_shape"), &[Dtype::I64, Dtype::I32])?;
        let whole: Option<Vec<usize>> =
            (0..2).map(|i| usize::try_from(shape.part().whole(i)?).ok()).collect();
        let whole = whole.filter(|_| shape.shape() == [2]);
        let Some(&[rows, columns]) = whole.as_deref() else {
            return Err(raw.refuse(&shape.name, "does not say rows and columns"));
        };
        let whole = [rows, columns];
        let (group, grid) = self.group(raw, &whole, (&scales, &["pack-quantized"]), |group| {
            let across = columns.div_ceil(32 / group.bits);
            !group.is_float && words.shape() == [rows, across]
        })?;
        let packing = Packing { bits: group.bits };
        let zero = match (&zeros, group.symmetric) {
            (None, true) => Zero::None,
            (Some(zeros), false) => {
                // each row has zero points of its own
                let [down, across] = *scales.shape() else {
                    return Err(raw.misfit(zeros, &whole));
                };
                match zeros.dtype() {
                    _ if down != rows => return Err(raw.misfit(zeros, &whole)),
                    Dtype::I32 if zeros.shape() == [down.div_ceil(packing.in_word()), across] => {
                        Zero::Packed { across }
                    }
                    Dtype::I8 if zeros.shape() == scales.shape() => Zero::Bytes { across },
                    _ => return Err(raw.misfit(zeros, &whole)),
                }
            }
            (None, false) => return Err(raw.absent(&format!("{name}_zero_point"))),
            (Some(zeros), true) => {
                return Err(
                    raw.refuse(&zeros.name, "moves weights that the configuration calls symmetric")
                )
            }
        };
        if group.is_ordered && order.is_none() {
            return Err(raw.absent(&format!("{name}_g_idx")));
        }
        let groups = columns.div_ceil(grid.run());
        let order = match order {
            Some(order) if order.shape() != [columns] => {
                return Err(raw.misfit(&order, &whole));
            }
            // the package writes -1 everywhere if groups are in order
            Some(order) if !group.is_ordered => {
                let run = grid.run();
                let stands = |i| order.part().whole(i);
                let is_in_order = (0..columns).all(|i| stands(i) == Some((i / run) as i64));
                if !is_in_order && !(0..columns).all(|i| stands(i) == Some(-1)) {
                    return Err(raw.refuse(
                        &order.name,
                        "has inputs in an order of their own, and `actorder` of the description does not say so: \
                         nothing says which is right",
                    ));
                }
                None
            }
            Some(order) if !groups_are_even(&order.part(), groups, grid.run()) => {
                return Err(raw.uneven(&order, groups, grid.run()));
            }
            Some(order) => Some(order),
            None => None,
        };
        let how =
            PackedInts { packing, words: words.shape()[1], grid, zero, ordered: order.is_some() };
        let label = format!("INT{} packed", group.bits);
        let parts = [Some(words), Some(scales), order, zeros].into_iter().flatten().collect();
        raw.put(name, whole.to_vec(), label, parts, how)
    }

    /// NVFP4 and MXFP4.
    fn fp4(&self, raw: &mut Raw, stem: &str) -> Result<(), ModelError> {
        let name = format!("{stem}.weight");
        let codes = raw.need(&format!("{name}_packed"), &[Dtype::U8])?;
        let scales =
            raw.need(&format!("{name}_scale"), &[Dtype::F8_E4M3, Dtype::U8, Dtype::F8_E8M0])?;
        let mut whole = codes.shape().to_vec();
        if let Some(columns) = whole.last_mut() {
            *columns = columns.saturating_mul(2);
        }
        let is_nv = scales.dtype() == Dtype::F8_E4M3;
        let format = if is_nv { "nvfp4-pack-quantized" } else { "mxfp4-pack-quantized" };
        let fits = |group: &Weights| group.is_float && group.bits == 4;
        let (_, grid) = self.group(raw, &whole, (&scales, &[format]), fits)?;
        not_negative(raw, &scales)?;
        let mut parts = vec![codes, scales];
        if is_nv {
            let global = raw.need(&format!("{name}_global_scale"), &[Dtype::F32])?;
            one_above_zero(raw, &global, &whole)?;
            parts.push(global);
        }
        let (label, scale) = if is_nv { ("NVFP4", Whole::Over) } else { ("MXFP4", Whole::Nothing) };
        raw.put(name, whole, label, parts, Blocks { grid, whole: scale })
    }
}

/// How many numbers a word of 32 bits holds, the first in the lowest bits. Numbers are moved by half of their range.
#[derive(Debug, Clone, Copy)]
struct Packing {
    bits: usize,
}

impl Packing {
    fn in_word(self) -> usize {
        32 / self.bits
    }

    /// The number at an index, of which this is the word.
    fn unpacked(self, word: u32, index: usize) -> i32 {
        let mask = (1u32 << self.bits) - 1;
        ((word >> (index * self.bits % 32)) & mask) as i32 - (1 << (self.bits - 1))
    }
}

/// Where zero points are.
#[derive(Debug, Clone, Copy)]
enum Zero {
    None,
    /// Packed along the rows.
    Packed {
        across: usize,
    },
    Bytes {
        across: usize,
    },
}

/// Words, scales, perhaps the group of each column, perhaps zero points.
struct PackedInts {
    packing: Packing,
    /// Words in a row.
    words: usize,
    grid: Grid,
    zero: Zero,
    ordered: bool,
}

impl PackedInts {
    fn zero(&self, zeros: &Part, row: usize, group: usize) -> i32 {
        match self.zero {
            Zero::None => 0,
            Zero::Packed { across } => {
                let word = row * self.packing.bits / 32;
                self.packing.unpacked(zeros.word(word * across + group), row)
            }
            Zero::Bytes { across } => i32::from(zeros.bytes[row * across + group] as i8),
        }
    }
}

impl Dequantize for PackedInts {
    fn rows(&self, parts: &[Part], rows: Rows, out: &mut [f32]) {
        let [words, scales, rest @ ..] = parts else { return };
        let order = rest.first().filter(|_| self.ordered);
        let zeros = rest.last().unwrap_or(scales);
        for (at, numbers) in out.chunks_exact_mut(rows.width.max(1)).enumerate() {
            let row = rows.first + at;
            let first = self.grid.row(row);
            let groups = rows.width.div_ceil(self.grid.run());
            let scale_of =
                |group: usize| (scales.float(first + group), self.zero(zeros, row, group));
            let scales: Vec<(f32, i32)> = (0..groups).map(scale_of).collect();
            let number = |column: usize, (scale, zero): (f32, i32)| {
                let word = words.word(row * self.words + column * self.packing.bits / 32);
                (self.packing.unpacked(word, column) - zero) as f32 * scale
            };
            if let Some(order) = order {
                for (column, x) in numbers.iter_mut().enumerate() {
                    let group = order.whole(column).unwrap_or(0) as usize;
                    *x = number(column, scales[group]);
                }
                continue;
            }
            let run = self.grid.run();
            for (group, numbers) in numbers.chunks_mut(run).enumerate() {
                for (i, x) in numbers.iter_mut().enumerate() {
                    *x = number(group * run + i, scales[group]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lie_from_the_lowest_bits_upwards() {
        let four = Packing { bits: 4 };
        assert_eq!(
            (0..8).map(|i| four.unpacked(0x7654_3210, i)).collect::<Vec<_>>(),
            [-8, -7, -6, -5, -4, -3, -2, -1]
        );
        assert_eq!(Packing { bits: 8 }.unpacked(0xff00_0000, 3), 127);
    }
}
