//! The scales that NVFP4 has beside its blocks.
//!
//! An NVFP4 weight is the number of its block times a scale of the whole matrix, or of the whole expert. llama.cpp's
//! converter writes these scales as tensors of their own, unless they are 1: `blk.0.attn_q.scale` beside
//! `blk.0.attn_q.weight`. llama.cpp multiplies products with them; here they are multiplied into the weights. The decoder
//! itself reads the scales of Gemma 4's experts, which are factors of their weights in files of every type.
//!
//! `blk.0.attn_q.input_scale` is for engines that round activations to 4 bits. Nothing here rounds them, and llama.cpp
//! does not use these scales either.

use super::header::TensorInfo;
use super::Gguf;
use crate::compute::device::HOST;
use crate::model::ModelError;
use candle_core::Tensor;

/// The type that has scales beside its blocks.
const SCALED: &str = "NVFP4";

/// What the names of a weight's scales end with: the one that counts, and that of activations.
const OF_WEIGHTS: &str = "scale";
const OF_ACTIVATIONS: &str = "input_scale";

impl Gguf {
    /// The names of all scales of a weight.
    pub(super) fn scales_beside(&self, own: &str) -> Vec<String> {
        let suffixes = [OF_WEIGHTS, OF_ACTIVATIONS].into_iter();
        suffixes.filter_map(|suffix| self.scale(own, suffix).map(|(name, _)| name)).collect()
    }

    /// A scale of a weight with its name, if the file has it. llama.cpp reads none of embeddings; if a file has one,
    /// nothing here reads it either, which is an error.
    fn scale(&self, own: &str, suffix: &str) -> Option<(String, &TensorInfo)> {
        let tensors = &self.header.tensors;
        let stem = own.strip_suffix(".weight").filter(|stem| !stem.ends_with("token_embd"))?;
        let name = format!("{stem}.{suffix}");
        if self.names.own_scales.iter().any(|own| name.ends_with(own)) {
            return None;
        }
        let scale = tensors.get(&name)?;
        (tensors.get(own)?.of.name == SCALED).then_some((name, scale))
    }

    /// Checks that every weight with scales has one, or one for each expert, all finite and above 0.
    pub(super) fn check_scales(&self) -> Result<(), ModelError> {
        let faults = self.header.tensors.iter().filter_map(|(own, weights)| {
            let (name, scale) = self.scale(own, OF_WEIGHTS)?;
            let expected = count(&weights.shape);
            let is_sound =
                scale.of.name == "F32" && scale.shape.iter().product::<usize>() == expected;
            if !is_sound {
                return Some(format!(
                    "tensor `{name}` must hold {expected} numbers of F32, the scales of `{own}`; it is {} of the shape {:?}",
                    scale.of.name, scale.shape
                ));
            }
            // programs that write them take them from magnitudes
            let (numbers, _) = self.bytes_of(scale).as_chunks::<4>();
            let mut numbers = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes));
            let damaged = numbers.find(|number| *number <= 0.0 || !number.is_finite())?;
            Some(format!(
                "tensor `{name}` holds {damaged}, and the scales of `{own}` must be finite and above 0"
            ))
        });
        // the first by its words, so that the same file always gives the same
        faults.min().map_or(Ok(()), |fault| Err(self.malformed(fault)))
    }

    /// Weights, multiplied with their scales if they have any.
    pub(super) fn scaled(&self, own: &str, weights: Tensor) -> Result<Tensor, ModelError> {
        let Some((_, scale)) = self.scale(own, OF_WEIGHTS) else { return Ok(weights) };
        let bytes = self.bytes_of(scale);
        // one for each matrix: (experts, 1, 1) or (1, 1)
        let mut shape = vec![1; weights.rank()];
        shape[0] = count(weights.dims());
        let scale = scale.of.dequantized(bytes, &shape, &HOST)?.to_device(weights.device())?;
        Ok(weights.broadcast_mul(&scale)?)
    }
}

/// How many scales weights have.
fn count(shape: &[usize]) -> usize {
    match shape {
        [experts, _, _] => *experts,
        _ => 1,
    }
}
