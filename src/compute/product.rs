//! Products with weights. Only this file and its twin on a device know in which arithmetic they are computed.

use super::bias::Bias;
use super::gate::{Activation, GatedActivation};
use super::norm::RmsNorm;
use super::pairs::{HostPairs, Pairs, Share, Sorted};
use super::precision::Precision;
use super::{cuda, run};
use candle_core::{Device, Result, Tensor};
use tracing::trace_span;

/// The weights of a linear map, (out, in).
///
/// On the CPU both they and their products are f32. On a card weights are f16 with a power of two for each row, and
/// activations are split into terms of f16 (`cuda::Weights`).
#[derive(Debug, Clone)]
pub struct Matrix(Weights);

#[derive(Debug, Clone)]
enum Weights {
    Host(Tensor),
    Card(cuda::Weights),
}

impl Matrix {
    /// Makes a matrix of weights that were read as f32. The precision is that of products on a card.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn new(weights: Tensor, precision: Precision) -> Result<Self> {
        Ok(Matrix(match weights.device() {
            Device::Cuda(_) => Weights::Card(cuda::Weights::new(&weights, precision)?),
            _ => Weights::Host(weights),
        }))
    }

    /// x·Wᵀ: (rows, in) → (rows, out). The rows are those of `lanes` lanes, one lane after the other, and the first is
    /// the baseline.
    pub fn product(&self, x: &Tensor, lanes: usize) -> Result<Tensor> {
        match &self.0 {
            Weights::Host(weights) => trace_span!("products").in_scope(|| x.matmul(&weights.t()?)),
            Weights::Card(weights) => weights.product(x, lanes),
        }
    }

    /// The same for the norms of rows.
    pub(crate) fn product_of_normed(
        &self,
        x: &Tensor,
        norm: &RmsNorm,
        lanes: usize,
    ) -> Result<Tensor> {
        match &self.0 {
            Weights::Host(_) => self.product(&normed(x, norm)?, lanes),
            Weights::Card(weights) => weights.product_of_normed(x, norm, lanes),
        }
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

fn normed(x: &Tensor, norm: &RmsNorm) -> Result<Tensor> {
    trace_span!("norms").in_scope(|| run(norm, [x]))
}

/// A gated MLP: two products and what stands between them.
pub(crate) struct GatedMlp<'a> {
    /// Its outputs are those of gate, and then those of up.
    pub gate_up: &'a Matrix,
    pub bias: Option<&'a Bias>,
    pub activation: Activation,
    pub down: &'a Matrix,
}

impl GatedMlp<'_> {
    /// down(act(gate(x)) ⊙ up(x)) for the rows of `lanes` lanes. If there is a norm, it is applied to x first.
    pub fn run(&self, x: &Tensor, norm: Option<&RmsNorm>, lanes: usize) -> Result<Tensor> {
        if let (Weights::Card(gate_up), Weights::Card(down)) = (&self.gate_up.0, &self.down.0) {
            let bias = self.bias.map(|bias| &bias.0);
            let gate = cuda::Gate { activation: self.activation, bias };
            if let Some(y) = gate_up.gated_product(down, x, norm, &gate, lanes)? {
                return Ok(y);
            }
        }
        let both = match norm {
            Some(norm) => self.gate_up.product_of_normed(x, norm, lanes)?,
            None => self.gate_up.product(x, lanes)?,
        };
        let both = match self.bias {
            Some(bias) => run(bias, [&both])?,
            None => both,
        };
        let gate = GatedActivation(self.activation);
        let inner = trace_span!("gates").in_scope(|| run(&gate, [&both]))?;
        self.down.product(&inner, lanes)
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
    /// Makes matrices of weights that were read as f32, (count, out, in). The precision is that of products on a card.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn new(weights: Tensor, precision: Precision) -> Result<Self> {
        // whoever only asks for names and shapes is given tensors without elements
        let (rows, out) = match weights.dims() {
            [_, out, _] => (weights.flatten(0, 1)?, *out),
            _ => (weights.clone(), 0),
        };
        Ok(MatrixStack { all: Matrix::new(rows, precision)?, out })
    }

    /// The pairs of what was chosen, (rows, 2·used), for products with these matrices. The rows are those of some lanes,
    /// the first of which is the baseline.
    pub fn pairs(&self, choice: Tensor, experts: usize, lanes: usize) -> Result<Pairs> {
        // rows that are all multiplied whole are those of one lane
        let lanes = match &self.all.0 {
            Weights::Host(_) => lanes,
            Weights::Card(weights) => weights.related(lanes),
        };
        Pairs::new(choice, experts, lanes)
    }

    /// For each pair of a row of x and an expert, that row times the expert's matrix: (rows, in) → (pairs, out).
    pub fn product_of_rows(&self, x: &Tensor, pairs: &Pairs) -> Result<Tensor> {
        match (&self.all.0, &pairs.0) {
            (Weights::Card(weights), Sorted::Card(pairs)) => {
                trace_span!("experts").in_scope(|| pairs.product_of_rows(weights, x))
            }
            (_, Sorted::Host(pairs)) => self.products(pairs, |_, share| {
                x.index_select(&Tensor::new(&share.rows[..], x.device())?, 0)
            }),
            _ => elsewhere(),
        }
    }

    /// The same for rows of which each belongs to a pair: (pairs, in) → (pairs, out).
    pub fn product_of_pairs(&self, y: &Tensor, pairs: &Pairs) -> Result<Tensor> {
        match (&self.all.0, &pairs.0) {
            (Weights::Card(weights), Sorted::Card(pairs)) => {
                trace_span!("experts").in_scope(|| pairs.product_of_pairs(weights, y))
            }
            (_, Sorted::Host(pairs)) => {
                self.products(pairs, |start, share| y.narrow(0, start, share.rows.len()))
            }
            _ => elsewhere(),
        }
    }

    /// The products of one expert after the other. `rows` gives the rows of an expert.
    fn products(
        &self,
        pairs: &HostPairs,
        rows: impl Fn(usize, &Share) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let product = |(expert, start, share)| {
            self.all.rows(expert * self.out, self.out)?.product(&rows(start, share)?, 1)
        };
        Tensor::cat(&pairs.shares().map(product).collect::<Result<Vec<_>>>()?, 0)
    }
}

fn elsewhere<T>() -> Result<T> {
    candle_core::bail!("experts and the pairs that they work for are on different devices")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::textbook::{flat, norm, random, rows, vector, wide};
    use half::f16;

    const WIDTH: usize = 96;
    const OUT: usize = 40;
    const ROWS: usize = 70;

    /// Weights that f16 holds exactly.
    fn weights() -> Vec<f32> {
        random(OUT * WIDTH).iter().map(|w| f16::from_f32(w * 0.1).to_f32()).collect()
    }

    fn matrix() -> Matrix {
        matrix_in(Precision::Differences)
    }

    fn matrix_in(precision: Precision) -> Matrix {
        Matrix::new(rows(&weights(), WIDTH), precision).unwrap()
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
    fn a_whole_lane_is_as_exact_as_the_baseline_and_has_the_bits_that_it_has_alone() {
        let (x, matrix) = (lanes(), matrix_in(Precision::Whole));
        let y = flat(&matrix.product(&rows(&x, WIDTH), 3).unwrap());
        let error = error(&wide(&y), &exact(&wide(&x)));
        assert!(error < 1e-6, "{error:e}");
        let size = ROWS * OUT;
        assert_eq!(bits(&y[..size]), bits(&y[size..2 * size]), "an equal lane");
        let alone = flat(&matrix.product(&rows(&x[2 * ROWS * WIDTH..], WIDTH), 1).unwrap());
        assert_eq!(bits(&alone), bits(&y[2 * size..]));
    }

    #[test]
    fn whole_lanes_of_a_mixture_are_as_exact_as_the_baseline() {
        let got = mixed_in(Precision::Whole, &[0, 1, 2]);
        let error = error(&wide(&got), &exactly_mixed());
        assert!(error < 1e-6, "{error:e}");
        let size = ROWS * WIDTH;
        assert_eq!(bits(&got[..size]), bits(&got[size..2 * size]), "an equal lane");
        assert_eq!(bits(&got[2 * size..]), bits(&mixed_in(Precision::Whole, &[2])));
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn a_lanes_bits_do_not_depend_on_the_other_lanes() {
        let x = lanes();
        let all = flat(&matrix().product(&rows(&x, WIDTH), 3).unwrap());
        let two = [&x[..ROWS * WIDTH], &x[2 * ROWS * WIDTH..]].concat();
        let two = flat(&matrix().product(&rows(&two, WIDTH), 2).unwrap());
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

    /// What a norm, two products, a bias and a gate give one after the other, each as an op of its own.
    fn step_by_step(mlp: &GatedMlp, x: &Tensor, norm: Option<&RmsNorm>, lanes: usize) -> Tensor {
        let x = norm.map_or_else(|| x.clone(), |norm| run(norm, [x]).unwrap());
        let both = mlp.gate_up.product(&x, lanes).unwrap();
        let both = mlp.bias.map_or(both.clone(), |bias| run(bias, [&both]).unwrap());
        let inner = run(&GatedActivation(mlp.activation), [&both]).unwrap();
        mlp.down.product(&inner, lanes).unwrap()
    }

    /// Cards do some of these steps at once, and not the first time, when products are checked. That changes no bit.
    #[test]
    fn steps_that_are_done_at_once_give_the_bits_of_each_by_itself() {
        for (width, inner) in [(96, 40), (97, 37)] {
            for precision in [Precision::Differences, Precision::Whole] {
                let matrix = |out: usize, width: usize| {
                    Matrix::new(rows(&random(out * width), width), precision).unwrap()
                };
                let (gate_up, down) = (matrix(2 * inner, width), matrix(width, inner));
                let bias = Bias(vector(&random(2 * inner)));
                for lanes in [1, 3, 6] {
                    let base = random(lanes * 5 * width);
                    let x = rows(&base, width);
                    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Clamped]
                    {
                        for (bias, norm) in [(None, None), (Some(&bias), Some(norm(width)))] {
                            let mlp = GatedMlp { gate_up: &gate_up, bias, activation, down: &down };
                            let want = flat(&step_by_step(&mlp, &x, norm.as_ref(), lanes));
                            let got = flat(&mlp.run(&x, norm.as_ref(), lanes).unwrap());
                            let bits =
                                |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                            assert_eq!(
                                bits(&got),
                                bits(&want),
                                "{width}, {lanes} lanes, {activation:?}"
                            );
                        }
                    }
                }
            }
        }
    }

    const EXPERTS: usize = 5;

    /// Two experts of each row and their weights. Every third row of the last lane has others than the baseline's.
    fn choice() -> Vec<f32> {
        let row = |lane: usize, row: usize| {
            let moved = if lane == 2 && row.is_multiple_of(3) { row + 1 } else { row };
            let expert = |i: usize| ((moved + i) % EXPERTS) as f32;
            [expert(2), expert(0), 0.75, -0.5]
        };
        (0..3).flat_map(|lane| (0..ROWS).flat_map(move |i| row(lane, i))).collect()
    }

    /// Matrices of experts that f16 holds exactly, (count·out, in).
    fn experts(out: usize, width: usize) -> Vec<f32> {
        let weights = random(EXPERTS * out * width);
        weights.iter().map(|w| f16::from_f32(w * 0.1).to_f32()).collect()
    }

    /// What `lanes` of [`lanes`] get of two layers of experts: (rows, WIDTH) → (rows, OUT) → (rows, WIDTH).
    fn mixed(lanes: &[usize]) -> Vec<f32> {
        mixed_in(Precision::Differences, lanes)
    }

    fn mixed_in(precision: Precision, lanes: &[usize]) -> Vec<f32> {
        let of = |x: &[f32], width: usize| -> Vec<f32> {
            lanes
                .iter()
                .flat_map(|&lane| &x[lane * ROWS * width..][..ROWS * width])
                .copied()
                .collect()
        };
        let stack = |out, width| {
            let weights = rows(&experts(out, width), width);
            let weights = weights.reshape((EXPERTS, out, width)).unwrap();
            MatrixStack::new(weights, precision).unwrap()
        };
        let x = rows(&of(&self::lanes(), WIDTH), WIDTH);
        let first = stack(OUT, WIDTH);
        let pairs = first.pairs(rows(&of(&choice(), 4), 4), EXPERTS, lanes.len()).unwrap();
        let inner = first.product_of_rows(&x, &pairs).unwrap();
        assert_eq!(inner.dims(), [2 * lanes.len() * ROWS, OUT]);
        let y = stack(WIDTH, OUT).product_of_pairs(&inner, &pairs).unwrap();
        flat(&pairs.weighted_sum(&y).unwrap())
    }

    /// The same in f64.
    fn exactly_mixed() -> Vec<f64> {
        let (inner, outer) = (wide(&experts(OUT, WIDTH)), wide(&experts(WIDTH, OUT)));
        let times = |weights: &[f64], x: &[f64], expert: usize| -> Vec<f64> {
            let count = weights.len() / EXPERTS;
            let outputs = weights[expert * count..][..count].chunks(x.len());
            outputs.map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum()).collect()
        };
        let x = wide(&lanes());
        let row = |(x, choice): (&[f64], &[f32])| {
            let mut sum = vec![0.0; WIDTH];
            for (expert, weight) in choice[..2].iter().zip(&choice[2..]) {
                let y = times(&outer, &times(&inner, x, *expert as usize), *expert as usize);
                sum.iter_mut().zip(y).for_each(|(sum, y)| *sum += f64::from(*weight) * y);
            }
            sum
        };
        x.chunks(WIDTH).zip(choice().chunks(4)).flat_map(row).collect()
    }

    #[test]
    fn each_row_is_given_what_its_experts_give() {
        let (got, want) = (wide(&mixed(&[0, 1, 2])), exactly_mixed());
        let lane = |x: &[f64], lane: usize| x[lane * ROWS * WIDTH..][..ROWS * WIDTH].to_vec();
        let error = self::error(&lane(&got, 0), &lane(&want, 0));
        assert!(error < 1e-6, "{error:e}");
        // the last lane is a thousandth off the baseline where it has the same experts
        let off = |x: &[f64], others: bool| -> Vec<f64> {
            let rows = lane(x, 2).into_iter().zip(lane(x, 0)).enumerate();
            let of_kind = rows.filter(|(i, _)| (i / WIDTH).is_multiple_of(3) == others);
            of_kind.map(|(_, (lane, base))| lane - base).collect()
        };
        for others in [false, true] {
            let error = self::error(&off(&got, others), &off(&want, others));
            assert!(error < 1.0 / 1024.0, "other experts: {others}: {error:e}");
        }
    }

    #[test]
    fn a_lanes_bits_in_a_mixture_do_not_depend_on_the_other_lanes() {
        let (all, two, one) = (mixed(&[0, 1, 2]), mixed(&[0, 2]), mixed(&[0]));
        let size = ROWS * WIDTH;
        assert_eq!(bits(&all[..size]), bits(&all[size..2 * size]), "an equal lane");
        assert_eq!(bits(&all[..size]), bits(&one));
        assert_eq!(bits(&all[2 * size..]), bits(&two[size..]));
    }
}
