//! Comments, statuses and pull requests, against a GitHub on this machine that checks every request and
//! every answer by GitHub's own description. Each case asserts the outcome and the requests.

use crate::support::github::{self, marker, GitHub, Mishap, Time, BASE, BOT, TOKEN};
use kvgate::internals::github::{
    comment, pull, status, CheckRun, Client, Comment, Environment, Error, Event, EventKind, Found,
    HeadBranch, Mode, Published, Reason, Run, State, Status, Sticky,
};
use serde_json::{json, Value};
use std::io::Write;

const HEAD: &str = "4ead4ead4ead4ead4ead4ead4ead4ead4ead4ead";
const OTHER: &str = "07e207e207e207e207e207e207e207e207e207e2";
const RUN: Run = Run { id: 50, attempt: 2 };

const PULL: &str = "GET pulls/7";
const VIEWER: &str = "POST /graphql";
const LIST: &str = "GET issues/7/comments?per_page=100";
const CREATE: &str = "POST issues/7/comments";
const UPDATE: &str = "PATCH issues/comments/1000";

fn hash(digit: char) -> String {
    digit.to_string().repeat(64)
}

/// A pull request, and who writes there.
struct Place {
    github: GitHub,
    client: Client,
    time: Time,
}

impl Place {
    fn new() -> Self {
        Place::at(GitHub::new())
    }

    fn at(github: GitHub) -> Self {
        github.state().pull(7, ("org", "feature"), HEAD, &[]);
        let time = Time::new();
        let environment = github.environment(&[]);
        let repository = environment.repository.clone().unwrap();
        let client = Client::new(&environment, &repository, Box::new(time.clone())).unwrap();
        Place { github, client, time }
    }

    fn has_comment(self, run: Run, head: &str, hash: &str) -> Self {
        self.github.state().comment(BOT, &format!("old\n\n{}", marker("main", run, head, hash)));
        self
    }

    fn fails(self, request: &'static str, mishap: Mishap) -> Self {
        self.github.fail(request, mishap);
        self
    }

    fn publish_as(&self, mode: Mode, is_green: bool) -> Result<Published, Error> {
        self.publish_text(mode, is_green, &|_| "new".into())
    }

    fn publish_text(
        &self,
        mode: Mode,
        is_green: bool,
        body: &dyn Fn(usize) -> String,
    ) -> Result<Published, Error> {
        let sticky = Sticky { id: "main".into(), run: RUN, head: HEAD.into(), hash: hash('b') };
        comment::publish(&self.client, 7, &Comment { sticky: &sticky, mode, is_green, body })
    }

    fn publish(&self) -> Result<Published, Error> {
        self.publish_as(Mode::OnChange, false)
    }

    /// The requests, and the seconds slept between them.
    #[track_caller]
    fn asked(&self, requests: &[&str], slept: &[u64]) {
        assert_eq!(self.github.requests(), requests);
        assert_eq!(self.time.slept(), slept);
    }

    fn bodies(&self) -> Vec<String> {
        let state = self.github.state();
        state.comments.iter().map(|comment| comment["body"].as_str().unwrap().into()).collect()
    }

    fn written(&self) -> String {
        format!("new\n\n{}", marker("main", RUN, HEAD, &hash('b')))
    }
}

const OLDER: Run = Run { id: 50, attempt: 1 };
const NEWER: Run = Run { id: 51, attempt: 1 };

#[test]
fn the_first_comment_is_created() {
    let place = Place::new();
    assert_eq!(place.publish().unwrap(), Published::Created);
    place.asked(&[PULL, VIEWER, LIST, CREATE], &[]);
    assert_eq!(place.bodies(), [place.written()]);
}

#[test]
fn a_second_run_edits_in_place() {
    let place = Place::new().has_comment(OLDER, HEAD, &hash('a'));
    assert_eq!(place.publish().unwrap(), Published::Updated);
    place.asked(&[PULL, VIEWER, LIST, UPDATE], &[]);
    assert_eq!(place.bodies(), [place.written()]);
}

#[test]
fn a_comment_on_page_three_is_found() {
    let place = Place::new();
    place.github.state().chat(250);
    let place = place.has_comment(NEWER, OTHER, &hash('a'));
    assert_eq!(place.publish().unwrap(), Published::Updated);
    let (two, three) = (format!("{LIST}&page=2"), format!("{LIST}&page=3"));
    place.asked(&[PULL, VIEWER, LIST, &two, &three, "PATCH issues/comments/1250"], &[]);
    assert_eq!(place.bodies().iter().filter(|body| body.contains("kvgate")).count(), 1);
}

#[test]
fn the_token_goes_to_no_other_server() {
    let place = Place::new();
    place.github.state().chat(101);
    let elsewhere = GitHub::new();
    for next in [
        format!("{}/repositories/1296269/issues/7/comments?page=2", elsewhere.api()),
        "https://api.github.com.example/x".into(),
        "//example.com/x".into(),
        place.github.api().replace("http://", "http://name@"),
    ] {
        place.github.state().next = Some(next);
        let error = place.publish().unwrap_err().to_string();
        assert!(error.contains("another server"), "{error}");
        place.asked(&[PULL, VIEWER, LIST], &[]);
    }
    // nor along a redirect
    let location = [("location", &elsewhere.api()[..])];
    let place = place.fails("GET pulls", Mishap::answer(302, &location, "Moved"));
    let error = place.publish().unwrap_err().to_string();
    assert!(error.contains("has moved"), "{error}");
    place.asked(&[PULL], &[]);
    assert_eq!(elsewhere.requests(), [""; 0]);
}

#[test]
fn nobody_elses_comment_is_touched() {
    let place = Place::new();
    let text = format!("fake\n\n{}", marker("main", OLDER, HEAD, &hash('a')));
    let other_id = text.replace("id=main", "id=nightly");
    let quoted = format!("{text}\nwhat is this?");
    for (author, text) in
        [("octocat", &text), ("github-actions", &text), (BOT, &other_id), (BOT, &quoted)]
    {
        place.github.state().comment(author, text);
    }
    assert_eq!(place.publish().unwrap(), Published::Created);
    place.asked(&[PULL, VIEWER, LIST, CREATE], &[]);
    assert_eq!(place.bodies(), [text.clone(), text, other_id, quoted, place.written()]);
}

#[test]
fn the_same_again_is_not_written() {
    let place = Place::new().has_comment(OLDER, HEAD, &hash('b'));
    assert_eq!(place.publish().unwrap(), Published::Unchanged);
    place.asked(&[PULL, VIEWER, LIST], &[]);
    // the same values of another commit are news
    let place = Place::new().has_comment(OLDER, OTHER, &hash('b'));
    assert_eq!(place.publish().unwrap(), Published::Updated);
}

#[test]
fn modes() {
    let place = Place::new();
    let never = Published::Skipped(Reason::Never);
    assert_eq!(place.publish_as(Mode::Never, false).unwrap(), never);
    place.asked(&[], &[]);
    let nothing = Published::Skipped(Reason::NothingToSay);
    assert_eq!(place.publish_as(Mode::OnChange, true).unwrap(), nothing);
    place.asked(&[PULL, VIEWER, LIST], &[]);
    assert_eq!(place.publish_as(Mode::Always, true).unwrap(), Published::Created);
    place.asked(&[PULL, VIEWER, LIST, CREATE], &[]);
    let red_before = Place::new().has_comment(OLDER, HEAD, &hash('a'));
    assert_eq!(red_before.publish_as(Mode::OnChange, true).unwrap(), Published::Updated);
}

#[test]
fn a_newer_run_that_was_faster_is_left_alone() {
    for run in [NEWER, Run { id: 50, attempt: 3 }] {
        let place = Place::new().has_comment(run, HEAD, &hash('a'));
        assert_eq!(place.publish().unwrap(), Published::Skipped(Reason::NewerRun));
        place.asked(&[PULL, VIEWER, LIST], &[]);
        assert!(place.bodies()[0].starts_with("old"));
    }
}

#[test]
fn a_newer_run_may_write_while_this_one_waits() {
    let faster = |state: &mut github::State| {
        let text = format!("newer\n\n{}", marker("main", NEWER, HEAD, &hash('c')));
        state.comments[0]["body"] = text.into();
    };
    let limited = Mishap::answer(429, &[("retry-after", "9")], "Too many requests");
    let place = Place::new()
        .has_comment(OLDER, HEAD, &hash('a'))
        .fails("PATCH", Mishap::Meanwhile(Box::new(faster), Box::new(limited)));
    assert_eq!(place.publish().unwrap(), Published::Skipped(Reason::NewerRun));
    place.asked(&[PULL, VIEWER, LIST, UPDATE, PULL, LIST], &[9]);
    assert!(place.bodies()[0].starts_with("newer"));
}

#[test]
fn a_head_that_moved_on_is_left_alone() {
    let place = Place::new();
    place.github.state().pulls[0]["head"]["sha"] = OTHER.into();
    assert_eq!(place.publish().unwrap(), Published::Skipped(Reason::HeadMoved));
    place.asked(&[PULL], &[]);
}

#[test]
fn a_read_only_token_is_told_the_permission_at_once() {
    let refused = || Mishap::answer(403, &[], "Resource not accessible by integration");
    let old = Place::new().has_comment(OLDER, HEAD, &hash('a'));
    for (place, write) in [(Place::new(), CREATE), (old, UPDATE)] {
        let place = place.fails(write, refused());
        let error = place.publish().unwrap_err();
        assert_eq!(error.permission(), Some("pull-requests: write"));
        let text = error.to_string();
        assert!(text.contains("add `pull-requests: write` to the job's `permissions:`"), "{text}");
        assert!(text.contains("from a fork") && text.contains("workflow_run"), "{text}");
        assert!(text.contains("403: Resource not accessible by integration"), "{text}");
        place.asked(&[PULL, VIEWER, LIST, write], &[]);
    }
    let place = Place::new().fails("GET issues", Mishap::answer(404, &[], "Not Found"));
    assert_eq!(place.publish().unwrap_err().permission(), Some("pull-requests: write"));
    place.asked(&[PULL, VIEWER, LIST], &[]);
}

#[test]
fn a_comment_that_was_deleted_meanwhile_is_created() {
    let delete = |state: &mut github::State| state.comments.clear();
    let gone = Mishap::answer(404, &[], "Not Found");
    let place = Place::new()
        .has_comment(OLDER, HEAD, &hash('a'))
        .fails("PATCH", Mishap::Meanwhile(Box::new(delete), Box::new(gone)));
    assert_eq!(place.publish().unwrap(), Published::Created);
    place.asked(&[PULL, VIEWER, LIST, UPDATE, PULL, LIST, CREATE], &[1]);
    assert_eq!(place.bodies(), [place.written()]);
}

#[test]
fn a_body_that_is_too_long_shrinks_once() {
    for (is_old, write) in [(false, CREATE), (true, UPDATE)] {
        let place = || match is_old {
            true => Place::new().has_comment(OLDER, HEAD, &hash('a')),
            false => Place::new(),
        };
        let fill = |room| "x".repeat(room);
        let place_1 = place();
        place_1.github.state().longest = 40_000;
        place_1.publish_text(Mode::OnChange, false, &fill).unwrap();
        place_1.asked(&[PULL, VIEWER, LIST, write, PULL, LIST, write], &[1]);
        assert_eq!(place_1.bodies()[0].len(), 30_000);

        let place_2 = place();
        place_2.github.state().longest = 10_000;
        let error = place_2.publish_text(Mode::OnChange, false, &fill).unwrap_err().to_string();
        assert!(error.contains("422: Validation Failed: body is too long"), "{error}");
        place_2.asked(&[PULL, VIEWER, LIST, write, PULL, LIST, write], &[1]);
    }
}

#[test]
fn a_body_has_sixty_thousand_bytes_at_most() {
    let place = Place::new();
    let endless = |_| "é🦀".repeat(100_000);
    assert_eq!(place.publish_text(Mode::OnChange, false, &endless).unwrap(), Published::Created);
    let body = &place.bodies()[0];
    assert!((59_990..=60_000).contains(&body.len()), "{}", body.len());
    assert!(body.ends_with(&marker("main", RUN, HEAD, &hash('b'))));
}

#[test]
fn waits_are_those_that_github_asks_for() {
    let reset = (Time::START + 20).to_string();
    let used_up = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", &reset[..])];
    let secondary = "You have exceeded a secondary rate limit and have been temporarily blocked";
    let mut cases = Vec::new();
    for (status, headers, message, wait) in [
        (429, &[("retry-after", "17")][..], "Too many requests", 17),
        (403, &[("retry-after", "30")], secondary, 30),
        (403, &[], secondary, 60),
        (403, &used_up, "API rate limit exceeded", 21),
        (502, &[], "Bad Gateway", 1),
    ] {
        cases.push((Mishap::answer(status, headers, message), wait));
    }
    for (mishap, wait) in cases {
        let place = Place::new().fails("POST issues", mishap);
        assert_eq!(place.publish().unwrap(), Published::Created);
        place.asked(&[PULL, VIEWER, LIST, CREATE, PULL, LIST, CREATE], &[wait]);
    }
    // a read is read again alone
    let place = Place::new().fails(LIST, Mishap::answer(429, &[("retry-after", "17")], "later"));
    assert_eq!(place.publish().unwrap(), Published::Created);
    place.asked(&[PULL, VIEWER, LIST, LIST, CREATE], &[17]);
}

#[test]
fn a_wait_that_is_too_long_is_told_and_not_made() {
    let later = Mishap::answer(429, &[("retry-after", "3600")], "Too many requests");
    let place = Place::new().fails("POST issues", later);
    let error = place.publish().unwrap_err().to_string();
    assert!(
        error.ends_with("429: Too many requests: try again in 60 minutes (after 09:00 UTC)"),
        "{error}"
    );
    place.asked(&[PULL, VIEWER, LIST, CREATE], &[]);
}

#[test]
fn all_waits_together_are_bounded() {
    let limited = || Mishap::answer(429, &[("retry-after", "120")], "Too many requests");
    let mut place = Place::new();
    for request in ["GET pulls", "POST /graphql", "GET issues"] {
        place = place.fails(request, limited());
    }
    let error = place.publish().unwrap_err();
    assert!(matches!(error, Error::Limited { status: 429, .. }), "{error}");
    place.asked(&[PULL, PULL, VIEWER, VIEWER, LIST], &[120, 120]);
}

#[test]
fn a_server_that_stays_down_is_given_up() {
    let mut place = Place::new();
    for _ in 0..5 {
        place = place.fails("POST issues", Mishap::answer(503, &[], "Unavailable"));
    }
    let error = place.publish().unwrap_err().to_string();
    assert!(error.ends_with("503: Unavailable"), "{error}");
    let try_again = [PULL, LIST, CREATE];
    place.asked(&[&[PULL, VIEWER, LIST, CREATE][..], &try_again.repeat(4)].concat(), &[1, 2, 4, 8]);
    assert_eq!(place.bodies(), [""; 0]);
}

#[test]
fn a_write_whose_answer_was_lost_is_not_made_twice() {
    for lost in [Mishap::DropAfter, Mishap::Half] {
        let place = Place::new().fails("POST issues", lost);
        assert_eq!(place.publish().unwrap(), Published::Created);
        place.asked(&[PULL, VIEWER, LIST, CREATE, PULL, LIST], &[1]);
        assert_eq!(place.bodies(), [place.written()]);
    }
    let place = Place::new().has_comment(OLDER, HEAD, &hash('a')).fails("PATCH", Mishap::DropAfter);
    assert_eq!(place.publish().unwrap(), Published::Updated);
    place.asked(&[PULL, VIEWER, LIST, UPDATE, PULL, LIST], &[1]);
}

#[test]
fn a_write_that_never_arrived_is_made_again() {
    let place = Place::new().fails("POST issues", Mishap::DropBefore);
    assert_eq!(place.publish().unwrap(), Published::Created);
    place.asked(&[PULL, VIEWER, LIST, CREATE, PULL, LIST, CREATE], &[1]);
    assert_eq!(place.bodies(), [place.written()]);
}

#[test]
fn a_server_that_never_answers_is_unreachable() {
    let mut place = Place::new();
    for _ in 0..5 {
        place = place.fails("GET pulls", Mishap::DropBefore);
    }
    let error = place.publish().unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    place.asked(&[PULL; 5], &[1, 2, 4, 8]);
}

#[test]
fn an_enterprise_server_has_its_api_under_a_path() {
    let place = Place::at(GitHub::with_base("/api/v3"));
    place.github.state().chat(101);
    assert_eq!(place.publish().unwrap(), Published::Created);
    place.asked(&[PULL, VIEWER, LIST, &format!("{LIST}&page=2"), CREATE], &[]);
}

#[test]
fn a_status_and_a_check_run_stand_at_the_commit() {
    let place = Place::new();
    let url = "https://github.com/org/model/actions/runs/50";
    let long = "é".repeat(200);
    let state = State::Failure;
    let set = |context, description| {
        let status = Status { context, state, description, target_url: Some(url) };
        status::set(&place.client, HEAD, &status)
    };
    set("kvgate", &long).unwrap();
    place.asked(&[&format!("POST statuses/{HEAD}")], &[]);
    let description = "é".repeat(139) + "…";
    let want = json!({
        "state": "failure", "context": "kvgate", "description": description, "target_url": url,
    });
    assert_eq!(place.github.state().statuses, [want]);
    let error = set(&"x".repeat(256), "").unwrap_err().to_string();
    assert!(error.contains("1 to 255 bytes"), "{error}");
    place.asked(&[], &[]);

    let summary = "é".repeat(40_000);
    let run = CheckRun { name: "kvgate", state, title: "no", summary: &summary, details_url: None };
    status::check_run(&place.client, HEAD, &run).unwrap();
    // a second after the status
    place.asked(&["POST check-runs"], &[1]);
    let sent = place.github.state().check_runs[0].clone();
    assert_eq!((&sent["status"], &sent["conclusion"]), (&json!("completed"), &json!("failure")));
    assert_eq!(sent["output"]["summary"].as_str().unwrap().len(), 65_535);
    let pending = CheckRun { state: State::Pending, summary: "", ..run };
    status::check_run(&place.client, HEAD, &pending).unwrap();
    let sent = place.github.state().check_runs[1].clone();
    assert_eq!((&sent["status"], &sent["conclusion"]), (&json!("in_progress"), &Value::Null));
}

#[test]
fn a_status_that_failed_names_its_own_permission() {
    let refused = || Mishap::answer(403, &[], "Resource not accessible by integration");
    let place = Place::new().fails("POST statuses", refused()).fails("POST check-runs", refused());
    let status =
        Status { context: "kvgate", state: State::Success, description: "", target_url: None };
    let error = status::set(&place.client, HEAD, &status).unwrap_err();
    assert_eq!(error.permission(), Some("statuses: write"));
    let run = CheckRun {
        name: "kvgate",
        state: State::Success,
        title: "yes",
        summary: "",
        details_url: None,
    };
    let error = status::check_run(&place.client, HEAD, &run).unwrap_err();
    assert_eq!(error.permission(), Some("checks: write"));
    // the same status twice is one: no need to look before a second try
    let place = place.fails("POST statuses", Mishap::DropAfter);
    status::set(&place.client, HEAD, &status).unwrap();
    assert_eq!(place.github.state().statuses.len(), 2);
}

#[test]
fn a_forks_pull_request_is_found_by_branch_and_commit() {
    let place = Place::new();
    let find = || {
        let source = HeadBranch { owner: "stranger".into(), branch: "fix/a&b #1".into() };
        pull::find(&place.client, &source, HEAD)
    };
    let list = "GET pulls?state=open&head=stranger:fix/a&b #1&per_page=100";
    assert_eq!(find().unwrap(), Found::None);
    place.asked(&[list], &[]);
    place.github.state().pull(8, ("stranger", "fix/a&b #1"), OTHER, &[]);
    assert!(matches!(find().unwrap(), Found::Moved(pull) if pull.number == 8));
    place.github.state().pull(9, ("stranger", "fix/a&b #1"), HEAD, &["kvgate:policy"]);
    let Found::Pull(pull) = find().unwrap() else { panic!("not found") };
    assert_eq!((pull.number, &pull.head[..], &pull.base[..]), (9, HEAD, BASE));
    assert_eq!((&pull.base_ref[..], pull.is_open), ("main", true));
    assert!(pull.has_label("kvgate:policy") && !pull.has_label("kvgate"));
    // two that propose it to two bases would each be judged by its own
    place.github.state().pull(10, ("stranger", "fix/a&b #1"), HEAD, &[]);
    let error = find().unwrap_err();
    assert!(matches!(&error, Error::Ambiguous { numbers, .. } if *numbers == [9, 10]), "{error}");
}

#[test]
fn a_list_that_was_not_filtered_is_no_answer() {
    let place = Place::new();
    let everything = {
        let mut state = place.github.state();
        state.pull(8, ("somebody", "fix"), HEAD, &[]);
        Value::from(state.pulls.clone())
    };
    let place = place.fails("GET pulls", Mishap::Answer(200, Vec::new(), everything));
    let source = HeadBranch { owner: "stranger".into(), branch: "fix".into() };
    assert_eq!(pull::find(&place.client, &source, HEAD).unwrap(), Found::None);
}

#[test]
fn the_token_is_in_no_text() {
    let place = Place::new();
    let environment = place.github.environment(&[]);
    let token = environment.token.clone().unwrap();
    let mut texts = vec![format!("{environment:?} {token:?} {token} {:?}", place.client)];
    let echo = format!("bad token {TOKEN}\n::warning::{TOKEN}");
    let place = place
        .fails("GET pulls", Mishap::answer(401, &[], &echo))
        .fails("GET pulls", Mishap::Answer(200, Vec::new(), json!(TOKEN)))
        .fails(
            "POST /graphql",
            Mishap::Answer(200, Vec::new(), json!({"errors": [{"message": echo}]})),
        );
    for _ in 0..3 {
        let error = place.publish().unwrap_err();
        assert!(!error.to_string().contains('\n'), "{error}");
        texts.push(format!("{error} {error:?}"));
    }
    assert!(texts[1].contains("bad token …"), "{}", texts[1]);
    let broken = place.github.environment(&[("GITHUB_TOKEN", "secret\ntwo")]);
    let repository = broken.repository.clone().unwrap();
    let error = Client::new(&broken, &repository, Box::new(Time::new())).unwrap_err();
    texts.push(format!("{error} {error:?}"));
    for text in texts {
        assert!(!text.contains("secret"), "{text}");
    }
    // the answer of 200 that is no pull request is not by the description: that was meant
    place.github.forgive("is not of type \"object\"");
}

fn client_error(more: &[(&str, &str)]) -> String {
    let environment = GitHub::new().environment(more);
    let repository = environment.repository.clone().unwrap();
    Client::new(&environment, &repository, Box::new(Time::new())).unwrap_err().to_string()
}

#[test]
fn what_a_client_cannot_be_made_of() {
    for (variable, value, words) in [
        ("GITHUB_TOKEN", " ", "GITHUB_TOKEN is not set"),
        ("GITHUB_API_URL", "api.github.com", "is no address"),
        ("GITHUB_API_URL", "file:///etc", "is no address"),
        ("GITHUB_API_URL", "https://a:b@example.com", "is no address"),
        ("GITHUB_GRAPHQL_URL", "https://example.com/graphql", "at another server"),
    ] {
        let error = client_error(&[(variable, value)]);
        assert!(error.contains(words), "{variable}={value}: {error}");
    }
}

/// The event of a file, in an environment.
fn event(name: &str, payload: &Value, more: &[(&str, &str)]) -> Result<Event, Error> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(payload.to_string().as_bytes()).unwrap();
    Event::read(file.path(), &environment(name, more))
}

fn environment(name: &str, more: &[(&str, &str)]) -> Environment {
    let github = GitHub::new();
    github.environment(&[more, &[("GITHUB_EVENT_NAME", name), ("GITHUB_SHA", OTHER)]].concat())
}

fn repository(full_name: &str) -> Value {
    let (owner, name) = full_name.split_once('/').unwrap();
    json!({ "full_name": full_name, "name": name, "owner": { "login": owner } })
}

fn pull_request(from: Value) -> Value {
    json!({
        "number": 7,
        "repository": repository("org/model"),
        "pull_request": {
            "number": 7,
            "head": { "sha": HEAD, "ref": "fix", "repo": from },
            "base": { "sha": BASE, "ref": "main", "repo": repository("org/model") },
        },
    })
}

#[test]
fn pull_request_events() {
    let own = event("pull_request", &pull_request(repository("Org/Model")), &[]).unwrap();
    assert_eq!((own.kind, own.pull, &own.head[..]), (EventKind::PullRequest, Some(7), HEAD));
    assert_eq!((own.base_ref.as_deref(), own.base.as_deref()), (Some("main"), Some(BASE)));
    assert_eq!((own.run, own.is_fork), (Run { id: 50, attempt: 1 }, false));
    let fork = event("pull_request", &pull_request(repository("stranger/model")), &[]).unwrap();
    assert!(fork.is_fork);
    assert!(event("pull_request", &pull_request(Value::Null), &[]).unwrap().is_fork);
}

fn workflow_run() -> Value {
    json!({
        "repository": repository("org/model"),
        "workflow_run": {
            "id": 49, "run_attempt": 3, "event": "pull_request", "head_sha": HEAD,
            "head_branch": "fix", "head_repository": repository("stranger/model"),
            "pull_requests": [],
        },
    })
}

#[test]
fn workflow_run_events_are_about_the_run_that_measured() {
    let found = event("workflow_run", &workflow_run(), &[]).unwrap();
    let source = HeadBranch { owner: "stranger".into(), branch: "fix".into() };
    assert_eq!((found.kind, found.pull, &found.head[..]), (EventKind::WorkflowRun, None, HEAD));
    assert_eq!((found.head_branch, &found.trigger[..]), (Some(source), "pull_request"));
    assert_eq!((found.run, found.is_fork), (Run { id: 49, attempt: 3 }, true));
    let mut gone = workflow_run();
    gone["workflow_run"]["head_repository"] = Value::Null;
    let gone = event("workflow_run", &gone, &[]).unwrap();
    assert_eq!((gone.head_branch, gone.is_fork), (None, true));
}

#[test]
fn other_events() {
    let nothing = "0".repeat(40);
    let push = |before: &str, after: &str| {
        json!({ "ref": "refs/heads/main", "before": before, "after": after,
            "repository": repository("org/model") })
    };
    let pushed = event("push", &push(BASE, HEAD), &[]).unwrap();
    assert_eq!((&pushed.head[..], pushed.base.as_deref()), (HEAD, Some(BASE)));
    assert_eq!(pushed.base_ref.as_deref(), Some("main"));
    assert_eq!(event("push", &push(&nothing, HEAD), &[]).unwrap().base, None);
    assert!(event("push", &push(BASE, &nothing), &[]).is_err());

    let group = json!({
        "repository": repository("org/model"),
        "merge_group": { "head_sha": HEAD, "base_sha": BASE, "base_ref": "refs/heads/main" },
    });
    let group = event("merge_group", &group, &[]).unwrap();
    assert_eq!((group.kind, &group.head[..]), (EventKind::MergeGroup, HEAD));
    assert_eq!((group.base_ref.as_deref(), group.base.as_deref()), (Some("main"), Some(BASE)));

    for name in ["schedule", "workflow_dispatch"] {
        let event = event(name, &json!({}), &[]).unwrap();
        assert_eq!((&event.head[..], event.pull, event.base), (OTHER, None, None));
    }
    let wide = HEAD.repeat(2)[..64].to_owned();
    let mut sha256 = workflow_run();
    sha256["workflow_run"]["head_sha"] = wide.clone().into();
    assert_eq!(event("workflow_run", &sha256, &[]).unwrap().head, wide);
}

#[test]
fn events_that_cannot_be_used_say_why() {
    let with = |pointer: &str, value: Value| {
        let mut payload = pull_request(repository("org/model"));
        *payload.pointer_mut(pointer).unwrap() = value;
        payload
    };
    let fine = || pull_request(repository("org/model"));
    for (payload, words) in [
        (with("/pull_request/head/sha", json!("HEAD")), "`HEAD` is no commit"),
        (with("/pull_request/head/sha", json!(7)), "no text `pull_request.head.sha`"),
        (with("/pull_request/number", json!("7")), "no number `pull_request.number`"),
        (with("/repository/full_name", json!("other/model")), "event is of other/model"),
        (with("/repository/full_name", json!("org/../x")), "is no repository"),
        (json!([]), "no number `pull_request.number`"),
    ] {
        let error = event("pull_request", &payload, &[]).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let error = event("pull_request_target", &fine(), &[]).unwrap_err().to_string();
    assert!(error.contains("is none of pull_request, workflow_run, push"), "{error}");
    let error = event("pull_request", &fine(), &[("GITHUB_RUN_ID", "")]).unwrap_err().to_string();
    assert!(error.contains("GITHUB_RUN_ID is not set"), "{error}");
    let nowhere = Event::read("nowhere.json".as_ref(), &environment("push", &[]));
    assert!(nowhere.unwrap_err().to_string().contains("nowhere.json"));
    for (variable, value) in [
        ("GITHUB_RUN_ID", "x"),
        ("GITHUB_RUN_ATTEMPT", "-1"),
        ("GITHUB_REPOSITORY", "model"),
        ("GITHUB_REPOSITORY", "org/.."),
        ("GITHUB_SHA", "main"),
    ] {
        let found = |name: &str| (name == variable).then(|| value.to_owned());
        assert!(Environment::read(&found).is_err(), "{variable}={value}");
    }
}

#[test]
fn an_environment_has_githubs_own_addresses_without_variables() {
    let none = Environment::read(&|_| None).unwrap();
    assert_eq!(none.api, "https://api.github.com");
    assert_eq!(none.graphql, "https://api.github.com/graphql");
    assert_eq!(none.server, "https://github.com");
    assert!(none.token.is_none());
    let enterprise = |name: &str| match name {
        "GITHUB_API_URL" => Some("https://ghes.example/api/v3/".to_owned()),
        "GH_TOKEN" => Some(TOKEN.into()),
        _ => None,
    };
    let enterprise = Environment::read(&enterprise).unwrap();
    assert_eq!(enterprise.graphql, "https://ghes.example/api/graphql");
    assert!(enterprise.token.is_some());
}

#[test]
fn one_job_from_its_event_to_its_comment() {
    let github = GitHub::new();
    github.state().pull(7, ("stranger", "fix"), HEAD, &[]);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(workflow_run().to_string().as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    let more = [("GITHUB_EVENT_NAME", "workflow_run"), ("GITHUB_EVENT_PATH", path)];
    let environment = github.environment(&more);
    let time = Time::new();
    let job = kvgate::internals::github::GitHub::new(&environment, Box::new(time.clone())).unwrap();
    assert!(job.run_url().ends_with("/org/model/actions/runs/49/attempts/3"), "{}", job.run_url());
    let Found::Pull(pull) = job.pull().unwrap() else { panic!("not found") };
    let url = Some(job.run_url());
    let status =
        Status { context: "kvgate", state: State::Failure, description: "no", target_url: url };
    job.status(&status).unwrap();
    let sticky = job.sticky("main", &hash('b'));
    let (mode, is_green, body) = (Mode::OnChange, false, &|_| "new".to_owned());
    let comment = Comment { sticky: &sticky, mode, is_green, body };
    assert_eq!(job.comment(pull.number, &comment).unwrap(), Published::Created);
    let list = "GET pulls?state=open&head=stranger:fix&per_page=100";
    let set = format!("POST statuses/{HEAD}");
    assert_eq!(github.requests(), [list, &set, PULL, VIEWER, LIST, CREATE]);
    assert_eq!(time.slept(), [1]);
    let body = github.state().comments[0]["body"].clone();
    let run = Run { id: 49, attempt: 3 };
    assert_eq!(body, format!("new\n\n{}", marker("main", run, HEAD, &hash('b'))));
}
