//! `kvgate init` in folders that have nothing, something, or everything; and what this repository has of it.

use crate::support::program::{accept, kvgate};
use crate::support::root;
use crate::support::tiny::{Damage, Repository};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// A folder with a model and a text, and no policy.
fn bare() -> Repository {
    let repository = Repository::new();
    std::fs::remove_file(repository.path("thresholds.toml")).unwrap();
    repository
}

/// Every file of a folder, by its path from there, with its text.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(folder: &Path, root: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else {
                let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, folder, &mut found);
    found.retain(|name, _| !name.starts_with("cache/"));
    found
}

const MEASURED: [&str; 9] =
    ["init", "--model", "models/mini", "--corpus", "text.txt", "--context", "128", "--chunks", "6"];

#[test]
fn from_a_model_to_a_green_gate() {
    let repository = bare();
    let model = root().join("models/qwen3.6-moe-mini");
    std::fs::create_dir_all(repository.path("models/mini")).unwrap();
    for (name, bytes) in files(&model) {
        std::fs::write(repository.path("models/mini").join(name), bytes).unwrap();
    }
    let text = std::fs::read_to_string(root().join("corpora/persuasion.txt")).unwrap();
    repository.put("text.txt", &text[..8_000]);

    kvgate(&repository, &MEASURED)
        .exits(0)
        .says("q8_0/q4_0")
        .says("written  thresholds.toml")
        .says("values of 6 chunks have no intervals");
    let policy = repository.text("thresholds.toml");
    assert!(
        policy.contains("path = \"models/mini\"") && policy.contains("sha256 = \""),
        "{policy}"
    );
    assert!(policy.contains("limits = { baseline_ppl = "), "{policy}");
    kvgate(&repository, &["check"]).exits(1).says("none yet for q8_0").never_says("warning");
    kvgate(&repository, &["run"]).exits(1);
    let results = std::fs::read(repository.path("kvgate-results/results.json")).unwrap();
    let results: Value = serde_json::from_slice(&results).unwrap();
    let cases = results["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 14);
    for case in cases {
        let name = case["case"].as_str().unwrap();
        let allowed: &[&str] = match name.ends_with("::kld") {
            true => &["pass", "fails_as_required"],
            false => &["golden_changed"],
        };
        assert!(allowed.contains(&case["verdict"].as_str().unwrap()), "{case}");
    }
    accept(&repository);
    kvgate(&repository, &["run"]).exits(0);
    kvgate(&repository, &["check"]).exits(0);

    let before = files(&repository.path(""));
    kvgate(&repository, &MEASURED).exits(0).says("nothing was measured").never_says("written ");
    assert!(files(&repository.path("")) == before, "a second time changes nothing");
}

#[test]
fn without_a_model_the_policy_says_how_to_get_one() {
    let repository = bare();
    kvgate(&repository, &["init"]).exits(0).says("next     kvgate init --model");
    kvgate(&repository, &["check"]).exits(2).says("kvgate init --model MODEL");
    kvgate(&repository, &["run"]).exits(2).says("kvgate init --model MODEL");
    let before = files(&repository.path(""));
    kvgate(&repository, &["init"]).exits(0).never_says("written ");
    assert!(files(&repository.path("")) == before, "a second time changes nothing");
    // what it wrote itself is no policy of anybody's
    let arguments = [
        "init",
        "--model",
        "tiny.gguf",
        "--untrained",
        "--corpus",
        "corpus.txt",
        "--context",
        "64",
    ];
    kvgate(&repository, &[&arguments[..], &["--chunks", "4"]].concat())
        .exits(0)
        .says("written  thresholds.toml")
        .says("as it is Cargo.toml");
    assert!(repository.text("thresholds.toml").contains("[models.tiny]"));
}

/// They are measured from a folder that is gone afterwards.
#[test]
fn the_texts_of_init_are_not_named_by_a_temporary_place() {
    let repository = bare();
    let arguments = ["init", "--model", "tiny.gguf", "--untrained", "--chunks", "5000"];
    kvgate(&repository, &arguments)
        .exits(4)
        .says("of 512 tokens, 5000 were asked for; ask for fewer with `--chunks N`, or name longer texts")
        .never_says("prose.txt");
}

#[test]
fn what_is_there_stays_and_is_told_what_it_lacks() {
    let repository = Repository::new();
    repository.put("Cargo.toml", "[package]\nname = \"own\"\n\n[[test]]\nname = \"gate\"\n");
    repository.put(".gitignore", "/target\n");
    repository.put("CODEOWNERS", "* @somebody\n");
    let before = files(&repository.path(""));
    kvgate(&repository, &["init", "--owner", "@org/gate", "--model", "tiny.gguf"])
        .exits(0)
        .says("left     Cargo.toml, which lacks:")
        .says("harness = false")
        .says("left     .gitignore, which lacks:\n         /kvgate-results")
        .says("left     CODEOWNERS, which lacks:\n         /thresholds.toml @org/gate")
        .says("thresholds.toml is there, so nothing was measured");
    let after = files(&repository.path(""));
    for (name, text) in &before {
        assert!(after[name] == *text, "{name} was touched");
    }
    assert!(!after.contains_key(".github/CODEOWNERS"), "GitHub would read it instead of theirs");
    assert!(after.contains_key(".github/workflows/kvgate-post.yml"));
    kvgate(&repository, &["init", "--force"]).exits(0).says("written  Cargo.toml");
    assert_eq!(
        repository.text("thresholds.toml").as_bytes(),
        before["thresholds.toml"],
        "no force replaces a policy by none"
    );
}

#[test]
fn nothing_is_written_when_measuring_fails() {
    let repository = bare();
    repository.write_model(&[Damage::Nan("blk.0.attn_k.weight")]);
    let before = files(&repository.path(""));
    let measured = ["--corpus", "corpus.txt", "--context", "64", "--chunks", "4"];
    let init = |more: &[&str]| kvgate(&repository, &[&["init"], more, &measured[..]].concat());
    init(&["--model", "tiny.gguf"]).exits(4);
    init(&["--model", "gone.gguf"]).exits(4).says("gone.gguf");
    init(&["--model", "tiny.gguf", "--schemes", "q9_0"]).exits(2).says("q9_0");
    init(&["--model", "tiny.gguf", "--name", "a b"]).exits(2).says("`a b` cannot name a model");
    init(&["--owner", "somebody"]).exits(2).says("neither @USER nor @ORG/TEAM");
    init(&["--kvgate", "a/b: {x"]).exits(2).says("not OWNER/NAME");
    kvgate(&repository, &["init", "--corpus", "gone.txt"]).exits(2).says("gone.txt");
    assert!(files(&repository.path("")) == before, "something was written");
}

/// The example has what `init` writes; only where kvgate comes from is its own.
#[test]
fn the_example_is_what_init_writes() {
    let repository = bare();
    kvgate(&repository, &["init"]).exits(0);
    let example = files(&root().join("examples/model-repo"));
    for (name, text) in files(&repository.path("")) {
        let own = ["corpus.txt", "tiny.gguf", "thresholds.toml", "Cargo.toml"];
        if own.contains(&name.as_str()) || name.starts_with("corpora/") {
            continue;
        }
        let found = example.get(&name).unwrap_or_else(|| panic!("the example lacks {name}"));
        assert!(*found == text, "examples/model-repo/{name} is not what `kvgate init` writes");
    }
    let manifest = String::from_utf8(example["Cargo.toml"].clone()).unwrap();
    let is_own = |line: &&str| !line.starts_with("kvgate = ") && !line.starts_with('#');
    let written = repository.text("Cargo.toml");
    for line in written.lines().filter(is_own) {
        assert!(manifest.lines().any(|own| own == line), "its Cargo.toml lacks `{line}`");
    }
}

/// This repository has the same workflows; only where the program comes from is its own.
#[test]
fn the_workflows_here_are_the_templates_built_from_source() {
    let release = "      - uses: OWNER/kvgate/.github/actions/kvgate@v@VERSION@
        with:
          version: ${{ env.KVGATE_VERSION }}
          sha256: ${{ env.KVGATE_SHA256 }}
";
    let source = "      - uses: ./.github/actions/kvgate
        with:
          build: \"true\"
          source: .
";
    for name in ["kvgate.yml", "kvgate-post.yml"] {
        let read = |folder: &str| {
            std::fs::read_to_string(root().join(".github").join(folder).join(name)).unwrap()
        };
        let (template, own) = (read("templates"), read("workflows"));
        assert!(template.contains(release), "{name}");
        let jobs = |text: &str| text[text.find("\njobs:\n").unwrap()..].to_owned();
        assert_eq!(jobs(&own), jobs(&template.replace(release, source)), "{name}");
        let events = |text: &str| {
            text[text.find("\non:\n").unwrap()..text.find("\ndefaults:\n").unwrap()].to_owned()
        };
        assert_eq!(events(&own), events(&template), "{name}");
    }
}
