//! Merge bases, weakening and `--changed` on real repositories, made by git itself.

use crate::support::environment;
use crate::support::git::Git;
use crate::support::program::{accepted, kvgate, kvgate_with};
use kvgate::internals::policy::Policy;
use kvgate::internals::proposal::changed::{since, Touched};
use kvgate::internals::proposal::weakened::{goldens_removed, text_sizes, weakened};
use kvgate::internals::repo::{FileChange, Files, Folder, RepoError, Repository};
use std::path::{Path, PathBuf};

const POLICY: &str = r#"[defaults]
corpus = "corpora/c.txt"
context = 512
chunks = 4
prompts = "prompts.toml"
[defaults.limits]
mean_kld = 0.05
[defaults.schemes]
q8_0 = {}
q4_0 = {}
[models.m]
path = "models/m"
[models.n]
path = "models/n.gguf"
at.long = { context = 1024 }
"#;

fn open(git: &Git) -> Repository {
    Repository::discover(&git.folder).unwrap()
}

/// A model repository on a server, with the policy in a folder of it or at its root.
struct Server {
    root: tempfile::TempDir,
    git: Git,
}

impl Server {
    fn new(policy_folder: &str) -> Server {
        let root = tempfile::tempdir().unwrap();
        let git = Git::at(root.path().join("server"));
        git.run("init --quiet");
        let put = |path: &str, text: &str| git.put(&format!("{policy_folder}{path}"), text);
        put("thresholds.toml", POLICY);
        put("corpora/c.txt", "a text to measure on\n");
        put("prompts.toml", "prompts\n");
        put("models/m/config.json", "{}\n");
        put("models/n.gguf", "weights\n");
        for golden in ["m__q8_0", "m__q4_0", "n__q8_0", "n@long__q8_0", "m.text"] {
            put(&format!("goldens/{golden}.snap"), "accepted\n");
        }
        put("goldens/llama.cpp/m__q8_0.snap", "accepted\n");
        put("README.md", "a model\n");
        git.commit("first");
        Server { root, git }
    }

    /// A clone, on a branch of its own.
    fn clone(&self) -> Git {
        let clone = self.clone_with("", "clone");
        clone.run("checkout --quiet -b topic");
        clone
    }

    fn clone_with(&self, options: &str, name: &str) -> Git {
        let url = format!("file://{}", self.git.folder.display());
        let folder = self.root.path().join(name);
        self.git.run(&format!("clone --quiet {options}{url} {}", folder.display()));
        let clone = Git::at(folder);
        clone.minutes.set(1000);
        clone
    }
}

fn nothing(_: &str) -> Option<String> {
    None
}

fn load(folder: &Path) -> Policy {
    Policy::load(&folder.join("thresholds.toml")).unwrap().0
}

/// What a pull request of the working tree weakens, as `post` would find it.
fn findings(folder: &Path) -> Vec<String> {
    let repository = Repository::discover(folder).unwrap();
    let target = repository.default_target(&nothing).unwrap();
    let base = repository.merge_base("HEAD", &target).unwrap();
    let own = repository.relative(folder).unwrap();
    let base = repository.tree(&base).unwrap().seen_from(&own);
    let now = Folder::new(folder, repository.workdir()).unwrap();
    let path = Path::new("thresholds.toml");
    let parse = |files: &dyn Files| {
        let text = String::from_utf8(files.read(path).unwrap().unwrap()).unwrap();
        Policy::parse(&text, path).unwrap().0
    };
    let (old, new) = (parse(&base), parse(&now));
    let mut found = weakened(&old, &new, &text_sizes(&new, &base, &now));
    found.extend(goldens_removed(&new, &base, &now).unwrap());
    found.iter().map(ToString::to_string).collect()
}

fn touched(folder: &Path) -> Touched {
    since(&load(folder), None, &nothing).unwrap().touched
}

fn all(reason: &str) -> Touched {
    Touched::All(reason.into())
}

fn models(names: &[&str]) -> Touched {
    Touched::Models(names.iter().map(ToString::to_string).collect())
}

fn change(path: &str) -> FileChange {
    FileChange { path: path.into(), old_path: None }
}

#[test]
fn a_pull_request_that_loosens_a_limit() {
    for policy_folder in ["", "gate/"] {
        let server = Server::new(policy_folder);
        let clone = server.clone();
        let folder = clone.folder.join(policy_folder);
        assert_eq!(findings(&folder), [""; 0]);
        clone.edit(&format!("{policy_folder}thresholds.toml"), "0.05", "0.5");
        let expected = "thresholds.toml:7: mean_kld limit raised: 0.05 → 0.5 \
                        (m::q8_0, m::q4_0, n::q8_0 and 3 more)";
        let reason = all(&format!("{policy_folder}thresholds.toml changed"));
        assert_eq!(findings(&folder), [expected], "before the commit");
        assert_eq!(touched(&folder), reason);
        clone.commit("loosen");
        assert_eq!(findings(&folder), [expected]);
        assert_eq!(touched(&folder), reason);
    }
}

#[test]
fn a_pull_request_that_deletes_a_case_or_its_golden() {
    let server = Server::new("");
    let clone = server.clone();
    clone.run("rm --quiet goldens/m__q4_0.snap goldens/llama.cpp/m__q8_0.snap goldens/m.text.snap");
    clone.commit("goldens");
    let deleted = |file: &str, case: &str| {
        format!("goldens/{file}.snap at the base: golden deleted: accepted → none ({case})")
    };
    let of_m = [deleted("llama.cpp/m__q8_0", "m::q8_0"), deleted("m.text", "m")];
    assert_eq!(
        findings(&clone.folder),
        [of_m[0].clone(), of_m[1].clone(), deleted("m__q4_0", "m::q4_0")]
    );
    assert_eq!(touched(&clone.folder), models(&["m"]));
    clone.edit("thresholds.toml", "q4_0 = {}\n", "");
    clone.commit("case");
    let removed = "thresholds.toml:10 at the base: scheme removed: q4_0 → none \
                   (m::q4_0, n::q4_0, n@long::q4_0)";
    // the golden of a case that is gone is not missed
    assert_eq!(findings(&clone.folder), [removed.to_owned(), of_m[0].clone(), of_m[1].clone()]);
}

#[test]
fn a_pull_request_that_only_edits_prose() {
    let server = Server::new("");
    let clone = server.clone();
    let changed = || since(&load(&clone.folder), None, &nothing).unwrap();
    let base = &clone.run("rev-parse --short=7 HEAD");
    assert_eq!(changed().touched, Touched::None);
    assert_eq!(changed().not_needed(), format!("nothing changed since origin/HEAD ({base})"));
    for prose in ["README.md", "docs/page.html", "LICENSE", "LICENSE-MIT", "models/m/README.md"] {
        clone.put(prose, "words\n");
    }
    clone.commit("prose");
    assert_eq!(changed().touched, Touched::None);
    assert_eq!(
        changed().not_needed(),
        format!(
            "none of the 5 files that changed since origin/HEAD ({base}) is one that a verdict depends on"
        )
    );
    assert_eq!(findings(&clone.folder), [""; 0]);
}

#[test]
fn a_pull_request_that_adds_a_model() {
    let server = Server::new("");
    let clone = server.clone();
    clone.put("models/o.gguf", "weights\n");
    clone.edit("thresholds.toml", "[models.m]", "[models.o]\npath = \"models/o.gguf\"\n[models.m]");
    clone.commit("model");
    assert_eq!(findings(&clone.folder), [""; 0]);
    assert_eq!(touched(&clone.folder), all("thresholds.toml changed"));
}

#[test]
fn a_shorter_text_is_found_in_bytes() {
    let server = Server::new("gate/");
    let clone = server.clone();
    clone.put("gate/corpora/c.txt", "a text\n");
    let expected =
        "thresholds.toml:2: corpus file corpora/c.txt shortened: 21 bytes → 7 bytes (m, n, n@long)";
    assert_eq!(findings(&clone.folder.join("gate")), [expected]);
}

#[test]
fn each_file_touches_what_depends_on_it() {
    let server = Server::new("");
    let clone = server.clone();
    for (path, expected) in [
        ("models/n.gguf", models(&["n", "n@long"])),
        ("models/m/config.json", models(&["m"])),
        ("models/m/chat_template.jinja", models(&["m"])),
        // an index may name a shard so
        ("models/m/README.safetensors", models(&["m"])),
        ("models/m/LICENSE-1.safetensors", models(&["m"])),
        ("models/m/NOTICE.json", models(&["m"])),
        ("models/m/LICENSE.txt", Touched::None),
        ("goldens/n@long__q8_0.snap", models(&["n@long"])),
        ("goldens/m.text.snap", models(&["m"])),
        ("goldens/llama.cpp/m__q8_0.snap", models(&["m"])),
        ("goldens/gone__q8_0.snap", Touched::None),
        ("goldens/m__q8_0.snap.new", Touched::None),
        ("kvgate-results/results.json", Touched::None),
        ("docs/a.md", Touched::None),
        ("corpora/c.txt", all("corpora/c.txt changed")),
        ("prompts.toml", all("prompts.toml changed")),
        ("Cargo.lock", all("Cargo.lock changed")),
        ("Cargo.toml", all("Cargo.toml changed")),
        ("build.rs", all("build.rs changed")),
        ("rust-toolchain.toml", all("rust-toolchain.toml changed")),
        (".github/workflows/gate.yml", all(".github/workflows/gate.yml changed")),
        (".config/nextest.toml", all(".config/nextest.toml changed")),
        ("tests/gate.rs", all("tests/gate.rs changed")),
        ("src/table.md", all("src/table.md changed")),
        ("models/other.bin", all("models/other.bin changed")),
    ] {
        clone.put(path, "edited\n");
        assert_eq!(touched(&clone.folder), expected, "{path}");
        clone.run("add --all");
        assert_eq!(touched(&clone.folder), expected, "{path}, staged");
        clone.run("reset --quiet --hard");
    }
}

/// An edit of what git ignores is in no commit and no list of changes.
#[test]
fn what_is_not_tracked_may_have_changed() {
    let server = Server::new("");
    let git = &server.git;
    git.put(".gitignore", "*.safetensors\n/corpora\n/models/n.gguf\n/models/m/.cache\n");
    git.commit("ignore");
    let clone = server.clone();
    let changed = || since(&load(&clone.folder), None, &nothing).unwrap();
    clone.put("models/m/README.md", "words\n");
    clone.put("models/m/.cache/lock", "of a download\n");
    assert_eq!(changed().touched, Touched::None, "ignored, and tracked all the same");
    clone.put("models/m/model.safetensors", "weights\n");
    let words =
        "models/m/model.safetensors is not tracked, so that nobody knows whether it changed";
    assert_eq!(changed().touched, models(&["m"]));
    assert!(changed().to_string().ends_with(&format!(": m; {words}")), "{}", changed());
    std::fs::remove_file(clone.folder.join("models/m/model.safetensors")).unwrap();

    clone.run("rm --quiet --cached models/n.gguf");
    git.run("rm --quiet --cached models/n.gguf");
    git.commit("weights");
    clone.run("fetch --quiet");
    clone.run("reset --quiet origin/main");
    assert_eq!(changed().touched, models(&["n", "n@long"]));
    assert_eq!(changed().untracked[0], ("n".to_owned(), PathBuf::from("models/n.gguf")));
    // what is pinned is known
    let pinned = format!("models/n.gguf\"\nsha256 = \"{}\"", "a".repeat(64));
    git.edit("thresholds.toml", "models/n.gguf\"", &pinned);
    git.commit("pinned");
    clone.run("fetch --quiet");
    clone.run("reset --quiet origin/main");
    clone.run("checkout --quiet thresholds.toml");
    assert_eq!(changed().touched, Touched::None);
    // a text, of all models
    git.run("rm --quiet --cached corpora/c.txt");
    git.commit("texts");
    clone.run("fetch --quiet");
    clone.run("reset --quiet origin/main");
    assert_eq!(changed().touched, models(&["m", "n", "n@long"]));
    assert_eq!(changed().untracked[0].1, PathBuf::from("corpora/c.txt"));
}

/// Weights that lie elsewhere are in no commit, through a link or not.
#[test]
#[cfg(unix)]
fn what_lies_outside_may_have_changed() {
    let server = Server::new("");
    let git = &server.git;
    std::fs::write(server.root.path().join("other.gguf"), "weights\n").unwrap();
    std::fs::remove_file(git.folder.join("models/n.gguf")).unwrap();
    std::os::unix::fs::symlink("../../other.gguf", git.folder.join("models/n.gguf")).unwrap();
    git.commit("link");
    let clone = server.clone();
    assert_eq!(touched(&clone.folder), models(&["n", "n@long"]));
}

#[test]
fn a_rename_is_one_change_of_both_paths() {
    let server = Server::new("");
    let clone = server.clone();
    let base = clone.run("rev-parse HEAD");
    clone.run("mv models/n.gguf models/moved.png");
    let renamed =
        FileChange { path: "models/moved.png".into(), old_path: Some("models/n.gguf".into()) };
    let repository = open(&clone);
    assert_eq!(repository.changed_in_workdir(&base), Ok(vec![renamed.clone()]));
    assert_eq!(touched(&clone.folder), models(&["n", "n@long"]), "by its old path");
    let head = clone.commit("rename");
    assert_eq!(repository.changed_paths(&base, &head), Ok(vec![renamed]));
    assert_eq!(touched(&clone.folder), models(&["n", "n@long"]));
}

#[test]
fn a_dirty_tree_shows_all_that_is_not_committed() {
    let server = Server::new("");
    let clone = server.clone();
    let base = clone.run("rev-parse HEAD");
    clone.put(".gitignore", "ignored\n");
    clone.put("committed", "1");
    let head = clone.commit("one");
    clone.put("staged", "2");
    clone.run("add staged");
    clone.put("new/untracked", "3");
    clone.put("ignored", "4");
    clone.edit("README.md", "model", "fine model");
    std::fs::remove_file(clone.folder.join("models/n.gguf")).unwrap();
    let paths =
        [".gitignore", "README.md", "committed", "models/n.gguf", "new/untracked", "staged"];
    let repository = open(&clone);
    assert_eq!(repository.changed_in_workdir(&base), Ok(paths.map(change).to_vec()));
    let committed = vec![change(".gitignore"), change("committed")];
    assert_eq!(repository.changed_paths(&base, &head), Ok(committed));
}

/// What the target loosened meanwhile is not the branch's doing, before a rebase or after it.
#[test]
fn a_rebase_moves_the_base() {
    let server = Server::new("");
    let first = server.git.run("rev-parse HEAD");
    let clone = server.clone();
    clone.put("models/n.gguf", "other weights\n");
    clone.commit("weights");
    server.git.edit("thresholds.toml", "0.05", "0.5");
    let second = server.git.commit("loosened");
    clone.run("fetch --quiet");
    let base = || open(&clone).merge_base("HEAD", "origin/main").unwrap();
    assert_eq!(base(), first);
    assert_eq!(findings(&clone.folder), [""; 0]);
    assert_eq!(touched(&clone.folder), models(&["n", "n@long"]));
    clone.run("rebase --quiet origin/main");
    assert_eq!(base(), second);
    assert_eq!(findings(&clone.folder), [""; 0]);
    assert_eq!(touched(&clone.folder), models(&["n", "n@long"]));
}

/// As actions/checkout leaves a pull request: detached, at a merge of both.
#[test]
fn a_detached_merge_shows_the_pull_requests_changes_alone() {
    let server = Server::new("");
    let clone = server.clone();
    clone.put("models/n.gguf", "other weights\n");
    clone.commit("weights");
    server.git.put("corpora/c.txt", "a text to measure on, and more\n");
    let main = server.git.commit("corpus");
    clone.run("fetch --quiet");
    clone.run("checkout --quiet --detach origin/main");
    let merge = "merge --quiet --no-ff --message merged topic";
    clone.run(merge);
    let repository = open(&clone);
    assert_eq!(repository.head().unwrap(), clone.run("rev-parse HEAD"));
    assert_eq!(repository.merge_base("HEAD", "origin/main").unwrap(), main);
    assert_eq!(touched(&clone.folder), models(&["n", "n@long"]));
    let pull_request = |name: &str| (name == "GITHUB_BASE_REF").then(|| "main".to_owned());
    assert_eq!(repository.default_target(&pull_request).unwrap(), "origin/main");
}

/// Two branches that merged each other have two merge bases: git prints the younger.
#[test]
fn a_criss_cross_has_gits_merge_base() {
    for younger in ["topic", "main"] {
        let server = Server::new("");
        let git = &server.git;
        git.run("checkout --quiet -b topic");
        let older = if younger == "topic" { "main" } else { "topic" };
        git.run(&format!("checkout --quiet {older}"));
        git.put("one", "1");
        let first = git.commit("one");
        git.run(&format!("checkout --quiet {younger}"));
        git.put("two", "2");
        let second = git.commit("two");
        git.run(&format!("merge --quiet --message m {first}"));
        git.run(&format!("checkout --quiet {older}"));
        git.run(&format!("merge --quiet --message m {second}"));
        assert_eq!(git.run("merge-base --all main topic").lines().count(), 2);
        let found = open(git).merge_base("main", "topic").unwrap();
        assert_eq!(found, second);
        assert_eq!(found, git.run("merge-base main topic"));
        assert_eq!(open(git).merge_base("topic", "main").unwrap(), second);
    }
}

const DEEPEN: &str = "get its history: `git fetch --unshallow`, in a workflow `fetch-depth: 0` of \
                      actions/checkout";

#[test]
fn a_shallow_clone_says_how_to_deepen_it() {
    let server = Server::new("");
    let first = server.git.run("rev-parse HEAD");
    server.git.run("checkout --quiet -b topic");
    server.git.put("models/n.gguf", "other weights\n");
    server.git.commit("weights");
    server.git.run("checkout --quiet main");
    server.git.commit("empty");

    let both = server.clone_with("--depth 1 --no-single-branch --branch topic ", "both");
    let repository = open(&both);
    assert!(repository.is_shallow());
    let error = repository.merge_base("HEAD", "origin/main").unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "this clone is shallow: where HEAD and origin/main parted is not in it\n  = help: {DEEPEN}"
        )
    );

    let single = server.clone_with("--depth 1 --branch topic ", "single");
    let repository = open(&single);
    let pull_request = |name: &str| (name == "GITHUB_BASE_REF").then(|| "main".to_owned());
    assert_eq!(
        repository.default_target(&pull_request).unwrap_err().to_string(),
        format!(
            "`origin/main` is no revision of this clone\n  = help: `git fetch origin main`; as this \
             clone is shallow, {DEEPEN}"
        )
    );
    assert_eq!(
        repository.default_target(&nothing).unwrap_err().to_string(),
        format!(
            "no branch to compare with: tried origin/HEAD, origin/main, origin/master, main, master\n  \
             = help: name one with `--against REVISION`, or {DEEPEN}"
        )
    );

    // the mend mends
    both.run("fetch --quiet --unshallow");
    assert!(!open(&both).is_shallow());
    assert_eq!(open(&both).merge_base("HEAD", "origin/main").unwrap(), first);
    assert_eq!(touched(&both.folder), models(&["n", "n@long"]));
}

#[test]
fn a_submodule_is_a_repository_of_its_own() {
    let server = Server::new("");
    let outer = Git::at(server.root.path().join("outer"));
    outer.run("init --quiet");
    let url = format!("file://{}", server.git.folder.display());
    outer.run(&format!("submodule --quiet add {url} gate"));
    let outer_head = outer.commit("submodule");
    let inner = Git::at(outer.folder.join("gate"));
    inner.minutes.set(500);

    let repository = open(&inner);
    assert_eq!(repository.workdir(), inner.folder.canonicalize().unwrap());
    assert_eq!(repository.head().unwrap(), server.git.run("rev-parse HEAD"));
    assert_eq!(repository.relative(&inner.folder), Some(PathBuf::new()));
    inner.edit("thresholds.toml", "chunks = 4", "chunks = 2");
    let expected = "thresholds.toml:4: chunks reduced: 4 → 2 (m, n, n@long)";
    assert_eq!(findings(&inner.folder), [expected]);
    inner.commit("fewer");
    assert_eq!(findings(&inner.folder), [expected]);

    // the outer one knows but the commit
    let repository = open(&outer);
    assert_eq!(repository.changed_in_workdir(&outer_head), Ok(vec![change("gate")]));
    let path = Path::new("gate/thresholds.toml");
    let hidden = RepoError::InSubmodule { path: path.into(), submodule: "gate".into() };
    assert_eq!(repository.tree("HEAD").unwrap().read(path), Err(hidden));
}

#[test]
fn a_linked_worktree_has_a_head_of_its_own() {
    let server = Server::new("gate/");
    let clone = server.clone();
    clone.commit("empty");
    let linked = Git::at(server.root.path().join("linked"));
    clone.run(&format!("worktree add --quiet -b other {} origin/main", linked.folder.display()));
    assert_eq!(open(&linked).head().unwrap(), server.git.run("rev-parse HEAD"));
    assert_ne!(open(&linked).head(), open(&clone).head());
    let gate = linked.folder.join("gate");
    assert_eq!(open(&linked).relative(&gate.join("none/yet")), Some("gate/none/yet".into()));
    linked.put("gate/models/n.gguf", "other weights\n");
    assert_eq!(touched(&gate), models(&["n", "n@long"]));
    assert_eq!(touched(&clone.folder.join("gate")), Touched::None);
}

#[test]
fn what_a_sparse_checkout_leaves_out_is_not_deleted() {
    let server = Server::new("gate/");
    server.git.put("other/file", "1");
    server.git.commit("other");
    let clone = server.clone();
    clone.run("sparse-checkout set --no-sparse-index gate");
    assert!(!clone.folder.join("other").exists());
    assert_eq!(open(&clone).changed_in_workdir("HEAD"), Ok(Vec::new()));
    assert_eq!(
        open(&clone).tree("HEAD").unwrap().read(Path::new("other/file")),
        Ok(Some(b"1".to_vec()))
    );
    std::fs::remove_file(clone.folder.join("gate/README.md")).unwrap();
    assert_eq!(open(&clone).changed_in_workdir("HEAD"), Ok(vec![change("gate/README.md")]));
}

#[cfg(unix)]
#[test]
fn a_tree_is_read_within_its_bounds() {
    let server = Server::new("");
    let git = &server.git;
    for (to, at) in [
        ("../corpora", "models/texts"),
        ("texts/c.txt", "models/twice"),
        ("../../secret", "models/out"),
        ("/etc/hostname", "models/absolute"),
        ("loop", "models/loop"),
        ("nowhere", "models/dangling"),
    ] {
        std::os::unix::fs::symlink(to, git.folder.join(at)).unwrap();
    }
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 987654321\n";
    git.put("models/large.gguf", lfs);
    std::fs::File::create(git.folder.join("large")).unwrap().set_len((64 << 20) + 1).unwrap();
    git.commit("links");
    let repository = open(git);
    let tree = repository.tree("main").unwrap().seen_from(Path::new("models"));
    let read = |path: &str| tree.read(Path::new(path));
    let text = || Ok(Some(b"a text to measure on\n".to_vec()));
    assert_eq!(read("../corpora/c.txt"), text());
    assert_eq!(read("texts/c.txt"), text());
    assert_eq!(read("twice"), text());
    for absent in
        ["none", "none/none", "m", "n.gguf/x", "dangling", "../../secret", "/etc/hostname"]
    {
        assert_eq!(read(absent), Ok(None), "{absent}");
    }
    for outside in ["out", "absolute", "loop"] {
        assert_eq!(read(outside), Err(RepoError::Outside(outside.into())));
    }
    let pointer = RepoError::LfsPointer {
        path: "large.gguf".into(),
        sha256: "4d7a".into(),
        bytes: 987_654_321,
    };
    assert_eq!(read("large.gguf"), Err(pointer));
    assert_eq!(tree.size(Path::new("large.gguf")), Ok(Some(987_654_321)));
    assert_eq!(tree.size(Path::new("n.gguf")), Ok(Some(8)));
    let (bytes, most) = ((64 << 20) + 1, 64 << 20);
    let large = RepoError::TooLarge { path: "../large".into(), bytes, most };
    assert_eq!(read("../large"), Err(large));
    assert_eq!(tree.list(Path::new("m")), Ok(vec!["m/config.json".into()]), "as `read` takes them");
    assert_eq!(tree.list(Path::new("none")), Ok(Vec::new()));
}

#[test]
fn what_is_no_repository_says_so() {
    environment::settle();
    let root = tempfile::tempdir().unwrap();
    let place = root.path().display();
    let error = |folder: &Path| Repository::discover(folder).err().unwrap().to_string();
    assert_eq!(
        error(root.path()),
        format!(
            "{place} is in no git repository\n  = help: `git clone` it, rather than download it; or \
             `git init`"
        )
    );
    let git = Git::at(root.path().join("bare"));
    git.run("init --quiet --bare");
    assert!(error(&git.folder).contains("is bare: it has no files to measure"));

    let git = Git::at(root.path().join("unborn"));
    git.run("init --quiet");
    assert_eq!(open(&git).head(), Err(RepoError::Unborn));
    assert_eq!(open(&git).merge_base("HEAD", "main"), Err(RepoError::Unborn));
    git.put("a", "1");
    git.commit("a");
    git.run("checkout --quiet --orphan other");
    git.commit("b");
    assert_eq!(
        open(&git).merge_base("HEAD", "main").unwrap_err().to_string(),
        "HEAD and main have no common history\n  = help: compare with a branch that this one was made \
         from: `--against REVISION`"
    );
    assert_eq!(
        open(&git).resolve("0123abcd").unwrap_err().to_string(),
        "`0123abcd` is no revision of this clone\n  = help: `git fetch origin 0123abcd`"
    );
}

#[test]
fn the_program_runs_what_is_touched() {
    let repository = accepted();
    let git = Git::at(repository.path(""));
    git.run("init --quiet");
    git.put(".gitignore", "cache\nkvgate-results\n");
    git.put("README.md", "a model\n");
    git.commit("first");
    git.run("checkout --quiet -b topic");
    let run =
        |arguments: &[&str]| kvgate(&repository, &[&["run", "--changed"], arguments].concat());

    run(&[]).exits(0).says("not needed: nothing changed since main (");
    git.put("README.md", "words\n");
    run(&[]).exits(0).says("not needed: the one file that changed since main (");
    let results = std::fs::read(repository.path("kvgate-results/results.json")).unwrap();
    let results: serde_json::Value = serde_json::from_slice(&results).unwrap();
    assert_eq!(results["measurements"], serde_json::json!([]));
    assert_eq!(results["cases"], serde_json::json!([]));
    run(&["--list"]).exits(0).says("not needed: ");
    run(&["nobody"]).exits(3).says("nothing selected").never_says("not needed");
    run(&["--against", "none"])
        .exits(2)
        .says("--changed: `none` is no revision of this clone")
        .says("`git fetch origin none`");

    git.edit("goldens/tiny__q8_0.snap", "source: kvgate", "source:  kvgate");
    run(&["q8_0", "--list"])
        .exits(0)
        .says("touched since main (")
        .says("): tiny")
        .says("tiny::q8_0::kld");
    git.run("checkout --quiet goldens");
    git.put("Cargo.lock", "");
    run(&["q8_0::kld"]).exits(0).says("every model is touched: Cargo.lock changed").says("pass");

    git.commit("second");
    let push = [("GITHUB_EVENT_NAME", "push")];
    let list = ["run", "--changed", "--list"];
    kvgate_with(&repository, &list, &push)
        .exits(0)
        .says("every model is touched: a run of `push` is of no pull request");
}

#[test]
fn forms_that_libgit2_does_not_read_say_what_to_do() {
    let server = Server::new("gate/");
    server.git.put("other/file", "1");
    server.git.commit("other");
    let sparse = server.clone();
    sparse.run("sparse-checkout set --sparse-index gate");
    let error = open(&sparse).changed_in_workdir("HEAD").unwrap_err().to_string();
    assert!(error.ends_with("= help: `git sparse-checkout reapply --no-sparse-index`"), "{error}");
    // what needs no index works
    open(&sparse).merge_base("HEAD", "origin/main").unwrap();
}

#[test]
fn a_partial_clone_says_how_to_complete_it() {
    let server = Server::new("");
    server.git.put("corpora/c.txt", &(1..40).map(|n| format!("line {n}\n")).collect::<String>());
    server.git.commit("longer");
    server.git.edit("thresholds.toml", "0.05", "0.5");
    server.git.run("mv corpora/c.txt corpora/d.txt");
    server.git.edit("corpora/d.txt", "line 17\n", "another line\n");
    server.git.commit("loosened");
    server.git.run("config uploadpack.allowFilter true");
    let clone = server.clone_with("--filter=blob:none ", "partial");
    let path = Path::new("thresholds.toml");
    let read = |revision: &str| open(&clone).tree(revision).unwrap().read(path);
    assert!(read("HEAD").is_ok(), "what is checked out is there");
    assert_eq!(
        read("HEAD~1").unwrap_err().to_string(),
        "this clone is partial: thresholds.toml is not in it\n  = help: get the rest: `git fetch \
         --refetch --no-filter`, in a workflow no `filter` of actions/checkout"
    );
    let between = || open(&clone).changed_paths("HEAD~1", "HEAD").unwrap();
    let paths = ["corpora/c.txt", "corpora/d.txt", "thresholds.toml"];
    assert_eq!(between(), paths.map(change), "no rename without the content");
    clone.run("fetch --quiet --refetch --no-filter");
    assert_eq!(between()[0].old_path.as_deref(), Some(Path::new("corpora/c.txt")));
    assert_eq!(read("HEAD~1"), Ok(Some(POLICY.into())));
}

/// Only who may give files away can try it: root, as in a container.
#[cfg(unix)]
#[test]
fn a_repository_of_another_user_says_how_to_trust_it() {
    let root = tempfile::tempdir().unwrap();
    let git = Git::at(root.path().join("repo"));
    git.run("init --quiet");
    git.put("gate/thresholds.toml", POLICY);
    let given =
        [".git", ""].map(|path| std::os::unix::fs::chown(git.folder.join(path), Some(1), None));
    let place = git.folder.display();
    match Repository::discover(&git.folder.join("gate")) {
        Ok(_) => assert!(given.iter().all(Result::is_err), "another user's is not trusted"),
        Err(error) => assert_eq!(
            error.to_string(),
            format!(
                "the repository of {place} belongs to another user\n  = help: `git config --global \
                 --add safe.directory {place}` says that it can be trusted"
            )
        ),
    }
}

/// Words are harmless only where nothing of the policy is made of them.
#[test]
#[cfg(unix)]
fn words_that_the_policy_leads_to_touch_it() {
    let server = Server::new("");
    let git = &server.git;
    std::fs::remove_file(git.folder.join("corpora/c.txt")).unwrap();
    git.put("notes.md", "a text\n");
    std::os::unix::fs::symlink("../notes.md", git.folder.join("corpora/c.txt")).unwrap();
    let prompt = "version = 1\n[[prompts]]\nid = \"a\"\ncategory = \"b\"\ntext = \"{document}\"\n\
                  document = { file = \"docs/hay.md\", from = \"It\", tokens = 9 }\n";
    git.put("prompts.toml", prompt);
    git.put("docs/hay.md", "It is hay.\n");
    git.put("docs/model/config.json", "{}\n");
    git.edit("thresholds.toml", "path = \"models/m\"", "path = \"docs/model\"");
    git.commit("links");
    let clone = server.clone();
    let all = Touched::All("what a text of the policy leads to changed".into());
    for (path, expected) in [
        ("notes.md", all.clone()),
        ("docs/hay.md", all),
        ("docs/model/config.json", Touched::Models(vec!["m".into()])),
        ("docs/other.md", Touched::None),
    ] {
        clone.put(path, "edited\n");
        assert_eq!(touched(&clone.folder), expected, "{path}");
        clone.run("reset --quiet --hard");
        clone.run("clean --quiet -fd");
    }
}
