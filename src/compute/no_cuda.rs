//! Stands in for kernels of CUDA devices in builds without the feature `cuda`. No device can be opened there, so no
//! tensor is on one.

use super::attention::SoftmaxAttention;
use super::delta_rule::Recurrent;
use super::finite::FiniteFlag;
use super::gate::Activation;
use super::norm::RmsNorm;
use super::op::{InPlaceKernel, Kernel};
use super::place::{Card, NoDevice, HOST};
use super::precision::Precision;
use super::residual::Residual;
use super::rope::RopeTable;
use super::round_trip::{OnCard, RoundTrip};
use candle_core::{CudaStorage, Device, Layout, Result, Shape, Tensor};

impl<O, const N: usize> Kernel<N> for O {
    fn launch(
        &self,
        name: &'static str,
        _: [(&CudaStorage, &Layout); N],
    ) -> Result<(CudaStorage, Shape)> {
        candle_core::bail!("`{name}` has no kernel in a build without CUDA")
    }
}

impl<O> InPlaceKernel for O {
    fn launch(&self, name: &'static str, _: &mut CudaStorage, _: &Layout) -> Result<()> {
        candle_core::bail!("`{name}` has no kernel in a build without CUDA")
    }
}

/// Whether this build has kernels.
pub(super) const IS_BUILT: bool = false;

/// Whether a codec has a kernel of this name.
pub(super) fn has_codec(_name: &str) -> bool {
    false
}

/// The numbers of blocks, which are dequantized on a card. There is none in this build.
pub(super) fn dequantized(
    _of: (&str, usize),
    _grid: Option<&[u8]>,
    _blocks: &[u8],
    _shape: &[usize],
    _at: &Device,
) -> Result<Tensor> {
    Err(candle_core::Error::NotCompiledWithCudaSupport)
}

/// Whether all numbers of a tensor on a card are finite. No tensor is on one in this build.
pub(super) fn all_finite(_x: &Tensor) -> Result<bool> {
    Err(candle_core::Error::NotCompiledWithCudaSupport)
}

/// Whether a card has no memory left. There is no card in this build.
pub(crate) fn is_out_of_memory(_error: &candle_core::Error) -> bool {
    false
}

/// Opens the card with an ordinal, which this build cannot.
pub(super) fn open(_ordinal: usize) -> std::result::Result<(Device, Card), NoDevice> {
    Err(NoDevice::NotBuilt)
}

/// The bytes that are free on the card of a tensor's place. No card is open in this build.
pub(super) fn free_memory(_at: &Device) -> Result<u64> {
    Err(candle_core::Error::NotCompiledWithCudaSupport)
}

/// Gives memory of a card back to it. No card is open in this build.
pub(super) fn release_memory(_at: &Device) -> Result<()> {
    Err(candle_core::Error::NotCompiledWithCudaSupport)
}

/// Weights on a card. There are none in this build.
#[derive(Debug, Clone)]
pub(super) enum Weights {}

impl Weights {
    pub fn new(_weights: &Tensor, _precision: Precision) -> Result<Self> {
        Err(candle_core::Error::NotCompiledWithCudaSupport)
    }

    pub fn product(&self, _x: &Tensor, _lanes: usize) -> Result<Tensor> {
        match *self {}
    }

    pub fn product_of_normed(&self, _x: &Tensor, _norm: &RmsNorm, _lanes: usize) -> Result<Tensor> {
        match *self {}
    }

    pub fn gated_product(
        &self,
        _down: &Self,
        _x: &Tensor,
        _norm: Option<&RmsNorm>,
        _gate: &Gate,
        _lanes: usize,
    ) -> Result<Option<Tensor>> {
        match *self {}
    }

    pub fn related(&self, _lanes: usize) -> usize {
        match *self {}
    }

    pub fn rows(&self, _start: usize, _len: usize) -> Result<Self> {
        match *self {}
    }

    pub fn calls(&self, _x: &Tensor, _lanes: usize) -> Result<Product> {
        match *self {}
    }
}

/// What stands between the two products of a gated MLP.
#[allow(dead_code)] // kernels read it
pub(super) struct Gate<'a> {
    pub activation: Activation,
    pub bias: Option<&'a Tensor>,
}

/// A product on a card. There are none in this build.
pub(super) enum Product {}

impl Product {
    pub fn multiply(&self) -> Result<()> {
        match *self {}
    }
}

/// The pairs of rows and experts on a card. There are none in this build.
pub(super) enum Pairs {}

impl Pairs {
    pub fn new(_choice: Tensor, _experts: usize, _lanes: usize) -> Result<Self> {
        Err(candle_core::Error::NotCompiledWithCudaSupport)
    }

    pub fn product_of_rows(&self, _weights: &Weights, _x: &Tensor) -> Result<Tensor> {
        match *self {}
    }

    pub fn product_of_pairs(&self, _weights: &Weights, _y: &Tensor) -> Result<Tensor> {
        match *self {}
    }

    pub fn owners(&self) -> &Tensor {
        match *self {}
    }

    pub fn weighted_sum(&self, _y: &Tensor) -> Result<Tensor> {
        match *self {}
    }
}

/// What kernels read of ops. This function is never called. It names these things so that a build without kernels does
/// not take them for unused.
#[allow(dead_code)]
fn read_by_kernels(
    flag: &FiniteFlag,
    residual: &Residual,
    round_trip: &RoundTrip,
    recurrent: &Recurrent,
    rope: &RopeTable,
    attention: &SoftmaxAttention,
) -> Result<()> {
    flag.words(residual.lanes, &HOST)?;
    let card = round_trip.storing.on_card(0);
    let _ = (card.codec, card.text, card.variant, card.is_taken, card.group, card.rotation);
    let OnCard { mean, scales, clamped, .. } = card;
    mean.map(|mean| mean.on(&HOST)).transpose()?;
    scales.map(|scales| scales.on(&HOST)).transpose()?;
    clamped.map(|clamped| clamped.on(&HOST)).transpose()?;
    let _ = (recurrent.tensors(), rope.tables(), &attention.wide_values);
    Ok(())
}
