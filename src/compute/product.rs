//! Products with weights. Only this file and its twin on a device know in which arithmetic they are computed.

use super::cuda;
use candle_core::{Device, Result, Tensor};
use tracing::trace_span;

/// The weights of a linear map, (out, in).
///
/// On the CPU both they and their products are f32. On a card weights are f16 with a power of two for each row, and
/// activations are split into terms of f16 ([`cuda::Weights`]).
#[derive(Debug, Clone)]
pub struct Matrix(Weights);

#[derive(Debug, Clone)]
enum Weights {
    Host(Tensor),
    Card(cuda::Weights),
}

impl Matrix {
    /// Makes a matrix of weights that were read as f32.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn new(weights: Tensor) -> Result<Self> {
        Ok(Matrix(match weights.device() {
            Device::Cuda(_) => Weights::Card(cuda::Weights::new(&weights)?),
            _ => Weights::Host(weights),
        }))
    }

    /// x·Wᵀ: (rows, in) → (rows, out). The rows are those of `lanes` lanes, one lane after the other, and the first is
    /// the baseline.
    pub fn product(&self, x: &Tensor, lanes: usize) -> Result<Tensor> {
        trace_span!("products").in_scope(|| match &self.0 {
            Weights::Host(weights) => x.matmul(&weights.t()?),
            Weights::Card(weights) => weights.product(x, lanes),
        })
    }

    /// The same for rows that were gathered from any lanes, so that none of them is the baseline of another.
    pub fn product_of_gathered(&self, x: &Tensor) -> Result<Tensor> {
        trace_span!("products").in_scope(|| match &self.0 {
            Weights::Host(weights) => x.matmul(&weights.t()?),
            Weights::Card(weights) => weights.product_of_gathered(x),
        })
    }

    /// The products of [`Self::product`] and nothing of what is before and after them, for benchmarks that compare with
    /// it. Rows are split now, and each call of the closure multiplies them.
    ///
    /// # Errors
    /// If the rows do not fit the weights, or the device has no memory for them.
    pub fn calls(&self, x: &Tensor, lanes: usize) -> Result<Box<dyn Fn() -> Result<()>>> {
        match &self.0 {
            Weights::Host(weights) => {
                let (x, weights) = (x.clone(), weights.t()?);
                Ok(Box::new(move || x.matmul(&weights).map(|y| drop(std::hint::black_box(y)))))
            }
            Weights::Card(weights) => {
                let product = weights.calls(x, lanes)?;
                Ok(Box::new(move || product.multiply()))
            }
        }
    }

    /// The map to some of its outputs: the rows `start..start + len` of the weights.
    pub fn rows(&self, start: usize, len: usize) -> Result<Self> {
        Ok(Matrix(match &self.0 {
            Weights::Host(weights) => Weights::Host(weights.narrow(0, start, len)?),
            Weights::Card(weights) => Weights::Card(weights.rows(start, len)?),
        }))
    }
}

/// Several matrices of one shape.
#[derive(Debug, Clone)]
pub(crate) struct MatrixStack {
    /// All matrices one below the other, (count·out, in).
    all: Matrix,
    /// The outputs of one of them.
    out: usize,
}

impl MatrixStack {
    /// Makes matrices of weights that were read as f32, (count, out, in).
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn new(weights: Tensor) -> Result<Self> {
        // whoever only asks for names and shapes is given tensors without elements
        let (rows, out) = match weights.dims() {
            [_, out, _] => (weights.flatten(0, 1)?, *out),
            _ => (weights.clone(), 0),
        };
        Ok(MatrixStack { all: Matrix::new(rows)?, out })
    }

    /// The matrix with an index.
    pub fn get(&self, index: usize) -> Result<Matrix> {
        self.all.rows(index * self.out, self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::textbook::{flat, random, rows, wide};
    use half::f16;

    const WIDTH: usize = 96;
    const OUT: usize = 40;
    const ROWS: usize = 70;

    /// Weights that f16 holds exactly.
    fn weights() -> Vec<f32> {
        random(OUT * WIDTH).iter().map(|w| f16::from_f32(w * 0.1).to_f32()).collect()
    }

    fn matrix() -> Matrix {
        Matrix::new(rows(&weights(), WIDTH)).unwrap()
    }

    /// Rows of three lanes. The second equals the first, the third is a little off.
    fn lanes() -> Vec<f32> {
        let base = random(ROWS * WIDTH);
        let noise = random(2 * ROWS * WIDTH);
        let off = base.iter().zip(&noise[ROWS * WIDTH..]).map(|(x, n)| x + 1e-3 * n);
        base.iter().copied().chain(base.iter().copied()).chain(off).collect()
    }

    /// x·Wᵀ in f64.
    fn exact(x: &[f64]) -> Vec<f64> {
        let weights = wide(&weights());
        let row = |x: &[f64]| -> Vec<f64> {
            let outputs = weights.chunks(WIDTH);
            outputs.map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum()).collect()
        };
        x.chunks(WIDTH).flat_map(row).collect()
    }

    /// ‖got - want‖ / ‖want‖
    fn error(got: &[f64], want: &[f64]) -> f64 {
        assert_eq!(got.len(), want.len());
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let distance = norm(&mut got.iter().zip(want).map(|(a, b)| a - b));
        distance / norm(&mut want.iter().copied())
    }

    #[test]
    fn a_baselines_product_is_exact_but_for_the_sum() {
        let x = random(ROWS * WIDTH);
        let got = wide(&flat(&matrix().product(&rows(&x, WIDTH), 1).unwrap()));
        let error = error(&got, &exact(&wide(&x)));
        assert!(error < 1e-6, "{error:e}");
        let gathered = matrix().product_of_gathered(&rows(&x, WIDTH)).unwrap();
        assert_eq!(gathered.dims(), [ROWS, OUT]);
        let error = self::error(&wide(&flat(&gathered)), &exact(&wide(&x)));
        assert!(error < 1e-6, "{error:e}");
    }

    #[test]
    fn what_a_lane_adds_is_exact_to_ten_bits_and_nothing_gives_nothing() {
        let x = lanes();
        let y = flat(&matrix().product(&rows(&x, WIDTH), 3).unwrap());
        let [base, same, off] = [0, 1, 2].map(|lane| &y[lane * ROWS * OUT..][..ROWS * OUT]);
        assert!(base.iter().zip(same).all(|(a, b)| a.to_bits() == b.to_bits()));
        let added: Vec<f64> = wide(off).iter().zip(wide(base)).map(|(l, b)| l - b).collect();
        let x = wide(&x);
        let (first, third) = (&x[..ROWS * WIDTH], &x[2 * ROWS * WIDTH..]);
        let difference: Vec<f64> = third.iter().zip(first).map(|(l, b)| l - b).collect();
        let error = error(&added, &exact(&difference));
        // y itself is f32, of which the difference is a thousandth
        assert!(error < 1.0 / 1024.0, "{error:e}");
    }

    #[test]
    fn a_lanes_bits_do_not_depend_on_the_other_lanes() {
        let x = lanes();
        let all = flat(&matrix().product(&rows(&x, WIDTH), 3).unwrap());
        let two = [&x[..ROWS * WIDTH], &x[2 * ROWS * WIDTH..]].concat();
        let two = flat(&matrix().product(&rows(&two, WIDTH), 2).unwrap());
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&two[ROWS * OUT..]), bits(&all[2 * ROWS * OUT..]));
    }

    #[test]
    fn numbers_that_f16_cannot_hold_are_scaled_and_broken_ones_stay_in_their_row() {
        let mut x = random(3 * WIDTH);
        x[..WIDTH].iter_mut().for_each(|x| *x *= 1e30);
        x[WIDTH..2 * WIDTH].iter_mut().for_each(|x| *x *= 1e-30);
        let got = wide(&flat(&matrix().product(&rows(&x, WIDTH), 1).unwrap()));
        for (got, want) in got.chunks(OUT).zip(exact(&wide(&x)).chunks(OUT)) {
            let error = error(got, want);
            assert!(error < 1e-6, "{error:e}");
        }
        x[WIDTH] = f32::NAN;
        let broken = flat(&matrix().product(&rows(&x, WIDTH), 1).unwrap());
        for (row, y) in broken.chunks(OUT).enumerate() {
            assert_eq!(y.iter().all(|y| y.is_nan()), row == 1);
            assert_eq!(y.iter().all(|y| y.is_finite()), row != 1);
        }
    }
}
