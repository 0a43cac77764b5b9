//! Products with weights on a card, in f16 with sums in f32.
//!
//! The baseline's x is split into two terms of f16, x·2^s = hi + lo, and the product is hi·Wᵀ + lo·Wᵀ. Weights that f16
//! does not hold exactly have a second term, too, which hi is multiplied with. A lane's product is the baseline's plus
//! that of the difference d = x_lane - x_baseline, which is rounded to f16. Rounding d costs a fraction of 2⁻¹¹ of what
//! the lane adds, whereas rounding x would put a floor under every divergence. A lane that equals the baseline has d = 0
//! and gives the baseline's very numbers. Rows are scaled by powers of two so that no number leaves the range of f16, and
//! weights are, too; the scales are taken out of the sums.
//!
//! Every call of cuBLAS has rows of one lane only, so what a lane gets does not depend on the others.

use super::kernels::SPLIT;
use super::launch::{device_of, empty, tensor, Call, Gemm, Grid, Place};
use candle_core::{CudaDevice, CudaStorage, DType, Result, Shape, Tensor};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// The most rows of one call.
const ROWS: usize = 8192;

/// The rows of one call for rows that were gathered, which are filled up to a multiple of it.
const GATHERED_ROWS: usize = 256;

const F16: usize = 2;
const F32: usize = 4;

/// How many rows of a lane are computed in both ways once, to see that differences give what whole rows give.
const CHECKED_ROWS: usize = 256;

/// How far the two ways may be apart, relative to the norm of the result.
const TOLERANCE: f64 = 1.0 / 512.0;

/// Weights of a linear map on a card.
#[derive(Debug, Clone)]
pub(in crate::compute) struct Weights {
    /// (out, in), f16
    halves: Tensor,
    /// (out, in), f16: what is left of the weights, in the same scale. `None` if nothing is, as in models whose weights
    /// are bf16 or f16. Dequantized weights have more bits than f16 holds.
    rest: Option<Tensor>,
    /// (out): what a row's sums are multiplied with, a power of two.
    scales: Tensor,
    /// Whether a lane's product has been compared with that of whole rows.
    is_checked: Arc<AtomicBool>,
}

/// How rows are split into terms of f16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    /// The first lane into two terms, the others as one term of the difference from it.
    Differences,
    /// Every row into two terms.
    Whole,
}

impl Weights {
    /// Rounds weights, (out, in) f32 on the card.
    pub fn new(weights: &Tensor) -> Result<Self> {
        let (out, width) = match weights.dims() {
            [out, width] => (*out, *width),
            _ => (0, 0),
        };
        let device = device_of(weights)?;
        let halves = empty(&device, &Shape::from((out, width)), DType::F16)?;
        let scales = empty(&device, &Shape::from(out), DType::F32)?;
        Call::new(&device, &SPLIT, "split_weights")?
            .at(Place::of(weights)?)
            .at(Place::of_storage(&halves)?)
            .at(Place::of_storage(&scales)?)
            .size(out)?
            .size(width)?
            .launch(Grid::row(out, 256))?;
        let (halves, scales) = (tensor(halves, (out, width)), tensor(scales, out));
        let rest = rest(weights, &halves, &scales)?;
        Ok(Weights { halves, rest, scales, is_checked: Arc::default() })
    }

    /// x·Wᵀ for the rows of some lanes, the first of which is the baseline.
    ///
    /// # Errors
    /// If the device has no memory left, and if the first product of several lanes is not what whole rows give. The
    /// control lane that equals the baseline cannot see such a fault, because its differences are 0.
    pub fn product(&self, x: &Tensor, lanes: usize) -> Result<Tensor> {
        let y = self.multiplied(x, lanes, Split::Differences, ROWS)?;
        if lanes > 1 && !self.is_checked.load(Ordering::Relaxed) {
            self.check_last_lane(x, &y, lanes)?;
            self.is_checked.store(true, Ordering::Relaxed);
        }
        Ok(y)
    }

    /// Computes some rows of the last lane as the baseline is computed, and compares them with what differences gave.
    fn check_last_lane(&self, x: &Tensor, y: &Tensor, lanes: usize) -> Result<()> {
        let rows = x.dim(0)? / lanes;
        let some = |x: &Tensor| x.narrow(0, (lanes - 1) * rows, rows.min(CHECKED_ROWS));
        let whole = self.multiplied(&some(x)?, 1, Split::Whole, ROWS)?;
        let norm = |x: &Tensor| -> Result<f64> {
            Ok(f64::from(x.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt())
        };
        let (off, size) = (norm(&(some(y)? - &whole)?)?, norm(&whole)?);
        // numbers that are not finite are the business of flags
        if off > TOLERANCE * size {
            candle_core::bail!(
                "a product on this card is off by {:.1e} of its size; the card or its driver may be damaged",
                off / size
            );
        }
        Ok(())
    }

    /// x·Wᵀ for rows of which none is the baseline of another.
    pub fn product_of_gathered(&self, x: &Tensor) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let missing = rows.next_multiple_of(GATHERED_ROWS) - rows;
        let filled = x.pad_with_zeros(0, 0, missing)?;
        self.multiplied(&filled, 1, Split::Whole, GATHERED_ROWS)?.narrow(0, 0, rows)
    }

    /// The map to the outputs `start..start + len`.
    pub fn rows(&self, start: usize, len: usize) -> Result<Self> {
        let halves = self.halves.narrow(0, start, len)?;
        let rest = self.rest.as_ref().map(|rest| rest.narrow(0, start, len)).transpose()?;
        let is_checked = self.is_checked.clone();
        Ok(Weights { halves, rest, scales: self.scales.narrow(0, start, len)?, is_checked })
    }

    fn multiplied(&self, x: &Tensor, lanes: usize, split: Split, block: usize) -> Result<Tensor> {
        let (all, width) = x.dims2()?;
        let (out, known) = self.halves.dims2()?;
        if width != known || !all.is_multiple_of(lanes) {
            candle_core::bail!("{:?} are not rows of {lanes} lanes for {known} inputs", x.shape());
        }
        let device = device_of(x)?;
        let operand = Operand::new(&device, x, lanes, split)?;
        let sums = empty(&device, &Shape::from((all, out)), DType::F32)?;
        for (start, len) in blocks(operand.rows, block) {
            operand.multiply(&device, self, &sums, start, len)?;
        }
        self.finish(&device, &operand, sums, lanes)
    }

    /// Takes the scales out of the sums, and adds the baseline's to those of differences.
    fn finish(
        &self,
        device: &CudaDevice,
        operand: &Operand,
        sums: CudaStorage,
        lanes: usize,
    ) -> Result<Tensor> {
        let out = self.scales.dim(0)?;
        Call::new(device, &SPLIT, "finish")?
            .at(Place::of_storage(&sums)?)
            .at(Place::of_storage(&operand.scales)?)
            .at(Place::of(&self.scales)?)
            .size(lanes)?
            .size(operand.rows)?
            .size(out)?
            .flag(operand.split == Split::Whole)
            .launch(Grid::row(operand.rows, 256))?;
        Ok(tensor(sums, (lanes * operand.rows, out)))
    }
}

/// What f16 does not hold of weights, in the same scale.
fn rest(weights: &Tensor, halves: &Tensor, scales: &Tensor) -> Result<Option<Tensor>> {
    if weights.elem_count() == 0 {
        return Ok(None);
    }
    let scaled = weights.broadcast_div(&scales.unsqueeze(1)?)?;
    let rest = (scaled - halves.to_dtype(DType::F32)?)?;
    let largest = rest.abs()?.max_all()?.to_scalar::<f32>()?;
    if largest == 0.0 {
        return Ok(None);
    }
    rest.to_dtype(DType::F16).map(Some)
}

/// Rows in terms of f16.
struct Operand {
    split: Split,
    /// Blocks of (rows, in): for differences hi and lo of the baseline and then each lane's difference, otherwise hi of
    /// all lanes and then lo of all.
    terms: CudaStorage,
    /// (lanes·rows): what a row's sums are multiplied with, a power of two.
    scales: CudaStorage,
    lanes: usize,
    rows: usize,
    width: usize,
}

impl Operand {
    fn new(device: &CudaDevice, x: &Tensor, lanes: usize, split: Split) -> Result<Self> {
        let (all, width) = x.dims2()?;
        let rows = all / lanes;
        let count = match split {
            Split::Differences => lanes + 1,
            Split::Whole => 2 * lanes,
        };
        let terms = empty(device, &Shape::from((count * rows, width)), DType::F16)?;
        let scales = empty(device, &Shape::from(all), DType::F32)?;
        Call::new(device, &SPLIT, "split")?
            .at(Place::of(x)?)
            .at(Place::of_storage(&terms)?)
            .at(Place::of_storage(&scales)?)
            .size(lanes)?
            .size(rows)?
            .size(width)?
            .flag(split == Split::Whole)
            .launch(Grid::row(all, 256))?;
        Ok(Operand { split, terms, scales, lanes, rows, width })
    }

    /// Multiplies some rows of every lane.
    fn multiply(
        &self,
        device: &CudaDevice,
        weights: &Weights,
        sums: &CudaStorage,
        start: usize,
        len: usize,
    ) -> Result<()> {
        let out = weights.halves.dim(0)?;
        let (x, w) = (Place::of_storage(&self.terms)?, Place::of(&weights.halves)?);
        let rest = weights.rest.as_ref().map(Place::of).transpose()?;
        let c = Place::of_storage(sums)?;
        let product = |term: usize, lane: usize, w: Place, adds: bool| {
            let x = x.later((term * self.rows + start) * self.width * F16);
            let c = c.later((lane * self.rows + start) * out * F32);
            Gemm { rows: len, out, width: self.width, adds }.launch(device, x, w, c)
        };
        let whole = |high: usize, low: usize, lane: usize| {
            product(high, lane, w, false)?;
            product(low, lane, w, true)?;
            rest.map_or(Ok(()), |rest| product(high, lane, rest, true))
        };
        match self.split {
            Split::Differences => {
                whole(0, 1, 0)?;
                (1..self.lanes).try_for_each(|lane| product(lane + 1, lane, w, false))
            }
            Split::Whole => {
                (0..self.lanes).try_for_each(|lane| whole(lane, self.lanes + lane, lane))
            }
        }
    }
}

/// Start and length of blocks of rows.
fn blocks(rows: usize, block: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(block).map(move |start| (start, block.min(rows - start)))
}
