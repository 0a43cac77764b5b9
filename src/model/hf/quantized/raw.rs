//! The stored tensors of a checkpoint, from which a method takes those that make up its weights.

use super::weight::{Dequantize, Part, Quantized};
use super::{Located, Stored};
use crate::model::family::Names;
use crate::model::ModelError;
use memmap2::Mmap;
use safetensors::Dtype;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Types in which scales are stored.
pub(super) const SCALES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

pub(in crate::model::hf) struct Raw<'a> {
    pub folder: &'a Path,
    pub tensors: &'a mut BTreeMap<String, Stored>,
    pub shards: &'a [(PathBuf, Mmap)],
    pub names: Names,
    /// How many weights were put together.
    pub count: usize,
    /// Biases that change nothing. A family that has none there leaves them unread.
    pub zero_biases: &'a mut BTreeSet<String>,
}

/// A tensor that a method has taken.
pub(super) struct Taken<'a> {
    pub name: String,
    located: Located,
    bytes: &'a [u8],
}

impl Taken<'_> {
    pub fn shape(&self) -> &[usize] {
        &self.located.shape
    }

    pub fn dtype(&self) -> Dtype {
        self.located.dtype
    }

    /// The same bytes under the type that they really have, where a format stores them under another.
    pub fn seen_as(mut self, dtype: Dtype) -> Self {
        self.located.dtype = dtype;
        self
    }

    pub fn part(&self) -> Part<'_> {
        Part { dtype: self.located.dtype, shape: &self.located.shape, bytes: self.bytes }
    }
}

impl<'a> Raw<'a> {
    /// Does something with a copy of the tensors that nobody has taken, and leaves them as they are.
    pub(super) fn on_a_copy<T>(&self, with: impl FnOnce(&mut Raw) -> T) -> T {
        let plain = self.tensors.iter().filter_map(|(name, stored)| match stored {
            Stored::Plain(located) => Some((name.clone(), Stored::Plain(located.clone()))),
            Stored::Quantized(_) => None,
        });
        let (mut tensors, mut zero_biases) = (plain.collect(), BTreeSet::new());
        let (tensors, zero_biases) = (&mut tensors, &mut zero_biases);
        with(&mut Raw { tensors, zero_biases, count: 0, ..*self })
    }

    /// What is left of the names of the text model's tensors that end so.
    pub fn stems(&self, end: &str) -> Vec<String> {
        let names = self.tensors.iter().filter(|(name, stored)| {
            matches!(stored, Stored::Plain(_)) && !self.names.not_the_text_model(name)
        });
        names.filter_map(|(name, _)| name.strip_suffix(end).map(str::to_owned)).collect()
    }

    /// The type of a tensor that nobody has taken.
    pub(super) fn dtype(&self, name: &str) -> Option<Dtype> {
        match self.tensors.get(name)? {
            Stored::Plain(located) => Some(located.dtype),
            Stored::Quantized(_) => None,
        }
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Taken<'a>> {
        self.dtype(name)?;
        match self.tensors.remove(name)? {
            Stored::Plain(located) => {
                let bytes = &self.shards[located.shard].1[located.bytes.clone()];
                Some(Taken { name: name.into(), located, bytes })
            }
            Stored::Quantized(_) => None,
        }
    }

    /// A tensor that must be there, in one of these types.
    pub(super) fn need(&mut self, name: &str, dtypes: &[Dtype]) -> Result<Taken<'a>, ModelError> {
        let taken = self.take(name).ok_or_else(|| self.absent(name))?;
        self.check_dtype(&taken, dtypes)?;
        Ok(taken)
    }

    /// A tensor that may be there, in one of these types.
    pub(super) fn may(
        &mut self,
        name: &str,
        dtypes: &[Dtype],
    ) -> Result<Option<Taken<'a>>, ModelError> {
        let Some(taken) = self.take(name) else { return Ok(None) };
        self.check_dtype(&taken, dtypes)?;
        Ok(Some(taken))
    }

    fn check_dtype(&self, taken: &Taken, dtypes: &[Dtype]) -> Result<(), ModelError> {
        if dtypes.contains(&taken.dtype()) {
            return Ok(());
        }
        let known: Vec<_> = dtypes.iter().map(|dtype| format!("{dtype:?}")).collect();
        Err(self.refuse(
            &taken.name,
            format!("is {:?}, and its format has {} there", taken.dtype(), known.join(" or ")),
        ))
    }

    /// The numbers of a small tensor of floats, which is taken.
    pub fn floats(&mut self, name: &str) -> Result<Vec<f32>, ModelError> {
        let taken = self.need(name, &SCALES)?;
        Ok((0..taken.part().count()).map(|i| taken.part().float(i)).collect())
    }

    pub(super) fn absent(&self, name: &str) -> ModelError {
        ModelError::missing_tensor(self.folder, name)
    }

    pub fn refuse(&self, tensor: &str, message: impl AsRef<str>) -> ModelError {
        ModelError::refused(self.folder, format!("tensor `{tensor}` {}", message.as_ref()))
    }

    /// An error about a tensor whose shape does not fit the weight's.
    pub(super) fn misfit(&self, taken: &Taken, whole: &[usize]) -> ModelError {
        let shape = taken.shape();
        self.refuse(
            &taken.name,
            format!("has shape {shape:?}, which does not fit a weight of shape {whole:?} as the configuration describes it"),
        )
    }

    /// An error about an order of inputs whose groups are not of one size.
    pub(super) fn uneven(&self, order: &Taken, groups: usize, group: usize) -> ModelError {
        self.refuse(
            &order.name,
            format!("does not give each of {groups} groups {group} inputs: the order is damaged"),
        )
    }

    /// Drops a tensor that is about activations or queries.
    pub fn drop(&mut self, name: &str) {
        if self.dtype(name).is_some() {
            self.tensors.remove(name);
        }
    }

    /// Records the bias beside a weight of so many outputs if all its numbers are 0. Old tools wrote one for every
    /// layer.
    pub(super) fn zero_bias(&mut self, stem: &str, outputs: usize) {
        let name = format!("{stem}.bias");
        let Some(Stored::Plain(at)) = self.tensors.get(&name) else { return };
        let bytes = &self.shards[at.shard].1[at.bytes.clone()];
        let part = Part { dtype: at.dtype, shape: &at.shape, bytes };
        let is_bias = at.shape == [outputs] && SCALES.contains(&at.dtype);
        if is_bias && (0..outputs).all(|i| part.float(i) == 0.0) {
            self.zero_biases.insert(name);
        }
    }

    /// Puts a weight in the place of the tensors that it is computed from.
    pub(super) fn put(
        &mut self,
        name: String,
        shape: Vec<usize>,
        label: impl Into<String>,
        parts: Vec<Taken>,
        how: impl Dequantize + 'static,
    ) -> Result<(), ModelError> {
        let elements = shape.iter().try_fold(1usize, |n, &dimension| n.checked_mul(dimension));
        // codes of fewer than two bits are not read, so that a small file cannot ask for all memory
        let stored: usize = parts.iter().map(|part| part.bytes.len()).sum();
        if elements.is_none_or(|elements| elements > stored.saturating_mul(8)) {
            return Err(self
                .refuse(&name, format!("of shape {shape:?} is larger than what is stored of it")));
        }
        let parts = parts.into_iter().map(|part| part.located).collect();
        let quantized = Quantized { shape, label: label.into(), parts, how: Box::new(how) };
        if self.tensors.insert(name.clone(), Stored::Quantized(quantized)).is_some() {
            return Err(
                self.refuse(&name, "is there as such and quantized: nothing says which is meant")
            );
        }
        self.count += 1;
        Ok(())
    }
}
