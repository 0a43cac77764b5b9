//! kvgate: the regression gate for quantized KV caches.
//!
//! Each *model × KV scheme* pair of a `thresholds.toml` is a test case: inference with a quantized
//! KV cache, compared with an unquantized one by the KL divergence of next-token distributions,
//! judged by limits, and diffed against an accepted golden. A model repository's test target calls
//! [`main()`]; the program `kvgate` does the same from the command line.
//!
//! The layout is the pipeline: [`policy`] → [`model`] and [`kv`] → [`measure`] → [`verdict`] and
//! [`golden`] → [`report`], tied together by [`gate`].
#![deny(unsafe_code)]
#![deny(missing_docs)]

#[cfg(feature = "git")]
pub mod changed;
pub mod cli;
mod compute;
pub mod engines;
mod files;
pub mod gate;
#[cfg(feature = "github")]
pub mod github;
pub mod golden;
mod harness;
pub mod hash;
pub mod hub;
mod init;
pub mod judge;
pub mod kv;
pub mod measure;
pub mod merge;
pub mod model;
mod nearest;
mod out;
pub mod plan;
pub mod policy;
mod progress;
#[cfg(feature = "git")]
pub mod proposal;
pub mod repo;
pub mod report;
pub mod results;
mod store;
mod text;
#[cfg(test)]
#[allow(dead_code)] // integration tests use the rest
#[path = "../tests/support/tiny.rs"]
mod tiny;
pub mod trust;
pub mod verdict;

pub use harness::{main, Gate};
