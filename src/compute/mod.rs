//! Where and how a model is computed: devices, and the ops that run on them.
//!
//! The decoder calls ops on tensors, and a tensor knows where it lives. An op's file says what the op computes
//! and holds its loop for the CPU ([`op::Op`]). This folder imports nothing of the layers above it: what an op
//! must know of a cache or of a model is handed to it in plain values.
//!
//! No device but the CPU has kernels yet. Kernels of CUDA devices belong into a folder `cuda/` with one file for
//! each op, which implements the traits of `no_cuda.rs` for it. The line below then becomes two, with and without
//! `cfg(feature = "cuda")`, and no other file of the crate names the feature.

#[path = "no_cuda.rs"]
mod cuda;

pub(crate) mod attention;
pub(crate) mod bias;
pub(crate) mod delta_rule;
pub(crate) mod device;
pub(crate) mod divergence;
pub(crate) mod elements;
pub mod exact;
pub(crate) mod experts;
pub(crate) mod finite;
pub(crate) mod gate;
pub(crate) mod heads;
pub(crate) mod machine;
pub(crate) mod norm;
pub(crate) mod op;
pub(crate) mod product;
pub(crate) mod residual;
pub(crate) mod rope;
pub(crate) mod round_trip;
pub(crate) mod simd;
mod state;
#[cfg(test)]
mod textbook;

pub use device::Device;
pub(crate) use op::{change, run};
