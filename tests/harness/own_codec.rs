//! A codec from outside in the gate: `examples/own_codec.rs` as its users would run it.

use crate::support::program::command;
use crate::support::tiny::Repository;
use crate::trials;
use kvgate::internals::kv::codec::{Codec, Exactness};
use libtest_mimic::Trial;

/// Set where this executable is the example.
pub const AS_EXAMPLE: &str = "KVGATE_TEST_AS_EXAMPLE";

pub fn tests() -> Vec<Trial> {
    trials![
        own_codec:
        its_name_and_version_are_conditions_of_its_golden,
        the_catalogue_lists_it,
        it_is_quantized_unless_it_says_otherwise,
        names_that_mean_something_else_and_versions_left_out_are_refused,
        one_that_calls_itself_exact_is_refused,
    ]
}

/// Exit code and both outputs.
fn run(repository: &Repository, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = command(std::env::current_exe().unwrap(), repository);
    let output = command.args(arguments).env(AS_EXAMPLE, "1").output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn its_name_and_version_are_conditions_of_its_golden() {
    let repository = Repository::new();
    repository.write_model(&[]);
    let policy = std::fs::read_to_string(repository.path("thresholds.toml")).unwrap();
    let schemes = "\n[models.tiny.schemes]\nlog8 = { limits = { mean_kld = 1.0 } }\n";
    let policy = policy.split("[models.tiny.schemes]").next().unwrap().to_string() + schemes;
    std::fs::write(repository.path("thresholds.toml"), policy).unwrap();

    let (code, text) = run(&repository, &["run", "--wide"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("log8 = log8·H64/log8·H64"), "{text}");
    let (code, text) = run(&repository, &["accept", "kvgate-results/results.json"]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = run(&repository, &["run"]);
    assert_eq!(code, Some(0), "{text}");

    let golden = repository.path("goldens/tiny__log8.snap");
    let accepted = std::fs::read_to_string(&golden).unwrap();
    assert!(accepted.contains("needs         codec log8 1"), "{accepted}");
    std::fs::write(&golden, accepted.replace("codec log8 1", "codec log8 0")).unwrap();
    let (code, text) = run(&repository, &["run"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("stale") && text.contains("codec log8 0"), "{text}");
}

fn the_catalogue_lists_it() {
    let repository = Repository::new();
    let (code, text) = run(&repository, &["schemes"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.lines().any(|line| line.starts_with("log8 ")), "{text}");
}

/// A codec that says no more than its name and version.
struct Named(&'static str, &'static str);

impl Codec for Named {
    fn name(&self) -> &str {
        self.0
    }
    fn version(&self) -> &str {
        self.1
    }
    fn accepted_by(&self) -> &str {
        ""
    }
    fn block(&self, _: usize) -> usize {
        1
    }
    fn block_bytes(&self, _: usize) -> usize {
        1
    }
    fn is_rotated(&self) -> bool {
        false
    }
    fn encode(&self, _: &[f32], _: &mut [u8]) {}
    fn decode(&self, _: &[u8], _: &mut [f32]) {}
}

fn it_is_quantized_unless_it_says_otherwise() {
    let codec = Named("mine", "1");
    assert_eq!(codec.exactness(), Exactness::Quantized);
    assert!(codec.exactness().is_lossy() && !codec.exactness().is_unquantized());
    assert_eq!((codec.kernel(), codec.largest(), codec.group()), (None, None, 1));
}

fn names_that_mean_something_else_and_versions_left_out_are_refused() {
    let error = |name, version| {
        let codec: &'static dyn Codec = Box::leak(Box::new(Named(name, version)));
        kvgate::internals::kv::codec::register(codec).unwrap_err().to_string()
    };
    assert!(error("q8_0", "1").contains("another codec has this name"));
    assert!(error("Q8_0", "1").contains("another codec has this name"));
    for name in ["", "my codec", "a/b", "a:b", "a@b", "a=b", "a,b"] {
        assert!(error(name, "1").contains("letters, digits, `_`"), "{name}");
    }
    assert!(error("mine", "").contains("has no version"));
}

/// As half precision it could be a baseline, against which it would read exactly 0 itself.
fn one_that_calls_itself_exact_is_refused() {
    for exactness in [Exactness::Exact, Exactness::Half, Exactness::ShortFloat] {
        let codec: &'static dyn Codec = Box::leak(Box::new(Boastful(exactness)));
        let error = kvgate::internals::kv::codec::register(codec).unwrap_err().to_string();
        assert!(error.contains("must be Quantized"), "{error}");
    }
}

/// A codec that keeps nothing and says that it is as exact as this.
struct Boastful(Exactness);

impl Codec for Boastful {
    fn name(&self) -> &str {
        "boastful"
    }
    fn accepted_by(&self) -> &str {
        ""
    }
    fn version(&self) -> &str {
        "1"
    }
    fn exactness(&self) -> Exactness {
        self.0
    }
    fn is_rotated(&self) -> bool {
        false
    }
    fn block(&self, _: usize) -> usize {
        1
    }
    fn block_bytes(&self, _: usize) -> usize {
        1
    }
    fn encode(&self, _: &[f32], _: &mut [u8]) {}
    fn decode(&self, _: &[u8], x: &mut [f32]) {
        x.fill(0.0);
    }
}
