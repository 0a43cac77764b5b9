//! KV schemes: the grammar, the codecs, the rotation, and the cache seam.

pub mod cache;
pub mod codec;
pub mod exact;
pub mod recurrent;
pub mod rotate;
pub mod scheme;

pub use scheme::Scheme;
