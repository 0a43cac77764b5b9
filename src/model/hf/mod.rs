//! Checkpoints as transformers saves them: a folder with `config.json` and `model.safetensors`, or
//! several such files and an index.

mod cache_scales;
mod convention;
pub(super) mod files;
mod folder;
pub(super) mod json;
mod quantized;
mod refused;

use super::config::{Config, Fact, Format};
use super::family::{self, Names};
use super::tensors::{gathered, Joined, Origin, Tensors};
use super::ModelError;
use crate::compute::device::HOST;
use crate::files::safetensors_header;
use crate::source::pinned::{CONFIG, INDEX, TOKENIZER};
use cache_scales::CacheScales;
use candle_core::{DType, Device, Tensor};
use convention::Convention;
use folder::Weights;
use memmap2::Mmap;
use quantized::{Part, Quantized, Raw};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The name of the embedding after the prefix.
const EMBEDDING: &str = "embed_tokens.weight";
/// A tensor that every text model has, after the same prefix.
const FIRST_NORM: &str = "layers.0.input_layernorm.weight";
/// The member of a multimodal model's configuration that describes its text model.
const TEXT: &str = "text_config";
const TEXT_PREFIX: &str = "text_config.";

/// Whether the head is the embedding.
const TIED: &str = "tie_word_embeddings";

/// An open checkpoint folder whose headers have been read.
pub(crate) struct HfCheckpoint {
    folder: PathBuf,
    /// The whole config.json.
    whole: Value,
    /// The member of it that describes the text model.
    text: Value,
    architecture: String,
    names: Names,
    /// Defaults for keys that the configuration leaves out.
    defaults: Value,
    /// The program in whose convention the tensors are named and laid out.
    convention: Convention,
    /// What the names of the text model's tensors begin with, such as `model.`.
    prefix: &'static str,
    /// The name of the head, whether the files have it or not.
    head: &'static str,
    shards: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Stored>,
    /// Biases that change nothing. A family that has none there leaves them unread.
    zero_biases: BTreeSet<String>,
    /// Scales of K's and V's cache that the files have, by layer.
    cache_scales: CacheScales,
    /// Notes for people about how the checkpoint was read.
    notes: Vec<String>,
}

/// A tensor in a file.
#[derive(Clone)]
struct Located {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// A tensor as the decoder knows it.
enum Stored {
    Plain(Located),
    /// Computed from several tensors when it is read.
    Quantized(Quantized),
}

impl Stored {
    fn shape(&self) -> &[usize] {
        match self {
            Stored::Plain(located) => &located.shape,
            Stored::Quantized(quantized) => &quantized.shape,
        }
    }

    /// What the files hold of it.
    fn parts(&self) -> &[Located] {
        match self {
            Stored::Plain(located) => std::slice::from_ref(located),
            Stored::Quantized(quantized) => quantized.parts(),
        }
    }
}

impl HfCheckpoint {
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let (whole, text) = configuration(folder)?;
        let quantization = quantized::described(folder, &whole, &text)?;
        let notes = refused::check(folder, &whole)?.into_iter().collect();
        let architecture = match (text.get("model_type"), whole.get("model_type")) {
            (Some(Value::String(name)), _) | (None, Some(Value::String(name))) => name.clone(),
            _ => {
                return Err(ModelError::malformed(&folder.join(CONFIG), "it names no model_type"));
            }
        };
        let (names, defaults) = family::hf(folder, &architecture)?;
        let defaults = serde_json::from_str(defaults).expect("defaults in the source are JSON");
        let mut checkpoint = HfCheckpoint {
            folder: folder.into(),
            whole,
            text,
            architecture,
            names,
            defaults,
            convention: Convention::Transformers,
            prefix: "",
            head: "",
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            zero_biases: BTreeSet::new(),
            cache_scales: BTreeMap::new(),
            notes,
        };
        let weights = Weights::present(folder)?;
        checkpoint.add_all(&weights)?;
        checkpoint.check_index(&weights)?;
        if let Some(quantization) = quantization {
            let notes = quantization.claim(&mut checkpoint.raw())?;
            checkpoint.notes.extend(notes);
        }
        checkpoint.settle_order();
        let own = checkpoint.tensors.keys().filter(|name| !names.not_the_text_model(name));
        (checkpoint.prefix, checkpoint.head) = convention::prefix_and_head(folder, own)?;
        let layers = format!("{}{}", checkpoint.prefix, names.layer);
        checkpoint.cache_scales = cache_scales::take(&mut checkpoint.raw(), &layers)?;
        checkpoint.notes.extend(cache_scales::note(&checkpoint.cache_scales));
        checkpoint.check_tensors()?;
        checkpoint.notes.extend(weights.leftover(folder));
        checkpoint.notes.extend(checkpoint.untied());
        checkpoint.embed_by_head();
        Ok(checkpoint)
    }

    /// Maps the files and determines their convention.
    fn add_all(&mut self, weights: &Weights) -> Result<(), ModelError> {
        let mut known: Option<(Convention, &PathBuf)> = None;
        for path in &weights.files {
            let convention = self.add(path)?;
            match known {
                Some((other, first)) if other != convention => {
                    let (this, other) = (convention.possessive(), other.possessive());
                    let first = first.display();
                    let message = format!(
                        "it is in {this} convention by its metadata, and {first} in {other}: files of two checkpoints \
                         were mixed"
                    );
                    return Err(ModelError::refused(path, message));
                }
                _ => known = known.or(Some((convention, path))),
            }
        }
        if let Some((Convention::Mlx, _)) = known {
            let norms = if self.names.mlx.plain_norms { ", norms as 1 + w" } else { "" };
            let note = format!("the weights are read in MLX's convention (`format: mlx`{norms})");
            self.notes.push(note);
            self.names = self.names.converted_by_mlx();
            self.convention = Convention::Mlx;
        }
        Ok(())
    }

    /// Maps a file and records its tensors. Returns the convention that it is written in.
    fn add(&mut self, path: &Path) -> Result<Convention, ModelError> {
        let bytes = crate::files::map(path).map_err(|error| files::io(path, error))?;
        safetensors_header::check(&bytes)
            .map_err(|message| ModelError::malformed(path, message))?;
        // deserializing reads only the header, and checks that every tensor lies within the file
        let sound = |e: safetensors::SafeTensorError| ModelError::malformed(path, e.to_string());
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(sound)?;
        let format = metadata.metadata().as_ref().and_then(|members| members.get("format"));
        let convention = Convention::from_metadata(path, format.map(String::as_str))?;
        refused::check_metadata(
            path,
            metadata.metadata().iter().flat_map(|members| members.keys()),
        )?;
        let parsed = SafeTensors::deserialize(&bytes).map_err(sound)?;
        for (name, info) in parsed.tensors() {
            let start = info.data().as_ptr() as usize - bytes.as_ptr() as usize;
            let located = Located {
                shard: self.shards.len(),
                dtype: info.dtype(),
                shape: info.shape().to_vec(),
                bytes: start..start + info.data().len(),
            };
            if self.tensors.insert(name.clone(), Stored::Plain(located)).is_some() {
                return Err(ModelError::malformed(
                    path,
                    format!("tensor `{name}` is in another file, too"),
                ));
            }
        }
        self.shards.push((path.into(), bytes));
        Ok(convention)
    }

    /// Settles in which order experts are stored, where files of a family differ. As in transformers, the shapes tell.
    /// With those of both matrices of an expert no case is left in which they do not.
    fn settle_order(&mut self) {
        let in_order = |(name, stored): (&String, &Stored)| {
            let down = name.strip_suffix("gate_up_proj").map(|stem| format!("{stem}down_proj"));
            let down = down.and_then(|down| self.tensors.get(&down));
            match (stored.shape(), down.map(Stored::shape)) {
                ([_, both, inputs], Some([_, outputs, width])) => {
                    inputs == outputs && *both == width.saturating_mul(2)
                }
                _ => false,
            }
        };
        if self.names.either_order && self.tensors.iter().any(in_order) {
            self.names = self.names.in_order();
        }
    }

    /// Refuses files whose tensors are in other files than the index says.
    fn check_index(&self, weights: &Weights) -> Result<(), ModelError> {
        let files = self.tensors.iter().flat_map(|(name, stored)| {
            stored.parts().iter().map(move |at| (name, &*self.shards[at.shard].0))
        });
        weights.check_index(&self.folder, files, |name| !self.names.not_the_text_model(name))
    }

    /// The tensors as the files hold them.
    fn raw<'a>(&'a mut self) -> Raw<'a> {
        Raw {
            folder: &self.folder,
            tensors: &mut self.tensors,
            shards: &self.shards,
            names: self.names,
            count: 0,
            zero_biases: &mut self.zero_biases,
        }
    }

    /// Refuses tensors of the text model that are no weights.
    fn check_tensors(&self) -> Result<(), ModelError> {
        let own = self.tensors.iter().filter(|(name, _)| !self.names.not_the_text_model(name));
        let plain = own.clone().filter_map(|(name, stored)| match stored {
            Stored::Plain(located) => Some((name, located)),
            Stored::Quantized(_) => None,
        });
        refused::check_names(&self.folder, plain.clone().map(|(name, _)| name))?;
        for (name, located) in plain {
            self.dtype(name, located)?;
        }
        self.convention.check(&self.folder, own.map(|(name, stored)| (name, stored.shape())))
    }

    /// A note if the configuration ties the head to the embedding, but the files have a head with other numbers.
    /// Programs differ in which of the two they use.
    fn untied(&self) -> Option<String> {
        let tied = self.lookup(TIED) == Some(Fact::Bool(true));
        let embedding = self.tensors.get(&self.full(EMBEDDING)).filter(|_| tied)?;
        let head = self.tensors.get(self.head)?;
        let same = self.parts(head) == self.parts(embedding);
        (!same).then(|| {
            format!(
                "{TIED} holds by config.json or its class's default, and `{}` differs from the embedding: it is read as the head, as \
                 transformers does",
                self.head
            )
        })
    }

    /// Uses the head as the embedding if they are tied and the files hold the one tensor under the head's name, as
    /// safetensors' `save_model` may write it.
    fn embed_by_head(&mut self) {
        let embedding = self.full(EMBEDDING);
        if self.lookup(TIED) != Some(Fact::Bool(true)) || self.tensors.contains_key(&embedding) {
            return;
        }
        let Some(head) = self.tensors.remove(self.head) else { return };
        self.tensors.insert(embedding, head);
        self.notes.push(format!(
            "the files have no `{EMBEDDING}`, and {TIED} holds: `{}` is read as the embedding, too, as transformers does",
            self.head
        ));
    }

    /// Notes for people about how the checkpoint was read, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The scales of K's and V's cache that layers have in the files. A V without a scale has that of K, as in vLLM.
    pub fn cache_scales(&self) -> impl Iterator<Item = (usize, [f32; 2])> + use<'_> {
        self.cache_scales.iter().map(|(layer, (k, v))| (*layer, [*k, v.unwrap_or(*k)]))
    }

    /// The configuration and the files that hold weights, in order.
    pub fn files(&self) -> Vec<PathBuf> {
        let config = self.folder.join(CONFIG);
        std::iter::once(config).chain(self.shards.iter().map(|(path, _)| path.clone())).collect()
    }

    /// The files that a folder's checkpoint consists of, whether they exist or not.
    pub fn files_in(folder: &Path) -> Vec<PathBuf> {
        let weights = Weights::named(folder).map_or_else(|_| vec![folder.join(INDEX)], |w| w.files);
        [CONFIG, TOKENIZER].iter().map(|name| folder.join(name)).chain(weights).collect()
    }

    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Storage types of the tensors with their counts.
    pub fn dtypes(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for stored in self.tensors.values() {
            let label = match stored {
                Stored::Plain(located) => format!("{:?}", located.dtype),
                Stored::Quantized(quantized) => quantized.label.clone(),
            };
            *counts.entry(label).or_insert(0) += 1;
        }
        counts
    }

    fn stored(&self, own: &str) -> Result<&Stored, ModelError> {
        self.tensors.get(own).ok_or_else(|| ModelError::missing_tensor(&self.folder, own))
    }

    fn part<'a>(&'a self, at: &'a Located) -> Part<'a> {
        let bytes = &self.shards[at.shard].1[at.bytes.clone()];
        Part { dtype: at.dtype, shape: &at.shape, bytes }
    }

    fn parts<'a>(&'a self, stored: &'a Stored) -> Vec<Part<'a>> {
        stored.parts().iter().map(|at| self.part(at)).collect()
    }

    /// The type of a tensor. F64 is not accepted, because it would be rounded.
    fn dtype(&self, own: &str, located: &Located) -> Result<DType, ModelError> {
        match located.dtype {
            Dtype::F32 => Ok(DType::F32),
            Dtype::F16 => Ok(DType::F16),
            Dtype::BF16 => Ok(DType::BF16),
            other => Err(ModelError::WeightType {
                path: self.shards[located.shard].0.clone(),
                tensor: own.into(),
                found: format!("{other:?}"),
                known: "F32, F16, BF16".into(),
            }),
        }
    }

    /// A name with the text model's prefix. The head has none, because it is not inside the text model.
    fn full(&self, own: &str) -> String {
        match own {
            "lm_head.weight" => self.head.into(),
            _ => format!("{}{own}", self.prefix),
        }
    }

    /// The objects that may hold a key, each with its prefix in full names. transformers builds the text model from
    /// its own object alone. Only whether the head is tied is decided by the whole model.
    fn speakers(&self, key: &str) -> Vec<(&Value, &'static str)> {
        match (self.nested(), key) {
            (false, _) => vec![(&self.whole, "")],
            (true, TIED) => vec![(&self.whole, ""), (&self.text, TEXT_PREFIX)],
            (true, _) => vec![(&self.text, TEXT_PREFIX), (&self.whole, "")],
        }
    }

    /// The object that counts for a key: the file's, or else the family's defaults. Objects are not merged, so
    /// whichever has the first member of the key's path counts for the whole path.
    fn place(&self, key: &str) -> Option<&Value> {
        let first = key.split('.').next()?;
        let (speaker, _) = *self.speakers(key).first()?;
        [speaker, &self.defaults].into_iter().find(|v| v.get(first).is_some())
    }

    /// Whether the text model has an object of its own.
    fn nested(&self) -> bool {
        self.whole.get(TEXT).is_some()
    }

    /// The file's name of a tensor of the decoder.
    fn full_origin(&self, name: &str) -> String {
        self.full(&self.names.own(name).unwrap_or_else(|| name.into()))
    }

    /// The tensors of the experts' gate and up projections, which MLX's converter stores separately.
    fn projections(&self, name: &str) -> Option<Vec<String>> {
        let (block, end) = name.rsplit_once("ffn_gate_up_exps.")?;
        let parts = ["gate", "up"].map(|part| format!("{block}ffn_{part}_exps.{end}"));
        (self.convention == Convention::Mlx)
            .then(|| parts.map(|part| self.full_origin(&part)).into())
    }

    /// The tensors of the single experts, if the files have those instead of one for all experts.
    fn experts(&self, own: &str) -> Option<Vec<String>> {
        let (all, end) = match own.strip_suffix("_bias") {
            Some(all) => (all, "bias"),
            None => (own, "weight"),
        };
        let (stem, parts): (_, &[&str]) = match all.strip_suffix("gate_up_proj") {
            Some(stem) => (stem, &["gate_proj", "up_proj"]),
            None => (all.strip_suffix("down_proj")?, &["down_proj"]),
        };
        if self.tensors.contains_key(own) {
            return None;
        }
        // older versions of llm-compressor kept gpt-oss's experts in a list of that name
        ["", "experts."].into_iter().find_map(|list| {
            let name = |e: usize, part: &str| format!("{stem}{list}{e}.{part}.{end}");
            let has = |e: &usize| self.tensors.contains_key(&name(*e, parts[0]));
            let count = (0..).take_while(has).count();
            let names = (0..count).flat_map(|e| parts.iter().map(move |part| name(e, part)));
            (count > 0).then(|| names.collect())
        })
    }

    /// The names by which a tensor is read. Whatever the order of a family's stacks of experts, the matrix of a single
    /// expert is (out, in), gate and up apart.
    fn names_of(&self, own: &str) -> Names {
        if self.experts(own).is_some() {
            self.names.in_order()
        } else {
            self.names
        }
    }
}

/// The whole config.json, and the object in it that describes the text model.
fn configuration(folder: &Path) -> Result<(Value, Value), ModelError> {
    let path = folder.join(CONFIG);
    let Some(bytes) = files::optional(&path)? else { return Err(folder::without_config(folder)) };
    let whole = json::object(&path, &bytes)?;
    let text = match whole.get(TEXT) {
        None | Some(Value::Null) => whole.clone(),
        Some(text @ Value::Object(_)) => text.clone(),
        Some(_) => {
            return Err(ModelError::bad_key(&path, TEXT, "must be an object"));
        }
    };
    Ok((whole, text))
}

fn walk<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(value, |value, member| value.get(member))
}

/// Lists all members that are not objects, by their paths.
fn flatten(path: &str, value: &Value, into: &mut Vec<(String, Option<Fact>)>) {
    match value {
        Value::Null => into.push((path.into(), None)),
        Value::Object(members) => {
            let dot = if path.is_empty() { "" } else { "." };
            for (name, member) in members {
                flatten(&format!("{path}{dot}{name}"), member, into);
            }
        }
        _ => into.push((path.into(), Some(fact(value)))),
    }
}

fn fact(value: &Value) -> Fact {
    match value {
        Value::Bool(flag) => Fact::Bool(*flag),
        Value::Number(n) => match n.as_i128() {
            Some(n) => Fact::Integer(n),
            None => Fact::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Fact::Text(text.clone()),
        Value::Array(list) => Fact::List(list.iter().map(fact).collect()),
        Value::Null | Value::Object(_) => Fact::Other,
    }
}

impl Config for HfCheckpoint {
    fn path(&self) -> &Path {
        &self.folder
    }

    fn format(&self) -> Format {
        Format::Hf
    }

    fn architecture(&self) -> &str {
        &self.architecture
    }

    fn lookup(&self, key: &str) -> Option<Fact> {
        // a null means no value, and no other object is asked
        let found = self.place(key).and_then(|place| walk(place, key))?;
        (!found.is_null()).then(|| fact(found))
    }

    fn full_name(&self, key: &str) -> String {
        let prefix = if self.nested() && key != TIED { TEXT_PREFIX } else { "" };
        format!("{prefix}{key}")
    }

    fn entries(&self) -> Vec<(String, Option<Fact>)> {
        let mut entries = Vec::new();
        flatten("", &self.whole, &mut entries);
        entries
    }

    fn places(&self, key: &str) -> Vec<(String, Option<Fact>)> {
        let said = |(speaker, prefix): (&Value, &str)| {
            let found = walk(speaker, key)?;
            Some((format!("{prefix}{key}"), (!found.is_null()).then(|| fact(found))))
        };
        let places: Vec<_> = self.speakers(key).into_iter().map(said).collect();
        // a key that stands only beside the text model's object is not about the text model
        match &places[..] {
            [None, Some(_)] => Vec::new(),
            _ => places.into_iter().flatten().collect(),
        }
    }
}

impl Tensors for HfCheckpoint {
    fn origin(&self, name: &str) -> Origin {
        let full = self.full_origin(name);
        let transform = self.names_of(&full).transform(name);
        if let Some(projections) = self.projections(name) {
            return Origin { parts: projections, joined: Joined::Along(1), transform };
        }
        match self.experts(&full) {
            Some(parts) => Origin { parts, joined: Joined::ByEntry, transform },
            None => Origin { transform, ..Origin::one(full) },
        }
    }

    fn stored_shape(&self, name: &str, part: Vec<usize>) -> Vec<usize> {
        self.names_of(&self.full_origin(name)).stored(name, part)
    }

    fn shape(&self, own: &str) -> Option<Vec<usize>> {
        self.tensors.get(own).map(|stored| stored.shape().to_vec())
    }

    fn names(&self) -> Vec<String> {
        let counts = |name: &&String| {
            !self.names.not_the_text_model(name) && !self.zero_biases.contains(*name)
        };
        self.tensors.keys().filter(counts).cloned().collect()
    }

    fn read(&self, own: &str, _: &Device) -> Result<Tensor, ModelError> {
        let stored = self.stored(own)?;
        match stored {
            Stored::Plain(located) => {
                let (dtype, part) = (self.dtype(own, located)?, self.part(located));
                Ok(Tensor::from_raw_buffer(part.bytes, dtype, part.shape, &HOST)?)
            }
            Stored::Quantized(quantized) => Ok(quantized.read(&self.parts(stored))?),
        }
    }

    fn rows(&self, own: &str, ids: &[u32]) -> Result<Tensor, ModelError> {
        let stored = self.stored(own)?;
        match stored {
            Stored::Plain(located) => {
                let (dtype, part) = (self.dtype(own, located)?, self.part(located));
                let width = part.shape.last().copied().unwrap_or(1);
                let rows = gathered(part.bytes, width * dtype.size_in_bytes(), ids)?;
                let rows = Tensor::from_raw_buffer(&rows, dtype, &[ids.len(), width], &HOST)?;
                Ok(rows.to_dtype(DType::F32)?)
            }
            Stored::Quantized(quantized) => Ok(quantized.some_rows(&self.parts(stored), ids)?),
        }
    }
}
