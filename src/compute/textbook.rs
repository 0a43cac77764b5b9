//! Definitions in f64 that tests compare ops with, and numbers for them that are the same in every run.
//!
//! The tests of ops run on the device that `KVGATE_DEVICE` names, and on the CPU if it names none. So the kernels of a
//! card pass the tests that the loops for the CPU pass.

use super::device::Choice;
use super::norm::RmsNorm;
use super::op::ROWS;
use super::Device;
use candle_core::Tensor;

/// More rows than one task takes, and no whole number of tasks.
pub const MANY: usize = ROWS + 3;

/// Reproducible numbers from -3 to 3.
pub fn random(count: usize) -> Vec<f32> {
    (0..count as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 * 6.0 - 3.0)
        .collect()
}

/// The device that tests run on.
pub fn device() -> Device {
    let choice = std::env::var("KVGATE_DEVICE").map_or(Choice::Cpu, |name| name.parse().unwrap());
    Device::open(choice).unwrap()
}

/// Where the tensors of tests are.
pub fn place() -> candle_core::Device {
    device().at().clone()
}

/// A tensor with two axes.
pub fn rows(x: &[f32], width: usize) -> Tensor {
    Tensor::from_slice(x, (x.len() / width, width), &place()).unwrap()
}

/// A tensor with one axis.
pub fn vector(x: &[f32]) -> Tensor {
    Tensor::from_slice(x, x.len(), &place()).unwrap()
}

pub fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

pub fn assert_near(got: &Tensor, want: &[f64]) {
    let got = flat(got);
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= 2e-6 * want.abs().max(1.0), "element {i}: {got}, not {want}");
    }
}

/// A norm with weights that differ.
pub fn norm(width: usize) -> RmsNorm {
    RmsNorm { weight: vector(&random(width + 5)[5..]), eps: 1e-2 }
}

/// The norm of a row by its definition.
pub fn normed(norm: &RmsNorm, x: &[f64]) -> Vec<f64> {
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(norm.eps)).sqrt();
    x.iter().zip(wide(&flat(&norm.weight))).map(|(v, w)| v * scale * w).collect()
}
