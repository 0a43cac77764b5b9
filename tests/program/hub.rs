//! Checkpoints of the hub: the program against a hub on this machine, with a cache of its own.

use crate::support;
use crate::support::hub::{Hub, Mishap, COMMIT, REPOSITORY};
use crate::support::program::{command, kvgate_with, Ran};
use crate::support::tiny::Repository;
use kvgate::internals::hash;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const GGUF: &str = "deep/tiny.gguf";

/// The little repository, whose model is not in it but on the hub.
struct Place {
    repository: Repository,
    hub: Hub,
    bytes: Vec<u8>,
    sha256: String,
}

impl Place {
    fn new() -> Self {
        let repository = Repository::new();
        let model = repository.path("tiny.gguf");
        let (bytes, sha256) = (std::fs::read(&model).unwrap(), hash::of_file(&model).unwrap());
        std::fs::remove_file(&model).unwrap();
        repository.edit(
            "thresholds.toml",
            "path = \"tiny.gguf\"\nfetch = \"scripts/fetch tiny\"",
            &format!("hf = \"{REPOSITORY}\"\nrevision = \"{COMMIT}\"\nfile = \"{GGUF}\""),
        );
        let hub = Hub::new();
        hub.large(GGUF, &bytes, &sha256);
        Place { repository, hub, bytes, sha256 }
    }

    fn kvgate(&self, arguments: &[&str]) -> Ran {
        self.kvgate_with(arguments, &[])
    }

    fn kvgate_with(&self, arguments: &[&str], more: &[(&str, &str)]) -> Ran {
        let home = self.repository.path("home");
        let vars = [("HF_HOME", home.to_str().unwrap()), ("HF_ENDPOINT", &self.hub.endpoint)];
        kvgate_with(&self.repository, arguments, &[&vars[..], more].concat())
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = command(env!("CARGO_BIN_EXE_kvgate"), &self.repository);
        command.env("HF_HOME", self.repository.path("home"));
        command.env("HF_ENDPOINT", &self.hub.endpoint).args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// What the cache has of the repository.
    fn cached(&self, name: &str) -> PathBuf {
        self.repository.path("home/hub/models--org--tiny").join(name)
    }

    fn snapshot(&self, file: &str) -> PathBuf {
        self.cached(&format!("snapshots/{COMMIT}")).join(file)
    }

    fn blob(&self, extension: &str) -> PathBuf {
        self.cached("blobs").join(format!("{}{extension}", self.sha256))
    }

    /// As `hf download` leaves it.
    fn put_into_cache(&self) {
        let file = self.snapshot(GGUF);
        std::fs::create_dir_all(self.cached("blobs")).unwrap();
        std::fs::write(self.blob(""), &self.bytes).unwrap();
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let link = Path::new("../../../blobs").join(&self.sha256);
        std::os::unix::fs::symlink(link, file).unwrap();
    }

    #[track_caller]
    fn is_whole(&self) {
        assert!(std::fs::read(self.snapshot(GGUF)).unwrap() == self.bytes, "the model is another");
        assert!(!self.blob(".part").exists());
    }
}

fn argument() -> String {
    format!("hf:{REPOSITORY}@{COMMIT}/{GGUF}")
}

/// Every case of the little repository but for the goldens, which it does not have.
const LIMITS: [&str; 2] = ["run", "::kld"];

#[test]
fn a_run_fetches_once_and_then_asks_nobody() {
    let place = Place::new();
    place.kvgate(&LIMITS).exits(0).says("fetching deep/tiny.gguf").says("✗ (expected)");
    place.is_whole();
    assert_eq!(place.hub.transfers(), ["bytes=0-"]);
    place.kvgate(&LIMITS).exits(0).never_says("fetching");
    place.kvgate(&["check"]).says("model    llama ok");
    place.kvgate(&["inspect", &argument()]).exits(0).says("architecture  llama");
    assert_eq!(place.hub.requests(), [""; 0]);
}

#[test]
fn a_model_argument_may_name_the_hub() {
    let place = Place::new();
    let more = ["--untrained", "--corpus", "corpus.txt", "--schemes", "q8_0", "--context", "64"];
    place.kvgate(&[&["measure", &argument()][..], &more].concat()).exits(0).says("tiny  baseline");
    place.kvgate(&["inspect", "hf:org/tiny@main"]).exits(2).says("what moves cannot gate");
}

#[test]
fn a_failure_names_the_hub_in_its_command() {
    let place = Place::new();
    place.repository.edit("thresholds.toml", "mean_kld = 0.05", "mean_kld = 1e-9");
    place.kvgate(&["run", "q8_0::kld"]).exits(1).says(format!("kvgate measure {}", argument()));
}

#[test]
fn check_never_fetches_and_says_who_does() {
    let place = Place::new();
    place
        .kvgate(&["check"])
        .exits(4)
        .says("thresholds.toml:10:6")
        .says("not fetched yet: deep/tiny.gguf not in the cache")
        .says("`kvgate run` fetches it")
        .says(format!("hf download {REPOSITORY} {GGUF} --revision {COMMIT}"));
    assert_eq!(place.hub.requests(), [""; 0]);
}

#[test]
fn offline_the_cache_is_enough_and_what_it_lacks_is_named() {
    let place = Place::new();
    let offline = [("HF_HUB_OFFLINE", "1")];
    place
        .kvgate_with(&LIMITS, &offline)
        .exits(4)
        .says("deep/tiny.gguf not in the cache")
        .says("HF_HUB_OFFLINE forbids to fetch")
        .says(format!("hf download {REPOSITORY} {GGUF} --revision {COMMIT}"));
    place.put_into_cache();
    place.kvgate_with(&LIMITS, &offline).exits(0);
    assert_eq!(place.hub.requests(), [""; 0]);
}

#[test]
fn other_folders_of_the_hub_are_honoured() {
    let place = Place::new();
    place.put_into_cache();
    let hub = place.repository.path("home/hub");
    let vars = [("HF_HUB_CACHE", hub.to_str().unwrap()), ("HF_HOME", "nowhere")];
    place.kvgate_with(&["inspect", &argument()], &vars).exits(0);
    // without either it is in the user's cache, which is $XDG_CACHE_HOME here
    std::fs::create_dir_all(place.repository.path("cache/huggingface")).unwrap();
    std::fs::rename(hub, place.repository.path("cache/huggingface/hub")).unwrap();
    place.kvgate_with(&["inspect", &argument()], &[("HF_HOME", "")]).exits(0);
    assert_eq!(place.hub.requests(), [""; 0]);
}

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let place = Place::new();
    place.hub.mishap(Mishap::Drop(100_000));
    place.hub.mishap(Mishap::Drop(50_000));
    place.kvgate(&LIMITS).exits(0);
    place.is_whole();
    assert_eq!(place.hub.transfers(), ["bytes=0-", "bytes=100000-", "bytes=150000-"]);
}

#[test]
fn a_connection_that_brings_nothing_keeps_what_arrived_for_the_next_run() {
    let place = Place::new();
    place.hub.mishap(Mishap::Drop(100_000));
    place.hub.mishap(Mishap::Drop(0));
    place.kvgate(&LIMITS).exits(4).says("broke off").says("what arrived is kept, run again");
    assert!(!place.snapshot(GGUF).exists(), "half a model must not look whole");
    place.hub.requests();
    place.kvgate(&LIMITS).exits(0);
    place.is_whole();
    assert_eq!(place.hub.transfers(), ["bytes=100000-"]);
}

#[test]
fn a_process_that_is_killed_loses_nothing() {
    let place = Place::new();
    place.hub.mishap(Mishap::Stall(100_000));
    let mut run = place.start(&LIMITS);
    let arrived = || std::fs::metadata(place.blob(".part")).map_or(0, |part| part.len());
    let began = Instant::now();
    while arrived() < 100_000 {
        assert!(began.elapsed() < Duration::from_secs(60), "{} bytes arrived", arrived());
        std::thread::sleep(Duration::from_millis(10));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    place.kvgate(&["check"]).exits(4).says("not fetched yet");
    place.hub.requests();
    place.kvgate(&LIMITS).exits(0);
    place.is_whole();
    assert_eq!(place.hub.transfers(), ["bytes=100000-"]);
}

#[test]
fn a_part_that_is_whole_is_finished_and_one_that_is_too_long_is_begun_anew() {
    let place = Place::new();
    std::fs::create_dir_all(place.cached("blobs")).unwrap();
    std::fs::write(place.blob(".part"), &place.bytes).unwrap();
    place.kvgate(&LIMITS).exits(0);
    place.is_whole();
    assert_eq!(place.hub.transfers(), [format!("bytes={}-", place.bytes.len() - 1)]);
    std::fs::remove_dir_all(place.cached("")).unwrap();
    std::fs::create_dir_all(place.cached("blobs")).unwrap();
    std::fs::write(place.blob(".part"), [&place.bytes[..], b"more"].concat()).unwrap();
    place.kvgate(&LIMITS).exits(0);
    place.is_whole();
    assert_eq!(place.hub.transfers(), ["bytes=0-"]);
}

#[test]
fn an_answer_that_ends_early_without_saying_its_length_is_no_file() {
    let place = Place::new();
    place.hub.mishap(Mishap::Unannounced(100_000));
    let listed = format!("100000 bytes arrived, the hub lists {}", place.bytes.len());
    place.kvgate(&LIMITS).exits(4).says(listed);
    assert!(!place.snapshot(GGUF).is_symlink() && !place.blob("").exists());
    place.kvgate(&LIMITS).exits(0);
    place.is_whole();
}

#[test]
fn an_answer_of_another_commit_is_not_taken() {
    let place = Place::new();
    place.hub.answer_with("f".repeat(40));
    place.kvgate(&LIMITS).exits(4).says("its `deep/tiny.gguf` is of another commit");
}

#[test]
fn a_damaged_file_in_the_cache_is_told_by_the_name_of_its_blob() {
    let place = Place::new();
    place.put_into_cache();
    let mut bytes = place.bytes.clone();
    *bytes.last_mut().unwrap() ^= 1;
    for damaged in [&bytes, &bytes[..1000]] {
        std::fs::write(place.blob(""), damaged).unwrap();
        for arguments in [&LIMITS[..], &["check"]] {
            place.kvgate(arguments).exits(4).says("is damaged").says(&place.sha256);
        }
    }
    // a link to nothing is no file
    std::fs::remove_file(place.blob("")).unwrap();
    place.kvgate(&LIMITS).exits(0);
    place.is_whole();
}

#[test]
fn a_file_that_another_commit_brought_is_not_fetched_again() {
    let place = Place::new();
    place.put_into_cache();
    let other = "f".repeat(40);
    std::fs::rename(place.snapshot(""), place.cached("snapshots").join(&other)).unwrap();
    place.kvgate(&LIMITS).exits(0);
    place.is_whole();
    assert_eq!(place.hub.transfers(), [""; 0]);
}

#[test]
fn two_processes_fetch_once() {
    let place = Place::new();
    let runs = [place.start(&["inspect", &argument()]), place.start(&["inspect", &argument()])];
    for run in runs {
        Ran::of(run.wait_with_output().unwrap()).exits(0);
    }
    assert_eq!(place.hub.transfers(), ["bytes=0-"]);
}

#[test]
fn what_the_hub_refuses_is_said_with_its_mend() {
    let page = |place: &Place| format!("accept its licence on {}/{REPOSITORY}", place.hub.endpoint);
    let place = Place::new();
    place.hub.ask_for("secret");
    place
        .kvgate(&LIMITS)
        .exits(4)
        .says("403 GatedRepo")
        .says(page(&place))
        .says("set HF_TOKEN to a token of your account");
    place
        .kvgate_with(&LIMITS, &[("HF_TOKEN", "wrong")])
        .exits(4)
        .says("the one in use has no access");
    place.kvgate_with(&["inspect", &argument()], &[("HF_TOKEN", "secret")]).exits(0);
    place.hub.refuse(401, "RepoNotFound");
    std::fs::remove_dir_all(place.cached("")).unwrap();
    place.kvgate(&LIMITS).exits(4).says("401 RepoNotFound").says("mistyped repository");
    place.hub.refuse(404, "RevisionNotFound");
    let words = format!("repository `{REPOSITORY}`, revision `{COMMIT}`");
    place.kvgate(&LIMITS).exits(4).says("404 RevisionNotFound").says(words);
    place.hub.refuse(503, "Maintenance");
    place.kvgate(&LIMITS).exits(4).says("503 Maintenance").says("run again later");
}

#[test]
fn the_token_may_be_where_a_login_left_it() {
    let place = Place::new();
    place.hub.ask_for("secret");
    std::fs::create_dir_all(place.repository.path("home")).unwrap();
    place.repository.put("home/token", "secret\n");
    place.kvgate(&["inspect", &argument()]).exits(0);
}

#[test]
fn a_file_that_the_commit_does_not_have_is_named_with_those_it_has() {
    let place = Place::new();
    place.repository.edit("thresholds.toml", GGUF, "deep/tini.gguf");
    place
        .kvgate(&LIMITS)
        .exits(4)
        .says(format!("`{REPOSITORY}` has no file `deep/tini.gguf` at revision `{COMMIT}`"))
        .says("did you mean `deep/tiny.gguf`?");
    let whole = format!("hf:{REPOSITORY}@{COMMIT}");
    place.hub.small("config.json", b"{}");
    place.hub.small("tokenizer.json", b"{}");
    let ran = place.kvgate(&["inspect", &whole]).exits(4).says("has no file `model.safetensors`");
    ran.says("it has the GGUF files deep/tiny.gguf");
}

#[test]
fn without_a_network_it_says_what_to_do() {
    let place = Place::new();
    // nobody listens on the port of discarding
    let vars = [("HF_ENDPOINT", "http://127.0.0.1:9")];
    place
        .kvgate_with(&LIMITS, &vars)
        .exits(4)
        .says("cannot reach the hub")
        .says("HF_HUB_OFFLINE=1")
        .says("`path`")
        .says(format!("hf download {REPOSITORY} {GGUF} --revision {COMMIT}"));
}

#[test]
fn a_checkpoint_in_safetensors_is_its_configuration_tokenizer_and_shards() {
    const FILES: [&str; 4] =
        ["config.json", "model-2.safetensors", "model.safetensors.index.json", "tokenizer.json"];
    let place = Place::new();
    let whole = format!("hf:{REPOSITORY}@{COMMIT}");
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    for (name, bytes) in [
        ("config.json", &b"{}"[..]),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", b"one"),
        ("model-2.safetensors", b"two"),
        ("pytorch_model.bin", b"not asked for"),
    ] {
        place.hub.small(name, bytes);
    }
    // whatever the loader says of such files, they are there
    place.kvgate(&["inspect", &whole]).says("fetching model-2.safetensors (3 B)");
    for name in FILES.iter().chain(&["tokenizer_config.json", "model-1.safetensors"]) {
        assert!(place.snapshot(name).exists(), "{name}");
    }
    assert!(!place.snapshot("pytorch_model.bin").exists());
    place.hub.requests();
    let offline = [("HF_HUB_OFFLINE", "1")];
    place.kvgate_with(&["inspect", &whole], &offline).never_says("HF_HUB_OFFLINE");
    for name in FILES {
        let bytes = std::fs::read(place.snapshot(name)).unwrap();
        std::fs::remove_file(place.snapshot(name)).unwrap();
        let missing = match name {
            "model.safetensors.index.json" => "model.safetensors",
            name => name,
        };
        let words = format!("{missing} not in the cache");
        place.kvgate_with(&["inspect", &whole], &offline).exits(4).says(words);
        std::fs::write(place.snapshot(name), bytes).unwrap();
    }
    assert_eq!(place.hub.requests(), [""; 0]);
}

/// A model in several files is fetched whole, and a part that is missing is named.
#[test]
fn all_parts_of_a_gguf_are_fetched() {
    let place = Place::new();
    let names = [1, 2, 3].map(|part| format!("llama-0000{part}-of-00003.gguf"));
    for name in &names {
        let part =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf-parts").join(name);
        let (bytes, sha256) = (std::fs::read(&part).unwrap(), hash::of_file(&part).unwrap());
        place.hub.large(&format!("q8/{name}"), &bytes, &sha256);
    }
    let argument = |part: usize| format!("hf:{REPOSITORY}@{COMMIT}/q8/{}", names[part]);
    let first = argument(0);
    place.kvgate(&["inspect", &first]).exits(0).says("q8/llama-00003-of-00003.gguf");
    assert_eq!(place.hub.transfers(), ["bytes=0-"; 3]);
    place.kvgate(&["inspect", &first]).exits(0).never_says("fetching");
    place
        .kvgate(&["inspect", &argument(1)])
        .exits(2)
        .says("name that, `q8/llama-00001-of-00003.gguf`");
    std::fs::remove_file(place.snapshot("q8").join(&names[1])).unwrap();
    let offline = place.kvgate_with(&["inspect", &first], &[("HF_HUB_OFFLINE", "1")]);
    let words = "q8/llama-00001-of-00003.gguf q8/llama-00002-of-00003.gguf";
    offline.exits(4).says("q8/llama-00002-of-00003.gguf not in the cache").says(words);
    std::fs::remove_file(place.snapshot("q8").join(&names[0])).unwrap();
    std::fs::write(place.snapshot("q8").join(&names[1]), "damaged").unwrap();
    place.kvgate(&["inspect", &first]).says(format!("{} is not a sound checkpoint", names[1]));
}

/// A small checkpoint in safetensors on the hub, with a chat template, and a cache that another program filled
/// with what it needed itself.
fn half_cached(place: &Place) -> String {
    let folder = support::root().join("tests/fixtures/checkpoints/llama");
    for name in ["config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json"] {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        place.hub.small(name, &bytes);
        if name != "tokenizer_config.json" {
            std::fs::create_dir_all(place.snapshot("")).unwrap();
            std::fs::write(place.snapshot(name), bytes).unwrap();
        }
    }
    place.hub.small("chat_template.jinja", b"{{ messages[0].content }}!");
    format!("hf:{REPOSITORY}@{COMMIT}")
}

const UNKNOWN: &str = "warning: chat template, BOS and ends of answers are decided without";

#[test]
fn a_cache_without_the_chat_template_is_completed_once() {
    let place = Place::new();
    let model = half_cached(&place);
    place.kvgate(&["inspect", &model]).exits(0).never_says(UNKNOWN);
    assert!(place.snapshot("chat_template.jinja").exists());
    assert!(place.snapshot("tokenizer_config.json").exists());
    // noted as the hub's own programs do it: the commit has no such file
    assert!(place.cached(&format!(".no_exist/{COMMIT}/generation_config.json")).exists());
    assert!(!place.hub.requests().is_empty());
    place.kvgate(&["inspect", &model]).exits(0).never_says(UNKNOWN);
    assert_eq!(place.hub.requests(), [""; 0], "nobody is asked twice");
}

#[test]
fn a_chat_template_that_nobody_knows_of_is_said_and_a_condition() {
    let place = Place::new();
    let model = half_cached(&place);
    place.repository.put("prompts.toml", "version = 1\n[[prompts]]\nid = \"a\"\ncategory = \"c\"\nmessages = [{ role = \"user\", content = \"The river\" }]\n");
    let measure = [
        "measure",
        &model,
        "--corpus",
        "corpus.txt",
        "--schemes",
        "bf16",
        "--context",
        "64",
        "--prompts",
        "prompts.toml",
        "--generate",
        "2",
        "--untrained",
        "--json",
        "out.json",
    ];
    let template = || {
        let json: serde_json::Value =
            serde_json::from_str(&place.repository.text("out.json")).unwrap();
        let prompts = json["measurements"][0]["conditions"]["prompts"].as_str().unwrap().to_owned();
        prompts.split(' ').nth(2).unwrap().to_owned()
    };
    let offline = [("HF_HUB_OFFLINE", "1")];
    place.kvgate_with(&measure, &offline).exits(0).says(UNKNOWN);
    assert_eq!(template(), "unknown");
    assert_eq!(place.hub.requests(), [""; 0]);
    // a hub that does not answer as one is no error: what is there is enough
    place.hub.refuse(503, "down");
    place.kvgate(&["inspect", &model]).exits(0).says(UNKNOWN);
    // a commit that has none
    for name in ["tokenizer_config.json", "chat_template.jinja", "generation_config.json"] {
        let note = place.cached(&format!(".no_exist/{COMMIT}/{name}"));
        std::fs::create_dir_all(note.parent().unwrap()).unwrap();
        std::fs::write(note, "").unwrap();
    }
    place.kvgate_with(&measure, &offline).exits(0).never_says(UNKNOWN);
    assert_eq!(template(), "none");
}
