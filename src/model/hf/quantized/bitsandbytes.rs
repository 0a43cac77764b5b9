//! bitsandbytes: NF4 and FP4 in blocks, whose scales may be quantized themselves, and INT8 with a scale for each row.

use super::described::Described;
use super::raw::{Raw, Taken};
use super::weight::{Dequantize, Grid, Part, Rows};
use super::{Known, Method};
use crate::model::hf::json;
use crate::model::ModelError;
use safetensors::Dtype;
use serde_json::Value;

pub(super) const BITSANDBYTES: Known = Known { names: &["bitsandbytes"], read };

#[derive(Debug)]
struct BitsAndBytes {
    plain: Vec<String>,
    is_eight: bool,
    /// The kind of 4-bit numbers, if the configuration says one.
    kind: Option<String>,
}

/// The kinds of 4-bit numbers.
const KINDS: [&str; 2] = ["nf4", "fp4"];

fn read(mut described: Described) -> Result<Box<dyn Method>, ModelError> {
    let eight = [described.flag("load_in_8bit")?, described.flag("_load_in_8bit")?];
    let four = [described.flag("load_in_4bit")?, described.flag("_load_in_4bit")?];
    let is_on = |flags: [Option<bool>; 2]| flags.contains(&Some(true));
    if is_on(eight) == is_on(four) {
        return Err(
            described.error("load_in_4bit", "must be true if `load_in_8bit` is not, and only then")
        );
    }
    let kind = described.one_of("bnb_4bit_quant_type", &KINDS)?;
    let plain = described.names("llm_int8_skip_modules")?;
    // how transformers computes with the weights and keeps them; each weight says how it is stored
    described.pass_over(&[
        "bnb_4bit_compute_dtype",
        "bnb_4bit_quant_storage",
        "bnb_4bit_use_double_quant",
        "llm_int8_enable_fp32_cpu_offload",
        "llm_int8_has_fp16_weight",
        "llm_int8_threshold",
    ]);
    described.close()?;
    Ok(Box::new(BitsAndBytes { plain, is_eight: is_on(eight), kind }))
}

impl Method for BitsAndBytes {
    fn plain(&self) -> &[String] {
        &self.plain
    }

    fn quantizes_activations(&self) -> bool {
        self.is_eight
    }

    fn scales(&self) -> &'static [&'static str] {
        match self.is_eight {
            true => &["SCB"],
            false => {
                &["weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4"]
            }
        }
    }

    fn claim(&self, raw: &mut Raw) -> Result<(), ModelError> {
        if self.is_eight {
            return raw.stems(".SCB").into_iter().try_for_each(|stem| eight(raw, &stem));
        }
        for kind in KINDS {
            let end = format!(".quant_state.bitsandbytes__{kind}");
            for name in raw.stems(&end) {
                if let Some(said) = self.kind.as_ref().filter(|said| *said != kind) {
                    let message = format!("is stored as {kind}, and the configuration says {said}");
                    return Err(raw.refuse(&name, message));
                }
                four(raw, name, &end)?;
            }
        }
        Ok(())
    }
}

fn eight(raw: &mut Raw, stem: &str) -> Result<(), ModelError> {
    let name = format!("{stem}.weight");
    let codes = raw.need(&name, &[Dtype::I8])?;
    let largest = raw.need(&format!("{stem}.SCB"), &[Dtype::F32])?;
    // 0 says that rows lie one after the other; the others are orders of old cards
    if let Some(order) = raw.may(&format!("{stem}.weight_format"), &[Dtype::U8])? {
        if order.part().bytes != [0] {
            return Err(raw.refuse(&order.name, "is not 0: the weights are not stored by rows"));
        }
    }
    let whole = codes.shape().to_vec();
    let grid = Grid::of_rows(&whole, largest.shape());
    let grid = grid.filter(|_| whole.len() == 2).ok_or_else(|| raw.misfit(&largest, &whole))?;
    raw.put(name, whole, "I8 (bitsandbytes)", vec![codes, largest], Rowwise { grid })
}

/// Codes, and the largest magnitude of each row.
struct Rowwise {
    grid: Grid,
}

impl Dequantize for Rowwise {
    fn rows(&self, parts: &[Part], rows: Rows, out: &mut [f32]) {
        let [codes, largest] = parts else { return };
        super::weight::by_runs(&self.grid, rows, out, |at, first, numbers| {
            let largest = largest.float(at);
            let codes = &codes.bytes[first..first + numbers.len()];
            for (x, &code) in numbers.iter_mut().zip(codes) {
                // the package's order and its constant for 1/127
                *x = f32::from(code as i8) * largest * 7.874_016e-3;
            }
        });
    }
}

/// The numbers of the codes.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];
const FP4: [f32; 16] = [
    0.0,
    0.005_208_333_5,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    0.0,
    -0.005_208_333_5,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

/// What a weight's own description says.
struct State {
    shape: Vec<usize>,
    block: usize,
    /// The size of the blocks of scales, and what is added to the scales.
    nested: Option<(usize, f32)>,
}

fn four(raw: &mut Raw, name: String, end: &str) -> Result<(), ModelError> {
    let codes = raw.take(&name).ok_or_else(|| raw.absent(&name))?;
    let stored = raw.need(&format!("{name}{end}"), &[Dtype::U8])?;
    let kind = end.rsplit('_').next().unwrap_or_default();
    let state = state(raw, &stored, kind)?;
    let elements: usize = state.shape.iter().product();
    let map = table(raw, &format!("{name}.quant_map"), 16)?;
    let known = if end.ends_with("nf4") { NF4 } else { FP4 };
    let is_known = |(i, known): (usize, f32)| (map.part().float(i) - known).abs() < 1e-6;
    if !known.into_iter().enumerate().all(is_known) {
        return Err(raw.refuse(
            &map.name,
            "has other numbers than the package's kernels, which do not read it",
        ));
    }
    let blocks = elements.div_ceil(state.block);
    let mut parts;
    let scales = if let Some((size, _)) = state.nested {
        let scales = raw.need(&format!("{name}.absmax"), &[Dtype::U8])?;
        let nested_map = table(raw, &format!("{name}.nested_quant_map"), 256)?;
        let nested = raw.need(&format!("{name}.nested_absmax"), &[Dtype::F32])?;
        if nested.part().count() != blocks.div_ceil(size) {
            return Err(raw.misfit(&nested, &state.shape));
        }
        parts = vec![nested_map, nested];
        scales
    } else {
        parts = Vec::new();
        raw.need(&format!("{name}.absmax"), &[Dtype::F32])?
    };
    if scales.part().count() != blocks {
        return Err(raw.misfit(&scales, &state.shape));
    }
    if codes.part().bytes.len() != elements.div_ceil(2) {
        return Err(raw.misfit(&codes, &state.shape));
    }
    parts.splice(0..0, [codes, map, scales]);
    let label = kind.to_ascii_uppercase();
    let how = Mapped { block: state.block, nested: state.nested };
    raw.put(name, state.shape, label, parts, how)
}

/// The numbers that codes stand for.
fn table<'a>(raw: &mut Raw<'a>, name: &str, codes: usize) -> Result<Taken<'a>, ModelError> {
    let table = raw.need(name, &[Dtype::F32])?;
    if table.part().count() == codes {
        return Ok(table);
    }
    Err(raw.refuse(name, format!("has {:?} numbers and not {codes}", table.shape())))
}

fn state(raw: &Raw, stored: &Taken, kind: &str) -> Result<State, ModelError> {
    let whole = json::object(raw.folder, stored.part().bytes)?;
    let refuse = |what: &str| raw.refuse(&stored.name, format!("{what}: {whole}"));
    // the package chooses its kernel by this member, and not by the tensor's name
    if whole.get("quant_type").is_some_and(|said| said != kind) {
        return Err(refuse("names another kind of numbers than the tensor's name"));
    }
    let number = |key: &str| whole.get(key).and_then(Value::as_u64).filter(|&n| n > 0);
    let shape: Option<Vec<usize>> = whole
        .get("shape")
        .and_then(Value::as_array)
        .and_then(|list| list.iter().map(|n| usize::try_from(n.as_u64()?).ok()).collect());
    let elements =
        shape.iter().flatten().try_fold(1usize, |n, &dimension| n.checked_mul(dimension));
    let (Some(shape @ [_, _]), Some(block), Some(_)) =
        (shape.as_deref(), number("blocksize"), elements)
    else {
        return Err(refuse("does not say shape and size of blocks"));
    };
    let nested = match number("nested_blocksize") {
        Some(size) => {
            if !matches!(whole.get("nested_dtype"), None | Some(Value::Null))
                && whole["nested_dtype"] != "float32"
            {
                return Err(refuse("has scales of scales that are not float32"));
            }
            let offset = whole.get("nested_offset").and_then(Value::as_f64);
            let offset = offset.ok_or_else(|| refuse("does not say the mean of its scales"))?;
            Some((size as usize, offset as f32))
        }
        None => None,
    };
    Ok(State { shape: shape.to_vec(), block: block as usize, nested })
}

/// Codes, numbers of the codes, and scales of blocks of the flattened weight; for nested scales also the numbers of
/// their codes, and their scales. The first of two elements is in a byte's upper half.
struct Mapped {
    block: usize,
    nested: Option<(usize, f32)>,
}

impl Mapped {
    fn scale(&self, parts: &[Part], block: usize) -> f32 {
        match (self.nested, parts) {
            (Some((size, offset)), [_, _, scales, map, nested]) => {
                let number = map.float(usize::from(scales.bytes[block]));
                number * nested.float(block / size) + offset
            }
            (_, parts) => parts[2].float(block),
        }
    }
}

impl Dequantize for Mapped {
    fn rows(&self, parts: &[Part], rows: Rows, out: &mut [f32]) {
        let [codes, map, ..] = parts else { return };
        let map: [f32; 16] = std::array::from_fn(|code| map.float(code));
        let mut at = rows.first * rows.width;
        let mut left = out;
        while !left.is_empty() {
            let (block, skipped) = (at / self.block, at % self.block);
            let taken = (self.block - skipped).min(left.len());
            let (numbers, rest) = std::mem::take(&mut left).split_at_mut(taken);
            let scale = self.scale(parts, block);
            for (i, x) in numbers.iter_mut().enumerate() {
                let code = codes.bytes[(at + i) / 2] >> (4 * (1 - (at + i) % 2)) & 15;
                *x = map[usize::from(code)] * scale;
            }
            (at, left) = (at + taken, rest);
        }
    }
}
