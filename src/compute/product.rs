//! Products with weights. Only this file knows in which arithmetic they are computed.

use candle_core::{Result, Tensor};
use tracing::trace_span;

/// The weights of a linear map, (out, in). On the CPU both they and their products are f32.
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    weights: Tensor,
}

impl Matrix {
    /// Makes a matrix of weights that were read as f32.
    pub fn new(weights: Tensor) -> Self {
        Matrix { weights }
    }

    /// x·Wᵀ: (rows, in) → (rows, out).
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        trace_span!("products").in_scope(|| x.matmul(&self.weights.t()?))
    }

    /// The map to some of its outputs: the rows `start..start + len` of the weights.
    pub fn rows(&self, start: usize, len: usize) -> Result<Self> {
        Ok(Matrix { weights: self.weights.narrow(0, start, len)? })
    }
}

/// Several matrices of one shape, (count, out, in).
#[derive(Debug, Clone)]
pub(crate) struct MatrixStack {
    weights: Tensor,
}

impl MatrixStack {
    /// Makes matrices of weights that were read as f32.
    pub fn new(weights: Tensor) -> Self {
        MatrixStack { weights }
    }

    /// The matrix with an index.
    pub fn get(&self, index: usize) -> Result<Matrix> {
        Ok(Matrix { weights: self.weights.get(index)? })
    }
}
