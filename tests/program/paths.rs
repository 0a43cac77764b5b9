//! Every file of the repository that a document names is there.

use std::path::{Path, PathBuf};

/// What a path of this repository begins with.
const FOLDERS: [&str; 8] = [
    "src/",
    "tests/",
    "docs/",
    "scripts/",
    "examples/",
    "benches/",
    ".github/actions/",
    ".github/templates/",
];

#[test]
fn documents_name_files_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "scripts/oracle/README.md"]
        .iter()
        .map(|name| root.join(name))
        .collect();
    documents.extend(std::fs::read_dir(root.join("docs")).unwrap().map(|e| e.unwrap().path()));
    let mut missing = Vec::new();
    let mut count = 0;
    for document in documents {
        let text = std::fs::read_to_string(&document).unwrap();
        // code stands between backticks, so every second piece is code
        for code in text.split('`').skip(1).step_by(2) {
            let is_path = FOLDERS.iter().any(|folder| code.starts_with(folder));
            let is_plain = !code.contains([' ', '*', '{', '<', '\n']) && !code.contains("NAME");
            if is_path && is_plain {
                count += 1;
                if !root.join(code).exists() {
                    missing.push(format!("{}: `{code}`", document.display()));
                }
            }
        }
    }
    assert!(count > 20, "only {count} paths were found");
    assert!(missing.is_empty(), "\n{}", missing.join("\n"));
}
