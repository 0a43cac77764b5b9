//! What calibrated schemes need to know about a model: ranges and means of its K and V over a text.
//! `kvgate calibrate` writes them.
//!
//! The file is a safetensors file. For each layer that owns a cache it holds
//! `{layer}.{k,v}.{mean,min,max}`, each (H_kv, D) f32. K is taken after its norm and RoPE; neither K nor V
//! is rotated. The metadata names the format, the model and the texts.

use super::layout::LayerKv;
use crate::files::{safetensors_header, write_atomically};
use crate::hash;
use crate::results::CorpusFile;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The version of the format, which includes what the numbers mean.
const FORMAT: &str = "kvgate calibration 1: K after RoPE, not rotated";

/// What the file holds for each side of a layer.
const QUANTITIES: [&str; 3] = ["mean", "min", "max"];

/// Ranges and means of each layer, and the model and texts that they come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// SHA-256 of the model's weights.
    pub weights_sha256: String,
    /// The texts.
    pub corpus: Vec<CorpusFile>,
    /// How many tokens were read.
    pub tokens: usize,
    /// K and V of each layer that owns a cache.
    pub layers: BTreeMap<usize, [Ranges; 2]>,
}

/// Ranges and means of K or V of one layer over all tokens, (H_kv, D) each.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranges {
    /// Arithmetic means.
    pub mean: Arc<[f32]>,
    /// Smallest values.
    pub min: Arc<[f32]>,
    /// Largest values.
    pub max: Arc<[f32]>,
}

/// Why a calibration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// The file cannot be read or written.
    #[error("cannot use the calibration {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file was not written by `kvgate calibrate`, or by another version of it.
    #[error("{} is no calibration that this kvgate can read: {why}; make it anew by `kvgate calibrate`", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The calibration was made for other weights.
    #[error("{} was made from weights with SHA-256 {found}, these have {expected}; calibrate this model", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// SHA-256 of the weights that are measured.
        expected: String,
        /// SHA-256 that the file names.
        found: String,
    },
    /// The calibration was made from a text that is measured.
    #[error("{} was made from the text that is measured (`{category}`): a scheme fitted to its examination passes it; calibrate on another text", path.display())]
    SameCorpus {
        /// The file.
        path: PathBuf,
        /// The text's name.
        category: String,
    },
}

impl Ranges {
    /// One scale for each head: its own, or that of the layer. Divided by it, the largest magnitude becomes `largest`. If a mean is
    /// subtracted first, the magnitude is what remains.
    pub(super) fn scales(
        &self,
        by_head: bool,
        largest: f32,
        mean: Option<&[f32]>,
        kv: &LayerKv,
    ) -> Arc<[f32]> {
        let magnitude = |i: usize| {
            let mean = mean.map_or(0.0, |mean| mean[i]);
            (self.max[i] - mean).abs().max((self.min[i] - mean).abs())
        };
        let of_head = |head: usize| {
            let elements = head * kv.head_dim..(head + 1) * kv.head_dim;
            elements.map(magnitude).fold(0.0f32, f32::max)
        };
        let heads: Vec<f32> = (0..kv.heads).map(of_head).collect();
        let all = heads.iter().copied().fold(0.0f32, f32::max);
        let fitted = |head: f32| if by_head { head / largest } else { all / largest };
        // a head that was always zero needs no scale
        heads.into_iter().map(fitted).map(|s| if s > 0.0 { s } else { 1.0 }).collect()
    }
}

impl Calibration {
    /// The ranges of a layer's K and V. `None` if the calibration has none of its shape.
    pub(super) fn ranges_of(&self, layer: usize, kv: &LayerKv) -> Option<&[Ranges; 2]> {
        self.layers.get(&layer).filter(|sides| sides.iter().all(|r| r.mean.len() == kv.width()))
    }

    /// A calibration of the right shape with zeros in it. It is enough to compute what a scheme costs.
    pub(crate) fn placeholder(layout: &[Option<LayerKv>]) -> Self {
        let ranges = |kv: &LayerKv| {
            let zero: Arc<[f32]> = vec![0.0; kv.width()].into();
            Ranges { mean: zero.clone(), min: zero.clone(), max: zero }
        };
        let owners = layout.iter().enumerate().filter_map(|(i, kv)| Some((i, kv.as_ref()?)));
        Calibration {
            weights_sha256: String::new(),
            corpus: Vec::new(),
            tokens: 0,
            layers: owners.map(|(i, kv)| (i, [ranges(kv), ranges(kv)])).collect(),
        }
    }

    /// Reads the calibration for a measurement of these weights on these texts.
    ///
    /// # Errors
    /// If the file is not a calibration, was made for other weights, or was made from one of the texts.
    pub fn read(
        path: &Path,
        weights_sha256: &str,
        corpus: &[CorpusFile],
    ) -> Result<Self, CalibrationError> {
        let io = |source| CalibrationError::Io { path: path.into(), source };
        let bytes = std::fs::read(path).map_err(io)?;
        let calibration = Self::from_bytes(&bytes)
            .map_err(|why| CalibrationError::Format { path: path.into(), why })?;
        if calibration.weights_sha256 != weights_sha256 {
            return Err(CalibrationError::Model {
                path: path.into(),
                expected: weights_sha256.into(),
                found: calibration.weights_sha256,
            });
        }
        let same = |file: &&CorpusFile| calibration.corpus.iter().any(|c| c.sha256 == file.sha256);
        match corpus.iter().find(same) {
            None => Ok(calibration),
            Some(file) => {
                let category = file.category.clone();
                Err(CalibrationError::SameCorpus { path: path.into(), category })
            }
        }
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        safetensors_header::check(bytes)?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let value = |key: &str| metadata.get(key).ok_or(format!("it has no `{key}`"));
        if value("format")? != FORMAT {
            return Err(format!("its format is `{}`, not `{FORMAT}`", value("format")?));
        }
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
        let layers = layer_indices(&tensors)?.into_iter();
        let layers =
            layers.map(|i| Ok((i, [read_side(&tensors, i, "k")?, read_side(&tensors, i, "v")?])));
        let corpus: Vec<CorpusFile> =
            serde_json::from_str(value("corpus")?).map_err(|e| e.to_string())?;
        // without the texts it could not be ruled out that it was made from what is measured
        if corpus.is_empty() || !corpus.iter().all(|file| hash::is_sha256(&file.sha256)) {
            return Err(
                "it does not name its texts by their SHA-256 in 64 lower-case hexadecimal digits"
                    .into(),
            );
        }
        let tokens = value("tokens")?.parse().map_err(|_| "`tokens` is no number")?;
        if tokens == 0 {
            return Err("it was made from 0 tokens".into());
        }
        Ok(Calibration {
            weights_sha256: value("weights_sha256")?.clone(),
            corpus,
            tokens,
            layers: layers.collect::<Result<_, String>>()?,
        })
    }

    /// Writes a file that [`read`](Calibration::read) reads. The file is written whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), CalibrationError> {
        let io = |source| CalibrationError::Io { path: path.into(), source };
        let bytes = self.to_bytes();
        write_atomically(path, |file| file.write_all(&bytes)).map_err(io)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut data = Vec::new();
        for (layer, [k, v]) in &self.layers {
            for (side, ranges) in [("k", k), ("v", v)] {
                let numbers = [&ranges.mean, &ranges.min, &ranges.max];
                for (quantity, x) in QUANTITIES.into_iter().zip(numbers) {
                    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
                    data.push((format!("{layer}.{side}.{quantity}"), bytes));
                }
            }
        }
        let views = data.iter().map(|(name, bytes)| {
            let shape = vec![bytes.len() / size_of::<f32>()];
            (name, TensorView::new(Dtype::F32, shape, bytes).expect("bytes of this shape"))
        });
        let corpus = serde_json::to_string(&self.corpus).expect("names and hashes are JSON");
        let metadata = HashMap::from([
            ("format".to_string(), FORMAT.to_string()),
            ("weights_sha256".to_string(), self.weights_sha256.clone()),
            ("corpus".to_string(), corpus),
            ("tokens".to_string(), self.tokens.to_string()),
        ]);
        safetensors::serialize(views, Some(metadata)).expect("names are distinct")
    }
}

/// The layers whose tensors the file has. Any tensor of another name is an error.
fn layer_indices(tensors: &SafeTensors) -> Result<BTreeSet<usize>, String> {
    let mut layers = BTreeSet::new();
    for name in tensors.names() {
        let index = name.split('.').next().and_then(|index| index.parse::<usize>().ok());
        let is_one = |index: usize| {
            let sides = ["k", "v"].iter();
            let mut names = sides
                .flat_map(|side| QUANTITIES.map(|quantity| format!("{index}.{side}.{quantity}")));
            names.any(|own| own == *name)
        };
        match index.filter(|&index| is_one(index)) {
            Some(index) => layers.insert(index),
            None => return Err(format!("`{name}` is no mean and no range of a layer's K or V")),
        };
    }
    Ok(layers)
}

/// Reads one side of a layer. Numbers that no text can have given are an error.
fn read_side(tensors: &SafeTensors, index: usize, side: &str) -> Result<Ranges, String> {
    let [mean, min, max] =
        QUANTITIES.map(|quantity| floats(tensors, &format!("{index}.{side}.{quantity}")));
    let (mean, min, max) = (mean?, min?, max?);
    if mean.len() != min.len() || min.len() != max.len() {
        return Err(format!("layer {index} has {side} of several shapes"));
    }
    let channels = 0..mean.len();
    if let Some(i) = channels.clone().find(|&i| min[i] > max[i]) {
        return Err(format!(
            "channel {i} of layer {index}'s {side} has a minimum over its maximum"
        ));
    }
    if let Some(i) = channels.clone().find(|&i| !(min[i]..=max[i]).contains(&mean[i])) {
        return Err(format!(
            "channel {i} of layer {index}'s {side} has a mean outside of its range"
        ));
    }
    if channels.clone().all(|i| min[i] == 0.0 && max[i] == 0.0) {
        return Err(format!(
            "layer {index}'s {side} is zero in every channel, which no text gives"
        ));
    }
    Ok(Ranges { mean, min, max })
}

fn floats(tensors: &SafeTensors, name: &str) -> Result<Arc<[f32]>, String> {
    let tensor = tensors.tensor(name).map_err(|e| e.to_string())?;
    if tensor.dtype() != Dtype::F32 {
        return Err(format!("`{name}` is not f32"));
    }
    let (values, _) = tensor.data().as_chunks::<4>();
    let values: Arc<[f32]> = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
    if values.iter().all(|v| v.is_finite()) {
        Ok(values)
    } else {
        Err(format!("`{name}` is not finite"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calibration() -> Calibration {
        let ranges = |mean: f32| Ranges {
            mean: [mean, 0.0, 1.0, 2.0].into(),
            min: [-6.0, -1.0, 0.0, 1.0].into(),
            max: [2.0, 1.0, 4.0, 3.0].into(),
        };
        Calibration {
            weights_sha256: "aa".into(),
            corpus: vec![CorpusFile { category: "prose".into(), sha256: "bb".repeat(32) }],
            tokens: 64,
            layers: BTreeMap::from([(3, [ranges(-2.0), ranges(0.0)])]),
        }
    }

    #[test]
    fn a_file_comes_back_as_it_was_and_only_for_its_model_and_other_texts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calibration.safetensors");
        calibration().write(&path).unwrap();
        let text = |hash: &str| [CorpusFile { category: "code".into(), sha256: hash.repeat(32) }];
        assert_eq!(Calibration::read(&path, "aa", &text("cc")).unwrap(), calibration());
        let error = |weights, corpus| {
            Calibration::read(&path, weights, &text(corpus)).unwrap_err().to_string()
        };
        assert!(error("ab", "cc").contains("calibrate this model"));
        assert!(error("aa", "bb").contains("made from the text that is measured (`code`)"));
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 7, 100, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(error("aa", "cc").contains("is no calibration"), "{cut}");
        }
    }

    /// Files that were edited by hand. Until somebody accepts their hash, nothing else refuses them.
    #[test]
    fn what_no_text_gives_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calibration.safetensors");
        let error = |edit: &dyn Fn(&mut Calibration)| {
            let mut calibration = calibration();
            edit(&mut calibration);
            calibration.write(&path).unwrap();
            Calibration::read(&path, "aa", &[]).unwrap_err().to_string()
        };
        assert!(error(&|c| c.corpus.clear()).contains("does not name its texts"));
        assert!(error(&|c| c.corpus[0].sha256 = "none".into()).contains("does not name its texts"));
        let sides = |c: &mut Calibration, edit: &dyn Fn(&mut Ranges)| {
            edit(&mut c.layers.get_mut(&3).unwrap()[1]);
        };
        let swapped = error(&|c| sides(c, &|r| std::mem::swap(&mut r.min, &mut r.max)));
        assert!(swapped.contains("layer 3's v has a minimum over its maximum"), "{swapped}");
        let moved = error(&|c| sides(c, &|r| r.mean = [9.0, 0.0, 1.0, 2.0].into()));
        assert!(moved.contains("channel 0 of layer 3's v has a mean outside"), "{moved}");
        let nothing: Arc<[f32]> = [0.0; 4].into();
        let zero = Ranges { mean: nothing.clone(), min: nothing.clone(), max: nothing };
        let zero = error(&|c| sides(c, &|r| *r = zero.clone()));
        assert!(zero.contains("zero in every channel"), "{zero}");
        for no_number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let wrong = error(&|c| sides(c, &|r| r.max = [no_number, 1.0, 4.0, 3.0].into()));
            assert!(wrong.contains("`3.v.max` is not finite"), "{wrong}");
        }
        let fewer = error(&|c| sides(c, &|r| r.max = [2.0, 1.0].into()));
        assert!(fewer.contains("v of several shapes"), "{fewer}");
        assert!(error(&|c| c.tokens = 0).contains("from 0 tokens"));
    }

    /// A hash in capital letters names the same text and must not pass for another one.
    #[test]
    fn a_text_in_another_spelling_of_its_hash_is_the_same_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calibration.safetensors");
        let mut edited = calibration();
        edited.corpus[0].sha256 = "BB".repeat(32);
        edited.write(&path).unwrap();
        let measured = CorpusFile { category: "prose".into(), sha256: "bb".repeat(32) };
        let error = Calibration::read(&path, "aa", &[measured]).unwrap_err().to_string();
        assert!(error.contains("64 lower-case hexadecimal digits"), "{error}");
    }

    /// No layer reads these tensors; some names only look as if one did.
    #[test]
    fn what_is_no_layers_is_refused() {
        let bytes = [0u8; 4];
        for name in ["3.q.mean", "3.k", "+3.k.mean", "3.k.mean.more", "x"] {
            let view = TensorView::new(Dtype::F32, vec![1], &bytes).unwrap();
            let tensors = safetensors::serialize([(name, view)], None).unwrap();
            let error = layer_indices(&SafeTensors::deserialize(&tensors).unwrap()).unwrap_err();
            assert!(error.contains(&format!("`{name}` is no mean")), "{error}");
        }
    }

    #[test]
    fn scales_bring_the_largest_magnitude_to_the_formats_largest_number() {
        let kv = LayerKv { heads: 2, head_dim: 2, ..LayerKv::default() };
        let [k, _] = &calibration().layers[&3];
        let scales = |by_head, mean: Option<&[f32]>| k.scales(by_head, 2.0, mean, &kv).to_vec();
        assert_eq!(scales(false, None), [3.0, 3.0]);
        assert_eq!(scales(true, None), [3.0, 2.0]);
        assert_eq!(scales(true, Some(&k.mean)), [2.0, 1.5]);
    }
}
