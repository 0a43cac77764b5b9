//! MLX's own quantization: groups of a row with a scale and a bias, and the microscaling formats.

use super::described::Described;
use super::fp4::{Blocks, Whole};
use super::raw::{Raw, Taken, SCALES};
use super::scaled::not_negative;
use super::weight::{by_runs, Dequantize, Grid, Part, Rows};
use super::{Known, Method};
use crate::model::ModelError;
use safetensors::Dtype;
use serde_json::{json, Value};
use std::collections::BTreeMap;

pub(super) const MLX: Known = Known { names: &["mlx"], read };

#[derive(Debug)]
struct Mlx {
    usual: Settings,
    /// Settings of single layers. `None` for layers that are not quantized.
    own: BTreeMap<String, Option<Settings>>,
    plain: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Settings {
    group: usize,
    bits: usize,
    mode: String,
}

fn read(mut described: Described) -> Result<Box<dyn Method>, ModelError> {
    let mut own = BTreeMap::new();
    for key in described.keys() {
        match described.take(&key) {
            Some(Value::Object(members)) => {
                let mut layer = described.inner(&key, &members);
                let settings = settings(&mut layer)?;
                layer.close()?;
                own.insert(key, Some(settings));
            }
            Some(Value::Bool(false)) => drop(own.insert(key, None)),
            // as the others
            Some(Value::Bool(true)) => {}
            Some(other) => described.put_back(key, other),
            None => {}
        }
    }
    let usual = settings(&mut described)?;
    described.neutral("quant_method", &[json!("mlx")])?;
    described.close()?;
    let plain = own.iter().filter(|(_, own)| own.is_none()).map(|(name, _)| name.clone()).collect();
    Ok(Box::new(Mlx { usual, own, plain }))
}

fn settings(described: &mut Described) -> Result<Settings, ModelError> {
    let known = ["affine", "mxfp4", "mxfp8", "nvfp4"];
    let mode = described.one_of("mode", &known)?.unwrap_or_else(|| "affine".into());
    let (usual_group, usual_bits) = match mode.as_str() {
        "mxfp4" => (32, 4),
        "mxfp8" => (32, 8),
        "nvfp4" => (16, 4),
        _ => (64, 4),
    };
    let group = described.number("group_size")?.unwrap_or(usual_group);
    let bits = described.number("bits")?.unwrap_or(usual_bits);
    let is_known = match mode.as_str() {
        "affine" => [2, 3, 4, 5, 6, 8].contains(&bits) && [16, 32, 64, 128].contains(&group),
        _ => (group, bits) == (usual_group, usual_bits),
    };
    if !is_known {
        let message =
            format!("is {bits} with groups of {group} in mode `{mode}`, which MLX does not have");
        return Err(described.error("bits", message));
    }
    Ok(Settings { group, bits, mode })
}

impl Method for Mlx {
    fn plain(&self) -> &[String] {
        &self.plain
    }

    fn scales(&self) -> &'static [&'static str] {
        &["scales"]
    }

    fn claim(&self, raw: &mut Raw) -> Result<(), ModelError> {
        for stem in raw.stems(".scales") {
            let settings = match self.own.get(&stem) {
                Some(own) => own.as_ref().unwrap_or(&self.usual),
                None => &self.usual,
            };
            weight(raw, &stem, settings)?;
        }
        Ok(())
    }
}

fn weight(raw: &mut Raw, stem: &str, settings: &Settings) -> Result<(), ModelError> {
    let name = format!("{stem}.weight");
    let words = raw.need(&name, &[Dtype::U32])?;
    let is_affine = settings.mode == "affine";
    let known: &[Dtype] = if is_affine { &SCALES } else { &[Dtype::U8] };
    let scales = raw.need(&format!("{stem}.scales"), known)?;
    let mut whole = words.shape().to_vec();
    let columns = whole.last_mut().map(|columns| {
        let bits = columns.saturating_mul(32);
        *columns = bits / settings.bits;
        bits.is_multiple_of(settings.bits)
    });
    let grid = Grid::of_groups(&whole, scales.shape(), settings.group);
    let grid = grid.filter(|_| columns == Some(true)).ok_or_else(|| raw.misfit(&scales, &whole))?;
    match settings.mode.as_str() {
        "affine" => {
            let biases = raw.need(&format!("{stem}.biases"), &SCALES)?;
            if biases.shape() != scales.shape() {
                return Err(raw.misfit(&biases, &whole));
            }
            let how = Affine { grid, bits: settings.bits };
            let label = format!("U{} (MLX)", settings.bits);
            raw.put(name, whole, label, vec![words, scales, biases], how)
        }
        "mxfp8" => raw.put(name, whole, "MXFP8", vec![words, scales], Eight { grid }),
        mode => {
            let scales = if mode == "nvfp4" { scales.seen_as(Dtype::F8_E4M3) } else { scales };
            not_negative(raw, &scales)?;
            let parts: Vec<Taken> = vec![words, scales];
            let how = Blocks { grid, whole: Whole::Nothing };
            raw.put(name, whole, mode.to_ascii_uppercase(), parts, how)
        }
    }
}

/// Codes in a stream of bits from the lowest upwards, scales, and biases.
struct Affine {
    grid: Grid,
    bits: usize,
}

impl Dequantize for Affine {
    fn rows(&self, parts: &[Part], rows: Rows, out: &mut [f32]) {
        let [codes, scales, biases] = parts else { return };
        let mask = (1u32 << self.bits) - 1;
        by_runs(&self.grid, rows, out, |at, first, numbers| {
            let (scale, bias) = (scales.float(at), biases.float(at));
            for (i, x) in numbers.iter_mut().enumerate() {
                let bit = (first + i) * self.bits;
                let low = u32::from(codes.bytes[bit / 8]);
                let high = codes.bytes.get(bit / 8 + 1).map_or(0, |&byte| u32::from(byte) << 8);
                let code = ((low | high) >> (bit % 8)) & mask;
                *x = scale * code as f32 + bias;
            }
        });
    }
}

/// FP8 codes and powers of two.
struct Eight {
    grid: Grid,
}

impl Dequantize for Eight {
    fn rows(&self, parts: &[Part], rows: Rows, out: &mut [f32]) {
        let [codes, scales] = parts else { return };
        by_runs(&self.grid, rows, out, |at, first, numbers| {
            let scale = scales.float(at);
            let codes = &codes.bytes[first..first + numbers.len()];
            for (x, &code) in numbers.iter_mut().zip(codes) {
                *x = super::numbers::e4m3(code) * scale;
            }
        });
    }
}
