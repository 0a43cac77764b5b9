//! Where and how a model is computed: devices, and the ops that run on them.
//!
//! The decoder calls ops on tensors, and a tensor knows where it lives. An op's file says what the op computes
//! and holds its loop for the CPU ([`op::Op`]). This folder imports nothing of the layers above it: what an op
//! must know of a cache or of a model is handed to it in plain values.
//!
//! Kernels of CUDA devices are in `cuda/`, with one file for each op. The two lines below, with and without the
//! feature, are the only ones of the crate that name it.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "no_cuda.rs"]
mod cuda;

pub(crate) mod attention;
pub(crate) mod bias;
pub mod blocks;
pub(crate) mod delta_rule;
pub mod device;
pub(crate) mod divergence;
pub(crate) mod elements;
pub mod exact;
pub(crate) mod experts;
pub(crate) mod finite;
pub(crate) mod gate;
pub(crate) mod heads;
pub(crate) mod inspect;
pub(crate) mod machine;
pub(crate) mod norm;
pub(crate) mod op;
pub(crate) mod pairs;
pub mod place;
pub mod precision;
pub mod product;
pub(crate) mod residual;
pub(crate) mod rope;
pub(crate) mod round_trip;
pub(crate) mod rows;
pub(crate) mod simd;
mod state;
#[cfg(test)]
pub(crate) mod textbook;

pub(crate) use cuda::is_out_of_memory;
pub use device::Device;
pub(crate) use op::{change, run};
pub use precision::Precision;
pub use rows::Rows;
