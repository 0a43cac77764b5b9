//! Models: a checkpoint on disk becomes a tokenizer and one [`Decoder`].
//!
//! Family files map a checkpoint's configuration to the decoder's [`Spec`]; no family
//! has a forward pass of its own.

mod attention;
pub mod decoder;
mod elementwise;
pub mod error;
mod family;
mod gguf;
pub(crate) mod ops;
pub mod spec;
pub mod tokenizer;

pub use error::ModelError;

use crate::policy::Source;
use decoder::{Decoder, WeightStorage};
use spec::Spec;
use std::path::Path;
use tokenizer::Tokenizer;

/// A checkpoint that is open: its configuration and tokenizer are read, its weights are not yet.
pub struct Checkpoint {
    file: gguf::Gguf,
    /// What the decoder will be.
    pub spec: Spec,
    /// The checkpoint's own tokenizer, or the one that the policy names.
    pub tokenizer: Tokenizer,
}

impl Checkpoint {
    /// Opens a checkpoint, reads its header and builds its tokenizer.
    ///
    /// # Errors
    /// Files that are missing, truncated or of an unknown architecture or tokenizer.
    pub fn open(source: &Source) -> Result<Self, ModelError> {
        let file = gguf::Gguf::open(&source.path, source.fetch.as_deref())?;
        let spec = family::spec(&file)?;
        let tokenizer = match &source.tokenizer {
            Some(path) => Tokenizer::from_file(path)?,
            None => Tokenizer::from_gguf(&file)?,
        };
        Ok(Checkpoint { file, spec, tokenizer })
    }

    /// Size of the weights file in bytes, and the storage types of its tensors with their counts.
    pub fn contents(&self) -> (u64, Vec<(String, usize)>) {
        (self.file.bytes(), self.file.dtypes())
    }

    /// The weights file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Reads the weights, dequantized to f32 or kept as bf16.
    ///
    /// # Errors
    /// Missing tensors, wrong shapes, values that are not finite: each names the tensor.
    pub fn load(&self, storage: WeightStorage) -> Result<Decoder, ModelError> {
        Decoder::load(&self.spec, &self.file, storage)
    }
}
