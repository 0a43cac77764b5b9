//! KV schemes: the grammar, the codecs, the rotation, and the cache seam.

pub mod codec;
pub mod scheme;

pub use scheme::Scheme;
