//! Why a scheme cannot be carried out for a model.

/// Why a scheme cannot be carried out for a model.
#[derive(Debug, thiserror::Error)]
pub enum UnfitError {
    /// The codec's blocks do not divide a head of the model.
    #[error("{codec} stores blocks of {block} elements, which do not divide the model's head size {head_dim}; use f16 or bf16 for this side")]
    BlockSize {
        /// Name of the codec.
        codec: String,
        /// Elements in one of its blocks.
        block: usize,
        /// Elements in a head of the model.
        head_dim: usize,
    },
    /// The scheme names layers that the model does not have, or that own no cache.
    #[error("`@{layers}` names no layer of the model that owns a cache: those are {owners}")]
    NoLayers {
        /// The layers as the scheme names them.
        layers: String,
        /// The layers of the model that own a cache.
        owners: String,
    },
    /// No layer of the model carries out a part of the scheme.
    #[error("{part}: the scheme would not be what its name says; write `{mend}` for this model")]
    Idle {
        /// Which part it is, and why it has no effect.
        part: String,
        /// The same scheme without that part.
        mend: String,
    },
    /// The scheme needs a calibration and none was given.
    #[error("`:{option}` needs a calibration: make one by `kvgate calibrate MODEL --corpus FILE -o FILE`, and name it: `calibration = \"FILE\"` in the policy, or --calibration FILE")]
    NotCalibrated {
        /// The option that needs it.
        option: &'static str,
    },
    /// The scheme needs scales that the checkpoint does not have.
    #[error("`:checkpoint` takes the scales of the cache that a checkpoint has, and this one has none for some layer: write `fp8_e4m3` for the scale 1, as engines do then, or calibrate scales (`:tensor`, `:head`)")]
    NotStored,
    /// The calibration was made for another model.
    #[error("the calibration has nothing of this shape for layer {layer}: it is another model's")]
    OtherModel {
        /// Index of the layer.
        layer: usize,
    },
    /// The model caps its attention scores, so that `:center` would change them.
    #[error("`:center` is not exact for this model: its scores are capped (tanh) or share the softmax with a score of the head's own, so that a constant does not fall out of it")]
    Capped,
}
