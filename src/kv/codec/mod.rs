//! Codecs: the ways to store a run of K or V numbers.
//!
//! Formats and rounding follow the reference functions of the engine that has the format; for formats of
//! llama.cpp these are ggml's. Bytes are little endian. A codec writes the bytes that the engine's cache would
//! hold. If it does not, its file says in what they differ.
//!
//! `contract.rs` says what a codec is and how to add one, `catalogue.rs` lists the codecs.

mod block;
mod catalogue;
mod contract;
mod numbers;
mod pack;
pub(crate) mod small_float;

mod float;
mod fp8;
mod int4_pth;
mod iq4_nl;
mod kivi;
mod kvarn;
mod mlx;
mod mxfp4;
mod nvfp4;
mod pth;
mod q2_0;
mod q2_1;
mod q3_0;
mod q3_1;
mod q4_0;
mod q4_1;
mod q5_0;
mod q5_1;
mod q6_0;
mod q6_1;
mod q8_0;
mod sign;
mod tcq;
mod turbo;

pub use catalogue::{all, built_in, find, register, RegisterError};
pub(crate) use catalogue::{BAD, F16, Q8_0};
pub use contract::{Codec, Exactness};
