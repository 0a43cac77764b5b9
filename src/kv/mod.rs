//! KV schemes: the grammar, the codecs, the rotation, and the cache seam.

pub mod cache;
pub mod calibration;
pub mod codec;
pub mod effective;
pub mod lanes;
pub mod packed;
pub mod rotate;
pub mod scheme;

pub use crate::compute::exact;
pub use scheme::Scheme;

/// The state of layers that have no KV cache.
pub mod recurrent {
    pub use crate::compute::delta_rule::Recurrent;
}
