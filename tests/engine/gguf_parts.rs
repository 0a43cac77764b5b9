//! Models in several GGUF files, as the writer of llama.cpp's converter splits them (fixtures:
//! `scripts/oracle/gguf_parts.py`), against the whole file.

use crate::support::folder::open;
use crate::support::metadata::{Entry, Metadata};
use crate::support::root;
use kvgate::internals::hash;
use kvgate::internals::model::{Checkpoint, Geometry};
use kvgate::internals::source::Source;
use std::path::PathBuf;
use tempfile::TempDir;

const FIRST: &str = "llama-00001-of-00003.gguf";
const SECOND: &str = "llama-00002-of-00003.gguf";
const THIRD: &str = "llama-00003-of-00003.gguf";

fn stored() -> PathBuf {
    root().join("tests/fixtures/gguf-parts")
}

/// A copy of the parts.
struct Parts(TempDir);

impl Parts {
    fn new() -> Self {
        let parts = Parts(tempfile::tempdir().unwrap());
        for name in [FIRST, SECOND, THIRD] {
            std::fs::copy(stored().join(name), parts.path(name)).unwrap();
        }
        parts
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn rename(self, name: &str, to: &str) -> Self {
        std::fs::rename(self.path(name), self.path(to)).unwrap();
        self
    }

    fn edit(self, name: &str, edit: impl FnOnce(&mut Vec<Entry>)) -> Self {
        let file = Metadata::of(&std::fs::read(self.path(name)).unwrap()).edited(edit);
        std::fs::write(self.path(name), file).unwrap();
        self
    }

    /// Replaces a key, or adds it.
    fn with(self, name: &str, entry: Entry) -> Self {
        self.edit(name, |entries| {
            entries.retain(|other| other.key != entry.key);
            entries.push(entry);
        })
    }

    fn without(self, name: &str, key: &str) -> Self {
        self.edit(name, |entries| entries.retain(|entry| entry.key != key))
    }

    fn is_refused(&self, name: &str, words: &[&str]) {
        let error = open(&self.path(name)).err().unwrap_or_else(|| panic!("opened: {words:?}"));
        for word in words {
            assert!(error.contains(word), "`{word}` was not said: {error}");
        }
    }
}

#[test]
fn parts_are_the_whole_model() {
    let whole = open(&root().join("tests/fixtures/checkpoints/llama/model.gguf")).unwrap();
    let parts = open(&stored().join(FIRST)).unwrap();
    assert_eq!(format!("{:?}", parts.spec), format!("{:?}", whole.spec));
    let bits = |checkpoint: &Checkpoint, name: &str| -> Vec<u32> {
        let tensor = checkpoint.tensor(name).unwrap().flatten_all().unwrap();
        tensor.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    let layers = (0..whole.spec.layers.len()).map(|layer| format!("blk.{layer}.ffn_down.weight"));
    for name in ["token_embd.weight".into(), "output_norm.weight".into()].into_iter().chain(layers)
    {
        assert!(bits(&parts, &name) == bits(&whole, &name), "{name}");
    }
    let files = [FIRST, SECOND, THIRD].map(|name| stored().join(name));
    assert_eq!(parts.files(), files);
    let sizes: u64 = files.iter().map(|file| file.metadata().unwrap().len()).sum();
    assert_eq!(Geometry::read(&Source::at(files[0].clone())).unwrap().bytes, sizes);
}

/// What identifies the weights covers every part.
#[test]
fn another_part_is_another_model() {
    let hash = |parts: &Parts| {
        hash::of_files(open(&parts.path(FIRST)).unwrap().files()).map_err(|(path, _)| path).unwrap()
    };
    let (as_is, other) = (Parts::new(), Parts::new());
    let mut bytes = std::fs::read(other.path(THIRD)).unwrap();
    let at = bytes.len() - 100;
    bytes[at] ^= 1;
    std::fs::write(other.path(THIRD), bytes).unwrap();
    assert_ne!(hash(&as_is), hash(&other));
}

#[test]
fn a_model_whose_parts_do_not_fit_is_refused() {
    let parts = Parts::new();
    std::fs::remove_file(parts.path(SECOND)).unwrap();
    parts.is_refused(FIRST, &[SECOND, "is missing"]);
    let parts = Parts::new();
    parts.is_refused(SECOND, &["part 2 of 3", "name the first one", FIRST]);

    // a name that says something else than the header
    Parts::new().rename(FIRST, "model.gguf").is_refused("model.gguf", &["one of 3 parts", "name"]);
    let two = "llama-00001-of-00002.gguf";
    Parts::new().rename(FIRST, two).is_refused(two, &["one of 3 parts", "one of 2 parts"]);
    Parts::new()
        .without(FIRST, "split.count")
        .is_refused(FIRST, &["by its header", "a whole model"]);
    Parts::new().without(SECOND, "split.count").is_refused(FIRST, &[SECOND, "a whole model"]);
    let swapped = Parts::new().rename(SECOND, "x").rename(THIRD, SECOND).rename("x", THIRD);
    swapped.is_refused(FIRST, &[SECOND, "split.no", "must be 1", "part 2"]);
    Parts::new().without(FIRST, "split.no").is_refused(FIRST, &["split.no", "must be 0"]);

    // parts of different models
    let count = Entry::number("split.tensors.count", 21);
    Parts::new()
        .with(FIRST, count)
        .is_refused(FIRST, &[SECOND, "split.tensors.count", "is not what"]);
    let many = [FIRST, SECOND, THIRD].into_iter().fold(Parts::new(), |parts, name| {
        parts.with(name, Entry::number("split.tensors.count", 21))
    });
    many.is_refused(FIRST, &["split.tensors.count", "20, the number of tensors"]);
    let base = Entry::float("llama.rope.freq_base", 5e5);
    Parts::new().with(THIRD, base).is_refused(FIRST, &[THIRD, "llama.rope.freq_base"]);
    let parts = Parts::new().with(FIRST, Entry::number("split.count", 2));
    let second = Metadata::of(&std::fs::read(parts.path(FIRST)).unwrap());
    let second = second.edited(|entries| {
        entries.retain(|entry| entry.key != "split.no");
        entries.push(Entry::number("split.no", 1));
    });
    std::fs::write(parts.path("llama-00002-of-00002.gguf"), second).unwrap();
    parts.rename(FIRST, two).is_refused(two, &["stands in another part, too"]);
}
