//! The op that adds a bias to the result of a product.

use super::elements::elements;
use super::op::{Input, Op};
use candle_core::{Result, Shape, Tensor};

/// x + b, where the rows of x are as wide as b.
#[derive(Debug, Clone)]
pub(crate) struct Bias(pub Tensor);

impl Op<1> for Bias {
    const NAME: &'static str = "bias";

    fn shape(&self, [x]: [&Shape; 1]) -> Result<Shape> {
        let (width, bias) = (x.dims().last().copied(), self.0.elem_count());
        if bias == 0 || width != Some(bias) {
            candle_core::bail!("a bias of {bias} numbers does not fit {x:?}");
        }
        Ok(x.clone())
    }

    fn cpu(&self, [Input { x, .. }]: [Input; 1], out: &mut [f32]) -> Result<()> {
        let bias = elements::<f32>(&self.0)?;
        let bias: &[f32] = &bias;
        let rows = out.chunks_exact_mut(bias.len()).zip(x.chunks_exact(bias.len()));
        for (out, x) in rows {
            out.iter_mut().zip(x).zip(bias).for_each(|((out, x), b)| *out = x + b);
        }
        Ok(())
    }
}
