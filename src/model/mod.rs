//! Models: a checkpoint on disk becomes a tokenizer and one [`Decoder`].
//!
//! Family files map a checkpoint's configuration to the decoder's [`Spec`]; no family
//! has a forward pass of its own.

pub mod chat;
mod config;
pub mod decoder;
pub mod error;
mod experts;
mod family;
mod gguf;
mod hf;
pub(crate) mod layer;
pub mod spec;
mod tensors;
pub mod tokenizer;

pub use error::ModelError;

use crate::compute::Device;
use crate::files::gguf_parts;
use crate::source::pinned::{Pinned, GENERATION_CONFIG};
use crate::source::Source;
use chat::ChatTemplate;
use config::Config;
use decoder::{Decoder, Residency};
use gguf::Gguf;
use hf::HfCheckpoint;
use spec::{Kv, Mixer, Spec};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tensors::Tensors;
use tokenizer::{Tokenizer, Vocabulary};

/// A checkpoint that is open. Its configuration and its tokenizer have been read, and its tensors are known to be
/// there in the right shapes. The weights themselves have not been read yet.
pub struct Checkpoint {
    tensors: Arc<dyn Tensors>,
    path: PathBuf,
    files: Vec<PathBuf>,
    tokenizer_file: Option<PathBuf>,
    bytes: u64,
    dtypes: Vec<(String, usize)>,
    /// The facts from which the decoder is built.
    pub spec: Spec,
    /// The checkpoint's own tokenizer, or the one that the policy names.
    pub tokenizer: Tokenizer,
    /// How a conversation becomes text. Base models have no chat template.
    pub template: Option<ChatTemplate>,
    /// Whether `template` is certain. It is not if the checkpoint lies in the hub's cache and nobody could ask the
    /// hub whether the commit has a template that was not fetched.
    pub is_template_known: bool,
    /// Tokens at which generation stops, in rising order.
    pub end_tokens: Vec<u32>,
    /// What people should know about how the checkpoint was read. Each note is a whole sentence.
    pub notes: Vec<String>,
    /// The part of these notes on which measured values depend. A measurement records it in [`Conditions::reading`].
    ///
    /// [`Conditions::reading`]: crate::results::Conditions::reading
    pub reading: Vec<String>,
}

/// What is known of a checkpoint without its tokenizer.
pub struct Geometry {
    pub spec: Spec,
    /// Size of the weights in bytes.
    pub bytes: u64,
    /// Storage types of the tensors with their counts.
    pub dtypes: Vec<(String, usize)>,
    /// What people should know about how the checkpoint was read.
    pub notes: Vec<String>,
}

impl Geometry {
    /// Reads a checkpoint whose tokenizer cannot be used.
    ///
    /// # Errors
    /// As of [`Checkpoint::open`], without those about tokenizers and chat templates.
    pub fn read(source: &Source) -> Result<Self, ModelError> {
        let Source { path, ignore_keys, .. } = source;
        if path.is_dir() {
            let folder = HfCheckpoint::open(path)?;
            let (mut spec, notes) = family::read(&folder, ignore_keys)?;
            take_cache_scales(&mut spec, &folder)?;
            let notes = [folder.notes().to_vec(), notes].concat();
            let dtypes = folder.dtypes().into_iter().collect();
            return Ok(Geometry { spec, bytes: folder.bytes(), dtypes, notes });
        }
        let file = Gguf::open(path)?;
        let (spec, notes) = family::read(&file, ignore_keys)?;
        let dtypes = file.dtypes().into_iter().collect();
        Ok(Geometry { spec, bytes: file.bytes(), dtypes, notes })
    }
}

/// The files that the checkpoint at `path` consists of, whether they exist or not.
pub(crate) fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() {
        HfCheckpoint::files_in(path)
    } else {
        gguf_parts::files(path)
    }
}

/// Puts warnings before other notes, because whoever shows only a few notes shows the first ones.
pub(crate) fn warnings_first(notes: &mut [String]) {
    notes.sort_by_key(|note| !note.starts_with("warning"));
}

/// Records the scales of the cache that a folder has for the layers of its model.
///
/// # Errors
/// If they are of a layer that stores no K and V.
fn take_cache_scales(spec: &mut Spec, folder: &HfCheckpoint) -> Result<(), ModelError> {
    for (index, scales) in folder.cache_scales() {
        match spec.layers.get_mut(index).map(|layer| &mut layer.mixer) {
            Some(Mixer::Attention(attention)) if !matches!(attention.kv, Kv::Shared { .. }) => {
                attention.cache_scales = Some(scales);
            }
            _ => {
                let message = format!(
                    "scales for the cache of layer {index}, which the model does not have,"
                );
                return Err((folder as &dyn Config).unsupported(message));
            }
        }
    }
    Ok(())
}

impl Checkpoint {
    /// Whether the weights are bf16 or f16, which has no more bits than f16. What is stored beside them as f32 are norms
    /// and biases.
    pub fn has_short_weights(&self) -> bool {
        let is = |dtype: &str, names: &[&str]| names.iter().any(|n| dtype.eq_ignore_ascii_case(n));
        let mut dtypes = self.dtypes.iter().map(|(dtype, _)| dtype.as_str());
        dtypes.clone().any(|dtype| is(dtype, &["bf16", "f16"]))
            && dtypes.all(|dtype| is(dtype, &["bf16", "f16", "f32"]))
    }

    /// Opens a GGUF file, or a folder with `config.json`, safetensors and `tokenizer.json`.
    ///
    /// # Errors
    /// If a file is missing, truncated, or of an unknown architecture or tokenizer; if a tensor is missing
    /// or has another shape; or if there are tensors that the architecture does not have.
    pub fn open(source: &Source) -> Result<Self, ModelError> {
        let path = &source.path;
        let missing =
            |path: &Path| ModelError::Missing { path: path.into(), fetch: source.fetch.clone() };
        if !path.exists() {
            return Err(missing(path));
        }
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("safetensors" | "json")) {
            let message = "it is a part of a checkpoint: name its folder";
            return Err(ModelError::malformed(path, message));
        }
        if path.is_dir() {
            Self::open_folder(source)
        } else {
            Self::open_gguf(source).map_err(|error| match error {
                ModelError::Missing { path: part, .. } => missing(&part),
                other => other,
            })
        }
    }

    fn open_gguf(source: &Source) -> Result<Self, ModelError> {
        let file = Gguf::open(&source.path)?;
        let (spec, notes) = family::read(&file, &source.ignore_keys)?;
        decoder::check(&spec, &file)?;
        let vocabulary = Vocabulary::read(&file, source.tokenizer.is_some())?;
        let opened = tokenizer::of_gguf(&file, &vocabulary, &spec, source)?;
        let mut checkpoint = Checkpoint {
            path: source.path.clone(),
            files: file.files(),
            bytes: file.bytes(),
            dtypes: file.dtypes().into_iter().collect(),
            tokenizer: opened.tokenizer,
            tokenizer_file: opened.file,
            template: ChatTemplate::from_gguf(&file, &vocabulary)?,
            is_template_known: true,
            end_tokens: vocabulary.end_tokens.iter().copied().collect(),
            notes: [notes, opened.notes].concat(),
            reading: [source.reading(), opened.reading].concat(),
            tensors: Arc::new(file),
            spec,
        };
        checkpoint.remark_on_template();
        warnings_first(&mut checkpoint.notes);
        Ok(checkpoint)
    }

    fn open_folder(source: &Source) -> Result<Self, ModelError> {
        let path = &source.path;
        let folder = HfCheckpoint::open(path)?;
        let (mut spec, notes) = family::read(&folder, &source.ignore_keys)?;
        take_cache_scales(&mut spec, &folder)?;
        decoder::check(&spec, &folder)?;
        let opened = tokenizer::of_folder(path, &spec, source)?;
        let template = ChatTemplate::from_folder(path)?;
        let unasked = source.hub.as_ref().map(Pinned::unasked).unwrap_or_default();
        let mut checkpoint = Checkpoint {
            path: path.clone(),
            files: folder.files(),
            bytes: folder.bytes(),
            dtypes: folder.dtypes().into_iter().collect(),
            end_tokens: chat::end_tokens_of_folder(path, template.as_ref(), &opened.tokenizer)?,
            tokenizer: opened.tokenizer,
            tokenizer_file: opened.file,
            is_template_known: !unasked.iter().any(|file| *file != GENERATION_CONFIG),
            template,
            notes: [folder.notes().to_vec(), notes, opened.notes].concat(),
            reading: [source.reading(), opened.reading].concat(),
            tensors: Arc::new(folder),
            spec,
        };
        if !unasked.is_empty() {
            checkpoint.notes.push(format!(
                "warning: chat template, BOS and ends of answers are decided without {}: the hub's cache does not \
                 tell whether this commit has it, and nobody could ask the hub",
                unasked.join(", ")
            ));
        }
        checkpoint.remark_on_template();
        warnings_first(&mut checkpoint.notes);
        Ok(checkpoint)
    }

    /// Adds a note if the tokenizer does not know marks that the chat template writes: prompts would then not look as
    /// the model was trained to read them.
    fn remark_on_template(&mut self) {
        let unread = self.template.as_ref().map(|template| template.unread_marks(&self.tokenizer));
        self.notes.extend(unread.flatten());
    }

    /// A tensor by its name in the files, as f32: dequantized if it is quantized, and not yet transformed.
    ///
    /// # Errors
    /// If the files have no such tensor.
    pub fn tensor(&self, own: &str) -> Result<candle_core::Tensor, ModelError> {
        Ok(self
            .tensors
            .read(own, &crate::compute::device::HOST)?
            .to_dtype(candle_core::DType::F32)?)
    }

    /// The part that has nothing to do with the tokenizer, with all notes.
    pub fn into_geometry(self) -> Geometry {
        let Checkpoint { spec, bytes, dtypes, notes, .. } = self;
        Geometry { spec, bytes, dtypes, notes }
    }

    /// The weights file or its first part, or the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that hold configuration and weights.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The file with the tokenizer, unless the weights file holds it.
    pub fn tokenizer_file(&self) -> Option<&Path> {
        self.tokenizer_file.as_deref()
    }

    /// Reads the weights, widened to f32, to compute on the CPU. If weights are streamed, only those outside of the
    /// layers are read now.
    ///
    /// # Errors
    /// If a weight is not finite. The error names the tensor.
    pub fn load(&self, residency: Residency) -> Result<Decoder, ModelError> {
        self.load_on(&Device::cpu(), residency)
    }

    /// Does the same for any device.
    ///
    /// # Errors
    /// As of [`Checkpoint::load`], and if the device has no memory for the weights.
    pub fn load_on(&self, device: &Device, residency: Residency) -> Result<Decoder, ModelError> {
        Decoder::load(&self.spec, self.tensors.clone(), device, residency)
    }
}
