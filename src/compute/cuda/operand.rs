//! What a product with weights reads: rows in terms of f16. They are made of rows as they are, of their norms, or of what
//! a gate makes of the product before. The latter two give the bits that norm or gate and then the split would give one
//! after the other, and read and write less.

use super::by_value::{by_value, size};
use super::constants::gate_split::{ARGUMENT_BYTES, GATE_THREADS, MOST_TOGETHER};
use super::gate::code_of;
use super::kernels::{GATE_SPLIT, NORM_SPLIT, SPLIT};
use super::launch::{device_of, empty, shared_memory, Call, Grid, Place};
use super::{padded_bytes, THREADS};
use crate::compute::gate::Activation;
use crate::compute::norm::RmsNorm;
use crate::compute::precision::Precision;
use crate::compute::run;
use candle_core::{CudaDevice, CudaStorage, DType, Result, Shape, Tensor};
use half::f16;
use tracing::trace_span;

/// Rows in terms of f16. In the precision of differences, those of the first lane are split into two terms, and those of
/// the others are one term of the difference from it. Whole rows are split into two terms in every lane.
pub(super) struct Operand {
    pub precision: Precision,
    /// Blocks of (rows, in): for differences hi and lo of the baseline and then each lane's difference, otherwise hi of
    /// all lanes and then lo of all.
    pub terms: CudaStorage,
    /// (lanes·rows): what a row's sums are multiplied with, a power of two.
    pub scales: CudaStorage,
    pub lanes: usize,
    pub rows: usize,
    pub width: usize,
}

/// What stands between the two products of a gated MLP.
pub(in crate::compute) struct Gate<'a> {
    pub activation: Activation,
    /// (2·width)
    pub bias: Option<&'a Tensor>,
}

by_value! {
    /// `GateSplit` in `gate_split.cu`.
    struct Arguments<'a>: ARGUMENT_BYTES bytes {
        sums: Place<'a, f32>,
        row_scales: Place<'a, f32>,
        column_scales: Place<'a, f32>,
        bias: Place<'a, f32>,
        terms: Place<'a, f16>,
        scales: Place<'a, f32>,
        lanes: i32,
        rows: i32,
        width: i32,
        together: i32,
        activation: i32,
        whole: i32,
    }
}

impl Operand {
    /// Splits rows, (lanes·rows, in).
    pub fn new(x: &Tensor, lanes: usize, precision: Precision) -> Result<Self> {
        let _span = trace_span!("splits").entered();
        let device = device_of(x)?;
        let operand = Self::empty(&device, x.dims2()?, lanes, precision)?;
        Call::new(&device, &SPLIT, "split")?
            .at(Place::<f32>::of(x)?)
            .at(Place::<f16>::of_storage(&operand.terms)?)
            .at(Place::<f32>::of_storage(&operand.scales)?)
            .size(lanes)?
            .size(operand.rows)?
            .size(operand.width)?
            .flag(precision == Precision::Whole)
            .launch(Grid::row(lanes * operand.rows, THREADS))?;
        Ok(operand)
    }

    /// Splits the norms of rows.
    pub fn of_normed(
        x: &Tensor,
        norm: &RmsNorm,
        lanes: usize,
        precision: Precision,
    ) -> Result<Self> {
        let device = device_of(x)?;
        let shared = 3 * padded_bytes(x.dims2()?.1);
        if shared > shared_memory(&device)? {
            return Self::new(&run(norm, [x])?, lanes, precision);
        }
        let _span = trace_span!("norms").entered();
        let operand = Self::empty(&device, x.dims2()?, lanes, precision)?;
        Call::new(&device, &NORM_SPLIT, "norm_split")?
            .at(Place::<f32>::of(x)?)
            .at(Place::<f32>::of(&norm.weight)?)
            .at(Place::<f16>::of_storage(&operand.terms)?)
            .at(Place::<f32>::of_storage(&operand.scales)?)
            .size(lanes)?
            .size(operand.rows)?
            .size(operand.width)?
            .real(norm.eps)
            .flag(precision == Precision::Whole)
            .launch(Grid { shared, ..Grid::row(operand.rows, THREADS) })?;
        Ok(operand)
    }

    /// Takes the scales out of the sums of a product, gates them, and splits what comes of it. `scales` are those of the
    /// product's weights, and `x` is what they were multiplied with.
    pub fn of_gated(x: &Self, sums: &CudaStorage, scales: &Tensor, gate: &Gate) -> Result<Self> {
        let _span = trace_span!("gates").entered();
        let (device, width) = (device_of(scales)?, scales.dim(0)? / 2);
        let operand = Self::empty(&device, (x.lanes * x.rows, width), x.lanes, x.precision)?;
        let together = gate.together(&device, x.lanes, width)?;
        let arguments = Arguments {
            sums: Place::of_storage(sums)?,
            row_scales: Place::of_storage(&x.scales)?,
            column_scales: Place::of(scales)?,
            bias: Place::of_optional(gate.bias)?,
            terms: Place::of_storage(&operand.terms)?,
            scales: Place::of_storage(&operand.scales)?,
            lanes: size(x.lanes)?,
            rows: size(x.rows)?,
            width: size(width)?,
            together: size(together)?,
            activation: size(code_of(gate.activation))?,
            whole: (x.precision == Precision::Whole).into(),
        };
        Call::new(&device, &GATE_SPLIT, "gate_split")?.value(&arguments).launch(Grid {
            shared: together * padded_bytes(width),
            ..Grid::row(x.rows, GATE_THREADS)
        })?;
        Ok(operand)
    }

    /// Memory for the terms of (lanes·rows, in).
    fn empty(
        device: &CudaDevice,
        (all, width): (usize, usize),
        lanes: usize,
        precision: Precision,
    ) -> Result<Self> {
        if !all.is_multiple_of(lanes) {
            candle_core::bail!("{all} rows are not those of {lanes} lanes");
        }
        let rows = all / lanes;
        let count = match precision {
            Precision::Differences => lanes + 1,
            Precision::Whole => 2 * lanes,
        };
        let terms = empty(device, &Shape::from((count * rows, width)), DType::F16)?;
        let scales = empty(device, &Shape::from(all), DType::F32)?;
        Ok(Operand { precision, terms, scales, lanes, rows, width })
    }
}

impl Gate<'_> {
    /// How many lanes a block takes at once. It is 0 if not even one row fits into its shared memory.
    pub fn together(&self, device: &CudaDevice, lanes: usize, width: usize) -> Result<usize> {
        let room = shared_memory(device)? / padded_bytes(width).max(1);
        Ok(room.min(lanes).min(MOST_TOGETHER))
    }
}
