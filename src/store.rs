//! Results shared between the processes that nextest starts, and between its runs.
//!
//! nextest starts a process for each case, and a process knows only its own. The first one of a model
//! measures all of its schemes under a lock; the others wait for it and read what it found. A key
//! holds everything that values depend on, and never a limit: another executable, model, text or
//! condition is another entry.

use crate::files::write_atomically;
use crate::golden;
use crate::hash;
use crate::measure::prompts::PromptSet;
use crate::policy::{Cell, ModelPolicy};
use crate::results::Measurement;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A folder of measurements.
pub(crate) struct Store {
    folder: PathBuf,
    /// The policy's folder.
    root: PathBuf,
}

impl Store {
    pub fn new(folder: PathBuf, root: PathBuf) -> Self {
        Store { folder, root }
    }

    /// The stored measurement, or what `measure` gives, which is stored. Only one process at a time
    /// measures the same thing; one that dies releases its lock and leaves no entry.
    pub fn get_or_measure(
        &self,
        model: &ModelPolicy,
        cells: &[&Cell],
        measure: impl FnOnce() -> Result<Measurement, String>,
    ) -> Result<Measurement, String> {
        let fail = |error: io::Error| {
            format!("cannot share results through {}: {error}", self.folder.display())
        };
        let key = key(&self.root, model, cells).map_err(fail)?;
        std::fs::create_dir_all(&self.folder).map_err(fail)?;
        let lock = File::create(self.folder.join(format!("{key}.lock"))).map_err(fail)?;
        lock.lock().map_err(fail)?;
        let entry = self.folder.join(format!("{key}.json"));
        // an entry that cannot be read is measured again
        if let Some(stored) = read(&entry) {
            return Ok(stored);
        }
        let measurement = measure()?;
        let json = serde_json::to_vec(&measurement).map_err(|e| fail(e.into()))?;
        write_atomically(&entry, |file| file.write_all(&json)).map_err(fail)?;
        Ok(measurement)
    }
}

fn read(entry: &Path) -> Option<Measurement> {
    serde_json::from_slice(&std::fs::read(entry).ok()?).ok()
}

/// The hash of all that values depend on.
fn key(root: &Path, model: &ModelPolicy, cells: &[&Cell]) -> io::Result<String> {
    let mut parts = vec![hash::of_file(&std::env::current_exe()?)?, model.name.clone()];
    // a file that is missing is an error of the measurement, which says more
    let optional = |path: &Path| hash::of_file(path).unwrap_or_else(|_| "missing".into());
    // a commit of the hub says what the weights are, before they are fetched as well
    if model.source.hub.is_none() {
        parts.extend(crate::model::files(&model.source.path).iter().map(|path| optional(path)));
        // what a model is asked, and where its texts end
        let of_chat = ["chat_template.jinja", "tokenizer_config.json", "generation_config.json"];
        parts.extend(of_chat.iter().map(|file| optional(&model.source.path.join(file))));
    }
    parts.push(format!("{:?}", model.source));
    parts.extend(model.source.tokenizer.iter().map(|path| optional(path)));
    parts.extend(model.calibration.iter().map(|path| optional(path)));
    parts.extend(model.corpus.iter().map(|path| optional(path)));
    if let Some(prompts) = &model.generate {
        // a set that cannot be read is an error of the measurement, too
        let set = PromptSet::read(&prompts.file);
        let set = set.map_or("unreadable".into(), |set| set.sha256().to_string());
        let text = optional(&golden::text_path(root, &model.name));
        parts.push(format!("{set} {} {text}", prompts.tokens));
    }
    parts.push(format!("{} {} {}", model.context, model.chunks, model.baseline));
    parts.extend(cells.iter().map(|cell| format!("{}={}", cell.label, cell.scheme)));
    Ok(hash::of_bytes(parts.join("\n").as_bytes()))
}
