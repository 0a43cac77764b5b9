//! Measurements that nextest's processes share, within a run and between runs.
//!
//! nextest starts a process for each case, and a process knows only its own case. The first process of a
//! model measures all of the model's schemes under a file lock; the others wait for the lock and read the
//! result. The key of an entry holds everything that values depend on: another executable, model, text or condition
//! makes another entry. Another limit does not, except where `max_chunks` lets limits decide what is measured.
//!
//! An entry begins with a digest of its key and its content. An entry that was edited, cut short or put in
//! the place of another one is measured again. This protects against accidents and against edits by hand. It
//! does not protect against somebody who computes a new digest, as everybody can who may write into the
//! folder and run the executable. So what is stored is trusted as much as the machine is, and CI starts with
//! an empty store.

use super::GateError;
use crate::compute::Device;
use crate::files::write_atomically;
use crate::golden;
use crate::hash;
use crate::measure::prompts::PromptSet;
use crate::policy::{Cell, ModelPolicy};
use crate::results::Measurement;
use crate::source;
use crate::source::pinned::{Pinned, TOKENIZER_CONFIG};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The folder that holds the entries.
pub(crate) struct Store {
    folder: PathBuf,
    /// The policy's folder.
    root: PathBuf,
    /// Where models are computed.
    device: Device,
}

impl Store {
    pub fn new(folder: PathBuf, root: PathBuf, device: Device) -> Self {
        Store { folder, root, device }
    }

    /// Returns the stored measurement, or measures and stores it. Only one process at a time measures the same thing. A
    /// process that dies releases its lock and leaves no entry.
    pub fn get_or_measure(
        &self,
        model: &ModelPolicy,
        cells: &[&Cell],
        measure: impl FnOnce() -> Result<Measurement, GateError>,
    ) -> Result<Measurement, GateError> {
        let fail = |source: io::Error| GateError::Store { folder: self.folder.clone(), source };
        // fetched first, so that the key is of the files in the cache; what cannot be fetched is an error of
        // the measurement
        let _ = source::fetch(&model.source, &|_, _, _| {});
        let key = key(&self.root, model, cells, &self.device).map_err(fail)?;
        std::fs::create_dir_all(&self.folder).map_err(fail)?;
        let lock = File::create(self.folder.join(format!("{key}.lock"))).map_err(fail)?;
        lock.lock().map_err(fail)?;
        let entry = self.folder.join(format!("{key}.json"));
        // an entry that cannot be read, or is not as it was written, is measured again
        if let Some(stored) = read(&entry, &key) {
            return Ok(stored);
        }
        let measurement = measure()?;
        let json = serde_json::to_vec(&measurement).map_err(|e| fail(e.into()))?;
        let digest = digest(&key, &json);
        let lines = [digest.as_bytes(), b"\n", &json];
        write_atomically(&entry, |file| lines.iter().try_for_each(|line| file.write_all(line)))
            .map_err(fail)?;
        Ok(measurement)
    }
}

/// The measurement of an entry. None if the entry is not what was written under this key.
fn read(entry: &Path, key: &str) -> Option<Measurement> {
    let bytes = std::fs::read(entry).ok()?;
    let (written, json) = bytes.split_at_checked(DIGITS)?;
    let json = json.strip_prefix(b"\n")?;
    (written == digest(key, json).as_bytes()).then(|| serde_json::from_slice(json).ok())?
}

/// Length of a digest in hexadecimal digits.
const DIGITS: usize = 64;

/// The digest of a key and of the content under it.
fn digest(key: &str, json: &[u8]) -> String {
    hash::of_bytes(&[b"kvgate store 1\n", key.as_bytes(), b"\n", json].concat())
}

/// The hash of everything that values depend on.
fn key(root: &Path, model: &ModelPolicy, cells: &[&Cell], device: &Device) -> io::Result<String> {
    let mut parts = vec![hash::of_file(&std::env::current_exe()?)?, model.name.clone()];
    // a missing file becomes an error of the measurement, whose message says more
    let optional = |path: &Path| hash::of_file(path).unwrap_or_else(|_| "missing".into());
    // the commit of a checkpoint of the hub identifies its weights, even before they are fetched
    if model.source.hub.is_none() {
        parts.extend(crate::model::files(&model.source.path).iter().map(|path| optional(path)));
    }
    // small files say how a checkpoint is read; those of the hub count as well, as the cache may lack some of them
    parts.extend(companions(&model.source.path));
    let unasked = model.source.hub.iter().flat_map(Pinned::unasked);
    parts.extend(unasked.map(|file| format!("unasked {file}")));
    let beside = model.source.tokenizer.iter().map(|file| file.with_file_name(TOKENIZER_CONFIG));
    parts.extend(beside.map(|file| optional(&file)));
    parts.push(format!("{:?}", model.source));
    parts.extend(model.source.tokenizer.iter().map(|path| optional(path)));
    parts.extend(model.calibration.iter().map(|path| optional(path)));
    parts.extend(model.corpus.iter().map(|path| optional(path)));
    if let Some(prompts) = &model.generate {
        // an unreadable set becomes an error of the measurement as well
        let set = PromptSet::read(&prompts.file);
        let set = set.map_or("unreadable".into(), |set| set.sha256().to_string());
        let text = optional(&golden::text_path(root, &model.name));
        parts.push(format!("{set} {} {text}", prompts.tokens));
    }
    parts.push(format!("{} {} {}", model.context, model.chunks, model.baseline));
    parts.extend(model.retrieval.iter().map(|retrieval| format!("{:?}", retrieval.plan)));
    parts.push(device.identity());
    // which further chunks are measured depends on verdicts, and so on limits
    if let Some(most) = model.max_chunks {
        let limits = cells.iter().map(|cell| format!("{:?} {:?}", cell.expect, cell.limits));
        parts.extend(limits.chain([format!("{most} {:?}", model.confidence)]));
    }
    parts.extend(cells.iter().map(|cell| format!("{}={}", cell.label, cell.scheme)));
    Ok(hash::of_bytes(parts.join("\n").as_bytes()))
}

/// Names and hashes of a folder's small files: `config.json`, chat templates, vocabularies, descriptions of
/// quantization. Each of them may say how a checkpoint is read. The list is empty if there is no such folder.
fn companions(folder: &Path) -> Vec<String> {
    const KINDS: [&str; 4] = ["jinja", "json", "model", "txt"];
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let is_small = |path: &PathBuf| {
        let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
        KINDS.contains(&kind) && path.is_file()
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).filter(is_small).collect();
    paths.sort();
    let named = |path: &PathBuf| Some(format!("{} {}", path.display(), hash::of_file(path).ok()?));
    paths.iter().filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fixture;

    /// A store of one measurement, and how often it was measured.
    fn measured(folder: &Path) -> (Measurement, usize) {
        let store = Store::new(folder.into(), folder.into(), Device::cpu());
        let policy = fixture::policy();
        let mut times = 0;
        let found = store.get_or_measure(&policy.models[0], &[], || {
            times += 1;
            Ok(fixture::results().measurements.remove(0))
        });
        (found.unwrap(), times)
    }

    fn entry(folder: &Path) -> PathBuf {
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
        let mut entries = files.filter(|path| path.extension().is_some_and(|e| e == "json"));
        entries.next().unwrap()
    }

    /// Whatever says how a checkpoint is read, or that it must not be, makes another key.
    #[test]
    fn files_beside_the_weights_and_a_named_tokenizer_are_in_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        for name in ["model", "tokenizer"] {
            std::fs::create_dir(place(name)).unwrap();
        }
        let mut model = fixture::policy().models.remove(0);
        model.source.path = place("model");
        model.source.tokenizer = Some(place("tokenizer/tokenizer.json"));
        let mut keys = vec![key(folder.path(), &model, &[], &Device::cpu()).unwrap()];
        for name in
            ["model/adapter_config.json", "model/vocab.json", "tokenizer/tokenizer_config.json"]
        {
            std::fs::write(place(name), "{}").unwrap();
            let now = key(folder.path(), &model, &[], &Device::cpu()).unwrap();
            assert!(!keys.contains(&now), "{name}");
            keys.push(now);
        }
    }

    #[test]
    fn an_entry_that_was_edited_is_measured_again() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(measured(folder.path()).1, 1);
        assert_eq!(measured(folder.path()).1, 0, "the second process reads");
        let path = entry(folder.path());
        let sound = std::fs::read_to_string(&path).unwrap();
        let better = sound.replace("\"mean_kld\":0.0612", "\"mean_kld\":0.0012");
        assert_ne!(better, sound);
        let (digest, json) = sound.split_once('\n').unwrap();
        for edited in [&better[..], json, &sound[..sound.len() - 1], digest, "", "{}"] {
            std::fs::write(&path, edited).unwrap();
            let (found, times) = measured(folder.path());
            assert_eq!(times, 1, "{edited}");
            let said = serde_json::to_string(&found).unwrap();
            assert!(said.contains("\"mean_kld\":0.0612"), "{said}");
        }
        assert_eq!(measured(folder.path()).1, 0, "and is sound again");
    }

    /// Results of another model, or of the executable before a change.
    #[test]
    fn an_entry_is_of_its_own_key() {
        let folder = tempfile::tempdir().unwrap();
        measured(folder.path());
        let path = entry(folder.path());
        let key = path.file_stem().unwrap().to_str().unwrap();
        assert!(read(&path, key).is_some());
        assert!(read(&path, &key.replace(|c: char| c.is_ascii_digit(), "0")).is_none());
    }
}
