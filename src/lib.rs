//! kvgate: the regression gate for quantized KV caches.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod kv;
pub mod measure;
mod nearest;
pub mod policy;
pub mod results;
pub mod verdict;
