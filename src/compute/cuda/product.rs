//! Products with weights on a card, in f16 with sums in f32.
//!
//! The baseline's x is split into two terms of f16, x·2^s = hi + lo, and the product is hi·Wᵀ + lo·Wᵀ. Weights with
//! more bits than f16 have a second term, too, which hi is multiplied with. A lane's product is the baseline's plus
//! that of the difference d = x_lane - x_baseline, which is rounded to f16. Rounding d costs a fraction of 2⁻¹¹ of what
//! the lane adds, whereas rounding x would put a floor under every divergence. A lane that equals the baseline has d = 0
//! and gives the baseline's very numbers. Rows are scaled by powers of two so that no number leaves the range of f16, and
//! weights are, too; the scales are taken out of the sums.
//!
//! In the precision `whole` every lane is multiplied as the baseline is. That is the slower reference.
//!
//! Every call of cuBLAS has rows of one lane only, so what a lane gets does not depend on the others. It may depend on how
//! many rows the call has, so tiles are whole wherever that is possible.

use super::kernels::SPLIT;
use super::launch::{device_of, empty, tensor, Call, Gemm, Grid, Place};
use super::operand::{Gate, Operand};
use super::THREADS;
use crate::compute::norm::RmsNorm;
use crate::compute::precision::Precision;
use crate::compute::run;
use candle_core::{CudaDevice, CudaStorage, DType, Result, Shape, Tensor};
use half::f16;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tracing::trace_span;

/// The most rows of one call.
const ROWS: usize = 8192;

/// How many rows of a lane are computed in both ways once, to see that differences give what whole rows give.
pub(super) const CHECKED_ROWS: usize = 256;

/// The largest error of numbers that are subnormal in f16. The largest weight of a row is scaled to 1 or more, so this is
/// at most 2⁻²⁵ of it, and no more than products lose in their sums.
const LEAST: f32 = 1.0 / (1 << 25) as f32;

/// How far the two ways may be apart, relative to the norm of what the lane adds to the baseline.
const TOLERANCE: f64 = 1.0 / 512.0;

/// What sums in f32 explain, relative to the norm of the result.
const NOISE: f64 = 1.0 / (1 << 14) as f64;

/// How much a lane must add for a lost difference to show, relative to the norm of the result.
const TELLING: f64 = 16.0 * NOISE;

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
    /// In which precision lanes are multiplied.
    precision: Precision,
    /// The number of the first output among those of the whole map.
    first: usize,
    /// The products of a lane that differs from the baseline which have been compared with those of whole rows.
    checked: Arc<Mutex<BTreeSet<Kind>>>,
}

/// What decides which of its kernels cuBLAS takes for the outputs of a map: their number, and that of the rows. Numbers of
/// rows between the same powers of two count as one, so that texts of many lengths are not all compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    first: usize,
    outputs: usize,
    rows: usize,
}

impl Weights {
    /// Rounds weights, (out, in) f32 on the card.
    pub fn new(weights: &Tensor, precision: Precision) -> Result<Self> {
        let (out, width) = match weights.dims() {
            [out, width] => (*out, *width),
            _ => (0, 0),
        };
        let device = device_of(weights)?;
        let halves = empty(&device, &Shape::from((out, width)), DType::F16)?;
        let scales = empty(&device, &Shape::from(out), DType::F32)?;
        Call::new(&device, &SPLIT, "split_weights")?
            .at(Place::<f32>::of(weights)?)
            .at(Place::<f16>::of_storage(&halves)?)
            .at(Place::<f32>::of_storage(&scales)?)
            .size(out)?
            .size(width)?
            .launch(Grid::row(out, THREADS))?;
        let (halves, scales) = (tensor(halves, (out, width)), tensor(scales, out));
        let rest = rest(weights, &halves, &scales)?;
        Ok(Weights { halves, rest, scales, precision, first: 0, checked: Arc::default() })
    }

    /// x·Wᵀ for the rows of some lanes, the first of which is the baseline.
    ///
    /// # Errors
    /// If the device has no memory left, and if the first product of several lanes is not what whole rows give. The
    /// control lane that equals the baseline cannot see such a fault, because its differences are 0.
    pub fn product(&self, x: &Tensor, lanes: usize) -> Result<Tensor> {
        let y = self.multiplied(x, lanes, self.precision)?;
        let rows = x.dim(0)? / lanes;
        if self.is_unchecked(lanes, rows) {
            let count = rows.min(CHECKED_ROWS);
            // the last rows, because exact tails and sinks spare the first ones
            let some = |x: &Tensor, lane: usize| x.narrow(0, (lane + 1) * rows - count, count);
            let farthest =
                Farthest::of(lanes, |lane| some(&y, lane), |_, difference| Ok(difference))?;
            let whole = self.multiplied(&some(x, farthest.lane)?, 1, Precision::Whole)?;
            self.compare(&farthest, &whole, rows)?;
        }
        Ok(y)
    }

    /// Compares the rows of a lane with those that were computed as the baseline's are. The lane has so many rows in all.
    ///
    /// # Errors
    /// If they are further apart than rounding explains.
    pub(super) fn compare(&self, farthest: &Farthest, whole: &Tensor, rows: usize) -> Result<()> {
        let (off, size) = (norm(&(&farthest.rows - whole)?)?, norm(whole)?);
        // numbers that are not finite are the business of flags
        if off > (TOLERANCE * farthest.difference).max(NOISE * size) {
            candle_core::bail!(
                "a product on this card is off by {:.1e} of its size; the card or its driver may be damaged: try \
                 --precision whole, another driver, or --device cpu",
                off / size
            );
        }
        // a lane that hardly differs from the baseline could not have shown a fault, nor one that is too far off
        if farthest.difference > TELLING * size && farthest.difference.is_finite() {
            self.checked().insert(self.kind(rows));
        }
        Ok(())
    }

    /// The weights as f16, (out, in).
    pub fn halves(&self) -> &Tensor {
        &self.halves
    }

    /// What f16 does not hold of the weights, if there is such a thing.
    pub fn rest(&self) -> Option<&Tensor> {
        self.rest.as_ref()
    }

    /// What the sums of each output are multiplied with.
    pub fn scales(&self) -> &Tensor {
        &self.scales
    }

    /// Whether a product of several lanes of so many rows must be compared with that of whole rows, because none of its
    /// kind has been.
    pub fn is_unchecked(&self, lanes: usize, rows: usize) -> bool {
        self.related(lanes) > 1 && !self.checked().contains(&self.kind(rows))
    }

    fn kind(&self, rows: usize) -> Kind {
        Kind { first: self.first, outputs: self.outputs(), rows: rows.next_power_of_two() }
    }

    fn outputs(&self) -> usize {
        self.scales.elem_count()
    }

    fn checked(&self) -> MutexGuard<'_, BTreeSet<Kind>> {
        // a panic elsewhere leaves the set whole
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of so many lanes are multiplied with regard to each other: all, or only one if each row is whole.
    pub fn related(&self, lanes: usize) -> usize {
        match self.precision {
            Precision::Differences => lanes,
            Precision::Whole => 1,
        }
    }

    /// The map to the outputs `start..start + len`.
    pub fn rows(&self, start: usize, len: usize) -> Result<Self> {
        let halves = self.halves.narrow(0, start, len)?;
        let rest = self.rest.as_ref().map(|rest| rest.narrow(0, start, len)).transpose()?;
        let (first, checked) = (self.first + start, self.checked.clone());
        let scales = self.scales.narrow(0, start, len)?;
        Ok(Weights { halves, rest, scales, precision: self.precision, first, checked })
    }

    /// x·Wᵀ for the norms of rows of some lanes, the first of which is the baseline.
    ///
    /// # Errors
    /// As of [`Self::product`].
    pub fn product_of_normed(&self, x: &Tensor, norm: &RmsNorm, lanes: usize) -> Result<Tensor> {
        if self.is_unchecked(lanes, x.dim(0)? / lanes) {
            return self.product(&run(norm, [x])?, lanes);
        }
        let operand = Operand::of_normed(x, norm, lanes, self.precision)?;
        self.prepared(operand)?.result()
    }

    /// down·(act(gate) ⊙ up), where the outputs of this map for x are those of gate and of up, perhaps with a bias. If
    /// there is a norm, it is applied to x first. Gives nothing where the steps must be done one by one: the first time,
    /// so that each product is checked, and if a row does not fit into shared memory.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn gated_product(
        &self,
        down: &Self,
        x: &Tensor,
        norm: Option<&RmsNorm>,
        gate: &Gate,
        lanes: usize,
    ) -> Result<Option<Tensor>> {
        let fits = gate.together(&device_of(&self.halves)?, lanes, self.outputs() / 2)? > 0;
        let rows = x.dim(0)? / lanes;
        if !fits || self.is_unchecked(lanes, rows) || down.is_unchecked(lanes, rows) {
            return Ok(None);
        }
        let x = match norm {
            Some(norm) => Operand::of_normed(x, norm, lanes, self.precision)?,
            None => Operand::new(x, lanes, self.precision)?,
        };
        let both = self.prepared(x)?;
        both.multiply()?;
        let inner = Operand::of_gated(&both.operand, &both.sums, &self.scales, gate)?;
        drop(both);
        down.prepared(inner)?.result().map(Some)
    }

    fn multiplied(&self, x: &Tensor, lanes: usize, precision: Precision) -> Result<Tensor> {
        self.prepared(Operand::new(x, lanes, precision)?)?.result()
    }

    fn prepared(&self, operand: Operand) -> Result<Product> {
        let (out, known) = self.halves.dims2()?;
        if operand.width != known {
            candle_core::bail!("rows of {} numbers for {known} inputs", operand.width);
        }
        let device = device_of(&self.halves)?;
        let shape = Shape::from((operand.lanes * operand.rows, out));
        let sums = empty(&device, &shape, DType::F32)?;
        Ok(Product { weights: self.clone(), device, operand, sums })
    }

    /// The product of rows of some lanes, of which only the calls of cuBLAS are left to do.
    pub fn calls(&self, x: &Tensor, lanes: usize) -> Result<Product> {
        self.prepared(Operand::new(x, lanes, self.precision)?)
    }
}

/// A product whose rows are split into terms already.
pub(in crate::compute) struct Product {
    weights: Weights,
    device: CudaDevice,
    operand: Operand,
    sums: CudaStorage,
}

impl Product {
    fn result(self) -> Result<Tensor> {
        self.multiply()?;
        self.finish()
    }

    /// Queues the calls of cuBLAS.
    pub fn multiply(&self) -> Result<()> {
        let _span = trace_span!("products").entered();
        blocks(self.operand.rows).try_for_each(|(start, len)| self.multiply_rows(start, len))
    }

    /// Multiplies some rows of every lane.
    fn multiply_rows(&self, start: usize, len: usize) -> Result<()> {
        let Product { weights, device, operand, sums } = self;
        let out = weights.halves.dim(0)?;
        let (x, w) =
            (Place::<f16>::of_storage(&operand.terms)?, Place::<f16>::of(&weights.halves)?);
        let rest = weights.rest.as_ref().map(Place::<f16>::of).transpose()?;
        let c = Place::<f32>::of_storage(sums)?;
        let product = |term: usize, lane: usize, w: Place<f16>, adds: bool| {
            let x = x.later((term * operand.rows + start) * operand.width);
            let c = c.later((lane * operand.rows + start) * out);
            Gemm { rows: len, out, width: operand.width, adds }.launch(device, x, w, c)
        };
        let whole = |high: usize, low: usize, lane: usize| {
            product(high, lane, w, false)?;
            product(low, lane, w, true)?;
            rest.map_or(Ok(()), |rest| product(high, lane, rest, true))
        };
        match operand.precision {
            Precision::Differences => {
                whole(0, 1, 0)?;
                (1..operand.lanes).try_for_each(|lane| product(lane + 1, lane, w, false))
            }
            Precision::Whole => {
                (0..operand.lanes).try_for_each(|lane| whole(lane, operand.lanes + lane, lane))
            }
        }
    }

    /// Takes the scales out of the sums, and adds the baseline's to those of differences.
    fn finish(self) -> Result<Tensor> {
        let _span = trace_span!("finishing").entered();
        let Product { weights, device, operand, sums } = self;
        let out = weights.scales.dim(0)?;
        Call::new(&device, &SPLIT, "finish")?
            .at(Place::<f32>::of_storage(&sums)?)
            .at(Place::<f32>::of_storage(&operand.scales)?)
            .at(Place::<f32>::of(&weights.scales)?)
            .size(operand.lanes)?
            .size(operand.rows)?
            .size(out)?
            .flag(operand.precision == Precision::Whole)
            .launch(Grid::row(operand.rows, THREADS))?;
        Ok(tensor(sums, (operand.lanes * operand.rows, out)))
    }
}

/// The lane whose rows differ most from the baseline's.
pub(super) struct Farthest {
    pub lane: usize,
    /// Some of its rows.
    pub rows: Tensor,
    /// The norm of their difference from the same rows of the baseline, as far as these are related.
    pub difference: f64,
}

impl Farthest {
    /// Looks at some rows of each of several lanes. `related` is given a lane and the difference of its rows from the
    /// baseline's, and makes those rows zero that are not computed as differences.
    pub fn of(
        lanes: usize,
        rows: impl Fn(usize) -> Result<Tensor>,
        related: impl Fn(usize, Tensor) -> Result<Tensor>,
    ) -> Result<Self> {
        let baseline = rows(0)?;
        let mut farthest = Farthest { lane: 1, rows: rows(1)?, difference: 0.0 };
        for lane in 1..lanes {
            let rows = rows(lane)?;
            let difference = norm(&related(lane, (&rows - &baseline)?)?)?;
            if difference > farthest.difference {
                farthest = Farthest { lane, rows, difference };
            }
        }
        Ok(farthest)
    }
}

fn norm(x: &Tensor) -> Result<f64> {
    Ok(f64::from(x.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt())
}

/// What f16 does not hold of weights, in the same scale. Nothing is left of weights in bf16 or f16, unless they are so
/// small beside the largest of their row that f16 has fewer bits for them.
fn rest(weights: &Tensor, halves: &Tensor, scales: &Tensor) -> Result<Option<Tensor>> {
    if weights.elem_count() == 0 {
        return Ok(None);
    }
    let scaled = weights.broadcast_div(&scales.unsqueeze(1)?)?;
    let rest = (scaled - halves.to_dtype(DType::F32)?)?;
    let largest = rest.abs()?.max_all()?.to_scalar::<f32>()?;
    if largest <= LEAST {
        return Ok(None);
    }
    rest.to_dtype(DType::F16).map(Some)
}

/// Start and length of the blocks of rows that are multiplied by one call each.
fn blocks(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(ROWS).map(move |start| (start, ROWS.min(rows - start)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::textbook::{place, random, rows};
    use half::bf16;

    #[test]
    #[ignore = "needs a card, which KVGATE_DEVICE names"]
    fn weights_have_a_second_term_only_if_they_have_more_bits_than_f16() {
        assert!(!place().is_cpu(), "KVGATE_DEVICE names no card");
        let weights = random(64 * 96);
        let short = |w: &f32| bf16::from_f32(*w).to_f32();
        let mut short: Vec<f32> = weights.iter().map(short).collect();
        // far below what f16 holds beside the others of its row
        short[5] = bf16::from_f32(1e-9).to_f32();
        let has_rest = |weights: &[f32]| {
            let weights = Weights::new(&rows(weights, 96), Precision::Differences).unwrap();
            weights.rest().is_some()
        };
        assert!(has_rest(&weights) && !has_rest(&short));
    }
}
