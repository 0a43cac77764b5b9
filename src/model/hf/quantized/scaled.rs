//! Numbers of eight bits with scales: what FP8's and INT8's descriptions have in common.

use super::numbers::e4m3;
use super::raw::{Raw, Taken};
use super::weight::{by_runs, Dequantize, Grid, Part, Rows};
use crate::model::ModelError;
use rayon::prelude::*;
use safetensors::Dtype;

/// Codes, scales, and perhaps zero points of whole numbers.
pub(super) struct Scaled {
    pub grid: Grid,
}

impl Dequantize for Scaled {
    fn rows(&self, parts: &[Part], rows: Rows, out: &mut [f32]) {
        let [codes, scales, zeros @ ..] = parts else { return };
        by_runs(&self.grid, rows, out, |at, first, numbers| {
            let scale = scales.float(at);
            let codes_of_run = &codes.bytes[first..first + numbers.len()];
            let of_code = numbers.iter_mut().zip(codes_of_run);
            if codes.dtype == Dtype::F8_E4M3 {
                of_code.for_each(|(x, &code)| *x = e4m3(code) * scale);
            } else {
                let zero = zeros.first().map_or(0, |zeros| i32::from(zeros.bytes[at] as i8));
                of_code.for_each(|(x, &code)| *x = (i32::from(code as i8) - zero) as f32 * scale);
            }
        });
    }
}

/// Refuses a scale of the whole tensor that no program writes.
pub(super) fn one_above_zero(raw: &Raw, scale: &Taken, whole: &[usize]) -> Result<(), ModelError> {
    let part = scale.part();
    if part.count() != 1 {
        return Err(raw.misfit(scale, whole));
    }
    let why = match part.float(0) {
        number if number <= 0.0 => format!("is {number}, and so is not above 0"),
        number if !number.is_finite() => format!("is {number}, which is not finite"),
        _ => return Ok(()),
    };
    Err(raw.refuse(&scale.name, why))
}

/// Refuses scales of FP8 or FP4 that are below 0 or not finite. All programs that write them take them from magnitudes,
/// and engines take the largest of several, so that one below 0 is damage.
pub(super) fn not_negative(raw: &Raw, scales: &Taken) -> Result<(), ModelError> {
    let part = scales.part();
    let is_damaged = |scale: &f32| *scale < 0.0 || !scale.is_finite();
    let scales_of_all = (0..part.count()).into_par_iter().map(|i| part.float(i));
    match scales_of_all.find_first(is_damaged) {
        None => Ok(()),
        Some(scale) => {
            let why = if scale < 0.0 { "below 0" } else { "not finite" };
            Err(raw.refuse(&scales.name, format!("has the scale {scale}, which is {why}")))
        }
    }
}

/// The grid of scales for all, for each row, or for blocks.
pub(super) fn grid(whole: &[usize], scales: &Taken, block: Option<[usize; 2]>) -> Option<Grid> {
    let shape = scales.shape();
    match block {
        Some(block) => Grid::new(whole, shape, block),
        None => Grid::one(whole, shape).or_else(|| Grid::of_rows(whole, shape)),
    }
}
