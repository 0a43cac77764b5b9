//! A weight that is computed from several tensors.

use super::Located;
use candle_core::Tensor;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

/// Turns stored codes into numbers.
pub(super) trait Dequantize: Send + Sync {
    /// Writes whole rows of a matrix. A tensor of more dimensions is the matrix of all its rows.
    fn rows(&self, parts: &[Part], rows: Rows, out: &mut [f32]);
}

/// Some rows of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub first: usize,
    /// Elements in a row.
    pub width: usize,
}

/// A weight that is computed from several tensors when it is read.
pub(in crate::model::hf) struct Quantized {
    pub shape: Vec<usize>,
    /// What people call the type that it is stored in.
    pub label: String,
    pub(super) parts: Vec<Located>,
    pub(super) how: Box<dyn Dequantize>,
}

/// A stored tensor.
#[derive(Clone, Copy, PartialEq)]
pub(in crate::model::hf) struct Part<'a> {
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

/// Rows that are computed at once. Formats that store columns together are read in pieces of this many numbers.
const TOGETHER: usize = 64;

impl Quantized {
    pub fn parts(&self) -> &[Located] {
        &self.parts
    }

    fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The whole tensor.
    pub fn read(&self, parts: &[Part]) -> candle_core::Result<Tensor> {
        let width = self.width();
        let mut numbers = vec![0f32; self.shape.iter().product()];
        numbers.par_chunks_mut(TOGETHER.saturating_mul(width).max(1)).enumerate().for_each(
            |(at, out)| {
                self.how.rows(parts, Rows { first: at * TOGETHER, width }, out);
            },
        );
        Tensor::from_vec(numbers, &self.shape[..], &crate::compute::device::HOST)
    }

    /// Some rows of a matrix.
    pub fn some_rows(&self, parts: &[Part], ids: &[u32]) -> candle_core::Result<Tensor> {
        let (width, all) = (self.width(), self.shape.iter().product::<usize>());
        let mut numbers = vec![0f32; ids.len() * width];
        for (&id, out) in ids.iter().zip(numbers.chunks_exact_mut(width.max(1))) {
            let first = id as usize;
            if (first + 1) * width > all {
                candle_core::bail!("token {id} is outside of a table of {}", all / width.max(1));
            }
            self.how.rows(parts, Rows { first, width }, out);
        }
        Tensor::from_vec(numbers, &[ids.len(), width][..], &crate::compute::device::HOST)
    }
}

impl Part<'_> {
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// An element of a tensor of floats.
    pub fn float(&self, index: usize) -> f32 {
        match self.dtype {
            Dtype::F32 => f32::from_bits(self.word(index)),
            Dtype::F16 => f16::from_le_bytes(self.pair(index)).to_f32(),
            Dtype::BF16 => bf16::from_le_bytes(self.pair(index)).to_f32(),
            Dtype::F8_E4M3 => super::numbers::e4m3(self.bytes[index]),
            // F8_E8M0, and the bytes in which programs without that type store it
            _ => super::numbers::e8m0(self.bytes[index]),
        }
    }

    fn pair(&self, index: usize) -> [u8; 2] {
        [self.bytes[2 * index], self.bytes[2 * index + 1]]
    }

    /// A word of 32 bits.
    pub fn word(&self, index: usize) -> u32 {
        let bytes = &self.bytes[4 * index..][..4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// A whole number.
    pub fn whole(&self, index: usize) -> Option<i64> {
        let number = match self.dtype {
            Dtype::I64 => {
                i64::from_le_bytes(self.bytes.get(8 * index..)?.get(..8)?.try_into().ok()?)
            }
            Dtype::I32 => i64::from(i32::from_le_bytes(
                self.bytes.get(4 * index..)?.get(..4)?.try_into().ok()?,
            )),
            Dtype::I8 => i64::from(*self.bytes.get(index)? as i8),
            Dtype::U8 => i64::from(*self.bytes.get(index)?),
            _ => return None,
        };
        Some(number)
    }
}

/// Which scale belongs to an element of a tensor: one for all, one for each row, for groups of a row's elements, or
/// for blocks of rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    /// Rows of each matrix of a stack.
    matrix: usize,
    /// Rows and columns that share a scale.
    block: [usize; 2],
    /// Scales of a matrix, down and across.
    down: usize,
    across: usize,
}

impl Grid {
    /// The grid of scales of the shape `scales` for a tensor of the shape `whole`, in blocks of a known size. `None` if
    /// they do not fit.
    pub fn new(whole: &[usize], scales: &[usize], block: [usize; 2]) -> Option<Self> {
        let [stack @ .., rows, columns] = whole else { return None };
        if block.contains(&0) {
            return None;
        }
        let (down, across) = (rows.div_ceil(block[0]), columns.div_ceil(block[1]));
        let fits = scales == [stack, &[down, across]].concat();
        fits.then_some(Grid { matrix: (*rows).max(1), block, down, across })
    }

    /// One scale for the whole tensor.
    pub fn one(whole: &[usize], scales: &[usize]) -> Option<Self> {
        let [.., columns] = whole else { return None };
        let rows = whole.iter().product::<usize>().checked_div(*columns)?.max(1);
        let is_one = scales.iter().product::<usize>() == 1;
        is_one.then_some(Grid {
            matrix: rows,
            block: [rows, (*columns).max(1)],
            down: 1,
            across: 1,
        })
    }

    /// One scale for each row, with or without a last dimension of 1.
    pub fn of_rows(whole: &[usize], scales: &[usize]) -> Option<Self> {
        let [rows @ .., columns] = whole else { return None };
        if rows.is_empty() || scales != rows && scales != [rows, &[1]].concat() {
            return None;
        }
        Some(Grid {
            matrix: rows.iter().product::<usize>().max(1),
            block: [1, (*columns).max(1)],
            down: rows.iter().product(),
            across: 1,
        })
    }

    /// One scale for each group of a row's elements. Rows are whole groups: the number of scales alone would not say how
    /// large a group is.
    pub fn of_groups(whole: &[usize], scales: &[usize], group: usize) -> Option<Self> {
        whole.last().filter(|columns| columns.is_multiple_of(group))?;
        Self::new(whole, scales, [1, group])
    }

    /// Elements of a row that share a scale.
    pub fn run(&self) -> usize {
        self.block[1]
    }

    /// The index of the first scale of a row.
    pub fn row(&self, row: usize) -> usize {
        let (matrix, row) = (row / self.matrix, row % self.matrix);
        (matrix * self.down + row / self.block[0]) * self.across
    }
}

/// Computes rows whose elements share scales in runs. `run` gets the index of the scale, the flat index of the first
/// element, and the place of the run's numbers.
pub(super) fn by_runs(
    grid: &Grid,
    rows: Rows,
    out: &mut [f32],
    run: impl Fn(usize, usize, &mut [f32]),
) {
    for (at, row) in out.chunks_exact_mut(rows.width.max(1)).enumerate() {
        let index = rows.first + at;
        let scale = grid.row(index);
        for (group, numbers) in row.chunks_mut(grid.run()).enumerate() {
            run(scale + group, index * rows.width + group * grid.run(), numbers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_belong_to_blocks_rows_groups_or_all() {
        let blocks = Grid::new(&[2, 3, 5], &[2, 2, 2], [2, 4]).unwrap();
        let rows: Vec<_> = (0..6).map(|row| blocks.row(row)).collect();
        assert_eq!(rows, [0, 0, 2, 4, 4, 6]);
        assert_eq!(Grid::new(&[3, 5], &[2, 1], [2, 4]), None);
        assert_eq!(Grid::new(&[3, 5], &[2, 1], [2, 0]), None);
        let one = Grid::one(&[3, 5], &[]).unwrap();
        assert_eq!((one.row(2), one.run()), (0, 5));
        assert_eq!(Grid::one(&[3, 5], &[3]), None);
        for scales in [&[3][..], &[3, 1]] {
            let each = Grid::of_rows(&[3, 5], scales).unwrap();
            assert_eq!((each.row(2), each.run()), (2, 5));
        }
        let groups = Grid::of_groups(&[3, 6], &[3, 2], 3).unwrap();
        assert_eq!((groups.row(2), groups.run()), (4, 3));
    }
}
