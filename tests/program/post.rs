//! `kvgate post` on real repositories, against a GitHub that checks every request by GitHub's own description:
//! what the terminal, the comment, the status and the exit code say of a change.

use crate::support::git::Git;
use crate::support::github::{GitHub, Mishap, BASE, REPOSITORY, TOKEN};
use crate::support::program::{accept, accepted, kvgate, kvgate_with, Ran};
use crate::support::tiny::{Damage, Repository};
use serde_json::{json, Value};

const RESULTS: &str = "kvgate-results/results.json";

/// A model repository with accepted goldens, and a branch that proposes something.
struct Place {
    repository: Repository,
    git: Git,
    github: GitHub,
    outside: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let repository = accepted();
        repository.put(".gitignore", "/kvgate-results\n/cache\n");
        let git = Git::at(repository.path(""));
        git.run("init --quiet");
        git.commit("first");
        git.run("update-ref refs/remotes/origin/main main");
        git.run("checkout --quiet -b topic");
        Place { repository, git, github: GitHub::new(), outside: tempfile::tempdir().unwrap() }
    }

    /// Commits the change, opens the pull request and measures what is there.
    fn propose(&self, labels: &[&str]) -> (String, Ran) {
        let head = self.git.commit("change");
        self.github.state().pull(7, ("org", "topic"), &head, labels);
        (head, kvgate(&self.repository, &["run"]))
    }

    fn results(&self) -> Value {
        serde_json::from_str(&self.repository.text(RESULTS)).unwrap()
    }

    fn rewrite(&self, edit: impl Fn(&mut Value)) {
        let mut results = self.results();
        edit(&mut results);
        self.repository.put(RESULTS, &results.to_string());
    }

    fn event(&self, head: &str) -> Value {
        json!({
            "number": 7,
            "repository": { "full_name": REPOSITORY, "default_branch": "main" },
            "pull_request": {
                "number": 7,
                "head": { "sha": head, "ref": "topic", "repo": { "full_name": REPOSITORY } },
                "base": { "sha": BASE, "ref": "main", "repo": { "full_name": REPOSITORY } },
            },
        })
    }

    fn post(&self, head: &str) -> Ran {
        self.post_with("pull_request", &self.event(head), &[])
    }

    /// As the privileged job does: from the branch that holds, whose files are those on disk.
    fn post_with(&self, name: &str, event: &Value, vars: &[(&str, &str)]) -> Ran {
        self.git.run("checkout --quiet main");
        let file = self.outside.path().join("event.json");
        std::fs::write(&file, event.to_string()).unwrap();
        let summary = self.outside.path().join("summary.md");
        let (file, summary) = (file.display().to_string(), summary.display().to_string());
        let api = self.github.api();
        let all = [
            ("GITHUB_API_URL", &api[..]),
            ("GITHUB_EVENT_NAME", name),
            ("GITHUB_EVENT_PATH", &file),
            ("GITHUB_REPOSITORY", REPOSITORY),
            ("GITHUB_RUN_ATTEMPT", "1"),
            ("GITHUB_RUN_ID", "50"),
            ("GITHUB_STEP_SUMMARY", &summary),
            ("GITHUB_TOKEN", TOKEN),
        ];
        let ran = kvgate_with(&self.repository, &["post", RESULTS], &[&all, vars].concat());
        self.git.run("checkout --quiet topic");
        assert!(!format!("{}{}", ran.stdout, ran.stderr).contains(TOKEN));
        ran
    }

    fn summary(&self) -> String {
        std::fs::read_to_string(self.outside.path().join("summary.md")).unwrap()
    }

    /// The comments' texts.
    fn comments(&self) -> Vec<String> {
        let state = self.github.state();
        state.comments.iter().map(|comment| comment["body"].as_str().unwrap().into()).collect()
    }

    /// The one comment.
    #[track_caller]
    fn comment(&self) -> String {
        let comments = self.comments();
        assert_eq!(comments.len(), 1, "{comments:?}");
        comments[0].clone()
    }

    /// State and description of the last commit status.
    fn status(&self) -> (String, String) {
        let state = self.github.state();
        let text = |key: &str| state.statuses.last().unwrap()[key].as_str().unwrap().to_owned();
        (text("state"), text("description"))
    }
}

#[track_caller]
fn holds(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}

#[test]
fn a_loosened_limit_is_red_until_people_allow_it() {
    let place = Place::new();
    place.repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 0.06");
    let (head, ran) = place.propose(&[]);
    ran.exits(0);
    place
        .post(&head)
        .exits(1)
        .says("✗ policy::weakened thresholds.toml:7")
        .says("mean_kld limit raised: 0.05 → 0.06 (tiny::q8_0")
        .says("::error file=thresholds.toml,line=7,title=policy%3A%3Aweakened::")
        .says("comment: written");
    let comment = place.comment();
    holds(
        &comment,
        &[
            "### ❌ kvgate: 1 finding (policy::weakened at `thresholds.toml:7`)",
            "- ❌ **policy::weakened** `thresholds.toml:7`: `mean_kld limit raised: 0.05 → 0.06 (tiny::q8_0",
            "<!-- kvgate:v1 id=kvgate -->",
        ],
    );
    let (state, description) = place.status();
    assert_eq!(state, "failure");
    assert_eq!(description, "kvgate: 1 finding (policy::weakened at thresholds.toml:7)");
    holds(&place.summary(), &["### ❌ kvgate: 1 finding"]);

    place.github.state().pulls[0]["labels"] = json!([]);
    place.github.state().pulls.clear();
    place.github.state().pull(7, ("org", "topic"), &head, &["kvgate:policy"]);
    place.post(&head).exits(0).says("comment: edited in place");
    holds(&place.comment(), &["### ✅ kvgate: ", "- • **policy::weakened** `thresholds.toml:7`"]);
    assert_eq!(place.status().0, "success");
}

/// What is loosened does not judge itself: the limits that hold do.
#[test]
fn the_limits_that_hold_judge() {
    let place = Place::new();
    // K whose scale grows breaks what q8_0 must hold
    place.repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 50.0");
    place.repository.edit(
        "thresholds.toml",
        "q4_0 = { expect = \"fail\", reason = \"four bits are too few\" }",
        "q4_0 = {}",
    );
    let (head, ran) = place.propose(&[]);
    ran.exits(0);
    place.post(&head).exits(1).says("2 findings").never_says("unexpected pass");
    // under the policy that holds q4_0 fails as required; both edits are findings
    holds(&place.comment(), &["✗ (expected)", "`expect", "mean_kld limit raised"]);
}

#[test]
fn a_deleted_case_is_missing_and_weaker() {
    let place = Place::new();
    place.repository.edit("thresholds.toml", "q8_0 = {}\n", "");
    let (head, ran) = place.propose(&[]);
    ran.exits(0);
    place.post(&head).exits(1).says("scheme removed").says("tiny::q8_0::kld: error");
    holds(
        &place.comment(),
        &["**policy::weakened**", "`scheme removed", "| `tiny` | `q8_0` |", "❌ error"],
    );
    assert_eq!(place.status().0, "failure");
}

#[test]
fn a_model_that_gets_worse_is_red_and_its_golden_shows_by_how_much() {
    let place = Place::new();
    place.repository.write_model(&[Damage::Scaled("blk.0.attn_k.weight", 12.0)]);
    let (head, ran) = place.propose(&[]);
    ran.exits(1);
    place.post(&head).exits(1).says("golden changed");
    let before = place.comment();
    holds(&before, &["how to accept", "gh run download 50 -n kvgate-results", "subject changed"]);
    // accepted in the same pull request: the value that holds is still what changes are against
    accept(&place.repository);
    let head = place.git.commit("accepted");
    place.github.state().pulls.clear();
    place.github.state().pull(7, ("org", "topic"), &head, &[]);
    kvgate(&place.repository, &["run"]);
    let report = place.post(&head);
    let now = place.comment();
    assert!(!now.contains("how to accept"), "{now}");
    let row = now.lines().find(|line| line.starts_with("| `tiny` | `q4_1` |")).unwrap();
    let change = row.split('|').nth(8).unwrap().trim();
    assert!(change.ends_with('%') && change != "=", "{row}");
    let limits = place.results()["cases"].as_array().unwrap().clone();
    let red = limits.iter().any(|case| case["verdict"] == "regressed");
    report.exits(i32::from(red));
}

#[test]
fn prose_needs_no_measuring_and_no_comment() {
    let place = Place::new();
    place.repository.put("README.md", "a model\n");
    let head = place.git.commit("prose");
    place.github.state().pull(7, ("org", "topic"), &head, &[]);
    kvgate(&place.repository, &["run", "--changed", "--against", "main"])
        .exits(0)
        .says("not needed: ");
    place.post(&head).exits(0).says("comment: none, all is well");
    assert!(place.comments().is_empty());
    assert_eq!(place.status(), ("success".into(), "kvgate: nothing needed measuring".into()));
}

/// A run that only says that nothing was needed is not believed where something was.
#[test]
fn what_is_needed_is_known_from_the_commits() {
    let place = Place::new();
    place.repository.write_model(&[Damage::Scaled("blk.0.attn_k.weight", 1.5)]);
    let (head, _) = place.propose(&[]);
    place.rewrite(|results| {
        results["measurements"] = json!([]);
        results["cases"] = json!([]);
        results["not_needed"] = json!(["tiny"]);
    });
    place.post(&head).exits(4).says("tiny::q8_0::kld: error");
    assert_eq!(place.status().0, "error");
    holds(&place.comment(), &["the job that measures it is missing"]);
}

/// Weights that no commit holds may have changed with any commit.
#[test]
fn weights_that_are_not_tracked_are_needed() {
    let place = Place::new();
    place.git.put(".gitignore", "tiny.gguf\ncache\nkvgate-results\n");
    place.git.run("rm --quiet --cached tiny.gguf");
    place.git.run("checkout --quiet main");
    place.git.commit("ignored");
    place.git.run("update-ref refs/remotes/origin/main main");
    place.git.run("checkout --quiet -b words");
    place.repository.put("README.md", "a model\n");
    let head = place.git.commit("prose");
    place.github.state().pull(7, ("org", "words"), &head, &[]);
    kvgate(&place.repository, &["run", "--changed", "--against", "main"])
        .exits(0)
        .says("tiny.gguf is not tracked, so that nobody knows whether it changed")
        .never_says("not needed");
    kvgate(&place.repository, &["judge", "kvgate-results/results.json", "--against", "main"])
        .exits(0)
        .says("as the policy wants");
    place.rewrite(|results| {
        results["measurements"] = json!([]);
        results["not_needed"] = json!(["tiny"]);
    });
    kvgate(&place.repository, &["judge", "kvgate-results/results.json", "--against", "main"])
        .exits(4);
    place.post(&head).exits(4).says("tiny::q8_0::kld: error");
}

/// Verdicts of the file count for nothing, and numbers that contradict each other are told.
#[test]
fn a_file_that_lies_is_found_out() {
    let place = Place::new();
    place.repository.put("NOTE.txt", "x\n");
    place.repository.edit("corpus.txt", " ", "  ");
    let (head, _) = place.propose(&[]);
    kvgate(&place.repository, &["run"]);
    place.rewrite(|results| {
        for case in results["cases"].as_array_mut().unwrap() {
            case["verdict"] = json!("pass");
            case["message"] = json!("");
        }
        results["measurements"][0]["schemes"][1]["mean_kld"] = json!(0.001);
    });
    place.post(&head).exits(1).says("its mean_kld is 0.001, and its parts make 0.");
    // the corpus is another one: goldens are stale whatever the file says
    holds(&place.comment(), &["stale", "❌"]);
    assert_ne!(place.status().0, "success");
}

#[test]
fn hostile_results_are_one_comment_with_text() {
    let place = Place::new();
    place.repository.put("NOTE.txt", "x\n");
    let (head, ran) = place.propose(&[]);
    ran.exits(0);
    let hostile = "@everyone --> | `x` <img src=x> [a](https://evil.example) #1\n::error::x";
    let measured = place.results();
    let attack = |edit: &dyn Fn(&mut Value)| {
        place.repository.put(RESULTS, &measured.to_string());
        place.rewrite(edit);
        place.post(&head)
    };
    let check = |ran: Ran, code: i32, parts: &[&str]| {
        assert!(
            !ran.stdout.lines().any(|line| line.trim_start() == "::error::x"),
            "{}",
            ran.stdout
        );
        ran.exits(code);
        let comment = place.comment();
        assert!(comment.len() <= 60_000);
        holds(&comment, parts);
        let mut is_code = false;
        for line in comment.lines().filter(|line| !line.starts_with("<!--")) {
            is_code ^= line.starts_with("```");
            let outside: String = line.split('`').step_by(2).collect();
            for bad in ["@everyone", "-->", "<img", "evil.example", "::error"] {
                assert!(is_code || !outside.contains(bad), "{bad} in {line}");
            }
        }
        let state = place.github.state();
        let last = state.statuses.last().unwrap();
        assert_eq!(last["state"] == "success", code == 0, "{last}");
    };
    let renamed = attack(&|results| {
        results["measurements"][0]["model"] = json!(hostile);
        results["engine"] = json!("x".repeat(10_000_000));
        results["measurements"][0]["run"]["device"] = json!(hostile);
    });
    // nothing that the change touches: what is missing is an error all the same
    check(renamed, 4, &["results::unknown_model", "the job that measures it is missing"]);
    let other = attack(&|results| results["head"] = json!("0".repeat(40)));
    check(other, 1, &["results::other_commit", "these results are of commit"]);
    let twice = attack(&|results| {
        let one = results["measurements"][0].clone();
        results["measurements"].as_array_mut().unwrap().push(one);
    });
    check(twice, 4, &["these results hold its model twice"]);
    let negative = attack(&|results| {
        results["measurements"][0]["schemes"][0]["tokens_scored"] = json!(-5);
    });
    check(negative, 1, &["not judged", "results.json"]);
    let control = attack(&|results| {
        results["measurements"][0]["controls"][0]["mean_kld"] = json!(7.5);
    });
    check(control, 4, &["the control `identity`"]);
    let other_scheme = attack(&|results| {
        results["measurements"][0]["schemes"][0]["effective"] = json!("bf16/bf16");
    });
    check(other_scheme, 4, &["`bf16/bf16` ran, and `bf16` is no codec of `q8_0`"]);
    let baseline = attack(&|results| {
        results["measurements"][0]["conditions"]["baseline"] = json!("q4_0/q4_0");
    });
    check(baseline, 4, &["it was compared with the baseline q4_0/q4_0"]);
    let engine = attack(&|results| {
        results["measurements"][0]["conditions"]["engine"] = json!("llama.cpp b1");
        results["measurements"][0]["controls"] = json!([]);
    });
    check(engine, 4, &["it calls itself measured by"]);
    let text = attack(&|results| {
        results["measurements"][0]["conditions"]["corpus"][0]["sha256"] = json!("0".repeat(64));
    });
    check(text, 4, &["it was measured on another corpus.txt than is proposed"]);
    let shorter = attack(&|results| {
        results["measurements"][0]["conditions"]["chunks"] = json!(2);
    });
    check(shorter, 4, &["it was measured at 64 × 2, and the policy asks for 64 × 4"]);
    let nan = measured.to_string().replacen("\"mean_kld\":", "\"mean_kld\":NaN,\"x\":", 1);
    place.repository.put(RESULTS, &nan);
    check(place.post(&head), 1, &["not judged"]);
    let schemes = attack(&|results| {
        let scheme = &mut results["measurements"][0]["schemes"][0];
        scheme["effective"] = json!(hostile);
        scheme["needs"] = json!([hostile]);
    });
    check(schemes, 4, &["❌ error", "q8_0 = @everyone --> ¦ ˋxˋ <img"]);
}

#[test]
fn a_run_without_results_is_red() {
    let place = Place::new();
    place.repository.put("NOTE.txt", "x\n");
    let (head, _) = place.propose(&[]);
    std::fs::remove_file(place.repository.path(RESULTS)).unwrap();
    place.post(&head).exits(1).says("not judged").says("results.json");
    assert_eq!(place.status().0, "failure");
    holds(&place.comment(), &["### ❌ kvgate: 1 finding (not judged)"]);
}

/// A job that may not write says what it lacks, and is as green as the verdict.
#[test]
fn a_read_only_token_is_a_warning() {
    let place = Place::new();
    place.repository.edit("thresholds.toml", "chunks = 4", "chunks = 4 # as before");
    let (head, ran) = place.propose(&[]);
    ran.exits(0);
    place
        .github
        .fail("POST statuses", Mishap::answer(403, &[], "Resource not accessible by integration"));
    let ran = place.post(&head).exits(0).says("::warning").says("statuses: write");
    assert!(ran.stdout.contains("comment: none, all is well"), "{}", ran.stdout);
}

#[test]
fn a_fork_s_run_is_posted_by_the_run_that_follows_it() {
    let place = Place::new();
    place.repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 0.06");
    let head = place.git.commit("change");
    place.github.state().pull(7, ("stranger", "topic"), &head, &[]);
    kvgate(&place.repository, &["run"]).exits(0);
    let event = json!({
        "repository": { "full_name": REPOSITORY, "default_branch": "main" },
        "workflow_run": {
            "id": 49, "run_attempt": 1, "event": "pull_request", "head_sha": head,
            "head_branch": "topic", "pull_requests": [],
            "head_repository": { "full_name": "stranger/model", "owner": { "login": "stranger" } },
        },
    });
    place.post_with("workflow_run", &event, &[]).exits(1).says("policy::weakened");
    holds(&place.comment(), &["policy::weakened", "run=49 attempt=1"]);
    // the same again is no news; an older attempt overwrites nothing
    place.post_with("workflow_run", &event, &[]).exits(1).says("comment: says so already");
    let mut older = event.clone();
    older["workflow_run"]["id"] = json!(48);
    place.github.state().pulls.clear();
    place.github.state().pull(7, ("stranger", "topic"), &head, &["kvgate:policy"]);
    place.post_with("workflow_run", &older, &[]).exits(0).says("a newer run has written it");
    holds(&place.comment(), &["run=49 attempt=1"]);
}

/// A gate that is taken away is red until people say that they mean it.
#[test]
fn a_policy_that_is_gone_is_a_finding() {
    let place = Place::new();
    std::fs::remove_file(place.repository.path("thresholds.toml")).unwrap();
    let head = place.git.commit("gone");
    place.github.state().pull(7, ("org", "topic"), &head, &[]);
    let text = r#"{"format":1,"engine":"kvgate 0.1.0","head":"HEAD","policy":null,"measurements":[],"cases":[]}"#;
    place.repository.put(RESULTS, &text.replace("HEAD", &head));
    place
        .post(&head)
        .exits(1)
        .says("✗ policy::weakened thresholds.toml")
        .says("the policy is gone");
    place.github.state().pulls.clear();
    place.github.state().pull(7, ("org", "topic"), &head, &["kvgate:policy"]);
    place.post(&head).exits(0).says("• policy::weakened thresholds.toml");
    assert_eq!(place.status().0, "success");
}

/// What another branch allows says nothing of the default one: its status has another name.
#[test]
fn the_same_commit_proposed_to_a_lax_branch_does_not_speak_for_it() {
    let place = Place::new();
    place.repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 0.06");
    let (head, ran) = place.propose(&[]);
    ran.exits(0);
    place.git.run(&format!("update-ref refs/remotes/origin/lax {head}"));
    place.github.state().pulls[0]["base"]["ref"] = json!("lax");
    place.post(&head).exits(0);
    let state = place.github.state();
    assert_eq!(state.statuses.last().unwrap()["context"], "kvgate (lax)");
}

/// A run that somebody starts on a branch is judged as what it would propose, not by its own policy.
#[test]
fn a_branch_does_not_judge_itself() {
    let place = Place::new();
    place.repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 0.06");
    let head = place.git.commit("change");
    kvgate(&place.repository, &["run"]).exits(0);
    let event = |branch: &str| {
        json!({
            "repository": { "full_name": REPOSITORY, "default_branch": "main" },
            "workflow_run": {
                "id": 49, "run_attempt": 1, "event": "workflow_dispatch", "head_sha": head,
                "head_branch": branch, "pull_requests": [],
                "head_repository": { "full_name": REPOSITORY, "owner": { "login": "org" } },
            },
        })
    };
    place.post_with("workflow_run", &event("topic"), &[]).exits(1).says("policy::weakened");
    assert_eq!(place.status().0, "failure");
    // a name is not enough
    place.post_with("workflow_run", &event("main"), &[]).exits(1).says("policy::weakened");
    place.git.run(&format!("update-ref refs/remotes/origin/main {head}"));
    place.post_with("workflow_run", &event("main"), &[]).exits(0).never_says("weakened");
}

/// Another text of the same length may hide what the old one showed.
#[test]
fn another_text_of_the_same_length_is_a_finding() {
    let place = Place::new();
    let text = place.repository.text("corpus.txt");
    let easy: String = text.split(' ').map(|word| "a".repeat(word.len()) + " ").collect();
    place.repository.put("corpus.txt", &easy[..text.len()]);
    kvgate(&place.repository, &["run"]).exits(1);
    accept(&place.repository);
    let (head, _) = place.propose(&[]);
    place
        .post(&head)
        .exits(1)
        .says("✗ policy::weakened corpus.txt")
        .says("another text to measure");
}

/// A queue proposes what people have approved already.
#[test]
fn a_merge_queue_is_judged_by_its_own_policy() {
    let place = Place::new();
    place.repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 0.06");
    let head = place.git.commit("change");
    kvgate(&place.repository, &["run"]).exits(0);
    let event = json!({
        "repository": { "full_name": REPOSITORY, "default_branch": "main" },
        "merge_group": {
            "head_sha": head, "base_sha": head, "base_ref": "refs/heads/main",
            "head_ref": "refs/heads/gh-readonly-queue/main/pr-7",
        },
    });
    place.post_with("merge_group", &event, &[]).exits(0).never_says("weakened");
    assert_eq!(place.status().0, "success");
    // all of it is wanted there
    place.rewrite(|results| results["measurements"] = json!([]));
    place.post_with("merge_group", &event, &[]).exits(4).says("is missing");
}

/// The same verdict where people work, before they push.
#[test]
fn judge_against_a_revision_finds_what_post_finds() {
    let place = Place::new();
    place.repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 0.06");
    kvgate(&place.repository, &["run"]).exits(0);
    kvgate(&place.repository, &["judge", RESULTS]).exits(0);
    kvgate(&place.repository, &["judge", RESULTS, "--against", "main"])
        .exits(1)
        .says("✗ policy::weakened thresholds.toml:7");
    place.repository.put("thresholds.toml", "[models");
    let broken = kvgate(&place.repository, &["judge", RESULTS, "--against", "main"]);
    broken.exits(2);
}
