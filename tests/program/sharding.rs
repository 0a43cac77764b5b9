//! A gate split over jobs: `kvgate plan` prints them, `kvgate run --model` is one.

use crate::support::program::{accepted, kvgate, kvgate_with, Ran};
use crate::support::tiny::Repository;
use serde_json::Value;

/// The little repository with more models of the same file.
fn models() -> Repository {
    let repository = Repository::new();
    let policy = repository.text("thresholds.toml");
    let more = "\
[models.other]\npath = \"tiny.gguf\"\nuntrained = true\nchunks = 2\n\n[models.other.schemes]\nq8_0 = {}\n
[models.asleep]\npath = \"tiny.gguf\"\n\n[models.asleep.schemes]\nq8_0 = { ignored = true }\n
[models.gone]\npath = \"gone.gguf\"\nuntrained = true\n\n[models.gone.schemes]\nq8_0 = {}\n";
    repository.put("thresholds.toml", &format!("{policy}\n{more}"));
    repository
}

/// The jobs of the one line on standard output.
#[track_caller]
fn jobs(ran: Ran) -> Vec<(String, String, u64)> {
    let ran = ran.exits(0);
    assert_eq!(ran.stdout.lines().count(), 1, "{}", ran.stdout);
    let matrix: Value = serde_json::from_str(&ran.stdout).unwrap();
    let text = |job: &Value, key: &str| job[key].as_str().unwrap().to_owned();
    let jobs = matrix["include"].as_array().unwrap().iter();
    jobs.map(|j| (text(j, "shard"), text(j, "models"), j["seconds"].as_u64().unwrap())).collect()
}

#[test]
fn a_plan_has_every_model_that_runs_once() {
    let repository = models();
    let names = |jobs: &[(String, String, u64)]| {
        let mut names: Vec<_> =
            jobs.iter().flat_map(|j| j.1.split(',')).map(String::from).collect();
        names.sort();
        names
    };
    let plan = |arguments: &[&str]| jobs(kvgate(&repository, arguments));
    let two = plan(&["plan", "--shards", "2"]);
    assert_eq!(two.iter().map(|j| j.0.as_str()).collect::<Vec<_>>(), ["1/2", "2/2"]);
    assert_eq!(names(&two), ["gone", "other", "tiny"]);
    assert_eq!(plan(&["plan", "--shards", "2"]), two, "the same again");
    let nine = plan(&["plan", "--shards", "9"]);
    assert_eq!(nine.len(), 3, "no shard is empty");
    let all = plan(&["plan", "--shards", "9", "--include-ignored"]);
    assert_eq!(names(&all), ["asleep", "gone", "other", "tiny"]);
    assert_eq!(names(&plan(&["plan", "--shards", "3", "other", "tiny::q4_0"])), ["other", "tiny"]);
    kvgate(&repository, &["plan", "--shards", "2"])
        .exits(0)
        .says("warning: gone: its cost is guessed from its tokens");
    kvgate(&repository, &["plan", "--shards", "2", "asleep"]).exits(3).says("--include-ignored");
    kvgate(&repository, &["plan", "--shards", "2", "nothing"]).exits(3).says("nothing");
    kvgate(&repository, &["plan", "--shards", "0"]).exits(2);
    kvgate(&repository, &["plan", "--shards", "2", "--costs", "none.json"])
        .exits(2)
        .says("none.json");
}

#[test]
fn measured_costs_decide_who_is_packed_with_whom() {
    let repository = models();
    kvgate(&repository, &["run", "--model", "tiny,other"]).exits(1);
    let path = repository.path("kvgate-results/results.json");
    let mut results: Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    for measurement in results["measurements"].as_array_mut().unwrap() {
        // by the lane: 4 of tiny, 2 of other
        let seconds = if measurement["model"] == "tiny" { 8.0 } else { 500.0 };
        measurement["run"]["seconds"] = seconds.into();
    }
    std::fs::write(&path, results.to_string()).unwrap();
    let costs = path.to_str().unwrap();
    let plan = ["plan", "--shards", "2", "--costs", costs, "tiny", "other"];
    let found = jobs(kvgate(&repository, &plan));
    assert_eq!(
        found,
        [("1/2".into(), "other".into(), 500), ("2/2".into(), "tiny".into(), 8)],
        "the policy has tiny first, and its estimate is the larger one"
    );
}

#[test]
fn a_job_runs_exactly_its_models() {
    let repository = models();
    kvgate(&repository, &["run", "--list", "--model", "other"])
        .exits(0)
        .says("other::q8_0::kld")
        .never_says("tiny::")
        .never_says("gone::");
    kvgate(&repository, &["run", "--list", "--model", "other", "--model", "tiny"])
        .exits(0)
        .says("other::q8_0::kld")
        .says("tiny::q8_0::kld")
        .never_says("gone::");
    kvgate(&repository, &["run", "--model", "othre"])
        .exits(3)
        .says("no model `othre` (did you mean `other`?)");
    kvgate(&repository, &["run", "--model", "tin"]).exits(3).says("no model `tin`");
    kvgate(&repository, &["run", "--model", "other", "tiny::"]).exits(3).says("nothing selected");
    assert!(!repository.path("kvgate-results").exists(), "nothing was measured");
}

#[test]
fn a_job_is_green_where_its_models_are() {
    let repository = accepted();
    kvgate_with(&repository, &["run", "--model", "tiny"], &[("CI", "true")]).exits(0);
}

/// A file that says that its red model was not needed is believed by nobody who judges.
#[test]
fn what_was_not_needed_is_no_word_of_the_file() {
    let repository = models();
    repository.edit("thresholds.toml", "gone.gguf", "tiny.gguf");
    kvgate(&repository, &["run", "--results", "a"]).exits(1);
    kvgate(&repository, &["accept", "a/results.json"]).exits(0);
    kvgate(&repository, &["judge", "a/results.json"]).exits(0);
    let mut results: Value = serde_json::from_str(&repository.text("a/results.json")).unwrap();
    let measurements = results["measurements"].as_array_mut().unwrap();
    measurements.retain(|measurement| measurement["model"] != "other");
    results["cases"] = Value::Array(Vec::new());
    results["not_needed"] = serde_json::json!(["other"]);
    repository.put("left-out.json", &results.to_string());
    kvgate(&repository, &["judge", "left-out.json"])
        .exits(4)
        .says("! other::q8_0::kld: error")
        .says("which claim that it was not needed, but such a claim does not count")
        .says("`--against REVISION`")
        .never_says("tiny::q8_0::kld: error");
    results["measurements"] = Value::Array(Vec::new());
    results["not_needed"] = serde_json::json!(["tiny", "other", "gone"]);
    repository.put("nothing.json", &results.to_string());
    kvgate(&repository, &["judge", "nothing.json"]).exits(4).never_says("nothing needed");
    // one shard without the others is not the run
    results.as_object_mut().unwrap().remove("not_needed");
    repository.put("nothing.json", &results.to_string());
    kvgate(&repository, &["judge", "nothing.json"])
        .exits(4)
        .says("the job that measures it is missing");
}

/// One job merges what the others measured; a job that is lost does not look like one that passed.
#[test]
fn shards_are_merged_and_what_is_missing_is_an_error() {
    let repository = models();
    repository.edit("thresholds.toml", "gone.gguf", "tiny.gguf");
    let shard = |models: &str, folder: &str| {
        kvgate(&repository, &["run", "--model", models, "--results", folder])
    };
    shard("tiny", "a").exits(1);
    shard("other,gone,asleep", "b").exits(1);
    for folder in ["a", "b"] {
        kvgate(&repository, &["accept", &format!("{folder}/results.json")]).exits(0);
    }
    shard("tiny", "a").exits(0);
    shard("other,gone,asleep", "b").exits(0);
    let report = |arguments: &[&str]| {
        kvgate(&repository, &[&["report"], arguments, &["--output", "out"]].concat())
    };
    let both = ["a/results.json", "b/results.json"];
    report(&[&both[..], &["--format", "json"]].concat()).exits(0);
    repository.put("merged.json", &repository.text("out"));
    kvgate(&repository, &["report", "merged.json"]).exits(0).says("as the policy wants (");
    for (format, holds) in [
        ("terminal", "kvgate: "),
        ("markdown", "### ✅ kvgate: "),
        ("html", "<!DOCTYPE html>"),
        ("junit", "<testsuites name=\"kvgate\""),
    ] {
        report(&[&both[..], &["--format", format]].concat()).exits(0);
        let text = repository.text("out");
        assert!(text.contains(holds), "{format}: {text}");
    }
    kvgate(&repository, &["report", "b/results.json"])
        .exits(4)
        .says("! tiny::q8_0::kld: error")
        .says("missing: none of these results holds it")
        .never_says("asleep::q8_0::kld: error");
    kvgate(&repository, &["report", "a/results.json", "a/results.json"])
        .exits(2)
        .says("a/results.json holds `tiny::q8_0`, which another");
    repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 0.06");
    report(&both).exits(2).says("`kvgate judge` judges them by this one");
    kvgate(&repository, &[&["judge"], &both[..]].concat()).exits(0);
}
