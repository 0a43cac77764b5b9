//! The tensors of a checkpoint: where each is, and the reader that the decoder is built with.
//!
//! Here a tensor has one name in all formats, mostly GGUF's: `blk.3.attn_q.weight`. Each format says how its files
//! hold the tensor ([`Origin`]). One walk over the decoder's parts serves three purposes: it lists the tensors that
//! are needed, checks a file for them without reading it, and reads them.

use super::config::{Config, Format};
use super::ModelError;
use crate::compute::inspect::first_non_finite;
use crate::compute::norm::RmsNorm;
use crate::compute::product::{Matrix, MatrixStack};
use crate::compute::Device;
use candle_core::{DType, Tensor};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// How files hold a tensor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Origin {
    /// The files' own names.
    pub parts: Vec<String>,
    pub joined: Joined,
    pub transform: Transform,
}

/// How the parts of a tensor are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joined {
    /// Along an axis.
    Along(usize),
    /// For each entry of the first axis the files have one tensor, or several that are stacked.
    ByEntry,
}

/// What is done to a tensor after it has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transform {
    None,
    /// Norm weights that are stored around zero.
    PlusOne,
    /// A decay that is stored as its logarithm.
    NegativeExp,
    /// Matrices that are stored as (in, out).
    Transposed,
    /// The same, and the outputs of gate and up alternate.
    TransposedPairs,
    /// Biases of gate and up, which alternate.
    Pairs,
}

impl Origin {
    pub fn one(name: impl Into<String>) -> Self {
        Origin { parts: vec![name.into()], joined: Joined::Along(0), transform: Transform::None }
    }

    /// The shape of each part of a tensor of the given shape.
    fn part_shape(&self, whole: &[usize]) -> Vec<usize> {
        let mut shape = whole.to_vec();
        let axis = match self.joined {
            Joined::Along(axis) => axis,
            Joined::ByEntry => {
                // n parts for E entries: n/E of them share an entry's rows
                let entries = shape.remove(0).max(1);
                let share = (self.parts.len() / entries).max(1);
                shape[0] /= share;
                return shape;
            }
        };
        if let Some(dim) = shape.get_mut(axis) {
            *dim /= self.parts.len();
        }
        shape
    }
}

/// The tensors of an open checkpoint.
pub(crate) trait Tensors: Config + Send + Sync {
    /// How the files hold a tensor. If parts are missing, these are the names that an error reports.
    fn origin(&self, name: &str) -> Origin;

    /// The shape in which the files hold each part of a tensor, given the shape that the part has in the decoder.
    fn stored_shape(&self, _name: &str, part: Vec<usize>) -> Vec<usize> {
        part
    }

    /// The shape of a tensor by its own name, outermost dimension first.
    fn shape(&self, own: &str) -> Option<Vec<usize>>;

    /// The files' own names of all tensors that some part of the model must read.
    fn names(&self) -> Vec<String>;

    /// Reads a tensor by its own name, dequantized if it is quantized. It is on the device `at` if it was dequantized
    /// there, and otherwise on the host.
    fn read(&self, own: &str, at: &candle_core::Device) -> Result<Tensor, ModelError>;

    /// The files' own names of tensors that belong to another one and are read with it, such as its scales.
    fn companions(&self, _own: &str) -> Vec<String> {
        Vec::new()
    }

    /// Reads some rows of a matrix by its own name.
    fn rows(&self, own: &str, ids: &[u32]) -> Result<Tensor, ModelError>;
}

impl<'a> dyn Tensors + 'a {
    /// Whether the files hold all of a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.origin(name).parts.iter().all(|own| self.shape(own).is_some())
    }
}

/// What a reader does when it is asked for a tensor.
#[derive(Clone, Copy)]
enum Purpose<'a> {
    Declare,
    Check(&'a dyn Tensors),
    Read(&'a dyn Tensors),
    /// Gives random numbers that a device makes, for models that nobody downloads for a benchmark.
    Invent(&'a candle_core::Device),
}

/// Gives the decoder its tensors, and records which ones were asked for.
pub(crate) struct Reader<'a> {
    purpose: Purpose<'a>,
    /// Where tensors are put, and in which precision matrices multiply there.
    device: Device,
    books: RefCell<Books>,
}

#[derive(Default)]
struct Books {
    /// Names and shapes of the tensors that were asked for.
    declared: Vec<(String, Vec<usize>)>,
    /// The files' own names of these tensors.
    used: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    /// A reader that only records what it is asked for. Its tensors are empty.
    pub fn declaring() -> Self {
        Self::new(Purpose::Declare, Device::cpu())
    }

    /// A reader that checks names and shapes. Its tensors are empty.
    pub fn checking(tensors: &'a dyn Tensors) -> Self {
        Self::new(Purpose::Check(tensors), Device::cpu())
    }

    /// A reader that reads tensors and puts them on a device.
    pub fn reading(tensors: &'a dyn Tensors, device: &Device) -> Self {
        Self::new(Purpose::Read(tensors), device.clone())
    }

    /// A reader that gives random numbers, which `maker` makes.
    pub fn inventing(maker: &'a candle_core::Device, device: &Device) -> Self {
        Self::new(Purpose::Invent(maker), device.clone())
    }

    fn new(purpose: Purpose<'a>, device: Device) -> Self {
        Reader { purpose, device, books: RefCell::default() }
    }

    /// Where tensors are put.
    pub fn place(&self) -> &candle_core::Device {
        self.device.at()
    }

    /// Names and shapes of all tensors that were asked for.
    pub fn declared(self) -> Vec<(String, Vec<usize>)> {
        self.books.into_inner().declared
    }

    /// The files' own names that nobody asked for, in order.
    pub fn unused(&self, tensors: &dyn Tensors) -> Vec<String> {
        let books = self.books.borrow();
        let mut names = tensors.names();
        names.retain(|name| !books.used.contains(name));
        names.sort();
        names
    }

    /// Accepts a tensor that the architecture does not need although some files hold it.
    pub fn allow_unused(&self, name: &str) {
        if let Purpose::Check(tensors) | Purpose::Read(tensors) = self.purpose {
            self.books.borrow_mut().used.extend(tensors.origin(name).parts);
        }
    }

    /// Whether files that are read hold all of a tensor.
    pub fn has(&self, name: &str) -> bool {
        match self.purpose {
            Purpose::Check(tensors) | Purpose::Read(tensors) => tensors.has(name),
            Purpose::Declare | Purpose::Invent(_) => false,
        }
    }

    /// A tensor of the given shape, f32.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        if let Purpose::Invent(maker) = self.purpose {
            return Ok(invented(name, shape, maker)?.to_device(self.place())?);
        }
        match self.located(name, shape)? {
            Some((tensors, origin)) => {
                Ok(read(tensors, &origin, shape, self.place())?.to_device(self.place())?)
            }
            None => Ok(Tensor::zeros(0, DType::F32, self.place())?),
        }
    }

    /// The weights of a linear map, (out, in).
    pub fn matrix(&self, name: &str, shape: &[usize]) -> Result<Matrix, ModelError> {
        self.matrix_of(self.tensor(name, shape)?)
    }

    /// The weights of a linear map that were put together from tensors of this reader, (out, in).
    pub fn matrix_of(&self, weights: Tensor) -> Result<Matrix, ModelError> {
        Ok(Matrix::new(weights, self.device.precision())?)
    }

    /// The weights of several linear maps of one shape, (count, out, in).
    pub fn matrices(&self, name: &str, shape: &[usize]) -> Result<MatrixStack, ModelError> {
        Ok(MatrixStack::new(self.tensor(name, shape)?, self.device.precision())?)
    }

    /// A norm with weights.
    pub fn norm(&self, name: &str, len: usize, eps: f32) -> Result<RmsNorm, ModelError> {
        Ok(RmsNorm { weight: self.tensor(name, &[len])?, eps })
    }

    /// A norm without weights.
    pub fn plain_norm(&self, len: usize, eps: f32) -> Result<RmsNorm, ModelError> {
        Ok(RmsNorm { weight: Tensor::ones(len, DType::F32, self.place())?, eps })
    }

    /// Checks a matrix without reading it. The decoder later reads only the rows that it needs.
    pub fn table(&self, name: &str, shape: &[usize]) -> Result<(), ModelError> {
        self.located(name, shape).map(drop)
    }

    /// Records a tensor and checks its shape. Returns its origin if it is to be read.
    fn located(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<Option<(&'a dyn Tensors, Origin)>, ModelError> {
        self.books.borrow_mut().declared.push((name.into(), shape.to_vec()));
        let (tensors, read) = match self.purpose {
            Purpose::Declare | Purpose::Invent(_) => return Ok(None),
            Purpose::Check(tensors) => (tensors, false),
            Purpose::Read(tensors) => (tensors, true),
        };
        let origin = tensors.origin(name);
        let expected = tensors.stored_shape(name, origin.part_shape(shape));
        if origin.joined == Joined::ByEntry && !origin.parts.len().is_multiple_of(shape[0].max(1)) {
            return Err(ModelError::Shape {
                path: tensors.path().into(),
                tensor: origin.parts[0].clone(),
                expected: shape.into(),
                found: [&[origin.parts.len()], &expected[..]].concat(),
            });
        }
        for own in &origin.parts {
            check_shape(tensors, own, &expected)?;
            for name in [vec![own.clone()], tensors.companions(own)].concat() {
                // if two parts of the decoder read the same tensor, the names of the family are wrong
                if !self.books.borrow_mut().used.insert(name.clone()) {
                    return Err(ModelError::unsupported(
                        tensors.path(),
                        format!("tensor `{name}` in two places"),
                    ));
                }
            }
        }
        Ok(read.then_some((tensors, origin)))
    }

    /// Applies `f` to a tensor, unless it is empty because nothing is read.
    pub fn arranged(
        &self,
        tensor: Tensor,
        f: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<Tensor, ModelError> {
        match self.purpose {
            Purpose::Read(_) | Purpose::Invent(_) => Ok(f(&tensor)?),
            _ => Ok(tensor),
        }
    }
}

/// Random weights as a model has them before it is trained: norms and biases of 1, decays of -1,
/// and matrices of small numbers.
fn invented(
    name: &str,
    shape: &[usize],
    device: &candle_core::Device,
) -> candle_core::Result<Tensor> {
    match shape {
        // the logarithm of a decay grows without end if it is positive
        _ if name.ends_with(".ssm_a") => Tensor::ones(shape, DType::F32, device)?.neg(),
        [_] | [] => Tensor::ones(shape, DType::F32, device),
        // released weights are bf16
        _ => Tensor::randn(0f32, 0.02, shape, device)?.to_dtype(DType::BF16)?.to_dtype(DType::F32),
    }
}

fn check_shape(tensors: &dyn Tensors, own: &str, expected: &[usize]) -> Result<(), ModelError> {
    let found = tensors.shape(own);
    let found = found.ok_or_else(|| ModelError::missing_tensor(tensors.path(), own))?;
    let same = match tensors.format() {
        Format::Hf => found == expected,
        // ggml's tensors always have four dimensions, and its writer leaves out outermost dimensions of 1
        Format::Gguf => significant(&found) == significant(expected),
    };
    if same {
        return Ok(());
    }
    Err(ModelError::Shape {
        path: tensors.path().into(),
        tensor: own.into(),
        expected: expected.into(),
        found,
    })
}

/// A shape without outermost dimensions of 1.
fn significant(shape: &[usize]) -> &[usize] {
    let ones = shape.iter().take_while(|&&n| n == 1).count();
    &shape[ones..]
}

/// The most elements of a tensor on a card. Kernels of the library candle count in 32 bits, with steps as large as the
/// tensor.
const MOST_ON_CARD: usize = 1 << 31;

fn read(
    tensors: &dyn Tensors,
    origin: &Origin,
    shape: &[usize],
    at: &candle_core::Device,
) -> Result<Tensor, ModelError> {
    let elements: usize = shape.iter().product();
    if !at.is_cpu() && elements > MOST_ON_CARD {
        let name = origin.parts.join(" and ");
        let most = MOST_ON_CARD;
        let what = format!("`{name}` with {elements} elements on a card, which takes {most} at most (--device cpu),");
        return Err(ModelError::unsupported(tensors.path(), what));
    }
    let part = |own: &String| finite(tensors, own, tensors.read(own, at)?.to_dtype(DType::F32)?);
    let whole = match &origin.parts[..] {
        [one] => part(one)?,
        parts => {
            let axis = match origin.joined {
                Joined::Along(axis) => axis,
                Joined::ByEntry => 0,
            };
            Tensor::cat(&parts.iter().map(part).collect::<Result<Vec<_>, _>>()?, axis)?
        }
    };
    if matches!(origin.transform, Transform::Transposed | Transform::TransposedPairs) {
        let (last, rows) = (shape.len() - 1, shape[shape.len() - 1]);
        let stored = [&shape[..last - 1], &[rows, shape[last - 1]]].concat();
        let whole = whole.reshape(stored)?.transpose(last - 1, last)?.contiguous()?;
        let pairs = origin.transform == Transform::TransposedPairs;
        return if pairs { gate_before_up(&whole, last - 1) } else { Ok(whole) };
    }
    let whole = whole.reshape(shape)?;
    match origin.transform {
        Transform::None | Transform::Transposed | Transform::TransposedPairs => Ok(whole),
        Transform::Pairs => gate_before_up(&whole, shape.len() - 1),
        Transform::PlusOne => Ok((whole + 1.0)?),
        // the exponential of a finite number may be too large
        Transform::NegativeExp => finite(tensors, &origin.parts[0], whole.exp()?.neg()?),
    }
}

/// Brings what alternates between gate and up along an axis into two halves, that of gate first.
fn gate_before_up(x: &Tensor, axis: usize) -> Result<Tensor, ModelError> {
    let count = x.dim(axis)? / 2;
    let half = |at: u32| -> candle_core::Result<Tensor> {
        let own: Vec<u32> = (0..count as u32).map(|i| 2 * i + at).collect();
        x.index_select(&Tensor::new(own, x.device())?, axis)
    };
    Ok(Tensor::cat(&[half(0)?, half(1)?], axis)?)
}

/// The tensor, unless an element is NaN or infinite.
pub(crate) fn finite(
    tensors: &dyn Tensors,
    own: &str,
    tensor: Tensor,
) -> Result<Tensor, ModelError> {
    match first_non_finite(&tensor)? {
        None => Ok(tensor),
        Some((index, value)) => Err(ModelError::NotFinite {
            path: tensors.path().into(),
            tensor: own.into(),
            index,
            value,
        }),
    }
}

/// The bytes of some rows of a table.
pub(crate) fn gathered(table: &[u8], row: usize, ids: &[u32]) -> candle_core::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(ids.len() * row);
    for &id in ids {
        match table.get(id as usize * row..(id as usize + 1) * row) {
            Some(found) => bytes.extend_from_slice(found),
            None => candle_core::bail!("token {id} is outside of a table of {}", table.len() / row),
        }
    }
    Ok(bytes)
}
