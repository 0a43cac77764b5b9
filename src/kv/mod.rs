//! KV schemes: the grammar, the codecs, the rotation, and the cache seam.

pub mod cache;
pub mod calibration;
pub mod codec;
pub mod effective;
pub mod exact;
pub mod lanes;
pub mod packed;
pub mod recurrent;
pub mod rotate;
pub mod scheme;

pub use scheme::Scheme;
