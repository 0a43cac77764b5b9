//! The options of commands whose MODEL is one of the policy or any other: what no option says, the policy does.

use super::shared::{is_of_hub, name, Reading, Stop, USAGE};
use crate::policy::{ModelPolicy, Policy, DEFAULT_PATH};
use crate::source::Source;
use crate::text::suggest::did_you_mean;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(super) struct Chosen {
    /// The model: one of the policy by its name, a GGUF file, a folder with config.json and safetensors files, or a
    /// checkpoint of the Hugging Face hub: hf:ORG/NAME@COMMIT, or hf:ORG/NAME@COMMIT/FILE.gguf
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The policy to look the model up in; without such a file, MODEL is a path
    #[arg(long, default_value = DEFAULT_PATH, value_name = "FILE")]
    pub config: PathBuf,
    /// Text to measure on; if there are several files, chunks are taken from them in turn [default: the policy's]
    #[arg(long, value_delimiter = ',', value_name = "FILE")]
    pub corpus: Vec<PathBuf>,
    /// How many chunks to measure [default: the policy's, or 8]
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,
    #[command(flatten)]
    reading: Reading,
}

/// A model, after the policy was asked for whatever no option says.
pub(super) struct Subject {
    pub name: String,
    pub source: Source,
    pub corpus: Vec<PathBuf>,
    pub chunks: usize,
    /// What the policy says of the model, if it is one of the policy.
    pub model: Option<ModelPolicy>,
}

impl Chosen {
    pub fn subject(&self) -> Result<Subject, Stop> {
        let mut models = self.policy()?.map_or_else(Vec::new, |policy| policy.models);
        let is_named = |own: &ModelPolicy| Some(own.name.as_str()) == self.model.to_str();
        let model = match models.iter().position(is_named) {
            Some(own) => Some(models.swap_remove(own)),
            None => {
                self.check_path(&models)?;
                None
            }
        };
        let corpus = if self.corpus.is_empty() {
            model.as_ref().map(|model| model.corpus.clone()).ok_or_else(|| {
                let message =
                    "--corpus is needed: MODEL is none of the policy's models, which have texts";
                Stop::new(USAGE, message)
            })?
        } else {
            self.corpus.clone()
        };
        let source = match &model {
            Some(_) if self.reading.is_given() => {
                let message = "the policy says how its models are read: give the model's path instead of its name, or leave \
                               --tokenizer, --bos, --ignore-key and --untrained out";
                return Err(Stop::new(USAGE, message));
            }
            Some(model) => model.source.clone(),
            None => self.reading.source(&self.model)?,
        };
        Ok(Subject {
            name: model.as_ref().map_or_else(|| name(&source), |model| model.name.clone()),
            source,
            corpus,
            chunks: self.chunks.or(model.as_ref().map(|model| model.chunks)).unwrap_or(8),
            model,
        })
    }

    /// Refuses a MODEL that is neither one of the policy's models nor a checkpoint.
    fn check_path(&self, models: &[ModelPolicy]) -> Result<(), Stop> {
        if is_of_hub(&self.model) || self.model.exists() {
            return Ok(());
        }
        let (model, policy) = (self.model.display(), self.config.display());
        let names = || models.iter().map(|model| model.name.as_str());
        let among = match names().collect::<Vec<_>>()[..] {
            [] => format!("and there is no policy {policy} with models"),
            ref all => {
                let meant = did_you_mean(&self.model.to_string_lossy(), names());
                format!("and no model of {policy}{meant}, which has {}", all.join(", "))
            }
        };
        Err(Stop::new(USAGE, format!("MODEL `{model}` is no file or folder, {among}")))
    }

    /// The policy, if there is one. One that was named must be there.
    fn policy(&self) -> Result<Option<Policy>, Stop> {
        if !self.config.exists() && self.config == Path::new(DEFAULT_PATH) {
            return Ok(None);
        }
        let loaded = Policy::load(&self.config);
        loaded.map(|(policy, _)| Some(policy)).map_err(|error| Stop::new(USAGE, error.to_string()))
    }
}
