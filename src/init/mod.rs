//! The texts of the files that `kvgate init` writes into a model's repository.

pub(crate) mod policy;

use crate::policy::DEFAULT_PATH;

/// A placeholder for the GitHub account whose kvgate is used, and for the owner who must agree to changes of the
/// gate.
const OWNER: &str = "OWNER";

/// Values that are put into the files.
pub(crate) struct Starter {
    /// The repository of kvgate, `OWNER/NAME`, in workflows and in the manifest.
    pub kvgate: String,
    /// The owner in CODEOWNERS.
    pub owner: String,
    /// Whether `kvgate-gpu.yml`, which needs a machine of one's own, is written, too.
    pub gpu: bool,
}

impl Default for Starter {
    fn default() -> Self {
        Starter { kvgate: format!("{OWNER}/kvgate"), owner: format!("@{OWNER}"), gpu: false }
    }
}

/// A file of the repository.
pub(crate) struct File {
    /// The path from the repository's root.
    pub path: &'static str,
    /// The whole text.
    pub text: String,
    /// Lines that a file of that name should have if it exists already. They are empty if any existing file is fine
    /// as it is.
    pub lines: String,
}

impl File {
    fn new(path: &'static str, text: impl Into<String>) -> Self {
        File { path, text: text.into(), lines: String::new() }
    }

    /// A file that repositories often have already. Then its lines are shown, so that people can add them.
    fn shared(path: &'static str, head: &str, lines: String) -> Self {
        File { path, text: format!("{head}{lines}"), lines }
    }
}

impl Starter {
    /// What people still have to fill in.
    pub fn placeholders(&self) -> Vec<&'static str> {
        let kvgate = self.kvgate.starts_with(&format!("{OWNER}/"));
        let owner = self.owner == format!("@{OWNER}");
        let placeholders = [
            (kvgate, "OWNER/kvgate: the account whose kvgate is used (`--kvgate OWNER/NAME`)"),
            (owner, "@OWNER in CODEOWNERS: who agrees to limits and goldens (`--owner @TEAM`)"),
        ];
        placeholders.into_iter().filter(|(is_left, _)| *is_left).map(|(_, told)| told).collect()
    }

    /// All files except the policy and its texts.
    pub fn files(&self) -> Vec<File> {
        let gpu = self.gpu.then(|| {
            let template = include_str!("../../.github/templates/kvgate-gpu.yml");
            File::new(".github/workflows/kvgate-gpu.yml", self.filled(template))
        });
        let files = [
            File::shared("Cargo.toml", PACKAGE, self.filled(MANIFEST)),
            File::new("tests/gate.rs", TARGET),
            File::new(".config/nextest.toml", include_str!("../../.config/nextest.toml")),
            File::shared(".gitignore", "", IGNORED.into()),
            File::shared(".github/CODEOWNERS", CODEOWNERS, self.owned()),
            File::new(
                ".github/workflows/kvgate.yml",
                self.filled(include_str!("../../.github/templates/kvgate.yml")),
            ),
            File::new(
                ".github/workflows/kvgate-post.yml",
                self.filled(include_str!("../../.github/templates/kvgate-post.yml")),
            ),
        ];
        files.into_iter().chain(gpu).collect()
    }

    fn filled(&self, template: &str) -> String {
        template
            .replace("OWNER/kvgate", &self.kvgate)
            .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
    }

    fn owned(&self) -> String {
        let owned = [DEFAULT_PATH, "goldens/", ".github/"];
        owned.iter().map(|path| format!("/{path} {}\n", self.owner)).collect()
    }
}

/// Where GitHub looks for CODEOWNERS. It uses the first that exists.
pub(crate) const CODEOWNERS_PLACES: [&str; 3] =
    [".github/CODEOWNERS", "CODEOWNERS", "docs/CODEOWNERS"];

const TARGET: &str = "\
//! The gate of this repository: the cases of `thresholds.toml` as tests.

fn main() -> std::process::ExitCode {
    kvgate::main()
}
";

const PACKAGE: &str = "\
[package]
name = \"model-gate\"
version = \"0.0.0\"
edition = \"2021\"
publish = false

# a package of its own, whatever workspace lies above
[workspace]

";

const MANIFEST: &str = "\
[dev-dependencies]
kvgate = { git = \"https://github.com/OWNER/kvgate\", tag = \"v@VERSION@\", default-features = false }

[[test]]
name = \"gate\"
harness = false

# without these the engine is many times slower
[profile.test.package.\"*\"]
opt-level = 3
debug-assertions = false
overflow-checks = false
";

const IGNORED: &str = "\
/target
/kvgate-results
*.snap.new
*.pending-snap
";

const CODEOWNERS: &str = "\
# What the gate lets pass is changed only with the consent of these; branch protection must
# \"Require review from Code Owners\".
";

/// The texts that are measured on if no others are given, and their licences.
pub(crate) const TEXTS: [(&str, &str); 4] = [
    ("corpora/prose.txt", include_str!("../../corpora/prose.txt")),
    ("corpora/dialogue.txt", include_str!("../../corpora/dialogue.txt")),
    ("corpora/code.txt", include_str!("../../corpora/code.txt")),
    ("corpora/README.md", TEXTS_README),
];

const TEXTS_README: &str = "\
# Texts

`prose.txt`, `dialogue.txt` and `code.txt` come with kvgate: they were written for it and are given away
under CC0 1.0 (no rights reserved). They are a start. A release is judged on text like what its users
write: put such text here, name it in `thresholds.toml`, and accept new goldens. Any edit of a text makes
every golden that was measured on it stale.
";
