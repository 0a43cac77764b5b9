//! kvgate: the regression gate for quantized KV caches.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod files;
pub mod kv;
pub mod measure;
pub mod policy;
pub mod results;
pub mod verdict;
