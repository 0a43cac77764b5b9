//! kvgate: the regression gate for quantized KV caches.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod files;
pub mod golden;
pub mod hash;
pub mod kv;
pub mod measure;
pub mod model;
pub mod policy;
pub mod report;
pub mod results;
mod simd;
pub mod verdict;
