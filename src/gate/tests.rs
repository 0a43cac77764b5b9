use super::*;
use crate::files::write_atomically;
use crate::golden::{ChunkMeans, Golden};
use crate::testing::{child, fixture, ROOT};
use std::env;
use std::io::Write;

const STEM: &str = "gemma-3-270m__q4_0";

/// The variables that tell a process what it judges.
const EDIT: &str = "KVGATE_TEST_EDIT";
const KIND: &str = "KVGATE_TEST_KIND";

/// The name of the measurement of the fixture as it is.
const SOUND: &str = "nothing";

/// How a person is told to accept the golden if no review of it can be offered.
const HINT: &str =
    "to accept what was measured: `kvgate accept kvgate-results/results.json gemma-3-270m::q4_0`";

/// The golden that `q4_0` of an edited measurement would become.
fn golden(edit: &str) -> Golden {
    let measurement = fixture::edited(edit);
    Golden::of(&measurement, &measurement.schemes[1]).unwrap()
}

/// Writes that golden with a change, as earlier states of kvgate wrote it: chunk means would contradict a change.
fn accepted(root: &Path, edit: &str, change: impl FnOnce(&mut Golden)) -> PathBuf {
    let mut golden = Golden { chunk_means: ChunkMeans::default(), ..golden(edit) };
    change(&mut golden);
    let file = golden::path(root, STEM);
    write_atomically(&file, |w| w.write_all(golden.snapshot().as_bytes())).unwrap();
    file
}

/// Not a test of its own: the tests below run it in processes of their own. It judges a case of `q4_0` as the test
/// target does.
#[test]
#[ignore = "run by the tests below, in a process of its own"]
fn judges() {
    let Some(root) = env::var_os(ROOT).map(PathBuf::from) else { return };
    golden::prepare_insta(&root);
    let policy = fixture::limited_policy();
    let project = Project {
        policy,
        root,
        results: RESULTS.into(),
        case_by_case: false,
        device: crate::compute::Device::cpu(),
    };
    let measurement = fixture::edited(&env::var(EDIT).unwrap());
    let evidence = Ok(Measured { measurement, positions: Ok(()) }.into_evidence());
    let name = format!("gemma-3-270m::q4_0::{}", env::var(KIND).unwrap());
    let case = project.cases().into_iter().find(|case| case.name == name).unwrap();
    let CaseResult { verdict, message, .. } = project.judge(&case, &evidence);
    println!("verdict={verdict:?}\n{message}=verdict");
}

/// The verdict and the message of a process that judges `q4_0` against what is accepted under `root`.
fn judged(root: &Path, edit: &str, kind: CaseKind, vars: &[(&str, &str)]) -> String {
    let mut command = child("gate::tests::judges", root);
    command.env(EDIT, edit).env(KIND, kind.name()).envs(vars.iter().copied());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr, "", "insta must be silent");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let (_, verdict) = stdout.split_once("verdict=").expect("a process prints its verdict");
    verdict.rsplit_once("=verdict").unwrap().0.into()
}

/// The same of the `golden` case of the sound measurement.
fn checked(root: &Path, vars: &[(&str, &str)]) -> String {
    judged(root, SOUND, CaseKind::Golden, vars)
}

#[test]
fn a_match_passes_silently_and_clears_the_pending_file() {
    let root = tempfile::tempdir().unwrap();
    let file = accepted(root.path(), SOUND, |g| g.values[0] *= 1.1);
    std::fs::write(file.with_extension("snap.new"), "old").unwrap();
    let before = std::fs::read(&file).unwrap();
    assert_eq!(checked(root.path(), &[]), "Pass\n");
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
        let file = accepted(root.path(), SOUND, |g| g.values[0] *= 2.0);
        let before = std::fs::read(&file).unwrap();
        assert!(checked(root.path(), vars).starts_with("GoldenChanged"), "{vars:?}");
        assert_eq!(std::fs::read(&file).unwrap(), before, "{vars:?}");
    }
}

#[test]
fn insta_settings_of_the_repository_do_not_either() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("insta.yaml"), "behavior:\n  update: always\n").unwrap();
    let file = accepted(root.path(), SOUND, |g| g.values[0] *= 2.0);
    let before = std::fs::read(&file).unwrap();
    assert!(checked(root.path(), &[]).starts_with("GoldenChanged"));
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[test]
fn a_change_shows_a_table_and_waits_for_review() {
    let root = tempfile::tempdir().unwrap();
    let file = accepted(root.path(), SOUND, |g| {
        g.values[0] *= 0.5;
        g.values[7] += 0.01;
    });
    let output = checked(root.path(), &[]);
    let message = "\
GoldenChanged
golden changed: 1 statistic left its tolerance
  statistic        golden      now    change  tolerance
  tokens_scored      4080     4080        +0  equal
  mean_kld        0.03060  0.06120  +100.0 %  ± 25 %     ✗
  median_kld      0.02000  0.02000       0 %  ± 25 %
  p90_kld          0.1500   0.1500       0 %  ± 35 %
  p95_kld          0.2500   0.2500       0 %  ± 35 %
  p99_kld          0.7000   0.7000       0 %  shown
  p999_kld          1.500    1.500       0 %  shown
  max_kld           2.250    2.250       0 %  shown
  top1_agreement   0.8727   0.8627   -0.0100  ± 0.04
  rms_dp          0.08100  0.08100       0 %  ± 25 %
  ppl               22.03    22.03    +0.0 %  shown
  ppl_ratio        1.0442   1.0442       0 %  shown
  baseline_ppl      21.10    21.10       0 %  ± 0.5 %
to accept what was measured: `cargo insta review`, or `kvgate accept kvgate-results/results.json gemma-3-270m::q4_0`";
    assert_eq!(output, message);
    let pending = std::fs::read_to_string(file.with_extension("snap.new")).unwrap();
    assert_eq!(pending, golden(SOUND).snapshot());
}

#[test]
fn no_golden_yet_is_red_and_pending_where_insta_was_told() {
    let root = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let folder = elsewhere.path().to_str().unwrap();
    let vars = [("INSTA_PENDING_DIR", folder), ("INSTA_UPDATE", "new"), ("CI", "true")];
    let output = checked(root.path(), &vars);
    assert!(output.starts_with("GoldenChanged\nno golden yet\nto accept what was"));
    let pending = elsewhere.path().join("goldens").join(format!("{STEM}.snap.new"));
    assert!(std::fs::read_to_string(pending).unwrap().starts_with("---\nsource: kvgate\n---"));
    // in CI nothing is pending, so no review is offered
    assert!(!checked(root.path(), &[("CI", "true")]).contains("cargo insta review"));
}

#[test]
fn stale_shows_conditions_and_no_values() {
    let root = tempfile::tempdir().unwrap();
    let file = accepted(root.path(), SOUND, |g| {
        g.conditions.context = 4096;
        g.values[0] *= 2.0;
    });
    let output = checked(root.path(), &[]);
    assert!(output.starts_with("Stale\nstale: "), "{output}");
    assert!(output.contains("  context: 4096 → 512\n"), "{output}");
    assert!(!output.contains("mean_kld"), "{output}");
    assert!(!file.with_extension("snap.new").exists());
}

#[test]
fn another_subject_is_red_although_values_agree() {
    let root = tempfile::tempdir().unwrap();
    accepted(root.path(), SOUND, |g| g.subject.weights_sha256 = "other".into());
    let output = checked(root.path(), &[]);
    assert!(output.starts_with("GoldenChanged\ngolden changed: values within tolerance\n"));
    assert!(output.contains("  subject changed: weights: other → a5fd3b62\n"), "{output}");
}

#[test]
fn goldens_in_use_are_noted_whether_their_case_ran_or_not() {
    let root = tempfile::tempdir().unwrap();
    let list = root.path().join("references");
    let vars = [("INSTA_SNAPSHOT_REFERENCES_FILE", list.to_str().unwrap())];
    let file = accepted(root.path(), SOUND, |_| ());
    checked(root.path(), &vars);
    accepted(root.path(), SOUND, |g| g.conditions.chunks = 1);
    checked(root.path(), &vars);
    let line = format!("{}\n", file.display());
    assert_eq!(std::fs::read_to_string(&list).unwrap(), line.repeat(2));
    // a case that did not run needs its model's text as well, and does not offer it
    let text = golden::text_path(root.path(), "gemma-3-270m");
    std::fs::write(&text, golden::text::snapshot(&fixture::generated())).unwrap();
    checked(root.path(), &vars);
    let both = format!("{}{line}{}\n", line.repeat(2), text.display());
    assert_eq!(std::fs::read_to_string(&list).unwrap(), both);
    // and what another engine measured of it is in use, too
    let other = golden::path_by(root.path(), MeasuredBy::LlamaCpp, STEM);
    write_atomically(&other, |w| w.write_all(b"x")).unwrap();
    checked(root.path(), &vars);
    let noted = std::fs::read_to_string(&list).unwrap();
    assert!(noted.ends_with(&format!("{}\n{line}{}\n", other.display(), text.display())));
}

#[test]
fn a_damaged_golden_is_an_error_that_says_how_to_accept() {
    let root = tempfile::tempdir().unwrap();
    let file = accepted(root.path(), SOUND, |_| ());
    std::fs::write(&file, "---\nsource: kvgate\n---\n<<<<<<< HEAD\n").unwrap();
    let output = checked(root.path(), &[]);
    assert!(output.starts_with("Error\n"), "{output}");
    assert!(output.contains("q4_0.snap:4: a merge left its markers here"), "{output}");
    assert!(output.ends_with(&format!("\n{HINT}")), "{output}");
    assert!(!file.with_extension("snap.new").exists());
    // limits do not depend on it
    assert!(judged(root.path(), SOUND, CaseKind::Kld, &[]).starts_with("Regressed\n"));
}

/// What must not become a golden is an error, and nobody is told how to accept it.
#[test]
fn what_was_not_measured_or_is_not_trusted_is_an_error_without_a_hint() {
    let nothing = "nothing to compare with the golden: ";
    let control = "the control `identity` (f16) must read a mean KLD of exactly 0, and read 0.1";
    for (edit, golden, kld) in [
        (
            "a failed scheme",
            "not measured: layer 3: K is NaN",
            "could not be measured: layer 3: K is NaN",
        ),
        (
            "a number that is none",
            &format!("{nothing}its mean_kld is NaN, which is no number"),
            "the measurement cannot be trusted: its mean_kld is NaN, which is no number",
        ),
        (
            "a failed control",
            &format!("{nothing}{control}"),
            &format!("the measurement cannot be trusted: {control}"),
        ),
        (
            "no result",
            &format!("{nothing}the run has no result for this scheme"),
            "could not be measured: the run has no result for this scheme",
        ),
        (
            "two results",
            &format!("{nothing}the run has two results for this scheme"),
            "could not be measured: the run has two results for this scheme",
        ),
    ] {
        let root = tempfile::tempdir().unwrap();
        let file = accepted(root.path(), SOUND, |_| ());
        let output = judged(root.path(), edit, CaseKind::Golden, &[]);
        assert!(output.starts_with(&format!("Error\n{golden}")), "{edit}: {output}");
        assert!(!output.contains("accept"), "{edit}: {output}");
        assert_eq!(output.lines().count(), 2, "{edit}: {output}");
        assert!(!file.with_extension("snap.new").exists(), "{edit}");
        let output = judged(root.path(), edit, CaseKind::Kld, &[]);
        let first = format!("Error\ngemma-3-270m::q4_0::kld: {kld}");
        assert!(output.starts_with(&first), "{edit}: {output}");
    }
}

/// A golden is worth what the text is worth that it was measured on.
#[test]
fn a_golden_passes_only_on_the_accepted_text() {
    let root = tempfile::tempdir().unwrap();
    let file = accepted(root.path(), "prompts", |_| ());
    let text = golden::text_path(root.path(), "gemma-3-270m");
    let golden_case = || judged(root.path(), "prompts", CaseKind::Golden, &[]);
    let not_accepted = format!(
        "GoldenChanged\nthe baseline's text, which it was measured on, is not accepted yet\n{HINT}"
    );
    assert_eq!(golden_case(), not_accepted, "there is no text");
    assert!(text.with_extension("snap.new").exists(), "the text waits for review");
    assert!(!file.with_extension("snap.new").exists(), "the golden does not");
    let mut generated = fixture::generated();
    std::fs::write(&text, golden::text::snapshot(&generated)).unwrap();
    assert_eq!(golden_case(), "Pass\n");
    assert!(!text.with_extension("snap.new").exists());
    generated.continuations[0].tokens[1] = 8;
    std::fs::write(&text, golden::text::snapshot(&generated)).unwrap();
    assert_eq!(golden_case(), not_accepted, "a token is another one");
    std::fs::write(&text, "---\nsource: kvgate\n---\nweights\n").unwrap();
    let output = golden_case();
    assert!(output.starts_with("Error\n") && output.ends_with(HINT), "{output}");
}

#[test]
fn a_broken_limit_is_red_whatever_was_accepted() {
    let root = tempfile::tempdir().unwrap();
    accepted(root.path(), SOUND, |_| ());
    let output = judged(root.path(), SOUND, CaseKind::Kld, &[]);
    assert!(output.starts_with("Regressed\n"), "{output}");
}
