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
    use crate::golden::{compare, engine, Golden, GoldenVerdict};
    use crate::testing::fixture;
    use std::process::Command;

    const STEM: &str = "gemma-3-270m__q4_0";

    fn accepted(root: &Path, edit: impl FnOnce(&mut Golden)) -> PathBuf {
        let results = fixture::results();
        let measurement = &results.measurements[0];
        let mut golden = Golden::of(measurement, &measurement.schemes[1]).unwrap();
        edit(&mut golden);
        let file = super::super::path(root, STEM);
        write_atomically(&file, |w| w.write_all(golden.snapshot().as_bytes())).unwrap();
        file
    }

    /// Not a test of its own: insta reads its environment once in a process, so each mode gets a
    /// process, which runs this and prints the verdict.
    #[test]
    #[ignore = "run by the tests below, in a process of its own"]
    fn child() {
        let Some(root) = env::var_os("KVGATE_TEST_ROOT").map(PathBuf::from) else { return };
        prepare_insta(&root);
        let results = match env::var("KVGATE_TEST_BUILD") {
            Ok(build) => of_llama_cpp(&build),
            Err(_) => fixture::results(),
        };
        let measurement = &results.measurements[0];
        let scheme = &measurement.schemes[1];
        let cell = CellName::new(&measurement.model, &scheme.scheme);
        let review = Review { root: &root, cell: &cell, by: engine(measurement) };
        let file = path_by(&root, review.by, &review.stem());
        let golden = match Golden::read(&file) {
            Ok(golden) => golden,
            Err(error) => {
                review.note_not_compared();
                return println!("verdict=Error\n{error}");
            }
        };
        let new = Golden::of(measurement, scheme).unwrap();
        let comparison = compare(golden.as_ref(), &new);
        let compared = Compared { new, comparison, generated: None, is_text_accepted: true };
        let is_pending = review.offer(&compared);
        let GoldenVerdict { verdict, mut message, .. } = compared.verdict();
        if !compared.is_pass() {
            let results = Path::new("kvgate-results/results.json");
            message += &review.how_to_accept(results, is_pending);
        }
        println!("verdict={verdict:?}\n{message}");
    }

    /// Output of a process that checks the fixture's `q4_0` against the golden under `root`.
    fn checked(root: &Path, vars: &[(&str, &str)]) -> String {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "golden::review::tests::child", "--ignored", "--nocapture"]);
        for name in ["CI", "TF_BUILD", "INSTA_UPDATE", "INSTA_FORCE_PASS", "INSTA_PENDING_DIR"] {
            command.env_remove(name);
        }
        command.env("KVGATE_TEST_ROOT", root).envs(vars.iter().copied());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr, "", "insta must be silent");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_match_passes_silently_and_clears_the_pending_file() {
        let root = tempfile::tempdir().unwrap();
        let file = accepted(root.path(), |g| g.values[0] *= 1.1);
        std::fs::write(file.with_extension("snap.new"), "old").unwrap();
        let before = std::fs::read(&file).unwrap();
        assert!(checked(root.path(), &[]).contains("verdict=Pass\n\n"));
        assert!(!file.with_extension("snap.new").exists());
        assert_eq!(std::fs::read(&file).unwrap(), before, "a passing golden does not churn");
    }

    #[test]
    fn no_mode_of_insta_turns_a_mismatch_green_or_overwrites_a_golden() {
        for vars in [
            &[("INSTA_FORCE_PASS", "1")][..],
            &[("INSTA_UPDATE", "always")],
            &[("INSTA_UPDATE", "force"), ("INSTA_FORCE_PASS", "1")],
            &[("INSTA_UPDATE", "unseen")],
            &[("INSTA_FORCE_UPDATE", "1")],
            &[("INSTA_UPDATE", "no")],
            &[("CI", "true")],
            &[("INSTA_REQUIRE_FULL_MATCH", "1")],
            &[("INSTA_FORCE_PASS", "nonsense")],
        ] {
            let root = tempfile::tempdir().unwrap();
            let file = accepted(root.path(), |g| g.values[0] *= 2.0);
            let before = std::fs::read(&file).unwrap();
            assert!(checked(root.path(), vars).contains("verdict=GoldenChanged"), "{vars:?}");
            assert_eq!(std::fs::read(&file).unwrap(), before, "{vars:?}");
        }
    }

    #[test]
    fn insta_settings_of_the_repository_do_not_either() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("insta.yaml"), "behavior:\n  update: always\n").unwrap();
        let file = accepted(root.path(), |g| g.values[0] *= 2.0);
        let before = std::fs::read(&file).unwrap();
        assert!(checked(root.path(), &[]).contains("verdict=GoldenChanged"));
        assert_eq!(std::fs::read(&file).unwrap(), before);
    }

    #[test]
    fn a_change_shows_a_table_and_waits_for_review() {
        let root = tempfile::tempdir().unwrap();
        let file = accepted(root.path(), |g| {
            g.values[0] *= 0.5;
            g.values[7] += 0.01;
        });
        let output = checked(root.path(), &[]);
        let message = "\
verdict=GoldenChanged
golden changed: 1 statistic left its tolerance
  statistic        golden      now    change  tolerance
  tokens_scored      4096     4096        +0  equal
  mean_kld        0.03060  0.06120  +100.0 %  ± 25 %     ✗
  median_kld      0.02000  0.02000       0 %  ± 25 %
  p90_kld          0.1500   0.1500       0 %  ± 35 %
  p95_kld          0.2500   0.2500       0 %  ± 35 %
  p99_kld          0.7000   0.7000       0 %  shown
  p999_kld          1.500    1.500       0 %  shown
  max_kld           2.250    2.250       0 %  shown
  top1_agreement   0.8712   0.8612   -0.0100  ± 0.04
  rms_dp          0.08100  0.08100       0 %  ± 25 %
  ppl               22.03    22.03       0 %  shown
  ppl_ratio        1.0442   1.0442       0 %  shown
  baseline_ppl      21.10    21.10       0 %  ± 0.5 %
to accept what was measured: `cargo insta review`, or `kvgate accept kvgate-results/results.json gemma-3-270m::q4_0`
";
        assert!(output.contains(message), "{output}");
        let pending = std::fs::read_to_string(file.with_extension("snap.new")).unwrap();
        let results = fixture::results();
        let measured = Golden::of(&results.measurements[0], &results.measurements[0].schemes[1]);
        assert_eq!(pending, measured.unwrap().snapshot());
    }

    #[test]
    fn no_golden_yet_is_red_and_pending_where_insta_was_told() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let folder = elsewhere.path().to_str().unwrap();
        let vars = [("INSTA_PENDING_DIR", folder), ("INSTA_UPDATE", "new"), ("CI", "true")];
        let output = checked(root.path(), &vars);
        assert!(output.contains("verdict=GoldenChanged\nno golden yet\nto accept what was"));
        let pending = elsewhere.path().join("goldens").join(format!("{STEM}.snap.new"));
        assert!(std::fs::read_to_string(pending).unwrap().starts_with("---\nsource: kvgate\n---"));
        // in CI nothing is pending, so no review is offered
        assert!(!checked(root.path(), &[("CI", "true")]).contains("cargo insta review"));
    }

    #[test]
    fn stale_shows_conditions_and_no_values() {
        let root = tempfile::tempdir().unwrap();
        let file = accepted(root.path(), |g| {
            g.conditions.context = 4096;
            g.values[0] *= 2.0;
        });
        let output = checked(root.path(), &[]);
        assert!(output.contains("verdict=Stale\nstale: "), "{output}");
        assert!(output.contains("  context: 4096 → 512\n"), "{output}");
        assert!(!output.contains("mean_kld"), "{output}");
        assert!(!file.with_extension("snap.new").exists());
    }

    #[test]
    fn another_subject_is_red_although_values_agree() {
        let root = tempfile::tempdir().unwrap();
        accepted(root.path(), |g| g.subject.weights_sha256 = "other".into());
        let output = checked(root.path(), &[]);
        assert!(output.contains("verdict=GoldenChanged\ngolden changed: values within tolerance\n"));
        assert!(output.contains("  subject changed: weights: other → a5fd3b62\n"), "{output}");
    }

    #[test]
    fn a_damaged_golden_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let file = accepted(root.path(), |_| ());
        std::fs::write(&file, "---\nsource: kvgate\n---\n<<<<<<< HEAD\n").unwrap();
        let output = checked(root.path(), &[]);
        assert!(output.contains("verdict=Error"), "{output}");
        assert!(output.contains("q4_0.snap:4: a merge left its markers here"), "{output}");
    }

    /// The fixture's `q4_0` as llama.cpp would have measured it.
    fn of_llama_cpp(build: &str) -> crate::results::Results {
        let mut results = fixture::results();
        results.measurements[0].conditions.engine = format!("llama.cpp {build}");
        results.measurements[0].conditions.corpus.clear();
        results
    }

    #[test]
    fn goldens_of_another_engine_are_apart_and_of_one_build() {
        let root = tempfile::tempdir().unwrap();
        accepted(root.path(), |_| ());
        let verdict = |results: &crate::results::Results| {
            let measurement = &results.measurements[0];
            let (new, engine) = (&measurement.schemes[1], engine(measurement));
            // insta's part is tested in processes of their own
            let file = path_by(root.path(), engine, STEM);
            let golden = Golden::read(&file).unwrap();
            (compare(golden.as_ref(), &Golden::of(measurement, new).unwrap()), file)
        };
        let (found, file) = verdict(&of_llama_cpp("b11434"));
        assert_eq!(found, Comparison::Missing, "kvgate's own golden says nothing about it");
        assert_eq!(file, root.path().join("goldens/llama.cpp/gemma-3-270m__q4_0.snap"));
        let results = of_llama_cpp("b11434");
        let golden = Golden::of(&results.measurements[0], &results.measurements[0].schemes[1]);
        write_atomically(&file, |w| w.write_all(golden.unwrap().snapshot().as_bytes())).unwrap();
        assert!(verdict(&results).0.matches());
        assert!(verdict(&fixture::results()).0.matches(), "its own is untouched");
        let comparison = verdict(&of_llama_cpp("b11500")).0;
        assert!(matches!(comparison, Comparison::Stale(_)));
        let new = Golden::of(&results.measurements[0], &results.measurements[0].schemes[1]);
        let (new, generated, is_text_accepted) = (new.unwrap(), None, true);
        let compared = Compared { new, comparison, generated, is_text_accepted };
        let message = compared.verdict().message;
        assert!(message.contains("engine: llama.cpp b11434 → llama.cpp b11500"), "{message}");
        assert!(message.contains("llama.cpp's numerics change from build to build"), "{message}");
    }

    #[test]
    fn another_engine_s_change_waits_in_its_own_folder() {
        let root = tempfile::tempdir().unwrap();
        accepted(root.path(), |_| ());
        let output = checked(root.path(), &[("KVGATE_TEST_BUILD", "b11434")]);
        assert!(output.contains("verdict=GoldenChanged\nno golden yet\n"), "{output}");
        assert!(root.path().join(format!("goldens/llama.cpp/{STEM}.snap.new")).exists());
        assert!(!root.path().join(format!("goldens/{STEM}.snap.new")).exists());
        assert!(checked(root.path(), &[]).contains("verdict=Pass"));
    }

    #[test]
    fn goldens_in_use_are_noted_whether_their_case_ran_or_not() {
        let root = tempfile::tempdir().unwrap();
        let list = root.path().join("references");
        let vars = [("INSTA_SNAPSHOT_REFERENCES_FILE", list.to_str().unwrap())];
        let file = accepted(root.path(), |_| ());
        checked(root.path(), &vars);
        accepted(root.path(), |g| g.conditions.chunks = 1);
        checked(root.path(), &vars);
        let line = format!("{}\n", file.display());
        assert_eq!(std::fs::read_to_string(&list).unwrap(), line.repeat(2));
        // a case that did not run needs its model's text as well, and does not offer it
        let text = text::text_path(root.path(), &fixture::results().measurements[0].model);
        std::fs::write(&text, text::snapshot(&fixture::generated())).unwrap();
        checked(root.path(), &vars);
        let both = format!("{}{line}{}\n", line.repeat(2), text.display());
        assert_eq!(std::fs::read_to_string(&list).unwrap(), both);
        // and what another engine measured of it is in use, too
        let other = path_by(root.path(), MeasuredBy::LlamaCpp, STEM);
        write_atomically(&other, |w| w.write_all(b"x")).unwrap();
        checked(root.path(), &vars);
        let noted = std::fs::read_to_string(&list).unwrap();
        assert!(noted.ends_with(&format!("{}\n{line}{}\n", other.display(), text.display())));
    }
}
