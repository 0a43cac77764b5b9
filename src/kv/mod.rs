//! KV schemes: how K and V are stored, and the caches that do it.
//!
//! Lower files first: `layout` is the shape of a layer's cache, `exact` says which keys a query reads
//! exactly, `hadamard` is the transform. A `codec` is one storage format, `scheme` is the grammar that names
//! codecs and options, `rotate` is llama.cpp's rule of rotation, `calibration` holds ranges and means.
//! `effective` is a scheme carried out for one model. `cache` is the seam to the decoder, behind which stand
//! three caches: `measuring`, and `packed` and `growing` for generating text.

pub mod cache;
pub mod calibration;
pub mod codec;
pub mod effective;
pub mod growing;
pub mod hadamard;
pub mod layout;
pub mod measuring;
pub mod packed;
pub mod rotate;
pub mod scheme;
mod shared;

pub use crate::compute::exact;
pub use scheme::Scheme;

/// The state of layers that have no KV cache.
pub mod recurrent {
    pub use crate::compute::delta_rule::Recurrent;
}
