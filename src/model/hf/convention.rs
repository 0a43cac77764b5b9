//! Determines in which program's convention safetensors are named and laid out.

use super::{EMBEDDING, FIRST_NORM};
use crate::model::ModelError;
use std::path::Path;

/// The program that wrote the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Convention {
    /// transformers, which writes `format: pt` or no metadata.
    Transformers,
    /// MLX's converters mlx-lm and mlx-vlm, which write `format: mlx`.
    Mlx,
}

impl Convention {
    /// The convention that a file's metadata names.
    pub fn from_metadata(path: &Path, format: Option<&str>) -> Result<Self, ModelError> {
        let mend = "save the model again with transformers' `save_pretrained`";
        let refused = |message: String| ModelError::refused(path, message);
        match format {
            None | Some("pt") => Ok(Convention::Transformers),
            Some("mlx") => Ok(Convention::Mlx),
            Some(format @ ("tf" | "flax" | "jax")) => Err(refused(format!(
                "its metadata says `format: {format}`: weights of TensorFlow or Flax are laid out otherwise than \
                 PyTorch's; {mend}"
            ))),
            Some(format) => Err(refused(format!(
                "its metadata says `format: {format}`, a convention that this version of kvgate does not know (known: \
                 pt, mlx); {mend}"
            ))),
        }
    }

    /// The name as it stands before the word "convention".
    pub fn possessive(self) -> &'static str {
        match self {
            Convention::Transformers => "transformers'",
            Convention::Mlx => "MLX's",
        }
    }

    /// Refuses tensors that look as MLX's converter writes them if the file does not say `format: mlx`, because then
    /// nothing says whether norms are stored around zero.
    pub fn check<'n>(
        self,
        folder: &Path,
        tensors: impl Iterator<Item = (&'n String, &'n [usize])>,
    ) -> Result<(), ModelError> {
        let is_mlx = |name: &str, shape: &[usize]| {
            name.contains(".switch_mlp.")
                || name.contains(".switch_glu.")
                // gpt-oss: transformers has gate and up in one tensor
                || name.ends_with(".experts.gate_proj.weight")
                || name.ends_with("linear_attn.conv1d.weight")
                    && matches!(shape, [_, kernel, 1] if *kernel != 1)
        };
        let mut tensors = tensors;
        match tensors.find(|(name, shape)| self != Convention::Mlx && is_mlx(name, shape)) {
            None => Ok(()),
            Some((name, shape)) => Err(ModelError::refused(
                folder,
                format!(
                    "tensor `{name}` {shape:?} is named or laid out as MLX's converter does, and the files' metadata \
                     does not say `format: mlx`: whether norms are stored as 1 + w cannot be told; convert the \
                     original again"
                ),
            )),
        }
    }
}

/// Prefixes of the text model's tensors. The sources are transformers 5.24 (`conversion_mapping.py` and the classes'
/// `base_model_prefix`), released files, and mlx-lm 0.32 (`sanitize` of its models).
const PREFIXES: [&str; 5] = [
    // the classes for causal language models
    "model.",
    // classes with towers, as transformers writes them since 4.52
    "model.language_model.",
    // the same before that, such as Gemma 3; and MLX
    "language_model.model.",
    // the model without its head: of a text class, and of a class with towers
    "",
    "language_model.",
];

/// Names of the head. It stands beside the model, or, in older files with towers and in MLX's, inside the text model.
const HEADS: [&str; 2] = ["lm_head.weight", "language_model.lm_head.weight"];

/// The prefix of the text model's tensors, and the name of its head.
pub(super) fn prefix_and_head<'n>(
    folder: &Path,
    names: impl Iterator<Item = &'n String> + Clone,
) -> Result<(&'static str, &'static str), ModelError> {
    let has = |wanted: &str| names.clone().any(|name| name == wanted);
    let refused = |message: String| ModelError::refused(folder, message);
    let only = |places: Vec<(&'static str, String)>| {
        match &places[..] {
        [(_, one), (_, two), ..] => Err(refused(format!(
            "it has both `{one}` and `{two}`: two text models in one checkpoint, and nothing says which is meant"
        ))),
        places => Ok(places.first().map(|(place, _)| *place)),
    }
    };
    let embeddings = PREFIXES.iter().map(|prefix| (*prefix, format!("{prefix}{EMBEDDING}")));
    let prefix = only(embeddings.filter(|(_, name)| has(name)).collect())?;
    let heads = HEADS.iter().map(|head| (*head, (*head).to_owned()));
    let head = only(heads.filter(|(_, name)| has(name)).collect())?.unwrap_or(HEADS[0]);
    match (prefix, names.clone().find(|name| name.ends_with(EMBEDDING))) {
        (Some(prefix), _) => Ok((prefix, head)),
        // the head may serve as the embedding; if there is none, a later check reports the embedding as missing
        (None, None) => {
            let is_there = |prefix: &&str| has(&format!("{prefix}{FIRST_NORM}"));
            Ok((PREFIXES.into_iter().find(is_there).unwrap_or(PREFIXES[0]), head))
        }
        (None, Some(other)) => Err(refused(format!(
            "its embedding is called `{other}`, with a beginning that neither transformers nor MLX writes (known: {}); \
             save the model again with transformers' `save_pretrained`",
            PREFIXES.map(|prefix| format!("`{prefix}{EMBEDDING}`")).join(", ")
        ))),
    }
}
