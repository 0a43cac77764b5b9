//! The products of a mixture of experts on a card, for all rows of all lanes at once. Nothing of them is read on the host.
//!
//! A *pair* is a row and one of its experts. Pairs are sorted by expert, so that the rows of an expert follow each other
//! and one launch computes the products of all experts. Where a lane's row has an expert that the baseline's row has,
//! too, the product is computed as the difference from the baseline's ([`super::product`]), and otherwise as the
//! baseline's own.

use super::constants::pairs::{
    LARGE_BYTES, LARGE_COLUMNS, LARGE_THREADS, MOST_GROUPS, PAIRS_OF_LANE, SMALL_BYTES,
    SMALL_COLUMNS, SMALL_THREADS, TILE_ROWS,
};
use super::constants::warp::WARP;
use super::kernels::{PAIRS, SPLIT};
use super::launch::{device_of, shared_memory, unwritten, Call, Grid, Place};
use super::product::{Farthest, Weights, CHECKED_ROWS};
use super::THREADS;
use candle_core::{CudaDevice, DType, Result, Tensor};
use half::f16;

/// The pairs that a block sorts.
const SORTED: usize = PAIRS_OF_LANE * THREADS;

/// The most experts that the kernels sort for. Each has two groups.
const MOST_EXPERTS: usize = MOST_GROUPS / 2;

/// How a kernel tiles the product.
struct Tiling {
    kernel: &'static str,
    columns: usize,
    threads: usize,
    shared: usize,
}

const SMALL: Tiling = Tiling {
    kernel: "grouped_product",
    columns: SMALL_COLUMNS,
    threads: SMALL_THREADS,
    shared: SMALL_BYTES,
};

const ANY_WIDTH: Tiling = Tiling { kernel: "grouped_product_of_any_width", ..SMALL };

const LARGE: Tiling = Tiling {
    kernel: "grouped_product_large",
    columns: LARGE_COLUMNS,
    threads: LARGE_THREADS,
    shared: LARGE_BYTES,
};

impl Tiling {
    /// The fastest one for rows of a width. All give the same bits.
    fn of(device: &CudaDevice, width: usize) -> Result<Self> {
        Ok(match shared_memory(device)? {
            _ if !width.is_multiple_of(8) => ANY_WIDTH,
            most if most < LARGE.shared => SMALL,
            _ => LARGE,
        })
    }
}

/// The pairs of the rows of some lanes, the first of which is the baseline.
pub(in crate::compute) struct Pairs {
    device: CudaDevice,
    /// (lanes·rows, 2·used)
    choice: Tensor,
    lanes: usize,
    rows: usize,
    used: usize,
    experts: usize,
    /// The pair at each place of the sorted order, and the place of each pair. Pair p is expert p % used of row p / used.
    sorted: Tensor,
    places: Tensor,
    /// For each place, that of the baseline's pair which it is computed from, or 2³² - 1.
    mates: Tensor,
    /// For each place, its expert.
    owners: Tensor,
    /// For each place, the row of the terms of x.
    high: Tensor,
    /// Where the pairs of each expert begin, and how many tiles lie before. Those that are computed whole and those
    /// that are differences are counted apart.
    starts: Tensor,
    tiles: Tensor,
}

/// What a product of pairs reads.
struct Factors<'a> {
    /// Terms of f16, and the distance from a row's high term to its low one.
    terms: &'a Tensor,
    low: usize,
    /// The row of `terms` that each place reads. If there is no list, row i is that of place i.
    high: Option<&'a Tensor>,
    /// What sums are multiplied with, for pairs that are computed whole and for differences, and the row of `terms`
    /// that the first number of the latter belongs to.
    whole: &'a Tensor,
    different: &'a Tensor,
    first_different: usize,
}

impl Pairs {
    /// Sorts the pairs of a choice of experts, (lanes·rows, 2·used).
    pub fn new(choice: Tensor, experts: usize, lanes: usize) -> Result<Self> {
        let (all, width) = choice.dims2()?;
        let (rows, used) = (all / lanes, width / 2);
        if !all.is_multiple_of(lanes) {
            candle_core::bail!("{all} rows are not those of {lanes} lanes");
        }
        let count = all * used;
        if experts > MOST_EXPERTS || i32::try_from(4 * count).is_err() {
            candle_core::bail!(
                "{count} rows of {experts} experts are more than the kernels of cards take; use --device cpu"
            );
        }
        let device = device_of(&choice)?;
        let list = |len: usize| unwritten(&device, len, DType::U32);
        let pairs = Pairs {
            sorted: list(count)?,
            places: list(count)?,
            mates: list(count)?,
            owners: list(count)?,
            high: list(count)?,
            starts: list(2 * experts + 1)?,
            tiles: list(2 * experts + 1)?,
            device: device.clone(),
            choice,
            lanes,
            rows,
            used,
            experts,
        };
        pairs.sort(
            &list(count)?,
            &list(2 * experts * count.div_ceil(SORTED))?,
            &list(2 * experts)?,
        )?;
        Ok(pairs)
    }

    /// For each place of the sorted order, its expert.
    pub fn owners(&self) -> &Tensor {
        &self.owners
    }

    fn count(&self) -> usize {
        self.lanes * self.rows * self.used
    }

    fn expect(&self, rows: usize, wanted: usize) -> Result<()> {
        if rows != wanted {
            candle_core::bail!("{rows} rows for experts that were chosen for {wanted}");
        }
        Ok(())
    }

    /// Fills the lists. The tensors are scratch.
    fn sort(&self, keys: &Tensor, counts: &Tensor, totals: &Tensor) -> Result<()> {
        let (count, groups) = (self.count(), 2 * self.experts);
        let blocks = count.div_ceil(SORTED);
        let call = |name| Call::new(&self.device, &PAIRS, name);
        call("pair_keys")?
            .at(Place::<f32>::of(&self.choice)?)
            .at(Place::<u32>::of(keys)?)
            .at(Place::<u32>::of(counts)?)
            .size(count)?
            .size(self.rows)?
            .size(self.used)?
            .size(self.experts)?
            .launch(Grid::row(blocks, THREADS))?;
        call("pair_offsets")?
            .at(Place::<u32>::of(counts)?)
            .at(Place::<u32>::of(totals)?)
            .size(blocks)?
            .launch(Grid::row(groups, THREADS))?;
        call("pair_starts")?
            .at(Place::<u32>::of(totals)?)
            .at(Place::<u32>::of(&self.starts)?)
            .at(Place::<u32>::of(&self.tiles)?)
            .size(groups)?
            .launch(Grid::row(1, MOST_GROUPS))?;
        call("pair_places")?
            .at(Place::<u32>::of(keys)?)
            .at(Place::<u32>::of(counts)?)
            .at(Place::<u32>::of(&self.starts)?)
            .at(Place::<u32>::of(&self.sorted)?)
            .at(Place::<u32>::of(&self.places)?)
            .size(count)?
            .size(groups)?
            .launch(Grid::row(blocks, THREADS))?;
        call("pair_mates")?
            .at(Place::<u32>::of(keys)?)
            .at(Place::<u32>::of(&self.sorted)?)
            .at(Place::<u32>::of(&self.places)?)
            .at(Place::<u32>::of(&self.mates)?)
            .at(Place::<u32>::of(&self.owners)?)
            .at(Place::<u32>::of(&self.high)?)
            .size(count)?
            .size(self.lanes)?
            .size(self.rows)?
            .size(self.used)?
            .launch(Grid::over(count, THREADS))
    }

    /// For each pair its row of x, (lanes·rows, in), times the matrix of its expert: (pairs, out) in sorted order.
    ///
    /// # Errors
    /// If the device has no memory left, and if the first product of several lanes is not what whole rows give.
    pub fn product_of_rows(&self, weights: &Weights, x: &Tensor) -> Result<Tensor> {
        let (all, width) = x.dims2()?;
        self.expect(all, self.lanes * self.rows)?;
        let device = &self.device;
        // all rows as two terms, and behind them the baseline's two terms and the differences of the other lanes
        let differences = if self.lanes > 1 { all + self.rows } else { 0 };
        let shape = (2 * all + differences, width);
        let terms = unwritten(device, shape, DType::F16)?;
        let scales = || unwritten(device, all, DType::F32);
        let (whole, different) = (scales()?, scales()?);
        let split = |whole: bool, to: Place<f16>, scales: &Tensor| {
            Call::new(device, &SPLIT, "split")?
                .at(Place::<f32>::of(x)?)
                .at(to)
                .at(Place::<f32>::of(scales)?)
                .size(self.lanes)?
                .size(self.rows)?
                .size(width)?
                .flag(whole)
                .launch(Grid::row(all, THREADS))
        };
        split(true, Place::<f16>::of(&terms)?, &whole)?;
        if self.lanes > 1 {
            split(false, Place::<f16>::of(&terms)?.later(2 * all * width), &different)?;
        }
        let y = self.multiply(
            weights,
            &Factors {
                terms: &terms,
                low: all,
                high: Some(&self.high),
                whole: &whole,
                different: &different,
                first_different: 2 * all + self.rows,
            },
        )?;
        self.check(weights, &y, |alone, first, rows| {
            alone.product_of_rows(weights, &x.narrow(0, first, rows)?)
        })?;
        Ok(y)
    }

    /// The same for rows of which each belongs to a pair: (pairs, in) → (pairs, out), both in sorted order.
    ///
    /// # Errors
    /// As of [`Self::product_of_rows`].
    pub fn product_of_pairs(&self, weights: &Weights, y: &Tensor) -> Result<Tensor> {
        let (count, width) = y.dims2()?;
        self.expect(count, self.count())?;
        let device = &self.device;
        let terms = unwritten(device, (2 * count, width), DType::F16)?;
        let scales = unwritten(device, count, DType::F32)?;
        Call::new(device, &PAIRS, "split_pairs")?
            .at(Place::<f32>::of(y)?)
            .at(Place::<u32>::of(&self.mates)?)
            .at(Place::<f16>::of(&terms)?)
            .at(Place::<f32>::of(&scales)?)
            .size(count)?
            .size(width)?
            .launch(Grid::row(count.div_ceil(THREADS / WARP), THREADS))?;
        let out = self.multiply(
            weights,
            &Factors {
                terms: &terms,
                low: count,
                high: None,
                whole: &scales,
                different: &scales,
                first_different: 0,
            },
        )?;
        self.check(weights, &out, |alone, first, rows| {
            let own = self.places.narrow(0, first * self.used, rows * self.used)?;
            let y = y.index_select(&own.index_select(&alone.sorted, 0)?, 0)?;
            alone.product_of_pairs(weights, &y)
        })?;
        Ok(out)
    }

    fn multiply(&self, weights: &Weights, factors: &Factors) -> Result<Tensor> {
        let (count, device) = (self.count(), &self.device);
        let (stacked, width) = weights.halves().dims2()?;
        let (out, groups) = (stacked / self.experts, 2 * self.experts);
        if width != factors.terms.dim(1)? || stacked != out * self.experts {
            candle_core::bail!("matrices of experts that do not fit their rows");
        }
        let sums = unwritten(device, (count, out), DType::F32)?;
        let tiling = Tiling::of(device, width)?;
        let tiles = (count.div_ceil(TILE_ROWS) + groups) * out.div_ceil(tiling.columns);
        Call::new(device, &PAIRS, tiling.kernel)?
            .at(Place::<f16>::of(factors.terms)?)
            .at(Place::<u32>::of_optional(factors.high)?)
            .at(Place::<f16>::of(weights.halves())?)
            .at(Place::<f16>::of_optional(weights.rest())?)
            .at(Place::<f32>::of(&sums)?)
            .at(Place::<u32>::of(&self.starts)?)
            .at(Place::<u32>::of(&self.tiles)?)
            .size(factors.low)?
            .size(groups)?
            .size(width)?
            .size(out)?
            .launch(Grid { shared: tiling.shared, ..Grid::row(tiles, tiling.threads) })?;
        // differences are added to results of the baseline, which must be there
        for differences in [false, true] {
            Call::new(device, &PAIRS, "finish_pairs")?
                .at(Place::<f32>::of(&sums)?)
                .at(Place::<u32>::of(&self.mates)?)
                .at(Place::<u32>::of(&self.owners)?)
                .at(Place::<u32>::of_optional(factors.high)?)
                .at(Place::<f32>::of(factors.whole)?)
                .at(Place::<f32>::of(factors.different)?)
                .at(Place::<f32>::of(weights.scales())?)
                .size(factors.first_different)?
                .size(count)?
                .size(out)?
                .flag(differences)
                .launch(Grid::row(count.div_ceil(THREADS / WARP), THREADS))?;
            if self.lanes == 1 {
                break;
            }
        }
        Ok(sums)
    }

    /// Compares the results of some rows of a lane with those that `product` gives for these rows alone, which are
    /// computed whole then. It is done for the first product with the weights.
    fn check(
        &self,
        weights: &Weights,
        y: &Tensor,
        product: impl Fn(&Pairs, usize, usize) -> Result<Tensor>,
    ) -> Result<()> {
        // the kernel is one for any number of rows
        if !weights.is_unchecked(self.lanes, 1) {
            return Ok(());
        }
        let rows = self.rows.min(CHECKED_ROWS);
        let first = |lane: usize| (lane + 1) * self.rows - rows;
        let experts =
            |lane: usize| self.choice.narrow(0, first(lane), rows)?.narrow(1, 0, self.used);
        let results = |lane: usize| {
            y.index_select(&self.places.narrow(0, first(lane) * self.used, rows * self.used)?, 0)
        };
        // what two experts give is no difference that was computed as one
        let of_one_expert = |lane: usize, difference: Tensor| {
            let is_one = experts(lane)?.eq(&experts(0)?)?.to_dtype(DType::F32)?;
            difference.broadcast_mul(&is_one.reshape((rows * self.used, 1))?)
        };
        let farthest = Farthest::of(self.lanes, results, of_one_expert)?;
        let first = first(farthest.lane);
        let alone = Pairs::new(self.choice.narrow(0, first, rows)?, self.experts, 1)?;
        let whole = product(&alone, first, rows)?.index_select(&alone.places, 0)?;
        weights.compare(&farthest, &whole, 1)
    }

    /// Each row's sum of weight · y over its experts, in ascending order of the experts: (pairs, out) → (rows, out).
    pub fn weighted_sum(&self, y: &Tensor) -> Result<Tensor> {
        let (rows, width) = (self.lanes * self.rows, y.dim(1)?);
        self.expect(y.dim(0)?, self.count())?;
        let out = unwritten(&self.device, (rows, width), DType::F32)?;
        Call::new(&self.device, &PAIRS, "weighted_sum")?
            .at(Place::<f32>::of(&self.choice)?)
            .at(Place::<u32>::of(&self.places)?)
            .at(Place::<f32>::of(y)?)
            .at(Place::<f32>::of(&out)?)
            .size(width)?
            .size(self.used)?
            .launch(Grid::row(rows, THREADS))?;
        Ok(out)
    }
}
