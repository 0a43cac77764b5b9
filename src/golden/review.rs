//! insta's part in goldens: `cargo insta review` shows what changed. Verdicts are kvgate's own comparison and never
//! depend on insta's settings.

use super::{folder, path_by, text, Compared, Comparison, HEADER};
use crate::files::write_atomically;
use crate::results::case::CellName;
use crate::results::measured_by::MeasuredBy;
use crate::text::command;
use crate::text::out;
use std::cell::Cell as Flag;
use std::env;
use std::io::Write;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};

thread_local! {
    /// Set while insta asserts. Its panic only says that the snapshot differs, so the panic hook must stay silent.
    static ASSERTING: Flag<bool> = const { Flag::new(false) };
}

/// Prepares insta for use by this library. Call it once, with the policy's folder, before the first thread starts.
///
/// Otherwise insta would ask cargo for its workspace in every process and print diffs between the lines of the
/// test harness. Under `INSTA_UPDATE=always` or a setting in `insta.yaml` it would also overwrite goldens in place, so
/// that a retry would be green. Prepared like this, insta writes pending files or nothing.
pub fn prepare_insta(root: &Path) {
    env::set_var("INSTA_WORKSPACE_ROOT", absolute(root));
    env::set_var("INSTA_OUTPUT", "none");
    env::remove_var("INSTA_FORCE_UPDATE");
    env::remove_var("INSTA_FORCE_UPDATE_SNAPSHOTS");
    let update = match env::var("INSTA_UPDATE").as_deref() {
        Ok("no") => "no",
        Err(_) | Ok("" | "auto") => "auto",
        Ok(_) => "new",
    };
    env::set_var("INSTA_UPDATE", update);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !ASSERTING.get() {
            hook(info);
        }
    }));
}

/// Offers the golden of one cell to insta for review, and tells it which goldens are in use.
#[derive(Debug, Clone, Copy)]
pub struct Review<'a> {
    /// The policy's folder.
    pub root: &'a Path,
    pub cell: &'a CellName,
    /// Whose engine measured: it decides in which folder the golden lies.
    pub by: MeasuredBy,
}

impl Review<'_> {
    /// Leaves what was measured as a pending snapshot where it differs from the golden, and clears an old pending
    /// snapshot away where it does not. Returns whether the change of the golden can be reviewed now.
    ///
    /// A stale golden is not offered: its diff would mix the new conditions with values that cannot be compared.
    pub fn offer(self, compared: &Compared) -> bool {
        self.note_goldens_of_other_engines();
        let is_reviewable = !matches!(compared.comparison, Comparison::Stale(_));
        if is_reviewable {
            let matches = compared.comparison.matches();
            offer_to_insta(self.root, self.by, &self.stem(), matches, &compared.new.to_string());
        } else {
            self.note_own_golden();
        }
        if let Some(generated) = compared.generated {
            let stem = text::text_stem(&self.cell.model);
            let content = text::Shown(generated).to_string();
            let matches = compared.is_text_accepted;
            offer_to_insta(self.root, MeasuredBy::Kvgate, &stem, matches, &content);
        }
        is_reviewable && pending(self.root, self.by, &self.stem()).exists()
    }

    /// Tells `cargo insta test --unreferenced` that the cell's golden is in use although nothing was compared with
    /// it. Otherwise insta would delete the goldens of cases that did not run.
    pub fn note_not_compared(self) {
        self.note_goldens_of_other_engines();
        self.note_own_golden();
    }

    /// How a person accepts what was measured. `results` is the file that the run will leave, and `is_pending` says
    /// whether `cargo insta review` has something to show.
    pub fn how_to_accept(self, results: &Path, is_pending: bool) -> String {
        let review = if is_pending { "`cargo insta review`, or " } else { "" };
        // a path from the current folder is the shortest that can be typed
        let here = env::current_dir().unwrap_or_default();
        let results = results.strip_prefix(here).unwrap_or(results).to_string_lossy();
        let accept = command::accept(&results, &[&self.cell.to_string()], None);
        format!("to accept what was measured: {review}`{accept}`")
    }

    fn stem(self) -> String {
        self.cell.file_stem()
    }

    fn note_own_golden(self) {
        let root = absolute(self.root);
        let text = Some(text::text_path(&root, &self.cell.model)).filter(|text| text.exists());
        note_as_referenced(std::iter::once(path_by(&root, self.by, &self.stem())).chain(text));
    }

    /// Goldens that other engines made of the same cell are in use, whichever engine runs now.
    fn note_goldens_of_other_engines(self) {
        let others = MeasuredBy::ALL.into_iter().filter(|engine| *engine != self.by);
        let files = others.map(|engine| path_by(&absolute(self.root), engine, &self.stem()));
        note_as_referenced(files.filter(|file| file.exists()));
    }
}

/// Hands kvgate's own decision to insta, which would otherwise compare the texts.
#[derive(Clone, Copy)]
struct Decided {
    matches: bool,
}

impl insta::Comparator for Decided {
    fn matches(&self, _: &insta::Snapshot, _: &insta::Snapshot) -> bool {
        self.matches
    }

    fn dyn_clone(&self) -> Box<dyn insta::Comparator> {
        Box::new(*self)
    }
}

/// Lets insta note the golden as referenced and write, or clear away, its pending snapshot.
fn offer_to_insta(root: &Path, by: MeasuredBy, stem: &str, matches: bool, new: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(folder(&absolute(root), by));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_comparator(Box::new(Decided { matches }));
    ASSERTING.set(true);
    let asserted = catch_unwind(AssertUnwindSafe(|| {
        settings.bind(|| insta::assert_snapshot!(stem, new));
    }));
    ASSERTING.set(false);
    // insta panics where the snapshot differs, which the comparison has said already
    drop(asserted);
    // insta's header names the source file of this library, which is a path of one machine. A golden that is accepted
    // from here must be the same file as one that `kvgate accept` writes.
    let pending = pending(root, by, stem);
    if pending.exists() {
        // an error is ignored: the verdict does not depend on the pending file
        let _ = write_atomically(&pending, |w| w.write_all(format!("{HEADER}{new}").as_bytes()));
    }
}

/// The file in which insta leaves a snapshot for review.
pub(crate) fn pending(root: &Path, by: MeasuredBy, stem: &str) -> PathBuf {
    let root = match env::var_os("INSTA_PENDING_DIR") {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder),
        _ => root.into(),
    };
    path_by(&root, by, stem).with_extension("snap.new")
}

/// Adds files to insta's list of referenced snapshots, if insta keeps one.
fn note_as_referenced(files: impl Iterator<Item = PathBuf>) {
    let Some(list) = env::var_os("INSTA_SNAPSHOT_REFERENCES_FILE") else { return };
    let lines: String = files.map(|file| format!("{}\n", file.display())).collect();
    let noted = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&list)
        .and_then(|mut file| file.write_all(lines.as_bytes()));
    if let Err(error) = noted {
        out::eprint(format!("warning: {}: {error}", Path::new(&list).display()));
    }
}

/// insta joins relative paths to the folder of the asserting source file.
fn absolute(root: &Path) -> PathBuf {
    let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
    std::path::absolute(root).unwrap_or_else(|_| root.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{compare, engine, Golden};
    use crate::results::Results;
    use crate::testing::{child, fixture, ROOT};

    const STEM: &str = "gemma-3-270m__q4_0";

    /// The fixture's `q4_0` as llama.cpp would have measured it.
    fn of_llama_cpp(build: &str) -> Results {
        let mut results = fixture::sound();
        results.measurements[0].conditions.engine = format!("llama.cpp {build}");
        results.measurements[0].conditions.corpus.clear();
        results
    }

    fn golden(results: &Results) -> Golden {
        Golden::of(&results.measurements[0], &results.measurements[0].schemes[1]).unwrap()
    }

    /// These results beside a golden of which only the comparison matters.
    fn compared(results: &Results, comparison: Comparison) -> Compared<'static> {
        let new = golden(results);
        Compared { new, accepted: None, comparison, generated: None, is_text_accepted: true }
    }

    #[test]
    fn goldens_of_another_engine_are_apart_and_of_one_build() {
        let root = tempfile::tempdir().unwrap();
        let accept = |file: &Path, results: &Results| {
            write_atomically(file, |w| w.write_all(golden(results).snapshot().as_bytes())).unwrap();
        };
        accept(&path_by(root.path(), MeasuredBy::Kvgate, STEM), &fixture::sound());
        let verdict = |results: &Results| {
            let file = path_by(root.path(), engine(&results.measurements[0]), STEM);
            (compare(Golden::read(&file).unwrap().as_ref(), &golden(results)), file)
        };
        let (found, file) = verdict(&of_llama_cpp("b11434"));
        assert_eq!(found, Comparison::Missing, "kvgate's own golden says nothing about it");
        assert_eq!(file, root.path().join("goldens/llama.cpp/gemma-3-270m__q4_0.snap"));
        let results = of_llama_cpp("b11434");
        accept(&file, &results);
        assert!(verdict(&results).0.matches());
        assert!(verdict(&fixture::sound()).0.matches(), "its own is untouched");
        let comparison = verdict(&of_llama_cpp("b11500")).0;
        assert!(matches!(comparison, Comparison::Stale(_)));
        let compared = compared(&results, comparison);
        let message = compared.verdict().message;
        assert!(message.contains("engine: llama.cpp b11434 → llama.cpp b11500"), "{message}");
        assert!(message.contains("llama.cpp's numerics change from build to build"), "{message}");
    }

    /// Not a test of its own: the test below runs it in a process of its own.
    #[test]
    #[ignore = "run by the test below, in a process of its own"]
    fn offers() {
        let Some(root) = env::var_os(ROOT).map(PathBuf::from) else { return };
        prepare_insta(&root);
        let compared = compared(&of_llama_cpp("b11434"), Comparison::Missing);
        let cell = CellName::new("gemma-3-270m", "q4_0");
        let review = Review { root: &root, cell: &cell, by: MeasuredBy::LlamaCpp };
        assert!(review.offer(&compared));
    }

    #[test]
    fn another_engine_s_change_waits_in_its_own_folder() {
        let root = tempfile::tempdir().unwrap();
        let output = child("golden::review::tests::offers", root.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(root.path().join(format!("goldens/llama.cpp/{STEM}.snap.new")).exists());
        assert!(!root.path().join(format!("goldens/{STEM}.snap.new")).exists());
    }
}
